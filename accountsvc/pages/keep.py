"""The page on which an account is kept by its e-mail and password, without a mailed link.

It is the page for whoever signs in to an account that they have deleted, with a client that shows
why that is refused and has no way back to offer. It keeps an account and does nothing else: taking
data along, and giving up the rest of the time, need more than a password.
"""

from __future__ import annotations

import secrets

from flask import Response, render_template, request

from ..accounts import credentials, lifecycle
from ..db.audit import Actor
from ..db.models import OWNER
from ..errors import (
    AccountNotFound,
    GraceOver,
    InvalidCredentials,
    NotDeactivated,
    ReactivationForbidden,
    Throttled,
    TokenNotValid,
)
from ..web import KEEP_PATH, about, client, services
from . import messages
from .answers import Problems, say, too_many
from .links import cookie_name, cookie_path, form_key, is_form_of_ours, is_over_tls
from .messages import ShowMessage

# It holds a random text that stands for this browser: by its key, a form of another site is told
# from ours, as a link's token does it on the other pages.
_COOKIE = "keep_account"


def show() -> Response:
    """Show the form; change nothing."""
    return _page()


def act() -> Response:
    """Keep the account whose e-mail and password are right, or say what is wrong."""
    browser = request.cookies.get(cookie_name(_COOKIE))
    if browser is None or not is_form_of_ours(browser):
        raise ShowMessage(messages.FOREIGN_FORM)
    email, password = request.form.get("email", ""), request.form.get("password", "")
    problems = {
        **({} if email.strip() else {"email": "Enter your email address."}),
        **({} if password else {"password": "Enter your password."}),
    }
    if problems:
        return _page(400, problems)
    try:
        _keep(email, password)
    except InvalidCredentials:
        return _page(403, {"": "The email address or the password is not right."})
    except Throttled as exc:
        return too_many(exc, lambda problems: _page(429, problems))
    except NotDeactivated:
        return say(messages.ACTIVE)
    except ReactivationForbidden:
        return say(messages.SWITCHED_OFF)
    except GraceOver:
        return say(messages.OVER)
    except (AccountNotFound, TokenNotValid):
        # Something was faster than this form: the next try says what it did.
        return _page(409, {"": "Your account has changed at this moment. Try once more."})
    return say(messages.ACCOUNT_KEPT)


def _keep(email: str, password: str) -> None:
    with services().attempts.password(email, address=client(), failure="reactivation.failed"):
        account = credentials.deactivated_account(
            services().database, services().hasher, email=email, password=password
        )
    about(account.public_id)
    with services().writing() as session:
        lifecycle.reactivate(
            session,
            account.id,
            promise=services().promise,
            by=Actor(OWNER, account.public_id),
            epoch=account.epoch,
        )


def _page(status: int = 200, problems: Problems | None = None) -> Response:
    """Show the form with what is wrong; the e-mail stays in it, the password does not."""
    browser = request.cookies.get(cookie_name(_COOKIE)) or secrets.token_urlsafe(16)
    text = render_template(
        "keep.html",
        form_key=form_key(browser),
        email=request.form.get("email", ""),
        problems=problems or {},
    )
    response = Response(text, status)
    response.set_cookie(
        cookie_name(_COOKIE),
        browser,
        path=cookie_path(KEEP_PATH),
        secure=is_over_tls(),
        httponly=True,
        samesite="Lax",
    )
    return response
