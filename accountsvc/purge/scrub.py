"""Make freed pages of the SQLite file unreadable: what is purged must be gone from the disk too."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import structlog
from sqlalchemy import ColumnElement, exists, func, select, update
from sqlalchemy.orm import Session, aliased

from ..db import audit, datamap, facts, vacuum
from ..db.audit import SYSTEM_ACTOR
from ..db.engine import Clock, Database
from ..db.models import AuditEvent, Effect
from ..db.proofs import NOT_TOLD, SCRUBBED, TOLD, ReceiptFact
from ..db.rows import change, chunks
from ..outbox import queue
from .finish import RESIDUE, waits_for_a_scrub

log = structlog.get_logger(__name__)

# A purge of which something was found waits for a scrub, and is an alarm until then. Each rewrites
# the whole file: where a program puts rows back again and again, it would do nothing else.
AFTER_RESIDUE = timedelta(minutes=5)


def scrub(database: Database, clock: Clock, *, at_most_every: timedelta | None) -> bool:
    """Make freed pages of the SQLite file unreadable, and write of which purges that is true.

    ``VACUUM`` rewrites the file, the checkpoint empties the write-ahead log; ``secure_delete``
    alone leaves remnants. Then every byte of the file is looked at that is no row's; the facts say
    so, or why not. Returns True when nothing remains to be scrubbed. False means: another
    connection was in the way, bytes are left in the file, which is an alarm, or the last scrub is
    younger than *at_most_every*, or than ``AFTER_RESIDUE`` where a purge waits for it of which
    something was left; the next call tries again. On PostgreSQL there is nothing to do
    here (``docs/operations.md`` says what vacuum, WAL and backups still hold).
    """
    if database.engine.dialect.name != "sqlite":
        return True
    with database.reading() as session:
        coverable = dict(
            iter(session.execute(select(Effect.id, Effect.subject).where(_is_coverable())))
        )
        waiting = session.scalar(select(exists().where(waits_for_a_scrub())))
        now = clock(session)
        # A scrub of a time to come was dated by a clock that was ahead, and says nothing of when.
        last = session.scalar(
            select(ReceiptFact.at)
            .where(ReceiptFact.fact == SCRUBBED, ReceiptFact.at <= now)
            .order_by(ReceiptFact.id.desc())
            .limit(1)
        )
        left_at = _left_at(session, now)
        residue = session.scalar(
            select(exists().where(_is_coverable(), Effect.last_error == RESIDUE))
        )
    if not coverable:
        return not waiting
    if at_most_every is not None:
        after_scrub = min(at_most_every, AFTER_RESIDUE) if residue else at_most_every
        for at, apart in ((last, after_scrub), (left_at, at_most_every)):
            if at is not None and now - at < apart:
                return False
    rewritten = vacuum.rewrite(database.engine)
    if rewritten is None:
        return False
    if rewritten.found:
        _say_what_is_left(database, clock, rewritten.found)
        return False
    if rewritten.unseen:
        log.warning("the database file was not looked at", why=rewritten.unseen)
    with database.writing() as session:
        now = clock(session)
        for chunk in chunks(list(coverable)):
            facts.add(
                session,
                SCRUBBED,
                [subject for one in chunk if (subject := coverable[one])],
                now=now,
                details={"looked": not rewritten.unseen},
            )
            # Nothing else is waited for: the purge is completed by the next delivery.
            scrubbed = func.json_set(Effect.payload, "$.scrubbed", func.json("true"))
            values = {"payload": scrubbed, "deliver_after": now, "due_at": now}
            change(session, update(Effect).where(Effect.id.in_(chunk)).values(values))
        return not session.scalar(select(exists().where(waits_for_a_scrub())))


def _is_coverable() -> ColumnElement[bool]:
    """Select what finishes a purge that a scrub covers: nothing else of it is to come.

    Neither an address of its account waits in the outbox, nor a file that names it.
    """
    other = aliased(Effect)
    is_owed = exists().where(
        other.subject == Effect.subject, other.kind.in_([queue.DELETE_FILE, queue.PURGED])
    )
    was_told = exists().where(
        ReceiptFact.public_id == Effect.subject, ReceiptFact.fact.in_([TOLD, NOT_TOLD])
    )
    return waits_for_a_scrub() & ~is_owed & was_told


def _left_at(session: Session, now: datetime) -> datetime | None:
    """Return when bytes were found in the file last."""
    return session.scalar(
        select(AuditEvent.at)
        .where(
            AuditEvent.action == "residue.found", AuditEvent.subject.is_(None), AuditEvent.at <= now
        )
        .order_by(AuditEvent.id.desc())
        .limit(1)
    )


def _say_what_is_left(database: Database, clock: Clock, found: Mapping[str, int]) -> None:
    with database.writing() as session:
        audit.record(
            session,
            "residue.found",
            subject=None,
            by=SYSTEM_ACTOR,
            now=clock(session),
            place=datamap.DATABASE_FILE,
            count=sum(found.values()),
        )
    log.error("bytes are left in the database file", places=dict(found))
