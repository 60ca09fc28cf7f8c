"""The handlers of effects, and that of the mails: it decides on each kind, and sends it.

A handler may meet the same effect again after a crash, so doing it twice does no harm: a file that
is gone counts as deleted, a ledger object has the same name and bytes, a mail the same Message-ID.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import structlog
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ..adapters.avatarstore import AvatarStore
from ..adapters.ledger import Ledger
from ..adapters.mail import Mailer, MailRefused, compose
from ..db import audit, rows
from ..db.addresses import is_another
from ..db.audit import SYSTEM_ACTOR
from ..db.engine import Database
from ..db.models import DUE, OWNER, Account, Effect
from ..db.text import rfc3339
from ..errors import MailUnavailable
from ..tokens import PASSWORD_RESET_LIFETIME, Tokens
from . import addressing, files, gone, kept, moments, queue, recipients, sealing
from .addressing import Addressed
from .letters import render
from .notices import (
    ADDRESS_ASKED,
    ADDRESS_CHANGED,
    CONFIRM_ADDRESS,
    DATE_MOVED,
    KINDS,
    OF_THE_DATE,
    PASSWORD_CHANGED,
    PASSWORD_RESET,
    PURGED,
    REACTIVATED,
    REMINDER,
    SCHEDULED,
)
from .pacing import Pace, lane, next_try
from .payloads import (
    CURRENT,
    AccountMail,
    AddressedMail,
    ReminderMail,
    ResetMail,
    refusals,
    with_delay,
    with_refusals,
)
from .queue import Outcome, Owed

log = structlog.get_logger(__name__)

# A mail is compared with so many of its kind that are owed to its account. Of more, as after a
# flood while no worker ran, the others come to be compared in their turn; looking at all of them
# for each would take time that grows with the square.
_COMPARED = 100


@dataclass(frozen=True)
class Origin:
    """Where mails come from: links begin with ``public_url``; ``sender`` is one mail address.

    The sender is written as ``readers.read_sender`` reads it.
    """

    public_url: str
    sender: str


def handlers(
    database: Database,
    avatars: AvatarStore,
    ledger: Ledger,
    mailer: Mailer,
    tokens: Tokens,
    *,
    origin: Origin,
    pace: Pace,
) -> dict[str, queue.Handler]:
    """Return the handler of every kind of effect.

    Files: one that an account shows is never deleted, whatever the row says; it is given up.

    Mails: whether one still applies is decided by the account's row at delivery, in a transaction
    that ends before anything is sent; what no longer applies counts as done. A refused address is
    given up after ``pacing.REFUSED_PAUSES``; after any other failure the mail is tried again until
    it no longer applies. A mail waits for its turn by *pace*; meanwhile a later one of its kind for
    the same account and recipient replaces it.
    """
    mails = _Mails(database, mailer, tokens, origin, pace)
    return {
        queue.LEDGER: gone.guarded(database, ledger, sealing.handler(database, ledger)),
        queue.KEEP: gone.guarded(database, ledger, kept.keeper(database, ledger)),
        queue.REMOVE: kept.remover(ledger),
        queue.DELETE_FILE: files.remover(database, avatars),
        **dict.fromkeys(KINDS, mails.deliver),
    }


def on_dropped(session: Session, effects: Sequence[Owed], now: datetime, *, why: str) -> None:
    """Write, in the outbox's transaction, which mails will never arrive; ignore other effects."""
    moments.not_told(session, effects, now, why=why)
    for owed in effects if why == queue.GIVEN_UP else []:
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
    """A mail that has been decided on: to whom it goes, and what its template is given.

    ``covers`` are the ids of owed mails that say nothing more once this one is sent; ``replaces``
    are those that say nothing more though it has to wait. From ``end`` on it is not sent any more.
    ``lane`` is the one of its recipient's pace in which it takes its turn.
    """

    to: str
    context: dict[str, Any] = field(default_factory=dict)
    covers: list[int] = field(default_factory=list)
    replaces: list[int] = field(default_factory=list)
    end: datetime | None = None
    lane: int = 0


# A decision is a letter to send, a time before which there is nothing to do, or None for a mail
# that no longer applies: sent all the same, it would tell people something that is not so.
_Decision = _Letter | datetime | None


# A mail about a date that nobody has promised waits until somebody has accepted it: it would tell
# people of a purge that does not come, and its link would end with the wrong date.
UNEXPLAINED_RETRY = timedelta(minutes=10)


@dataclass(frozen=True)
class _Case:
    """A mail to decide on, and the account that it is about, as both are at *now*."""

    session: Session
    effect: Owed
    account: Account
    now: datetime


