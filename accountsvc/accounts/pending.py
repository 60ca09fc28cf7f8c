"""Another e-mail address: asked for by a session, the account's once mailbox and password agree.

One at a time is pending. It waits on the account's row, is reserved for nobody, and is open for
``models.PENDING_FOR``; whatever ends the account's sessions closes it. What is not open opens
nothing, is shown nowhere, and is cleared.

Like ``lifecycle``: each function that takes a Session is inside a writing transaction of the
caller, decides by the locked row, and writes the change, its audit event and its mails together.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from .. import bounds
from ..db import audit, rows, rules
from ..db.addresses import is_another, key_after_change
from ..db.audit import Actor
from ..db.engine import Clock, Database, database_now
from ..db.models import OWNER, Account
from ..errors import AccountNotFound, InvalidInput, TokenNotValid
from ..outbox import notices, recipients
from ..tokens import Claims, asked_as, asked_at
from . import settling

_TAKEN = "Another account has this address by now. Sign in, and ask for another one."
_OFTEN = (
    f"The address of this account was changed {bounds.ADDRESS_CHANGES_A_GRACE_PERIOD} times "
    "lately. Another change is possible from {at} on."
)


def ask(
    session: Session,
    account: Account,
    address: str,
    *,
    by: Actor,
    grace: timedelta,
    now: datetime,
) -> None:
    """Make *address* the pending one of the locked *account*, and mail both mailboxes.

    One that was pending is replaced, and its links open nothing. Asked for once more while it is
    open, the same one stays as it is, to its end, and its mailbox alone is mailed its link again.

    Raises InvalidInput if the address was changed too often within a *grace* period.
    """
    open_address = account.pending(now)
    if open_address is not None and not is_another(open_address, address):
        notices.confirm_address(session, account, now=now)
        return
    _refuse_many(session, account, now=now, grace=grace)
    moment = now
    if open_address is not None and account.pending_email_at is not None:
        # The time tells one change from the next: two of one moment would share their links.
        moment = max(now, account.pending_email_at + timedelta(microseconds=1))
    account.pending_email = address
    account.pending_email_at = moment
    account.pending_epoch = account.epoch
    audit.record(session, "account.email_asked", subject=account.public_id, by=by, now=now)
    notices.address_asked(session, account, now=now)
    notices.confirm_address(session, account, now=now)


def cancel(session: Session, account: Account, *, by: Actor, now: datetime) -> None:
    """Call the pending change of the locked *account* off; without an open one do nothing."""
    if account.pending(now) is None:
        return
    account.clear_pending()
    audit.record(session, "account.email_cancelled", subject=account.public_id, by=by, now=now)


def cancel_by_link(session: Session, claims: Claims, *, clock: Clock = database_now) -> Account:
    """Call off what is pending, by a link in a mail to the address of today.

    Raises TokenNotValid if the link is not one that :func:`may_cancel`.
    """
    account, now = _lock(session, claims, clock)
    if not may_cancel(account, claims, now=now):
        raise TokenNotValid
    cancel(session, account, by=Actor(OWNER, account.public_id), now=now)
    session.flush()
    return account


def take_effect(
    session: Session, claims: Claims, *, grace: timedelta, clock: Clock = database_now
) -> Account:
    """Make the pending address the account's; sessions stay. The address that it leaves is told.

    The caller has checked the password just now: *claims* are those of the link to the mailbox, and
    whoever has changed the password since has raised the epoch. Each address that is left is
    remembered for one *grace* period, and told of what happens to the account: a thief who changes
    the address again and again does not shake off the owner.

    Raises TokenNotValid if it is not the change that is pending, InvalidInput if another account
    has the address, or if it was changed too often within a grace period.
    """
    account, now = _lock(session, claims, clock)
    if not is_current(account, claims, now=now):
        raise TokenNotValid
    address = account.pending_email
    assert address is not None
    if rows.other_with_email(session, address, account.id):
        raise InvalidInput({"email": [_TAKEN]})
    _refuse_many(session, account, now=now, grace=grace)
    notices.address_changed(session, account, previous=account.email, now=now)
    recipients.leave(session, account, now=now)
    # For processes of the release before, which mail this address alone.
    if account.email_changed_at is None or now - account.email_changed_at >= grace:
        account.previous_email = account.email
    account.email_key = key_after_change(account, address)
    account.email, account.email_changed_at = address, now
    account.clear_pending()
    owner = Actor(OWNER, account.public_id)
    audit.record(session, "account.email_changed", subject=account.public_id, by=owner, now=now)
    try:
        session.flush()
    except IntegrityError as exc:
        # Somebody has taken the address since it was looked up.
        raise InvalidInput({"email": [_TAKEN]}) from exc
    return account


def is_current(account: Account, claims: Claims, *, now: datetime) -> bool:
    """Say whether *claims* are those of a link about the change that is pending at *now*."""
    return (
        account.pending(now) is not None
        and account.epoch == claims.epoch
        and asked_at(account) == claims.asked_at
    )


def may_cancel(account: Account, claims: Claims, *, now: datetime) -> bool:
    """Say whether *claims* are those of a link that calls off what is pending at *now*.

    It may be about an earlier change: whoever has got hold of a session asks for a second address
    right behind the first, and the mail with the second link waits for its turn. The mailbox that
    reads the link must be the account's, and no session have been ended since.
    """
    if is_current(account, claims, now=now):
        return True
    is_open = account.pending(now) is not None and account.epoch == claims.epoch
    return is_open and not has_moved(account, claims)


def has_moved(account: Account, claims: Claims) -> bool:
    """Say whether another address has become the account's since that of *claims* was asked for."""
    changed_at = account.email_changed_at
    return changed_at is not None and asked_as(changed_at) >= claims.asked_at


