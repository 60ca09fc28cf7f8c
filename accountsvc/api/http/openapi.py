"""The OpenAPI document, which APIFlask reads off the views, completed by marks and errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any

from apiflask import APIFlask
from flask import current_app

from ...errors import AccountError, DatabaseUnavailable, NotAuthenticated
from . import apiflask_patches, errors
from .describe import Marks, marks_of
from .errors import PROBLEM, TABLE
from .samples import EXAMPLES, HEADERS, MEANINGS, SCHEMAS, TOKEN, sample

_BEARER = "bearerAuth"
_OPS = "opsToken"
_DESCRIPTION = """\
Accounts that can be deleted: `DELETE profile/{user_id}/delete/` deactivates an account at once and
promises its purge; in the grace period the person can come back.

Times are RFC 3339 UTC with `Z`. Every answer carries `X-Request-ID`; with
`Accept: application/problem+json` every error is RFC 9457."""
_SHAPES: dict[Callable[..., Any], str] = {
    errors.detail: "Detail",
    errors.detail_and_code: "Detail",
    errors.fields: "FieldErrors",
    errors.avatar_field: "FieldErrors",
    errors.deactivated: "Deactivated",
}


def init_app(app: APIFlask) -> None:
    """Serve the document of *app*, completed when it is first asked for."""
    app.description = _DESCRIPTION
    app.license = {"name": "MIT", "identifier": "MIT"}
    app.servers = [{"url": "/"}]
    app.config.update(
        AUTO_VALIDATION_ERROR_RESPONSE=False,
        AUTO_AUTH_ERROR_RESPONSE=False,
        AUTO_404_RESPONSE=False,
        AUTO_OPERATION_ID=True,
        SPEC_DECORATORS=[_one_at_a_time()],
        SECURITY_SCHEMES={
            _BEARER: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            _OPS: {
                "type": "http",
                "scheme": "bearer",
                "description": "The setting OPS_TOKEN; without it only development answers.",
            },
        },
    )
    app.spec_processor(_complete)
    apiflask_patches.keep_schema_names(app)


def _one_at_a_time() -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Return the decorator that lets one request after the other make, or read, the document.

    APIFlask makes it in an object of the application when it is first asked for: two that did so
    at once would take each other's schemas for duplicates, and one of them would answer 500.
    """
    # One lock for all: APIFlask decorates its view anew for each request.
    lock = Lock()

    def decorate(view: Callable[[], Any]) -> Callable[[], Any]:
        @wraps(view)
        def alone() -> Any:
            with lock:
                return view()

        return alone

    return decorate


