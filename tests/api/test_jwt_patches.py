"""What breaks when PyJWT or Flask-JWT-Extended changes a part that has no public name."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from apiflask import APIFlask
from flask import request, session
from flask.testing import FlaskClient
from jwt.api_jws import PyJWS

from tests.support.factories import Person, bearer, make_person, services_of


@pytest.fixture
def ann(app: APIFlask) -> Person:
    return make_person(services_of(app), "ann")


def segment(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def test_the_token_of_a_request_is_taken_apart_once(
    client: FlaskClient, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = PyJWS._decode_base64url_segment

    def count(part: bytes, name: str) -> bytes:
        decoded.append(name)
        return decode(part, name)

    monkeypatch.setattr(PyJWS, "_decode_base64url_segment", staticmethod(count))

    assert client.get("/api/profile/", headers=ann.auth).status_code == 200

    assert sorted(decoded) == ["crypto", "header", "payload"]


def test_without_the_patch_it_would_be_more_often(
    client: FlaskClient, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this is red, one library has learned it, and ``take_apart_once`` can go."""
    asked: list[str | bytes] = []
    load = PyJWS._load

    def count(jws: PyJWS, token: str | bytes) -> Any:
        asked.append(token)
        return load(jws, token)

    monkeypatch.setattr(PyJWS, "_load", count)

    assert client.get("/api/profile/", headers=ann.auth).status_code == 200

    assert len(asked) > 1


def test_a_signature_is_looked_at_each_time(client: FlaskClient, ann: Person) -> None:
    """What is remembered of a good token is worth nothing for another one with its parts."""
    head, payload, signature = ann.token.split(".")
    forged = [
        f"{head}.{payload}.{signature[:-4]}AAAA",
        f"{head}.{payload}.",
        f"{segment({'alg': 'none', 'typ': 'JWT'})}.{payload}.{signature}",
        f"{segment({'alg': 'none', 'typ': 'JWT'})}.{payload}.",
    ]

    for token in forged * 2:
        assert client.get("/api/profile/", headers=ann.auth).status_code == 200
        assert client.get("/api/profile/", headers=bearer(token)).status_code == 401


def test_a_good_token_is_refused_by_another_key(ann: Person) -> None:
    jwt.decode(ann.token, options={"verify_signature": False})

    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(ann.token, b"x" * 32, algorithms=["HS256"])


def test_who_gets_a_head_may_change_it(client: FlaskClient, ann: Person) -> None:
    head = jwt.get_unverified_header(ann.token)
    before = dict(head)
    head["alg"] = "none"
    head.clear()

    assert jwt.get_unverified_header(ann.token) == before
    assert client.get("/api/profile/", headers=ann.auth).status_code == 200


def test_what_is_no_token_is_an_error_each_time() -> None:
    for _ in range(2):
        with pytest.raises(jwt.DecodeError):
            jwt.get_unverified_header("no.token")


# Flask's own sessions ----------------------------------------------------------------------------


def test_no_answer_begins_a_session_of_flask_s(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    """Identity comes from a token alone: a cookie of Flask's would be sent by other sites, too."""
    answers = [
        client.post("/api/sign-in/", json={"email": ann.email, "password": "wrong"}),
        client.get("/api/profile/", headers=ann.auth),
        client.get("/api/profile/"),
        client.get("/"),
        client.get("/no/such/page/"),
    ]

    assert app.secret_key is None
    assert [answer.headers.getlist("Set-Cookie") for answer in answers] == [[]] * 5


def test_nothing_can_be_written_into_a_session_of_flask_s(app: APIFlask) -> None:
    with app.test_request_context("/"):
        assert request.path == "/"
        with pytest.raises(RuntimeError, match="secret key"):
            session["who"] = "ann"
