"""Evidence of a period: what became of each request, and that nothing is left out."""

from __future__ import annotations

import re
import threading
import uuid
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import DBAPIError

from accountsvc.accounts import lifecycle
from accountsvc.db import audit, generations
from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.models import AuditEvent, ClockReading, PurgeBrake, Receipt, Seal
from accountsvc.purge import reconciling, stops
from accountsvc.purge.evidence import LATE, Period, Request, events_of, requests_of
from accountsvc.purge.reconciling import InTheFuture, Reconciliation, SealEnd
from accountsvc.services import Services
from tests.support.factories import (
    deactivate,
    insert_account,
    make_promise,
    owner,
    run_sql,
    witness,
)
from tests.support.lies import backdate_receipt, forget_event, forget_line, forget_receipt
from tests.support.lives import DAY, STAFF, World, live
from tests.support.moments import SECOND, at, now
from tests.support.state import rows_of
from tests.support.sweeps import sweep

FAILED = ("failed for a while", "failing", "stuck")


def gather(services: Services, period: Period) -> tuple[list[Request], Reconciliation]:
    requests: list[Request] = []
    found = services.evidence.gather(period, requests.append)
    return requests, found


def whole(world: World) -> Period:
    return Period(world.since, now(world.services))


def amiss(found: Reconciliation) -> set[tuple[str, uuid.UUID]]:
    return {(one.what, one.number) for one in found.unexplained}


@pytest.fixture
def period(services: Services) -> Period:
    """The last hundred days."""
    moment = now(services)
    return Period(moment - 100 * DAY, moment)


def test_every_request_of_many_lives_has_its_end_and_nothing_is_unexplained(
    services: Services, tmp_path: Path
) -> None:
    world = live(services, 48, tmp_path)
    expected = world.expected

    requests, found = gather(services, whole(world))

    assert found.unexplained == []
    ends: dict[uuid.UUID, list[tuple[str, str | None]]] = {}
    for request in requests:
        ends.setdefault(request.number, []).append((str(request.outcome), request.ended_by))
    assert ends == expected
    assert [request.at for request in requests] == sorted(request.at for request in requests)
    assert found.requests == Counter(end for ends in expected.values() for end, _ in ends)
    # Three who had asked after the backup, and three who had asked before it: their receipts are
    # out of the ledger, and all six were erased once more.
    assert found.explained == {reconciling.PUT_BACK: 6, reconciling.PURGED_AGAIN: 6}
    moved = {request.number for request in requests if request.moved}
    # Another date is mailed, and the release of the last hold may give one.
    assert moved == {*world.numbers("moved"), *world.numbers("released")}
    waived = {request.number: request.at_once for request in requests if request.at_once}
    assert {waived.pop(one) for one in world.numbers("at once by the owner")} == {"owner"}
    assert {waived.pop(one) for one in world.numbers("at once by the staff")} == {"staff"}
    assert {request.number for request in requests if request.failures} == {
        number for kind in FAILED for number in world.numbers(kind)
    }
    again = {request.number for request in requests if request.again is not None}
    assert again == set(world.numbers("lost, purged again"))
    assert found.receipts == found.ledger_lines == len(rows_of(services, Receipt))


def test_a_lie_about_the_past_is_named(services: Services, tmp_path: Path) -> None:
    # given
    world = live(services, 48, tmp_path, restored=False)
    period = whole(world)
    _, before = gather(services, period)
    receipt, event, asked, returned, line = (
        world.numbers(kind)[0]
        for kind in ("purged", "moved", "forced", "cancelled", "at once by the owner")
    )

    # when
    forget_receipt(services, receipt)
    forget_event(services, event, "account.purged")
    forget_event(services, asked, "account.deactivated")
    forget_event(services, returned, "account.reactivated")
    fellows = forget_line(services, line)
    _, after = gather(services, period)

    # then
    assert before.unexplained == []
    assert amiss(after) == {
        (reconciling.EVENT_ALONE, receipt),
        (reconciling.LINE_ALONE, receipt),
        (reconciling.RECEIPT_ALONE, event),
        (reconciling.REQUEST_UNKNOWN, event),
        (reconciling.PURGE_UNASKED, asked),
        (reconciling.REQUEST_UNKNOWN, returned),
        *((reconciling.NOT_IN_LEDGER, fellow) for fellow in fellows),
    }
    assert {one.why for one in after.unexplained} == {None, "gone", "active"}


