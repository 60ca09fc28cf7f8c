"""A year of honest load: nobody waits a day for the brake, by the functions that make its limit."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from accountsvc.purge import brake

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BEGINS = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 365
GRACE_DAYS = 14
# Tenfold days, by number: a Saturday, which is ten times little, and a Tuesday.
SPIKES = (100, 292)
# The worker is away from the beginning of the one day to that of the other.
AWAY, BACK = BEGINS + 200 * DAY, BEGINS + 210 * DAY


@dataclass
class Year:
    """What falls due in each hour of a year, what the brake lets go, and the receipts.

    *per_day* accounts fall due in a day at first and three times as many at last, ten times as many
    on the days of ``SPIKES``, fewer at night and at weekends unless *flat*. The worker is away for
    ten days. It begins without a receipt, as behind an import of another service's people.

    Of all accounts only those in their grace period are counted, so that the share of all accounts
    is as little help as it can be.
    """

    per_day: float
    flat: bool
    receipts: dict[datetime, int] = field(default_factory=dict)
    due: deque[tuple[datetime, int]] = field(default_factory=deque)
    longest: timedelta = timedelta()
    most_waiting: int = 0

    def run(self) -> None:
        owed = 0.0
        for number in range(DAYS * 24):
            hour = BEGINS + number * HOUR
            owed += self.load(hour)
            if owed >= 1:
                self.due.append((hour, int(owed)))
                owed -= int(owed)
            if not AWAY <= hour < BACK:
                self.sweep(hour)

    def load(self, hour: datetime) -> float:
        rate = self.usual_day(hour) / 24
        if not self.flat:
            rate *= 1.375 if 7 <= hour.hour < 23 else 0.25
            rate *= 0.4 if hour.weekday() >= 5 else 1.24
        return rate * (10 if (hour - BEGINS).days in SPIKES else 1)

    def usual_day(self, hour: datetime) -> float:
        return self.per_day * 3 ** ((hour - BEGINS) / DAY / DAYS)

    def sweep(self, hour: datetime) -> None:
        """Purge for an hour, the oldest first."""
        room = self.room(hour, sum(count for _, count in self.due))
        purged = 0
        while self.due and purged < room:
            since, count = self.due.popleft()
            gone = min(count, room - purged)
            purged += gone
            # Who fell due while the worker was away waits for the brake from its return on.
            waits_since = BACK if AWAY <= since < BACK else since
            self.longest = max(self.longest, hour + HOUR - waits_since)
            if gone < count:
                self.due.appendleft((since, count - gone))
        if purged:
            self.receipts[hour] = purged
        self.most_waiting = max(self.most_waiting, sum(count for _, count in self.due))

    def room(self, hour: datetime, wanted: int) -> int:
        """Return how many of *wanted* may go: all, or what the limit is."""
        # A limit by two hours is never above that by all of four weeks, which takes some hundred
        # times as long to find.
        alike = (hour - DAY, hour - 7 * DAY)
        if wanted <= self.each_hour(hour, {one: self.receipts.get(one, 0) for one in alike}):
            return wanted
        since = hour - brake.HISTORY
        self.receipts = {one: count for one, count in self.receipts.items() if one > since}
        return self.each_hour(hour, self.receipts)

    def each_hour(self, hour: datetime, receipts: dict[datetime, int]) -> int:
        in_grace = int(self.usual_day(hour) * GRACE_DAYS)
        # The brake counts whole minutes, and a worker sweeps each minute: the same purges come
        # again after 62.
        return brake.bound(in_grace, brake.usual(receipts, hour)) * 60 // 62


@pytest.mark.parametrize("flat", [False, True], ids=["days and weeks", "flat"])
@pytest.mark.parametrize("per_day", [5, 3_000, 100_000])
def test_in_a_year_of_honest_load_nobody_waits_a_day_for_the_brake(
    per_day: float, flat: bool
) -> None:
    year = Year(per_day, flat)

    year.run()

    assert year.longest < DAY
    # The model is one of a brake: people do wait for it.
    assert year.most_waiting > 0
