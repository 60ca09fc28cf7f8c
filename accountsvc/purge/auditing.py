"""Verify the trail against its seals, and the seals against the ledger.

Whoever may write into the database, triggers or not, but has neither the key nor the ledger's
store, can change no sealed entry, take none away and put none in without being named here. Entries
are read seal by seal; what is remembered is 100 bytes a receipt.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from sqlalchemy import BigInteger, cast, func, select
from sqlalchemy.orm import Session

from ..adapters import ledger as ledgers
from ..adapters import merkle, sealform
from ..adapters.ledger import Ledger
from ..adapters.ledgerseal import Opened, SealKeys, Untrusted
from ..adapters.sealform import Header, Link
from ..db import entries
from ..db.engine import Clock, Database
from ..db.entries import EVENT, FACT, RECEIPT, Row, StoredSeal
from ..db.models import Seal
from ..db.rows import chunks
from . import seals
from .pruning import Pruned, pruned_ranges
from .restore import Restore, Verification
from .sealer import read_head
from .seals import Tail, Unsealed

# More findings are counted and not kept.
MOST = 100
# A head that the ledger lacks for longer was not merely on its way.
WRITTEN_WITHIN = timedelta(minutes=10)
_AT_ONCE = 5_000
# So many seals are read at once, with all their records.
_SEALS_AT_ONCE = 10
_LOWEST = -(2**63)
_HIGHEST = 2**63 - 1


class Why(Enum):
    """What is amiss, in the words of what is said about it."""

    CHANGED = "was changed"
    REMOVED = "was removed"
    INSERTED = "was inserted"
    MOVED = "has the place of another"
    BAD_SIGNATURE = "has a signature that does not fit it"
    UNKNOWN_KEY = "is signed by a key that LEDGER_PUBLIC_KEYS does not hold"
    CUT = "is in the ledger and not in the database"
    NOT_IN_LEDGER = "is not in the ledger"
    DIFFERS = "is not the one that the ledger has"
    UNSAID = "was pruned, and no event says so"
    TOO_YOUNG = "was pruned before its time"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was sealed: which *kind* and *key*, in which seal."""

    why: Why
    kind: str
    key: str
    seal: int | None = None


@dataclass(frozen=True)
class Lost:
    """Seals that a restore has lost: of which chain, which numbers, how many entries.

    *entries* is None for what the ledger does not have either.
    """

    chain: uuid.UUID
    first: int
    last: int
    entries: int | None = None


@dataclass
class Report:
    """What a verification has found; ``found`` counts also what ``findings`` has no room for."""

    seals: int = 0
    entries: int = 0
    pruned: int = 0
    last: Link | None = None
    unsealed: Unsealed | None = None
    findings: list[Finding] = field(default_factory=list)
    found: int = 0
    lost: list[Lost] = field(default_factory=list)
    ledger: Verification | None = None

    @property
    def is_whole(self) -> bool:
        return not self.found and (self.ledger is None or self.ledger.agrees)

    def add(self, why: Why, kind: str, key: str | int, seal: int | None = None) -> None:
        self.found += 1
        if len(self.findings) < MOST:
            self.findings.append(Finding(why, kind, str(key), seal))


