"""Probes: bounded looks at the parts that this process needs.

Anybody may ask, so an answer is kept for a few seconds, and no part is asked twice at once: a part
that hangs costs one thread, however many ask.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Hanging
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import select

from ..adapters import objectstore
from ..db import catalog, engine, outages, schema
from ..outbox import files as stores
from ..purge import clocks
from ..purge.brake import COMMAND
from ..services import Services
from . import status
from .status import Status

OK = "ok"
WRONG_KEYS = "VAULT_KEYS opens none of the newest vault keys: add the key that wrapped them"
CLOCK_MOVED = (
    "has moved, so purging is stopped until it is back; if it is right as it is: "
    "`accountsvc sweeps allow --clock`"
)
DATABASE_BEHIND = "is newer than the database, as after a restore: run `accountsvc ledger replay`"
LEDGER_GONE = (
    "is empty though it was written: give it its store back, or run `accountsvc ledger rebuild`; "
    "`accountsvc ledger adopt` if a key was replaced"
)
UNMAPPED = (
    "has tables that refer to accounts, are on no data map and may fail purges: {}; "
    "let each row go with its account (ON DELETE CASCADE), or move them elsewhere"
)
LINES_MISSING = "lacks the lines of receipts: run `accountsvc ledger verify`"

# All probes of one request may take so long together. A load balancer waits longer for its answer:
# otherwise a hanging part would look like a dead process, which would be restarted for nothing.
PROBE_PATIENCE = timedelta(seconds=3)
# An answer is given again for so long without another look. A fault is looked at again sooner:
# otherwise a part that is back would be called away for long.
ANSWER_KEPT = timedelta(seconds=5)
FAULT_KEPT = timedelta(seconds=1)
# The answer to "are purged people back" is given again for longer. Its probe reads the ledger's
# newest objects and changes with a restore only: asked every few seconds, it would be most of what
# the object store has to do.
LEDGER_ANSWER_KEPT = timedelta(seconds=60)
# The tables of other programs change with an installation, and to list all of them takes a few
# statements for each schema.
CATALOG_KEPT = timedelta(minutes=10)
# A look at the ledger reads the objects of so many receipts besides the newest: with the ten of a
# worker, a slow store would seem to hang.
LEDGER_SAMPLED = 3
# Sweeps are late after this many of their intervals without one; a single slow sweep is no alarm.
SWEEPS_MISSED = 5


@cache
def _revisions() -> tuple[str | None, frozenset[str]]:
    """Return the newest revision of the schema that this code knows, and all that it knows.

    The files of the revisions are read once for each process.
    """
    scripts = ScriptDirectory(str(schema.migrations_path()))
    known = frozenset(script.revision for script in scripts.walk_revisions())
    return scripts.get_current_head(), known


def _brake_in_words(counts: Status) -> str:
    if counts.brake.held_at is None:
        return OK
    return f"holds: {counts.braked} wait; look who they are, then run `{COMMAND}`"


def _deadline() -> float:
    return time.monotonic() + PROBE_PATIENCE.total_seconds()


class Probe:
    """One look at a part: ``ok``, or what is wrong in words without any address or secret."""

    def __init__(
        self,
        look: Callable[[], str | None],
        *,
        lifetime: timedelta | None = None,
        fault_lifetime: timedelta | None = None,
    ) -> None:
        self._look = look
        self._fault_lifetime = FAULT_KEPT if fault_lifetime is None else fault_lifetime
        self._lifetime = ANSWER_KEPT if lifetime is None else lifetime
        self._lock = threading.Lock()
        self._answer: Future[str] | None = None
        self._answered_at = 0.0

    def read(self, deadline: float | None = None) -> str:
        """Return the answer, no older than its lifetime.

        A part that has not answered by *deadline* (of the monotonic clock; default: in
        ``PROBE_PATIENCE``) is said to hang.
        """
        deadline = _deadline() if deadline is None else deadline
        try:
            return self.ask().result(max(0.0, deadline - time.monotonic()))
        except Hanging:
            return f"does not answer within {PROBE_PATIENCE.total_seconds():.0f} s"

    def ask(self) -> Future[str]:
        """Begin to look, unless somebody is at it or an answer is still good."""
        with self._lock:
            if self._answer is None or (self._answer.done() and self._is_old(self._answer)):
                self._answer = Future()
                # Look in a daemon thread: a part that hangs would keep any other thread from
                # ending, and the process with it.
                threading.Thread(target=self._look_for, args=(self._answer,), daemon=True).start()
            return self._answer

    def _is_old(self, answer: Future[str]) -> bool:
        lifetime = self._lifetime if answer.result() == OK else self._fault_lifetime
        return time.monotonic() - self._answered_at >= lifetime.total_seconds()

    def _look_for(self, answer: Future[str]) -> None:
        try:
            state = self._look() or OK
        except Exception as exc:
            state = f"fails ({type(exc.__cause__ or exc).__name__})"
        self._answered_at = time.monotonic()
        answer.set_result(state)


class Probes:
    """The parts of *services*, as this process reaches them."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._database = Probe(self._ask_database)
        self._schema = Probe(self._ask_schema)
        self._restored = Probe(self._ask_ledger, lifetime=LEDGER_ANSWER_KEPT)
        # A backup that is put back under running processes is noticed by this within seconds.
        self._generation = Probe(self._ask_generation)
        # What is amiss stays so until somebody mends it: looked at each second, it would be read
        # as often.
        self._ledger_whole = Probe(
            self._look_at_ledger, lifetime=LEDGER_ANSWER_KEPT, fault_lifetime=LEDGER_ANSWER_KEPT
        )
        self._vault = Probe(self._ask_vault)
        self._clock = Probe(self._ask_clock)
        self._catalog = Probe(
            self._ask_catalog, lifetime=CATALOG_KEPT, fault_lifetime=LEDGER_ANSWER_KEPT
        )
        # What the last look at the catalog has found, for people: only some of it is a fault.
        self.unmapped: Sequence[catalog.Unmapped] = ()
        self._parts = {
            "broker": Probe(self._ask_broker),
            "storage": Probe(partial(stores.check, services.database, services.avatars)),
            "mail": Probe(services.mailer.check),
            "ledger": Probe(services.ledger.check),
        }

    def ready(self) -> dict[str, str]:
        """Return the parts that this process cannot serve without, each ``ok`` or what is wrong.

        These are the database; its schema, unless that is newer than this code, as while a new
        version is rolled out; and the ledger, if somebody in it is back, as after a restore that
        was not replayed. A ledger that cannot be read says nothing about that, and no request needs
        it: then it is ``ok``. A part that cannot be asked because the one before it is away is left
        out.
        """
        deadline = _deadline()
        parts = {"database": self._database.read(deadline)}
        if parts["database"] == OK:
            parts["schema"] = self._schema.read(deadline)
        if parts.get("schema") == OK:
            asked = (self._restored, self._generation)
            back = any(probe.read(deadline) == DATABASE_BEHIND for probe in asked)
            parts["ledger"] = DATABASE_BEHIND if back else OK
        return parts

    def parts(self) -> dict[str, str]:
        """Return every part, each ``ok`` or what is wrong; all are asked at once."""
        for probe in self._parts.values():
            probe.ask()
        needed = self.ready()
        deadline = _deadline()
        parts = {name: probe.read(deadline) for name, probe in self._parts.items()}
        if needed.get("schema") == OK:
            parts["vault"] = self._vault.read(deadline)
            parts["clock"] = self._clock.read(deadline)
            parts["catalog"] = self._catalog.read(deadline)
            # The ledger answers three questions: can it be written, is it whole, and is anybody of
            # it back. The last is the worst one, and would be hidden by an ``ok`` of the others.
            if parts["ledger"] == OK:
                parts["ledger"] = self._ledger_whole.read(deadline)
        if needed.get("ledger") == DATABASE_BEHIND:
            parts["ledger"] = DATABASE_BEHIND
        return {**needed, **parts}

    def standing(self) -> tuple[dict[str, str], Status | None]:
        """Return every part as :meth:`parts` does, and the counts, or None if there are none.

        They cannot be read while the database is away or its schema is behind.
        """
        parts = self.parts()
        return parts, self._counts() if parts["database"] == parts.get("schema") == OK else None

    def describe(self) -> dict[str, Any]:
        """Return how everything stands, in numbers and words and without anybody's data.

        ``sweep`` and ``backlog`` are None while they cannot be counted; times are aware, in UTC.
        """
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
                "clock_moved_at": counts.clock_moved_at,
                "braked": counts.brake.held_at is not None,
                "braked_at": counts.brake.held_at,
                "brake": _brake_in_words(counts),
            }
            backlog = self._backlog(counts)
            troubles = (
                counts.failing_again,
                counts.stuck,
                counts.unexplained,
                counts.unkept,
                counts.owes_what_is_late,
                counts.orphans.is_refused,
                self._canary_problem(counts),
            )
            fine = fine and not (late or sweep["braked"] or any(troubles))
        return {
            "status": OK if fine else "degraded",
            "parts": parts,
            "sweep": sweep,
            "backlog": backlog,
            "unmapped_tables": [one.table for one in self.unmapped],
        }

    def _backlog(self, counts: Status) -> dict[str, Any]:
        return {
            "due": counts.due,
            "held": counts.held,
            "failing": counts.failing,
            "failing_again": counts.failing_again,
            "stuck": counts.stuck,
            "unexplained": counts.unexplained,
            "braked": counts.braked,
            "oldest_overdue_seconds": round(counts.overdue.total_seconds()),
            "owed": counts.owed,
            "owed_failing": counts.owed_failing,
            "owed_oldest_seconds": {
                kind: round(age.total_seconds()) for kind, age in counts.owed_oldest.items()
            },
            "paused": counts.paused,
            "delayed": dict(counts.delayed),
            "refused": dict(counts.refused),
            "unscrubbed": counts.unscrubbed if self._services.settings.is_sqlite else 0,
            "under_way": counts.under_way,
            "oldest_under_way_seconds": round(counts.oldest_under_way.total_seconds()),
            "unkept": counts.unkept,
            "oldest_unsealed_seconds": round(counts.unsealed_late.total_seconds()),
            "orphans": counts.orphans.count,
            "orphans_oldest_seconds": round(counts.orphans.oldest.total_seconds()),
            "orphans_refused": counts.orphans.is_refused,
            "canary": self._canary_problem(counts) or (OK if counts.canary.passed_at else None),
            "canary_passed_at": counts.canary.passed_at,
        }

    def _canary_problem(self, counts: Status) -> str | None:
        return counts.canary.problem(counts.at, is_daily=self._services.settings.canary)

    def _counts(self) -> Status | None:
        try:
            with self._services.reading() as session:
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
        """Say whether sweeps should have run and did not; while purging is stopped they are not."""
        if counts.paused_at is not None or counts.clock_moved_at is not None:
            return False
        # With an interval of a second, as tests and demonstrations have it, five of them are no
        # time at all: any busy moment would look like an outage.
        interval = max(self._services.settings.sweep_interval, PROBE_PATIENCE)
        longest = SWEEPS_MISSED * interval
        last_at = counts.swept_at
        # Who waits for the brake is overdue by its will, and no sweep would change that.
        is_overdue = counts.overdue > longest and counts.brake.held_at is None
        # A clock that was ahead leaves a mark of a time to come: by it alone, sweeps that stand
        # still would not be late until then.
        return is_overdue or (last_at is not None and abs(counts.at - last_at) > longest)

    def _ask_database(self) -> None:
        with self._services.reading() as session:
            session.execute(select(1))

    def _ask_schema(self) -> str | None:
        head, known = _revisions()
        with self._services.reading() as session:
            current = MigrationContext.configure(session.connection()).get_current_revision()
        behind = current is None or (current != head and current in known)
        return "is behind: run `python -m accountsvc prepare`" if behind else None

    def _ask_ledger(self) -> str | None:
        return DATABASE_BEHIND if self._services.restore.is_behind() else None

    def _ask_generation(self) -> str | None:
        return DATABASE_BEHIND if self._services.restore.has_gone_back() else None

    def _ask_clock(self) -> str | None:
        differs = self._services.clocks.differ()
        if differs is not None:
            return f"{differs}, so nothing is purged: set the wrong one right"
        with self._services.reading() as session:
            return None if clocks.stopped_at(session) is None else CLOCK_MOVED

    def _ask_catalog(self) -> str | None:
        self.unmapped = self._services.unmapped_tables()
        refer = [one.table for one in self.unmapped if one.refers]
        return UNMAPPED.format(", ".join(refer)) if refer else None

    def _look_at_ledger(self) -> str | None:
        look = self._services.restore.look(sampled=LEDGER_SAMPLED)
        if look.is_gone:
            return LEDGER_GONE
        if look.missing or look.lost:
            return LINES_MISSING
        if look.untrusted:
            return (
                f"holds {len(look.untrusted)} that are not trusted, and ignored: "
                "run `accountsvc ledger verify`"
            )
        if look.unsealed:
            return f"holds {look.unsealed} without a seal: run `accountsvc ledger adopt`"
        return None

    def _ask_vault(self) -> str | None:
        return None if self._services.vault_keys_fit() else WRONG_KEYS

    def _ask_broker(self) -> None:
        url = self._services.settings.celery_broker_url
        parts = urlsplit(url)
        if parts.scheme == "filesystem":
            with objectstore.file_errors():
                objectstore.check_folder(Path(unquote(parts.path)))
            return
        # Where Redis is not used, importing it would be a seventh of the time that a start takes.
        from redis import Redis

        with Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as redis:
            redis.ping()
