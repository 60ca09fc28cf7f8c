"""Which accounts a sweep takes: the query proposes, the locked row decides."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Exists,
    Select,
    exists,
    func,
    select,
)
from sqlalchemy.orm import Session

from ..db.models import (
    Account,
    LegalHold,
    PurgeFailure,
    SavedPassword,
)
from ..db.rows import chunks


@dataclass(frozen=True)
class PlannedPurge:
    """What a purge of one account destroys; ``purge_at`` is None while it is active."""

    account_id: int
    public_id: uuid.UUID
    purge_at: datetime | None
    saved_passwords: int
    files: int


def plan(
    session: Session, *, now: datetime, max_attempts: int, page: int = 500
) -> Iterator[PlannedPurge]:
    """Yield what a sweep at *now* would destroy, in its order, by the claim and the counts of the sweep.

    Locks nothing, changes nothing.
    """
    after: tuple[datetime, int] | None = None
    while True:
        query = due_query(now, None, max_attempts=max_attempts, after=after).limit(page)
        proposed = [(row.purge_at, row.id) for row in session.execute(query)]
        if not proposed:
            return
        after = proposed[-1]
        yield from decide(session, [account_id for _, account_id in proposed], now)


def count(session: Session, ids: Sequence[int]) -> list[PlannedPurge]:
    """Return what a purge of just these accounts would destroy, whatever their state."""
    return [planned for page in chunks(ids) for planned in _count(session, page)]


def _open_hold(account_id: Any) -> Exists:
    return exists().where(LegalHold.account_id == account_id, LegalHold.released_at.is_(None))


def due_query(
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


def decide(session: Session, proposed: Sequence[int], now: datetime) -> list[PlannedPurge]:
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


def lock_due(
    session: Session,
    now: datetime,
    size: int,
    only: Collection[int] | None,
    max_attempts: int | None,
) -> list[int]:
    query = due_query(now, only, max_attempts=max_attempts).limit(size)
    return [row.id for row in session.execute(query.with_for_update(of=Account, skip_locked=True))]
