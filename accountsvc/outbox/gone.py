"""A ledger that has lost what was written is not written on: the loss would be hidden by that.

So it looks where a disk is not mounted, and in a wrong bucket. `accountsvc ledger rebuild`, which
writes by itself, ends it.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..adapters import ledger as ledgers
from ..adapters.ledger import Ledger
from ..adapters.ledgerseal import Flaw, Opened, Untrusted
from ..db.engine import Database
from ..db.models import Effect, KeptLine, Receipt
from ..errors import StoreUnavailable
from . import kept, queue
from .payloads import LedgerLines
from .queue import Outcome

log = structlog.get_logger(__name__)


class LedgerLost(StoreUnavailable):
    """The ledger has nothing of what was written, so it is hardly ours, and takes no line."""

    def __init__(self) -> None:
        super().__init__(
            "The ledger is empty though it was written: give LEDGER_URL its store back, or run "
            "`accountsvc ledger rebuild`."
        )


@dataclass(frozen=True)
class Owed:
    """What the outbox owes the ledger: the people, and the names of their objects."""

    people: frozenset[uuid.UUID]
    names: frozenset[str]


def guarded(database: Database, ledger: Ledger, write: queue.Handler) -> queue.Handler:
    """Return the handler *write*, which raises LedgerLost while :func:`is_gone`."""

    def guard(effects: Sequence[queue.Owed], now: datetime) -> Outcome:
        if not ledger.newest(objects=1).objects and is_gone(database, ledger):
            log.error(
                "the ledger is empty though it was written, so no line is written: give LEDGER_URL "
                "its store back, or run `accountsvc ledger rebuild`"
            )
            raise LedgerLost
        return write(effects, now)

    return guard


def is_gone(database: Database, ledger: Ledger) -> bool:
    """Say whether a ledger without a trusted object has nothing of what was written.

    So it is if it has no line of a purge though a receipt is owed none, whatever else is in it; if
    it is empty and had returns or holds; or if what was written last is sealed by a key that is not
    listed. An object that is damaged is named, and stops nothing.

    Raises StoreUnavailable if the ledger cannot be read.
    """
    with database.reading() as session:
        owed = read_owed(session).people
        last = select(Receipt).where(Receipt.public_id.not_in(owed))
        receipt = session.scalar(last.order_by(Receipt.purged_at.desc()).limit(1))
        lines = kept.sample(session, 1)
    if receipt is not None and not ledger.has_lines():
        return True
    if ledger.is_empty():
        return bool(lost_of(database, ledger, lines))
    there = [] if receipt is None else ledger.of_moment(receipt.purged_at)
    there += ledger.open_kept([line.object_name or "" for line in lines])
    return any(isinstance(one, Untrusted) and one.flaw is Flaw.UNKNOWN_KEY for one in there)


def lost_of(database: Database, ledger: Ledger, lines: Sequence[KeptLine]) -> list[KeptLine]:
    """Return those of *lines* that the ledger had, and has not, or not as they were.

    Raises StoreUnavailable if the ledger cannot be read.
    """
    there = {
        opened.link.name: list(opened.lines)
        for opened in ledger.open_kept([line.object_name or "" for line in lines])
        if isinstance(opened, Opened)
    }
    amiss = [line for line in lines if there.get(line.object_name or "") != [kept.document(line)]]
    if not amiss:
        return []
    # Read behind the ledger: one that was ended meanwhile, or is not written yet, is not lost.
    with database.reading() as session:
        still = kept.still_written(session, [line.uid for line in amiss])
    return [line for line in amiss if line.uid in still]


def read_owed(session: Session) -> Owed:
    """Return what the outbox owes the ledger now."""
    people: set[uuid.UUID] = set()
    names: set[str] = set()
    effects = select(Effect.uid, Effect.created_at, Effect.payload)
    for uid, created_at, payload in session.execute(effects.where(Effect.kind == queue.LEDGER)):
        lines = LedgerLines.read(payload).lines
        people |= {uuid.UUID(str(line["public_id"])) for line in lines}
        if lines:
            names.add(ledgers.object_name(uid, created_at))
    return Owed(frozenset(people), frozenset(names))
