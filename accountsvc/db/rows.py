"""Finding and locking account rows: the locking rules of the whole service, in one place.

A transaction that writes for an account locks its row first and decides by the locked row. Several
rows are locked in id order, so that two transactions never wait for each other.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar, cast

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    CursorResult,
    Delete,
    Update,
    bindparam,
    exists,
    func,
    select,
    union_all,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from ..errors import AccountNotFound, TokenNotValid
from . import addresses, rules
from .engine import Moment
from .models import DUE, MAX_ID, Account, Base
from .text import is_text

T = TypeVar("T")

# Every request begins with one of these: made anew each time, they would be a tenth of its work.
_BY_PUBLIC_ID = select(Account).where(Account.public_id == bindparam("public_id"))
_WITH_MOMENT = _BY_PUBLIC_ID.add_columns(Moment())

_IDS: BindParameter[int] = bindparam("ids", expanding=True)
_LOCK = (
    select(Account)
    .order_by(Account.id)
    .with_for_update(of=Account)
    .execution_options(populate_existing=True)
)
_LOCK_MANY = _LOCK.where(Account.id.in_(_IDS))
_ONE_OF_THEM, _STAFF = aliased(Account), aliased(Account)
_DECIDING_STAFF = select(_STAFF.id).where(
    _STAFF.is_staff,
    rules.is_active(_STAFF),
    exists().where(_ONE_OF_THEM.id.in_(_IDS), _ONE_OF_THEM.is_staff),
)
_LOCK_WITH_STAFF = _LOCK.where(
    Account.id.in_(
        union_all(select(_ONE_OF_THEM.id).where(_ONE_OF_THEM.id.in_(_IDS)), _DECIDING_STAFF)
    )
)

_NUMBER = re.compile(
    r"[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}", re.IGNORECASE
)

# One statement gets so many ids at most: SQLite refuses one with more than 32,766 values.
CHUNK = 500


def chunks(ids: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut *ids* into chunks, each as many as one statement takes."""
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]


def is_id(number: int) -> bool:
    """Say whether a database can hold *number* as an id: asked for another, it fails."""
    return 0 < number <= MAX_ID


def find(session: Session, account_id: int) -> Account | None:
    """Return the account without locking it; None also for an id that no database can hold."""
    if not is_id(account_id):
        return None
    return session.get(Account, account_id, populate_existing=True)


def find_by_public_id(session: Session, public_id: uuid.UUID) -> Account | None:
    """Return the account of this public id without locking it; None if there is none."""
    return session.scalar(_BY_PUBLIC_ID, {"public_id": public_id})


def see(session: Session, public_id: uuid.UUID) -> tuple[Account, datetime] | None:
    """Return the account of this public id, not locked, and the time at which it was so.

    The time is that of the database's clock. None if there is no such account.
    """
    found = session.execute(_WITH_MOMENT, {"public_id": public_id}).one_or_none()
    return None if found is None else (found[0], found[1])


def find_by_email(session: Session, email: str) -> Account | None:
    """Return the account of this e-mail; None also for a text that no database can hold.

    One statement, the same for every text that it can hold: all keys that an account of the address
    may have are looked up at once, and :func:`.addresses.choose` says whose it is.
    """
    if not is_text(email):
        return None
    keys = addresses.possible_keys(email)
    return addresses.choose(keys, session.scalars(select(Account).where(_has_key(keys))))


def identify(session: Session, email: str) -> tuple[uuid.UUID, int] | None:
    """Return public id and epoch of the account of this e-mail, without loading the account.

    None if there is none. Both answers take the same time, as far as the database goes.
    """
    if not is_text(email):
        return None
    keys = addresses.possible_keys(email)
    identities = session.execute(
        select(Account.public_id, Account.epoch, Account.email, Account.email_key).where(
            _has_key(keys)
        )
    )
    found = addresses.choose(keys, (_Identity(*row) for row in identities))
    return None if found is None else (found.public_id, found.epoch)


class _Identity(NamedTuple):
    public_id: uuid.UUID
    epoch: int
    email: str
    email_key: str


def _has_key(keys: Sequence[str]) -> ColumnElement[bool]:
    return Account.email_key.in_(keys)


def other_with_email(session: Session, email: str, own_id: int | None) -> bool:
    """Say whether an account other than *own_id* has this address, by whichever of its keys."""
    found = find_by_email(session, email)
    return found is not None and found.id != own_id


def kept_keys(session: Session, most: int) -> tuple[int, list[int]]:
    """Count the accounts that were one of two when their keys became the same; name the first.

    Returns the count and at most *most* ids, in order.
    """
    is_kept = func.substr(Account.email_key, 1, len(addresses.KEPT)) == addresses.KEPT
    number = session.scalar(select(func.count()).select_from(Account).where(is_kept)) or 0
    ids = session.scalars(select(Account.id).where(is_kept).order_by(Account.id).limit(most))
    return number, list(ids)


