"""The pages about another address: one that confirms it, and one that calls it off."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from apiflask import APIFlask
from werkzeug.http import parse_date

from accountsvc.db.models import PENDING_FOR
from accountsvc.db.rows import find
from tests.conftest import NewApp
from tests.support.addresses import CANCEL, CONFIRM, ask_address
from tests.support.factories import (
    PASSWORD,
    Person,
    deactivate,
    make_account,
    make_person,
    services_of,
)
from tests.support.moments import now
from tests.support.state import belongings, effects, events, everything

from .conftest import (
    Browser,
    account_of,
    cancel_token,
    confirm_token,
    follow,
    heading,
    promise,
    reset_token,
    words,
)

NEW = "new@example.org"
Token = Callable[[APIFlask, Person], str]


@pytest.fixture
def cid(app: APIFlask) -> Person:
    """Who has asked for another address."""
    person = make_person(services_of(app), "cid")
    ask_address(services_of(app), person.id, NEW)
    return person


def follow_confirm(app: APIFlask, person: Person) -> Browser:
    return follow(app.test_client(), CONFIRM, confirm_token(app, person))


def follow_cancel(app: APIFlask, person: Person) -> Browser:
    return follow(app.test_client(), CANCEL, cancel_token(app, person))


def sign_in(app: APIFlask, email: str, password: str = PASSWORD) -> int:
    body = {"email": email, "password": password}
    return app.test_client().post("/api/sign-in/", json=body).status_code


def age_pending(app: APIFlask, person: Person, age: timedelta) -> None:
    """Have the pending address been asked for *age* ago."""
    with services_of(app).writing() as session:
        account = find(session, person.id)
        assert account is not None
        account.pending_email_at = now(services_of(app)) - age


# Both pages


@pytest.mark.parametrize(
    ("path", "token", "title", "cookie"),
    [
        (CONFIRM, confirm_token, "Use this email address?", "confirm_email"),
        (CANCEL, cancel_token, "Keep your email address?", "cancel_email"),
    ],
)
def test_opening_a_link_ten_times_changes_nothing_and_hides_its_token_for_as_long_as_it_works(
    app: APIFlask, cid: Person, path: str, token: Token, title: str, cookie: str
) -> None:
    link = path + token(app, cid)
    asked_at = account_of(app, cid).pending_email_at
    assert asked_at is not None
    before = everything(services_of(app))

    first = app.test_client().get(link)
    pages = [app.test_client().get(link, follow_redirects=True) for _ in range(10)]

    assert {heading(page) for page in pages} == {title}
    assert everything(services_of(app)) == before
    value, *attributes = first.headers["Set-Cookie"].split("; ")
    assert value == f"{cookie}={link.removeprefix(path)}"
    assert {"HttpOnly", "SameSite=Lax", f"Path={path}"} <= set(attributes)
    [expires] = [one.removeprefix("Expires=") for one in attributes if one.startswith("Expires=")]
    assert parse_date(expires) == (asked_at + PENDING_FOR).replace(microsecond=0)


@pytest.mark.parametrize(("path", "token"), [(CONFIRM, confirm_token), (CANCEL, cancel_token)])
def test_a_form_of_another_place_changes_nothing(
    app: APIFlask, cid: Person, path: str, token: Token
) -> None:
    browser = follow(app.test_client(), path, token(app, cid))
    before = everything(services_of(app))

    without_key = browser.client.post(path, data={"password": PASSWORD})
    cross_site = browser.send({"Sec-Fetch-Site": "cross-site"}, password=PASSWORD)
    without_cookie = app.test_client().post(
        path, data={"form_key": browser.form_key(), "password": PASSWORD}
    )

    statuses = [one.status_code for one in (without_key, cross_site, without_cookie)]
    assert statuses == [403, 403, 400]
    assert everything(services_of(app)) == before


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (CONFIRM, cancel_token),
        (CONFIRM, reset_token),
        (CANCEL, confirm_token),
        (CANCEL, reset_token),
        ("/recover/", confirm_token),
        ("/recover/", cancel_token),
        ("/reset-password/", confirm_token),
        ("/reset-password/", cancel_token),
    ],
)
def test_no_page_takes_the_link_of_another(
    app: APIFlask, cid: Person, path: str, wrong: Token
) -> None:
    response = app.test_client().get(path + wrong(app, cid))

    assert (response.status_code, heading(response)) == (404, "This link is not complete")


@pytest.mark.parametrize("kind", [confirm_token, cancel_token])
def test_as_a_bearer_token_a_link_opens_nothing(app: APIFlask, cid: Person, kind: Token) -> None:
    headers = {"Authorization": f"Bearer {kind(app, cid)}"}
    calls = [
        ("GET", "/api/profile/"),
        ("PATCH", f"/api/profile/{cid.id}/update/"),
        ("DELETE", f"/api/profile/{cid.id}/delete/"),
        ("POST", f"/api/profile/{cid.id}/export/"),
        ("GET", f"/api/profile/{cid.id}/deletion/"),
        ("POST", f"/api/profile/{cid.id}/purge/"),
    ]
    before = everything(services_of(app))

    answers = [app.test_client().open(path, method=how, headers=headers) for how, path in calls]

    assert {one.status_code for one in answers} == {401}
    for call in ("profile/reactivate/", "password-reset/confirm/"):
        body = {"token": kind(app, cid), "new_password": "nine purple otters sing"}
        assert app.test_client().post(f"/api/{call}", json=body).status_code == 401
    assert everything(services_of(app)) == before


# Confirming


def test_the_right_password_makes_the_address_the_accounts(
    app: APIFlask, cid: Person, bob: Person
) -> None:
    others = belongings(services_of(app), bob)
    browser = follow_confirm(app, cid)
    assert NEW in words(browser.open())
    assert cid.email not in browser.open().text

    response = browser.send(password=PASSWORD)

    assert (response.status_code, heading(response)) == (200, "Your email address is changed")
    assert (sign_in(app, NEW), sign_in(app, cid.email)) == (200, 401)
    assert app.test_client().get("/api/profile/", headers=cid.auth).status_code == 200
    told = effects(services_of(app), "mail.address_changed")
    assert [one.payload for one in told] == [{"address": cid.email, "lane": 0}]
    assert len(events(services_of(app), "account.email_changed")) == 1
    assert belongings(services_of(app), bob) == others


@pytest.mark.parametrize(
    ("password", "status", "sentence"),
    [
        ("", 400, "Enter your password."),
        ("x" * 129, 400, "Use at most 128 characters."),
        ("not the password", 403, "This is not the password of the account."),
        ("é\0\ufffd", 403, "This is not the password of the account."),
        (PASSWORD + " ", 403, "This is not the password of the account."),
    ],
)
def test_without_the_right_password_nothing_changes_and_it_is_said_next_to_the_field(
    app: APIFlask, cid: Person, password: str, status: int, sentence: str
) -> None:
    browser = follow_confirm(app, cid)
    before = everything(services_of(app))

    response = browser.send(password=password)

    assert response.status_code == status
    assert f'<a href="#password">{sentence}</a>' in response.text
    field = re.search(r'<input type="password" id="password"[^>]*>', response.text)
    assert field is not None
    assert 'aria-describedby="password-problem"' in field[0]
    assert "value" not in field[0]
    assert everything(services_of(app)) == before


def test_a_wrong_password_here_counts_for_every_other_place_and_is_audited(
    new_app: NewApp,
) -> None:
    app = new_app(RATE_LIMITS="on")
    cid = make_person(services_of(app), "cid")
    ask_address(services_of(app), cid.id, NEW)
    browser = follow_confirm(app, cid)
    key = browser.form_key()

    def enter(password: str) -> Any:
        return browser.client.post(CONFIRM, data={"form_key": key, "password": password})

    tried = [enter("not the password").status_code for _ in range(10)]
    right = enter(PASSWORD)

    assert tried == [403] * 10
    assert right.status_code == 429
    assert int(right.headers["Retry-After"]) >= 1
    assert "Too many tries" in words(right)
    assert sign_in(app, cid.email) == 429
    assert len(events(services_of(app), "confirmation.failed")) == 10
    assert account_of(app, cid).email == cid.email


def test_who_has_guessed_for_the_address_before_keeps_its_owner_out_of_nothing(
    new_app: NewApp,
) -> None:
    app = new_app(RATE_LIMITS="on")
    cid = make_person(services_of(app), "cid")
    ask_address(services_of(app), cid.id, NEW)
    assert [sign_in(app, NEW, "a guess") for _ in range(11)] == [401] * 10 + [429]

    response = follow_confirm(app, cid).send(password=PASSWORD)

    assert response.status_code == 200
    assert sign_in(app, NEW) == 200


def test_an_address_that_another_account_has_meanwhile_is_said_so(
    app: APIFlask, cid: Person
) -> None:
    browser = follow_confirm(app, cid)
    make_account(services_of(app), "other", email=NEW)
    before = everything(services_of(app))

    response = browser.send(password=PASSWORD)

    assert response.status_code == 409
    assert "Another account has this address by now." in words(response)
    assert everything(services_of(app)) == before


def change_password(app: APIFlask, person: Person) -> None:
    body = {"password": PASSWORD, "new_password": "nine purple otters sing"}
    url = f"/api/profile/{person.id}/password/"
    assert app.test_client().post(url, headers=person.auth, json=body).status_code == 200


def ask_another(app: APIFlask, person: Person) -> None:
    ask_address(services_of(app), person.id, "third@example.org")


def end_and_ask_another(app: APIFlask, person: Person) -> None:
    change_password(app, person)
    ask_another(app, person)


def call_off(app: APIFlask, person: Person) -> None:
    assert follow_cancel(app, person).send().status_code == 200


def confirm(app: APIFlask, person: Person) -> None:
    assert follow_confirm(app, person).send(password=PASSWORD).status_code == 200


def leave(app: APIFlask, person: Person) -> None:
    deactivate(services_of(app), person.id)


def grow_old(app: APIFlask, person: Person) -> None:
    age_pending(app, person, PENDING_FOR)


VOID = "This link is out of date"
NOTHING_LEFT = "There is nothing to call off"


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("owner", "open the link in our newest mail to this address: it keeps the account"),
        ("staff", "our staff has switched it off. If it was not you who changed the address"),
    ],
)
def test_a_link_to_call_off_what_has_happened_says_that_the_account_is_being_deleted(
    app: APIFlask, cid: Person, by: str, said: str
) -> None:
    """It is in the mailbox of somebody who was moved away, and may be the owner."""
    browser = follow_cancel(app, cid)
    confirm(app, cid)
    deactivate(services_of(app), cid.id, by=by)

    response = browser.open()

    assert (response.status_code, heading(response)) == (410, "Your email address was changed")
    assert said in words(response)
    assert "contact the support" in words(response)


@pytest.mark.parametrize(
    ("end", "confirming", "cancelling"),
    [
        (change_password, VOID, NOTHING_LEFT),
        (end_and_ask_another, VOID, VOID),
        (call_off, VOID, NOTHING_LEFT),
        (confirm, "The email address was changed since", "Your email address was changed"),
        (leave, VOID, NOTHING_LEFT),
        (grow_old, VOID, NOTHING_LEFT),
    ],
)
def test_a_link_that_is_void_says_why_before_and_behind_its_form(
    app: APIFlask,
    cid: Person,
    end: Callable[[APIFlask, Person], None],
    confirming: str,
    cancelling: str,
) -> None:
    browsers = [follow_confirm(app, cid), follow_cancel(app, cid)]
    keys = [browser.form_key() for browser in browsers]
    end(app, cid)
    before = everything(services_of(app))

    opened = [browser.open() for browser in browsers]
    sent = [
        browser.client.post(browser.path, data={"form_key": key, "password": PASSWORD})
        for browser, key in zip(browsers, keys, strict=True)
    ]

    assert [heading(one) for one in opened] == [heading(one) for one in sent]
    assert [heading(one) for one in opened] == [confirming, cancelling]
    assert {one.status_code for one in (*opened, *sent)} == {410}
    assert everything(services_of(app)) == before


def test_a_cancel_link_after_the_deletion_says_that_the_account_can_be_kept(
    app: APIFlask, cid: Person
) -> None:
    browser = follow_cancel(app, cid)
    leave(app, cid)

    assert "If you want to keep it" in words(browser.open())


@pytest.mark.parametrize("follow", [follow_confirm, follow_cancel])
def test_whom_the_staff_has_switched_off_is_sent_to_the_support_by_a_link_about_an_address(
    app: APIFlask, cid: Person, follow: Callable[[APIFlask, Person], Any]
) -> None:
    browser = follow(app, cid)
    deactivate(services_of(app), cid.id, by="staff")

    said = words(browser.open())

    assert "contact the support" in said
    for closed in ("sign in with", "on the page below", "To keep it", "/keep-account/"):
        assert closed not in said


@pytest.mark.parametrize("token", [confirm_token, cancel_token])
def test_of_a_due_and_of_a_purged_account_it_says_so(
    app: APIFlask, cid: Person, token: Token
) -> None:
    path = CONFIRM if token is confirm_token else CANCEL
    browser = follow(app.test_client(), path, token(app, cid))
    leave(app, cid)
    promise(app, cid, purge_in=timedelta(0))

    due = browser.open()
    services_of(app).sweep()
    purged = browser.open()

    assert (due.status_code, heading(due)) == (410, "Your account is being deleted")
    assert (purged.status_code, heading(purged)) == (410, "Your account has been deleted")


# Calling off


def test_the_button_calls_it_off_and_nothing_else_changes(
    app: APIFlask, cid: Person, bob: Person
) -> None:
    others = belongings(services_of(app), bob)
    browser = follow_cancel(app, cid)
    assert NEW not in browser.open().text

    response = browser.send()

    assert (response.status_code, heading(response)) == (200, "Your email address stays")
    account = account_of(app, cid)
    assert (account.email, account.pending_email, account.epoch) == (cid.email, None, 0)
    (event,) = events(services_of(app), "account.email_cancelled")
    assert (event.subject, event.actor_kind) == (cid.public_id, "owner")
    assert sign_in(app, cid.email) == 200
    assert belongings(services_of(app), bob) == others


def test_a_page_that_was_open_calls_off_the_address_that_was_asked_for_behind_it(
    app: APIFlask, cid: Person, bob: Person
) -> None:
    others = belongings(services_of(app), bob)
    first, link = follow_cancel(app, cid), follow_confirm(app, cid)
    key = first.form_key()
    ask_another(app, cid)
    newest = follow_confirm(app, cid)

    response = first.client.post(CANCEL, data={"form_key": key})

    assert (response.status_code, heading(response)) == (200, "Your email address stays")
    assert "no link to another address works any more" in words(response)
    assert [heading(one.open()) for one in (link, newest)] == [VOID, VOID]
    account = account_of(app, cid)
    assert (account.email, account.pending_email) == (cid.email, None)
    assert heading(first.open()) == NOTHING_LEFT
    assert belongings(services_of(app), bob) == others


def test_a_link_opens_the_page_while_any_address_is_pending(app: APIFlask, cid: Person) -> None:
    first = follow_cancel(app, cid)
    call_off(app, cid)
    nothing = heading(first.open())
    ask_another(app, cid)

    page = first.open()

    assert (nothing, heading(page)) == (NOTHING_LEFT, "Keep your email address?")


def test_keeping_ones_address_is_never_too_often(new_app: NewApp) -> None:
    app = new_app(RATE_LIMITS="on")
    cid = make_person(services_of(app), "cid")
    statuses = set()

    for _ in range(61):
        ask_address(services_of(app), cid.id, NEW)
        statuses.add(follow_cancel(app, cid).send().status_code)

    assert statuses == {200}
