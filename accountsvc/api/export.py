"""Taking one's data along."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from apiflask import APIBlueprint
from flask import Response

from ..accounts import credentials, exports
from ..db.engine import database_now
from ..db.models import Account
from ..errors import (
    AccountNotFound,
    ConfirmationRequired,
    InvalidInput,
    NotAuthorized,
    StoreUnavailable,
    Throttled,
    WrongPassword,
)
from ..tokens import ACCESS, MAILED, RECOVERY
from ..web import services
from .http import auth, bodies, schemas
from .http.openapi import raises, refuses, sends

bp = APIBlueprint("export", __name__, tag="Export")

_ZIP: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The archive, streamed; one without its end was broken off",
        "content": {exports.CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_ERRORS = (
    AccountNotFound,
    NotAuthorized,
    ConfirmationRequired,
    WrongPassword,
    Throttled,
    StoreUnavailable,
)


@bp.get("/profile/<int:user_id>/export/")
@auth.grace_required
@raises(*_ERRORS)
@refuses(400)
@sends(200, Content_Disposition=exports.DISPOSITION)
@bp.doc(responses=_ZIP)
def take_along(user_id: int) -> Response:
    """Export one's own data as a ZIP

    With a fresh access token or, in the grace period, a recovery token. Never for the staff.
    """
    # Clients that can send a body with a GET may confirm here too.
    return _streamed(user_id, bodies.spare_password)


@bp.post("/profile/<int:user_id>/export/")
@auth.grace_required
@bp.input(schemas.Confirmation)
@raises(InvalidInput, *_ERRORS)
@sends(200, Content_Disposition=exports.DISPOSITION)
@bp.doc(responses=_ZIP)
def take_along_by_password(user_id: int, *, json_data: dict[str, str]) -> Response:
    """Export one's own data as a ZIP, confirmed by the password

    With any access token or, in the grace period, the mailed token.
    """
    return _streamed(user_id, lambda: json_data.get("password"))


def _streamed(account_id: int, password: Callable[[], str | None]) -> Response:
    account, now = _confirmed_owner(account_id, password)
    pieces = services().export(account, epoch=account.epoch, address=auth.client(), now=now)
    response = Response(pieces, mimetype=exports.CONTENT_TYPE)
    response.headers["Content-Disposition"] = exports.DISPOSITION
    return response


def _confirmed_owner(
    account_id: int, password: Callable[[], str | None]
) -> tuple[Account, datetime]:
    """Return the account (detached) to its owner, who has just shown that it is theirs, and the time.

    A recovery token was got with the password; a mailed token needs it, so that a mailbox alone never
    opens a vault. Raises what the views list.
    """
    with services().reading() as session:
        now = database_now(session)
        claims = services().tokens.read(auth.bearer_token(), ACCESS, RECOVERY, MAILED, now=now)
        if claims.kind != ACCESS:
            account = credentials.deactivated_by_claims(session, claims)
            if account.id != account_id:
                raise AccountNotFound
    if claims.kind == ACCESS:
        who = auth.caller()
        account = auth.reach(who, account_id, staff=False)
        auth.confirm(who, "fresh", password)
    elif claims.kind == MAILED:
        given = password()
        if given is None:
            raise ConfirmationRequired
        services().attempts.confirm(account, given, address=auth.client())
    return account, now