def _complete(spec: Any) -> Any:
    components = spec["components"]
    components.setdefault("schemas", {}).update(SCHEMAS)
    components.setdefault("headers", {}).update(HEADERS)
    for schema in components["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            if name in EXAMPLES and field.get("type") != "object":
                field.setdefault("examples", [EXAMPLES[name]])
    # Several blueprints have the same tag, and APIFlask lists it for each; OpenAPI wants it once.
    spec["tags"] = list({tag["name"]: tag for tag in spec["tags"]}.values())
    for rule in current_app.url_map.iter_rules():
        path = re.sub(r"<(?:[^<:]+:)?([^>]+)>", r"{\1}", rule.rule)
        view = current_app.view_functions[rule.endpoint]
        for method, operation in spec["paths"].get(path, {}).items():
            if method.upper() in (rule.methods or ()):
                _complete_operation(operation, marks_of(view))
    return spec


def _complete_operation(operation: dict[str, Any], marks: Marks) -> None:
    responses = operation["responses"]
    if marks.takes_token:
        operation["security"] = [{_BEARER: []}]
    if marks.takes_ops_token:
        operation["security"] = [{_OPS: []}, {}]
        _add_error(responses, sample(NotAuthenticated))
        _add_framework_error(responses, 404)
    if marks.also_answers is not None:
        status, description = marks.also_answers
        content = responses["200"]["content"]
        responses[status] = {"description": description, "content": content}
    if marks.raises:
        _add_errors(operation, marks)
    if marks.uploads is not None:
        _add_upload(operation["requestBody"]["content"], marks.uploads)
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path" and parameter["schema"] == {"type": "integer"}:
            parameter["schema"] = {"type": "integer", "format": "int64", "minimum": 0}
    operation.setdefault("parameters", []).extend(marks.takes)
    for status, headers in marks.sends.items():
        for name, example in headers.items():
            _add_header(responses[status], name, example)
    for response in responses.values():
        named = response.setdefault("headers", {})
        named["X-Request-ID"] = {"$ref": "#/components/headers/RequestID"}


def _add_errors(operation: dict[str, Any], marks: Marks) -> None:
    """Add the errors of a view, those of its framework, and the two that every view may have."""
    responses = operation["responses"]
    for error in dict.fromkeys((*marks.raises, DatabaseUnavailable)):
        if error not in marks.says:
            _add_error(responses, sample(error))
        for case, sentence in marks.says.get(error, {}).items():
            _add_error(responses, error(sentence), case)
    for status in (*_refused_by_the_framework(operation), *marks.refuses):
        _add_framework_error(responses, status)
    internal = errors.problem_document(500, "internal", errors.INTERNAL)
    _put(responses, "Error", errors.INTERNAL, internal)


def _add_upload(content: dict[str, Any], part: str) -> None:
    fields = content["application/json"]["schema"]
    file = {"type": "object", "properties": {part: {"type": "string", "format": "binary"}}}
    content["multipart/form-data"] = {"schema": {"allOf": [fields, file]}}
    content.pop("application/x-www-form-urlencoded", None)


def _refused_by_the_framework(operation: dict[str, Any]) -> list[int]:
    """Return the statuses that may come before the view: of its path, and of its body."""
    refused = []
    if any(parameter["in"] == "path" for parameter in operation.get("parameters", [])):
        refused.append(404)
    if "requestBody" in operation:
        refused += [400, 413, 415]
    return refused


def _add_framework_error(responses: dict[str, Any], status: int) -> None:
    code, sentence = errors.FRAMEWORK[status]
    body = {"error": sentence, "code": code}
    _put(responses, "Error", body, errors.problem_document(status, code, body))


def _add_error(responses: dict[str, Any], example: AccountError, case: str = "") -> None:
    """Add *example* to what is answered with its status; a *case* tells it from others of it."""
    row = TABLE[type(example)]
    shape = _SHAPES.get(row.body, "Error")
    body = row.body(example, row.code)
    if shape == "Deactivated":
        body |= {"recovery_token": TOKEN}
    of_fields = str(example) if shape == "FieldErrors" else None
    problem = errors.problem_document(row.status, row.code, body, of_fields)
    response = _put(responses, shape, body, problem, case)
    for name, value in row.headers(example).items():
        _add_header(response, name, value)


def _add_header(response: dict[str, Any], name: str, example: str) -> None:
    header = {"schema": {"type": "string"}, "example": example}
    if name in MEANINGS:
        header["description"] = MEANINGS[name]
    response.setdefault("headers", {})[name] = header


def _put(
    responses: dict[str, Any],
    shape: str,
    body: dict[str, Any],
    problem: dict[str, Any],
    case: str = "",
) -> dict[str, Any]:
    """Add one error, in both of its forms, to what is answered with its status."""
    code = problem["code"]
    name = f"{code} {case}".rstrip().replace(" ", "_")
    meaning = code.replace("_", " ")
    status = str(problem["status"])
    response: dict[str, Any] = responses.setdefault(status, {"description": meaning})
    if meaning not in response["description"].split("; "):
        response["description"] += f"; {meaning}"
    content = response.setdefault("content", {})
    plain = content.setdefault("application/json", {"schema": {"anyOf": []}, "examples": {}})
    reference = {"$ref": f"#/components/schemas/{shape}"}
    if reference not in plain["schema"]["anyOf"]:
        plain["schema"]["anyOf"].append(reference)
    plain["examples"][name] = {"value": body}
    problems = content.setdefault(
        PROBLEM, {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
    )
    problems["examples"][name] = {"value": problem}
    return response
