"""From a mailed link to a page: the first GET puts its token into a cookie, out of the address bar.

So it stays out of the history, of what the reader copies or shows, and of every log behind us. The
cookie is ``SameSite=Lax``: a link that is opened in a webmail is a navigation from another site, and
with ``Strict`` the browser would leave the cookie out of the redirect that follows. No request of
another site but such a GET carries it, and a GET changes nothing.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast
from urllib.parse import urlsplit

from flask import Response, redirect, request

from ..db.engine import database_now
from ..db.models import DUE, Account
from ..db.rows import find_by_public_id
from ..errors import TokenNotValid
from ..tokens import MAILED, PASSWORD_RESET, Claims, derive_key
from ..web import about, services
from . import messages
from .messages import Told


@dataclass(frozen=True)
class Link:
    """A kind of mailed link: the kind of its token, its page, and the cookie of that page."""

    kind: str
    path: str
    cookie: str


RECOVER = Link(MAILED, "/recover/", "recover")
RESET_PASSWORD = Link(PASSWORD_RESET, "/reset-password/", "reset_password")


@dataclass(frozen=True)
class Visit:
    """Somebody with a link of ours, and its account (detached) as the database knew it at ``now``."""

    token: str
    claims: Claims
    account: Account
    now: datetime
    # Whether the link has not run out and nothing that ends it has happened to the account.
    is_current: bool


def enter(link: Link, token: str) -> Response:
    """Move *token* from the address into the cookie and go on to the page; read no database.

    A token that is not ours goes no further, and leaves a cookie that is there alone. Raises Told.
    """
    claims = services().tokens.was(token, link.kind)
    if claims is None:
        raise Told(messages.INCOMPLETE)
    response = cast(Response, redirect(link.path, 303))
    # A cookie of the past would never arrive: the page could not say that the link has run out.
    is_over = claims.expires_at <= datetime.now(UTC)
    response.set_cookie(
        link.cookie,
        token,
        expires=None if is_over else claims.expires_at,
        path=link.path,
        secure=services().settings.public_url.startswith("https://"),
        httponly=True,
        samesite="Lax",
    )
    return response


def visit(link: Link) -> Visit:
    """Return who is here, by the cookie; a POST must be a form of our page.

    Raises Told if there is no link, the form is not ours, or the account is due or gone.
    """
    token = request.cookies.get(link.cookie)
    if not token:
        raise Told(messages.NO_LINK)
    made = services()
    claims = made.tokens.was(token, link.kind)
    if claims is None:
        raise Told(messages.INCOMPLETE)
    if request.method == "POST" and not (_from_here() and _has_form_key(token)):
        raise Told(messages.FOREIGN_FORM)
    with made.reading() as session:
        now = database_now(session)
        account = find_by_public_id(session, claims.public_id)
    if account is None:
        raise Told(messages.PURGED)
    about(account.public_id)
    if account.state(now) == DUE:
        raise Told(messages.OVER)
    try:
        made.tokens.read(token, link.kind, now=now)
        in_time = True
    except TokenNotValid:
        in_time = False
    return Visit(token, claims, account, now, in_time and account.epoch == claims.epoch)


def form_key(token: str) -> str:
    """Return what a form of the page must hold: known to whoever can read the page, and to us.

    It belongs to one token, so a page that was left open cannot act on the account of another link.
    """
    key = derive_key(services().settings.secret_key, "pages form")
    return hmac.digest(key, token.encode(), "sha256").hex()


def _has_form_key(token: str) -> bool:
    given = request.form.get("form_key", "")
    return hmac.compare_digest(given.encode(), form_key(token).encode())


def _from_here() -> bool:
    """Say whether the browser does not deny that the form was sent by our own page."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in {"same-origin", "none"}
    # A browser without it, or plain HTTP: a page with ``no-referrer`` sends ``null`` for its origin.
    origin = request.headers.get("Origin", "null")
    public = urlsplit(services().settings.public_url).netloc
    return origin == "null" or origin.partition("://")[2] in {request.host, public}
