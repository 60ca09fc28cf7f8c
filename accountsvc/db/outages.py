"""The database's errors: whether a repetition may help, and whom else they concern."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

# A fault passes whose SQLSTATE on PostgreSQL begins with one of these: given up at once, a request
# would fail that a repetition could answer.
_PASSING_STATES = (
    "08",  # the connection
    "25006",  # read only, as a server is that has just become a standby
    "40",  # serialization failure, deadlock
    "53",  # resources: disk, memory, connections
    "55P03",  # a lock that was not to be had in time
    "57",  # shut down, or cancelled
    "58",  # input and output
)
# Every statement would meet these faults. One that was cancelled (57014) is no such fault: it may
# have been slow because of its own rows, and a sweep that took it for an outage would stop for one
# account.
_OUTAGE_STATES = ("08", "25006", "53", "57")
_STATEMENT_CANCELLED = "57014"

# These primary codes of SQLite concern the whole file. SQLITE_ERROR and SQLITE_CONSTRAINT are about
# one statement: taken for outages, they would stop a sweep for one account.
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


def is_passing_fault(exc: BaseException) -> bool:
    """Say whether a repetition may succeed: connection lost, lock or pool time-out, serialization.

    It may be about the row that was worked on; :func:`is_outage` says whether it is not.
    """
    if isinstance(exc, PoolTimeout):
        return True
    if not isinstance(exc, DBAPIError):
        return False
    if exc.connection_invalidated or isinstance(exc, OperationalError | InterfaceError):
        return True
    state = getattr(exc.orig, "sqlstate", None) or ""
    return state.startswith(_PASSING_STATES)


def is_outage(exc: BaseException) -> bool:
    """Say whether the fault is the database's as a whole, and would meet whatever is tried next.

    A lock or a statement that took too long, a deadlock, a trigger or a block that fails may be
    about single rows, and is no outage.
    """
    if not is_passing_fault(exc):
        return False
    if not isinstance(exc, DBAPIError) or exc.connection_invalidated:
        return True
    code = getattr(exc.orig, "sqlite_errorcode", None)
    if code is not None:
        # An extended code holds the primary one in its low byte.
        return code & 0xFF in _SQLITE_OUTAGES
    state = getattr(exc.orig, "sqlstate", None)
    # A connection that could not be made, or was lost, leaves an error without a SQLSTATE.
    return state is None or (
        state.startswith(_OUTAGE_STATES) and not state.startswith(_STATEMENT_CANCELLED)
    )
