"""Evidence of a period, and the reconciliation that proves it complete, or names what is amiss.

Events, receipts and ledger are three accounts of the same purges: each is compared with the others,
day by day. The database is read as of one moment; what the ledger has behind that is asked again.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta

from sqlalchemy import Select, exists, func, or_, select
from sqlalchemy.orm import Session

from ..adapters.ledger import Ledger
from ..adapters.ledgerseal import Line, Opened
from ..db import entries
from ..db.canaries import FAILED, PASSED, is_canary, is_of_canary
from ..db.engine import Database, database_now
from ..db.models import AuditEvent, Generation, Receipt, Seal
from ..db.proofs import LEDGER_WRITTEN, ReceiptFact
from ..db.rows import chunks
from ..outbox import gone
from .evidence import (
    Outcome,
    Period,
    Request,
    events_of,
    is_repeat,
    lives,
    receipts_by,
    receipts_of,
    replays,
    requests_of,
)
from .story import PURGED

# What is amiss, in words that are on the wire.
REQUEST_UNKNOWN = "request_without_outcome"
PURGE_UNASKED = "purge_without_request"
EVENT_ALONE = "purge_without_receipt"
RECEIPT_ALONE = "receipt_without_purge"
NOT_IN_LEDGER = "receipt_without_ledger_line"
LINE_ALONE = "ledger_line_without_receipt"
LINE_DIFFERS = "receipt_unlike_ledger_line"
AMISS = (
    REQUEST_UNKNOWN,
    PURGE_UNASKED,
    EVENT_ALONE,
    RECEIPT_ALONE,
    NOT_IN_LEDGER,
    LINE_ALONE,
    LINE_DIFFERS,
)

# What looks amiss, and is explained.
BEFORE_WITNESSES = "before_witnesses"
PURGED_AGAIN = "purged_again"
PUT_BACK = "put_back_by_a_replay"
OWED = "owed_to_the_ledger"
PRUNED = "pruned"
EXPLAINED = (BEFORE_WITNESSES, PURGED_AGAIN, PUT_BACK, OWED, PRUNED)


@dataclass(frozen=True)
class Amiss:
    """One thing that nothing explains: ``what`` of ``AMISS``, of whom, when, and why if known."""

    what: str
    number: uuid.UUID
    at: datetime
    why: str | None = None


@dataclass(frozen=True)
class SealEnd:
    """A seal of the trail, by which somebody else can say whether it is the same trail still."""

    number: int
    head: str
    sealed_at: datetime


@dataclass
class Reconciliation:
    """The three accounts of one period, compared; ``at`` is the moment as of which it is said.

    ``events`` counts those of the period by action, ``requests`` its requests by outcome,
    ``explained`` by reason what only looks amiss. ``before`` is the last seal from before the
    period, ``end`` the first that covers its last event; None if there is none.
    """

    period: Period
    at: datetime
    events: dict[str, int] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    receipts: int = 0
    ledger_lines: int = 0
    explained: Counter[str] = field(default_factory=Counter)
    unexplained: list[Amiss] = field(default_factory=list)
    before: SealEnd | None = None
    end: SealEnd | None = None

    @property
    def is_complete(self) -> bool:
        return not self.unexplained


class InTheFuture(Exception):
    """The period has not ended yet by the database's clock."""


