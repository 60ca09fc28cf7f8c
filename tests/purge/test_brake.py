"""The brake: no 60 minutes see more purges than the limit, whoever purges, and the rest waits."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, insert, select, text
from sqlalchemy.exc import OperationalError

from accountsvc.accounts import lifecycle
from accountsvc.db.audit import OPERATOR_ACTOR, Actor
from accountsvc.db.models import Account, PurgeBrake, Receipt
from accountsvc.errors import InvalidInput
from accountsvc.purge import brake, claim, stops
from accountsvc.purge.at_once import Obstacle
from accountsvc.purge.brake import LEASE, LEAST, NO_MEASURE_YET
from accountsvc.purge.sweep import SweepResult
from accountsvc.services import Services, build_services
from tests.support.factories import insert_accounts, make_settings, numbered, run_sql, witness
from tests.support.loglines import lines_of
from tests.support.moments import NOW, at
from tests.support.moments import now as database_moment
from tests.support.state import events, get_account, ids_left, rows_of
from tests.support.sweeps import sweep

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def services(database_url: str, tmp_path: Path) -> Iterator[Services]:
    made = build_services(make_settings(database_url, tmp_path))
    yield made
    made.database.engine.dispose()


def add_due(
    services: Services, count: int, name: str = "due", *, ago: timedelta = HOUR
) -> list[int]:
    """Insert *count* accounts that are due since *ago* before ``NOW``."""
    return insert_accounts(services, numbered(name, count), purge_at=NOW - ago)


def braked(services: Services, now: datetime, **options: object) -> SweepResult:
    return sweep(services, now, brake=True, **options)  # type: ignore[arg-type]


def purge_hour(services: Services, begins: datetime, count: int) -> None:
    """Leave the receipts of *count* purges in the hour that *begins* then."""
    row = {
        "deactivated_at": begins - DAY,
        "deactivated_by": "owner",
        "purge_at": begins,
        "purged_at": begins + 30 * MINUTE,
        "saved_passwords": 0,
        "files": 0,
    }
    with services.writing() as session:
        session.execute(insert(Receipt), [{"public_id": uuid.uuid4(), **row} for _ in range(count)])


def limit(services: Services, now: datetime = NOW) -> int:
    with services.reading() as session:
        return brake.limit(session, now)


def standing(services: Services, now: datetime | None = None) -> brake.Standing:
    with services.reading() as session:
        return brake.standing(session, now)


def allow(services: Services, up_to: int, now: datetime) -> datetime | None:
    with services.writing() as session:
        return brake.allow(
            session, up_to, reason="a school has closed", by=OPERATOR_ACTOR, clock=at(now)
        )


# The limit


def test_the_limit_is_the_largest_of_a_floor_a_share_and_what_is_usual(services: Services) -> None:
    assert limit(services) == LEAST == 50
    this_hour = NOW.replace(minute=0, second=0)

    purge_hour(services, this_hour - 3 * DAY, 40)
    purge_hour(services, this_hour - 5 * DAY, 30)
    assert limit(services) == 120

    purge_hour(services, this_hour - 29 * DAY, 400)
    assert limit(services) == 120


def test_the_last_six_hours_are_no_measure(services: Services) -> None:
    this_hour = NOW.replace(minute=0, second=0)

    for hours in range(7):
        purge_hour(services, this_hour - hours * HOUR, 100)
    assert limit(services) == LEAST
    assert limit(services, this_hour + HOUR) == 300


def test_what_an_operator_has_let_go_is_no_measure(services: Services) -> None:
    then = NOW - 3 * DAY
    add_due(services, 200, ago=4 * DAY)
    braked(services, then)
    allow(services, 150, then + MINUTE)

    assert braked(services, then + MINUTE).purged == 150

    assert limit(services) == LEAST


@pytest.mark.parametrize(
    ("accounts", "hour", "expected"), [(0, 0, 50), (200_000, 66, 200), (200_000, 67, 201)]
)
def test_the_bound_in_numbers(accounts: int, hour: int, expected: int) -> None:
    assert brake.bound(accounts, hour) == expected


def test_the_share_is_of_the_planners_estimate(services: Services) -> None:
    insert_accounts(services, numbered("somebody", 300))
    with services.writing() as session:
        if session.get_bind().dialect.name == "postgresql":
            assert brake._accounts(session) == 0
            session.execute(text("ANALYZE accounts"))
        assert brake._accounts(session) == 300


# What it holds


def test_the_oldest_go_and_the_rest_waits(services: Services) -> None:
    young = add_due(services, 60, "young")
    old = add_due(services, 60, "old", ago=2 * HOUR)

    with lines_of(brake) as lines:
        first = braked(services, NOW, batch_size=20)
        again = [braked(services, NOW + minutes * MINUTE) for minutes in (1, 30, 59)]

    assert (first.purged, first.waiting, first.more) == (50, 70, False)
    assert [(one.purged, one.waiting) for one in again] == [(0, 70)] * 3
    assert ids_left(services) == sorted(old[50:] + young)
    assert standing(services) == brake.Standing(NOW)
    # One event and one line, however many sweeps it holds.
    assert [one.details for one in events(services, "purge.brake_held")] == [
        {"limit": 50, "waiting": 70}
    ]
    (line,) = [one for one in lines if one["log_level"] == "error"]
    assert (line["limit"], line["waiting"]) == (50, 70)
    assert "sweeps allow --up-to N --reason" in line["event"]


def test_it_lets_go_when_nobody_waits_with_one_event_and_one_line(services: Services) -> None:
    add_due(services, 120)
    moment, purged = NOW, []

    with lines_of(brake) as lines:
        while ids_left(services):
            purged.append(braked(services, moment, batch_size=20).purged)
            moment += 62 * MINUTE
        for _ in range(2):
            braked(services, moment)

    assert purged == [50, 50, 20]
    assert standing(services).held_at is None
    assert len(events(services, "purge.brake_held")) == 1
    assert len(events(services, "purge.brake_let_go")) == 1
    assert [one["log_level"] for one in lines] == ["error", "warning"]


def test_as_many_as_there_is_room_for_are_held_by_nothing(services: Services) -> None:
    add_due(services, 50)

    assert braked(services, NOW, batch_size=7).purged == 50
    assert events(services, "purge.brake_held") == []


def test_the_unexplained_use_no_room_and_make_it_hold_for_nobody(services: Services) -> None:
    long_ago = NOW - 2 * HOUR
    insert_accounts(services, numbered("mistaken", 60), purge_at=long_ago, witnessed=False)
    add_due(services, 50)

    assert braked(services, NOW).purged == 50
    assert events(services, "purge.brake_held") == []


def test_no_60_minutes_see_more_than_the_limit(services: Services) -> None:
    add_due(services, 250)
    moment, when = NOW + timedelta(seconds=59.9), []

    # A step that is no part of an hour, so that the sweeps meet its boundary from both sides.
    for step in range(28):
        purged = braked(services, moment, batch_size=3 + step % 23).purged
        when += [moment] * purged
        moment += timedelta(minutes=9, seconds=11.7)

    assert len(when) == 4 * LEAST
    for first, last in zip(when, when[LEAST:], strict=False):
        assert last - first > HOUR


def test_sweeps_at_once_purge_no_more_together(services: Services) -> None:
    add_due(services, 300)
    start = threading.Barrier(4)
    results: list[SweepResult] = []

    def work() -> None:
        start.wait()
        results.append(braked(services, NOW, batch_size=7))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(one.purged for one in results) <= LEAST
    # What sweeps took and could not use, because another had locked the accounts, is there again.
    last = braked(services, NOW)
    assert sum(one.purged for one in results) + last.purged == LEAST
    assert len(events(services, "purge.brake_held")) == 1


def test_sweeps_that_share_what_has_room_raise_no_alarm(services: Services) -> None:
    add_due(services, 40)
    taken = brake.Allowance(services.database, at(NOW), 3).take(40)
    assert taken.size == 40

    # Another worker sees the same forty, whom the first one has not purged yet.
    beside = brake.Allowance(services.database, at(NOW), 3).take(40)

    assert (beside.size, beside.waiting) == (10, 0)
    assert events(services, "purge.brake_held") == []


@pytest.mark.parametrize("before", ["DELETE FROM accounts", "COMMIT"])
def test_a_crash_loses_room_and_never_makes_any(services: Services, before: str) -> None:
    add_due(services, 200)
    engine = services.database.engine
    broken: list[str] = []

    def crash(connection: Connection, *_: object) -> None:
        broken.append(before)
        raise OperationalError("", {}, Exception("connection lost"), connection_invalidated=True)

    def crash_at(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("DELETE FROM accounts"):
            if before == "COMMIT":
                event.listen(engine, "commit", crash, once=True)
            else:
                crash(connection)

    event.listen(engine, "before_cursor_execute", crash_at)
    with pytest.raises(OperationalError):
        braked(services, NOW, batch_size=20)
    event.remove(engine, "before_cursor_execute", crash_at)

    assert broken == [before]
    assert len(ids_left(services)) == 200
    assert braked(services, NOW + MINUTE).purged == 30
    # Room without a sweep counts for a lease longer: a purge may have been committed so late.
    assert braked(services, NOW + HOUR + LEASE - MINUTE).purged == 30
    assert braked(services, NOW + HOUR + LEASE + MINUTE).purged == 20


def test_a_pause_takes_no_room_and_sounds_no_alarm(services: Services) -> None:
    add_due(services, 120)
    with services.writing() as session:
        stops.pause(session, by=OPERATOR_ACTOR)
    for minutes in range(3):
        with pytest.raises(stops.PurgingPaused):
            braked(services, NOW + minutes * MINUTE)
    with services.writing() as session:
        stops.resume(session, by=OPERATOR_ACTOR)

    assert events(services, "purge.brake_held") == []
    assert braked(services, NOW + 5 * MINUTE).purged == 50


def test_a_pause_in_the_midst_gives_the_room_back(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_due(services, 120)
    lock_due = claim.lock_due

    def paused(*args: object, **options: object) -> list[int]:
        if options.get("asked_for"):
            return lock_due(*args, **options)  # type: ignore[arg-type]
        raise stops.PurgingPaused

    monkeypatch.setattr(claim, "lock_due", paused)
    with pytest.raises(stops.PurgingPaused):
        braked(services, NOW)
    monkeypatch.undo()

    assert braked(services, NOW).purged == 50


def test_who_cannot_be_purged_uses_no_room(services: Services) -> None:
    add_due(services, 60)
    with services.writing() as session:
        session.execute(text("CREATE TABLE stray (account_id INTEGER REFERENCES accounts (id))"))
        session.execute(text("INSERT INTO stray SELECT id FROM accounts ORDER BY id LIMIT 5"))

    result = braked(services, NOW, batch_size=20)

    assert (result.purged, result.failed) == (50, 5)


# A clock that jumps


def test_a_clock_that_jumps_there_and_back_makes_no_room(services: Services) -> None:
    add_due(services, 100)
    insert_accounts(services, numbered("waiting", 100), purge_at=NOW + 5 * DAY)
    purged = []

    for minutes in range(0, 40, 10):
        purged.append(braked(services, NOW + 10 * DAY + minutes * MINUTE).purged)
        purged.append(braked(services, NOW + minutes * MINUTE).purged)

    assert purged == [50] + [0] * 7
    # An hour after it is right again, it goes on.
    assert braked(services, NOW + 89 * MINUTE).purged == 0
    assert braked(services, NOW + 91 * MINUTE).purged == 50


def test_a_clock_that_is_set_by_seconds_changes_nothing(services: Services) -> None:
    add_due(services, 40)
    assert braked(services, NOW).purged == 40
    add_due(services, 20, "more")

    assert braked(services, NOW - timedelta(seconds=30)).purged == 10


# Who is not braked


def test_named_accounts_are_not_braked(services: Services) -> None:
    ids = add_due(services, 120)
    now = database_moment(services)
    run_sql(services, "UPDATE accounts SET purge_at = deactivated_at")
    witness(services)
    assert services.sweep().purged == 50
    left = ids[50:]
    purge_now = services.purge_now

    report = purge_now.purge_named(purge_now.plan_named(left[:30], force=False), force=False)

    assert (len(report.purged), report.kept) == (30, {})
    assert ids_left(services) == left[30:]
    assert services.sweep().purged == 0
    assert now <= database_moment(services)


def test_purging_all_that_is_due_is_braked_with_the_sweeps(services: Services) -> None:
    add_due(services, 120)
    run_sql(services, "UPDATE accounts SET purge_at = deactivated_at")
    witness(services)
    purge_now = services.purge_now

    report = purge_now.purge_due(purge_now.plan_due())

    assert len(report.purged) == 50
    assert {kept.obstacle for kept in report.kept.values()} == {Obstacle.BRAKED}
    assert sorted(report.kept) == ids_left(services)
    result = services.sweep()
    assert (result.purged, result.waiting) == (0, 70)


@pytest.mark.parametrize(
    ("kind", "purged"), [("owner", 51), ("staff", 50)], ids=["the owner", "the staff"]
)
def test_who_has_asked_for_their_own_purge_is_not_braked(
    services: Services, kind: str, purged: int
) -> None:
    add_due(services, 120)
    (ann,) = insert_accounts(services, ["ann"], purge_at=NOW + DAY)
    public_id = get_account(services, ann).public_id
    actor = Actor(kind, public_id if kind == "owner" else None)
    with services.writing() as session:
        lifecycle.due_now(session, ann, by=actor, clock=at(NOW))

    assert braked(services, NOW).purged == purged
    assert (ann in ids_left(services)) is (kind == "staff")


def test_a_request_of_an_earlier_deletion_lets_nobody_go(services: Services) -> None:
    add_due(services, 60)
    (ann,) = insert_accounts(services, ["ann"], purge_at=NOW + DAY)
    owner = Actor("owner", get_account(services, ann).public_id)
    with services.writing() as session:
        lifecycle.due_now(session, ann, by=owner, clock=at(NOW - 2 * DAY))
    run_sql(
        services,
        "UPDATE accounts SET deactivated_at = :then, purge_at = :then WHERE id = :id",
        then="2026-12-07 09:00:00.000000+00:00",
        id=ann,
    )
    witness(services, ann)

    assert braked(services, NOW).purged == 50
    assert ann in ids_left(services)


# What an operator lets go


def test_an_operator_lets_more_go_once(services: Services) -> None:
    add_due(services, 300)
    braked(services, NOW)

    until = allow(services, 120, NOW + MINUTE)

    assert until == NOW + MINUTE + DAY
    assert standing(services).allowed == 120
    assert braked(services, NOW + 2 * MINUTE, batch_size=50).purged == 120
    assert braked(services, NOW + 3 * MINUTE).purged == 0
    # It took nothing of the next hour's room.
    assert braked(services, NOW + 62 * MINUTE).purged == 50
    (released,) = events(services, "purge.brake_released")
    assert (released.details, released.actor_kind) == ({"up_to": 120}, "operator")
    assert len(events(services, "purge.brake_held")) == 1


def test_what_is_allowed_lapses_and_is_replaced_by_what_is_allowed_next(services: Services) -> None:
    add_due(services, 300)
    braked(services, NOW)
    allow(services, 100, NOW)
    allow(services, 20, NOW + MINUTE)
    assert braked(services, NOW + MINUTE).purged == 20

    allow(services, 30, NOW + 2 * MINUTE)

    assert standing(services, NOW + DAY + 2 * MINUTE).allowed == 0
    assert braked(services, NOW + DAY + 2 * MINUTE).purged == 50


def test_what_is_allowed_ends_when_the_brake_lets_go(services: Services) -> None:
    add_due(services, 60)
    braked(services, NOW)
    allow(services, 1000, NOW)

    assert braked(services, NOW + MINUTE).purged == 10

    row = rows_of(services, PurgeBrake)[0]
    assert (row.held_at, row.allowed, row.allowed_at, row.reason) == (None, 0, None, None)


def test_nothing_is_allowed_in_store_and_nothing_without_a_reason(services: Services) -> None:
    assert allow(services, 100, NOW) is None
    assert events(services, "purge.brake_released") == []
    for reason in ("", " ", "a\0b", "x" * 1001):
        with pytest.raises(InvalidInput), services.writing() as session:
            brake.allow(session, 1, reason=reason, by=OPERATOR_ACTOR)


def test_an_unused_part_of_what_was_allowed_is_given_back(services: Services) -> None:
    add_due(services, 60)
    braked(services, NOW)
    allow(services, 10, NOW)
    sweeper = brake.Allowance(services.database, at(NOW), 3)

    allotment = sweeper.take(10)
    assert (allotment.in_hour, allotment.beyond, standing(services).allowed) == (0, 10, 0)
    sweeper.give_back(allotment, 4)

    assert standing(services).allowed == 6


def test_a_wrong_purge_does_not_triple_its_own_limit_for_hours(services: Services) -> None:
    add_due(services, 3000)
    moment, purged = NOW, []

    for _ in range(int(NO_MEASURE_YET / HOUR)):
        purged.append(braked(services, moment).purged)
        moment += 61 * MINUTE

    assert purged == [LEAST] * len(purged)
    assert all(one <= other for one, other in pairwise(purged))
    with services.reading() as session:
        assert len(session.scalars(select(Account.id)).all()) == 3000 - 6 * LEAST
