"""What the logs say of a request, and what they must not."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

import pytest
import structlog
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc import logs
from tests.conftest import NewApp
from tests.support.factories import PASSWORD, Person, deactivate, make_person, services_of
from tests.support.moments import now


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner that shows this process's output to a person."""
    monkeypatch.setenv(logs.CONSOLE, "1")


def lines(captured: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in captured.readouterr().out.splitlines()]


def test_a_request_is_one_line_of_ids_and_counts(
    client: FlaskClient, ann: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    client.delete(f"/api/profile/{ann.id}/delete/?q=x", headers={**ann.auth, "X-Request-ID": "abc"})

    (line,) = lines(capsys)
    assert line.pop("duration_ms") >= 0
    assert line.pop("at").endswith("Z")
    assert line == {
        "event": "request",
        "logger": "accountsvc.access",
        "level": "info",
        "request_id": "abc",
        "method": "DELETE",
        "route": "/api/profile/<int:user_id>/delete/",
        "status": 204,
        "caller": str(ann.public_id),
        "subject": None,
    }


def test_a_request_names_whose_account_it_is_about(
    app: APIFlask, client: FlaskClient, ann: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a restore the log tells who had come back, and by whom."""
    sue = make_person(services_of(app), "sue", staff=True)
    capsys.readouterr()
    client.post("/api/sign-in/", json={"email": ann.email, "password": PASSWORD})
    client.post(f"/api/profile/{ann.id}/holds/", headers=sue.auth, json={"reason": "x"})
    for how in ("password", "token"):
        account = deactivate(services_of(app), ann.id)
        token = services_of(app).tokens.recovery(account, now=now(services_of(app)))
        body = {"email": ann.email, "password": PASSWORD} if how == "password" else {"token": token}
        client.post("/api/profile/reactivate/", json=body)
    deactivate(services_of(app), ann.id, by="staff")
    client.post(f"/api/profile/{ann.id}/reactivate/", headers=sue.auth)

    said = [(one["status"], one["caller"], one["subject"]) for one in lines(capsys)]

    nobody, staff, about = None, str(sue.public_id), str(ann.public_id)
    assert said == [
        (200, nobody, about),
        (201, staff, about),
        (200, nobody, about),
        (200, nobody, about),
        (200, staff, about),
    ]


def test_every_way_to_prove_who_one_is_leaves_a_line_also_where_it_is_refused(
    client: FlaskClient, ann: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    """By route and status; who it was only once that is proved (ASVS 5.0, 16.3.1, 16.3.2)."""
    signed_in = client.post("/api/sign-in/", json={"email": ann.email, "password": PASSWORD})
    capsys.readouterr()

    client.post("/api/sign-in/", json={"email": ann.email, "password": "wrong password"})
    client.post("/api/token/refresh/", json={"refresh": signed_in.json["refresh"]})
    client.post("/api/token/refresh/", json={"refresh": signed_in.json["access"]})
    client.get("/api/profile/", headers={"Authorization": "Bearer null"})
    client.get("/api/admin/audit/", headers=ann.auth)

    said = [(one["route"], one["status"], one["caller"]) for one in lines(capsys)]
    assert said == [
        ("/api/sign-in/", 401, None),
        ("/api/token/refresh/", 200, str(ann.public_id)),
        ("/api/token/refresh/", 401, None),
        ("/api/profile/", 401, None),
        ("/api/admin/audit/", 403, str(ann.public_id)),
    ]


def test_no_line_holds_personal_data(
    client: FlaskClient, ann: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_no_line_holds_personal_data(client, ann, capsys)


def test_no_line_for_a_person_holds_personal_data(
    client: FlaskClient, ann: Person, capsys: pytest.CaptureFixture[str], console: None
) -> None:
    assert_no_line_holds_personal_data(client, ann, capsys)


def assert_no_line_holds_personal_data(
    client: FlaskClient, ann: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    client.post("/api/sign-in/", json={"email": ann.email, "password": PASSWORD})
    client.post("/api/sign-in/", json={"email": ann.email, "password": "wr0ng-guess"})
    client.get(f"/api/nothing/{ann.email}/?email={ann.email}", headers=ann.auth)
    client.open("/api/profile/", method="ANN", headers=ann.auth)
    client.get(f"/media/avatars/{ann.avatar}")
    client.patch(f"/api/profile/{ann.id}/update/", headers=ann.auth, json={"first_name": "Zoe"})

    logged = capsys.readouterr().out

    assert len(logged.splitlines()) == 6
    for secret in (ann.email, "ann", PASSWORD, "wr0ng-guess", ann.token, ann.avatar, "Zoe"):
        assert secret.lower() not in logged.lower()


def test_a_fault_is_logged_by_its_class_and_place_not_by_its_text(
    new_app: NewApp, capsys: pytest.CaptureFixture[str]
) -> None:
    app = new_app()

    @app.get("/api/broken/")
    def broken() -> None:
        raise RuntimeError("ann@example.org")

    capsys.readouterr()

    app.test_client().get("/api/broken/")

    fault, request = lines(capsys)
    assert (fault["error"], request["status"]) == ("RuntimeError", 500)
    assert fault["request_id"] == request["request_id"]
    assert any("broken" in frame for frame in fault["frames"])
    assert "ann@example.org" not in json.dumps(fault)


def test_other_libraries_log_in_the_same_form_and_without_texts_of_exceptions(
    app: APIFlask, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()

    try:
        raise ValueError("ann@example.org")
    except ValueError:
        logging.getLogger("some.library").exception("it failed")
    logging.getLogger("some.library").info("not shown")

    (line,) = lines(capsys)
    assert (line["event"], line["error"], line["level"]) == ("it failed", "ValueError", "error")
    assert "ann@example.org" not in json.dumps(line)


# Lines for people -------------------------------------------------------------------------------


def words(captured: pytest.CaptureFixture[str]) -> list[str]:
    """The lines without their times of day, and with each number of milliseconds replaced."""
    printed = captured.readouterr().out.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in printed)
    return [re.sub(r"\d+\.\d+ ms", "MS", line.partition(" ")[2]) for line in printed]


def test_a_person_sees_what_was_asked_and_by_whom(
    app: APIFlask,
    client: FlaskClient,
    ann: Person,
    capsys: pytest.CaptureFixture[str],
    console: None,
) -> None:
    sue = make_person(services_of(app), "sue", staff=True)
    capsys.readouterr()

    client.get("/healthz")
    client.get("/api/nothing/")
    client.get("/api/profile/", headers=ann.auth)
    client.post(f"/api/profile/{ann.id}/holds/", headers=sue.auth, json={"reason": "x"})

    assert words(capsys) == [
        "GET /healthz 200 MS",
        "GET (no such address) 404 MS",
        f"GET /api/profile/ 200 MS by {ann.public_id}",
        f"POST /api/profile/<int:user_id>/holds/ 201 MS by {sue.public_id} about {ann.public_id}",
    ]


def test_a_terminal_is_for_a_person(
    client: FlaskClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capsys.readouterr()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    client.get("/healthz")

    assert words(capsys) == ["GET /healthz 200 MS"]


def test_in_production_a_terminal_shows_what_a_machine_reads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, console: None
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    assert not logs.for_people(production=True)
    assert logs.for_people(production=False)


def test_an_event_is_one_line_for_a_person_whatever_it_holds(
    app: APIFlask, capsys: pytest.CaptureFixture[str], console: None
) -> None:
    """A library may log several lines, or signs with which a terminal does things."""
    capsys.readouterr()

    structlog.get_logger("worker.tasks").info(
        "swept", purged=2, task="accountsvc.sweep", more=False
    )
    structlog.get_logger("worker.tasks").warning("the store is slow", part="file store", owed=None)
    logging.getLogger("some.library").error("two\nlines and a bell \a\x1b[2J")
    try:
        raise ValueError("ann@example.org")
    except ValueError:
        logging.getLogger("accountsvc.web").exception("it failed")

    swept, slow, foreign, fault = words(capsys)
    assert swept == "swept purged=2 task=accountsvc.sweep more=false"
    assert slow == 'warning: the store is slow part="file store"'
    assert foreign == "error: some.library: two lines and a bell   [2J"
    assert fault.startswith("error: it failed error=ValueError frames=api/test_api_logs.py:")
    assert "ann@example.org" not in fault
