"""Purge what is due: claim, erase, leave a receipt; fall back to one account a transaction.

The query proposes, the locked row decides. One batch is one short transaction:

1. lock due accounts in ``purge_at`` order, skipping those that another worker has locked;
2. in a new statement, which sees what was committed while the locks were waited for, drop those with
   an open hold;
3. delete everything by those ids, set by set, as the data map says;
4. write receipts, audit events, and what is owed: files to delete, mails, the ledger line;
5. commit.

A crash before the commit has destroyed nothing, one after it has lost nothing. Nothing leaves the
database inside the transaction.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import (
    ColumnElement,
    Engine,
    Exists,
    Select,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from ..db import audit
from ..db.audit import SYSTEM_ACTOR, Actor
from ..db.datamap import purged_by_account
from ..db.engine import Clock, is_outage, reading, writing
from ..db.models import (
    PAUSED,
    SWEPT,
    Account,
    AuditEvent,
    Effect,
    LegalHold,
    PurgeFailure,
    Receipt,
    SavedPassword,
    SweepMark,
)
from ..db.rows import pages
from ..outbox import notices, queue

log = structlog.get_logger(__name__)

FIRST_RETRY = timedelta(minutes=1)
LONGEST_RETRY = timedelta(hours=6)

HELD, WAITING, STUCK = "hold", "retry", "stuck"

# What the purge itself owes: it stays in the outbox until it is done.
_OWED_AFTER_PURGE = (queue.DELETE_FILE, queue.LEDGER, notices.PURGED)


@dataclass(frozen=True)
class PlannedPurge:
    """What a purge of one account destroys; ``purge_at`` is None while it is active."""

    account_id: int
    public_id: uuid.UUID
    purge_at: datetime | None
    saved_passwords: int
    files: int


@dataclass
class SweepResult:
    """What a sweep did. ``more`` says that due accounts may be left which it had no time for."""

    purged: int = 0
    saved_passwords: int = 0
    files: int = 0
    failed: int = 0
    stuck: int = 0
    more: bool = False
    purged_ids: list[int] = field(default_factory=list)

    @property
    def dealt_with(self) -> int:
        return self.purged + self.failed


Progress = Callable[[int], None]


class Refused(Exception):
    """Nothing may be purged now; what was purged before stays so."""


class LedgerBehind(Refused):
    """The ledger does not take its lines, so no further batch may be purged."""


class PurgedAreBack(Refused):
    """The database is older than its ledger: a restore has brought purged people back."""


class PurgingPaused(Refused):
    """An operator has paused purging, so no batch may be begun."""


def sweep(
    sessions: sessionmaker[Session],
    clock: Clock,
    *,
    batch_size: int,
    max_attempts: int,
    write_ledger: Callable[[], bool],
    limit: int | None = None,
    seconds: float | None = None,
    only: Collection[int] | None = None,
    although_paused: bool = False,
    by: Actor = SYSTEM_ACTOR,
    progress: Progress | None = None,
) -> SweepResult:
    """Purge accounts that are due by *clock* (read anew for every batch), oldest first, in batches.

    Stops after *limit* accounts, after about *seconds*, or when nothing due is left. *only* restricts
    it to those ids, and then also tries accounts whose retry is not due yet. Held, failing and stuck
    accounts neither stop nor slow the rest; a failing one is written to ``purge_failures``. Active
    accounts and accounts in their grace period are not touched. Safe beside itself.

    *write_ledger* delivers the ledger lines that are owed and says whether none is left; it is
    called before the first batch and after each, and a batch is not begun while it says no.
    Raises LedgerBehind then, PurgingPaused from the first batch after :func:`pause` unless
    *although_paused* (a replay after a restore), and the database's own error if a sweep cannot run at all.

    A sweep over all that is due leaves its time as :func:`swept_at`.
    """
    result = SweepResult()
    stop_at = None if seconds is None else time.monotonic() + seconds
    # Each id that was asked for is tried once: one that fails would otherwise be claimed again and again.
    left = None if only is None else set(only)
    if not write_ledger():
        raise LedgerBehind
    while True:
        room = batch_size if limit is None else min(batch_size, limit - result.dealt_with)
        if room <= 0 or (stop_at is not None and time.monotonic() >= stop_at):
            result.more = True
            break
        dealt_with = _purge_batch(
            sessions, clock, room, max_attempts, left, by, result, although_paused=although_paused
        )
        if not dealt_with:
            break
        if left is not None:
            left.difference_update(dealt_with)
        if progress is not None:
            progress(len(dealt_with))
        if not write_ledger():
            raise LedgerBehind
    if only is None:
        with sessions() as session, writing(session):
            _mark(session, SWEPT, clock(session))
    return result


def pause(session: Session, *, now: datetime, by: Actor) -> bool:
    """Let no batch begin after this commits; False if purging was paused already.

    A batch that is under way ends first. People can be deactivated and can come back meanwhile.
    """
    if paused_at(session) is not None:
        return False
    _mark(session, PAUSED, now)
    audit.record(session, "purge.paused", subject=None, by=by, now=now)
    return True


def resume(session: Session, *, now: datetime, by: Actor) -> bool:
    """Let sweeps purge again; False if purging was not paused."""
    mark = session.get(SweepMark, PAUSED, populate_existing=True)
    if mark is None:
        return False
    session.delete(mark)
    audit.record(session, "purge.resumed", subject=None, by=by, now=now)
    return True


def paused_at(session: Session) -> datetime | None:
    """Return since when purging is paused, None if it is not."""
    return session.scalar(select(SweepMark.at).where(SweepMark.name == PAUSED))


def swept_at(session: Session) -> datetime | None:
    """Return when a sweep over all that is due last ended without a fault of the whole; None if none did."""
    return session.scalar(select(SweepMark.at).where(SweepMark.name == SWEPT))


def _mark(session: Session, name: str, now: datetime) -> None:
    # Several sweeps may end at once, also the very first ones.
    upsert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = upsert(SweepMark).values(name=name, at=now)
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"at": now}))


def plan(
    session: Session, *, now: datetime, max_attempts: int, page: int = 500
) -> Iterator[PlannedPurge]:
    """Yield what a sweep at *now* would destroy, in its order, by the claim and the counts of the sweep.

    Locks nothing, changes nothing.
    """
    after: tuple[datetime, int] | None = None
    while True:
        query = _claim(now, None, max_attempts=max_attempts, after=after).limit(page)
        proposed = [(row.purge_at, row.id) for row in session.execute(query)]
        if not proposed:
            return
        after = proposed[-1]
        yield from _decide(session, [account_id for _, account_id in proposed], now)


def count(session: Session, ids: Sequence[int]) -> list[PlannedPurge]:
    """Return what a purge of just these accounts would destroy, whatever their state."""
    return [planned for page in pages(ids) for planned in _count(session, page)]


def blocked_by(failure: PurgeFailure | None, *, is_held: bool, max_attempts: int) -> str | None:
    """Say why a due account has not been purged: ``hold``, ``retry`` (waits for its next try), ``stuck``."""
    if is_held:
        return HELD
    if failure is None:
        return None
    return STUCK if failure.attempts >= max_attempts else WAITING


def retry(session: Session, account_id: int, *, now: datetime, by: Actor) -> bool:
    """Let the next sweep try a failing or stuck account again; False if it had not failed."""
    failure = session.get(PurgeFailure, account_id, populate_existing=True)
    if failure is None:
        return False
    account = session.get_one(Account, account_id)
    session.delete(failure)
    audit.record(session, "purge.retried", subject=account.public_id, by=by, now=now)
    session.flush()
    return True


def scrub(
    engine: Engine,
    sessions: sessionmaker[Session],
    clock: Clock,
    *,
    at_most_every: timedelta | None,
) -> bool:
    """Make freed pages of the SQLite file unreadable, and date the receipts that this covers.

    ``VACUUM`` rewrites the file, the checkpoint empties the write-ahead log; ``secure_delete`` alone
    leaves remnants. Returns True when nothing is left to scrub. False means: another connection was in
    the way, or the last scrub is younger than *at_most_every*; the next call tries again. On PostgreSQL
    there is nothing to do here (``docs/operations.md`` says what vacuum, WAL and backups still hold).
    """
    if engine.dialect.name != "sqlite":
        return True
    with sessions() as session, reading(session):
        coverable = session.scalars(select(Receipt.public_id).where(_scrubbable())).all()
        waiting = session.scalar(select(exists().where(Receipt.scrubbed_at.is_(None))))
        last = session.scalar(select(func.max(Receipt.scrubbed_at)))
        now = clock(session)
    if not coverable:
        return not waiting
    if at_most_every is not None and last is not None and now - last < at_most_every:
        return False
    if not _vacuum(engine):
        return False
    with sessions() as session, writing(session):
        now = clock(session)
        for page in pages(coverable):
            session.execute(
                update(Receipt)
                .where(Receipt.public_id.in_(page), Receipt.scrubbed_at.is_(None))
                .values(scrubbed_at=now)
                .execution_options(synchronize_session=False)
            )
        return not session.scalar(select(exists().where(Receipt.scrubbed_at.is_(None))))


def _scrubbable() -> ColumnElement[bool]:
    """A receipt is covered by a scrub once no address of its account waits in the outbox."""
    return Receipt.scrubbed_at.is_(None) & ~exists().where(
        Effect.subject == Receipt.public_id, Effect.kind == notices.PURGED
    )


def _vacuum(engine: Engine) -> bool:
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute("PRAGMA query_only = OFF")
        try:
            cursor.execute("VACUUM")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            busy = (cursor.fetchone() or (1,))[0]
        except engine.dialect.loaded_dbapi.OperationalError as exc:
            log.info("scrub postponed", error=type(exc).__name__)
            return False
        return not busy
    finally:
        raw.close()


def _open_hold(account_id: Any) -> Exists:
    return exists().where(LegalHold.account_id == account_id, LegalHold.released_at.is_(None))


def _claim(
    now: datetime,
    only: Collection[int] | None,
    *,
    max_attempts: int | None,
    after: tuple[datetime, int] | None = None,
) -> Select[int, datetime | None]:
    """Propose due accounts, oldest first. Held and failing ones are left out so that they block nobody.

    Without *max_attempts* failing and stuck ones are proposed too.
    """
    query = (
        select(Account.id, Account.purge_at)
        .where(Account.purge_at.is_not(None), Account.purge_at <= now)
        .where(~_open_hold(Account.id))
        .order_by(Account.purge_at, Account.id)
    )
    if max_attempts is not None:
        query = query.where(
            ~exists().where(
                PurgeFailure.account_id == Account.id,
                (PurgeFailure.retry_at > now) | (PurgeFailure.attempts >= max_attempts),
            )
        )
    if only is not None:
        query = query.where(Account.id.in_(only))
    if after is not None:
        purge_at, account_id = after
        query = query.where(
            (Account.purge_at > purge_at)
            | ((Account.purge_at == purge_at) & (Account.id > account_id))
        )
    return query


def _decide(session: Session, proposed: Sequence[int], now: datetime) -> list[PlannedPurge]:
    """Drop what may not be purged after all, by statements newer than the locks; count the rest."""
    held = set(
        session.scalars(
            select(LegalHold.account_id).where(
                LegalHold.account_id.in_(proposed), LegalHold.released_at.is_(None)
            )
        )
    )
    due = [account_id for account_id in proposed if account_id not in held]
    return [one for one in _count(session, due) if one.purge_at is not None and one.purge_at <= now]


def _count(session: Session, ids: Sequence[int]) -> list[PlannedPurge]:
    passwords = (
        select(func.count())
        .where(SavedPassword.account_id == Account.id)
        .correlate(Account)
        .scalar_subquery()
    )
    rows = session.execute(
        select(
            Account.id,
            Account.public_id,
            Account.purge_at,
            Account.avatar_key,
            passwords,
        )
        .where(Account.id.in_(ids))
        .order_by(Account.purge_at, Account.id)
    )
    return [
        PlannedPurge(
            account_id=account_id,
            public_id=public_id,
            purge_at=purge_at,
            saved_passwords=count,
            files=0 if avatar_key is None else 1,
        )
        for account_id, public_id, purge_at, avatar_key, count in rows
    ]


def _purge_batch(
    sessions: sessionmaker[Session],
    clock: Clock,
    size: int,
    max_attempts: int,
    only: Collection[int] | None,
    by: Actor,
    result: SweepResult,
    *,
    although_paused: bool,
) -> list[int]:
    """Purge one batch and return the ids that were dealt with; none when nothing due is left."""
    proposed: list[int] = []
    # Who asks for an account by its id wants it tried now.
    waited_for = max_attempts if only is None else None
    try:
        with sessions() as session, writing(session):
            now = clock(session)
            _heed_pause(session, although_paused)
            proposed = _lock_due(session, now, size, only, waited_for)
            purged = _decide(session, proposed, now)
            _erase(session, purged, now, by)
    except Exception as exc:
        # Whatever is wrong with one account, a bug of ours too, must not keep the others waiting.
        if is_outage(exc) or not proposed:
            raise
        log.warning(
            "batch rolled back, purging one by one",
            count=len(proposed),
            error=type(exc).__name__,
        )
        _purge_one_by_one(
            sessions,
            clock,
            proposed,
            max_attempts,
            waited_for,
            by,
            result,
            although_paused=although_paused,
        )
    else:
        _add(result, purged)
    return proposed


def _heed_pause(session: Session, although_paused: bool) -> None:
    if not although_paused and paused_at(session) is not None:
        raise PurgingPaused


def _lock_due(
    session: Session,
    now: datetime,
    size: int,
    only: Collection[int] | None,
    max_attempts: int | None,
) -> list[int]:
    query = _claim(now, only, max_attempts=max_attempts).limit(size)
    return [row.id for row in session.execute(query.with_for_update(of=Account, skip_locked=True))]


def _purge_one_by_one(
    sessions: sessionmaker[Session],
    clock: Clock,
    ids: Sequence[int],
    max_attempts: int,
    waited_for: int | None,
    by: Actor,
    result: SweepResult,
    *,
    although_paused: bool,
) -> None:
    """Purge each account in a transaction of its own; one that cannot be purged is written down."""
    for account_id in ids:
        try:
            with sessions() as session, writing(session):
                now = clock(session)
                _heed_pause(session, although_paused)
                # Not again if a sweep beside this one has just written it down.
                locked = _lock_due(session, now, 1, [account_id], waited_for)
                purged = _decide(session, locked, now)
                _erase(session, purged, now, by)
        except Refused:
            raise
        except Exception as exc:
            if is_outage(exc):
                raise
            with sessions() as session, writing(session):
                _note_failure(session, account_id, exc, clock(session), max_attempts, result)
        else:
            _add(result, purged)


def _add(result: SweepResult, purged: Sequence[PlannedPurge]) -> None:
    result.purged += len(purged)
    result.saved_passwords += sum(one.saved_passwords for one in purged)
    result.files += sum(one.files for one in purged)
    result.purged_ids.extend(one.account_id for one in purged)


def _erase(session: Session, accounts: Sequence[PlannedPurge], now: datetime, by: Actor) -> None:
    """Delete the locked *accounts* and write what remains and what is owed; all by id, set by set."""
    if not accounts:
        return
    ids = [one.account_id for one in accounts]
    subjects = [one.public_id for one in accounts]
    owners = session.execute(
        select(
            Account.public_id,
            Account.email,
            Account.avatar_key,
            Account.deactivated_at,
            Account.deactivated_by,
        ).where(Account.id.in_(ids))
    ).all()
    for model in purged_by_account():
        statement = delete(model).where(model.account_id.in_(ids))  # type: ignore[attr-defined]
        if model is LegalHold:
            # An open hold must make the whole transaction fail, whatever went wrong before.
            statement = statement.where(LegalHold.released_at.is_not(None))
        session.execute(statement.execution_options(synchronize_session=False))
    session.execute(
        delete(Effect)
        .where(Effect.subject.in_(subjects), Effect.kind.not_in(_OWED_AFTER_PURGE))
        .execution_options(synchronize_session=False)
    )
    session.execute(
        delete(Account).where(Account.id.in_(ids)).execution_options(synchronize_session=False)
    )
    counts = {one.public_id: one for one in accounts}
    # Somebody whom a part of a backup has brought back has one already, and it stays as it was.
    known = set(session.scalars(select(Receipt.public_id).where(Receipt.public_id.in_(subjects))))
    receipts = [
        {
            "public_id": owner.public_id,
            "deactivated_at": owner.deactivated_at,
            "deactivated_by": owner.deactivated_by,
            "purge_at": counts[owner.public_id].purge_at,
            "purged_at": now,
            "saved_passwords": counts[owner.public_id].saved_passwords,
            "files": counts[owner.public_id].files,
        }
        for owner in owners
        if owner.public_id not in known
    ]
    if receipts:
        session.execute(insert(Receipt), receipts)
    session.execute(
        insert(AuditEvent),
        [
            {
                "at": now,
                "action": "account.purged",
                "subject": public_id,
                "actor": by.public_id,
                "actor_kind": by.kind,
                "details": {"saved_passwords": one.saved_passwords, "files": one.files},
            }
            for public_id, one in counts.items()
        ],
    )
    effects = [
        _effect(queue.DELETE_FILE, owner.public_id, {"key": owner.avatar_key}, now)
        for owner in owners
        if owner.avatar_key is not None
    ]
    effects += [
        _effect(
            notices.PURGED,
            owner.public_id,
            {"address": owner.email},
            now,
            expires_at=now + notices.ADDRESS_KEPT,
        )
        for owner in owners
    ]
    effects.append(
        _effect(queue.LEDGER, None, {"lines": [_ledger_line(one) for one in receipts]}, now)
    )
    session.execute(insert(Effect), effects)


def _effect(
    kind: str,
    subject: uuid.UUID | None,
    payload: dict[str, object],
    now: datetime,
    expires_at: datetime | None = None,
) -> dict[str, object]:
    return {
        "uid": uuid.uuid4(),
        "kind": kind,
        "subject": subject,
        "payload": payload,
        "created_at": now,
        "deliver_after": now,
        "expires_at": expires_at,
        "attempts": 0,
    }


def _ledger_line(receipt: dict[str, object]) -> dict[str, object]:
    return {
        name: value.isoformat()
        if isinstance(value, datetime)
        else value
        if isinstance(value, int)
        else str(value)
        for name, value in receipt.items()
    }


def _note_failure(
    session: Session,
    account_id: int,
    exc: Exception,
    now: datetime,
    max_attempts: int,
    result: SweepResult,
) -> None:
    # Two sweeps that failed on it at once would otherwise both insert; who has it locked writes it down.
    account = session.get(Account, account_id, with_for_update={"skip_locked": True})
    if account is None:
        return
    failure = session.get(PurgeFailure, account_id)
    if failure is None:
        failure = PurgeFailure(account_id=account_id, attempts=0)
        session.add(failure)
    failure.attempts += 1
    failure.failed_at = now
    failure.retry_at = now + retry_pause(failure.attempts)
    failure.error = type(exc).__name__
    failure.constraint_name = _constraint(exc)
    stuck = failure.attempts >= max_attempts
    result.failed += 1
    result.stuck += stuck
    audit.record(
        session,
        "purge.stuck" if stuck else "purge.failed",
        subject=account.public_id,
        by=SYSTEM_ACTOR,
        now=now,
        attempts=failure.attempts,
    )
    log.error(
        "an account could not be purged",
        account_id=account_id,
        error=failure.error,
        constraint=failure.constraint_name,
        attempts=failure.attempts,
        stuck=stuck,
    )


def _constraint(exc: Exception) -> str | None:
    """Return the constraint's name; only that, since a database's message may quote the row."""
    if not isinstance(exc, DBAPIError):
        return None
    name = getattr(getattr(exc.orig, "diag", None), "constraint_name", None)
    if name is None and isinstance(exc, IntegrityError):
        code = getattr(exc.orig, "sqlite_errorname", None)
        return None if code is None else str(code)
    return None if name is None else str(name)[:100]


def retry_pause(attempts: int) -> timedelta:
    """Return the pause after the given number of failures: a minute, doubled each time, 6 hours at most."""
    return min(FIRST_RETRY * (1 << min(attempts - 1, 20)), LONGEST_RETRY)
