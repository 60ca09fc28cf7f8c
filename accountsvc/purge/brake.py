"""The brake: how many accounts may be purged within 60 minutes, counted in the database.

A clock that is wrong, or a statement that moves many purge times, makes many accounts due at once.
The brake lets so few of them go that somebody can look first; the rest waits, oldest first.

Every sweep takes an allotment for a batch in a transaction of its own before the batch begins, and
gives back what it did not use: whatever sweeps run beside each other, in no 60 minutes of the
database's clock are more purged than the largest limit that applied meanwhile, and what an operator
allowed beyond it. A sweep that dies between the two has used its allotment.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from ..accounts.reasons import REASON_LENGTH
from ..db import audit, rows
from ..db.audit import Actor
from ..db.canaries import is_of_canary
from ..db.engine import Clock, Database, database_now
from ..db.models import Account, AuditEvent, PurgeBrake, Receipt
from ..db.text import text_problem
from ..errors import InvalidInput
from . import claim

log = structlog.get_logger(__name__)

HOUR = timedelta(hours=1)
# The limit is the largest of: so many; one of so many accounts; so many times the largest hour.
LEAST, ONE_OF, TIMES = 50, 1000, 3
HISTORY = timedelta(days=28)
# The hours of so long ago are no measure yet. If they were, each hour of a wrong purge would triple
# the limit of the next one, and 3,000 accounts would be gone before anybody is awake; with a day
# here, who waits behind a worker that was off for ten days would wait for two more.
NO_MEASURE_YET = timedelta(hours=6)
# What an operator allows lapses after so long, and the hours in which it may have been used are no
# measure of what is usual.
ALLOWED_FOR = timedelta(hours=24)
# An allotment that has not come back within this is of a sweep that is dead. It counts for as much
# longer, because a purge may be committed so long after its allotment was taken.
LEASE = timedelta(minutes=5)
_MINUTE = timedelta(minutes=1)

RELEASED = "purge.brake_released"
COMMAND = "accountsvc sweeps allow --up-to N --reason …"


@dataclass(frozen=True)
class Allotment:
    """What the brake lets a batch purge: ``in_hour`` within the limit, ``beyond`` it as allowed.

    ``waiting`` counts due accounts that it keeps. ``allowed_at`` names what was allowed.
    """

    uid: str
    in_hour: int
    beyond: int
    waiting: int
    allowed_at: datetime | None

    @property
    def size(self) -> int:
        return self.in_hour + self.beyond


@dataclass(frozen=True)
class Standing:
    """The brake as it stands: since when it holds, and how many more an operator lets go.

    ``held_at`` is None while it does not hold; ``reason`` is why an operator lets more go.
    """

    held_at: datetime | None = None
    allowed: int = 0
    reason: str | None = None


@dataclass
class Allowance:
    """The brake as one sweep meets it, by its *clock* and the attempts after which one is stuck."""

    database: Database
    clock: Clock
    max_attempts: int
    _limit: int | None = None

    def take(self, wanted: int) -> Allotment:
        """Take an allotment for *wanted* purges, or for as many as may go; commits at once.

        If accounts are due for which there is none, the brake holds from then on: one audit event
        and one line in the log say so.
        """
        limit = self._limit_of_this_sweep()
        with self.database.writing() as session:
            row = _lock(session)
            now = self.clock(session)
            counted = _count(row, now)
            in_hour = 0 if counted is None else max(0, min(wanted, limit - counted))
            beyond = min(wanted - in_hour, row.allowed)
            waiting = 0
            if in_hour + beyond < wanted:
                due = claim.count_due(session, now, self.max_attempts)
                waiting = max(0, due - in_hour - beyond - _in_use(row, now))
            allotment = Allotment(uuid.uuid4().hex, in_hour, beyond, waiting, row.allowed_at)
            row.allowed -= beyond
            if in_hour:
                taken = {"at": now.isoformat(), "count": in_hour}
                row.reserved = {**row.reserved, allotment.uid: taken}
            begins = waiting > 0 and row.held_at is None
            if begins:
                row.held_at = now
                audit.record(
                    session,
                    "purge.brake_held",
                    subject=None,
                    by=audit.SYSTEM_ACTOR,
                    now=now,
                    limit=limit,
                    waiting=waiting,
                )
        if begins:
            self._say_held(limit, waiting)
        return allotment

    def _say_held(self, limit: int, waiting: int) -> None:
        log.error(
            "the brake holds: more accounts are due than may be purged in an hour; look who "
            f"they are, then `{COMMAND}`",
            limit=limit,
            waiting=waiting,
        )

    def give_back(self, allotment: Allotment, purged: int) -> None:
        """Count *purged* accounts, from this moment on, instead of their *allotment*."""
        with self.database.writing() as session:
            row = _lock(session)
            now = self.clock(session)
            _count(row, now)
            in_hour = min(purged, allotment.in_hour)
            row.reserved = {
                uid: taken for uid, taken in row.reserved.items() if uid != allotment.uid
            }
            if in_hour:
                minute = _minute(now)
                row.purged = {**row.purged, minute: row.purged.get(minute, 0) + in_hour}
            # What was allowed meanwhile is another allowance, and takes nothing back.
            if row.allowed_at is not None and row.allowed_at == allotment.allowed_at:
                row.allowed += allotment.beyond - (purged - in_hour)

    def hold_back(self, waiting: int) -> None:
        """Hold from now on, as :meth:`take` does, if not all of *waiting* accounts may go.

        For those whom a purge has not even tried, since they were to wait.
        """
        self.give_back(self.take(waiting), 0)

    def let_go_if_nobody_waits(self) -> None:
        """End the holding of the brake, if it holds and nobody is due whom nothing else keeps.

        What an operator has allowed and nobody has used ends with it.
        """
        with self.database.reading() as session:
            if standing(session).held_at is None:
                return
        with self.database.writing() as session:
            row = _lock(session)
            now = self.clock(session)
            if row.held_at is None or claim.count_due(session, now, self.max_attempts):
                return
            row.held_at = None
            row.allowed, row.allowed_at, row.reason = 0, None, None
            audit.record(
                session, "purge.brake_let_go", subject=None, by=audit.SYSTEM_ACTOR, now=now
            )
        log.warning("the brake holds nobody any more")

    def _limit_of_this_sweep(self) -> int:
        # Once a sweep, outside the row's lock: the question reads four weeks of receipts.
        if self._limit is None:
            with self.database.reading() as session:
                self._limit = limit(session, self.clock(session))
        return self._limit


def limit(session: Session, now: datetime) -> int:
    """Return how many accounts may be purged in 60 minutes, by what there is and what is usual."""
    return bound(_accounts(session), _largest_hour(session, now))


def bound(accounts: int, largest_hour: int) -> int:
    """Return the limit for so many accounts, and so many purges in the largest hour."""
    return max(LEAST, accounts // ONE_OF, TIMES * largest_hour)


def check_reason(reason: str) -> None:
    """Raise InvalidInput for a *reason* that is blank, too long, or no text of one line."""
    problem = text_problem(reason) or ("" if reason.strip() else "This field may not be blank.")
    if len(reason) > REASON_LENGTH:
        problem = f"Use at most {REASON_LENGTH} characters."
    if problem:
        raise InvalidInput({"reason": [problem]})


def allow(
    session: Session, up_to: int, *, reason: str, by: Actor, clock: Clock = database_now
) -> datetime | None:
    """Let *up_to* more accounts go beyond the limit, once; return when what is left of it lapses.

    It takes the place of what was allowed before. None, and nothing is changed, if the brake does
    not hold: an allowance in store would let a wrong purge pass unseen. The *reason* stays on the
    row until the brake lets go. Raises InvalidInput as :func:`check_reason` does.
    """
    check_reason(reason)
    row = _lock(session)
    now = clock(session)
    if row.held_at is None:
        return None
    row.allowed, row.allowed_at, row.reason = up_to, now, reason
    audit.record(session, RELEASED, subject=None, by=by, now=now, up_to=up_to)
    return now + ALLOWED_FOR


def standing(session: Session, now: datetime | None = None) -> Standing:
    """Return how the brake stands, without locking it; with *now* what has lapsed is left out."""
    row = session.get(PurgeBrake, 1, populate_existing=True)
    if row is None:
        return Standing()
    if now is not None and _has_lapsed(row, now):
        return Standing(row.held_at)
    return Standing(row.held_at, row.allowed, row.reason)


def _lock(session: Session) -> PurgeBrake:
    """Lock the brake's row, and make it first if it is missing."""
    query = select(PurgeBrake).with_for_update().execution_options(populate_existing=True)
    row = session.scalar(query)
    if row is None:
        values = {"id": 1, "purged": {}, "reserved": {}, "allowed": 0}
        session.execute(rows.insert(session, PurgeBrake).values(values).on_conflict_do_nothing())
        row = session.scalars(query).one()
    return row


