"""The OpenAPI document is valid and knows every route."""

from __future__ import annotations

import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from openapi_spec_validator import validate

from accountsvc.api.http.errors import FRAMEWORK, TABLE
from tests.support.factories import dispose, make_app


@pytest.fixture(scope="module")
def app(shared_app: APIFlask) -> APIFlask:
    return shared_app


def test_the_document_is_valid_openapi_3_1(client: FlaskClient) -> None:
    response = client.get("/api/openapi.json")

    assert response.status_code == 200
    assert response.json is not None
    assert response.json["openapi"].startswith("3.1")
    validate(response.json)


def test_every_route_and_method_is_in_the_document(app: APIFlask, client: FlaskClient) -> None:
    document = client.get("/api/openapi.json").json
    assert document is not None

    routes = {
        (re.sub(r"<(?:[^<:]+:)?([^>]+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        # The pages are for people.
        if rule.endpoint.partition(".")[0] not in {"docs", "openapi", "pages"}
    }
    described = {
        (path, method) for path, methods in document["paths"].items() for method in methods
    }

    assert described == routes


def test_the_errors_of_a_view_come_from_the_table(client: FlaskClient) -> None:
    document = client.get("/api/openapi.json").json
    assert document is not None

    answers = document["paths"]["/api/profile/{user_id}/delete/"]["delete"]["responses"]

    assert sorted(answers) == ["200", "204", "400", "401", "403", "404", "409", "429", "500", "503"]
    codes = {row.code for row in TABLE.values()} | {"internal", *dict(FRAMEWORK.values())}
    for status, answer in answers.items():
        if status >= "400":
            assert set(answer["content"]["application/json"]["examples"]) <= codes
            assert set(answer["content"]) == {"application/json", "application/problem+json"}


def test_each_operation_shows_the_sentence_of_its_own_refusal_soon_after_a_change(
    client: FlaskClient,
) -> None:
    document = client.get("/api/openapi.json").json
    assert document is not None

    shown = {
        (path, method, name): example["value"]["error"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for name, example in (
            operation["responses"]
            .get("409", {})
            .get("content", {})
            .get("application/json", {})
            .get("examples", {})
            .items()
        )
        if example["value"]["code"] == "recent_change"
    }

    export, purge = "/api/profile/{user_id}/export/", "/api/profile/{user_id}/purge/"
    beginnings = {
        (purge, "post", "recent_change_to_the_owner"): "The email address or the password was",
        (purge, "post", "recent_change_to_the_staff"): "A legal hold was released, or the staff",
        (export, "get", "recent_change_after_a_reset"): "The password was set by a mailed link",
        (export, "post", "recent_change_after_a_reset"): "The password was set by a mailed link",
    }
    assert set(shown) == set(beginnings)
    for key, sentence in shown.items():
        assert sentence.startswith(beginnings[key])
        assert "from 7 December 2026 at 09:30 UTC on" in sentence


def test_what_asks_for_a_password_says_so_and_how_to_give_it(client: FlaskClient) -> None:
    document = client.get("/api/openapi.json").json
    assert document is not None
    paths = document["paths"]
    account = "/api/profile/{user_id}/"
    writes_of_the_staff = [
        paths[f"{account}delete/"]["delete"],
        paths[f"{account}reactivate/"]["post"],
        paths[f"{account}deletion/"]["patch"],
        paths[f"{account}purge/"]["post"],
        paths[f"{account}holds/"]["post"],
        paths[f"{account}holds/{{hold_id}}/"]["delete"],
    ]

    for operation in writes_of_the_staff:
        assert "STAFF_FRESH_MINUTES" in operation["description"], operation["summary"]
        assert '{"password": "…"}' in operation["description"], operation["summary"]
        answers = operation["responses"]["401"]["content"]["application/json"]
        assert "confirmation_required" in answers["examples"], operation["summary"]
    for method in ("put", "patch"):
        told = paths[f"{account}update/"][method]["description"]
        assert "fresh token" in told
        assert "pending_email" in told


def test_an_etag_says_what_a_proxy_makes_of_it_and_how_it_is_sent_back(
    client: FlaskClient,
) -> None:
    document = client.get("/api/openapi.json").json
    assert document is not None

    resource = document["paths"]["/api/profile/{user_id}/deletion/"]

    (parameter,) = [one for one in resource["patch"]["parameters"] if one["name"] == "If-Match"]
    for form in ("a list", "`*`", '`W/"…"`'):
        assert form in parameter["description"]
    for method in ("get", "patch"):
        header = resource[method]["responses"]["200"]["headers"]["ETag"]
        assert '`W/"…"`' in header["description"]


def test_only_views_that_want_a_token_say_so(client: FlaskClient) -> None:
    document = client.get("/api/openapi.json").json
    assert document is not None

    open_to_all = {
        path
        for path, methods in document["paths"].items()
        if not all("security" in operation for operation in methods.values())
    }

    assert open_to_all == {
        "/api/profile/reactivate/",
        "/api/password-reset/",
        "/api/password-reset/confirm/",
        "/api/response-password/",
        "/api/sign-up/",
        "/api/sign-in/",
        "/api/token/refresh/",
        "/media/avatars/{key}",
        "/api/receipts/{number}/",
        "/.well-known/accountsvc-keys.json",
        "/healthz",
        "/readyz",
    }, (
        "give each other view a guard of accountsvc/api/http/auth.py; "
        "one that is to be open to all is listed here"
    )


def test_readers_who_come_first_at_once_all_get_the_document(
    sqlite_url: str, tmp_path: Path
) -> None:
    """Six at once after a start: two who made the document together would get a 500."""
    app = make_app(sqlite_url, tmp_path)
    start = threading.Barrier(6)

    def read(_reader: int) -> tuple[int, bytes]:
        start.wait()
        response = app.test_client().get("/api/openapi.json")
        return response.status_code, response.data

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as readers:
            answers = set(readers.map(read, range(6)))
    finally:
        sys.setswitchinterval(interval)
        dispose(app)

    assert [status for status, _document in answers] == [200]
