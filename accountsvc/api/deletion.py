"""The endpoint this service exists for, and the document that tells what follows from it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.orm import Session
from werkzeug.http import http_date

from .. import documents
from ..accounts import lifecycle
from ..db.engine import database_now
from ..db.models import OWNER, Account
from ..errors import (
    AccountNotFound,
    Busy,
    ConfirmationRequired,
    LastStaff,
    NotAuthorized,
    Throttled,
    WrongPassword,
)
from ..web import committed, services
from .http import auth, bodies, schemas
from .http.auth import Caller
from .http.describe import raises, refuses, sends, takes
from .http.wire import json_response, prefers_representation

bp = APIBlueprint("deletion", __name__, tag="Deletion")

_SUNSET = "Mon, 07 Dec 2026 09:30:00 GMT"
_LINK = '</api/profile/1/deletion/>; rel="status"'


@bp.delete("/profile/<int:user_id>/delete/")
@auth.signed_in
@bp.output(schemas.Deleted, description="Done; the document was preferred")
@raises(
    AccountNotFound,
    NotAuthorized,
    ConfirmationRequired,
    Throttled,
    WrongPassword,
    LastStaff,
    Busy,
)
@refuses(400)
@takes("Prefer", "return=representation", "Asks for the document instead of nothing (RFC 7240)")
@sends(200, Sunset=_SUNSET, Link=_LINK, Preference_Applied="return=representation", Vary="Prefer")
@sends(204, Sunset=_SUNSET, Link=_LINK)
@bp.doc(responses={204: "Done: deactivated, and the purge is scheduled"})
def delete(user_id: int, *, caller: Caller) -> Response:
    """Deactivate an account at once and schedule its purge

    All or nothing. A repeat never moves the promised time. ``Sunset`` is when the purge is due. The
    body is optional; ``{"password": "…"}`` of the caller in it confirms, where a fresh token does
    not (``DELETION_CONFIRMATION``). The staff need a password proved within
    ``STAFF_FRESH_MINUTES``, else theirs, to deactivate somebody else.
    """
    account = auth.reach(caller, user_id, staff_too=True)
    by = caller.actor(user_id)
    as_staff = by.kind != OWNER
    mode = services().settings.deletion_confirmation
    is_proved = False
    if as_staff:
        auth.confirm_as_staff(caller, user_id, bodies.spare_password, mode=mode)
    else:
        is_proved = auth.confirm(caller, mode, bodies.spare_password)
    # A repeat deactivates nobody, so it is never refused for its number; nor is the owner's own.
    if as_staff and account.is_active:
        services().attempts.deactivates(caller.account, account.public_id)
    is_represented = prefers_representation()

    def deactivate(session: Session) -> tuple[datetime, dict[str, Any]]:
        account = lifecycle.deactivate(
            session,
            user_id,
            promise=services().promise,
            by=by,
            epoch=caller.epoch,
        )
        assert account.purge_at is not None
        if not is_represented:
            return account.purge_at, {}
        body = _representation(session, account, by=by.kind)
        if not as_staff:
            body["recovery_token"] = _undo(account, caller, is_proved=is_proved)
        return account.purge_at, body

    purge_at, body = committed(deactivate)
    response = _preferred(body) if is_represented else Response(status=204)
    response.headers["Sunset"] = http_date(purge_at)
    response.headers["Link"] = f'</api/profile/{user_id}/deletion/>; rel="status"'
    return response


def _representation(session: Session, account: Account, *, by: str) -> dict[str, Any]:
    """Return the document of a deletion that was just made."""
    now = database_now(session)
    return {"message": "User deleted successfully"} | document(session, account, now=now, by=by)


def _undo(account: Account, caller: Caller, *, is_proved: bool) -> str:
    """Return the recovery token by which the owner can undo the deletion that *caller* has made.

    Without a password that this request has proved, or one that is fresh, it opens no vault: else
    somebody with an old session would get by a deletion what the session does not open.
    """
    claims, now = caller.claims, caller.now
    return services().tokens.recovery(
        account,
        now=now,
        fresh=is_proved or claims.is_fresh(now=now, max_age=auth.fresh_window()),
        password_at=now if is_proved else claims.password_at,
    )


def _preferred(body: dict[str, Any]) -> Response:
    """Answer with the *body* that the client's ``Prefer`` asked for, and say so (RFC 7240)."""
    response = json_response(body)
    response.headers["Preference-Applied"] = "return=representation"
    response.vary.add("Prefer")
    return response


def document(session: Session, account: Account, *, now: datetime, by: str) -> dict[str, Any]:
    """Return the deletion document as the owner or, with more in it, the staff may see it."""
    if by == OWNER:
        return documents.own_deletion_document(account, now=now)
    max_attempts = services().settings.purge_max_attempts
    return documents.deletion_documents(session, [account], now=now, max_attempts=max_attempts)[0]