def test_a_receipt_that_was_made_to_tell_another_story_is_named_by_all_three(
    services: Services, period: Period
) -> None:
    # given
    ann, bob = insert_account(services, "ann"), insert_account(services, "bob")
    first, moment = period.since, period.since + 20 * DAY
    for account in (ann, bob):
        deactivate(services, account.id, now=first)
    sweep(services, moment, write_ledger=services.write_ledger)
    whole = services.restore.verify()

    # when: nothing is sealed yet
    backdate_receipt(services, ann.public_id, first + DAY)
    services.seal(seconds=30, at_once=True)
    requests, found = gather(services, period)
    report = services.auditing.verify()

    # then
    assert whole.agrees
    assert report.ledger is not None
    assert report.ledger.differing == [ann.public_id]
    assert not report.is_whole
    assert amiss(found) == {
        (reconciling.EVENT_ALONE, ann.public_id),
        (reconciling.RECEIPT_ALONE, ann.public_id),
        (reconciling.NOT_IN_LEDGER, ann.public_id),
        (reconciling.LINE_DIFFERS, ann.public_id),
    }
    assert found.explained == {}
    assert {each.number: each.ended for each in requests} == {
        ann.public_id: moment,
        bob.public_id: moment,
    }


def test_who_left_twice_has_two_rows_and_a_period_has_those_that_began_in_it(
    services: Services, period: Period
) -> None:
    # given
    ann, bob = insert_account(services, "ann"), insert_account(services, "bob")
    first, back, second = (period.since + days * DAY for days in (0, 1, 2))
    deactivate(services, ann.id, now=first)
    with services.writing() as session:
        lifecycle.reactivate(session, ann.id, promise=make_promise(), by=owner(ann), clock=at(back))
    deactivate(services, ann.id, by=STAFF, now=second)
    sweep(services, second + 20 * DAY, write_ledger=services.write_ledger)

    # when
    both, _ = gather(services, period)
    one, found = gather(services, Period(first + SECOND, second + SECOND))
    none, _ = gather(services, Period(first + SECOND, second))

    # then
    assert [(str(each.outcome), each.by, each.ended_by) for each in both] == [
        ("cancelled", "owner", "owner"),
        ("purged", "staff", "system"),
    ]
    assert [each.at for each in one] == [second]
    assert none == []
    assert one[0].ended == second + 20 * DAY
    # What is in the period is counted, and what comes after it is no part of it.
    assert (found.receipts, found.ledger_lines, found.unexplained) == (0, 0, [])
    assert bob.public_id not in {each.number for each in both}


@pytest.mark.parametrize(
    ("overdue_for", "outcome", "reason"),
    [(LATE - timedelta(minutes=1), "due", "sweep"), (LATE + SECOND, "unknown", "overdue")],
)
def test_a_promise_that_nobody_keeps_is_named_after_an_hour(
    services: Services, period: Period, overdue_for: timedelta, outcome: str, reason: str
) -> None:
    ann = insert_account(services, "ann", purge_at=now(services) - overdue_for)
    bob = insert_account(services, "bob", purge_at=now(services) + DAY)

    requests, found = gather(services, period)

    assert {each.number: (str(each.outcome), each.reason) for each in requests} == {
        ann.public_id: (outcome, reason),
        bob.public_id: ("waiting", None),
    }
    named = {(reconciling.REQUEST_UNKNOWN, ann.public_id)} if outcome == "unknown" else set()
    assert amiss(found) == named


