"""CONTRACT section 3: saved passwords and the generator."""

from __future__ import annotations

import os
import string
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc import generator
from tests.api.answers import NO_TOKEN
from tests.conftest import NewApp
from tests.support.factories import Person, make_person, services_of
from tests.support.state import belongings, everything

PASSWORD_NOT_FOUND = b'{"error": "Password not found."}'
ALL = "/api/view-all-saved-passwords/"
NASTY = ['"; DROP TABLE accounts;--', "=1+1", "\n\t\r", "🔑 пароль", "\x7f\u202e", " "]


@pytest.fixture(autouse=True)
def bystander(app: APIFlask, bob: Person) -> Iterator[Person]:
    before = belongings(services_of(app), bob)
    yield bob
    assert belongings(services_of(app), bob) == before


def test_a_password_is_saved(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    body = {
        "name_pages": "Site",
        "url": "https://example.org",
        "password_saved": "s3cret",
        "user": bystander.id,
    }

    response = client.post("/api/save-passwords/", headers=ann.auth, json=body)

    assert response.json is not None
    number = response.json["id"]
    assert response.status_code == 201
    assert response.data == f'{{"message": "password saved successfully", "id": {number}}}'.encode()
    shown = client.get(ALL, headers=ann.auth).json
    assert shown is not None
    (entry,) = [one for one in shown["passwords"] if one["id"] == number]
    assert {name: entry[name] for name in body} == {**body, "user": ann.id}


@pytest.mark.parametrize("body", [{}, {"name_pages": "", "url": ""}])
def test_name_and_url_may_be_empty(client: FlaskClient, ann: Person, body: dict[str, str]) -> None:
    saved = client.post(
        "/api/save-passwords/", headers=ann.auth, json={**body, "password_saved": "x"}
    )

    shown = client.get(ALL, headers=ann.auth).json
    assert saved.status_code == 201
    assert shown is not None
    assert (shown["passwords"][-1]["name_pages"], shown["passwords"][-1]["url"]) == ("", "")


def test_any_text_comes_back_as_it_was_saved(client: FlaskClient, ann: Person) -> None:
    for text in NASTY:
        body = {"name_pages": text, "url": text, "password_saved": text}
        client.post("/api/save-passwords/", headers=ann.auth, json=body)

    shown = client.get(ALL, headers=ann.auth).json

    assert shown is not None
    for text, entry in zip(NASTY, shown["passwords"][-len(NASTY) :], strict=True):
        assert entry["name_pages"] == entry["url"] == entry["password_saved"] == text


def test_what_cannot_be_saved_is_named_and_changes_nothing(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = everything(services_of(app))
    bad: list[dict[str, Any]] = [
        {},
        {"password_saved": ""},
        {"password_saved": None},
        {"password_saved": 5},
        {"password_saved": "x" * 4097},
        {"password_saved": "a\0"},
        {"password_saved": "\ud800"},
        {"password_saved": "x", "url": None},
        {"password_saved": "x", "url": "x" * 2049},
        {"password_saved": "x", "name_pages": "x" * 256},
    ]

    for body in bad:
        response = client.post("/api/save-passwords/", headers=ann.auth, json=body)

        assert (body, response.status_code) == (body, 400)
        assert response.json is not None
        assert set(response.json) <= {"password_saved", "url", "name_pages"}
    assert everything(services_of(app)) == before


def test_all_passwords_are_shown_with_texts_and_never_null(
    client: FlaskClient, ann: Person
) -> None:
    response = client.get(ALL, headers=ann.auth, content_type="application/json")

    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json is not None
    assert list(response.json) == ["message", "passwords"]
    assert [one["id"] for one in response.json["passwords"]] == list(ann.passwords)
    for number, one in enumerate(response.json["passwords"]):
        assert list(one) == [
            "id", "name_pages", "url", "password_saved", "user", "created_at", "updated_at",
        ]  # fmt: skip
        assert one["password_saved"] == f"ann {number}"
        assert one["user"] == ann.id
        assert one["created_at"].endswith("Z")


def test_pages_follow_each_other_by_their_links(client: FlaskClient, ann: Person) -> None:
    seen, path = [], f"{ALL}?limit=2"
    for _ in range(2):
        response = client.get(path, headers=ann.auth)
        assert response.json is not None
        seen.append([one["id"] for one in response.json["passwords"]])
        link = response.headers.get("Link", "")
        path = link.partition(">")[0].removeprefix("<")

    assert seen == [list(ann.passwords[:2]), list(ann.passwords[2:])]
    assert link == ""


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1001", "cursor=-1", "cursor=1e9"])
def test_a_bad_page_is_a_bad_field(client: FlaskClient, ann: Person, query: str) -> None:
    response = client.get(f"{ALL}?{query}", headers=ann.auth)

    assert response.status_code == 400
    assert response.json is not None
    assert list(response.json) == [query.partition("=")[0]]


def test_the_given_fields_of_an_entry_change(client: FlaskClient, ann: Person) -> None:
    number = ann.passwords[1]

    response = client.put(
        f"{ALL}{number}/update/", headers=ann.auth, json={"password_saved": "new", "user": 5}
    )

    assert response.status_code == 200
    assert response.json is not None
    assert response.json["password_saved"] == "new"
    assert response.json["name_pages"] == "site 1"
    shown = client.get(ALL, headers=ann.auth).json
    assert shown is not None
    assert [one["password_saved"] for one in shown["passwords"]] == ["ann 0", "new", "ann 2"]


def test_an_entry_is_deleted(client: FlaskClient, ann: Person) -> None:
    response = client.delete(
        f"{ALL}{ann.passwords[0]}/delete/",
        headers=ann.auth,
        data=b"null",
        content_type="application/json",
    )

    assert (response.status_code, response.data) == (204, b"")
    assert "Content-Length" not in response.headers
    assert "Content-Type" not in response.headers
    shown = client.get(ALL, headers=ann.auth).json
    assert shown is not None
    assert [one["id"] for one in shown["passwords"]] == list(ann.passwords[1:])


def test_another_persons_entry_is_not_found(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person, bystander: Person
) -> None:
    before = everything(services_of(app))
    numbers = [*bystander.passwords, 4711, 0, 2**63, 10**5000]

    for who in (ann, sue):
        for number in numbers:
            changed = client.put(
                f"{ALL}{_text(number)}/update/", headers=who.auth, json={"password_saved": "x"}
            )
            deleted = client.delete(f"{ALL}{_text(number)}/delete/", headers=who.auth)

            assert (changed.status_code, changed.data) == (404, PASSWORD_NOT_FOUND)
            assert (deleted.status_code, deleted.data) == (404, PASSWORD_NOT_FOUND)
    assert everything(services_of(app)) == before


def _text(number: int) -> str:
    return "1" + "0" * 5000 if number > 2**64 else str(number)


def test_without_a_token_there_is_no_vault(client: FlaskClient, ann: Person) -> None:
    number = ann.passwords[0]

    answers = [
        client.post("/api/save-passwords/", data=b"\xff"),
        client.get(f"{ALL}?limit=x"),
        client.put(f"{ALL}{number}/update/", json={"password_saved": None}),
        client.delete(f"{ALL}{number}/delete/"),
    ]

    assert [(got.status_code, got.data) for got in answers] == [(401, NO_TOKEN)] * 4


# The generator


def test_a_password_is_generated_for_anybody(client: FlaskClient) -> None:
    response = client.get("/api/response-password/", content_type="application/json")

    assert response.status_code == 200
    assert response.json is not None
    assert list(response.json) == ["output"]
    assert len(response.json["output"]) == 20
    assert any(one in generator.SYMBOLS for one in response.json["output"])


def test_length_and_symbols_are_chosen_by_the_query(client: FlaskClient) -> None:
    response = client.get("/api/response-password/?length=64&symbols=false")

    assert response.json is not None
    output = response.json["output"]
    assert len(output) == 64
    assert set(output) <= set(string.ascii_letters + string.digits)


def test_words_ask_for_a_passphrase(client: FlaskClient) -> None:
    response = client.get("/api/response-password/?words=4")

    assert response.json is not None
    assert len(response.json["output"].split("-")) >= 4


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("length=7", "length"),
        ("length=129", "length"),
        ("length=", "length"),
        ("length=1e3", "length"),
        ("length=" + "9" * 5000, "length"),
        ("symbols=maybe", "symbols"),
        ("words=2", "words"),
        ("words=21", "words"),
    ],
)
def test_a_bad_wish_is_a_bad_field(client: FlaskClient, query: str, field: str) -> None:
    response = client.get(f"/api/response-password/?{query}")

    assert response.status_code == 400
    assert response.json is not None
    assert list(response.json) == [field]


def test_a_process_that_has_not_got_the_new_key_yet_asks_to_wait(new_app: NewApp) -> None:
    """While a rotation is rolled out the wrong way round: nothing is lost, and nothing is a fault."""
    old, new = (urlsafe_b64encode(os.urandom(32)).decode() for _ in range(2))
    behind, ahead = new_app(VAULT_KEYS=old), new_app(VAULT_KEYS=f"{new},{old}")
    zoe = make_person(services_of(ahead), "zoe")

    shown = behind.test_client().get(ALL, headers=zoe.auth)
    saved = behind.test_client().post(
        "/api/save-passwords/", headers=zoe.auth, json={"password_saved": "x"}
    )

    exported = behind.test_client().get(f"/api/profile/{zoe.id}/export/", headers=zoe.auth)

    for response in (shown, saved, exported):
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        assert response.data == (
            b'{"error": "Your saved passwords cannot be opened until the operator of this service '
            b'has mended its settings. None is lost. Tell the operator if this lasts.", '
            b'"code": "unavailable"}'
        )
    assert len(ahead.test_client().get(ALL, headers=zoe.auth).get_json()["passwords"]) == 3
