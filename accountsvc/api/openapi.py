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

from .. import errors as tree
from ..errors import AccountError
from . import errors
from .errors import PROBLEM, TABLE

View = TypeVar("View", bound=Callable[..., Any])

_TIME = "2026-12-07T09:30:00Z"
_SCHEMAS: dict[str, dict[str, Any]] = {
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
}


def raises(*listed: type[AccountError]) -> Callable[[View], View]:
    """Say which errors a view may answer with; the document gets their statuses and bodies."""

    def mark(view: View) -> View:
        spec = view.__dict__.setdefault("_spec", {})
        spec["raises"] = (*spec.get("raises", ()), *listed)
        return view

    return mark


def accepts(*content_types: str) -> Callable[[View], View]:
    """Say which content types a view's body may have, where ``@input`` knows only one."""

    def mark(view: View) -> View:
        view.__dict__["_spec"]["content_type"] = list(content_types)
        return view

    return mark


def init_app(app: APIFlask) -> None:
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
    spec["components"].setdefault("schemas", {}).update(_SCHEMAS)
    # A tag that several blueprints share.
    spec["tags"] = list({tag["name"]: tag for tag in spec["tags"]}.values())
    for rule in current_app.url_map.iter_rules():
        path = re.sub(r"<(?:[^<:]+:)?([^>]+)>", r"{\1}", rule.rule)
        view = current_app.view_functions[rule.endpoint]
        for method, operation in spec["paths"].get(path, {}).items():
            if method.upper() not in (rule.methods or ()):
                continue
            if rule.endpoint.startswith("health."):
                continue
            listed = dict.fromkeys(
                (*view.__dict__.get("_spec", {}).get("raises", ()), tree.DatabaseUnavailable)
            )
            for error in listed:
                _add(operation["responses"], error)
            internal = errors.problem_document(500, "internal", errors.INTERNAL)
            _put(operation["responses"], "Error", errors.INTERNAL, internal)
    return spec


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
    of_fields = str(sample) if shape == "FieldErrors" else None
    problem = errors.problem_document(row.status, row.code, body, of_fields)
    response = _put(responses, shape, body, problem)
    for name, value in row.headers(sample).items():
        header = {"schema": {"type": "string"}, "example": value}
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
