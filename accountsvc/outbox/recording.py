"""The mailer that takes a canary's mails out of the post: they are written down and go nowhere.

Everything before it is the same as for everybody: what is owed, decided, paced, rendered, composed.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from email.message import EmailMessage

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from ..adapters.mail import Mailer
from ..db import canaries
from ..db.canaries import Canary
from ..db.engine import Clock, Database, database_now
from ..db.models import Account, Effect
from ..db.text import rfc3339
from . import gone, queue


@dataclass(frozen=True)
class RecordingMailer:
    """A mailer that hands everything to *mailer* but what is a canary's, address and subject.

    A mail is known by the effect that owes it, which its Message-ID names: so nobody who signs up
    with an address of that domain is taken for a canary.
    """

    mailer: Mailer
    database: Database
    clock: Clock = database_now

    def send(self, message: EmailMessage) -> None:
        if not self._is_recorded(message):
            self.mailer.send(message)

    def check(self) -> None:
        self.mailer.check()

    def _is_recorded(self, message: EmailMessage) -> bool:
        if message["To"].addresses[0].domain != canaries.DOMAIN:
            return False
        found = re.fullmatch(r"<([0-9a-f-]{36})@.+>", str(message["Message-ID"]))
        if found is None:
            return False
        uid = uuid.UUID(found[1])
        with self.database.writing() as session:
            owed = session.execute(
                select(Effect.kind, Effect.subject).where(Effect.uid == uid)
            ).one_or_none()
            if owed is None or not canaries.is_canary(owed.subject):
                return False
            self._write_down(session, uid, owed.kind, owed.subject)
        return True

    def _write_down(self, session: Session, uid: uuid.UUID, kind: str, subject: uuid.UUID) -> None:
        row = session.scalar(
            select(Canary)
            .where(Canary.public_id == subject)
            .with_for_update()
            .execution_options(populate_existing=True)
        )
        # The mails of one that was left half-way are nobody's: a run looks at its own alone.
        if row is not None:
            mail = {
                "kind": kind,
                "at": rfc3339(self.clock(session), timespec="microseconds"),
                "left": is_anything_left(session, subject),
            }
            row.mails = {**row.mails, str(uid): mail}


def is_anything_left(session: Session, subject: uuid.UUID) -> bool:
    """Say whether the row of *subject* is there, or its file or its ledger line is still owed."""
    rows = exists().where(Account.public_id == subject)
    file = exists().where(Effect.subject == subject, Effect.kind == queue.DELETE_FILE)
    if session.scalar(select(rows | file)):
        return True
    return subject in gone.read_owed(session).people
