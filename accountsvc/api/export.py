"""The export of one's own data."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from apiflask import APIBlueprint
from flask import Response

from ..accounts import exports, settling
from ..errors import (
    AccountNotFound,
    Busy,
    ConfirmationRequired,
    InvalidInput,
    NotAuthorized,
    RecentChange,
    StoreUnavailable,
    Throttled,
    WrongPassword,
)
from ..tokens import ACCESS, MAILED, RECOVERY
from ..web import client, services
from .http import auth, bodies, schemas
from .http.auth import Caller
from .http.describe import raises, refuses, says, sends
from .http.samples import TIME

bp = APIBlueprint("export", __name__, tag="Export")

_ZIP: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The archive, streamed; one without its end was broken off",
        "content": {exports.CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_TOO_SOON = settling.says(settling.AFTER_A_RESET, datetime.fromisoformat(TIME))
_ERRORS = (
    AccountNotFound,
    NotAuthorized,
    ConfirmationRequired,
    WrongPassword,
    RecentChange,
    Throttled,
    StoreUnavailable,
    Busy,
)


@bp.get("/profile/<int:user_id>/export/")
@auth.signed_in_or_in_grace
@raises(*_ERRORS)
@says(RecentChange, after_a_reset=_TOO_SOON)
@refuses(400)
@sends(200, Content_Disposition=exports.DISPOSITION)
@bp.doc(responses=_ZIP)
def take_along(user_id: int, *, caller: Caller) -> Response:
    """Export one's own data as a ZIP

    With a fresh access token or, in the grace period, a recovery token that was got with a fresh
    password. Refused for 24 hours, or half the grace period if this is shorter, after a mailed link
    has set the password in the grace period, also after a return. Never for the staff.
    """
    # Read a body although it is a GET: without it a client whose token is not fresh any more would
    # have to change to POST to confirm.
    return _streamed(caller, user_id, bodies.spare_password)


@bp.post("/profile/<int:user_id>/export/")
@auth.signed_in_or_in_grace
@bp.input(schemas.Confirmation)
@raises(InvalidInput, *_ERRORS)
@says(RecentChange, after_a_reset=_TOO_SOON)
@sends(200, Content_Disposition=exports.DISPOSITION)
@bp.doc(responses=_ZIP)
def take_along_by_password(user_id: int, *, caller: Caller, json_data: dict[str, str]) -> Response:
    """Export one's own data as a ZIP, confirmed by the password

    With any access token or, in the grace period, a recovery or mailed token. Refused after a
    mailed link has set the password, as by GET.
    """
    return _streamed(caller, user_id, lambda: json_data.get("password"))


def _streamed(caller: Caller, account_id: int, password: Callable[[], str | None]) -> Response:
    _confirm_owner(caller, account_id, password)
    pieces = services().export(caller.account, epoch=caller.epoch, address=client(), now=caller.now)
    response = Response(pieces, mimetype=exports.CONTENT_TYPE)
    response.headers["Content-Disposition"] = exports.DISPOSITION
    return response


def _confirm_owner(caller: Caller, account_id: int, password: Callable[[], str | None]) -> None:
    """Make sure that *caller* owns the account *account_id* and has just shown that it is theirs.

    A recovery token that was got with a fresh password is enough; another one, and a mailed token,
    need it, so that neither an old session nor a mailed link alone opens a vault. Raises what the
    views list.
    """
    if caller.claims.kind == ACCESS:
        auth.reach(caller, account_id, staff_too=False)
        auth.confirm(caller, "fresh", password)
        return
    auth.reach_in_grace(caller, account_id, RECOVERY, MAILED)
    if not caller.claims.fresh:
        auth.confirm(caller, "password", password)
