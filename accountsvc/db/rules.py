"""The rules of one account in SQL, each written once: due, in grace, held, explained, the order.

``Account.state`` and ``audit.Witness`` say the same of a row in Python; tests compare them at every
boundary.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Exists, exists, false, func, or_, select

from .models import (
    OWNER,
    PAUSED,
    PENDING_FOR,
    Account,
    AuditEvent,
    ClockReading,
    LegalHold,
    PurgeFailure,
    SweepMark,
)

# The action of the event by which somebody waives the rest of a grace period.
PURGE_REQUESTED = "deletion.purge_requested"

# Accounts are purged, and listed, in this order, and a position is one account's sort key in it.
# The id is a part of it: of two accounts that are due at once, a page's end would skip the second.
Position = tuple[datetime, int]
PURGE_ORDER = (Account.purge_at, Account.id)


def is_active(account: Any = Account) -> ColumnElement[bool]:
    """Select accounts that are not deactivated; *account* may be an alias."""
    active: ColumnElement[bool] = account.purge_at.is_(None)
    return active


def is_in_grace(now: datetime) -> ColumnElement[bool]:
    """Select accounts in their grace period, ``[deactivated_at, purge_at)``."""
    return Account.purge_at > now


def is_due(now: datetime) -> ColumnElement[bool]:
    """Select accounts whose purge time has come: ``now >= purge_at``."""
    return Account.purge_at <= now


def has_closed_address(now: datetime) -> ColumnElement[bool]:
    """Select accounts whose row holds a pending address that is not open at *now*.

    ``Account.pending`` says of one row whether it is.
    """
    return Account.pending_email_at.is_not(None) & or_(
        Account.pending_epoch != Account.epoch,
        Account.pending_email_at <= now - PENDING_FOR,
        Account.pending_email_at >= now + PENDING_FOR,
    )


def is_open() -> ColumnElement[bool]:
    """Select legal holds that suspend the purge."""
    return LegalHold.released_at.is_(None)


def has_open_hold(account_id: Any = Account.id) -> Exists:
    """Select rows whose *account_id*, a column, is that of an account under an open hold."""
    return exists().where(LegalHold.account_id == account_id, is_open())


def has_failed(*conditions: ColumnElement[bool]) -> Exists:
    """Select accounts whose purge has failed, and whose failure meets *conditions*."""
    return exists().where(PurgeFailure.account_id == Account.id, *conditions)


def is_explained() -> ColumnElement[bool]:
    """Select deactivated accounts whose latest witness is a promise of what their row says.

    The latest and not any: a date that staff have moved later, and SQL has set back to the first
    promise, is no promise any more. It is one look into an index for each account; written as an
    EXISTS it would become a join, for which an engine may read the whole audit trail.
    """
    latest = (
        select(
            (AuditEvent.epoch == Account.epoch)
            & (AuditEvent.deactivated_at == Account.deactivated_at)
            & (AuditEvent.purge_at <= Account.purge_at)
        )
        .where(AuditEvent.subject == Account.public_id, AuditEvent.epoch.is_not(None))
        .order_by(AuditEvent.id.desc())
        .limit(1)
        .correlate(Account)
        .scalar_subquery()
    )
    return func.coalesce(latest, false())


def is_unexplained() -> ColumnElement[bool]:
    """Select deactivated accounts whose purge nobody has promised: they are not purged."""
    return ~is_active() & ~is_explained()


def owner_asked_for_purge() -> Exists:
    """Select accounts whose owner has asked, since the deactivation, to be purged at once.

    A request of the staff is none: a stolen account of theirs could ask for everybody.
    """
    return exists().where(
        AuditEvent.subject == Account.public_id,
        AuditEvent.action == PURGE_REQUESTED,
        AuditEvent.actor_kind == OWNER,
        AuditEvent.at >= Account.deactivated_at,
    )


def comes_after(position: Position) -> ColumnElement[bool]:
    """Select accounts behind *position* in the purge's order: a keyset, for pages of a list."""
    purge_at, account_id = position
    return (Account.purge_at > purge_at) | (
        (Account.purge_at == purge_at) & (Account.id > account_id)
    )


def purging_is_stopped() -> ColumnElement[bool]:
    """Say whether an operator has paused purging, or the database's clock has moved."""
    return or_(
        exists().where(SweepMark.name == PAUSED), exists().where(ClockReading.moved_at.is_not(None))
    )
