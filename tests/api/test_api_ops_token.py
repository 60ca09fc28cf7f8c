"""CONTRACT section 6: only the operator's machines see the counts, by OPS_TOKEN."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from apiflask import APIFlask
from flask import Response
from flask.testing import FlaskClient
from sqlalchemy import delete

from accountsvc.db import audit
from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.models import Effect
from accountsvc.monitoring import probes
from accountsvc.monitoring.probes import DATABASE_BEHIND
from accountsvc.monitoring.status import SEALED_WITHIN
from tests.conftest import NewApp
from tests.support.factories import make_person, services_of
from tests.support.ledgers import write
from tests.support.moments import now
from tests.support.production import PRODUCTION_ASKS

TOKEN = "fHk3~4.5_6+7/8-9ab=="
COUNTS = ("/metrics", "/statusz")
OPEN = ("/healthz", "/readyz")
PRODUCTION = {
    **PRODUCTION_ASKS,
    "ALLOW_SQLITE": "1",
    "PASSWORD_HASH_COST": "normal",
    "RATE_LIMITS": "on",
    "REDIS_URL": "redis://127.0.0.1:1/0",
    "MAIL_URL": "smtp://127.0.0.1:1/?tls=none",
    "TRUSTED_PROXIES": "none",
}


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One engine: who may ask does not depend on it."""
    return sqlite_url


