"""The pause: while purging is paused, nobody is purged by anything, and no file is deleted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from apiflask import APIFlask
from sqlalchemy import select

from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.engine import database_now
from accountsvc.db.models import AuditEvent, ClockReading, Effect
from accountsvc.monitoring import status
from accountsvc.outbox import queue
from accountsvc.purge import stops
from accountsvc.purge.clocks import Clocks, ClocksDiffer
from accountsvc.purge.stops import PurgingPaused
from accountsvc.services import Services
from tests.support.factories import (
    Person,
    make_account,
    make_due,
    make_person,
    services_of,
    set_avatar,
)
from tests.support.moments import NOW, now
from tests.support.state import everything, get_account, read_account, rows_of
from tests.support.sweeps import sweep


@pytest.fixture
def ann(app: APIFlask) -> Person:
    """Somebody who is due."""
    person = make_person(services_of(app), "ann")
    make_due(services_of(app), person)
    return person


def pause(app: APIFlask) -> bool:
    with services_of(app).writing() as session:
        return stops.pause(session, by=OPERATOR_ACTOR)


def resume(app: APIFlask) -> bool:
    with services_of(app).writing() as session:
        return stops.resume(session, by=OPERATOR_ACTOR)


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
        assert stops.swept_at(session) is None


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
            return stops.swept_at(session)

    services.sweep(only=[1])
    assert swept_at() is None
    before = now(services)
    services.sweep()
    first = swept_at()
    services.sweep()
    assert before <= first <= swept_at() <= now(services)  # type: ignore[operator]


# Files -----------------------------------------------------------------------------------------


def stop_by_the_clock(services: Services) -> Callable[[], object]:
    with services.writing() as session:
        session.add(ClockReading(boot="b", booted_at=NOW, read_at=NOW, moved_at=NOW))
    return lambda: services.clocks.allow(by=OPERATOR_ACTOR)


def stop_by_a_person(services: Services) -> Callable[[], object]:
    with services.writing() as session:
        stops.pause(session, by=OPERATOR_ACTOR)

    def end() -> None:
        with services.writing() as session:
            stops.resume(session, by=OPERATOR_ACTOR)

    return end


STOPS = [stop_by_a_person, stop_by_the_clock]


def files(services: Services) -> set[str]:
    return {path.name for path in (services.settings.instance_path / "media").rglob("*.webp")}


@pytest.mark.parametrize("stop", STOPS)
def test_files_wait_while_purging_is_stopped_and_go_when_it_goes_on(
    services: Services, stop: Callable[[Services], Callable[[], object]]
) -> None:
    ann = make_person(services, "ann")
    make_due(services, ann)
    assert services.sweep().purged == 1
    end = stop(services)

    for _ in range(2):
        assert services.deliver(seconds=60).failed == 0

    (owed,) = rows_of(services, Effect, Effect.kind == queue.DELETE_FILE)
    assert (owed.attempts, owed.last_error) == (0, None)
    assert files(services) == {ann.avatar}
    with services.reading() as session:
        counts = status.read(session, now=database_now(session), max_attempts=8)
    assert counts.paused == {queue.DELETE_FILE: 1}
    # Everything else that is owed is done.
    assert counts.owed == {queue.DELETE_FILE: 1}

    end()
    services.deliver()
    assert files(services) == set()
    # What finishes the purge has nothing to wait for any more, and finds that in a minute.
    assert [effect.kind for effect in rows_of(services, Effect)] == [queue.FINISH]


@pytest.mark.parametrize("stop", STOPS)
def test_an_avatar_can_be_replaced_while_purging_is_stopped(
    services: Services, stop: Callable[[Services], Callable[[], object]]
) -> None:
    account = make_account(services)
    first = set_avatar(services, account)
    end = stop(services)

    second = set_avatar(services, account)
    services.deliver()

    assert get_account(services, account.id).avatar_key == second
    assert files(services) == {first, second}
    end()
    services.deliver()
    assert files(services) == {second}


def test_no_file_is_deleted_while_two_clocks_differ(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = make_account(services)
    set_avatar(services, account)
    second = set_avatar(services, account)
    monkeypatch.setattr(Clocks, "_differs", lambda *_: ClocksDiffer("Redis", timedelta(minutes=6)))

    services.deliver()
    assert len(files(services)) == 2

    monkeypatch.undo()
    services.deliver()
    assert files(services) == {second}