@dataclass(frozen=True)
class Auditing:
    """One database beside its ledger, whose trail is verified. Nothing here changes anything."""

    database: Database
    ledger: Ledger
    clock: Clock
    retention: timedelta

    def verify(self) -> Report:
        """Verify all that is sealed, and the ledger, safely while everything runs.

        Raises StoreUnavailable if the ledger cannot be read.
        """
        report = Report()
        with self.database.reading() as session:
            highest = session.scalar(select(func.max(cast(Seal.number, BigInteger)))) or 0
            walk = _Walk(report, self.ledger.keys, pruned_ranges(session), self.retention)
        for numbers in self._numbers(highest):
            with self.database.reading() as session:
                for seal in entries.stored_seals(session, numbers):
                    walk.seal(session, seal)
        walk.places()
        last = walk.tail
        with self.database.reading() as session:
            # Of a seal that is missing nobody knows which receipts were in it.
            if report.seals and not walk.has_gaps:
                unsealed = _live(session, FACT, last.last_fact + 1, _HIGHEST)
                waits = {str(number) for number in entries.put_back(unsealed)}
                for key in entries.receipt_keys(session, after_event=last.last_event):
                    if key not in walk.receipts and key not in waits:
                        report.add(Why.INSERTED, RECEIPT, key)
            report.unsealed = seals.unsealed(session, last)
        report.last = last.link
        self._compare_ledger(report, highest)
        try:
            report.ledger = Restore(self.database, self.ledger).verify()
        except ValueError:
            # A public id that is none keeps the two from being compared: it is named above.
            if not report.found:
                raise
        return report

    def _numbers(self, highest: int) -> Iterator[Sequence[int]]:
        """Yield the numbers of all seals up to the *highest*, a few at a time."""
        after = _LOWEST
        while True:
            query = select(Seal.number).where(Seal.number > after, Seal.number <= highest)
            with self.database.reading() as session:
                found = session.scalars(query.order_by(Seal.number).limit(_SEALS_AT_ONCE)).all()
            if not found:
                return
            yield found
            after = found[-1]

    def _heads(self, highest: int) -> Iterator[tuple[int, str]]:
        """Yield number and head of each seal up to the *highest*, the latest first."""
        before = highest + 1
        columns = select(Seal.number, Seal.head).order_by(Seal.number.desc())
        while True:
            with self.database.reading() as session:
                found = session.execute(columns.where(Seal.number < before).limit(_AT_ONCE)).all()
            if not found:
                return
            yield from ((one.number, one.head) for one in found)
            before = found[-1].number

    def _compare_ledger(self, report: Report, highest: int) -> None:
        """Compare the seals of the database with those of the ledger, the latest first."""
        with self.database.reading() as session:
            since = self.clock(session) - WRITTEN_WITHIN
            waits = select(func.count()).select_from(Seal).where(Seal.sealed_at > since)
            unwritten = session.scalar(waits) or 0
        comparison = _Comparison(report, self._heads(highest), unwritten)
        for one in self.ledger.seals():
            comparison.see(one)
        comparison.finish()
        # What was sealed meanwhile is in the ledger, and not yet among what was read before.
        with self.database.reading() as session:
            for chunk in chunks(sorted(comparison.unknown)):
                known = session.execute(
                    select(Seal.number, Seal.head).where(Seal.number.in_(chunk))
                )
                for number, head in known:
                    if comparison.unknown[number] == head:
                        del comparison.unknown[number]
        for first, until in _ranges(sorted(comparison.unknown)):
            report.add(Why.CUT, "seal", str(first) if first == until else f"{first} to {until}")


