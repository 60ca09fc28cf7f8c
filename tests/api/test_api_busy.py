"""A full queue of passwords to hash: 503 at once, which is nobody's wrong try; the rest answers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import delete
from werkzeug.test import TestResponse

from accountsvc.accounts import vault
from accountsvc.adapters.throttle import LIMITS
from accountsvc.api.vault import long_lists
from accountsvc.bounds import HASHES_WAITING, LISTS_AT_ONCE, LISTS_WAITING
from accountsvc.db.models import SavedPassword
from tests.conftest import NewApp
from tests.support.factories import (
    PASSWORD,
    Person,
    access_token,
    bearer,
    deactivate,
    make_person,
    services_of,
)
from tests.support.moments import now
from tests.support.processes import eventually
from tests.support.state import belongings, events, everything, get_account
from tests.support.work import SlowArgon2

BUSY = (
    b'{"error": "Too many passwords are being checked at this moment. Try again in a few '
    b'seconds.", "code": "busy"}'
)
CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def app(new_app: NewApp) -> APIFlask:
    return new_app(RATE_LIMITS="on")


def sign_in(
    client: FlaskClient, email: str, password: str = "wrong", address: str = "203.0.113.7"
) -> TestResponse:
    return client.post(
        "/api/sign-in/",
        json={"email": email, "password": password},
        environ_overrides={"REMOTE_ADDR": address},
    )


@contextmanager
def full_queue(
    app: APIFlask, monkeypatch: pytest.MonkeyPatch, beyond: int = 2
) -> Iterator[list[Future[TestResponse]]]:
    """Sign in from other addresses until *beyond* of those who try are refused; end them after.

    What is refused here shows that the queue is full: nobody in it leaves before the end.
    """
    # The first answer makes the document that all are compared with: two threads would make it twice.
    app.test_client().get("/healthz")
    slow = SlowArgon2(monkeypatch)
    tries = CORES + HASHES_WAITING + beyond
    with ThreadPoolExecutor(tries) as pool:
        answers = [
            pool.submit(
                sign_in, app.test_client(), f"nobody{number}@example.org", "x", f"192.0.2.{number}"
            )
            for number in range(tries)
        ]
        try:
            eventually(lambda: sum(each.done() for each in answers) == beyond)
            eventually(lambda: slow.most == CORES)
            yield answers
        finally:
            slow.released.set()
    assert slow.most == CORES


def test_as_many_sign_in_at_once_as_there_are_cores_a_queue_waits_and_the_rest_is_refused(
    app: APIFlask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_queue(app, monkeypatch, beyond=5) as answers:
        refused = [each.result() for each in answers if each.done()]

    for response in refused:
        assert (response.status_code, response.data) == (503, BUSY)
        assert response.headers["Retry-After"] == "5"
        assert response.headers["Cache-Control"] == "no-store"
    statuses = sorted(each.result().status_code for each in answers)
    assert statuses == [401] * (CORES + HASHES_WAITING) + [503] * 5


def test_whatever_hashes_no_password_answers_meanwhile(
    app: APIFlask, client: FlaskClient, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_queue(app, monkeypatch):
        statuses = {
            path: client.get(path, headers=ann.auth).status_code
            for path in ("/healthz", "/readyz", "/statusz", "/api/profile/")
        }
        written = client.post(
            "/api/save-passwords/", json={"password_saved": "x"}, headers=ann.auth
        )

    assert set(statuses.values()) == {200}, statuses
    assert written.status_code == 201


def test_a_refused_sign_in_is_no_wrong_one_and_looks_alike_for_an_unknown_e_mail(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = LIMITS["password"].pair
    assert allowed is not None
    for _ in range(allowed.amount - 1):
        assert sign_in(client, ann.email).status_code == 401
        assert sign_in(client, "nobody@example.org").status_code == 401
    before = everything(services_of(app), attempts=True)
    spared = belongings(services_of(app), bob)

    # What they wait for is audited when it was wrong: look before they are through.
    with full_queue(app, monkeypatch):
        for _ in range(2 * allowed.amount):
            for email in (ann.email, "nobody@example.org", f"{'x' * 60_000}@example.org"):
                response = sign_in(client, email, PASSWORD)
                assert (response.status_code, response.data) == (503, BUSY)
        after = everything(services_of(app), attempts=True)

    assert after == before
    assert belongings(services_of(app), bob) == spared
    # Neither is one try less than there was.
    assert sign_in(client, ann.email).status_code == 401
    assert sign_in(client, "nobody@example.org").status_code == 401
    assert sign_in(client, ann.email, PASSWORD).status_code == 429
    assert sign_in(client, "nobody@example.org").status_code == 429


def test_a_refused_sign_in_costs_the_address_none_of_its_tries(
    app: APIFlask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = LIMITS["password"].address
    assert allowed is not None

    with full_queue(app, monkeypatch):
        for number in range(allowed.amount + 5):
            assert sign_in(client, f"x{number}@example.org").status_code == 503

    statuses = [
        sign_in(client, f"y{number}@example.org").status_code
        for number in range(allowed.amount + 1)
    ]
    assert statuses == [401] * allowed.amount + [429]


def test_who_is_throttled_does_not_come_to_the_queue(
    app: APIFlask, client: FlaskClient, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = LIMITS["password"].pair
    assert allowed is not None
    for _ in range(allowed.amount):
        sign_in(client, ann.email)

    with full_queue(app, monkeypatch):
        response = sign_in(client, ann.email, PASSWORD)

    assert response.status_code == 429
    assert (response.json or {})["code"] == "throttled"


def test_every_call_that_hashes_is_refused_and_changes_nothing(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = services_of(app)
    cid = make_person(services, "cid")
    deactivate(services, cid.id)
    account = get_account(services, ann.id)
    stale = bearer(access_token(services, account, fresh=False))
    mailed = bearer(services.tokens.mailed(get_account(services, cid.id), now=now(services)))
    reset = services.tokens.password_reset(account, now=now(services))
    new = "nine purple otters sing"
    mine, his = f"/api/profile/{ann.id}", f"/api/profile/{cid.id}"
    confirmed = {"password": PASSWORD}
    calls: dict[str, Callable[[], TestResponse]] = {
        "sign-up": lambda: client.post(
            "/api/sign-up/",
            json={"username": "dan", "email": "dan@example.org", "password": new},
        ),
        "reactivate": lambda: client.post(
            "/api/profile/reactivate/", json={"email": cid.email, **confirmed}
        ),
        "reset": lambda: client.post(
            "/api/password-reset/confirm/", json={"token": reset, "new_password": new}
        ),
        "delete": lambda: client.delete(f"{mine}/delete/", json=confirmed, headers=stale),
        "export by GET": lambda: client.get(f"{mine}/export/", json=confirmed, headers=stale),
        "export by POST": lambda: client.post(f"{his}/export/", json=confirmed, headers=mailed),
        "purge": lambda: client.post(f"{his}/purge/", json=confirmed, headers=mailed),
        "password": lambda: client.post(
            f"{mine}/password/", json={**confirmed, "new_password": new}, headers=stale
        ),
        "e-mail": lambda: client.patch(
            f"{mine}/update/", json={**confirmed, "email": "new@example.org"}, headers=stale
        ),
    }
    before, spared = everything(services, attempts=True), belongings(services, bob)

    with full_queue(app, monkeypatch):
        answers = {name: call() for name, call in calls.items()}
        after = everything(services, attempts=True)

    assert {name: (got.status_code, got.data) for name, got in answers.items()} == dict.fromkeys(
        calls, (503, BUSY)
    )
    assert after == before
    assert belongings(services, bob) == spared


def test_a_page_says_it_as_a_page(
    app: APIFlask, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = services_of(app)
    token = services.tokens.password_reset(get_account(services, ann.id), now=now(services))
    browser = app.test_client()
    page = browser.get(f"/reset-password/{token}", follow_redirects=True).text
    key = page.partition('name="form_key" value="')[2].partition('"')[0]
    form = {"form_key": key, "new_password": "nine purple otters sing"}

    with full_queue(app, monkeypatch):
        response = browser.post("/reset-password/", data=form)

    assert response.status_code == 503
    assert response.mimetype == "text/html"
    assert response.headers["Retry-After"] == "5"
    assert "try again in a few seconds" in response.text
    # The link is not used up.
    assert browser.post("/reset-password/", data=form).status_code == 200
    assert events(services, "account.password_reset")


def test_of_many_long_lists_some_are_refused_and_short_ones_are_not(
    client: FlaskClient, ann: Person, bob: Person, app: APIFlask, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ann has a page and more, Bob has not.
    monkeypatch.setattr(vault, "PAGE_SIZE", len(ann.passwords))
    services = services_of(app)
    with services.writing() as session:
        session.execute(delete(SavedPassword).where(SavedPassword.id == bob.passwords[0]))
    path = "/api/view-all-saved-passwords/"
    released, inside = threading.Event(), []

    def list_slowly() -> None:
        with long_lists.take():
            inside.append(1)
            released.wait(60)

    with ThreadPoolExecutor(LISTS_AT_ONCE + LISTS_WAITING) as pool:
        lists = [pool.submit(list_slowly) for _ in range(LISTS_AT_ONCE + LISTS_WAITING)]
        try:
            refused = eventually(
                lambda: (answer := client.get(path, headers=ann.auth)).status_code == 503 and answer
            )
            others = [
                client.get(f"{path}?limit=100", headers=ann.auth),
                client.get(path, headers=bob.auth),
                client.get("/api/profile/", headers=ann.auth),
            ]
            worked = len(inside)
        finally:
            released.set()
    for one in lists:
        one.result()

    assert refused.get_json()["code"] == "busy"
    assert "limit" in refused.get_json()["error"]
    assert refused.headers["Retry-After"] == "5"
    assert [answer.status_code for answer in others] == [200] * 3
    assert worked == LISTS_AT_ONCE
    answer = client.get(path, headers=ann.auth)
    assert (answer.status_code, len(answer.get_json()["passwords"])) == (200, len(ann.passwords))
