"""CONTRACT section 2: when a password was proved, what makes no session fresher, and how all end."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import jwt
import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc.accounts import credentials
from accountsvc.errors import TokenNotValid
from accountsvc.tokens import ACCESS, ALGORITHM, RECOVERY, REFRESH
from tests.api.answers import CONFIRM, NOT_VALID
from tests.conftest import NewApp
from tests.support import sweeps
from tests.support.factories import (
    PASSWORD,
    Person,
    access_token,
    bearer,
    deactivate,
    make_person,
    recovery_token,
    services_of,
)
from tests.support.moments import SECOND, now
from tests.support.state import belongings, effects, events, everything, get_account

SIGN_IN, SIGN_OUT = "/api/sign-in/", "/api/sign-out/"
REFRESHING, COME_BACK = "/api/token/refresh/", "/api/profile/reactivate/"
RESET, NEW_PASSWORD = "/api/password-reset/confirm/", "nine purple otters sing"
REPRESENTED = {"Prefer": "return=representation"}
MINUTE = timedelta(minutes=1)


def claims(app: APIFlask, token: str, kind: str) -> Any:
    found = services_of(app).tokens.was(token, kind)
    assert found is not None
    return found


def proved_at(app: APIFlask, token: str, kind: str) -> datetime:
    found: datetime = claims(app, token, kind).password_at
    return found


def of(person: Person, what: str) -> str:
    return f"/api/profile/{person.id}/{what}/"


def signed_in(client: FlaskClient, person: Person, password: str = PASSWORD) -> Any:
    response = client.post(SIGN_IN, json={"email": person.email, "password": password})
    assert response.status_code == 200, response.text
    return response.json


def from_refresh(client: FlaskClient, refresh: str) -> str:
    response = client.post(REFRESHING, json={"refresh": refresh})
    assert response.json is not None
    return str(response.json["access"])


def old_refresh(app: APIFlask, person: Person, age: timedelta) -> str:
    moment = now(services_of(app))
    account = get_account(services_of(app), person.id)
    return services_of(app).tokens.refresh(account, now=moment, password_at=moment - age)


def without_claim(app: APIFlask, token: str, kind: str) -> str:
    """The token as a process of a version without the claim has made it."""
    key = services_of(app).tokens.key(kind)
    payload = jwt.decode(token, key, algorithms=[ALGORITHM], options={"verify_aud": False})
    del payload["password_at"]
    return jwt.encode(payload, key, algorithm=ALGORITHM)


# When it was proved


def test_whatever_takes_a_password_says_that_it_was_proved_now(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    before = now(services_of(app)).replace(microsecond=0)
    newcomer = {"username": "cat", "email": "cat@example.org", "password": PASSWORD}
    change = {"password": PASSWORD, "new_password": NEW_PASSWORD}
    deactivate(services_of(app), bob.id)
    credentials_of_bob = {"email": bob.email, "password": PASSWORD}

    answers = [
        client.post("/api/sign-up/", json=newcomer),
        client.post(SIGN_IN, json={"email": ann.email, "password": PASSWORD}),
        client.post(of(ann, "password"), headers=ann.auth, json=change),
        client.post(COME_BACK, json=credentials_of_bob),
    ]

    for response in answers:
        assert response.json is not None, response.text
        access, refresh = response.json["access"], response.json["refresh"]
        assert claims(app, access, ACCESS).fresh is True
        assert before <= proved_at(app, access, ACCESS) <= now(services_of(app))
        assert proved_at(app, refresh, REFRESH) == proved_at(app, access, ACCESS)


def test_a_refresh_hands_on_when_the_password_was_proved(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    refresh = old_refresh(app, ann, 20 * MINUTE)

    access = from_refresh(client, refresh)

    assert claims(app, access, ACCESS).fresh is False
    assert proved_at(app, access, ACCESS) == proved_at(app, refresh, REFRESH)


def test_a_refresh_token_of_before_the_claim_yields_a_token_without_it(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    refresh = without_claim(app, old_refresh(app, ann, MINUTE), REFRESH)

    access = claims(app, from_refresh(client, refresh), ACCESS)

    assert (access.fresh, access.password_at) == (False, None)


def test_the_web_apps_button_works_with_a_token_of_before_the_claim(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    before = belongings(services_of(app), bob)
    token = without_claim(app, signed_in(client, ann)["access"], ACCESS)

    response = client.delete(of(ann, "delete"), headers=bearer(token), json=ann.id)

    assert response.status_code == 204
    assert belongings(services_of(app), bob) == before


@pytest.mark.parametrize(("age", "status"), [(14 * MINUTE, 204), (16 * MINUTE, 401)], ids=str)
def test_such_a_token_is_as_old_as_its_issue(new_app: NewApp, age: timedelta, status: int) -> None:
    app = new_app(FRESH_TOKEN_MINUTES="15")
    ann = make_person(services_of(app), "ann")
    account = get_account(services_of(app), ann.id)
    token = without_claim(app, access_token(services_of(app), account, age=age), ACCESS)

    response = app.test_client().delete(of(ann, "delete"), headers=bearer(token))

    assert response.status_code == status


# Deleting, and coming back


def undo(client: FlaskClient, person: Person, token: str, **body: str) -> str:
    headers = {**bearer(token), **REPRESENTED}
    response = client.delete(of(person, "delete"), headers=headers, json=body or None)
    assert response.status_code == 200, response.text
    assert response.json is not None
    return str(response.json["recovery_token"])


def test_a_deletion_by_an_old_session_yields_a_token_that_opens_status_and_return_only(
    new_app: NewApp,
) -> None:
    app = new_app(DELETION_CONFIRMATION="none", FRESH_TOKEN_MINUTES="15")
    client, ann = app.test_client(), make_person(services_of(app), "ann")
    access = from_refresh(client, old_refresh(app, ann, 20 * MINUTE))

    recovery = undo(client, ann, access)

    assert proved_at(app, recovery, RECOVERY) == proved_at(app, access, ACCESS)
    status = client.get(of(ann, "deletion"), headers=bearer(recovery))
    assert status.status_code == 200
    for method in ("GET", "POST"):
        taken = client.open(of(ann, "export"), method=method, headers=bearer(recovery))
        assert (taken.status_code, taken.data) == (401, CONFIRM)
    back = client.post(COME_BACK, json={"token": recovery})
    assert back.json == {
        "user_id": ann.id,
        "state": "active",
        "deactivated_at": None,
        "purge_at": None,
        "deactivated_by": None,
        "can_reactivate": False,
    }
    again = client.post(COME_BACK, json={"token": recovery})
    assert (again.status_code, again.data) == (401, NOT_VALID)
    assert signed_in(client, ann)["user"]["id"] == ann.id


def test_a_token_from_a_refresh_gets_no_better_one_however_young_its_password(
    new_app: NewApp,
) -> None:
    app = new_app(DELETION_CONFIRMATION="none")
    client, ann = app.test_client(), make_person(services_of(app), "ann")

    recovery = undo(client, ann, from_refresh(client, signed_in(client, ann)["refresh"]))

    assert claims(app, recovery, RECOVERY).fresh is False
    back = client.post(COME_BACK, json={"token": recovery})
    assert back.json is not None
    assert "access" not in back.json


def test_a_password_in_a_deletion_is_one_that_is_proved_now(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    access = from_refresh(client, old_refresh(app, ann, 20 * MINUTE))
    before = now(services_of(app)).replace(microsecond=0)

    recovery = undo(client, ann, access, password=PASSWORD)

    assert proved_at(app, recovery, RECOVERY) >= before
    assert client.get(of(ann, "export"), headers=bearer(recovery)).status_code == 200
    back = client.post(COME_BACK, json={"token": recovery})
    assert back.json is not None
    assert proved_at(app, back.json["access"], ACCESS) == proved_at(app, recovery, RECOVERY)


def test_a_password_that_nobody_has_looked_at_proves_nothing(new_app: NewApp) -> None:
    app = new_app(DELETION_CONFIRMATION="none")
    client, ann = app.test_client(), make_person(services_of(app), "ann")
    access = from_refresh(client, old_refresh(app, ann, 20 * MINUTE))

    recovery = undo(client, ann, access, password="a guess")

    assert claims(app, recovery, RECOVERY).fresh is False


def test_a_session_that_comes_of_a_return_is_no_fresher_than_the_password_behind_it(
    new_app: NewApp,
) -> None:
    app = new_app(FRESH_TOKEN_MINUTES="15")
    client, ann = app.test_client(), make_person(services_of(app), "ann")
    moment = now(services_of(app))
    away = deactivate(services_of(app), ann.id)
    recovery = services_of(app).tokens.recovery(
        away, now=moment - MINUTE, fresh=True, password_at=moment - 16 * MINUTE
    )

    back = client.post(COME_BACK, json={"token": recovery})

    assert back.json is not None
    access, refresh = back.json["access"], back.json["refresh"]
    assert proved_at(app, access, ACCESS) == proved_at(app, refresh, REFRESH)
    assert proved_at(app, access, ACCESS) == proved_at(app, recovery, RECOVERY)
    again = client.delete(of(ann, "delete"), headers=bearer(access))
    assert (again.status_code, again.data) == (401, CONFIRM)


def test_a_recovery_token_of_before_the_claim_opens_status_and_return_only(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    away = deactivate(services_of(app), ann.id)
    token = without_claim(app, recovery_token(services_of(app), away), RECOVERY)

    taken = client.get(of(ann, "export"), headers=bearer(token))
    back = client.post(COME_BACK, json={"token": token})

    assert (taken.status_code, taken.data) == (401, CONFIRM)
    assert back.json is not None
    assert (back.json["state"], "access" in back.json) == ("active", False)


# A password set by mail


def test_after_a_reset_in_the_grace_period_the_data_waits_a_day(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    away = deactivate(services_of(app), ann.id)
    link = services_of(app).tokens.password_reset(away, now=now(services_of(app)))
    reset = client.post(RESET, json={"token": link, "new_password": NEW_PASSWORD})
    told = client.post(SIGN_IN, json={"email": ann.email, "password": NEW_PASSWORD})
    assert reset.status_code == 200
    assert told.json is not None
    account = get_account(services_of(app), ann.id)
    mailed = services_of(app).tokens.mailed(account, now=now(services_of(app)))
    before, spared = everything(services_of(app)), belongings(services_of(app), bob)

    taken = [
        client.get(of(ann, "export"), headers=bearer(told.json["recovery_token"])),
        client.post(of(ann, "export"), headers=bearer(mailed), json={"password": NEW_PASSWORD}),
    ]

    assert account.password_changed_at is not None
    over_at = account.password_changed_at + timedelta(days=1, minutes=1)
    for response in taken:
        assert response.status_code == 409
        assert response.json == {
            "error": "The password was set by a mailed link a short time ago. "
            f"The data can be exported from {over_at:%-d %B %Y at %H:%M} UTC on.",
            "code": "recent_change",
        }
    assert everything(services_of(app)) == before
    assert belongings(services_of(app), bob) == spared


def test_a_return_makes_the_wait_no_shorter_and_opens_the_vault(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    """Whoever reads the mailbox gives the account back in a moment."""
    away, spared = deactivate(services_of(app), ann.id), belongings(services_of(app), bob)
    link = services_of(app).tokens.password_reset(away, now=now(services_of(app)))
    client.post(RESET, json={"token": link, "new_password": NEW_PASSWORD})
    back = client.post(COME_BACK, json={"email": ann.email, "password": NEW_PASSWORD})
    assert back.json is not None
    session = bearer(back.json["access"])

    taken = client.get(of(ann, "export"), headers=session)
    vault = client.get("/api/view-all-saved-passwords/", headers=session)

    assert taken.status_code == 409
    assert taken.json is not None
    assert taken.json["code"] == "recent_change"
    assert vault.status_code == 200
    assert belongings(services_of(app), bob) == spared


# Signing out


def test_signing_out_ends_every_session_and_nobody_elses(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    here, there = signed_in(client, ann), signed_in(client, ann)
    before = belongings(services_of(app), bob)
    account = get_account(services_of(app), ann.id)
    link = services_of(app).tokens.password_reset(account, now=now(services_of(app)))

    response = client.post(SIGN_OUT, headers=bearer(here["access"]))

    assert (response.status_code, response.data) == (204, b"")
    for session in (here, there):
        dead = client.get("/api/profile/", headers=bearer(session["access"]))
        assert (dead.status_code, dead.data) == (401, NOT_VALID)
        refused = client.post(REFRESHING, json={"refresh": session["refresh"]})
        assert (refused.status_code, refused.data) == (401, NOT_VALID)
    reset = client.post(RESET, json={"token": link, "new_password": NEW_PASSWORD})
    assert (reset.status_code, reset.data) == (401, NOT_VALID)
    assert signed_in(client, ann)["user"]["id"] == ann.id
    (event,) = events(services_of(app), "account.signed_out")
    assert (event.subject, event.actor, event.actor_kind) == (ann.public_id, ann.public_id, "owner")
    assert (event.details, event.epoch) == ({}, None)
    assert effects(services_of(app)) == []
    assert client.get("/api/profile/", headers=bob.auth).status_code == 200
    assert belongings(services_of(app), bob) == before


@pytest.mark.parametrize("body", [b"", b"null", b"5", b"{", b"\xff" * 100_000], ids=len)
def test_an_old_session_signs_out_whatever_its_body(
    app: APIFlask, client: FlaskClient, ann: Person, body: bytes
) -> None:
    token = from_refresh(client, old_refresh(app, ann, timedelta(days=20)))

    response = client.post(SIGN_OUT, headers=bearer(token), data=body)

    assert response.status_code == 204


def test_a_second_time_there_is_no_session_to_end(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    client.post(SIGN_OUT, headers=ann.auth)
    before = everything(services_of(app), attempts=True)

    again = client.post(SIGN_OUT, headers=ann.auth)

    assert (again.status_code, again.data) == (401, NOT_VALID)
    assert everything(services_of(app), attempts=True) == before


def test_of_two_at_once_the_later_one_finds_its_session_ended(app: APIFlask, ann: Person) -> None:
    services = services_of(app)
    with services.writing() as session:
        credentials.end_sessions(session, ann.id, epoch=0)

    with services.writing() as session, pytest.raises(TokenNotValid):
        credentials.end_sessions(session, ann.id, epoch=0)

    assert get_account(services, ann.id).epoch == 1
    assert len(events(services, "account.signed_out")) == 1


def test_who_signs_out_and_deletes_is_purged_as_was_promised(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    """The epoch is raised before the promise, whose witness says the later one."""
    before = belongings(services_of(app), bob)
    client.post(SIGN_OUT, headers=ann.auth)
    client.delete(of(ann, "delete"), headers=bearer(signed_in(client, ann)["access"]))
    promised = get_account(services_of(app), ann.id).purge_at
    assert promised is not None

    early = sweeps.sweep(services_of(app), promised - SECOND)
    result = sweeps.sweep(services_of(app), promised)

    assert (early.purged_ids, result.purged_ids) == ([], [ann.id])
    assert belongings(services_of(app), bob) == before


def test_in_the_grace_period_there_is_no_session_to_end(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    away = deactivate(services_of(app), ann.id)
    mailed = services_of(app).tokens.mailed(away, now=now(services_of(app)))
    before = everything(services_of(app))

    for token in (ann.token, mailed, recovery_token(services_of(app), away)):
        response = client.post(SIGN_OUT, headers=bearer(token))
        assert (response.status_code, response.data) == (401, NOT_VALID)

    assert everything(services_of(app)) == before
