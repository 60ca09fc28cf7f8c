"""What becomes true of a purge, in which order, and when it is completed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, delete, event, update

from accountsvc.adapters.mail import MailRefused
from accountsvc.db import facts
from accountsvc.db.engine import database_now
from accountsvc.db.models import Account, Effect, Receipt
from accountsvc.errors import MailUnavailable
from accountsvc.monitoring import status
from accountsvc.outbox import owing, queue
from accountsvc.purge import finish
from accountsvc.services import Services
from tests.support.factories import (
    Person,
    deliver_after,
    insert_account,
    insert_accounts,
    make_due,
    make_person,
    numbered,
)
from tests.support.moments import NOW, now
from tests.support.state import belongings, effects, facts_of, files, rows_of

SOON = timedelta(seconds=6)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


@pytest.fixture
def ann(services: Services) -> Person:
    """Somebody who is purged, and of whom everything is owed."""
    person = make_person(services, "ann")
    make_due(services, person)
    assert services.sweep().purged == 1
    return person


@pytest.fixture
def bob(services: Services) -> Person:
    """The bystander, who must keep everything."""
    return make_person(services, "bob")


def break_store(monkeypatch: pytest.MonkeyPatch, services: Services) -> None:
    monkeypatch.setattr(
        type(services.avatars), "delete_many", lambda _, keys: dict.fromkeys(keys, "OSError")
    )


def break_mail(monkeypatch: pytest.MonkeyPatch, services: Services) -> None:
    def fail(*_: object) -> None:
        raise MailUnavailable

    monkeypatch.setattr(type(services.mailer), "send", fail)


def refuse_mail(monkeypatch: pytest.MonkeyPatch, services: Services) -> None:
    def fail(*_: object) -> None:
        raise MailRefused

    monkeypatch.setattr(type(services.mailer), "send", fail)


def standing(services: Services, ahead: timedelta = timedelta()) -> tuple[int, set[str]]:
    """How many purges are under way, and what is owed, in a while."""
    with services.reading() as session:
        then = database_now(session) + ahead
        counts = status.read(session, now=then, max_attempts=3)
        return counts.under_way, set(owing.read_owed(session, then))


def test_what_becomes_true_is_written_in_its_order_and_completed_comes_last(
    services: Services, bob: Person, ann: Person
) -> None:
    before = belongings(services, bob)
    is_sqlite = services.settings.is_sqlite
    seen = [facts_of(services, ann.public_id)]

    services.deliver()
    seen.append(facts_of(services, ann.public_id))
    deliver_after(services, SOON)
    seen.append(facts_of(services, ann.public_id))
    services.scrub(at_most_every=None)
    seen.append(facts_of(services, ann.public_id))
    deliver_after(services, SOON)

    gone = ["ledger_written", "files_absent", "told"]
    # The ledger is written by the sweep itself.
    assert seen[0] == ["ledger_written"]
    assert seen[1] == gone
    ended = ["completed", "verified"]
    assert seen[2] == (gone if is_sqlite else [*gone, *ended])
    assert seen[3] == ([*gone, "scrubbed"] if is_sqlite else [*gone, *ended])
    assert facts_of(services, ann.public_id) == [*seen[3][: 4 if is_sqlite else 3], *ended]
    assert effects(services) == []
    assert standing(services) == (0, set())
    assert belongings(services, bob) == before


def test_a_purge_waits_for_its_file_and_is_not_owed_itself(
    services: Services, bob: Person, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = belongings(services, bob)
    with monkeypatch.context() as broken:
        break_store(broken, services)
        for ahead in (timedelta(), SOON, MINUTE, 5 * MINUTE):
            deliver_after(services, ahead)
            services.scrub(at_most_every=None)
            assert standing(services, ahead) == (1, {"file.delete"})
            assert facts_of(services, ann.public_id) == ["ledger_written"]

    deliver_after(services, DAY)
    deliver_after(services, DAY)
    services.scrub(at_most_every=None)
    deliver_after(services, DAY + MINUTE)

    assert facts_of(services, ann.public_id)[-2:] == ["completed", "verified"]
    assert standing(services, DAY + MINUTE) == (0, set())
    assert belongings(services, bob) == before


def test_nobody_looks_at_a_purge_that_is_late_and_that_is_owed(
    services: Services, ann: Person
) -> None:
    services.deliver()

    late = finish_after = timedelta(seconds=5)
    late += owing.LOOKED_AT_WITHIN

    assert standing(services, finish_after + MINUTE)[1] == set()
    assert standing(services, late + MINUTE)[1] == {"purge.finish"}


@pytest.mark.parametrize(
    ("fault", "wait", "why"),
    [(break_mail, timedelta(hours=72), "expired"), (refuse_mail, timedelta(hours=30), "given_up")],
)
def test_who_was_not_told_has_the_reason_and_the_purge_is_completed_all_the_same(
    services: Services,
    bob: Person,
    ann: Person,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch, Services], None],
    wait: timedelta,
    why: str,
) -> None:
    before = belongings(services, bob)
    fault(monkeypatch, services)
    for ahead in (timedelta(), timedelta(hours=2)):
        deliver_after(services, ahead)
        services.scrub(at_most_every=None)
        assert "scrubbed" not in facts_of(services, ann.public_id)

    deliver_after(services, wait)
    services.scrub(at_most_every=None)
    deliver_after(services, wait + MINUTE)

    with services.reading() as session:
        found = facts.of(session, [ann.public_id])[ann.public_id]
        assert found["not_told"].details == {"why": why}
    assert facts_of(services, ann.public_id)[-2:] == ["completed", "verified"]
    assert belongings(services, bob) == before


def test_what_nobody_has_written_down_is_found_by_asking_and_then_written(
    services: Services, bob: Person, ann: Person
) -> None:
    before = belongings(services, bob)
    # As a crash in a process of the release before leaves it: the file is there, nothing is owed.
    with services.writing() as session:
        session.execute(delete(Effect).where(Effect.kind != queue.FINISH))

    deliver_after(services, SOON)

    assert facts_of(services, ann.public_id)[:3] == ["ledger_written", "files_absent", "not_told"]
    assert ann.avatar not in files(services)
    with services.reading() as session:
        found = facts.of(session, [ann.public_id])[ann.public_id]
        assert found["not_told"].details == {"why": "not_recorded"}
    assert belongings(services, bob) == before


def test_a_file_that_is_not_owed_and_cannot_be_deleted_fails_in_sight(
    services: Services, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    with services.writing() as session:
        session.execute(delete(Effect).where(Effect.kind != queue.FINISH))
    break_store(monkeypatch, services)

    deliver_after(services, SOON)

    (effect,) = effects(services)
    assert (effect.kind, effect.last_error) == ("purge.finish", "OSError")
    assert "completed" not in facts_of(services, ann.public_id)
    assert standing(services, SOON) == (1, {"purge.finish"})


def test_a_purge_of_the_release_before_is_found_and_finished(
    services: Services, bob: Person, ann: Person
) -> None:
    before = belongings(services, bob)
    with services.writing() as session:
        session.execute(delete(Effect).where(Effect.kind == queue.FINISH))

    def in_a_while(ahead: timedelta) -> int:
        return finish.adopt(services.database, lambda session: database_now(session) + ahead)

    found = [in_a_while(ahead) for ahead in (timedelta(), 8 * DAY, 2 * MINUTE, 2 * MINUTE)]

    assert found == [0, 0, 1, 0]
    deliver_after(services, 3 * MINUTE)
    services.scrub(at_most_every=None)
    deliver_after(services, 4 * MINUTE)
    assert facts_of(services, ann.public_id)[-2:] == ["completed", "verified"]
    assert in_a_while(5 * MINUTE) == 0
    assert belongings(services, bob) == before


def test_whose_account_is_back_is_not_taken_for_a_purge_without_its_end(
    services: Services, bob: Person, ann: Person
) -> None:
    with services.writing() as session:
        session.execute(delete(Effect).where(Effect.kind == queue.FINISH))
        back = update(Account).where(Account.id == bob.id).values(public_id=ann.public_id)
        session.execute(back)

    found = finish.adopt(services.database, lambda session: database_now(session) + 2 * MINUTE)

    assert found == 0


def test_who_is_erased_again_keeps_the_first_receipt_and_that_is_a_fact(
    services: Services, bob: Person, ann: Person
) -> None:
    # given: a part of a backup brings back the row of somebody whose purge is completed
    services.deliver()
    services.scrub(at_most_every=None)
    deliver_after(services, SOON)
    (receipt,) = rows_of(services, Receipt)
    before = belongings(services, bob)
    past = now(services) - MINUTE
    account_id = insert_account(services, "back", purge_at=past, public_id=ann.public_id).id

    # when
    assert services.sweep(only=[account_id], named=True).purged == 1
    services.deliver()
    deliver_after(services, SOON)
    services.scrub(at_most_every=None)
    deliver_after(services, SOON)

    # then
    told = ["ledger_written", "files_absent", "told"]
    scrubbed = ["scrubbed"] if services.settings.is_sqlite else []
    ended = ["completed", "verified"]
    again = ["erased_again", "verified"]
    assert facts_of(services, ann.public_id) == [*told, *scrubbed, *ended, *again]
    (kept,) = rows_of(services, Receipt)
    assert kept.purged_at == receipt.purged_at
    assert effects(services) == []
    assert belongings(services, bob) == before


def test_a_batch_takes_as_many_statements_for_forty_as_for_four(services: Services) -> None:
    engine = services.database.engine
    statements: list[str] = []

    def note(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    counted = []
    # The first purge of all also makes the one row of the brake.
    for number in (1, 4, 40):
        names = numbered(f"of{number}-", number)
        insert_accounts(services, names, purge_at=now(services) - MINUTE, passwords=1)
        statements.clear()
        event.listen(engine, "before_cursor_execute", note)
        assert services.sweep().purged == number
        event.remove(engine, "before_cursor_execute", note)
        counted.append(len([one for one in statements if one.startswith(("INSERT", "DELETE"))]))

    assert counted[1] == counted[2]


def test_a_fact_is_written_once_with_its_first_time(services: Services, ann: Person) -> None:
    for ahead in (timedelta(), DAY):
        with services.writing() as session:
            facts.add(session, "told", [ann.public_id], now=NOW + ahead)
            facts.add(session, "not_told", [ann.public_id], now=NOW + ahead)
            facts.add(session, "verified", [ann.public_id], now=NOW + ahead)

    with services.reading() as session:
        story = [(one.fact, one.at) for one in facts.story(session, ann.public_id)][1:]
        assert facts.of(session, [ann.public_id])[ann.public_id]["verified"].at == NOW + DAY
    # A verification may come again, and each is told.
    assert story == [("told", NOW), ("verified", NOW), ("verified", NOW + DAY)]
