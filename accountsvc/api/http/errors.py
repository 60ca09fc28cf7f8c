"""The form of errors on the wire: the one table of the exception tree, and the answers by it.

Sections 1 and 3 of the contract are literal; everything else is ``{"error": …, "code": …}``, fields
are ``{"<field>": ["…"]}``. A client that asks for ``application/problem+json`` gets RFC 9457
instead. No answer holds the text of an exception that is not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from apiflask import APIFlask, HTTPError
from flask import Response, request
from werkzeug.exceptions import HTTPException

from ... import errors as tree
from ...db.outages import is_passing_fault
from ...db.text import rfc3339
from ...errors import AccountError
from ...logs import describe
from ...web import RETRY_AFTER, refused
from . import apiflask_patches
from .wire import json_response

log = structlog.get_logger(__name__)

Body = dict[str, Any]

PROBLEM = "application/problem+json"
_PROBLEM_TYPE = "urn:problem-type:accountsvc:"


# Bodies and headers of the table, each made of an error ------------------------------------------


def sentence_and_code(exc: AccountError, code: str) -> Body:
    return {"error": str(exc), "code": code}


def sentence(exc: AccountError, _code: str) -> Body:
    return {"error": str(exc)}


def detail(exc: AccountError, _code: str) -> Body:
    return {"detail": str(exc)}


def detail_and_code(exc: AccountError, code: str) -> Body:
    return {"detail": str(exc), "code": code}


def fields(exc: tree.InvalidInput, _code: str) -> Body:
    return dict(exc.fields)


def avatar_field(exc: AccountError, _code: str) -> Body:
    return {"avatar": [str(exc)]}


def deactivated(exc: tree.AccountDeactivated, code: str) -> Body:
    return {"error": str(exc), "code": code, "purge_at": rfc3339(exc.purge_at)}


def unavailable(exc: AccountError, code: str) -> Body:
    # Leave out the error's own text: it may name what the store lacks, which is for the operator
    # only, in the log.
    return {"error": exc.message, "code": code}


def _no_headers(_exc: AccountError) -> Mapping[str, str]:
    return {}


def _bearer(_exc: AccountError) -> Mapping[str, str]:
    return {"WWW-Authenticate": "Bearer"}


def _invalid_token(_exc: AccountError) -> Mapping[str, str]:
    return {"WWW-Authenticate": 'Bearer error="invalid_token"'}


def _step_up(exc: tree.ConfirmationRequired) -> Mapping[str, str]:
    # A max_age says that a younger token would do (RFC 9470). It is left out where only the
    # password helps, or a client would fetch one fresh token after the other.
    max_age = "" if exc.max_age is None else f", max_age={exc.max_age}"
    return {"WWW-Authenticate": f'Bearer error="insufficient_user_authentication"{max_age}'}


def _throttled(exc: tree.Throttled) -> Mapping[str, str]:
    return {"Retry-After": str(exc.retry_after)}


def _retry(_exc: AccountError) -> Mapping[str, str]:
    return {"Retry-After": str(RETRY_AFTER)}


@dataclass(frozen=True)
class Row:
    """One line of the table; ``code`` is on the wire if ``body`` says so, and in every problem."""

    status: int
    code: str
    body: Callable[[Any, str], Body] = sentence_and_code
    headers: Callable[[Any], Mapping[str, str]] = _no_headers


TABLE: Mapping[type[AccountError], Row] = {
    tree.InvalidInput: Row(400, "invalid_input", fields),
    tree.InvalidImage: Row(400, "invalid_image", avatar_field),
    tree.ImageTooLarge: Row(413, "image_too_large"),
    tree.NotAuthenticated: Row(401, "not_authenticated", detail, _bearer),
    tree.TokenNotValid: Row(401, "token_not_valid", detail_and_code, _invalid_token),
    tree.InvalidCredentials: Row(401, "invalid_credentials", sentence, _bearer),
    tree.WrongPassword: Row(403, "invalid_password"),
    tree.ConfirmationRequired: Row(401, "confirmation_required", detail_and_code, _step_up),
    tree.NotAuthorized: Row(403, "not_authorized", sentence),
    tree.AccountNotFound: Row(404, "account_not_found", detail),
    tree.PasswordNotFound: Row(404, "password_not_found", sentence),
    tree.HoldNotFound: Row(404, "hold_not_found"),
    tree.ReceiptNotFound: Row(404, "receipt_not_found"),
    tree.VaultFull: Row(409, "vault_full"),
    tree.AccountDeactivated: Row(403, "account_deactivated", deactivated),
    tree.ReactivationForbidden: Row(403, "reactivation_forbidden"),
    tree.LastStaff: Row(409, "last_staff"),
    tree.NotDeactivated: Row(409, "not_deactivated"),
    tree.GraceOver: Row(409, "grace_over"),
    tree.LegalHold: Row(409, "legal_hold"),
    tree.Unexplained: Row(409, "unexplained"),
    tree.RecentChange: Row(409, "recent_change"),
    tree.VersionMismatch: Row(412, "version_mismatch"),
    tree.VersionRequired: Row(428, "version_required"),
    tree.InvalidSchedule: Row(422, "invalid_schedule"),
    tree.Throttled: Row(429, "throttled", headers=_throttled),
    tree.DatabaseUnavailable: Row(503, "unavailable", unavailable, _retry),
    tree.StoreUnavailable: Row(503, "unavailable", unavailable, _retry),
    tree.MailUnavailable: Row(503, "unavailable", unavailable, _retry),
    tree.VaultKeyMissing: Row(503, "unavailable", unavailable, _retry),
    tree.Busy: Row(503, "busy", headers=_retry),
}

# The framework raises errors of these statuses: each gets a code, and a sentence that says what to
# do, which the framework's own does not.
FRAMEWORK: Mapping[int, tuple[str, str]] = {
    400: ("bad_request", "The request could not be understood. Check its form and send it again."),
    404: ("not_found", "There is nothing at this address. Paths under /api/ end with a slash."),
    405: ("method_not_allowed", "This address does not take this method. See the Allow header."),
    406: ("not_acceptable", "Accept application/json or application/problem+json."),
    408: ("timeout", "The request did not arrive in time. Send it again."),
    413: ("too_large", "The body is too large. Send at most 64 KiB, or an image of at most 5 MiB."),
    415: ("unsupported_media_type", "Send JSON, with Content-Type: application/json."),
    429: ("throttled", "Too many requests. Try again later."),
    431: ("head_too_large", "The head of the request is too large. Send fewer, shorter headers."),
}
# The answer keeps these headers of such an error. Its Content-Type would be that of a page.
_FRAMEWORK_HEADERS = frozenset({"Allow", "Retry-After", "WWW-Authenticate"})

# Any other fault has this body, of the contract: the exception's own text may hold somebody's data.
INTERNAL: Body = {"error": "Internal server error"}


def row_of(exc: AccountError) -> Row | None:
    """Return the line of *exc*'s class or of its nearest listed ancestor; None if there is none."""
    return next((TABLE[cls] for cls in type(exc).__mro__ if cls in TABLE), None)


