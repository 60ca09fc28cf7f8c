"""The fault suite finds what it is there for: each of these bugs, put in on purpose, is seen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, true
from sqlalchemy.orm import Session

from accountsvc import services
from accountsvc.adapters.ledger import Ledger
from accountsvc.adapters.ledgerseal import SealKeys
from accountsvc.db import rules
from accountsvc.db.audit import Actor
from accountsvc.db.engine import Clock, Database
from accountsvc.db.models import Account, Effect, SavedPassword
from accountsvc.outbox import queue
from accountsvc.outbox.queue import OnDropped, Owed
from accountsvc.purge import brake, claim, clocks, erase
from accountsvc.purge.claim import PlannedPurge
from accountsvc.purge.clocks import Clocks, Reading
from accountsvc.purge.stops import Refused
from accountsvc.services import Services, build_services
from accountsvc.web import db
from tests.conftest import NewApp
from tests.faults.injection import Fault, Kind
from tests.faults.mass import first_hour
from tests.faults.suite import Result, inject, world
from tests.faults.world import World
from tests.support.clocks import MovableClock, movable_clock
from tests.support.factories import insert_account, make_settings, services_of
from tests.support.ledgers import OTHER_KEY, keys, write
from tests.support.moments import now
from tests.support.state import read_account

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def files_before_the_commit(here: World) -> None:
    """Delete the avatars inside the transaction that purges."""

    def delete_files(session: Session, ids: list[int]) -> None:
        keys = session.scalars(select(Account.avatar_key).where(Account.id.in_(ids))).all()
        services_of(here.inside).avatars.delete_many([key for key in keys if key])

    _before_erasing(delete_files)


def a_commit_too_early(_here: World) -> None:
    """Purge the saved passwords in a transaction of their own."""

    def commit_a_part(session: Session, ids: list[int]) -> None:
        session.execute(delete(SavedPassword).where(SavedPassword.account_id.in_(ids)))
        session.commit()
        session.connection(execution_options={"writes": True})

    _before_erasing(commit_a_part)


def a_clock_that_is_ahead(_here: World) -> None:
    """Believe a clock that is a month ahead for who is due, behind the back of what compares clocks."""
    count_proposed, lock_due, decide = claim.count_proposed, claim.lock_due, claim.decide
    month = timedelta(days=30)

    def counted(session: Session, now: datetime, *rest: Any) -> int:
        return count_proposed(session, now + month, *rest)

    def locked(session: Session, now: datetime, *rest: Any, **named: Any) -> list[int]:
        return lock_due(session, now + month, *rest, **named)

    def decided(session: Session, proposed: Sequence[int], now: datetime) -> list[PlannedPurge]:
        return decide(session, proposed, now + month)

    claim.count_proposed, claim.lock_due, claim.decide = counted, locked, decided


def no_witness_asked(_here: World) -> None:
    """Take any date for a promise."""
    rules.is_explained = true


def files_that_nobody_owes(_here: World) -> None:
    """Owe something that nobody knows, instead of the deletion of a file."""
    queue.DELETE_FILE = "nothing"


def no_receipt(_here: World) -> None:
    _leave_out("receipts")


def no_audit_event(_here: World) -> None:
    _leave_out("audit_events")


def an_answer_without_a_commit(_here: World) -> None:
    """Answer as if it were done, and roll it back."""

    def mutant(work: Callable[[Session], Any]) -> Any:
        session = db.session()
        session.connection(execution_options={"writes": True})
        result = work(session)
        session.flush()
        session.rollback()
        return result

    # By name: the package has blueprints under these names.
    for module in ("deletion", "grace"):
        vars(sys.modules[f"accountsvc.api.{module}"])["committed"] = mutant


def effects_forgotten_before_they_are_done(_here: World) -> None:
    """Remove what is owed from the outbox first, and do it then."""
    claim = queue._claim

    def mutant(
        database: Database, clock: Clock, kind: str, size: int, on_dropped: OnDropped | None
    ) -> dict[int, Owed] | None:
        owed = claim(database, clock, kind, size, on_dropped)
        with database.writing() as session:
            session.execute(delete(Effect).where(Effect.id.in_(owed or ())))
        return owed

    queue._claim = mutant


def _before_erasing(work: Callable[[Session, list[int]], None]) -> None:
    original = erase.erase

    def mutant(
        session: Session,
        accounts: Sequence[PlannedPurge],
        now: datetime,
        by: Actor,
        *,
        backups_kept: timedelta,
    ) -> None:
        work(session, [one.account_id for one in accounts])
        original(session, accounts, now, by, backups_kept=backups_kept)

    erase.erase = mutant


def _leave_out(table: str) -> None:
    execute = Session.execute

    def mutant(self: Session, statement: Any, *arguments: Any, **options: Any) -> Any:
        if getattr(statement, "is_insert", False) and statement.table.name == table:
            return execute(self, select(1))
        return execute(self, statement, *arguments, **options)

    Session.execute = mutant  # type: ignore[assignment,method-assign]


# Under which fault each does harm, and the number of the invariant that it breaks.
MUTANTS = {
    files_before_the_commit: (Fault(Kind.DATABASE, "sweep: before DELETE accounts"), "1: due"),
    a_commit_too_early: (Fault(Kind.DATABASE, "sweep: before DELETE accounts"), "1: due"),
    a_clock_that_is_ahead: (Fault(Kind.KILL, "deliver: before COMMIT"), "3: waiting"),
    no_witness_asked: (Fault(Kind.KILL, "deliver: before COMMIT"), "3: mistaken"),
    files_that_nobody_owes: (Fault(Kind.KILL, "deliver: before COMMIT"), "2: due"),
    no_receipt: (Fault(Kind.KILL, "deliver: before COMMIT"), "4: due"),
    no_audit_event: (Fault(Kind.KILL, "deliver: before COMMIT"), "4: due"),
    an_answer_without_a_commit: (Fault(Kind.KILL, "deliver: before COMMIT"), "6: leaver"),
    effects_forgotten_before_they_are_done: (
        Fault(Kind.KILL, "deliver: before file unlink"),
        "2: due",
    ),
}


def test_none_of_these_faults_does_harm_to_the_code_as_it_is(
    database_url: str, tmp_path: Path
) -> None:
    faults = {fault for fault, _ in MUTANTS.values()}
    result = Result()

    with world(database_url, tmp_path) as here:
        inject(here, sorted(faults, key=str), result)

    assert result.injected.total() == len(faults)
    assert result.violations == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_each_mutant_is_caught(
    database_url: str, tmp_path: Path, mutant: Callable[[World], None]
) -> None:
    fault, broken = MUTANTS[mutant]
    result = Result()

    with world(database_url, tmp_path) as here:
        inject(here, [fault], result, mutate=partial(mutant, here))

    assert any(broken in one for one in result.violations), result.violations


# Clocks ----------------------------------------------------------------------------------------


def a_mark_that_is_not_read(change: pytest.MonkeyPatch) -> None:
    """Purge although another host has found that the clock has moved."""
    change.setattr(clocks, "stopped_at", lambda _session: None)


def a_clock_that_is_not_measured(change: pytest.MonkeyPatch) -> None:
    """Take any time of the database's clock for the one that comes next."""
    change.setattr(Reading, "has_moved", lambda *_: False)