@dataclass(frozen=True)
class Evidence:
    """One database beside its ledger. Nothing here changes either of them."""

    database: Database
    ledger: Ledger
    max_attempts: int

    def gather(self, period: Period, write: Callable[[Request], object]) -> Reconciliation:
        """Call *write* with each request of *period*, in order; return the reconciliation.

        Remembers a page of requests, the receipts of a day, and what is amiss. Raises InTheFuture
        before anything is written, StoreUnavailable if the ledger cannot be read.
        """
        with self.database.snapshot() as session:
            now = database_now(session)
            if period.until > now:
                raise InTheFuture
            found = Reconciliation(period, now)
            _count_events(session, found)
            for request in requests_of(session, period, now=now, max_attempts=self.max_attempts):
                _note_request(found, request)
                write(request)
            self._compare_events(session, found)
        # Outside the transaction, since a ledger far away may take minutes. Nothing of a period
        # that is over changes meanwhile, but by the hand of somebody who changes the past.
        for day in _days(period):
            self._compare_ledger(day, found)
        return found

    def _compare_events(self, session: Session, found: Reconciliation) -> None:
        pruned = _pruned_until(session)
        replayed = replays(session)
        for page in events_of(session, found.period, [PURGED]):
            numbers = list({event.subject for event in page if event.subject is not None})
            receipts = receipts_by(session, numbers)
            unasked = {
                event.id: event
                for life in lives(session, numbers).values()
                for event in life.unasked
            }
            for event in page:
                assert event.subject is not None
                receipt = receipts.get(event.subject)
                if receipt is None:
                    found.unexplained.append(Amiss(EVENT_ALONE, event.subject, event.at))
                elif is_repeat(event, receipt, replayed):
                    found.explained[PURGED_AGAIN] += 1
                elif receipt.purged_at != event.at:
                    # The receipt tells of another moment, at which nobody purged anybody.
                    found.unexplained.append(Amiss(EVENT_ALONE, event.subject, event.at))
                left_at = None if receipt is None else receipt.deactivated_at
                if event.id not in unasked:
                    continue
                if pruned is not None and left_at is not None and left_at <= pruned:
                    found.explained[PRUNED] += 1
                else:
                    found.unexplained.append(Amiss(PURGE_UNASKED, event.subject, event.at))
        for receipts_page in receipts_of(session, found.period):
            found.receipts += len(receipts_page)
            self._compare_receipts(session, receipts_page, pruned, found)

    def _compare_receipts(
        self,
        session: Session,
        page: Sequence[Receipt],
        pruned: datetime | None,
        found: Reconciliation,
    ) -> None:
        purges = select(AuditEvent.subject, AuditEvent.at).where(
            AuditEvent.subject.in_([receipt.public_id for receipt in page]),
            AuditEvent.action == PURGED,
        )
        written = {(subject, at) for subject, at in session.execute(purges)}
        for receipt in page:
            if (receipt.public_id, receipt.purged_at) in written:
                continue
            # A restore loses the event; a replay puts the receipt back, by the ledger's word.
            if pruned is not None and receipt.purged_at <= pruned:
                found.explained[PRUNED] += 1
            elif _was_lost(session, receipt.purged_at):
                found.explained[PUT_BACK] += 1
            else:
                alone = Amiss(RECEIPT_ALONE, receipt.public_id, receipt.purged_at)
                found.unexplained.append(alone)

    def _compare_ledger(self, day: Period, found: Reconciliation) -> None:
        lines = self._lines(day)
        found.ledger_lines += len(lines)
        with self.database.reading() as session:
            # Read what is owed first: a line that is written in between would be neither.
            owed = gone.read_owed(session).people
            for page in receipts_of(session, day):
                missing = [one for one in page if one.public_id not in lines]
                self._note_missing(session, missing, owed, found)
            for chunk in chunks(sorted(lines)):
                receipts = entries.receipts(session, chunk)
                for number in chunk:
                    at, of_them = lines[number]
                    if number not in receipts:
                        found.unexplained.append(Amiss(LINE_ALONE, number, at))
                        continue
                    document = receipts[number].document()
                    if not any(entries.says(document, line) for line in of_them):
                        found.unexplained.append(Amiss(LINE_DIFFERS, number, at))

    def _lines(self, day: Period) -> dict[uuid.UUID, tuple[datetime, list[Line]]]:
        """Return who was purged on *day* by the ledger's word, when, and the lines about it."""
        found: dict[uuid.UUID, tuple[datetime, list[Line]]] = {}
        for one in self.ledger.of_day(day.since.date()):
            for line in one.receipts if isinstance(one, Opened) else []:
                purged_at = datetime.fromisoformat(str(line["purged_at"]))
                number = uuid.UUID(line["public_id"])
                if day.since <= purged_at < day.until and not is_canary(number):
                    found.setdefault(number, (purged_at, []))[1].append(line)
        return found

    def _note_missing(
        self,
        session: Session,
        missing: Sequence[Receipt],
        owed: frozenset[uuid.UUID],
        found: Reconciliation,
    ) -> None:
        written = set(
            session.scalars(
                select(ReceiptFact.public_id).where(
                    ReceiptFact.public_id.in_([one.public_id for one in missing]),
                    ReceiptFact.fact == LEDGER_WRITTEN,
                )
            )
        )
        for receipt in missing:
            number = receipt.public_id
            if number in owed and number not in written:
                found.explained[OWED] += 1
            elif not self._has_line(receipt):
                found.unexplained.append(Amiss(NOT_IN_LEDGER, number, receipt.purged_at))

    def _has_line(self, receipt: Receipt) -> bool:
        """Say whether the ledger has the line by now: it may have come since it was looked for."""
        there = self.ledger.of_moment(receipt.purged_at)
        return any(
            line["public_id"] == str(receipt.public_id)
            for one in there
            if isinstance(one, Opened)
            for line in one.receipts
        )


