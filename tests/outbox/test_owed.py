"""What is owed is seen until it has happened: while it is tried, and while it pauses after a failure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update

from accountsvc.db.models import Effect
from accountsvc.errors import StoreUnavailable
from accountsvc.outbox import healing, owing, queue
from accountsvc.outbox.owing import Owing
from accountsvc.outbox.payloads import with_delay, with_refusals
from accountsvc.outbox.queue import Outcome
from tests.outbox.test_outbox import SOON, Box, box, meanwhile, raises, takes

__all__ = ["box"]

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def owed(box: Box) -> Mapping[str, Owing]:
    with box.database.reading() as session:
        return owing.read_owed(session, box.now)


def put_off(until: datetime, payload: dict[str, object] | None = None) -> queue.Handler:
    """A handler that decides on another time, and may change the row's payload."""
    return lambda effects, _now: Outcome(
        later={one.uid: until for one in effects},
        payloads={} if payload is None else {one.uid: payload for one in effects},
    )


def test_what_fails_is_owed_and_failing_in_every_sample_until_it_is_done(box: Box) -> None:
    box.owe("bad")
    box.owe("good")
    seen: list[Owing] = []
    look = lambda: seen.append(owed(box)["bad"])  # noqa: E731
    since = box.now

    for _ in range(12):
        box.deliver({"bad": meanwhile(look, raises(StoreUnavailable()))})
        look()
        pause = box.left()[0].deliver_after - box.now
        for part in (0.0, 0.5, 0.99):
            box.now = box.now + pause * part
            look()
        box.now += pause

    first, *others = seen
    # At the first try nothing has failed yet.
    assert (first.count, first.failing) == (1, 0)
    assert {(one.count, one.failing) for one in others} == {(1, 1)}
    assert [one.oldest for one in seen] == sorted(one.oldest for one in seen)
    assert owed(box)["bad"].oldest == box.now - since > HOUR
    assert owed(box)["good"] == Owing(1, 0, box.now - since)
    box.deliver({"bad": takes([]), "good": takes([])})
    assert owed(box) == {}


def test_what_a_killed_process_has_in_hand_is_owed_before_and_after_its_lease(box: Box) -> None:
    box.owe("mail.purged")
    since = box.now

    # A process that is killed leaves the lease.
    queue._claim(box.database, box.clock, "mail.purged", 1, None)

    for age in (timedelta(), SOON, queue.LEASE - SOON, queue.LEASE, HOUR, 30 * DAY):
        box.now = since + age
        assert owed(box) == {"mail.purged": Owing(1, 0, age)}


def test_what_waits_for_its_time_is_not_owed_before_it(box: Box) -> None:
    day = box.now + 7 * DAY
    with box.database.writing() as session:
        queue.record(session, queue.REMINDER, subject=None, now=box.now, after=day)

    before = owed(box)
    box.now = day - timedelta(microseconds=1)
    just_before = owed(box)
    box.now = day
    at_its_time = owed(box)
    # Its purge has moved: the day is another.
    box.deliver({queue.REMINDER: put_off(day + DAY)})
    moved = owed(box)
    box.now = day + DAY + MINUTE

    assert before == just_before == moved == {}
    assert at_its_time == {queue.REMINDER: Owing(1, 0, timedelta())}
    assert owed(box) == {queue.REMINDER: Owing(1, 0, MINUTE)}


@pytest.mark.parametrize("word", ["delayed", "refused"])
def test_a_mail_that_waits_for_its_turn_or_was_refused_is_counted_apart(
    box: Box, word: str
) -> None:
    kind = "mail.scheduled"
    payload = with_delay({}) if word == "delayed" else with_refusals({}, 1)
    box.owe(kind)
    box.owe("mail.purged")

    box.deliver({kind: put_off(box.now + HOUR, payload)})

    with box.database.reading() as session:
        refused = owing.count_refused(session, box.now)
    assert refused == ({kind: 1} if word == "refused" else {})
    assert set(owed(box)) == {"mail.purged"}
    # When its time has come it is owed like others, and an outage then is a failure of it.
    box.now += HOUR
    box.deliver({kind: raises(StoreUnavailable())})
    assert owed(box)[kind] == Owing(1, 1, timedelta())
    with box.database.reading() as session:
        assert owing.count_refused(session, box.now) == {}


def test_a_row_of_the_release_before_counts_and_gets_its_time_at_its_first_try(box: Box) -> None:
    box.owe("a")
    since = box.now
    with box.database.writing() as session:
        session.execute(update(Effect).values(due_at=None))

    box.now += MINUTE
    assert owed(box) == {"a": Owing(1, 0, MINUTE)}
    box.deliver({"a": raises(StoreUnavailable())})

    assert [one.due_at for one in box.left()] == [since]
    assert owed(box) == {"a": Owing(1, 1, MINUTE)}


@pytest.mark.parametrize("tried", [False, True])
def test_what_a_clock_that_was_ahead_has_recorded_is_owed_once_it_is_healed(
    box: Box, tried: bool
) -> None:
    box.now += 10 * DAY
    box.owe("a")
    if tried:
        box.deliver({"a": raises(StoreUnavailable())})
    box.now -= 10 * DAY

    assert healing.heal(box.database, box.clock) == 1

    assert owed(box) == {"a": Owing(1, int(tried), timedelta())}
