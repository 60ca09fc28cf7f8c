"""What the purge promises, on both engines: only who is due, everything of theirs, nobody else."""

from __future__ import annotations

import dataclasses
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from accountsvc.accounts import exports, lifecycle
from accountsvc.db import datamap
from accountsvc.db.audit import OPERATOR_ACTOR, Actor
from accountsvc.db.engine import Database, make_engine, writing
from accountsvc.db.models import (
    Account,
    AuditEvent,
    Base,
    Effect,
    PurgeFailure,
    Receipt,
    SavedPassword,
    VaultKey,
)
from accountsvc.db.proofs import SCRUBBED, ReceiptFact
from accountsvc.errors import GraceOver
from accountsvc.outbox import queue
from accountsvc.purge import claim, failures, scrub, stops
from accountsvc.purge.sweep import Sweep, SweepResult
from accountsvc.services import Services, build_services
from tests.support import state
from tests.support.factories import (
    drop_mails,
    insert_accounts,
    make_promise,
    make_settings,
    numbered,
)
from tests.support.moments import at
from tests.support.processes import Crash
from tests.support.state import stored_tables
from tests.support.sweeps import sweep

NOW = datetime(2026, 12, 7, 9, 30, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def add_accounts(
    services: Services,
    count: int,
    *,
    name: str,
    purge_at: datetime | None,
    passwords: int = 2,
    avatar: bool = True,
) -> list[int]:
    """Insert accounts whose avatars are named after them; without *purge_at* they are active."""
    return insert_accounts(
        services,
        numbered(name, count),
        purge_at=purge_at,
        passwords=passwords,
        avatar_key="{}.webp".format if avatar else None,
    )


def ids_left(services: Services) -> set[int]:
    return set(state.ids_left(services))


def count(services: Services, model: type[Base]) -> int:
    with services.reading() as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


@pytest.mark.parametrize(
    ("moment", "purged"), [(NOW - MICROSECOND, 0), (NOW, 1), (NOW + MICROSECOND, 1)]
)
def test_an_account_is_purged_from_its_purge_time_on_and_not_before(
    services: Services, moment: datetime, purged: int
) -> None:
    (account_id,) = add_accounts(services, 1, name="ann", purge_at=NOW)

    result = sweep(services, moment)

    assert result.purged == purged
    assert (account_id in ids_left(services)) is (purged == 0)


@pytest.mark.parametrize(("moment", "comes_back"), [(-1, True), (0, False), (1, False)])
def test_reactivation_ends_when_the_purge_begins(
    services: Services, moment: int, comes_back: bool
) -> None:
    (account_id,) = add_accounts(services, 1, name="ann", purge_at=NOW)

    def reactivate() -> None:
        with services.writing() as session:
            lifecycle.reactivate(
                session,
                account_id,
                clock=at(NOW + moment * MICROSECOND),
                promise=make_promise(),
                by=Actor("staff"),
            )

    if comes_back:
        reactivate()
    else:
        with pytest.raises(GraceOver):
            reactivate()
    assert sweep(services, NOW).purged == (0 if comes_back else 1)


def test_a_purge_takes_all_of_one_account_and_nothing_of_another(services: Services) -> None:
    due = add_accounts(services, 3, name="due", purge_at=NOW, passwords=2)
    waiting = add_accounts(services, 2, name="waiting", purge_at=NOW + timedelta(seconds=1))
    active = add_accounts(services, 2, name="active", purge_at=None)

    result = sweep(services, NOW)

    assert (result.purged, result.saved_passwords, result.files) == (3, 6, 3)
    assert sorted(result.purged_ids) == due
    assert ids_left(services) == {*waiting, *active}
    assert count(services, SavedPassword) == 8
    assert count(services, VaultKey) == 4
    with services.reading() as session:
        receipts = session.scalars(select(Receipt)).all()
        assert [(one.saved_passwords, one.files, one.purged_at) for one in receipts] == [
            (2, 1, NOW)
        ] * 3
        events = session.scalars(
            select(AuditEvent.subject).where(AuditEvent.action == "account.purged")
        )
        assert set(events) == {one.public_id for one in receipts}
        keys = session.scalars(select(Effect.payload).where(Effect.kind == queue.DELETE_FILE))
        assert {one["key"] for one in keys} == {f"due{number}.webp" for number in range(3)}
        (ledger,) = session.scalars(select(Effect.payload).where(Effect.kind == queue.LEDGER))
        assert {line["public_id"] for line in ledger["lines"]} == {
            str(one.public_id) for one in receipts
        }
    assert sweep(services, NOW).purged == 0


def test_no_row_anywhere_keeps_the_id_of_a_purged_account(services: Services) -> None:
    (account_id,) = add_accounts(services, 1, name="ann", purge_at=NOW)
    with services.writing() as session:
        hold = lifecycle.place_hold(
            session, account_id, reason="r", clock=at(NOW), by=OPERATOR_ACTOR
        )
        lifecycle.release_hold(
            session,
            account_id,
            hold.id,
            clock=at(NOW),
            promise=make_promise(hold_release_delay=timedelta(0)),
            by=OPERATOR_ACTOR,
        )

    assert sweep(services, NOW).purged == 1

    with services.reading() as session:
        for table in stored_tables(session):
            if "account_id" in table.c:
                found = select(func.count()).where(table.c.account_id == account_id)
                assert session.scalar(found) == 0, table.name


def test_a_hold_suspends_the_purge_and_blocks_nobody_else(services: Services) -> None:
    held = add_accounts(services, 30, name="held", purge_at=NOW - timedelta(days=1))
    due = add_accounts(services, 5, name="due", purge_at=NOW)
    with services.writing() as session:
        for account_id in held:
            lifecycle.place_hold(session, account_id, reason="r", clock=at(NOW), by=OPERATOR_ACTOR)

    result = sweep(services, NOW, batch_size=2)

    assert result.purged == len(due)
    assert ids_left(services) == set(held)


def test_one_account_that_cannot_be_purged_keeps_nobody_waiting(services: Services) -> None:
    ids = add_accounts(services, 500, name="due", purge_at=NOW, passwords=1)
    bad = ids[250]
    with services.writing() as session:
        session.execute(
            text("CREATE TABLE stray (account_id BIGINT NOT NULL REFERENCES accounts (id))")
        )
        session.execute(text("INSERT INTO stray VALUES (:id)"), {"id": bad})

    # The batch with the bad account is purged one by one, which takes seconds for all 500 at once.
    result = sweep(services, NOW, batch_size=50)

    assert (result.purged, result.failed, result.stuck) == (499, 1, 0)
    assert ids_left(services) == {bad}
    with services.reading() as session:
        (failure,) = session.scalars(select(PurgeFailure))
        assert (failure.account_id, failure.attempts) == (bad, 1)
        assert failure.error == "IntegrityError"
        assert failure.retry_at == NOW + timedelta(minutes=1)
    assert count(services, SavedPassword) == 1

    # Not before its time; then again, with growing pauses, until it is stuck.
    assert sweep(services, NOW + timedelta(seconds=59)).failed == 0
    assert sweep(services, NOW + timedelta(minutes=1)).stuck == 0
    assert sweep(services, NOW + timedelta(minutes=3)).stuck == 1
    assert sweep(services, NOW + timedelta(days=30)).failed == 0

    with services.writing() as session:
        session.execute(text("DROP TABLE stray"))
        assert failures.retry(session, bad, clock=at(NOW), by=OPERATOR_ACTOR)
    assert sweep(services, NOW).purged == 1


def test_one_account_at_which_the_database_fails_keeps_nobody_waiting(services: Services) -> None:
    """What the driver calls operational may be about a single row: a trigger, an unreadable block."""
    bad, *good = add_accounts(services, 4, name="due", purge_at=NOW)
    with services.writing() as session:
        if services.settings.is_sqlite:
            session.execute(
                text(
                    f"CREATE TRIGGER bad BEFORE DELETE ON accounts WHEN OLD.id = {bad} "
                    "BEGIN SELECT json('{'); END"
                )
            )
        else:
            session.execute(
                text(
                    "CREATE FUNCTION bad() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN RAISE EXCEPTION 'bad' USING ERRCODE = '55000'; END $$"
                )
            )
            session.execute(
                text(
                    "CREATE TRIGGER bad BEFORE DELETE ON accounts FOR EACH ROW "
                    f"WHEN (OLD.id = {bad}) EXECUTE FUNCTION bad()"
                )
            )

    result = sweep(services, NOW)

    assert (result.purged, result.failed) == (len(good), 1)
    assert ids_left(services) == {bad}
    with services.reading() as session:
        (failure,) = session.scalars(select(PurgeFailure))
        assert (failure.account_id, failure.error) == (bad, "OperationalError")


def test_a_pause_stops_a_batch_that_is_purged_one_by_one(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, *_ = add_accounts(services, 4, name="due", purge_at=NOW)
    with services.writing() as session:
        session.execute(
            text("CREATE TABLE stray (account_id BIGINT NOT NULL REFERENCES accounts (id))")
        )
        session.execute(text("INSERT INTO stray VALUES (:id)"), {"id": bad})
    one_by_one = Sweep._purge_one_by_one

    def paused_before(*args: Any, **kwargs: Any) -> None:
        with services.writing() as session:
            assert stops.pause(session, clock=at(NOW), by=OPERATOR_ACTOR)
        one_by_one(*args, **kwargs)

    monkeypatch.setattr(Sweep, "_purge_one_by_one", paused_before)

    with pytest.raises(stops.PurgingPaused):
        sweep(services, NOW)

    assert count(services, Account) == 4
    assert count(services, PurgeFailure) == 0


def test_who_came_back_is_tried_anew_at_the_next_deletion(services: Services) -> None:
    (ann,) = add_accounts(services, 1, name="ann", purge_at=NOW + timedelta(days=1))
    with services.writing() as session:
        session.add(
            PurgeFailure(account_id=ann, attempts=3, error="x", failed_at=NOW, retry_at=NOW)
        )
        lifecycle.reactivate(session, ann, clock=at(NOW), promise=make_promise(), by=OPERATOR_ACTOR)
        lifecycle.deactivate(
            session, ann, clock=at(NOW), promise=make_promise(grace=timedelta()), by=OPERATOR_ACTOR
        )

    assert sweep(services, NOW).purged == 1


def test_the_plan_is_what_the_sweep_then_destroys(services: Services) -> None:
    add_accounts(services, 7, name="due", purge_at=NOW, passwords=3)
    add_accounts(services, 4, name="early", purge_at=NOW - timedelta(days=1), avatar=False)
    add_accounts(services, 2, name="waiting", purge_at=NOW + timedelta(days=1))
    with services.reading() as session:
        planned = list(claim.plan(session, now=NOW, max_attempts=3, page_size=3))

    result = sweep(services, NOW, batch_size=3)

    assert [one.account_id for one in planned] == result.purged_ids
    assert sum(one.saved_passwords for one in planned) == result.saved_passwords
    assert sum(one.files for one in planned) == result.files == 7


def test_no_further_batch_is_purged_while_the_ledger_does_not_take_its_lines(
    services: Services,
) -> None:
    add_accounts(services, 4, name="due", purge_at=NOW)
    answers = iter([True, False])

    with pytest.raises(stops.LedgerBehind):
        sweep(services, NOW, batch_size=2, write_ledger=lambda: next(answers))

    assert len(ids_left(services)) == 2


def test_two_sweeps_at_once_share_the_work(services: Services) -> None:
    ids = add_accounts(services, 200, name="due", purge_at=NOW, passwords=1)
    results: list[SweepResult] = []

    def work() -> None:
        results.append(sweep(services, NOW, batch_size=10))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(one for result in results for one in result.purged_ids) == ids
    assert count(services, Receipt) == 200


def test_a_crash_at_any_statement_leaves_all_or_nothing(services: Services) -> None:
    ids = add_accounts(services, 3, name="due", purge_at=NOW)
    statements = 0
    crash_at = 0

    @event.listens_for(services.database.engine, "before_cursor_execute")
    def visit(*_: Any) -> None:
        nonlocal statements
        statements += 1
        if statements == crash_at:
            raise Crash

    visited = 0
    while True:
        crash_at, statements = crash_at + 1, 0
        try:
            sweep(services, NOW)
        except Crash:
            visited += 1
            crash_at, keep = 0, crash_at
            left = ids_left(services)
            assert left in (set(ids), set())
            assert count(services, Receipt) == len(ids) - len(left)
            assert count(services, VaultKey) == len(left)
            crash_at = keep
        else:
            break
    event.remove(services.database.engine, "before_cursor_execute", visit)

    assert visited >= 10
    assert ids_left(services) == set()
    assert count(services, Receipt) == 3


def test_a_hold_committed_between_the_claims_snapshot_and_its_lock_wins(
    postgresql_url: str, tmp_path: Path
) -> None:
    engine = make_engine(postgresql_url)
    services = build_services(make_settings(postgresql_url, tmp_path), Database(engine))
    held, other = add_accounts(services, 2, name="due", purge_at=NOW)

    # The claim takes its snapshot, then dawdles at each row before it locks it.
    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def dawdle(
        _connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> tuple[str, Any]:
        if "SKIP LOCKED" in statement:
            statement = statement.replace("ORDER BY", "AND pg_sleep(1.5) IS NOT NULL ORDER BY", 1)
        return statement, parameters

    results: list[SweepResult] = []
    thread = threading.Thread(target=lambda: results.append(sweep(services, NOW)))
    thread.start()
    time.sleep(0.7)
    second = make_engine(postgresql_url)
    with Session(second) as session, writing(session):
        lifecycle.place_hold(session, held, reason="r", clock=at(NOW), by=OPERATOR_ACTOR)
    thread.join()

    assert results[0].purged_ids == [other]
    assert ids_left(services) == {held}
    second.dispose()
    engine.dispose()


def test_the_database_itself_refuses_to_delete_who_is_active_or_held(services: Services) -> None:
    (active,) = add_accounts(services, 1, name="active", purge_at=None)
    (held,) = add_accounts(services, 1, name="held", purge_at=NOW)
    with services.writing() as session:
        lifecycle.place_hold(session, held, reason="r", clock=at(NOW), by=OPERATOR_ACTOR)

    for account_id in (active, held):
        with pytest.raises(DatabaseError), services.writing() as session:
            session.execute(text("DELETE FROM accounts WHERE id = :id"), {"id": account_id})

    assert ids_left(services) == {active, held}


def test_freed_pages_of_the_sqlite_file_become_unreadable(sqlite_url: str, tmp_path: Path) -> None:
    engine = make_engine(sqlite_url)
    services = build_services(make_settings(sqlite_url, tmp_path), Database(engine))
    # The keys of real avatars are random; the ones made here hold the name.
    add_accounts(services, 1500, name="zebulon", purge_at=NOW, passwords=1, avatar=False)
    add_accounts(services, 1500, name="yvonne", purge_at=None, passwords=1)
    assert sweep(services, NOW).purged == 1500

    # An address is still owed a mail, so nothing is claimed yet.
    assert not scrub.scrub(services.database, lambda _: NOW, at_most_every=None)
    drop_mails(services, NOW)
    assert scrub.scrub(services.database, lambda _: NOW, at_most_every=None)

    folder = Path(sqlite_url.removeprefix("sqlite:///")).parent
    found = b"".join(path.read_bytes() for path in folder.glob("accountsvc.db*"))
    assert b"zebulon" not in found
    assert b"yvonne1499" in found
    scrubbed = state.rows_of(services, ReceiptFact, ReceiptFact.fact == SCRUBBED)
    assert (len(scrubbed), {one.at for one in scrubbed}) == (1500, {NOW})
    engine.dispose()


def test_a_scrub_waits_for_a_reader_and_for_its_hour(sqlite_url: str, tmp_path: Path) -> None:
    engine = make_engine(sqlite_url)
    services = build_services(make_settings(sqlite_url, tmp_path), Database(engine))

    def purge_one(name: str) -> None:
        add_accounts(services, 1, name=name, purge_at=NOW, avatar=False)
        sweep(services, NOW)
        drop_mails(services, NOW)

    def scrub_at(now: datetime) -> bool:
        hour = timedelta(hours=1)
        return scrub.scrub(services.database, lambda _: now, at_most_every=hour)

    purge_one("ann")
    with services.reading() as reader:
        reader.scalar(select(func.count()).select_from(Account))
        assert not scrub_at(NOW)
    assert scrub_at(NOW)
    purge_one("bob")
    assert not scrub_at(NOW + timedelta(minutes=59))
    assert scrub_at(NOW + timedelta(hours=1))
    engine.dispose()


def test_the_data_map_is_complete() -> None:
    assert [*datamap.gaps(), *exports.gaps()] == [], (
        'see "A table that belongs to an account" in CONTRIBUTING.md'
    )


@pytest.mark.parametrize("missing", [place.name for place in datamap.PLACES])
def test_a_place_that_is_missing_in_the_data_map_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A gap that the map has anyway is named by the test of the map, not by this one.
    known = datamap.gaps()
    others = tuple(place for place in datamap.PLACES if place.name != missing)
    monkeypatch.setattr(datamap, "PLACES", others)

    (gap,) = [sentence for sentence in datamap.gaps() if sentence not in known]

    assert missing.removesuffix("s") in gap
    assert "accountsvc/db/datamap.py" in gap


def test_what_is_exported_without_a_writer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = exports.gaps()
    notes = dataclasses.replace(datamap.PLACES[0], name="probes", exported="probes.json")
    monkeypatch.setattr(exports, "PLACES", (*datamap.PLACES, notes))

    (gap,) = [sentence for sentence in exports.gaps() if sentence not in known]

    assert "probes.json" in gap
    assert "accountsvc/accounts/exports.py" in gap