class _Walk:
    """The way through all seals, the first one first."""

    def __init__(
        self, report: Report, keys: SealKeys, pruned: Sequence[Pruned], retention: timedelta
    ) -> None:
        self.report = report
        self.receipts: set[str] = set()
        self.has_gaps = False
        self._keys = keys
        self._pruned = pruned
        self._retention = retention
        self._before: Header | None = None
        # The last id that was looked at, by kind; none before the first seal.
        self._covered: dict[str, int] = {}
        # Rows whose hash is another than the sealed one, with that: two may have changed places.
        self._changed: list[tuple[Row, bytes, int]] = []

    @property
    def tail(self) -> Tail:
        """The last seal, if it could be believed, and up to which ids all was looked at."""
        link = None if self._before is None else self._before.link
        return Tail(link, None, self._covered.get(EVENT, 0), self._covered.get(FACT, 0))

    def seal(self, session: Session, seal: StoredSeal) -> None:
        """Verify one seal and all that it covers."""
        self.report.seals += 1
        header = self._header(seal)
        cut = list(seals.records(seal.entries))
        self.report.entries += len(cut)
        if header is not None:
            self._follow(header)
            self._check_records(seal, header, cut)
        is_pruned = seal.columns["pruned_at"] is not None
        if is_pruned:
            self._check_pruned(seal)
        expected: dict[str, dict[str, bytes]] = {EVENT: {}, FACT: {}, RECEIPT: {}}
        for record in cut:
            try:
                kind, key = seals.read_key(record)
            except (KeyError, ValueError):
                continue
            expected[kind][key] = record[17:]
        self.receipts.update(expected[RECEIPT])
        for kind, (first, until) in self._ranges(seal, header).items():
            self._compare(seal.number, _live(session, kind, first, until), expected[kind])
            self._name_removed(session, seal.number, kind, expected[kind], is_pruned)
        for chunk in chunks([uuid.UUID(key) for key in expected[RECEIPT]]):
            found = entries.receipts(session, chunk).values()
            self._compare(seal.number, found, expected[RECEIPT])
        self._name_removed(session, seal.number, RECEIPT, expected[RECEIPT], is_pruned)

    def _ranges(self, seal: StoredSeal, header: Header | None) -> dict[str, tuple[int, int]]:
        """Return which ids a seal covers, by its header, or by its row if that is all there is.

        From where the one before it has ended, so that what was put in between is looked at too;
        the first seal from the lowest id on.
        """
        column = seal.columns
        said = {
            EVENT: (column["first_event"], column["last_event"]),
            FACT: (column["first_fact"], column["last_fact"]),
        }
        if header is not None:
            said = {EVENT: header.events, FACT: header.facts}
        ranges = {}
        for kind, (first, last) in said.items():
            if not isinstance(first, int) or not isinstance(last, int):
                continue
            begin = _LOWEST if self.report.seals == 1 else first
            ranges[kind] = self._covered.get(kind, begin - 1) + 1, last
            self._covered[kind] = last
        return ranges

    def _header(self, seal: StoredSeal) -> Header | None:
        """Return the header if it can be believed; name what is amiss with it, or with its row."""
        number, column = seal.number, seal.columns
        try:
            header = Header.read(seal.header)
        except ValueError:
            self.report.add(Why.CHANGED, "seal", number)
            self._before = None
            return None
        if not sealform.is_signed(self._keys, seal.header, str(column["signature"]), header.key):
            is_known = sealform.knows(self._keys, header.key)
            why = Why.BAD_SIGNATURE if is_known else Why.UNKNOWN_KEY
            self.report.add(why, "seal", number)
            self._before = None
            return None
        said = {
            "chain": str(header.chain),
            "sealed_at": sealform.moment(header.sealed_at),
            "first_event": header.events[0],
            "last_event": header.events[1],
            "first_fact": header.facts[0],
            "last_fact": header.facts[1],
            "head": header.link.head,
        }
        if header.number != number:
            self.report.add(Why.MOVED, "seal", number)
        elif not seal.is_typed or any(column[name] != value for name, value in said.items()):
            self.report.add(Why.CHANGED, "seal", number)
        return header

    def _follow(self, header: Header) -> None:
        """Compare a header with the one before it; after one that cannot be believed, with none."""
        before, self._before = self._before, header
        if before is None:
            if self.report.seals == 1 and header.previous is not None:
                self._name_gap(f"before {header.number}")
            elif self.report.seals == 1 and header.continues is not None:
                self._lose(1, header)
            return
        if header.previous != before.link.head or header.number <= before.number:
            self._name_gap(_between(before.number, header.number))
            return
        if header.number > before.number + 1:
            self._lose(before.number + 1, header)
        begins = before.events[1] + 1, before.facts[1] + 1
        if (header.events[0], header.facts[0]) != begins:
            self.report.add(Why.CHANGED, "seal", header.number)

    def _name_gap(self, numbers: str) -> None:
        """Name seals that are missing; what they covered is not looked at: nobody knows it."""
        self.has_gaps = True
        self.report.add(Why.REMOVED, "seal", numbers)
        self._covered.clear()

    def _lose(self, first: int, header: Header) -> None:
        """Call the numbers from *first* to the one before *header* lost, as it says itself."""
        last = header.continues
        if last is not None and last.number == header.number - 1 and last.chain != header.chain:
            if last.number >= first:
                self.report.lost.append(Lost(last.chain, first, last.number))
            return
        self._name_gap(_between(first - 1, header.number))

    def _check_records(self, seal: StoredSeal, header: Header, cut: Sequence[bytes]) -> None:
        is_whole = (
            len(cut) == header.entries
            and hashlib.sha256(seal.entries).hexdigest() == header.records
            and all(len(record) == seals.RECORD_BYTES for record in cut)
            and merkle.root([record[17:] for record in cut]).hex() == header.root
        )
        if not is_whole:
            self.report.add(Why.CHANGED, "hashes", f"of seal {seal.number}", seal.number)

    def _check_pruned(self, seal: StoredSeal) -> None:
        self.report.pruned += 1
        try:
            pruned_at = datetime.fromisoformat(seal.columns["pruned_at"])
            sealed_at = datetime.fromisoformat(seal.columns["sealed_at"])
            is_young = pruned_at - sealed_at < self._retention
        except (TypeError, ValueError):
            self.report.add(Why.CHANGED, "seal", seal.number)
            return
        if not any(one.covers(seal.number, pruned_at) for one in self._pruned):
            self.report.add(Why.UNSAID, "seal", seal.number)
        elif is_young:
            self.report.add(Why.TOO_YOUNG, "seal", seal.number)

    def _compare(self, number: int, live: Iterable[Row], expected: dict[str, bytes]) -> None:
        """Compare rows with what is *expected* of them, and take from that what is there."""
        for row in live:
            sealed = expected.pop(row.key, None)
            if sealed is None:
                self.report.add(Why.INSERTED, row.kind, row.key, number)
            elif merkle.leaf_hash(seals.entry(row).text) != sealed:
                self._changed.append((row, sealed, number))
                if len(self._changed) >= MOST:
                    self.places()

    def _name_removed(
        self,
        session: Session,
        number: int,
        kind: str,
        missing: dict[str, bytes],
        is_pruned: bool,
    ) -> None:
        if not missing:
            return
        if kind == EVENT:
            # It may be pruned at this very moment.
            pruned_at = select(Seal.number).where(Seal.pruned_at.is_not(None))
            if is_pruned or session.scalar(pruned_at.where(Seal.number == number)):
                return
        for key in missing:
            self.report.add(Why.REMOVED, kind, key, number)

    def places(self) -> None:
        """Name the rows that were changed, and those among them that have another's place."""
        changed, self._changed = self._changed, []
        hashes = {sealed for _, sealed, _ in changed}
        for row, _, number in changed:
            elsewhere = any(
                merkle.leaf_hash(seals.entry(row.under(other.key)).text) in hashes
                for other, _, _ in changed
                if other.kind == row.kind and other is not row
            )
            why = Why.MOVED if elsewhere else Why.CHANGED
            self.report.add(why, row.kind, row.key, number)


