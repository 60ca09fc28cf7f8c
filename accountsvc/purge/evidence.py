"""What became of every request for deletion of a period, by numbers alone; canaries are left out.

A request is an event that begins a promise. What became of it is told by the events behind it, by
receipt and facts, and by the account's row while that is there.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from ..db import generations, rules
from ..db.canaries import is_of_canary
from ..db.models import (
    OWNER,
    Account,
    AuditEvent,
    ClockReading,
    Generation,
    LegalHold,
    PurgeFailure,
    Receipt,
)
from ..db.proofs import NOT_TOLD, RESIDUE_FOUND, VERIFIED, ReceiptFact
from ..db.rows import CHUNK
from . import brake, failures, stops
from .story import PURGED

T = TypeVar("T")

DEACTIVATED, REACTIVATED = "account.deactivated", "account.reactivated"
ACCEPTED, WITNESSED = "deletion.accepted", "deletion.witnessed"
AT_ONCE = rules.PURGE_REQUESTED
# An event of one of these may begin a promise; of the last only an owner's.
BEGINNINGS = (DEACTIVATED, ACCEPTED, WITNESSED, AT_ONCE)
_FAILURES = ("purge.failed", "purge.stuck")
_HOLDS = ("hold.placed", "hold.released")
_FOLDED = (*BEGINNINGS, REACTIVATED, PURGED, *_FAILURES, *_HOLDS)

# Whoever is due longer than this, while nothing keeps anybody from being purged, is named: a
# promise was not kept.
LATE = timedelta(hours=1)


class Outcome(StrEnum):
    """What became of a request, so far. The words are on the wire."""

    CANCELLED = "cancelled"
    PURGED = "purged"
    WAITING = "waiting"
    HELD = "held"
    FAILED = "failed"
    STUCK = "stuck"
    DUE = "due"
    UNKNOWN = "unknown"


# Why somebody is due, and not purged, though nothing is wrong with their account.
BRAKED, PAUSED, CLOCK, RESTORED, SWEEP = "brake", "paused", "clock", "restore", "sweep"
# Why nobody knows what became of a request.
GONE, ACTIVE, REPLACED, UNPROMISED, OVERDUE = "gone", "active", "replaced", "unpromised", "overdue"


@dataclass
class Request:
    """One request for deletion.

    ``number`` is the public id, ``event`` the id of the event that began the promise, ``promised``
    the date that it made and ``purge_at`` the date of the latest promise; each None where a release
    without witnesses wrote none. ``moved`` counts how often the date was moved, ``at_once`` says
    who waived the rest of the grace period. ``reason`` is one word about an outcome that is not an
    end.
    ``ended`` is when the account came back or was erased, ``again`` when it was erased once more
    after a restore.
    """

    number: uuid.UUID
    event: int
    action: str
    at: datetime
    by: str
    deactivated_at: datetime | None
    promised: datetime | None
    purge_at: datetime | None
    moved: int = 0
    holds: set[object] = field(default_factory=set)
    failures: int = 0
    at_once: str | None = None
    is_witnessed: bool = True
    outcome: Outcome = Outcome.UNKNOWN
    reason: str | None = None
    ended: datetime | None = None
    ended_by: str | None = None
    again: datetime | None = None
    facts: Mapping[str, datetime] = field(default_factory=dict)
    why_not_told: str | None = None

    @property
    def is_open(self) -> bool:
        return self.ended is None


@dataclass
class Life:
    """The requests of one account, in order, and the purges that none of them explains."""

    requests: list[Request] = field(default_factory=list)
    unasked: list[AuditEvent] = field(default_factory=list)

    @property
    def open(self) -> Request | None:
        last = self.requests[-1] if self.requests else None
        return last if last is not None and last.is_open and last.reason is None else None


def replays(session: Session) -> Sequence[datetime]:
    """Return when each replay of the ledger has begun: from then on the database is another one."""
    query = select(Generation.began_at).where(Generation.number > 1)
    return session.scalars(query.order_by(Generation.number)).all()


def is_repeat(event: AuditEvent, receipt: Receipt | None, replayed: Sequence[datetime]) -> bool:
    """Say whether *event* is of somebody who has a *receipt* from before one of the replays.

    Without a replay in between nobody comes back, whatever the receipt says of its time.
    """
    return receipt is not None and any(receipt.purged_at < at <= event.at for at in replayed)


def fold(
    events: Sequence[AuditEvent], receipt: Receipt | None, replayed: Sequence[datetime] = ()
) -> Life:
    """Return the life that the *events* of one account tell, which are in the order of their ids.

    What a replay of the ledger does to somebody whom a restore has brought back, and who has a
    *receipt* from before, is no request: it is erased once more. *replayed* are the times of the
    replays.
    """
    life = Life()
    held: set[object] = set()
    for event in events:
        is_again = is_repeat(event, receipt, replayed)
        request = life.open
        if event.action in _HOLDS:
            _fold_hold(held, request, event)
        elif event.action == DEACTIVATED or (request is None and _begins(event)):
            if request is not None:
                request.reason = REPLACED
            if not is_again:
                life.requests.append(_begun(event, held))
        elif event.action == PURGED:
            _fold_purge(life, event, receipt if is_again else None)
        elif request is not None:
            _fold_change(request, event)
    return life


def _begins(event: AuditEvent) -> bool:
    """Say whether *event*, of an account that no promise was known of, makes one."""
    is_promise = event.action in BEGINNINGS and event.purge_at is not None
    return is_promise and (event.action != AT_ONCE or event.actor_kind == OWNER)


def _begun(event: AuditEvent, held: set[object]) -> Request:
    return Request(
        number=_subject(event),
        event=event.id,
        action=event.action,
        at=event.at,
        by=event.actor_kind,
        deactivated_at=event.deactivated_at,
        promised=event.purge_at,
        purge_at=event.purge_at,
        holds=set(held),
        at_once=event.actor_kind if event.action == AT_ONCE else None,
        is_witnessed=event.purge_at is not None and event.action != WITNESSED,
    )


def _fold_hold(held: set[object], request: Request | None, event: AuditEvent) -> None:
    hold = event.details.get("hold", event.id)
    if event.action == "hold.released":
        held.discard(hold)
        # The last release may move the date.
        if request is not None:
            _move(request, event)
        return
    held.add(hold)
    if request is not None:
        request.holds.add(hold)


def _fold_purge(life: Life, event: AuditEvent, before: Receipt | None) -> None:
    """Fold a purge; *before* is the receipt of whoever is erased once more."""
    request = life.open
    if request is not None:
        request.outcome = Outcome.PURGED
        request.ended, request.ended_by = event.at, event.actor_kind
        if before is not None:
            # By whom it was erased first was lost with the restore.
            request.ended, request.ended_by = before.purged_at, None
    elif before is None:
        life.unasked.append(event)
    if before is not None and life.requests:
        life.requests[-1].again = event.at


def _fold_change(request: Request, event: AuditEvent) -> None:
    if event.action == REACTIVATED:
        request.outcome = Outcome.CANCELLED
        request.ended, request.ended_by = event.at, event.actor_kind
    elif event.action in _FAILURES:
        request.failures += 1
    else:
        if event.action == AT_ONCE:
            request.at_once = event.actor_kind
        _move(request, event)


def _move(request: Request, event: AuditEvent) -> None:
    if event.purge_at is None:
        return
    request.deactivated_at = event.deactivated_at
    # The promise of somebody who left before promises were written down.
    if request.promised is None:
        request.promised = event.purge_at
    elif event.purge_at != request.purge_at and event.action != AT_ONCE:
        request.moved += 1
    request.purge_at = event.purge_at


def _subject(event: AuditEvent) -> uuid.UUID:
    assert event.subject is not None
    return event.subject


@dataclass(frozen=True)
class Period:
    """The moments from ``since`` on and before ``until``."""

    since: datetime
    until: datetime


def events_of(
    session: Session, period: Period, actions: Sequence[str]
) -> Iterator[Sequence[AuditEvent]]:
    """Yield the events of *actions* that happened in *period*, a page at a time.

    In the order of their times, and of their ids in one moment: by ids alone, an engine would read
    the whole trail for one day of it.
    """
    in_period = (AuditEvent.at >= period.since) & (AuditEvent.at < period.until)
    # With a column of its own in the condition, SQLite would find the actions by their index, and
    # read and sort all that ever happened for each page.
    is_one_of = (AuditEvent.action + "").in_(actions)
    query = select(AuditEvent).where(in_period, is_one_of)
    query = query.where(AuditEvent.subject.is_not(None), ~is_of_canary(AuditEvent.subject))
    yield from _pages(session, query, AuditEvent.at, AuditEvent.id)


def receipts_of(session: Session, period: Period) -> Iterator[Sequence[Receipt]]:
    """Yield the receipts of those who were purged in *period*, a page at a time."""
    query = select(Receipt).where(
        Receipt.purged_at >= period.since,
        Receipt.purged_at < period.until,
        ~is_of_canary(Receipt.public_id),
    )
    yield from _pages(session, query, Receipt.purged_at, Receipt.public_id)


def _pages(
    session: Session,
    query: Select[T],
    moment: InstrumentedAttribute[datetime],
    key: InstrumentedAttribute[Any],
) -> Iterator[Sequence[T]]:
    """Yield what *query* selects in the order of *moment* and *key*, a chunk at a time."""
    query = query.order_by(moment, key).limit(CHUNK)
    page = query
    while found := session.scalars(page).all():
        session.expunge_all()
        yield found
        at, last = getattr(found[-1], moment.key), getattr(found[-1], key.key)
        # The first half is all that an index on the moments can use.
        page = query.where(moment >= at, or_(moment > at, key > last))


def lives(session: Session, numbers: Sequence[uuid.UUID]) -> dict[uuid.UUID, Life]:
    """Return the lives of these public ids, a chunk at most."""
    receipts = receipts_by(session, numbers)
    events: dict[uuid.UUID, list[AuditEvent]] = {number: [] for number in numbers}
    for event in session.scalars(_folded(numbers)):
        events[_subject(event)].append(event)
    session.expunge_all()
    replayed = replays(session)
    return {number: fold(events[number], receipts.get(number), replayed) for number in events}


def _folded(numbers: Sequence[uuid.UUID]) -> Select[AuditEvent]:
    # A witness of whatever action may have moved the date.
    matters = or_(AuditEvent.action.in_(_FOLDED), AuditEvent.epoch.is_not(None))
    query = select(AuditEvent).where(AuditEvent.subject.in_(numbers), matters)
    return query.order_by(AuditEvent.id)


def receipts_by(session: Session, numbers: Sequence[uuid.UUID]) -> dict[uuid.UUID, Receipt]:
    """Return the receipts of these public ids, a chunk at most, by public id."""
    found = session.scalars(select(Receipt).where(Receipt.public_id.in_(numbers)))
    return {receipt.public_id: receipt for receipt in found}


def requests_of(
    session: Session, period: Period, *, now: datetime, max_attempts: int
) -> Iterator[Request]:
    """Yield every request of *period*, in the order of their times, with what became of it.

    After *max_attempts* failures a purge is stuck.
    """
    why = _why_nobody_goes(session)
    for page in events_of(session, period, BEGINNINGS):
        begun = {event.id for event in page}
        numbers = list(dict.fromkeys(_subject(event) for event in page))
        found = [
            request
            for life in lives(session, numbers).values()
            for request in life.requests
            if request.event in begun
        ]
        _add_facts(session, [one for one in found if one.outcome is Outcome.PURGED])
        open_ones = [one for one in found if one.is_open and one.reason is None]
        _stand(session, open_ones, now=now, max_attempts=max_attempts, why=why)
        yield from sorted(found, key=lambda one: (one.at, one.event))


def _add_facts(session: Session, requests: Sequence[Request]) -> None:
    """Add what became true of those who were purged: the latest of what may be looked at again."""
    of = {request.number: request for request in requests}
    facts: dict[uuid.UUID, dict[str, datetime]] = {number: {} for number in of}
    query = select(ReceiptFact).where(ReceiptFact.public_id.in_(list(of)))
    for fact in session.scalars(query.order_by(ReceiptFact.id)):
        known = facts[fact.public_id]
        if fact.fact not in known or fact.fact in (VERIFIED, RESIDUE_FOUND):
            known[fact.fact] = fact.at
        if fact.fact == NOT_TOLD:
            of[fact.public_id].why_not_told = fact.details.get("why")
    for number, receipt in receipts_by(session, list(of)).items():
        if receipt.scrubbed_at is not None:
            facts[number].setdefault("scrubbed", receipt.scrubbed_at)
    for number, request in of.items():
        request.facts = facts[number]


def _why_nobody_goes(session: Session) -> str | None:
    """Return what keeps everybody who is due from being purged; None if nothing does."""
    if stops.paused_at(session) is not None:
        return PAUSED
    if session.scalar(select(ClockReading.boot).where(ClockReading.moved_at.is_not(None)).limit(1)):
        return CLOCK
    if not generations.is_replayed(session):
        return RESTORED
    return BRAKED if brake.standing(session).held_at is not None else None


def _stand(
    session: Session,
    requests: Sequence[Request],
    *,
    now: datetime,
    max_attempts: int,
    why: str | None,
) -> None:
    """Say of each open request how the row of its account stands."""
    numbers = [request.number for request in requests]
    columns = Account.public_id, Account.id, Account.purge_at, rules.is_explained()
    found = session.execute(select(*columns).where(Account.public_id.in_(numbers))).all()
    ids = {row.public_id: row.id for row in found}
    dates = {row.public_id: row.purge_at for row in found}
    explained = {row.public_id for row in found if row[3]}
    of_them = list(ids.values())
    held = set(
        session.scalars(
            select(LegalHold.account_id).where(LegalHold.account_id.in_(of_them), rules.is_open())
        )
    )
    tries = select(PurgeFailure).where(PurgeFailure.account_id.in_(of_them))
    failed = {failure.account_id: failure for failure in session.scalars(tries)}
    for request in requests:
        account_id = ids.get(request.number)
        purge_at = dates.get(request.number)
        if account_id is None or purge_at is None:
            request.reason = GONE if account_id is None else ACTIVE
            continue
        blocked = failures.blocked_by(
            failed.get(account_id),
            is_held=account_id in held,
            is_unexplained=request.number not in explained,
            max_attempts=max_attempts,
        )
        request.outcome, request.reason = _outcome(blocked, purge_at, now=now, why=why)


_BLOCKED: Mapping[str | None, tuple[Outcome, str | None]] = {
    failures.HELD: (Outcome.HELD, None),
    failures.WAITING: (Outcome.FAILED, None),
    failures.STUCK: (Outcome.STUCK, None),
}


def _outcome(
    blocked: str | None, purge_at: datetime, *, now: datetime, why: str | None
) -> tuple[Outcome, str | None]:
    if blocked in _BLOCKED:
        return _BLOCKED[blocked]
    if blocked is not None:
        return Outcome.UNKNOWN, UNPROMISED
    if purge_at > now:
        return Outcome.WAITING, None
    if why is not None:
        return Outcome.DUE, why
    is_late = now - purge_at > LATE
    return (Outcome.UNKNOWN, OVERDUE) if is_late else (Outcome.DUE, SWEEP)
