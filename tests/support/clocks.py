"""A clock of the database that can be moved, for all processes of a test or for this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from sqlalchemy import Engine, event


class MovableClock:
    """The database's clock, so much ``ahead`` of the right time; :meth:`move` moves it."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def move(self, ahead: timedelta) -> None:
        self.ahead = ahead

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class _PostgresqlClock(MovableClock):
    """A function of the same name that is found before the server's, for every new connection."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        name = url.rpartition("/")[2].partition("?")[0]
        self._run(
            "CREATE SCHEMA moved",
            "CREATE TABLE moved.by (seconds float8 NOT NULL)",
            "INSERT INTO moved.by VALUES (0)",
            "CREATE FUNCTION moved.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
            "'SELECT pg_catalog.clock_timestamp() + make_interval(secs => seconds) FROM moved.by'",
            f'ALTER DATABASE "{name}" SET search_path = moved, public, pg_catalog',
        )

    def move(self, ahead: timedelta) -> None:
        super().move(ahead)
        self._run(f"UPDATE moved.by SET seconds = {ahead.total_seconds()}")

    def _run(self, *statements: str) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[arg-type]


@contextmanager
def movable_clock(url: str) -> Iterator[MovableClock]:
    """Make the clock of the database at *url* movable; call it before anything connects.

    On SQLite, where it is the clock of each process, that of this process alone.
    """
    if url.startswith("postgresql"):
        yield _PostgresqlClock(url.replace("postgresql+psycopg", "postgresql"))
        return
    clock = MovableClock()
    own: Callable[[Any, Any], None] = _strftime_of(clock)
    event.listen(Engine, "connect", own)
    try:
        yield clock
    finally:
        event.remove(Engine, "connect", own)


def _strftime_of(clock: MovableClock) -> Callable[[Any, Any], None]:
    def strftime(pattern: str, moment: str) -> str:
        assert (pattern, moment) == ("%Y-%m-%d %H:%M:%f000", "now")
        return clock.now().strftime("%Y-%m-%d %H:%M:%S.%f")

    def connected(connection: Any, _record: Any) -> None:
        connection.create_function("strftime", 2, strftime)

    return connected
