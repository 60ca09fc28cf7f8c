"""Requests are authenticated by Flask-JWT-Extended: its own decorator answers as our guards do."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from typing import Any, Self

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from flask_jwt_extended import current_user, get_jwt_identity, jwt_required
from jwt.algorithms import HMACAlgorithm

from accountsvc.api.http import auth
from accountsvc.api.http.auth import Caller
from tests.api.answers import NO_TOKEN, NOT_VALID
from tests.api.test_api_deletion import MALFORMED, make_wrong_tokens
from tests.conftest import NewApp
from tests.support.factories import (
    Person,
    access_token,
    bearer,
    deactivate,
    make_person,
    recovery_token,
    services_of,
)
from tests.support.moments import now
from tests.support.state import read_account

ADDED, GUARDED = "/api/added/", "/api/guarded/"


@pytest.fixture
def extended(new_app: NewApp) -> APIFlask:
    """An application with views that somebody added."""
    app = new_app()

    @app.get(ADDED)
    @jwt_required()
    def added() -> dict[str, Any]:
        return {"identity": get_jwt_identity(), "email": current_user.email}

    @app.get(GUARDED)
    @auth.signed_in
    def guarded(*, caller: Caller) -> dict[str, Any]:
        assert caller.account is current_user._get_current_object()
        return {"identity": get_jwt_identity(), "email": caller.account.email}

    @app.get("/api/added/fresh/")
    @jwt_required(fresh=True)
    def added_fresh() -> dict[str, Any]:
        return {}

    return app


@pytest.fixture
def person(extended: APIFlask) -> Person:
    return make_person(services_of(extended), "ann")


@pytest.fixture
def client(extended: APIFlask) -> FlaskClient:
    return extended.test_client()


def test_a_good_token_opens_it_in_any_form(client: FlaskClient, person: Person) -> None:
    token = person.token

    for header in (f"Bearer {token}", f"bEaReR  {token} ", f"Bearer\t{token}"):
        for path in (ADDED, GUARDED):
            response = client.get(path, headers={"Authorization": header})

            assert response.json == {"identity": str(person.public_id), "email": person.email}


def test_no_token_is_the_same_row(client: FlaskClient, person: Person) -> None:
    token = person.token
    others: list[list[tuple[str, str]]] = [
        [],
        [("Authorization", "")],
        [("Authorization", token)],
        [("Authorization", f"Bearer:{token}")],
        [("Authorization", f"Basic x, Bearer {token}")],
        [("Authorization", "Basic x"), ("Authorization", f"Bearer {token}")],
    ]

    for headers in others:
        for path in (ADDED, GUARDED):
            response = client.get(path, headers=headers)

            assert (response.status_code, response.data) == (401, NO_TOKEN)
            assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_wrong_token_is_the_same_row(
    extended: APIFlask, client: FlaskClient, person: Person
) -> None:
    wrong = [f"Bearer {token}" for token in make_wrong_tokens(extended, person).values()]
    several = [f"Bearer {person.token}, {scheme} x" for scheme in ("Bearer", "Basic")]

    for header in [*wrong, *MALFORMED, *several]:
        for path in (ADDED, GUARDED):
            response = client.get(path, headers={"Authorization": header})

            assert (response.status_code, response.data) == (401, NOT_VALID)
            assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_a_deactivated_accounts_token_is_the_same_row(
    extended: APIFlask, client: FlaskClient, person: Person
) -> None:
    deactivate(services_of(extended), person.id)

    for path in (ADDED, GUARDED):
        response = client.get(path, headers=person.auth)

        assert (response.status_code, response.data) == (401, NOT_VALID)


def test_a_token_that_is_not_fresh_is_the_same_row(
    extended: APIFlask, client: FlaskClient, person: Person
) -> None:
    account = read_account(services_of(extended), person.id)
    assert account is not None
    token = access_token(services_of(extended), account, fresh=False)

    response = client.get("/api/added/fresh/", headers=bearer(token))

    assert response.status_code == 401
    assert (
        response.data
        == b'{"detail": "Password confirmation required.", "code": "confirmation_required"}'
    )


@pytest.mark.parametrize("offset", [timedelta(days=-40), timedelta(days=40)], ids=str)
def test_the_clock_of_this_host_does_not_matter(
    extended: APIFlask,
    client: FlaskClient,
    person: Person,
    offset: timedelta,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The database's clock decides, and the two may be further apart than a token's life."""
    wrong = make_wrong_tokens(extended, person)

    class WrongClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + offset

    monkeypatch.setattr("jwt.api_jwt.datetime", WrongClock)

    assert client.get(ADDED, headers=person.auth).status_code == 200
    for fault in ("expired", "from the future"):
        response = client.get(ADDED, headers=bearer(wrong[fault]))
        assert (response.status_code, response.data) == (401, NOT_VALID)


@pytest.mark.parametrize(
    ("who", "method", "path", "status"),
    [
        ("bob", "GET", "profile/", 200),
        ("bob", "PATCH", "profile/{bob}/update/", 200),
        ("bob", "GET", "profile/{bob}/export/", 200),
        ("bob", "DELETE", "profile/{bob}/delete/", 204),
        ("sue", "GET", "admin/audit/", 200),
        ("sue", "GET", "profile/{ann}/holds/", 200),
        ("sue", "GET", "profile/{ann}/deletion/", 200),
        ("recovery", "GET", "profile/{ann}/deletion/", 200),
        ("mailed", "GET", "profile/{ann}/deletion/", 200),
        ("recovery", "GET", "profile/{ann}/export/", 200),
        ("bob", "GET", "profile/{ann}/deletion/", 404),
    ],
)
def test_a_signature_is_verified_once_a_request(
    app: APIFlask,
    who: str,
    method: str,
    path: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ann, bob = make_person(services_of(app), "ann"), make_person(services_of(app), "bob")
    sue = make_person(services_of(app), "sue", staff=True)
    account = deactivate(services_of(app), ann.id)
    tokens, moment = services_of(app).tokens, now(services_of(app))
    token = {
        "bob": bob.token,
        "sue": sue.token,
        "recovery": recovery_token(services_of(app), account),
        "mailed": tokens.mailed(account, now=moment),
    }[who]
    verified: list[bytes] = []
    verify = HMACAlgorithm.verify

    def count(self: HMACAlgorithm, message: bytes, key: bytes, signature: bytes) -> bool:
        verified.append(signature)
        return verify(self, message, key, signature)

    monkeypatch.setattr(HMACAlgorithm, "verify", count)

    response = app.test_client().open(
        f"/api/{path.format(ann=ann.id, bob=bob.id)}",
        method=method,
        headers=bearer(token),
        json={"first_name": "Bo"} if method == "PATCH" else None,
    )

    assert (response.status_code, len(verified)) == (status, 1)


@pytest.mark.parametrize("path", ["export", "purge"])
def test_a_dead_token_is_refused_before_any_input_is_read(
    extended: APIFlask, client: FlaskClient, person: Person, path: str
) -> None:
    account = deactivate(services_of(extended), person.id)
    tokens, moment = services_of(extended).tokens, now(services_of(extended))
    account.epoch -= 1
    dead = [person.token, tokens.recovery(account, now=moment), tokens.mailed(account, now=moment)]

    for token in dead:
        response = client.post(
            f"/api/profile/{person.id}/{path}/", headers=bearer(token), json={"password": 5}
        )

        assert (response.status_code, response.data) == (401, NOT_VALID)
