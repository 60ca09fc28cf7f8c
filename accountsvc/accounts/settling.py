"""Settling: how soon after what an account may not be purged at once, nor its data exported.

Somebody who has just taken an account over, or a token of the staff's, would otherwise destroy or
read everything before anybody has read the mail about it. Each sentence says when the time is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..db.models import STAFF, Account, AuditEvent, LegalHold
from ..errors import RecentChange
from ..outbox.letters import in_words

# So long lasts it after a change of e-mail or password, for the owner.
SETTLING = timedelta(hours=24)

# What is said to whom, with the time from which it is allowed as ``{at}``.
AFTER_A_CHANGE = (
    "The email address or the password was changed within the last 24 hours. You can delete the "
    "account at once from {at} on, or let the grace period run out."
)
AFTER_THE_STAFF = (
    "A legal hold was released, or the staff has deactivated the account, a short time ago. The "
    "staff can purge it at once from {at} on."
)
AFTER_A_RESET = (
    "The password was set by a mailed link a short time ago. The data can be exported from {at} on."
)

_DEACTIVATED, _REACTIVATED, _RESET = (
    "account.deactivated",
    "account.reactivated",
    "account.password_reset",
)


def refuse_owner(account: Account, *, now: datetime) -> None:
    """Raise RecentChange within 24 hours of a change of e-mail or password."""
    changes = (account.email_changed_at, account.password_changed_at)
    _refuse(AFTER_A_CHANGE, [at + SETTLING for at in changes if at is not None], now=now)


def refuse_staff(session: Session, account: Account, *, delay: timedelta, now: datetime) -> None:
    """Raise RecentChange within *delay* of a deactivation by staff, or of the release of a hold.

    Whoever has got hold of one token of the staff's could otherwise release, or deactivate, and
    purge at once. A deactivation that was taken back counts too: the row knows the last one alone,
    and behind the owner's own the thief would purge whom they had just driven out.
    """
    released_at = session.scalar(
        select(func.max(LegalHold.released_at)).where(LegalHold.account_id == account.id)
    )
    deactivated_at = session.scalar(
        select(AuditEvent.at)
        .where(
            AuditEvent.subject == account.public_id,
            AuditEvent.action == _DEACTIVATED,
            AuditEvent.actor_kind == STAFF,
        )
        .order_by(AuditEvent.id.desc())
        .limit(1)
    )
    happened = [at for at in (released_at, deactivated_at) if at is not None]
    _refuse(AFTER_THE_STAFF, [at + delay for at in happened], now=now)


def refuse_export(session: Session, account: Account, *, now: datetime) -> None:
    """Raise RecentChange in a grace period soon after a mailed link has set the password.

    That is 24 hours, or half the grace period if this is shorter. After a reset in the grace period
    it is so also after the return: whoever reads the mailbox would otherwise give the account back
    for the data. While the account is active, a reset before or behind it keeps nothing back.
    """
    ends = []
    changed_at, left_at = account.password_changed_at, account.deactivated_at
    # While an account is deactivated, only a mailed link changes its password.
    if changed_at is not None and left_at is not None and changed_at >= left_at:
        ends.append(changed_at + _half_a_grace_period(left_at, account.purge_at))
    # The row has forgotten the grace periods before. Backwards through the trail: what comes before
    # a return, as far as the deactivation, was in one of them.
    was_away = False
    for event in _latest(session, account, since=now - SETTLING):
        if event.action != _RESET:
            was_away = event.action == _REACTIVATED
        elif was_away:
            ends.append(event.at + _half_a_grace_period(event.deactivated_at, event.purge_at))
        elif left_at is not None:
            ends.append(event.at + _half_a_grace_period(left_at, account.purge_at))
    _refuse(AFTER_A_RESET, ends, now=now)


def says(sentence: str, over_at: datetime) -> str:
    """Return *sentence*, one of those above, about what is over at *over_at*.

    The time is rounded up to a minute: at the time that is said it is over.
    """
    return sentence.format(at=in_words(over_at + timedelta(minutes=1) - timedelta(microseconds=1)))


def _latest(session: Session, account: Account, *, since: datetime) -> Sequence[AuditEvent]:
    """Return the resets, deactivations and returns of *account* after *since*, newest first."""
    return session.scalars(
        select(AuditEvent)
        .where(
            AuditEvent.subject == account.public_id,
            AuditEvent.action.in_((_DEACTIVATED, _REACTIVATED, _RESET)),
            AuditEvent.at > since,
        )
        .order_by(AuditEvent.id.desc())
    ).all()


def _half_a_grace_period(left_at: datetime | None, purge_at: datetime | None) -> timedelta:
    """Return how long a reset keeps the data back; 24 hours where the dates are not known.

    The event of a reset has no dates if nobody had promised them.
    """
    if left_at is None or purge_at is None:
        return SETTLING
    return min(SETTLING, (purge_at - left_at) / 2)


def _refuse(sentence: str, ends: Sequence[datetime], *, now: datetime) -> None:
    """Raise RecentChange with *sentence* if *now* is before the last of *ends*."""
    over_at = max(ends, default=now)
    if now < over_at:
        raise RecentChange(says(sentence, over_at))
