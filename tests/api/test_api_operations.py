"""CONTRACT section 6: what an operator's machines ask."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from accountsvc.config import ConfigError
from accountsvc.db import audit
from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.engine import database_now
from accountsvc.db.models import SWEPT, ClockReading, Effect
from accountsvc.db.schema import downgrade
from accountsvc.monitoring import probes
from accountsvc.monitoring.probes import DATABASE_BEHIND, WRONG_KEYS, Probe, Probes
from accountsvc.outbox import queue
from accountsvc.outbox.payloads import LedgerLines
from accountsvc.purge import failures, stops
from accountsvc.purge.clocks import Clocks, ClocksDiffer
from tests.conftest import NewApp
from tests.support.factories import (
    VAULT_KEY,
    Person,
    deactivate,
    dispose,
    insert_account,
    make_app,
    make_due,
    make_person,
    run_sql,
    services_of,
    variables,
)
from tests.support.ledgers import write
from tests.support.moments import NOW, now
from tests.support.servers import free_port
from tests.support.state import everything

LONG_AGO = "2026-01-01 00:00:00.000000"
READY = {"status": "ready", "database": "ok", "schema": "ok", "ledger": "ok"}


@pytest.fixture(autouse=True)
def _ask_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep no answer: what a test changes is to be seen at once."""
    for name in ("ANSWER_KEPT", "FAULT_KEPT", "LEDGER_ANSWER_KEPT"):
        monkeypatch.setattr(probes, name, timedelta())


def ledgered(app: APIFlask, person: Person) -> None:
    """Write *person* into the ledger, as if a backup from before the purge had been restored."""
    line = {"public_id": str(person.public_id)}
    write(services_of(app).ledger, [line], at=now(services_of(app)))


def metrics(client: FlaskClient) -> dict[tuple[str, tuple[str, ...]], float]:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.mimetype == "text/plain"
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


# Ready


def test_a_process_with_a_database_is_ready(client: FlaskClient, database_url: str) -> None:
    response = client.get("/readyz")

    assert (response.status_code, response.json) == (200, READY)


def test_nobody_is_served_on_an_older_schema(client: FlaskClient, database_url: str) -> None:
    downgrade(database_url, "-1")

    response = client.get("/readyz")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert response.json == {
        "status": "not ready",
        "database": "ok",
        "schema": "is behind: run `python -m accountsvc prepare`",
    }


def test_a_newer_schema_is_served_while_a_new_version_is_rolled_out(
    app: APIFlask, client: FlaskClient
) -> None:
    run_sql(services_of(app), "UPDATE alembic_version SET version_num = 'later'")

    assert client.get("/readyz").json == READY


