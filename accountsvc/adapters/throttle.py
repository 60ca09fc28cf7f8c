"""The throttle: it counts and limits tries by account and by client address (ASVS 5.0, 6.3.1).

Counts live in Redis where there is one, else in this process. Keys are HMACs, so that neither an
address nor an e-mail is written anywhere. If Redis does not answer, or refuses, this process counts
by itself until it does, and says so in the log: a dead Redis must not stop people from signing in.
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

from .. import bounds
from ..errors import Throttled
from .counts import Count, Counts, ProcessCounts, RedisCounts

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Limit:
    """The tries that one client address has, and one account; None: any number.

    *pair* are those of an account from one address. Where it is given, an address from which the
    right password of an account has come is *known* to it for a while, and does not meet the limit
    of the account: somebody who guesses from elsewhere does not keep the owner out.
    """

    account: RateLimitItem | None
    address: RateLimitItem | None
    pair: RateLimitItem | None = None


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
RECEIPT = "receipt"
STAFF_DEACTIVATION = "staff_deactivation"
STAFF_CONFIRMATION = "staff_confirmation"
# These count beside the two above and allow one try more: the first refusal is the one that is told
# in the audit trail.
STAFF_DEACTIVATION_TOLD = "staff_deactivation_told"
STAFF_CONFIRMATION_TOLD = "staff_confirmation_told"
AUDIT = "audit"


def _limit(account: str | None, address: str | None, pair: str | None = None) -> Limit:
    return Limit(*(None if rate is None else parse(rate) for rate in (account, address, pair)))


def _one_more(rate: str) -> Limit:
    item = parse(rate)
    return Limit(type(item)(item.amount + 1, item.multiples), None)


LIMITS = {
    # Sign-in, confirmation and reactivation by password share this count: with one each, somebody
    # who guesses would have three times the tries.
    PASSWORD: _limit(
        bounds.PASSWORDS_OF_ACCOUNT, bounds.PASSWORDS_OF_ADDRESS, bounds.PASSWORDS_OF_PAIR
    ),
    SIGN_UP: _limit(None, bounds.SIGN_UPS_OF_ADDRESS),
    # Each other e-mail that is asked for mails two mailboxes, and one that takes effect begins a
    # new count of wrong passwords, which is kept by the e-mail.
    EMAIL_CHANGE: _limit(bounds.EMAIL_CHANGES, None),
    PASSWORD_CHANGE: _limit(bounds.PASSWORD_CHANGES, None),
    PROFILE_WRITE: _limit(bounds.PROFILE_WRITES, None),
    VAULT_WRITE: _limit(bounds.VAULT_WRITES, None),
    UPLOAD: _limit(bounds.UPLOADS_OF_ACCOUNT, bounds.UPLOADS_OF_ADDRESS),
    EXPORT: _limit(bounds.EXPORTS_OF_ACCOUNT, bounds.EXPORTS_OF_ADDRESS),
    # Tokens count by address only: by account, anybody could lock the owner out of coming back.
    TOKEN: _limit(None, bounds.TOKENS_OF_ADDRESS),
    # By address only: a receipt's number is all that a stranger has of it, so nobody could be kept
    # from their own by others who ask for it.
    RECEIPT: _limit(None, bounds.RECEIPTS_OF_ADDRESS),
    PASSWORD_RESET: _limit(bounds.RESETS_OF_ACCOUNT, bounds.RESETS_OF_ADDRESS),
    STAFF_DEACTIVATION: _limit(bounds.STAFF_DEACTIVATIONS, None),
    STAFF_CONFIRMATION: _limit(bounds.STAFF_CONFIRMATIONS, None),
    STAFF_DEACTIVATION_TOLD: _one_more(bounds.STAFF_DEACTIVATIONS),
    STAFF_CONFIRMATION_TOLD: _one_more(bounds.STAFF_CONFIRMATIONS),
    # So many refused attempts of an account, as caller or as subject, are written into the audit
    # trail: nobody can bury in it what else has happened.
    AUDIT: _limit(bounds.REFUSED_ATTEMPTS_AUDITED, None),
}

# A mark, as a limit: it is there once, for so long.
_KNOWN = parse(f"1/{bounds.KNOWN_DAYS}days")

# Redis is left alone so long after a failure: every request would otherwise wait for its time-out.
_COOLDOWN_SECONDS = 5.0


@dataclass(frozen=True)
class _Try:
    """The counts that one try meets, and the mark of a pair that is known; None: it has none."""

    address: Count | None
    pair: Count | None
    account: Count | None
    known: Count | None

    def name(self, count: Count) -> str:
        """Return whose *count* of these it is, in a word that names nobody."""
        if count == self.address:
            return "address"
        return "pair" if count == self.pair else "account"


class Throttle:
    """The counts of tries. Safe in threads; one that is made before a fork connects after it."""

    def __init__(self, secret: bytes, *, redis_url: str = "", enabled: bool = True) -> None:
        self._secret = secret
        self._enabled = enabled
        self._own = ProcessCounts()
        self._shared: RedisCounts | None = None
        self._redis_url = redis_url
        self._lock = threading.Lock()
        self._wait_until = 0.0

    def __repr__(self) -> str:
        return "Throttle()"

    def spend(self, kind: str, *, account: str | None = None, address: str | None = None) -> None:
        """Count one try against every limit, or raise Throttled with the seconds to wait
        and, as its limit, the kind and whose count is full: ``address``, ``pair`` or ``account``.

        The address is asked first, then the two together, then the account, and a try that one of
        them refuses is counted nowhere: an address that has to wait uses up nobody's tries. Call it
        before the try: counted afterwards, many at once would slip through together.
        """
        if not self._enabled:
            return
        one = self._try(kind, account, address)
        asked = _those(one.address, one.pair, one.account)
        refusal = self._do(lambda counts: counts.add(asked, one.known))
        if refusal is not None:
            full, seconds = refusal
            raise Throttled(max(1, math.ceil(seconds)), limit=f"{kind} {one.name(full)}")

    def forgive(self, kind: str, *, account: str | None = None, address: str | None = None) -> None:
        """Forgive a right try: forget those before it by whom it speaks for, else only that one.

        It speaks for the account from that address, which is known to it from then on; for the
        account as a whole, if its kind has no limit for the two together or *address* is not given;
        never for the address. So any number of people behind one address can sign in, and nobody
        who guesses others' passwords gets further by signing in to an account of their own.
        """
        if not self._enabled:
            return
        one = self._try(kind, account, address)
        if one.pair is None:
            self._settle(back=_those(one.address), drop=_those(one.account))
        else:
            self._settle(
                back=_those(one.address, one.account), drop=_those(one.pair), known=one.known
            )

    def take_back(
        self, kind: str, *, account: str | None = None, address: str | None = None
    ) -> None:
        """Undo one :meth:`spend`, for a try that was refused by something else before it began."""
        if not self._enabled:
            return
        one = self._try(kind, account, address)
        back = _those(one.address, one.pair, one.account)
        self._do(lambda counts: counts.settle(back, (), one.known, remember=False))

    def clear(self, kind: str, *, account: str, address: str) -> None:
        """Forget all tries of the account, from *address*, too, which is known from then on.

        For whoever has set a new password by a mailed link: somebody who goes on guessing would
        otherwise keep the owner from signing in with it.
        """
        if not self._enabled:
            return
        one = self._try(kind, account, address)
        self._settle(back=(), drop=_those(one.pair, one.account), known=one.known)

    def _settle(
        self, *, back: tuple[Count, ...], drop: tuple[Count, ...], known: Count | None = None
    ) -> None:
        self._do(lambda counts: counts.settle(back, drop, known, remember=True))
        if known is not None and self._redis_url:
            # Redis may stop answering: whom this process saw is known to it meanwhile.
            self._own.settle((), (), known, remember=True)

    def _try(self, kind: str, account: str | None, address: str | None) -> _Try:
        limit = LIMITS[kind]
        of_account = self._count(f"{kind} account", limit.account, account)
        pair = self._count(f"{kind} pair", limit.pair, address, account)
        exempt = pair is not None and of_account is not None
        return _Try(
            address=self._count(f"{kind} address", limit.address, address),
            pair=pair,
            account=of_account,
            known=self._count(f"{kind} known", _KNOWN, address, account) if exempt else None,
        )

    def _count(self, name: str, item: RateLimitItem | None, *whose: str | None) -> Count | None:
        subjects = [one for one in whose if one is not None]
        if item is None or len(subjects) < len(whose):
            return None
        # The rate is a part of the key, so that a process with another bound counts by itself: a
        # key in Redis ends when whoever made it said so.
        table = f"{name} {item}"
        text = "\0".join((table, *subjects)).encode("utf-8", "surrogatepass")
        key = hmac.new(self._secret, text, hashlib.sha256).hexdigest()[:32]
        return Count(table, key, item.amount, item.get_expiry())

    def _do(self, call: Callable[[Counts], T]) -> T:
        if self._redis_url and time.monotonic() >= self._wait_until:
            try:
                return call(self._redis())
            except Exception as exc:
                self._leave_redis_alone(exc)
        return call(self._own)

    def _leave_redis_alone(self, exc: Exception) -> None:
        with self._lock:
            # All threads that asked at the same time fail at the same time: one of them says so.
            first = time.monotonic() >= self._wait_until
            self._wait_until = time.monotonic() + _COOLDOWN_SECONDS
        if first:
            log.warning("throttles are counted in this process only", error=type(exc).__name__)

    def _redis(self) -> RedisCounts:
        with self._lock:
            if self._shared is None:
                self._shared = RedisCounts(self._redis_url)
            return self._shared


def _those(*counts: Count | None) -> tuple[Count, ...]:
    return tuple(count for count in counts if count is not None)
