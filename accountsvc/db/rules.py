"""The rules of one account in SQL, each written once: due, in grace, held, and the purge's order.

``Account.state`` says the same of a row in Python; a test compares the two at every boundary.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Exists, exists

from .models import Account, LegalHold, PurgeFailure

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


def is_open() -> ColumnElement[bool]:
    """Select legal holds that suspend the purge."""
    return LegalHold.released_at.is_(None)


def has_open_hold(account_id: Any = Account.id) -> Exists:
    """Select rows whose *account_id*, a column, is that of an account under an open hold."""
    return exists().where(LegalHold.account_id == account_id, is_open())


def has_failed(*conditions: ColumnElement[bool]) -> Exists:
    """Select accounts whose purge has failed, and whose failure meets *conditions*."""
    return exists().where(PurgeFailure.account_id == Account.id, *conditions)


def comes_after(position: Position) -> ColumnElement[bool]:
    """Select accounts behind *position* in the purge's order: a keyset, for pages of a list."""
    purge_at, account_id = position
    return (Account.purge_at > purge_at) | (
        (Account.purge_at == purge_at) & (Account.id > account_id)
    )
