"""Sessions: sign-up, sign-in, new access tokens, and the end of all of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session

from .. import documents
from ..accounts import credentials, profiles
from ..adapters.throttle import SIGN_UP
from ..db import rows
from ..db.engine import database_now
from ..db.models import Account
from ..errors import (
    AccountDeactivated,
    Busy,
    InvalidCredentials,
    InvalidInput,
    Throttled,
    TokenNotValid,
)
from ..tokens import REFRESH
from ..web import KEEP_PATH, about, client, committed, sent_by, services
from .http import auth, errors, schemas
from .http.auth import Caller
from .http.describe import raises

bp = APIBlueprint("session", __name__, tag="Session")


@bp.post("/sign-up/")
@bp.input(schemas.SignUp)
@bp.output(schemas.SignedIn, 201)
@raises(InvalidInput, Throttled, Busy)
def sign_up(json_data: dict[str, str]) -> dict[str, Any]:
    """Create an account and sign in to it

    Names compare without case. Those of an account in its grace period stay taken.
    """
    services().throttle.spend(SIGN_UP, address=client())
    account = profiles.sign_up(
        services().database, services().hasher, services().keyring, json_data
    )
    # Whoever goes on guessing cannot keep the owner out of where the account was made.
    services().attempts.clear(account, address=client())
    return signed_in(account)


@bp.post("/sign-in/")
@bp.input(schemas.SignIn)
@bp.output(schemas.SignedIn)
@raises(InvalidInput, InvalidCredentials, AccountDeactivated, Throttled, Busy)
def sign_in(json_data: dict[str, str]) -> dict[str, Any] | Response:
    """Sign in with e-mail and password

    An unknown e-mail and a wrong password get the same answer in the same time.
    """
    try:
        with services().attempts.password(
            json_data["email"], address=client(), failure="sign_in.failed"
        ):
            account = credentials.authenticate(services().database, services().hasher, **json_data)
    except AccountDeactivated as exc:
        return _way_back(exc)
    return signed_in(account)


@bp.post("/token/refresh/")
@bp.input(schemas.Refresh)
@bp.output(schemas.Access)
@raises(InvalidInput, TokenNotValid)
def refresh(json_data: dict[str, str]) -> dict[str, str]:
    """Get a new access token, which is not fresh, for a refresh token"""
    tokens = services().tokens
    with services().reading() as transaction:
        now = database_now(transaction)
        claims = tokens.read(json_data["refresh"], REFRESH, now=now)
        account = credentials.by_claims(transaction, claims)
        sent_by(account.public_id)
        access = tokens.access(account, now=now, fresh=False, password_at=claims.password_at)
        return {"access": access}


@bp.post("/sign-out/")
@auth.signed_in
@bp.doc(responses={204: "Done: every token of the account is dead"})
def sign_out(*, caller: Caller) -> Response:
    """End every session of the caller, on every device

    This one too: what comes after it is 401. Links to set a new password end with them.
    """

    def end(session: Session) -> None:
        credentials.end_sessions(session, caller.account.id, epoch=caller.epoch)

    committed(end)
    return Response(status=204)


def signed_in(account: Account, *, password_at: datetime | None = None) -> dict[str, Any]:
    """Return the answer to a person who has proved the password of *account* (detached).

    They have just done so, unless *password_at* says when. The tokens carry the epoch that was read
    with that password: if it was raised since, they are dead.
    """
    about(account.public_id)
    tokens = services().tokens
    with services().reading() as transaction:
        now = database_now(transaction)
    proved_at = now if password_at is None else password_at
    return {
        "access": tokens.access(account, now=now, fresh=True, password_at=proved_at),
        "refresh": tokens.refresh(account, now=now, password_at=proved_at),
        "user": documents.user_document(account, now=now),
    }


def _way_back(exc: AccountDeactivated) -> Response:
    """Tell the person who knows the password when the purge is, with a token to come back by."""
    with services().reading() as transaction:
        now = database_now(transaction)
        account = rows.find(transaction, exc.account_id)
        if account is None or account.is_active:
            # The account was purged or reactivated since its password was checked: its purge time
            # would be one that is not promised any more.
            raise InvalidCredentials from exc
        token = services().tokens.recovery(account, now=now, fresh=True, password_at=now)
    # The web app shows the sentence and nothing else of this answer: without the page in it, its
    # users would know no way back but a mail that they may not find.
    page = f"{services().settings.public_url}{KEEP_PATH}"
    return errors.answer(exc.by_page(page), recovery_token=token)
