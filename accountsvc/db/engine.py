"""Engines, transactions and the clock: what differs between SQLite and PostgreSQL, in one place.

Transactions are opened by :class:`Database` and by nothing else. On SQLite a writing one begins
``IMMEDIATE``, so that it waits for its turn instead of failing when it first writes; a reading one
stays deferred and is refused a write by ``query_only``. On PostgreSQL each statement of a reading
one stands by itself, and one that writes or locks is refused before it is sent.
"""

from __future__ import annotations

import os
import re
import select as polling
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, DateTime, Dialect, Engine, create_engine, event, select
from sqlalchemy.exc import IntegrityError, InvalidatePoolError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from .. import private

if TYPE_CHECKING:
    import psycopg

Clock = Callable[[Session], datetime]

# SQLite waits so long for the write lock. No transaction of the service takes as long; a longer
# wait would end in the client's time-out instead of a 503 that says when to try again.
BUSY_TIMEOUT_MS = 5_000

# PostgreSQL waits for a lock as long. A statement or an idle transaction of more than half a minute
# is a fault, and would keep its locks for as long as its process lives.
_POSTGRESQL_OPTIONS = (
    "-c timezone=UTC -c datestyle=ISO -c statement_timeout=30000 -c lock_timeout=5000 "
    "-c idle_in_transaction_session_timeout=30000"
)

# What a reading transaction may send, and what it may not ask for beside: rows that are locked by a
# statement alone would be free again before the next.
_READS = re.compile(r"\s*(?:SELECT|WITH)\b", re.IGNORECASE)
_WRITES = re.compile(r"\b(?:INSERT\s+INTO|DELETE\s+FROM|UPDATE|SHARE)\b", re.IGNORECASE)

# In the info of a connection's record: it has lain in the pool.
_LAY_IDLE = "lay idle"


