"""Make freed pages of the SQLite file unreadable: what is purged must be gone from the disk too."""

from __future__ import annotations

from datetime import timedelta

import structlog
from sqlalchemy import ColumnElement, Engine, exists, func, select, update
from sqlalchemy.orm import aliased

from ..db import facts
from ..db.engine import Clock, Database
from ..db.models import Effect
from ..db.proofs import NOT_TOLD, SCRUBBED, TOLD, ReceiptFact
from ..db.rows import change, chunks
from ..outbox import queue
from .finish import waits_for_a_scrub

log = structlog.get_logger(__name__)


def scrub(database: Database, clock: Clock, *, at_most_every: timedelta | None) -> bool:
    """Make freed pages of the SQLite file unreadable, and write of which purges that is true.

    ``VACUUM`` rewrites the file, the checkpoint empties the write-ahead log; ``secure_delete``
    alone leaves remnants. Returns True when nothing remains to be scrubbed. False means: another
    connection was in the way, or the last scrub is younger than *at_most_every*; the next call
    tries again. On PostgreSQL there is nothing to do here (``docs/operations.md`` says what vacuum,
    WAL and backups still hold).
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
    if not coverable:
        return not waiting
    if at_most_every is not None and last is not None and now - last < at_most_every:
        return False
    if not _vacuum(database.engine):
        return False
    with database.writing() as session:
        now = clock(session)
        for chunk in chunks(list(coverable)):
            facts.add(
                session,
                SCRUBBED,
                [subject for one in chunk if (subject := coverable[one])],
                now=now,
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


def _vacuum(engine: Engine) -> bool:
    """Rewrite the file and empty its log; False if another connection was in the way."""
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only = OFF")
        try:
            cursor.execute("VACUUM")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            busy = (cursor.fetchone() or (1,))[0]
        except engine.dialect.loaded_dbapi.OperationalError as exc:
            log.info("scrub postponed", error=type(exc).__name__)
            return False
        return not busy
    finally:
        connection.close()
