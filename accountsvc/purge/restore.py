"""A restore from a backup: find who is back, refuse to purge meanwhile, verify the ledger.

The database is compared with its ledger by public id only, since somebody else may have got an
account's number in the meantime. Only lines of trusted objects count, everywhere: whoever may write
into the ledger's store could otherwise have an active account purged.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from ..adapters import ledger as ledgers
from ..adapters.ledger import Ledger, Newest
from ..adapters.ledgerseal import Flaw, Line, Link, Opened, Untrusted
from ..db import entries, generations, rules
from ..db.engine import Database, database_now
from ..db.models import Account, KeptLine, Receipt
from ..db.rows import CHUNK, chunks
from ..errors import StoreUnavailable
from ..outbox import gone, kept
from . import claim, stops
from .claim import PlannedPurge
from .heads import Heads

log = structlog.get_logger(__name__)

# A look compares the receipts of so many people with the ledger, chosen anew each time: enough to
# notice within hours that a part is lost, and few enough reads for once a minute.
SAMPLED = 10


@dataclass(frozen=True)
class Look:
    """What a bounded look at the ledger has found amiss; ``unsealed`` wait for `ledger adopt`.

    ``missing`` holds the public ids of receipts without a trusted line, ``unkept`` counts returns
    and holds that should be in the ledger by now, and ``lost`` those that were, and are not.
    """

    untrusted: list[Untrusted]
    missing: list[uuid.UUID]
    unsealed: int
    unkept: int
    lost: int
    is_gone: bool

    def say(self) -> None:
        """Say in the log what is amiss, each with its command."""
        for untrusted in self.untrusted:
            ledgers.log_untrusted(untrusted)
        if self.missing:
            log.error(
                "receipts have no line in the ledger: `accountsvc ledger rebuild` writes them",
                public_ids=[str(public_id) for public_id in self.missing],
            )
        if self.unsealed:
            ledgers.log_unsealed(self.unsealed)
        if self.lost:
            log.error(
                "returns or holds are lost from the ledger: `accountsvc ledger rebuild`",
                count=self.lost,
            )
        if self.unkept:
            log.error(
                "returns and holds are not in the ledger yet, and a restore would lose them",
                count=self.unkept,
            )


@dataclass(frozen=True)
class Verification:
    """The ledger and the database, compared.

    ``lines``, ``receipts`` and ``owed`` count people: in the ledger, with a receipt, and with a
    line that waits in the outbox. ``back`` holds the ids of accounts that the ledger calls purged,
    ``missing`` the public ids of receipts without a line, ``differing`` those of receipts that are
    not what their line says. ``untrusted`` are objects that are
    ignored, or that are lost though another one was sealed behind them; ``unsealed`` counts those
    of releases before the seals, which wait for `ledger adopt`. ``lost`` are returns and holds
    whose object is not there, or not what it was; ``lost_seals`` are such seals of the audit trail,
    by number. ``is_behind`` says that the database is the older
    one.
    """

    lines: int
    receipts: int
    owed: int
    back: list[int]
    missing: list[uuid.UUID]
    differing: list[uuid.UUID]
    untrusted: list[Untrusted]
    unsealed: int
    lost: list[KeptLine]
    lost_seals: list[int]
    is_behind: bool

    @property
    def agrees(self) -> bool:
        amiss = (self.back, self.missing, self.untrusted, self.unsealed, self.lost, self.is_behind)
        return not any(amiss) and not self.lost_seals and not self.differing


@dataclass(frozen=True)
class Restore:
    """One database beside its ledger. Nothing here changes either of them."""

    database: Database
    ledger: Ledger

    def refuse_after_restore(self) -> None:
        """Raise DatabaseBehind while :meth:`is_behind`.

        Raises LedgerUnreadable if the ledger cannot be read, and LedgerGone if nothing of what was
        written is there. Objects that are not trusted are named in the log, and refuse nothing.
        """
        try:
            newest = self.ledger.newest()
            is_gone = not newest.objects and gone.is_gone(self.database, self.ledger)
            behind = self._is_behind(newest)
        except StoreUnavailable as exc:
            raise stops.LedgerUnreadable from exc
        for untrusted in newest.untrusted:
            ledgers.log_untrusted(untrusted)
        if is_gone:
            raise stops.LedgerGone
        if behind:
            raise stops.DatabaseBehind

    def is_behind(self) -> bool:
        """Say whether the database is older than its ledger, whatever came after the backup.

        So it is if the ledger got an object last that this database has not sealed, if a person in
        there has no receipt or an account, or while a replay is not done. Costs the same however
        old the service is. Raises StoreUnavailable if the ledger cannot be read.
        """
        return self._is_behind(self.ledger.newest())

    def has_gone_back(self) -> bool:
        """Say whether the database has not sealed what this process has seen in the ledger.

        It asks the database alone, and so may be asked often.
        """
        with self.database.reading() as session:
            return not generations.knows(session, self.ledger.seen)

    def look(self, *, sampled: int = SAMPLED) -> Look:
        """Look at the newest objects, the newest receipt's, and those of *sampled* other receipts.

        Costs the same however old the service is. Raises StoreUnavailable if the ledger cannot be
        read.
        """
        newest = self.ledger.newest()
        unsealed = self.ledger.unsealed()
        with self.database.reading() as session:
            unkept = kept.count_overdue(session, database_now(session))
            lines = kept.sample(session, sampled)
        others = self._not_trusted(self.ledger.newest_kept())
        untrusted = {one.name: one for one in [*newest.untrusted, *others]}
        missing: list[uuid.UUID] = []
        # An object of before the seals may hold a receipt that has no other line.
        if not unsealed:
            for receipt in self._sample(sampled):
                there = self.ledger.of_moment(receipt.purged_at)
                untrusted |= {one.name: one for one in there if isinstance(one, Untrusted)}
                if str(receipt.public_id) not in _people(there):
                    missing.append(receipt.public_id)
        if missing:
            # Read behind the ledger: a line that is written meanwhile is owed no more.
            missing = self._still_missing(missing)
        return Look(
            untrusted=list(untrusted.values()),
            missing=missing,
            unsealed=unsealed,
            unkept=unkept,
            lost=len(self.lost_of(lines)),
            is_gone=not newest.objects and gone.is_gone(self.database, self.ledger),
        )

    def verify(self) -> Verification:
        """Compare the whole ledger with the database, safely while purges go on.

        Raises StoreUnavailable if the ledger cannot be read.
        """
        # Read the receipts before the ledger; the other way round, somebody who is purged in
        # between would have a receipt and seem to have no line.
        with self.database.reading() as session:
            receipts = set(session.scalars(select(Receipt.public_id)))
            owed = gone.read_owed(session)
            known = session.scalars(select(KeptLine).where(KeptLine.object_name.is_not(None))).all()
        comparison = _Comparison(self.database)
        survey = Survey(self.ledger, comparison)
        foreign = self._not_trusted(self.ledger.kept())
        heads = Heads(self.database, self.ledger).find()
        return Verification(
            lines=len(survey.people),
            receipts=len(receipts),
            owed=len(owed.people),
            back=[planned.account_id for planned in self._back(sorted(survey.people, key=str))],
            missing=sorted(receipts - survey.people - owed.people, key=str),
            differing=comparison.finish(),
            untrusted=[
                *survey.untrusted.values(),
                *survey.lost(owed.names),
                *foreign,
                *heads.untrusted,
            ],
            unsealed=survey.unsealed,
            lost=self.lost_of(known),
            lost_seals=[*heads.lost, *heads.by_unknown_key],
            is_behind=self.is_behind(),
        )

    def _not_trusted(self, objects: Iterable[Opened | Untrusted]) -> list[Untrusted]:
        """Return those that are not trusted, without those that are owed to be removed."""
        found = [one for one in objects if isinstance(one, Untrusted)]
        if not found:
            return []
        with self.database.reading() as session:
            removed = kept.to_be_removed(session)
        return [one for one in found if one.name not in removed]

    def lost_of(self, lines: Sequence[KeptLine]) -> list[KeptLine]:
        """Return those of *lines* that the ledger had, and has not, or not as they were.

        Raises StoreUnavailable if the ledger cannot be read.
        """
        return gone.lost_of(self.database, self.ledger, lines)

    def _is_behind(self, newest: Newest) -> bool:
        marks = self.ledger.newest_marks(newest)
        purged = {
            uuid.UUID(line["public_id"]) for opened in newest.objects for line in opened.receipts
        }
        with self.database.reading() as session:
            return (
                not generations.is_replayed(session)
                or not generations.knows(session, marks)
                or any(_is_unknown(session, chunk) for chunk in chunks(sorted(purged, key=str)))
            )

    def _sample(self, size: int) -> Sequence[Receipt]:
        """Return the newest receipt, and *size* others from a random one on.

        Public ids are random, so their order is none of time: each part of the years comes in turn.
        """
        start = uuid.uuid4()
        with self.database.reading() as session:
            newest = select(Receipt).order_by(Receipt.purged_at.desc()).limit(1)
            some = select(Receipt).order_by(Receipt.public_id).limit(size)
            found = [
                *session.scalars(newest),
                *session.scalars(some.where(Receipt.public_id >= start)),
            ]
            if len(found) <= size:
                found += session.scalars(some.where(Receipt.public_id < start))
        return found[: size + 1]

    def _still_missing(self, missing: Sequence[uuid.UUID]) -> list[uuid.UUID]:
        """Leave out who is owed a line, and whose line has come while it was looked for."""
        with self.database.reading() as session:
            owed = gone.read_owed(session).people
            left = session.scalars(
                select(Receipt).where(Receipt.public_id.in_(set(missing) - owed))
            ).all()
        return [
            receipt.public_id
            for receipt in left
            if str(receipt.public_id) not in _people(self.ledger.of_moment(receipt.purged_at))
        ]

    def _back(self, purged: Sequence[uuid.UUID]) -> list[PlannedPurge]:
        with self.database.reading() as session:
            ids = [
                account_id
                for chunk in chunks(purged)
                for account_id in session.scalars(_back(chunk))
            ]
            return claim.count(session, ids)


def _back(purged: Sequence[uuid.UUID]) -> Select[int]:
    """Select the accounts of *purged* who are back, by id.

    Whoever is deactivated by a promise is not: a sweep purges them in their time, or a hold keeps
    them, as one from before the backup does after the replay.
    """
    waits = ~rules.is_active() & rules.is_explained()
    return select(Account.id).where(Account.public_id.in_(purged), ~waits)


def _is_unknown(session: Session, purged: Sequence[uuid.UUID]) -> bool:
    """Say whether anybody of *purged* is back, or lacks the receipt of the purge."""
    back = session.scalar(_back(purged).limit(1))
    receipts = session.scalar(
        select(func.count()).select_from(Receipt).where(Receipt.public_id.in_(purged))
    )
    return back is not None or receipts != len(purged)


class _Comparison:
    """The lines of a ledger beside the receipts, column by column, a chunk at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[Line] = []
        self._alike: set[uuid.UUID] = set()
        self._differing: set[uuid.UUID] = set()

    def see(self, lines: Sequence[Line]) -> None:
        """Take the lines of the next object."""
        self._waiting += lines
        while len(self._waiting) >= CHUNK:
            self._compare(self._waiting[:CHUNK])
            del self._waiting[:CHUNK]

    def finish(self) -> list[uuid.UUID]:
        """Return whose receipt is not what any of their lines says."""
        self._compare(self._waiting)
        return sorted(self._differing - self._alike, key=str)

    def _compare(self, lines: Sequence[Line]) -> None:
        people = {uuid.UUID(str(line["public_id"])) for line in lines}
        with self._database.reading() as session:
            receipts = entries.receipts(session, list(people))
        said = {number: row.document() for number, row in receipts.items()}
        for line in lines:
            number = uuid.UUID(str(line["public_id"]))
            # Whose receipt is not there is known otherwise: the database is the older one, or a
            # seal names it.
            if number in said:
                is_alike = entries.says(said[number], line)
                (self._alike if is_alike else self._differing).add(number)


