"""A dry run: the transactions of a purge at once, each rolled back at its end.

They lock, decide and erase as the real ones do, so that whoever would fail (by a trigger, by a row
of somebody else's table that refers to the account) fails here too, and is named with the same
reason. Nothing else is done: no line is written to the ledger or to the log, no file and no mail is
touched. The brake bounds them as it would the real ones, and counts none of them. On PostgreSQL the
numbers of sequences that they have drawn are left out afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..db import rows
from ..db import rules as db_rules
from ..db.audit import OPERATOR_ACTOR
from ..db.engine import Database, database_now
from ..db.models import Account, PurgeFailure
from . import at_once
from .at_once import Kept, Obstacle, PurgeNow, PurgeReport
from .brake import Allotment, Allowance
from .claim import PlannedPurge
from .clocks import Clocks
from .sweep import Progress, Rules, Sweep

# Makes accounts due inside the transaction that would purge them.
_MakeDue = Callable[[Session, Collection[int]], None]


class _RolledBack(Database):
    """A database whose writing transactions are all rolled back."""

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with self.rehearsing() as session:
            yield session


@dataclass(frozen=True)
class _RehearsedClocks(Clocks):
    """Clocks whose mark is neither set nor removed, on a database that rolls back."""

    def _say_moved(self, seconds: int) -> None:
        """Say nothing: purging is not stopped by this."""

    def _say_back(self) -> None:
        """Say nothing: purging goes on by a sweep that looks."""


@dataclass
class _RehearsedAllowance(Allowance):
    """The brake as all batches of one rehearsal meet it, on a database that rolls back."""

    _purged: int = 0

    def take(self, wanted: int) -> Allotment:
        # The row does not have what earlier batches have taken, so that is asked for once more.
        allotment = super().take(self._purged + wanted)
        in_hour = max(0, allotment.in_hour - self._purged)
        beyond = allotment.size - max(self._purged, allotment.in_hour)
        return replace(allotment, in_hour=in_hour, beyond=max(0, beyond))

    def give_back(self, allotment: Allotment, purged: int) -> None:
        self._purged += purged

    def let_go_if_nobody_waits(self) -> None:
        """Leave the brake as it is: everybody is still there."""

    def _say_held(self, limit: int, waiting: int) -> None:
        """Say nothing: it is the report that says who would wait."""


@dataclass
class _RehearsedSweep(Sweep):
    """A sweep over one batch whose transactions are rolled back."""

    allowance: _RehearsedAllowance | None = None
    make_due: _MakeDue | None = None
    erased: dict[int, PlannedPurge] = field(default_factory=dict, init=False)
    would_fail: dict[int, PurgeFailure] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.allowance is not None:
            self._allowance = self.allowance

    def _lock(
        self,
        session: Session,
        size: int,
        only: Collection[int] | None,
        *,
        asked_for: bool = False,
    ) -> tuple[datetime, list[int]]:
        # The real run has committed this before its first batch; here it is gone by the next one.
        if self.make_due is not None and only:
            self.make_due(session, only)
        return super()._lock(session, size, only, asked_for=asked_for)

    def _erase(
        self, session: Session, proposed: Sequence[int], now: datetime
    ) -> list[PlannedPurge]:
        purged = super()._erase(session, proposed, now)
        self.erased.update({planned.account_id: planned for planned in purged})
        return purged

    def _say_rolled_back(self, ids: Sequence[int], exc: Exception) -> None:
        """Say nothing: nobody was to be purged."""

    def _say_failed(self, failure: PurgeFailure, *, stuck: bool) -> None:
        self.would_fail[failure.account_id] = failure


@dataclass(frozen=True)
class Rehearsal:
    """What *purge_now* would do by *rules*, done and rolled back, a batch at a time.

    Each method reports as its namesake of :class:`PurgeNow`: ``purged`` are those who would be, and
    ``kept`` those who would not, a failure as it would be written down. Locks are held as long as
    the real batches hold them, and never for two batches at once.
    """

    purge_now: PurgeNow
    rules: Rules

    def refuse_if_stopped(self) -> None:
        """Raise what ``PurgeNow.refuse_if_stopped`` would, and change nothing."""
        replace(self.purge_now, clocks=self._clocks).refuse_if_stopped()

    def refuse_by_clock(self) -> None:
        """Raise ClocksDiffer or ClockMoved where ``PurgeNow.replay`` would, and change nothing."""
        self._clocks.look()

    def split_by_brake(
        self, planned: Sequence[PlannedPurge]
    ) -> tuple[list[PlannedPurge], list[PlannedPurge]]:
        """Return those of *planned*, who are due, whom the brake lets go now, and who waits for it.

        Both in the order given. Whose owner has asked for the purge does not wait.
        """
        if not self.rules.has_brake:
            return list(planned), []
        with self.purge_now.database.reading() as session:
            asked = {
                account_id
                for chunk in rows.chunks([plan.account_id for plan in planned])
                for account_id in session.scalars(
                    select(Account.id).where(
                        Account.id.in_(chunk), db_rules.owner_asked_for_purge()
                    )
                )
            }
        others = [plan for plan in planned if plan.account_id not in asked]
        size = 0
        if others:
            allowance = _RehearsedAllowance(self.rolled_back, database_now, self.rules.max_attempts)
            size = allowance.take(len(others)).size
        waiting = others[size:]
        kept = {plan.account_id for plan in waiting}
        return [plan for plan in planned if plan.account_id not in kept], waiting

    def purge_due(
        self,
        planned: Sequence[PlannedPurge],
        progress: Progress | None = None,
        *,
        waiting: Sequence[PlannedPurge] = (),
    ) -> PurgeReport:
        """Rehearse ``PurgeNow.purge_due``."""
        report = _Run(self, planned).rehearse(progress)
        self.purge_now.add_waiting(report, waiting)
        self.purge_now.add_left_out(report)
        return report

    def purge_named(
        self, planned: Sequence[PlannedPurge], *, force: bool, progress: Progress | None = None
    ) -> PurgeReport:
        """Rehearse ``PurgeNow.purge_named``, of accounts that ``plan_named`` has not refused."""
        promise = self.purge_now.promise if force else None
        return _Run(self, planned, partial(at_once.make_due, promise=promise)).rehearse(progress)

    def replay(
        self, planned: Sequence[PlannedPurge], progress: Progress | None = None
    ) -> PurgeReport:
        """Rehearse ``PurgeNow.replay``."""
        make_due = partial(at_once.make_due, promise=self.purge_now.promise, replaying=True)
        return _Run(self, planned, make_due).rehearse(progress)

    @property
    def rolled_back(self) -> Database:
        return _RolledBack(self.purge_now.database.engine)

    @property
    def _clocks(self) -> Clocks:
        clocks = self.purge_now.clocks
        values = {each.name: getattr(clocks, each.name) for each in fields(clocks)}
        return _RehearsedClocks(**{**values, "database": self.rolled_back})


@dataclass
class _Run:
    """One rehearsal of the purge of *planned*; *make_due* is what the real run does to them first.

    The brake bounds those that are due, and not those that somebody has named.
    """

    rehearsal: Rehearsal
    planned: Sequence[PlannedPurge]
    make_due: Callable[[Session, Sequence[PlannedPurge]], Mapping[int, Kept]] | None = None
    kept: dict[int, Kept] = field(default_factory=dict, init=False)
    would_purge: dict[int, PlannedPurge] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._plans = {plan.account_id: plan for plan in self.planned}
        self._allowance = _RehearsedAllowance(
            self.rehearsal.rolled_back, database_now, self.rehearsal.rules.max_attempts
        )

    def rehearse(self, progress: Progress | None) -> PurgeReport:
        """Rehearse it, again and again while others have some of the accounts locked.

        Who is gone at the end is in neither list: a worker has purged them.
        """
        why_kept = self.rehearsal.purge_now.why_kept
        waiting = list(self._plans)
        give_up_at = time.monotonic() + at_once.LOCK_PATIENCE.total_seconds()
        while True:
            is_braked = self._try(waiting, progress)
            rest = [one for one in waiting if one not in self.would_purge | self.kept]
            reasons = {account_id: why_kept(account_id) for account_id in rest}
            waiting = [one for one in rest if reasons[one].obstacle is Obstacle.BUSY]
            if is_braked or not waiting or time.monotonic() > give_up_at:
                break
            time.sleep(0.2)
        if is_braked:
            reasons |= dict.fromkeys(waiting, Kept(Obstacle.BRAKED))
        self.kept |= {
            account_id: reason
            for account_id, reason in reasons.items()
            if reason.obstacle is not Obstacle.NO_RECEIPT
        }
        return PurgeReport(
            # As it was planned: the time at which it was made due here is nobody's.
            purged=[
                replace(plan, saved_passwords=counted.saved_passwords, files=counted.files)
                for plan in self.planned
                if (counted := self.would_purge.get(plan.account_id)) is not None
            ],
            kept=self.kept,
        )

    def _try(self, ids: Sequence[int], progress: Progress | None) -> bool:
        """Rehearse the purge of *ids* in batches; say whether the brake has ended it, as it would.

        The real run sweeps over a chunk at a time, and begins none after one that the brake cuts.
        """
        for chunk in rows.chunks(ids):
            is_braked = False
            for batch in _batches(chunk, self.rehearsal.rules.batch_size):
                is_braked |= self._sweep(batch, progress) > 0
            if is_braked:
                return True
        return False

    def _sweep(self, batch: Sequence[int], progress: Progress | None) -> int:
        """Rehearse the purge of one batch; return how many the brake would keep."""
        sweep = _RehearsedSweep(
            self.rehearsal.rolled_back,
            self.rehearsal.rules,
            lambda: True,
            only=batch,
            although_paused=True,
            named=self.make_due is not None,
            by=OPERATOR_ACTOR,
            allowance=self._allowance,
            make_due=self._make_due,
        )
        sweep.run(progress=progress)
        # Not all that was erased: a transaction may be refused at its end.
        self.would_purge |= {number: sweep.erased[number] for number in sweep.result.purged_ids}
        for account_id, failure in sweep.would_fail.items():
            self.kept[account_id] = Kept(Obstacle.FAILED, failure)
        return sweep.result.waiting

    def _make_due(self, session: Session, ids: Collection[int]) -> None:
        """Make accounts due as the real run does, and keep who refuses."""
        if self.make_due is not None:
            chosen = [self._plans[account_id] for account_id in sorted(ids)]
            self.kept |= self.make_due(session, chosen)


def _batches(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
