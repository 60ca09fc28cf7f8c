"""Nobody is purged by a clock that may be wrong, and what it has put off is done once it is right."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from structlog.testing import capture_logs

from accountsvc.adapters.redisclock import redis_clock
from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.engine import database_now
from accountsvc.db.models import Account, ClockReading, Effect, PurgeFailure
from accountsvc.db.proofs import SCRUBBED, ReceiptFact
from accountsvc.outbox import healing, queue
from accountsvc.outbox.queue import Outcome
from accountsvc.purge import clocks as rules
from accountsvc.purge import scrub
from accountsvc.purge.clocks import REDIS, THIS_HOST, ClockMoved, Clocks, ClocksDiffer, Reading
from accountsvc.purge.erase import FINISHED_AFTER
from accountsvc.services import Services, build_services
from tests.support.clocks import MovableClock, movable_clock
from tests.support.factories import insert_account, make_settings
from tests.support.moments import NOW, SECOND, now
from tests.support.state import events, read_account, rows_of
from tests.support.sweeps import sweep

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
JUMP = 10 * DAY


@dataclass
class Place:
    """A service, the clock of its database, and other processes of it."""

    services: Services
    clock: MovableClock

    @property
    def believing(self) -> Services:
        """This host, whose own clock moves with the database's."""
        return self._with(self.services.clocks.boot)

    def other_host(self) -> Services:
        """A process of a host that has not been seen yet, whose clock moves with the database's."""
        return self._with(uuid.uuid4().hex)

    def _with(self, boot: str) -> Services:
        clocks = replace(self.services.clocks, host_clock=self.clock.now, boot=boot)
        return replace(self.services, clocks=clocks)


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Place]:
    with movable_clock(database_url) as clock:
        services = build_services(make_settings(database_url, tmp_path))
        yield Place(services, clock)
        services.database.engine.dispose()


@pytest.fixture
def waiting(place: Place) -> Account:
    """Somebody who has a week to come back."""
    return insert_account(place.services, "waiting", purge_at=now(place.services) + 7 * DAY)


def is_there(place: Place, account: Account) -> bool:
    return read_account(place.services, account.id) is not None


def stopped_at(place: Place) -> datetime | None:
    with place.services.reading() as session:
        return rules.stopped_at(session)


def test_a_clock_that_jumps_purges_nobody_and_all_goes_on_when_it_is_back(
    place: Place, waiting: Account
) -> None:
    place.believing.sweep()
    due = insert_account(place.services, "due", purge_at=now(place.services) - SECOND)
    place.clock.move(JUMP)

    # The process that has seen it, one that begins now, and hosts that have seen nothing.
    for process in (place.believing, place.believing, place.other_host(), place.other_host()):
        with pytest.raises(ClockMoved):
            process.sweep()
        with pytest.raises(ClockMoved):
            process.sweep(only=[waiting.id, due.id])
    assert is_there(place, waiting)
    moved = stopped_at(place)
    assert moved is not None
    assert abs(moved - datetime.now(UTC)) < MINUTE

    place.clock.move(2 * SECOND)
    # Only who has seen it go wrong can say that it is right.
    with pytest.raises(ClockMoved):
        place.other_host().sweep()
    assert place.believing.sweep().purged == 1
    assert is_there(place, waiting)
    assert stopped_at(place) is None
    place.other_host().sweep()
    assert [one.details for one in events(place.services, "clock.moved")] == [
        {"seconds": JUMP.total_seconds()}
    ]
    assert len(events(place.services, "clock.back")) == 1


def test_a_clock_of_the_database_alone_is_refused_until_it_is_back(
    place: Place, waiting: Account
) -> None:
    place.services.sweep()
    place.clock.move(JUMP)

    with pytest.raises(ClocksDiffer) as refused:
        place.services.sweep()
    assert (refused.value.other, round(refused.value.ahead / DAY)) == (THIS_HOST, 10)
    assert str(refused.value) == ("the database's clock is 864000 s ahead of the one of this host")
    # A host that believes the same finds the mark.
    with pytest.raises(ClockMoved):
        place.other_host().sweep()
    assert is_there(place, waiting)

    place.clock.move(timedelta())
    place.services.sweep()
    assert is_there(place, waiting)
    assert stopped_at(place) is None


