"""CONTRACT section 5: profile writes, and what the staff may do so many times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import event
from werkzeug.test import TestResponse

from accountsvc.adapters.throttle import (
    LIMITS,
    PROFILE_WRITE,
    STAFF_CONFIRMATION,
    STAFF_DEACTIVATION,
)
from tests.conftest import NewApp
from tests.support.factories import (
    PASSWORD,
    Person,
    access_token,
    bearer,
    deactivate,
    make_account,
    make_person,
    services_of,
)
from tests.support.state import belongings, events, get_account, possessions


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Where the data is does not matter here."""
    return sqlite_url


@pytest.fixture
def app(new_app: NewApp) -> APIFlask:
    return new_app(RATE_LIMITS="on")


def amount(kind: str, text: str) -> int:
    limit = LIMITS[kind].account
    assert limit is not None
    assert str(limit) == text
    return limit.amount


# Profiles

SAME: dict[str, dict[str, Any]] = {
    "nothing": {},
    "the same name": {"username": "ann"},
    "the same name with spaces": {"username": "  ann "},
    "every field as it is": {"username": "ann", "first_name": "", "email": "ann@example.org"},
    "unknown fields": {"is_staff": True, "id": 5},
}


@pytest.mark.parametrize("body", SAME.values(), ids=SAME.keys())
def test_a_profile_write_that_changes_nothing_takes_no_write_lock_and_writes_no_event(
    app: APIFlask, client: FlaskClient, body: dict[str, Any]
) -> None:
    account = make_account(services_of(app), "ann")
    auth = bearer(access_token(services_of(app), account))
    before = possessions(services_of(app), account.id)
    begun: list[str] = []
    engine = services_of(app).database.engine

    @event.listens_for(engine, "before_cursor_execute")
    def count(_c: object, _cursor: object, statement: str, *_: object) -> None:
        begun.append(statement)

    response = client.patch(f"/api/profile/{account.id}/update/", headers=auth, json=body)
    event.remove(engine, "before_cursor_execute", count)

    assert response.status_code == 200
    assert begun
    assert not [one for one in begun if one.startswith(("BEGIN IMMEDIATE", "UPDATE", "INSERT"))]
    assert possessions(services_of(app), account.id) == before
    assert events(services_of(app), "account.updated") == []