def answer(exc: AccountError, **more: Any) -> Response:
    """Return the answer for *exc* by the table, with *more* members in its body."""
    row = row_of(exc)
    if row is None:
        return unexpected(exc)
    if isinstance(exc, (tree.Throttled, tree.Busy)):
        refused(exc)
    # Who meets a full queue is in the access log already: a flood would fill the log twice.
    if row.status == HTTPStatus.SERVICE_UNAVAILABLE and not isinstance(exc, tree.Busy):
        log.warning("a part does not answer", **describe(exc))
    body = {**row.body(exc, row.code), **more}
    of_fields = str(exc) if row.body in {fields, avatar_field} else None
    return _respond(row.status, row.code, body, row.headers(exc), of_fields=of_fields)


def init_app(app: APIFlask) -> None:
    """Make every error of *app* leave through this module, and what the server could not read."""
    app.before_request(_refuse_unreadable)
    app.error_processor(_from_apiflask)
    # Register it after ``error_processor``, which has a handler of its own for this class: that one
    # would answer with the name of the status for a sentence, and without the Allow header.
    app.register_error_handler(HTTPException, _from_framework)
    app.register_error_handler(AccountError, answer)
    app.register_error_handler(Exception, unexpected)
    apiflask_patches.log_faults_by(app, _log_fault)


