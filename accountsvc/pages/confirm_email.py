"""The page behind the link to a pending address: with the password it becomes the account's.

The link proves the mailbox, and the password whose account it is. A session alone has neither, and
so moves no account to a mailbox of its own.
"""

from __future__ import annotations

from flask import Response, render_template, request

from .. import bounds
from ..accounts import pending
from ..accounts.fields import is_too_long
from ..errors import InvalidInput, Throttled, TokenNotValid, WrongPassword
from ..web import client, services
from . import messages
from .answers import Problems, say, too_many
from .links import CONFIRM_ADDRESS, Visit, form_key, visit
from .messages import ShowMessage

_FIELD = "password"


def show() -> Response:
    """Show the form; change nothing."""
    return _page(_visit())


def act() -> Response:
    """Make the address the account's, or show the page again with what is wrong."""
    visitor = _visit()
    password = request.form.get("password", "")
    if not password:
        return _page(visitor, 400, {_FIELD: "Enter your password."})
    if is_too_long(password):
        too_long = f"Use at most {bounds.PASSWORD_CHARACTERS} characters."
        return _page(visitor, 400, {_FIELD: too_long})
    try:
        services().attempts.confirm(visitor.account, password, address=client())
        with services().writing() as session:
            account = pending.take_effect(session, visitor.claims, grace=services().promise.grace)
    except WrongPassword:
        return _page(visitor, 403, {_FIELD: "This is not the password of the account."})
    except Throttled as exc:
        return too_many(exc, lambda problems: _page(visitor, 429, problems))
    except InvalidInput as exc:
        return _page(visitor, 409, {"": " ".join(exc.fields["email"])})
    except TokenNotValid as exc:
        # Another request was faster than this form: look again, so that the page says what it did.
        return _page(_visit(), 409, {"": str(exc)})
    # Passwords are counted by the e-mail: whoever has guessed for this one before it was the
    # account's would otherwise keep its owner out.
    services().attempts.clear(account, address=client())
    return say(messages.ADDRESS_CHANGED)


def _visit() -> Visit:
    visitor = visit(CONFIRM_ADDRESS)
    account, claims = visitor.account, visitor.claims
    if visitor.is_current and pending.is_current(account, claims, now=visitor.now):
        return visitor
    moved_at = account.email_changed_at
    if account.is_active and moved_at is not None and moved_at >= claims.issued_at:
        raise ShowMessage(messages.ADDRESS_USED)
    raise ShowMessage(messages.ADDRESS_VOID[visitor.standing])


def _page(visitor: Visit, status: int = 200, problems: Problems | None = None) -> Response:
    text = render_template(
        "confirm_email.html",
        address=visitor.account.pending(visitor.now),
        form_key=form_key(visitor.token),
        problems=problems or {},
    )
    return Response(text, status)
