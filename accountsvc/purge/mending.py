"""Give the ledger what it lacks: seals for objects of before, and objects that were lost.

The receipts in the database decide what a purge was. Nothing is written here that they do not say.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select

from ..adapters import ledger as ledgers
from ..adapters.ledger import Batch, Ledger
from ..adapters.ledgerseal import LOST, Flaw, Line, Opened, Untrusted
from ..db import audit
from ..db.audit import Actor
from ..db.engine import Database, database_now
from ..db.models import KeptLine, Receipt
from ..db.rows import chunks
from ..outbox import gone, kept
from ..outbox.marks import take_marks
from . import restore
from .erase import ledger_line

_COLUMNS = (
    Receipt.public_id,
    Receipt.deactivated_at,
    Receipt.deactivated_by,
    Receipt.purge_at,
    Receipt.purged_at,
    Receipt.saved_passwords,
    Receipt.files,
)
# The names of objects of which neither the store nor the outbox knows the uuid are made of this.
_NAMESPACE = uuid.UUID("5c1c4d3e-6f0b-4c3a-9e55-0d1f0b9e7a46")
_ADOPTED = frozenset({Flaw.UNSEALED, Flaw.UNKNOWN_KEY})
# What nobody can read, or has changed, is written over. One that an unknown key has sealed is not:
# it may be whole, and that key only be missing from the list.
_OVERWRITTEN = frozenset(
    {Flaw.LOST, Flaw.EMPTY, Flaw.UNREADABLE, Flaw.BAD_SIGNATURE, Flaw.MOVED, Flaw.UNSEALED}
)

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Adoption:
    """One object without a seal that counts, and what its lines are worth.

    ``batch`` holds the lines that have an equal receipt, None if there is none; ``others`` are the
    public ids of the rest, or what stands in their place.
    """

    name: str
    batch: Batch | None
    others: Sequence[str]

    @property
    def is_whole(self) -> bool:
        return self.batch is not None and not self.others


@dataclass(frozen=True)
class Rebuilding:
    """An object to write anew under ``batch.name``; ``flaw`` is what is amiss with it."""

    batch: Batch
    flaw: Flaw

    @property
    def is_known(self) -> bool:
        """Whether receipts say what was in it."""
        return all(line.get("kind") != LOST for line in self.batch.lines)


@dataclass(frozen=True)
class Mending:
    """One database beside its ledger, which is given what the receipts say."""

    database: Database
    ledger: Ledger

    def plan_adoption(self) -> list[Adoption]:
        """Compare each object that has no seal, or one of an unknown key, with the receipts.

        Raises StoreUnavailable if the ledger cannot be read.
        """
        return [
            self._adoption(one)
            for one in self.ledger.scan()
            if isinstance(one, Untrusted) and one.flaw in _ADOPTED
        ]

    def _adoption(self, found: Untrusted) -> Adoption:
        lines = {_person(line): line for line in found.lines}
        known = self._receipts_of([person for person in lines if person is not None])
        equal = [line for person, line in lines.items() if person and known.get(person) == line]
        others = [
            str(line.get("public_id", "a line without an id"))
            for person, line in lines.items()
            if person is None or known.get(person) != line
        ]
        # A sealed name holds one object: with a part of its lines, the rest would be overwritten.
        in_place = ledgers.is_sealed_name(found.name)
        if not equal or (in_place and others):
            return Adoption(found.name, None, others)
        at = max(datetime.fromisoformat(str(line["purged_at"])) for line in equal)
        return Adoption(found.name, Batch(_uuid_of(found.name), equal, at), others)

    def adopt(self, adoptions: Iterable[Adoption], *, by: Actor) -> int:
        """Seal what *adoptions* found equal to receipts; return the number of objects.

        An object of a release before the seals gets a name that sorts by time, and its old one is
        removed once that is written, if nothing else was in it. Safe to repeat.

        Raises StoreUnavailable if something could not be written.
        """
        done = 0
        for adoption in adoptions:
            if adoption.batch is None:
                continue
            self._add(adoption.batch)
            if adoption.is_whole and adoption.name != adoption.batch.name:
                self.ledger.store.remove(adoption.name)
            done += 1
        self._audit("ledger.adopted", done, by)
        return done

    def plan_rebuilding(self) -> list[Rebuilding]:
        """Return the objects to write anew: of receipts without a line, and of lost links.

        Raises StoreUnavailable if the ledger cannot be read.
        """
        with self.database.reading() as session:
            everybody = {row.public_id for row in session.execute(select(Receipt.public_id))}
            owed = gone.read_owed(session)
        survey = restore.Survey(self.ledger)
        amiss = {one.name: one.flaw for one in survey.untrusted.values()}
        amiss |= {one.name: one.flaw for one in survey.lost(owed.names)}
        missing = everybody - survey.people - owed.people
        plans = self._of_receipts(list(missing), amiss)
        written = {plan.batch.name for plan in plans}
        for name, flaw in sorted(amiss.items()):
            at = ledgers.moment_of(name)
            if at is None or name in written or flaw not in {Flaw.LOST, Flaw.REPLACED}:
                continue
            # Of a lost object without a receipt nothing is left to write but that it is lost.
            there = self.ledger.open(name)
            lines = there.lines if isinstance(there, Opened) else [{"kind": LOST}]
            plans.append(Rebuilding(Batch(_uuid_of(name), lines, at), flaw))
        return plans

    def _of_receipts(
        self, missing: Sequence[uuid.UUID], amiss: Mapping[str, Flaw]
    ) -> list[Rebuilding]:
        """Put the receipts of *missing* back into batches, one for each moment of purging."""
        by_moment: dict[datetime, list[Line]] = {}
        for line in self._receipts_of(missing).values():
            at = datetime.fromisoformat(str(line["purged_at"]))
            by_moment.setdefault(at, []).append(line)
        damaged: dict[datetime, str] = {}
        for name in sorted(amiss):
            moment = ledgers.moment_of(name)
            if moment is not None and amiss[name] in _OVERWRITTEN:
                damaged.setdefault(moment, name)
        plans = []
        for at, lines in sorted(by_moment.items()):
            lines.sort(key=lambda line: str(line["public_id"]))
            name = damaged.get(at, "")
            ids = ",".join(str(line["public_id"]) for line in lines)
            batch = _uuid_of(name) if name else uuid.uuid5(_NAMESPACE, ids)
            plans.append(Rebuilding(Batch(batch, lines, at), amiss.get(name, Flaw.LOST)))
        return plans

    def lost_lines(self, *, by_unknown_key: bool = False) -> list[KeptLine]:
        """Return the returns and holds that are lost, or those that an unknown key has sealed.

        Raises StoreUnavailable if the ledger cannot be read.
        """
        with self.database.reading() as session:
            known = session.scalars(select(KeptLine).where(KeptLine.object_name.is_not(None))).all()
        lost = restore.Restore(self.database, self.ledger).lost_of(known)
        if not by_unknown_key:
            return lost
        names = [line.object_name or "" for line in lost]
        found = self.ledger.open_kept(names)
        bad = {
            one.name for one in found if isinstance(one, Untrusted) and one.flaw is Flaw.UNKNOWN_KEY
        }
        return [line for line in lost if line.object_name in bad]

    def write_lines(self, lines: Sequence[KeptLine]) -> None:
        """Write returns and holds anew, each under its name. Safe to repeat.

        Raises StoreUnavailable if something could not be written.
        """
        for line in lines:
            assert line.object_name is not None
            self.ledger.keep(line.object_name, kept.document(line))

    def rebuild(self, plans: Iterable[Rebuilding], *, by: Actor) -> int:
        """Write the objects of *plans*; return how many. Safe to repeat.

        Raises StoreUnavailable if something could not be written.
        """
        done = 0
        for plan in plans:
            self._write(plan.batch)
            done += 1
        self._audit("ledger.rebuilt", done, by)
        return done

    def _add(self, batch: Batch) -> None:
        """Write *batch*, with what the ledger has under its name already."""
        there = self.ledger.open(batch.name)
        lines = list(there.lines) if isinstance(there, Opened) else []
        known = {line.get("public_id") for line in lines}
        added = [line for line in batch.lines if line["public_id"] not in known]
        if added:
            self._write(replace(batch, lines=[*lines, *added]))

    def _write(self, batch: Batch) -> None:
        marks = take_marks(self.database, self.ledger, 1)
        seals, last = self.ledger.seal_all([batch], marks, again=True)
        self.ledger.append(batch, seals[0])
        self.ledger.follow(last)

    def _audit(self, action: str, number: int, by: Actor) -> None:
        if number:
            with self.database.writing() as session:
                now = database_now(session)
                audit.record(session, action, subject=None, by=by, now=now, count=number)

    def _receipts_of(self, people: Sequence[uuid.UUID]) -> dict[uuid.UUID, dict[str, Any]]:
        """Return the ledger's line of each of *people* who has a receipt."""
        with self.database.reading() as session:
            return {
                row.public_id: dict(ledger_line(row._asdict()))
                for chunk in chunks(people)
                for row in session.execute(select(*_COLUMNS).where(Receipt.public_id.in_(chunk)))
            }


def _uuid_of(name: str) -> uuid.UUID:
    return uuid.UUID(name.removesuffix(".jsonl")[-36:])


def _person(line: Line) -> uuid.UUID | None:
    try:
        return uuid.UUID(str(line.get("public_id")))
    except ValueError:
        return None
