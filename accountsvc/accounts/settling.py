"""Settling: how soon after what an account may not be purged at once, nor its data exported.

Somebody who has just taken an account over, or a token of the staff's, would otherwise destroy or
read everything before anybody has read the mail about it. Each sentence says when the time is over.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..db.models import STAFF, Account, LegalHold
from ..errors import RecentChange
from ..outbox.letters import in_words

# So long lasts it after a change of e-mail or password, for the owner.
SETTLING = timedelta(hours=24)


def refuse_owner(account: Account, *, now: datetime) -> None:
    """Raise RecentChange within 24 hours of a change of e-mail or password."""
    changes = (account.email_changed_at, account.password_changed_at)
    if any(at is not None and now - at < SETTLING for at in changes):
        raise RecentChange


def refuse_staff(session: Session, account: Account, *, delay: timedelta, now: datetime) -> None:
    """Raise RecentChange within *delay* of a deactivation by staff, or of the release of a hold.

    Whoever has got hold of one token of the staff's could otherwise release, or deactivate, and
    purge at once.
    """
    happened = session.scalar(
        select(func.max(LegalHold.released_at)).where(LegalHold.account_id == account.id)
    )
    if account.deactivated_by == STAFF and account.deactivated_at is not None:
        happened = max(happened or account.deactivated_at, account.deactivated_at)
    if happened is not None and now - happened < delay:
        raise RecentChange(
            "A legal hold was released, or the staff has deactivated the account, a short time "
            f"ago. The staff can purge it at once from {from_in_words(happened + delay)} on."
        )


def refuse_export(account: Account, *, now: datetime) -> None:
    """Raise RecentChange soon after a mailed link has set the password in the grace period.

    That is 24 hours, or half the grace period if this is shorter. While an account is deactivated,
    only such a link changes its password.
    """
    changed_at, left_at, purge_at = (
        account.password_changed_at,
        account.deactivated_at,
        account.purge_at,
    )
    if changed_at is None or left_at is None or purge_at is None or changed_at < left_at:
        return
    over_at = changed_at + min(SETTLING, (purge_at - left_at) / 2)
    if now < over_at:
        raise RecentChange(
            "The password was set by a mailed link while the account waits for its deletion. "
            f"The data can be exported from {from_in_words(over_at)} on."
        )


def from_in_words(moment: datetime) -> str:
    """Return *moment* in words, rounded up to a minute: at the time that is said it is over."""
    return in_words(moment + timedelta(minutes=1) - timedelta(microseconds=1))
