"""CORS, request ids and security headers, on every answer."""

from __future__ import annotations

import re

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import NewApp
from tests.support.factories import Person, make_person, new_name, services_of

ORIGIN = "http://localhost:3000"
EXPOSED = "Sunset, Link, ETag, Location, Retry-After, Preference-Applied, X-Request-ID"


@pytest.fixture(scope="module")
def app(shared_app: APIFlask) -> APIFlask:
    return shared_app


@pytest.fixture
def ann(app: APIFlask) -> Person:
    return make_person(services_of(app), new_name("ann"))


@pytest.fixture
def bob(app: APIFlask) -> Person:
    return make_person(services_of(app), new_name("bob"))


def preflight(client: FlaskClient, path: str, origin: str = ORIGIN) -> TestResponse:
    return client.options(
        path,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "DELETE",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )


@pytest.mark.parametrize(
    "path",
    [
        "/api/profile/1/delete/",
        f"/api/profile/{'9' * 40}/delete/",
        "/api/profile/undefined/delete/",
        "/api/profile/1/delete",
        "/api/nothing/",
    ],
)
def test_a_preflight_needs_no_token_and_no_account(client: FlaskClient, path: str) -> None:
    response = preflight(client, path)

    assert (response.status_code, response.data) == (204, b"")
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert (
        response.headers["Access-Control-Allow-Headers"]
        == "authorization, content-type, prefer, if-match"
    )
    methods = response.headers["Access-Control-Allow-Methods"].split(", ")
    assert {"GET", "POST", "PUT", "PATCH", "DELETE"} <= set(methods)
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert "Origin" in response.headers["Vary"]


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3001",
        "http://localhost:3000.example.org",
        "http://localhost:30000",
        "https://localhost:3000",
        "null",
        "http://localhost:3000/",
    ],
)
def test_another_origin_gets_no_permission(client: FlaskClient, origin: str) -> None:
    for response in (
        preflight(client, "/api/profile/", origin),
        client.get("/api/profile/", headers={"Origin": origin}),
    ):
        assert not [name for name, _ in response.headers if name.startswith("Access-Control")]
        assert "Origin" in response.headers["Vary"]


def test_origins_are_read_from_the_setting(new_app: NewApp) -> None:
    client = new_app(CORS_ORIGINS="https://a.example.org,https://b.example.org").test_client()

    for origin in ("https://a.example.org", "https://b.example.org"):
        response = preflight(client, "/api/", origin)
        assert response.headers["Access-Control-Allow-Origin"] == origin
    # The dot is a dot.
    refused = preflight(client, "/api/", "https://axexample.org")
    assert "Access-Control-Allow-Origin" not in refused.headers


def test_any_origin_where_the_setting_says_so(new_app: NewApp) -> None:
    client = new_app(CORS_ORIGINS="*").test_client()

    response = preflight(client, "/api/", "https://anything.example")

    assert response.headers["Access-Control-Allow-Origin"] in {"*", "https://anything.example"}


