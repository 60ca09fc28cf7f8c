"""One pass over what is due: claim, erase, leave a receipt; fall back to one account a transaction.

How many a batch may purge is asked of the brake first, in a transaction of its own
(``brake``). One batch is one short transaction:

1. lock due accounts in ``purge_at`` order, skipping those that another worker has locked;
2. in new statements, which see what was committed while the locks were waited for, drop those with
   an open hold and those whose purge nobody has promised;
3. delete everything by those ids, set by set, as the data map says;
4. write receipts, audit events, and what is owed: files to delete, mails, the ledger line;
5. commit.

A crash before the commit has destroyed nothing, one after it has lost nothing. Nothing leaves the
database inside the transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from sqlalchemy.orm import Session

from ..db import generations
from ..db.audit import SYSTEM_ACTOR, Actor
from ..db.engine import Clock, Database, database_now
from ..db.models import SWEPT, PurgeFailure
from ..db.outages import is_outage
from . import claim, erase, failures, stops
from .brake import Allowance
from .claim import PlannedPurge
from .clocks import ClockMoved, Clocks, Reading
from .restore import Restore
from .stops import DatabaseBehind, LedgerBehind, Refused

log = structlog.get_logger(__name__)

# A sweep calls this after each batch with the number of accounts that it dealt with. It is outside
# any transaction: a slow terminal would otherwise hold the batch's locks.
Progress = Callable[[int], None]

# A line of the log names so many unexplained accounts at most: by a mistake there are thousands.
MOST_NAMED = 10


@dataclass(frozen=True)
class Rules:
    """The rules that every sweep of a process heeds.

    A batch has at most ``batch_size`` accounts. An account that has failed ``max_attempts`` times
    is stuck and waits for a person. ``has_brake`` says whether a brake bounds the purges of an hour
    that nobody has asked for. Backups are kept for ``backups_kept``, which people are told.
    """

    batch_size: int
    max_attempts: int
    has_brake: bool = True
    backups_kept: timedelta = timedelta(days=90)


@dataclass
class SweepResult:
    """The work of a sweep.

    ``more``: due accounts may remain for which it had no time. ``waiting`` counts those that the
    brake keeps.
    """

    purged: int = 0
    saved_passwords: int = 0
    files: int = 0
    failed: int = 0
    stuck: int = 0
    more: bool = False
    waiting: int = 0
    purged_ids: list[int] = field(default_factory=list)

    @property
    def dealt_with(self) -> int:
        return self.purged + self.failed

    def add(self, purged: Sequence[PlannedPurge]) -> None:
        """Count accounts whose purge is committed."""
        self.purged += len(purged)
        self.saved_passwords += sum(planned.saved_passwords for planned in purged)
        self.files += sum(planned.files for planned in purged)
        self.purged_ids.extend(planned.account_id for planned in purged)


@dataclass
class Sweep:
    """One pass over what is due by *clock*, oldest first, in batches. Safe beside other sweeps.

    *only* restricts it to those ids, each tried once, and then also tries accounts whose retry is
    not due yet. *write_ledger* delivers the ledger lines that are owed and says whether none
    remains.
    *although_paused* is for a replay after a restore, which a pause does not stop.

    The brake bounds it unless somebody has *named* the accounts. Whose owner has asked for the
    purge goes first, and outside the brake's count.

    Nothing is purged after a *restore* that was not replayed: whoever came back, or was put under a
    hold, after the backup was made is due again without it. None: that is not looked at.

    Nobody is purged by a clock that *clocks* do not believe, in a replay neither. None: all are
    believed.
    """

    database: Database
    rules: Rules
    write_ledger: Callable[[], bool]
    restore: Restore | None = None
    clock: Clock = database_now
    only: Collection[int] | None = None
    although_paused: bool = False
    named: bool = False
    by: Actor = SYSTEM_ACTOR
    clocks: Clocks | None = None
    result: SweepResult = field(default_factory=SweepResult, init=False)

    def __post_init__(self) -> None:
        self._untried = None if self.only is None else set(self.only)
        # An operator who names an account wants it tried now, so that neither the time of its next
        # try nor the limit of attempts counts.
        self._max_attempts = self.rules.max_attempts if self.only is None else None
        self._reading: Reading | None = None
        self._high_water = generations.HighWater(0, 0)
        self._allowance = Allowance(self.database, self.clock, self.rules.max_attempts)

    def run(self, *, seconds: float | None = None, progress: Progress | None = None) -> SweepResult:
        """Purge until nothing due remains, the brake holds, or about *seconds* have passed.

        The clock is read anew for every batch. Held, unexplained, failing and stuck accounts do not
        stop the others; one that fails is written to ``purge_failures``, and a sweep to the end
        logs how many are unexplained. Active accounts and accounts in their grace period are not
        touched. The ledger is written before the first batch
        and after each, and a batch does not begin while it is behind. A sweep over all that is due
        leaves its time as :func:`stops.swept_at`.

        Raises ClocksDiffer and ClockMoved before a batch whose clock may be wrong; DatabaseBehind
        after a restore; LedgerBehind; PurgingPaused from the first batch after :func:`stops.pause`
        on; and the database's own error if no sweep can run at all. What was purged before stays
        purged.
        """
        if self.clocks is None:
            return self._run(seconds, progress)
        self._reading = self.clocks.look()
        try:
            return self._run(seconds, progress)
        except ClockMoved:
            # The batch that has seen it is rolled back, and a mark in it would be too.
            self.clocks.look(self._reading)
            raise

    def _run(self, seconds: float | None, progress: Progress | None) -> SweepResult:
        stop_at = None if seconds is None else time.monotonic() + seconds
        # The look reads the newest batches of the ledger: with nobody due, a tick each minute would
        # pay for nothing but that. Who falls due behind it waits for the next sweep, because a
        # backup may have been put back meanwhile, in which somebody is due who has come back.
        is_anybody_due = self.restore is None or self._is_anybody_due()
        if self.restore is not None and is_anybody_due:
            with self.database.reading() as session:
                self._high_water = generations.high_water(session)
            self.restore.refuse_after_restore()
        self._require_ledger()
        if is_anybody_due:
            if self._has_brake:
                self._purge_all(stop_at, progress, asked_for=True)
            self._purge_all(stop_at, progress)
        if not (self.result.more or self.result.waiting):
            self._allowance.let_go_if_nobody_waits()
        if self.only is None:
            with self.database.writing() as session:
                now = self.clock(session)
                stops.mark(session, SWEPT, now)
                if self.clocks is not None and self._reading is not None:
                    self.clocks.keep(session, now, self._reading)
            if not self.result.more:
                self._tell_unexplained()
        return self.result

    @property
    def _has_brake(self) -> bool:
        return self.rules.has_brake and not self.named

    def _purge_all(
        self, stop_at: float | None, progress: Progress | None, *, asked_for: bool = False
    ) -> None:
        while True:
            if stop_at is not None and time.monotonic() >= stop_at:
                self.result.more = True
                return
            if asked_for or not self._has_brake:
                dealt_with = self._purge_batch(self.rules.batch_size, asked_for=asked_for)
            else:
                dealt_with = self._purge_what_the_brake_lets_go()
            if not dealt_with:
                return
            if self._untried is not None:
                # An account that fails stays due: claimed again, it would keep the sweep for ever.
                self._untried.difference_update(dealt_with)
            if progress is not None:
                progress(len(dealt_with))
            self._require_ledger()

    def _tell_unexplained(self) -> None:
        """Log once for those who are due and whom nobody may purge, since nobody promised it."""
        with self.database.reading() as session:
            found = claim.unexplained(session, self.clock(session), most_ids=MOST_NAMED)
        if found.count:
            log.error(
                "due accounts are not purged, nobody has promised it",
                count=found.count,
                public_ids=[str(public_id) for public_id in found.public_ids],
                list_them="accountsvc accounts list --state unexplained",
                end_it="accountsvc accounts accept",
            )

    def _is_anybody_due(self) -> bool:
        if self.only is not None:
            return True
        with self.database.reading() as session:
            planned = claim.plan(
                session,
                now=self.clock(session),
                max_attempts=self.rules.max_attempts,
                page_size=1,
            )
            return next(planned, None) is not None

    def _purge_what_the_brake_lets_go(self) -> list[int]:
        """Purge one batch, cut to what the brake lets go; return who was dealt with."""
        with self.database.reading() as session:
            # While purging is paused the brake is not asked: it would hold, and its alarm ring,
            # for people whom the pause keeps.
            if not self.although_paused:
                stops.heed_pause(session)
            wanted = claim.count_proposed(
                session,
                self.clock(session),
                self.rules.batch_size,
                self._untried,
                self._max_attempts,
            )
        if not wanted:
            return []
        allotment = self._allowance.take(wanted)
        self.result.waiting = allotment.waiting
        if not allotment.size:
            return []
        before = self.result.purged
        try:
            dealt_with = self._purge_batch(allotment.size)
        except Refused:
            self._allowance.give_back(allotment, self.result.purged - before)
            raise
        # After any other exception the allotment stays taken: a commit may have been the last thing
        # that the database did.
        self._allowance.give_back(allotment, self.result.purged - before)
        return dealt_with

    def _require_ledger(self) -> None:
        if not self.write_ledger():
            raise LedgerBehind

    def _purge_batch(self, size: int, *, asked_for: bool = False) -> list[int]:
        """Purge one batch and return the ids that were dealt with; none if nothing is due."""
        proposed: list[int] = []
        try:
            with self.database.writing() as session:
                now, proposed = self._lock(session, size, self._untried, asked_for=asked_for)
                purged = self._erase(session, proposed, now)
        except Exception as exc:
            # Whatever is wrong with one account of the batch, a bug of ours too, must not keep the
            # others waiting; a database that fails as a whole would fail for each of them again.
            if is_outage(exc) or not proposed:
                raise
            self._say_rolled_back(proposed, exc)
            self._purge_one_by_one(proposed)
        else:
            self.result.add(purged)
        return proposed

    def _purge_one_by_one(self, ids: Sequence[int]) -> None:
        """Purge each account in its own transaction; write down those that cannot be purged."""
        for account_id in ids:
            try:
                with self.database.writing() as session:
                    # Lock the account anew, by the same rules: another sweep may have written it
                    # down as failing in between, and it would be tried again at once.
                    now, proposed = self._lock(session, 1, [account_id])
                    purged = self._erase(session, proposed, now)
            except Refused:
                raise
            except Exception as exc:
                if is_outage(exc):
                    raise
                self._note_failure(account_id, exc)
            else:
                self.result.add(purged)

    def _lock(
        self,
        session: Session,
        size: int,
        only: Collection[int] | None,
        *,
        asked_for: bool = False,
    ) -> tuple[datetime, list[int]]:
        """Lock due accounts, and return their ids with the time by which they are due."""
        now = self.clock(session)
        # A backup may be put back under a sweep that has looked already.
        high_water = generations.high_water(session)
        if high_water < self._high_water:
            raise DatabaseBehind
        self._high_water = high_water
        if not self.although_paused:
            stops.heed_pause(session)
        if self.clocks is not None and self._reading is not None:
            self.clocks.heed(session, now, self._reading)
        return now, claim.lock_due(
            session, now, size, only, self._max_attempts, asked_for=asked_for
        )

    def _erase(
        self, session: Session, proposed: Sequence[int], now: datetime
    ) -> list[PlannedPurge]:
        purged = claim.decide(session, proposed, now)
        kept = self.rules.backups_kept
        erase.erase(session, purged, now, self.by, backups_kept=kept)
        return purged

    def _note_failure(self, account_id: int, exc: Exception) -> None:
        with self.database.writing() as session:
            failure = failures.note(
                session, account_id, exc, self.clock(session), self.rules.max_attempts
            )
        if failure is not None:
            stuck = failure.attempts >= self.rules.max_attempts
            self.result.failed += 1
            self.result.stuck += stuck
            self._say_failed(failure, stuck=stuck)

    def _say_rolled_back(self, ids: Sequence[int], exc: Exception) -> None:
        log.warning(
            "batch rolled back, purging one by one", count=len(ids), error=type(exc).__name__
        )

    def _say_failed(self, failure: PurgeFailure, *, stuck: bool) -> None:
        # After the commit: what is not written down has not been counted either.
        log.error(
            "an account could not be purged",
            account_id=failure.account_id,
            error=failure.error,
            constraint=failure.constraint_name,
            attempts=failure.attempts,
            stuck=stuck,
        )
