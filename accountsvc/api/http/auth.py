"""Who sends a request, and whether that is enough for what they ask.

``tokens.Tokens.read`` judges a token, ``accounts.by_claims`` compares it with the database on every
request; nothing is remembered between requests. Flask-JWT-Extended is bound to the same check, so that
a view with ``@jwt_required()`` gives the same answers as one with :func:`required`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, TypeVar

from apiflask import APIFlask
from flask import Response, g, request

from ...accounts import credentials
from ...db import rows
from ...db.audit import Actor
from ...db.engine import database_now
from ...db.models import OWNER, STAFF, Account
from ...errors import (
    AccountNotFound,
    ConfirmationRequired,
    NotAuthenticated,
    NotAuthorized,
    TokenNotValid,
)
from ...services import Services
from ...tokens import ACCESS, ALGORITHM, LEEWAY_SECONDS, MAILED, RECOVERY, Claims
from ...web import about, client_address, jwt, services
from . import errors

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

    def actor_as_staff(self) -> Actor:
        """Return them as the staff member who acts, also on an account of their own."""
        return Actor(STAFF, self.account.public_id)


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
        with services().reading() as session:
            now = database_now(session)
            claims = services().tokens.read(token, ACCESS, now=now)
            account = credentials.by_claims(session, claims)
            # Detached: a value that the rest of the request can look at without the database.
        g.caller = Caller(account, claims, now)
    found: Caller = g.caller
    return found


def required(view: View) -> View:
    """Give the view the :class:`Caller` as its keyword ``caller``, before any of its input is read."""

    @wraps(view)
    def authenticated(*args: Any, **kwargs: Any) -> Any:
        return view(*args, caller=caller(), **kwargs)

    return _documented(authenticated)  # type: ignore[return-value]


def _documented(view: Callable[..., Any]) -> Callable[..., Any]:
    """Say in the document that *view* takes a bearer token, and what it answers without one."""
    spec = view.__dict__.setdefault("_spec", {})
    spec["security"] = "bearerAuth"
    spec["raises"] = (NotAuthenticated, TokenNotValid, *spec.get("raises", ()))
    return view


def reach(who: Caller, account_id: int, *, staff: bool) -> Account:
    """Return the account if *who* owns it or, where *staff* may, is staff.

    Raises AccountNotFound if it never was, is purged, or is deactivated and *who* is not staff;
    NotAuthorized if it is active and somebody else's.
    """
    if account_id == who.account.id:
        return who.account
    with services().reading() as session:
        account = rows.find(session, account_id)
        if account is None or not (account.is_active or who.account.is_staff):
            raise AccountNotFound
        subject = account.public_id
    about(subject)
    if not (staff and who.account.is_staff):
        services().attempts.denied(who.account, subject)
        raise NotAuthorized
    return account


def owner_only(view: View) -> View:
    """Refuse everybody but the owner of ``user_id``, before any input is read; below ``required``."""

    @wraps(view)
    def reached(*args: Any, caller: Caller, user_id: int, **kwargs: Any) -> Any:
        reach(caller, user_id, staff=False)
        return view(*args, caller=caller, user_id=user_id, **kwargs)

    return reached  # type: ignore[return-value]


def staff_only(view: View) -> View:
    """Refuse everybody but staff, before any input is read; below ``required``."""

    @wraps(view)
    def reached(*args: Any, caller: Caller, **kwargs: Any) -> Any:
        if not caller.account.is_staff:
            raise NotAuthorized
        return view(*args, caller=caller, **kwargs)

    return reached  # type: ignore[return-value]


def for_staff(view: View) -> View:
    """Refuse everybody but staff, also the owner of ``user_id``, before any input is read.

    Below ``required``. Raises AccountNotFound as :func:`reach` does.
    """

    @wraps(view)
    def reached(*args: Any, caller: Caller, user_id: int, **kwargs: Any) -> Any:
        if user_id != caller.account.id:
            reach(caller, user_id, staff=True)
        if not caller.account.is_staff:
            raise NotAuthorized
        return view(*args, caller=caller, user_id=user_id, **kwargs)

    return reached  # type: ignore[return-value]


def grace_required(view: View) -> View:
    """Refuse whoever has no token of an active account or of the grace period, before any input is read.

    What it opens is for the view to say, in the transaction that uses it.
    """

    @wraps(view)
    def authenticated(*args: Any, **kwargs: Any) -> Any:
        with services().reading() as session:
            now = database_now(session)
            services().tokens.read(bearer_token(), ACCESS, RECOVERY, MAILED, now=now)
        return view(*args, **kwargs)

    return _documented(authenticated)  # type: ignore[return-value]


def grace_account(account_id: int, *kinds: str) -> tuple[Account, str]:
    """Return an account (detached) to its owner, by a token of *kinds*, or to the staff, and which.

    A token of the grace period opens the one deactivated account it was made for. Raises
    NotAuthenticated, TokenNotValid, AccountNotFound, NotAuthorized.
    """
    token = bearer_token()
    with services().reading() as session:
        claims = services().tokens.read(token, ACCESS, *kinds, now=database_now(session))
        if claims.kind != ACCESS:
            account = credentials.deactivated_by_claims(session, claims)
            if account.id != account_id:
                raise AccountNotFound
            about(account.public_id)
            return account, OWNER
        by = credentials.by_claims(session, claims)
        found = rows.find(session, account_id)
    if found is None or not (by.is_staff or (found.is_active and found.id != by.id)):
        raise AccountNotFound
    about(found.public_id)
    if not by.is_staff:
        services().attempts.denied(by, found.public_id)
        raise NotAuthorized
    return found, STAFF


def client() -> str:
    """Return the address whose tries are counted."""
    return client_address(
        request.remote_addr,
        request.headers.get("X-Forwarded-For", ""),
        services().settings.trusted_proxies,
    )


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
    services().attempts.confirm(who.account, given, address=client())


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
