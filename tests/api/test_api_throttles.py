"""CONTRACT sections 2 to 5, where somebody tries too often: what is counted, for whom, and where."""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis
from apiflask import APIFlask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from accountsvc import web
from accountsvc.accounts.credentials import Verdict
from accountsvc.adapters import images, throttle
from accountsvc.adapters.throttle import UPLOAD, Throttle
from accountsvc.db.models import Account
from accountsvc.errors import Throttled, in_words
from accountsvc.turns import Turns
from accountsvc.web import client_address
from tests.conftest import NewApp
from tests.support.factories import (
    PASSWORD,
    access_token,
    bearer,
    deactivate,
    make_account,
    png,
    services_of,
)
from tests.support.moments import now
from tests.support.servers import ValkeyServer, free_port
from tests.support.state import effects, events, read_account

PROBLEM = "application/problem+json"
HERE, ELSEWHERE, FAR_AWAY = "203.0.113.7", "198.51.100.8", "192.0.2.9"
# Whence the tests' client calls unless it says otherwise.
LOCAL = "127.0.0.1"
QUARTER, HOUR = 900, 3600


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Where the data is does not matter here."""
    return sqlite_url


@pytest.fixture
def app(new_app: NewApp) -> APIFlask:
    return new_app(RATE_LIMITS="on")


@pytest.fixture
def cid(app: APIFlask) -> Account:
    """Whose password somebody guesses."""
    return make_account(services_of(app), "cid")


def from_(address: str) -> dict[str, Any]:
    return {"environ_overrides": {"REMOTE_ADDR": address}}


def sign_in(
    client: FlaskClient, email: str, password: str = "wrong", address: str = HERE
) -> TestResponse:
    return client.post(
        "/api/sign-in/", json={"email": email, "password": password}, **from_(address)
    )


def sign_up(client: FlaskClient, address: str, forwarded_for: str | None = None) -> TestResponse:
    """Try to sign up with what is no e-mail: it is counted and creates nothing."""
    headers = {} if forwarded_for is None else {"X-Forwarded-For": forwarded_for}
    return client.post("/api/sign-up/", json={"email": "x"}, headers=headers, **from_(address))


def check_throttled(send: Callable[[dict[str, str]], TestResponse], longest: int) -> None:
    """Send twice, since a refusal costs nothing, and compare both forms of the answer."""
    plain, problem = send({}), send({"Accept": PROBLEM})

    for response in (plain, problem):
        assert response.status_code == 429
        assert re.fullmatch(r"[1-9][0-9]*", response.headers["Retry-After"])
        assert int(response.headers["Retry-After"]) <= longest
        assert response.headers["Cache-Control"] == "no-store"
    seconds = plain.headers["Retry-After"]
    assert plain.headers["Content-Type"] == "application/json"
    assert (
        plain.data.decode() == f'{{"error": "Too many requests of this kind. Try again in '
        f'{in_words(int(seconds))}.", "code": "throttled"}}'
    )
    seconds = problem.headers["Retry-After"]
    assert problem.headers["Content-Type"] == PROBLEM
    assert problem.json == {
        "type": "urn:problem-type:accountsvc:throttled",
        "title": "Throttled",
        "status": 429,
        "detail": f"Too many requests of this kind. Try again in {in_words(int(seconds))}.",
        "code": "throttled",
    }


# Passwords


def test_after_ten_wrong_passwords_an_address_waits_for_an_e_mail_known_or_not(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    make_account(services_of(app), "dan")
    refused = []

    for email in ("cid@example.org", "nobody@example.org"):
        spellings = [email, email.upper(), f" {email} ", email.title(), email] * 2
        tried = [sign_in(client, one) for one in spellings]
        refused.append([(got.status_code, got.data) for got in tried])

        def again(headers: dict[str, str], email: str = email) -> TestResponse:
            body = {"email": email, "password": PASSWORD}
            return client.post("/api/sign-in/", json=body, headers=headers, **from_(HERE))

        check_throttled(again, QUARTER)

    assert refused == [[(401, b'{"error": "Invalid email or password"}')] * 10] * 2
    assert sign_in(client, "dan@example.org", PASSWORD).status_code == 200
    assert sign_in(client, "cid@example.org", PASSWORD, ELSEWHERE).status_code == 200


def test_after_a_hundred_wrong_passwords_from_many_addresses_an_e_mail_waits_known_or_not(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    for email in ("cid@example.org", "nobody@example.org"):
        # More than a hundred are tried, but no address may try for longer than the others.
        guessed = [
            sign_in(client, email, address=f"192.0.2.{number}").status_code
            for number in range(12)
            for _ in range(10)
        ]

        def again(headers: dict[str, str], email: str = email) -> TestResponse:
            body = {"email": email, "password": PASSWORD}
            return client.post("/api/sign-in/", json=body, headers=headers, **from_(ELSEWHERE))

        assert guessed == [401] * 100 + [429] * 20
        check_throttled(again, QUARTER)


def test_all_places_that_take_a_password_share_one_count(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    profile = f"/api/profile/{cid.id}/"
    stale = bearer(access_token(services_of(app), cid, fresh=False))

    def call(method: str, what: str, headers: dict[str, str], body: dict[str, str]) -> int:
        return client.open(profile + what, method=method, headers=headers, json=body).status_code

    def while_active(password: str) -> list[int]:
        body = {"password": password}
        changed = {**body, "new_password": "nine purple otters sing"}
        return [
            call("DELETE", "delete/", stale, body),
            call("POST", "export/", stale, body),
            call("POST", "password/", stale, changed),
            call("PATCH", "update/", stale, {**body, "email": "new@example.org"}),
            sign_in(client, cid.email, password, LOCAL).status_code,
        ]

    def at_the_page(password: str) -> int:
        page = client.get("/keep-account/").text
        key = page.partition('name="form_key" value="')[2].partition('"')[0]
        form = {"form_key": key, "email": cid.email, "password": password}
        return client.post("/keep-account/", data=form).status_code

    tried = while_active("wrong") + while_active("wrong")
    blocked = while_active(PASSWORD)
    account = deactivate(services_of(app), cid.id)
    mailed = bearer(services_of(app).tokens.mailed(account, now=now(services_of(app))))
    come_back = {"email": "CID@example.org", "password": PASSWORD}
    blocked_away = [
        sign_in(client, cid.email, PASSWORD, LOCAL).status_code,
        client.post("/api/profile/reactivate/", json=come_back).status_code,
        call("POST", "purge/", mailed, {"password": PASSWORD}),
        call("POST", "export/", mailed, {"password": PASSWORD}),
        at_the_page(PASSWORD),
    ]

    assert tried == [403, 403, 403, 403, 401] * 2
    assert (blocked, blocked_away) == ([429] * 5, [429] * 5)
    after = read_account(services_of(app), cid.id)
    assert after is not None
    assert (after.password_hash, after.email) == (cid.password_hash, cid.email)
    assert after.purge_at == account.purge_at


def test_wrong_passwords_of_the_grace_period_count_for_the_sign_in(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    account = deactivate(services_of(app), cid.id)
    mailed = bearer(services_of(app).tokens.mailed(account, now=now(services_of(app))))
    body = {"email": cid.email, "password": "wrong"}

    tried = [client.post("/api/profile/reactivate/", json=body).status_code for _ in range(5)] + [
        client.post(
            f"/api/profile/{cid.id}/{what}/", headers=mailed, json={"password": "wrong"}
        ).status_code
        for what in ("purge", "export", "purge", "export", "purge")
    ]

    assert tried == [401] * 5 + [403] * 5
    assert sign_in(client, cid.email, PASSWORD, LOCAL).status_code == 429


def test_a_right_password_is_forgiven_what_came_before_it(
    app: APIFlask, client: FlaskClient
) -> None:
    people = {
        name: make_account(services_of(app), name) for name in ("cid", "dan", "eve", "fay", "gil")
    }
    for name in ("fay", "gil"):
        deactivate(services_of(app), people[name].id)
    stale = {
        name: bearer(access_token(services_of(app), one, fresh=False))
        for name, one in people.items()
    }

    def right(name: str) -> TestResponse:
        person = people[name]
        profile = f"/api/profile/{person.id}/"
        match name:
            case "cid" | "fay":
                return sign_in(client, person.email, PASSWORD, LOCAL)
            case "dan":
                body = {"password": PASSWORD, "email": "Dan@example.org"}
                return client.patch(f"{profile}update/", headers=stale[name], json=body)
            case "eve":
                # What is refused is the new one.
                body = {"password": PASSWORD, "new_password": "short"}
                return client.post(f"{profile}password/", headers=stale[name], json=body)
            case _:
                body = {"email": person.email, "password": PASSWORD}
                return client.post("/api/profile/reactivate/", json=body)

    expected = {"cid": 200, "dan": 200, "eve": 400, "fay": 403, "gil": 200}
    for name, status in expected.items():
        email = people[name].email
        before = [sign_in(client, email, address=LOCAL).status_code for _ in range(9)]
        answer = right(name)
        after = [sign_in(client, email, address=LOCAL).status_code for _ in range(11)]

        assert (name, before, answer.status_code) == (name, [401] * 9, status)
        assert (name, after) == (name, [401] * 10 + [429])


def test_a_right_password_for_what_is_not_deactivated_is_forgiven_too(
    client: FlaskClient, cid: Account
) -> None:
    """Whoever is told ``not_deactivated`` has given the right password."""
    body = {"email": cid.email, "password": PASSWORD}

    tried = [client.post("/api/profile/reactivate/", json=body).status_code for _ in range(10)]

    assert tried == [409] * 10
    assert sign_in(client, cid.email, PASSWORD).status_code == 200


def test_one_address_may_try_a_hundred_passwords_and_disturbs_no_other(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    tried = [sign_in(client, f"person{number}@example.org").status_code for number in range(100)]

    def again(headers: dict[str, str]) -> TestResponse:
        body = {"email": cid.email, "password": PASSWORD}
        return client.post("/api/sign-in/", json=body, headers=headers, **from_(HERE))

    assert tried == [401] * 100
    check_throttled(again, QUARTER)
    back = client.post(
        "/api/profile/reactivate/",
        json={"email": cid.email, "password": PASSWORD},
        **from_(HERE),
    )
    assert back.status_code == 429
    assert sign_in(client, cid.email, PASSWORD, ELSEWHERE).status_code == 200


def test_many_people_behind_one_address_sign_in_and_nobody_who_guesses_is_helped_by_that(
    client: FlaskClient, cid: Account
) -> None:
    def guess(number: int) -> int:
        return sign_in(client, f"person{number}@example.org").status_code

    guessed = [guess(number) for number in range(50)]
    signed_in = [sign_in(client, cid.email, PASSWORD).status_code for _ in range(110)]
    guessed += [guess(number) for number in range(50, 100)]

    assert signed_in == [200] * 110
    assert guessed == [401] * 100
    assert guess(100) == 429


def test_an_address_changes_five_times_an_hour_and_takes_few_new_counts_along(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    auth, url = bearer(access_token(services_of(app), cid)), f"/api/profile/{cid.id}/update/"

    def move(headers: dict[str, str], number: int = 9) -> TestResponse:
        body = {"email": f"cid{number}@example.org"}
        return client.put(url, json=body, headers={**auth, **headers})

    moved = [move({}, number).status_code for number in range(5)]

    assert moved == [200] * 5
    check_throttled(move, HOUR)
    assert client.put(url, json={"first_name": "Cid"}, headers=auth).status_code == 200


@pytest.mark.parametrize("store", ["memory", "redis"])
def test_only_the_right_try_is_taken_back(own_redis: tuple[str, redis.Redis], store: str) -> None:
    url = own_redis[0] if store == "redis" else ""
    made = Throttle(uuid4().bytes, redis_url=url)

    def tries(count: int) -> None:
        for _ in range(count):
            made.spend(throttle.PASSWORD, account=uuid4().hex, address=HERE)

    tries(60)
    for _ in range(200):
        made.spend(throttle.PASSWORD, account="cid", address=HERE)
        made.forgive(throttle.PASSWORD, account="cid", address=HERE)
    tries(40)

    with pytest.raises(Throttled):
        tries(1)


# Addresses


def test_what_a_client_says_of_itself_is_not_read_without_a_trusted_proxy(
    client: FlaskClient,
) -> None:
    tried = [sign_up(client, HERE, f"192.0.2.{number}").status_code for number in range(30)]

    assert tried == [400] * 30
    assert sign_up(client, HERE, "192.0.2.99").status_code == 429
    assert sign_up(client, ELSEWHERE, HERE).status_code == 400


def test_behind_a_trusted_proxy_the_address_that_it_wrote_counts(new_app: NewApp) -> None:
    proxy = "10.0.0.2"
    client = new_app(RATE_LIMITS="on", TRUSTED_PROXIES="10.0.0.0/24").test_client()

    tried = [
        sign_up(client, proxy, f"192.0.2.{number}, {HERE}").status_code for number in range(30)
    ]
    ipv6 = [sign_up(client, proxy, f"2001:db8:1:2::{number:x}").status_code for number in range(30)]

    assert (tried, ipv6) == ([400] * 30, [400] * 30)
    # It counts however it comes, and whatever the client has put before it.
    for address, forwarded_for in (
        (proxy, HERE),
        (proxy, f"{ELSEWHERE}, {HERE}, 10.0.0.3"),
        (HERE, None),
        (HERE, ELSEWHERE),
        (proxy, "2001:db8:1:2:ffff::"),
        ("2001:db8:1:2::99", None),
    ):
        assert (forwarded_for, sign_up(client, address, forwarded_for).status_code) == (
            forwarded_for,
            429,
        )
    for address, forwarded_for in (
        (proxy, f"{HERE}, {ELSEWHERE}"),
        (proxy, None),
        (proxy, "2001:db8:1:3::1"),
        (ELSEWHERE, HERE),
    ):
        assert (forwarded_for, sign_up(client, address, forwarded_for).status_code) == (
            forwarded_for,
            400,
        )


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        ("203.0.113.7", "", "203.0.113.7"),
        ("203.0.113.7", "198.51.100.8", "203.0.113.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.8", "198.51.100.8"),
        ("10.0.0.1", "192.0.2.9, 198.51.100.8", "198.51.100.8"),
        ("10.0.0.1", "198.51.100.8, 10.9.9.9", "198.51.100.8"),
        ("10.0.0.1", "192.0.2.9,198.51.100.8 ,, 10.9.9.9 ,", "198.51.100.8"),
        ("10.0.0.1", "10.0.0.2, 10.0.0.3", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.8, unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.8, unknown, 10.0.0.3", "10.0.0.3"),
        ("10.0.0.1", "192.0.2.9, 198.51.100.7:50000", "198.51.100.7"),
        ("10.0.0.1", "192.0.2.9:1, 198.51.100.7:50000, 10.0.0.3:443", "198.51.100.7"),
        ("10.0.0.1", '"198.51.100.7:50000"', "198.51.100.7"),
        ("10.0.0.1", "[198.51.100.7]:50000", "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7:", "198.51.100.7"),
        ("10.0.0.1", "::ffff:198.51.100.7:50000", "198.51.100.7"),
        ("10.0.0.1", "[::ffff:198.51.100.7]:50000", "198.51.100.7"),
        ("10.0.0.1", "[2001:db8::5]:443", "2001:db8::/64"),
        ("10.0.0.1", '"[2001:db8::5]:443"', "2001:db8::/64"),
        ("10.0.0.1", "[2001:db8::5]", "2001:db8::/64"),
        ("10.0.0.1", "2001:db8::5", "2001:db8::/64"),
        ("10.0.0.1", "2001:db8:1:2:3:4:5:6:443", "2001:db8:1:2::/64"),
        ("10.0.0.1", "[fe80::1%25eth0]:443", "fe80::/64"),
        ("[fd00::1]:443", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7:50000:1", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7:http", "10.0.0.1"),
        ("10.0.0.1", "[2001:db8::5", "10.0.0.1"),
        ("10.0.0.1", "[[2001:db8::5]]", "10.0.0.1"),
        ("10.0.0.1", "for=198.51.100.7", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.8, _hidden", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.8, ann.example.org", "10.0.0.1"),
        ("::ffff:10.0.0.1", "::ffff:198.51.100.8", "198.51.100.8"),
        ("fd00::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "198.51.100.8", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "", "fe80::/64"),
        ("", "198.51.100.8", "unknown"),
        (None, "198.51.100.8", "unknown"),
        ("a socket", "", "unknown"),
    ],
)
def test_the_nearest_address_that_is_not_ours_counts(
    peer: str | None, forwarded_for: str, address: str
) -> None:
    ours = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]

    assert client_address(peer, forwarded_for, ours) == address


def test_what_is_no_address_is_said_once_and_not_what_it_is(
    new_app: NewApp, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_unreadable", web._Unreadable())
    client = new_app(TRUSTED_PROXIES="10.0.0.0/24").test_client()
    capsys.readouterr()

    # What proxies of ours did not write is not read: nobody else makes a line.
    sign_up(client, "10.0.0.2", "_hidden, 198.51.100.7")
    sign_up(client, HERE, "zoe.example.org")
    for hop in ("unknown", '"Unknown"', "_hidden", '"_0x1F"', "zoe.example.org", "[198.51.100.7"):
        sign_up(client, "10.0.0.2", f"{HERE}, {hop}")
        sign_up(client, "10.0.0.2", hop)
    sign_up(client, "a socket", "unknown")

    logged = capsys.readouterr().out
    lines = [json.loads(line) for line in logged.splitlines()]
    assert [
        (one["event"], one["level"], one["where"], one["kind"])
        for one in lines
        if one["logger"] == "accountsvc.web"
    ] == [
        ("a client's address cannot be read", "warning", where, kind)
        for where, kind in (
            ("X-Forwarded-For", "unknown"),
            ("X-Forwarded-For", "obfuscated"),
            ("X-Forwarded-For", "something else"),
            ("peer", "no address"),
        )
    ]
    for personal in ("zoe", "0x1F", "hidden", "198.51.100.7"):
        assert personal not in logged


def test_one_address_may_sign_up_thirty_times_an_hour(app: APIFlask, client: FlaskClient) -> None:
    body = {"username": "eve", "email": "eve@example.org", "password": PASSWORD}

    tried = [sign_up(client, HERE).status_code for _ in range(30)]

    assert tried == [400] * 30
    check_throttled(
        lambda headers: client.post("/api/sign-up/", json=body, headers=headers, **from_(HERE)),
        HOUR,
    )
    assert events(services_of(app), "account.created") == []
    assert client.post("/api/sign-up/", json=body, **from_(ELSEWHERE)).status_code == 201
    # Each kind of try has a count of its own.
    assert sign_in(client, "eve@example.org", PASSWORD).status_code == 200


# Coming back


def test_tokens_are_counted_by_address_only(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    account = deactivate(services_of(app), cid.id)
    mailed = services_of(app).tokens.mailed(account, now=now(services_of(app)))
    reset = services_of(app).tokens.password_reset(account, now=now(services_of(app)))
    calls: list[tuple[str, dict[str, str]]] = [
        ("/api/profile/reactivate/", {"token": "x"}),
        ("/api/password-reset/confirm/", {"token": "x", "new_password": PASSWORD}),
    ]

    tried = [client.post(path, json=body, **from_(HERE)).status_code for path, body in calls * 30]

    assert tried == [401] * 60
    for path, body in calls:
        good = {**body, "token": mailed if path == calls[0][0] else reset}
        check_throttled(
            lambda headers, path=path, good=good: client.post(  # type: ignore[misc]
                path, json=good, headers=headers, **from_(HERE)
            ),
            QUARTER,
        )
    back = client.post("/api/profile/reactivate/", json={"token": mailed}, **from_(ELSEWHERE))
    assert back.status_code == 200


def test_nobody_can_lock_the_owner_out_of_coming_back(app: APIFlask, client: FlaskClient) -> None:
    people = [make_account(services_of(app), name) for name in ("cid", "dan")]
    accounts = [deactivate(services_of(app), one.id) for one in people]
    by_mail, by_recovery = (
        services_of(app).tokens.mailed(accounts[0], now=now(services_of(app))),
        services_of(app).tokens.recovery(accounts[1], now=now(services_of(app))),
    )
    for person in people:
        for number in range(100):
            sign_in(client, person.email, address=f"192.0.2.{number}")
        for _ in range(5):
            client.post("/api/password-reset/", json={"email": person.email}, **from_(HERE))
        blocked = sign_in(client, person.email, PASSWORD, ELSEWHERE)
        assert blocked.status_code == 429

    answers = [
        client.post("/api/profile/reactivate/", json={"token": token}, **from_(ELSEWHERE))
        for token in (by_mail, by_recovery)
    ]

    assert [got.status_code for got in answers] == [200, 200]


def test_for_an_hour_twenty_addresses_keep_nobody_out_and_try_a_bounded_number(
    app: APIFlask, client: FlaskClient, cid: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner has signed in before; the others have not, from addresses good and bad."""
    for name in ("dan", "eve"):
        make_account(services_of(app), name)
    real, judge, minutes = time.monotonic, services_of(app).hasher.judge, 0
    monkeypatch.setattr("time.monotonic", lambda: real() + 60 * minutes)
    verified = []

    def counted(password_hash: str, password: str) -> Verdict:
        verified.append(password)
        return judge(password_hash, password)

    monkeypatch.setattr(services_of(app).hasher, "judge", counted)
    assert sign_in(client, cid.email, PASSWORD).status_code == 200
    others, refused = [], 0

    for minutes in range(60):
        for number in range(20):
            while sign_in(client, cid.email, address=f"192.0.2.{number}").status_code != 429:
                pass
            refused += 1
            # Behind X-Forwarded-For anybody can be; the owner's address counts as it comes.
            if not number:
                headers = {"X-Forwarded-For": HERE}
                body = {"email": cid.email, "password": "wrong"}
                got = client.post(
                    "/api/sign-in/", json=body, headers=headers, **from_(f"192.0.2.{number}")
                )
                assert got.status_code == 429
        others += [
            sign_in(client, cid.email, PASSWORD).status_code,
            sign_in(client, "dan@example.org", PASSWORD, f"198.51.100.{minutes}").status_code,
            sign_in(client, "eve@example.org", PASSWORD, f"192.0.2.{minutes % 20}").status_code,
        ]

    assert others == [200] * 180
    assert refused == 60 * 20
    # A hundred in each quarter of an hour, however many addresses there are.
    assert verified.count("wrong") == 4 * 100