def a_mark_that_stays(change: pytest.MonkeyPatch) -> None:
    """Never find that the clock is back."""
    change.setattr(Clocks, "_go_on", lambda *_: True)


CLOCK_MUTANTS = {
    a_mark_that_is_not_read: "waiting was purged by another host",
    a_clock_that_is_not_measured: "waiting was purged by this host",
    a_mark_that_stays: "due was not purged after all",
}


def clock_violations(here: Services, clock: MovableClock) -> list[str]:
    """Let the clocks of all jump and come back; return what was not as promised."""
    this_host = replace(here, clocks=replace(here.clocks, host_clock=clock.now))
    with suppress(Refused):
        this_host.sweep()
    # It has seen nothing before the jump.
    other_host = replace(this_host, clocks=replace(this_host.clocks, boot="another"))
    waiting = insert_account(here, "waiting", purge_at=now(here) + timedelta(days=7))
    due = insert_account(here, "due", purge_at=now(here) - timedelta(days=1))
    found = []
    clock.move(timedelta(days=10))
    for name, host in (("this", this_host), ("another", other_host)):
        with suppress(Refused):
            host.sweep()
        if read_account(here, waiting.id) is None:
            return [f"waiting was purged by {name} host"]
    clock.move(timedelta())
    with suppress(Refused):
        this_host.sweep()
    if read_account(here, due.id) is not None:
        found.append("due was not purged after all")
    return found


@pytest.mark.parametrize("mutant", [None, *CLOCK_MUTANTS])
def test_each_mutant_of_the_clocks_is_caught(
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutant: Callable[[pytest.MonkeyPatch], None] | None,
) -> None:
    with movable_clock(database_url) as clock:
        here = build_services(make_settings(database_url, tmp_path))
        if mutant is not None:
            mutant(monkeypatch)

        found = clock_violations(here, clock)

        here.database.engine.dispose()
    broken = None if mutant is None else CLOCK_MUTANTS[mutant]
    assert found == ([] if broken is None else [broken])


def test_a_brake_that_never_holds_is_caught(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``test_thousands_that_fall_due_at_once_wait_for_the_brake`` asks for the same number."""
    monkeypatch.setattr(brake, "limit", lambda *_: 300)

    assert first_hour(services_of(new_app()), due=300) > brake.LEAST


def test_a_signature_that_is_not_checked_is_caught(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody without the key names a bystander in the ledger, and the operator replays it."""
    with world(database_url, tmp_path) as here:
        here.new_round()
        (bystander,) = (one for one in here.members if one.role == "bystander")
        parts = here.services
        with parts.reading() as session:
            moment = services.database_now(session)
        stranger = Ledger(parts.ledger.store, keys(OTHER_KEY))
        write(stranger, [{"public_id": str(bystander.public_id)}], at=moment)

        parts.replay.run(parts.replay.plan())
        innocent = here.violations({})
        monkeypatch.setattr(SealKeys, "flaw_of", lambda *_: None)
        parts.replay.run(parts.replay.plan())
        guilty = here.violations({})

    assert innocent == []
    assert any(one.startswith("3: bystander") for one in guilty), guilty
