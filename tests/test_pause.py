"""The operator's brake: while purging is paused, nobody is purged by anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from apiflask import APIFlask
from click.testing import Result
from sqlalchemy import select

from accountsvc import purge
from accountsvc.audit import OPERATOR_ACTOR
from accountsvc.database import database_now, reading, writing
from accountsvc.models import AuditEvent
from accountsvc.purge import PurgingPaused
from tests.support.factories import (
    Person,
    deactivate,
    dispose,
    everything,
    make_app,
    make_person,
    now,
    read_account,
    run_sql,
    services_of,
)

Run = Callable[..., Result]


@pytest.fixture
def app(database_url: str, tmp_path: Path) -> Iterator[APIFlask]:
    app = make_app(database_url, tmp_path)
    yield app
    dispose(app)


@pytest.fixture
def run(app: APIFlask) -> Run:
    """Run ``flask …`` and return what it printed and how it ended."""
    runner = app.test_cli_runner()
    return lambda *words: runner.invoke(args=words)


@pytest.fixture
def ann(app: APIFlask) -> Person:
    """Somebody who is due."""
    person = make_person(app, "ann")
    deactivate(app, person.id, grace=timedelta())
    run_sql(app, "UPDATE accounts SET purge_at = deactivated_at")
    return person


def pause(app: APIFlask) -> bool:
    with services_of(app).sessions() as session, writing(session):
        return purge.pause(session, now=database_now(session), by=OPERATOR_ACTOR)


def resume(app: APIFlask) -> bool:
    with services_of(app).sessions() as session, writing(session):
        return purge.resume(session, now=database_now(session), by=OPERATOR_ACTOR)


def test_a_pause_stops_sweeps_until_it_is_ended(app: APIFlask, ann: Person) -> None:
    assert pause(app)
    before = everything(app)

    with pytest.raises(PurgingPaused):
        services_of(app).sweep()
    with pytest.raises(PurgingPaused):
        services_of(app).sweep(only=[ann.id])
    assert everything(app) == before

    assert resume(app)
    assert services_of(app).sweep().purged == 1
    assert read_account(app, ann.id) is None


def test_a_pause_stops_a_sweep_between_two_batches(app: APIFlask, ann: Person) -> None:
    bob = make_person(app, "bob")
    deactivate(app, bob.id, grace=timedelta())
    run_sql(app, "UPDATE accounts SET purge_at = deactivated_at")
    made = services_of(app)

    with pytest.raises(PurgingPaused):
        purge.sweep(
            made.sessions,
            database_now,
            batch_size=1,
            max_attempts=8,
            write_ledger=made.write_ledger,
            progress=lambda _count: pause(app) and None,
        )

    assert read_account(app, ann.id) is None
    assert read_account(app, bob.id) is not None
    with made.sessions() as session, reading(session):
        assert purge.swept_at(session) is None


def test_pausing_twice_is_one_pause_and_one_event_each(app: APIFlask) -> None:
    done = [pause(app), pause(app), resume(app), resume(app)]

    assert done == [True, False, True, False]
    with services_of(app).sessions() as session, reading(session):
        columns = (AuditEvent.action, AuditEvent.subject, AuditEvent.actor_kind)
        events = session.execute(select(*columns).order_by(AuditEvent.id)).all()
    assert [tuple(one) for one in events] == [
        ("purge.paused", None, "operator"),
        ("purge.resumed", None, "operator"),
    ]


def test_the_end_of_a_sweep_over_everything_is_kept(app: APIFlask) -> None:
    made = services_of(app)

    def swept_at() -> object:
        with made.sessions() as session, reading(session):
            return purge.swept_at(session)

    made.sweep(only=[1])
    assert swept_at() is None
    before = now(app)
    made.sweep()
    first = swept_at()
    made.sweep()
    assert before <= first <= swept_at() <= now(app)  # type: ignore[operator]


def test_the_commands_say_what_they_did_and_purge_says_why_it_does_not(
    app: APIFlask, run: Run, ann: Person
) -> None:
    assert run("sweeps", "pause").stdout == "Purging is paused.\n"
    assert run("sweeps", "pause").stdout == "Purging was paused already.\n"
    before = everything(app)

    refused = [
        run("accounts", "purge", "--expired", "--yes"),
        run("accounts", "purge", str(ann.id), "--yes"),
        run("ledger", "replay", "--yes"),
    ]
    planned = run("accounts", "purge", "--expired", "--dry-run")
    status = run("accounts", "status")
    shown = json.loads(run("accounts", "status", "--json").stdout)

    for result in refused:
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: Purging is paused since 20")
        assert "`sweeps resume` ends that. Nothing was changed." in result.stderr
    assert planned.exit_code == 0
    assert "1 account," in planned.stdout
    assert "Purging is paused since" in status.stderr
    assert shown["paused_at"].endswith("Z")
    assert everything(app) == before

    resumed = json.loads(run("sweeps", "resume", "--json").stdout)
    assert resumed == {"changed": True, "paused_at": None}
    assert run("sweeps", "resume").stdout == "Purging was not paused.\n"
    assert run("accounts", "purge", "--expired", "--yes").exit_code == 0
    assert read_account(app, ann.id) is None
