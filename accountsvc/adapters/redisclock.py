"""The clock of Redis, to compare the database's with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_TIMEOUT_SECONDS = 1


def redis_clock(url: str) -> Callable[[], datetime | None]:
    """Return a function that asks Redis for its time, in UTC; it connects with the first call.

    It returns None if Redis does not answer, or refuses.
    """
    # Where Redis is not used, importing it would be a seventh of the time that a start takes.
    from redis import Redis, RedisError

    client = Redis.from_url(
        url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
    )

    def read() -> datetime | None:
        try:
            seconds, microseconds = client.time()
        except (RedisError, OSError):
            return None
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)

    return read
