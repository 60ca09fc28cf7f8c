"""Purge accounts now, because an operator asks for it: plan, refuse, purge, deliver, scrub, report.

Needs neither worker nor broker, and is safe beside them: an account that a worker purges meanwhile
counts as purged, and one that it has locked is waited for.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum, auto
from typing import Protocol

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from ..accounts import lifecycle
from ..db import audit, rows, rules
from ..db.audit import OPERATOR_ACTOR, Actor
from ..db.engine import Database, database_now
from ..db.models import Account, PurgeFailure, Receipt
from ..errors import AccountNotFound, LastStaff, LegalHold, NotDeactivated, Unexplained
from ..outbox import queue
from . import claim, failures, stops
from .aftermath import Aftermath, Deliver
from .brake import Allowance
from .claim import PlannedPurge
from .clocks import ClockMoved, Clocks, ClocksDiffer
from .restore import Restore
from .sweep import Progress, SweepResult

# A purge waits so long for what another process has locked, or is at work on. That is longer than
# any transaction of ours: with less, an account would be reported as kept while a worker purges it.
LOCK_PATIENCE = timedelta(seconds=10)

# A report names so many failing and stuck accounts at most: after an outage nobody could read it.
MOST_TROUBLED = 1000


class Sweep(Protocol):
    """Purge those of *only* that are due, as ``Services.sweep`` promises."""

    def __call__(
        self,
        *,
        only: Sequence[int],
        named: bool,
        replaying: bool,
        by: Actor,
        progress: Progress | None,
    ) -> SweepResult: ...


class Obstacle(Enum):
    """A reason for which an account cannot be purged now."""

    ACTIVE = auto()
    LAST_STAFF = auto()
    HELD = auto()
    UNEXPLAINED = auto()
    FAILED = auto()
    REACTIVATED = auto()
    BUSY = auto()  # Another process has the account locked.
    NO_RECEIPT = auto()  # The account is gone, but not by a purge.
    BRAKED = auto()  # The brake lets no more go in this hour.
    PAUSED = auto()
    LEDGER_BEHIND = auto()
    LEDGER_UNREADABLE = auto()
    LEDGER_GONE = auto()
    DATABASE_BEHIND = auto()
    CLOCKS_DIFFER = auto()
    CLOCK_MOVED = auto()


STOPS: Mapping[type[stops.Refused], Obstacle] = {
    stops.PurgingPaused: Obstacle.PAUSED,
    stops.LedgerBehind: Obstacle.LEDGER_BEHIND,
    stops.LedgerUnreadable: Obstacle.LEDGER_UNREADABLE,
    stops.LedgerGone: Obstacle.LEDGER_GONE,
    stops.DatabaseBehind: Obstacle.DATABASE_BEHIND,
    ClocksDiffer: Obstacle.CLOCKS_DIFFER,
    ClockMoved: Obstacle.CLOCK_MOVED,
}


# What stops a purge as a whole: nobody asks the brake then, or its alarm would ring for people whom
# something else keeps.
_STOPPED = frozenset(STOPS.values())


@dataclass(frozen=True)
class Kept:
    """The reason why an account is kept; ``failure`` is its last try, if that is the reason."""

    obstacle: Obstacle
    failure: PurgeFailure | None = None


class NotPurgeable(Exception):
    """Some of the named accounts may not be purged, so nothing was changed."""

    def __init__(self, kept: Mapping[int, Kept]) -> None:
        super().__init__()
        self.kept = kept


@dataclass
class PurgeReport:
    """The outcome of a plan.

    ``purged`` says by the receipts what was destroyed; ``kept`` names by id who was not purged, and
    why. ``owed`` counts by kind what is still to be delivered for those who were purged, and
    ``scrubbed`` says whether nothing of them is left in the database's file. ``paused`` counts
    files whose deletion waits until purging goes on, as after a replay while it is paused.

    It ``is_done`` when everybody is purged, no file of theirs is there, but for the ``paused``
    ones, and the ledger has their lines. Mails and the scrub are for the worker then.
    """

    purged: list[PlannedPurge] = field(default_factory=list)
    kept: dict[int, Kept] = field(default_factory=dict)
    owed: dict[str, int] = field(default_factory=dict)
    scrubbed: bool = True
    paused: int = 0

    @property
    def is_done(self) -> bool:
        owed = self.owed.keys() & {queue.DELETE_FILE, queue.LEDGER}
        return not (self.kept or owed)


@dataclass(frozen=True)
class PurgeNow:
    """The purge at once, which an operator asks for.

    *sweep*, *deliver* and *scrub* do their work with this process's settings, *scrub* however young
    the last scrub is. *promise* has the terms of a deactivation that is needed first.
    """

    database: Database
    restore: Restore
    clocks: Clocks
    sweep: Sweep
    deliver: Deliver
    scrub: Callable[[], bool]
    promise: lifecycle.Promise
    max_attempts: int

    def refuse_if_stopped(self) -> None:
        """Raise whatever is Refused, where a purge would do so."""
        self.refuse_if_paused()
        self.restore.refuse_after_restore()

    def refuse_if_paused(self) -> None:
        """Raise PurgingPaused, ClocksDiffer or ClockMoved, while neither rows nor files may go."""
        self.clocks.look()
        with self.database.reading() as session:
            stops.heed_pause(session)

    def plan_due(self) -> list[PlannedPurge]:
        """Return what :meth:`purge_due` would destroy, oldest first; change nothing."""
        with self.database.reading() as session:
            now = database_now(session)
            return list(claim.plan(session, now=now, max_attempts=self.max_attempts))

    def plan_named(self, ids: Iterable[int], *, force: bool) -> list[PlannedPurge]:
        """Return what :meth:`purge_named` would destroy, by making them due and taking it back.

        Raises NotPurgeable.
        """

        with self.database.rehearsing() as session:
            planned = claim.count(session, sorted(ids))
            make_all_due(session, planned, promise=self.promise if force else None)
        return planned

    def purge_due(
        self,
        planned: Sequence[PlannedPurge],
        progress: Progress | None = None,
        *,
        waiting: Sequence[PlannedPurge] = (),
    ) -> PurgeReport:
        """Purge the *planned* accounts, which are due; report on others that are due as well.

        The brake bounds it, as it does a worker's sweeps; *waiting* are due accounts that it is
        known to keep, and are not touched. Failing, stuck and unexplained ones wait for their next
        try or for a person, and are in no plan.
        """
        report = self._purge(planned, {}, progress, named=False)
        if waiting and not any(kept.obstacle in _STOPPED for kept in report.kept.values()):
            Allowance(self.database, database_now, self.max_attempts).hold_back(len(waiting))
        self.add_waiting(report, waiting)
        self.add_left_out(report)
        if not report.purged:
            # A worker that was faster may wait an hour before it scrubs; until then the file would
            # still hold what it purged.
            report.scrubbed = self.scrub()
        return report

    def purge_named(
        self, planned: Sequence[PlannedPurge], *, force: bool, progress: Progress | None = None
    ) -> PurgeReport:
        """Waive what is left of the *planned* accounts' grace periods and purge them.

        With *force* active ones are deactivated first. Raises NotPurgeable, for all or none.
        """
        with self.database.writing() as session:
            make_all_due(session, planned, promise=self.promise if force else None)
        return self._purge(planned, {}, progress)

    def replay(
        self, planned: Sequence[PlannedPurge], progress: Progress | None = None
    ) -> PurgeReport:
        """Purge again whom a restore has brought back, active or not, also while purging is paused.

        Whoever is unexplained too: the ledger's line is the promise, and the event that makes them
        due is its witness. An account that may not be purged keeps no other from it. Raises
        ClocksDiffer or ClockMoved before anything is changed: the times in the new receipts would
        be wrong for good.
        """
        self.clocks.look()
        kept: dict[int, Kept] = {}
        for chunk in rows.chunks(planned):
            with self.database.writing() as session:
                kept |= make_due(session, chunk, promise=self.promise, replaying=True)
        return self._purge(planned, kept, progress, replaying=True)

    def _purge(
        self,
        planned: Sequence[PlannedPurge],
        refused: Mapping[int, Kept],
        progress: Progress | None,
        *,
        named: bool = True,
        replaying: bool = False,
    ) -> PurgeReport:
        wanted = [plan for plan in planned if plan.account_id not in refused]
        stop = self._sweep_patiently(wanted, progress, named=named, replaying=replaying)
        # Whom the brake keeps are told from those who failed or came back in the same minute.
        braked = set(self._waiting(wanted)) if stop is Obstacle.BRAKED else set()
        # Read the receipts after the last wait; otherwise an account that a worker purged during it
        # would be reported as kept.
        receipts = self._receipts(planned)
        report = PurgeReport(kept=dict(refused))
        for plan in planned:
            receipt = receipts.get(plan.public_id)
            if receipt is not None:
                report.purged.append(
                    replace(plan, saved_passwords=receipt.saved_passwords, files=receipt.files)
                )
            elif plan.account_id not in refused:
                is_own = stop is None or (stop is Obstacle.BRAKED and plan.account_id not in braked)
                kept = self.why_kept(plan.account_id) if stop is None or is_own else Kept(stop)
                report.kept[plan.account_id] = kept
        if report.purged:
            self._see_to_the_rest(report, list(receipts))
        return report

    def _see_to_the_rest(self, report: PurgeReport, public_ids: Sequence[uuid.UUID]) -> None:
        """Deliver and scrub for who is purged, and report what is left of that."""
        aftermath = Aftermath(self.database, self.deliver, self.scrub)
        report.owed = aftermath.deliver_all(public_ids, LOCK_PATIENCE)
        with self.database.reading() as session:
            if queue.waits(session, queue.DELETE_FILE):
                report.paused = report.owed.pop(queue.DELETE_FILE, 0)
        if report.owed or report.paused:
            report.scrubbed = self.database.engine.dialect.name != "sqlite"
        else:
            report.scrubbed = aftermath.finish(public_ids, LOCK_PATIENCE)

    def _sweep_patiently(
        self,
        planned: Sequence[PlannedPurge],
        progress: Progress | None,
        *,
        named: bool,
        replaying: bool,
    ) -> Obstacle | None:
        """Sweep until nobody of *planned* waits for another process; return what has stopped it.

        The brake stops it for an hour, so it is not waited for. A pause, a ledger that fails or a
        restore may come between any two tries; each ends the sweeping, and what was purged before
        is still to be reported, delivered and scrubbed.
        """
        waiting = [plan.account_id for plan in planned]
        give_up_at = time.monotonic() + LOCK_PATIENCE.total_seconds()
        try:
            while True:
                for chunk in rows.chunks(waiting):
                    result = self.sweep(
                        only=chunk,
                        named=named,
                        replaying=replaying,
                        by=OPERATOR_ACTOR,
                        progress=progress,
                    )
                    if result.waiting:
                        return Obstacle.BRAKED
                waiting = self._waiting(planned)
                if not waiting or time.monotonic() > give_up_at:
                    return None
                time.sleep(0.2)
        except stops.Refused as exc:
            return STOPS[type(exc)]

    def _waiting(self, planned: Sequence[PlannedPurge]) -> list[int]:
        """Return who is neither purged nor kept by anything that waiting would not change."""
        with self.database.reading() as session:
            now = database_now(session)
            return [
                account_id
                for chunk in rows.chunks([plan.account_id for plan in planned])
                for account_id in session.scalars(
                    select(Account.id).where(
                        Account.id.in_(chunk),
                        rules.is_due(now),
                        ~rules.has_open_hold(),
                        ~rules.has_failed(),
                        rules.is_explained(),
                    )
                )
            ]

    def _receipts(self, planned: Sequence[PlannedPurge]) -> dict[uuid.UUID, Receipt]:
        """Return the receipts of those of *planned* who are gone.

        Somebody who is there may have one from before a restore, which proves nothing.
        """
        is_there = exists().where(Account.public_id == Receipt.public_id)
        with self.database.reading() as session:
            return {
                receipt.public_id: receipt
                for chunk in rows.chunks([plan.public_id for plan in planned])
                for receipt in session.scalars(
                    select(Receipt).where(Receipt.public_id.in_(chunk), ~is_there)
                )
            }

    def add_waiting(self, report: PurgeReport, waiting: Sequence[PlannedPurge]) -> None:
        """Add to *report* who of *waiting* waits for the brake still, and what keeps the others."""
        braked = set(self._waiting(waiting))
        for plan in waiting:
            is_braked = plan.account_id in braked
            kept = Kept(Obstacle.BRAKED) if is_braked else self.why_kept(plan.account_id)
            # Who is gone meanwhile was purged by a worker.
            if kept.obstacle is not Obstacle.NO_RECEIPT:
                report.kept[plan.account_id] = kept

    def add_left_out(self, report: PurgeReport) -> None:
        """Add to *report* who is due and in no plan: the failing, stuck and unexplained."""
        for account_id in self._troubled():
            report.kept.setdefault(account_id, self.why_kept(account_id))
        for account_id in self._unexplained():
            report.kept.setdefault(account_id, Kept(Obstacle.UNEXPLAINED))

    def _troubled(self) -> Sequence[int]:
        """Return the due accounts that are failing or stuck, the first of them."""
        with self.database.reading() as session:
            now = database_now(session)
            return session.scalars(failures.troubled(now, MOST_TROUBLED)).all()

    def _unexplained(self) -> Sequence[int]:
        """Return the due accounts whose purge nobody has promised, the first of them."""
        with self.database.reading() as session:
            first = select(Account.id).where(*claim.is_left_out_unexplained(database_now(session)))
            return session.scalars(first.order_by(Account.id).limit(MOST_TROUBLED)).all()

    def why_kept(self, account_id: int) -> Kept:
        """Say what keeps an account that is due, or was, from being purged."""
        with self.database.reading() as session:
            account = rows.find(session, account_id)
            if account is None:
                return Kept(Obstacle.NO_RECEIPT)
            if lifecycle.open_holds(session, account_id):
                return Kept(Obstacle.HELD)
            if not account.is_active and not audit.is_explained(session, account):
                return Kept(Obstacle.UNEXPLAINED)
            failure = session.get(PurgeFailure, account_id)
            if failure is not None:
                return Kept(Obstacle.FAILED, failure)
            return Kept(Obstacle.REACTIVATED if account.is_active else Obstacle.BUSY)


def make_all_due(
    session: Session, planned: Sequence[PlannedPurge], *, promise: lifecycle.Promise | None
) -> None:
    """Make all *planned* accounts due as :func:`make_due` does, or raise NotPurgeable."""
    kept = make_due(session, planned, promise=promise)
    if kept:
        raise NotPurgeable(kept)


def make_due(
    session: Session,
    planned: Sequence[PlannedPurge],
    *,
    promise: lifecycle.Promise | None,
    replaying: bool = False,
) -> dict[int, Kept]:
    """Make accounts due now, active ones only with a *promise*; return who is refused, and why.

    Unexplained ones only when *replaying* the ledger. An account that is gone meanwhile is passed
    over: a worker has purged it.
    """
    kept: dict[int, Kept] = {}
    ids = sorted(plan.account_id for plan in planned)
    rows.lock_for_deactivation(session, ids)
    for account_id in ids:
        try:
            account = rows.lock(session, account_id)
            if account.is_active and promise is not None:
                # The promise is waived at once, so its reminders would be owed in vain: rows
                # for each account, which the purge would delete again.
                waived = replace(promise, reminders=())
                lifecycle.deactivate(session, account_id, promise=waived, by=OPERATOR_ACTOR)
            lifecycle.due_now(session, account_id, by=OPERATOR_ACTOR, promised_elsewhere=replaying)
        except AccountNotFound:
            continue
        except NotDeactivated:
            kept[account_id] = Kept(Obstacle.ACTIVE)
        except LastStaff:
            kept[account_id] = Kept(Obstacle.LAST_STAFF)
        except LegalHold:
            kept[account_id] = Kept(Obstacle.HELD)
        except Unexplained:
            kept[account_id] = Kept(Obstacle.UNEXPLAINED)
    return kept
