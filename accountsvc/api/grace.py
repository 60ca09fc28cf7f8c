"""The grace period: what is promised, coming back, moving the date, and waiving the rest of it."""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime
from typing import Any

from apiflask import APIBlueprint
from flask import Response, current_app
from sqlalchemy.orm import Session

from ..accounts import credentials, lifecycle, settling
from ..accounts.reasons import Return
from ..adapters.throttle import TOKEN
from ..db.audit import Actor
from ..db.engine import database_now
from ..db.models import OWNER, STAFF, Account
from ..db.text import unique_key
from ..errors import (
    AccountNotFound,
    Busy,
    ConfirmationRequired,
    GraceOver,
    InvalidCredentials,
    InvalidInput,
    InvalidSchedule,
    LegalHold,
    NotAuthorized,
    NotDeactivated,
    ReactivationForbidden,
    RecentChange,
    Throttled,
    TokenNotValid,
    Unexplained,
    VersionMismatch,
    VersionRequired,
    WrongPassword,
)
from ..tokens import MAILED, RECOVERY
from ..web import about, client, committed, services
from .deletion import document
from .http import auth, schemas
from .http.auth import Caller
from .http.describe import raises, says, sends, takes
from .http.samples import TIME
from .http.wire import json_response, names, names_version
from .session import signed_in

bp = APIBlueprint("grace", __name__, tag="Grace period")

_ETAG = '"7d865e959b2466918c9863afca942d0f"'
_IF_MATCH = (
    "The state that the decision rests on: an ETag, a list of them, or `*` for any state. "
    '`W/"…"`, as a proxy that compresses makes it of ours, is taken for `"…"`. 428 without it, 412 '
    "if none of them is the state of now."
)
_SAMPLE = datetime.fromisoformat(TIME)


@bp.post("/profile/reactivate/")
@bp.input(schemas.Reactivate)
@bp.output(schemas.SignedInOrDeletion)
@raises(
    InvalidInput,
    InvalidCredentials,
    TokenNotValid,
    ReactivationForbidden,
    NotDeactivated,
    GraceOver,
    Throttled,
    Busy,
)
def come_back(json_data: dict[str, str]) -> dict[str, Any]:
    """Reactivate one's own account in its grace period

    By e-mail and password, or by a recovery token behind which a fresh password stands, as that of
    a sign-in: answers as sign-in does, and the session is as old as that password. By another one,
    or a mailed token: answers with the deletion document and no tokens, the person signs in. A
    token works once; tokens from before the deactivation stay dead.
    """
    if "token" in json_data:
        return _come_back_by_token(json_data["token"])
    return _come_back_by_password(json_data["email"], json_data["password"])


def _come_back_by_password(email: str, password: str) -> dict[str, Any]:
    with services().attempts.password(email, address=client(), failure="reactivation.failed"):
        account = credentials.deactivated_account(
            services().database, services().hasher, email=email, password=password
        )
    return signed_in(_reactivate(account.id, account.public_id, account.epoch))


def _come_back_by_token(token: str) -> dict[str, Any]:
    services().throttle.spend(TOKEN, address=client())
    with services().reading() as session:
        claims = services().tokens.read(token, RECOVERY, MAILED, now=database_now(session))
        account = credentials.deactivated_by_claims(session, claims)
    account = _reactivate(account.id, claims.public_id, claims.epoch)
    # Coming back is never refused for how often it happens.
    services().throttle.forgive(TOKEN, address=client())
    if claims.kind == RECOVERY and claims.fresh:
        return signed_in(account, password_at=claims.password_at)
    with services().reading() as session:
        return document(session, account, now=database_now(session), by=OWNER)


def _reactivate(account_id: int, public_id: uuid.UUID, epoch: int) -> Account:
    about(public_id)

    def reactivate(session: Session) -> Account:
        try:
            return lifecycle.reactivate(
                session,
                account_id,
                promise=services().promise,
                by=Actor(OWNER, public_id),
                epoch=epoch,
            )
        except AccountNotFound:
            # The account was purged since its credentials were checked. A 404 would say so to one
            # caller only: a moment later the same token is not valid.
            raise TokenNotValid from None

    return committed(reactivate)


@bp.post("/profile/<int:user_id>/reactivate/")
@auth.staff_on_account
@bp.input(schemas.GiveBack)
@bp.output(schemas.Deletion)
@raises(
    InvalidInput, ConfirmationRequired, WrongPassword, NotDeactivated, GraceOver, Throttled, Busy
)
def give_back(user_id: int, *, caller: Caller, json_data: dict[str, str]) -> dict[str, Any]:
    """Reactivate somebody's account in its grace period, as staff

    Whoever deactivated it. The owner signs in with the password as before. A ``reason`` is stored
    on the account until its purge. Needs a password proved within ``STAFF_FRESH_MINUTES``, else
    ``{"password": "…"}`` of the caller in the body.
    """
    auth.confirm_as_staff(caller, user_id, lambda: json_data.get("password"))
    how = Return(json_data.get("reason"))

    def reactivate(session: Session) -> dict[str, Any]:
        account = lifecycle.reactivate(
            session,
            user_id,
            promise=services().promise,
            by=caller.actor_as_staff(),
            epoch=caller.epoch,
            how=how,
        )
        return document(session, account, now=database_now(session), by=STAFF)

    return committed(reactivate)