def _count(row: PurgeBrake, now: datetime) -> int | None:
    """Forget what is older than an hour, and what has lapsed; return how many purges count.

    None for an hour after the clock was put back: what the row had of that hour may be forgotten,
    so that a clock which jumps there and back would let more go each time. What lies ahead of
    *now* stays, and counts when that time comes.
    """
    if row.looked_at is not None and row.looked_at > now + _MINUTE:
        row.full_at = now
    row.looked_at = now
    # A minute's last second is an hour old a minute after its first.
    kept = [(at, n) for at, n in _moments(row.purged) if at > now - HOUR - _MINUTE]
    row.purged = {at.isoformat(): n for at, n in kept}
    row.reserved = {
        uid: {**taken, "at": min(_at(taken), now).isoformat()}
        for uid, taken in row.reserved.items()
        if _at(taken) > now - HOUR - LEASE
    }
    if _has_lapsed(row, now):
        row.allowed, row.allowed_at, row.reason = 0, None, None
    if row.full_at is not None and row.full_at <= now < row.full_at + HOUR:
        return None
    # A clock that is set back by seconds leaves the last minute just ahead.
    counted = sum(n for at, n in kept if at <= now + _MINUTE)
    in_use: int = sum(taken["count"] for taken in row.reserved.values())
    return counted + in_use


