"""What becomes true of a purge when what it has owed is done: written as it is settled.

Each function is called in the transaction that takes the effects out of the outbox. So a fact is
there if, and only if, the effect is not; ``purge/finish.py`` writes what a race between two workers
leaves out.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Select, exists, select
from sqlalchemy.orm import Session

from ..db import facts, rows
from ..db.models import Effect, Receipt
from ..db.proofs import FILES_ABSENT, LEDGER_WRITTEN, NOT_TOLD, TOLD
from . import queue
from .payloads import LedgerLines
from .queue import Owed

# Why somebody was not told, if not for one of the reasons for which the queue drops an effect:
# nobody has written down what became of the mail.
NOT_RECORDED = "not_recorded"


def files_deleted(session: Session, effects: Sequence[Owed], now: datetime) -> None:
    """Write that the files are absent of those of whom the last deletion is among *effects*."""
    subjects = {effect.subject for effect in effects if effect.subject is not None}
    for chunk in rows.chunks(sorted(subjects, key=str)):
        facts.add_found(session, {FILES_ABSENT: _without_files(chunk)}, now=now)


def ledger_written(session: Session, effects: Sequence[Owed], now: datetime) -> None:
    """Write that the ledger has the lines of *effects*; also who is owed no file deletion."""
    for chunk in rows.chunks(sorted(people_in(effects), key=str)):
        written = select(Receipt.public_id).where(Receipt.public_id.in_(chunk))
        found = {LEDGER_WRITTEN: written, FILES_ABSENT: _without_files(chunk)}
        facts.add_found(session, found, now=now)


def people_in(effects: Collection[Owed] | Collection[Effect]) -> set[uuid.UUID]:
    """Return whose receipts are in these ledger lines."""
    return {
        uuid.UUID(str(line["public_id"]))
        for effect in effects
        for line in LedgerLines.read(effect.payload).lines
    }


def told(subject: uuid.UUID | None, session: Session, now: datetime) -> None:
    """Write that the *purged* mail of *subject* was sent."""
    facts.add(session, TOLD, [] if subject is None else [subject], now=now)


def not_told(session: Session, effects: Collection[Owed], now: datetime, *, why: str) -> None:
    """Write that the *purged* mails among *effects* will never be sent, and why."""
    subjects = {one.subject for one in effects if one.kind == queue.PURGED and one.subject}
    facts.add(session, NOT_TOLD, subjects, now=now, details={"why": why})


def _without_files(subjects: Sequence[uuid.UUID]) -> Select[uuid.UUID]:
    """Select those of *subjects* who have a receipt and to whom no file deletion is owed."""
    is_owed = exists().where(Effect.subject == Receipt.public_id, Effect.kind == queue.DELETE_FILE)
    return select(Receipt.public_id).where(Receipt.public_id.in_(subjects), ~is_owed)
