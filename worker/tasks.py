"""The tasks, doorways from Celery to the core: do a slice of what is due, and log the counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, wraps
from typing import Any

import structlog
from celery import shared_task
from kombu.exceptions import OperationalError as BrokerUnavailable

from accountsvc.config import load_settings
from accountsvc.db.catalog import Watch
from accountsvc.db.outages import is_passing_fault
from accountsvc.errors import StoreUnavailable
from accountsvc.monitoring import canary
from accountsvc.purge.clocks import ClockMoved, ClocksDiffer
from accountsvc.purge.sealer import SealsBehind, SealsGone
from accountsvc.purge.stops import (
    DatabaseBehind,
    LedgerBehind,
    LedgerGone,
    LedgerUnreadable,
    PurgingPaused,
    Refused,
)
from accountsvc.services import Services, build_services

from .app import DELIVER, SEAL, SLICE, SWEEP, expiry

log = structlog.get_logger(__name__)

# A look costs about twenty reads, however old the ledger is.
LOOK_EVERY = timedelta(minutes=1)
# Shorter than a slice: two processes do all, and a sweep may be waiting for one of them.
_SEAL_SECONDS = 2.0
# A search takes little of a delivery's time: mails wait behind it.
SEARCH_SLICE = timedelta(seconds=1)
_SLICE_SECONDS = SLICE.total_seconds()


@cache
def services() -> Services:
    """Return this process's services, made after the fork: it shares no connection."""
    return build_services(load_settings())


_LEDGER_GONE = (
    "the ledger is empty though it was written, so nothing is purged: give "
    "LEDGER_URL its store back, or run `accountsvc ledger rebuild`; "
    "`accountsvc ledger adopt` if a key was replaced"
)


def doorway(name: str) -> Callable[[Callable[[], bool]], Any]:
    """Make a function a task that runs again at once, behind what waits, if it returns True.

    Whatever goes wrong ends in one line of the log: the next tick repeats it.
    """

    def register(function: Callable[[], bool]) -> Any:
        @wraps(function)
        def run() -> None:
            try:
                if function():
                    # The follow-up has the same expiry as a beat tick; otherwise every tick would
                    # start another chain of follow-ups.
                    task.apply_async(expires=expiry(services().settings.sweep_interval))
            except LedgerGone:
                log.error(_LEDGER_GONE, task=name)
            except LedgerUnreadable:
                log.error("the ledger cannot be read, so nothing is purged", task=name)
            except LedgerBehind:
                log.error("the ledger does not take its lines, so nothing is purged", task=name)
            except DatabaseBehind:
                log.error(
                    "the database is older than its ledger, so nothing is purged: "
                    "`accountsvc ledger replay` ends that",
                    task=name,
                )
            except ClocksDiffer as exc:
                log.error(
                    "two clocks differ, so nothing is purged: set the wrong one right",
                    other=exc.other,
                    seconds=round(exc.ahead.total_seconds()),
                )
            except ClockMoved:
                log.error(
                    "the database's clock has moved, so nothing is purged until it is back: "
                    "`accountsvc sweeps allow --clock` if it is right as it is"
                )
            except PurgingPaused:
                log.warning("purging is paused: `accountsvc sweeps resume` ends it")
            except BrokerUnavailable:
                log.warning("the broker does not answer; the next tick goes on", task=name)
            except Exception as exc:
                if is_passing_fault(exc):
                    log.warning(
                        "the database does not answer; the next tick repeats",
                        task=name,
                        error=type(exc).__name__,
                    )
                else:
                    # The exception goes no further: Celery would log its text, which may quote a
                    # row and with it somebody's address.
                    log.error("a task failed; the next tick repeats it", task=name, exc_info=exc)

        task = shared_task(name=name)(run)
        return task

    return register