class UtcDateTime(TypeDecorator[datetime]):
    """A column of aware times, stored and returned in UTC with microseconds.

    SQLite keeps a time as text of fixed width, so that comparing texts compares times. Raises
    ValueError for a time without a time zone.
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
        # Without an isolation level the driver begins no transaction by itself. Its own BEGIN is
        # deferred, so that two writers could only fail at each other's first write.
        return {"connect_args": {"isolation_level": None, "timeout": BUSY_TIMEOUT_MS / 1000}}
    return {
        "pool_size": 10,
        "max_overflow": 10,
        # A request that waits longer for a connection would be answered after its client has
        # gone.
        "pool_timeout": 5,
        "pool_recycle": 1800,
        # After a lock was waited for, the next statement must see what its holder has committed:
        # in REPEATABLE READ a sweep would not see a hold that was placed meanwhile.
        "isolation_level": "READ COMMITTED",
        "connect_args": {"connect_timeout": 5, "options": _POSTGRESQL_OPTIONS},
    }


def make_engine(url: str) -> Engine:
    """Make an engine for *url*, set up as the web process and the worker use it."""
    engine = create_engine(url, **engine_options(url))
    prepare_engine(engine)
    return engine


def prepare_engine(engine: Engine) -> None:
    """Have each connection of *engine* set up, and each transaction begun as it needs."""
    if engine.dialect.name != "sqlite":
        event.listen(engine, "checkout", _let_go_of_closed)
        event.listen(engine, "begin", _begin_postgresql)
        event.listen(engine, "checkin", _give_back)
        event.listen(engine, "before_cursor_execute", _refuse_to_write)
        return
    keep_file_private(engine)
    event.listen(engine, "connect", _set_pragmas)
    _SameFile(engine)
    event.listen(engine, "begin", _begin)


def keep_file_private(engine: Engine) -> None:
    """Have the file of a SQLite *engine* made for the owner alone when it is first connected to.

    SQLite by itself makes one that everybody may read, as far as the umask lets it. It gives the
    file's rights to the journals beside it, which hold the same data.
    """
    event.listen(engine, "do_connect", _make_file)


def _make_file(
    _dialect: Dialect, _record: object, arguments: list[Any], options: dict[str, Any]
) -> None:
    if not options.get("uri"):
        with suppress(OSError):
            # SQLite says itself, at once, what is wrong with the place.
            private.touch(Path(arguments[0]))


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        # A commit must survive a power cut, which NORMAL does not promise in WAL mode: the answer
        # 204 would stand for a deactivation that is undone.
        "synchronous = FULL",
        "foreign_keys = ON",
        # Without this INSERT OR REPLACE fires no delete trigger, and could replace a receipt.
        "recursive_triggers = ON",
        "secure_delete = ON",
        # On disk, a sort would leave personal data in temporary files that nobody scrubs.
        "temp_store = MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class _SameFile:
    """Refuses transactions once another file lies where an *engine* has its own.

    What is written into a file that has been replaced is lost with the process, though each answer
    said that it is done; and beside the log of the old one, the new file would be damaged. A
    restart looks at both.
    """

    def __init__(self, engine: Engine) -> None:
        self._path = engine.url.database
        self._known: tuple[int, int] | None = None
        if self._path and self._path != ":memory:" and not engine.url.query:
            event.listen(engine, "connect", self._note)
            event.listen(engine, "begin", self._check)
            event.listen(engine, "engine_disposed", self._forget)

    def _note(self, _connection: object, _record: object) -> None:
        self._known = self._known or self._identity()

    def _check(self, _connection: Connection) -> None:
        if self._known != self._identity():
            said = "another file lies in the place of the database: restart this process"
            raise OperationalError("BEGIN", None, sqlite3.OperationalError(said))

    def _forget(self, _engine: Engine) -> None:
        self._known = None

    def _identity(self) -> tuple[int, int] | None:
        assert self._path
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _let_go_of_closed(
    connection: psycopg.Connection[Any], record: ConnectionPoolEntry, _proxy: object
) -> None:
    """Have the pool make a new connection if the server has closed this one while it lay idle.

    A closed one can be read from: the end of the stream is waiting. So can one to which the server
    has sent something on its own, which is rare and worth a new connection. This asks the kernel,
    where a ping would wait for the server at the beginning of each transaction.
    """
    # What a server sends behind its greeting would have each new connection replaced by another.
    if not record.info.pop(_LAY_IDLE, False):
        return
    if connection.closed:
        raise InvalidatePoolError
    waiting = polling.poll()
    waiting.register(connection.fileno(), polling.POLLIN)
    if waiting.poll(0):
        raise InvalidatePoolError


def _begin_postgresql(connection: Connection) -> None:
    """Let each statement of a reading transaction stand by itself, without BEGIN and ROLLBACK.

    In READ COMMITTED each sees what is committed when it starts, in a transaction or not.
    """
    driver = connection.connection.dbapi_connection
    if connection.get_execution_options().get("reads", False) and driver is not None:
        driver.autocommit = True


def _give_back(connection: psycopg.Connection[Any] | None, record: ConnectionPoolEntry) -> None:
    """Give a connection back to the pool as it came: the next may write, or take a lock."""
    if connection is None:
        return
    record.info[_LAY_IDLE] = True
    if connection.autocommit:
        connection.autocommit = False


def _refuse_to_write(
    connection: Connection,
    _cursor: object,
    statement: str,
    _parameters: object,
    _context: object,
    _many: bool,
) -> None:
    """Refuse a write or a lock in a reading transaction, as SQLite itself refuses a write.

    A write would be committed at once, and a lock be gone before the next statement.
    """
    if not connection.get_execution_options().get("reads", False):
        return
    if not _only_reads(statement):
        raise RuntimeError("a reading transaction may neither write nor lock")


@lru_cache(maxsize=512)
def _only_reads(statement: str) -> bool:
    """Say whether *statement* writes and locks nothing; asked of the same few again and again."""
    return bool(_READS.match(statement)) and not _WRITES.search(statement)


class Database:
    """One database, and the only way to open a transaction on it.

    *session* returns the session that a transaction is opened on: the request's own in the web
    application, by default a new one. An instance that is made before a fork connects after it.
    """

    def __init__(self, engine: Engine, session: Callable[[], Session] | None = None) -> None:
        self.engine = engine
        self._session = session or sessionmaker(engine, expire_on_commit=False)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a writing transaction; commit at the end, roll back on any exception.

        What was read or written stays readable afterwards, detached. Raises RuntimeError inside
        another transaction of the same request, whose locks and reads it would end.
        """
        with writing(self._session()) as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a transaction that only reads; otherwise as :meth:`writing`.

        What two of its statements read may be of two moments on PostgreSQL; on SQLite it is of one.
        """
        with reading(self._session()) as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """Open a transaction that only reads, and reads everything as of one moment.

        On PostgreSQL it is REPEATABLE READ, and ends if nothing is asked of it for half a minute.
        """
        with snapshot(self._session()) as session:
            yield session

    @contextmanager
    def rehearsing(self) -> Iterator[Session]:
        """Open a writing transaction that is rolled back at its end, whatever happens in it.

        It raises at its end what a COMMIT would have raised there (a deferred constraint). What was
        read or written stays readable afterwards, detached, as after :meth:`writing`.
        """
        with rehearsing(self._session()) as session:
            yield session


@contextmanager
def writing(session: Session) -> Iterator[Session]:
    """Open a writing transaction on *session*, as :meth:`Database.writing` does; close both."""
    _refuse_nesting(session)
    try:
        session.connection(execution_options={"writes": True})
        yield session
        session.commit()
    except BaseException:
        session.rollback()
        raise
    finally:
        session.close()


@contextmanager
def reading(session: Session) -> Iterator[Session]:
    """Open a reading transaction on *session* as :meth:`Database.reading` does, and close both."""
    _refuse_nesting(session)
    try:
        session.connection(execution_options={"reads": True})
        yield session
    finally:
        session.close()


@contextmanager
def snapshot(session: Session) -> Iterator[Session]:
    """Open a transaction on *session* as :meth:`Database.snapshot` does, and close both."""
    _refuse_nesting(session)
    options: dict[str, Any] = {}
    if session.get_bind().dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    try:
        session.connection(execution_options=options)
        yield session
    finally:
        session.close()


@contextmanager
def rehearsing(session: Session) -> Iterator[Session]:
    """Open a transaction on *session* as :meth:`Database.rehearsing` does, and close both."""
    _refuse_nesting(session)
    try:
        session.connection(execution_options={"writes": True})
        before = _deferred_faults(session)
        yield session
        session.flush()
        if session.get_bind().dialect.name == "postgresql":
            session.connection().exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
        elif _deferred_faults(session) - before:
            raise _refused_at_commit()
        session.expunge_all()
    finally:
        session.rollback()
        session.close()


def _deferred_faults(session: Session) -> set[tuple[object, ...]]:
    """Return the rows of a SQLite file that refer to what is not there, though they may not.

    Only of tables that say DEFERRED, which a COMMIT looks at last: to look through all tables takes
    as long as the database is large.
    """
    connection = session.connection()
    if connection.dialect.name != "sqlite":
        return set()
    tables = connection.exec_driver_sql(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE '%DEFERRED%'"
    ).scalars()
    return {
        tuple(row)
        for table in tables.all()
        for row in connection.exec_driver_sql(
            "SELECT ?, * FROM pragma_foreign_key_check(?)", (table, table)
        )
    }


def _refused_at_commit() -> IntegrityError:
    """Return the error that SQLite's COMMIT raises for a deferred foreign key."""
    refusal = sqlite3.IntegrityError("FOREIGN KEY constraint failed")
    refusal.sqlite_errorcode = sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
    refusal.sqlite_errorname = "SQLITE_CONSTRAINT_FOREIGNKEY"
    return IntegrityError("COMMIT", None, refusal)


def _refuse_nesting(session: Session) -> None:
    if session.in_transaction():
        raise RuntimeError("a transaction is open on this session: end it before another begins")


class Moment(FunctionElement[datetime]):
    """The time of the database's clock as SQL, for a statement that reads a row beside it.

    It is the moment at which the row is read, and not that of the transaction's start; to the
    microsecond on PostgreSQL, to the millisecond on SQLite.
    """

    type = UtcDateTime()
    inherit_cache = True


@compiles(Moment, "postgresql")
def _clock_of_postgresql(_element: Moment, _compiler: object, **_: object) -> str:
    return "clock_timestamp()"


@compiles(Moment, "sqlite")
def _clock_of_sqlite(_element: Moment, _compiler: object, **_: object) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


_NOW = select(Moment())


def database_now(session: Session) -> datetime:
    """Return the time of the database's clock, the one that all hosts share: aware, in UTC.

    It is the moment of the call, as precise as :class:`Moment`.
    """
    now = session.connection().scalar(_NOW)
    assert isinstance(now, datetime)
    return now
