"""The page on which an account is kept by e-mail and password, and what all pages say to whom."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Callable
from datetime import timedelta

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from accountsvc.accounts import lifecycle
from accountsvc.db.audit import Actor
from accountsvc.pages import messages
from tests.conftest import NewApp
from tests.support.factories import (
    PASSWORD,
    Person,
    deactivate,
    make_person,
    make_promise,
    run_sql,
    services_of,
)
from tests.support.state import belongings, events, everything

from .conftest import (
    Browser,
    account_of,
    follow,
    follow_mailed,
    heading,
    promise,
    reset_token,
    words,
)

PATH = "/keep-account/"
NEW_PASSWORD = "nine purple otters sing"


@pytest.fixture
def cid(app: APIFlask) -> Person:
    """Whose account is active."""
    return make_person(services_of(app), "cid")


def at_the_page(app: APIFlask) -> Browser:
    return Browser(app.test_client(), PATH, "")


def keep(app: APIFlask, person: Person, password: str = PASSWORD) -> TestResponse:
    return at_the_page(app).send(email=person.email, password=password)


# Keep by e-mail and password


@pytest.mark.parametrize("typed", [str, str.upper, lambda email: f" {email} "])
def test_the_password_is_enough_to_keep_the_account_without_a_link(
    app: APIFlask, ann: Person, bob: Person, typed: Callable[[str], str]
) -> None:
    others, before = belongings(services_of(app), bob), belongings(services_of(app), ann)

    response = at_the_page(app).send(email=typed(ann.email), password=PASSWORD)

    assert response.status_code == 200
    assert heading(response) == "Your account is back"
    after = belongings(services_of(app), ann)
    assert account_of(app, ann).is_active
    assert (after["passwords"], after["avatar"]) == (before["passwords"], before["avatar"])
    (event,) = events(services_of(app), "account.reactivated")
    assert (event.subject, event.actor_kind) == (ann.public_id, "owner")
    assert belongings(services_of(app), bob) == others


def test_the_page_opens_no_session_and_shows_nothing_of_the_account(
    app: APIFlask, ann: Person
) -> None:
    browser = at_the_page(app)

    response = browser.send(email=ann.email, password=PASSWORD)

    cookie = browser.client.get_cookie("keep_account", path=PATH)
    assert cookie is not None
    assert "." not in cookie.value
    for private in (ann.email, "Ann", ann.avatar, str(ann.public_id), PASSWORD):
        assert private not in response.text


def test_opening_the_page_ten_times_changes_nothing(app: APIFlask, ann: Person) -> None:
    before = everything(services_of(app))

    for path in (PATH, PATH.rstrip("/")):
        for _ in range(5):
            page = app.test_client().get(path)
            assert (page.status_code, heading(page)) == (200, "Keep your account")
            app.test_client().head(path)

    assert everything(services_of(app)) == before


@pytest.mark.parametrize(
    ("email", "password", "status", "said"),
    [
        ("ann@example.org", "wrong password", 403, "is not right"),
        ("nobody@example.org", PASSWORD, 403, "is not right"),
        ("x" * 300, PASSWORD, 403, "is not right"),
        ("ann@example.org", "x" * 50_000, 403, "is not right"),
        ("", PASSWORD, 400, "Enter your email address."),
        (" ", PASSWORD, 400, "Enter your email address."),
        ("ann@example.org", "", 400, "Enter your password."),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(
    app: APIFlask, ann: Person, email: str, password: str, status: int, said: str
) -> None:
    before = everything(services_of(app))

    response = at_the_page(app).send(email=email, password=password)

    assert response.status_code == status
    assert said in words(response)
    assert 'role="alert"' in response.text
    assert not password.strip() or f'value="{password}"' not in response.text
    assert account_of(app, ann).purge_at is not None
    assert {**everything(services_of(app)), "audit_events": None} == {
        **before,
        "audit_events": None,
    }


def test_a_wrong_password_and_an_unknown_e_mail_get_one_page(app: APIFlask, ann: Person) -> None:
    browser = at_the_page(app)
    pages = [
        browser.send(email=email, password="wrong").text.replace(email, "")
        for email in (ann.email, "nobody@example.org")
    ]

    assert pages[0] == pages[1]


def test_the_e_mail_stays_in_the_form_and_is_no_mark(app: APIFlask, ann: Person) -> None:
    response = at_the_page(app).send(email='"><script>x</script>', password="wrong")

    assert "<script>x" not in response.text
    assert "&lt;script&gt;x" in response.text


def test_wrong_passwords_count_as_they_do_everywhere(new_app: NewApp) -> None:
    app = new_app(RATE_LIMITS="on")
    ann = make_person(services_of(app), "ann")
    deactivate(services_of(app), ann.id)
    browser = at_the_page(app)
    for _ in range(10):
        assert browser.send(email=ann.email, password="wrong").status_code == 403

    refused = browser.send(email=ann.email, password=PASSWORD)
    by_api = app.test_client().post(
        "/api/sign-in/", json={"email": ann.email, "password": PASSWORD}
    )

    assert (refused.status_code, by_api.status_code) == (429, 429)
    assert int(refused.headers["Retry-After"]) >= 1
    assert "Too many tries" in words(refused)


def test_an_active_account_is_said_to_be_active_to_its_owner_alone(
    app: APIFlask, cid: Person
) -> None:
    right, wrong = keep(app, cid), keep(app, cid, "wrong")

    assert (right.status_code, heading(right)) == (409, "Your account is active")
    assert wrong.status_code == 403
    assert "active" not in words(wrong)


def test_a_due_account_is_over_also_for_the_right_password(app: APIFlask, ann: Person) -> None:
    promise(app, ann, purge_in=timedelta(0))
    before = everything(services_of(app))

    response = keep(app, ann)

    assert (response.status_code, heading(response)) == (410, "Your account is being deleted")
    assert everything(services_of(app)) == before


def test_of_many_presses_at_once_one_keeps_and_the_others_say_so(
    app: APIFlask, ann: Person
) -> None:
    browsers = [at_the_page(app) for _ in range(6)]
    keys = [browser.form_key() for browser in browsers]
    start, answers = threading.Barrier(len(browsers)), []

    def press(number: int) -> None:
        start.wait()
        form = {"form_key": keys[number], "email": ann.email, "password": PASSWORD}
        answers.append(browsers[number].client.post(PATH, data=form).status_code)

    threads = [threading.Thread(target=press, args=(number,)) for number in range(len(keys))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == [200] + [409] * (len(browsers) - 1)
    assert len(events(services_of(app), "account.reactivated")) == 1


def test_a_form_of_another_site_keeps_nothing_and_tries_no_password(
    app: APIFlask, ann: Person
) -> None:
    before = everything(services_of(app))
    form = {"email": ann.email, "password": PASSWORD}
    other = at_the_page(app).form_key()
    client = app.test_client()

    refused = [
        client.post(PATH, data=form),
        client.post(PATH, data={**form, "form_key": other}),
        at_the_page(app).send({"Sec-Fetch-Site": "cross-site"}, **form),
        at_the_page(app).send({"Origin": "https://evil.example"}, **form),
    ]

    for response in refused:
        assert (response.status_code, heading(response)) == (403, "Nothing was changed")
        assert f'<a href="{PATH}">' in response.text
    assert everything(services_of(app)) == before


def test_over_tls_no_other_host_can_set_the_cookie_of_the_page(new_app: NewApp) -> None:
    app = new_app(PUBLIC_URL="https://accounts.example.org")

    cookie = app.test_client().get(PATH).headers["Set-Cookie"]

    value, *attributes = cookie.split("; ")
    assert value.startswith("__Host-keep_account=")
    assert {"Secure", "HttpOnly", "SameSite=Lax", "Path=/"} <= set(attributes)


def test_the_page_is_shut_to_everything_but_itself(app: APIFlask, ann: Person) -> None:
    for response in (app.test_client().get(PATH), keep(app, ann, "wrong"), keep(app, ann)):
        policy = response.headers["Content-Security-Policy"]
        assert "form-action 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["Cache-Control"] == "no-store"
        assert "script" not in response.text


def test_signing_in_names_the_page_and_the_page_keeps_the_account(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    refused = client.post("/api/sign-in/", json={"email": ann.email, "password": PASSWORD})
    assert refused.json is not None

    assert f"on the page http://localhost:8000{PATH} or" in refused.json["error"]
    assert keep(app, ann).status_code == 200
    again = client.post("/api/sign-in/", json={"email": ann.email, "password": PASSWORD})
    assert again.status_code == 200


def test_a_password_is_the_same_on_the_page_however_a_system_types_it(
    app: APIFlask, client: FlaskClient, cid: Person
) -> None:
    password = "caf\u00e9 au lait, deux sucres"
    follow(client, "/reset-password/", reset_token(app, cid)).send(new_password=password)
    deactivate(services_of(app), cid.id)

    response = keep(app, cid, unicodedata.normalize("NFD", password))

    assert response.status_code == 200


# What pages say to whom


def test_a_link_that_was_replaced_leads_to_the_newest_mail_the_page_and_the_support(
    app: APIFlask, ann: Person
) -> None:
    browser = follow_mailed(app, ann)
    run_sql(services_of(app), "UPDATE accounts SET epoch = epoch + 1")

    page = browser.open()

    assert (page.status_code, heading(page)) == (410, "This link is out of date")
    assert "Open the link in our newest mail" in words(page)
    assert f'<a href="{PATH}">' in page.text
    assert "contact the support" in words(page)


def _switch_off(app: APIFlask, person: Person, by: str) -> None:
    deactivate(services_of(app), person.id, by=by)


@pytest.mark.parametrize("by", ["staff", "operator"])
def test_an_old_link_of_an_account_that_the_staff_switched_off_says_whom_to_ask(
    app: APIFlask, ann: Person, by: str
) -> None:
    browser = follow_mailed(app, ann)
    browser.send(action="keep")
    _switch_off(app, ann, by)
    before = everything(services_of(app))

    page = browser.open()

    assert (page.status_code, heading(page)) == (410, "This link is out of date")
    assert "contact the support" in words(page)
    assert "newest mail" not in words(page)
    assert PATH not in page.text
    assert everything(services_of(app)) == before


@pytest.mark.parametrize("by", ["staff", "operator"])
def test_a_reset_of_an_account_that_the_staff_switched_off_says_whom_to_ask(
    app: APIFlask, cid: Person, by: str
) -> None:
    _switch_off(app, cid, by)
    late = reset_token(app, cid, age=timedelta(hours=1, minutes=2))
    browser = follow(app.test_client(), "/reset-password/", reset_token(app, cid))

    form = browser.open()
    old = follow(app.test_client(), "/reset-password/", late).open()
    done = browser.send(new_password=NEW_PASSWORD)
    used = browser.open()
    refused = keep(app, cid, NEW_PASSWORD)
    by_api = app.test_client().post(
        "/api/sign-in/", json={"email": cid.email, "password": NEW_PASSWORD}
    )

    pages = (form, old, done, used, refused)
    assert [page.status_code for page in pages] == [200, 410, 200, 410, 403]
    for page in pages:
        assert "contact the support" in words(page)
        assert "newest mail" not in words(page)
        assert "Sign in" not in words(page)
    assert by_api.json is not None
    assert by_api.json["error"].endswith("To keep it, contact support before that time.")
    assert not account_of(app, cid).is_active


def test_a_reset_in_the_grace_period_leads_to_the_page_that_keeps_the_account(
    app: APIFlask, ann: Person
) -> None:
    browser = follow(app.test_client(), "/reset-password/", reset_token(app, ann))

    form = browser.open()
    done = browser.send(new_password=NEW_PASSWORD)
    used = browser.open()

    assert "a new password alone does not keep it" in words(form)
    for page in (done, used):
        assert f'<a href="{PATH}">' in page.text
        assert "going to be deleted" in words(page)
    assert keep(app, ann, NEW_PASSWORD).status_code == 200


def test_a_reset_link_that_was_not_used_is_not_said_to_be_used(
    app: APIFlask, cid: Person, bob: Person
) -> None:
    others = belongings(services_of(app), bob)
    browser = follow(app.test_client(), "/reset-password/", reset_token(app, cid))
    deactivate(services_of(app), cid.id)

    left = browser.open()
    follow_mailed(app, cid).send(action="keep")
    back = browser.open()
    _switch_off(app, cid, "staff")
    off = browser.open()

    for page in (left, back, off):
        assert (page.status_code, heading(page)) == (410, "This link is out of date")
        assert "was deleted or given back" in words(page)
    assert f'<a href="{PATH}">' in left.text
    assert PATH not in back.text + off.text
    assert "contact the support" in words(off)
    assert belongings(services_of(app), bob) == others


def test_an_account_that_the_staff_gave_back_says_that_its_link_does_nothing(
    app: APIFlask, ann: Person
) -> None:
    browser = follow_mailed(app, ann)
    with services_of(app).writing() as session:
        lifecycle.reactivate(session, ann.id, promise=make_promise(), by=Actor("staff", None))

    page = browser.open()

    assert (page.status_code, heading(page)) == (409, "Your account is active")
    assert "given back in another way" in words(page)


def test_a_page_for_whom_the_staff_has_switched_off_names_the_support_and_no_other_way() -> None:
    by_standing = (
        messages.REPLACED,
        messages.PASSWORD_SET,
        messages.RESET_USED,
        messages.RESET_VOID,
        messages.RESET_EXPIRED,
    )
    pages = [messages.SWITCHED_OFF, *(each[messages.OFF] for each in by_standing)]

    for page in pages:
        said = " ".join(page.paragraphs)
        assert "contact the support" in said, page.title
        assert not page.keep
        for wrong in ("sign in", "Sign in", "newest mail", "new link"):
            assert wrong not in said, page.title
