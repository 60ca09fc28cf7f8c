"""The caller of a request, and the guards, which let in only those whom a view is for.

Flask-JWT-Extended finds and verifies the access token of a request and remembers its account as
``current_user``; the loaders here add what it does not know: the exact type, the database's clock,
the epoch and the state of the account. So a view with its own ``@jwt_required()`` gives the same
answers as one with a guard. A guard is a decorator that stands above everything that reads input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, TypeVar, cast

from apiflask import APIFlask
from flask import Response, current_app, g, request
from flask_jwt_extended import verify_jwt_in_request
from jwt import InvalidTokenError

from ...accounts import credentials
from ...db import rows
from ...db.audit import Actor
from ...db.engine import database_now
from ...db.models import OWNER, STAFF, Account
from ...errors import (
    AccountError,
    AccountNotFound,
    ConfirmationRequired,
    NotAuthenticated,
    NotAuthorized,
    Throttled,
    TokenNotValid,
)
from ...services import Services
from ...tokens import ACCESS, ALGORITHM, MAILED, RECOVERY, Claims, audience, claims_of
from ...web import about, client, jwt, sent_by, services
from . import errors, jwt_patches
from .describe import marks_of, takes_token

View = TypeVar("View", bound=Callable[..., Any])

_SCHEME = "Bearer"


@dataclass(frozen=True)
class Caller:
    """The person behind a request, as the database knew them at ``now`` (its clock).

    ``account`` is detached: a value that the rest of the request can look at without the database.
    """

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


# Guards ----------------------------------------------------------------------------------------


def signed_in(view: View) -> View:
    """Let in whoever is signed in; the view gets the :class:`Caller` as its keyword ``caller``."""

    def admit(**_: Any) -> Caller:
        return _signed_in()

    return _guard(view, admit)


def owner(view: View) -> View:
    """Let only the owner of ``user_id`` in; otherwise as :func:`signed_in`."""

    def admit(*, user_id: int, **_: Any) -> Caller:
        caller = _signed_in()
        reach(caller, user_id, staff_too=False)
        return caller

    return _guard(view, admit, AccountNotFound, NotAuthorized)


def staff(view: View) -> View:
    """Let only the staff in; otherwise as :func:`signed_in`."""

    def admit(**_: Any) -> Caller:
        caller = _signed_in()
        _refuse_all_but_staff(caller)
        return caller

    return _guard(view, admit, NotAuthorized)


def staff_on_account(view: View) -> View:
    """Let only the staff in, and only if ``user_id`` is an account; otherwise as :func:`signed_in`.

    An owner who is not staff is refused too.
    """

    def admit(*, user_id: int, **_: Any) -> Caller:
        caller = _signed_in()
        if user_id != caller.account.id:
            reach(caller, user_id, staff_too=True)
        _refuse_all_but_staff(caller)
        return caller

    return _guard(view, admit, AccountNotFound, NotAuthorized)


def _refuse_all_but_staff(caller: Caller) -> None:
    """Raise NotAuthorized, audited about *caller*, if they are not of the staff."""
    if not caller.account.is_staff:
        services().attempts.denied(caller.account, caller.account.public_id)
        raise NotAuthorized


def signed_in_or_in_grace(view: View) -> View:
    """Let in as :func:`signed_in` does, and also the owner of a token of the grace period.

    The caller of a recovery or mailed token is its account, which is deactivated. What the token
    opens is for the view to say, by ``caller.claims.kind``.
    """

    def admit(**_: Any) -> Caller:
        return _in_grace() or _signed_in()

    return _guard(view, admit)


def _guard(view: View, admit: Callable[..., Caller], *refusals: type[AccountError]) -> View:
    """Give *view* the caller whom *admit* lets in by the path's arguments; document *refusals*."""

    @wraps(view)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return view(*args, caller=admit(**kwargs), **kwargs)

    takes_token(guarded, NotAuthenticated, TokenNotValid, *refusals)
    return cast(View, guarded)


