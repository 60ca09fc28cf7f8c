"""A dry run is the real run, rolled back: it names who would fail, and leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from accountsvc.accounts import lifecycle
from accountsvc.db import rows
from accountsvc.db.audit import OPERATOR_ACTOR, Actor
from accountsvc.purge import at_once, brake
from accountsvc.purge.at_once import Kept, Obstacle, PurgeReport
from accountsvc.services import Services, build_services
from tests.support.factories import (
    Person,
    deactivate,
    insert_account,
    insert_accounts,
    make_due,
    make_person,
    make_settings,
    numbered,
    run_sql,
)
from tests.support.moments import now
from tests.support.processes import eventually
from tests.support.state import everything, files, get_account, read_account

HOUR = timedelta(hours=1)

STRAY = "CREATE TABLE stray (account_id BIGINT NOT NULL REFERENCES accounts (id){})"
REFUSE = {
    "sqlite": (
        "CREATE TRIGGER refuse BEFORE DELETE ON accounts WHEN OLD.username = 'eve' "
        "BEGIN SELECT RAISE(ABORT, 'kept'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF OLD.username = 'eve' THEN RAISE 'kept'; END IF; RETURN OLD; END $$",
        "CREATE TRIGGER refuse BEFORE DELETE ON accounts FOR EACH ROW EXECUTE FUNCTION refuse()",
    ),
}


def a_row_that_refers(services: Services, person: Person, how: str = "") -> None:
    run_sql(services, STRAY.format(how))
    run_sql(services, "INSERT INTO stray VALUES (:id)", id=person.id)


def a_row_that_refers_until_the_commit(services: Services, person: Person) -> None:
    a_row_that_refers(services, person, " DEFERRABLE INITIALLY DEFERRED")


def a_trigger(services: Services, _person: Person) -> None:
    for statement in REFUSE[services.database.engine.dialect.name]:
        run_sql(services, statement)


def outcome(report: PurgeReport) -> object:
    """What a report says of each account, with a failure as it is told."""
    kept = {
        account_id: (
            why.obstacle,
            why.failure and (why.failure.error, why.failure.constraint_name, why.failure.attempts),
        )
        for account_id, why in report.kept.items()
    }
    return report.purged, kept


@pytest.fixture
def people(services: Services) -> list[Person]:
    """Three, of whom the second will not let go; and a bystander who is in nobody's way."""
    make_person(services, "bystander")
    return [make_person(services, name) for name in ("ann", "eve", "kim")]


HINDRANCES = [a_row_that_refers, a_row_that_refers_until_the_commit, a_trigger]


@pytest.mark.parametrize("hinder", HINDRANCES)
@pytest.mark.parametrize("of_what", ["due", "named", "forced", "replay"])
def test_a_dry_run_says_what_the_real_run_then_does_and_leaves_nothing(
    services: Services,
    people: Sequence[Person],
    hinder: Callable[[Services, Person], None],
    of_what: str,
) -> None:
    # given: the second of three cannot be purged
    ids = [person.id for person in people]
    hinder(services, people[1])
    for person in people:
        if of_what == "due":
            make_due(services, person)
        elif of_what == "named":
            deactivate(services, person.id)
    purge_now, rehearsal = services.purge_now, services.rehearsal
    force = of_what == "forced"
    planned = purge_now.plan_due() if of_what == "due" else purge_now.plan_named(ids, force=True)
    before, stored = everything(services), files(services)

    # when
    with capture_logs() as logs:
        if of_what == "due":
            rehearsed = rehearsal.purge_due(planned)
        elif of_what == "replay":
            rehearsed = rehearsal.replay(planned)
        else:
            rehearsed = rehearsal.purge_named(planned, force=force)
    after = everything(services)

    # then
    assert after == before
    assert files(services) == stored
    assert not list((services.settings.instance_path / "ledger").rglob("*.jsonl"))
    assert logs == []
    assert (rehearsed.owed, rehearsed.scrubbed) == ({}, True)
    if of_what == "due":
        real = purge_now.purge_due(planned)
    elif of_what == "replay":
        real = purge_now.replay(planned)
    else:
        real = purge_now.purge_named(planned, force=force)
    assert outcome(rehearsed) == outcome(real)
    assert [plan.account_id for plan in rehearsed.purged] == [people[0].id, people[2].id]
    assert list(rehearsed.kept) == [people[1].id]