def test_an_owner_from_an_unknown_address_is_let_in_by_a_reset(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    def attack() -> list[int]:
        return [
            sign_in(client, cid.email, address=f"192.0.2.{number}").status_code
            for number in range(12)
            for _ in range(10)
        ]

    attack()
    blocked = sign_in(client, cid.email, PASSWORD, ELSEWHERE).status_code
    token = services_of(app).tokens.password_reset(cid, now=now(services_of(app)))
    new = "nine purple otters sing"
    reset = client.post(
        "/api/password-reset/confirm/",
        json={"token": token, "new_password": new},
        **from_(ELSEWHERE),
    )
    again = attack()

    assert (blocked, reset.status_code) == (429, 200)
    assert again.count(429) >= 20
    assert sign_in(client, cid.email, new, ELSEWHERE).status_code == 200
    assert sign_in(client, cid.email, new, FAR_AWAY).status_code == 429


def test_whoever_has_only_signed_up_is_not_kept_out_of_where_they_did(
    app: APIFlask, client: FlaskClient
) -> None:
    person = {"username": "dora", "email": "dora@example.org", "password": PASSWORD}
    signed_up = client.post("/api/sign-up/", json=person, **from_(ELSEWHERE))
    attack = [
        sign_in(client, person["email"], address=f"192.0.2.{number}").status_code
        for number in range(12)
        for _ in range(10)
    ]

    assert (signed_up.status_code, attack[-1]) == (201, 429)
    assert sign_in(client, person["email"], PASSWORD, FAR_AWAY).status_code == 429
    assert sign_in(client, person["email"], PASSWORD, ELSEWHERE).status_code == 200


def test_two_hundred_rounds_of_deletion_and_return_are_refused_nowhere(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    answers = []
    body = {"email": cid.email, "password": PASSWORD}
    for number in range(200):
        signed_in = client.post("/api/sign-in/", json=body)
        deleted = client.delete(
            f"/api/profile/{cid.id}/delete/", headers=bearer(str((signed_in.json or {})["access"]))
        )
        account = read_account(services_of(app), cid.id)
        assert account is not None
        tokens, moment = services_of(app).tokens, now(services_of(app))
        way_back = (
            body,
            {"token": tokens.mailed(account, now=moment)},
            {"token": tokens.recovery(account, now=moment)},
        )[number % 3]
        back = client.post("/api/profile/reactivate/", json=way_back)
        answers.append((signed_in.status_code, deleted.status_code, back.status_code))

    assert answers == [(200, 204, 200)] * 200


# Changing the password


def test_a_password_changes_ten_times_an_hour_and_is_not_hashed_beyond(
    app: APIFlask, client: FlaskClient, cid: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, words = f"/api/profile/{cid.id}/password/", "nine purple otters sing"
    auth, password = bearer(access_token(services_of(app), cid)), PASSWORD

    def change(headers: dict[str, str], **body: str) -> TestResponse:
        return client.post(path, json=body, headers={**auth, **headers})

    for number in range(10):
        # What changes nothing is no change.
        assert change({}, password="wrong", new_password=words).status_code == 403
        assert change({}, password=password, new_password="short").status_code == 400
        got = change({}, password=password, new_password=f"{words} {number}")
        assert got.status_code == 200
        auth, password = bearer(str((got.json or {})["access"])), f"{words} {number}"
    hashed: list[str] = []
    for name in ("verify", "hash"):
        monkeypatch.setattr(
            services_of(app).hasher, name, lambda *_, name=name: hashed.append(name)
        )

    check_throttled(lambda headers: change(headers, password=password, new_password=words), HOUR)

    assert hashed == []
    assert len(events(services_of(app), "account.password_changed")) == 10
    # It says nothing of the password, so it counts for none.
    monkeypatch.undo()
    assert sign_in(client, cid.email, password, LOCAL).status_code == 200


def test_who_may_not_try_a_password_uses_up_no_change_of_it(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    path, new = f"/api/profile/{cid.id}/password/", "nine purple otters sing"
    headers = bearer(access_token(services_of(app), cid))

    def change(password: str, address: str) -> int:
        body = {"password": password, "new_password": new}
        return client.post(path, json=body, headers=headers, **from_(address)).status_code

    tried = [change("wrong", HERE) for _ in range(20)]

    assert tried == [403] * 10 + [429] * 10
    assert change(PASSWORD, ELSEWHERE) == 200


# Asking for a new password


def test_more_than_three_mails_an_hour_are_silently_not_sent(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    make_account(services_of(app), "dan")

    def ask(email: str, address: str = HERE) -> tuple[int, bytes]:
        response = client.post("/api/password-reset/", json={"email": email}, **from_(address))
        return response.status_code, response.data

    three = [ask(one) for one in ("cid@example.org", "CID@example.org", " Cid@Example.org")]
    owed = [one.uid for one in effects(services_of(app), "mail.password_reset")]
    more = [ask(cid.email, address) for address in (HERE, ELSEWHERE, FAR_AWAY)]
    unknown = [ask("nobody@example.org") for _ in range(5)]

    assert {*three, *more, *unknown} == {(202, three[0][1])}
    # An unsent mail is replaced by the next one, and so is what is owed for an unknown e-mail.
    left = effects(services_of(app), "mail.password_reset")
    assert [one.uid for one in left if one.subject == cid.public_id] == owed
    assert (len(owed), len(left)) == (1, 2)
    ask("dan@example.org")
    assert len(effects(services_of(app), "mail.password_reset")) == 3


def test_one_address_may_ask_for_thirty_mails_an_hour(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    tried = [
        client.post(
            "/api/password-reset/", json={"email": f"nobody{number}@example.org"}, **from_(HERE)
        ).status_code
        for number in range(30)
    ]

    assert tried == [202] * 30
    check_throttled(
        lambda headers: client.post(
            "/api/password-reset/", json={"email": cid.email}, headers=headers, **from_(HERE)
        ),
        HOUR,
    )
    subjects = [one.subject for one in effects(services_of(app), "mail.password_reset")]
    assert (len(subjects), cid.public_id in subjects) == (30, False)
    client.post("/api/password-reset/", json={"email": cid.email}, **from_(ELSEWHERE))
    assert len(effects(services_of(app), "mail.password_reset")) == 31


# The trail


def test_nobody_fills_the_audit_trail_with_wrong_passwords(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    deactivate(services_of(app), cid.id)
    # A right password in between, so that the tries themselves are never stopped.
    for _ in range(3):
        for _ in range(9):
            assert sign_in(client, cid.email).status_code == 401
        assert sign_in(client, cid.email, PASSWORD).status_code == 403
    for _ in range(3):
        sign_in(client, "nobody@example.org")
    client.post("/api/profile/reactivate/", json={"email": cid.email, "password": "wrong"})

    failed = [one.subject for one in events(services_of(app), "sign_in.failed")]

    # Ten an hour on one account, whatever is tried; an unknown e-mail leaves no row.
    assert failed == [cid.public_id] * 10
    assert events(services_of(app), "reactivation.failed") == []


def test_nobody_fills_the_audit_trail_by_reaching_for_what_is_not_theirs(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    dan, eve = make_account(services_of(app), "dan"), make_account(services_of(app), "eve")

    for person, times in ((dan, 25), (eve, 2)):
        headers = bearer(access_token(services_of(app), person))
        answers = [
            client.delete(f"/api/profile/{cid.id}/delete/", headers=headers) for _ in range(times)
        ]
        assert [got.status_code for got in answers] == [403] * times

    denied = [(one.subject, one.actor) for one in events(services_of(app), "access.denied")]
    assert denied == [(cid.public_id, dan.public_id)] * 10
    # Eve has a count of her own, and so has every other account that she reaches for.
    client.delete(
        f"/api/profile/{dan.id}/delete/", headers=bearer(access_token(services_of(app), eve))
    )
    last = events(services_of(app), "access.denied")[-1]
    assert (last.subject, last.actor) == (dan.public_id, eve.public_id)


# Where it is counted


@pytest.fixture
def own_redis(redis_url: str) -> Iterator[tuple[str, redis.Redis]]:
    """A database of the Redis for the tests of this module; each of them has keys of its own."""
    url = urlsplit(redis_url)._replace(path="/9").geturl()
    with redis.Redis.from_url(url) as client:
        yield url, client


def test_two_processes_count_together_in_redis_and_name_nobody_there(
    new_app: NewApp, own_redis: tuple[str, redis.Redis]
) -> None:
    url, server = own_redis
    environment = {"RATE_LIMITS": "on", "REDIS_URL": url, "SECRET_KEY": f"a secret {uuid4()}"}
    before = set(server.scan_iter())
    one, other = new_app(**environment), new_app(**environment)
    cid = make_account(services_of(one), "cid")
    first, second = one.test_client(), other.test_client()

    tried = [sign_in(client, cid.email).status_code for client in (first, second) * 5]
    blocked = [sign_in(client, cid.email, PASSWORD).status_code for client in (first, second)]
    first.post("/api/password-reset/", json={"email": cid.email}, **from_("2001:db8:1:2::3"))
    sign_up(second, HERE)
    keys = set(server.scan_iter()) - before
    values = {key: (server.get(key), server.ttl(key)) for key in keys}

    assert (tried, blocked) == ([401] * 10, [429] * 2)
    assert len(keys) >= 5
    for key, (value, ttl) in values.items():
        assert re.fullmatch(rb"[0-9]+", value or b""), key
        assert 0 < ttl <= HOUR
        for secret in (
            b"cid",
            b"example",
            b"@",
            HERE.encode(),
            b"2001:",
            str(cid.public_id).encode(),
        ):
            assert secret not in key
    stranger = new_app(**environment | {"SECRET_KEY": f"another {uuid4()}"}).test_client()
    assert sign_in(stranger, cid.email, PASSWORD).status_code == 200


def test_a_redis_that_is_not_there_stops_nobody_and_the_log_says_so(
    new_app: NewApp, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"redis://:s3cret@127.0.0.1:{free_port()}/0"
    app = new_app(RATE_LIMITS="on", REDIS_URL=url)
    cid, client = make_account(services_of(app), "cid"), app.test_client()
    capsys.readouterr()

    right = sign_in(client, cid.email, PASSWORD)
    tried = [sign_in(client, cid.email).status_code for _ in range(11)]
    logged = capsys.readouterr().out

    assert right.status_code == 200
    assert tried == [401] * 10 + [429]
    lines = [json.loads(line) for line in logged.splitlines()]
    warned = [one for one in lines if one["logger"] == "accountsvc.adapters.throttle"]
    assert warned
    for line in warned:
        assert line["event"] == "throttles are counted in this process only"
        assert (line["level"], line["error"]) == ("warning", "ConnectionError")
    for secret in ("s3cret", cid.email, HERE):
        assert secret not in logged


def test_a_redis_that_comes_back_counts_again(
    new_app: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "_COOLDOWN_SECONDS", 0.0)
    server = ValkeyServer()
    try:
        apps = [new_app(RATE_LIMITS="on", REDIS_URL=server.url) for _ in range(2)]
        cid, clients = (
            make_account(services_of(apps[0]), "cid"),
            [one.test_client() for one in apps],
        )
        alone = [sign_in(one, cid.email).status_code for one in clients * 6]
        server.start()

        together = [sign_in(one, cid.email).status_code for one in clients * 6]
        server.stop("kill")
        alone_again = [sign_in(one, cid.email).status_code for one in clients * 5]
    finally:
        server.close()

    assert alone == [401] * 12
    assert together == [401] * 10 + [429] * 2
    assert alone_again == [401] * 8 + [429] * 2


def test_a_count_ends_with_its_window(new_app: NewApp, monkeypatch: pytest.MonkeyPatch) -> None:
    app = new_app(RATE_LIMITS="on")
    cid, client = make_account(services_of(app), "cid"), app.test_client()
    real = time.monotonic
    for _ in range(10):
        sign_in(client, cid.email)
    blocked = sign_in(client, cid.email, PASSWORD)
    later = timedelta(seconds=int(blocked.headers["Retry-After"])).total_seconds()

    monkeypatch.setattr("time.monotonic", lambda: real() + later)

    assert blocked.status_code == 429
    assert sign_in(client, cid.email, PASSWORD).status_code == 200


# Uploads


def upload(app: APIFlask, person: Account, address: str = HERE, **headers: str) -> TestResponse:
    return app.test_client().put(
        f"/api/profile/{person.id}/update/",
        headers=bearer(access_token(services_of(app), person)) | headers,
        data={"avatar": (BytesIO(png()), "me.png")},
        **from_(address),
    )


def test_an_account_may_upload_twenty_images_an_hour_and_change_its_profile_meanwhile(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    dan, spent = make_account(services_of(app), "dan"), services_of(app).throttle
    for n in range(19):
        spent.spend(UPLOAD, account=str(cid.public_id), address=f"192.0.2.{n}")

    assert upload(app, cid).status_code == 200
    check_throttled(lambda headers: upload(app, cid, ELSEWHERE, **headers), HOUR)

    changed = client.put(
        f"/api/profile/{cid.id}/update/",
        headers=bearer(access_token(services_of(app), cid)),
        json={"first_name": "Zoe"},
        **from_(HERE),
    )
    assert changed.status_code == 200
    assert upload(app, dan).status_code == 200


def test_an_address_may_upload_sixty_images_an_hour_and_disturbs_no_other(
    app: APIFlask, cid: Account
) -> None:
    for _ in range(59):
        services_of(app).throttle.spend(UPLOAD, address=HERE)

    assert upload(app, cid).status_code == 200
    check_throttled(lambda headers: upload(app, cid, HERE, **headers), HOUR)
    assert upload(app, cid, ELSEWHERE).status_code == 200


def test_the_image_of_an_upload_too_many_is_not_looked_at(
    app: APIFlask, cid: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(60):
        services_of(app).throttle.spend(UPLOAD, address=HERE)
    # With no place left, looking at an image would be 503.
    monkeypatch.setattr(images, "turns", Turns(1, 0, limit="busy images"))

    with images.turns.take():
        assert upload(app, cid, HERE).status_code == 429
        assert upload(app, cid, ELSEWHERE).status_code == 503


# Receipts


def test_receipts_are_counted_by_address_only_and_beside_nothing_else(
    app: APIFlask, client: FlaskClient, cid: Account
) -> None:
    numbers = ["5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0", "x"] * 15

    looked = [client.get(f"/api/receipts/{one}/", **from_(HERE)).status_code for one in numbers]
    read = [client.get(f"/receipts/{one}/", **from_(HERE)).status_code for one in numbers]

    def again(headers: dict[str, str]) -> TestResponse:
        return client.get(f"/api/receipts/{numbers[0]}/", headers=headers, **from_(HERE))

    assert looked + read == [404] * 60
    check_throttled(again, QUARTER)
    page = client.get(f"/receipts/{numbers[0]}/", **from_(HERE))
    assert page.status_code == 429
    assert int(page.headers["Retry-After"]) <= QUARTER
    assert "Too many tries. Wait " in page.text
    assert client.get(f"/api/receipts/{numbers[0]}/", **from_(ELSEWHERE)).status_code == 404
    assert sign_in(client, cid.email, PASSWORD).status_code == 200