def read_number(text: str) -> uuid.UUID | None:
    """Return the public id that *text* is, in either case and with or without its hyphens.

    None for any other text: people type it from a mail or from paper.
    """
    return uuid.UUID(text) if _NUMBER.fullmatch(text) else None


def locate(session: Session, text: str) -> Account | None:
    """Find an account as an operator names it: by id, by number, or by e-mail.

    *text* is an e-mail if it has an ``@``; a number is a public id.
    """
    if "@" in text:
        return find_by_email(session, text)
    number = read_number(text)
    if number is not None:
        return find_by_public_id(session, number)
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_ID)):
        return find(session, int(text))
    return None


def names(session: Session, account_ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """Return username and e-mail of each of these accounts, a chunk at most; who is gone has none.

    For the operator's eyes: neither a log nor the audit trail may get them.
    """
    found = session.execute(
        select(Account.id, Account.username, Account.email).where(Account.id.in_(account_ids))
    )
    return {account_id: (username, email) for account_id, username, email in found}


def deletions(
    session: Session,
    *,
    now: datetime,
    state: str | None = None,
    due_before: datetime | None = None,
    held: bool | None = None,
    after: rules.Position | None = None,
    limit: int = 100,
) -> Sequence[Account]:
    """Return at most *limit* deactivated accounts in the purge's order, all of them behind *after*.

    *state* is ``deactivated`` (in the grace period at *now*) or ``due``; *held* asks for accounts
    with, or without, an open hold; *due_before* for those with an earlier ``purge_at``.
    """
    query = select(Account).where(~rules.is_active()).order_by(*rules.PURGE_ORDER).limit(limit)
    if state is not None:
        query = query.where(rules.is_due(now) if state == DUE else rules.is_in_grace(now))
    if due_before is not None:
        query = query.where(Account.purge_at < due_before)
    if held is not None:
        query = query.where(rules.has_open_hold() if held else ~rules.has_open_hold())
    if after is not None:
        query = query.where(rules.comes_after(after))
    return session.scalars(query).all()


def lock(session: Session, account_id: int, *, share: bool = False) -> Account:
    """Lock one account (``FOR UPDATE``, or ``FOR SHARE``) and return it as it is under the lock.

    Raises AccountNotFound. SQLite has one writer, so there its transaction is the lock.
    """
    account = None
    if is_id(account_id):
        account = session.scalar(
            select(Account)
            .where(Account.id == account_id)
            .with_for_update(read=share)
            .execution_options(populate_existing=True)
        )
    if account is None:
        raise AccountNotFound
    return account


def lock_many(session: Session, account_ids: Collection[int]) -> dict[int, Account]:
    """Lock several accounts ``FOR UPDATE`` in id order; those that are gone are left out."""
    ids = sorted(filter(is_id, set(account_ids)))
    return {
        account.id: account
        for chunk in chunks(ids)
        for account in session.scalars(_LOCK_MANY, {"ids": chunk})
    }


def lock_for_deactivation(session: Session, account_ids: Collection[int]) -> dict[int, Account]:
    """Lock the accounts as :func:`lock_many` does and, if one is staff, all active staff too.

    Otherwise the last two staff accounts could be deactivated at once, each because of the other.
    """
    ids = sorted(filter(is_id, set(account_ids)))
    if len(ids) <= CHUNK:
        return {row.id: row for row in session.scalars(_LOCK_WITH_STAFF, {"ids": ids})}
    # Chunks that each lock staff too would lock out of order.
    staff = {
        staff_id
        for chunk in chunks(ids)
        for staff_id in session.scalars(_DECIDING_STAFF, {"ids": chunk})
    }
    return lock_many(session, {*ids, *staff})


def insert(session: Session, model: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT into the table of *model* that may say what happens if the row is there.

    SQLAlchemy has ``ON CONFLICT`` for each engine in a class of its own.
    """
    is_postgresql = session.get_bind().dialect.name == "postgresql"
    return postgresql.insert(model) if is_postgresql else sqlite.insert(model)


def change(session: Session, statement: Delete | Update) -> int:
    """Run *statement* and return how many rows it has changed.

    Objects that the session has loaded already do not show the change.
    """
    statement = statement.execution_options(synchronize_session=False)
    return cast(CursorResult[Any], session.execute(statement)).rowcount


def check_writable(account: Account, epoch: int) -> None:
    """Refuse a locked account that was deactivated, or whose sessions were ended, meanwhile."""
    if not account.is_active or account.epoch != epoch:
        raise TokenNotValid


def lock_for_write(session: Session, account_id: int, *, epoch: int, share: bool = True) -> Account:
    """Lock an account for a write to its data, and check state and epoch under the lock.

    ``FOR SHARE`` keeps a deactivation (``FOR UPDATE``) out until the write is committed, so nothing
    can appear after it. Raises TokenNotValid if the account is gone, deactivated or its epoch moved
    on.
    """
    try:
        account = lock(session, account_id, share=share)
    except AccountNotFound:
        raise TokenNotValid from None
    check_writable(account, epoch)
    return account