def test_a_dry_run_goes_batch_by_batch(database_url: str, tmp_path: Path) -> None:
    services = build_services(make_settings(database_url, tmp_path, PURGE_BATCH_SIZE="2"))
    people = [make_person(services, f"due{number}") for number in range(5)]
    for person in people:
        make_due(services, person)
    before = everything(services)
    counted: list[int] = []

    report = services.rehearsal.purge_due(services.purge_now.plan_due(), counted.append)

    assert [plan.account_id for plan in report.purged] == [person.id for person in people]
    assert counted == [2, 2, 1]
    assert everything(services) == before
    services.database.engine.dispose()


@pytest.mark.parametrize("batch_size", ["7", "100"])
def test_the_brake_keeps_the_same_people_from_a_dry_run_which_it_does_not_count(
    database_url: str, tmp_path: Path, batch_size: str
) -> None:
    # given: fifty may go; one of the first cannot, and the last two have asked for it
    services = build_services(make_settings(database_url, tmp_path, PURGE_BATCH_SIZE=batch_size))
    then = now(services)
    ids = insert_accounts(services, numbered("due", 62), purge_at=then - HOUR)
    askers = insert_accounts(services, ["ann", "kim"], purge_at=then + HOUR)
    for asker in askers:
        owner = Actor("owner", get_account(services, asker).public_id)
        with services.writing() as session:
            lifecycle.due_now(session, asker, by=owner)
    run_sql(services, STRAY.format(""))
    run_sql(services, "INSERT INTO stray VALUES (:id)", id=ids[3])
    planned = services.purge_now.plan_due()
    before = everything(services)

    # when
    with capture_logs() as logs:
        rehearsed = services.rehearsal.purge_due(planned)
        again = services.rehearsal.purge_due(planned)
    unchanged = everything(services)
    real = services.purge_now.purge_due(planned)

    # then
    assert unchanged == before
    assert logs == []
    assert outcome(rehearsed) == outcome(again) == outcome(real)
    assert [plan.account_id for plan in rehearsed.purged] == [*ids[:3], *ids[4:51], *askers]
    braked = [one for one, why in rehearsed.kept.items() if why == Kept(Obstacle.BRAKED)]
    assert braked == ids[51:]
    services.database.engine.dispose()


def test_whom_the_brake_keeps_is_told_beforehand_and_is_not_purged(services: Services) -> None:
    """Whose owner has asked for it is none of them, however many are due before."""
    ids = insert_accounts(services, numbered("due", 60), purge_at=now(services) - HOUR)
    (asker,) = insert_accounts(services, ["ann"], purge_at=now(services) + HOUR)
    owner = Actor("owner", get_account(services, asker).public_id)
    with services.writing() as session:
        lifecycle.due_now(session, asker, by=owner)
    before = everything(services)

    going, waiting = services.rehearsal.split_by_brake(services.purge_now.plan_due())
    unchanged = everything(services)
    rehearsed = services.rehearsal.purge_due(going, waiting=waiting)
    real = services.purge_now.purge_due(going, waiting=waiting)

    assert unchanged == before
    assert [plan.account_id for plan in going] == [*ids[:50], asker]
    assert [plan.account_id for plan in waiting] == ids[50:]
    assert outcome(rehearsed) == outcome(real)
    assert real.kept == dict.fromkeys(ids[50:], Kept(Obstacle.BRAKED))
    assert all(read_account(services, one) is not None for one in ids[50:])