@dataclass(frozen=True)
class _Mails:
    """Decides on the mails that are owed, and sends those that still apply."""

    database: Database
    mailer: Mailer
    tokens: Tokens
    origin: Origin
    pace: Pace

    def deliver(self, effects: Sequence[Owed], now: datetime) -> Outcome:
        outcome = Outcome()
        for effect in effects:
            with self.database.reading() as session:
                decision = self._decide(session, effect, now)
            if isinstance(decision, datetime):
                outcome.later[effect.uid] = decision
            elif decision is not None:
                self._send_in_turn(effect, decision, now, outcome)
            elif effect.kind == PASSWORD_RESET and effect.subject is not None:
                self._send_nothing(effect, effect.subject, now, outcome)
        return outcome

    def _send_in_turn(self, effect: Owed, letter: _Letter, now: datetime, outcome: Outcome) -> None:
        try:
            recipient = self.pace.recipient(letter.to, letter.lane)
        except MailRefused:
            # Nobody can be flooded by an address that cannot be mailed; sending it counts the
            # refusal.
            self._send(effect, letter, now, outcome)
            return
        if self._has_turn(effect, recipient, letter, now, outcome):
            self._send(effect, letter, now, outcome)

    def _send_nothing(
        self, effect: Owed, subject: uuid.UUID, now: datetime, outcome: Outcome
    ) -> None:
        """Have a decoy wait for its turn and for the mail server as a mail does.

        Otherwise it would be gone while mails are owed, and the counts would tell.
        """
        # The subject of a decoy is an HMAC of its address, so it has a pace of its own.
        nothing = _Letter(to="", end=effect.expires_at)
        if not self._has_turn(effect, subject.hex, nothing, now, outcome):
            return
        try:
            self.mailer.check()
        except MailUnavailable as exc:
            outcome.failed[effect.uid] = type(exc.__cause__ or exc).__name__

    def _has_turn(
        self, effect: Owed, recipient: str, letter: _Letter, now: datetime, outcome: Outcome
    ) -> bool:
        """Take the turn of a mail to *recipient*; if it has to wait, put it off in *outcome*."""
        with self.database.writing() as session:
            turn = self.pace.take_turn(
                session, effect.uid, kind=effect.kind, recipient=recipient, now=now, end=letter.end
            )
            # Drop other mails before sending: dropped afterwards, a crash in between would let them
            # be sent beside this one. The covered ones stay while this one waits.
            needless = letter.replaces if turn is not None else letter.replaces + letter.covers
            if needless:
                session.execute(delete(Effect).where(Effect.id.in_(needless)))
        if turn is None:
            return True
        log.info("a mail waits for its turn", kind=effect.kind, until=rfc3339(turn))
        outcome.later[effect.uid] = turn
        outcome.payloads[effect.uid] = with_delay(effect.payload)
        return False

    def _send(self, effect: Owed, letter: _Letter, now: datetime, outcome: Outcome) -> None:
        try:
            subject, text, html = render(effect.kind, {**self._context(effect), **letter.context})
            self.mailer.send(
                compose(
                    to=letter.to,
                    subject=subject,
                    text=text,
                    html=html,
                    uid=effect.uid,
                    sender=self.origin.sender,
                    sent_at=now,
                )
            )
            if effect.kind == PASSWORD_RESET:
                outcome.then[effect.uid] = partial(_audit_reset_mail, effect.subject)
            elif effect.kind == PURGED:
                outcome.then[effect.uid] = partial(moments.told, effect.subject)
        except MailUnavailable as exc:
            outcome.failed[effect.uid] = type(exc.__cause__ or exc).__name__
        except MailRefused:
            # Refusals have a count of their own. Attempts also grow in an outage, so by their count
            # the first refusal after one would be the last.
            count = refusals(effect.payload) + 1
            log.warning("a mail was refused", kind=effect.kind, times=count)
            again_at = next_try(count, now=now, end=effect.expires_at)
            if again_at is None:
                outcome.given_up.add(effect.uid)
            else:
                outcome.later[effect.uid] = again_at
                outcome.payloads[effect.uid] = with_refusals(effect.payload, count)

    def _context(self, effect: Owed) -> dict[str, Any]:
        """Return what every template may use; a letter's own context is laid over it."""
        return {
            "site": urlsplit(self.origin.public_url).netloc,
            "happened_at": effect.created_at,
            "keep_page": f"{self.origin.public_url}/keep-account/",
            "link": None,
            "moved_at": None,
            "purge_at": None,
        }

    def _decide(self, session: Session, effect: Owed, now: datetime) -> _Decision:
        """Decide on a mail by its kind and by the account's row.

        Raises LookupError for a kind of mail without a decision: sent by the rules of another kind,
        it would tell people something that is not so.
        """
        if effect.kind == PURGED:
            context = addressing.purged(effect, url=self.origin.public_url)
            return _to_address(effect, context, end=effect.expires_at)
        if effect.kind not in DECISIONS:
            raise LookupError(f"no decision about {effect.kind}")
        subject = effect.subject
        account = None if subject is None else rows.find_by_public_id(session, subject)
        if account is None or account.state(now) == DUE:
            return None
        case = _Case(session, effect, account, now)
        decision = DECISIONS[effect.kind](self, case)
        if not isinstance(decision, _Letter):
            return decision
        # With the account's row the purge drops what is owed to it.
        ends = [end for end in (effect.expires_at, account.purge_at) if end is not None]
        decision.end = min(ends, default=None)
        if effect.kind not in _OF_THEIR_OWN_LANE:
            decision.lane = lane(recipients.held(session, account, decision.to, now=now))
        # Reminders are of different days, and cover each other by rules of their own.
        return decision if effect.kind == REMINDER else self._newest(case, decision)

    def _newest(self, case: _Case, letter: _Letter) -> _Decision:
        """Have *letter* replace the earlier mails of its kind; None if a later one replaces it.

        These are the mails to the same recipient about the same account. Another account's stay:
        whoever once had somebody's address could otherwise keep their news from them.
        """
        own_id = case.session.scalar(select(Effect.id).where(Effect.uid == case.effect.uid))
        # A mail without a row is owed no more: another one has replaced it, or it was forgotten.
        if own_id is None:
            return None
        same = (
            select(Effect)
            .where(Effect.subject == case.effect.subject, Effect.kind == case.effect.kind)
            .order_by(Effect.id.desc())
            .limit(_COMPARED)
        )
        later = case.session.scalars(same.where(Effect.id > own_id))
        if any(self._goes_to(letter.to, case, row) for row in later):
            return None
        earlier = case.session.scalars(same.where(Effect.id < own_id))
        letter.replaces = [row.id for row in earlier if self._goes_to(letter.to, case, row)]
        return letter

    def _goes_to(self, address: str, case: _Case, row: Effect) -> bool:
        """Say whether *row*, another mail of the kind, would be sent too, and to this recipient."""
        decision = DECISIONS[row.kind](self, replace(case, effect=queue.as_owed(row)))
        return isinstance(decision, _Letter) and not is_another(decision.to, address)

    def _confirm_address(self, case: _Case) -> _Decision:
        return self._about_address(case, addressing.confirm)

    def _address_asked(self, case: _Case) -> _Decision:
        return self._about_address(case, addressing.asked)

    def _about_address(self, case: _Case, decide: Callable[..., Addressed | None]) -> _Decision:
        url = self.origin.public_url
        found = decide(case.account, case.effect, tokens=self.tokens, url=url, now=case.now)
        return None if found is None else _Letter(found[0], dict(found[1]))

    def _address_changed(self, case: _Case) -> _Decision:
        letter = _to_address(case.effect, {"link": None})
        account = case.account
        if not account.is_active and audit.is_explained(case.session, account):
            letter.context.update(_grace(account))
            self._open_way_back(case, letter)
        return letter

    def _password_changed(self, case: _Case) -> _Decision:
        """Decide on the news; in the grace period it has the way back, which a reset has ended."""
        letter = _addressed(case)
        if letter is None or case.account.is_active:
            return letter
        # A link ends with the date: by one that nobody has promised, it would be the wrong one.
        if audit.is_explained(case.session, case.account):
            self._open_way_back(case, letter)
        return letter

    def _reactivated(self, case: _Case) -> _Decision:
        return _addressed(case) if case.account.is_active else None

    def _password_reset(self, case: _Case) -> _Decision:
        # A moved epoch has ended every session since the request, and has voided the link: the mail
        # would hold one that does not open.
        account = case.account
        if account.epoch != ResetMail.read(case.effect.payload).epoch:
            return None
        letter = _Letter(account.email, _grace(account))
        token = self.tokens.password_reset(account, now=case.now)
        letter.context["link"] = f"{self.origin.public_url}/reset-password/{token}"
        letter.context["until"] = case.now + PASSWORD_RESET_LIFETIME
        return letter

    def _date(self, case: _Case) -> _Decision:
        """Decide on a mail that says when the account will be purged, except for a reminder."""
        if case.account.is_active:
            return None
        if not audit.is_explained(case.session, case.account):
            return case.now + UNEXPLAINED_RETRY
        return self._with_link(case, covers=_due_reminders(_owed_of_the_date(case), case))

    def _reminder(self, case: _Case) -> _Decision:
        """Decide on a reminder: of several that are due, as after an outage, only the last is sent.

        None is sent while the mail with the date is owed, which says all that a reminder says.
        """
        if case.account.is_active:
            return None
        if not audit.is_explained(case.session, case.account):
            return case.now + UNEXPLAINED_RETRY
        owed = _owed_of_the_date(case)
        if any(
            row.kind != REMINDER and AccountMail.read(row.payload).to == CURRENT for row in owed
        ):
            return None
        before = ReminderMail.read(case.effect.payload).before
        falls_due = _before_purge(case.account, before)
        if falls_due > case.now:
            return falls_due
        due = _due_reminders(owed, case)
        if any(ReminderMail.read(row.payload).before < before for row in due):
            return None
        earlier = [row for row in due if ReminderMail.read(row.payload).before > before]
        return self._with_link(case, covers=earlier)

    def _with_link(self, case: _Case, *, covers: Sequence[Effect]) -> _Decision:
        """Address a mail about the date; the way back is in it only if the owner chose to leave."""
        account = case.account
        letter = _addressed(case)
        if letter is None:
            return None
        # Reminders go to the current address. A mail to a former one does not cover them: the
        # current one would otherwise be told nothing.
        if letter.to == account.email:
            letter.covers = [row.id for row in covers]
        self._open_way_back(case, letter)
        return letter

    def _open_way_back(self, case: _Case, letter: _Letter) -> None:
        """Put the mailed link into *letter*, if it was the owner who chose to leave."""
        if case.account.deactivated_by == OWNER:
            token = self.tokens.mailed(case.account, now=case.now)
            letter.context["link"] = f"{self.origin.public_url}/recover/{token}"


