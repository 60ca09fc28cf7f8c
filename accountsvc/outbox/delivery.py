"""Doing what is owed: a handler for each kind of effect."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ..adapters.mail import Mailer, MailRefused, compose, read_sender
from ..db import audit, rows
from ..db.audit import SYSTEM_ACTOR
from ..db.engine import Database
from ..db.models import DUE, OWNER, Account, Effect
from ..errors import MailUnavailable
from ..tokens import PASSWORD_RESET_LIFETIME, Tokens
from . import queue
from .letters import render
from .notices import (
    ADDRESS_CHANGED,
    KINDS,
    OF_THE_DATE,
    PASSWORD_CHANGED,
    PASSWORD_RESET,
    PURGED,
    REACTIVATED,
    REMINDER,
    log,
)
from .payloads import (
    CURRENT,
    PREVIOUS,
    AccountMail,
    AddressedMail,
    ReminderMail,
    ResetMail,
    refusals,
    with_refusals,
)
from .queue import Outcome, Owed

# The pauses after a refusal; after one more it is given up. So long, because a server that was set up
# wrongly refuses everybody, and somebody has to notice that first.
REFUSED_PAUSES = (timedelta(hours=1), timedelta(days=1))


def handlers(
    database: Database,
    mailer: Mailer,
    tokens: Tokens,
    *,
    public_url: str,
    sender: str,
) -> dict[str, queue.Handler]:
    """Return the outbox's handler of each kind of mail.

    A handler decides by the account's row as it is now, in a transaction that ends before anything is
    sent; what no longer applies counts as done. A refused address is given up after
    ``REFUSED_PAUSES``; everything else that goes wrong is tried again until the mail no longer applies.

    Raises ValueError if *sender* is not one mail address.
    """
    read_sender(sender)
    delivery = _Delivery(database, mailer, tokens, public_url.rstrip("/"), sender)
    return dict.fromkeys(KINDS, delivery.deliver)


def on_given_up(session: Session, owed: Owed, reason: str, now: datetime) -> None:
    """Audit, in the outbox's transaction, that a mail will never arrive; other effects are ignored."""
    if owed.kind in KINDS:
        audit.record(
            session,
            "mail.given_up",
            subject=owed.subject,
            by=SYSTEM_ACTOR,
            now=now,
            kind=owed.kind,
        )


@dataclass
class _Letter:
    """What to send to whom. ``covers`` are owed mails that say nothing more once this one is sent."""

    to: str
    facts: dict[str, Any] = field(default_factory=dict)
    covers: list[int] = field(default_factory=list)


# A letter, a time before which there is nothing to do yet, or None: it no longer applies.
_Decision = _Letter | datetime | None


