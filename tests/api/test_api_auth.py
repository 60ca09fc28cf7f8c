"""A view with Flask-JWT-Extended's own decorator answers as ours do."""

from __future__ import annotations

from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from flask_jwt_extended import current_user, get_jwt_identity, jwt_required

from tests.api.answers import NO_TOKEN, NOT_VALID
from tests.api.test_api_deletion import MALFORMED, make_wrong_tokens
from tests.conftest import NewApp
from tests.support.factories import (
    Person,
    access_token,
    bearer,
    deactivate,
    make_person,
    read_account,
)


@pytest.fixture
def extended(new_app: NewApp) -> APIFlask:
    """An application with a view that somebody added."""
    app = new_app()

    @app.get("/api/added/")
    @jwt_required()
    def added() -> dict[str, Any]:
        return {"identity": get_jwt_identity(), "email": current_user.email}

    @app.get("/api/added/fresh/")
    @jwt_required(fresh=True)
    def added_fresh() -> dict[str, Any]:
        return {}

    return app


@pytest.fixture
def person(extended: APIFlask) -> Person:
    return make_person(extended, "ann")


@pytest.fixture
def client(extended: APIFlask) -> FlaskClient:
    return extended.test_client()


def test_a_good_token_opens_it(client: FlaskClient, person: Person) -> None:
    response = client.get("/api/added/", headers=person.auth)

    assert response.json == {"identity": str(person.public_id), "email": person.email}


def test_no_token_is_the_same_row(client: FlaskClient) -> None:
    response = client.get("/api/added/")

    assert (response.status_code, response.data) == (401, NO_TOKEN)
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_wrong_token_is_the_same_row(
    extended: APIFlask, client: FlaskClient, person: Person
) -> None:
    wrong = [f"Bearer {token}" for token in make_wrong_tokens(extended, person).values()]
    malformed = [header for header in MALFORMED if header.startswith("Bearer")]

    for header in [*wrong, *malformed]:
        response = client.get("/api/added/", headers={"Authorization": header})

        assert (response.status_code, response.data) == (401, NOT_VALID)


def test_a_deactivated_accounts_token_is_the_same_row(
    extended: APIFlask, client: FlaskClient, person: Person
) -> None:
    deactivate(extended, person.id)

    response = client.get("/api/added/", headers=person.auth)

    assert (response.status_code, response.data) == (401, NOT_VALID)


def test_a_token_that_is_not_fresh_is_the_same_row(
    extended: APIFlask, client: FlaskClient, person: Person
) -> None:
    account = read_account(extended, person.id)
    assert account is not None
    token = access_token(extended, account, fresh=False)

    response = client.get("/api/added/fresh/", headers=bearer(token))

    assert response.status_code == 401
    assert (
        response.data
        == b'{"detail": "Password confirmation required.", "code": "confirmation_required"}'
    )
