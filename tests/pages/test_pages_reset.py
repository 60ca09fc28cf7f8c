"""The page behind the link of a forgotten password."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from apiflask import APIFlask
from werkzeug.http import parse_date

from tests.conftest import NewApp
from tests.support.factories import PASSWORD, Person, make_person, services_of
from tests.support.moments import now
from tests.support.state import belongings, effects, everything

from .conftest import Browser, account_of, follow, heading, promise, reset_token, words

NEW_PASSWORD = "nine purple otters sing"
PATH = "/reset-password/"


@pytest.fixture
def cid(app: APIFlask) -> Person:
    """Who has forgotten the password of an active account."""
    return make_person(services_of(app), "cid")


def follow_reset(app: APIFlask, person: Person) -> Browser:
    return follow(app.test_client(), PATH, reset_token(app, person))


def sign_in(app: APIFlask, person: Person, password: str) -> int:
    body = {"email": person.email, "password": password}
    return app.test_client().post("/api/sign-in/", json=body).status_code


def test_the_token_moves_into_a_cookie_of_its_own_page_for_an_hour(
    app: APIFlask, cid: Person
) -> None:
    before = now(services_of(app)).replace(microsecond=0)
    token = reset_token(app, cid)
    after = now(services_of(app))

    response = app.test_client().get(PATH + token)

    value, *attributes = response.headers["Set-Cookie"].split("; ")
    assert value == f"reset_password={token}"
    assert {"HttpOnly", "SameSite=Lax", "Path=/reset-password/"} <= set(attributes)
    [expires] = [one.removeprefix("Expires=") for one in attributes if one.startswith("Expires=")]
    expires_at = parse_date(expires)
    assert expires_at is not None
    assert before <= expires_at - timedelta(hours=1) <= after


def test_opening_the_link_ten_times_changes_nothing(app: APIFlask, cid: Person) -> None:
    token = reset_token(app, cid)
    before = everything(services_of(app))

    pages = [app.test_client().get(PATH + token, follow_redirects=True) for _ in range(10)]

    assert {heading(page) for page in pages} == {"Choose a new password"}
    assert everything(services_of(app)) == before


def test_the_form_sets_the_password_and_ends_every_session(
    app: APIFlask, cid: Person, bob: Person
) -> None:
    others = belongings(services_of(app), bob)
    browser = follow_reset(app, cid)

    response = browser.send(new_password=NEW_PASSWORD)

    assert response.status_code == 200
    assert heading(response) == "Your password is changed"
    assert sign_in(app, cid, NEW_PASSWORD) == 200
    assert sign_in(app, cid, PASSWORD) == 401
    assert app.test_client().get("/api/profile/", headers=cid.auth).status_code == 401
    assert len(effects(services_of(app), "mail.password_changed")) == 1
    assert belongings(services_of(app), bob) == others


def test_the_link_sets_a_password_once(app: APIFlask, cid: Person) -> None:
    browser = follow_reset(app, cid)
    key = browser.form_key()
    browser.send(new_password=NEW_PASSWORD)
    before = everything(services_of(app))

    for response in (
        browser.open(),
        browser.client.post(PATH, data={"form_key": key, "new_password": "another long phrase"}),
    ):
        assert response.status_code == 410
        assert heading(response) == "This link has been used"
    assert everything(services_of(app)) == before


@pytest.mark.parametrize(
    ("password", "sentence"),
    [
        ("", "This field may not be blank."),
        ("x7$kq!z", "Use at least 8 characters."),
        ("password", "This password is too easy to guess. Add more words or characters."),
        ("x7$kq!zü" * 17, "Use at most 128 characters."),
    ],
)
def test_a_password_that_is_not_good_enough_is_said_next_to_its_field(
    app: APIFlask, cid: Person, password: str, sentence: str
) -> None:
    browser = follow_reset(app, cid)
    before = everything(services_of(app))

    response = browser.send(new_password=password)

    assert response.status_code == 400
    assert f'<a href="#new-password">{sentence}</a>' in response.text
    field = re.search(r'<input type="password" id="new-password"[^>]*>', response.text)
    assert field is not None
    assert 'aria-describedby="new-password-hint new-password-problem"' in field[0]
    assert "value" not in field[0]
    assert everything(services_of(app)) == before


def test_the_hint_names_the_least_length_that_is_taken(app: APIFlask, cid: Person) -> None:
    browser = follow_reset(app, cid)

    assert "At least 8 characters" in words(browser.open())
    assert browser.send(new_password="x7$kq!zü").status_code == 200


def test_in_the_grace_period_it_sets_the_password_and_does_not_reactivate(
    app: APIFlask, ann: Person
) -> None:
    browser = follow_reset(app, ann)

    response = browser.send(new_password=NEW_PASSWORD)

    assert response.status_code == 200
    assert "still going to be deleted" in words(response)
    assert account_of(app, ann).state(now(services_of(app))) == "deactivated"
    assert sign_in(app, ann, NEW_PASSWORD) == 403


def test_after_an_hour_the_link_says_that_it_is_too_old(app: APIFlask, cid: Person) -> None:
    browser = follow(
        app.test_client(), PATH, reset_token(app, cid, age=timedelta(hours=1, minutes=2))
    )
    before = everything(services_of(app))

    response = browser.open()

    assert response.status_code == 410
    assert heading(response) == "This link is too old"
    assert everything(services_of(app)) == before


def test_of_a_due_and_of_a_purged_account_it_says_so(app: APIFlask, ann: Person) -> None:
    browser = follow_reset(app, ann)
    promise(app, ann, purge_in=timedelta(0))

    due = browser.open()
    services_of(app).sweep()
    purged = browser.open()

    assert (due.status_code, heading(due)) == (410, "Your account is being deleted")
    assert (purged.status_code, heading(purged)) == (410, "Your account has been deleted")


def test_a_form_of_another_page_sets_no_password(app: APIFlask, cid: Person) -> None:
    browser = follow_reset(app, cid)
    before = everything(services_of(app))

    without_key = browser.client.post(PATH, data={"new_password": NEW_PASSWORD})
    cross_site = browser.send({"Sec-Fetch-Site": "cross-site"}, new_password=NEW_PASSWORD)

    assert (without_key.status_code, cross_site.status_code) == (403, 403)
    assert everything(services_of(app)) == before


def test_too_many_tries_from_one_address_have_to_wait(new_app: NewApp) -> None:
    app = new_app(RATE_LIMITS="on")
    browser = follow_reset(app, make_person(services_of(app), "cid"))
    key = browser.form_key()
    form = {"form_key": key, "new_password": "short"}
    for _ in range(60):
        assert browser.client.post(PATH, data=form).status_code == 400

    response = browser.client.post(PATH, data=form)

    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) >= 1
    assert "Too many tries" in words(response)