class _Comparison:
    """The seals of the database beside those of the ledger, both the latest first."""

    def __init__(
        self,
        report: Report,
        heads: Iterator[tuple[int, str]],
        unwritten: int,
    ) -> None:
        self._report = report
        self._heads = heads
        self._head = next(heads, None)
        # So many of the latest may still be on their way.
        self._unwritten = unwritten
        self._seen_any = False
        # Numbers that the ledger has and the database has not, with their heads.
        self.unknown: dict[int, str] = {}

    def see(self, one: Opened | Untrusted) -> None:
        """Take the next object of the ledger."""
        header = read_head(one)
        name = one.name if isinstance(one, Untrusted) else one.link.name
        mark = ledgers.link_of_seal(name)
        # What is not trusted is named by the verification of the ledger.
        if mark is None:
            return
        number = mark.number
        self._pass(number)
        if header is not None:
            self._seen_any = True
        if self._head is not None and self._head[0] == number:
            if header is not None and header.link.head != self._head[1]:
                self._report.add(Why.DIFFERS, "seal", number)
            self._head = next(self._heads, None)
        elif header is not None and not self._is_lost(header):
            self.unknown[number] = header.link.head

    def finish(self) -> None:
        """Pass what the ledger has not."""
        self._pass(_LOWEST)

    def _pass(self, number: int) -> None:
        """Pass the seals above *number*, which the ledger lacks."""
        while self._head is not None and self._head[0] > number:
            if self._seen_any or self._unwritten <= 0:
                self._report.add(Why.NOT_IN_LEDGER, "seal", self._head[0])
            self._unwritten -= 1
            self._head = next(self._heads, None)

    def _is_lost(self, header: Header) -> bool:
        """Say whether a restore has lost this one, and count what was in it."""
        for index, gap in enumerate(self._report.lost):
            if gap.first <= header.number <= gap.last:
                counted = (gap.entries or 0) + header.entries
                self._report.lost[index] = Lost(gap.chain, gap.first, gap.last, counted)
                return True
        return False


def _live(session: Session, kind: str, first: int, last: int) -> Iterator[Row]:
    """Yield the rows of a range in id order, without holding all of them."""
    while first <= last:
        found = entries.in_range(session, kind, first, last, limit=_AT_ONCE)
        yield from found
        if len(found) < _AT_ONCE:
            return
        first = int(found[-1].key) + 1


def _between(before: int, after: int) -> str:
    first, last = before + 1, after - 1
    return str(first) if first >= last else f"{first} to {last}"


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Join *numbers* that follow each other."""
    first = until = None
    for number in numbers:
        if until is not None and first is not None and number != until + 1:
            yield first, until
            first = None
        first, until = number if first is None else first, number
    if first is not None and until is not None:
        yield first, until
