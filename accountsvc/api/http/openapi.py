"""The OpenAPI document: what APIFlask reads off the views, completed from the table of errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from apiflask import APIFlask
from apispec import APISpec
from apispec.ext.marshmallow.common import make_schema_key, resolve_schema_instance
from flask import current_app

from ... import errors as tree
from ...errors import AccountError
from . import errors
from .errors import PROBLEM, TABLE

View = TypeVar("View", bound=Callable[..., Any])

_DESCRIPTION = """\
Accounts that can be deleted: `DELETE profile/{user_id}/delete/` deactivates an account at once and
promises its purge; in the grace period the person can come back.

Times are RFC 3339 UTC with `Z`. Every answer carries `X-Request-ID`; with
`Accept: application/problem+json` every error is RFC 9457."""
_TIME = "2026-12-07T09:30:00Z"
_TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIuLi4ifQ.c2ln"
# A name means the same in every body.
_EXAMPLES: dict[str, Any] = {
    "access": _TOKEN,
    "action": "account.deactivated",
    "actor": "5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0",
    "actor_kind": "owner",
    "at": _TIME,
    "attempts": 0,
    "avatar": "/media/avatars/f0090e27ab25c12f4e0a760c800e6341.webp",
    "blocked_by": "hold",
    "can_reactivate": True,
    "code": "throttled",
    "confirm": "ann",
    "created_at": _TIME,
    "date_joined": _TIME,
    "deactivated_at": "2026-11-23T09:29:59Z",
    "deactivated_by": "owner",
    "detail": "Not found.",
    "email": "ann@example.org",
    "error": "Not authorized",
    "first_name": "Ann",
    "id": 1,
    "is_staff": False,
    "last_name": "Lee",
    "message": "password saved successfully",
    "name_pages": "Example",
    "new_password": "nine purple otters sing",
    "number_phone": "+49 30 123456",
    "output": "zX7-mQ2_vB9!kL4+tR8?",
    "password": "correct horse battery staple",
    "password_saved": "zX7-mQ2_vB9!kL4+tR8?",
    "placed_at": _TIME,
    "purge_at": _TIME,
    "reason": "Proceedings 12/2026",
    "recovery_token": _TOKEN,
    "refresh": _TOKEN,
    "released_at": None,
    "state": "deactivated",
    "subject": "5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0",
    "title": "Account not found",
    "token": _TOKEN,
    "type": "urn:problem-type:accountsvc:account_not_found",
    "updated_at": _TIME,
    "url": "https://example.org/",
    "user_id": 1,
    "username": "ann",
}
_HEADERS: dict[str, dict[str, Any]] = {
    "RequestID": {
        "description": "Names this request in the log; a client may choose it",
        "schema": {"type": "string"},
        "example": "9f86d081884c7d659a2feaa0c55ad015",
    }
}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "Deactivated": {
        "type": "object",
        "properties": {
            "error": {"type": "string"},
            "code": {"type": "string"},
            "purge_at": {"type": "string", "format": "date-time"},
            "recovery_token": {"type": "string"},
        },
        "required": ["error", "code", "purge_at", "recovery_token"],
    },
    "Error": {
        "type": "object",
        "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
        "required": ["error"],
    },
    "Detail": {
        "type": "object",
        "properties": {"detail": {"type": "string"}, "code": {"type": "string"}},
        "required": ["detail"],
    },
    "FieldErrors": {
        "type": "object",
        "additionalProperties": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "minProperties": 1,
    },
    "Problem": {
        "type": "object",
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string"},
            "errors": {"$ref": "#/components/schemas/FieldErrors"},
        },
        "required": ["type", "title", "status", "detail", "code"],
    },
}
_SHAPES: dict[Callable[..., Any], str] = {
    errors.detail: "Detail",
    errors.detail_and_code: "Detail",
    errors.fields: "FieldErrors",
    errors.avatar_field: "FieldErrors",
    errors.deactivated: "Deactivated",
}


def raises(*listed: type[AccountError]) -> Callable[[View], View]:
    """Say which errors a view may answer with; the document gets their statuses and bodies."""

    def mark(view: View) -> View:
        spec = view.__dict__.setdefault("_spec", {})
        spec["raises"] = (*spec.get("raises", ()), *listed)
        return view

    return mark


def uploads(part: str) -> Callable[[View], View]:
    """Say that a view takes its body as JSON or as a form, with a file as its *part*."""

    def mark(view: View) -> View:
        view.__dict__["_spec"]["uploads"] = part
        return view

    return mark


def refuses(*statuses: int) -> Callable[[View], View]:
    """Say what else the framework may answer instead of a view, by ``errors.FRAMEWORK``."""

    def mark(view: View) -> View:
        view.__dict__.setdefault("_spec", {})["refuses"] = statuses
        return view

    return mark


def sends(status: int, **headers: str) -> Callable[[View], View]:
    """Say which headers an answer has, by an example each; ``_`` stands for ``-``."""

    def mark(view: View) -> View:
        spec = view.__dict__.setdefault("_spec", {})
        named = {name.replace("_", "-"): example for name, example in headers.items()}
        spec.setdefault("sends", {}).setdefault(str(status), {}).update(named)
        return view

    return mark


def also_answers(status: int, description: str) -> Callable[[View], View]:
    """Say that a view answers with the body of its 200 under another status too, and what that means."""

    def mark(view: View) -> View:
        view.__dict__.setdefault("_spec", {})["also_answers"] = (str(status), description)
        return view

    return mark


def takes(name: str, example: str, description: str) -> Callable[[View], View]:
    """Say which header of the request a view looks at."""

    def mark(view: View) -> View:
        parameter = {
            "in": "header",
            "name": name,
            "description": description,
            "schema": {"type": "string"},
            "example": example,
        }
        view.__dict__.setdefault("_spec", {}).setdefault("takes", []).append(parameter)
        return view

    return mark


def init_app(app: APIFlask) -> None:
    app.description = _DESCRIPTION
    app.license = {"name": "MIT", "identifier": "MIT"}
    app.servers = [{"url": "/"}]
    app.config.update(
        AUTO_VALIDATION_ERROR_RESPONSE=False,
        AUTO_AUTH_ERROR_RESPONSE=False,
        AUTO_404_RESPONSE=False,
        AUTO_OPERATION_ID=True,
        SECURITY_SCHEMES={
            "bearerAuth": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
        },
    )
    app.spec_processor(_complete)
    _register_schemas_once(app)


def _register_schemas_once(app: APIFlask) -> None:
    """Make a schema that apispec has met inside another one keep its name when a view answers it.

    APIFlask remembers only what it registered itself and would add the schema again, with a warning.
    """
    register = app._register_schema_and_get_ref

    def once(spec: APISpec, registered: dict[int, str], schema: Any) -> dict[str, str]:
        converter = app._ma_plugin.converter
        assert converter is not None
        known = converter.refs.get(make_schema_key(resolve_schema_instance(schema)))
        if known is not None:
            return {"$ref": f"#/components/schemas/{known}"}
        return register(spec, registered, schema)

    app._register_schema_and_get_ref = once  # type: ignore[method-assign,assignment]


def _complete(spec: Any) -> Any:
    components = spec["components"]
    components.setdefault("schemas", {}).update(_SCHEMAS)
    components.setdefault("headers", {}).update(_HEADERS)
    for schema in components["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            if name in _EXAMPLES and field.get("type") != "object":
                field.setdefault("examples", [_EXAMPLES[name]])
    # A tag that several blueprints share.
    spec["tags"] = list({tag["name"]: tag for tag in spec["tags"]}.values())
    for rule in current_app.url_map.iter_rules():
        path = re.sub(r"<(?:[^<:]+:)?([^>]+)>", r"{\1}", rule.rule)
        view = current_app.view_functions[rule.endpoint]
        for method, operation in spec["paths"].get(path, {}).items():
            if method.upper() in (rule.methods or ()):
                _complete_operation(operation, view.__dict__.get("_spec", {}))
    return spec


def _complete_operation(operation: dict[str, Any], marks: dict[str, Any]) -> None:
    responses = operation["responses"]
    if "also_answers" in marks:
        status, description = marks["also_answers"]
        content = responses["200"]["content"]
        responses[status] = {"description": description, "content": content}
    if "raises" in marks:
        for error in dict.fromkeys((*marks["raises"], tree.DatabaseUnavailable)):
            _add(responses, error)
        for status in (*_refused_by_the_framework(operation), *marks.get("refuses", ())):
            code, sentence = errors.FRAMEWORK[status]
            body = {"error": sentence, "code": code}
            _put(responses, "Error", body, errors.problem_document(status, code, body))
        internal = errors.problem_document(500, "internal", errors.INTERNAL)
        _put(responses, "Error", errors.INTERNAL, internal)
    if "uploads" in marks:
        _add_upload(operation["requestBody"]["content"], marks["uploads"])
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path" and parameter["schema"] == {"type": "integer"}:
            parameter["schema"] = {"type": "integer", "format": "int64", "minimum": 0}
    operation.setdefault("parameters", []).extend(marks.get("takes", []))
    for status, headers in marks.get("sends", {}).items():
        for name, example in headers.items():
            _header(responses[status], name, example)
    for response in responses.values():
        named = response.setdefault("headers", {})
        named["X-Request-ID"] = {"$ref": "#/components/headers/RequestID"}


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


def _sample(error: type[AccountError]) -> AccountError:
    if error is tree.InvalidInput:
        return tree.InvalidInput({"email": ["Enter a valid email address."]})
    if error is tree.Throttled:
        return tree.Throttled(30)
    if error is tree.ConfirmationRequired:
        return tree.ConfirmationRequired(900)
    if error is tree.AccountDeactivated:
        return tree.AccountDeactivated(account_id=1, purge_at=datetime.fromisoformat(_TIME))
    return error()


def _add(responses: dict[str, Any], error: type[AccountError]) -> None:
    sample = _sample(error)
    row = TABLE[error]
    shape = _SHAPES.get(row.body, "Error")
    body = row.body(sample, row.code)
    if shape == "Deactivated":
        body |= {"recovery_token": _TOKEN}
    of_fields = str(sample) if shape == "FieldErrors" else None
    problem = errors.problem_document(row.status, row.code, body, of_fields)
    response = _put(responses, shape, body, problem)
    for name, value in row.headers(sample).items():
        _header(response, name, value)


def _header(response: dict[str, Any], name: str, example: str) -> None:
    header = {"schema": {"type": "string"}, "example": example}
    response.setdefault("headers", {})[name] = header


def _put(
    responses: dict[str, Any], shape: str, body: dict[str, Any], problem: dict[str, Any]
) -> dict[str, Any]:
    """Add one error, in both of its forms, to what is answered with its status."""
    code, told = problem["code"], problem["code"].replace("_", " ")
    response: dict[str, Any] = responses.setdefault(str(problem["status"]), {"description": told})
    if told not in response["description"].split("; "):
        response["description"] += f"; {told}"
    content = response.setdefault("content", {})
    plain = content.setdefault("application/json", {"schema": {"anyOf": []}, "examples": {}})
    reference = {"$ref": f"#/components/schemas/{shape}"}
    if reference not in plain["schema"]["anyOf"]:
        plain["schema"]["anyOf"].append(reference)
    plain["examples"][code] = {"value": body}
    problems = content.setdefault(
        PROBLEM, {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
    )
    problems["examples"][code] = {"value": problem}
    return response
