"""The outbox's leases: nothing is lost, nothing stands in the way, and no two deliver the same at once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from accountsvc.db.engine import Database, database_now
from accountsvc.db.models import Effect
from accountsvc.errors import StoreUnavailable
from accountsvc.outbox import queue
from accountsvc.outbox.queue import DeliveryResult, Handler, Outcome, Owed

SOON = timedelta(seconds=1)


@dataclass
class Box:
    """An outbox whose clock stands still until it is moved."""

    engine: Engine
    now: datetime = field(init=False)

    def __post_init__(self) -> None:
        self.database = Database(self.engine)
        with self.database.reading() as session:
            self.now = database_now(session)

    def clock(self, _session: Session) -> datetime:
        return self.now

    def owe(self, kind: str, count: int = 1, *, expires_at: datetime | None = None) -> None:
        with self.database.writing() as session:
            for _ in range(count):
                queue.record(
                    session, kind, subject=uuid.uuid4(), now=self.now, expires_at=expires_at
                )

    def deliver(self, handlers: Mapping[str, Handler], **options: float) -> DeliveryResult:
        return queue.deliver(self.database, self.clock, handlers, **options)  # type: ignore[arg-type]

    def left(self) -> list[Effect]:
        with self.database.reading() as session:
            found = list(session.scalars(select(Effect).order_by(Effect.id)))
            session.expunge_all()
        return found


@pytest.fixture
def box(engine: Engine) -> Box:
    return Box(engine)


def takes(done: list[uuid.UUID]) -> Handler:
    """A handler that does what it is given."""

    def handle(owed: Sequence[Owed], _now: datetime) -> Outcome:
        done.extend(one.uid for one in owed)
        return Outcome()

    return handle


def raises(exc: Exception) -> Handler:
    def handle(_owed: Sequence[Owed], _now: datetime) -> Outcome:
        raise exc

    return handle


def meanwhile(do: Callable[[], object], then: Handler) -> Handler:
    def handle(owed: Sequence[Owed], now: datetime) -> Outcome:
        do()
        return then(owed, now)

    return handle


def test_what_is_owed_is_done_once(box: Box) -> None:
    done: list[uuid.UUID] = []
    box.owe("a", 3)

    assert box.deliver({"a": takes(done)}) == DeliveryResult(delivered=3)
    assert box.deliver({"a": takes(done)}) == DeliveryResult()

    assert len(set(done)) == len(done) == 3
    assert box.left() == []


@pytest.mark.parametrize(
    ("exc", "said"),
    [(RuntimeError("ann@example.org"), "RuntimeError"), (StoreUnavailable(), "StoreUnavailable")],
    ids=["a bug", "an outage"],
)
def test_a_handler_that_fails_loses_nothing_and_stops_nobody(
    box: Box, capsys: pytest.CaptureFixture[str], exc: Exception, said: str
) -> None:
    done: list[uuid.UUID] = []
    box.owe("bad", 2)
    box.owe("good", 2)

    result = box.deliver({"bad": raises(exc), "good": takes(done)})

    assert (result.delivered, result.failed, len(done)) == (2, 2, 2)
    assert [(one.kind, one.attempts, one.last_error) for one in box.left()] == [
        ("bad", 1, said)
    ] * 2
    # The class name is enough to find it; the text may quote somebody.
    assert "ann@example.org" not in capsys.readouterr().out

    # It is tried again after a pause, and no sooner.
    box.now += queue.retry_pause(1) - SOON
    assert box.deliver({"bad": takes(done)}) == DeliveryResult()
    box.now += SOON
    assert box.deliver({"bad": takes(done)}) == DeliveryResult(delivered=2)
    assert box.left() == []


def test_the_pauses_grow_to_an_hour() -> None:
    pauses = [queue.retry_pause(attempts).total_seconds() for attempts in (1, 2, 3, 10, 11, 10_000)]

    assert pauses == [5, 10, 20, 2560, 3600, 3600]


def test_the_ledger_is_tried_again_within_a_minute() -> None:
    assert queue.retry_pause(10_000, queue.LEDGER) == timedelta(minutes=1)


def test_a_line_whose_writer_was_killed_is_behind_as_one_that_failed(box: Box) -> None:
    box.owe(queue.LEDGER)
    with pytest.raises(KeyboardInterrupt):
        box.deliver({queue.LEDGER: meanwhile(interrupt, takes([]))})

    def is_behind() -> bool:
        with box.database.reading() as session:
            return queue.is_behind(session, queue.LEDGER, box.now)

    # It may still be under way.
    assert not is_behind()
    box.now += queue.LONGEST_TRY
    assert is_behind()


def test_what_another_process_is_doing_is_left_alone(box: Box) -> None:
    done: list[uuid.UUID] = []
    box.owe("a")

    def another() -> None:
        assert box.deliver({"a": takes(done)}) == DeliveryResult()

    assert box.deliver({"a": meanwhile(another, takes(done))}) == DeliveryResult(delivered=1)

    assert len(done) == 1


def test_a_lease_that_ran_out_is_another_ones_and_its_row_is_left_to_that(box: Box) -> None:
    done: list[uuid.UUID] = []
    box.owe("a")

    def another_fails() -> None:
        box.now += queue.LEASE
        assert box.deliver({"a": raises(StoreUnavailable())}).failed == 1

    # Who was too slow has done it, but says so of a lease that is no longer its own.
    box.deliver({"a": meanwhile(another_fails, takes(done))})

    (row,) = box.left()
    assert (row.attempts, row.last_error) == (2, "StoreUnavailable")
    assert len(done) == 1


def test_what_a_killed_process_had_claimed_is_done_when_its_lease_has_run_out(box: Box) -> None:
    done: list[uuid.UUID] = []
    box.owe("a")
    with pytest.raises(KeyboardInterrupt):
        box.deliver({"a": meanwhile(interrupt, takes(done))})

    assert box.deliver({"a": takes(done)}) == DeliveryResult()
    box.now += queue.LEASE
    assert box.deliver({"a": takes(done)}) == DeliveryResult(delivered=1)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_has_expired_is_dropped_and_not_done(box: Box) -> None:
    done: list[uuid.UUID] = []
    box.owe("a", 2, expires_at=box.now + SOON)
    box.owe("a", 1)
    box.now += SOON

    assert box.deliver({"a": takes(done)}) == DeliveryResult(delivered=1)

    assert len(done) == 1
    assert box.left() == []


def test_a_retry_comes_before_the_expiry(box: Box) -> None:
    box.owe("a", expires_at=box.now + SOON)

    box.deliver({"a": raises(StoreUnavailable())})

    (row,) = box.left()
    assert row.deliver_after == row.expires_at


def test_a_kind_that_has_failed_waits_behind_the_others(box: Box) -> None:
    order: list[str] = []

    def note(kind: str) -> Handler:
        def handle(_owed: Sequence[Owed], _now: datetime) -> Outcome:
            order.append(kind)
            return Outcome()

        return handle

    box.owe("slow")
    box.deliver({"slow": raises(StoreUnavailable())})
    box.now += timedelta(hours=1)
    box.owe("quick")

    box.deliver({"slow": note("slow"), "quick": note("quick")})

    assert order == ["quick", "slow"]


def test_a_slice_ends_and_says_that_there_is_more(box: Box) -> None:
    box.owe("a", 3)

    assert box.deliver({"a": takes([])}, seconds=0) == DeliveryResult(more=True)

    assert len(box.left()) == 3


def test_what_nobody_knows_waits_for_who_does(box: Box) -> None:
    box.owe("of a newer release")

    assert box.deliver({"a": takes([])}) == DeliveryResult()

    assert len(box.left()) == 1
