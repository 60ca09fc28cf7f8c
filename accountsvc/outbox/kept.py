"""Returns and holds on their way into the ledger, and out of it when they matter no longer.

A restore from a backup would deactivate again who has come back since, and forget a hold. So each
has a line in the ledger: public id, times and kind. It is written by the outbox within seconds, and
until then it is what a restore could lose.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from ..adapters.ledger import Ledger, kept_name
from ..db import rows
from ..db.engine import Clock, Database
from ..db.models import Effect, KeptLine
from ..db.text import rfc3339
from . import queue
from .marks import take_marks
from .payloads import Removal
from .queue import Outcome, Owed

# A line that is owed for longer is an alarm: a restore would lose it.
OWED_AT_MOST = timedelta(minutes=1)
# So many objects are removed by one effect.
_REMOVED_AT_ONCE = 100


def keep(
    session: Session,
    kind: str,
    *,
    subject: uuid.UUID,
    now: datetime,
    deactivated_at: datetime | None = None,
) -> None:
    """Owe the ledger the line of a return (of what was *deactivated_at*) or of a hold, at *now*."""
    uid = queue.record(session, queue.KEEP, subject=subject, now=now)
    session.add(
        KeptLine(uid=uid, subject=subject, kind=kind, at=now, deactivated_at=deactivated_at)
    )


def end(session: Session, kind: str, *, subject: uuid.UUID, at: datetime, now: datetime) -> None:
    """Have the line of this *kind* and time removed from the ledger: it matters no longer."""
    found = session.scalars(
        select(KeptLine).where(
            KeptLine.subject == subject, KeptLine.kind == kind, KeptLine.at == at
        )
    ).all()
    _remove(session, found, now)


def forget(session: Session, subjects: Collection[uuid.UUID], now: datetime) -> None:
    """Have all lines of these accounts removed, which are purged in this transaction."""
    found = session.scalars(select(KeptLine).where(KeptLine.subject.in_(subjects))).all()
    _remove(session, found, now)


def prune(database: Database, clock: Clock, retention: timedelta, *, most: int = 500) -> int:
    """Have lines removed that are older than every backup; return how many, at most *most*."""
    with database.reading() as session:
        old = KeptLine.at < clock(session) - retention
        found = session.scalars(select(KeptLine.uid).where(old).limit(most)).all()
    if not found:
        return 0
    with database.writing() as session:
        now = clock(session)
        lines = session.scalars(
            select(KeptLine).where(KeptLine.uid.in_(found), KeptLine.at < now - retention)
        ).all()
        _remove(session, lines, now)
        return len(lines)


def count_overdue(session: Session, now: datetime) -> int:
    """Count the lines that should be in the ledger by now, and are not."""
    overdue = (Effect.kind == queue.KEEP) & (Effect.created_at < now - OWED_AT_MOST)
    return session.scalar(select(func.count()).select_from(Effect).where(overdue)) or 0


def sample(session: Session, size: int) -> Sequence[KeptLine]:
    """Return the newest line that was written, and *size* others from a random one on."""
    written = select(KeptLine).where(KeptLine.object_name.is_not(None))
    newest = session.scalars(written.order_by(KeptLine.at.desc()).limit(1)).all()
    start, by_uid = uuid.uuid4(), written.order_by(KeptLine.uid).limit(size)
    found = session.scalars(by_uid.where(KeptLine.uid >= start)).all()
    if len(found) < size:
        found = [*found, *session.scalars(by_uid.where(KeptLine.uid < start))][:size]
    return list({line.uid: line for line in [*newest, *found]}.values())


def still_written(session: Session, uids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Return those of the lines *uids* that have not ended, and are not owed to the ledger."""
    owed = select(Effect.uid).where(Effect.kind == queue.KEEP)
    return {
        uid
        for chunk in rows.chunks(uids)
        for uid in session.scalars(
            select(KeptLine.uid).where(KeptLine.uid.in_(chunk), KeptLine.uid.not_in(owed))
        )
    }


