"""CONTRACT section 3: signing up, signing in, refreshing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc import tokens
from tests.api.answers import NOT_VALID, WRONG_CREDENTIALS
from tests.conftest import NewApp
from tests.support.factories import (
    PASSWORD,
    Person,
    access_token,
    bearer,
    deactivate,
    make_account,
    services_of,
)
from tests.support.moments import now
from tests.support.state import everything, read_account

SIGN_UP = {
    "username": "Ann",
    "email": "Ann@Example.org",
    "password": PASSWORD,
    "first_name": "Ann",
    "last_name": "Other",
    "number_phone": "+1 (2) 3-4",
}


def test_sign_up_answers_with_tokens_and_the_user(app: APIFlask, client: FlaskClient) -> None:
    response = client.post("/api/sign-up/", json=SIGN_UP)

    document = response.json
    assert document is not None
    account = read_account(services_of(app), document["user"]["id"])
    assert account is not None
    assert response.status_code == 201
    assert response.headers["Cache-Control"] == "no-store"
    assert (
        response.data.decode()
        == f'{{"access": "{document["access"]}", "refresh": "{document["refresh"]}", '
        f'"user": {{"id": {account.id}, "username": "Ann", "email": "Ann@Example.org", '
        f'"pending_email": null, "first_name": "Ann", "last_name": "Other", "number_phone": "+1 (2) 3-4", '
        f'"avatar": null, "is_staff": false, '
        f'"date_joined": "{account.joined_at:%Y-%m-%dT%H:%M:%SZ}"}}}}'
    )
    access = services_of(app).tokens.read(
        document["access"], tokens.ACCESS, now=now(services_of(app))
    )
    assert access.fresh
    services_of(app).tokens.read(document["refresh"], tokens.REFRESH, now=now(services_of(app)))


def test_what_nobody_asks_for_is_ignored(app: APIFlask, client: FlaskClient, bob: Person) -> None:
    more = {"is_staff": True, "id": bob.id, "user": bob.id, "epoch": 9, "password_hash": "x"}

    response = client.post("/api/sign-up/", json={**SIGN_UP, **more})

    assert response.status_code == 201
    assert response.json is not None
    account = read_account(services_of(app), response.json["user"]["id"])
    assert account is not None
    assert (account.is_staff, account.epoch) == (False, 0)
    assert account.id != bob.id


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({"email": None}, "email", "This field may not be null."),
        ({"email": 5}, "email", "Send text."),
        ({"email": ["a@example.org"]}, "email", "Send text."),
        ({"email": ""}, "email", "This field may not be blank."),
        ({"email": "ann"}, "email", "Enter a valid email address."),
        ({"email": "a\0@example.org"}, "email", "Remove NUL bytes; send valid Unicode text."),
        ({"username": "\ud800"}, "username", "Remove NUL bytes; send valid Unicode text."),
        ({"username": "x" * 151}, "username", "Use at most 150 characters."),
        ({"password": "short"}, "password", "Use at least 8 characters."),
        ({"number_phone": "call me"}, "number_phone", "Use digits, spaces, and + - ( ) only."),
        ({"number_phone": "1" * 21}, "number_phone", "Use at most 20 characters."),
    ],
)
def test_a_bad_field_is_named_with_a_sentence(
    app: APIFlask,
    client: FlaskClient,
    changes: dict[str, Any],
    field: str,
    sentence: str,
) -> None:
    before = everything(services_of(app))

    response = client.post("/api/sign-up/", json={**SIGN_UP, **changes})

    assert response.status_code == 400
    assert response.data == f'{{"{field}": ["{sentence}"]}}'.encode()
    assert everything(services_of(app)) == before


def test_all_missing_fields_are_named_at_once(client: FlaskClient) -> None:
    response = client.post("/api/sign-up/", json={"number_phone": "x"})

    assert response.status_code == 400
    assert response.json is not None
    assert sorted(response.json) == ["email", "number_phone", "password", "username"]


def test_names_compare_without_case_and_stay_taken_in_the_grace_period(
    app: APIFlask, client: FlaskClient
) -> None:
    deactivate(services_of(app), make_account(services_of(app), "ann").id)
    before = everything(services_of(app))

    response = client.post("/api/sign-up/", json=SIGN_UP)

    assert response.status_code == 400
    assert response.json is not None
    assert sorted(response.json) == ["email", "username"]
    assert everything(services_of(app)) == before


def test_sign_in_answers_as_sign_up_does(app: APIFlask, client: FlaskClient, ann: Person) -> None:
    body = {"email": ann.email.upper(), "password": PASSWORD}

    response = client.post("/api/sign-in/", json=body)

    assert response.status_code == 200
    assert response.json is not None
    assert list(response.json) == ["access", "refresh", "user"]
    assert response.json["user"]["id"] == ann.id
    assert response.json["user"]["avatar"] == f"/media/avatars/{ann.avatar}"
    profile = client.get(
        "/api/profile/", headers={"Authorization": f"bearer {response.json['access']}"}
    )
    assert profile.json == response.json["user"]


@pytest.mark.parametrize("email", ["ann@example.org", "nobody@example.org", "no address"])
def test_a_wrong_password_and_an_unknown_e_mail_look_the_same(
    client: FlaskClient, ann: Person, email: str
) -> None:
    response = client.post("/api/sign-in/", json={"email": email, "password": "wrong"})

    assert response.status_code == 401
    assert response.data == WRONG_CREDENTIALS
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("email", ["a\0@example.org", "\udfff@example.org"])
def test_an_e_mail_that_no_database_can_hold_is_a_bad_field(
    client: FlaskClient, email: str
) -> None:
    response = client.post("/api/sign-in/", json={"email": email, "password": "x"})

    assert response.status_code == 400
    assert response.json == {"email": ["Remove NUL bytes; send valid Unicode text."]}


def test_sign_in_without_its_fields_names_them(client: FlaskClient) -> None:
    response = client.post("/api/sign-in/", json={"email": ""})

    assert response.status_code == 400
    assert response.json == {
        "email": ["This field may not be blank."],
        "password": ["This field is required."],
    }


def test_the_right_password_of_a_deactivated_account_tells_the_date_and_a_way_back(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    account = deactivate(services_of(app), ann.id)
    assert account.purge_at is not None

    response = client.post("/api/sign-in/", json={"email": ann.email, "password": PASSWORD})

    assert response.status_code == 403
    assert response.json is not None
    token = response.json["recovery_token"]
    assert (
        response.data.decode() == f'{{"error": "This account is scheduled for deletion on '
        f"{account.purge_at.day} {account.purge_at:%B %Y} at {account.purge_at:%H:%M} UTC. "
        "To keep it, sign in on the page http://localhost:8000/keep-account/ or open the link in "
        'our newest mail.", '
        f'"code": "account_deactivated", "purge_at": "{account.purge_at:%Y-%m-%dT%H:%M:%SZ}", '
        f'"recovery_token": "{token}"}}'
    )
    claims = services_of(app).tokens.read(token, tokens.RECOVERY, now=now(services_of(app)))
    assert (claims.public_id, claims.epoch) == (ann.public_id, account.epoch)


def test_the_wrong_password_of_a_deactivated_account_tells_nothing(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    deactivate(services_of(app), ann.id)

    response = client.post("/api/sign-in/", json={"email": ann.email, "password": "wrong"})

    assert (response.status_code, response.data) == (401, WRONG_CREDENTIALS)


def test_too_many_wrong_passwords_are_throttled_known_or_not(new_app: NewApp, ann: Person) -> None:
    client = new_app(RATE_LIMITS="on").test_client()
    for email in (ann.email, "nobody@example.org"):
        body = {"email": email, "password": "wrong"}
        tried = [client.post("/api/sign-in/", json=body).status_code for _ in range(11)]

        assert tried == [401] * 10 + [429]


def test_right_passwords_are_not_counted(new_app: NewApp, ann: Person) -> None:
    client = new_app(RATE_LIMITS="on").test_client()
    body = {"email": ann.email, "password": PASSWORD}

    tried = [client.post("/api/sign-in/", json=body).status_code for _ in range(15)]

    assert tried == [200] * 15


def test_many_sign_ups_from_one_address_are_throttled(new_app: NewApp) -> None:
    client = new_app(RATE_LIMITS="on").test_client()

    tried = [client.post("/api/sign-up/", json={"email": "x"}).status_code for _ in range(31)]

    assert tried == [400] * 30 + [429]


def test_a_refresh_token_yields_an_access_token_that_is_not_fresh(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    account = read_account(services_of(app), ann.id)
    assert account is not None
    refresh = services_of(app).tokens.refresh(account, now=now(services_of(app)))

    response = client.post("/api/token/refresh/", json={"refresh": refresh})

    assert response.status_code == 200
    assert response.json is not None
    assert list(response.json) == ["access"]
    claims = services_of(app).tokens.read(
        response.json["access"], tokens.ACCESS, now=now(services_of(app))
    )
    assert not claims.fresh


def test_only_a_living_refresh_token_refreshes(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    account = read_account(services_of(app), ann.id)
    assert account is not None
    made, moment = services_of(app).tokens, now(services_of(app))
    old = made.refresh(account, now=moment - timedelta(days=31))
    living = made.refresh(account, now=moment)
    deactivate(services_of(app), ann.id)

    for token in (ann.token, old, living, "null", "a.b.c", "[" * 3000):
        response = client.post("/api/token/refresh/", json={"refresh": token})

        assert (response.status_code, response.data) == (401, NOT_VALID)
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.parametrize("body", [{}, {"refresh": None}, {"refresh": 5}, {"refresh": ""}])
def test_a_refresh_without_a_token_is_a_bad_field(
    client: FlaskClient, body: dict[str, Any]
) -> None:
    response = client.post("/api/token/refresh/", json=body)

    assert response.status_code == 400
    assert response.json is not None
    assert list(response.json) == ["refresh"]


def test_tokens_of_a_sign_in_die_with_the_password_that_was_proved(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    """A sign-in that is overtaken by a change of the password must not end up with a session."""
    account = read_account(services_of(app), ann.id)
    assert account is not None
    overtaken = access_token(services_of(app), account)
    body = {"password": PASSWORD, "new_password": "another horse, another battery"}
    client.post(f"/api/profile/{ann.id}/password/", headers=ann.auth, json=body)

    response = client.get("/api/profile/", headers=bearer(overtaken))

    assert (response.status_code, response.data) == (401, NOT_VALID)