def test_answers_and_errors_carry_cors_headers(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    origin = {"Origin": ORIGIN}
    answers = [
        client.get("/api/profile/", headers=origin | ann.auth),
        client.get("/api/profile/", headers=origin),
        client.get("/api/nothing/", headers=origin),
        client.put("/api/sign-in/", headers=origin),
        client.post("/api/sign-in/", headers=origin, data=b"{", content_type="application/json"),
        client.delete(f"/api/profile/{bob.id}/delete/", headers=origin | ann.auth),
        client.delete(f"/api/profile/{ann.id}/delete/", headers=origin | ann.auth),
        client.get("/media/avatars/nothing", headers=origin),
    ]

    assert [got.status_code for got in answers] == [200, 401, 404, 405, 400, 403, 204, 404]
    for response in answers:
        assert response.headers.getlist("Access-Control-Allow-Origin") == [ORIGIN]
        assert response.headers["Access-Control-Expose-Headers"] == EXPOSED
        assert "Origin" in response.headers["Vary"]


def test_a_fault_carries_cors_and_every_other_header_too(new_app: NewApp) -> None:
    app = new_app()

    @app.get("/api/broken/")
    def broken() -> None:
        raise RuntimeError("ann@example.org")

    response = app.test_client().get("/api/broken/", headers={"Origin": ORIGIN})

    assert (response.status_code, response.data) == (500, b'{"error": "Internal server error"}')
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["X-Request-ID"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"


def test_without_an_origin_there_are_no_cors_headers(client: FlaskClient) -> None:
    response = client.get("/api/response-password/")

    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]
    assert "Origin" in response.headers["Vary"]


@pytest.mark.parametrize("given", ["abc", "A-b_c.9", "x" * 64])
def test_a_sane_request_id_is_kept(client: FlaskClient, given: str) -> None:
    response = client.get("/healthz", headers={"X-Request-ID": given})

    assert response.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "ann@example.org", "a\tb", "é", "a/b"])
def test_any_other_request_id_is_replaced(client: FlaskClient, given: str) -> None:
    response = client.get("/healthz", headers={"X-Request-ID": given})

    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-ID"])


def test_every_answer_has_an_id_of_its_own_and_security_headers(
    client: FlaskClient, ann: Person
) -> None:
    answers = [
        client.get("/healthz"),
        client.get("/api/profile/", headers=ann.auth),
        client.get("/api/profile/"),
        client.get("/nothing"),
        client.options("/api/profile/"),
        preflight(client, "/api/profile/"),
    ]

    assert len({got.headers["X-Request-ID"] for got in answers}) == len(answers)
    for response in answers:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["X-Frame-Options"] == "DENY"
        policy = response.headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"} <= set(policy)
        assert response.headers["Cache-Control"] == "no-store"
        assert "Strict-Transport-Security" not in response.headers
        assert not response.headers.get("Content-Type", "").startswith("text/html")


@pytest.mark.parametrize(
    ("url", "subdomains", "header"),
    [
        ("https://accounts.example.org", "", "max-age=31536000"),
        ("https://accounts.example.org", "on", "max-age=31536000; includeSubDomains"),
        ("http://accounts.example.org", "on", None),
    ],
)
def test_https_is_required_where_the_service_has_it_and_of_subdomains_if_that_is_wanted(
    new_app: NewApp, url: str, subdomains: str, header: str | None
) -> None:
    client = new_app(PUBLIC_URL=url, HSTS_SUBDOMAINS=subdomains).test_client()

    assert client.get("/healthz").headers.get("Strict-Transport-Security") == header


def test_no_page_of_ours_lets_its_addresses_begin_elsewhere(client: FlaskClient) -> None:
    for path in ("/healthz", "/api/openapi.json", "/api/docs/", "/", "/recover/", "/nothing"):
        with client.get(path) as response:
            policy = response.headers["Content-Security-Policy"]
        assert {"base-uri 'none'", "object-src 'none'"} <= set(policy.split("; ")), path


def test_options_says_what_an_address_takes(client: FlaskClient) -> None:
    response = client.options("/api/profile/5/update/")

    assert (response.status_code, response.data) == (204, b"")
    assert set(response.headers["Allow"].split(", ")) == {"OPTIONS", "PATCH", "PUT"}
    assert client.options("/api/nothing/").status_code == 404


def test_head_is_get_without_a_body(client: FlaskClient, ann: Person) -> None:
    head = client.head("/api/profile/", headers=ann.auth)

    assert (head.status_code, head.data) == (200, b"")
    assert client.head("/api/profile/").status_code == 401
    assert client.head(f"/api/profile/{ann.id}/delete/", headers=ann.auth).status_code == 405


def test_the_process_lives(client: FlaskClient) -> None:
    response = client.get("/healthz")

    assert (response.status_code, response.data) == (200, b'{"status": "ok"}')
