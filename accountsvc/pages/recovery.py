"""The page of the grace period: it shows what happens when, and lets the person change that.

The link alone opens what the deletion document says, and *Keep my account*. Taking the data along
and giving up the rest of the time need the password too, so that a mailed link alone opens no
vault. Whoever sets a new password by mail has one; the data is refused to them for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

from flask import Response, render_template, request

from .. import bounds
from ..accounts import exports, lifecycle, pending
from ..accounts.fields import is_too_long
from ..adapters import throttle
from ..db.audit import Actor
from ..db.models import OWNER
from ..errors import (
    AccountNotFound,
    GraceOver,
    NotDeactivated,
    ReactivationForbidden,
    RecentChange,
    Throttled,
    TokenNotValid,
    WrongPassword,
)
from ..web import client, services
from . import messages
from .answers import Problems, say, too_many
from .links import RECOVER, Visit, form_key, visit
from .messages import ShowMessage


def show() -> Response:
    """Show what is promised; change nothing."""
    return _page(_visit())


def act() -> Response:
    """Do what one of the page's forms asks for, or show the page again with what is wrong."""
    visitor = _visit()
    action = request.form.get("action", "")
    if action not in _ACTIONS:
        raise ShowMessage(messages.NOT_UNDERSTOOD)
    try:
        return _ACTIONS[action](visitor)
    except WrongPassword:
        wrong = {f"{action}-password": "This is not the password of this account."}
        return _page(visitor, 403, wrong)
    except Throttled as exc:
        return too_many(exc, lambda problems: _page(visitor, 429, problems))
    except ReactivationForbidden as exc:
        return _page(visitor, 403, {"": str(exc)})
    except RecentChange as exc:
        return _page(visitor, 409, {"": str(exc)})
    except (AccountNotFound, TokenNotValid, NotDeactivated, GraceOver) as exc:
        # Another request was faster than this form: look again, so that the page says what it did.
        return _page(_visit(), 409, {"": str(exc)})


def time_left(span: timedelta) -> str:
    """Say roughly how long *span* is, never more than it is."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        count = int(span.total_seconds()) // length
        if count >= 2:
            return f"{count} {unit}"
    return "less than two minutes"


def _visit() -> Visit:
    visitor = visit(RECOVER)
    if visitor.account.is_active:
        raise ShowMessage(messages.USED)
    if not visitor.is_current:
        raise ShowMessage(messages.REPLACED[visitor.standing])
    return visitor


def _keep(visitor: Visit) -> Response:
    services().throttle.spend(throttle.TOKEN, address=client())
    # Ask before: the worker may forget former addresses as soon as the account is back.
    has_moved = _moves(visitor) > 0
    with services().writing() as session:
        lifecycle.reactivate(
            session,
            visitor.account.id,
            promise=services().promise,
            by=Actor(OWNER, visitor.account.public_id),
            epoch=visitor.claims.epoch,
        )
    # Coming back is never refused for how often it happens.
    services().throttle.forgive(throttle.TOKEN, address=client())
    return say(messages.ACCOUNT_KEPT_MOVED if has_moved else messages.ACCOUNT_KEPT)


def _moves(visitor: Visit) -> int:
    with services().reading() as session:
        return pending.lately_left(session, visitor.account, grace=services().promise.grace)


def _download(visitor: Visit) -> Response:
    problems = _password_problems("download")
    if problems:
        return _page(visitor, 400, problems)
    services().attempts.confirm(visitor.account, request.form["password"], address=client())
    pieces = services().export(
        visitor.account, epoch=visitor.claims.epoch, address=client(), now=visitor.now
    )
    response = Response(pieces, mimetype=exports.CONTENT_TYPE)
    response.headers["Content-Disposition"] = exports.DISPOSITION
    return response


def _delete(visitor: Visit) -> Response:
    problems = _password_problems("delete")
    if "sure" not in request.form:
        problems["delete-sure"] = "Tick the box if you are sure."
    if problems:
        return _page(visitor, 400, problems)
    services().attempts.confirm(visitor.account, request.form["password"], address=client())
    with services().writing() as session:
        lifecycle.due_now(
            session,
            visitor.account.id,
            by=Actor(OWNER, visitor.account.public_id),
            epoch=visitor.claims.epoch,
        )
    return say(messages.DUE_NOW)


_ACTIONS: Mapping[str, Callable[[Visit], Response]] = {
    "keep": _keep,
    "download": _download,
    "delete": _delete,
}


def _password_problems(action: str) -> dict[str, str]:
    password = request.form.get("password", "")
    if not password:
        return {f"{action}-password": "Enter your password."}
    if is_too_long(password):
        return {f"{action}-password": f"Use at most {bounds.PASSWORD_CHARACTERS} characters."}
    return {}


def _page(visitor: Visit, status: int = 200, problems: Problems | None = None) -> Response:
    purge_at = visitor.account.purge_at
    assert purge_at is not None
    moves = _moves(visitor)
    text = render_template(
        "recover.html",
        purge_at=purge_at,
        time_left=time_left(purge_at - visitor.now),
        by_owner=visitor.account.deactivated_by == OWNER,
        # The link does not say to which address it was mailed: what the page says of the changes
        # is true for each of them.
        moved_at=visitor.account.email_changed_at if moves else None,
        moved_often=moves > 1,
        form_key=form_key(visitor.token),
        problems=problems or {},
        opened=request.form.get("action"),
        sure="sure" in request.form,
    )
    return Response(text, status)
