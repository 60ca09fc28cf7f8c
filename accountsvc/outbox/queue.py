"""Side effects are rows until they have happened.

:func:`record` writes what is owed in the transaction that causes it. :func:`deliver` does it after
the commit: it claims rows by moving ``deliver_after`` on (a lease that runs out by itself), commits,
does the I/O outside any transaction, and removes a row only while the lease is still its own. So a
crash at any moment repeats an effect at most, and handlers are idempotent.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Select, delete, func, select, tuple_, update
from sqlalchemy.orm import Session

from ..db.engine import Clock, Database
from ..db.models import Effect
from ..errors import Unavailable
from .payloads import FileDeletion, Payload

log = structlog.get_logger(__name__)

DELETE_FILE = "file.delete"
LEDGER = "ledger.append"
MAIL_PREFIX = "mail."

# Longer than any handler's own time-outs for a whole claim, so that a lease outlives its work.
LEASE = timedelta(minutes=5)
LONGEST_TRY = timedelta(minutes=1)
# A store with versions is asked about each file, and a claim is to end within a task's time.
_AT_ONCE = {DELETE_FILE: 100}
FIRST_RETRY = timedelta(seconds=5)
LONGEST_RETRY = timedelta(hours=1)
# While the ledger is behind nobody is purged: once it is mended, that is soon over.
LONGEST_LEDGER_RETRY = timedelta(minutes=1)


@dataclass(frozen=True)
class Owed:
    """One claimed effect, as a handler sees it. ``uid`` is the same at every try."""

    uid: uuid.UUID
    kind: str
    subject: uuid.UUID | None
    payload: Mapping[str, Any]
    created_at: datetime
    attempts: int
    expires_at: datetime | None = None


@dataclass
class Outcome:
    """What a handler says of the effects it was given; those it does not name are done.

    ``failed`` are tried again later (the value is an exception's class name, nothing else);
    ``later`` are not due before the time named there; ``given_up`` are dropped for good. ``payloads`` are what
    those that stay are to carry from now on.
    """

    failed: dict[uuid.UUID, str] = field(default_factory=dict)
    later: dict[uuid.UUID, datetime] = field(default_factory=dict)
    given_up: dict[uuid.UUID, str] = field(default_factory=dict)
    payloads: dict[uuid.UUID, dict[str, Any]] = field(default_factory=dict)


Handler = Callable[[Sequence[Owed], datetime], Outcome]
# Called in the transaction that drops an effect for good.
OnGivenUp = Callable[[Session, Owed, str, datetime], None]


@dataclass
class DeliveryResult:
    delivered: int = 0
    failed: int = 0
    given_up: int = 0
    more: bool = False


def record(
    session: Session,
    kind: str,
    *,
    subject: uuid.UUID | None,
    now: datetime,
    payload: Payload | None = None,
    after: datetime | None = None,
    expires_at: datetime | None = None,
) -> Effect:
    """Add an effect to the current transaction; it is owed if, and only if, that commits.

    It is not delivered before *after* (default: at once), and dropped undelivered at *expires_at*.
    """
    effect = Effect(
        uid=uuid.uuid4(),
        kind=kind,
        subject=subject,
        payload={} if payload is None else payload.stored(),
        created_at=now,
        deliver_after=after or now,
        expires_at=expires_at,
    )
    session.add(effect)
    return effect


def forget(session: Session, *, subject: uuid.UUID, kinds: Collection[str]) -> None:
    """Drop what is owed of *kinds* for *subject*, in the current transaction."""
    session.execute(delete(Effect).where(Effect.subject == subject, Effect.kind.in_(kinds)))


def files_owed(keys: Sequence[str]) -> Select[str]:
    """Select those of *keys* whose file is still to be deleted."""
    key = FileDeletion.key_of(Effect.payload)
    return select(key).where(Effect.kind == DELETE_FILE, key.in_(keys))


def count_owed(session: Session, now: datetime) -> dict[str, int]:
    """Count the effects that are due at *now*, by kind."""
    rows = session.execute(
        select(Effect.kind, func.count()).where(Effect.deliver_after <= now).group_by(Effect.kind)
    )
    # A result has `keys`, so dict() alone would take it for a mapping.
    return dict(iter(rows))


def is_behind(session: Session, kind: str, now: datetime) -> bool:
    """Say whether an effect of *kind* has been tried in vain and still waits.

    One that is being tried for longer than any try takes counts too: whoever did it was killed or hangs.
    """
    overlong = (Effect.attempts > 0) & (Effect.created_at <= now - LONGEST_TRY)
    found = session.scalar(
        select(Effect.id)
        .where(Effect.kind == kind, Effect.last_error.is_not(None) | overlong)
        .limit(1)
    )
    return found is not None


def deliver(
    database: Database,
    clock: Clock,
    handlers: Mapping[str, Handler],
    *,
    kinds: Collection[str] | None = None,
    batch_size: int = 500,
    seconds: float = 5.0,
    on_given_up: OnGivenUp | None = None,
) -> DeliveryResult:
    """Deliver what is due of *kinds* (default: all that *handlers* know), oldest of each first, in batches.

    The kinds take turns. Returns after about *seconds*, or when nothing more is due; ``more`` says that
    something may be. Mails are claimed one at a time, so that a slow server holds up only its own
    lease. A failing effect is tried again with growing pauses and never stands in the way of the
    others. Safe beside itself. Raises the database's own errors only; a handler's failure is counted.
    """
    result = DeliveryResult()
    stop_at = time.monotonic() + seconds
    waiting = _failing_last(database, [kind for kind in handlers if kinds is None or kind in kinds])
    while waiting:
        for kind in list(waiting):
            if time.monotonic() >= stop_at:
                result.more = True
                return result
            mail = kind.startswith(MAIL_PREFIX)
            size = 1 if mail else min(batch_size, _AT_ONCE.get(kind, batch_size))
            owed = _claim(database, clock, kind, size)
            if owed is None:
                waiting.remove(kind)
                continue
            if not owed:
                continue
            with database.reading() as session:
                now = clock(session)
            outcome = _handle(handlers[kind], owed, now)
            _settle(database, clock, owed, outcome, on_given_up)
            bad = len(outcome.failed)
            result.failed += bad
            result.given_up += len(outcome.given_up)
            result.delivered += len(owed) - bad - len(outcome.given_up) - len(outcome.later)
    return result


def _failing_last(database: Database, kinds: list[str]) -> list[str]:
    """Put kinds that have failed behind the others, which would otherwise wait for their time-outs."""
    if len(kinds) < 2:
        return kinds
    with database.reading() as session:
        failing = set(
            session.scalars(select(Effect.kind).where(Effect.last_error.is_not(None)).distinct())
        )
    return sorted(kinds, key=lambda kind: kind in failing)


def _claim(database: Database, clock: Clock, kind: str, size: int) -> dict[int, Owed] | None:
    """Lease up to *size* effects; None when none is due, empty when those that were had expired."""
    with database.writing() as session:
        now = clock(session)
        rows = session.scalars(
            select(Effect)
            .where(Effect.kind == kind, Effect.deliver_after <= now)
            .order_by(Effect.deliver_after, Effect.id)
            .limit(size)
            .with_for_update(skip_locked=True)
        ).all()
        if not rows:
            return None
        gone = [row.id for row in rows if row.expires_at is not None and row.expires_at <= now]
        if gone:
            session.execute(delete(Effect).where(Effect.id.in_(gone)))
            log.warning("effects expired undelivered", kind=kind, count=len(gone))
        claimed = [row for row in rows if row.id not in gone]
        if claimed:
            session.execute(
                update(Effect)
                .where(Effect.id.in_([row.id for row in claimed]))
                .values(deliver_after=now + LEASE, attempts=Effect.attempts + 1)
                .execution_options(synchronize_session=False)
            )
        return {
            row.id: Owed(
                uid=row.uid,
                kind=row.kind,
                subject=row.subject,
                payload=row.payload,
                created_at=row.created_at,
                attempts=row.attempts + 1,
                expires_at=row.expires_at,
            )
            for row in claimed
        }


def _handle(handler: Handler, owed: Mapping[int, Owed], now: datetime) -> Outcome:
    try:
        return handler(list(owed.values()), now)
    except Unavailable as exc:
        return Outcome(
            failed={one.uid: type(exc.__cause__ or exc).__name__ for one in owed.values()}
        )
    except Exception as exc:
        # A bug must not lose what is owed, nor stop the other kinds; the class name is enough to find it.
        log.error(
            "an effect's handler failed",
            kind=next(iter(owed.values())).kind,
            error=type(exc).__name__,
        )
        return Outcome(failed={one.uid: type(exc).__name__ for one in owed.values()})


def _settle(
    database: Database,
    clock: Clock,
    owed: Mapping[int, Owed],
    outcome: Outcome,
    on_given_up: OnGivenUp | None,
) -> None:
    """Remove what is done and reschedule what failed, each only while its lease is still ours."""
    spoken_of = {*outcome.failed, *outcome.later, *outcome.given_up}
    done = [(row_id, one.attempts) for row_id, one in owed.items() if one.uid not in spoken_of]
    with database.writing() as session:
        now = clock(session)
        _drop(session, done)
        for row_id, one in owed.items():
            if one.uid in outcome.later:
                values: dict[str, Any] = {"deliver_after": _in_time(one, outcome.later[one.uid])}
            elif one.uid in outcome.failed:
                values = {
                    "deliver_after": _in_time(one, now + retry_pause(one.attempts, one.kind)),
                    "last_error": outcome.failed[one.uid][:100],
                }
            elif one.uid in outcome.given_up:
                dropped = _drop(session, [(row_id, one.attempts)])
                if dropped and on_given_up is not None:
                    on_given_up(session, one, outcome.given_up[one.uid], now)
                continue
            else:
                continue
            if one.uid in outcome.payloads:
                values["payload"] = outcome.payloads[one.uid]
            session.execute(
                update(Effect)
                .where(Effect.id == row_id, Effect.attempts == one.attempts)
                .values(**values)
                .execution_options(synchronize_session=False)
            )
    if outcome.failed:
        log.warning(
            "effects will be tried again",
            kind=next(iter(owed.values())).kind,
            count=len(outcome.failed),
            error=next(iter(outcome.failed.values())),
        )


def _drop(session: Session, leases: Sequence[tuple[int, int]]) -> int:
    """Delete the rows whose lease is still the given one and return how many."""
    if not leases:
        return 0
    done = session.execute(
        delete(Effect)
        .where(tuple_(Effect.id, Effect.attempts).in_(leases))
        .execution_options(synchronize_session=False)
    )
    return int(done.rowcount)  # type: ignore[attr-defined]


def _in_time(one: Owed, moment: datetime) -> datetime:
    """Return *moment*, but no later than the expiry: an address must not outstay it for a retry."""
    return moment if one.expires_at is None else min(moment, one.expires_at)


def growing_pause(attempts: int, *, first: timedelta, longest: timedelta) -> timedelta:
    """Return the pause after that many failed tries: *first*, doubled each time up to *longest*."""
    # Bound the power of two: after months of failures the product would overflow a timedelta.
    return min(first * (1 << min(attempts - 1, 20)), longest)


def retry_pause(attempts: int, kind: str = "") -> timedelta:
    """Return the pause after that many failed tries of an effect of *kind*.

    5 seconds, doubled each time, up to an hour; for the ledger up to a minute.
    """
    longest = LONGEST_LEDGER_RETRY if kind == LEDGER else LONGEST_RETRY
    return growing_pause(attempts, first=FIRST_RETRY, longest=longest)
