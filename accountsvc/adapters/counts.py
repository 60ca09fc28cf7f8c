"""Counts that end by themselves, kept in Redis or in this process.

Both stores take several counts in one step. They are asked in their order, and one is added to each
only if none of them is full: nothing is ever counted for what is refused, and of many at once no
more get through than the counts allow.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Count:
    """So many (*amount*) in so many *seconds*, which begin with the first one counted.

    *table* names what is counted: all counts of a table last equally long. *key* says whose count
    it is, without saying who that is, and belongs to one table only. A count that allows one is
    also a mark: it is there or not.
    """

    table: str
    key: str
    amount: int
    seconds: int


class Counts(Protocol):
    """Where counts are kept. Safe in threads."""

    def add(self, asked: Sequence[Count], mark: Count | None) -> tuple[Count, float] | None:
        """Add one to each of *asked*; if one is full, return it and the seconds until it ends.

        The first that is full decides, and nothing is counted then. While the *mark* is there, the
        last of *asked* is neither asked nor counted.
        """

    def settle(
        self, back: Sequence[Count], drop: Sequence[Count], mark: Count | None, *, remember: bool
    ) -> None:
        """Take one from each of *back*, and end each of *drop*.

        While the *mark* is there, nothing is taken from the last of *back*, to which :meth:`add`
        has added nothing. Set the mark, for its seconds from this moment, if it is to *remember*.
        """


class ProcessCounts:
    """Counts of this process alone, in bounded memory."""

    # A table that is full loses the count that would end first. Whoever wants to be rid of a count
    # has to make so many others meanwhile, each of them by a try of its own.
    MOST_IN_A_TABLE = 10_000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # How many, and when the count ends, in seconds of a clock that nobody sets. What a table
        # holds lasts equally long, so that it is in the order in which it ends.
        self._tables: dict[str, OrderedDict[str, tuple[int, float]]] = {}

    def __len__(self) -> int:
        return sum(len(table) for table in self._tables.values())

    def add(self, asked: Sequence[Count], mark: Count | None) -> tuple[Count, float] | None:
        with self._lock:
            now = time.monotonic()
            if mark is not None and self._get(mark, now)[0]:
                asked = asked[:-1]
            for count in asked:
                number, ends = self._get(count, now)
                if number >= count.amount:
                    return count, ends - now
            for count in asked:
                number, ends = self._get(count, now)
                self._put(count, number + 1, ends, now)
        return None

    def settle(
        self, back: Sequence[Count], drop: Sequence[Count], mark: Count | None, *, remember: bool
    ) -> None:
        with self._lock:
            now = time.monotonic()
            if mark is not None and self._get(mark, now)[0]:
                back = back[:-1]
            for count in back:
                number, ends = self._get(count, now)
                if number > 1:
                    self._put(count, number - 1, ends, now)
                else:
                    self._pop(count)
            for count in drop:
                self._pop(count)
            if mark is not None and remember:
                self._pop(mark)
                self._put(mark, 1, now + mark.seconds, now)

    def _get(self, count: Count, now: float) -> tuple[int, float]:
        """Return how many were counted and when that ends; what has ended is as never begun."""
        table = self._tables.setdefault(count.table, OrderedDict())
        number, ends = table.get(count.key, (0, now))
        if ends > now:
            return number, ends
        # Begun again, it ends last: it may not keep its place among those that end sooner.
        table.pop(count.key, None)
        return 0, now + count.seconds

    def _put(self, count: Count, number: int, ends: float, now: float) -> None:
        table = self._tables[count.table]
        while table and next(iter(table.values()))[1] <= now:
            table.popitem(last=False)
        if count.key not in table and len(table) >= self.MOST_IN_A_TABLE:
            table.popitem(last=False)
        table[count.key] = (number, ends)

    def _pop(self, count: Count) -> None:
        if count.table in self._tables:
            self._tables[count.table].pop(count.key, None)


# Redis runs a script whole before anything else, so nobody counts between question and answer. A
# key without an end, which only a person could make, gets one: it would refuse for ever.
_ENDS = """
local function ends(key, seconds)
  local left = redis.call('PTTL', key)
  if left >= 0 then return left end
  redis.call('EXPIRE', key, seconds)
  return 1000 * seconds
end
"""

# KEYS: the mark, then the counts. ARGV: of each count its amount and its seconds. Returned are
# which of the counts is full, from 1 on, and the milliseconds until it ends; or zeros.
_ADD = f"""{_ENDS}
local last = #KEYS
if redis.call('EXISTS', KEYS[1]) == 1 then last = last - 1 end
for i = 2, last do
  if tonumber(redis.call('GET', KEYS[i]) or '0') >= tonumber(ARGV[2 * i - 3]) then
    return {{i - 1, math.max(1, ends(KEYS[i], ARGV[2 * i - 2]))}}
  end
end
for i = 2, last do
  redis.call('INCR', KEYS[i])
  ends(KEYS[i], ARGV[2 * i - 2])
end
return {{0, 0}}
"""

# KEYS: the mark, then the counts to take one from, then those to end. ARGV: how many there are of
# the first, and the seconds for which to set the mark, or 0.
_SETTLE = """
local last = 1 + ARGV[1]
local taken = last
if redis.call('EXISTS', KEYS[1]) == 1 then taken = taken - 1 end
for i = 2, taken do
  if tonumber(redis.call('GET', KEYS[i]) or '0') > 1 then
    redis.call('DECR', KEYS[i])
  else
    redis.call('DEL', KEYS[i])
  end
end
for i = last + 1, #KEYS do redis.call('DEL', KEYS[i]) end
if ARGV[2] ~= '0' then redis.call('SET', KEYS[1], '1', 'EX', ARGV[2]) end
"""

_TIMEOUT_SECONDS = 1


class RedisCounts:
    """Counts of all processes together. It connects with the first call, which may raise.

    One call is one round trip. Every key has an end.
    """

    def __init__(self, url: str) -> None:
        # Where Redis is not used, importing it would be a seventh of the time that a start takes.
        from redis import Redis

        client = Redis.from_url(
            url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
        )
        self._add = client.register_script(_ADD)
        self._settle = client.register_script(_SETTLE)

    def add(self, asked: Sequence[Count], mark: Count | None) -> tuple[Count, float] | None:
        numbers = [number for count in asked for number in (count.amount, count.seconds)]
        full, milliseconds = map(int, self._add([_key(mark), *map(_key, asked)], numbers))
        return (asked[full - 1], milliseconds / 1000) if full else None

    def settle(
        self, back: Sequence[Count], drop: Sequence[Count], mark: Count | None, *, remember: bool
    ) -> None:
        seconds = mark.seconds if mark is not None and remember else 0
        self._settle([_key(mark), *map(_key, (*back, *drop))], [len(back), seconds])


def _key(count: Count | None) -> str:
    """Return the key of *count*; of no mark one that is never set, but begins as all of ours do."""
    return f"accountsvc-throttle:{'' if count is None else count.key}"
