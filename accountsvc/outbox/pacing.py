"""The pace of mails: how often one recipient is mailed one kind, whoever causes it.

Anybody can sign up with a stranger's address, and delete and come back as often as they like, since
neither is ever refused for its number. So what is limited is the mails, at delivery and for the
mailbox that they reach:

===========================  ==========================================
sent in the 24 hours before  the next one of the kind is sent
===========================  ==========================================
none                         at once
one                          10 minutes after it
2 to 19                      an hour after the last
20                           when the first of these 20 is 24 hours old
===========================  ==========================================

The numbers are those of :mod:`accountsvc.bounds`. What was sent is a row for each recipient and
kind, under an HMAC of the address, which is deleted a day after its last mail.

A mailbox has three *lanes*, each with this pace of its own, by how long the account that the mail
is about has had it. An address is one account's at a time, so few can have had it for long: the
news of whoever has are not kept waiting by any number of accounts that had it for an hour each.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from .. import bounds
from ..adapters.mail import mailbox
from ..db import rows
from ..db.addresses import address_key
from ..db.engine import Clock, Database
from ..db.models import Effect, MailPace
from ..db.rows import change
from .payloads import delayed

DAY = timedelta(days=1)
_LANES = (
    timedelta(days=bounds.MAIL_MIDDLE_LANE_DAYS),
    timedelta(days=bounds.MAIL_LONG_LANE_DAYS),
)
SECOND_AFTER = timedelta(seconds=bounds.MAIL_SECOND_SECONDS)
OTHERS_AFTER = timedelta(seconds=bounds.MAIL_OTHERS_SECONDS)

# A mail that was refused is tried again after each of these pauses, and then given up. A mail
# server with a wrong set-up refuses everybody: with shorter pauses all mails would be lost before
# somebody has noticed it.
REFUSED_PAUSES = (timedelta(hours=1), timedelta(days=1))


def same_mailbox(address: str) -> str:
    """Return the form in which recipients are compared: equal for all forms of one address.

    It is the key of an account's address. Names with dots or a ``+`` more are other mailboxes:
    only their own server could say that they are not. Raises MailRefused for an address that cannot
    be mailed.
    """
    mailbox(address)
    return address_key(address)


def lane(held: timedelta) -> int:
    """Return the lane of an account that has *held* a mailbox so long: 0, 1, or 2 for longest."""
    return sum(held >= begin for begin in _LANES)


def next_turn(
    sent: Collection[datetime], *, now: datetime, end: datetime | None = None
) -> datetime:
    """Return the time from which another mail may be sent; *now* means at once.

    *sent* are the times of the mails of that kind to that recipient. A mail that has its *end*
    (its expiry, or the purge that it tells of) before its turn would be lost, so it is sent
    ``SECOND_AFTER`` before its end, or at once if that has passed; but the limit of a day holds
    for it too.
    """
    # A time far ahead was written under a clock that was wrong: counted, it would keep the
    # recipient from all mail until then.
    recent = sorted(at for at in sent if abs(now - at) < DAY)
    if not recent:
        return now
    turn = recent[-1] + (SECOND_AFTER if len(recent) == 1 else OTHERS_AFTER)
    if end is not None and turn >= end:
        turn = end - SECOND_AFTER
    if len(recent) >= bounds.MAILS_A_DAY:
        turn = max(turn, recent[-bounds.MAILS_A_DAY] + DAY)
    return max(turn, now)


def next_try(refused: int, *, now: datetime, end: datetime | None) -> datetime | None:
    """Return the time to try a mail again that was *refused* so often; None: never.

    From its *end* on it is not sent any more.
    """
    if refused > len(REFUSED_PAUSES):
        return None
    again_at = now + REFUSED_PAUSES[refused - 1]
    return again_at if end is None or again_at < end else None


class Pace:
    """Gives mails their turns, under a *secret* of its own. Holds no state; safe in threads."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return "Pace()"

    def recipient(self, address: str, lane: int = 0) -> str:
        """Return the name by which mails to *address* in *lane* are counted: an HMAC, in hex.

        Raises MailRefused as :func:`same_mailbox` does.
        """
        mailed = same_mailbox(address).encode("utf-8", "surrogatepass")
        # The youngest lane has the name by which processes of the release before count. No address
        # that can be mailed has a zero in it, so no other one has the name of a lane.
        mailed += b"\0%d" % lane if lane else b""
        return hmac.new(self._secret, mailed, hashlib.sha256).hexdigest()

    def take_turn(
        self,
        session: Session,
        uid: uuid.UUID,
        *,
        kind: str,
        recipient: str,
        now: datetime,
        end: datetime | None,
    ) -> datetime | None:
        """Take the turn of the mail *uid* in the current transaction, or return when to ask again.

        None: send it once the transaction is committed. Two that take turns for one recipient and
        kind wait for each other, so that only one of them is sent. A turn stays taken if sending
        fails, because the server may have taken the mail all the same; *uid* itself is not counted
        when it comes again.
        """
        row = {"recipient": recipient, "kind": kind, "sent": {}, "last_at": now}
        # An upsert, because it locks the row whether or not it was there: two first mails that
        # both found no row would both be sent.
        statement = rows.insert(session, MailPace).values(row)
        statement = statement.on_conflict_do_update(
            index_elements=["recipient", "kind"], set_={"kind": kind}
        )
        stored = session.scalars(statement.returning(MailPace.sent)).one()
        times = {mail: datetime.fromisoformat(at) for mail, at in stored.items()}
        sent = {mail: at for mail, at in times.items() if mail != str(uid) and now - at < DAY}
        turn = next_turn(sent.values(), now=now, end=end)
        if turn > now:
            return turn
        sent[str(uid)] = now
        change(
            session,
            update(MailPace)
            .where(MailPace.recipient == recipient, MailPace.kind == kind)
            .values(sent={mail: at.isoformat() for mail, at in sent.items()}, last_at=now),
        )
        return None


def prune(database: Database, clock: Clock) -> int:
    """Delete what was kept of mails that are a day old; return of how many recipients and kinds."""
    with database.reading() as session:
        # Every delivery asks this, every few seconds: as a DELETE it would take SQLite's write lock
        # each time.
        is_old = MailPace.last_at <= clock(session) - DAY
        if session.scalar(select(MailPace.kind).where(is_old).limit(1)) is None:
            return 0
    with database.writing() as session:
        return change(session, delete(MailPace).where(is_old))


def is_delayed(now: datetime) -> ColumnElement[bool]:
    """Select effects that wait for nothing but their turn."""
    return (
        Effect.deliver_after.between(now, now + DAY)
        & Effect.last_error.is_(None)
        & delayed(Effect.payload)
    )


def count_delayed(session: Session, now: datetime) -> dict[str, int]:
    """Count the mails that wait for their turn at *now*, by kind."""
    rows = session.execute(
        select(Effect.kind, func.count()).where(is_delayed(now)).group_by(Effect.kind)
    )
    return dict(iter(rows))
