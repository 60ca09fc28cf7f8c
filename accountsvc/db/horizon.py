"""Up to which ids the trail is final: nothing can be committed any more between what is there.

An id is given before its row is committed, so that a later id can be there first. The rule is that
of CREATE INDEX CONCURRENTLY: whoever inserts holds a lock on the table until the row is committed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from .models import AuditEvent, ReceiptFact

# A transaction that was prepared for two phases has no process, and keeps its locks all the same.
_INSERTING = text(
    """
    SELECT DISTINCT locks.virtualtransaction, locks.pid
    FROM pg_locks AS locks
    WHERE locks.locktype = 'relation' AND locks.granted AND locks.mode = 'RowExclusiveLock'
      AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND locks.relation IN ('audit_events'::regclass, 'receipt_facts'::regclass)
      AND locks.pid IS DISTINCT FROM pg_backend_pid()
    """.replace("::", "\\:\\:")
)
_BEGUN = text("SELECT min(xact_start) FROM pg_stat_activity WHERE pid = ANY(:pids)")
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Horizon:
    """The highest ids, and what still keeps some id below them open.

    ``pids`` are those processes of PostgreSQL, ``since`` the begin of their oldest transaction, as
    far as this role may see it. ``is_final`` says that there is none.
    """

    event: int
    fact: int
    is_final: bool
    pids: tuple[int, ...] = ()
    since: datetime | None = None


def find(session: Session, *, patience: timedelta) -> Horizon:
    """Return the horizon, and wait for it no longer than *patience*.

    Call it in a reading transaction, of which each statement sees what is committed by then. On
    SQLite there is one writer, and an id is committed before the next is given.
    """
    event, fact = session.execute(
        select(
            select(func.max(AuditEvent.id)).scalar_subquery(),
            select(func.max(ReceiptFact.id)).scalar_subquery(),
        )
    ).one()
    event, fact = event or 0, fact or 0
    if session.connection().dialect.name == "sqlite":
        return Horizon(event, fact, is_final=True)
    deadline = time.monotonic() + patience.total_seconds()
    # Whoever begins to insert from here on gets a higher id.
    waited_for = _inserting(session)
    left = waited_for
    while left and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
        left = left & _inserting(session)
    pids = tuple(sorted({pid for _, pid in left if pid is not None}))
    since = session.scalar(_BEGUN, {"pids": list(pids)}) if pids else None
    return Horizon(event, fact, is_final=not left, pids=pids, since=since)


def _inserting(session: Session) -> set[tuple[str, int | None]]:
    return {(one.virtualtransaction, one.pid) for one in session.execute(_INSERTING)}
