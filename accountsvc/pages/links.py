"""From a mailed link to a page: the first GET puts its token into a cookie, out of the address bar.

So it stays out of the history, of what the reader copies or shows, and of every log behind us. The
cookie is ``SameSite=Lax``: a link that is opened in a webmail is a navigation from another site,
and with ``Strict`` the browser would leave the cookie out of the redirect that follows. No request
of another site but such a GET carries it, and a GET changes nothing.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast
from urllib.parse import urlsplit

from flask import Response, redirect, request

from ..db.engine import database_now
from ..db.models import DUE, OWNER, Account
from ..db.rows import find_by_public_id
from ..tokens import CANCEL_EMAIL, CONFIRM_EMAIL, MAILED, PASSWORD_RESET, Claims, derive_key
from ..web import about, services
from . import messages
from .messages import ShowMessage


@dataclass(frozen=True)
class Link:
    """A kind of mailed link: the kind of its token, its page, and the name of its cookie."""

    kind: str
    path: str
    cookie: str


RECOVER = Link(MAILED, "/recover/", "recover")
RESET_PASSWORD = Link(PASSWORD_RESET, "/reset-password/", "reset_password")
CONFIRM_ADDRESS = Link(CONFIRM_EMAIL, "/confirm-email/", "confirm_email")
CANCEL_ADDRESS = Link(CANCEL_EMAIL, "/cancel-email/", "cancel_email")
LINKS = (RECOVER, RESET_PASSWORD, CONFIRM_ADDRESS, CANCEL_ADDRESS)


@dataclass(frozen=True)
class Visit:
    """Somebody with a link of ours, and its account, detached, as the database knew it at ``now``.

    ``is_current``: the link has not run out, and nothing that ends it has happened to the account.
    """

    token: str
    claims: Claims
    account: Account
    now: datetime
    is_current: bool

    @property
    def standing(self) -> str:
        """Return how the account stands: who has switched it off decides who can give it back."""
        if self.account.is_active:
            return messages.IN_USE
        return messages.LEFT if self.account.deactivated_by == OWNER else messages.OFF


def enter(link: Link, token: str) -> Response:
    """Move *token* from the address into the cookie and go on to the page; read no database.

    A token that is not ours goes no further, and leaves a cookie that is there alone. Raises
    ShowMessage.
    """
    claims = services().tokens.was(token, link.kind)
    if claims is None:
        raise ShowMessage(messages.INCOMPLETE)
    response = cast(Response, redirect(link.path, 303))
    # Set no expiry that has passed: the browser would drop the cookie at once, and the page could
    # not say that the link has run out.
    is_over = claims.expires_at <= datetime.now(UTC)
    response.set_cookie(
        cookie_name(link.cookie),
        token,
        expires=None if is_over else claims.expires_at,
        path=cookie_path(link.path),
        secure=is_over_tls(),
        httponly=True,
        samesite="Lax",
    )
    return response


def visit(link: Link) -> Visit:
    """Return the visit of this request, by its cookie; a POST must be a form of our page.

    Raises ShowMessage if there is no link, the form is not ours, or the account is due or gone.
    """
    token = request.cookies.get(cookie_name(link.cookie))
    if not token:
        raise ShowMessage(messages.NO_LINK)
    claims = services().tokens.was(token, link.kind)
    if claims is None:
        raise ShowMessage(messages.INCOMPLETE)
    if request.method == "POST" and not is_form_of_ours(token):
        raise ShowMessage(messages.FOREIGN_FORM)
    with services().reading() as session:
        now = database_now(session)
        account = find_by_public_id(session, claims.public_id)
    if account is None:
        raise ShowMessage(messages.PURGED)
    about(account.public_id)
    if account.state(now) == DUE:
        raise ShowMessage(messages.OVER)
    is_current = claims.is_in_time(now=now) and account.epoch == claims.epoch
    return Visit(token, claims, account, now, is_current)


def is_over_tls() -> bool:
    """Say whether the public URL is https, so that cookies are ``Secure``."""
    return services().settings.public_url.startswith("https://")


def cookie_name(name: str) -> str:
    """Return the name of a cookie: over TLS with a prefix that browsers watch (ASVS 5.0, 3.3.1).

    ``__Host-`` keeps every other host, also a subdomain or one without TLS, from setting the cookie
    (RFC 6265bis, section 4.1.3.2): a stranger could otherwise put the link of another account under
    somebody's hands. The browser then insists on ``Path=/``, so that the cookie goes along with
    every request to this host; only its page reads it. Over plain HTTP no browser would take it.
    """
    return f"__Host-{name}" if is_over_tls() else name


def cookie_path(path: str) -> str:
    """Return the path of a cookie that the page of *path* reads: ``__Host-`` demands the root."""
    return "/" if is_over_tls() else path


def form_key(token: str) -> str:
    """Return the key that a form of the page must hold: only a reader of the page and we know it.

    It belongs to one token, so a page that was left open cannot act on the account of another link.
    """
    key = derive_key(services().settings.secret_key, "pages form")
    return hmac.digest(key, token.encode(), "sha256").hex()


def is_form_of_ours(token: str) -> bool:
    """Say whether this POST is a form of our page, which holds the key of *token*."""
    return _from_here() and _has_form_key(token)


def _has_form_key(token: str) -> bool:
    sent_key = request.form.get("form_key", "")
    return hmac.compare_digest(sent_key.encode(), form_key(token).encode())


def _from_here() -> bool:
    """Say whether the form may be one of our own page, by all that the browser says of it."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in {"same-origin", "none"}
    # An old browser, or plain HTTP, sends no Sec-Fetch-Site. Its Origin is ``null`` for our own
    # page, which has ``no-referrer``: to refuse that would refuse our own form.
    origin = request.headers.get("Origin", "null")
    public = urlsplit(services().settings.public_url).netloc
    return origin == "null" or origin.partition("://")[2] in {request.host, public}