def test_profile_writes_are_counted_before_they_are_read_and_by_account(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    bodies: list[dict[str, Any]] = [{"json": {}}, {"json": {"username": ""}}, {"data": b"\xff"}]
    path = f"/api/profile/{ann.id}/update/"
    for number in range(amount(PROFILE_WRITE, "60 per 1 hour")):
        sent = client.put(path, headers=ann.auth, **bodies[number % 3])
        assert sent.status_code != 429
    theirs = belongings(services_of(app), bob)

    refused = client.put(path, headers=ann.auth, json={"first_name": "Anna"})

    assert (refused.status_code, refused.get_json()["code"]) == (429, "throttled")
    assert int(refused.headers["Retry-After"]) > 0
    assert get_account(services_of(app), ann.id).first_name != "Anna"
    assert belongings(services_of(app), bob) == theirs
    other = client.put(f"/api/profile/{bob.id}/update/", headers=bob.auth, json={"last_name": "B"})
    assert other.status_code == 200
    assert client.get("/api/profile/", headers=ann.auth).status_code == 200


# The staff


def told(app: APIFlask, action: str) -> list[tuple[Any, Any, str]]:
    return [(one.actor, one.subject, one.actor_kind) for one in events(services_of(app), action)]


def test_one_member_of_the_staff_deactivates_so_many_an_hour_and_is_told_of_once(
    app: APIFlask, client: FlaskClient, sue: Person
) -> None:
    limit = amount(STAFF_DEACTIVATION, "20 per 1 hour")
    people = [make_account(services_of(app), f"p{number}") for number in range(limit + 3)]
    tom = make_person(services_of(app), "tom", staff=True)

    def delete(account_id: int, who: Person) -> TestResponse:
        return client.delete(f"/api/profile/{account_id}/delete/", headers=who.auth)

    first = [delete(one.id, sue).status_code for one in people[:limit]]
    repeats = [delete(one.id, sue).status_code for one in people[:limit]]
    beyond = [delete(one.id, sue) for one in people[limit:]]

    assert first == repeats == [204] * limit
    for response in beyond:
        assert (response.status_code, response.get_json()["code"]) == (429, "throttled")
        assert int(response.headers["Retry-After"]) > 0
    for one in people[limit:]:
        assert get_account(services_of(app), one.id).is_active
    assert told(app, "deactivation.throttled") == [
        (sue.public_id, people[limit].public_id, "staff")
    ]
    # A colleague goes on, and nobody's own deletion is refused for its number.
    assert delete(people[limit].id, tom).status_code == 204
    assert delete(sue.id, sue).status_code == 204


def wrong_confirms(client: FlaskClient, who: Person, account_id: int) -> TestResponse:
    return client.post(
        f"/api/profile/{account_id}/purge/", headers=who.auth, json={"confirm": "somebody else"}
    )


def no_confirm(client: FlaskClient, who: Person, account_id: int) -> TestResponse:
    return client.post(f"/api/profile/{account_id}/purge/", headers=who.auth, json={})


@pytest.mark.parametrize("wrong", [wrong_confirms, no_confirm])
def test_wrong_confirmations_of_the_staff_are_counted_and_told_of_once(
    app: APIFlask,
    client: FlaskClient,
    sue: Person,
    ann: Person,
    bob: Person,
    wrong: Callable[[FlaskClient, Person, int], TestResponse],
) -> None:
    limit = amount(STAFF_CONFIRMATION, "10 per 15 minute")
    tom = make_person(services_of(app), "tom", staff=True)
    deactivate(services_of(app), ann.id)
    theirs = belongings(services_of(app), bob)

    statuses = [wrong(client, sue, ann.id).status_code for _ in range(limit)]
    right = client.post(f"/api/profile/{ann.id}/purge/", headers=sue.auth, json={"confirm": "ann"})
    again = wrong(client, sue, ann.id)

    assert statuses == [400] * limit
    assert (right.status_code, again.status_code) == (429, 429)
    assert told(app, "confirmation.throttled") == [(sue.public_id, ann.public_id, "staff")]
    assert belongings(services_of(app), bob) == theirs
    other = client.post(f"/api/profile/{ann.id}/purge/", headers=tom.auth, json={"confirm": "ann"})
    assert other.status_code == 202


def test_a_right_confirmation_is_forgiven(
    app: APIFlask, client: FlaskClient, sue: Person, ann: Person
) -> None:
    limit = amount(STAFF_CONFIRMATION, "10 per 15 minute")
    deactivate(services_of(app), ann.id)
    for _ in range(limit - 1):
        wrong_confirms(client, sue, ann.id)

    right = client.post(f"/api/profile/{ann.id}/purge/", headers=sue.auth, json={"confirm": "ann"})

    assert right.status_code == 202
    statuses = [wrong_confirms(client, sue, ann.id).status_code for _ in range(limit + 1)]
    assert statuses == [400] * limit + [429]


def test_wrong_passwords_of_the_staff_at_another_s_deletion_count_as_confirmations(
    new_app: NewApp,
) -> None:
    app = new_app(RATE_LIMITS="on", DELETION_CONFIRMATION="password")
    client = app.test_client()
    sue = make_person(services_of(app), "sue", staff=True)
    ann = make_account(services_of(app), "ann")
    path = f"/api/profile/{ann.id}/delete/"
    for _ in range(amount(STAFF_CONFIRMATION, "10 per 15 minute")):
        wrong = client.delete(path, headers=sue.auth, json={"password": "wrong"})
        assert wrong.status_code == 403

    refused = client.delete(path, headers=sue.auth, json={"password": PASSWORD})

    assert refused.status_code == 429
    assert get_account(services_of(app), ann.id).is_active
    assert told(app, "confirmation.throttled") == [(sue.public_id, ann.public_id, "staff")]