@doorway(SWEEP)
def sweep() -> bool:
    """Purge what is due for a slice of time; scrub when nothing is left."""
    try:
        result = services().sweep(seconds=_SLICE_SECONDS)
    except Refused:
        # A refusal ends this task, but not what earlier ones owe: freed pages of accounts that are
        # purged already would stay readable for as long as the refusal lasts.
        services().scrub()
        raise
    _look_at_the_ledger()
    _watch.say(services().unmapped_tables)
    if result.dealt_with:
        log.info(
            "swept",
            purged=result.purged,
            saved_passwords=result.saved_passwords,
            files=result.files,
            failed=result.failed,
            stuck=result.stuck,
            more=result.more,
            waiting=result.waiting,
        )
    if not result.more:
        services().scrub()
    return result.more


@dataclass
class _LastLook:
    """The monotonic time of this process's last look at a store, once a minute at most."""

    at: float | None = None

    def is_time(self) -> bool:
        """Say whether it is time for another look, which is made then."""
        now = time.monotonic()
        if self.at is not None and now - self.at < LOOK_EVERY.total_seconds():
            return False
        self.at = now
        return True


_last_look = _LastLook()
# With the first sweep of each process, then daily.
_watch = Watch()


def _look_at_the_ledger() -> None:
    """Say in the log what is amiss with the ledger; look once a minute at most.

    Never raises for a ledger that does not answer: the sweep has said so, or the next one does.
    """
    if not _last_look.is_time():
        return
    try:
        look = services().restore.look()
    except StoreUnavailable:
        log.error("the ledger cannot be read: `accountsvc ledger verify`")
        return
    look.say()


@doorway(DELIVER)
def deliver() -> bool:
    """Do for a slice of time what is owed: delete files, send mails, write the ledger.

    When nothing is left, go on with the daily search for files that are nobody's.
    """
    result = services().deliver(seconds=_SLICE_SECONDS)
    if result.delivered or result.failed or result.given_up:
        log.info(
            "delivered",
            delivered=result.delivered,
            failed=result.failed,
            given_up=result.given_up,
            more=result.more,
        )
    if not result.more:
        _look_for_orphans()
        _make_a_canary()
    return result.more


@doorway(SEAL)
def seal() -> bool:
    """Seal what has come into the trail; say in the log what keeps that from being done."""
    try:
        result = services().seal(seconds=_SEAL_SECONDS)
    except SealsBehind:
        log.error(
            "the ledger has seals that the database lacks, so nothing is sealed: `accountsvc "
            "ledger replay` after a restore, otherwise `accountsvc audit verify`"
        )
        return False
    except SealsGone:
        log.error(
            "the ledger has lost the seals, so nothing is sealed: give LEDGER_URL its store back, "
            "or run `accountsvc ledger rebuild`"
        )
        return False
    except StoreUnavailable:
        log.error("the ledger does not answer, so nothing is sealed")
        return False
    if result.seals:
        log.info("sealed", seals=result.seals, entries=result.entries)
    return result.more


_last_search, _last_canary = _LastLook(), _LastLook()


def _look_for_orphans() -> None:
    """Go on with the search for orphans; once a minute at most while there is nothing to compare.

    Never raises for a store that does not answer, or while nothing may be deleted: it goes on
    later where it has ended.
    """
    if not _last_search.is_time():
        return
    try:
        more = services().orphans.run(seconds=SEARCH_SLICE.total_seconds())
    except StoreUnavailable:
        log.warning("the avatar store cannot be searched; the search goes on later")
        return
    except Refused:
        log.info("files that are nobody's stay while nothing is purged")
        return
    if more:
        _last_search.at = None


def _make_a_canary() -> None:
    """Make the day's canary if ``CANARY`` is on and none was made; ask once a minute at most.

    Its failures are in the log and the trail. None is made while nothing may be purged.
    """
    if not (services().settings.canary and _last_canary.is_time()):
        return
    try:
        canary.run_if_due(services())
    except Refused:
        log.info("no canary is made while nothing is purged")