class Survey:
    """All of a ledger, read once; remembers ids and names, and not the lines.

    ``people`` are in trusted objects, ``untrusted`` the other objects by name, without those of
    releases before the seals, which ``unsealed`` counts.
    """

    def __init__(self, ledger: Ledger, comparison: _Comparison | None = None) -> None:
        self.people: set[uuid.UUID] = set()
        self.untrusted: dict[str, Untrusted] = {}
        self.unsealed = 0
        self._trusted: dict[str, tuple[Link, bool]] = {}
        self._followed: list[Link] = []
        kinds: set[str] = set()
        for one in ledger.scan():
            if isinstance(one, Opened):
                self._note(one)
                kinds |= one.other_kinds
                if comparison is not None:
                    comparison.see(one.receipts)
            elif ledgers.is_unsealed(one):
                self.unsealed += 1
            else:
                self.untrusted[one.name] = Untrusted(one.name, one.flaw)
        ledgers.log_kinds(kinds)

    def _note(self, opened: Opened) -> None:
        self.people.update(uuid.UUID(line["public_id"]) for line in opened.receipts)
        self._trusted[opened.link.name] = (opened.link, opened.mended)
        if opened.previous is not None:
            self._followed.append(opened.previous)

    def lost(self, owed: Collection[str]) -> list[Untrusted]:
        """Return the objects that another one was sealed behind, and that are not as they were.

        Those that are *owed* are still to be written. One that was mended has other bytes than
        before, by the word of the key; and another name, if nobody knew the old one, but the same
        moment.
        """
        amiss: dict[str, Flaw] = {}
        moments = {ledgers.moment_of(name) for name, (_, mended) in self._trusted.items() if mended}
        for link in self._followed:
            if link.name in self.untrusted or link.name in owed:
                continue
            there, mended = self._trusted.get(link.name, (None, False))
            if there is None:
                if ledgers.moment_of(link.name) not in moments:
                    amiss[link.name] = Flaw.LOST
            elif there != link and not mended:
                amiss[link.name] = Flaw.REPLACED
        return [Untrusted(name, flaw) for name, flaw in sorted(amiss.items())]


def _people(objects: Iterable[Opened | Untrusted]) -> set[str]:
    return {
        line["public_id"]
        for opened in objects
        if isinstance(opened, Opened)
        for line in opened.receipts
    }
