"""To whom the mails about an account go: to its address of today, and to those it has had lately.

Somebody who has taken an account over moves it to a mailbox of their own, once or ten times. Each
mailbox that it leaves is remembered in a row of its own, which no later change takes away, and is
told for one grace period.

Processes of the release before remember one address, in a column of the account's row. What they
write there while they are replaced counts here, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from sqlalchemy import ColumnElement, delete, exists, func, select
from sqlalchemy.orm import Session

from .. import bounds
from ..db import rows, rules
from ..db.addresses import address_key, exactly
from ..db.engine import Clock, Database
from ..db.models import Account, Effect, FormerAddress
from .payloads import PREVIOUS, AccountMail


@dataclass(frozen=True)
class Former:
    """An address that an account has had, from when until when.

    *id* is that of its row; None if it is in the account's own row alone.
    """

    id: int | None
    email: str
    held_since: datetime
    left_at: datetime


class Addressee(NamedTuple):
    """An address to mail; *left_at* is until when it was the account's, None for that of today."""

    email: str
    left_at: datetime | None


class Holder(Protocol):
    """An account, or those columns of one that say which addresses it has, and has had."""

    @property
    def id(self) -> int: ...

    @property
    def email(self) -> str: ...

    @property
    def previous_email(self) -> str | None: ...

    @property
    def joined_at(self) -> datetime: ...

    @property
    def email_changed_at(self) -> datetime | None: ...


def remembered_by(session: Session, holders: Collection[Holder]) -> Mapping[int, Sequence[Former]]:
    """Return the former addresses of each of *holders* by its id, in the order of leaving.

    For accounts whose address was never changed no database is asked.
    """
    found: dict[int, list[Former]] = {holder.id: [] for holder in holders}
    moved = [holder for holder in holders if holder.email_changed_at is not None]
    for some in rows.chunks(moved):
        ids = [holder.id for holder in some]
        query = select(FormerAddress).where(FormerAddress.account_id.in_(ids))
        for row in session.scalars(query.order_by(FormerAddress.left_at, FormerAddress.id)):
            former = Former(row.id, row.email, row.held_since, row.left_at)
            found[row.account_id].append(former)
    for holder in moved:
        found[holder.id] += _in_the_column(holder, found[holder.id])
    return found


def remembered(session: Session, account: Holder) -> Sequence[Former]:
    """Return the former addresses of *account*, in the order of leaving."""
    return remembered_by(session, [account])[account.id]


def _in_the_column(holder: Holder, formers: Sequence[Former]) -> list[Former]:
    """Return the address in the column, if a process of the release before made the last change.

    Every other change has left a row of the same time.
    """
    address, changed_at = holder.previous_email, holder.email_changed_at
    if address is None or changed_at is None or any(row.left_at == changed_at for row in formers):
        return []
    return [Former(None, address, holder.joined_at, changed_at)]


def who_left(session: Session, address: str) -> list[tuple[int, datetime]]:
    """Return the ids of the accounts that have left *address*, each with when, the oldest first.

    Capitals do not count. It reads every row, which is for an operator's question and no request.
    """
    rows_of_it = select(FormerAddress.account_id, FormerAddress.left_at).where(
        func.lower(FormerAddress.email) == address.strip().lower()
    )
    found = session.execute(rows_of_it.order_by(FormerAddress.left_at, FormerAddress.id))
    return [(account_id, left_at) for account_id, left_at in found]


def told(session: Session, account: Holder, *, at: datetime, within: timedelta) -> list[Former]:
    """Return the addresses that were left less than *within* before *at*, each of them once.

    Of one that was left more than once it is the last time; that of today is none. A name in other
    capitals is another address: its server may give it to somebody else.
    """
    if account.email_changed_at is None or at - account.email_changed_at >= within:
        return []
    present = exactly(account.email)
    found: dict[str, Former] = {}
    for former in remembered(session, account):
        mailbox = exactly(former.email)
        # What the column says of a mailbox that has a row is less exact: its time is that of the
        # last change, whichever address that left.
        is_known = former.id is None and mailbox in found
        if at - former.left_at < within and mailbox != present and not is_known:
            found[mailbox] = former
    return list(found.values())


def owed_to(session: Session, account: Account, *, at: datetime, within: timedelta) -> list[int]:
    """Return the ids of the rows of :func:`told`, in a writing transaction.

    An address that is in the account's row alone gets a row, so that a mail can name it.
    """
    return [
        _keep(session, account, former) if former.id is None else former.id
        for former in told(session, account, at=at, within=within)
    ]


