"""The pages that a person opens in a browser: those behind mailed links, and the front page.

Server-rendered and whole without JavaScript. GET never changes anything, since mail scanners open
links too; what changes something is a form of our own page.
"""

from __future__ import annotations

from flask import Blueprint, Flask, Response

from ..web import KEEP_PATH, RECEIPTS_PATH
from . import answers, cancel_email, confirm_email, front, keep, receipts, recovery, reset
from .links import CANCEL_ADDRESS, CONFIRM_ADDRESS, RECOVER, RESET_PASSWORD, enter

_PAGES = (
    (RECOVER, recovery),
    (RESET_PASSWORD, reset),
    (CONFIRM_ADDRESS, confirm_email),
    (CANCEL_ADDRESS, cancel_email),
)

_CSP = "; ".join(
    (
        "default-src 'none'",
        "object-src 'none'",
        "style-src 'self'",
        "script-src 'self'",
        "img-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


def init_app(app: Flask) -> None:
    """Put the pages on *app*, with errors and headers of their own; files are at ``/pages/``."""
    bp = Blueprint(
        "pages",
        __name__,
        template_folder="templates",
        static_folder="static",
        static_url_path="/pages",
    )
    bp.add_url_rule("/", endpoint="front", view_func=front.show)
    for link, page in _PAGES:
        bp.add_url_rule(
            # A token here may have slashes: a link that was mangled on its way would otherwise get
            # a 404 that does not say so.
            f"{link.path}<path:token>",
            endpoint=f"{link.cookie}_link",
            view_func=enter,
            defaults={"link": link},
        )
        bp.add_url_rule(
            link.path,
            endpoint=link.cookie,
            view_func=page.show,
            # Serve the page without its last slash too: a link that was cut there would otherwise
            # get a 404 that does not say so.
            strict_slashes=False,
        )
        bp.add_url_rule(
            link.path, endpoint=f"{link.cookie}_form", view_func=page.act, methods=["POST"]
        )
    bp.add_url_rule(KEEP_PATH, endpoint="keep", view_func=keep.show, strict_slashes=False)
    bp.add_url_rule(KEEP_PATH, endpoint="keep_form", view_func=keep.act, methods=["POST"])
    bp.add_url_rule(
        RECEIPTS_PATH, endpoint="receipts", view_func=receipts.ask, strict_slashes=False
    )
    bp.add_url_rule(
        f"{RECEIPTS_PATH}<number>/",
        endpoint="receipt",
        view_func=receipts.show,
        strict_slashes=False,
    )
    answers.init_blueprint(bp)
    bp.after_request(_protect)
    app.register_blueprint(bp)


def _protect(response: Response) -> Response:
    """Add what only pages need to the headers of every answer."""
    response.headers["Content-Security-Policy"] = _CSP
    response.headers["X-Robots-Tag"] = "noindex"
    return response
