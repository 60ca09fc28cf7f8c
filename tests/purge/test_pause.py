"""The operator's brake: while purging is paused, nobody is purged by anything."""

from __future__ import annotations

import pytest
from apiflask import APIFlask
from sqlalchemy import select

from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.engine import database_now
from accountsvc.db.models import AuditEvent
from accountsvc.purge import brake
from accountsvc.purge.brake import PurgingPaused
from tests.support.factories import Person, make_due, make_person, services_of
from tests.support.moments import now
from tests.support.state import everything, read_account
from tests.support.sweeps import sweep


@pytest.fixture
def ann(app: APIFlask) -> Person:
    """Somebody who is due."""
    person = make_person(services_of(app), "ann")
    make_due(services_of(app), person)
    return person


def pause(app: APIFlask) -> bool:
    with services_of(app).writing() as session:
        return brake.pause(session, by=OPERATOR_ACTOR)


def resume(app: APIFlask) -> bool:
    with services_of(app).writing() as session:
        return brake.resume(session, by=OPERATOR_ACTOR)


def test_a_pause_stops_sweeps_until_it_is_ended(app: APIFlask, ann: Person) -> None:
    assert pause(app)
    before = everything(services_of(app))

    with pytest.raises(PurgingPaused):
        services_of(app).sweep()
    with pytest.raises(PurgingPaused):
        services_of(app).sweep(only=[ann.id])
    assert everything(services_of(app)) == before

    assert resume(app)
    assert services_of(app).sweep().purged == 1
    assert read_account(services_of(app), ann.id) is None


def test_a_pause_stops_a_sweep_between_two_batches(app: APIFlask, ann: Person) -> None:
    bob = make_person(services_of(app), "bob")
    make_due(services_of(app), bob)
    services = services_of(app)

    with pytest.raises(PurgingPaused):
        sweep(
            services,
            database_now,
            batch_size=1,
            write_ledger=services.write_ledger,
            progress=lambda _count: pause(app) and None,
        )

    assert read_account(services, ann.id) is None
    assert read_account(services, bob.id) is not None
    with services.reading() as session:
        assert brake.swept_at(session) is None


def test_pausing_twice_is_one_pause_and_one_event_each(app: APIFlask) -> None:
    done = [pause(app), pause(app), resume(app), resume(app)]

    assert done == [True, False, True, False]
    with services_of(app).reading() as session:
        columns = (AuditEvent.action, AuditEvent.subject, AuditEvent.actor_kind)
        events = session.execute(select(*columns).order_by(AuditEvent.id)).all()
    assert [tuple(one) for one in events] == [
        ("purge.paused", None, "operator"),
        ("purge.resumed", None, "operator"),
    ]


def test_the_end_of_a_sweep_over_everything_is_kept(app: APIFlask) -> None:
    services = services_of(app)

    def swept_at() -> object:
        with services.reading() as session:
            return brake.swept_at(session)

    services.sweep(only=[1])
    assert swept_at() is None
    before = now(services)
    services.sweep()
    first = swept_at()
    services.sweep()
    assert before <= first <= swept_at() <= now(services)  # type: ignore[operator]
