"""The front page, which greets whoever opens the service's address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.support.factories import dispose, make_app

from .conftest import heading, words

JSON = {
    "service": "accountsvc",
    "docs": "/api/docs/",
    "openapi": "/api/openapi.json",
    "status": "/statusz",
}
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture
def client(sqlite_url: str, tmp_path: Path) -> Iterator[FlaskClient]:
    """A client of an application on one engine, since the page asks nothing of the database."""
    app = make_app(sqlite_url, tmp_path)
    yield app.test_client()
    dispose(app)


@pytest.mark.parametrize("accept", [FIREFOX, "text/html", "text/html, application/json;q=0.9"])
def test_a_browser_gets_a_page_that_leads_on(client: FlaskClient, accept: str) -> None:
    response = client.get("/", headers={"Accept": accept})

    assert response.status_code == 200
    assert response.mimetype == "text/html"
    assert heading(response) == "accountsvc"
    assert "Every call that it answers" in words(response)
    for place in ("docs", "openapi", "status"):
        assert f'href="{JSON[place]}"' in response.text
        assert client.get(JSON[place], buffered=True).status_code == 200


@pytest.mark.parametrize(
    "accept",
    [None, "", "*/*", "application/json", "application/json, text/html", "image/png", "nonsense"],
)
def test_a_program_gets_the_same_as_json(client: FlaskClient, accept: str | None) -> None:
    response = client.get("/", headers={} if accept is None else {"Accept": accept})

    assert response.status_code == 200
    assert response.mimetype == "application/json"
    assert response.json == JSON


@pytest.mark.parametrize("accept", [FIREFOX, "application/json"])
def test_both_forms_are_as_protected_as_any_page(client: FlaskClient, accept: str) -> None:
    response = client.get("/", headers={"Accept": accept})

    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Robots-Tag"] == "noindex"
    assert "Set-Cookie" not in response.headers
    assert response.vary.as_set() == {"accept"}


def test_it_is_for_reading_only(client: FlaskClient) -> None:
    head = client.head("/", headers={"Accept": FIREFOX})

    assert (head.status_code, head.mimetype, head.data) == (200, "text/html", b"")
    assert client.post("/").status_code == 405


def test_it_asks_nothing_of_the_database(tmp_path: Path) -> None:
    app = make_app("postgresql://nobody@127.0.0.1:1/nothing", tmp_path)

    for accept in (FIREFOX, "*/*"):
        assert app.test_client().get("/", headers={"Accept": accept}).status_code == 200
    dispose(app)
