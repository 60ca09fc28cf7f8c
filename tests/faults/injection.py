"""Faults at named points of a real process: it is forked, works, and is hit where it was told to be.

A point is the boundary of a statement, of a commit or of a call that changes files, as
``sweep: before DELETE accounts``. A recording run lists them all; another run is hit at one of them.
"""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

# How a child ends that was not killed.
DONE, BROKEN = 0, 70
# A guard against hanging.
PATIENCE_SECONDS = 120.0

_TABLE = re.compile(r"\b(?:FROM|INTO|UPDATE|JOIN)\s+\"?(\w+)", re.IGNORECASE)


class Kind(Enum):
    """What happens at a point."""

    KILL = "SIGKILL"
    DATABASE = "database fails"
    FULL = "disk full"
    READ_ONLY = "disk read-only"
    IO = "disk I/O error"

    @property
    def number(self) -> int:
        return {Kind.FULL: errno.ENOSPC, Kind.READ_ONLY: errno.EROFS, Kind.IO: errno.EIO}[self]


@dataclass(frozen=True)
class Fault:
    """*kind* at the *nth* time that *point* is reached; after that everything works again."""

    kind: Kind
    point: str
    nth: int = 1


@dataclass(frozen=True)
class Report:
    """What a child did: the answers that it got, the points that it reached, and how it ended."""

    answers: dict[str, int]
    points: tuple[str, ...]
    status: int
    trace: str

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


Operation = tuple[str, Callable[[], int]]


def points_for(kind: Kind, points: Sequence[str]) -> list[str]:
    """Return the points at which *kind* can happen, each once, in the order of their first visit."""
    each = dict.fromkeys(points)
    if kind is Kind.KILL:
        return list(each)
    if kind is Kind.DATABASE:
        return [one for one in each if ": before " in one and not _is_file(one)]
    return [one for one in each if ": before " in one and _is_file(one)]


def _is_file(point: str) -> bool:
    return " file " in point


def run(
    engine: Engine,
    operations: Sequence[Operation],
    fault: Fault | None = None,
    mutate: Callable[[], None] | None = None,
) -> Report:
    """Fork, do *operations* in the child one after the other, and report; a failing one is passed over.

    *engine* is the one that they use; it must not be connected yet. *mutate* spoils the child's code.
    """
    engine.dispose()
    mine, its = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Looking for garbage would copy every page of the parent's.
        gc.disable()
        os.close(mine)
        _be_the_child(engine, operations, fault, mutate, its)
    os.close(its)
    # Whatever hangs is killed, and told as such: nobody else kills without a fault.
    guard = threading.Timer(PATIENCE_SECONDS, os.kill, (pid, signal.SIGKILL))
    guard.start()
    with os.fdopen(mine, errors="replace") as pipe:
        lines = pipe.read().splitlines()
    _, ended = os.waitpid(pid, 0)
    guard.cancel()
    said = [line.split("\t", 1) for line in lines if "\t" in line]
    return Report(
        answers={
            text.split("\t")[0]: int(text.split("\t")[1]) for tag, text in said if tag == "answer"
        },
        points=tuple(text for tag, text in said if tag == "point"),
        status=os.waitstatus_to_exitcode(ended),
        trace=" | ".join(text for tag, text in said if tag == "trace"),
    )


def _be_the_child(
    engine: Engine,
    operations: Sequence[Operation],
    fault: Fault | None,
    mutate: Callable[[], None] | None,
    pipe: int,
) -> None:
    """Never returns: a forked copy of the tests must not go on with them."""
    status = BROKEN

    def say(tag: str, text: str) -> None:
        # One write each, so that what was said before a kill has been said.
        os.write(pipe, f"{tag}\t{text}\n".encode())

    try:
        if mutate is not None:
            mutate()
        injector = _Injector(engine, fault, say)
        for name, work in operations:
            injector.operation = name
            try:
                answer = work()
            except Exception as exc:
                say("trace", f"{name}: {type(exc).__name__}")
                answer = 0
            injector.operation = "between"
            say("answer", f"{name}\t{answer}")
        status = DONE
    except BaseException as exc:
        say("trace", f"{type(exc).__name__}: {exc}".replace("\n", " "))
    finally:
        sys.stdout.flush()
        os._exit(status)


class _Injector:
    def __init__(
        self, engine: Engine, fault: Fault | None, say: Callable[[str, str], None]
    ) -> None:
        self.operation = "between"
        self._fault = fault
        self._say = say
        self._visits = 0
        event.listen(engine, "before_cursor_execute", self._before_statement)
        event.listen(engine, "after_cursor_execute", self._after_statement)
        event.listen(engine, "commit", self._before_commit)
        event.listen(Session, "after_commit", self._after_commit)
        for name in ("fsync", "replace", "unlink"):
            self._wrap(name)

    def _before_statement(
        self, connection: Connection, _cursor: Any, statement: str, *_: Any
    ) -> None:
        self._reach(f"before {_label(statement)}", connection)

    def _after_statement(
        self, _connection: Connection, _cursor: Any, statement: str, *_: Any
    ) -> None:
        self._reach(f"after {_label(statement)}", None)

    def _before_commit(self, connection: Connection) -> None:
        self._reach("before COMMIT", connection)

    def _after_commit(self, _session: Session) -> None:
        self._reach("after COMMIT", None)

    def _wrap(self, name: str) -> None:
        original = getattr(os, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._reach(f"before file {name}", None)
            result = original(*args, **kwargs)
            self._reach(f"after file {name}", None)
            return result

        setattr(os, name, wrapped)

    def _reach(self, boundary: str, connection: Connection | None) -> None:
        point = f"{self.operation}: {boundary}"
        fault = self._fault
        if fault is None:
            self._say("point", point)
            return
        if point != fault.point:
            return
        self._visits += 1
        if self._visits != fault.nth:
            return
        self._say("point", point)
        if fault.kind is Kind.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind is Kind.DATABASE:
            assert connection is not None
            _break(connection)
        else:
            raise OSError(fault.kind.number, os.strerror(fault.kind.number))


def _break(connection: Connection) -> None:
    """Let the database fail for *connection*: PostgreSQL ends its process, SQLite meets a bad disk."""
    raw = connection.connection.dbapi_connection
    if isinstance(raw, sqlite3.Connection):
        bad = sqlite3.OperationalError("disk I/O error")
        raise OperationalError("a statement", {}, bad)
    assert isinstance(raw, psycopg.Connection)
    info = raw.info
    parameters = {
        "host": info.host, "port": info.port, "user": info.user, "password": info.password,
        "dbname": info.dbname,
    }  # fmt: skip
    with psycopg.connect(**parameters, autocommit=True) as other:  # type: ignore[arg-type]
        # The second argument waits until it is gone.
        other.execute("SELECT pg_terminate_backend(%s, 10000)", (info.backend_pid,))


def _label(statement: str) -> str:
    verb = statement.split(maxsplit=1)[0].upper()
    if verb in {"PRAGMA", "BEGIN"}:
        return verb
    table = _TABLE.search(statement)
    return f"{verb} {table[1]}" if table else verb
