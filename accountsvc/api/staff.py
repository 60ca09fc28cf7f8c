"""The staff's resources: holds, the list of deletions, and the audit trail."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from apiflask import APIBlueprint
from flask import Response, request
from sqlalchemy.orm import Session

from .. import documents
from ..accounts import lifecycle
from ..db import audit, rows
from ..db.engine import database_now
from ..db.models import MAX_ID, Account
from ..errors import (
    Busy,
    ConfirmationRequired,
    HoldNotFound,
    InvalidInput,
    Throttled,
    WrongPassword,
)
from ..web import committed, services
from .http import auth, bodies, schemas
from .http.auth import Caller
from .http.describe import raises, refuses, sends

bp = APIBlueprint("staff", __name__, tag="Staff")


@bp.post("/profile/<int:user_id>/holds/")
@auth.staff_on_account
@bp.input(schemas.NewHold)
@bp.output(schemas.Hold, 201)
@sends(201, Location="/api/profile/1/holds/1/")
@raises(InvalidInput, ConfirmationRequired, WrongPassword, Throttled, Busy)
def place(
    user_id: int, *, caller: Caller, json_data: dict[str, str]
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Place a legal hold: it blocks the purge, not the wish, and is hidden from the owner

    Needs a password proved within ``STAFF_FRESH_MINUTES``, else ``{"password": "…"}`` of the
    caller in the body.
    """
    auth.confirm_as_staff(caller, user_id, lambda: json_data.get("password"))

    def place_hold(session: Session) -> dict[str, Any]:
        hold = lifecycle.place_hold(
            session,
            user_id,
            reason=json_data["reason"],
            by=caller.actor_as_staff(),
            epoch=caller.epoch,
        )
        return documents.hold_document(hold)

    document = committed(place_hold)
    return document, 201, {"Location": f"/api/profile/{user_id}/holds/{document['id']}/"}


@bp.get("/profile/<int:user_id>/holds/")
@auth.staff_on_account
@bp.output(schemas.Holds)
def show_holds(user_id: int, *, caller: Caller) -> dict[str, Any]:
    """Show an account's holds, released ones too, oldest first"""
    with services().reading() as session:
        holds = lifecycle.holds(session, [user_id])
        return {"results": [documents.hold_document(hold) for hold in holds]}


@bp.delete("/profile/<int:user_id>/holds/<int:hold_id>/")
@auth.staff_on_account
@raises(HoldNotFound, ConfirmationRequired, WrongPassword, Throttled, Busy)
@refuses(400)
@bp.doc(responses={204: "Released; it stays on record until the purge"})
def release(user_id: int, hold_id: int, *, caller: Caller) -> Response:
    """Release a legal hold

    After the last one the purge is at least ``HOLD_RELEASE_DELAY`` away, so that a mistake is not
    final. The body is optional. Needs a password proved within ``STAFF_FRESH_MINUTES``, else
    ``{"password": "…"}`` of the caller in the body.
    """
    auth.confirm_as_staff(caller, user_id, bodies.spare_password)

    def let_go(session: Session) -> None:
        lifecycle.release_hold(
            session,
            user_id,
            hold_id,
            promise=services().promise,
            by=caller.actor_as_staff(),
            epoch=caller.epoch,
        )

    committed(let_go)
    return Response(status=204)


@bp.get("/admin/deletions/")
@auth.staff
@bp.input(schemas.DeletionsQuery, location="query")
@bp.output(schemas.Deletions)
@sends(200, Link='</api/admin/deletions/?limit=100&cursor=MjAyN>; rel="next"')
@raises(InvalidInput)
def list_deletions(*, caller: Caller, query_data: dict[str, Any]) -> Any:
    """List deactivated accounts by the time of their purge, a page at a time"""
    cursor = query_data.pop("cursor", None)
    limit = query_data.pop("limit")
    with services().reading() as session:
        now = database_now(session)
        accounts = rows.deletions(
            session,
            now=now,
            after=None if cursor is None else _position(cursor),
            limit=limit + 1,
            **query_data,
        )
        page = accounts[:limit]
        results = documents.deletion_documents(
            session, page, now=now, max_attempts=services().settings.purge_max_attempts
        )
    return {"results": results}, 200, _link(_cursor(page[-1]) if len(accounts) > limit else None)


@bp.get("/admin/audit/")
@auth.staff
@bp.input(schemas.AuditQuery, location="query")
@bp.output(schemas.AuditEvents)
@sends(200, Link='</api/admin/audit/?limit=100&cursor=100>; rel="next"')
@raises(InvalidInput)
def list_events(*, caller: Caller, query_data: dict[str, Any]) -> Any:
    """List what happened, oldest first, a page at a time"""
    limit = query_data["limit"]
    with services().reading() as session:
        subject = None
        if "subject" in query_data:
            subject = _subject(session, query_data["subject"])
        events = audit.events(
            session,
            subject=subject,
            action=query_data.get("action"),
            since=query_data.get("since"),
            after=query_data["cursor"],
            limit=limit + 1,
        )
        results = [documents.event_document(event) for event in events[:limit]]
    return {"results": results}, 200, _link(results[-1]["id"] if len(events) > limit else None)


def _link(cursor: object) -> dict[str, str]:
    """Return the header that leads to the page after *cursor*; none if there is no such page."""
    if cursor is None:
        return {}
    query = request.args.to_dict() | {"cursor": str(cursor)}
    return {"Link": f'<{request.path}?{urlencode(query)}>; rel="next"'}


def _cursor(account: Account) -> str:
    """Return the cursor that :func:`_position` reads: where *account* stands in the list."""
    assert account.purge_at is not None
    position = f"{account.purge_at.isoformat()} {account.id}"
    return base64.urlsafe_b64encode(position.encode()).decode()


def _position(cursor: str) -> tuple[datetime, int]:
    try:
        at, account_id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode().split(" ")
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None or not re.fullmatch(r"[0-9]{1,19}", account_id):
            raise ValueError
        return moment.astimezone(UTC), min(int(account_id), MAX_ID)
    except (binascii.Error, OverflowError, ValueError):
        raise InvalidInput({"cursor": ["Take the cursor from a Link header."]}) from None


def _subject(session: Session, text: str) -> uuid.UUID:
    """Return the public id that *text* names, as one or as an account's id."""
    if re.fullmatch(r"[0-9]{1,19}", text):
        account = rows.find(session, int(text))
        # An id of no account has no events; the nil UUID matches none, where None would match all.
        return uuid.UUID(int=0) if account is None else account.public_id
    number = rows.read_number(text)
    if number is None:
        raise InvalidInput({"subject": ["Send an account's id or public id."]})
    return number
