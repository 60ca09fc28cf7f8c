"""A backup is put back under a running worker: it purges nobody, until the ledger is replayed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from accountsvc.db import generations
from accountsvc.db.generations import HighWater
from accountsvc.purge import restore
from accountsvc.services import Services
from tests.support.factories import make_due, make_person, reactivate
from tests.support.processes import Running, environment, eventually, run
from tests.support.state import get_account, read_account
from tests.support.story import Story

OLDER = "the database is older than its ledger, so nothing is purged"


def test_a_running_worker_purges_nobody_after_a_restore(services: Services, tmp_path: Path) -> None:
    """Also nobody who has come back since the backup, and whose purge time has come."""
    url = services.settings.database_url
    env = environment(tmp_path, url, SWEEP_INTERVAL="1s")
    story = Story(services, tmp_path)
    with Running("celery", "-A", "worker", "worker", "-B", env=env) as worker:
        worker.wait_for("worker is ready")
        backup = story.begin()
        reactivate(services, story.id("returner"))
        eventually(lambda: list(services.ledger.store.names("kept/"))[1:])

        backup.put_back()
        make_due(services, story.people["leaver"])
        worker.wait_for(OLDER)

        assert not get_account(services, story.id("returner")).is_active
        assert read_account(services, story.id("leaver")) is not None
        prepared = run("python", "-m", "accountsvc", "prepare", env=env)
        assert "older than its ledger" in prepared.stdout, prepared.stderr
        replayed = run("accountsvc", "ledger", "replay", "--yes", env=env)
        assert replayed.returncode == 0, replayed.stderr
        eventually(lambda: read_account(services, story.id("leaver")) is None)
        assert get_account(services, story.id("returner")).is_active
        assert "Traceback" not in worker.log


def wronged_by_a_return_that_is_lost(services: Services, folder: Path) -> bool:
    """Put a backup back behind which somebody came back; say whether they are purged."""
    story = Story(services, folder)
    backup = story.begin()
    reactivate(services, story.id("returner"))
    story.settle()
    backup.put_back()
    make_due(services, story.people["returner"])
    return _is_purged(services, story.id("returner"))


def wronged_by_a_second_restore(services: Services, folder: Path) -> bool:
    """Put a backup of before a replay back, with numbers that have gone on since; as above."""
    story = Story(services, folder)
    backup = story.begin()
    reactivate(services, story.id("returner"))
    services.replay.run(services.replay.plan())
    story.settle()
    backup.put_back()
    with services.writing() as session:
        generation = generations.current(session)
        assert generation is not None
        generations.take_numbers(session, 1000, generation.began_at)
    make_due(services, story.people["returner"])
    return _is_purged(services, story.id("returner"))


def _is_purged(services: Services, account_id: int) -> bool:
    try:
        services.sweep()
    except restore.stops.DatabaseBehind:
        return False
    return read_account(services, account_id) is None


def a_mark_that_is_not_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(generations, "knows", lambda *_: True)
    patch.setattr(generations, "high_water", lambda _: HighWater(0, 0))


def a_generation_that_is_not_compared(patch: pytest.MonkeyPatch) -> None:
    def knows(session: object, seen: generations.Marks) -> bool:
        mark = real(session).mark  # type: ignore[arg-type]
        return all(number <= mark for number in seen.values())

    real = generations.high_water
    patch.setattr(generations, "knows", knows)


@pytest.mark.parametrize(
    ("wrong", "mutant"),
    [
        (wronged_by_a_return_that_is_lost, a_mark_that_is_not_read),
        (wronged_by_a_second_restore, a_generation_that_is_not_compared),
    ],
)
def test_each_mutant_of_the_restore_is_caught(
    services: Services,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[Services, Path], bool],
    mutant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    mutant(monkeypatch)

    assert wrong(services, tmp_path)


@pytest.mark.parametrize("wrong", [wronged_by_a_return_that_is_lost, wronged_by_a_second_restore])
def test_no_restore_purges_who_has_come_back(
    services: Services, tmp_path: Path, wrong: Callable[[Services, Path], bool]
) -> None:
    assert not wrong(services, tmp_path)


def test_people_of_a_restored_database_are_served_only_after_the_replay(
    services: Services, tmp_path: Path
) -> None:
    """A process that has seen the ledger before notices by the database alone."""
    story = Story(services, tmp_path)
    backup = story.begin()
    make_due(services, make_person(services, "late"))
    services.sweep()
    assert not services.restore.has_gone_back()

    backup.put_back()

    assert services.restore.has_gone_back()