def leave(session: Session, account: Account, *, now: datetime) -> None:
    """Remember that the locked *account* leaves its address of today, before it gets another."""
    for former in remembered(session, account):
        if former.id is None:
            _keep(session, account, former)
    _keep(session, account, Former(None, account.email, _held_since(account), now))


def next_change(
    session: Session, account: Holder, *, now: datetime, grace: timedelta
) -> datetime | None:
    """Return when *account* may change its address again; None: now.

    Each former address keeps its way back for one *grace* period; beyond
    ``ADDRESS_CHANGES_A_GRACE_PERIOD`` of them within one, the next has to wait for the oldest.
    """
    most = bounds.ADDRESS_CHANGES_A_GRACE_PERIOD
    lately = [
        former.left_at for former in remembered(session, account) if now - former.left_at < grace
    ]
    return None if len(lately) < most else sorted(lately)[-most] + grace


def addressee(
    session: Session, account: Holder, mail: AccountMail, *, owed_at: datetime
) -> Addressee | None:
    """Return to whom *mail* goes; None if the address that it was for is not remembered.

    A mail for the address of today goes to the one that was it when it was *owed_at*: whoever has
    changed the address since may be the very person whom it warns of.
    """
    formers = remembered(session, account)
    if mail.former is not None:
        meant = [former for former in formers if former.id == mail.former]
    elif mail.to == PREVIOUS:
        meant = list(formers)
    else:
        changed_at = account.email_changed_at
        if changed_at is None or changed_at <= owed_at:
            return Addressee(account.email, None)
        meant = [former for former in formers if former.left_at > owed_at]
    return Addressee(meant[0].email, meant[0].left_at) if meant else None


def longest_held(
    formers: Collection[Former], account: Holder, address: str, *, now: datetime
) -> timedelta:
    """Return how long *account* has had the mailbox of *address* at a stretch; of several the most.

    *formers* are its former addresses. One who moves away and comes back has not had it shorter.
    """
    mailbox = address_key(address)
    stretches = [
        former.left_at - former.held_since
        for former in formers
        if address_key(former.email) == mailbox
    ]
    if address_key(account.email) == mailbox:
        stretches.append(now - _held_since(account))
    return max(stretches, default=timedelta())


def held(session: Session, account: Holder, address: str, *, now: datetime) -> timedelta:
    """Return :func:`longest_held` of *account* by all that is remembered of it."""
    return longest_held(remembered(session, account), account, address, now=now)


def prune(database: Database, clock: Clock, grace: timedelta) -> int:
    """Forget the former addresses that nobody will be told at, a chunk at most; return how many.

    They are those of an active account whose address has stayed the same for a *grace* period, and
    to which no mail is owed. A deactivated account keeps its own until it is back or purged. Rows
    that somebody has locked are left for the next time.
    """
    with database.reading() as session:
        # Every delivery asks this, every few seconds: as a DELETE it would take SQLite's write lock
        # each time.
        is_over = _is_over(clock(session) - grace)
        if session.scalar(select(FormerAddress.id).where(is_over).limit(1)) is None:
            return 0
    with database.writing() as session:
        found = session.scalars(
            select(FormerAddress.id)
            .where(is_over)
            .order_by(FormerAddress.id)
            .limit(rows.CHUNK)
            .with_for_update(of=FormerAddress, skip_locked=True)
        ).all()
        return rows.change(session, delete(FormerAddress).where(FormerAddress.id.in_(found)))


def _is_over(then: datetime) -> ColumnElement[bool]:
    """Select the former addresses of accounts that have changed none since *then*.

    All of an account go together: how long it has had a mailbox to which it came back would
    otherwise be forgotten while that is still to be told of.
    """
    # A mail names a row by its id, and is sent nowhere without it.
    is_owed_mail = exists().where(
        Effect.subject == Account.public_id, Effect.kind.startswith("mail.")
    )
    return (FormerAddress.left_at <= then) & exists().where(
        Account.id == FormerAddress.account_id,
        rules.is_active(),
        Account.email_changed_at <= then,
        ~is_owed_mail,
    )


def _held_since(account: Holder) -> datetime:
    return account.email_changed_at or account.joined_at


def _keep(session: Session, account: Account, former: Former) -> int:
    row = FormerAddress(
        account_id=account.id,
        email=former.email,
        held_since=former.held_since,
        left_at=former.left_at,
    )
    session.add(row)
    session.flush()
    return row.id
