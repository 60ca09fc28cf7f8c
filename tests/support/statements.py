"""The SQL of the engines that tests make: each statement is compiled once in a process.

Each test has an engine of its own, and SQLAlchemy would compile the same statements for each of
them anew, which is a sixth of what a test costs.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import LRUCache

# All statements of the service and of its tests; an engine's own memory has 500.
_KEPT = 20_000


def compile_each_once() -> None:
    """Let engines of the same dialect share what SQLAlchemy has compiled for one of them.

    The cache is asked by dialect and statement, and a dialect equals none but itself. So those that
    compile alike are made equal: of one class, for one release of the server.
    """
    shared: LRUCache[Any, Any] = LRUCache(_KEPT)

    def equals(dialect: DefaultDialect, other: object) -> bool:
        return type(dialect) is type(other) and _release(dialect) == _release(other)

    # An engine sets its own cache when it is made, which is to no effect.
    Engine._compiled_cache = property(  # type: ignore[assignment]
        lambda _engine: shared, lambda _engine, _own: None
    )
    DefaultDialect.__eq__ = equals  # type: ignore[method-assign, assignment]
    DefaultDialect.__hash__ = lambda dialect: hash(type(dialect))  # type: ignore[method-assign]


def _release(dialect: Any) -> tuple[Any, ...]:
    # Before it has met a server a dialect knows none, and may compile otherwise.
    release = getattr(dialect, "server_version_info", None)
    return release, dialect.paramstyle, dialect.label_length, dialect.max_identifier_length