@pytest.mark.parametrize("reason", ["paused", "clock", "brake", "restore"])
def test_who_is_overdue_by_the_will_of_somebody_is_explained(
    services: Services, period: Period, reason: str
) -> None:
    insert_account(services, "ann", purge_at=now(services) - 2 * LATE)
    stop(services, reason)

    (request,), found = gather(services, period)

    assert (request.outcome, request.reason) == ("due", reason)
    assert found.unexplained == []


def stop(services: Services, reason: str) -> None:
    """Let nobody be purged, for *reason*."""
    moment = now(services)
    with services.writing() as session:
        if reason == "paused":
            stops.pause(session, by=OPERATOR_ACTOR)
        elif reason == "clock":
            seen = {"boot": "x", "booted_at": moment, "read_at": moment, "moved_at": moment}
            session.add(ClockReading(**seen))
        elif reason == "restore":
            generations.begin(session, {}, moment)
        else:
            session.add(PurgeBrake(id=1, held_at=moment))


def test_a_date_that_nobody_promised_is_named_and_one_from_before_the_witnesses_is_explained(
    services: Services, period: Period
) -> None:
    # given: an event of a release without witnesses, and what the upgrade wrote down
    early = insert_account(services, "early", purge_at=now(services) + DAY, witnessed=False)
    with services.writing() as session:
        audit.record(
            session,
            "account.deactivated",
            subject=early.public_id,
            by=owner(early),
            now=period.since,
        )
    witness(services, early.id)
    moved = insert_account(services, "moved", purge_at=now(services) + DAY)
    run_sql(services, "UPDATE accounts SET purge_at = deactivated_at WHERE username = 'moved'")

    # when
    requests, found = gather(services, Period(period.since, now(services)))

    # then
    assert {each.number: (str(each.outcome), each.reason) for each in requests} == {
        early.public_id: ("waiting", None),
        moved.public_id: ("unknown", "unpromised"),
    }
    assert requests[0].promised == early.purge_at
    assert found.explained == {reconciling.BEFORE_WITNESSES: 1}
    assert amiss(found) == {(reconciling.REQUEST_UNKNOWN, moved.public_id)}


def test_a_line_that_is_owed_to_the_ledger_is_explained(services: Services, period: Period) -> None:
    ann = insert_account(services, "ann", purge_at=period.since + DAY)
    sweep(services, period.since + DAY)

    _, owed = gather(services, period)
    services.write_ledger()
    _, written = gather(services, period)

    assert owed.explained == {reconciling.OWED: 1}
    assert (owed.ledger_lines, written.ledger_lines, written.explained) == (0, 1, {})
    assert owed.unexplained == written.unexplained == []
    assert ann.public_id in {receipt.public_id for receipt in rows_of(services, Receipt)}


def test_the_seals_at_both_ends_of_a_period_are_named(services: Services) -> None:
    # given: a seal of all that was, then an event, which no seal covers yet
    insert_account(services, "early", purge_at=now(services) + DAY)
    services.seal(seconds=30, at_once=True)
    since = now(services)
    ann = insert_account(services, "ann")
    deactivate(services, ann.id, now=since)
    first, *_ = rows_of(services, Seal)

    # when
    _, nothing_came = gather(services, Period(since - timedelta(hours=1), first.sealed_at))
    _, unsealed = gather(services, Period(since, now(services)))
    services.seal(seconds=30, at_once=True)
    _, sealed = gather(services, Period(since, now(services)))

    # then
    second = rows_of(services, Seal)[-1]
    assert nothing_came.before is nothing_came.end is None
    assert unsealed.before == SealEnd(first.number, first.head, first.sealed_at)
    assert unsealed.end is None
    assert sealed.before == unsealed.before
    assert sealed.end == SealEnd(second.number, second.head, second.sealed_at)


