"""Purge what is due: claim, erase, leave a receipt; fall back to one account a transaction.

The query proposes, the locked row decides. One batch is one short transaction:

1. lock due accounts in ``purge_at`` order, skipping those that another worker has locked;
2. in a new statement, which sees what was committed while the locks were waited for, drop those with
   an open hold;
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

import structlog

from ..db.audit import SYSTEM_ACTOR, Actor
from ..db.engine import Clock, Database
from ..db.models import (
    SWEPT,
)
from ..db.outages import is_outage
from . import erase
from .brake import LedgerBehind, Refused, heed_pause, mark
from .claim import PlannedPurge, decide, lock_due
from .failures import note

log = structlog.get_logger(__name__)


@dataclass
class SweepResult:
    """What a sweep did. ``more`` says that due accounts may be left which it had no time for."""

    purged: int = 0
    saved_passwords: int = 0
    files: int = 0
    failed: int = 0
    stuck: int = 0
    more: bool = False
    purged_ids: list[int] = field(default_factory=list)

    @property
    def dealt_with(self) -> int:
        return self.purged + self.failed


Progress = Callable[[int], None]


def sweep(
    database: Database,
    clock: Clock,
    *,
    batch_size: int,
    max_attempts: int,
    write_ledger: Callable[[], bool],
    limit: int | None = None,
    seconds: float | None = None,
    only: Collection[int] | None = None,
    although_paused: bool = False,
    by: Actor = SYSTEM_ACTOR,
    progress: Progress | None = None,
) -> SweepResult:
    """Purge accounts that are due by *clock* (read anew for every batch), oldest first, in batches.

    Stops after *limit* accounts, after about *seconds*, or when nothing due is left. *only* restricts
    it to those ids, and then also tries accounts whose retry is not due yet. Held, failing and stuck
    accounts neither stop nor slow the rest; a failing one is written to ``purge_failures``. Active
    accounts and accounts in their grace period are not touched. Safe beside itself.

    *write_ledger* delivers the ledger lines that are owed and says whether none is left; it is
    called before the first batch and after each, and a batch is not begun while it says no.
    Raises LedgerBehind then, PurgingPaused from the first batch after :func:`pause` unless
    *although_paused* (a replay after a restore), and the database's own error if a sweep cannot run at all.

    A sweep over all that is due leaves its time as :func:`swept_at`.
    """
    result = SweepResult()
    stop_at = None if seconds is None else time.monotonic() + seconds
    # Each id that was asked for is tried once: one that fails would otherwise be claimed again and again.
    left = None if only is None else set(only)
    if not write_ledger():
        raise LedgerBehind
    while True:
        room = batch_size if limit is None else min(batch_size, limit - result.dealt_with)
        if room <= 0 or (stop_at is not None and time.monotonic() >= stop_at):
            result.more = True
            break
        dealt_with = _purge_batch(
            database, clock, room, max_attempts, left, by, result, although_paused=although_paused
        )
        if not dealt_with:
            break
        if left is not None:
            left.difference_update(dealt_with)
        if progress is not None:
            progress(len(dealt_with))
        if not write_ledger():
            raise LedgerBehind
    if only is None:
        with database.writing() as session:
            mark(session, SWEPT, clock(session))
    return result


def _purge_batch(
    database: Database,
    clock: Clock,
    size: int,
    max_attempts: int,
    only: Collection[int] | None,
    by: Actor,
    result: SweepResult,
    *,
    although_paused: bool,
) -> list[int]:
    """Purge one batch and return the ids that were dealt with; none when nothing due is left."""
    proposed: list[int] = []
    # Who asks for an account by its id wants it tried now.
    waited_for = max_attempts if only is None else None
    try:
        with database.writing() as session:
            now = clock(session)
            heed_pause(session, although_paused)
            proposed = lock_due(session, now, size, only, waited_for)
            purged = decide(session, proposed, now)
            erase.erase(session, purged, now, by)
    except Exception as exc:
        # Whatever is wrong with one account, a bug of ours too, must not keep the others waiting.
        if is_outage(exc) or not proposed:
            raise
        log.warning(
            "batch rolled back, purging one by one",
            count=len(proposed),
            error=type(exc).__name__,
        )
        _purge_one_by_one(
            database,
            clock,
            proposed,
            max_attempts,
            waited_for,
            by,
            result,
            although_paused=although_paused,
        )
    else:
        _add(result, purged)
    return proposed


def _purge_one_by_one(
    database: Database,
    clock: Clock,
    ids: Sequence[int],
    max_attempts: int,
    waited_for: int | None,
    by: Actor,
    result: SweepResult,
    *,
    although_paused: bool,
) -> None:
    """Purge each account in a transaction of its own; one that cannot be purged is written down."""
    for account_id in ids:
        try:
            with database.writing() as session:
                now = clock(session)
                heed_pause(session, although_paused)
                # Not again if a sweep beside this one has just written it down.
                locked = lock_due(session, now, 1, [account_id], waited_for)
                purged = decide(session, locked, now)
                erase.erase(session, purged, now, by)
        except Refused:
            raise
        except Exception as exc:
            if is_outage(exc):
                raise
            with database.writing() as session:
                failure = note(session, account_id, exc, clock(session), max_attempts)
                if failure is not None:
                    result.failed += 1
                    result.stuck += failure.attempts >= max_attempts
        else:
            _add(result, purged)


def _add(result: SweepResult, purged: Sequence[PlannedPurge]) -> None:
    result.purged += len(purged)
    result.saved_passwords += sum(one.saved_passwords for one in purged)
    result.files += sum(one.files for one in purged)
    result.purged_ids.extend(one.account_id for one in purged)
