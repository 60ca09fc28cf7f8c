"""The replay of the ledger after a restore: give back what the restore took back, purge again.

In this order, so that a process that dies between two steps leaves nobody wrongly purged:

1. a generation begins, and the database knows all that the ledger holds; until the replay is done,
   nobody is purged by time (``db/generations``);
2. receipts that only the ledger has are written again;
3. who had come back is active again, and holds are held;
4. every session and every mailed link of before ends;
5. whom the ledger calls purged is purged again.

Whatever was done is found to be so by the next replay, which goes on behind it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from ..accounts import giveback
from ..adapters import ledger as ledgers
from ..adapters.ledger import Ledger
from ..adapters.ledgerseal import Flaw, Opened, Untrusted
from ..db import audit, facts, generations, rows
from ..db.audit import OPERATOR_ACTOR
from ..db.engine import Database, database_now
from ..db.models import HELD, RETURNED, Account, Effect, KeptLine, LegalHold, Receipt
from ..db.proofs import BY_REPLAY, LEDGER_WRITTEN
from ..outbox import kept, queue
from ..outbox.payloads import Finish
from . import claim
from .at_once import Obstacle, PurgeNow, PurgeReport
from .claim import PlannedPurge
from .restore import Restore
from .sweep import Progress

Line = Mapping[str, Any]


@dataclass(frozen=True)
class GivenBack:
    """A return or a hold that the database does not know: of which account, since when."""

    account_id: int
    line: KeptLine


@dataclass
class Plan:
    """What a replay would do.

    ``purges`` are purged again, ``returns`` active again, ``holds`` held again. ``receipts`` are
    lines of the ledger without a receipt, and ``kept`` all returns and holds in there;
    ``untrusted`` are objects in their place that say nothing that counts. ``seen`` has
    the highest number of each generation, and ``last_at`` the time of the last object.
    ``is_behind`` says whether the database is older than its ledger.
    """

    purges: list[PlannedPurge] = field(default_factory=list)
    returns: list[GivenBack] = field(default_factory=list)
    holds: list[GivenBack] = field(default_factory=list)
    receipts: list[Line] = field(default_factory=list)
    kept: list[KeptLine] = field(default_factory=list)
    untrusted: list[Untrusted] = field(default_factory=list)
    seen: dict[uuid.UUID, int] = field(default_factory=dict)
    last_at: datetime | None = None
    is_behind: bool = False

    def note(self, opened: Opened, at: datetime | None) -> None:
        """Know of one object of the ledger, written at about *at*."""
        mark = opened.mark
        self.seen[mark.generation] = max(mark.number, self.seen.get(mark.generation, 0))
        if at is not None and (self.last_at is None or at > self.last_at):
            self.last_at = at


@dataclass(frozen=True)
class Replay:
    """One database, its ledger, and the purge at once."""

    database: Database
    ledger: Ledger
    restore: Restore
    purge_now: PurgeNow

    def plan(self) -> Plan:
        """Read the whole ledger, and return what a replay would do; change nothing.

        Somebody who joined after the line's ``purged_at`` is never in it. Raises StoreUnavailable
        if the ledger cannot be read.
        """
        plan = Plan(is_behind=self.restore.is_behind())
        self._read_kept(plan)
        subjects = {line.subject for line in plan.kept}
        purged: set[uuid.UUID] = set()
        back: list[int] = []
        for lines in _in_chunks(ledgers.receipts(self._noting(plan))):
            people = {uuid.UUID(line["public_id"]): line for line in lines}
            purged |= subjects & people.keys()
            with self.database.reading() as session:
                back += _who_is_back(session, people)
                plan.receipts += _without_receipt(session, people)
        with self.database.reading() as session:
            plan.purges = claim.count(session, back)
            again = {planned.public_id for planned in plan.purges}
            wanted = [line for line in plan.kept if line.subject not in purged | again]
            plan.returns = _returns(session, wanted)
            plan.holds = _holds(session, wanted)
        return plan

    def _noting(self, plan: Plan) -> Iterator[Opened | Untrusted]:
        for one in self.ledger.scan():
            if isinstance(one, Opened):
                plan.note(one, ledgers.moment_of(one.link.name))
            yield one

    def _read_kept(self, plan: Plan) -> None:
        for one in self.ledger.kept():
            lines = _kept_lines(one) if isinstance(one, Opened) else None
            if lines is None:
                flaw = one.flaw if isinstance(one, Untrusted) else Flaw.UNREADABLE
                name = one.name if isinstance(one, Untrusted) else one.link.name
                plan.untrusted.append(Untrusted(name, flaw))
            elif isinstance(one, Opened):
                plan.kept += lines
                plan.note(one, max((line.at for line in lines), default=None))

    def run(self, plan: Plan, progress: Progress | None = None) -> PurgeReport:
        """Do what *plan* says, also while purging is paused; report on the purges.

        An account that may not be purged keeps no other from it, but keeps the replay from being
        done: nobody is purged by time until it is repeated. One that a hold keeps does not: it is
        due, and goes with a sweep when the hold is released. Raises ClocksDiffer or ClockMoved
        before anything is changed.
        """
        self.purge_now.clocks.look()
        self._begin(plan)
        self._write_receipts(plan.receipts)
        for wanted, change in ((plan.returns, _give_back), (plan.holds, _hold_again)):
            self._change(wanted, change)
        self._end_sessions()
        report = self.purge_now.replay(plan.purges, progress)
        if all(left.obstacle is Obstacle.HELD for left in report.kept.values()):
            with self.database.writing() as session:
                now = database_now(session)
                generations.finish(session, now)
                audit.record(
                    session,
                    "ledger.replayed",
                    subject=None,
                    by=OPERATOR_ACTOR,
                    now=now,
                    purged=len(report.purged),
                    returned=len(plan.returns),
                    held=len(plan.holds),
                )
        return report

    def _begin(self, plan: Plan) -> None:
        """Begin a generation, unless a replay was broken off, and drop mails that were sent."""
        with self.database.writing() as session:
            generation = generations.current(session, lock=True)
            is_broken_off = generation is not None and generation.replayed_at is None
            if is_broken_off and generations.knows(session, plan.seen):
                return
            now = database_now(session)
            generations.begin(session, plan.seen, now)
            kept.adopt(session, plan.kept)
            if plan.is_behind and plan.last_at is not None:
                # What was due before the ledger's last object has been sent, by the service that
                # wrote that; sent again, it would tell people of what has passed.
                sent = Effect.kind.startswith(queue.MAIL_PREFIX, autoescape=True)
                until = min(plan.last_at, now)
                session.execute(delete(Effect).where(sent, Effect.deliver_after <= until))

    def _write_receipts(self, lines: Sequence[Line]) -> None:
        for chunk in rows.chunks(lines):
            with self.database.writing() as session:
                people = {uuid.UUID(line["public_id"]): line for line in chunk}
                missing = [_receipt(line) for line in _without_receipt(session, people)]
                receipts = [row for row in missing if row is not None]
                if receipts:
                    _put_back(session, receipts)

    def _change(
        self, wanted: Sequence[GivenBack], change: Callable[[Session, GivenBack], object]
    ) -> None:
        for chunk in rows.chunks(sorted(wanted, key=lambda one: one.account_id)):
            with self.database.writing() as session:
                rows.lock_many(session, [one.account_id for one in chunk])
                for one in chunk:
                    change(session, one)

    def _end_sessions(self) -> None:
        jump, after = giveback.epoch_jump(), 0
        while True:
            page = select(Account.id).where(Account.id > after).order_by(Account.id)
            with self.database.reading() as session:
                ids = session.scalars(page.limit(rows.CHUNK)).all()
            if not ids:
                return
            with self.database.writing() as session:
                giveback.end_sessions(session, ids, jump=jump)
            after = ids[-1]


def _in_chunks(lines: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == rows.CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _who_is_back(session: Session, people: Mapping[uuid.UUID, Line]) -> list[int]:
    found = session.execute(
        select(Account.id, Account.public_id, Account.joined_at).where(
            Account.public_id.in_(list(people))
        )
    )
    return [row.id for row in found if _joined_before(row.joined_at, people[row.public_id])]


def _joined_before(joined_at: datetime, line: Line) -> bool:
    purged_at = line.get("purged_at")
    return purged_at is None or joined_at <= datetime.fromisoformat(str(purged_at))


def _without_receipt(session: Session, people: Mapping[uuid.UUID, Line]) -> list[Line]:
    """Return the lines of those who have no receipt, and whose line says all that it needs."""
    known = set(
        session.scalars(select(Receipt.public_id).where(Receipt.public_id.in_(list(people))))
    )
    return [
        line
        for person, line in people.items()
        if person not in known and _receipt(line) is not None
    ]


def _receipt(line: Line) -> dict[str, Any] | None:
    """Return *line* as the row of a receipt; None if something of it is missing."""
    try:
        return {
            "public_id": uuid.UUID(line["public_id"]),
            "deactivated_by": str(line["deactivated_by"]),
            "saved_passwords": int(line["saved_passwords"]),
            "files": int(line["files"]),
            **{
                name: datetime.fromisoformat(line[name])
                for name in ("deactivated_at", "purge_at", "purged_at")
            },
        }
    except (KeyError, TypeError, ValueError):
        return None


def _put_back(session: Session, receipts: Sequence[Mapping[str, Any]]) -> None:
    """Write *receipts* again, with what is known of them, and owe what finishes each purge.

    Their events stay lost: the fact tells the seals that each receipt is of a replay.
    """
    now = database_now(session)
    session.execute(insert(Receipt), receipts)
    numbers = [receipt["public_id"] for receipt in receipts]
    facts.add(session, LEDGER_WRITTEN, numbers, now=now, details=BY_REPLAY)
    # Whoever is back owes it with the purge to come: verified before, their row would be a residue.
    back = set(session.scalars(select(Account.public_id).where(Account.public_id.in_(numbers))))
    effects = [
        queue.row(queue.FINISH, subject=number, now=now, payload=Finish())
        for number in numbers
        if number not in back
    ]
    queue.record_all(session, effects)


def _kept_lines(opened: Opened) -> list[KeptLine] | None:
    """Return the returns and holds of an object; None if it holds anything else."""
    name = opened.link.name
    try:
        return [
            KeptLine(
                uid=ledgers.uid_of_kept(name),
                subject=uuid.UUID(line["public_id"]),
                kind={RETURNED: RETURNED, HELD: HELD}[line["kind"]],
                at=datetime.fromisoformat(line["at"]),
                deactivated_at=(
                    datetime.fromisoformat(line["deactivated_at"])
                    if line["kind"] == RETURNED
                    else None
                ),
                object_name=name,
            )
            for line in opened.lines
        ]
    except (KeyError, TypeError, ValueError):
        return None


def _returns(session: Session, lines: Sequence[KeptLine]) -> list[GivenBack]:
    """Return those of *lines* whose account is in just the deactivation that each has ended."""
    by_subject = _accounts(session, lines, RETURNED)
    return [
        GivenBack(account.id, line)
        for line in lines
        if line.kind == RETURNED
        and (account := by_subject.get(line.subject)) is not None
        and line.deactivated_at is not None
        and account.deactivated_at == line.deactivated_at
    ]


def _holds(session: Session, lines: Sequence[KeptLine]) -> list[GivenBack]:
    """Return those of *lines* whose account has no hold of that moment, open or released."""
    by_subject = _accounts(session, lines, HELD)
    ids = [account.id for account in by_subject.values()]
    known = {
        (hold.account_id, hold.placed_at)
        for chunk in rows.chunks(ids)
        for hold in session.scalars(select(LegalHold).where(LegalHold.account_id.in_(chunk)))
    }
    return [
        GivenBack(account.id, line)
        for line in lines
        if line.kind == HELD
        and (account := by_subject.get(line.subject)) is not None
        and (account.id, line.at) not in known
    ]


def _accounts(session: Session, lines: Sequence[KeptLine], kind: str) -> dict[uuid.UUID, Account]:
    subjects = sorted({line.subject for line in lines if line.kind == kind}, key=str)
    return {
        account.public_id: account
        for chunk in rows.chunks(subjects)
        for account in session.scalars(select(Account).where(Account.public_id.in_(chunk)))
    }


def _give_back(session: Session, one: GivenBack) -> None:
    assert one.line.deactivated_at is not None
    giveback.give_back(session, one.account_id, deactivated_at=one.line.deactivated_at)


def _hold_again(session: Session, one: GivenBack) -> None:
    giveback.hold_again(session, one.account_id, placed_at=one.line.at)