def _moments(counts: Mapping[str, int]) -> Iterator[tuple[datetime, int]]:
    return ((datetime.fromisoformat(at), count) for at, count in counts.items())


def _at(taken: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(taken["at"])


def _in_use(row: PurgeBrake, now: datetime) -> int:
    """Count the accounts that other sweeps are at work on: due still, and not waiting."""
    return sum(taken["count"] for taken in row.reserved.values() if _at(taken) > now - LEASE)


def _has_lapsed(row: PurgeBrake, now: datetime) -> bool:
    # One from ahead of now is of a clock that was put back, and would last too long.
    return row.allowed_at is not None and not (row.allowed_at <= now < row.allowed_at + ALLOWED_FOR)


def _minute(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(second=0, microsecond=0).isoformat()


def _accounts(session: Session) -> int:
    """Return about how many accounts there are; on PostgreSQL by the planner's estimate.

    0 while it has none. SQLite counts: its file is of a size for that.
    """
    if session.get_bind().dialect.name == "sqlite":
        people = select(func.count()).select_from(Account).where(~is_of_canary(Account.public_id))
        return session.scalar(people) or 0
    estimate = text("SELECT reltuples::bigint FROM pg_class WHERE oid = 'accounts'::regclass")
    found: int = session.execute(estimate).scalar_one()
    return max(0, found)


def _largest_hour(session: Session, now: datetime) -> int:
    """Return how many receipts the largest hour has that is a measure, by :func:`usual`."""
    since = now - HISTORY
    released = session.scalars(
        select(AuditEvent.at).where(
            AuditEvent.action == RELEASED, AuditEvent.at > since - ALLOWED_FOR
        )
    ).all()
    if session.get_bind().dialect.name == "sqlite":
        hour: Any = func.substr(Receipt.purged_at, 1, 13)
    else:
        hour = func.to_char(Receipt.purged_at, "YYYY-MM-DD HH24")
    counts = session.execute(
        select(hour, func.count())
        .where(Receipt.purged_at > since, ~is_of_canary(Receipt.public_id))
        .group_by(hour)
    )
    hours = {
        datetime.strptime(name, "%Y-%m-%d %H").replace(tzinfo=UTC): count for name, count in counts
    }
    return usual(hours, now, released)


def usual(hours: Mapping[datetime, int], now: datetime, released: Collection[datetime] = ()) -> int:
    """Return how many were purged in the largest of these *hours*, by their beginnings, or 0.

    Those of the last six hours are left out, and those of the 24 hours after an operator
    *released* more: what a person let go is no measure of what comes by itself.
    """
    first, last = now - HISTORY, now - NO_MEASURE_YET - HOUR
    return max(
        (
            count
            for begins, count in hours.items()
            if first < begins <= last
            and not any(begins - ALLOWED_FOR < at < begins + HOUR for at in released)
        ),
        default=0,
    )
