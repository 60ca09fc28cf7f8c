"""The tools of a migration beyond Alembic's: with them it loses no row and blocks nobody for long.

A revision changes a table by :func:`altered`, and makes an index on a table that may be large by
:func:`create_index`. ``migrations/env.py`` uses the rest.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from alembic import op
from alembic.operations import BatchOperations
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import make_url

from .engine import keep_file_private

# A statement waits so long for a table's lock on PostgreSQL. Every request that wants the table
# queues up behind it meanwhile: without a limit, one long report would stop the whole service.
LOCK_TIMEOUT_MS = 5_000
# A second deploy waits so long for the first. With less than the longest revision takes, it would
# fail while the first does well.
TURN_PATIENCE = timedelta(minutes=15)
# Every deploy takes the advisory lock of this key, which PostgreSQL keeps for each database: with
# keys of their own, two would migrate at once. It is "accounts" in ASCII.
TURN_KEY = 0x6163636F756E7473

# A statement may take as long as a big table needs; a limit would break off every large migration
# at the same point.
_POSTGRESQL_OPTIONS = (
    f"-c timezone=UTC -c lock_timeout={LOCK_TIMEOUT_MS} -c statement_timeout=0 "
    "-c idle_in_transaction_session_timeout=0"
)


def make_engine(url: str) -> Engine:
    """Make an engine whose connections are fit for changing tables.

    SQLite: foreign keys are not enforced, because dropping a table in the course of its rebuild
    would cascade and empty the tables that refer to it; :func:`check_foreign_keys` makes up for it.
    The pragma only works outside a transaction. Each transaction begins ``IMMEDIATE`` and covers
    the DDL, which the driver by itself would not.

    PostgreSQL: a statement may take long, but it may not wait long for a lock.
    """
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(
            url,
            poolclass=NullPool,
            connect_args={"connect_timeout": 5, "options": _POSTGRESQL_OPTIONS},
        )
    engine = create_engine(
        url,
        poolclass=NullPool,
        connect_args={"isolation_level": None, "timeout": TURN_PATIENCE.total_seconds()},
    )
    keep_file_private(engine)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _set_pragmas(connection: Any, _record: object) -> None:
    # Without ``secure_delete`` and ``temp_store`` the old pages of a rebuilt table, and the files
    # of its sorting, would leave personal data on the disk.
    for pragma in ("foreign_keys = OFF", "secure_delete = ON", "temp_store = MEMORY"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def wait_for_turn(connection: Connection, patience: timedelta = TURN_PATIENCE) -> None:
    """Wait until no other process migrates this PostgreSQL database, and keep the others out.

    The lock is the session's: it spans several transactions, and ends with the connection even if
    this process is killed. It needs the server itself, not a pooler that shares sessions. On
    SQLite ``BEGIN IMMEDIATE`` does the same.

    Raises CommandError if the other process is not done within *patience*.
    """
    if connection.dialect.name == "sqlite":
        return
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        # Ask again and again in short transactions instead of waiting in ``pg_advisory_lock``: the
        # snapshot of a waiting transaction is what the other process's CREATE INDEX CONCURRENTLY
        # waits for in turn, so that both would wait for good.
        taken = connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": TURN_KEY})
        connection.commit()
        if taken:
            return
        if time.monotonic() >= deadline:
            raise CommandError("Another process is migrating this database. Try again later.")
        time.sleep(0.2)


def check_foreign_keys(ctx: MigrationContext, *_details: Any, **_more: Any) -> None:
    """Check after each step on SQLite that every row that another refers to is there.

    Raises CommandError, inside the step's transaction, which that rolls back.
    """
    connection = ctx.connection
    assert connection is not None
    if connection.dialect.name != "sqlite":
        return
    violations = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if violations:
        tables = ", ".join(sorted({row[0] for row in violations}))
        raise CommandError(
            f"{len(violations)} rows refer to rows that do not exist, in: {tables}. "
            "Nothing was changed."
        )


@contextmanager
def altered(table: str) -> Iterator[BatchOperations]:
    """Change *table* by the batch operations that this yields.

    PostgreSQL: they are plain ALTER statements. SQLite: the table is rebuilt, and keeps what
    Alembic's rebuild would lose: AUTOINCREMENT and the highest id ever given (a purged account's id
    must not come again), and the triggers. All triggers of the database are away meanwhile, because
    one of another table that mentions this one stops its renaming. A revision that changes a
    trigger does so after this block.
    """
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        with op.batch_alter_table(table) as batch:
            yield batch
        return
    triggers = connection.exec_driver_sql(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY rowid"
    ).all()
    definition = connection.exec_driver_sql(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
    ).scalar_one()
    autoincrement = re.search(r"\bAUTOINCREMENT\b", definition) is not None
    highest_id = None
    if autoincrement:
        highest_id = connection.exec_driver_sql(
            "SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)
        ).scalar()
    for name, _ in triggers:
        connection.exec_driver_sql(f'DROP TRIGGER "{name}"')
    with op.batch_alter_table(
        table, recreate="always", table_kwargs={"sqlite_autoincrement": autoincrement}
    ) as batch:
        yield batch
    if highest_id is not None:
        connection.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        connection.exec_driver_sql(
            "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, highest_id)
        )
    for _, statement in triggers:
        connection.exec_driver_sql(statement)


def create_index(name: str, table: str, columns: list[str], **options: Any) -> None:
    """Create an index without keeping anybody from writing to *table*; idempotent.

    PostgreSQL: ``CONCURRENTLY``, outside a transaction. What the revision did before is committed
    by that, so let it be the revision's only act. It waits for older transactions as long as they
    take, hence without ``lock_timeout``, and first removes the invalid index that an attempt which
    was broken off has left.
    """
    if op.get_context().dialect.name == "sqlite":
        op.create_index(name, table, columns, if_not_exists=True, **options)
        return
    with _outside_transaction():
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, columns, postgresql_concurrently=True, **options)


def drop_index(name: str, table: str) -> None:
    """Drop an index, the way :func:`create_index` makes one; one that is gone is no error."""
    if op.get_context().dialect.name == "sqlite":
        op.drop_index(name, table, if_exists=True)
        return
    with _outside_transaction():
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)


@contextmanager
def _outside_transaction() -> Iterator[None]:
    """Run statements on PostgreSQL outside a transaction, each waiting for locks without end."""
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        yield
        op.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
