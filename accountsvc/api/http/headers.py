"""What every answer carries: a request id, CORS, security headers, and how long it may be kept."""

from __future__ import annotations

import re
import uuid

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
_CROSS_ORIGIN = ("/api/", "/media/")
_PREFLIGHT_SECONDS = 600

# By hand: six fixed lines, of which a resource may replace some (pages, docs), are less than the
# ``secure`` library's settings for the same, whose presets also upgrade plain HTTP in development.
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    # Whatever does not say otherwise may carry a person's data.
    "Cache-Control": "no-store",
}


def init_app(app: APIFlask, settings: Settings) -> None:
    """Register the hooks of *app*; those after a request run in the reverse order."""
    security = dict(_SECURITY)
    if settings.public_url.startswith("https://"):
        security["Strict-Transport-Security"] = "max-age=31536000"

    @app.before_request
    def begin() -> None:
        given = request.headers.get("X-Request-ID", "")
        sane = re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given)
        g.request_id = given if sane else uuid.uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.before_request
    def refuse_redirects() -> None:
        # A missing or doubled slash is another address; a redirect would lose a method or a body.
        if isinstance(request.routing_exception, RequestRedirect):
            request.routing_exception = NotFound()

    @app.before_request
    def answer_preflight() -> Response | None:
        # Also where nothing is: only so can the app read the 404 or 405 of the call itself.
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return Response(status=204)
        return None

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        for name, value in security.items():
            response.headers.setdefault(name, value)
        if request.path.startswith(_CROSS_ORIGIN):
            response.vary.add("Origin")
        if "Access-Control-Allow-Methods" in response.headers:
            # The whole list instead of the part that was asked for.
            response.headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
        if request.method == "OPTIONS" and response.status_code == 200:
            response.status_code = 204
        if response.status_code == 204:
            response.headers.pop("Content-Type", None)
        return response

    cors.init_app(
        app,
        resources=[f"^{prefix}.*" for prefix in _CROSS_ORIGIN],
        # Compiled, because flask-cors guesses whether a text is an expression, and matches prefixes.
        origins="*"
        if "*" in settings.cors_origins
        else [re.compile(re.escape(one) + r"\Z", re.IGNORECASE) for one in settings.cors_origins],
        methods=_METHODS,
        allow_headers=ALLOWED_HEADERS.split(", "),
        expose_headers=EXPOSED_HEADERS,
        max_age=_PREFLIGHT_SECONDS,
        # Tokens travel in a header; a cookie of another site never counts.
        supports_credentials=False,
        always_send=False,
        # Ours is there also when the origin is not allowed, so that a cache cannot mix them up.
        vary_header=False,
        intercept_exceptions=False,
    )
