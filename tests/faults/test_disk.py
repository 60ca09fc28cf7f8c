"""The embedded default while its disk is full: the database, the avatars, the ledger, the broker and the mails.

No process may let a file grow meanwhile, as on a disk without room (``RLIMIT_FSIZE``); the kernel refuses.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.http_world import HttpWorld, aftermath, ask
from tests.support.factories import dispose, make_app
from tests.support.processes import Running, client_of, environment, eventually, is_ready, worker
from tests.support.servers import free_port

TIMES, SECONDS = 5, 2.0


def limit_files(running: Running, size: int) -> None:
    for pid in running.alive():
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


def test_while_the_disk_is_full_every_promise_is_kept_and_afterwards_all_goes_on(
    sqlite_url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    env = environment(
        tmp_path, sqlite_url, PORT=str(free_port()), SWEEP_INTERVAL="1s", PURGE_BATCH_SIZE="2"
    )
    app = make_app(sqlite_url, tmp_path)
    rows, found = [], []
    with (
        Running("gunicorn", "--config", "gunicorn.conf.py", "wsgi:app", env=env) as web,
        worker(env) as working,
        client_of(env) as client,
    ):
        eventually(lambda: is_ready(client))
        working.wait_for("worker is ready")
        world = HttpWorld(app, app, tmp_path / "instance" / "media", client=client)
        for number in range(TIMES):
            operations = world.new_round()
            answers: dict[str, int] = {}

            # when: at another moment of the round each time
            time.sleep(number * 0.2)
            for one in (web, working):
                limit_files(one, 0)
            for name, work in operations:
                ask(answers, name, work)
            time.sleep(SECONDS)
            bad = world.violations(answers)
            for one in (web, working):
                limit_files(one, resource.RLIM_INFINITY)

            # then
            eventually(world.all_due_are_gone)
            bad += aftermath(world, answers)
            rows.append(f"{'disk full, for all files':32} {answers!s:60} {len(bad)}")
            found += [f"{one} {answers}" for one in bad]
        assert web.process.poll() is None
        assert working.process.poll() is None
    record_property("table", "\n".join(rows))
    assert found == [], "\n".join(found)
    assert world.ledger_is_whole() == []
    dispose(app)
