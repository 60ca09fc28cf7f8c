"""Accounts that cannot be purged: written down, tried again, given up as stuck."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Select, select
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from ..db import audit, rows, rules
from ..db.audit import SYSTEM_ACTOR, Actor
from ..db.engine import Clock, database_now
from ..db.models import UNEXPLAINED, Account, PurgeFailure
from ..outbox.queue import growing_pause

# The pause between two tries of the same account grows from the first of these to the other.
# Without it one account that always fails would be tried again by every sweep.
FIRST_RETRY = timedelta(minutes=1)
LONGEST_RETRY = timedelta(hours=6)

# A due account is blocked by one of these: a hold suspends its purge, nobody has promised it, or it
# waits for its next try or for a person. The words are on the wire: others would break the programs
# that compare them.
HELD, WAITING, STUCK = "hold", "retry", "stuck"
# On the operator's screen alone: the brake is no matter of one account.
BRAKED = "brake"


def blocked_by(
    failure: PurgeFailure | None, *, is_held: bool, is_unexplained: bool, max_attempts: int
) -> str | None:
    """Return what keeps a due account from its purge, None if nothing does.

    That is ``hold``, ``unexplained``, ``retry`` or ``stuck``, the first that applies.
    """
    if is_held:
        return HELD
    if is_unexplained:
        return UNEXPLAINED
    if failure is None:
        return None
    return STUCK if failure.attempts >= max_attempts else WAITING


def troubled(now: datetime, limit: int) -> Select[int]:
    """Select the ids of due accounts that are failing or stuck, *limit* of them at most.

    Those under a hold, and the unexplained, are left out: nobody tries to purge them as they are.
    """
    return (
        select(Account.id)
        .where(rules.is_due(now), rules.has_failed(), ~rules.has_open_hold(), rules.is_explained())
        .order_by(Account.id)
        .limit(limit)
    )


def retry(session: Session, account_id: int, *, by: Actor, clock: Clock = database_now) -> bool:
    """Let the next sweep try a failing or stuck account again; False if it had not failed.

    Raises AccountNotFound.
    """
    account = rows.lock(session, account_id)
    failure = session.get(PurgeFailure, account_id, populate_existing=True)
    if failure is None:
        return False
    session.delete(failure)
    now = clock(session)
    audit.record(session, "purge.retried", subject=account.public_id, by=by, now=now)
    session.flush()
    return True


def note(
    session: Session, account_id: int, exc: Exception, now: datetime, max_attempts: int
) -> PurgeFailure | None:
    """Write down that the purge of an account has failed, with the time of the next try.

    Only the exception's class and the constraint's name are kept. Returns None, and writes nothing,
    if another sweep has the account locked: two that fail on it at once would otherwise both
    insert.
    """
    account = session.get(Account, account_id, with_for_update={"skip_locked": True})
    if account is None:
        return None
    failure = session.get(PurgeFailure, account_id)
    if failure is None:
        failure = PurgeFailure(account_id=account_id, attempts=0)
        session.add(failure)
    failure.attempts += 1
    failure.failed_at = now
    failure.retry_at = now + growing_pause(
        failure.attempts, first=FIRST_RETRY, longest=LONGEST_RETRY
    )
    failure.error = type(exc).__name__
    failure.constraint_name = _constraint(exc)
    stuck = failure.attempts >= max_attempts
    audit.record(
        session,
        "purge.stuck" if stuck else "purge.failed",
        subject=account.public_id,
        by=SYSTEM_ACTOR,
        now=now,
        attempts=failure.attempts,
    )
    return failure


def _constraint(exc: Exception) -> str | None:
    """Return the constraint's name; only that, since a database's message may quote the row."""
    if not isinstance(exc, DBAPIError):
        return None
    name = getattr(getattr(exc.orig, "diag", None), "constraint_name", None)
    if name is None and isinstance(exc, IntegrityError):
        code = getattr(exc.orig, "sqlite_errorname", None)
        return None if code is None else str(code)
    return None if name is None else str(name)[:100]
