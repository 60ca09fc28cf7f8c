"""Store, mail, ledger or disk is dead for a while, and a process dies in the midst of it.

Whatever happens, nobody hears "gone" before it is gone. ``make faults`` does 500 runs on each engine;
without it there is a sample.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from apiflask import APIFlask
from sqlalchemy import select, update

from accountsvc.adapters.avatarstore import new_key
from accountsvc.db import facts
from accountsvc.db.engine import database_now
from accountsvc.db.models import Account, Effect
from accountsvc.db.proofs import (
    COMPLETED,
    FILES_ABSENT,
    LEDGER_WRITTEN,
    NOT_TOLD,
    RESIDUE_FOUND,
    SCRUBBED,
    TOLD,
    VERIFIED,
)
from accountsvc.monitoring import status
from accountsvc.outbox import queue
from accountsvc.purge import at_once
from accountsvc.services import Services
from tests.conftest import LONG_FAULTS
from tests.faults.injection import Fault, Kind, Operation, points_for, run
from tests.support.factories import (
    deliver_after,
    dispose,
    insert_accounts_in,
    make_app,
    put_files,
    run_sql,
    services_of,
)

RUNS = 500 if LONG_FAULTS else 3
SEED = int(os.environ.get("TEST_FAULT_SEED", "20261207"))
# A folder of each part; on a full or broken disk none of them can be used.
PARTS = {"store": ["media"], "mail": ["mail"], "ledger": ["ledger"]}
PARTS["disk"] = [folder for (folder,) in PARTS.values()]
SOON = timedelta(seconds=6)
OF_A_PURGE = [queue.LEDGER, queue.DELETE_FILE, queue.PURGED, queue.FINISH]

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@dataclass
class Place:
    """An application, its folders, and who is due in it; ``inside`` is the one that is hit."""

    outside: APIFlask
    inside: APIFlask
    instance: Path
    due: dict[uuid.UUID, str] = field(default_factory=dict)
    bystander: tuple[int, str] = (0, "")
    before: set[Path] = field(default_factory=set)
    samples: int = 0
    seen: set[str] = field(default_factory=set)

    @property
    def services(self) -> Services:
        return services_of(self.outside)

    def new_round(self) -> None:
        run_sql(self.services, "DELETE FROM purge_brake")
        # What rounds of before have left is not looked at again: that grows with each.
        self.before = {*self._in("ledger").rglob("*.jsonl"), *self._in("mail").glob("*.eml")}
        self.due = {uuid.uuid4(): new_key() for _ in range(2)}
        with self.services.writing() as session:
            past = database_now(session) - timedelta(hours=1)
            for public_id, key in self.due.items():
                self._add(session, public_id, key, past)
            key = new_key()
            self.bystander = (self._add(session, uuid.uuid4(), key, None), key)
        put_files(self.instance / "media", [*self.due.values(), key])

    @staticmethod
    def _add(session: object, public_id: uuid.UUID, key: str, purge_at: object) -> int:
        name = f"x{public_id.hex[:16]}"
        (account_id,) = insert_accounts_in(
            session,  # type: ignore[arg-type]
            [name],
            avatar_key=lambda _name: key,
            public_id=public_id,
            purge_at=purge_at,
        )
        return account_id

    # What is done

    def by_worker(self) -> list[Operation]:
        services = services_of(self.inside)
        return [
            ("sweep", lambda: services.sweep(seconds=60).purged),
            ("deliver", lambda: services.deliver(seconds=60).delivered),
            ("later", lambda: deliver_after(services, SOON).delivered),
            ("scrub", lambda: int(services.scrub(at_most_every=None))),
            ("finish", lambda: deliver_after(services, SOON).delivered),
        ]

    def by_command(self) -> list[Operation]:
        def purge() -> int:
            words = ["accounts", "purge", "--expired", "--yes"]
            code = self.inside.test_cli_runner().invoke(args=words).exit_code
            # Told by another number: the command has said that all is gone, and it is not.
            return 99 if code == 0 and self.is_there() else code

        return [("purge", purge)]

    def is_there(self) -> list[str]:
        """Name whose row or file is there, or of whom the ledger has no line."""
        files, ledger = self._files(), self._ledger()
        with self.services.reading() as session:
            rows = set(session.scalars(select(Account.public_id)))
        return [
            str(one)
            for one, key in self.due.items()
            if one in rows or key in files or str(one) not in ledger
        ]

    def kill(self, part: str | None) -> None:
        for name in PARTS.get(part or "", []):
            folder = self.instance / name
            folder.mkdir(exist_ok=True)
            folder.rename(self.instance / f"{name}.away")
            folder.touch()

    def mend(self) -> None:
        for away in self.instance.glob("*.away"):
            folder = away.with_suffix("")
            folder.unlink()
            away.rename(folder)

    def steps_after(self, chance: random.Random) -> Iterator[str]:
        """Do what a worker does later, a step at a time, the part is mended in the course of it."""
        services = self.services
        mended_at = chance.randrange(3)
        for number in range(7):
            if number == mended_at:
                self.mend()
            # Leases of the killed and pauses after a failure pass in a moment.
            with services.writing() as session:
                session.execute(
                    update(Effect)
                    .where(Effect.attempts > 0)
                    .values(deliver_after=Effect.created_at)
                )
            try:
                services.sweep(seconds=60)
            except at_once.stops.Refused:
                # The ledger is dead.
                yield "sweep refused"
            deliver_after(services, number * SOON, kinds=OF_A_PURGE)
            yield "delivered"
            services.scrub(at_most_every=None)
            yield "scrubbed"

    # What is seen

    def violations(self) -> list[str]:
        """Look once, and return what may not be at any moment."""
        self.samples += 1
        files, ledger, mails = self._files(), self._ledger(), self._mails()
        found = []
        with self.services.reading() as session:
            rows = set(session.scalars(select(Account.public_id)))
            true = facts.of(session, list(self.due))
            owed = {(one.subject, one.kind) for one in session.scalars(select(Effect))}
            failing = session.scalars(
                select(Effect.kind).where(Effect.last_error.is_not(None))
            ).all()
            now = database_now(session) + timedelta(hours=2)
            counts = status.read(session, now=now, max_attempts=3) if failing else None
            is_there = session.get(Account, self.bystander[0]) is not None
        for one, key in self.due.items():
            is_gone = one not in rows and key not in files and str(one) in ledger
            known = {fact: row.id for fact, row in true[one].items()}
            self.seen |= set(known)
            told = known.keys() & {TOLD, NOT_TOLD}
            if str(one) in mails and not is_gone:
                found.append("told before it was gone")
            if FILES_ABSENT in known and key in files:
                found.append("files absent, and one is there")
            if LEDGER_WRITTEN in known and str(one) not in ledger:
                found.append("ledger written, and it is not")
            if SCRUBBED in known and (not told or (one, queue.PURGED) in owed):
                found.append("scrubbed while an address waited")
            if COMPLETED in known:
                wanted = {FILES_ABSENT, LEDGER_WRITTEN, COMPLETED}
                if self.services.settings.is_sqlite:
                    wanted.add(SCRUBBED)
                before = max(number for fact, number in known.items() if fact != VERIFIED)
                if not (told and wanted <= known.keys() and before == known[COMPLETED]):
                    found.append(f"completed with {sorted(known)}")
            if VERIFIED in known and not 0 < known.get(COMPLETED, 0) < known[VERIFIED]:
                found.append("verified before it was completed")
            if RESIDUE_FOUND in known:
                found.append("something is left")
        if counts is not None:
            if not counts.owes_what_is_late:
                found.append("something fails, and nothing is late")
            if unseen := set(failing) - counts.owed_failing.keys():
                found.append(f"fails and is not seen: {sorted(unseen)}")
        if not is_there or self.bystander[1] not in files:
            found.append("the bystander lacks something")
        return found

    def unfinished(self) -> list[str]:
        with self.services.reading() as session:
            true = facts.of(session, list(self.due))
        return [
            f"never completed: {sorted(known)}" for known in true.values() if COMPLETED not in known
        ]

    def _in(self, name: str) -> Path:
        away = self.instance / f"{name}.away"
        return away if away.exists() else self.instance / name

    def _files(self) -> set[str]:
        return {path.name for path in self._in("media").rglob("*") if path.is_file()}

    def _ledger(self) -> str:
        return self._new("ledger", "*.jsonl")

    def _mails(self) -> str:
        return self._new("mail", "*.eml")

    def _new(self, name: str, form: str) -> str:
        folder, original = self._in(name), self.instance / name
        paths = [path for path in folder.rglob(form) if path.is_file()]
        new = [path for path in paths if original / path.relative_to(folder) not in self.before]
        return "".join(path.read_text() for path in new)


@pytest.fixture
def place(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(at_once, "LOCK_PATIENCE", timedelta(seconds=0.5))
    outside, inside = make_app(database_url, tmp_path), make_app(database_url, tmp_path)
    yield Place(outside, inside, services_of(outside).settings.instance_path)
    for app in (outside, inside):
        dispose(app)


def test_nobody_hears_gone_before_it_is_gone_whatever_is_dead_and_wherever_a_process_dies(
    place: Place, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(SEED)
    engine = services_of(place.inside).database.engine
    ways = [place.by_worker, place.by_command]
    points = []
    for way in ways:
        place.new_round()
        place.services.database.engine.dispose()
        report = run(engine, way())
        assert (report.status, report.trace) == (0, "")
        points.append(points_for(Kind.KILL, report.points))
    violations: list[str] = []

    for number in range(RUNS):
        place.new_round()
        part = chance.choice([None, *PARTS])
        way = number % 2
        fault = Fault(Kind.KILL, chance.choice(points[way])) if chance.random() < 0.8 else None
        place.kill(part)
        place.services.database.engine.dispose()
        report = run(engine, ways[way](), fault)
        found = place.violations()
        if report.answers.get("purge") == 99:
            found.append("exit code 0 before all was gone")
        for _ in place.steps_after(chance):
            found += place.violations()
        found += place.unfinished()
        where = f"{part} dead, {fault and fault.point}, {ways[way].__name__}"
        violations += [f"run {number} ({where}): {one}" for one in found]

    record_property("samples", place.samples)
    assert violations == []
    assert place.samples > 10 * RUNS
    assert place.seen >= {FILES_ABSENT, LEDGER_WRITTEN, TOLD, COMPLETED, VERIFIED}
