"""Finish a purge: write down what has become true of it, and in the end that it is completed.

A purge owes ``purge.finish`` behind all else that it owes. The effect waits while anything of that
is to come, and is not owed meanwhile. Then the purge is *completed*.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from sqlalchemy import ColumnElement, Select, exists, func, select, update
from sqlalchemy.orm import Session

from ..adapters.avatarstore import AvatarStore
from ..db import facts, rows
from ..db.engine import Clock, Database
from ..db.models import Account, Effect, Receipt
from ..db.proofs import (
    COMPLETED,
    FACTS,
    FILES_ABSENT,
    LEDGER_WRITTEN,
    NOT_TOLD,
    RESIDUE_FOUND,
    SCRUBBED,
    TOLD,
    VERIFIED,
    ReceiptFact,
)
from ..outbox import files as stores
from ..outbox import gone, moments, queue
from ..outbox.payloads import Finish
from ..outbox.queue import Outcome, Owed

log = structlog.get_logger(__name__)

# While anything else is to come, it is looked for so often.
AGAIN_AFTER = timedelta(minutes=1)
# A purge without its effect (a process of the release before has done it) is found so long after.
ADOPTED_WITHIN = timedelta(days=7)
ADOPTED_AFTER = timedelta(minutes=1)
ADOPT_EVERY = timedelta(minutes=10)

# With this error a purge of which something was left is owed until nothing is found.
RESIDUE = "ResidueFound"

# Is called with the effects of purges that are completed, and with the time; says what becomes of
# these effects. It is outside any transaction.
Look = Callable[[Sequence[Owed], datetime], Outcome]


def look_nowhere(_effects: Sequence[Owed], _now: datetime) -> Outcome:
    """Be done with whatever is completed."""
    return Outcome()


@dataclass(frozen=True)
class Finisher:
    """The handler of ``purge.finish``, on one database and its store of files.

    Each purge waits until its files are absent, the ledger has its line, its owner was told or will
    never be, and on SQLite the file was scrubbed since. What of that nobody has written down,
    though nothing is owed for it, is written down here. Then *completed* is, and *look* is called.
    """

    database: Database
    avatars: AvatarStore
    look: Look = look_nowhere

    def __call__(self, effects: Sequence[Owed], now: datetime) -> Outcome:
        finishes = {
            effect.subject: Finish.read(effect.payload) for effect in effects if effect.subject
        }
        with self.database.reading() as session:
            standing = _Standing.read(session, finishes)
            files_wait = queue.waits(session, queue.DELETE_FILE)
        failed = {} if files_wait else self._delete_again(finishes, standing)
        completed = self._write(finishes, standing, failed, now)
        outcome = Outcome()
        finished = []
        for effect in effects:
            error = None if effect.subject is None else failed.get(effect.subject)
            if error is not None:
                outcome.failed[effect.uid] = error
            elif effect.subject is None or effect.subject in completed:
                finished.append(effect)
            elif standing.has(effect.subject, RESIDUE_FOUND):
                # It waits for another scrub, and is an alarm until nothing is found.
                outcome.failed[effect.uid] = RESIDUE
            else:
                outcome.later[effect.uid] = now + AGAIN_AFTER
        if finished:
            # Here each place is looked into: what is found in one is a residue.
            looked = self.look(finished, now)
            outcome.failed |= looked.failed
            outcome.later |= looked.later
            outcome.then |= looked.then
            outcome.settled = looked.settled
        return outcome

    def _delete_again(
        self, finishes: Mapping[uuid.UUID, Finish], standing: _Standing
    ) -> dict[uuid.UUID, str]:
        """Ask the store for the files of whom nobody knows that they are absent.

        Deleting what is gone does nothing, and says whether it is. Returns an error for each purge
        of which a file may be there.
        """
        keys = {
            key: subject
            for subject, finish in finishes.items()
            for key in finish.files
            if not standing.has(subject, FILES_ABSENT)
            and not standing.owes(subject, queue.DELETE_FILE)
        }
        if not keys:
            return {}
        shown, left = stores.delete_unshown(self.database, self.avatars, keys)
        failed = {keys[key]: "FileIsShown" for key in shown}
        return failed | {keys[key]: error for key, error in left.items()}

    def _write(
        self,
        finishes: Mapping[uuid.UUID, Finish],
        standing: _Standing,
        failed: Mapping[uuid.UUID, str],
        now: datetime,
    ) -> set[uuid.UUID]:
        """Write what nobody has written down; return who is completed.

        What is owed was read first, and nothing is added to it once the account is gone. So what
        was not owed then has happened, or never will.
        """
        is_sqlite = self.database.engine.dialect.name == "sqlite"
        missing: dict[str, list[uuid.UUID]] = {}
        completed = set()
        for subject, finish in finishes.items():
            if subject in failed:
                continue
            true = standing.facts[subject] & set(_MOMENTS)
            for fact, kind in _MOMENTS.items():
                if not standing.has(subject, fact) and not standing.owes(subject, kind):
                    missing.setdefault(fact, []).append(subject)
                    true.add(fact)
            if true == set(_MOMENTS) and (finish.scrubbed or not is_sqlite):
                completed.add(subject)
                if not standing.has(subject, COMPLETED):
                    missing.setdefault(COMPLETED, []).append(subject)
        if missing:
            with self.database.writing() as session:
                for fact in (*_MOMENTS, COMPLETED):
                    why = {"why": moments.NOT_RECORDED} if fact == NOT_TOLD else None
                    facts.add(session, fact, missing.get(fact, []), now=now, details=why)
        return completed


# What makes a purge complete, and the kind of effect that is owed until then. One who was told
# counts like one who was not.
_MOMENTS = {
    FILES_ABSENT: queue.DELETE_FILE,
    LEDGER_WRITTEN: queue.LEDGER,
    NOT_TOLD: queue.PURGED,
}


@dataclass(frozen=True)
class _Standing:
    """What is owed to each purge, by kind, and what is true of it."""

    owed: Mapping[uuid.UUID, set[str]]
    facts: Mapping[uuid.UUID, set[str]]

    @classmethod
    def read(cls, session: Session, subjects: Mapping[uuid.UUID, object]) -> _Standing:
        # What is owed is read before what is true: the other way round an effect that is settled in
        # between would be neither.
        owed: dict[uuid.UUID, set[str]] = {subject: set() for subject in subjects}
        for subject in gone.read_owed(session).people & owed.keys():
            owed[subject].add(queue.LEDGER)
        for chunk in rows.chunks(list(subjects)):
            found = session.execute(
                select(Effect.subject, Effect.kind).where(
                    Effect.subject.in_(chunk),
                    Effect.kind.in_([queue.DELETE_FILE, queue.PURGED]),
                )
            )
            for its_subject, kind in found:
                if its_subject is not None:
                    owed[its_subject].add(kind)
        true = {
            subject: {NOT_TOLD if fact == TOLD else fact for fact in known}
            for subject, known in facts.of(session, list(subjects)).items()
        }
        return cls(owed, true)

    def has(self, subject: uuid.UUID, fact: str) -> bool:
        return fact in self.facts[subject]

    def owes(self, subject: uuid.UUID, kind: str) -> bool:
        return kind in self.owed[subject]


def waits_for_a_scrub() -> ColumnElement[bool]:
    """Select what finishes a purge of which SQLite's file may still hold something."""
    return (Effect.kind == queue.FINISH) & Finish.is_scrubbed(Effect.payload).is_not(True)


