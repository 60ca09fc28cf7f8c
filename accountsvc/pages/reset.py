"""The page behind the mailed link that sets a new password."""

from __future__ import annotations

from flask import Response, render_template, request

from ..accounts import credentials
from ..adapters import throttle
from ..errors import InvalidInput, Throttled, TokenNotValid
from ..web import client, services
from . import messages
from .answers import Problems, say, too_many
from .links import RESET_PASSWORD, Visit, form_key, visit
from .messages import ShowMessage


def show() -> Response:
    """Show the form; change nothing."""
    return _page(_visit())


def act() -> Response:
    """Set the password, or show the page again with what is wrong."""
    visitor = _visit()
    try:
        services().throttle.spend(throttle.TOKEN, address=client())
        credentials.reset_password(
            services().database,
            services().hasher,
            visitor.claims,
            request.form.get("new_password", ""),
            promise=services().promise,
        )
        services().attempts.clear(visitor.account, address=client())
    except InvalidInput as exc:
        return _page(visitor, 400, {"new-password": " ".join(exc.fields["new_password"])})
    except Throttled as exc:
        return too_many(exc, lambda problems: _page(visitor, 429, problems))
    except TokenNotValid as exc:
        # Another request was faster than this form: look again, so that the page says what it did.
        return _page(_visit(), 409, {"": str(exc)})
    return say(messages.PASSWORD_SET[visitor.standing])


def _visit() -> Visit:
    visitor = visit(RESET_PASSWORD)
    if not credentials.reset_is_current(visitor.account, visitor.claims):
        changed_at = visitor.account.password_changed_at
        is_used = changed_at is not None and changed_at >= visitor.claims.issued_at
        raise ShowMessage(
            (messages.RESET_USED if is_used else messages.RESET_VOID)[visitor.standing]
        )
    if not visitor.is_current:
        raise ShowMessage(messages.RESET_EXPIRED[visitor.standing])
    return visitor


def _page(visitor: Visit, status: int = 200, problems: Problems | None = None) -> Response:
    text = render_template(
        "reset_password.html",
        form_key=form_key(visitor.token),
        problems=problems or {},
        standing=visitor.standing,
    )
    return Response(text, status)
