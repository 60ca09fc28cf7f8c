"""What a database error says: will a repetition help, and is it the row or the database."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout


def is_passing_fault(exc: BaseException) -> bool:
    """Say whether a repetition may succeed: connection lost, lock or pool time-out, serialization.

    What it says about the row that was worked on is :func:`is_outage`'s to tell.
    """
    if isinstance(exc, PoolTimeout):
        return True
    if not isinstance(exc, DBAPIError):
        return False
    if exc.connection_invalidated or isinstance(exc, OperationalError | InterfaceError):
        return True
    state = getattr(exc.orig, "sqlstate", None) or ""
    # 25006: read only; 40: serialization, deadlock; 53: resources; 55P03: lock; 57: shutdown, cancelled; 58: I/O.
    return state.startswith(("08", "25006", "40", "53", "55P03", "57", "58"))


def is_outage(exc: BaseException) -> bool:
    """Say whether the fault is the database's as a whole, and would meet whatever is tried next.

    A lock or statement that took too long, a deadlock, a trigger or block that fails is not: that may be
    about single rows.
    """
    if not is_passing_fault(exc):
        return False
    if not isinstance(exc, DBAPIError) or exc.connection_invalidated:
        return True
    code = getattr(exc.orig, "sqlite_errorcode", None)
    if code is not None:
        # The low byte is the primary code; what it says of one statement alone is SQLITE_ERROR and such.
        return code & 0xFF in _SQLITE_OUTAGES
    state = getattr(exc.orig, "sqlstate", None)
    # A connection that is not made or is lost has none. 57014: a statement was cancelled.
    return state is None or (
        state.startswith(("08", "25006", "53", "57")) and not state.startswith("57014")
    )


_SQLITE_OUTAGES = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
}