def have_due(session: Session, subjects: Sequence[uuid.UUID], now: datetime) -> None:
    """Have the finishing of these purges looked at now, where it only waits for that."""
    for chunk in rows.chunks(subjects):
        rows.change(
            session,
            update(Effect)
            .where(
                Effect.subject.in_(chunk),
                Effect.kind == queue.FINISH,
                Effect.last_error.is_(None),
                Effect.due_at > now,
            )
            .values(deliver_after=now, due_at=now),
        )


def to_come(known: Set[str], *, is_sqlite: bool) -> list[str]:
    """Return what is still to become true of a purge of which *known* is true, in its order."""
    if COMPLETED in known:
        return []
    told = TOLD if known.isdisjoint({TOLD, NOT_TOLD}) else COMPLETED
    scrubbed = SCRUBBED if is_sqlite else COMPLETED
    wanted = dict.fromkeys([FILES_ABSENT, LEDGER_WRITTEN, told, scrubbed, COMPLETED])
    return sorted(wanted.keys() - known, key=FACTS.index)


def owed_to(session: Session, public_id: uuid.UUID) -> Sequence[Effect]:
    """Return what is owed of one purge, also what waits; what finishes it only if it fails.

    The ledger's lines are owed for whole batches, of no subject: those with its line are returned.
    """
    fails = Effect.last_error.is_not(None)
    its_own = (Effect.subject == public_id) & ((Effect.kind != queue.FINISH) | fails)
    query = select(Effect).where(its_own | (Effect.kind == queue.LEDGER))
    return [
        effect
        for effect in session.scalars(query.order_by(Effect.id))
        if effect.kind != queue.LEDGER or public_id in moments.people_in([effect])
    ]