def test_nobody_is_served_while_purged_people_are_back(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    ledgered(app, ann)

    response = client.get("/readyz")
    status = client.get("/statusz").json

    assert response.status_code == 503
    assert response.json == {**READY, "status": "not ready", "ledger": DATABASE_BEHIND}
    assert status is not None
    assert status["parts"]["ledger"] == DATABASE_BEHIND

    # when: replayed
    result = app.test_cli_runner().invoke(args=["ledger", "replay", "--yes"])
    assert result.exit_code == 0, result.output
    assert client.get("/readyz").json == READY


def test_nobody_is_purged_by_time_while_purged_people_are_back(
    app: APIFlask, ann: Person, bob: Person
) -> None:
    """Who is due may have come back, or be under a hold, since the backup."""
    ledgered(app, ann)
    make_due(services_of(app), bob)
    before = everything(services_of(app))

    with pytest.raises(stops.DatabaseBehind):
        services_of(app).sweep()
    for words in (["--expired"], [str(bob.id)]):
        refused = app.test_cli_runner().invoke(args=["accounts", "purge", *words, "--yes"])
        assert refused.exit_code == 1
        assert "Run `ledger replay` first. Nothing was changed." in refused.stderr
    assert everything(services_of(app)) == before

    # when: replayed
    result = app.test_cli_runner().invoke(args=["ledger", "replay", "--yes"])
    assert result.exit_code == 0, result.output
    assert services_of(app).sweep().purged_ids == [bob.id]


def test_only_what_no_request_can_do_without_counts(new_app: NewApp, tmp_path: Path) -> None:
    nobody = free_port()
    app = new_app(
        REDIS_URL=f"redis://127.0.0.1:{nobody}/0",
        MAIL_URL=f"smtp://127.0.0.1:{nobody}/?tls=none",
        LEDGER_URL=f"file://{blocked(tmp_path)}/ledger",
        STORAGE_URL=f"file://{blocked(tmp_path)}/media",
    )
    client = app.test_client()

    ready = client.get("/readyz")
    status = client.get("/statusz")

    assert (ready.status_code, ready.json) == (200, READY)
    assert status.status_code == 200
    assert status.json is not None
    assert status.json["status"] == "degraded"
    parts = status.json["parts"]
    assert (parts["database"], parts["schema"]) == ("ok", "ok")
    assert parts["broker"] == "fails (ConnectionError)"
    assert parts["ledger"] == parts["storage"] == "fails (FileExistsError)"
    assert parts["mail"] == "fails (ConnectionRefusedError)"
    assert str(nobody) not in status.text
    assert str(tmp_path) not in status.text


def blocked(folder: Path) -> Path:
    """A file, where a folder should be."""
    path = folder / "blocked"
    path.touch()
    return path


def test_a_dead_database_is_said_and_everything_else_still_answers(tmp_path: Path) -> None:
    app = make_app(f"postgresql://nobody@127.0.0.1:{free_port()}/none", tmp_path)
    services_of(app).avatars.begin()
    client = app.test_client()

    ready = client.get("/readyz")
    status = client.get("/statusz").json

    assert ready.status_code == 503
    assert ready.json == {"status": "not ready", "database": "fails (OperationalError)"}
    assert client.get("/healthz").status_code == 200
    assert status is not None
    assert (status["status"], status["sweep"], status["backlog"]) == ("degraded", None, None)
    assert status["parts"]["storage"] == "ok"
    assert metrics(client)["accountsvc_part_up", ("database",)] == 0
    dispose(app)


# How everything stands


def test_status_counts_and_says_when_was_swept(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    make_due(services_of(app), ann, since=LONG_AGO)

    before = client.get("/statusz").json
    services_of(app).sweep()
    after = client.get("/statusz").json

    assert before is not None
    assert before["status"] == "degraded"
    assert before["sweep"]["late"] is True
    assert before["sweep"]["last_at"] is None
    assert before["backlog"]["due"] == 1
    assert before["backlog"]["oldest_overdue_seconds"] > 3600
    assert after is not None
    assert after["status"] == "ok"
    assert set(after["parts"].values()) == {"ok"}
    assert after["sweep"]["late"] is False
    assert after["sweep"]["age_seconds"] >= 0
    assert after["backlog"]["due"] == after["backlog"]["oldest_overdue_seconds"] == 0
    # The mail waits for the file, and so is not owed yet.
    assert after["backlog"]["owed"] == {"file.delete": 1}
    assert after["backlog"]["under_way"] == 1
    assert after["backlog"]["oldest_under_way_seconds"] >= 0


def test_sweeps_that_stopped_are_late_though_nothing_is_due(
    app: APIFlask, client: FlaskClient
) -> None:
    services_of(app).sweep()
    run_sql(services_of(app), "UPDATE sweep_marks SET at = :then", then=LONG_AGO)

    status = client.get("/statusz").json

    assert status is not None
    assert (status["status"], status["sweep"]["late"]) == ("degraded", True)


def test_a_pause_is_shown_and_is_no_fault(app: APIFlask, client: FlaskClient) -> None:
    services_of(app).avatars.begin()
    with services_of(app).writing() as session:
        owed_now = database_now(session)
        queue.record(session, queue.DELETE_FILE, subject=None, now=owed_now)
        stops.pause(session, by=OPERATOR_ACTOR)

    status = client.get("/statusz").json

    assert status is not None
    assert status["status"] == "ok"
    assert status["sweep"]["paused"] is True
    assert status["sweep"]["paused_at"].endswith("Z")
    seen = metrics(client)
    assert seen["accountsvc_purging_paused", ()] == 1
    assert status["backlog"]["paused"] == {"file.delete": 1}
    assert seen["accountsvc_outbox_effects_paused", ("file.delete",)] == 1


def fail(app: APIFlask, kind: str, error: str | None = "StoreUnavailable") -> None:
    """Owe an effect that was tried in vain just now."""
    with services_of(app).writing() as session:
        owed_now = database_now(session)
        lines = LedgerLines([]) if kind == queue.LEDGER else None
        uid = queue.record(session, kind, subject=None, now=owed_now, payload=lines)
        session.execute(
            update(Effect)
            .where(Effect.uid == uid)
            .values(attempts=1, last_error=error, deliver_after=owed_now + timedelta(minutes=5))
        )


@pytest.mark.parametrize("kind", [queue.DELETE_FILE, queue.LEDGER, "mail.purged", "ledger.keep"])
def test_a_failing_effect_is_degraded_while_it_pauses(
    app: APIFlask, client: FlaskClient, kind: str
) -> None:
    services_of(app).avatars.begin()
    services_of(app).sweep()
    fail(app, kind)

    status = client.get("/statusz").json
    seen = metrics(client)

    assert status is not None
    assert status["status"] == "degraded"
    assert set(status["parts"].values()) == {"ok"}
    assert status["backlog"]["owed"] == status["backlog"]["owed_failing"] == {kind: 1}
    assert status["backlog"]["owed_oldest_seconds"].keys() == {kind}
    assert seen["accountsvc_outbox_effects", (kind,)] == 1
    assert seen["accountsvc_outbox_effects_failing", (kind,)] == 1
    assert 0 < seen["accountsvc_outbox_oldest_owed_seconds", (kind,)] < 60


@pytest.mark.parametrize(("minutes", "state"), [(9, "ok"), (11, "degraded")])
def test_what_is_owed_for_more_than_ten_minutes_is_degraded(
    app: APIFlask, client: FlaskClient, minutes: int, state: str
) -> None:
    services_of(app).sweep()
    fail(app, "mail.scheduled", error=None)
    since = now(services_of(app)) - timedelta(minutes=minutes)
    with services_of(app).writing() as session:
        session.execute(update(Effect).values(due_at=since))

    status = client.get("/statusz").json

    assert status is not None
    assert status["status"] == state
    assert status["backlog"]["owed_failing"] == {}
    assert minutes * 60 <= status["backlog"]["owed_oldest_seconds"]["mail.scheduled"] < 3600


def test_files_that_wait_for_purging_to_go_on_are_late_by_its_will(
    app: APIFlask, client: FlaskClient
) -> None:
    services_of(app).avatars.begin()
    services_of(app).sweep()
    fail(app, queue.DELETE_FILE)
    with services_of(app).writing() as session:
        stops.pause(session, by=OPERATOR_ACTOR)

    status = client.get("/statusz").json

    assert status is not None
    assert status["status"] == "ok"
    assert status["backlog"]["paused"] == {"file.delete": 1}


@pytest.mark.parametrize(("tries", "state"), [(1, "ok"), (2, "degraded")])
def test_a_purge_that_has_failed_twice_is_degraded(
    app: APIFlask, client: FlaskClient, ann: Person, tries: int, state: str
) -> None:
    services_of(app).sweep()
    make_due(services_of(app), ann)
    for _ in range(tries):
        with services_of(app).writing() as session:
            failures.note(session, ann.id, RuntimeError(), database_now(session), 8)

    status = client.get("/statusz").json

    assert status is not None
    assert (status["status"], status["backlog"]["failing"]) == (state, 1)
    assert status["backlog"]["failing_again"] == tries - 1
    assert status["backlog"]["stuck"] == 0


def test_a_clock_that_has_moved_is_a_part_that_fails(app: APIFlask, client: FlaskClient) -> None:
    fine = client.get("/statusz").json
    with services_of(app).writing() as session:
        session.add(ClockReading(boot="b", booted_at=NOW, read_at=NOW, moved_at=NOW))
    status = Probes(services_of(app)).describe()
    seen = metrics(client)

    assert fine is not None
    assert fine["parts"]["clock"] == "ok"
    assert fine["sweep"]["clock_moved_at"] is None
    assert status["status"] == "degraded"
    assert "`accountsvc sweeps allow --clock`" in status["parts"]["clock"]
    assert status["sweep"]["clock_moved_at"] == NOW
    assert status["sweep"]["late"] is False
    assert seen["accountsvc_purging_stopped_by_clock", ()] == 1


def test_two_clocks_that_differ_are_a_part_that_fails(
    app: APIFlask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Clocks, "_differs", lambda *_: ClocksDiffer("this host", timedelta(minutes=6))
    )

    status = client.get("/statusz").json

    assert status is not None
    assert status["parts"]["clock"] == (
        "the database's clock is 360 s ahead of the one of this host, so nothing is purged: "
        "set the wrong one right"
    )
    assert client.get("/readyz").status_code == 200


def test_a_mark_of_a_time_to_come_is_late_like_an_old_one(
    app: APIFlask, client: FlaskClient
) -> None:
    services_of(app).sweep()
    to_come = now(services_of(app)) + timedelta(days=10)
    with services_of(app).writing() as session:
        stops.mark(session, SWEPT, to_come)

    status = client.get("/statusz").json

    assert status is not None
    assert status["sweep"]["late"] is True


def test_a_stuck_account_is_loud_but_the_web_serves(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    make_due(services_of(app), ann, since=LONG_AGO)
    run_sql(services_of(app), "INSERT INTO purge_failures (account_id, attempts, failed_at, retry_at, error)"
            " VALUES (:id, 8, :then, :then, 'IntegrityError')", then=LONG_AGO, id=ann.id)  # fmt: skip

    status = client.get("/statusz").json

    assert status is not None
    assert (status["status"], status["backlog"]["stuck"]) == ("degraded", 1)
    assert metrics(client)["accountsvc_accounts", ("stuck",)] == 1
    assert client.get("/readyz").status_code == 200


def test_an_unexplained_account_is_loud_and_is_not_overdue(
    app: APIFlask, client: FlaskClient
) -> None:
    long_ago = now(services_of(app)) - timedelta(days=7)
    to_come = now(services_of(app)) + timedelta(days=7)
    insert_account(services_of(app), "lost", purge_at=long_ago, witnessed=False)
    insert_account(services_of(app), "later", purge_at=to_come, witnessed=False)

    status = client.get("/statusz").json

    assert status is not None
    assert (status["status"], status["backlog"]["unexplained"]) == ("degraded", 2)
    assert (status["sweep"]["late"], status["backlog"]["oldest_overdue_seconds"]) == (False, 0)
    counted = metrics(client)
    assert counted["accountsvc_unexplained_accounts", ()] == 2
    assert counted["accountsvc_accounts", ("unexplained",)] == 1
    assert counted["accountsvc_accounts", ("due",)] == 0
    assert client.get("/readyz").status_code == 200


def test_a_part_that_hangs_costs_one_thread_however_many_ask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "PROBE_PATIENCE", timedelta(milliseconds=50))
    go_on = threading.Event()
    looks = []

    def look() -> None:
        looks.append(1)
        go_on.wait(60)

    probe = Probe(look)

    answers = {probe.read() for _ in range(5)}
    go_on.set()

    assert answers == {"does not answer within 0 s"}
    assert len(looks) == 1


# Metrics


def test_requests_are_counted_by_route_and_name_nobody(client: FlaskClient, ann: Person) -> None:
    route = "/api/profile/"
    counted = ("accountsvc_http_requests_total", ("GET", route, "200"))
    timed = ("accountsvc_http_request_duration_seconds_count", ("GET", route))
    before = metrics(client)

    for _ in range(3):
        assert client.get("/api/profile/", headers=ann.auth).status_code == 200
    client.get("/somebody@example.org/")
    client.open("/healthz", method="SOMEBODY")
    after = metrics(client)

    assert after[counted] - before.get(counted, 0) == 3
    assert after[timed] - before.get(timed, 0) == 3
    assert ("accountsvc_http_requests_total", ("GET", "none", "404")) in after
    text = client.get("/metrics").text
    assert "somebody" not in text.lower()
    assert str(ann.public_id) not in text


def test_metrics_show_what_is_due_and_owed(app: APIFlask, client: FlaskClient, ann: Person) -> None:
    deactivate(services_of(app), ann.id)

    shown = metrics(client)

    assert shown["accountsvc_accounts", ("deactivated",)] == 1
    assert shown["accountsvc_outbox_effects", ("mail.scheduled",)] == 1
    assert shown["accountsvc_oldest_overdue_seconds", ()] == 0
    assert shown["accountsvc_part_up", ("storage",)] == 1


def test_making_the_probes_asks_nobody(app: APIFlask) -> None:
    before = threading.active_count()

    Probes(services_of(app))

    assert threading.active_count() == before


def test_wrong_vault_keys_are_a_part_of_the_status_and_never_of_readiness(new_app: NewApp) -> None:
    app = new_app()
    make_person(services_of(app), "zoe")
    other = new_app(VAULT_KEYS="bmV3" + VAULT_KEY[4:])

    right, wrong = app.test_client(), other.test_client()

    assert right.get("/statusz").get_json()["parts"]["vault"] == "ok"
    status = wrong.get("/statusz").get_json()
    assert status["parts"]["vault"] == WRONG_KEYS
    assert status["status"] == "degraded"
    assert wrong.get("/readyz").get_json() == READY
    assert metrics(wrong)["accountsvc_part_up", ("vault",)] == 0
    assert metrics(right)["accountsvc_part_up", ("vault",)] == 1


def test_a_process_with_wrong_vault_keys_is_refused_at_its_start(
    new_app: NewApp, database_url: str, tmp_path: Path
) -> None:
    """Without rows, with one key that opens, and without a database nothing is refused."""
    wrong = {"VAULT_KEYS": "bmV3" + VAULT_KEY[4:]}
    services_of(new_app(**wrong)).refuse_wrong_vault_keys()
    make_person(services_of(new_app()), "zoe")

    with pytest.raises(ConfigError, match=r"^VAULT_KEYS opens none of .*; add the key"):
        services_of(new_app(**wrong)).refuse_wrong_vault_keys()

    both = new_app(VAULT_KEYS=f"{wrong['VAULT_KEYS']},{VAULT_KEY}")
    services_of(both).refuse_wrong_vault_keys()
    away = f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/nothing"
    for url in (away, f"sqlite:///{tmp_path}/empty.db"):
        services_of(new_app(DATABASE_URL=url, **wrong)).refuse_wrong_vault_keys()


def test_web_worker_and_prepare_end_with_one_line_for_wrong_vault_keys(
    new_app: NewApp, database_url: str, tmp_path: Path
) -> None:
    make_person(services_of(new_app()), "zoe")
    environ = {
        **os.environ,
        **variables(database_url, tmp_path),
        "VAULT_KEYS": "bmV3" + VAULT_KEY[4:],
    }
    commands = {
        ("-m", "accountsvc", "prepare"): 2,
        ("-m", "accountsvc", "settings"): 2,
        ("-c", "import wsgi"): 3,
        ("-m", "celery", "--quiet", "--app", "worker", "worker"): 2,
    }

    for words, code in commands.items():
        ended = subprocess.run(
            [sys.executable, *words],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert ended.returncode == code, ended.stderr
        said = [line for line in ended.stderr.splitlines() if "VAULT_KEYS" in line]
        assert said == [
            "accountsvc: VAULT_KEYS opens none of this database's newest vault keys; "
            "add the key that wrapped them, or correct DATABASE_URL"
        ]
        assert "Traceback" not in ended.stderr


def test_passwords_for_unknown_emails_are_counted_in_a_metric(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    name = ("accountsvc_unknown_email_attempts_total", ())
    before = metrics(client)[name]

    for email in ("nobody@example.org", "nobody else@example.org", ann.email):
        client.post("/api/sign-in/", json={"email": email, "password": "wrong"})

    assert metrics(client)[name] == before + 2


def test_files_in_quarantine_are_counted_and_an_alarm_if_they_are_too_many(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    services = services_of(app)
    long_ago = now(services) - timedelta(hours=3)
    keys = ["a" * 32 + ".webp", "b" * 32 + ".webp"]
    for key in keys:
        services.avatars.put(key, b"x")
        path = services.settings.instance_path / "media" / key[:2] / key
        os.utime(path, (long_ago.timestamp(), long_ago.timestamp()))
    assert metrics(client)["accountsvc_orphans", ()] == 0
    services.orphans.run(seconds=60)
    run_sql(services, "UPDATE orphaned_files SET found_at = :then", then=LONG_AGO)

    counted = metrics(client)
    status = client.get("/statusz").json

    assert counted["accountsvc_orphans", ()] == 2
    assert counted["accountsvc_oldest_orphan_seconds", ()] >= 3 * 3600
    assert counted["accountsvc_orphans_refused", ()] == 1
    assert counted["accountsvc_orphans_deleted_total", ()] == 0
    assert counted["accountsvc_orphan_search_age_seconds", ()] < 60
    assert status is not None
    assert (status["status"], status["backlog"]["orphans"]) == ("degraded", 2)
    assert status["backlog"]["orphans_oldest_seconds"] >= 3 * 3600
    assert status["backlog"]["orphans_refused"] is True

    # when: they are no more than accounts show
    services.avatars.delete_many(keys[:1])
    run_sql(services, "DELETE FROM orphaned_files WHERE key = :key", key=keys[0])

    assert metrics(client)["accountsvc_orphans_refused", ()] == 0
    refused = client.get("/statusz").json
    assert refused is not None
    assert (refused["backlog"]["orphans"], refused["backlog"]["orphans_refused"]) == (1, False)


def test_a_canary_is_shown_with_how_it_ended_and_is_an_alarm_when_it_failed(
    app: APIFlask, client: FlaskClient
) -> None:
    services = services_of(app)
    never = client.get("/statusz").json
    assert never is not None
    assert (never["backlog"]["canary"], never["backlog"]["canary_passed_at"]) == (None, None)
    assert ("accountsvc_canary_ok", ()) not in metrics(client)
    for action, details in (
        ("canary.passed", {}),
        ("canary.failed", {"step": "search", "places": "avatars"}),
    ):
        with services.writing() as session:
            audit.record(
                session,
                action,
                subject=None,
                by=OPERATOR_ACTOR,
                now=database_now(session),
                **details,  # type: ignore[arg-type]
            )

    failed = client.get("/statusz").json
    counted = metrics(client)

    assert failed is not None
    assert failed["status"] == "degraded"
    assert failed["backlog"]["canary"] == "failed at the step search, in avatars"
    assert failed["backlog"]["canary_passed_at"] is not None
    assert counted["accountsvc_canary_ok", ()] == 0
    assert 0 <= counted["accountsvc_canary_age_seconds", ()] < 60
    with services.writing() as session:
        moment = database_now(session)
        audit.record(session, "canary.passed", subject=None, by=OPERATOR_ACTOR, now=moment)
    assert metrics(client)["accountsvc_canary_ok", ()] == 1
