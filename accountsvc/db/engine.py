"""Engines, transactions and the clock: what differs between SQLite and PostgreSQL, in one place.

A transaction that writes is opened by :func:`writing`, everything else only reads. On SQLite a
writing transaction begins ``IMMEDIATE``, so that it waits for its turn instead of failing when it
first writes; a reading one stays deferred and is refused a write by ``query_only``.
"""

from __future__ import annotations

import sqlite3
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, DateTime, Dialect, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.types import TypeDecorator

Clock = Callable[[Session], datetime]

# Longer than any transaction of ours, shorter than a client's patience.
BUSY_TIMEOUT_MS = 5_000

_POSTGRESQL_OPTIONS = (
    "-c timezone=UTC -c statement_timeout=30000 -c lock_timeout=5000 "
    "-c idle_in_transaction_session_timeout=30000"
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time with microseconds; a naive one is refused.

    SQLite keeps it as text of fixed width, so that comparing texts compares times.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def engine_options(url: str) -> dict[str, Any]:
    """Return the keyword arguments for ``create_engine`` that this service needs for *url*."""
    if url.startswith("sqlite"):
        # The driver must not begin transactions by itself: ``_begin`` does.
        return {"connect_args": {"isolation_level": None, "timeout": BUSY_TIMEOUT_MS / 1000}}
    return {
        "pool_pre_ping": True,
        "pool_size": 10,
        "max_overflow": 10,
        # Fail in time for a 503 while the client still listens.
        "pool_timeout": 5,
        "pool_recycle": 1800,
        # READ COMMITTED: after a lock was waited for, the next statement sees what was committed.
        "isolation_level": "READ COMMITTED",
        "connect_args": {"connect_timeout": 5, "options": _POSTGRESQL_OPTIONS},
    }


def make_engine(url: str) -> Engine:
    """Make an engine for *url*, set up as the web process and the worker use it."""
    engine = create_engine(url, **engine_options(url))
    prepare_engine(engine)
    return engine


def prepare_engine(engine: Engine) -> None:
    """Hang the SQLite settings and the kind of BEGIN on *engine*; PostgreSQL needs neither."""
    if engine.dialect.name != "sqlite":
        return
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        # A 204 is a promise: it must survive a power cut, which NORMAL does not give in WAL mode.
        "synchronous = FULL",
        "foreign_keys = ON",
        # INSERT OR REPLACE fires delete triggers only with this.
        "recursive_triggers = ON",
        "secure_delete = ON",
        # Sorting must not spill personal data into files that nobody scrubs.
        "temp_store = MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def writing(session: Session) -> Iterator[Session]:
    """Open a writing transaction on *session*; commit at the end, roll back on any exception.

    The session must not be inside a transaction: what was read in an earlier one is forgotten, so
    that nothing stale is decided on.
    """
    session.rollback()
    session.expire_all()
    session.connection(execution_options={"writes": True})
    try:
        yield session
        session.commit()
    except BaseException:
        session.rollback()
        raise


@contextmanager
def reading(session: Session) -> Iterator[Session]:
    """Open a transaction that only reads and leave none behind."""
    session.rollback()
    session.expire_all()
    try:
        yield session
    finally:
        session.rollback()


def database_now(session: Session) -> datetime:
    """Return the time of the database's clock, aware, in UTC: the one clock that all hosts share.

    On PostgreSQL it is the moment of the call, not of the transaction's start, with microseconds;
    on SQLite it has milliseconds.
    """
    if session.get_bind().dialect.name == "sqlite":
        found = session.scalar(text("SELECT strftime('%Y-%m-%dT%H:%M:%f', 'now')"))
        return datetime.fromisoformat(str(found)).replace(tzinfo=UTC)
    found = session.scalar(text("SELECT clock_timestamp()"))
    assert isinstance(found, datetime)
    return found.astimezone(UTC)


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Return the factory of sessions for whoever owns several transactions (sweep, outbox, CLI)."""
    return sessionmaker(engine, expire_on_commit=False)


def is_text(text: str) -> bool:
    """Say whether *text* can be stored: no NUL bytes (PostgreSQL), no lone surrogates (UTF-8)."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def text_problem(text: str, *, allowed: str = "") -> str | None:
    """Say what makes *text* unfit for a field: NUL bytes, lone surrogates, control characters not *allowed*."""
    for character in text:
        if character not in allowed and unicodedata.category(character) in {"Cc", "Cs"}:
            return "Remove control characters; send valid Unicode text."
    return None


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


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema of the database at *url* to *revision* by the migrations; idempotent."""
    from alembic import command

    command.upgrade(alembic_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the schema of the database at *url* back to *revision*."""
    from alembic import command

    command.downgrade(alembic_config(url), revision)


def alembic_config(url: str) -> Any:
    """Return Alembic's configuration for *url*; it needs no Flask application."""
    from alembic.config import Config

    config = Config()
    folder = migrations_path()
    # Alembic interpolates, hence the doubled percent sign.
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    # Alembic prepends it each time it is asked; the path must not grow with every health check.
    if str(folder.parent) not in sys.path:
        config.set_main_option("prepend_sys_path", str(folder.parent).replace("%", "%%"))
    config.attributes["url"] = url
    return config


def migrations_path() -> Path:
    return Path(__file__).resolve().parents[2] / "migrations"


def ensure_folder(url: str) -> None:
    """Make the folder of a SQLite file; do nothing for another engine."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
