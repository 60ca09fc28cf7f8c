"""The headers of every answer: a request id, CORS, security, and how long it may be kept."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from functools import partial

import structlog
from apiflask import APIFlask
from flask import Response, g, request
from werkzeug.exceptions import NotFound
from werkzeug.routing import RequestRedirect

from ...config import Settings
from ...web import cors

ALLOWED_HEADERS = "authorization, content-type, prefer, if-match"
EXPOSED_HEADERS = "Sunset, Link, ETag, Location, Retry-After, Preference-Applied, X-Request-ID"
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_CROSS_ORIGIN = ("/api/", "/media/", "/.well-known/")
_PREFLIGHT_SECONDS = 600

# These headers are set by hand: they are a few fixed lines, of which pages and docs replace some.
# The presets of the ``secure`` library would also upgrade plain HTTP in development.
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    # ``object-src`` would follow from ``default-src``; an auditor looks for its name (ASVS 5.0,
    # 3.4.3).
    "Content-Security-Policy": "default-src 'none'; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    # An answer that does not say otherwise may carry a person's data, which a proxy would keep.
    "Cache-Control": "no-store",
}


def init_app(app: APIFlask, settings: Settings) -> None:
    """Register the hooks of *app*; those after a request run in the reverse order."""
    security = dict(_SECURITY)
    if settings.public_url.startswith("https://"):
        # A year (RFC 6797; ASVS 5.0, 3.4.1).
        subdomains = "; includeSubDomains" if settings.hsts_subdomains else ""
        security["Strict-Transport-Security"] = f"max-age=31536000{subdomains}"
    app.before_request(_begin)
    app.before_request(_refuse_redirects)
    app.before_request(_answer_preflight)
    app.after_request(partial(_finish, security))
    _allow_origins(app, settings)


def _begin() -> None:
    given = request.headers.get("X-Request-ID", "")
    is_plain = re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given)
    g.request_id = given if is_plain else uuid.uuid4().hex
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


def _refuse_redirects() -> None:
    # A missing or doubled slash is another address: a client that follows a redirect may lose the
    # method, the body or the token.
    if isinstance(request.routing_exception, RequestRedirect):
        request.routing_exception = NotFound()


def _answer_preflight() -> Response | None:
    # Answer also for an address where nothing is: without it a browser would hide the 404 or the
    # 405 of the call itself from the web app.
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        return Response(status=204)
    return None


def _finish(security: Mapping[str, str], response: Response) -> Response:
    response.headers["X-Request-ID"] = g.request_id
    for name, value in security.items():
        response.headers.setdefault(name, value)
    if request.path.startswith(_CROSS_ORIGIN):
        response.vary.add("Origin")
    if "Access-Control-Allow-Methods" in response.headers:
        # Name the whole list: flask-cors names the part that was asked for, so a cache would keep
        # an answer that is too narrow for the next call.
        response.headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
    if request.method == "OPTIONS" and response.status_code == 200:
        response.status_code = 204
    if response.status_code == 204:
        response.headers.pop("Content-Type", None)
    return response


def _allow_origins(app: APIFlask, settings: Settings) -> None:
    # Compile the origins here: flask-cors guesses whether a text is an expression, and would match
    # a prefix, so `https://example.org.evil.test` would be allowed too.
    origins = [
        re.compile(re.escape(origin) + r"\Z", re.IGNORECASE) for origin in settings.cors_origins
    ]
    cors.init_app(
        app,
        resources=[f"^{re.escape(prefix)}.*" for prefix in _CROSS_ORIGIN],
        origins="*" if "*" in settings.cors_origins else origins,
        methods=_METHODS,
        allow_headers=ALLOWED_HEADERS.split(", "),
        expose_headers=EXPOSED_HEADERS,
        max_age=_PREFLIGHT_SECONDS,
        # Tokens travel in a header: with credentials, another site could use the cookies of a page.
        supports_credentials=False,
        always_send=False,
        # ``_finish`` adds it also when the origin is not allowed: flask-cors does not, so a cache
        # could give that answer to an origin that is.
        vary_header=False,
        intercept_exceptions=False,
    )
