"""Moments: a time of the tests' own, the spans around a boundary, and the clocks that tell it.

The core takes the time as an argument, so nothing is frozen.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from accountsvc.db.engine import Clock, database_now
from accountsvc.services import Services

NOW = datetime(2026, 12, 7, 9, 30, 15, tzinfo=UTC)
GRACE = timedelta(days=14)
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
# Just under, exactly, just over.
BOUNDARY = (-MICROSECOND, timedelta(0), MICROSECOND)


def at(moment: datetime) -> Clock:
    """A clock that stands at *moment*."""
    return lambda _session: moment


def clock_of(moment: datetime | None, *, ahead: timedelta = timedelta(0)) -> Clock:
    """A clock that stands at *moment*; without one the database's, *ahead* of itself."""
    if moment is not None:
        return at(moment + ahead)
    return lambda session: database_now(session) + ahead


def now(services: Services) -> datetime:
    """The time by the database's clock."""
    with services.reading() as session:
        return database_now(session)
