"""A request that is refused for the number of its kind leaves the limit that it met, and nobody."""

from __future__ import annotations

import json
from contextlib import ExitStack
from io import BytesIO
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc import bounds
from accountsvc.adapters import images, throttle
from accountsvc.errors import BUSY_IMAGES, BUSY_PASSWORDS, NO_IMAGE_WORKER
from accountsvc.turns import Turns
from tests.conftest import NewApp
from tests.support.factories import Person, make_person, png, services_of

HERE = "203.0.113.7"


@pytest.fixture
def app(new_app: NewApp) -> APIFlask:
    return new_app(RATE_LIMITS="on")


def access_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    read = map(json.loads, capsys.readouterr().out.splitlines())
    return [line for line in read if line["event"] == "request"]


def refusals(client: FlaskClient) -> dict[str, float]:
    """Return the counts of /metrics, by limit."""
    start = "accountsvc_refusals_total{limit="
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(start)]
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines}


def sign_in(client: FlaskClient, email: str) -> int:
    return client.post(
        "/api/sign-in/",
        json={"email": email, "password": "wrong"},
        environ_overrides={"REMOTE_ADDR": HERE},
    ).status_code


def upload(client: FlaskClient, ann: Person) -> int:
    return client.put(
        f"/api/profile/{ann.id}/update/",
        headers=ann.auth,
        data={"avatar": (BytesIO(png()), "a.png")},
        environ_overrides={"REMOTE_ADDR": HERE},
    ).status_code


def check_one(
    client: FlaskClient,
    capsys: pytest.CaptureFixture[str],
    before: dict[str, float],
    *,
    status: int,
    limit: str,
) -> None:
    """Check that one request met *limit*, in the log and in the metric, and that no other did."""
    (line,) = [line for line in access_lines(capsys) if "limit" in line]
    assert (line["status"], line["limit"]) == (status, limit)
    assert HERE not in json.dumps(line)
    assert "@" not in json.dumps(line)
    after = refusals(client)
    moved = {name: count - before.get(name, 0) for name, count in after.items()}
    assert {name: by for name, by in moved.items() if by} == {limit: 1}


def test_before_any_refusal_there_is_a_count_to_subtract_from_the_503(client: FlaskClient) -> None:
    assert {BUSY_PASSWORDS, BUSY_IMAGES, NO_IMAGE_WORKER} <= set(refusals(client))


@pytest.mark.parametrize(
    ("spent", "limit"),
    [
        ({"account": "nobody@example.org", "address": HERE}, "password pair"),
        ({"account": "nobody@example.org"}, "password account"),
        ({"address": HERE}, "password address"),
    ],
)
def test_a_429_names_the_limit(
    app: APIFlask,
    client: FlaskClient,
    capsys: pytest.CaptureFixture[str],
    spent: dict[str, str],
    limit: str,
) -> None:
    of_password = throttle.LIMITS[throttle.PASSWORD]
    item = getattr(of_password, limit.split()[1])
    for _ in range(item.amount):
        services_of(app).throttle.spend(throttle.PASSWORD, **spent)
    before = refusals(client)
    capsys.readouterr()

    assert sign_in(client, "nobody@example.org") == 429

    check_one(client, capsys, before, status=429, limit=limit)


def test_a_link_that_is_silently_not_mailed_names_the_limit(
    app: APIFlask, client: FlaskClient, capsys: pytest.CaptureFixture[str]
) -> None:
    item = throttle.LIMITS[throttle.PASSWORD_RESET].account
    assert item is not None
    for _ in range(item.amount):
        services_of(app).throttle.spend(throttle.PASSWORD_RESET, account="nobody@example.org")
    before = refusals(client)
    capsys.readouterr()

    client.post("/api/password-reset/", json={"email": "nobody@example.org"})

    check_one(client, capsys, before, status=202, limit="password_reset account")


def test_a_503_for_a_full_queue_of_passwords_names_it(
    app: APIFlask,
    client: FlaskClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client.get("/healthz")
    hasher = services_of(app).hasher
    monkeypatch.setattr(hasher, "_turns", Turns(1, 0, limit=BUSY_PASSWORDS))
    before = refusals(client)
    capsys.readouterr()

    with hasher._turns.take():
        assert sign_in(client, "nobody@example.org") == 503

    check_one(client, capsys, before, status=503, limit=BUSY_PASSWORDS)


def test_a_503_for_an_image_says_whether_the_queue_was_full_or_the_installation_is_broken(
    app: APIFlask,
    client: FlaskClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ann = make_person(services_of(app), "ann")
    before = refusals(client)
    capsys.readouterr()

    with ExitStack() as full:
        # As many as may work and wait: with each of them a place is taken.
        for _ in range(1 + bounds.IMAGES_WAITING):
            full.callback(images.turns._places.release)
            images.turns._places.acquire()
        assert upload(client, ann) == 503
    check_one(client, capsys, before, status=503, limit=BUSY_IMAGES)

    monkeypatch.setattr(images, "_COMMAND", ["/nowhere"])
    before = refusals(client)
    capsys.readouterr()

    assert upload(client, ann) == 503
    check_one(client, capsys, before, status=503, limit=NO_IMAGE_WORKER)