@bp.get("/profile/<int:user_id>/deletion/")
@auth.signed_in_or_in_grace
@bp.output(schemas.Deletion)
@sends(200, ETag=_ETAG)
@raises(AccountNotFound, NotAuthorized)
def status(user_id: int, *, caller: Caller) -> Response:
    """Show what is promised for a deactivated account

    To the owner, by a recovery or mailed token, and to the staff, who see more. ``ETag`` names this
    state for a PATCH. 404 for an active account.
    """
    account, by = auth.reach_in_grace(caller, user_id, RECOVERY, MAILED)
    if account.is_active:
        raise AccountNotFound
    with services().reading() as session:
        return _with_etag(document(session, account, now=database_now(session), by=by))


@bp.patch("/profile/<int:user_id>/deletion/")
@auth.staff_on_account
@bp.input(schemas.Reschedule)
@bp.output(schemas.Deletion)
@takes("If-Match", _ETAG, _IF_MATCH)
@sends(200, ETag=_ETAG)
@raises(
    InvalidInput,
    ConfirmationRequired,
    WrongPassword,
    GraceOver,
    VersionMismatch,
    InvalidSchedule,
    VersionRequired,
    Throttled,
    Busy,
)
def change(user_id: int, *, caller: Caller, json_data: dict[str, Any]) -> Response:
    """Move the promised purge later, or store a reason, as staff

    ``If-Match`` names the state that the decision rests on. The new date is mailed to the owner.
    Needs a password proved within ``STAFF_FRESH_MINUTES``, else ``{"password": "…"}`` of the caller
    in the body.
    """
    if not names_version():
        raise VersionRequired
    auth.confirm_as_staff(caller, user_id, lambda: json_data.get("password"))
    by = caller.actor_as_staff()

    def patch(session: Session) -> dict[str, Any]:
        account = lifecycle.lock_as(session, user_id, by=by, epoch=caller.epoch)
        now = database_now(session)
        if account.is_active:
            raise AccountNotFound
        if not names(_etag(document(session, account, now=now, by=STAFF))):
            raise VersionMismatch
        if "purge_at" in json_data:
            lifecycle.reschedule(
                session,
                user_id,
                purge_at=json_data["purge_at"],
                promise=services().promise,
                by=by,
            )
        if "reason" in json_data:
            lifecycle.set_reason(session, user_id, reason=json_data["reason"], by=by)
        return document(session, account, now=now, by=STAFF)

    return _with_etag(committed(patch))


@bp.post("/profile/<int:user_id>/purge/")
@auth.signed_in_or_in_grace
@bp.input(schemas.PurgeNow)
@bp.output(schemas.Deletion, 202)
@raises(
    InvalidInput,
    ConfirmationRequired,
    AccountNotFound,
    NotAuthorized,
    WrongPassword,
    NotDeactivated,
    RecentChange,
    LegalHold,
    Unexplained,
    Throttled,
    Busy,
)
@says(
    RecentChange,
    to_the_owner=settling.says(settling.AFTER_A_CHANGE, _SAMPLE),
    to_the_staff=settling.says(settling.AFTER_THE_STAFF, _SAMPLE),
)
def purge_now(user_id: int, *, caller: Caller, json_data: dict[str, str]) -> Response:
    """Waive the rest of the grace period: the account is due now, the worker purges it

    The owner needs the mailed token as bearer *and* the password, so that neither a mailbox nor a
    password alone is enough, and is refused within 24 hours of a change of either. Staff repeat the
    account's username in ``confirm``, and are refused within ``HOLD_RELEASE_DELAY`` of the release
    of a hold or of a deactivation by staff, one that was taken back too; they need a password
    proved within ``STAFF_FRESH_MINUTES``, else ``{"password": "…"}`` of the caller in the body.
    """
    account, kind = auth.reach_in_grace(caller, user_id, MAILED)
    if kind == STAFF and account.is_active:
        raise NotDeactivated
    if kind == OWNER:
        if "password" not in json_data:
            raise ConfirmationRequired
        services().attempts.confirm(account, json_data["password"], address=client())
    else:
        # One try for both: a right password would otherwise forgive every wrong username.
        with services().attempts.staff_confirmation(caller.account, account.public_id):
            auth.confirm_as_staff(caller, None, lambda: json_data.get("password"))
            if unique_key(json_data.get("confirm", "")) != account.username_key:
                raise InvalidInput({"confirm": ["Repeat the username of the account."]})
    by = Actor(kind, caller.account.public_id)

    def waive(session: Session) -> dict[str, Any]:
        due = lifecycle.due_now(
            session,
            user_id,
            by=by,
            epoch=caller.epoch,
            staff_delay=services().promise.hold_release_delay,
        )
        return document(session, due, now=database_now(session), by=kind)

    response = json_response(committed(waive))
    response.status_code = 202
    return response


def _with_etag(body: dict[str, Any]) -> Response:
    response = json_response(body)
    response.set_etag(_etag(body))
    return response


def _etag(body: dict[str, Any]) -> str:
    return hashlib.sha256(current_app.json.dumps(body).encode()).hexdigest()[:32]
