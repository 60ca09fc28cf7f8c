"""The document for people: Swagger UI from an installed package, so that no page asks another site.

Only the page's own files run. Swagger UI writes styles into elements, hence ``unsafe-inline`` for
styles; it is served nothing but our own document.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from apiflask import APIBlueprint
from flask import Response, send_from_directory
from werkzeug.exceptions import NotFound

bp = APIBlueprint("docs", __name__, enable_openapi=False)

_CACHED_SECONDS = 3600
_CSP = "; ".join(
    (
        "default-src 'none'",
        "object-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_OWN = Path(__file__).with_name("static")


@cache
def _folders() -> dict[str, Path]:
    """Return where each file of the page lies.

    The package is found without being imported: it would bring a framework of its own.
    """
    spec = find_spec("flask_openapi3_swagger")
    assert spec is not None
    assert spec.origin is not None
    swagger_ui = Path(spec.origin).parent / "templates" / "swagger"
    return {
        "docs.js": _OWN,
        "swagger-ui.css": swagger_ui / "css",
        "swagger-ui-bundle.js": swagger_ui / "js",
    }


@bp.get("/docs/")
def page() -> Response:
    """Serve the page; its script loads our own document."""
    response = send_from_directory(_OWN, "docs.html", max_age=_CACHED_SECONDS)
    response.headers["Content-Security-Policy"] = _CSP
    return response


@bp.get("/docs/<name>")
def file(name: str) -> Response:
    """Serve a file of the page, and none other of the package."""
    if name not in _folders():
        raise NotFound
    return send_from_directory(_folders()[name], name, max_age=_CACHED_SECONDS)