# Other kinds wait in the lane of how long the account has had the mailbox. The link to a pending
# address is for one that it does not have; a reset keeps to the first lane, since a decoy of one
# has no other, and the counts of what waits would tell them apart; the news of another address
# says its lane in its payload.
_OF_THEIR_OWN_LANE = (CONFIRM_ADDRESS, PASSWORD_RESET, ADDRESS_CHANGED)

# Every kind of mail has its decision here, except for PURGED: its account is gone, so ``_decide``
# asks no row. A kind without a decision would never be sent.
DECISIONS: Mapping[str, Callable[[_Mails, _Case], _Decision]] = {
    SCHEDULED: _Mails._date,
    DATE_MOVED: _Mails._date,
    REMINDER: _Mails._reminder,
    REACTIVATED: _Mails._reactivated,
    CONFIRM_ADDRESS: _Mails._confirm_address,
    ADDRESS_ASKED: _Mails._address_asked,
    ADDRESS_CHANGED: _Mails._address_changed,
    PASSWORD_CHANGED: _Mails._password_changed,
    PASSWORD_RESET: _Mails._password_reset,
}


def _audit_reset_mail(subject: uuid.UUID | None, session: Session, now: datetime) -> None:
    """Audit that somebody has asked for a link, and that it was mailed."""
    audit.record(
        session, "account.password_reset_requested", subject=subject, by=audit.ANYBODY, now=now
    )


