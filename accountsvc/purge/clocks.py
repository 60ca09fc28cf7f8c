"""Whether the database's clock may be believed, before anybody is purged by it.

A clock that jumps ahead makes everybody due who is in their grace period. Two things tell:

- another clock shows another time: the host's, or that of Redis;
- the database's clock has moved, beside a clock of the host that nobody can set.

The first says which clock is wrong only to a person, and ends when they agree. The second is a mark
in the database that stops all purging, by whatever process, until the host that has set it sees the
clock where it should be, or an operator says that it is right as it is.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import structlog
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from ..db import audit, rows
from ..db.audit import SYSTEM_ACTOR, Actor
from ..db.engine import Clock, Database, database_now
from ..db.models import ClockReading
from ..db.rows import change
from .stops import Refused

log = structlog.get_logger(__name__)

# Hosts whose clocks nobody keeps right are seconds or minutes apart; with less than this, each of
# them would stop all purging.
MOST_APART = timedelta(minutes=5)
# A leap second, or a correction after hours without a time server, is less than this.
MOST_MOVED = timedelta(seconds=60)
# The kernel corrects a clock by up to 500 millionths, and here the clocks of two hosts are
# compared. Without this allowance, an honest correction of days would add up to a stop.
MOST_SLEWED = 0.001
READINGS_KEPT = timedelta(days=90)

THIS_HOST, REDIS = "this host", "Redis"


class ClocksDiffer(Refused):
    """The database's clock is ``ahead`` of the one of ``other``, or behind if that is negative."""

    def __init__(self, other: str, ahead: timedelta) -> None:
        direction = "behind" if ahead < timedelta() else "ahead of"
        super().__init__(
            f"the database's clock is {abs(ahead).total_seconds():.0f} s {direction} "
            f"the one of {other}"
        )
        self.other = other
        self.ahead = ahead


class ClockMoved(Refused):
    """The database's clock has moved, and purging is stopped until it is back."""


@dataclass(frozen=True)
class Reading:
    """What the database's clock showed when the host had been up for ``uptime``.

    ``booted_at`` is its time at the host's boot, so that it stays the same for as long as the clock
    goes right.
    """

    booted_at: datetime
    uptime: timedelta

    @classmethod
    def of(cls, now: datetime, uptime: timedelta) -> Reading:
        return cls(now - uptime, uptime)

    def moved(self, now: datetime, uptime: timedelta) -> timedelta:
        """Return by how much the clock has moved ahead by *now*, or back if that is negative."""
        return now - uptime - self.booted_at

    def has_moved(self, now: datetime, uptime: timedelta) -> bool:
        """Say whether it has moved by more than time servers correct a clock."""
        return abs(self.moved(now, uptime)) > MOST_MOVED + self._slewed(uptime)

    def follow(self, now: datetime, uptime: timedelta) -> Reading:
        """Return the reading to compare with from now on; call it for a clock that goes right.

        It follows the clock as slowly as that may be corrected. With each reading as the next one's
        measure, a clock that jumps by less than the limit each time could go anywhere.
        """
        most = self._slewed(uptime)
        moved = min(max(self.moved(now, uptime), -most), most)
        return Reading(self.booted_at + moved, uptime)

    def _slewed(self, uptime: timedelta) -> timedelta:
        return max(uptime - self.uptime, timedelta()) * MOST_SLEWED


def stopped_at(session: Session) -> datetime | None:
    """Return when the clock was found to have moved, by its time before; None if it goes right."""
    return session.scalar(select(func.min(ClockReading.moved_at)))


def _host_now() -> datetime:
    return datetime.now(UTC)


def _uptime() -> timedelta:
    """Return for how long this host has been up, also asleep, by a clock that nobody can set."""
    # Only Linux has this clock; on macOS the monotonic one counts sleep too.
    boottime = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return timedelta(seconds=time.clock_gettime(boottime))