@pytest.mark.parametrize("ahead", [JUMP, -JUMP], ids=["ahead", "behind"])
def test_a_host_whose_own_clock_is_wrong_purges_nobody_and_stops_no_other(
    place: Place, ahead: timedelta
) -> None:
    due = insert_account(place.services, "due", purge_at=now(place.services) - SECOND)
    wrong = MovableClock()
    wrong.move(ahead)
    clocks = replace(place.services.clocks, host_clock=wrong.now, boot="w")

    with pytest.raises(ClocksDiffer):
        replace(place.services, clocks=clocks).sweep()

    assert is_there(place, due)
    assert stopped_at(place) is None
    assert place.services.sweep().purged == 1


def test_redis_is_asked_and_one_that_does_not_answer_is_no_wrong_clock(
    place: Place, redis_url: str
) -> None:
    insert_account(place.services, "due", purge_at=now(place.services) - SECOND)
    ahead = replace(
        place.services.clocks, redis_clock=lambda: datetime.now(UTC) + timedelta(minutes=6)
    )
    dead = replace(place.services.clocks, redis_clock=redis_clock("redis://127.0.0.1:1/0"))
    real = replace(place.services.clocks, redis_clock=redis_clock(redis_url))

    with pytest.raises(ClocksDiffer) as refused:
        replace(place.services, clocks=ahead).sweep()
    assert (refused.value.other, round(refused.value.ahead.total_seconds())) == (REDIS, -360)

    assert replace(place.services, clocks=dead).sweep().purged == 1
    assert replace(place.services, clocks=real).sweep().purged == 0


