"""The page by which the address of today calls off that another one was asked for.

The link alone is enough: what it does keeps everything as it was. It calls off whatever is pending,
also what was asked for after the link was mailed.
"""

from __future__ import annotations

from flask import Response, render_template

from ..accounts import pending
from ..adapters import throttle
from ..errors import Throttled, TokenNotValid
from ..web import client, services
from . import messages
from .answers import Problems, say, too_many
from .links import CANCEL_ADDRESS, Visit, form_key, visit
from .messages import ShowMessage


def show() -> Response:
    """Show the button; change nothing."""
    return _page(_visit())


def act() -> Response:
    """Call the change off."""
    visitor = _visit()
    try:
        services().throttle.spend(throttle.TOKEN, address=client())
        with services().writing() as session:
            pending.cancel_by_link(session, visitor.claims)
    except Throttled as exc:
        return too_many(exc, lambda problems: _page(visitor, 429, problems))
    except TokenNotValid as exc:
        # Another request was faster than this form: look again, so that the page says what it did.
        return _page(_visit(), 409, {"": str(exc)})
    # Keeping one's address is never refused for how often it happens.
    services().throttle.forgive(throttle.TOKEN, address=client())
    return say(messages.ADDRESS_KEPT)


def _visit() -> Visit:
    visitor = visit(CANCEL_ADDRESS)
    account, claims = visitor.account, visitor.claims
    if visitor.is_current and pending.may_cancel(account, claims, now=visitor.now):
        return visitor
    if pending.has_moved(account, claims):
        late_in_grace = messages.CANCEL_LATE_IN_GRACE
        raise ShowMessage(
            messages.CANCEL_LATE if account.is_active else late_in_grace[visitor.standing]
        )
    if not account.is_active:
        raise ShowMessage(messages.CANCEL_IN_GRACE[visitor.standing])
    if account.pending(visitor.now) is not None:
        raise ShowMessage(messages.CANCEL_REPLACED)
    raise ShowMessage(messages.CANCEL_VOID)


def _page(visitor: Visit, status: int = 200, problems: Problems | None = None) -> Response:
    text = render_template(
        "cancel_email.html", form_key=form_key(visitor.token), problems=problems or {}
    )
    return Response(text, status)