def _refuse_unreadable() -> None:
    """Refuse what the server could not read, with the headers that every answer has."""
    status = request.environ.get(tree.UNREADABLE)
    if status is not None:
        raise HTTPError(status)


def _log_fault(exc_info: Any) -> None:
    log.error("a request failed outside its view", exc_info=exc_info)


def unexpected(exc: Exception) -> Response:
    """Answer 503 for a passing fault of the database, wherever it came up, and 500 for the rest."""
    if is_passing_fault(exc):
        fault = tree.DatabaseUnavailable()
        fault.__cause__ = exc
        return answer(fault)
    log.error("a request failed", **describe(exc))
    return _respond(500, "internal", INTERNAL)


def _from_apiflask(error: HTTPError) -> Response:
    """Answer a refused body or query: by its fields, which APIFlask nests, or as a whole."""
    refused: dict[str, list[str]] = {}
    for location, messages in error.detail.items():
        by_field = messages if isinstance(messages, dict) else {location: messages}
        refused.update({str(name): list(sentences) for name, sentences in by_field.items()})
    if refused:
        return answer(tree.InvalidInput(refused))
    # APIFlask calls the status by its name where nothing was said.
    named = HTTPStatus(error.status_code).phrase == error.message
    return _plain(error.status_code, None if named else error.message, {})


def _from_framework(exc: HTTPException) -> Response:
    if exc.code is None or exc.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return unexpected(exc)
    headers = {name: value for name, value in exc.get_headers() if name in _FRAMEWORK_HEADERS}
    return _plain(exc.code, None, headers)


def _plain(status: int, text: str | None, headers: dict[str, str]) -> Response:
    code, usual = FRAMEWORK.get(status, ("error", HTTPStatus(status).phrase))
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        headers.setdefault("Retry-After", str(RETRY_AFTER))
    return _respond(status, code, {"error": text or usual, "code": code}, headers)


def _respond(
    status: int,
    code: str,
    body: Body,
    headers: Mapping[str, str] | None = None,
    *,
    of_fields: str | None = None,
) -> Response:
    wanted = _wants_problem()
    response = json_response(problem_document(status, code, body, of_fields) if wanted else body)
    if wanted:
        response.mimetype = PROBLEM
    response.status_code = status
    response.headers.update(headers or {})
    response.vary.add("Accept")
    return response


def problem_document(status: int, code: str, body: Body, of_fields: str | None = None) -> Body:
    """Return RFC 9457's form of an error *body*; its other members stay.

    If *body* is one of fields, *of_fields* is the sentence about them, and they go into ``errors``.
    """
    if of_fields is not None:
        body = {"error": of_fields, "errors": body}
    document = {
        "type": f"{_PROBLEM_TYPE}{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "detail": body.get("error") or body.get("detail"),
        "code": code,
    }
    return document | {name: body[name] for name in body if name not in {*document, "error"}}


def _wants_problem() -> bool:
    """Say whether the client names RFC 9457's type and likes it no less than plain JSON."""
    accepted = request.accept_mimetypes
    named = any(value.partition(";")[0].lower() == PROBLEM for value, _ in accepted)
    return named and accepted[PROBLEM] > 0 and accepted[PROBLEM] >= accepted["application/json"]