def count_under_way(session: Session, now: datetime) -> tuple[int, timedelta]:
    """Count the purges that are not completed; return also how long ago the oldest has begun."""
    is_completed = exists().where(
        ReceiptFact.public_id == Effect.subject, ReceiptFact.fact == COMPLETED
    )
    count, oldest = session.execute(
        select(func.count(), func.min(Effect.created_at)).where(
            Effect.kind == queue.FINISH, ~is_completed
        )
    ).one()
    return count, timedelta() if oldest is None else now - oldest


@dataclass
class Adopter:
    """Owes what finishes a purge to the purges that lack it, once in a while in a process.

    A process of the release before owes no such thing for the accounts that it purges.
    """

    _looked_at: float | None = field(default=None, init=False)

    def adopt(self, database: Database, clock: Clock) -> int:
        """Look for such purges, if it is time; return how many were found, a chunk at most."""
        now = time.monotonic()
        if self._looked_at is not None and now - self._looked_at < ADOPT_EVERY.total_seconds():
            return 0
        self._looked_at = now
        return adopt(database, clock)


def adopt(database: Database, clock: Clock) -> int:
    """Owe ``purge.finish`` to the purges of a week that lack it, a chunk at most; return how many.

    Safe beside itself: one that is owed twice is finished twice, to the same facts.
    """
    with database.reading() as session:
        lacking = _lacking(clock(session))
        found = session.scalars(lacking).all()
    if not found:
        return 0
    with database.writing() as session:
        now = clock(session)
        found = session.scalars(lacking.where(Receipt.public_id.in_(found))).all()
        effects = [
            queue.row(queue.FINISH, subject=public_id, now=now, payload=Finish())
            for public_id in found
        ]
        queue.record_all(session, effects)
    log.info("purges without an end of their own are finished", count=len(found))
    return len(found)


def _lacking(now: datetime) -> Select[uuid.UUID]:
    is_finished = exists().where(
        ReceiptFact.public_id == Receipt.public_id, ReceiptFact.fact.in_([COMPLETED, VERIFIED])
    )
    is_owed = exists().where(Effect.subject == Receipt.public_id, Effect.kind == queue.FINISH)
    # Whom a restore has brought back, and a hold keeps, would be taken for what is left of them.
    is_back = exists().where(Account.public_id == Receipt.public_id)
    return (
        select(Receipt.public_id)
        .where(
            Receipt.purged_at.between(now - ADOPTED_WITHIN, now - ADOPTED_AFTER),
            ~is_finished,
            ~is_owed,
            ~is_back,
        )
        .order_by(Receipt.purged_at)
        .limit(rows.CHUNK)
    )
