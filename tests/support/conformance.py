"""Every answer that a test gets from the API is compared with the OpenAPI document.

So a status, a header or a member that the document does not know fails whatever test meets it.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

from apiflask import APIFlask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from werkzeug.test import TestResponse

HEADERS = ("Sunset", "Link", "ETag", "Location", "Retry-After", "WWW-Authenticate", "Allow")


class ConformingClient(FlaskClient):
    """Fails the test whose answer is not one that the document describes."""

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        response = super().open(*args, **kwargs)
        if response.request.method not in {"HEAD", "OPTIONS"}:
            check(self.application, response)
        return response


def check(app: Any, response: TestResponse) -> None:
    """Raise AssertionError unless *response* is described; unknown addresses are passed over."""
    method, path = response.request.method, response.request.path
    described_calls = (
        (template, operations)
        for template, pattern, operations in _operations(app)
        if pattern.fullmatch(path) and method.lower() in operations
    )
    call = next(described_calls, None)
    if call is None:
        return
    template, operations = call
    where = f"{method} {template} {response.status_code}"
    described = operations[method.lower()]["responses"].get(str(response.status_code))
    assert described is not None, f"a status that the document does not know: {where}"
    unknown = [
        name
        for name in HEADERS
        if name in response.headers and name not in described.get("headers", {})
    ]
    assert not unknown, f"headers that the document does not know: {where}: {unknown}"
    if response.status_code == 204 or response.is_streamed:
        return
    assert response.mimetype in described.get("content", {}), f"{where}: {response.mimetype}"
    if response.is_json:
        validator = _validator(
            template, method.lower(), str(response.status_code), response.mimetype
        )
        wrong = [f"{e.json_path}: {e.message}" for e in validator.iter_errors(response.json)]
        assert not wrong, f"members that the document does not know: {where}: {wrong}"


# The document is the same for all applications, since settings are not in it: made for each of
# them, it would take most of the tests' time.
_described: dict[str, Any] = {}


def _operations(app: APIFlask) -> list[tuple[str, re.Pattern[str], dict[str, Any]]]:
    if not _described:
        ours = _ours(app)
        with app.test_request_context():
            document = copy.deepcopy(app._get_spec("json"))
        for name, schema in document["components"]["schemas"].items():
            # A problem carries whatever members the error has.
            if "properties" in schema and name != "Problem":
                schema.setdefault("additionalProperties", False)
        _described["document"] = document
        _described["operations"] = [
            (template, re.compile(re.sub(r"\{[^}]+\}", "[^/]+", template)), operations)
            for template, operations in document["paths"].items()
            if template in ours
        ]
    operations: list[tuple[str, re.Pattern[str], dict[str, Any]]] = _described["operations"]
    return operations


def _ours(app: APIFlask) -> set[str]:
    """Return the addresses of the product, without those that a test has added."""
    return {
        re.sub(r"<(?:[^<:]+:)?([^>]+)>", r"{\1}", rule.rule)
        for rule in app.url_map.iter_rules()
        if app.view_functions[rule.endpoint].__module__.startswith("accountsvc.")
    }


@cache
def _validator(template: str, method: str, status: str, mimetype: str) -> Draft202012Validator:
    document = _described["document"]
    answer = document["paths"][template][method]["responses"][status]
    schema = answer["content"][mimetype]["schema"]
    return Draft202012Validator({**schema, "components": document["components"]})
