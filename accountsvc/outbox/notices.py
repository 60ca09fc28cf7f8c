"""What is mailed, and when.

The functions that take a Session add the mails that a change owes, in its transaction. A row holds a
kind and ids; the address, the dates and the link are made at delivery (:func:`handlers`), which looks at
the account again and drops what no longer applies. Only *purged* and *address changed* hold an
address, because the row that had it is gone or has another, and for 72 hours at most.

Nothing that a person chose (a name) is in a mail: whoever signs up with another's address could else
have us mail them whatever they like.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from sqlalchemy import delete, select
from sqlalchemy.orm import Session, sessionmaker

from ..adapters.mail import Mailer, MailRefused, compose, read_sender
from ..db import audit, rows
from ..db.audit import SYSTEM_ACTOR
from ..db.engine import reading, writing
from ..db.models import DUE, OWNER, Account, Effect
from ..errors import MailUnavailable
from ..tokens import PASSWORD_RESET_LIFETIME, Tokens
from . import queue
from .queue import Outcome, Owed

log = structlog.get_logger(__name__)

SCHEDULED = "mail.scheduled"
DATE_MOVED = "mail.date_moved"
REMINDER = "mail.reminder"
REACTIVATED = "mail.reactivated"
PURGED = "mail.purged"
ADDRESS_CHANGED = "mail.address_changed"
PASSWORD_CHANGED = "mail.password_changed"
PASSWORD_RESET = "mail.password_reset"

# Which of the account's addresses is told.
CURRENT, PREVIOUS = "current", "previous"

KINDS = (
    SCHEDULED,
    DATE_MOVED,
    REMINDER,
    REACTIVATED,
    PURGED,
    ADDRESS_CHANGED,
    PASSWORD_CHANGED,
    PASSWORD_RESET,
)
# What says when an account will be purged: one of them at a time is enough.
_OF_THE_DATE = (SCHEDULED, DATE_MOVED, REMINDER)

# How long an address may wait in the outbox for a mail server that does not answer.
ADDRESS_KEPT = timedelta(hours=72)
# How long other news waits for it (RFC 5321, section 4.5.4.1); what is scheduled waits as long as it is.
NEWS_KEPT = timedelta(days=5)

# The pauses after a refusal; after one more it is given up. So long, because a server that was set up
# wrongly refuses everybody, and somebody has to notice that first.
REFUSED_PAUSES = (timedelta(hours=1), timedelta(days=1))
_REFUSALS = "refusals"


def scheduled(
    session: Session,
    account: Account,
    *,
    now: datetime,
    grace: timedelta,
    reminders: Sequence[timedelta],
) -> None:
    """Owe the mail with the date and the way back, and the reminders before ``purge_at``.

    If the address was changed within the last grace period, the previous one is told too.
    """
    _owe(session, SCHEDULED, account, now=now)
    if recently_moved(account, now=now, within=grace):
        _owe(session, SCHEDULED, account, now=now, to=PREVIOUS)
    _remind(session, account, now=now, reminders=reminders)


def date_moved(
    session: Session, account: Account, *, now: datetime, reminders: Sequence[timedelta]
) -> None:
    """Owe the mail with the new date, and move the reminders with it; an unsent one is replaced."""
    queue.forget(session, subject=account.public_id, kinds=[DATE_MOVED, REMINDER])
    _owe(session, DATE_MOVED, account, now=now)
    _remind(session, account, now=now, reminders=reminders)


def reactivated(session: Session, account: Account, *, now: datetime, grace: timedelta) -> None:
    """Owe the mail that the account is back, with what to do if it was somebody else's doing."""
    queue.forget(session, subject=account.public_id, kinds=_OF_THE_DATE)
    _owe(session, REACTIVATED, account, now=now, kept=NEWS_KEPT)
    if recently_moved(account, now=now, within=grace):
        _owe(session, REACTIVATED, account, now=now, to=PREVIOUS, kept=NEWS_KEPT)


def address_changed(session: Session, account: Account, *, previous: str, now: datetime) -> None:
    """Owe the *previous* address the news that it is no longer the account's."""
    queue.record(
        session,
        ADDRESS_CHANGED,
        subject=account.public_id,
        payload={"address": previous},
        now=now,
        expires_at=now + ADDRESS_KEPT,
    )


def password_changed(
    session: Session, account: Account, *, now: datetime, grace: timedelta
) -> None:
    """Owe every known address the news that the password is another."""
    _owe(session, PASSWORD_CHANGED, account, now=now, kept=NEWS_KEPT)
    if recently_moved(account, now=now, within=grace):
        _owe(session, PASSWORD_CHANGED, account, now=now, to=PREVIOUS, kept=NEWS_KEPT)


def password_reset(session: Session, account: Account, *, now: datetime) -> None:
    """Owe the mail with the link to set a new password; an unsent one before it is replaced."""
    queue.forget(session, subject=account.public_id, kinds=[PASSWORD_RESET])
    # The link lasts an hour from its making at delivery; a mail that waited longer would only confuse.
    queue.record(
        session,
        PASSWORD_RESET,
        subject=account.public_id,
        payload={"epoch": account.epoch},
        now=now,
        expires_at=now + timedelta(hours=12),
    )


def _owe(
    session: Session,
    kind: str,
    account: Account,
    *,
    now: datetime,
    to: str = CURRENT,
    kept: timedelta | None = None,
) -> None:
    queue.record(
        session,
        kind,
        subject=account.public_id,
        payload={"epoch": account.epoch, "to": to},
        now=now,
        expires_at=None if kept is None else now + kept,
    )


