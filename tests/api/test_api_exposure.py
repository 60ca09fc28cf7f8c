"""Nothing is served that was not meant to be, and each answer says exactly what it is."""

from __future__ import annotations

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from tests.conftest import NewApp
from tests.support.factories import Person, make_person, new_name, services_of


@pytest.fixture(scope="module")
def app(shared_app: APIFlask) -> APIFlask:
    return shared_app


@pytest.fixture
def ann(app: APIFlask) -> Person:
    return make_person(services_of(app), new_name("ann"))


@pytest.mark.parametrize("folder", ["/pages/", "/api/docs/static/", "/media/", "/media/avatars/"])
def test_no_folder_lists_its_files(client: FlaskClient, folder: str) -> None:
    response = client.get(folder)

    assert (response.status_code, response.is_json) == (404, True)


@pytest.mark.parametrize(
    "path",
    [
        *("/.git/config", "/.env", "/pages/../pages/__init__.py", "/pages/%2e%2e/__init__.py"),
        *("/api/docs/../docs.py", "/api/docs/docs.html", "/static/", "/migrations/"),
    ],
)
def test_no_file_is_served_but_those_of_the_pages(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/", "/api/profile/", "/healthz", "/pages/style.css"])
@pytest.mark.parametrize("method", ["TRACE", "TRACK", "CONNECT"])
def test_a_method_that_gives_a_request_back_is_refused(
    client: FlaskClient, ann: Person, method: str, path: str
) -> None:
    response = client.open(path, method=method, headers=ann.auth)

    assert response.status_code == 405
    assert ann.token not in response.text


@pytest.mark.parametrize("value", ["1", "true"])
def test_no_variable_of_the_framework_switches_debugging_on(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FLASK_DEBUG", value)

    app = new_app()

    assert app.debug is False


def test_every_answer_with_text_says_in_which_encoding(client: FlaskClient, ann: Person) -> None:
    """JSON needs no charset: it is UTF-8 by its definition (RFC 8259, section 8.1)."""
    html, text = "text/html; charset=utf-8", "text/plain; version=1.0.0; charset=utf-8"
    wanted = {
        "/recover/": html,
        "/api/docs/": html,
        "/api/docs/docs.js": "text/javascript; charset=utf-8",
        "/api/docs/swagger-ui.css": "text/css; charset=utf-8",
        "/pages/local-time.js": "text/javascript; charset=utf-8",
        "/pages/style.css": "text/css; charset=utf-8",
        "/pages/icon.svg": "image/svg+xml; charset=utf-8",
        "/metrics": text,
        "/healthz": "application/json",
        "/api/profile/": "application/json",
        "/api/nothing/": "application/json",
        f"/api/profile/{ann.id}/export/": "application/zip",
        f"/media/avatars/{ann.avatar}": "image/webp",
    }

    # Buffered, or the files that are served would stay open.
    answers = {path: client.get(path, headers=ann.auth, buffered=True) for path in wanted}

    assert {path: got.headers["Content-Type"] for path, got in answers.items()} == wanted


def test_what_is_downloaded_has_a_name_of_ours(client: FlaskClient, ann: Person) -> None:
    """ASVS 5.0, 5.4.1: whatever name a file was sent with, or an address ends in."""
    files = {
        f"/media/avatars/{ann.avatar}?filename=x.html": 'inline; filename="avatar.webp"',
        f"/api/profile/{ann.id}/export/?filename=x": 'attachment; filename="account-data.zip"',
    }

    said = {path: client.get(path, headers=ann.auth, buffered=True) for path in files}

    assert {path: got.headers["Content-Disposition"] for path, got in said.items()} == files


@pytest.mark.parametrize(
    "query",
    [
        "response-password/?length=10&length=20",
        "view-all-saved-passwords/?limit=1&limit=2",
        "view-all-saved-passwords/?cursor=0&limit=1&cursor=5",
        "response-password/?other=1&other=1",
    ],
)
def test_a_parameter_of_the_address_comes_once(
    client: FlaskClient, ann: Person, query: str
) -> None:
    """Of two, a proxy may look at one and we at the other."""
    response = client.get(f"/api/{query}", headers=ann.auth)

    assert response.status_code == 400
    assert list(response.json.values()) == [["Send this field once."]]


def test_a_parameter_counts_only_where_it_belongs(client: FlaskClient, ann: Person) -> None:
    """What a body, a query and a header say is never mixed."""
    entry = {"password_saved": "from the body"}
    client.post("/api/save-passwords/?password_saved=x", headers=ann.auth, json=entry)
    listed = client.get("/api/view-all-saved-passwords/", headers=ann.auth)
    refused = client.post("/api/save-passwords/?password_saved=x", headers=ann.auth, json={})

    saved = [found["password_saved"] for found in listed.json["passwords"]]
    assert "from the body" in saved
    assert "x" not in saved
    assert refused.status_code == 400
