"""Rewrite a SQLite file without what was deleted in it, and look whether any of that is left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Engine
from sqlalchemy.engine.interfaces import DBAPIConnection

from . import pages

log = structlog.get_logger(__name__)

# It takes half a second for 100 MB, and keeps nobody from writing; the write-ahead log grows
# meanwhile.
LOOK_SECONDS = 60.0
# Somebody who writes between the rewrite and the look leaves bytes in the file by right.
_TRIES = 3

TOO_LARGE = "too large"


@dataclass(frozen=True)
class Rewritten:
    """A file that was rewritten, and what a look at its bytes has found.

    ``found`` counts, by their kind, the places with bytes that are neither live nor zero.
    ``unseen`` says in a few words why the file was not looked at; None if it was.
    """

    found: Mapping[str, int] = field(default_factory=dict)
    unseen: str | None = None


def rewrite(engine: Engine, *, seconds: float = LOOK_SECONDS) -> Rewritten | None:
    """Rewrite the file of a SQLite *engine* and empty its log, then look at every byte of it.

    None: another connection was in the way, in the rewrite or with a write right behind it. The
    look takes *seconds* at most. Others may write meanwhile: the reading transaction that it is
    made in keeps their pages in the log.
    """
    pooled = engine.raw_connection()
    try:
        connection = pooled.dbapi_connection
        assert connection is not None
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only = OFF")
        for _ in range(_TRIES):
            cursor.execute("PRAGMA data_version")
            version = cursor.fetchone()
            if not _vacuum(engine, connection):
                return None
            cursor.execute("BEGIN")
            try:
                roots = _roots(connection)
                # In this transaction it is the version that the transaction reads.
                cursor.execute("PRAGMA data_version")
                if cursor.fetchone() == version:
                    return _look(engine.url.database, roots, seconds)
            finally:
                cursor.execute("ROLLBACK")
        log.info("scrub postponed", error="others write all the time")
        return None
    finally:
        pooled.close()


def _vacuum(engine: Engine, connection: DBAPIConnection) -> bool:
    cursor = connection.cursor()
    try:
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        busy = (cursor.fetchone() or (1,))[0]
    except engine.dialect.loaded_dbapi.OperationalError as exc:
        log.info("scrub postponed", error=type(exc).__name__)
        return False
    return not busy


def _roots(connection: DBAPIConnection) -> Sequence[int]:
    """Return the first page of each tree in the file; the schema's own is the first of all."""
    cursor = connection.cursor()
    cursor.execute("SELECT rootpage FROM sqlite_master WHERE rootpage > 0")
    return [1, *(root for (root,) in cursor.fetchall())]


def _look(path: str | None, roots: Sequence[int], seconds: float) -> Rewritten | None:
    if not path or path == ":memory:":
        return Rewritten(unseen="no file")
    try:
        answer = subprocess.run(  # noqa: S603 - our own interpreter and module
            (sys.executable, "-I", "-S", "-B", pages.__file__, path),
            input=" ".join(map(str, roots)).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            timeout=seconds,
            check=True,
        ).stdout
    except subprocess.TimeoutExpired:
        return Rewritten(unseen=TOO_LARGE)
    except (OSError, subprocess.CalledProcessError) as exc:
        log.warning("the database file could not be looked at", error=type(exc).__name__)
        return None
    said = json.loads(answer)
    return Rewritten(found=said.get("found", {}), unseen=said.get("form"))
