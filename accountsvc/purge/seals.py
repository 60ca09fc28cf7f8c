"""What a seal of the trail covers, what it keeps of each entry, and how one entry is proved."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..adapters import merkle, sealform
from ..adapters.sealform import Link
from ..db.entries import EVENT, FACT, RECEIPT, Row
from ..db.models import AuditEvent, Receipt, ReceiptFact, Seal
from ..db.proofs import LEDGER_WRITTEN

# What is there is sealed by then; sooner where a receipt waits, whose owner wants to show it.
AT_MOST_EVERY = timedelta(minutes=5)
RECEIPTS_AT_MOST_EVERY = timedelta(minutes=1)
# So many events, and as many facts, are one seal: a row of 300 KB, with as many receipts.
MOST = 2_000
RECORD_BYTES = 49
_LETTERS = {EVENT: b"e", FACT: b"f", RECEIPT: b"r"}
_KINDS = {letter: kind for kind, letter in _LETTERS.items()}


@dataclass(frozen=True)
class Entry:
    """One entry of a seal: *text* is what is hashed, and can be read."""

    kind: str
    key: str
    text: bytes

    @property
    def record(self) -> bytes:
        """What the seal's row keeps of it: letter, id and hash, 49 bytes."""
        return record_key(self.kind, self.key) + merkle.leaf_hash(self.text)


def entry(row: Row) -> Entry:
    """Return the entry of *row*, which is the same for as long as no byte of the row changes."""
    return Entry(row.kind, row.key, sealform.canonical(row.document()))


def record_key(kind: str, key: str) -> bytes:
    """Return the letter and the id of an entry, with which its record begins.

    Raises ValueError or OverflowError for a *key* that no entry has.
    """
    if kind == RECEIPT:
        return _LETTERS[kind] + uuid.UUID(key).bytes
    return _LETTERS[kind] + int(key).to_bytes(16, "big", signed=True)


def read_key(record: bytes) -> tuple[str, str]:
    """Return kind and id of a *record*. Raises KeyError for a letter of no kind."""
    kind = _KINDS[record[:1]]
    if kind == RECEIPT:
        return kind, str(uuid.UUID(bytes=record[1:17]))
    return kind, str(int.from_bytes(record[1:17], "big", signed=True))


def records(stored: bytes) -> Iterator[bytes]:
    """Cut what a seal's row keeps into its records."""
    for start in range(0, len(stored), RECORD_BYTES):
        yield stored[start : start + RECORD_BYTES]


@dataclass(frozen=True)
class Proof:
    """What proves one entry: the way to the root, and the header in which that was signed."""

    header: str
    signature: str
    index: int
    path: Sequence[bytes]


def proofs(session: Session, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Proof]:
    """Return the proofs of the *wanted* entries by kind and key; what is not sealed is left out.

    Nothing is compared with the entries themselves: whoever shows a proof checks that the hash of
    the entry leads to the root (:func:`merkle.is_included`).
    """
    found: dict[tuple[str, str], Proof] = {}
    for seal_number, of_seal in _by_seal(session, wanted).items():
        seal = session.get_one(Seal, seal_number)
        cut = list(records(seal.entries))
        places = {record[:17]: index for index, record in enumerate(cut)}
        leaves = [record[17:] for record in cut]
        covered = {one: places.get(record_key(*one)) for one in of_seal}
        indexes = {one: index for one, index in covered.items() if index is not None}
        paths = merkle.paths(leaves, indexes.values())
        for one, index in indexes.items():
            found[one] = Proof(seal.header, seal.signature, index, paths[index])
    return found


def _by_seal(
    session: Session, wanted: Sequence[tuple[str, str]]
) -> dict[int, list[tuple[str, str]]]:
    by_seal: dict[int, list[tuple[str, str]]] = {}
    for kind, key in wanted:
        number = _seal_of(session, kind, key)
        if number is not None:
            by_seal.setdefault(number, []).append((kind, key))
    return by_seal


