"""The throttle: it counts and limits tries by account and by client address (ASVS 5.0, 6.3.1).

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
from functools import partial
from typing import TypeVar

import structlog
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import FixedWindowRateLimiter

from .. import bounds
from ..errors import Throttled

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Limit:
    """The tries that one account has, and those that one client address has; None: any number."""

    account: RateLimitItem | None
    address: RateLimitItem | None


# Each kind of try has a name, which is a part of the keys in Redis: two kinds of one name would
# share a count.
PASSWORD = "password"
SIGN_UP = "sign_up"
EMAIL_CHANGE = "email_change"
PASSWORD_CHANGE = "password_change"
PROFILE_WRITE = "profile_write"
VAULT_WRITE = "vault_write"
UPLOAD = "upload"
EXPORT = "export"
TOKEN = "token"
PASSWORD_RESET = "password_reset"
STAFF_DEACTIVATION = "staff_deactivation"
STAFF_CONFIRMATION = "staff_confirmation"
AUDIT = "audit"


def _limit(account: str | None, address: str | None) -> Limit:
    return Limit(
        None if account is None else parse(account), None if address is None else parse(address)
    )


LIMITS = {
    # Sign-in, confirmation and reactivation by password share this count: with one each, somebody
    # who guesses would have three times the tries.
    PASSWORD: _limit("10/15minutes", bounds.PASSWORDS_OF_ADDRESS),
    SIGN_UP: _limit(None, bounds.SIGN_UPS_OF_ADDRESS),
    # Each change of the e-mail mails somebody, and begins a new count of wrong passwords, which is
    # kept by the e-mail: without a limit, guessing would have none either.
    EMAIL_CHANGE: _limit(bounds.EMAIL_CHANGES, None),
    PASSWORD_CHANGE: _limit(bounds.PASSWORD_CHANGES, None),
    PROFILE_WRITE: _limit(bounds.PROFILE_WRITES, None),
    VAULT_WRITE: _limit(bounds.VAULT_WRITES, None),
    UPLOAD: _limit(bounds.UPLOADS_OF_ACCOUNT, bounds.UPLOADS_OF_ADDRESS),
    EXPORT: _limit(bounds.EXPORTS_OF_ACCOUNT, bounds.EXPORTS_OF_ADDRESS),
    # Tokens count by address only: by account, anybody could lock the owner out of coming back.
    TOKEN: _limit(None, bounds.TOKENS_OF_ADDRESS),
    PASSWORD_RESET: _limit(bounds.RESETS_OF_ACCOUNT, bounds.RESETS_OF_ADDRESS),
    STAFF_DEACTIVATION: _limit(bounds.STAFF_DEACTIVATIONS, None),
    STAFF_CONFIRMATION: _limit(bounds.STAFF_CONFIRMATIONS, None),
    # One caller writes no more failed attempts than this into the audit trail: nobody can empty it.
    AUDIT: _limit("20/hour", None),
}

# Redis is left alone so long after a failure: every request would otherwise wait for its time-out.
_COOLDOWN_SECONDS = 5.0


class Throttle:
    """The counts of tries. Safe in threads; one that is made before a fork connects after it."""

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

        Call it before the try: counted afterwards, many at once would slip through together.
        """
        if not self._enabled:
            return
        limit = LIMITS[kind]
        for item, subject in ((limit.account, account), (limit.address, address)):
            if item is None or subject is None:
                continue
            key = self._key(kind, subject)
            if not self._do(partial(_hit, item=item, key=key)):
                reset_at = self._do(partial(_reset_time, item=item, key=key))
                raise Throttled(max(1, math.ceil(reset_at - time.time())))

    def forgive(self, kind: str, *, account: str, address: str | None = None) -> None:
        """Forget all tries of the account after a right one, and of the address only that one.

        So any number of people behind one address can sign in, and nobody who guesses others'
        passwords gets further by signing in to an account of their own.
        """
        if not self._enabled:
            return
        limit = LIMITS[kind]
        if limit.account is not None:
            self._do(partial(_clear, item=limit.account, key=self._key(kind, account)))
        if limit.address is not None and address is not None:
            self._do(partial(_hit, item=limit.address, key=self._key(kind, address), cost=-1))

    def take_back(self, kind: str, *, account: str, address: str) -> None:
        """Count one try less of both: one that was counted, and then could not be made."""
        if not self._enabled:
            return
        limit = LIMITS[kind]
        for item, subject in ((limit.account, account), (limit.address, address)):
            if item is not None:
                self._do(partial(_hit, item=item, key=self._key(kind, subject), cost=-1))

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


def _hit(limiter: FixedWindowRateLimiter, *, item: RateLimitItem, key: str, cost: int = 1) -> bool:
    return limiter.hit(item, key, cost=cost)


def _clear(limiter: FixedWindowRateLimiter, *, item: RateLimitItem, key: str) -> None:
    limiter.clear(item, key)


def _reset_time(limiter: FixedWindowRateLimiter, *, item: RateLimitItem, key: str) -> float:
    return limiter.get_window_stats(item, key).reset_time
