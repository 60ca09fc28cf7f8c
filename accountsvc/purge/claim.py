"""The accounts that a sweep takes: the query proposes, the locked row decides."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from ..db import rules
from ..db.models import Account, LegalHold, PurgeFailure, SavedPassword
from ..db.rows import chunks
from .failures import LONGEST_RETRY


@dataclass(frozen=True)
class PlannedPurge:
    """One account and what its purge destroys; ``purge_at`` is None while it is active."""

    account_id: int
    public_id: uuid.UUID
    purge_at: datetime | None
    saved_passwords: int
    files: int


def plan(
    session: Session, *, now: datetime, max_attempts: int, page_size: int = 500
) -> Iterator[PlannedPurge]:
    """Yield what a sweep at *now* would destroy, in its order, by the sweep's own claim and counts.

    Locks nothing, changes nothing.
    """
    after: rules.Position | None = None
    while True:
        query = _propose(now, None, max_attempts).limit(page_size)
        if after is not None:
            query = query.where(rules.comes_after(after))
        proposed = [(row.purge_at, row.id) for row in session.execute(query)]
        if not proposed:
            return
        after = proposed[-1]
        yield from decide(session, [account_id for _, account_id in proposed], now)


def count(session: Session, ids: Sequence[int]) -> list[PlannedPurge]:
    """Return what a purge of just these accounts would destroy, whatever their state."""
    return [planned for chunk in chunks(ids) for planned in _count(session, chunk)]


def lock_due(
    session: Session,
    now: datetime,
    size: int,
    only: Collection[int] | None,
    max_attempts: int | None,
    *,
    asked_for: bool = False,
) -> list[int]:
    """Lock up to *size* due accounts ``FOR UPDATE SKIP LOCKED`` and return their ids, oldest first.

    *only* restricts them to those ids, *asked_for* to those whose owner has asked for the purge.
    Without *max_attempts* failing and stuck accounts are locked too. What is locked is only
    proposed: :func:`decide` has the last word.
    """
    query = _propose(now, only, max_attempts).limit(size)
    if asked_for:
        query = query.where(rules.owner_asked_for_purge())
    return [row.id for row in session.execute(query.with_for_update(of=Account, skip_locked=True))]


@dataclass(frozen=True)
class UnexplainedDue:
    """How many are due and neither on hold nor explained, with the public ids of the first."""

    count: int
    public_ids: list[uuid.UUID]


def is_left_out_unexplained(now: datetime) -> tuple[ColumnElement[bool], ...]:
    """Select due accounts that nothing but the missing promise keeps from being proposed."""
    return rules.is_due(now), ~rules.has_open_hold(), rules.is_unexplained()


def unexplained(session: Session, now: datetime, *, most_ids: int) -> UnexplainedDue:
    """Return the due accounts that no sweep purges, because nobody has promised their purge."""
    conditions = is_left_out_unexplained(now)
    first = select(Account.public_id).where(*conditions).order_by(*rules.PURGE_ORDER)
    return UnexplainedDue(
        session.scalar(select(func.count()).select_from(Account).where(*conditions)) or 0,
        list(session.scalars(first.limit(most_ids))),
    )


def count_proposed(
    session: Session,
    now: datetime,
    most: int,
    only: Collection[int] | None,
    max_attempts: int | None,
) -> int:
    """Count whom :func:`lock_due` would lock, up to *most*, by the same rules; lock nobody."""
    found = _propose(now, only, max_attempts).order_by(None).limit(most).subquery()
    return session.scalar(select(func.count()).select_from(found)) or 0


def count_due(session: Session, now: datetime, max_attempts: int) -> int:
    """Count everybody whom a sweep over all that is due would take at *now*."""
    found = _propose(now, None, max_attempts).order_by(None).subquery()
    return session.scalar(select(func.count()).select_from(found)) or 0


def decide(session: Session, proposed: Sequence[int], now: datetime) -> list[PlannedPurge]:
    """Return those of the locked *proposed* that may be purged, with what that destroys.

    It asks in new statements: the locking query sees what was committed before it began, so a hold
    that was placed while the lock was waited for would be missed, and its account purged. Nobody is
    purged whose purge has no witness: such a date is a mistake of SQL, a script or a migration.
    """
    held = set(
        session.scalars(
            select(LegalHold.account_id).where(LegalHold.account_id.in_(proposed), rules.is_open())
        )
    )
    explained = set(
        session.scalars(select(Account.id).where(Account.id.in_(proposed), rules.is_explained()))
    )
    may_go = [one for one in proposed if one in explained and one not in held]
    return [
        planned
        for planned in _count(session, may_go)
        if planned.purge_at is not None and planned.purge_at <= now
    ]


def _propose(
    now: datetime, only: Collection[int] | None, max_attempts: int | None
) -> Select[int, datetime | None]:
    """Select due accounts in the purge's order.

    Held, unexplained, failing and stuck accounts are left out: at the head of the queue a hundred
    of them would otherwise fill every batch, and nobody behind them would ever be purged.
    """
    query = (
        select(Account.id, Account.purge_at)
        .where(rules.is_due(now), ~rules.has_open_hold(), rules.is_explained())
        .order_by(*rules.PURGE_ORDER)
    )
    if max_attempts is not None:
        query = query.where(
            # A retry that is further ahead than any pause was set by a clock that was ahead.
            ~rules.has_failed(
                ((PurgeFailure.retry_at > now) & (PurgeFailure.retry_at <= now + LONGEST_RETRY))
                | (PurgeFailure.attempts >= max_attempts)
            )
        )
    return query if only is None else query.where(Account.id.in_(only))


def _count(session: Session, ids: Sequence[int]) -> list[PlannedPurge]:
    passwords = (
        select(func.count())
        .where(SavedPassword.account_id == Account.id)
        .correlate(Account)
        .scalar_subquery()
    )
    rows = session.execute(
        select(Account.id, Account.public_id, Account.purge_at, Account.avatar_key, passwords)
        .where(Account.id.in_(ids))
        .order_by(*rules.PURGE_ORDER)
    )
    return [
        PlannedPurge(
            account_id=account_id,
            public_id=public_id,
            purge_at=purge_at,
            saved_passwords=saved_passwords,
            files=0 if avatar_key is None else 1,
        )
        for account_id, public_id, purge_at, avatar_key, saved_passwords in rows
    ]