def lately_left(session: Session, account: Account, *, grace: timedelta) -> int:
    """Count the former addresses that are told of the deletion of the deactivated *account*.

    Its owner may be whoever reads one of them, and then does not know the present address.
    """
    began_at = account.deactivated_at
    if began_at is None:
        return 0
    return len(recipients.told(session, account, at=began_at, within=grace))


def prune(database: Database, clock: Clock) -> int:
    """Clear pending addresses that are not open, a chunk at most; return how many.

    Rows that somebody has locked are left for the next time.
    """
    with database.reading() as session:
        # Every delivery asks this, every few seconds: as an UPDATE it would take SQLite's write
        # lock each time.
        is_closed = rules.has_closed_address(clock(session))
        if session.scalar(select(Account.id).where(is_closed).limit(1)) is None:
            return 0
    with database.writing() as session:
        found = session.scalars(
            select(Account.id)
            .where(is_closed)
            .order_by(Account.id)
            .limit(rows.CHUNK)
            .with_for_update(skip_locked=True)
        ).all()
        nothing = {"pending_email": None, "pending_email_at": None, "pending_epoch": None}
        return rows.change(session, update(Account).where(Account.id.in_(found)).values(nothing))


def _refuse_many(session: Session, account: Account, *, now: datetime, grace: timedelta) -> None:
    """Raise InvalidInput if no other address is possible before one of the former is forgotten."""
    again_at = recipients.next_change(session, account, now=now, grace=grace)
    if again_at is not None:
        raise InvalidInput({"email": [settling.says(_OFTEN, again_at)]})


def _lock(session: Session, claims: Claims, clock: Clock) -> tuple[Account, datetime]:
    """Lock the account of a link, and return it with the time; raises TokenNotValid without one."""
    seen = rows.find_by_public_id(session, claims.public_id)
    if seen is None:
        raise TokenNotValid
    try:
        account = rows.lock(session, seen.id)
    except AccountNotFound:
        raise TokenNotValid from None
    return account, clock(session)