def to_be_removed(session: Session) -> set[str]:
    """Return the names of objects whose removal is owed."""
    payloads = session.scalars(select(Effect.payload).where(Effect.kind == queue.REMOVE))
    return {name for payload in payloads for name in Removal.read(payload).names}


def adopt(session: Session, lines: Sequence[KeptLine]) -> None:
    """Know of *lines* that the ledger has from after the backup.

    They are removed from it in their time, like the database's own.
    """
    for chunk in rows.chunks(lines):
        uids = [one.uid for one in chunk]
        known = {
            one.uid: one for one in session.scalars(select(KeptLine).where(KeptLine.uid.in_(uids)))
        }
        for line in chunk:
            if line.uid not in known:
                session.add(line)
            elif known[line.uid].object_name is None:
                # It was written after the backup: written again under another name, the first
                # object would stay for good.
                known[line.uid].object_name = line.object_name
        session.flush()


def _remove(session: Session, lines: Sequence[KeptLine], now: datetime) -> None:
    uids = [line.uid for line in lines]
    names = [line.object_name for line in lines if line.object_name is not None]
    for chunk in rows.chunks(uids):
        rows.change(session, delete(Effect).where(Effect.uid.in_(chunk)))
        rows.change(session, delete(KeptLine).where(KeptLine.uid.in_(chunk)))
    effects = [
        queue.row(
            queue.REMOVE,
            subject=None,
            now=now,
            payload=Removal(names[start : start + _REMOVED_AT_ONCE]),
            # Whoever has the line in hand may be about to write it, for as long as its lease.
            after=now + queue.LEASE,
        )
        for start in range(0, len(names), _REMOVED_AT_ONCE)
    ]
    queue.record_all(session, effects)


def keeper(database: Database, ledger: Ledger) -> queue.Handler:
    """Return the handler that writes the lines of returns and holds, each as one object."""

    def write(effects: Sequence[Owed], _now: datetime) -> Outcome:
        uids = [effect.uid for effect in effects]
        _name(database, ledger, uids)
        # A line without a row was ended, or its account purged, while it was owed.
        for line in _lines(database, uids):
            if line.object_name is not None:
                ledger.keep(line.object_name, document(line))
        return Outcome()

    return write


def _lines(database: Database, uids: Sequence[uuid.UUID]) -> Sequence[KeptLine]:
    with database.reading() as session:
        return session.scalars(
            select(KeptLine).where(KeptLine.uid.in_(uids)).order_by(KeptLine.at, KeptLine.uid)
        ).all()


def _name(database: Database, ledger: Ledger, uids: Sequence[uuid.UUID]) -> None:
    """Give the lines that have none the names of their objects, before these are written.

    Otherwise a process that is killed behind the write leaves an object that nobody can remove.
    """
    unnamed = [line.uid for line in _lines(database, uids) if line.object_name is None]
    if not unnamed:
        return
    marks = take_marks(database, ledger, len(unnamed))
    with database.writing() as session:
        for uid, mark in zip(unnamed, marks, strict=True):
            rows.change(
                session,
                update(KeptLine)
                .where(KeptLine.uid == uid, KeptLine.object_name.is_(None))
                .values(object_name=kept_name(uid, mark)),
            )


def remover(ledger: Ledger) -> queue.Handler:
    """Return the handler that removes such objects; one that is gone already is no error."""

    def remove(effects: Sequence[Owed], _now: datetime) -> Outcome:
        for effect in effects:
            for name in Removal.read(effect.payload).names:
                ledger.store.remove(name)
        return Outcome()

    return remove


def document(line: KeptLine) -> dict[str, object]:
    """Return *line* as the ledger has it."""
    shown: dict[str, object] = {
        "kind": line.kind,
        "public_id": str(line.subject),
        "at": rfc3339(line.at, timespec="auto", utc="+00:00"),
    }
    if line.deactivated_at is not None:
        shown["deactivated_at"] = rfc3339(line.deactivated_at, timespec="auto", utc="+00:00")
    return shown
