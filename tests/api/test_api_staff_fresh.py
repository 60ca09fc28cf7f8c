"""CONTRACT section 2: what the staff do to others' accounts wants a password proved minutes ago."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from accountsvc.accounts.reasons import REASON_LENGTH
from tests.api.answers import CONFIRM, NO_TOKEN, NOT_AUTHORIZED, NOT_VALID, WRONG_PASSWORD
from tests.conftest import NewApp
from tests.support import sweeps
from tests.support.factories import (
    PASSWORD,
    Person,
    access_token,
    bearer,
    deactivate,
    make_person,
    place_hold,
    services_of,
)
from tests.support.moments import now
from tests.support.state import belongings, events, everything, get_account

HOUR = timedelta(hours=1)
STALE = timedelta(minutes=16)


class Write(NamedTuple):
    """Something that the staff do to another's account, and the state in which they may."""

    method: str
    what: str
    status: int
    body: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    away: bool = True
    held: bool = False


WRITES = {
    "deactivate": Write("DELETE", "delete", 204, away=False),
    "deactivate again": Write("DELETE", "delete", 204),
    "reactivate": Write("POST", "reactivate", 200),
    "reactivate with a reason": Write("POST", "reactivate", 200, {"reason": "by letter"}),
    "reschedule": Write(
        "PATCH", "deletion", 200, {"purge_at": "<later>"}, headers={"If-Match": "*"}
    ),
    "store a reason": Write(
        "PATCH", "deletion", 200, {"reason": "a note"}, headers={"If-Match": "*"}
    ),
    "hold": Write("POST", "holds", 201, {"reason": "case 12"}),
    "hold an active one": Write("POST", "holds", 201, {"reason": "case 12"}, away=False),
    "release": Write("DELETE", "holds/<hold>", 204, held=True),
    "release an active one": Write("DELETE", "holds/<hold>", 204, away=False, held=True),
    "purge": Write("POST", "purge", 202, {"confirm": "ann"}),
}
EVERY_WRITE = pytest.mark.parametrize("name", WRITES)


