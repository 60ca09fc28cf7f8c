"""Every kind of token: made and checked in one place.

All are JWTs (RFC 7519, HS256). Each kind has a key of its own, derived from ``SECRET_KEY``, and a
``type`` and ``aud`` of its own, so that none can stand in for another. ``sub`` is the account's
public id and ``epoch`` must equal the account's: raising the epoch ends every token at once.
``password_at`` is when a password was last proved; a token that another one yields has that of the
other, so that none makes itself fresher. A signature proves origin only; callers compare epoch and
state with the row, as ``accounts.credentials.by_claims`` does. Access tokens of requests are
verified by Flask-JWT-Extended, which ``api/http/auth.py`` gives the key; every other token is read
here.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from .db.models import PENDING_FOR, Account
from .db.text import rfc3339
from .errors import TokenNotValid

ACCESS = "access"
REFRESH = "refresh"
RECOVERY = "recovery"
MAILED = "mailed"
PASSWORD_RESET = "password_reset"
CONFIRM_EMAIL = "confirm_email"
CANCEL_EMAIL = "cancel_email"
KINDS = (ACCESS, REFRESH, RECOVERY, MAILED, PASSWORD_RESET, CONFIRM_EMAIL, CANCEL_EMAIL)

ALGORITHM = "HS256"
RECOVERY_LIFETIME = timedelta(minutes=15)
PASSWORD_RESET_LIFETIME = timedelta(hours=1)
# The clocks of two hosts may differ by so many seconds; a token that one has just made would
# otherwise be refused by the other as not valid yet.
LEEWAY_SECONDS = 60


@dataclass(frozen=True)
class Claims:
    """The claims of a token with a good signature. Times are aware UTC, whole seconds.

    ``fresh`` is true of an access token that came straight from a password, and of a recovery token
    that was made while the password behind it was fresh.
    """

    kind: str
    public_id: uuid.UUID
    epoch: int
    issued_at: datetime
    expires_at: datetime
    fresh: bool
    password_at: datetime | None
    # Of a link about a pending address: when that was asked for, as ``asked_at`` writes it.
    asked_at: str = ""

    def is_fresh(self, *, now: datetime, max_age: timedelta) -> bool:
        """Say whether it came from a password, proved at most *max_age* before *now* (RFC 9470)."""
        return self.fresh and self.password_at is not None and now - self.password_at <= max_age

    def is_in_time(self, *, now: datetime) -> bool:
        """Say whether *now*, by the database's clock, is in the token's lifetime and its leeway."""
        leeway = timedelta(seconds=LEEWAY_SECONDS)
        return self.issued_at - now <= leeway and now - self.expires_at < leeway


def claims_of(payload: Mapping[str, Any], kind: str) -> Claims | None:
    """Return the claims in the *payload* of a token; None if it is not one of exactly this *kind*.

    Its signature and audience must have been verified. Times are read, not judged.
    """
    if payload.get("type") != kind:
        return None
    try:
        issued_at = _moment(payload["iat"])
        fresh = payload.get("fresh") is True
        password_at = None
        if payload.get("password_at") is not None:
            password_at = _moment(payload["password_at"])
        elif fresh and kind == ACCESS:
            # A process of a version without this claim made it, at the moment of the password.
            password_at = issued_at
        return Claims(
            kind=kind,
            public_id=uuid.UUID(payload["sub"]),
            epoch=int(payload["epoch"]),
            issued_at=issued_at,
            expires_at=_moment(payload["exp"]),
            fresh=fresh and password_at is not None,
            password_at=password_at,
            asked_at=str(payload.get("asked_at", "")),
        )
    except (KeyError, ValueError, TypeError, OverflowError, OSError):
        return None


def _moment(seconds: Any) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def asked_at(account: Account) -> str:
    """Return when the pending address was asked for, to the microsecond; "" if there is none.

    It tells one change of an account from the next.
    """
    moment = account.pending_email_at
    return "" if moment is None else asked_as(moment)


def asked_as(moment: datetime) -> str:
    """Write *moment* as links say when an address was asked for: later ones sort behind others."""
    return rfc3339(moment, timespec="microseconds")


def derive_key(secret: str, purpose: str) -> bytes:
    """Derive 32 bytes from *secret* for one purpose (HKDF-Expand, RFC 5869)."""
    return HKDFExpand(algorithm=SHA256(), length=32, info=b"accountsvc " + purpose.encode()).derive(
        secret.encode()
    )


class Tokens:
    """Make and read tokens under keys derived from one secret. Holds no state; safe in threads."""

    def __init__(self, secret: str, *, access: timedelta, refresh: timedelta) -> None:
        self._keys = {kind: derive_key(secret, f"token {kind}") for kind in KINDS}
        self._lifetimes = {
            ACCESS: access,
            REFRESH: refresh,
            RECOVERY: RECOVERY_LIFETIME,
            PASSWORD_RESET: PASSWORD_RESET_LIFETIME,
        }

    def __repr__(self) -> str:
        return "Tokens()"

    def key(self, kind: str) -> bytes:
        """Return the key that signs the tokens of *kind*, and no others."""
        return self._keys[kind]

    def access(
        self, account: Account, *, now: datetime, fresh: bool, password_at: datetime | None = None
    ) -> str:
        """Make an access token; *fresh* only if it comes straight from a password.

        *password_at* is when that was proved; of a fresh one *now*, unless another time is given.
        """
        if fresh and password_at is None:
            password_at = now
        return self._make(ACCESS, account, now=now, fresh=fresh, password_at=password_at)

    def refresh(
        self, account: Account, *, now: datetime, password_at: datetime | None = None
    ) -> str:
        """Make the token that yields access tokens until the account's epoch is raised."""
        return self._make(REFRESH, account, now=now, password_at=password_at)

    def recovery(
        self,
        account: Account,
        *,
        now: datetime,
        fresh: bool = False,
        password_at: datetime | None = None,
    ) -> str:
        """Make the 15-minute token by which the owner of a deactivated account can come back.

        *fresh* only if the password, proved at *password_at*, is fresh at this moment: only such a
        token opens the export, and yields a session.
        """
        return self._make(RECOVERY, account, now=now, fresh=fresh, password_at=password_at)

    def mailed(self, account: Account, *, now: datetime) -> str:
        """Make the token of a mailed link; it lasts until the account's ``purge_at``."""
        if account.purge_at is None:
            raise ValueError("only a deactivated account has a mailed token")
        return self._make(MAILED, account, now=now, until=account.purge_at)

    def password_reset(self, account: Account, *, now: datetime) -> str:
        """Make the token of a mailed link that sets a new password; it lasts an hour."""
        return self._make(PASSWORD_RESET, account, now=now)

    def confirm_email(self, account: Account, *, now: datetime) -> str:
        """Make the token of the link that is mailed to the pending address; it lasts as long."""
        return self._about_address(CONFIRM_EMAIL, account, now)

    def cancel_email(self, account: Account, *, now: datetime) -> str:
        """Make the token of a link by which the address of today calls off what is pending.

        It names the change that is pending at *now*, and ends with that, but
        ``accounts.pending.may_cancel`` takes it for a later one, too.
        """
        return self._about_address(CANCEL_EMAIL, account, now)

    def _about_address(self, kind: str, account: Account, now: datetime) -> str:
        if account.pending_email_at is None:
            raise ValueError("there is no pending address")
        until = account.pending_email_at + PENDING_FOR
        return self._make(kind, account, now=now, until=until, asked_at=asked_at(account))

    def kind_of(self, token: str) -> str | None:
        """Return the kind that *token* claims, unverified, which says by what key to read it."""
        payload = _decode(token, options={"verify_signature": False})
        kind = payload.get("type")
        return kind if kind in KINDS else None

    def read(self, token: str, *kinds: str, now: datetime) -> Claims:
        """Check signature, type, audience and expiry of *token*, which must be one of *kinds*.

        Raises :class:`TokenNotValid` for anything else, whatever its fault.
        """
        kind = self.kind_of(token)
        claims = self.was(token, kind) if kind is not None and kind in kinds else None
        if claims is None or not claims.is_in_time(now=now):
            raise TokenNotValid
        return claims

    def was(self, token: str, kind: str) -> Claims | None:
        """Read a token of *kind*, expired or not, to tell an expired link from a forged one."""
        payload = _decode(
            token,
            self._keys[kind],
            algorithms=[ALGORITHM],
            audience=audience(kind),
            # PyJWT would compare the times with this host's clock, which may be wrong;
            # ``is_in_time`` compares them with the caller's, which is the database's.
            options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )
        return claims_of(payload, kind)

    def _make(
        self,
        kind: str,
        account: Account,
        *,
        now: datetime,
        fresh: bool = False,
        password_at: datetime | None = None,
        until: datetime | None = None,
        **more: str,
    ) -> str:
        claims = {
            "sub": str(account.public_id),
            "type": kind,
            "aud": audience(kind),
            "jti": uuid.uuid4().hex,
            "iat": int(now.timestamp()),
            "nbf": int(now.timestamp()),
            "exp": int((until or now + self._lifetimes[kind]).timestamp()),
            "epoch": account.epoch,
            "fresh": fresh,
            **more,
        }
        if password_at is not None:
            claims["password_at"] = int(password_at.timestamp())
        return jwt.encode(claims, self._keys[kind], algorithm=ALGORITHM)


def audience(kind: str) -> str:
    """Return the ``aud`` of tokens of *kind*."""
    return f"accountsvc:{kind}"


def _decode(token: str, key: bytes = b"", **checks: Any) -> Mapping[str, Any]:
    """Return the payload of *token* as PyJWT decodes it; an empty one if it finds any fault."""
    try:
        return jwt.decode(token, key, **checks)
    # PyJWT reads the header before it checks the signature, so anybody can send one with
    # surrogates, a ValueError, or one that is nested deep enough for a RecursionError.
    except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError):
        return {}
