"""Whether the parts that this process needs are there, asked in bounded time.

Anybody may ask, so an answer is kept for a few seconds, and no part is asked twice at once: a part that
hangs costs one thread, however many ask.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Hanging
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from redis import Redis
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..adapters import objectstore
from ..db import engine, outages, schema
from ..services import Services
from . import status
from .status import Status

OK = "ok"
BACK = "purged accounts are back, as after a restore: run `flask --app wsgi ledger replay`"

# Shorter than the patience of a load balancer's probe.
PATIENCE = timedelta(seconds=3)
# As long as an answer is good for.
KEPT = timedelta(seconds=5)
FAULT_KEPT = timedelta(seconds=1)
# The ledger is read for it, and changes with a restore only.
LEDGER_KEPT = timedelta(seconds=60)
# So many intervals without a sweep are too many.
SWEEPS_MISSED = 5


@cache
def _revisions() -> tuple[str | None, frozenset[str]]:
    """Return the newest revision that this code knows, and all of them; they are read from files once."""
    script = ScriptDirectory(str(schema.migrations_path()))
    known = frozenset(one.revision for one in script.walk_revisions())
    return script.get_current_head(), known


def patience() -> float:
    return PATIENCE.total_seconds()


class Probe:
    """One look at a part: ``ok``, or what is wrong in words without any address or secret."""

    def __init__(self, look: Callable[[], str | None], *, kept: timedelta | None = None) -> None:
        self._look = look
        self._kept = (KEPT if kept is None else kept).total_seconds()
        self._lock = threading.Lock()
        self._answer: Future[str] | None = None
        self._answered_at = 0.0

    def read(self, deadline: float | None = None) -> str:
        """Return the answer, no older than it may be kept, by *deadline* (default: in PATIENCE)."""
        left = patience() if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return self.ask().result(left)
        except Hanging:
            return f"does not answer within {patience():.0f} s"

    def ask(self) -> Future[str]:
        """Begin to look, unless somebody is at it or an answer is still good."""
        with self._lock:
            if self._answer is None or (self._answer.done() and self._is_old(self._answer)):
                self._answer = Future()
                # A daemon, since a part that hangs must not keep the process from ending.
                threading.Thread(target=self._look_for, args=(self._answer,), daemon=True).start()
            return self._answer

    def _is_old(self, answer: Future[str]) -> bool:
        kept = self._kept if answer.result() == OK else FAULT_KEPT.total_seconds()
        return time.monotonic() - self._answered_at >= kept

    def _look_for(self, answer: Future[str]) -> None:
        try:
            found = self._look() or OK
        except Exception as exc:
            found = f"fails ({type(exc.__cause__ or exc).__name__})"
        self._answered_at = time.monotonic()
        answer.set_result(found)


class Probes:
    """The parts of *services*, as this process reaches them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._database = Probe(self._ask_database)
        self._schema = Probe(self._ask_schema)
        self._purged_stay_purged = Probe(self._ask_ledger, kept=LEDGER_KEPT)
        self._parts = {
            "broker": Probe(self._ask_broker),
            "storage": Probe(services.avatars.check),
            "mail": Probe(services.mailer.check),
            "ledger": Probe(services.ledger.check),
        }

    def ready(self) -> dict[str, str]:
        """Return what this process cannot serve without, each ``ok`` or what is wrong.

        The database; its schema, unless it is newer than this code, as while a new version is rolled
        out; and that nobody in the ledger is back, as after a restore that was not replayed. A ledger
        that cannot be read says nothing about that, and no request needs it: then it is ``ok``.
        """
        deadline = time.monotonic() + patience()
        found = {"database": self._database.read(deadline)}
        if found["database"] == OK:
            found["schema"] = self._schema.read(deadline)
        if found.get("schema") == OK:
            found["ledger"] = self._purged_stay_purged.read(deadline)
            if found["ledger"] != BACK:
                found["ledger"] = OK
        return found

    def parts(self) -> dict[str, str]:
        """Return every part, each ``ok`` or what is wrong; all are asked at once."""
        for probe in self._parts.values():
            probe.ask()
        needed = self.ready()
        deadline = time.monotonic() + patience()
        parts = {name: probe.read(deadline) for name, probe in self._parts.items()}
        # Whether it can be written, unless it says something worse.
        parts["ledger"] = BACK if needed.get("ledger") == BACK else parts["ledger"]
        return {**needed, **parts}

    def standing(self) -> tuple[dict[str, str], Status | None]:
        """Return every part as :meth:`parts` does, and the counts; None where they cannot be read."""
        parts = self.parts()
        return parts, self._counts() if parts["database"] == parts.get("schema") == OK else None

    def describe(self) -> dict[str, Any]:
        """Return how everything stands, in numbers and words and without anybody's data."""
        parts, counts = self.standing()
        fine = all(state == OK for state in parts.values())
        sweep: dict[str, Any] | None = None
        backlog: dict[str, Any] | None = None
        if counts is not None:
            late = self._sweeps_are_late(counts)
            age = None if counts.swept_at is None else counts.at - counts.swept_at
            sweep = {
                "last_at": counts.swept_at,
                "age_seconds": None if age is None else round(age.total_seconds()),
                "late": late,
                "paused": counts.paused_at is not None,
                "paused_at": counts.paused_at,
            }
            backlog = {
                "due": counts.due,
                "held": counts.held,
                "failing": counts.failing,
                "stuck": counts.stuck,
                "oldest_overdue_seconds": round(counts.overdue.total_seconds()),
                "owed": dict(counts.owed),
                "unscrubbed": counts.unscrubbed if self._services.settings.is_sqlite else 0,
            }
            fine = fine and not late and not counts.stuck
        return {
            "status": OK if fine else "degraded",
            "parts": parts,
            "sweep": sweep,
            "backlog": backlog,
        }

    def _counts(self) -> Status | None:
        try:
            with self._reading() as session:
                return status.read(
                    session,
                    now=engine.database_now(session),
                    max_attempts=self._services.settings.purge_max_attempts,
                    count_active=False,
                )
        except Exception as exc:
            if outages.is_passing_fault(exc):
                return None
            raise

    def _sweeps_are_late(self, counts: Status) -> bool:
        """Say whether sweeps should have run and did not; a pause is somebody's wish."""
        if counts.paused_at is not None:
            return False
        longest = SWEEPS_MISSED * max(self._services.settings.sweep_interval, PATIENCE)
        last = counts.swept_at
        return counts.overdue > longest or (last is not None and counts.at - last > longest)

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with self._services.reading() as session:
            yield session

    def _ask_database(self) -> None:
        with self._reading() as session:
            session.execute(select(1))

    def _ask_schema(self) -> str | None:
        head, known = _revisions()
        with self._reading() as session:
            current = MigrationContext.configure(session.connection()).get_current_revision()
        behind = current is None or (current != head and current in known)
        return "is behind: run `python -m accountsvc prepare`" if behind else None

    def _ask_ledger(self) -> str | None:
        return BACK if self._services.purged_are_back() else None

    def _ask_broker(self) -> None:
        url = self._services.settings.celery_broker_url
        parts = urlsplit(url)
        if parts.scheme == "filesystem":
            with objectstore.file_errors():
                objectstore.check_folder(Path(unquote(parts.path)))
            return
        with Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as redis:
            redis.ping()
