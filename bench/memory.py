"""``python -m bench.memory [SECONDS [IDLE]]``: the memory of two web processes under uploads.

Sixteen clients upload the image that takes the most memory for SECONDS, by default 30; IDLE seconds
later, by default 300, it is looked at again. What is counted is the proportional set size (PSS) of
the web processes and of all that they have started, as the kernel says it: a page that several of
them share counts once. Linux alone has it. A result above its bound ends with 1.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import httpx
from PIL import Image

from accountsvc import bounds
from accountsvc.db.schema import upgrade
from tests.support.factories import PASSWORD
from tests.support.images import encoded
from tests.support.processes import (
    Running,
    children,
    client_of,
    environment,
    eventually,
    is_ready,
)
from tests.support.servers import PostgresServer, ValkeyServer, free_port

_CLIENTS = 16
_MIB = 2**20


def tree(pid: int) -> list[int]:
    """Return *pid* and the processes that it has started, directly or not."""
    return [pid, *(one for child in children(pid) for one in tree(child))]


def memory(pid: int) -> int:
    """Return the PSS of *pid* and of all that it has started, in bytes."""
    return sum(pss(one) for one in tree(pid))


def pss(pid: int) -> int:
    """Return the PSS of *pid* alone, in bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


class Peak:
    """The most memory that *pid* and all that it has started take while this is entered."""

    def __init__(self, pid: int, *, pause: float = 0.02) -> None:
        self.bytes = 0
        self._pid, self._pause = pid, pause
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(self._pause):
            self.bytes = max(self.bytes, memory(self._pid))


def dearest() -> bytes:
    """Return the image within all bounds that takes the most memory to decode."""
    side = int(bounds.IMAGE_PIXELS**0.5)
    return encoded(Image.new("RGBA", (side, side), (200, 30, 30, 128)), "WEBP", method=0)


@contextmanager
def two_web_processes(folder: Path) -> Iterator[tuple[Running, dict[str, str]]]:
    """Start them as ``accountsvc web`` does, on engines of their own; no tries are counted."""
    with PostgresServer() as database, ValkeyServer() as redis:
        url = database.create_database("memory")
        upgrade(url)
        env = environment(
            folder, url, REDIS_URL=redis.url, WEB_CONCURRENCY="2", PORT=str(free_port())
        )
        with Running("accountsvc", "web", env=env) as web, client_of(env) as client:
            eventually(lambda: is_ready(client))
            yield web, env


def upload_at_once(env: dict[str, str], image: bytes, seconds: float) -> dict[int, int]:
    """Have each of sixteen clients upload *image* again and again; count answers by their status.

    An answer of 503 asks to come again, which these do at once.
    """
    until = time.monotonic() + seconds

    def work(number: int) -> list[int]:
        name = f"upload{number}"
        with client_of(env) as client:
            body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
            made = client.post("/api/sign-up/", json=body).json()
            url, found = f"/api/profile/{made['user']['id']}/update/", []
            headers = {"Authorization": f"Bearer {made['access']}"}
            while time.monotonic() < until:
                with _reconnecting():
                    files = {"avatar": ("me.webp", image, "image/webp")}
                    found.append(client.put(url, files=files, headers=headers).status_code)
            return found

    with ThreadPoolExecutor(_CLIENTS) as pool:
        statuses = [status for some in pool.map(work, range(_CLIENTS)) for status in some]
    return {status: statuses.count(status) for status in sorted(set(statuses))}


@contextmanager
def _reconnecting() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError:
        time.sleep(0.1)


def main(seconds: float = 30, idle: float = 300) -> int:
    with tempfile.TemporaryDirectory() as folder, two_web_processes(Path(folder)) as (web, env):
        pid = web.process.pid
        before = memory(pid)
        with Peak(pid) as peak:
            statuses = upload_at_once(env, dearest(), seconds)
        time.sleep(idle)
        after = memory(pid)
    print(f"{_CLIENTS} uploads at once for {seconds:.0f} s; answers by status: {statuses}")
    print(f"before {before // _MIB} MiB")
    print(f"most   {peak.bytes // _MIB} MiB (bound: {bounds.MEMORY_UNDER_UPLOADS // _MIB} MiB)")
    print(f"after  {after // _MIB} MiB (bound: {bounds.MEMORY_AFTER_UPLOADS // _MIB} MiB)")
    within = peak.bytes < bounds.MEMORY_UNDER_UPLOADS and after < bounds.MEMORY_AFTER_UPLOADS
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main(*(float(word) for word in sys.argv[1:])))
