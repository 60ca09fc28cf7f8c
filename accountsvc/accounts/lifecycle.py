"""Deactivate, reactivate, reschedule, accept, hold, release: each whole or not at all.

Every function that changes anything takes a Session inside a writing transaction of the caller,
locks the rows that it decides on, then reads the *clock* (by default the database's), and writes
the change, its audit event and its effects together. What raises has changed nothing. The event of
a change that makes, moves or ends a promise is its witness (``db/audit.py``).

The two windows are half-open and leave no gap: reactivation needs ``now < purge_at``, the purge
``now >= purge_at``. All times are aware.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ..config import Settings
from ..db import audit, rules
from ..db.audit import Actor, Witness
from ..db.engine import Clock, database_now
from ..db.models import DUE, HELD, OWNER, RETURNED, STAFF, Account, PurgeFailure
from ..db.models import LegalHold as Hold
from ..db.rows import find_by_public_id, is_id, lock, lock_for_deactivation, lock_many
from ..errors import (
    AccountNotFound,
    GraceOver,
    HoldNotFound,
    InvalidSchedule,
    LastStaff,
    LegalHold,
    NotDeactivated,
    ReactivationForbidden,
    TokenNotValid,
    Unexplained,
)
from ..outbox import kept, notices
from . import settling
from .reasons import PLAIN_RETURN, Return, check_reason


@dataclass(frozen=True)
class Promise:
    """The terms of every deactivation, read from the settings once a process.

    The purge is due *grace* after the deactivation; staff may move it, at most to *max_grace* after
    the deactivation. The owner is mailed each of *reminders* before the purge. After the last hold
    it is at least *hold_release_delay* away. As long as *grace* after a change of address, the
    previous address is told too.
    """

    grace: timedelta
    max_grace: timedelta
    reminders: Sequence[timedelta]
    hold_release_delay: timedelta

    @classmethod
    def from_settings(cls, settings: Settings) -> Promise:
        """Return the promise that *settings* make."""
        return cls(
            grace=settings.grace_period,
            max_grace=settings.max_grace,
            reminders=settings.reminders,
            hold_release_delay=settings.hold_release_delay,
        )


def whole_second(moment: datetime) -> datetime:
    """Round *moment* up to a whole second.

    The wire shows whole seconds: a purge in the middle of one would come later than was promised.
    """
    if moment.microsecond:
        return moment.replace(microsecond=0) + timedelta(seconds=1)
    return moment


def lock_as(
    session: Session,
    account_id: int,
    *,
    by: Actor,
    epoch: int | None = None,
    lock_rows: Callable[[Session, Collection[int]], Mapping[int, Account]] = lock_many,
) -> Account:
    """Lock the account and the row of the staff member who acts by *lock_rows*, in id order.

    Return the account as it is under the lock. *epoch* is that of the token that acts, the owner's
    or the staff member's; None for an operator, who has none.

    Raises AccountNotFound; TokenNotValid if the token has died meanwhile.
    """
    actor_id = account_id
    if epoch is not None and by.kind == STAFF and by.public_id is not None:
        actor = find_by_public_id(session, by.public_id)
        if actor is None:
            raise TokenNotValid
        actor_id = actor.id
    locked = lock_rows(session, {account_id, actor_id})
    if account_id not in locked:
        raise AccountNotFound
    if epoch is not None:
        actor = locked.get(actor_id)
        if actor is None or actor.epoch != epoch or (by.kind == STAFF and not actor.is_active):
            raise TokenNotValid
    return locked[account_id]


def deactivate(
    session: Session,
    account_id: int,
    *,
    promise: Promise,
    by: Actor,
    epoch: int | None = None,
    reason: str | None = None,
    clock: Clock = database_now,
) -> Account:
    """End all access to the account at once and promise its purge after the grace period.

    A deactivated account is returned as it is: a repeat never moves the promised time, writes no
    event and mails nothing. *epoch* is that of the caller's token (the owner's, or the staff
    member's), compared again under the lock. Saved passwords and files are not touched.

    Raises AccountNotFound; TokenNotValid if the caller was deactivated or signed out meanwhile;
    LastStaff if no other active staff account would be left; InvalidInput for an unfit *reason*.
    """
    if reason is not None:
        check_reason(reason)
    account = lock_as(session, account_id, by=by, epoch=epoch, lock_rows=lock_for_deactivation)
    now = clock(session)
    if not account.is_active:
        return account
    if account.is_staff and not _other_active_staff(session, account):
        raise LastStaff
    account.deactivated_at = now
    account.purge_at = whole_second(now + promise.grace)
    account.deactivated_by = by.kind
    account.reason = reason
    account.raise_epoch()
    _record(session, "account.deactivated", account, by=by, now=now)
    notices.scheduled(session, account, now=now, grace=promise.grace, reminders=promise.reminders)
    session.flush()
    return account


def reactivate(
    session: Session,
    account_id: int,
    *,
    promise: Promise,
    by: Actor,
    epoch: int | None = None,
    how: Return = PLAIN_RETURN,
    clock: Clock = database_now,
) -> Account:
    """Give the account back, with all its data; tokens from before stay dead.

    *epoch* is that of the token that acts: the staff member's, or the owner's recovery or mailed
    token. The latter works once, because this raises the account's epoch.

    Raises AccountNotFound, NotDeactivated, GraceOver (``now >= purge_at``), TokenNotValid (another
    epoch), ReactivationForbidden if the owner asks for what staff or an operator deactivated, and
    InvalidInput for a blank or unfit reason.
    """
    if how.reason is not None:
        check_reason(how.reason, may_be_blank=False)
    account = lock_as(session, account_id, by=by, epoch=epoch)
    now = clock(session)
    if account.is_active:
        raise NotDeactivated
    if by.kind == OWNER and account.deactivated_by != OWNER:
        raise ReactivationForbidden
    if account.state(now) == DUE and not how.although_due:
        raise GraceOver
    deactivated_at, was_off = account.deactivated_at, account.deactivated_by != OWNER
    end_deactivation(session, account)
    if how.reason is not None:
        account.return_reason = how.reason
    audit.record(
        session,
        "account.reactivated",
        subject=account.public_id,
        by=by,
        now=now,
        # With the epoch and without dates: rows of accounts alone that are put back from a backup
        # would otherwise be what the promise from before the return says, and be purged.
        witness=Witness.of(account),
        # The reason itself would outlive the person in here.
        **({} if how.reason is None else {"reason": "stored"}),
    )
    kept.keep(session, RETURNED, subject=account.public_id, now=now, deactivated_at=deactivated_at)
    notices.reactivated(
        session,
        account,
        now=now,
        grace=promise.grace,
        deactivated_at=deactivated_at,
        was_off=was_off,
    )
    session.flush()
    return account


def end_deactivation(session: Session, account: Account) -> None:
    """Make the locked *account* active; the caller writes the event and owes what follows."""
    account.deactivated_at = account.purge_at = account.deactivated_by = account.reason = None
    account.raise_epoch()
    # Forget the failures of the purge that is called off: counted on, they would have the purge
    # after another deactivation given up as stuck at its first failure.
    session.execute(delete(PurgeFailure).where(PurgeFailure.account_id == account.id))


def reschedule(
    session: Session,
    account_id: int,
    *,
    purge_at: datetime,
    promise: Promise,
    by: Actor,
    clock: Clock = database_now,
) -> Account:
    """Move the promised purge later, within ``promise.max_grace``, and say so by mail.

    An account that is unexplained stays so.

    Raises AccountNotFound (also when active), InvalidSchedule, GraceOver when it is due.
    """
    account = _lock_deletion(session, account_id)
    now = clock(session)
    if account.state(now) == DUE:
        raise GraceOver("The account is due. Place a hold to suspend its purge.")
    assert account.deactivated_at is not None
    assert account.purge_at is not None
    # Compare before rounding up: rounding a time in the last second of the year 9999 overflows.
    if not account.purge_at <= purge_at <= whole_second(account.deactivated_at + promise.max_grace):
        raise InvalidSchedule
    purge_at = whole_second(purge_at)
    if purge_at != account.purge_at:
        explained = audit.is_explained(session, account)
        account.purge_at = purge_at
        _record(session, "deletion.rescheduled", account, by=by, now=now, explained=explained)
        notices.date_moved(
            session, account, now=now, grace=promise.grace, reminders=promise.reminders
        )
        session.flush()
    return account


def set_reason(
    session: Session,
    account_id: int,
    *,
    reason: str,
    by: Actor,
    clock: Clock = database_now,
) -> Account:
    """Store the staff's reason, on the row that the purge deletes; the same again changes nothing.

    Raises InvalidInput for an unfit *reason*, AccountNotFound (also when active).
    """
    check_reason(reason)
    account = _lock_deletion(session, account_id)
    now = clock(session)
    if account.reason != reason:
        account.reason = reason
        audit.record(session, "deletion.reason_changed", subject=account.public_id, by=by, now=now)
        session.flush()
    return account


def due_now(
    session: Session,
    account_id: int,
    *,
    by: Actor,
    epoch: int | None = None,
    promised_elsewhere: bool = False,
    staff_delay: timedelta = timedelta(),
    clock: Clock = database_now,
) -> Account:
    """Waive the rest of the grace period: ``purge_at`` becomes now; the next sweep purges.

    Idempotent: an account that is already due keeps its time. An owner is refused within 24 hours
    of a change of e-mail or password, and is not told of a hold (the sweep respects it all the
    same). Staff are refused within *staff_delay* of a deactivation by staff or of a release.

    An owner's own wish is a promise, whatever the row said before. Staff and operators can only
    waive what was promised, unless it is *promised_elsewhere*: by a line of the ledger, which says
    that this very account was purged. A hold then keeps it from the purge, and not from being due.

    Raises AccountNotFound, NotDeactivated, TokenNotValid (as :func:`reactivate` does), RecentChange
    to an owner or staff, and LegalHold and Unexplained to staff and operators.
    """
    account = lock_as(session, account_id, by=by, epoch=epoch)
    now = clock(session)
    if account.is_active:
        raise NotDeactivated
    if by.kind == OWNER:
        settling.refuse_owner(account, now=now)
    elif not promised_elsewhere and open_holds(session, account.id):
        raise LegalHold
    if by.kind == STAFF:
        settling.refuse_staff(session, account, delay=staff_delay, now=now)
    explained = audit.is_explained(session, account)
    if not explained and by.kind != OWNER and not promised_elsewhere:
        raise Unexplained
    is_due = account.state(now) == DUE
    if not is_due:
        assert account.deactivated_at is not None
        # Round down, unlike a promise: rounded up, the account would not be due yet when the caller
        # begins to purge it. A purge before the deactivation would break a CHECK.
        account.purge_at = max(now.replace(microsecond=0), account.deactivated_at)
    if not is_due or not explained:
        _record(session, "deletion.purge_requested", account, by=by, now=now)
        session.flush()
    return account


def accept(
    session: Session,
    account_id: int,
    *,
    reason: str,
    promise: Promise,
    by: Actor,
    clock: Clock = database_now,
) -> Account:
    """Promise the purge of an unexplained account, a full grace period from now; say so by mail.

    One that is explained is returned as it is: its promise is not moved. A later date stays, as far
    as ``promise.max_grace`` allows one: it may have been promised, by a process of a version
    without witnesses. The *reason* is stored as :func:`set_reason` does.

    Raises AccountNotFound, NotDeactivated, InvalidInput for a blank or unfit *reason*.
    """
    check_reason(reason, may_be_blank=False)
    account = lock(session, account_id)
    now = clock(session)
    if account.is_active:
        raise NotDeactivated
    if audit.is_explained(session, account):
        return account
    assert account.deactivated_at is not None
    assert account.purge_at is not None
    # A deactivation that is to come was never made: it would put the date off for as long.
    account.deactivated_at = min(account.deactivated_at, now)
    latest = whole_second(account.deactivated_at + promise.max_grace)
    account.purge_at = max(whole_second(now + promise.grace), min(account.purge_at, latest))
    account.reason = reason
    _record(session, "deletion.accepted", account, by=by, now=now)
    notices.scheduled_anew(
        session, account, now=now, grace=promise.grace, reminders=promise.reminders
    )
    session.flush()
    return account


def place_hold(
    session: Session,
    account_id: int,
    *,
    reason: str,
    by: Actor,
    epoch: int | None = None,
    clock: Clock = database_now,
) -> Hold:
    """Suspend the purge of the account, but not its deactivation, until the hold is released.

    The account's row is locked first: a purge that has the lock wins, one that comes later sees the
    hold. The account may be active, and may have other holds.

    Raises AccountNotFound, InvalidInput for a blank or unfit *reason*, TokenNotValid (another
    *epoch* of the staff member's).
    """
    check_reason(reason, may_be_blank=False)
    account = lock_as(session, account_id, by=by, epoch=epoch)
    now = clock(session)
    hold = Hold(
        account_id=account.id,
        reason=reason,
        placed_at=now,
        placed_by=by.public_id,
        placed_by_kind=by.kind,
    )
    session.add(hold)
    session.flush()
    audit.record(session, "hold.placed", subject=account.public_id, by=by, now=now, hold=hold.id)
    kept.keep(session, HELD, subject=account.public_id, now=now)
    session.flush()
    return hold


def release_hold(
    session: Session,
    account_id: int,
    hold_id: int,
    *,
    promise: Promise,
    by: Actor,
    epoch: int | None = None,
    clock: Clock = database_now,
) -> Hold:
    """Release a hold; it stays on record until the purge.

    Releasing the last open one sets ``purge_at`` to at least ``promise.hold_release_delay`` from
    now, so that a mistaken release is not final; a date that this moves is mailed, with the way
    back until then, as by :func:`reschedule`. An account that is unexplained stays so.

    Raises AccountNotFound, HoldNotFound (also when it was released before), TokenNotValid (as
    :func:`place_hold` does).
    """
    account = lock_as(session, account_id, by=by, epoch=epoch)
    now = clock(session)
    hold = session.get(Hold, hold_id, populate_existing=True) if is_id(hold_id) else None
    if hold is None or hold.account_id != account.id or hold.released_at is not None:
        raise HoldNotFound
    hold.released_at = now
    hold.released_by = by.public_id
    kept.end(session, HELD, subject=account.public_id, at=hold.placed_at, now=now)
    session.flush()
    explained = audit.is_explained(session, account)
    promised = account.purge_at
    if promised is not None and not open_holds(session, account.id):
        account.purge_at = max(promised, whole_second(now + promise.hold_release_delay))
    audit.record(
        session,
        "hold.released",
        subject=account.public_id,
        by=by,
        now=now,
        witness=Witness.of(account) if explained else None,
        hold=hold.id,
    )
    if account.purge_at != promised:
        # The owner can come back once more, and the links of before have ended with their date.
        notices.date_moved(
            session, account, now=now, grace=promise.grace, reminders=promise.reminders
        )
    session.flush()
    return hold


def holds(session: Session, account_ids: Sequence[int]) -> Sequence[Hold]:
    """Return all holds of the accounts, released ones too, oldest first."""
    return session.scalars(
        select(Hold).where(Hold.account_id.in_(account_ids)).order_by(Hold.id)
    ).all()


def open_holds(session: Session, account_id: int) -> Sequence[Hold]:
    """Return the holds that suspend the purge of the account, oldest first."""
    return session.scalars(
        select(Hold).where(Hold.account_id == account_id, rules.is_open()).order_by(Hold.id)
    ).all()


def _record(
    session: Session,
    action: str,
    account: Account,
    *,
    by: Actor,
    now: datetime,
    explained: bool = True,
) -> None:
    """Add an event about *account*, which if *explained* is the witness of what its row says."""
    witness = Witness.of(account) if explained else None
    audit.record(session, action, subject=account.public_id, by=by, now=now, witness=witness)


def _lock_deletion(session: Session, account_id: int) -> Account:
    """Lock a deactivated account. Raises AccountNotFound, also when it is active."""
    account = lock(session, account_id)
    if account.is_active:
        raise AccountNotFound
    return account


def _other_active_staff(session: Session, account: Account) -> bool:
    other_id = session.scalar(
        select(Account.id)
        .where(Account.is_staff, rules.is_active(), Account.id != account.id)
        .limit(1)
    )
    return other_id is not None
