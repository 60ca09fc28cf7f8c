"""Notices: the mails that a change owes, each with the time at which it is due.

The functions that take a Session add mails to its transaction. A row holds a kind and ids; the
address, the dates and the link are made at delivery (``delivery.py``), which looks at the account
again and drops what no longer applies; ``recipients.py`` says to whom it goes. Only *purged* and
*address changed* hold an address, because the row that had it is gone or has another, and for 72
hours at most.

Nothing that a person chose (a name) is in a mail: somebody who signs up with another's address
could otherwise have the service mail them whatever they like.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from ..db.models import PENDING_FOR, Account
from ..tokens import asked_at
from . import pacing, queue, recipients
from .payloads import (
    PREVIOUS,
    AccountMail,
    AddressedMail,
    PendingMail,
    ReminderMail,
    ResetMail,
)

SCHEDULED = "mail.scheduled"
DATE_MOVED = "mail.date_moved"
REMINDER = queue.REMINDER
REACTIVATED = "mail.reactivated"
PURGED = queue.PURGED
CONFIRM_ADDRESS = "mail.confirm_address"
ADDRESS_ASKED = "mail.address_asked"
ADDRESS_CHANGED = "mail.address_changed"
PASSWORD_CHANGED = "mail.password_changed"
PASSWORD_RESET = "mail.password_reset"

KINDS = (
    SCHEDULED,
    DATE_MOVED,
    REMINDER,
    REACTIVATED,
    PURGED,
    CONFIRM_ADDRESS,
    ADDRESS_ASKED,
    ADDRESS_CHANGED,
    PASSWORD_CHANGED,
    PASSWORD_RESET,
)

# The mails that say when an account will be purged. One of them replaces the others that are owed:
# after an outage of the mail server, people would otherwise get several at once.
OF_THE_DATE = (SCHEDULED, DATE_MOVED, REMINDER)

# A row of the outbox may hold an address so long while the mail server does not answer: it would
# otherwise be the last trace of a person who has been purged, for as long as the outage lasts.
ADDRESS_KEPT = timedelta(hours=72)

# Other news waits so long for the mail server (RFC 5321, section 4.5.4.1). A mail that says a week
# later that the password was changed would be taken for a second change. Mails about the date wait
# for as long as the date is to come.
NEWS_KEPT = timedelta(days=5)

# The mail with a reset link waits so long for the mail server. The link is made at delivery and
# works for an hour from then; the day after, nobody remembers that they asked for one.
RESET_KEPT = timedelta(hours=12)


def scheduled(
    session: Session,
    account: Account,
    *,
    now: datetime,
    grace: timedelta,
    reminders: Sequence[timedelta],
) -> None:
    """Owe the mail with the date and the way back, and the reminders before ``purge_at``.

    Each address that was the account's within the last grace period is told too.
    """
    owed = _to_every_address(session, SCHEDULED, account, now=now, grace=grace)
    queue.record_all(session, [*owed, *_reminders(account, now=now, reminders=reminders)])


def scheduled_anew(
    session: Session,
    account: Account,
    *,
    now: datetime,
    grace: timedelta,
    reminders: Sequence[timedelta],
) -> None:
    """Owe what :func:`scheduled` owes in the place of every unsent mail about the date."""
    queue.forget(session, subject=account.public_id, kinds=OF_THE_DATE)
    scheduled(session, account, now=now, grace=grace, reminders=reminders)


def date_moved(
    session: Session,
    account: Account,
    *,
    now: datetime,
    grace: timedelta,
    reminders: Sequence[timedelta],
) -> None:
    """Owe the mail with the new date, and move the reminders with it; an unsent one is replaced.

    Whoever was mailed a way back is mailed one until the new date: the link of before ends with the
    old one.
    """
    queue.forget(session, subject=account.public_id, kinds=[DATE_MOVED, REMINDER])
    moved = _to_every_address(session, DATE_MOVED, account, now=now, grace=grace)
    queue.record_all(session, [*moved, *_reminders(account, now=now, reminders=reminders)])


def reactivated(
    session: Session,
    account: Account,
    *,
    now: datetime,
    grace: timedelta,
    deactivated_at: datetime | None,
    was_off: bool = False,
) -> None:
    """Owe the mail that the account is back, with what to do if it was somebody else's doing.

    *was_off*: not its owner had switched it off, and only the support can have given it back.

    It goes to every address that was told of the deactivation, which was at *deactivated_at*.
    """
    queue.forget(session, subject=account.public_id, kinds=OF_THE_DATE)
    told = recipients.owed_to(session, account, at=deactivated_at or now, within=grace)
    queue.record_all(
        session,
        _to_addresses(REACTIVATED, account, told, now=now, lifetime=NEWS_KEPT, was_off=was_off),
    )


def address_asked(session: Session, account: Account, *, now: datetime) -> None:
    """Owe the address of today the news that another was asked for, with a link to call it off.

    It is told even if the change is void by then: somebody was signed in who wanted it.
    """
    queue.record(
        session,
        ADDRESS_ASKED,
        subject=account.public_id,
        payload=PendingMail(asked_at(account)),
        now=now,
        expires_at=now + NEWS_KEPT,
    )


def confirm_address(session: Session, account: Account, *, now: datetime) -> None:
    """Owe the pending address the mail with its link; an unsent one is replaced."""
    assert account.pending_email_at is not None
    queue.forget(session, subject=account.public_id, kinds=[CONFIRM_ADDRESS])
    queue.record(
        session,
        CONFIRM_ADDRESS,
        subject=account.public_id,
        payload=PendingMail(asked_at(account)),
        now=now,
        expires_at=account.pending_email_at + PENDING_FOR,
    )


def address_changed(session: Session, account: Account, *, previous: str, now: datetime) -> None:
    """Owe the *previous* address the news that the account gets another; call it before."""
    held = recipients.held(session, account, previous, now=now)
    queue.record(
        session,
        ADDRESS_CHANGED,
        subject=account.public_id,
        payload=AddressedMail(previous, pacing.lane(held)),
        now=now,
        expires_at=now + ADDRESS_KEPT,
    )


def password_changed(
    session: Session, account: Account, *, now: datetime, grace: timedelta
) -> None:
    """Owe every known address the news that the password is another."""
    owed = _to_every_address(
        session, PASSWORD_CHANGED, account, now=now, grace=grace, lifetime=NEWS_KEPT
    )
    queue.record_all(session, owed)


def password_reset(session: Session, subject: uuid.UUID, *, epoch: int, now: datetime) -> None:
    """Owe *subject* the mail with the link to set a new password; an unsent one is replaced.

    *subject* and *epoch* are those of an account; or they stand for an address that has none, which
    is found at delivery, and nothing is sent.
    """
    queue.forget(session, subject=subject, kinds=[PASSWORD_RESET])
    queue.record(
        session,
        PASSWORD_RESET,
        subject=subject,
        payload=ResetMail(epoch),
        now=now,
        expires_at=now + RESET_KEPT,
    )


def _to_every_address(
    session: Session,
    kind: str,
    account: Account,
    *,
    now: datetime,
    grace: timedelta,
    lifetime: timedelta | None = None,
) -> list[dict[str, Any]]:
    """Return the mail to the account's address, and to each former one for one grace period.

    While the account is deactivated, a former address counts by how it was at the beginning:
    whoever was told of the deletion there, and may be the owner, is told of all that follows.
    """
    told = recipients.owed_to(session, account, at=account.deactivated_at or now, within=grace)
    return _to_addresses(kind, account, told, now=now, lifetime=lifetime)


def _to_addresses(
    kind: str,
    account: Account,
    formers: Sequence[int],
    *,
    now: datetime,
    lifetime: timedelta | None = None,
    was_off: bool = False,
) -> list[dict[str, Any]]:
    payloads = [AccountMail(account.epoch, was_off=was_off)]
    # Processes of the release before read the word alone, and mail the address that they know of.
    payloads += [AccountMail(account.epoch, PREVIOUS, former, was_off) for former in formers]
    return [
        queue.row(
            kind,
            subject=account.public_id,
            payload=payload,
            now=now,
            expires_at=None if lifetime is None else now + lifetime,
        )
        for payload in payloads
    ]


def _reminders(
    account: Account, *, now: datetime, reminders: Sequence[timedelta]
) -> Iterator[dict[str, Any]]:
    """Yield those whose time is to come.

    Another would be sent together with the first mail, and say the same.
    """
    assert account.purge_at is not None
    for before in reminders:
        remind_at = account.purge_at - before
        if remind_at > now:
            yield queue.row(
                REMINDER,
                subject=account.public_id,
                payload=ReminderMail(account.epoch, int(before.total_seconds())),
                now=now,
                after=remind_at,
                expires_at=account.purge_at,
            )