def _remind(
    session: Session, account: Account, *, now: datetime, reminders: Sequence[timedelta]
) -> None:
    assert account.purge_at is not None
    for before in reminders:
        at = account.purge_at - before
        # One that would come at once says nothing that the first mail does not say.
        if at > now:
            queue.record(
                session,
                REMINDER,
                subject=account.public_id,
                payload={"epoch": account.epoch, "before": int(before.total_seconds())},
                now=now,
                after=at,
                expires_at=account.purge_at,
            )


def recently_moved(account: Account, *, now: datetime, within: timedelta) -> bool:
    """Say whether the address was changed within that time, so that the previous one is told too."""
    return (
        account.previous_email is not None
        and account.email_changed_at is not None
        and now - account.email_changed_at < within
    )


# Delivery


def handlers(
    sessions: sessionmaker[Session],
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
    delivery = _Delivery(sessions, mailer, tokens, public_url.rstrip("/"), sender)
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


def in_words(moment: datetime) -> str:
    """Say *moment* (aware, UTC) as ``7 December 2026 at 14:05 UTC``, never later than it is."""
    return f"{day(moment)} at {moment:%H:%M} UTC"


def day(moment: datetime) -> str:
    return f"{moment:%-d %B %Y}"


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
    sessions: sessionmaker[Session]
    mailer: Mailer
    tokens: Tokens
    public_url: str
    sender: str

    def deliver(self, owed: Sequence[Owed], now: datetime) -> Outcome:
        outcome = Outcome()
        for one in owed:
            with self.sessions() as session, reading(session):
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
            refusals = one.payload.get(_REFUSALS, 0) + 1
            log.warning("a mail was refused", kind=one.kind, times=refusals)
            again = _next_try(one, refusals, now)
            if again is None:
                outcome.given_up[one.uid] = type(exc).__name__
            else:
                outcome.later[one.uid] = again
                outcome.payloads[one.uid] = {**one.payload, _REFUSALS: refusals}

    def _drop(self, ids: Collection[int]) -> None:
        if ids:
            with self.sessions() as session, writing(session):
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
            return _Letter(str(one.payload["address"]), {"receipt": one.subject})
        account = None if one.subject is None else rows.find_by_public_id(session, one.subject)
        if account is None or account.state(now) == DUE:
            return None
        if one.kind == ADDRESS_CHANGED:
            return _Letter(str(one.payload["address"]))
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
            select(Effect).where(Effect.subject == account.public_id, Effect.kind.in_(_OF_THE_DATE))
        ).all()
        coming = [row for row in owed if row.kind == REMINDER and _falls_due(row, account) <= now]
        if one.kind == REMINDER:
            if any(row.kind != REMINDER and row.payload["to"] == CURRENT for row in owed):
                return None
            before = one.payload["before"]
            falls_due = _before_purge(account, before)
            if falls_due > now:
                return falls_due
            if any(row.payload["before"] < before for row in coming):
                return None
            coming = [row for row in coming if row.payload["before"] > before]
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
        if account.epoch != one.payload["epoch"]:
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
    if one.payload.get("to", CURRENT) == PREVIOUS or changed_since:
        if account.previous_email is None:
            return None
        letter.to = account.previous_email
        letter.facts["moved_at"] = changed_at
    return letter


def _grace(account: Account) -> dict[str, Any]:
    return {"purge_at": account.purge_at, "by_owner": account.deactivated_by == OWNER}


def _falls_due(row: Effect, account: Account) -> datetime:
    return _before_purge(account, row.payload["before"])


def _before_purge(account: Account, seconds: int) -> datetime:
    assert account.purge_at is not None
    return account.purge_at - timedelta(seconds=seconds)


# Text


_templates = Environment(
    loader=PackageLoader("accountsvc", "templates/mail"),
    # Only what ends in .html; a text is no HTML, and its paragraphs are escaped by the page.
    autoescape=select_autoescape(["html"], default_for_string=False, default=False),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(words=in_words, day=day)
_WIDTH = 72


@dataclass(frozen=True)
class Paragraph:
    """A paragraph on one line, or with *url* a link of that label."""

    text: str
    url: str | None = None


def render(kind: str, facts: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return subject, text and HTML of a mail. Both bodies are made of the same paragraphs."""
    template = _templates.get_template(f"{kind.removeprefix('mail.')}.txt")
    context = template.new_context(dict(facts))
    subject = " ".join("".join(template.blocks["subject"](context)).split())
    paragraphs = [_paragraph(part) for part in re.split(r"\n\s*\n", template.render(facts).strip())]
    text = "\n\n".join(_plain(one) for one in paragraphs) + "\n"
    html = _templates.get_template("layout.html").render(subject=subject, paragraphs=paragraphs)
    return subject, text, html


def _paragraph(part: str) -> Paragraph:
    line = " ".join(part.split())
    link = re.fullmatch(r"\[(.+)\] (https?://\S+)", line)
    return Paragraph(line) if link is None else Paragraph(link[1], link[2])


def _plain(paragraph: Paragraph) -> str:
    if paragraph.url is not None:
        return f"{paragraph.text}:\n{paragraph.url}"
    return textwrap.fill(paragraph.text, _WIDTH, break_long_words=False, break_on_hyphens=False)