def test_a_service_with_redis_asks_its_clock(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    services = build_services(make_settings(database_url, tmp_path, REDIS_URL=redis_url))

    told = services.clocks.redis_clock()

    assert told is not None
    assert abs(told - datetime.now(UTC)) < MINUTE
    services.database.engine.dispose()


def test_a_jump_between_two_batches_of_the_first_sweep_is_seen(
    place: Place, waiting: Account
) -> None:
    insert_account(place.services, "due", purge_at=now(place.services) - SECOND)
    services = place.believing

    with pytest.raises(ClockMoved):
        sweep(
            services,
            database_now,
            batch_size=1,
            clocks=services.clocks,
            progress=lambda _count: place.clock.move(JUMP),
        )

    assert is_there(place, waiting)
    assert stopped_at(place) is not None
    place.clock.move(timedelta())
    services.sweep()
    assert stopped_at(place) is None


@pytest.mark.parametrize("apart", [30 * SECOND, -30 * SECOND, 4 * MINUTE, -4 * MINUTE])
def test_hosts_that_are_apart_for_good_are_no_step(place: Place, apart: timedelta) -> None:
    place.clock.move(apart)
    insert_account(place.services, "due", purge_at=now(place.services) - SECOND)

    assert [place.services.sweep().purged for _ in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("step", [2 * MINUTE, -2 * MINUTE])
def test_a_step_of_minutes_is_one_although_no_two_clocks_are_far_apart(
    place: Place, step: timedelta
) -> None:
    place.services.sweep()
    place.clock.move(step)

    with pytest.raises(ClockMoved):
        place.services.sweep()


def test_who_says_that_the_clock_is_right_lets_purging_go_on_from_there(place: Place) -> None:
    place.services.sweep()
    place.clock.move(2 * MINUTE)
    with pytest.raises(ClockMoved):
        place.services.sweep()

    assert place.services.clocks.allow(by=OPERATOR_ACTOR)
    assert not place.services.clocks.allow(by=OPERATOR_ACTOR)

    place.services.sweep()
    place.other_host().sweep()
    assert len(events(place.services, "clock.allowed")) == 1
    # Back it goes, and that is a step again.
    place.clock.move(timedelta())
    with pytest.raises(ClockMoved):
        place.services.sweep()


def test_nobody_can_say_that_a_clock_is_right_while_another_shows_another_time(
    place: Place,
) -> None:
    place.services.sweep()
    place.clock.move(JUMP)
    with pytest.raises(ClocksDiffer):
        place.services.sweep()

    with pytest.raises(ClocksDiffer):
        place.services.clocks.allow(by=OPERATOR_ACTOR)

    assert stopped_at(place) is not None


def test_a_replay_waits_for_the_clock_before_it_changes_anybody(place: Place) -> None:
    account = insert_account(place.services, "back")
    planned = place.services.purge_now.plan_named([account.id], force=True)
    place.services.sweep()
    place.clock.move(JUMP)

    with pytest.raises(ClocksDiffer):
        place.services.purge_now.replay(planned)
    with pytest.raises(ClockMoved):
        place.believing.purge_now.replay(planned)

    left = read_account(place.services, account.id)
    assert left is not None
    assert left.is_active


def test_a_dry_run_says_what_a_clock_would_refuse_and_neither_sets_nor_removes_a_mark(
    place: Place, waiting: Account
) -> None:
    place.believing.sweep()
    place.clock.move(JUMP)

    with capture_logs() as logs, pytest.raises(ClockMoved):
        place.believing.rehearsal.refuse_if_stopped()
    assert (logs, stopped_at(place)) == ([], None)
    with pytest.raises(ClockMoved):
        place.believing.sweep()

    place.clock.move(SECOND)
    with capture_logs() as logs:
        place.believing.rehearsal.refuse_if_stopped()
        place.believing.rehearsal.refuse_by_clock()
    assert logs == []
    assert stopped_at(place) is not None
    assert events(place.services, "clock.back") == []


def test_old_readings_go_and_a_mark_stays(place: Place) -> None:
    place.services.sweep()
    (reading,) = rows_of(place.services, ClockReading)
    for boot, moved_at in (("old", None), ("marked", NOW)):
        with place.services.writing() as session:
            session.add(
                ClockReading(
                    boot=boot,
                    booted_at=reading.booted_at - 400 * DAY,
                    read_at=reading.read_at - 91 * DAY,
                    moved_at=moved_at,
                )
            )
    with pytest.raises(ClockMoved):
        place.services.sweep()
    with place.services.writing() as session:
        place.services.clocks._keep(session, Reading.of(now(place.services), SECOND))

    left = {row.boot for row in rows_of(place.services, ClockReading)}
    assert left == {place.services.clocks.boot, "marked"}


# Honest clocks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ppm", [1000, -1000, 500, 37])
def test_a_year_of_honest_clocks_is_no_step(ppm: int) -> None:
    """Both hosts are corrected as fast as a kernel does, with a leap second each quarter."""
    uptime, right = timedelta(hours=1), NOW
    reading = Reading.of(right, uptime)
    drift, minute = timedelta(), 0
    while minute < 365 * 24 * 60:
        # Sweeps are a minute apart; at night the laptop sleeps, and for a week the worker is off.
        pause = 60 * 24 * 7 if minute == 60 * 24 * 100 else 60 * 8 if minute % 1440 == 0 else 1
        minute += pause
        drift += timedelta(minutes=pause) * (ppm / 1_000_000)
        if minute % (60 * 24 * 91) == 0:
            drift -= SECOND
        at = right + timedelta(minutes=minute) + drift
        since_boot = uptime + timedelta(minutes=minute)
        assert not reading.has_moved(at, since_boot), minute
        reading = reading.follow(at, since_boot)


def test_a_clock_that_jumps_by_a_little_each_time_is_seen() -> None:
    reading = Reading.of(NOW, MINUTE)
    for number in range(1, 4):
        at, uptime = NOW + number * (MINUTE + 40 * SECOND), MINUTE + number * MINUTE
        if reading.has_moved(at, uptime):
            break
        reading = reading.follow(at, uptime)
    assert number == 2


@pytest.mark.parametrize(("moved", "is_step"), [(60, False), (61, True), (-60, False), (-61, True)])
def test_a_step_is_more_than_a_minute(moved: int, *, is_step: bool) -> None:
    reading = Reading.of(NOW, MINUTE)

    assert reading.has_moved(NOW + moved * SECOND, MINUTE) is is_step


def test_all_processes_of_a_host_share_its_readings(place: Place) -> None:
    again = Clocks(place.services.database)

    assert again.boot == place.services.clocks.boot
    assert len(again.boot) == 32
    assert timedelta() < again.uptime() <= Clocks(place.services.database).uptime()


def test_without_a_name_of_its_boot_a_process_knows_what_it_has_seen(
    monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(OSError))
    rules._this_boot.cache_clear()

    boot = rules._this_boot()

    assert boot != place.services.clocks.boot
    assert rules._this_boot() == boot
    rules._this_boot.cache_clear()


# What a wrong clock has put off ----------------------------------------------------------------


def owe(services: Services, kind: str, *, ahead: timedelta, tried: bool) -> None:
    """Owe an effect as a clock that was *ahead* would have left it."""
    then = now(services) + ahead
    after = then + FINISHED_AFTER if kind == queue.FINISH else None
    with services.writing() as session:
        queue.record(session, kind, subject=None, now=then, after=after)
        if tried:
            session.execute(update(Effect).values(attempts=1, deliver_after=then + queue.LEASE))


@pytest.mark.parametrize("tried", [False, True], ids=["recorded", "tried"])
@pytest.mark.parametrize("kind", [queue.LEDGER, queue.DELETE_FILE, queue.FINISH, "mail.scheduled"])
def test_what_a_clock_that_was_ahead_has_put_off_is_due(
    services: Services, kind: str, *, tried: bool
) -> None:
    owe(services, kind, ahead=JUMP, tried=tried)
    done: list[str] = []

    def handler(effects: object, _now: datetime) -> Outcome:
        done.append(kind)
        return Outcome()

    assert healing.heal(services.database, database_now) == 1
    queue.deliver(services.database, database_now, {kind: handler})

    assert done == [kind]
    assert healing.heal(services.database, database_now) == 0


@pytest.mark.parametrize(
    ("kind", "ahead"),
    [
        (queue.LEDGER, queue.LEASE),
        (queue.DELETE_FILE, queue.LONGEST_RETRY),
        ("mail.scheduled", queue.LONGEST_MAIL_RETRY),
        ("mail.reminder", 30 * DAY),
    ],
)
def test_no_pause_of_our_own_is_taken_for_a_wrong_clock(
    services: Services, kind: str, ahead: timedelta
) -> None:
    owe(services, kind, ahead=timedelta(), tried=False)
    with services.writing() as session:
        session.execute(
            update(Effect).values(attempts=3, deliver_after=database_now(session) + ahead)
        )
    owe_reminder_to_come(services)

    assert healing.heal(services.database, database_now) == 0


def owe_reminder_to_come(services: Services) -> None:
    then = now(services)
    with services.writing() as session:
        queue.record(session, "mail.reminder", subject=None, now=then, after=then + 7 * DAY)


def test_a_reminder_that_failed_by_a_clock_that_was_ahead_is_due(services: Services) -> None:
    owe(services, "mail.reminder", ahead=timedelta(), tried=False)
    with services.writing() as session:
        session.execute(
            update(Effect).values(
                attempts=1, last_error="X", deliver_after=database_now(session) + 3 * DAY
            )
        )

    assert healing.heal(services.database, database_now) == 1


def test_a_ledger_that_is_whole_is_not_said_to_be_behind(place: Place) -> None:
    """A worker was killed with a line in hand, by a clock that was ahead."""
    services = place.services
    insert_account(services, "due", purge_at=now(services) - SECOND)
    sweep(services, database_now, write_ledger=lambda: True)
    with services.writing() as session:
        session.execute(
            update(Effect)
            .where(Effect.kind == queue.LEDGER)
            .values(attempts=1, deliver_after=database_now(session) + JUMP)
        )
        session.execute(update(Effect).values(created_at=database_now(session) - 2 * MINUTE))

    services.sweep()

    assert rows_of(services, Effect, Effect.kind == queue.LEDGER) == []
    assert len(list(services.ledger.read())) == 1


def test_a_retry_that_a_wrong_clock_has_set_is_due(services: Services) -> None:
    account = insert_account(services, "failing", purge_at=now(services) - SECOND)
    with services.writing() as session:
        at = database_now(session)
        session.add(
            PurgeFailure(
                account_id=account.id,
                attempts=1,
                failed_at=at + JUMP,
                retry_at=at + JUMP + MINUTE,
                error="X",
            )
        )

    assert services.sweep().purged == 1


def test_a_scrub_of_a_time_to_come_does_not_keep_the_next_one_waiting(sqlite: Services) -> None:
    for name in ("first", "second"):
        insert_account(sqlite, name, purge_at=now(sqlite) - SECOND)
        sqlite.sweep()
        sqlite.deliver()
        if name == "first":
            assert scrub.scrub(
                sqlite.database,
                lambda session: database_now(session) + JUMP,
                at_most_every=None,
            )

    assert sqlite.scrub()

    assert len(rows_of(sqlite, ReceiptFact, ReceiptFact.fact == SCRUBBED)) == 2
