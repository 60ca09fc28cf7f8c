"""Take whole sealed months of events that are older than the retention, and leave their hashes.

Receipts and facts stay for good. The latest witness of somebody who has an account stays too, with
its month: without it nobody could say what was promised, and the account could not be purged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.orm import Session, aliased

from ..db import audit, entries, rows
from ..db.audit import Actor
from ..db.engine import Clock, Database
from ..db.models import Account, AuditEvent, Seal

PRUNED = "audit.pruned"
# One transaction takes the events of so many seals.
_AT_ONCE = 10
# Each event says again all that was pruned before, so that the newest ones are enough.
_NEWEST = 1_000


@dataclass(frozen=True)
class Pruned:
    """What one event says: these seals, all at or before a moment."""

    first: int
    last: int
    at: datetime

    def covers(self, number: int, pruned_at: datetime) -> bool:
        """Say whether the event tells that seal *number* was pruned then, or had been."""
        return self.first <= number <= self.last and pruned_at <= self.at


def pruned_ranges(session: Session) -> list[Pruned]:
    """Return what the newest events of pruning say, whatever else is in their rows."""
    found = []
    for row in entries.of_action(session, PRUNED, limit=_NEWEST):
        said = row.document()
        try:
            details = said["details"]
            at = datetime.fromisoformat(said["at"])
            found.append(Pruned(int(details["first_seal"]), int(details["last_seal"]), at))
        except (KeyError, TypeError, ValueError):
            continue
    return found


@dataclass(frozen=True)
class Month:
    """The seals of one month that is old enough: their numbers, and how many events they have.

    *witnesses* counts the events in them that must stay; with any, nothing of the month goes.
    """

    begin: datetime
    seals: Sequence[int]
    events: int
    witnesses: int


@dataclass(frozen=True)
class Pruning:
    """One database, of whose trail old months are taken."""

    database: Database
    clock: Clock
    retention: timedelta

    def plan(self) -> list[Month]:
        """Return the months that are old enough and not pruned yet, the oldest first.

        A month is that of its seals' times, and ends before the retention began.
        """
        with self.database.reading() as session:
            end = month_of(self.clock(session) - self.retention)
            old = select(Seal.number, Seal.sealed_at).where(
                Seal.pruned_at.is_(None), Seal.sealed_at < end
            )
            months: dict[datetime, list[int]] = {}
            for number, sealed_at in session.execute(old.order_by(Seal.number)):
                months.setdefault(month_of(sealed_at), []).append(number)
            return [_month(session, begin, months[begin]) for begin in sorted(months)]

    def prune(self, months: Sequence[Month], *, by: Actor) -> int:
        """Take the events of *months* without witnesses; return how many. Safe to repeat.

        Ten seals at a time, each in one transaction with its event ``audit.pruned``.
        """
        taken = 0
        for month in months:
            if month.witnesses:
                continue
            for start in range(0, len(month.seals), _AT_ONCE):
                with self.database.writing() as session:
                    taken += self._take(session, month.seals[start : start + _AT_ONCE], by)
        return taken

    def _take(self, session: Session, numbers: Sequence[int], by: Actor) -> int:
        now = self.clock(session)
        unpruned = Seal.number.in_(numbers) & Seal.pruned_at.is_(None)
        query = select(Seal.number, Seal.first_event, Seal.last_event).where(unpruned)
        ranges = session.execute(query.order_by(Seal.number).with_for_update()).all()
        # Somebody may have come to rely on a witness since the plan was made.
        if not ranges or any(
            _count_witnesses(session, one.first_event, one.last_event) for one in ranges
        ):
            return 0
        rows.change(session, update(Seal).where(unpruned).values(pruned_at=now))
        taken = 0
        for one in ranges:
            between = AuditEvent.id.between(one.first_event, one.last_event)
            taken += rows.change(session, delete(AuditEvent).where(between))
        pruned = Seal.pruned_at.is_not(None)
        first, last = session.execute(
            select(func.min(Seal.number), func.max(Seal.number)).where(pruned)
        ).one()
        audit.record(
            session,
            PRUNED,
            subject=None,
            by=by,
            now=now,
            first_seal=first,
            last_seal=last,
            count=taken,
        )
        return taken


def month_of(moment: datetime) -> datetime:
    """Return the begin of the month of *moment*, in UTC."""
    moment = moment.astimezone(UTC)
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _month(session: Session, begin: datetime, numbers: Sequence[int]) -> Month:
    events = witnesses = 0
    for chunk in rows.chunks(numbers):
        ranges = select(Seal.first_event, Seal.last_event).where(Seal.number.in_(chunk))
        found = session.execute(ranges.order_by(Seal.number)).all()
        for first, last in _joined((one.first_event, one.last_event) for one in found):
            between = AuditEvent.id.between(first, last)
            count = select(func.count()).select_from(AuditEvent).where(between)
            events += session.scalar(count) or 0
            witnesses += _count_witnesses(session, first, last)
    return Month(begin, numbers, events, witnesses)


def _joined(ranges: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join ranges of ids that follow each other, so that a month is a few questions."""
    begun: tuple[int, int] | None = None
    for first, last in ranges:
        if begun is not None and first == begun[1] + 1:
            begun = begun[0], max(last, begun[1])
        else:
            if begun is not None:
                yield begun
            begun = first, last
    if begun is not None:
        yield begun


def _count_witnesses(session: Session, first: int, last: int) -> int:
    """Count the events of a range that are the latest witness of somebody who has an account."""
    later = aliased(AuditEvent)
    is_latest = ~exists().where(
        later.subject == AuditEvent.subject, later.epoch.is_not(None), later.id > AuditEvent.id
    )
    query = (
        select(func.count())
        .select_from(AuditEvent)
        .join(Account, Account.public_id == AuditEvent.subject)
        .where(AuditEvent.id.between(first, last), AuditEvent.epoch.is_not(None), is_latest)
    )
    return session.scalar(query) or 0
