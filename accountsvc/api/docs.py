"""The document for people: Swagger UI from an installed package, so that no page asks another site.

Only the page's own files run. Swagger UI writes styles into elements, hence ``unsafe-inline`` for
styles; it is served nothing but our own document.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from apiflask import APIBlueprint
from flask import Response, send_from_directory
from werkzeug.exceptions import NotFound

docs = APIBlueprint("docs", __name__, enable_openapi=False)

_KEPT_SECONDS = 3600
_CSP = "; ".join(
    (
        "default-src 'none'",
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
_FILES = {
    "docs.js": _OWN,
    "swagger-ui.css": Path("templates/swagger/css"),
    "swagger-ui-bundle.js": Path("templates/swagger/js"),
}


def _swagger_ui() -> Path:
    """Return where the package lies, without importing it: it would bring a framework of its own."""
    spec = find_spec("flask_openapi3_swagger")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@docs.get("/docs/")
def page() -> Response:
    response = send_from_directory(_OWN, "docs.html", max_age=_KEPT_SECONDS)
    response.headers["Content-Security-Policy"] = _CSP
    return response


@docs.get("/docs/<name>")
def file(name: str) -> Response:
    if name not in _FILES:
        raise NotFound
    return send_from_directory(_swagger_ui() / _FILES[name], name, max_age=_KEPT_SECONDS)