def test_of_those_who_wait_the_report_says_what_keeps_each_in_the_end(services: Services) -> None:
    insert_accounts(services, numbered("due", 50), purge_at=now(services) - HOUR)
    held, gone, waits = insert_accounts(
        services, ["held", "gone", "waits"], purge_at=now(services) - HOUR
    )
    going, waiting = services.rehearsal.split_by_brake(services.purge_now.plan_due())
    with services.writing() as session:
        lifecycle.place_hold(session, held, reason="court", by=OPERATOR_ACTOR)
    named = services.purge_now.plan_named([gone], force=False)
    services.purge_now.purge_named(named, force=False)

    report = services.purge_now.purge_due(going, waiting=waiting)

    assert report.kept == {held: Kept(Obstacle.HELD), waits: Kept(Obstacle.BRAKED)}


def test_a_dry_run_lets_go_what_an_operator_has_allowed(database_url: str, tmp_path: Path) -> None:
    services = build_services(make_settings(database_url, tmp_path, PURGE_BATCH_SIZE="2"))
    ids = insert_accounts(services, numbered("due", 60), purge_at=now(services))
    services.sweep()
    with services.writing() as session:
        brake.allow(session, 3, reason="a school has closed", by=OPERATOR_ACTOR)
    planned = services.purge_now.plan_due()
    before = everything(services)

    rehearsed = services.rehearsal.purge_due(planned)
    unchanged = everything(services)
    real = services.purge_now.purge_due(planned)

    assert unchanged == before
    assert outcome(rehearsed) == outcome(real)
    assert [plan.account_id for plan in rehearsed.purged] == ids[50:53]
    services.database.engine.dispose()


def test_a_dry_run_names_the_unexplained(services: Services, people: Sequence[Person]) -> None:
    make_due(services, people[0])
    ghost = insert_account(services, "ghost", purge_at=now(services) - HOUR, witnessed=False)

    planned = services.purge_now.plan_due()
    report = services.rehearsal.purge_due(planned)

    assert [plan.account_id for plan in report.purged] == [people[0].id]
    assert report.kept == {ghost.id: Kept(Obstacle.UNEXPLAINED)}


def test_a_replay_s_dry_run_names_who_is_on_hold(
    services: Services, people: Sequence[Person]
) -> None:
    planned = services.purge_now.plan_named([person.id for person in people], force=True)
    with services.writing() as session:
        lifecycle.place_hold(session, people[0].id, reason="court", by=OPERATOR_ACTOR)
    before = everything(services)

    report = services.rehearsal.replay(planned)

    assert report.kept == {people[0].id: Kept(Obstacle.HELD)}
    assert [plan.account_id for plan in report.purged] == [people[1].id, people[2].id]
    assert everything(services) == before


def test_a_dry_run_names_whom_another_process_has_locked(
    postgresql: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_once, "LOCK_PATIENCE", timedelta())
    ann, eve = make_person(postgresql, "ann"), make_person(postgresql, "eve")
    for person in (ann, eve):
        make_due(postgresql, person)
    planned = postgresql.purge_now.plan_due()

    with postgresql.writing() as session:
        rows.lock(session, ann.id)
        report = postgresql.rehearsal.purge_due(planned)

    assert report.kept == {ann.id: Kept(Obstacle.BUSY)}
    assert [plan.account_id for plan in report.purged] == [eve.id]


def test_whom_a_worker_purges_meanwhile_is_neither_planned_nor_left(
    services: Services, people: Sequence[Person]
) -> None:
    for person in people:
        make_due(services, person)
    planned = services.purge_now.plan_due()
    services.sweep(only=[people[0].id])

    report = services.rehearsal.purge_due(planned)

    assert report.kept == {}
    assert [plan.account_id for plan in report.purged] == [people[1].id, people[2].id]


def test_sweeps_beside_a_dry_run_purge_everybody(
    services: Services, people: Sequence[Person]
) -> None:
    def is_there(person: Person) -> bool:
        return read_account(services, person.id) is not None

    for person in people:
        make_due(services, person)
    planned = services.purge_now.plan_due()
    rehearsing = threading.Thread(target=services.rehearsal.purge_due, args=[planned])

    rehearsing.start()
    # A sweep that meets the locks of the dry run passes them over, and the next one has them.
    eventually(lambda: services.sweep() and not any(map(is_there, people)))
    rehearsing.join(60)

    assert not rehearsing.is_alive()
