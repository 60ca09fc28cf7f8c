"""Seal the trail: batches of events, facts and receipts, each behind the one before it.

A seal is made of rows that are final: committed, and with no transaction left that could still
commit one among them. It is one row, and then one object of the ledger; a process that is killed in
between leaves the object to the next run.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import exists, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from ..adapters import ledger as ledgers
from ..adapters import merkle, sealform
from ..adapters.ledger import Ledger
from ..adapters.ledgerseal import Line, Mark, Opened, Untrusted
from ..adapters.sealform import Header, Link
from ..db import entries, generations, horizon
from ..db.engine import Clock, Database
from ..db.entries import EVENT, FACT, RECEIPT, Row
from ..db.horizon import Horizon
from ..db.models import AuditEvent, Receipt, Seal
from ..db.rows import chunks
from ..db.text import rfc3339
from ..errors import StoreUnavailable
from . import seals
from .seals import Entry, Tail, entry

log = structlog.get_logger(__name__)

# So long a run waits for transactions that could still commit an entry. Longer, and it would keep a
# process of the worker from the sweeps; the next run looks again.
PATIENCE = timedelta(seconds=1)
# A transaction that keeps entries unsealed for longer is named in the log.
LONG = timedelta(minutes=2)
# The kind of a line of the ledger that is a seal of the trail.
KIND = "seal"
_PURGED = "account.purged"
_NOBODY = uuid.UUID(int=0)
# So many heads are written by one run where the ledger lacks them.
_HEADS_AT_ONCE = 100


class SealsBehind(StoreUnavailable):
    """The ledger has seals that the database lacks: it is older, as after a restore, or was cut."""

    def __init__(self) -> None:
        super().__init__(
            "The ledger has seals that the database lacks, so nothing is sealed: run "
            "`accountsvc ledger replay` after a restore, otherwise `accountsvc audit verify`."
        )


class SealsGone(StoreUnavailable):
    """The ledger has none of the seals that the database has."""

    def __init__(self) -> None:
        super().__init__(
            "The seals are not in the ledger, so nothing is sealed: give LEDGER_URL its store "
            "back, or run `accountsvc ledger rebuild`."
        )


@dataclass(frozen=True)
class Sealed:
    """What one run did: seals made, entries in them, and whether more waits."""

    seals: int = 0
    entries: int = 0
    more: bool = False


@dataclass(frozen=True)
class _Base:
    """What the next seal is: of which chain, which number, and which seal a first one continues."""

    chain: uuid.UUID
    number: int
    continues: Link | None = None


@dataclass(frozen=True)
class _Batch:
    """What one seal covers; ``is_cut`` says that more is there."""

    entries: Sequence[Entry]
    last_event: int
    last_fact: int
    is_cut: bool


@dataclass(frozen=True)
class Sealer:
    """One database beside its ledger, whose trail it seals."""

    database: Database
    ledger: Ledger
    clock: Clock

    def run(self, *, seconds: float, at_once: bool = False) -> Sealed:
        """Seal what is due, or all there is *at_once*, for *seconds*, and write the heads.

        Safe to be killed, and by several processes at once: a seal is one row, and of two with one
        number the second is refused. What a transaction under way could still come between is left
        to the next run.

        Raises SealsBehind while the ledger has seals that the database lacks, SealsGone if it has
        lost all that the database has, StoreUnavailable if it does not answer or this process has
        no signing key.
        """
        deadline = time.monotonic() + seconds
        count, number = 0, 0
        base = self._base()
        while self._is_due(at_once=at_once):
            made = self._seal(base)
            if made is None:
                break
            base, size, is_cut = made
            number, count = number + 1, count + size
            if time.monotonic() >= deadline:
                return Sealed(number, count, more=is_cut)
            if not is_cut:
                break
        return Sealed(number, count)

    def _is_due(self, *, at_once: bool) -> bool:
        with self.database.reading() as session:
            after = seals.tail(session)
            waiting = seals.unsealed(session, after)
            now = self.clock(session)
        return waiting.since is not None if at_once else seals.is_due(after, waiting, now)

    def _base(self) -> _Base:
        """Return what the next seal goes on from, with all before it in the ledger."""
        newest = self._newest()
        with self.database.reading() as session:
            last = seals.tail(session).link
            generation = generations.current(session)
        chain = None if generation is None else generation.id
        if newest is not None and _is_older(last, newest):
            if chain is None or chain in {newest.chain, None if last is None else last.chain}:
                raise SealsBehind
            return _Base(chain, newest.number + 1, continues=newest)
        if last is not None:
            self._write_heads(newest)
        if chain is None:
            with self.database.writing() as session:
                # The row of the first generation is made by whoever needs it first.
                chain, _ = generations.take_numbers(session, 0, self.clock(session))
        if last is None:
            return _Base(chain, 1)
        return _Base(chain, last.number + 1, continues=None if chain == last.chain else last)

    def _newest(self) -> Link | None:
        """Return the newest seal that the ledger has and can be trusted."""
        for one in self.ledger.seals(objects=ledgers.MOST_PASSED_OVER):
            found = read_head(one)
            if found is not None:
                return found.link
        return None

    def _write_heads(self, newest: Link | None) -> None:
        """Write the seals that the ledger does not have yet, in their order.

        Raises SealsGone if it has none of several: whoever emptied it would otherwise be helped to
        hide that.
        """
        after = 0 if newest is None else newest.number
        query = select(Seal).where(Seal.number > after).order_by(Seal.number)
        with self.database.reading() as session:
            unwritten = session.scalars(query.limit(_HEADS_AT_ONCE)).all()
        if newest is None and len(unwritten) > 1:
            raise SealsGone
        for seal in unwritten:
            self._put(seal)

    def _put(self, seal: Seal) -> None:
        if not self.ledger.put_seal(link_of(seal), line_of(seal)):
            log.error(
                "the ledger has another object in the place of a seal: `accountsvc audit verify`",
                number=seal.number,
            )

    def _seal(self, base: _Base) -> tuple[_Base, int, bool] | None:
        """Make one seal; None if there is nothing final to seal, or another process was first."""
        with self.database.reading() as session:
            after = seals.tail(session)
            found = horizon.find(session, patience=PATIENCE)
            if not found.is_final:
                self._say_who_is_open(found, self.clock(session))
                return None
            batch = _read(session, after, found)
        if not batch.entries:
            return None
        try:
            with self.database.writing() as session:
                if seals.tail(session) != after:
                    return None
                seal = self._made(base, after, batch, self.clock(session))
                session.add(seal)
        except IntegrityError:
            # Another process has sealed the same meanwhile.
            return None
        self._put(seal)
        return _Base(base.chain, base.number + 1), len(batch.entries), batch.is_cut

    def _made(self, base: _Base, after: Tail, batch: _Batch, now: datetime) -> Seal:
        stored = b"".join(one.record for one in batch.entries)
        header = Header(
            chain=base.chain,
            number=base.number,
            sealed_at=now,
            events=(after.last_event + 1, batch.last_event),
            facts=(after.last_fact + 1, batch.last_fact),
            entries=len(batch.entries),
            root=merkle.root([record[17:] for record in seals.records(stored)]).hex(),
            records=hashlib.sha256(stored).hexdigest(),
            previous=None if after.link is None else after.link.head,
            key=sealform.signing_name(self.ledger.keys),
            continues=base.continues,
        )
        text = header.text()
        return Seal(
            number=header.number,
            chain=header.chain,
            sealed_at=now,
            first_event=header.events[0],
            last_event=header.events[1],
            first_fact=header.facts[0],
            last_fact=header.facts[1],
            entries=stored,
            header=text.decode(),
            head=sealform.head(text),
            signature=sealform.sign(self.ledger.keys, text),
        )

    def _say_who_is_open(self, found: Horizon, now: datetime) -> None:
        if found.since is None or now - found.since >= LONG:
            log.warning(
                "a transaction that stays open keeps the trail from being sealed",
                pids=list(found.pids),
                since=None if found.since is None else rfc3339(found.since),
            )


def _is_older(last: Link | None, newest: Link) -> bool:
    """Say whether the ledger has a seal that a database with *last* as its last one lacks."""
    if last is None or newest.number > last.number:
        return True
    return newest.number == last.number and newest.head != last.head


def _read(session: Session, after: Tail, found: Horizon) -> _Batch:
    """Read what is final behind the seal *after*: events, each with its receipt, then facts."""
    events = entries.in_range(session, EVENT, after.last_event + 1, found.event, limit=seals.MOST)
    facts = entries.in_range(session, FACT, after.last_fact + 1, found.fact, limit=seals.MOST)
    cut_events, cut_facts = len(events) == seals.MOST, len(facts) == seals.MOST
    last_event = int(events[-1].key) if cut_events else max(found.event, after.last_event)
    last_fact = int(facts[-1].key) if cut_facts else max(found.fact, after.last_fact)
    purged = _purged(session, after.last_event + 1, last_event)
    receipts = {
        public_id: row
        for chunk in chunks(list(purged.values()))
        for public_id, row in entries.receipts(session, chunk).items()
    }
    rows: list[Row] = []
    for event in events:
        rows.append(event)
        receipt = receipts.get(purged.get(int(event.key), _NOBODY))
        if receipt is not None:
            rows.append(receipt)
    rows += facts
    if after.link is None:
        rows += _without_event(session)
    covered = {row.key for row in rows if row.kind == RECEIPT}
    rows += _put_back(session, facts, covered)
    return _Batch([entry(row) for row in rows], last_event, last_fact, cut_events or cut_facts)


def _purged(session: Session, first: int, last: int) -> dict[int, uuid.UUID]:
    """Return whom the events of a range purged for the first time: the receipt is from then."""
    earlier = aliased(AuditEvent)
    before = exists().where(
        earlier.subject == AuditEvent.subject,
        earlier.action == _PURGED,
        earlier.id < AuditEvent.id,
    )
    query = select(AuditEvent.id, AuditEvent.subject).where(
        AuditEvent.action == _PURGED, AuditEvent.id.between(first, last), ~before
    )
    return {number: subject for number, subject in session.execute(query) if subject is not None}


def _put_back(session: Session, facts: Sequence[Row], covered: set[str]) -> Iterator[Row]:
    """Yield the receipts that a replay has written again by these *facts*, but those *covered*.

    They have no event, which a restore has lost; a later purge may give them one.
    """
    for chunk in chunks(entries.put_back(facts)):
        for number, row in sorted(entries.receipts(session, chunk).items()):
            if str(number) not in covered:
                yield row


def _without_event(session: Session) -> list[Row]:
    """Return the receipts of a time before the events, which the first seal of all covers."""
    event = exists().where(AuditEvent.subject == Receipt.public_id, AuditEvent.action == _PURGED)
    found = session.scalars(
        select(Receipt.public_id).where(~event).order_by(Receipt.public_id)
    ).all()
    return [
        row
        for chunk in chunks(found)
        for _, row in sorted(entries.receipts(session, chunk).items(), key=lambda one: one[0].hex)
    ]


def link_of(seal: Seal) -> Link:
    """Return how a later seal, and the ledger, name *seal*."""
    return Link(seal.chain, seal.number, seal.head)


def line_of(seal: Seal) -> Line:
    """Return *seal* as the ledger has it."""
    return {"kind": KIND, "header": seal.header, "signature": seal.signature}


def read_head(one: Opened | Untrusted) -> Header | None:
    """Return the header in a trusted object of a seal; None if there is none in it."""
    if isinstance(one, Untrusted) or len(one.lines) != 1:
        return None
    try:
        header = Header.read(str(one.lines[0].get("header")).encode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    is_its_own = one.mark == Mark(header.chain, header.number)
    return header if is_its_own and one.link.name == ledgers.seal_name(header.link) else None
