"""The tables that are in the database, beside those that the data map knows.

A table of another program in the same database may refer to accounts, and then fails each purge, or
hold what is somebody's, and then outlives it. A purge cannot empty what nobody has told it of; so
such a table is named: in the log at start, and daily by the worker; and to whoever asks the web or
the command line, every ten minutes or at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog
from sqlalchemy import Connection, inspect
from sqlalchemy.engine.interfaces import ReflectedForeignKeyConstraint
from sqlalchemy.engine.reflection import ObjectKind, ObjectScope

from .datamap import PLACES, Purge

log = structlog.get_logger(__name__)

# A column of one of these names, in any case, is somebody's. ``name``, ``address``, ``id``,
# ``owner`` and ``user`` are not here: nearly every database has them about things, and an alarm
# that always rings is heard by nobody.
PERSONAL = frozenset(
    {
        *("email", "e_mail", "mail", "email_address", "emailaddress", "mail_address"),
        *("user_id", "userid", "account_id", "accountid", "customer_id", "person_id"),
        *("public_id", "username", "user_name", "login"),
        *("first_name", "firstname", "last_name", "lastname", "full_name", "fullname", "surname"),
        *("phone", "phone_number", "number_phone", "mobile"),
    }
)

# Tables of other programs come with an installation or an upgrade of theirs, not by the minute; the
# log has a line for each of them, each time.
EVERY = timedelta(days=1)
# A look that failed comes again after this: a database that was away for a moment would otherwise
# not be looked at for a day, and one that refuses it would end each sweep before its scrub.
AGAIN_AFTER = timedelta(minutes=10)

# Alembic's table of the schema's revision.
_NO_PLACES = frozenset({"alembic_version"})
_KINDS = ObjectKind.TABLE | ObjectKind.MATERIALIZED_VIEW
_EMPTIED = (Purge.BY_ACCOUNT, Purge.BY_SUBJECT, Purge.ACCOUNT)
_GOES_ALONG = "CASCADE"
# With these the row stays, and does not refer to anybody.
_LETS_GO = ("SET NULL", "SET DEFAULT")
_SYSTEM = ("information_schema", "pg_")


@dataclass(frozen=True, order=True)
class Unmapped:
    """A table that is on no map; names are words of the schema, and of nobody.

    ``refers`` says that ``column`` is a foreign key on rows that a purge deletes, which it fails.
    Otherwise the column is named like a person's.
    """

    table: str
    column: str
    refers: bool


def unmapped(connection: Connection) -> tuple[Unmapped, ...]:
    """Return the tables in *connection*'s database that are on no map and may hold somebody's data.

    On PostgreSQL every schema is looked at that is not the system's, with partitioned tables and
    materialised views; on SQLite the file, and what is attached. It only reads: a few statements
    for each schema, however many tables it has.
    """
    read = _tables_of_sqlite if connection.dialect.name == "sqlite" else _tables_of_postgresql
    known = _NO_PLACES | {one.model.__tablename__ for one in PLACES if one.model}
    found = (
        _judged(table) for table in read(connection) if not (table.at_home and table.name in known)
    )
    return tuple(sorted(one for one in found if one is not None))


@dataclass
class _Table:
    """A table as the catalog has it.

    *keys* are its foreign keys on what a purge deletes: the columns, and the action at a deletion.
    """

    name: str
    at_home: bool
    columns: Sequence[str]
    keys: dict[str, str]


def _tables_of_sqlite(connection: Connection) -> Iterator[_Table]:
    schemas = connection.exec_driver_sql("SELECT name FROM pragma_database_list").scalars().all()
    emptied = _emptied()
    for schema in schemas:
        quoted = schema.replace('"', '""')
        tables = f'FROM "{quoted}".sqlite_master AS tables'
        columns: dict[str, list[str]] = {}
        for table, column in connection.exec_driver_sql(
            f"SELECT tables.name, columns.name {tables},"
            " pragma_table_info(tables.name, ?) AS columns"
            " WHERE tables.type = 'table' AND tables.name NOT LIKE 'sqlite_%'",
            (schema,),
        ):
            columns.setdefault(table, []).append(column)
        keys: dict[str, dict[str, str]] = {}
        for table, referred, column, action in connection.exec_driver_sql(
            f'SELECT tables.name, keys."table", keys."from", keys.on_delete {tables},'
            " pragma_foreign_key_list(tables.name, ?) AS keys WHERE tables.type = 'table'",
            (schema,),
        ):
            if schema == "main" and referred.lower() in emptied:
                keys.setdefault(table, {})[column] = action
        for table, names in columns.items():
            at_home = schema == "main"
            name = table if at_home else f"{schema}.{table}"
            yield _Table(name, at_home, names, keys.get(table, {}))


def _tables_of_postgresql(connection: Connection) -> Iterator[_Table]:
    inspector = inspect(connection)
    home, emptied = inspector.default_schema_name, _emptied()
    for schema in inspector.get_schema_names():
        if schema.startswith(_SYSTEM):
            continue
        columns = inspector.get_multi_columns(schema, kind=_KINDS, scope=ObjectScope.ANY)
        keys = inspector.get_multi_foreign_keys(schema, kind=_KINDS, scope=ObjectScope.ANY)
        for place, of_table in columns.items():
            yield _Table(
                name=place[1] if schema == home else f"{schema}.{place[1]}",
                at_home=schema == home,
                columns=[one["name"] for one in of_table],
                keys={
                    ", ".join(key["constrained_columns"]): _on_delete(key)
                    for key in keys.get(place, [])
                    if (key["referred_schema"] or home) == home and key["referred_table"] in emptied
                },
            )


def _on_delete(key: ReflectedForeignKeyConstraint) -> str:
    return str(key.get("options", {}).get("ondelete") or "NO ACTION").upper()


def _emptied() -> set[str]:
    return {one.model.__tablename__ for one in PLACES if one.model and one.purge in _EMPTIED}


def _judged(table: _Table) -> Unmapped | None:
    """Return what makes *table* somebody's.

    None: nothing, or its rows go with the account, which is all that a purge asks of a table.
    """
    for column, action in table.keys.items():
        if action != _GOES_ALONG and action not in _LETS_GO:
            return Unmapped(table.name, column, refers=True)
    if _GOES_ALONG in table.keys.values():
        return None
    for column in table.columns:
        if is_personal(column) and column not in table.keys:
            return Unmapped(table.name, column, refers=False)
    return None


class Watch:
    """Says which tables are on no map: at the first call, then daily by the monotonic clock."""

    def __init__(self) -> None:
        self._next_at: float | None = None

    def say(self, look: Callable[[], Sequence[Unmapped]]) -> None:
        """Log what *look* finds, if it is time; it is not called otherwise.

        What it raises is raised, and it is time again in ``AGAIN_AFTER``.
        """
        now = time.monotonic()
        if self._next_at is not None and now < self._next_at:
            return
        self._next_at = now + AGAIN_AFTER.total_seconds()
        found = look()
        self._next_at = now + EVERY.total_seconds()
        say(found)


def say(found: Sequence[Unmapped]) -> None:
    """Log a line for each table of *found*."""
    for one in found:
        if one.refers:
            log.warning(
                "a table on no data map refers to accounts, and may fail purges",
                table=one.table,
                column=one.column,
            )
        else:
            log.warning(
                "a table on no data map has a column named like a person's",
                table=one.table,
                column=one.column,
            )


def is_personal(column: str) -> bool:
    """Say whether *column* is named like a person's."""
    return column.lower() in PERSONAL