def counted(kind: str) -> Callable[[View], View]:
    """Count a request as one try of *kind* by its caller's account, before its body is read.

    It stands between a guard, which lets the caller in, and whatever reads input: a body that is
    refused, or that changes nothing, has counted too. Raises Throttled, which it documents.
    """

    def mark(view: View) -> View:
        @wraps(view)
        def counting(*args: Any, caller: Caller, **kwargs: Any) -> Any:
            services().throttle.spend(kind, account=str(caller.account.public_id))
            return view(*args, caller=caller, **kwargs)

        marks = marks_of(counting)
        marks.raises = (Throttled, *marks.raises)
        return cast(View, counting)

    return mark


# Questions of guards and views about the caller ------------------------------------------------


def reach(caller: Caller, account_id: int, *, staff_too: bool) -> Account:
    """Return the account if *caller* owns it or, where *staff_too* allows it, is staff.

    Raises AccountNotFound if it never was, is purged, or is deactivated and *caller* is not staff;
    NotAuthorized, audited, if it is active and somebody else's.
    """
    if account_id == caller.account.id:
        return caller.account
    with services().reading() as session:
        account = rows.find(session, account_id)
    if account is None or not (account.is_active or caller.account.is_staff):
        raise AccountNotFound
    about(account.public_id)
    if not (staff_too and caller.account.is_staff):
        services().attempts.denied(caller.account, account.public_id)
        raise NotAuthorized
    return account


def reach_in_grace(caller: Caller, account_id: int, *kinds: str) -> tuple[Account, str]:
    """Return the account to its owner, who has a token of *kinds*, or to the staff; and to which.

    A token of the grace period opens the one deactivated account it was made for. An access token
    is for the staff only: its owner's account is active, so nothing is promised for it. Raises
    TokenNotValid, AccountNotFound, NotAuthorized.
    """
    if caller.claims.kind == ACCESS:
        if account_id == caller.account.id and not caller.account.is_staff:
            raise AccountNotFound
        account = reach(caller, account_id, staff_too=True)
        about(account.public_id)
        return account, STAFF
    if caller.claims.kind not in kinds:
        raise TokenNotValid
    if caller.account.id != account_id:
        raise AccountNotFound
    about(caller.account.public_id)
    return caller.account, OWNER


def confirm(caller: Caller, mode: str, password: Callable[[], str | None]) -> bool:
    """Make sure that *caller* is there in person, as *mode* wants it (``DELETION_CONFIRMATION``).

    ``fresh``: a token that came straight from a password is enough while that is young; otherwise,
    and always with ``password``, the caller's password is needed. Only then *password* is called,
    which returns it. Hashes outside any transaction. Return whether the password was proved by this
    call.

    Raises ConfirmationRequired, Throttled, WrongPassword.
    """
    if mode == "none":
        return False
    return _confirm(caller, fresh_window() if mode == "fresh" else None, password)


def confirm_as_staff(
    caller: Caller,
    account_id: int | None,
    password: Callable[[], str | None],
    *,
    mode: str = "none",
) -> None:
    """Make sure of the same before *caller*, as staff, changes the account *account_id*.

    The password behind the token is at most ``STAFF_FRESH_MINUTES`` old, whatever *mode*, which can
    only ask for more. Wrong confirmations are counted as those of the staff beside; by the view
    itself, if that gives no *account_id*.

    Raises ConfirmationRequired, Throttled, WrongPassword.
    """
    window = timedelta(minutes=services().settings.staff_fresh_minutes)
    if mode == "fresh":
        window = min(window, fresh_window())
    _confirm(caller, None if mode == "password" else window, password, account_id=account_id)


def fresh_window() -> timedelta:
    """Return how long a token is fresh after its password (``FRESH_TOKEN_MINUTES``)."""
    return timedelta(minutes=services().settings.fresh_token_minutes)


def _confirm(
    caller: Caller,
    window: timedelta | None,
    password: Callable[[], str | None],
    *,
    account_id: int | None = None,
) -> bool:
    """Take a token that is fresh within *window* (None: none is), or the password; say if that."""
    if window is not None and caller.claims.is_fresh(now=caller.now, max_age=window):
        return False
    typed = password()
    if typed is None:
        raise ConfirmationRequired(None if window is None else int(window.total_seconds()))
    attempts = services().attempts
    as_staff: AbstractContextManager[None] = nullcontext()
    if account_id is not None:
        subject = reach(caller, account_id, staff_too=True).public_id
        as_staff = attempts.staff_confirmation(caller.account, subject)
    with as_staff:
        attempts.confirm(caller.account, typed, address=client())
    return True