@cache
def _this_boot() -> str:
    """Return a name for what :func:`_uptime` counts from, which all processes of a host share.

    Where the kernel has none, each process has its own name, and knows only what it has seen.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return uuid.uuid4().hex
    with suppress(OSError):
        # A container may count from a moment of its own.
        boot += os.readlink("/proc/self/ns/time")
    return hashlib.sha256(boot.encode()).hexdigest()[:32]


def _no_clock() -> datetime | None:
    return None


@dataclass(frozen=True)
class Clocks:
    """The clocks that one process can see. Holds no state: readings and the mark are rows.

    *redis_clock* returns the time of Redis, or None if there is none or it does not answer: that is
    no clock that is wrong.
    """

    database: Database
    clock: Clock = database_now
    host_clock: Callable[[], datetime] = _host_now
    uptime: Callable[[], timedelta] = _uptime
    redis_clock: Callable[[], datetime | None] = _no_clock
    boot: str = field(default_factory=_this_boot)

    def look(self, since: Reading | None = None) -> Reading:
        """Return a reading to :meth:`heed` in each batch; call it before a sweep's first one.

        The database's clock is compared with the last reading of this host, or with *since* if
        there is none. A clock that has moved sets the mark, and one that is back removes this
        host's. Each is audited. Raises ClocksDiffer or ClockMoved.
        """
        with self.database.reading() as session:
            now, uptime = self.clock(session), self.uptime()
            row = session.get(ClockReading, self.boot)
            is_stopped = stopped_at(session) is not None
        last = since if row is None else Reading(row.booted_at, row.read_at - row.booted_at)
        differs = self._differs(now)
        moved = last is not None and last.has_moved(now, uptime)
        if last is not None and moved and not is_stopped:
            self._stop(last, now, uptime)
        elif row is not None and row.moved_at is not None and not moved and differs is None:
            is_stopped = self._go_on(now)
        if differs is not None:
            raise differs
        if moved or is_stopped:
            raise ClockMoved
        return last or Reading.of(now, uptime)

    def heed(self, session: Session, now: datetime, reading: Reading) -> None:
        """Raise ClockMoved or ClocksDiffer inside the transaction that would purge at *now*."""
        if stopped_at(session) is not None or reading.has_moved(now, self.uptime()):
            raise ClockMoved
        differs = _difference(THIS_HOST, now, self.host_clock())
        if differs is not None:
            raise differs

    def keep(self, session: Session, now: datetime, reading: Reading) -> None:
        """Keep what was seen at *now* for the next look of this host, in this transaction."""
        uptime = self.uptime()
        if stopped_at(session) is None and not reading.has_moved(now, uptime):
            self._keep(session, reading.follow(now, uptime))

    def differ(self) -> ClocksDiffer | None:
        """Return which clock shows another time than the database's, if one does."""
        with self.database.reading() as session:
            now = self.clock(session)
        return self._differs(now)

    def allow(self, *, by: Actor) -> bool:
        """End a stop by the clock: it is right as it is. False if there is none.

        Every host begins anew from what it sees next. Raises ClocksDiffer while the clocks do:
        what began anew then would take the right time for wrong later.
        """
        differs = self.differ()
        if differs is not None:
            raise differs
        with self.database.writing() as session:
            if stopped_at(session) is None:
                return False
            session.execute(delete(ClockReading))
            now = self.clock(session)
            audit.record(session, "clock.allowed", subject=None, by=by, now=now)
        return True

    def _differs(self, now: datetime) -> ClocksDiffer | None:
        differs = _difference(THIS_HOST, now, self.host_clock())
        if differs is not None:
            return differs
        redis_now = self.redis_clock()
        return None if redis_now is None else _difference(REDIS, now, redis_now)

    def _stop(self, last: Reading, now: datetime, uptime: timedelta) -> None:
        """Set this host's mark, unless another process has stopped purging meanwhile."""
        seconds = round(last.moved(now, uptime).total_seconds())
        with self.database.writing() as session:
            if stopped_at(session) is not None:
                return
            self._keep(session, last, moved_at=last.booted_at + uptime)
            audit.record(
                session, "clock.moved", subject=None, by=SYSTEM_ACTOR, now=now, seconds=seconds
            )
        self._say_moved(seconds)

    def _go_on(self, now: datetime) -> bool:
        """Remove this host's mark; say whether another host's still stops purging."""
        with self.database.writing() as session:
            own = (ClockReading.boot == self.boot) & ClockReading.moved_at.is_not(None)
            if change(session, update(ClockReading).where(own).values(moved_at=None)):
                audit.record(session, "clock.back", subject=None, by=SYSTEM_ACTOR, now=now)
                self._say_back()
            return stopped_at(session) is not None

    def _say_moved(self, seconds: int) -> None:
        log.error("the database's clock has moved", seconds=seconds)

    def _say_back(self) -> None:
        log.warning("the database's clock is back")

    def _keep(
        self, session: Session, reading: Reading, *, moved_at: datetime | None = None
    ) -> None:
        read_at = reading.booted_at + reading.uptime
        values = {"booted_at": reading.booted_at, "read_at": read_at}
        if moved_at is not None:
            # Written as null otherwise, it would undo a mark that another process has just set.
            values["moved_at"] = moved_at
        statement = rows.insert(session, ClockReading).values(boot=self.boot, **values)
        session.execute(statement.on_conflict_do_update(index_elements=["boot"], set_=values))
        # Each boot of each host leaves a row. A mark stays: it is for a person to remove.
        is_old = ClockReading.read_at < read_at - READINGS_KEPT
        session.execute(delete(ClockReading).where(is_old, ClockReading.moved_at.is_(None)))


def _difference(other: str, now: datetime, other_now: datetime) -> ClocksDiffer | None:
    return ClocksDiffer(other, now - other_now) if abs(now - other_now) > MOST_APART else None
