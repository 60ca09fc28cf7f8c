"""Look into every place for what may be left of purged accounts, and erase it again.

The data map says how each place is looked into. It is done for many accounts at once: a statement
for each column that could hold them, and a question to the store for each file. A place that cannot
be looked into is stated, with the moment until which it may still hold something.

A residue is erased by the map alone, and only of somebody who is surely purged: there is a receipt,
no account with the number or the public id, and no open hold. In doubt the alarm is all.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from ..adapters.avatarstore import AvatarStore
from ..db import audit, datamap, facts, proofs, rows
from ..db.audit import SYSTEM_ACTOR
from ..db.datamap import For, Place, Purge, Verified
from ..db.engine import Clock, Database
from ..db.models import Account, Effect, LegalHold, Receipt, ReceiptFact
from ..db.text import rfc3339
from ..outbox import files as stores
from ..outbox import kept, queue
from ..outbox.payloads import FileDeletion, Finish
from ..outbox.queue import Outcome, Owed
from .finish import RESIDUE

log = structlog.get_logger(__name__)

# A place is stated with this where it cannot be asked, because nobody has written down for what.
UNKNOWN = "the number is not known"

# The same residue is written down once in so long, however often it is tried to get rid of it.
SAID_AGAIN_AFTER = timedelta(days=1)

# What is owed of these kinds is the work that ends with the verification, and no residue.
_NO_RESIDUE = (queue.FINISH, queue.DELETE_FILE)


@dataclass(frozen=True)
class Purged:
    """A purged account, as what is owed behind its purge knows it.

    ``account_id`` is None where it is not known; then nothing can be looked for by it. ``files``
    are the keys of its avatar files.
    """

    public_id: uuid.UUID
    account_id: int | None
    files: Sequence[str]

    @classmethod
    def of(cls, effects: Sequence[Owed]) -> list[Purged]:
        """Return the accounts whose purges *effects* finish."""
        found = []
        for effect in effects:
            if effect.subject is not None:
                finish = Finish.read(effect.payload)
                found.append(cls(effect.subject, finish.account_id, finish.files))
        return found


@dataclass(frozen=True)
class Residue:
    """So many rows, versions of files or the like that are left in a place of the data map."""

    place: str
    count: int


Residues = Mapping[uuid.UUID, Sequence[Residue]]


@dataclass(frozen=True)
class Verifier:
    """The look behind the completion of purges, for their ``purge.finish``, in one process.

    Called with these effects it is done with those of whom nothing is left; the others fail, and
    what was found is erased again. *backups_kept* is how long a backup is kept.
    """

    database: Database
    avatars: AvatarStore
    clock: Clock
    backups_kept: timedelta

    def __call__(self, effects: Sequence[Owed], _now: datetime) -> Outcome:
        purged = Purged.of(effects)
        residues = self.look(purged)
        self.erase_again(purged, residues)
        return Outcome(
            failed={effect.uid: RESIDUE for effect in effects if effect.subject in residues},
            settled=self._write_verified,
        )

    def look(self, purged: Sequence[Purged]) -> Residues:
        """Return what is left of *purged*, by public id; whoever is not named is found nowhere.

        Call it outside of any transaction. Raises StoreUnavailable.
        """
        found: dict[uuid.UUID, list[Residue]] = {}
        numbers = {one.account_id: one.public_id for one in purged if one.account_id is not None}
        ids = {one.public_id: one.public_id for one in purged}
        with self.database.reading() as session:
            for place in datamap.PLACES:
                counts = _count_rows(session, place, numbers, ids)
                _add(found, place.name, counts)
        keys = {key: one.public_id for one in purged for key in one.files}
        of_files: dict[uuid.UUID, int] = {}
        left = self.avatars.remaining(list(keys)) if keys else {}
        if len(left) < len(keys):
            stores.refuse_wrong_store(self.database, self.avatars)
        for key, count in left.items():
            of_files[keys[key]] = of_files.get(keys[key], 0) + count
        _add(found, _place_of(Verified.STORE).name, of_files)
        return found

    def _write_verified(self, session: Session, effects: Sequence[Owed], now: datetime) -> None:
        """Write of those whose purges *effects* finish that nothing is left of them.

        The fact says which places were looked into, and of the others until when they are stated.
        """
        purged = Purged.of(effects)
        true = facts.of(session, [one.public_id for one in purged])
        erased_at = _erased_at(session, purged)
        alike: list[tuple[dict[str, Any], list[uuid.UUID]]] = []
        for one in purged:
            scrub = true[one.public_id].get(proofs.SCRUBBED)
            details = self._details(
                one,
                erased_at.get(one.public_id, now),
                by_bytes=scrub is not None and bool(scrub.details.get("looked")),
            )
            # Those of one batch of a purge have the same details.
            if not alike or alike[-1][0] != details:
                alike.append((details, []))
            alike[-1][1].append(one.public_id)
        for details, public_ids in alike:
            facts.add(session, proofs.VERIFIED, public_ids, now=now, details=details)

    def _details(self, purged: Purged, erased_at: datetime, *, by_bytes: bool) -> dict[str, Any]:
        """Return the places that were looked into, and those that are stated, with until when."""
        engine = self.database.engine.dialect.name
        looked: list[str] = []
        stated: dict[str, str | None] = {}
        for place in datamap.PLACES:
            if place.engine not in (None, engine):
                continue
            if _asks(place, purged) or (place.verified is Verified.BYTES and by_bytes):
                looked.append(place.name)
            elif _is_unknown(place, purged):
                stated[place.name] = UNKNOWN
            elif place.verified in (Verified.BYTES, Verified.STATED):
                stated[place.name] = self._until(place, erased_at)
        return {"places": looked, "stated": stated}

    def _until(self, place: Place, erased_at: datetime) -> str | None:
        """Return until when *place* may hold something; None if it holds nothing of anybody."""
        kept_for = place.stated_for
        if kept_for is For.OPERATOR:
            return str(kept_for.value)
        if place.verified is Verified.STATED and kept_for is None:
            return None
        if not isinstance(kept_for, timedelta):
            kept_for = self.backups_kept
        return rfc3339(erased_at + kept_for)

    def erase_again(self, purged: Sequence[Purged], residues: Residues) -> None:
        """Alarm of *residues*, write them down, and erase them of whoever is surely purged.

        Of somebody who has an account, by the number or the public id, or an open hold, or no
        receipt, nothing is touched. Files are owed a deletion.
        """
        left = [one for one in purged if one.public_id in residues]
        if not left:
            return
        with self.database.writing() as session:
            now = self.clock(session)
            doubtful = _doubtful(session, left)
            sure = [one for one in left if one.public_id not in doubtful]
            _write_down(session, residues, now)
            _erase(session, sure, now)
            if self.database.engine.dialect.name == "sqlite":
                _scrub_again(session, sure, residues)
            self._owe_files(session, sure, residues, now)
        for public_id, of_one in residues.items():
            for residue in of_one:
                log.error(
                    "something is left of a purged account",
                    public_id=str(public_id),
                    place=residue.place,
                    count=residue.count,
                    erased=public_id not in doubtful,
                )

    def _owe_files(
        self, session: Session, sure: Sequence[Purged], residues: Residues, now: datetime
    ) -> None:
        files = _place_of(Verified.STORE).name
        keys = {
            key: one.public_id
            for one in sure
            if any(residue.place == files for residue in residues[one.public_id])
            for key in one.files
        }
        owed = {
            key
            for chunk in rows.chunks(list(keys))
            for key in session.scalars(queue.files_owed(chunk))
        }
        queue.record_all(
            session,
            [
                queue.row(queue.DELETE_FILE, subject=subject, now=now, payload=FileDeletion(key))
                for key, subject in keys.items()
                if key not in owed
            ],
        )


def _place_of(verified: Verified) -> Place:
    return next(place for place in datamap.PLACES if place.verified is verified)


def _asks(place: Place, purged: Purged) -> bool:
    """Say whether *place* was asked whether it holds anything of *purged*."""
    if _is_unknown(place, purged):
        return False
    is_asked = place.columns_of_number() or place.columns_of_public_id()
    return bool(is_asked) or place.verified is Verified.STORE


def _is_unknown(place: Place, purged: Purged) -> bool:
    """Say whether *place* knows people only by what is not known of *purged*: number and files."""
    if purged.account_id is not None:
        return False
    by_number = bool(place.columns_of_number()) and place.purge is not Purge.ACCOUNT
    return by_number or (place.verified is Verified.STORE and not purged.files)


def _add(
    found: dict[uuid.UUID, list[Residue]], place: str, counts: Mapping[uuid.UUID, int]
) -> None:
    for public_id, count in counts.items():
        found.setdefault(public_id, []).append(Residue(place, count))


def _count_rows(
    session: Session,
    place: Place,
    numbers: Mapping[int, uuid.UUID],
    ids: Mapping[uuid.UUID, uuid.UUID],
) -> dict[uuid.UUID, int]:
    """Count the rows of *place* that name one of the accounts, by public id.

    A row with the number and the public id of one counts twice where both are asked.
    """
    counts: dict[uuid.UUID, int] = {}
    asked: list[tuple[ColumnElement[Any], Mapping[Any, uuid.UUID]]] = [
        *((column, numbers) for column in place.columns_of_number()),
        *((column, ids) for column in place.columns_of_public_id()),
    ]
    for column, names in asked:
        for chunk in rows.chunks(list(names)):
            query = select(column, func.count()).where(column.in_(chunk)).group_by(column)
            if place.model is Effect:
                query = query.where(Effect.kind.not_in(_NO_RESIDUE))
            for value, count in session.execute(query):
                counts[names[value]] = counts.get(names[value], 0) + count
    if place.model is Effect:
        for public_id in _in_payloads(session, ids):
            counts[public_id] = counts.get(public_id, 0) + 1
    return counts


def _in_payloads(session: Session, ids: Collection[uuid.UUID]) -> Iterable[uuid.UUID]:
    """Yield the public ids that stand in effects of no subject, such as lines for the ledger."""
    for payload in session.scalars(select(Effect.payload).where(Effect.subject.is_(None))):
        said = str(payload)
        yield from (public_id for public_id in ids if str(public_id) in said)


def _erased_at(session: Session, purged: Sequence[Purged]) -> dict[uuid.UUID, datetime]:
    ids = [one.public_id for one in purged]
    query = select(Receipt.public_id, Receipt.purged_at)
    return {
        public_id: at
        for chunk in rows.chunks(ids)
        for public_id, at in session.execute(query.where(Receipt.public_id.in_(chunk)))
    }


def _doubtful(session: Session, left: Sequence[Purged]) -> set[uuid.UUID]:
    """Return the public ids of those of whom nothing may be erased, whatever was found."""
    known = _erased_at(session, left)
    doubtful = {one.public_id for one in left if one.public_id not in known}
    by_number = {one.account_id: one.public_id for one in left if one.account_id is not None}
    ids, numbers = [one.public_id for one in left], list(by_number)
    living = select(Account.id, Account.public_id).where(
        or_(Account.public_id.in_(ids), Account.id.in_(numbers))
    )
    for number, public_id in session.execute(living):
        doubtful |= {public_id, by_number.get(number, public_id)}
    held = select(LegalHold.account_id).where(
        LegalHold.account_id.in_(numbers), LegalHold.released_at.is_(None)
    )
    return doubtful | {by_number[number] for number in session.scalars(held)}


def _erase(session: Session, sure: Sequence[Purged], now: datetime) -> None:
    """Empty the tables of the map of *sure*, in its order, as a purge does."""
    numbers = [one.account_id for one in sure if one.account_id is not None]
    subjects = [one.public_id for one in sure]
    if not subjects:
        return
    for model in datamap.purged_by_account():
        statement = delete(model).where(model.account_id.in_(numbers))  # type: ignore[attr-defined]
        if model is LegalHold:
            statement = statement.where(LegalHold.released_at.is_not(None))
        rows.change(session, statement)
    kept.forget(session, subjects, now)
    drafts = Effect.subject.in_(subjects) & Effect.kind.not_in(_NO_RESIDUE)
    rows.change(session, delete(Effect).where(drafts))


def _scrub_again(session: Session, sure: Sequence[Purged], residues: Residues) -> None:
    """Have purges whose rows were erased wait for a scrub: the bytes are in the file still."""
    files = _place_of(Verified.STORE).name
    of_rows = [
        one.public_id
        for one in sure
        if any(residue.place != files for residue in residues[one.public_id])
    ]
    unscrubbed = func.json_set(Effect.payload, "$.scrubbed", func.json("false"))
    for chunk in rows.chunks(of_rows):
        rows.change(
            session,
            update(Effect)
            .where(Effect.subject.in_(chunk), Effect.kind == queue.FINISH)
            .values(payload=unscrubbed),
        )


def _write_down(session: Session, residues: Residues, now: datetime) -> None:
    """Write a fact and an audit event of each residue that has not been written down lately."""
    lately = {
        (fact.public_id, fact.details.get("place"), fact.details.get("count"))
        for chunk in rows.chunks(list(residues))
        for fact in session.scalars(
            select(ReceiptFact).where(
                ReceiptFact.public_id.in_(chunk),
                ReceiptFact.fact == proofs.RESIDUE_FOUND,
                ReceiptFact.at > now - SAID_AGAIN_AFTER,
            )
        )
    }
    for public_id, of_one in residues.items():
        for residue in of_one:
            if (public_id, residue.place, residue.count) in lately:
                continue
            details = {"place": residue.place, "count": residue.count}
            facts.add(session, proofs.RESIDUE_FOUND, [public_id], now=now, details=details)
            audit.record(
                session,
                "residue.found",
                subject=public_id,
                by=SYSTEM_ACTOR,
                now=now,
                place=residue.place,
                count=residue.count,
            )