def test_what_a_pruning_has_taken_is_explained(services: Services, period: Period) -> None:
    # given: nothing but the receipt is left, and a seal that says why
    insert_account(services, "ann", purge_at=period.since + DAY)
    sweep(services, period.since + DAY, write_ledger=services.write_ledger)
    services.seal(seconds=30, at_once=True)
    _, before = gather(services, period)
    for receipt in rows_of(services, Receipt):
        forget_event(services, receipt.public_id, "account.purged")
    _, lost = gather(services, period)

    # when
    run_sql(services, "UPDATE seals SET pruned_at = sealed_at")
    _, pruned = gather(services, period)

    # then
    assert before.unexplained == []
    assert reconciling.RECEIPT_ALONE in {one.what for one in lost.unexplained}
    assert reconciling.RECEIPT_ALONE not in {one.what for one in pruned.unexplained}
    assert pruned.explained == {reconciling.PRUNED: 1}


def test_a_period_that_is_not_over_is_refused(services: Services, period: Period) -> None:
    with pytest.raises(InTheFuture):
        gather(services, Period(period.since, period.until + DAY))


def test_one_moment_is_read_whatever_is_written_meanwhile(services: Services) -> None:
    ann = insert_account(services, "ann")

    with services.database.snapshot() as session:
        first = session.scalars(select(AuditEvent.id)).all()
        thread = threading.Thread(target=deactivate, args=(services, ann.id))
        thread.start()
        thread.join(timeout=30)
        second = session.scalars(select(AuditEvent.id)).all()

    assert first == second == []
    assert len(rows_of(services, AuditEvent)) == 1


def test_what_is_read_as_of_one_moment_can_neither_be_written_nor_stay_so(
    services: Services,
) -> None:
    with pytest.raises(DBAPIError), services.database.snapshot() as session:
        session.execute(text("DELETE FROM sweep_marks"))

    # The pool's connections are as they were.
    for _ in range(3):
        with services.writing() as session:
            session.execute(text("DELETE FROM sweep_marks"))


def test_a_short_period_reads_no_whole_trail_on_postgresql(postgresql: Services) -> None:
    """By the plans of the queries, in a trail of 20,000 events."""
    moment = now(postgresql)
    with postgresql.writing() as session:
        session.execute(
            insert(AuditEvent),
            [
                audit.row(
                    "account.deactivated",
                    subject=uuid.uuid4(),
                    by=OPERATOR_ACTOR,
                    now=moment - number * timedelta(hours=1),
                )
                for number in range(20_000)
            ],
        )
    run_sql(postgresql, "ANALYZE")
    asked: list[str] = []

    with postgresql.database.snapshot() as session:
        connection = session.connection()

        def explain(_conn: Any, cursor: Any, statement: str, values: Any, *_: Any) -> None:
            if statement.startswith("SELECT") and "audit_events" in statement:
                asked.append(statement)
                rows = connection.connection.cursor().execute("EXPLAIN " + statement, values)
                plans.extend(row[0] for row in rows.fetchall())

        plans: list[str] = []
        event.listen(connection, "before_cursor_execute", explain)
        period = Period(moment - DAY, moment)
        found = list(requests_of(session, period, now=moment, max_attempts=8))
        assert list(events_of(session, period, ["account.purged"])) == []

    assert len(found) == 24
    assert len(asked) >= 4
    assert not [line for line in plans if "Seq Scan on audit_events" in line]
    assert [line for line in plans if "ix_audit_events_at" in line]


def test_a_short_period_reads_no_whole_trail_on_sqlite(sqlite: Services) -> None:
    moment = now(sqlite)
    insert_account(sqlite, "ann", purge_at=moment + DAY)
    plans: list[str] = []

    with sqlite.database.snapshot() as session:
        connection = session.connection()

        def explain(_conn: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
            if statement.startswith("SELECT") and "audit_events" in statement:
                asked = connection.connection.cursor()
                rows = asked.execute("EXPLAIN QUERY PLAN " + statement, values)
                plans.extend(row[3] for row in rows.fetchall())

        event.listen(connection, "before_cursor_execute", explain)
        found = list(
            requests_of(session, Period(moment - 30 * DAY, moment), now=moment, max_attempts=8)
        )

    assert len(found) == 1
    assert not [line for line in plans if re.match(r"SCAN audit_events\b", line)]
    assert [line for line in plans if "audit_events USING INDEX ix_audit_events_at" in line]
    assert not [line for line in plans if "ix_audit_events_action" in line]
