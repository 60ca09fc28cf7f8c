"""Signing up, signing in, and keeping a session going."""

from __future__ import annotations

from typing import Any

from apiflask import APIBlueprint
from flask import Response

from .. import accounts, rows
from ..database import database_now, reading
from ..errors import (
    AccountDeactivated,
    InvalidCredentials,
    InvalidInput,
    Throttled,
    TokenNotValid,
)
from ..extensions import db
from ..logs import about
from ..models import Account, unique_key
from ..throttle import SIGN_UP
from ..tokens import REFRESH
from . import auth, errors, schemas
from .doorway import services
from .openapi import raises

session = APIBlueprint("session", __name__, tag="Session")


@session.post("/sign-up/")
@session.input(schemas.SignUp)
@session.output(schemas.SignedIn, 201)
@raises(InvalidInput, Throttled)
def sign_up(json_data: dict[str, str]) -> dict[str, Any]:
    """Create an account and sign in to it

    Names compare without case. Those of an account in its grace period stay taken.
    """
    made = services()
    made.throttle.spend(SIGN_UP, address=auth.client())
    account = accounts.sign_up(db.session(), made.hasher, made.keyring, json_data)
    return signed_in(account)


@session.post("/sign-in/")
@session.input(schemas.SignIn)
@session.output(schemas.SignedIn)
@raises(InvalidInput, InvalidCredentials, AccountDeactivated, Throttled)
def sign_in(json_data: dict[str, str]) -> dict[str, Any] | Response:
    """Sign in with e-mail and password

    An unknown e-mail and a wrong password get the same answer in the same time.
    """
    try:
        email = json_data["email"]
        with auth.audited_failure("sign_in.failed", email), auth.password_try(unique_key(email)):
            account = accounts.authenticate(db.session(), services().hasher, **json_data)
    except AccountDeactivated as exc:
        return _way_back(exc)
    return signed_in(account)


@session.post("/token/refresh/")
@session.input(schemas.Refresh)
@session.output(schemas.Access)
@raises(InvalidInput, TokenNotValid)
def refresh(json_data: dict[str, str]) -> dict[str, str]:
    """Get a new access token, which is not fresh, for a refresh token"""
    tokens = services().tokens
    with reading(db.session()) as transaction:
        now = database_now(transaction)
        claims = tokens.read(json_data["refresh"], REFRESH, now=now)
        account = accounts.by_claims(transaction, claims)
        return {"access": tokens.access(account, now=now, fresh=False)}


def signed_in(account: Account) -> dict[str, Any]:
    """Return the answer of whoever has just proved a password of *account* (detached).

    The tokens carry the epoch that was read with that password: if it was raised since, they are dead.
    """
    about(account.public_id)
    tokens = services().tokens
    with reading(db.session()) as transaction:
        now = database_now(transaction)
    return {
        "access": tokens.access(account, now=now, fresh=True),
        "refresh": tokens.refresh(account, now=now),
        "user": accounts.user_document(account),
    }


def _way_back(exc: AccountDeactivated) -> Response:
    """Tell the person who knows the password when the purge is, with a token to come back by."""
    with reading(db.session()) as transaction:
        now = database_now(transaction)
        account = rows.find(transaction, exc.account_id)
        if account is None or account.is_active:
            # Purged or reactivated since: what was found no longer is.
            raise InvalidCredentials from exc
        token = services().tokens.recovery(account, now=now)
    return errors.answer(exc, recovery_token=token)
