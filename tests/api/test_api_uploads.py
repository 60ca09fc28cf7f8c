"""CONTRACT section 3, uploads: what they cost the web processes that serve them, and what is left."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from accountsvc import bounds
from bench.memory import Peak, dearest, memory, tree, two_web_processes, upload_at_once
from tests.support.factories import PASSWORD
from tests.support.images import jpeg_of_scans
from tests.support.processes import Running, client_of, eventually, image_workers

LONG = jpeg_of_scans(bounds.IMAGE_SCANS, (5_000, 5_000))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Running, dict[str, str]]]:
    with two_web_processes(tmp_path) as (running, env):
        yield running, env


def workers(web: Running) -> list[int]:
    return [pid for one in tree(web.process.pid) for pid in image_workers(one)]


def exists(pid: int) -> bool:
    return b"imageworker" in _cmdline(pid)


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_sixteen_uploads_at_once_take_no_more_memory_than_two_processes_may(
    web: tuple[Running, dict[str, str]],
) -> None:
    running, env = web

    with Peak(running.process.pid) as peak:
        # Not a measure: each client uploads once or, on a fast machine, a few times.
        answers = upload_at_once(env, dearest(), seconds=5)

    assert set(answers) <= {200, 503}
    assert answers[200] > 0
    # At least one was seen at work.
    assert peak.bytes > 400 * 2**20
    assert peak.bytes < bounds.MEMORY_UNDER_UPLOADS
    eventually(lambda: not workers(running))
    assert memory(running.process.pid) < bounds.MEMORY_AFTER_UPLOADS


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_web_process_that_ends_leaves_no_image_worker_behind(
    web: tuple[Running, dict[str, str]], how: signal.Signals
) -> None:
    running, env = web
    with client_of(env) as client:
        body = {"username": "ann", "email": "ann@example.org", "password": PASSWORD}
        made = client.post("/api/sign-up/", json=body).json()
        headers = {"Authorization": f"Bearer {made['access']}"}

        def upload() -> None:
            files = {"avatar": ("me.jpg", LONG, "image/jpeg")}
            url = f"/api/profile/{made['user']['id']}/update/"
            try:
                client.put(url, files=files, headers=headers)
            except httpx.TransportError:
                return

        uploading = threading.Thread(target=upload)
        uploading.start()
        (worker,) = eventually(lambda: workers(running))
        for pid in tree(running.process.pid):
            if pid != worker:
                os.kill(pid, how)

        running.process.wait()
        uploading.join()

    eventually(lambda: not exists(worker))