def _count_events(session: Session, found: Reconciliation) -> None:
    """Count the events of the period, and name the seals at both of its ends."""
    period = found.period
    counted = (
        select(AuditEvent.action, func.count(), func.max(AuditEvent.id))
        .where(
            AuditEvent.at >= period.since,
            AuditEvent.at < period.until,
            AuditEvent.action.not_in([PASSED, FAILED]),
            or_(AuditEvent.subject.is_(None), ~is_of_canary(AuditEvent.subject)),
        )
        .group_by(AuditEvent.action)
        .order_by(AuditEvent.action)
    )
    last_event = 0
    for action, number, last in session.execute(counted):
        found.events[action] = number
        last_event = max(last_event, last)
    before = select(Seal).where(Seal.sealed_at < period.since).order_by(Seal.number.desc())
    found.before = _seal(session, before)
    covers = select(Seal).where(Seal.last_event >= last_event)
    # Of a period without events the end is where it began.
    found.end = (
        _seal(session, covers.order_by(Seal.last_event, Seal.number))
        if last_event
        else (found.before)
    )


def _seal(session: Session, query: Select[Seal]) -> SealEnd | None:
    columns = query.with_only_columns(Seal.number, Seal.head, Seal.sealed_at).limit(1)
    found = session.execute(columns).one_or_none()
    return None if found is None else SealEnd(*found)


def _pruned_until(session: Session) -> datetime | None:
    """Return until when `audit prune` has taken the events; None if it has taken none."""
    return session.scalar(select(func.max(Seal.sealed_at)).where(Seal.pruned_at.is_not(None)))


def _note_request(found: Reconciliation, request: Request) -> None:
    found.requests[request.outcome] += 1
    if not request.is_witnessed:
        found.explained[BEFORE_WITNESSES] += 1
    if request.outcome is Outcome.UNKNOWN:
        unknown = Amiss(REQUEST_UNKNOWN, request.number, request.at, request.reason)
        found.unexplained.append(unknown)


def _was_lost(session: Session, moment: datetime) -> bool:
    """Say whether what happened at *moment* was lost with a restore, and put back by a replay.

    So it is if a generation began later, and nobody was purged in between: what the trail knows of
    later purges was not lost, and nobody is purged between a restore and its replay.
    """
    later = select(func.min(Generation.began_at)).where(
        Generation.number > 1, Generation.began_at > moment
    )
    replayed_at = session.scalar(later)
    if replayed_at is None:
        return False
    known = exists().where(
        AuditEvent.action == PURGED, AuditEvent.at > moment, AuditEvent.at < replayed_at
    )
    return not session.scalar(select(known))


def _days(period: Period) -> Iterator[Period]:
    """Cut *period* at each midnight of UTC."""
    since = period.since
    while since < period.until:
        midnight = datetime.combine(since.astimezone(UTC).date(), time(), UTC) + timedelta(days=1)
        until = min(midnight, period.until)
        yield Period(since, until)
        since = until