def _to_address(effect: Owed, context: dict[str, Any], end: datetime | None = None) -> _Letter:
    mail = AddressedMail.read(effect.payload)
    return _Letter(mail.address, context, end=end, lane=mail.lane)


def _addressed(case: _Case) -> _Letter | None:
    """Address a mail as it was owed; None if the address that it was for is no longer known."""
    mail = AccountMail.read(case.effect.payload)
    owed_at = case.effect.created_at
    if (found := recipients.addressee(case.session, case.account, mail, owed_at=owed_at)) is None:
        return None
    return _Letter(
        found.email,
        {**_grace(case.account), "moved_at": found.left_at, "was_off": mail.was_off},
    )


def _grace(account: Account) -> dict[str, Any]:
    return {"purge_at": account.purge_at, "by_owner": account.deactivated_by == OWNER}


def _owed_of_the_date(case: _Case) -> Sequence[Effect]:
    """Return all mails about the date that are owed to the account, also reminders to come."""
    return case.session.scalars(
        select(Effect).where(Effect.subject == case.account.public_id, Effect.kind.in_(OF_THE_DATE))
    ).all()


def _due_reminders(owed: Sequence[Effect], case: _Case) -> list[Effect]:
    """Return the reminders among *owed* whose time has come, by the ``purge_at`` of today."""
    return [
        row
        for row in owed
        if row.kind == REMINDER
        and _before_purge(case.account, ReminderMail.read(row.payload).before) <= case.now
    ]


def _before_purge(account: Account, seconds: int) -> datetime:
    assert account.purge_at is not None
    return account.purge_at - timedelta(seconds=seconds)