@dataclass(frozen=True)
class _Delivery:
    database: Database
    mailer: Mailer
    tokens: Tokens
    public_url: str
    sender: str

    def deliver(self, owed: Sequence[Owed], now: datetime) -> Outcome:
        outcome = Outcome()
        for one in owed:
            with self.database.reading() as session:
                decision = self._decide(session, one, now)
            if isinstance(decision, datetime):
                outcome.later[one.uid] = decision
            elif decision is not None:
                self._send(one, decision, now, outcome)
        return outcome

    def _send(self, one: Owed, letter: _Letter, now: datetime, outcome: Outcome) -> None:
        # Before it is sent: otherwise, after an outage, what it covers could be sent beside it.
        self._drop(letter.covers)
        try:
            subject, text, html = render(one.kind, {**self._facts(one), **letter.facts})
            self.mailer.send(
                compose(
                    to=letter.to,
                    subject=subject,
                    text=text,
                    html=html,
                    uid=one.uid,
                    sender=self.sender,
                    sent_at=now,
                )
            )
        except MailUnavailable as exc:
            outcome.failed[one.uid] = type(exc.__cause__ or exc).__name__
        except MailRefused as exc:
            # Not the attempts: most of them may have been an outage, which says nothing about the address.
            times = refusals(one.payload) + 1
            log.warning("a mail was refused", kind=one.kind, times=times)
            again = _next_try(one, times, now)
            if again is None:
                outcome.given_up[one.uid] = type(exc).__name__
            else:
                outcome.later[one.uid] = again
                outcome.payloads[one.uid] = with_refusals(one.payload, times)

    def _drop(self, ids: Collection[int]) -> None:
        if ids:
            with self.database.writing() as session:
                session.execute(delete(Effect).where(Effect.id.in_(ids)))

    def _facts(self, one: Owed) -> dict[str, Any]:
        return {
            "site": urlsplit(self.public_url).netloc,
            "happened_at": one.created_at,
            "moved_at": None,
            "purge_at": None,
        }

    def _decide(self, session: Session, one: Owed, now: datetime) -> _Decision:
        if one.kind == PURGED:
            return _Letter(AddressedMail.read(one.payload).address, {"receipt": one.subject})
        account = None if one.subject is None else rows.find_by_public_id(session, one.subject)
        if account is None or account.state(now) == DUE:
            return None
        if one.kind == ADDRESS_CHANGED:
            return _Letter(AddressedMail.read(one.payload).address)
        if one.kind == PASSWORD_RESET:
            return self._password_reset(one, account, now)
        if one.kind == PASSWORD_CHANGED:
            return _to(account, one)
        if one.kind == REACTIVATED:
            return _to(account, one) if account.is_active else None
        return None if account.is_active else self._scheduled(session, one, account, now)

    def _scheduled(self, session: Session, one: Owed, account: Account, now: datetime) -> _Decision:
        """Decide on what says when the account will be purged; a reminder is one of them."""
        owed = session.scalars(
            select(Effect).where(Effect.subject == account.public_id, Effect.kind.in_(OF_THE_DATE))
        ).all()
        coming = [row for row in owed if row.kind == REMINDER and _falls_due(row, account) <= now]
        if one.kind == REMINDER:
            if any(
                row.kind != REMINDER and AccountMail.read(row.payload).to == CURRENT for row in owed
            ):
                return None
            before = ReminderMail.read(one.payload).before
            falls_due = _before_purge(account, before)
            if falls_due > now:
                return falls_due
            if any(ReminderMail.read(row.payload).before < before for row in coming):
                return None
            coming = [row for row in coming if ReminderMail.read(row.payload).before > before]
        letter = _to(account, one)
        if letter is None:
            return None
        if letter.to == account.email:
            letter.covers = [row.id for row in coming]
        if account.deactivated_by == OWNER:
            token = self.tokens.mailed(account, now=now)
            letter.facts["link"] = f"{self.public_url}/recover/{token}"
        return letter

    def _password_reset(self, one: Owed, account: Account, now: datetime) -> _Decision:
        # Something has ended every session since: whoever still wants a new password asks again.
        if account.epoch != ResetMail.read(one.payload).epoch:
            return None
        letter = _Letter(account.email, _grace(account))
        token = self.tokens.password_reset(account, now=now)
        letter.facts["link"] = f"{self.public_url}/reset-password/{token}"
        letter.facts["until"] = now + PASSWORD_RESET_LIFETIME
        return letter


def _next_try(one: Owed, refusals: int, now: datetime) -> datetime | None:
    """Say when to try a mail again that was refused so often; None: never."""
    if refusals > len(REFUSED_PAUSES):
        return None
    again = now + REFUSED_PAUSES[refusals - 1]
    return again if one.expires_at is None or again < one.expires_at else None


def _to(account: Account, one: Owed) -> _Letter | None:
    """Address a mail as it was owed: not to an address that the account has got only since then."""
    letter = _Letter(account.email, _grace(account))
    changed_at = account.email_changed_at
    changed_since = changed_at is not None and changed_at > one.created_at
    if AccountMail.read(one.payload).to == PREVIOUS or changed_since:
        if account.previous_email is None:
            return None
        letter.to = account.previous_email
        letter.facts["moved_at"] = changed_at
    return letter


def _grace(account: Account) -> dict[str, Any]:
    return {"purge_at": account.purge_at, "by_owner": account.deactivated_by == OWNER}


def _falls_due(row: Effect, account: Account) -> datetime:
    return _before_purge(account, ReminderMail.read(row.payload).before)


def _before_purge(account: Account, seconds: int) -> datetime:
    assert account.purge_at is not None
    return account.purge_at - timedelta(seconds=seconds)
