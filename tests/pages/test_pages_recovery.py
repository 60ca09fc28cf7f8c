"""The page behind the mailed link: what it says, what its forms do, and what it refuses."""

from __future__ import annotations

import io
import re
import threading
import zipfile
from datetime import timedelta

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from limits import parse
from werkzeug.http import http_date

from accountsvc.accounts import credentials
from accountsvc.adapters import throttle
from accountsvc.db.models import FormerAddress
from accountsvc.db.rows import find
from accountsvc.pages.recovery import time_left
from tests.conftest import NewApp
from tests.support.factories import (
    PASSWORD,
    Person,
    deactivate,
    make_person,
    make_promise,
    services_of,
)
from tests.support.moments import now
from tests.support.state import belongings, effects, events, everything, read_account

from .conftest import (
    account_of,
    follow,
    follow_mailed,
    heading,
    mailed_token,
    promise,
    reset_token,
    words,
)

SURE = {"action": "delete", "password": PASSWORD, "sure": "yes"}


# The link


def test_the_first_get_moves_the_token_out_of_the_address(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    token = mailed_token(app, ann)

    response = client.get(f"/recover/{token}")

    assert response.status_code == 303
    assert response.headers["Location"] == "/recover/"
    assert token not in response.text


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites_and_lasts_until_the_purge(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    purge_at = account_of(app, ann).purge_at
    assert purge_at is not None
    token = mailed_token(app, ann)

    cookie = client.get(f"/recover/{token}").headers["Set-Cookie"]

    value, *attributes = cookie.split("; ")
    assert value == f"recover={token}"
    assert set(attributes) == {
        "HttpOnly",
        "SameSite=Lax",
        "Path=/recover/",
        f"Expires={http_date(purge_at)}",
    }


@pytest.mark.parametrize(
    ("path", "name"), [("/recover/", "recover"), ("/reset-password/", "reset_password")]
)
def test_over_tls_no_other_host_can_set_the_cookie(new_app: NewApp, path: str, name: str) -> None:
    app = new_app(PUBLIC_URL="https://accounts.example.org")
    ann = make_person(services_of(app))
    deactivate(services_of(app), ann.id)
    token = mailed_token(app, ann) if name == "recover" else reset_token(app, ann)
    client = app.test_client()
    # A subdomain can set a cookie of the plain name for its whole domain.
    client.set_cookie(name, token, path=path)

    unread = client.get(path)
    response = client.get(f"{path}{token}")

    assert unread.status_code == 400
    assert heading(unread) == "Open the link in your mail"
    value, *attributes = response.headers["Set-Cookie"].split("; ")
    assert value == f"__Host-{name}={token}"
    assert {"Secure", "HttpOnly", "SameSite=Lax", "Path=/"} <= set(attributes)
    assert not [one for one in attributes if one.startswith("Domain")]
    assert client.get(path).status_code == 200


def test_a_mail_scanner_that_opens_the_link_ten_times_changes_nothing(
    app: APIFlask, ann: Person
) -> None:
    token = mailed_token(app, ann)
    before = everything(services_of(app))

    for _ in range(10):
        scanner = app.test_client()
        scanner.head(f"/recover/{token}")
        scanner.options(f"/recover/{token}")
        page = scanner.get(f"/recover/{token}", follow_redirects=True)
        scanner.head("/recover/")
        scanner.options("/recover/")
        scanner.get("/recover/?action=keep&action=delete")

    assert page.status_code == 200
    assert everything(services_of(app)) == before


def test_a_link_without_its_token_says_to_open_it_again(client: FlaskClient) -> None:
    for path in ("/recover", "/recover/", "/reset-password", "/reset-password/"):
        response = client.get(path)

        assert response.status_code == 400, path
        assert heading(response) == "Open the link in your mail"
        assert "allow cookies" in words(response)


def test_a_forged_or_garbled_link_says_to_copy_it_whole_and_leaves_the_cookie(
    app: APIFlask, ann: Person
) -> None:
    browser = follow_mailed(app, ann)
    token = browser.token
    for garbled in (
        token[:-5],
        token[:-8] + "AAAAAAAA",
        token + "/",
        token + ".",
        token[:70] + "=\n" + token[70:],
        token.replace(".", "/"),
        "ü" * 40,
        "\x00%ff",
        "W" * 2000 + ".e30.x",
        "eyJhbGciOiJub25lIn0." + token.split(".")[1] + ".",
    ):
        response = browser.client.get("/recover/" + garbled)

        assert response.status_code == 404, garbled
        assert heading(response) == "This link is not complete"
        assert "Set-Cookie" not in response.headers
    assert browser.open().status_code == 200


def test_a_token_of_another_kind_opens_nothing(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    made, account = services_of(app), account_of(app, ann)
    recovery = made.tokens.recovery(account, now=now(services_of(app)))
    for path, token in (
        ("/recover/", recovery),
        ("/recover/", reset_token(app, ann)),
        ("/recover/", ann.token),
        ("/reset-password/", mailed_token(app, ann)),
    ):
        assert client.get(path + token).status_code == 404


def test_a_forged_cookie_opens_nothing(client: FlaskClient) -> None:
    client.set_cookie("recover", "a.b.c", path="/recover/")

    response = client.get("/recover/")

    assert response.status_code == 404
    assert heading(response) == "This link is not complete"


# What the page says


def test_the_page_says_what_happens_when_and_what_is_kept(app: APIFlask, ann: Person) -> None:
    purge_at = account_of(app, ann).purge_at
    assert purge_at is not None

    page = follow_mailed(app, ann).open()

    said = words(page)
    assert page.status_code == 200
    assert heading(page) == "Your account will be deleted"
    assert f"{purge_at:%A %-d %B %Y} at {purge_at:%H:%M} UTC" in said
    assert f'<time datetime="{purge_at:%Y-%m-%dT%H:%M:%SZ}">' in page.text
    assert "everything is kept as it was" in said
    for action in ("Keep my account", "Download my data", "Delete it now"):
        assert action in said


def test_the_link_alone_shows_nothing_of_what_is_in_the_account(app: APIFlask, ann: Person) -> None:
    page = follow_mailed(app, ann).open()

    for private in ("ann", "Ann", ann.email, "+1 (2) 3", ann.avatar, "site 0", str(ann.public_id)):
        assert not re.search(rf"\b{re.escape(private)}\b", page.text), private


@pytest.mark.parametrize("by", ["staff", "operator"])
def test_what_the_staff_deactivated_cannot_be_kept_but_deleted_and_the_page_says_whom_to_ask(
    app: APIFlask, by: str
) -> None:
    ann = make_person(services_of(app))
    deactivate(services_of(app), ann.id, by=by)
    browser = follow_mailed(app, ann)
    before = everything(services_of(app))

    page = browser.open()
    refused = browser.send(action="keep")

    assert "contact support" in words(page)
    assert "Keep my account" not in words(page)
    assert refused.status_code == 403
    assert "by the staff" in words(refused)
    assert everything(services_of(app)) == before
    assert browser.send(**SURE).status_code == 202


@pytest.mark.parametrize(
    ("span", "said"),
    [
        (timedelta(days=14) - timedelta(seconds=1), "13 days"),
        (timedelta(days=2), "2 days"),
        (timedelta(days=2) - timedelta(seconds=1), "47 hours"),
        (timedelta(hours=2) - timedelta(seconds=1), "119 minutes"),
        (timedelta(minutes=2), "2 minutes"),
        (timedelta(minutes=2) - timedelta(microseconds=1), "less than two minutes"),
        (timedelta(microseconds=1), "less than two minutes"),
    ],
)
def test_the_time_left_is_never_said_to_be_more_than_it_is(span: timedelta, said: str) -> None:
    assert time_left(span) == said


# Keep my account


def test_the_link_is_enough_to_keep_the_account(app: APIFlask, ann: Person, bob: Person) -> None:
    others = belongings(services_of(app), bob)
    browser = follow_mailed(app, ann)
    before = belongings(services_of(app), ann)

    response = browser.send(action="keep")

    assert response.status_code == 200
    assert heading(response) == "Your account is back"
    account = account_of(app, ann)
    assert account.is_active
    assert account.epoch == before["row"]["epoch"] + 1
    after = belongings(services_of(app), ann)
    assert (after["passwords"], after["avatar"]) == (before["passwords"], before["avatar"])
    assert len(events(services_of(app), "account.reactivated")) == 1
    assert len(effects(services_of(app), "mail.reactivated")) == 1
    assert belongings(services_of(app), bob) == others


def test_a_second_visit_says_that_the_link_is_used(app: APIFlask, ann: Person) -> None:
    browser = follow_mailed(app, ann)
    key = browser.form_key()
    browser.send(action="keep")
    before = everything(services_of(app))

    for response in (
        browser.open(),
        app.test_client().get(f"/recover/{browser.token}", follow_redirects=True),
        browser.client.post("/recover/", data={"form_key": key, "action": "keep"}),
    ):
        assert response.status_code == 409
        assert heading(response) == "Your account is active"
        assert "used already" in words(response)
        assert "Sign in" in words(response)
    assert everything(services_of(app)) == before


def test_nobody_comes_back_too_often(new_app: NewApp, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = throttle.Limit(account=None, address=parse("2/hour"))
    monkeypatch.setitem(throttle.LIMITS, throttle.TOKEN, rate)
    app = new_app(RATE_LIMITS="on")
    ann = make_person(services_of(app))
    statuses = []

    for _ in range(4):
        deactivate(services_of(app), ann.id)
        statuses.append(follow_mailed(app, ann).send(action="keep").status_code)

    assert statuses == [200] * 4


def test_a_used_link_never_ends_a_later_grace_period(app: APIFlask, ann: Person) -> None:
    first = follow_mailed(app, ann)
    first.send(action="keep")
    deactivate(services_of(app), ann.id)
    before = everything(services_of(app))

    response = first.open()

    assert response.status_code == 410
    assert heading(response) == "This link is out of date"
    assert everything(services_of(app)) == before


def test_of_many_presses_at_once_one_reactivates_and_the_others_say_so(
    app: APIFlask, ann: Person
) -> None:
    browsers = [follow_mailed(app, ann) for _ in range(8)]
    keys = [browser.form_key() for browser in browsers]
    start = threading.Barrier(len(browsers))
    answers: list[tuple[int, str]] = []

    def press(number: int) -> None:
        data = {"form_key": keys[number], "action": "keep"}
        start.wait()
        response = browsers[number].client.post("/recover/", data=data)
        answers.append((response.status_code, heading(response)))

    threads = [threading.Thread(target=press, args=(number,)) for number in range(len(keys))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == [
        (200, "Your account is back"),
        *[(409, "Your account is active")] * (len(browsers) - 1),
    ]
    assert len(events(services_of(app), "account.reactivated")) == 1


# Links that open nothing any more


def test_a_due_account_cannot_be_kept_any_more(app: APIFlask, ann: Person) -> None:
    browser = follow_mailed(app, ann)
    key = browser.form_key()
    promise(app, ann, purge_in=timedelta(0))
    before = everything(services_of(app))

    for response in (
        browser.open(),
        browser.client.post("/recover/", data={"form_key": key, "action": "keep"}),
        browser.client.post("/recover/", data={"form_key": key, **SURE}),
    ):
        assert response.status_code == 410
        assert heading(response) == "Your account is being deleted"
    assert everything(services_of(app)) == before


def test_an_open_hold_is_hidden_from_the_owner(app: APIFlask, ann: Person) -> None:
    browser = follow_mailed(app, ann)
    # Half a day from where the page begins to name another number of days.
    promise(app, ann, purge_in=timedelta(days=5, hours=12))
    open_page = words(browser.open())
    with services_of(app).writing() as session:
        from accountsvc.accounts import lifecycle
        from accountsvc.db import audit

        lifecycle.place_hold(session, ann.id, reason="a lawsuit", by=audit.OPERATOR_ACTOR)

    held_page = words(browser.open())
    promise(app, ann, purge_in=timedelta(seconds=-1))
    due_page = browser.open()

    assert held_page == open_page
    assert due_page.status_code == 410
    assert "hold" not in words(due_page)
    assert "lawsuit" not in words(due_page)


def test_a_purged_account_is_said_to_be_gone(app: APIFlask, ann: Person, bob: Person) -> None:
    browser = follow_mailed(app, ann)
    promise(app, ann, purge_in=timedelta(seconds=-1))
    assert services_of(app).sweep().purged == 1

    for response in (
        browser.open(),
        app.test_client().get(f"/recover/{browser.token}", follow_redirects=True),
    ):
        assert response.status_code == 410
        assert heading(response) == "Your account has been deleted"
    assert account_of(app, bob).is_active


def test_an_expired_link_of_an_account_that_was_given_more_time_says_where_to_go(
    app: APIFlask, ann: Person
) -> None:
    promise(app, ann, purge_in=timedelta(days=-1))
    expired = mailed_token(app, ann)
    promise(app, ann, purge_in=timedelta(days=5))
    browser = follow(app.test_client(), "/recover/", expired)
    before = everything(services_of(app))

    response = browser.open()

    assert response.status_code == 410
    assert heading(response) == "This link is out of date"
    assert "our newest mail" in words(response)
    assert everything(services_of(app)) == before


def test_a_link_from_before_a_password_reset_says_where_to_go(app: APIFlask, ann: Person) -> None:
    browser = follow_mailed(app, ann)
    services = services_of(app)
    claims = services.tokens.read(reset_token(app, ann), "password_reset", now=now(services))
    credentials.reset_password(
        services.database,
        services.hasher,
        claims,
        "another long pass phrase",
        promise=make_promise(),
    )

    response = browser.open()

    assert response.status_code == 410
    assert heading(response) == "This link is out of date"
    assert "sign in with your email address and your password" in words(response)


# Download my data


def test_the_password_opens_the_download_and_changes_nothing_else(
    app: APIFlask, ann: Person
) -> None:
    browser = follow_mailed(app, ann)
    before = {**everything(services_of(app)), "audit_events": None}

    response = browser.send(action="download", password=PASSWORD)

    assert response.status_code == 200
    assert response.mimetype == "application/zip"
    assert response.headers["Content-Disposition"] == 'attachment; filename="account-data.zip"'
    assert response.headers["Cache-Control"] == "no-store"
    with zipfile.ZipFile(io.BytesIO(response.data)) as archive:
        assert archive.testzip() is None
        assert ann.email in archive.read("account.json").decode()
        assert "ann 2" in archive.read("saved_passwords.csv").decode()
    assert {**everything(services_of(app)), "audit_events": None} == before
    assert len(events(services_of(app), "account.exported")) == 1
    assert browser.send(action="keep").status_code == 200


def test_without_the_right_password_nothing_is_exported(app: APIFlask, ann: Person) -> None:
    browser = follow_mailed(app, ann)

    none = browser.send(action="download")
    wrong = browser.send(action="download", password="wrong")

    assert (none.status_code, wrong.status_code) == (400, 403)
    for response in (none, wrong):
        assert response.mimetype == "text/html"
        assert re.search(r"<details open>\s*<summary>Download my data", response.text)
        assert 'href="#download-password"' in response.text
    assert events(services_of(app), "account.exported") == []


def test_soon_after_a_password_that_was_set_by_mail_the_page_says_when_it_can_be_downloaded(
    app: APIFlask, ann: Person, bob: Person
) -> None:
    link = follow(app.test_client(), "/reset-password/", reset_token(app, ann))
    reset = link.send(new_password="nine purple otters sing")
    before, others = everything(services_of(app)), belongings(services_of(app), bob)

    response = follow_mailed(app, ann).send(action="download", password="nine purple otters sing")

    assert "can be downloaded only when a day has passed" in words(reset)
    changed_at = account_of(app, ann).password_changed_at
    assert changed_at is not None
    over_at = changed_at + timedelta(days=1, minutes=1)
    assert response.status_code == 409
    assert f"can be exported from {over_at:%-d %B %Y at %H:%M} UTC on." in words(response)
    assert everything(services_of(app)) == before
    assert belongings(services_of(app), bob) == others


def test_the_page_says_how_every_session_ends(app: APIFlask, ann: Person) -> None:
    browser = follow_mailed(app, ann)

    page, kept = browser.open(), browser.send(action="keep")

    for response in (page, kept):
        assert "signs out every device, also somebody else" in words(response)


def test_what_the_staff_deactivated_can_be_downloaded(app: APIFlask) -> None:
    ann = make_person(services_of(app))
    deactivate(services_of(app), ann.id, by="staff")

    response = follow_mailed(app, ann).send(action="download", password=PASSWORD)

    assert response.mimetype == "application/zip"


def test_after_ten_downloads_one_has_to_wait(new_app: NewApp) -> None:
    app = new_app(RATE_LIMITS="on")
    ann = make_person(services_of(app))
    deactivate(services_of(app), ann.id)
    browser = follow_mailed(app, ann)
    form = {"form_key": browser.form_key(), "action": "download", "password": PASSWORD}

    statuses = [browser.client.post("/recover/", data=form).status_code for _ in range(11)]

    assert statuses == [200] * 10 + [429]


# Delete it now


def test_the_password_and_a_tick_give_up_the_rest_of_the_grace_period(
    app: APIFlask, ann: Person, bob: Person
) -> None:
    others = belongings(services_of(app), bob)
    browser = follow_mailed(app, ann)

    response = browser.send(**SURE)

    assert response.status_code == 202
    assert heading(response) == "Your account is being deleted"
    assert account_of(app, ann).state(now(services_of(app))) == "due"
    assert browser.open().status_code == 410
    assert services_of(app).sweep().purged == 1
    assert read_account(services_of(app), ann.id) is None
    assert belongings(services_of(app), bob) == others


def test_a_wrong_password_changes_nothing_and_is_said_next_to_its_field(
    app: APIFlask, ann: Person
) -> None:
    browser = follow_mailed(app, ann)
    before = {**everything(services_of(app)), "audit_events": None}

    response = browser.send(**{**SURE, "password": "not the password"})

    assert response.status_code == 403
    assert {**everything(services_of(app)), "audit_events": None} == before
    assert "<title>Error: Your account will be deleted</title>" in response.text
    summary = re.search(r'<div class="summary" role="alert"[^>]*autofocus', response.text)
    assert summary is not None
    assert '<a href="#delete-password">This is not the password of this account.</a>' in (
        response.text
    )
    field = re.search(r'<input type="password" id="delete-password"[^>]*>', response.text)
    assert field is not None
    assert 'aria-invalid="true"' in field[0]
    assert 'aria-describedby="delete-password-problem"' in field[0]
    assert re.search(r"<details open>\s*<summary>Delete it now", response.text)
    # The tick is kept, the password is not.
    assert re.search(r'id="delete-sure"[^>]* checked', response.text)
    assert "not the password" not in response.text.replace("is not the password of", "")


def test_a_wrong_password_is_audited_without_the_password(app: APIFlask, ann: Person) -> None:
    follow_mailed(app, ann).send(**{**SURE, "password": "not the password"})

    [event] = events(services_of(app), "confirmation.failed")
    assert (event.subject, event.actor, event.details) == (ann.public_id, None, {})


def test_what_is_missing_in_the_form_is_said_all_at_once(app: APIFlask, ann: Person) -> None:
    browser = follow_mailed(app, ann)
    before = everything(services_of(app))

    nothing = browser.send(action="delete")
    no_tick = browser.send(action="delete", password=PASSWORD)
    no_password = browser.send(action="delete", sure="yes")

    assert [one.status_code for one in (nothing, no_tick, no_password)] == [400] * 3
    assert 'href="#delete-password"' in nothing.text
    assert 'href="#delete-sure"' in nothing.text
    assert 'href="#delete-password"' not in no_tick.text
    assert 'href="#delete-sure"' in no_tick.text
    assert 'href="#delete-password"' in no_password.text
    assert 'href="#delete-sure"' not in no_password.text
    assert everything(services_of(app)) == before


def test_the_page_tells_whoever_reads_the_previous_address_to_contact_the_support(
    app: APIFlask, ann: Person
) -> None:
    """They did not ask for the deletion, and cannot sign in by the address that the account has."""
    browser = follow_mailed(app, ann)
    services = services_of(app)
    usual = words(browser.open())
    with services.writing() as session:
        account = find(session, ann.id)
        assert account is not None
        assert account.deactivated_at is not None
        account.previous_email = "before@example.org"
        account.email_changed_at = account.deactivated_at - timedelta(hours=1)

    shown = words(browser.open())
    with services.writing() as session:
        session.add(
            FormerAddress(
                account_id=ann.id,
                email="first@example.org",
                held_since=account.joined_at,
                left_at=account.deactivated_at - timedelta(hours=2),
            )
        )
    twice = words(browser.open())
    kept = words(browser.send(action="keep"))

    # The link does not say to which of the addresses it was mailed.
    assert "The email address of the account was changed on " in shown
    assert "was changed more than once lately, the last time on " in twice
    assert "You asked us to delete" in usual
    assert "You asked us to delete" not in shown
    for said in (shown, twice, kept):
        assert "contact the support" in said
    assert "Sign in as you always did" not in kept


@pytest.mark.parametrize("changed", ["email_changed_at", "password_changed_at"])
def test_within_a_day_of_a_change_of_email_or_password_it_cannot_be_deleted_now(
    app: APIFlask, ann: Person, changed: str
) -> None:
    browser = follow_mailed(app, ann)
    with services_of(app).writing() as session:
        setattr(find(session, ann.id), changed, now(services_of(app)) - timedelta(hours=23))
    before = everything(services_of(app))

    response = browser.send(**SURE)

    assert response.status_code == 409
    assert "changed within the last 24 hours" in words(response)
    assert everything(services_of(app)) == before


def test_an_action_that_the_page_does_not_have_changes_nothing(app: APIFlask, ann: Person) -> None:
    browser = follow_mailed(app, ann)
    before = everything(services_of(app))

    for action in ("", "purge", "__class__"):
        response = browser.send(action=action)

        assert response.status_code == 400
        assert heading(response) == "Nothing was changed"
    assert everything(services_of(app)) == before


# Throttles


def test_after_ten_wrong_passwords_the_right_one_has_to_wait_but_keeping_does_not(
    new_app: NewApp,
) -> None:
    app = new_app(RATE_LIMITS="on")
    ann = make_person(services_of(app))
    deactivate(services_of(app), ann.id)
    browser = follow_mailed(app, ann)
    for _ in range(10):
        assert browser.send(**{**SURE, "password": "wrong"}).status_code == 403

    response = browser.send(**SURE)

    assert response.status_code == 429
    assert 1 <= int(response.headers["Retry-After"]) <= 900
    assert re.search(r"Too many tries\. Wait \d+ minutes?, then try again\.", words(response))
    assert account_of(app, ann).state(now(services_of(app))) == "deactivated"
    assert browser.send(action="keep").status_code == 200


def test_the_wrong_passwords_of_the_page_and_of_the_sign_in_are_one_count(new_app: NewApp) -> None:
    app = new_app(RATE_LIMITS="on")
    ann = make_person(services_of(app))
    deactivate(services_of(app), ann.id)
    browser = follow_mailed(app, ann)
    for _ in range(10):
        browser.send(**{**SURE, "password": "wrong"})

    response = app.test_client().post(
        "/api/sign-in/", json={"email": ann.email, "password": PASSWORD}
    )

    assert response.status_code == 429


def test_a_right_password_is_counted_neither_for_the_account_nor_for_the_address(
    new_app: NewApp,
) -> None:
    app = new_app(RATE_LIMITS="on")
    ann = make_person(services_of(app))
    deactivate(services_of(app), ann.id)
    with services_of(app).writing() as session:
        account = find(session, ann.id)
        assert account is not None
        account.email_changed_at = now(services_of(app))
    browser = follow_mailed(app, ann)

    statuses = [browser.send(**SURE).status_code for _ in range(12)]

    tried = [
        app.test_client()
        .post("/api/sign-in/", json={"email": f"p{number}@example.org", "password": "x"})
        .status_code
        for number in range(101)
    ]

    assert statuses == [409] * 12
    assert tried == [401] * 100 + [429]