def _seal_of(session: Session, kind: str, key: str) -> int | None:
    """Return the number of the seal that covers an entry, or may: a receipt has its event's."""
    if kind == FACT:
        by_fact = select(Seal.number).where(Seal.last_fact >= int(key))
        return session.scalar(by_fact.order_by(Seal.last_fact, Seal.number).limit(1))
    if kind == EVENT:
        by_event = select(Seal.number).where(Seal.last_event >= int(key))
        return session.scalar(by_event.order_by(Seal.last_event, Seal.number).limit(1))
    public_id = uuid.UUID(key)
    event = session.scalar(
        select(func.min(AuditEvent.id)).where(
            AuditEvent.subject == public_id, AuditEvent.action == "account.purged"
        )
    )
    if event is not None:
        return _seal_of(session, EVENT, str(event))
    return _seal_with_receipt(session, public_id)


def _seal_with_receipt(session: Session, public_id: uuid.UUID) -> int | None:
    """Find the seal of a receipt whose event was pruned, or that never had one.

    It was sealed within minutes of the purge, or by the first seal of all, or with the fact that a
    replay has written it again.
    """
    purged_at = session.scalar(select(Receipt.purged_at).where(Receipt.public_id == public_id))
    if purged_at is None:
        return None
    letter = record_key(RECEIPT, str(public_id))
    later = select(Seal.number).where(Seal.sealed_at >= purged_at).order_by(Seal.number).limit(50)
    first = select(func.min(Seal.number))
    written = select(ReceiptFact.id).where(
        ReceiptFact.public_id == public_id, ReceiptFact.fact == LEDGER_WRITTEN
    )
    by_fact = [_seal_of(session, FACT, str(fact)) for fact in session.scalars(written)]
    numbers = dict.fromkeys([*by_fact, *session.scalars(first), *session.scalars(later)])
    for number in [one for one in numbers if one is not None]:
        seal = session.get_one(Seal, number)
        if any(one.startswith(letter) for one in records(seal.entries)):
            return seal.number
    return None


@dataclass(frozen=True)
class Tail:
    """The last seal of the database, or what stands for it while there is none."""

    link: Link | None
    sealed_at: datetime | None
    last_event: int
    last_fact: int


def tail(session: Session) -> Tail:
    """Return the last seal of the database."""
    found = session.execute(
        select(Seal.chain, Seal.number, Seal.head, Seal.sealed_at, Seal.last_event, Seal.last_fact)
        .order_by(Seal.number.desc())
        .limit(1)
    ).one_or_none()
    if found is None:
        return Tail(None, None, 0, 0)
    link = Link(found.chain, found.number, found.head)
    return Tail(link, found.sealed_at, found.last_event, found.last_fact)


@dataclass(frozen=True)
class Unsealed:
    """What is committed, and in no seal yet."""

    events: int
    facts: int
    since: datetime | None
    has_receipt: bool


def unsealed_since(session: Session, after: Tail) -> datetime | None:
    """Return the time of the oldest entry that came after the seal *after*; None if none did."""
    events, facts = AuditEvent.id > after.last_event, ReceiptFact.id > after.last_fact
    oldest = (
        session.scalar(select(AuditEvent.at).where(events).order_by(AuditEvent.id).limit(1)),
        session.scalar(select(ReceiptFact.at).where(facts).order_by(ReceiptFact.id).limit(1)),
    )
    return min((at for at in oldest if at is not None), default=None)


def unsealed(session: Session, after: Tail) -> Unsealed:
    """Count what came after the seal *after*, and say since when the oldest of it waits."""
    events = AuditEvent.id > after.last_event
    facts = ReceiptFact.id > after.last_fact
    is_purge = AuditEvent.action == "account.purged"
    return Unsealed(
        events=session.scalar(select(func.count()).select_from(AuditEvent).where(events)) or 0,
        facts=session.scalar(select(func.count()).select_from(ReceiptFact).where(facts)) or 0,
        since=unsealed_since(session, after),
        has_receipt=session.scalar(select(AuditEvent.id).where(events, is_purge).limit(1))
        is not None,
    )


def is_due(after: Tail, waiting: Unsealed, now: datetime) -> bool:
    """Say whether what is *waiting* is to be sealed *now*."""
    if waiting.since is None:
        return False
    if after.sealed_at is None or now < after.sealed_at:
        return True
    patience = RECEIPTS_AT_MOST_EVERY if waiting.has_receipt else AT_MOST_EVERY
    return now - after.sealed_at >= patience or waiting.events > MOST or waiting.facts > MOST