@pytest.fixture(autouse=True)
def _ask_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep no answer: what a test changes is to be seen at once."""
    for name in ("ANSWER_KEPT", "FAULT_KEPT", "LEDGER_ANSWER_KEPT"):
        monkeypatch.setattr(probes, name, timedelta())


@pytest.fixture
def guarded(new_app: NewApp) -> FlaskClient:
    return new_app(OPS_TOKEN=TOKEN).test_client()


def ask(client: FlaskClient, path: str, authorization: str | None, method: str = "GET") -> Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return client.open(path, method=method, headers=headers)


@pytest.mark.parametrize("path", COUNTS)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer null",
        TOKEN,
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN}, Bearer {TOKEN}",
        f"Bearer Bearer {TOKEN}",
        f"Basic {TOKEN}",
        f"Token {TOKEN}",
        "Bearer ükenökenökenöken",
        f"Bearer {TOKEN}\xff",
        "Bearer \xe2\x82\xac",
    ],
)
def test_without_the_token_nobody_sees_a_count(
    guarded: FlaskClient, path: str, authorization: str | None
) -> None:
    for method in ("GET", "HEAD", "OPTIONS"):
        response = ask(guarded, path, authorization, method)

        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        if method != "HEAD":
            assert response.json == {"detail": "Send the service's OPS_TOKEN as the bearer token."}


@pytest.mark.parametrize("path", COUNTS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR ", "  Bearer"])
def test_with_the_token_everything_is_shown(guarded: FlaskClient, path: str, scheme: str) -> None:
    for method, status in (("GET", 200), ("HEAD", 200), ("OPTIONS", 204)):
        assert ask(guarded, path, f"{scheme} {TOKEN}", method).status_code == status


@pytest.mark.parametrize("path", COUNTS)
def test_no_other_token_of_the_service_shows_a_count(new_app: NewApp, path: str) -> None:
    app = new_app(OPS_TOKEN=TOKEN)
    staff = make_person(services_of(app), "sue", staff=True)

    assert ask(app.test_client(), path, staff.auth["Authorization"]).status_code == 401


def test_the_token_opens_nothing_else(guarded: FlaskClient) -> None:
    assert ask(guarded, "/api/profile/", f"Bearer {TOKEN}").status_code == 401
    assert ask(guarded, "/api/admin/audit/", f"Bearer {TOKEN}").status_code == 401


@pytest.mark.parametrize("path", COUNTS)
def test_without_the_setting_counts_are_open_in_development_and_nowhere_in_production(
    new_app: NewApp, path: str
) -> None:
    development, production = (new_app(**given).test_client() for given in ({}, PRODUCTION))
    nothing = production.get("/nothing-is-here")

    assert development.get(path).status_code == 200
    for method in ("GET", "HEAD", "OPTIONS"):
        for authorization in (None, "Bearer", f"Bearer {TOKEN}"):
            response = ask(production, path, authorization, method)

            assert response.status_code == 404
            if method != "HEAD":
                assert response.json == nothing.json


@pytest.mark.parametrize("path", COUNTS)
def test_in_production_the_token_shows_counts(new_app: NewApp, path: str) -> None:
    client = new_app(**PRODUCTION, OPS_TOKEN=TOKEN).test_client()

    assert ask(client, path, None).status_code == 401
    assert ask(client, path, f"Bearer {TOKEN}").status_code == 200


@pytest.mark.parametrize(
    "given", [{}, {"OPS_TOKEN": TOKEN}, PRODUCTION], ids=["open", "token", "hidden"]
)
def test_whether_it_lives_and_may_serve_is_for_everybody(
    new_app: NewApp, given: dict[str, str]
) -> None:
    client = new_app(**given).test_client()

    for path in OPEN:
        assert client.get(path).status_code == 200
        assert ask(client, path, "Bearer nonsense").status_code == 200


@pytest.mark.parametrize("people", [1, 3])
def test_what_is_for_everybody_names_no_count(app: APIFlask, people: int) -> None:
    """However many purged people are back, the answer is the same."""
    for name in ("ann", "bob", "cid")[:people]:
        person = make_person(services_of(app), name)
        line = {"public_id": str(person.public_id)}
        write(services_of(app).ledger, [line], at=now(services_of(app)))

    ready, alive = (app.test_client().get(path) for path in ("/readyz", "/healthz"))

    assert ready.json == {
        "status": "not ready",
        "database": "ok",
        "schema": "ok",
        "ledger": DATABASE_BEHIND,
    }
    assert alive.json == {"status": "ok"}
    assert re.findall(r"\d", ready.text + alive.text) == []


def test_the_token_is_in_no_log(guarded: FlaskClient, capfd: pytest.CaptureFixture[str]) -> None:
    for authorization in (f"Bearer {TOKEN}", f"Bearer {TOKEN}x", f"Basic {TOKEN}"):
        for path in COUNTS:
            ask(guarded, path, authorization)

    said = capfd.readouterr()
    assert '"/statusz"' in said.out
    assert TOKEN not in said.out + said.err


def test_another_site_gets_no_permission_to_read_counts(guarded: FlaskClient) -> None:
    headers = {"Origin": "http://localhost:3000", "Authorization": f"Bearer {TOKEN}"}

    for path in COUNTS:
        response = guarded.get(path, headers=headers)

        assert response.status_code == 200
        assert [name for name, _ in response.headers if name.startswith("Access-Control")] == []


def test_the_document_describes_the_token(client: FlaskClient) -> None:
    document: Any = client.get("/api/openapi.json").json

    scheme = document["components"]["securitySchemes"]["opsToken"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path in COUNTS:
        operation = document["paths"][path]["get"]
        assert operation["security"] == [{"opsToken": []}, {}]
        assert {"200", "401", "404"} <= set(operation["responses"])
        assert "WWW-Authenticate" in operation["responses"]["401"]["headers"]


def test_the_front_page_leads_to_what_its_reader_may_see(new_app: NewApp) -> None:
    places = [
        (new_app(**given).test_client().get("/").json or {})["status"]
        for given in ({}, {"OPS_TOKEN": TOKEN}, PRODUCTION)
    ]

    assert places == ["/statusz", "/readyz", "/readyz"]


# Whoever asks for a reset learns from no count who has an account.


def counts(client: FlaskClient) -> tuple[Any, list[str]]:
    """What /statusz and /metrics show, without the requests that were counted, and without ages."""
    status: Any = client.get("/statusz").json
    for moving in ("age_seconds", "last_at"):
        (status["sweep"] or {}).pop(moving, None)
    oldest = status["backlog"]["owed_oldest_seconds"]
    assert all(0 <= seconds < 60 for seconds in oldest.values())
    status["backlog"]["owed_oldest_seconds"] = sorted(oldest)
    lines = client.get("/metrics").text.splitlines()
    moving_lines = r"#|accountsvc_(http|sweep_age|outbox_oldest)"
    return status, [line for line in lines if not re.match(moving_lines, line)]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("outage", [False, True], ids=["mail goes out", "mail server away"])
def test_after_a_reset_every_count_is_the_same_known_e_mail_or_not(
    new_app: NewApp, tmp_path: Path, times: int, outage: bool
) -> None:
    app = new_app(**({"MAIL_URL": f"file://{blocked(tmp_path)}/mail"} if outage else {}))
    make_person(services_of(app), "ann")
    client = app.test_client()
    seen = []

    for email in ("nobody@example.org", "ann@example.org"):
        for _ in range(times):
            client.post("/api/password-reset/", json={"email": email})
        asked = counts(client)
        services_of(app).deliver()
        delivered = counts(client)
        services_of(app).seal(seconds=5, at_once=True)
        seen.append((asked, delivered, counts(client)))
        empty_outbox(app)

    assert seen[0] == seen[1]
    assert seen[0][0][0]["backlog"]["owed"] == {"mail.password_reset": 1}


@pytest.mark.parametrize(
    ("age", "shown"), [(SEALED_WITHIN - timedelta(minutes=1), False), (SEALED_WITHIN, True)]
)
def test_an_entry_without_a_seal_is_shown_once_that_is_late(
    client: FlaskClient, app: APIFlask, age: timedelta, shown: bool
) -> None:
    services = services_of(app)
    at = now(services) - age
    with services.writing() as session:
        audit.record(session, "purge.paused", subject=None, by=OPERATOR_ACTOR, now=at)

    status: Any = client.get("/statusz").json
    (line,) = re.findall(
        r"^accountsvc_oldest_unsealed_seconds (.*)$", metrics(client), re.MULTILINE
    )

    least, most = (age.total_seconds(), age.total_seconds() + 60) if shown else (0, 0)
    assert least <= status["backlog"]["oldest_unsealed_seconds"] <= most
    assert least <= float(line) <= most


def metrics(client: FlaskClient) -> str:
    return client.get("/metrics").text


def blocked(folder: Path) -> Path:
    """A file, where a folder should be."""
    path = folder / "blocked"
    path.touch()
    return path


def empty_outbox(app: APIFlask) -> None:
    with services_of(app).writing() as session:
        session.execute(delete(Effect))
