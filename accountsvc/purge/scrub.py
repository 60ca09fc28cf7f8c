"""Make freed pages of the SQLite file unreadable: what is purged must be gone from the disk too."""

from __future__ import annotations

from datetime import timedelta

import structlog
from sqlalchemy import ColumnElement, Engine, exists, func, select, update

from ..db.engine import Clock, Database
from ..db.models import Effect, Receipt
from ..db.rows import change, chunks
from ..outbox import notices

log = structlog.get_logger(__name__)


def scrub(database: Database, clock: Clock, *, at_most_every: timedelta | None) -> bool:
    """Make freed pages of the SQLite file unreadable, and date the receipts that this covers.

    ``VACUUM`` rewrites the file, the checkpoint empties the write-ahead log; ``secure_delete``
    alone leaves remnants. Returns True when nothing remains to be scrubbed. False means: another
    connection was in the way, or the last scrub is younger than *at_most_every*; the next call
    tries again. On PostgreSQL there is nothing to do here (``docs/operations.md`` says what vacuum,
    WAL and backups still hold).
    """
    if database.engine.dialect.name != "sqlite":
        return True
    with database.reading() as session:
        coverable = session.scalars(select(Receipt.public_id).where(_is_coverable())).all()
        waiting = session.scalar(select(exists().where(Receipt.scrubbed_at.is_(None))))
        now = clock(session)
        # A scrub of a time to come was dated by a clock that was ahead, and says nothing of when.
        last = session.scalar(
            select(func.max(Receipt.scrubbed_at)).where(Receipt.scrubbed_at <= now)
        )
    if not coverable:
        return not waiting
    if at_most_every is not None and last is not None and now - last < at_most_every:
        return False
    if not _vacuum(database.engine):
        return False
    with database.writing() as session:
        now = clock(session)
        for chunk in chunks(coverable):
            change(
                session,
                update(Receipt)
                .where(Receipt.public_id.in_(chunk), Receipt.scrubbed_at.is_(None))
                .values(scrubbed_at=now),
            )
        return not session.scalar(select(exists().where(Receipt.scrubbed_at.is_(None))))


def _is_coverable() -> ColumnElement[bool]:
    """Select receipts that a scrub covers: no address of their account waits in the outbox."""
    return Receipt.scrubbed_at.is_(None) & ~exists().where(
        Effect.subject == Receipt.public_id, Effect.kind == notices.PURGED
    )


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