# Tokens ----------------------------------------------------------------------------------------


def _signed_in() -> Caller:
    """Have Flask-JWT-Extended verify the access token of this request, and return whose it is."""
    verify_jwt_in_request()
    caller: Caller = g.caller
    return caller


def _in_grace() -> Caller | None:
    """Return the caller of a recovery or mailed token; None if the request has no token of the two.

    These have keys and audiences of their own, of which Flask-JWT-Extended knows one each. Raises
    TokenNotValid.
    """
    token = request.headers.get("Authorization", "").removeprefix(f"{_SCHEME} ")
    tokens = services().tokens
    kind = tokens.kind_of(token)
    if kind is None or kind not in {RECOVERY, MAILED}:
        return None
    with services().reading() as session:
        now = database_now(session)
        claims = tokens.read(token, kind, now=now)
        return Caller(credentials.deactivated_by_claims(session, claims), claims, now)


def init_app(app: APIFlask, services: Services) -> None:
    """Have Flask-JWT-Extended authenticate the requests of *app*, by the loaders of this module."""
    app.config.update(
        JWT_ALGORITHM=ALGORITHM,
        JWT_SECRET_KEY=services.tokens.key(ACCESS),
        JWT_DECODE_AUDIENCE=audience(ACCESS),
        # PyJWT would compare the times with the clock of this host, which may be wrong, and the
        # library has no setting that stops it; ``_verify`` compares them with the database's.
        JWT_DECODE_LEEWAY=math.inf,
        JWT_HEADER_TYPE=_SCHEME,
        JWT_TOKEN_LOCATION=["headers"],
    )
    jwt_patches.take_apart_once()
    jwt.init_app(app)
    app.before_request(_normalise_authorization)


def _normalise_authorization() -> None:
    """Write the Authorization header in the one form in which Flask-JWT-Extended finds a token.

    By itself it would read the scheme in one case only, and pick the one ``Bearer`` out of a list
    of schemes. Here the scheme is read in any case (RFC 9110, section 11.1), another scheme is no
    token, and several headers, which arrive joined by commas, are one malformed token.
    """
    scheme, *rest = request.headers.get("Authorization", "").split(maxsplit=1) or [""]
    if scheme.lower() != _SCHEME.lower():
        request.environ.pop("HTTP_AUTHORIZATION", None)
        return
    token = "".join(rest).strip()
    request.environ["HTTP_AUTHORIZATION"] = _SCHEME if "," in token else f"{_SCHEME} {token}"


@jwt.decode_key_loader
def _key(_header: Mapping[str, Any], payload: Mapping[str, Any]) -> bytes:
    """Return the key of access tokens, but none for a token that does not say it is one.

    The library would take a token without a ``type`` for an access token.
    """
    if payload.get("type") != ACCESS:
        raise InvalidTokenError
    key: bytes = current_app.config["JWT_SECRET_KEY"]
    return key


@jwt.token_verification_loader
def _verify(_header: Mapping[str, Any], payload: Mapping[str, Any]) -> bool:
    """Compare a token whose signature is good with the database's clock and its account's row."""
    claims = claims_of(payload, ACCESS)
    if claims is None:
        return False
    try:
        with services().reading() as session:
            account, now = credentials.seen_by_claims(session, claims)
    except TokenNotValid:
        return False
    g.caller = Caller(account, claims, now)
    sent_by(account.public_id)
    return True


@jwt.user_lookup_loader
def _look_up(_header: Mapping[str, Any], _payload: Mapping[str, Any]) -> Account:
    """Return the account that :func:`_verify` has found, as ``current_user``."""
    caller: Caller = g.caller
    return caller.account


@jwt.unauthorized_loader
def _not_authenticated(*_reason: object) -> Response:
    return errors.answer(NotAuthenticated())


@jwt.invalid_token_loader
@jwt.expired_token_loader
@jwt.revoked_token_loader
@jwt.user_lookup_error_loader
@jwt.token_verification_failed_loader
def _not_valid(*_reason: object) -> Response:
    return errors.answer(TokenNotValid())


@jwt.needs_fresh_token_loader
def _not_fresh(*_reason: object) -> Response:
    return errors.answer(ConfirmationRequired(services().settings.fresh_token_minutes * 60))
