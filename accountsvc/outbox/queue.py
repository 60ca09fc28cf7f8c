"""The queue of side effects, which are rows until they have happened.

:func:`record` adds an effect to the transaction that causes it. It is owed from ``due_at`` on,
until it has happened: neither a lease nor a failure hides it. :func:`deliver` does it after the
commit: it claims rows by moving ``deliver_after`` on (a lease, which runs out by itself), commits,
has a handler do the work outside any transaction, and removes a row only while the lease is still
its own. So a crash at any moment repeats an effect at most, and handlers are idempotent.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import structlog
from sqlalchemy import (
    ColumnElement,
    Select,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session, aliased

from ..db import rules
from ..db.engine import Clock, Database
from ..db.models import Effect
from ..db.rows import change
from ..errors import Unavailable
from .payloads import FileDeletion, Payload, PurgedMail

log = structlog.get_logger(__name__)

DELETE_FILE = "file.delete"
LEDGER = "ledger.append"
# A return or a hold goes into the ledger, and out of it when it matters no longer.
KEEP = "ledger.keep"
REMOVE = "ledger.remove"
# It waits for all else that a purge owes, and says then that the purge is completed.
FINISH = "purge.finish"
MAIL_PREFIX = "mail."
REMINDER = f"{MAIL_PREFIX}reminder"
PURGED = f"{MAIL_PREFIX}purged"
# This kind is never committed, so it needs no handler.
DECOY = "decoy"
INTO_THE_LEDGER = (LEDGER, KEEP)

# A claim is the claimer's alone for this time. All time-outs of a handler together are shorter: a
# lease that ran out during the work would have another worker do it at the same time.
LEASE = timedelta(minutes=5)
# A try takes this long at most. :func:`is_behind` counts a longer one as in vain; without that, a
# worker that was killed would leave the ledger looking fine.
LONGEST_TRY = timedelta(minutes=1)
# At most so many effects of a kind are claimed at once, if fewer than a batch. A store that keeps
# versions is asked about each file by itself: a whole batch would outlast the task's slice of time.
_CLAIM_SIZES = {DELETE_FILE: 100}
FIRST_RETRY = timedelta(seconds=5)
LONGEST_RETRY = timedelta(hours=1)
# Nobody is purged while the ledger is behind, and a restore would lose what it lacks. With pauses
# of an hour, both would last for up to an hour after the ledger has been mended.
LONGEST_LEDGER_RETRY = timedelta(minutes=1)
# A mail that was refused, or whose recipient has been mailed often, waits so long at most.
LONGEST_MAIL_RETRY = timedelta(days=1)


@dataclass(frozen=True)
class Owed:
    """One claimed effect, as a handler sees it; ``uid`` is the same at every try."""

    uid: uuid.UUID
    kind: str
    subject: uuid.UUID | None
    payload: Mapping[str, Any]
    created_at: datetime
    attempts: int
    expires_at: datetime | None = None


@dataclass
class Outcome:
    """A handler's answer about the effects that it was given, by ``uid``; all others are done.

    ``failed`` are tried again after a pause (the value is an exception's class name, nothing else)
    and stay owed; ``later`` are not due before the time named there, and not owed until then;
    ``given_up`` are dropped for good.
    ``payloads`` are the new ones of effects that stay. ``then`` is called for one that is done, in
    the transaction that removes it and with its time: once, however often it was done. ``settled``
    is called likewise, once for all that are done and have no ``then``.
    """

    failed: dict[uuid.UUID, str] = field(default_factory=dict)
    later: dict[uuid.UUID, datetime] = field(default_factory=dict)
    given_up: set[uuid.UUID] = field(default_factory=set)
    payloads: dict[uuid.UUID, dict[str, Any]] = field(default_factory=dict)
    then: dict[uuid.UUID, Callable[[Session, datetime], None]] = field(default_factory=dict)
    settled: Callable[[Session, Sequence[Owed], datetime], None] | None = None


_INSERT = insert(Effect.__table__)  # type: ignore[arg-type]

Handler = Callable[[Sequence[Owed], datetime], Outcome]
# Why an effect is dropped that has not happened: its handler gave it up, or its time was over.
GIVEN_UP, EXPIRED = "given_up", "expired"


class OnDropped(Protocol):
    """Is called in the transaction that drops *effects* for good, with its time and one of both.

    Called after it, a crash in between would lose what it writes.
    """

    def __call__(
        self, session: Session, effects: Sequence[Owed], now: datetime, *, why: str
    ) -> None: ...


@dataclass
class DeliveryResult:
    """The counts of effects that a delivery has dealt with; ``more``: others may be due."""

    delivered: int = 0
    failed: int = 0
    given_up: int = 0
    more: bool = False


def row(
    kind: str,
    *,
    subject: uuid.UUID | None,
    now: datetime,
    payload: Payload | None = None,
    after: datetime | None = None,
    expires_at: datetime | None = None,
) -> dict[str, Any]:
    """Return the row of a new effect, for an INSERT of many, on the terms of :func:`record`."""
    return {
        "uid": uuid.uuid4(),
        "kind": kind,
        "subject": subject,
        "payload": {} if payload is None else payload.stored(),
        "created_at": now,
        "deliver_after": after or now,
        "due_at": after or now,
        "expires_at": expires_at,
        "attempts": 0,
    }


def record(
    session: Session,
    kind: str,
    *,
    subject: uuid.UUID | None,
    now: datetime,
    payload: Payload | None = None,
    after: datetime | None = None,
    expires_at: datetime | None = None,
) -> uuid.UUID:
    """Add an effect to the current transaction; it is owed if, and only if, that commits.

    It is not delivered before *after* (default: at once), and dropped undelivered at *expires_at*.
    Return its ``uid``.
    """
    effect = row(
        kind, subject=subject, now=now, payload=payload, after=after, expires_at=expires_at
    )
    record_all(session, [effect])
    uid: uuid.UUID = effect["uid"]
    return uid


def record_all(session: Session, effects: Sequence[dict[str, Any]]) -> None:
    """Add the *effects*, made by :func:`row`, to the current transaction in one statement."""
    if effects:
        session.connection().execute(_INSERT, effects)


def write_nothing(session: Session) -> None:
    """Write an effect and take it back in the same transaction, in two statements.

    Its COMMIT has as much to write as that of a row that stays, and nothing is owed by it. So
    whoever may not be told whether a row was written does not learn it from the time.
    """
    moment = datetime(2000, 1, 1, tzinfo=UTC)
    effect = row(DECOY, subject=None, now=moment)
    record_all(session, [effect])
    change(session, delete(Effect).where(Effect.uid == effect["uid"]))


def forget(session: Session, *, subject: uuid.UUID, kinds: Collection[str]) -> None:
    """Drop what is owed of *kinds* for *subject*, in the current transaction."""
    session.execute(delete(Effect).where(Effect.subject == subject, Effect.kind.in_(kinds)))


def files_owed(keys: Sequence[str]) -> Select[str]:
    """Select those of *keys* whose file is still owed a deletion."""
    key = FileDeletion.key_of(Effect.payload)
    return select(key).where(Effect.kind == DELETE_FILE, key.in_(keys))


def waits(session: Session, kind: str) -> bool:
    """Say whether effects of *kind* wait because purging is stopped: a file is as gone as a row."""
    return kind == DELETE_FILE and bool(session.scalar(select(rules.purging_is_stopped())))


def comes_later() -> ColumnElement[bool]:
    """Select the *purged* mails of accounts of which a file or the ledger line is still owed.

    Sent sooner such a mail would say that all is gone while the picture is there. It is neither
    tried nor owed until then; while purging is stopped no file is deleted, and it waits with them.
    """
    first = aliased(Effect)
    file = (first.subject == Effect.subject) & (first.kind == DELETE_FILE)
    ledger = first.uid == PurgedMail.ledger_of(Effect.payload)
    owed = [exists().where(one).correlate(Effect) for one in (file, ledger)]
    return (Effect.kind == PURGED) & or_(*owed)


def is_behind(session: Session, kind: str, now: datetime) -> bool:
    """Say whether an effect of *kind* has been tried in vain and still waits.

    One that has been tried for longer than ``LONGEST_TRY`` counts too: its worker was killed, or
    hangs.
    """
    overlong = (Effect.attempts > 0) & (Effect.created_at <= now - LONGEST_TRY)
    effect_id = session.scalar(
        select(Effect.id)
        .where(Effect.kind == kind, Effect.last_error.is_not(None) | overlong)
        .limit(1)
    )
    return effect_id is not None


def deliver(
    database: Database,
    clock: Clock,
    handlers: Mapping[str, Handler],
    *,
    kinds: Collection[str] | None = None,
    batch_size: int = 500,
    seconds: float = 5.0,
    on_dropped: OnDropped | None = None,
) -> DeliveryResult:
    """Deliver what is due of *kinds* (default: all that *handlers* know), in batches.

    Of each kind the oldest come first, and the kinds take turns. Returns after about *seconds*, or
    when nothing more is due; ``more`` says that something may be. Mails are claimed one at a time,
    so that a slow server holds up only its own lease. A failing effect is tried again with growing
    pauses and never stands in the way of the others. Files wait while purging is stopped, and no
    try of theirs is counted. Safe beside itself. Raises the database's own
    errors only; a handler's failure is counted.
    """
    result = DeliveryResult()
    stop_at = time.monotonic() + seconds
    waiting = _failing_last(database, [kind for kind in handlers if kinds is None or kind in kinds])
    while waiting:
        for kind in list(waiting):
            if time.monotonic() >= stop_at:
                result.more = True
                return result
            claimed = _claim(database, clock, kind, _claim_size(kind, batch_size), on_dropped)
            if claimed is None:
                waiting.remove(kind)
                continue
            if not claimed:
                continue
            with database.reading() as session:
                now = clock(session)
            outcome = _handle(handlers[kind], claimed, now)
            _settle(database, clock, claimed, outcome, on_dropped)
            failed, given_up = len(outcome.failed), len(outcome.given_up)
            result.failed += failed
            result.given_up += given_up
            result.delivered += len(claimed) - failed - given_up - len(outcome.later)
    return result


def _claim_size(kind: str, batch_size: int) -> int:
    return (
        1 if kind.startswith(MAIL_PREFIX) else min(batch_size, _CLAIM_SIZES.get(kind, batch_size))
    )


def _failing_last(database: Database, kinds: list[str]) -> list[str]:
    """Put kinds that have failed behind the others, which would else wait for their time-outs."""
    if len(kinds) < 2:
        return kinds
    with database.reading() as session:
        failing = set(
            session.scalars(select(Effect.kind).where(Effect.last_error.is_not(None)).distinct())
        )
    return sorted(kinds, key=lambda kind: kind in failing)


def _claim(
    database: Database, clock: Clock, kind: str, size: int, on_dropped: OnDropped | None
) -> dict[int, Owed] | None:
    """Lease up to *size* effects, by their row's id.

    Returns None when none is due or the kind waits, and an empty mapping when all that were due had
    expired.
    """
    with database.writing() as session:
        if waits(session, kind):
            return None
        now = clock(session)
        # Asked for other kinds too it would cost each claim two look-ups in vain.
        conditions = [~comes_later() | (Effect.expires_at <= now)] if kind == PURGED else []
        rows = session.scalars(
            select(Effect)
            .where(Effect.kind == kind, Effect.deliver_after <= now, *conditions)
            .order_by(Effect.deliver_after, Effect.id)
            .limit(size)
            .with_for_update(skip_locked=True)
        ).all()
        if not rows:
            return None
        over = [row for row in rows if row.expires_at is not None and row.expires_at <= now]
        expired = {row.id: as_owed(row) for row in over}
        if expired:
            session.execute(delete(Effect).where(Effect.id.in_(expired)))
            if on_dropped is not None:
                on_dropped(session, list(expired.values()), now, why=EXPIRED)
            log.warning("effects expired undelivered", kind=kind, count=len(expired))
        claimed = [row for row in rows if row.id not in expired]
        if claimed:
            change(
                session,
                update(Effect)
                .where(Effect.id.in_([row.id for row in claimed]))
                .values(
                    deliver_after=now + LEASE,
                    due_at=func.coalesce(Effect.due_at, Effect.deliver_after),
                    attempts=Effect.attempts + 1,
                ),
            )
        return {row.id: as_owed(row, attempts=row.attempts + 1) for row in claimed}


def as_owed(row: Effect, *, attempts: int | None = None) -> Owed:
    """Return *row* as a handler sees it, by default at the try that it has come to."""
    return Owed(
        uid=row.uid,
        kind=row.kind,
        subject=row.subject,
        payload=row.payload,
        created_at=row.created_at,
        attempts=row.attempts if attempts is None else attempts,
        expires_at=row.expires_at,
    )


def _handle(handler: Handler, claimed: Mapping[int, Owed], now: datetime) -> Outcome:
    """Have *handler* do what was claimed; whatever it raises, all of that has failed."""
    effects = list(claimed.values())
    try:
        return handler(effects, now)
    except Unavailable as exc:
        error = type(exc.__cause__ or exc).__name__
    except Exception as exc:
        # Any exception is caught: a bug in one handler would otherwise stop the deliveries of all
        # kinds. Only its class is logged, because its text may quote an address.
        error = type(exc).__name__
        log.error("an effect's handler failed", kind=effects[0].kind, error=error)
    return Outcome(failed={effect.uid: error for effect in effects})


def _settle(
    database: Database,
    clock: Clock,
    claimed: Mapping[int, Owed],
    outcome: Outcome,
    on_dropped: OnDropped | None,
) -> None:
    """Remove what is done and reschedule what failed, each only while its lease is still ours."""
    named = {*outcome.failed, *outcome.later, *outcome.given_up}
    done = [
        (row_id, effect.attempts)
        for row_id, effect in claimed.items()
        if effect.uid not in {*named, *outcome.then}
    ]
    with database.writing() as session:
        now = clock(session)
        dropped = _drop(session, done)
        if dropped and outcome.settled is not None:
            settled = [effect for row_id, effect in claimed.items() if row_id in dropped]
            outcome.settled(session, settled, now)
        for row_id, effect in claimed.items():
            lease = (row_id, effect.attempts)
            if effect.uid in outcome.given_up:
                if _drop(session, [lease]) and on_dropped is not None:
                    on_dropped(session, [effect], now, why=GIVEN_UP)
            elif effect.uid in outcome.then and _drop(session, [lease]):
                outcome.then[effect.uid](session, now)
        stay = {*outcome.failed, *outcome.later}
        kept = [(row_id, effect) for row_id, effect in claimed.items() if effect.uid in stay]
        for values, leases in _rescheduled(kept, outcome, now):
            change(session, update(Effect).where(_is_leased(leases)).values(**values))
    if outcome.failed:
        log.warning(
            "effects will be tried again",
            kind=next(iter(claimed.values())).kind,
            count=len(outcome.failed),
            error=next(iter(outcome.failed.values())),
        )


def _rescheduled(
    kept: Sequence[tuple[int, Owed]], outcome: Outcome, now: datetime
) -> list[tuple[dict[str, Any], list[tuple[int, int]]]]:
    """Return the new values of effects that stay, each with the leases of the rows to have them.

    Those that get the same are together: thousands of them may wait for one mail server.
    """
    together: list[tuple[dict[str, Any], list[tuple[int, int]]]] = []
    for row_id, effect in kept:
        values = _new_values(effect, outcome, now)
        if not together or together[-1][0] != values:
            together.append((values, []))
        together[-1][1].append((row_id, effect.attempts))
    return together


def _new_values(effect: Owed, outcome: Outcome, now: datetime) -> dict[str, Any]:
    """Return the new values of the row of an effect that is to be tried again."""
    values: dict[str, Any] = {}
    if effect.uid in outcome.later:
        again_at = outcome.later[effect.uid]
        # It has not failed this time. A reminder with an error that lies weeks ahead would be
        # taken for one that a wrong clock has put off, and be asked about at each sweep.
        values["last_error"] = None
    else:
        again_at = now + retry_pause(effect.attempts, effect.kind)
        values["last_error"] = outcome.failed[effect.uid][:100]
    # A try at the expiry itself drops the effect: put off beyond it, an address would be kept for
    # longer than its 72 hours.
    if effect.expires_at is not None:
        again_at = min(again_at, effect.expires_at)
    values["deliver_after"] = again_at
    if effect.uid in outcome.later:
        values["due_at"] = again_at
    if effect.uid in outcome.payloads:
        values["payload"] = outcome.payloads[effect.uid]
    return values


def _is_leased(leases: Sequence[tuple[int, int]]) -> ColumnElement[bool]:
    return tuple_(Effect.id, Effect.attempts).in_(leases)


def _drop(session: Session, leases: Sequence[tuple[int, int]]) -> set[int]:
    """Delete the rows whose lease (id and attempts) is still the given one; return their ids."""
    if not leases:
        return set()
    statement = delete(Effect).where(_is_leased(leases)).returning(Effect.id)
    options = {"synchronize_session": False}
    return set(session.scalars(statement, execution_options=options))


def growing_pause(attempts: int, *, first: timedelta, longest: timedelta) -> timedelta:
    """Return the pause after that many failed tries: *first*, doubled each time up to *longest*."""
    # Bound the power of two: after months of failures the product would overflow a timedelta.
    return min(first * (1 << min(attempts - 1, 20)), longest)


def retry_pause(attempts: int, kind: str = "") -> timedelta:
    """Return the pause after that many failed tries of an effect of *kind*.

    5 seconds, doubled each time, up to an hour; for what the ledger lacks up to a minute.
    """
    longest = LONGEST_LEDGER_RETRY if kind in INTO_THE_LEDGER else LONGEST_RETRY
    return growing_pause(attempts, first=FIRST_RETRY, longest=longest)
