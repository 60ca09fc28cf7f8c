"""Who sends a request, and whether that is enough for what they ask.

``tokens.Tokens.read`` judges a token, ``accounts.by_claims`` compares it with the database on every
request; nothing is remembered between requests. Flask-JWT-Extended is bound to the same check, so that
a view with ``@jwt_required()`` gives the same answers as one with :func:`required`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, TypeVar

from apiflask import APIFlask
from flask import Response, g, request

from .. import accounts, rows
from ..audit import Actor
from ..database import database_now, reading
from ..errors import (
    AccountDeactivated,
    AccountNotFound,
    ConfirmationRequired,
    InvalidInput,
    NotAuthenticated,
    NotAuthorized,
    TokenNotValid,
)
from ..extensions import db, jwt
from ..models import OWNER, STAFF, Account
from ..services import Services
from ..throttle import PASSWORD, client_address
from ..tokens import ACCESS, ALGORITHM, LEEWAY_SECONDS, Claims
from . import errors
from .doorway import services

View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True)
class Caller:
    """The person behind a request, as the database knew them at ``now`` (its clock)."""

    account: Account
    claims: Claims
    now: datetime

    @property
    def epoch(self) -> int:
        return self.claims.epoch

    def actor(self, account_id: int) -> Actor:
        """Return them as who acts on the account *account_id*: its owner, or staff."""
        kind = OWNER if account_id == self.account.id else STAFF
        return Actor(kind, self.account.public_id)


def bearer_token() -> str:
    """Return what follows the scheme ``Bearer``, in any case, in the Authorization header.

    It may be empty, or no token at all; whoever reads it refuses that. Several headers arrive joined
    by commas and so count as one malformed token, if the first is a Bearer. Another scheme is no token.

    Raises NotAuthenticated if there is none.
    """
    scheme, *rest = request.headers.get("Authorization", "").split(maxsplit=1)[:2] or [""]
    if scheme.lower() != "bearer":
        raise NotAuthenticated
    return rest[0].strip() if rest else ""


def caller() -> Caller:
    """Return who sends this request. Raises NotAuthenticated, TokenNotValid."""
    if "caller" not in g:
        token = bearer_token()
        with reading(db.session()) as session:
            now = database_now(session)
            claims = services().tokens.read(token, ACCESS, now=now)
            account = accounts.by_claims(session, claims)
            # Detached: a value that the rest of the request can look at without the database.
            session.expunge(account)
        g.caller = Caller(account, claims, now)
    found: Caller = g.caller
    return found


def required(view: View) -> View:
    """Give the view the :class:`Caller` as its keyword ``caller``, before any of its input is read."""

    @wraps(view)
    def authenticated(*args: Any, **kwargs: Any) -> Any:
        return view(*args, caller=caller(), **kwargs)

    spec = authenticated.__dict__.setdefault("_spec", {})
    spec["security"] = "bearerAuth"
    spec["raises"] = (NotAuthenticated, TokenNotValid, *spec.get("raises", ()))
    return authenticated  # type: ignore[return-value]


def reach(who: Caller, account_id: int, *, staff: bool) -> Account:
    """Return the account if *who* owns it or, where *staff* may, is staff.

    Raises AccountNotFound if it never was, is purged, or is deactivated and *who* is not staff;
    NotAuthorized if it is active and somebody else's.
    """
    if account_id == who.account.id:
        return who.account
    with reading(db.session()) as session:
        account = rows.find(session, account_id)
        if account is None or not (account.is_active or who.account.is_staff):
            raise AccountNotFound
        session.expunge(account)
    if not (staff and who.account.is_staff):
        raise NotAuthorized
    return account


def owner_only(view: View) -> View:
    """Refuse everybody but the owner of ``user_id``, before any input is read; below ``required``."""

    @wraps(view)
    def reached(*args: Any, caller: Caller, user_id: int, **kwargs: Any) -> Any:
        reach(caller, user_id, staff=False)
        return view(*args, caller=caller, user_id=user_id, **kwargs)

    return reached  # type: ignore[return-value]


def client() -> str:
    """Return the address whose tries are counted."""
    return client_address(
        request.remote_addr,
        request.headers.get("X-Forwarded-For", ""),
        services().settings.trusted_proxies,
    )


@contextmanager
def password_try(email_key: str) -> Iterator[None]:
    """Count the try of a password that happens inside; a right one is forgiven.

    One count for all places that take a password, so that none is an oracle for another. Counted
    before the try, known e-mail or not. Raises Throttled.
    """
    throttle = services().throttle
    throttle.spend(PASSWORD, account=email_key, address=client())
    try:
        yield
    except (AccountDeactivated, InvalidInput):
        # Said only to the right password.
        throttle.forgive(PASSWORD, account=email_key)
        raise
    throttle.forgive(PASSWORD, account=email_key)


def confirm(who: Caller, mode: str, password: Callable[[], str | None]) -> None:
    """Make sure that *who* is there in person, as *mode* wants it (``DELETION_CONFIRMATION``).

    ``fresh``: a token that came straight from a password is enough while it is young; otherwise, and
    always with ``password``, the caller's password is needed. *password* is only called for then.
    Hashes outside any transaction.

    Raises ConfirmationRequired, Throttled, WrongPassword.
    """
    window = timedelta(minutes=services().settings.fresh_token_minutes)
    if mode == "none" or (mode == "fresh" and who.claims.is_fresh(now=who.now, max_age=window)):
        return
    given = password()
    if given is None:
        raise ConfirmationRequired(int(window.total_seconds()) if mode == "fresh" else None)
    with password_try(who.account.email_key):
        accounts.confirm_password(db.session(), services().hasher, who.account.id, given)


def init_app(app: APIFlask, made: Services) -> None:
    """Bind Flask-JWT-Extended to the keys, the check and the answers of this module."""
    app.config.update(
        JWT_ALGORITHM=ALGORITHM,
        JWT_SECRET_KEY=made.tokens.key(ACCESS),
        JWT_DECODE_AUDIENCE=f"accountsvc:{ACCESS}",
        JWT_ENCODE_AUDIENCE=f"accountsvc:{ACCESS}",
        JWT_DECODE_LEEWAY=LEEWAY_SECONDS,
        JWT_ACCESS_TOKEN_EXPIRES=made.settings.access_token_lifetime,
        JWT_REFRESH_TOKEN_EXPIRES=made.settings.refresh_token_lifetime,
        JWT_TOKEN_LOCATION=["headers"],
        JWT_ERROR_MESSAGE_KEY="detail",
    )
    jwt.init_app(app)

    # It takes any type but "refresh" for an access token, and knows neither epoch nor state.
    @jwt.token_verification_loader
    def verify(_header: dict[str, Any], _claims: dict[str, Any]) -> bool:
        caller()
        return True

    @jwt.user_lookup_loader
    def look_up(_header: dict[str, Any], _claims: dict[str, Any]) -> Account:
        return caller().account

    def not_authenticated(*_reason: object) -> Response:
        return errors.answer(NotAuthenticated())

    def not_valid(*_reason: object) -> Response:
        return errors.answer(TokenNotValid())

    def not_fresh(*_reason: object) -> Response:
        seconds = made.settings.fresh_token_minutes * 60
        return errors.answer(ConfirmationRequired(seconds))

    jwt.unauthorized_loader(not_authenticated)
    jwt.invalid_token_loader(not_valid)
    jwt.expired_token_loader(not_valid)
    jwt.revoked_token_loader(not_valid)
    jwt.user_lookup_error_loader(not_valid)
    jwt.token_verification_failed_loader(not_valid)
    jwt.needs_fresh_token_loader(not_fresh)
