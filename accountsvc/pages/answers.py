"""Answers that are pages, also for what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from flask import Blueprint, Response, render_template, request
from werkzeug.exceptions import HTTPException

from ..db.outages import is_passing_fault
from ..errors import Busy, Throttled, Unavailable
from ..logs import describe
from ..web import KEEP_PATH, RECEIPTS_PATH, RETRY_AFTER, refused
from .links import LINKS
from .messages import BROKEN, NOT_UNDERSTOOD, UNAVAILABLE, Message, ShowMessage

log = structlog.get_logger(__name__)

# The problems of a form are sentences by the id of their field, or by "" for the whole form:
# without the id, a page could not show a sentence beside its field.
Problems = Mapping[str, str]


def say(message: Message) -> Response:
    """Answer with the page of *message*; if a part does not answer, with ``Retry-After`` too."""
    response = Response(render_template("message.html", message=message), message.status)
    if message.status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


def too_many(exc: Throttled, page: Callable[[Problems], Response]) -> Response:
    """Return the *page* that says how long to wait."""
    refused(exc)
    minutes = math.ceil(exc.retry_after / 60)
    response = page(
        {"": f"Too many tries. Wait {minutes} minute{'s' * (minutes > 1)}, then try again."}
    )
    response.headers["Retry-After"] = str(exc.retry_after)
    return response


def init_blueprint(bp: Blueprint) -> None:
    """Make every error of *bp* a page; none shows the text of an exception."""

    @bp.errorhandler(ShowMessage)
    def show_message(exc: ShowMessage) -> Response:
        return say(exc.message)

    @bp.errorhandler(HTTPException)
    def refuse(exc: HTTPException) -> Response:
        if exc.code is None or exc.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return fail(exc)
        response = say(NOT_UNDERSTOOD)
        response.status_code = exc.code
        return response

    @bp.errorhandler(Exception)
    def fail(exc: Exception) -> Response:
        if isinstance(exc, Busy):
            refused(exc)
            return say(UNAVAILABLE)
        if isinstance(exc, Unavailable) or is_passing_fault(exc):
            log.warning("a part does not answer", **describe(exc))
            return say(UNAVAILABLE)
        log.error("a page failed", **describe(exc))
        return say(BROKEN)

    @bp.context_processor
    def page_of_link() -> dict[str, Any]:
        paths = (*(link.path for link in LINKS), KEEP_PATH, RECEIPTS_PATH)
        return {"here": next((path for path in paths if request.path.startswith(path)), None)}
