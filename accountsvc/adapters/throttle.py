"""How often somebody may try: per account and per address (ASVS 5.0, 6.3.1).

Counts live in Redis where there is one, else in this process. Keys are HMACs, so that neither an
address nor an e-mail is written anywhere. If Redis does not answer, this process counts by itself
until it does, and says so in the log: a dead Redis must not stop people from signing in.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import FixedWindowRateLimiter

from ..errors import Throttled

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Limit:
    """So many tries for one account, and so many for one address; None does not count."""

    account: RateLimitItem | None
    address: RateLimitItem | None


PASSWORD = "password"

SIGN_UP = "sign_up"

EMAIL_CHANGE = "email_change"

EXPORT = "export"

TOKEN = "token"

PASSWORD_RESET = "password_reset"

AUDIT = "audit"

LIMITS = {
    # Sign-in, confirmation and reactivation by password share one count: none is an oracle for another.
    PASSWORD: Limit(parse("10/15minutes"), parse("100/15minutes")),
    SIGN_UP: Limit(None, parse("30/hour")),
    # The count of wrong passwords goes with the address, and each change mails somebody.
    EMAIL_CHANGE: Limit(parse("5/hour"), None),
    EXPORT: Limit(parse("10/hour"), parse("30/hour")),
    # By address only: nobody can lock the owner out of coming back.
    TOKEN: Limit(None, parse("60/15minutes")),
    PASSWORD_RESET: Limit(parse("3/hour"), parse("30/hour")),
    # How many failed attempts one caller can write into the audit trail.
    AUDIT: Limit(parse("20/hour"), None),
}

# After a failure Redis is left alone for this long, so that each request does not wait for it.
_COOLDOWN_SECONDS = 5.0


class Throttle:
    """Counts tries. Safe in threads; made before a fork, it connects afterwards."""

    def __init__(self, secret: bytes, *, redis_url: str = "", enabled: bool = True) -> None:
        self._secret = secret
        self._enabled = enabled
        self._own = FixedWindowRateLimiter(MemoryStorage())
        self._shared: FixedWindowRateLimiter | None = None
        self._redis_url = redis_url
        self._lock = threading.Lock()
        self._wait_until = 0.0

    def __repr__(self) -> str:
        return "Throttle()"

    def spend(self, kind: str, *, account: str | None = None, address: str | None = None) -> None:
        """Count one try against both limits, or raise Throttled with the seconds to wait.

        Counted before the try, so that many at once cannot slip through together.
        """
        if not self._enabled:
            return
        limit = LIMITS[kind]
        for item, subject in ((limit.account, account), (limit.address, address)):
            if item is None or subject is None:
                continue
            key = self._key(kind, subject)
            if not self._do(lambda limiter, item=item, key=key: limiter.hit(item, key)):  # type: ignore[misc]
                reset_at = self._do(
                    lambda limiter, item=item, key=key: (
                        limiter.get_window_stats(item, key).reset_time
                    )  # type: ignore[misc]
                )
                raise Throttled(max(1, math.ceil(reset_at - time.time())))

    def forgive(self, kind: str, *, account: str, address: str | None = None) -> None:
        """Forget the account's tries after a right one, and of the address's only that one.

        So many people behind one address can sign in, and nobody who guesses is helped by a password
        that they know.
        """
        if not self._enabled:
            return
        limit = LIMITS[kind]
        if limit.account is not None:
            item, key = limit.account, self._key(kind, account)
            self._do(lambda limiter: limiter.clear(item, key))
        if limit.address is not None and address is not None:
            shared, its_key = limit.address, self._key(kind, address)
            self._do(lambda limiter: limiter.hit(shared, its_key, cost=-1))

    def _key(self, kind: str, subject: str) -> str:
        text = f"{kind}\0{subject}".encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()[:32]

    def _do(self, call: Callable[[FixedWindowRateLimiter], T]) -> T:
        if self._redis_url and time.monotonic() >= self._wait_until:
            try:
                return call(self._redis())
            except Exception as exc:
                self._wait_until = time.monotonic() + _COOLDOWN_SECONDS
                log.warning(
                    "throttles are counted in this process only",
                    error=type(exc).__name__,
                )
        return call(self._own)

    def _redis(self) -> FixedWindowRateLimiter:
        with self._lock:
            if self._shared is None:
                storage = storage_from_string(
                    self._redis_url,
                    socket_timeout=1,
                    socket_connect_timeout=1,
                    key_prefix="accountsvc-throttle",
                )
                self._shared = FixedWindowRateLimiter(storage)
            return self._shared
