"""A clock that jumps ten days ahead and back under running processes: nobody is purged by it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from apiflask import APIFlask

from accountsvc.db.models import ClockReading, Effect, Receipt
from accountsvc.outbox import queue
from accountsvc.outbox.payloads import LedgerLines
from accountsvc.services import Services
from tests.faults.test_clocks import LIBRARY
from tests.support.clocks import movable_clock
from tests.support.factories import dispose, insert_account, make_app, services_of
from tests.support.moments import SECOND, now
from tests.support.processes import Running, environment, eventually
from tests.support.state import read_account, rows_of

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
JUMP = 10 * DAY
MOVED = "the database's clock has moved, so nothing is purged"
DIFFER = "two clocks differ, so nothing is purged"

Move = Callable[[timedelta], object]


def worker(env: dict[str, str]) -> Running:
    return Running("celery", "-A", "worker", "worker", "-B", env=env)


def jump_and_return(app: APIFlask, running: Running, move: Move, said: str) -> None:
    """Let the clock jump under a worker and come back; fail if anybody is wronged by it."""
    services = services_of(app)
    running.wait_for("worker is ready")
    first = insert_account(services, "first", purge_at=now(services) - SECOND)
    eventually(lambda: read_account(services, first.id) is None)
    eventually(lambda: rows_of(services, ClockReading) != [])
    waiting = insert_account(services, "waiting", purge_at=now(services) + 7 * DAY)
    move(JUMP)
    running.wait_for(said)
    # What is recorded meanwhile is recorded by the wrong clock.
    with services.writing() as session:
        then = datetime.now(UTC) + JUMP
        queue.record(session, queue.LEDGER, subject=None, now=then, payload=LedgerLines([]))
    due = insert_account(services, "due", purge_at=datetime.now(UTC) - SECOND)

    move(timedelta())

    # Whole by itself: who is due goes, all that is owed is done, nobody else is gone.
    eventually(lambda: read_account(services, due.id) is None)
    eventually(lambda: not put_off(services))
    # A worker rewrites SQLite's file once an hour at most, and what finishes a purge waits for it.
    eventually(lambda: services.scrub(at_most_every=None) and not rows_of(services, Effect))
    assert read_account(services, waiting.id) is not None
    assert all(reading.moved_at is None for reading in rows_of(services, ClockReading))
    assert len(rows_of(services, Receipt)) == 2
    assert "Mend it first" not in running.log
    assert "Traceback" not in running.log


def put_off(services: Services) -> list[str]:
    """Return the kinds of what is put off for longer than any pause of it."""
    latest = datetime.now(UTC) + HOUR
    return [one.kind for one in rows_of(services, Effect) if one.deliver_after > latest]


def test_the_clock_of_the_database_jumps(postgresql_url: str, tmp_path: Path) -> None:
    env = environment(tmp_path, postgresql_url, SWEEP_INTERVAL="1s")
    with movable_clock(postgresql_url) as clock:
        app = make_app(postgresql_url, tmp_path)
        with worker(env) as running:
            jump_and_return(app, running, clock.move, DIFFER)
        dispose(app)


def test_the_clock_of_the_host_jumps_and_the_database_is_a_file_on_it(
    sqlite_url: str, tmp_path: Path
) -> None:
    ahead = tmp_path / "ahead"
    env = environment(tmp_path, sqlite_url, SWEEP_INTERVAL="1s", **moved_by(ahead))
    app = make_app(sqlite_url, tmp_path)
    with worker(env) as running:
        jump_and_return(app, running, mover(ahead), MOVED)
    dispose(app)


def test_both_clocks_jump(postgresql_url: str, tmp_path: Path) -> None:
    ahead = tmp_path / "ahead"
    env = environment(tmp_path, postgresql_url, SWEEP_INTERVAL="1s", **moved_by(ahead))
    with movable_clock(postgresql_url) as clock:
        app = make_app(postgresql_url, tmp_path)
        move_host = mover(ahead)

        def move(by: timedelta) -> None:
            # On their way apart they differ; then both believe the same.
            clock.move(by)
            move_host(by)

        with worker(env) as running:
            jump_and_return(app, running, move, MOVED)
        dispose(app)


def test_the_clock_of_the_host_alone_jumps(postgresql_url: str, tmp_path: Path) -> None:
    ahead = tmp_path / "ahead"
    env = environment(tmp_path, postgresql_url, SWEEP_INTERVAL="1s", **moved_by(ahead))
    app = make_app(postgresql_url, tmp_path)
    with worker(env) as running:
        jump_and_return(app, running, mover(ahead), DIFFER)
    dispose(app)


def moved_by(ahead: Path) -> dict[str, str]:
    """The variables of a process whose clock is ahead by what the file *ahead* says."""
    ahead.write_text("+0")
    return {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(ahead),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def mover(ahead: Path) -> Move:
    def move(by: timedelta) -> None:
        # Replaced in one step: half a file would be read as no time.
        draft = ahead.with_suffix(".draft")
        draft.write_text(f"+{by.total_seconds():.0f}")
        draft.rename(ahead)

    return move
