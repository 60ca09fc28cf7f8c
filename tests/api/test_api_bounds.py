"""What is too long is refused before any work that grows with it.

Where a password is tried, it is a wrong one, at the cost of a short one. The work is counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from accountsvc.accounts.guesses import CONTEXT_WORDS
from accountsvc.adapters.throttle import LIMITS
from accountsvc.bounds import (
    EMAIL_CHARACTERS,
    PASSWORD_CHARACTERS,
    STRENGTH_CHARACTERS,
    USERNAME_CHARACTERS,
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
    run_sql,
    services_of,
)
from tests.support.moments import now
from tests.support.state import belongings, everything, get_account
from tests.support.work import Work, note_work

# About 62 KB of UTF-8 each, as much as a body takes with room for its other members.
LONG = {
    "ASCII": "a" * 62_000,
    "combining marks in the wrong order": "\u0301\u0316" * 15_500,
    "a ligature of eighteen characters": "\ufdfa" * 20_600,
    # Further ones of the kind: a base with marks, each in two parts; what folding makes longer;
    # letters that compose; spaces that are not at the ends.
    "symbols of three characters": "\U0001d1c0" * 15_500,
    "capitals that fold into two": "\u0130" * 31_000,
    "letters in parts": "\u1112\u1161\u11ab" * 6_800,
    "spaces inside": "a" + " " * 61_000 + "a",
}
# A body that is optional is read to 16 KiB, and a query is as long as a head allows.
# zxcvbn is given the service's own words with each password.
OURS = sum(map(len, CONTEXT_WORDS))
SHORTER = 3_900
# What else a request normalises: the address of its caller, and those that came beside the long text.
ELSE = 1_000


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return note_work(monkeypatch)


@dataclass
class World:
    """People in each state that a call can meet, and a client."""

    app: APIFlask
    client: FlaskClient
    ann: Person
    cid: Person
    sue: Person

    @property
    def stale(self) -> dict[str, str]:
        account = get_account(services_of(self.app), self.ann.id)
        return bearer(access_token(services_of(self.app), account, fresh=False))

    def mailed(self, person: Person) -> str:
        services = services_of(self.app)
        return services.tokens.mailed(get_account(services, person.id), now=now(services))

    def reset(self, person: Person) -> str:
        services = services_of(self.app)
        return services.tokens.password_reset(get_account(services, person.id), now=now(services))

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> TestResponse:
        """Send JSON in UTF-8, without the escapes that would make it longer than a body may be."""
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        return self.client.open(
            path, method=method, data=data, headers=headers, content_type="application/json"
        )

    def submit(self, link: str, token: str, **fields: str) -> TestResponse:
        """Send a form of the page behind a mailed link."""
        browser = self.app.test_client()
        page = browser.get(link + token, follow_redirects=True).text
        key = page.partition('name="form_key" value="')[2].partition('"')[0]
        # As the parts of a form, which are not escaped.
        data = {"form_key": key, **fields}
        return browser.post(link, data=data, content_type="multipart/form-data")


@pytest.fixture
def world(app: APIFlask, client: FlaskClient, ann: Person, sue: Person) -> World:
    cid = make_person(services_of(app), "cid")
    deactivate(services_of(app), cid.id)
    return World(app, client, ann, cid, sue)


Call = Callable[[World, str], TestResponse]


def _signing_up(name: str) -> Call:
    fields = {"username": "dan", "email": "dan@example.org", "password": PASSWORD}
    return lambda world, text: world.send("POST", "/api/sign-up/", {**fields, name: text})


def _updating(name: str) -> Call:
    return lambda world, text: world.send(
        "PATCH", f"/api/profile/{world.ann.id}/update/", {name: text}, world.ann.auth
    )


def _updating_by_form(name: str) -> Call:
    def call(world: World, text: str) -> TestResponse:
        path = f"/api/profile/{world.ann.id}/update/"
        return world.client.put(
            path,
            data={name: text},
            headers=world.ann.auth,
            content_type="multipart/form-data",
        )

    return call


def _posting(path: str, name: str, **others: str) -> Call:
    return lambda world, text: world.send("POST", path, {**others, name: text})


def _of_ann(method: str, path: str, name: str, most: int | None = None, **others: str) -> Call:
    """Send *text*, or its first *most* characters, by a token of hers that is not fresh."""
    return lambda world, text: world.send(
        method,
        f"/api/profile/{world.ann.id}/{path}/",
        {**others, name: text[:most]},
        world.stale,
    )


def _of_staff(method: str, path: str, name: str) -> Call:
    return lambda world, text: world.send(
        method, f"/api/profile/{world.cid.id}/{path}/", {name: text}, world.sue.auth
    )


def _querying(path: str, name: str) -> Call:
    return lambda world, text: world.client.get(
        f"/api/{path}/?{urlencode({name: text[:SHORTER]})}", headers=world.sue.auth
    )


def _mailed_purge(world: World, text: str) -> TestResponse:
    path = f"/api/profile/{world.cid.id}/purge/"
    return world.send("POST", path, {"password": text}, bearer(world.mailed(world.cid)))


def _mailed_export(world: World, text: str) -> TestResponse:
    path = f"/api/profile/{world.cid.id}/export/"
    return world.send("POST", path, {"password": text}, bearer(world.mailed(world.cid)))


def _recovering(action: str) -> Call:
    return lambda world, text: world.submit(
        "/recover/", world.mailed(world.cid), action=action, password=text, sure="on"
    )


def _keeping(name: str, **others: str) -> Call:
    return lambda world, text: world.submit("/keep-account/", "", **{**others, name: text})


def _confirming_a_reset(world: World, text: str) -> TestResponse:
    body = {"token": world.reset(world.ann), "new_password": text}
    return world.send("POST", "/api/password-reset/confirm/", body)


def _email_of(call: Call) -> Call:
    return lambda world, text: call(world, f"{text}@example.org")


# Every place that takes an e-mail, a username, a password or another text, and its answer.
CALLS: dict[str, tuple[int, Call]] = {
    "sign-up username": (400, _signing_up("username")),
    "sign-up email": (400, _email_of(_signing_up("email"))),
    "sign-up password": (400, _signing_up("password")),
    "sign-up first_name": (400, _signing_up("first_name")),
    "sign-up last_name": (400, _signing_up("last_name")),
    "sign-up number_phone": (400, _signing_up("number_phone")),
    "update username": (400, _updating("username")),
    "update email": (400, _email_of(_updating("email"))),
    "update first_name": (400, _updating("first_name")),
    "update last_name": (400, _updating("last_name")),
    "update number_phone": (400, _updating("number_phone")),
    "update password": (400, _updating("password")),
    "update email without a fresh token": (400, _email_of(_of_ann("PUT", "update", "email"))),
    "form username": (400, _updating_by_form("username")),
    "form email": (400, _email_of(_updating_by_form("email"))),
    "form password": (400, _updating_by_form("password")),
    "form first_name": (400, _updating_by_form("first_name")),
    "sign-in email": (401, _email_of(_posting("/api/sign-in/", "email", password=PASSWORD))),
    "sign-in password": (401, _posting("/api/sign-in/", "password", email="ann@example.org")),
    "reactivate email": (
        401,
        _email_of(_posting("/api/profile/reactivate/", "email", password=PASSWORD)),
    ),
    "reactivate password": (
        401,
        _posting("/api/profile/reactivate/", "password", email="cid@example.org"),
    ),
    "reactivate token": (401, _posting("/api/profile/reactivate/", "token")),
    "reset email": (202, _email_of(_posting("/api/password-reset/", "email"))),
    "reset token": (401, _posting("/api/password-reset/confirm/", "token", new_password=PASSWORD)),
    "reset new_password": (400, _confirming_a_reset),
    "refresh": (401, _posting("/api/token/refresh/", "refresh")),
    "change password": (400, _of_ann("POST", "password", "password", new_password="x" * 9)),
    "change new_password": (400, _of_ann("POST", "password", "new_password", password=PASSWORD)),
    # The body is optional and may be anything: the password in it is wrong, as any other.
    "delete password": (403, _of_ann("DELETE", "delete", "password", SHORTER)),
    "export by GET": (403, _of_ann("GET", "export", "password", SHORTER)),
    "export by POST": (400, _of_ann("POST", "export", "password")),
    "export by the mailed token": (400, _mailed_export),
    "purge password": (400, _mailed_purge),
    "purge confirm": (400, _of_staff("POST", "purge", "confirm")),
    "hold reason": (400, _of_staff("POST", "holds", "reason")),
    "deletion reason": (400, _of_staff("PATCH", "deletion", "reason")),
    "audit subject": (400, _querying("admin/audit", "subject")),
    "audit action": (400, _querying("admin/audit", "action")),
    "audit cursor": (400, _querying("admin/audit", "cursor")),
    "deletions cursor": (400, _querying("admin/deletions", "cursor")),
    "generator length": (400, _querying("response-password", "length")),
    "generator symbols": (400, _querying("response-password", "symbols")),
    "page of a new password": (
        400,
        lambda world, text: world.submit(
            "/reset-password/", world.reset(world.ann), new_password=text
        ),
    ),
    "page keep email": (403, _keeping("email", password=PASSWORD)),
    "page keep password": (403, _keeping("password", email="cid@example.org")),
    "page download": (400, _recovering("download")),
    "page delete": (400, _recovering("delete")),
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_no_text_that_is_too_long_is_normalised_judged_or_hashed(
    world: World, work: Work, bob: Person, text: str
) -> None:
    before, spared = everything(services_of(world.app)), belongings(services_of(world.app), bob)
    work.clear()

    answers, most = {}, {}
    for name, (_, call) in CALLS.items():
        answers[name] = call(world, text).status_code
        most[name] = (
            sum(work.normalised) + sum(work.folded),
            sum(work.judged),
            max(work.hashed, default=0),
        )
        work.clear()

    assert answers == {name: status for name, (status, _) in CALLS.items()}
    beyond = {
        name: counts
        for name, counts in most.items()
        if counts[0] > ELSE
        or counts[1] > STRENGTH_CHARACTERS + OURS
        or counts[2] > PASSWORD_CHARACTERS
    }
    assert beyond == {}
    # A reset owes each address a row, and the delivery drops what has no account.
    resets = "DELETE FROM outbox WHERE kind = 'mail.password_reset'"
    run_sql(services_of(world.app), resets)
    assert everything(services_of(world.app)) == before
    assert belongings(services_of(world.app), bob) == spared


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@pytest.mark.parametrize(
    ("path", "others"),
    [
        ("/api/sign-in/", {"password": "a wrong password"}),
        ("/api/profile/reactivate/", {"password": "a wrong password"}),
        ("/api/password-reset/", {}),
    ],
)
def test_an_e_mail_that_is_too_long_costs_what_an_unknown_one_costs(
    world: World, work: Work, text: str, path: str, others: dict[str, str]
) -> None:
    engine = services_of(world.app).database.engine
    costs, answers = [], []

    for email in ("nobody@example.org", f"{text}@example.org"):
        work.clear()
        with work.of(engine):
            response = world.send("POST", path, {**others, "email": email})
        costs.append((list(work.hashed), list(work.statements)))
        answers.append((response.status_code, response.data))

    assert costs[0] == costs[1]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("email", ["ann@example.org", "nobody@example.org"])
def test_a_password_that_is_too_long_costs_what_a_wrong_one_costs(
    world: World, work: Work, email: str
) -> None:
    engine = services_of(world.app).database.engine
    costs, answers = [], []

    for password in ("a" * PASSWORD_CHARACTERS, PASSWORD + "a" * 60_000):
        work.clear()
        with work.of(engine):
            response = world.send("POST", "/api/sign-in/", {"email": email, "password": password})
        costs.append((list(work.hashed), list(work.statements)))
        answers.append((response.status_code, response.data))

    assert costs[0] == costs[1]
    assert costs[0][0] == [PASSWORD_CHARACTERS]
    assert answers[0] == answers[1] == (401, b'{"error": "Invalid email or password"}')


# A name of 64 octets, and labels of at most 63 characters.
LONGEST_EMAIL = f"{'e' * 64}@{('d' * 60 + '.') * 3}museum"
assert len(LONGEST_EMAIL) == EMAIL_CHARACTERS


@pytest.mark.parametrize(
    ("name", "longest"),
    [
        ("username", "u" * USERNAME_CHARACTERS),
        ("email", LONGEST_EMAIL),
        ("first_name", "f" * 150),
        ("number_phone", "1" * 20),
    ],
)
def test_the_bound_is_of_what_is_stored_and_spaces_around_it_do_not_count(
    world: World, work: Work, name: str, longest: str
) -> None:
    padded = f"{' ' * 30_000}{longest}{' ' * 30_000}"

    def send(text: str) -> TestResponse:
        return _updating(name)(world, text)

    assert send(f"x{longest}").json == {name: [f"Use at most {len(longest)} characters."]}
    work.clear()
    taken = send(padded)
    shown = "pending_email" if name == "email" else name
    assert (taken.status_code, (taken.json or {})[shown]) == (200, longest)
    assert max(work.normalised, default=0) <= EMAIL_CHARACTERS
    assert send(longest[1:]).status_code == 200


def test_zxcvbn_sees_the_beginning_of_the_password_and_of_each_of_the_persons_words(
    client: FlaskClient, work: Work
) -> None:
    response = client.post(
        "/api/sign-up/",
        json={
            "username": "u" * USERNAME_CHARACTERS,
            "email": LONGEST_EMAIL,
            "password": "nine purple otters sing " * 5,
            "first_name": "f" * 150,
            "last_name": "l" * 150,
        },
    )

    assert response.status_code == 201
    theirs = [size for size in work.judged if size not in map(len, CONTEXT_WORDS)]
    assert theirs == [STRENGTH_CHARACTERS] * 5


@pytest.mark.parametrize(
    "pad",
    [
        lambda number: " " * number,
        lambda number: "\u3000" * 500 * number,
        lambda number: "\t\n" * 500 * number,
    ],
    ids=["spaces", "wide spaces", "lines"],
)
def test_spaces_around_an_e_mail_begin_no_second_count(
    new_app: NewApp, pad: Callable[[int], str]
) -> None:
    app = new_app(RATE_LIMITS="on")
    services = services_of(app)
    make_account(services, "ann")
    allowed = LIMITS["password"].pair
    assert allowed is not None
    client = app.test_client()

    def sign_in(email: str, password: str) -> int:
        body = json.dumps({"email": email, "password": password}, ensure_ascii=False).encode()
        return client.post("/api/sign-in/", data=body, content_type="application/json").status_code

    tries = [
        sign_in(f"{pad(number)}ANN@example.org{pad(number)}", "wrong")
        for number in range(allowed.amount)
    ]

    assert tries == [401] * allowed.amount
    assert sign_in("ann@example.org", PASSWORD) == 429


def test_an_e_mail_that_is_too_long_is_counted_too(new_app: NewApp) -> None:
    client = new_app(RATE_LIMITS="on").test_client()
    allowed = LIMITS["password"].pair
    assert allowed is not None
    body = {"email": "\u0301\u0316" * 5_000 + "@example.org", "password": "wrong"}
    data = json.dumps(body, ensure_ascii=False).encode()

    tries = [
        client.post("/api/sign-in/", data=data, content_type="application/json").status_code
        for _ in range(allowed.amount + 1)
    ]

    assert tries == [401] * allowed.amount + [429]
