"""What "purge now" promises: who is purged, who is kept and why, and that nothing is forgotten."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from apiflask import APIFlask

from accountsvc.accounts import lifecycle
from accountsvc.db import rows
from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.purge import at_once, stops
from accountsvc.purge.at_once import Kept, NotPurgeable, Obstacle
from accountsvc.purge.claim import PlannedPurge
from tests.support.factories import (
    Person,
    deactivate,
    dispose,
    make_app,
    make_due,
    make_person,
    run_sql,
    services_of,
)
from tests.support.state import belongings, effects, everything, facts_of


@pytest.fixture
def ann(app: APIFlask) -> Person:
    """Somebody who is due."""
    person = make_person(services_of(app), "ann")
    make_due(services_of(app), person)
    return person


@pytest.fixture
def bob(app: APIFlask) -> Person:
    """The bystander, who must keep everything."""
    return make_person(services_of(app), "bob")


def pause(app: APIFlask, _gone: Person) -> None:
    with services_of(app).writing() as session:
        stops.pause(session, by=OPERATOR_ACTOR)


def spoil_the_ledger(app: APIFlask, _gone: Person) -> None:
    ledger = services_of(app).settings.instance_path / "ledger"
    ledger.rename(ledger.with_name("elsewhere"))
    ledger.touch()


def lose_the_ledger(app: APIFlask, _gone: Person) -> None:
    ledger = services_of(app).settings.instance_path / "ledger"
    ledger.rename(ledger.with_name("elsewhere"))


def bring_back(app: APIFlask, gone: Person) -> None:
    back = make_person(services_of(app), "back")
    public_id = gone.public_id.hex if services_of(app).settings.is_sqlite else str(gone.public_id)
    run_sql(
        services_of(app),
        "UPDATE accounts SET public_id = :id WHERE id = :back",
        id=public_id,
        back=back.id,
    )


@pytest.mark.parametrize(
    ("stop", "obstacle"),
    [
        (pause, Obstacle.PAUSED),
        (spoil_the_ledger, Obstacle.LEDGER_UNREADABLE),
        (lose_the_ledger, Obstacle.LEDGER_GONE),
        (bring_back, Obstacle.DATABASE_BEHIND),
    ],
)
def test_a_stop_between_two_tries_loses_nothing_of_what_was_purged_before(
    app: APIFlask,
    ann: Person,
    bob: Person,
    stop: Callable[[APIFlask, Person], None],
    obstacle: Obstacle,
) -> None:
    # given: one who was purged before; ann and eve are due, and another process has ann locked
    gone, eve = make_person(services_of(app), "gone"), make_person(services_of(app), "eve")
    services = services_of(app)
    make_due(services, gone)
    services.sweep(only=[gone.id])
    make_due(services, eve)
    before = belongings(services, bob)
    tries = []

    def sweep(*, only: Sequence[int], **options: Any) -> object:
        tries.append(only)
        if len(tries) == 1:
            return services.sweep(only=[eve.id], **options)
        stop(app, gone)
        return services.sweep(only=only, **options)

    # when
    purge_now = replace(services.purge_now, sweep=sweep)
    report = purge_now.purge_due(purge_now.plan_due())

    # then
    assert [list(only) for only in tries] == [[ann.id, eve.id], [ann.id]]
    assert [purged.account_id for purged in report.purged] == [eve.id]
    assert report.kept == {ann.id: Kept(obstacle)}
    # Files wait for the end of a pause, and the mail for them; everything else is done.
    is_paused = obstacle is Obstacle.PAUSED
    is_sqlite = services.settings.is_sqlite
    assert report.owed == ({"mail.purged": 1} if is_paused else {})
    assert report.scrubbed == (not (is_paused and is_sqlite))
    assert report.paused == is_paused
    assert not report.is_done
    path = services.settings.instance_path / "media" / eve.avatar[:2] / eve.avatar
    assert path.exists() == is_paused
    waits = {one.subject for one in effects(services, "mail.purged")}
    assert (eve.public_id in waits) == is_paused
    moments = facts_of(services, eve.public_id)
    if is_paused:
        assert moments == ["ledger_written"]
    else:
        scrubbed = ["scrubbed"] if is_sqlite else []
        told = ["ledger_written", "files_absent", "told"]
        assert moments == [*told, *scrubbed, "completed", "verified"]
    assert belongings(services, bob) == before


def test_an_account_that_stays_locked_is_kept_and_the_others_are_purged(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_once, "LOCK_PATIENCE", timedelta())
    app = make_app(postgresql_url, tmp_path)
    ann, eve = make_person(services_of(app), "ann"), make_person(services_of(app), "eve")
    for person in (ann, eve):
        make_due(services_of(app), person)
    purge_now = services_of(app).purge_now
    planned = purge_now.plan_due()

    with services_of(app).writing() as session:
        rows.lock(session, ann.id)
        report = purge_now.purge_due(planned)

    assert [purged.account_id for purged in report.purged] == [eve.id]
    assert report.kept == {ann.id: Kept(Obstacle.BUSY)}
    dispose(app)


def test_whoever_is_reactivated_or_held_meanwhile_is_kept(
    app: APIFlask, ann: Person, bob: Person
) -> None:
    eve = make_person(services_of(app), "eve")
    make_due(services_of(app), eve)
    purge_now = services_of(app).purge_now
    planned = purge_now.plan_due()
    run_sql(
        services_of(app),
        "UPDATE accounts SET deactivated_at = NULL, purge_at = NULL, deactivated_by = NULL"
        " WHERE id = :id",
        id=ann.id,
    )
    with services_of(app).writing() as session:
        lifecycle.place_hold(session, eve.id, reason="court", by=OPERATOR_ACTOR)
    before = [belongings(services_of(app), person) for person in (ann, bob, eve)]

    report = purge_now.purge_due(planned)

    assert report.purged == []
    assert report.kept == {ann.id: Kept(Obstacle.REACTIVATED), eve.id: Kept(Obstacle.HELD)}
    assert [belongings(services_of(app), person) for person in (ann, bob, eve)] == before


def test_an_account_that_vanished_without_a_receipt_is_not_reported_as_purged(
    app: APIFlask,
) -> None:
    vanished = PlannedPurge(999, uuid.uuid4(), None, saved_passwords=0, files=0)

    report = services_of(app).purge_now.purge_due([vanished])

    assert report.purged == []
    assert report.kept == {999: Kept(Obstacle.NO_RECEIPT)}


def test_named_accounts_are_purged_all_or_none(app: APIFlask, ann: Person, bob: Person) -> None:
    eve = make_person(services_of(app), "eve")
    deactivate(services_of(app), eve.id)
    purge_now = services_of(app).purge_now
    planned = purge_now.plan_named([eve.id, ann.id], force=False)
    with services_of(app).writing() as session:
        lifecycle.place_hold(session, ann.id, reason="court", by=OPERATOR_ACTOR)
    before = everything(services_of(app))

    with pytest.raises(NotPurgeable) as refusal:
        purge_now.purge_named(planned, force=False)
    with pytest.raises(NotPurgeable) as also_planned:
        purge_now.plan_named([ann.id, bob.id, eve.id], force=False)

    assert refusal.value.kept == {ann.id: Kept(Obstacle.HELD)}
    assert also_planned.value.kept == {
        ann.id: Kept(Obstacle.HELD),
        bob.id: Kept(Obstacle.ACTIVE),
    }
    assert everything(services_of(app)) == before


def test_progress_counts_everybody_once(app: APIFlask, ann: Person) -> None:
    eve = make_person(services_of(app), "eve")
    make_due(services_of(app), eve)
    purge_now = services_of(app).purge_now
    counted: list[int] = []

    purge_now.purge_due(purge_now.plan_due(), counted.append)

    assert sum(counted) == 2