class Staffed:
    """An application with *ann*, on whom *sue* of the staff acts, and *bob*, who is spared."""

    def __init__(self, app: APIFlask, write: Write) -> None:
        self.app, self.write, self.client = app, write, app.test_client()
        services = services_of(app)
        self.ann, self.bob = make_person(services, "ann"), make_person(services, "bob")
        self.sue = make_person(services, "sue", staff=True)
        if write.away:
            deactivate(services, self.ann.id)
        self.hold = place_hold(services, self.ann.id) if write.held else 0
        self.spared = belongings(services, self.bob)

    def token(self, *, age: timedelta = timedelta(), fresh: bool = True) -> dict[str, str]:
        account = get_account(services_of(self.app), self.sue.id)
        return bearer(access_token(services_of(self.app), account, age=age, fresh=fresh))

    def do(self, token: Mapping[str, str], **more: str) -> TestResponse:
        body = {**self.write.body, **more}
        if "purge_at" in body:
            purge_at = get_account(services_of(self.app), self.ann.id).purge_at
            assert purge_at is not None
            body["purge_at"] = (purge_at + HOUR).isoformat()
        return self.client.open(
            f"/api/profile/{self.ann.id}/{self.write.what.replace('<hold>', str(self.hold))}/",
            method=self.write.method,
            headers={**self.write.headers, **token},
            json=body,
        )

    def has_spared(self) -> bool:
        return belongings(services_of(self.app), self.bob) == self.spared


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Whether somebody has to confirm is decided above the database."""
    return sqlite_url


@EVERY_WRITE
def test_a_fresh_token_is_enough(app: APIFlask, name: str) -> None:
    staffed = Staffed(app, WRITES[name])

    response = staffed.do(staffed.token())

    assert response.status_code == WRITES[name].status, response.text
    assert staffed.has_spared()


@EVERY_WRITE
@pytest.mark.parametrize("mode", ["fresh", "none"])
@pytest.mark.parametrize("stale", [{"age": STALE}, {"fresh": False}], ids=["aged", "refreshed"])
def test_any_other_token_needs_the_password_of_the_staff_whatever_the_setting_for_owners(
    new_app: NewApp, name: str, mode: str, stale: Any
) -> None:
    staffed = Staffed(new_app(DELETION_CONFIRMATION=mode), WRITES[name])
    token, before = staffed.token(**stale), everything(services_of(staffed.app))

    asked = staffed.do(token)
    wrong = staffed.do(token, password="a guess")
    assert everything(services_of(staffed.app)) == before
    right = staffed.do(token, password=PASSWORD)

    assert (asked.status_code, asked.data) == (401, CONFIRM)
    assert asked.headers["WWW-Authenticate"] == (
        'Bearer error="insufficient_user_authentication", max_age=900'
    )
    assert (wrong.status_code, wrong.data) == (403, WRONG_PASSWORD)
    assert right.status_code == WRITES[name].status, right.text
    (event,) = events(services_of(staffed.app), "confirmation.failed")
    assert (event.subject, event.actor_kind) == (staffed.sue.public_id, "anybody")
    assert staffed.has_spared()


@pytest.mark.parametrize(("age", "status"), [(29, 201), (31, 401)])
def test_how_long_is_a_setting(new_app: NewApp, age: int, status: int) -> None:
    staffed = Staffed(new_app(STAFF_FRESH_MINUTES="30"), WRITES["hold"])

    response = staffed.do(staffed.token(age=timedelta(minutes=age)))

    assert response.status_code == status
    assert staffed.has_spared()


@pytest.mark.parametrize(("age", "max_age"), [(6, "300"), (16, "900")])
def test_a_deletion_by_staff_wants_what_either_setting_wants(
    new_app: NewApp, age: int, max_age: str
) -> None:
    minutes = "5" if max_age == "300" else "60"
    staffed = Staffed(new_app(FRESH_TOKEN_MINUTES=minutes), WRITES["deactivate"])

    response = staffed.do(staffed.token(age=timedelta(minutes=age)))

    assert (response.status_code, response.data) == (401, CONFIRM)
    assert response.headers["WWW-Authenticate"].endswith(f"max_age={max_age}")
    assert staffed.has_spared()


@EVERY_WRITE
def test_after_ten_wrong_passwords_a_right_one_waits_too(new_app: NewApp, name: str) -> None:
    staffed = Staffed(new_app(RATE_LIMITS="on"), WRITES[name])
    token, before = staffed.token(age=STALE), everything(services_of(staffed.app))

    wrong = [staffed.do(token, password="a guess") for _ in range(10)]
    right = staffed.do(token, password=PASSWORD)

    assert {response.status_code for response in wrong} == {403}
    assert right.status_code == 429
    assert int(right.headers["Retry-After"]) > 0
    after = everything(services_of(staffed.app))
    assert after["accounts"] == before["accounts"]
    assert staffed.has_spared()


def test_a_purge_counts_its_two_confirmations_as_one_try_and_none_where_nothing_was_given(
    new_app: NewApp,
) -> None:
    staffed = Staffed(new_app(RATE_LIMITS="on"), WRITES["purge"])
    token = staffed.token(age=STALE)
    asked = [staffed.do(token).status_code for _ in range(12)]

    wrong = [staffed.do(token, password=PASSWORD, confirm="no").status_code for _ in range(11)]

    assert asked == [401] * 12
    assert wrong == [400] * 10 + [429]
    assert staffed.has_spared()


def test_a_member_of_the_staff_who_deletes_their_own_account_is_an_owner(
    new_app: NewApp,
) -> None:
    staffed = Staffed(new_app(), WRITES["deactivate"])
    make_person(services_of(staffed.app), "sam", staff=True)

    response = staffed.client.delete(
        f"/api/profile/{staffed.sue.id}/delete/", headers=staffed.token(age=STALE)
    )

    assert response.status_code == 204
    assert get_account(services_of(staffed.app), staffed.sue.id).deactivated_by == "owner"
    assert staffed.has_spared()


def test_a_hold_on_their_own_account_is_an_act_of_the_staff(app: APIFlask) -> None:
    staffed = Staffed(app, WRITES["hold"])

    response = staffed.client.post(
        f"/api/profile/{staffed.sue.id}/holds/",
        headers=staffed.token(age=STALE),
        json={"reason": "case 12"},
    )

    assert (response.status_code, response.data) == (401, CONFIRM)


def test_what_the_staff_read_needs_no_fresh_token(app: APIFlask) -> None:
    staffed = Staffed(app, WRITES["hold"])
    token = staffed.token(age=STALE)

    for path in ("admin/deletions/", "admin/audit/", f"profile/{staffed.ann.id}/deletion/"):
        assert staffed.client.get(f"/api/{path}", headers=token).status_code == 200


# Who is not of the staff


def test_a_refused_call_of_what_is_the_staffs_is_in_the_trail(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    before = belongings(services_of(app), bob)
    calls = [
        ("GET", "/api/admin/deletions/", {}),
        ("GET", "/api/admin/audit/?subject=1", {}),
        ("GET", "/api/admin/audit/?limit=no", {}),
        ("GET", f"/api/profile/{ann.id}/holds/", {}),
        ("POST", f"/api/profile/{ann.id}/holds/", {"reason": "x"}),
        ("POST", f"/api/profile/{ann.id}/reactivate/", {}),
    ]

    answers = [
        client.open(path, method=method, headers=ann.auth, json=body or None)
        for method, path, body in calls
    ]

    assert {(got.status_code, got.data) for got in answers} == {(403, NOT_AUTHORIZED)}
    denied = events(services_of(app), "access.denied")
    assert [(one.subject, one.actor, one.actor_kind, one.details) for one in denied] == [
        (ann.public_id, ann.public_id, "owner", {})
    ] * len(calls)
    assert belongings(services_of(app), bob) == before


def test_the_trail_takes_so_many_of_them_and_all_that_comes_after(new_app: NewApp) -> None:
    """And they keep no wrong password for the account out of it."""
    app = new_app(RATE_LIMITS="on")
    client, ann = app.test_client(), make_person(services_of(app), "ann")
    for _ in range(15):
        assert client.get("/api/admin/audit/", headers=ann.auth).status_code == 403

    client.post("/api/sign-in/", json={"email": ann.email, "password": "a guess"})

    assert len(events(services_of(app), "access.denied")) == 10
    assert len(events(services_of(app), "sign_in.failed")) == 1


def test_nobody_and_a_dead_session_are_not_in_it(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    deactivate(services_of(app), ann.id)

    without = client.get("/api/admin/audit/")
    dead = client.get("/api/admin/audit/", headers=ann.auth)

    assert (without.status_code, without.data) == (401, NO_TOKEN)
    assert (dead.status_code, dead.data) == (401, NOT_VALID)
    assert events(services_of(app), "access.denied") == []


# Why somebody was given back


def give_back(client: FlaskClient, sue: Person, person: Person, **body: object) -> TestResponse:
    return client.post(f"/api/profile/{person.id}/reactivate/", headers=sue.auth, json=body)


def test_the_reason_of_a_return_stays_on_the_row_and_a_word_of_it_in_the_trail(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person, sue: Person
) -> None:
    deactivate(services_of(app), ann.id)
    before = belongings(services_of(app), bob)

    response = give_back(client, sue, ann, reason="asked by letter,\non 3 December")

    assert response.status_code == 200
    assert "letter" not in response.text
    assert get_account(services_of(app), ann.id).return_reason == (
        "asked by letter,\non 3 December"
    )
    (event,) = events(services_of(app), "account.reactivated")
    assert event.details == {"reason": "stored"}
    assert belongings(services_of(app), bob) == before


def test_a_return_needs_no_reason_and_keeps_the_one_of_before(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    for body in ({"reason": "asked by letter"}, {}):
        deactivate(services_of(app), ann.id)
        assert give_back(client, sue, ann, **body).status_code == 200

    assert get_account(services_of(app), ann.id).return_reason == "asked by letter"
    returns = events(services_of(app), "account.reactivated")
    assert [event.details for event in returns] == [{"reason": "stored"}, {}]


@pytest.mark.parametrize(
    "reason",
    ["", "  \n", "x" * (REASON_LENGTH + 1), "\x1b[2J", 5, None],
    ids=["empty", "blank", "long", "what a screen obeys", "number", "null"],
)
def test_an_unfit_reason_gives_nobody_back(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person, reason: object
) -> None:
    deactivate(services_of(app), ann.id)
    before = everything(services_of(app))

    response = give_back(client, sue, ann, reason=reason)

    assert response.status_code == 400
    assert response.json is not None
    assert list(response.json) == ["reason"]
    assert everything(services_of(app)) == before


# The story of the stolen staff token


def test_a_stolen_token_of_the_staff_destroys_nobody_before_somebody_can_notice(
    new_app: NewApp,
) -> None:
    """A thief with an hour-old session, then with one that is seconds old."""
    app = new_app()
    services = services_of(app)
    client, bob = app.test_client(), make_person(services, "bob")
    ann, sue = make_person(services, "ann"), make_person(services, "sue", staff=True)
    held = make_person(services, "cat")
    deactivate(services, held.id)
    hold = place_hold(services, held.id)
    before = belongings(services, bob)
    account = get_account(services, sue.id)
    refresh = services.tokens.refresh(account, now=now(services), password_at=now(services) - HOUR)

    # With the refresh token the thief makes access tokens, and none of them is fresh.
    answer = client.post("/api/token/refresh/", json={"refresh": refresh})
    assert answer.json is not None
    old = bearer(answer.json["access"])
    tries = [
        client.delete(f"/api/profile/{ann.id}/delete/", headers=old),
        client.delete(f"/api/profile/{held.id}/holds/{hold}/", headers=old),
        client.post(f"/api/profile/{held.id}/purge/", headers=old, json={"confirm": "cat"}),
        client.post(f"/api/profile/{held.id}/reactivate/", headers=old),
    ]
    assert {(got.status_code, got.data) for got in tries} == {(401, CONFIRM)}

    # With a fresh one the thief releases and deactivates, and can purge neither at once.
    released = client.delete(f"/api/profile/{held.id}/holds/{hold}/", headers=sue.auth)
    deactivated = client.delete(f"/api/profile/{ann.id}/delete/", headers=sue.auth)
    assert (released.status_code, deactivated.status_code) == (204, 204)
    for person, username in ((held, "cat"), (ann, "ann")):
        refused = client.post(
            f"/api/profile/{person.id}/purge/", headers=sue.auth, json={"confirm": username}
        )
        assert refused.status_code == 409
        assert refused.json is not None
        assert refused.json["code"] == "recent_change"
        assert refused.json["error"].endswith(" UTC on.")
    assert sweeps.sweep(services, now(services) + 23 * HOUR).purged_ids == []

    # Sue reads the trail, ends her sessions, and gives back whom the thief has deactivated.
    assert client.post("/api/sign-out/", headers=sue.auth).status_code == 204
    assert client.get("/api/admin/audit/", headers=sue.auth).status_code == 401
    again = client.post("/api/sign-in/", json={"email": sue.email, "password": PASSWORD})
    assert again.json is not None
    mine = bearer(again.json["access"])
    trail = client.get(f"/api/admin/audit/?subject={ann.id}", headers=mine)
    assert trail.json is not None
    assert trail.json["results"][-1]["action"] == "account.deactivated"
    back = client.post(
        f"/api/profile/{ann.id}/reactivate/", headers=mine, json={"reason": "a stolen session"}
    )
    assert back.json is not None
    assert (back.status_code, back.json["state"]) == (200, "active")
    held_again = client.post(
        f"/api/profile/{held.id}/holds/", headers=mine, json={"reason": "case 12"}
    )
    assert held_again.status_code == 201
    assert sweeps.sweep(services, now(services) + timedelta(days=15)).purged_ids == []
    assert belongings(services, bob) == before
