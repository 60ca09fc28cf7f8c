"""Nobody is purged whose purge was not promised, whatever SQL has written into their row."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from accountsvc.accounts import lifecycle
from accountsvc.accounts.credentials import reset_password
from accountsvc.db import audit, rules
from accountsvc.db.audit import OPERATOR_ACTOR, SYSTEM_ACTOR, Actor, Witness
from accountsvc.db.models import Account, AuditEvent, Receipt
from accountsvc.errors import InvalidInput, NotDeactivated, Unexplained
from accountsvc.outbox import notices
from accountsvc.purge import claim
from accountsvc.purge import sweep as sweeping
from accountsvc.purge.at_once import Kept, NotPurgeable, Obstacle
from accountsvc.services import Services
from accountsvc.tokens import PASSWORD_RESET
from tests.support.factories import (
    deactivate,
    insert_account,
    insert_accounts,
    make_account,
    make_promise,
    numbered,
    place_hold,
    reactivate,
    release_hold,
)
from tests.support.loglines import lines_of
from tests.support.moments import GRACE, NOW, SECOND, at, now
from tests.support.state import effects, events, everything, get_account, ids_left, rows_of
from tests.support.sweeps import sweep

DAY = timedelta(days=1)
STAFF = Actor("staff")
LATER = NOW + timedelta(days=400)


def by_hand(services: Services, account_id: int, **columns: Any) -> None:
    """Set columns of a row as a script does, past all that our code promises."""
    with services.writing() as session:
        account = session.get_one(Account, account_id)
        for name, value in columns.items():
            setattr(account, name, value)


def away(services: Services, name: str = "ann") -> Account:
    """Somebody who was deactivated at ``NOW``, with a promise."""
    account = make_account(services, name, now=NOW - DAY)
    return deactivate(services, account.id, now=NOW)


def is_explained(services: Services, account_id: int) -> bool:
    with services.reading() as session:
        return audit.is_explained(session, session.get_one(Account, account_id))


def move(services: Services, account_id: int, days: int, *, now: Any = NOW) -> None:
    with services.writing() as session:
        lifecycle.reschedule(
            session,
            account_id,
            purge_at=NOW + timedelta(days=days),
            promise=make_promise(),
            by=STAFF,
            clock=at(now),
        )


def reset(services: Services, account_id: int) -> None:
    with services.reading() as session:
        seen = session.get_one(Account, account_id)
        claims = services.tokens.read(
            services.tokens.password_reset(seen, now=NOW), PASSWORD_RESET, now=NOW
        )
    reset_password(
        services.database,
        services.hasher,
        claims,
        "another horse battery",
        promise=make_promise(),
        clock=at(NOW),
    )


# Mistakes -----------------------------------------------------------------------------------------


def an_earlier_date(services: Services) -> int:
    account = away(services)
    by_hand(services, account.id, purge_at=NOW)
    return account.id


def an_earlier_date_by_a_second(services: Services) -> int:
    account = away(services)
    assert account.purge_at is not None
    by_hand(services, account.id, purge_at=account.purge_at - SECOND)
    return account.id


def dates_of_somebody_active(services: Services) -> int:
    account = make_account(services, now=NOW - DAY)
    by_hand(services, account.id, deactivated_at=NOW, purge_at=NOW, deactivated_by="owner")
    return account.id


def the_first_promise_after_a_later_one(services: Services) -> int:
    account = away(services)
    move(services, account.id, 30)
    by_hand(services, account.id, purge_at=account.purge_at)
    return account.id


def another_deactivation(services: Services) -> int:
    account = away(services)
    by_hand(services, account.id, deactivated_at=NOW - DAY)
    return account.id


def another_epoch(services: Services) -> int:
    account = away(services)
    by_hand(services, account.id, epoch=account.epoch + 1)
    return account.id


def a_row_from_before_the_reactivation(services: Services) -> int:
    account = away(services)
    reactivate(services, account.id, now=NOW + DAY)
    names = ("deactivated_at", "purge_at", "deactivated_by", "epoch")
    by_hand(services, account.id, **{name: getattr(account, name) for name in names})
    return account.id


def a_witness_of_somebody_else(services: Services) -> int:
    account = insert_account(services, purge_at=NOW, witnessed=False)
    other = insert_account(services, "other")
    with services.writing() as session:
        event = audit.row(
            "account.deactivated",
            subject=other.public_id,
            by=SYSTEM_ACTOR,
            now=NOW,
            witness=Witness.of(session.get_one(Account, account.id)),
        )
        session.execute(insert(AuditEvent), [event])
    return account.id


MISTAKES = [
    an_earlier_date,
    an_earlier_date_by_a_second,
    dates_of_somebody_active,
    the_first_promise_after_a_later_one,
    another_deactivation,
    another_epoch,
    a_row_from_before_the_reactivation,
    a_witness_of_somebody_else,
]
of_each_mistake = pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one.__name__)


@of_each_mistake
def test_a_date_that_nobody_promised_purges_nobody(
    services: Services, mistake: Callable[[Services], int]
) -> None:
    account_id = mistake(services)
    bob = insert_account(services, "bob", purge_at=NOW + DAY)

    result = sweep(services, LATER, batch_size=1)

    assert result.purged_ids == [bob.id]
    assert account_id in ids_left(services)


@of_each_mistake
def test_the_locked_row_decides_about_the_witness_too(
    services: Services, mistake: Callable[[Services], int]
) -> None:
    account_id = mistake(services)
    with services.reading() as session:
        assert claim.decide(session, [account_id], LATER) == []


@of_each_mistake
def test_sql_and_python_say_the_same_of_who_is_explained(
    services: Services, mistake: Callable[[Services], int]
) -> None:
    mistake(services)
    away(services, "bob")
    insert_account(services, "eve")

    with services.reading() as session:
        accounts = list(session.scalars(select(Account)))
        by_sql = set(session.scalars(select(Account.id).where(rules.is_explained())))
        without = set(session.scalars(select(Account.id).where(rules.is_unexplained())))
        by_python = {one.id for one in accounts if audit.is_explained(session, one)}
        gone = {one.id for one in accounts if not one.is_active}

    assert by_sql == by_python
    assert without == gone - by_python
    assert by_sql
    assert without


# Promises -----------------------------------------------------------------------------------------


def deactivated(services: Services) -> int:
    return away(services).id


def moved_later(services: Services) -> int:
    account = away(services)
    move(services, account.id, 30)
    return account.id


def moved_later_by_hand(services: Services) -> int:
    """A date behind the promised one breaks no promise: nobody goes before it."""
    account = away(services)
    by_hand(services, account.id, purge_at=NOW + timedelta(days=60))
    return account.id


def reset_in_the_grace_period(services: Services) -> int:
    account = away(services)
    reset(services, account.id)
    return account.id


def released(services: Services) -> int:
    account = away(services)
    hold_id = place_hold(services, account.id, now=NOW)
    release_hold(services, account.id, hold_id, now=NOW + GRACE)
    return account.id


def waived(services: Services) -> int:
    account = away(services)
    with services.writing() as session:
        lifecycle.due_now(session, account.id, by=STAFF, clock=at(NOW + DAY))
    return account.id


def accepted(services: Services) -> int:
    account_id = an_earlier_date(services)
    accept(services, account_id)
    return account_id


def deactivated_again(services: Services) -> int:
    account = away(services)
    reactivate(services, account.id, now=NOW + DAY)
    return deactivate(services, account.id, now=NOW + DAY).id


PROMISES = [
    deactivated,
    moved_later,
    moved_later_by_hand,
    reset_in_the_grace_period,
    released,
    waived,
    accepted,
    deactivated_again,
]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda one: one.__name__)
def test_who_was_promised_a_purge_is_purged_at_its_time_and_not_before(
    services: Services, promise: Callable[[Services], int]
) -> None:
    account_id = promise(services)
    purge_at = get_account(services, account_id).purge_at
    assert purge_at is not None

    assert sweep(services, purge_at - SECOND).purged == 0
    assert sweep(services, purge_at).purged_ids == [account_id]


# What is no promise -------------------------------------------------------------------------------


def test_a_date_that_nobody_promised_does_not_become_a_promise_by_being_moved(
    services: Services,
) -> None:
    account = make_account(services, now=NOW - DAY)
    dates = {"deactivated_at": NOW - DAY, "purge_at": NOW + DAY}
    by_hand(services, account.id, deactivated_by="owner", **dates)

    move(services, account.id, 20)
    hold_id = place_hold(services, account.id, now=NOW)
    release_hold(services, account.id, hold_id, now=NOW + timedelta(days=20))
    reset(services, account.id)

    assert not is_explained(services, account.id)
    assert sweep(services, LATER).purged == 0


@pytest.mark.parametrize("by", [STAFF, OPERATOR_ACTOR], ids=["staff", "operator"])
@of_each_mistake
def test_who_is_not_the_owner_cannot_waive_what_was_not_promised(
    services: Services, mistake: Callable[[Services], int], by: Actor
) -> None:
    account_id = mistake(services)
    before = everything(services)

    with pytest.raises(Unexplained), services.writing() as session:
        lifecycle.due_now(session, account_id, by=by, clock=at(NOW + 20 * DAY))

    assert everything(services) == before


def test_an_owner_promises_by_asking_for_the_purge_at_once(services: Services) -> None:
    account_id = dates_of_somebody_active(services)
    owner = Actor("owner", get_account(services, account_id).public_id)

    with services.writing() as session:
        lifecycle.due_now(session, account_id, by=owner, clock=at(NOW + DAY))

    assert sweep(services, NOW + DAY).purged_ids == [account_id]


@pytest.mark.parametrize("force", [False, True])
def test_an_operator_who_names_the_unexplained_is_refused(services: Services, force: bool) -> None:
    account_id = insert_account(services, purge_at=NOW - 20 * DAY, witnessed=False).id
    before = everything(services)

    with pytest.raises(NotPurgeable) as refused:
        services.purge_now.plan_named([account_id], force=force)

    assert refused.value.kept == {account_id: Kept(Obstacle.UNEXPLAINED)}
    assert everything(services) == before


@pytest.mark.parametrize("days", [-20, 400], ids=["due", "in grace"])
def test_a_replay_purges_again_whom_a_restore_brought_back_without_a_promise(
    services: Services, days: int
) -> None:
    """The ledger's line is the promise."""
    purge_at = NOW + timedelta(days=days)
    then = NOW - 40 * DAY
    back = insert_account(services, purge_at=purge_at, deactivated_at=then, witnessed=False).id
    bystander = insert_account(services, "bob", purge_at=NOW - 20 * DAY, witnessed=False).id
    with services.reading() as session:
        planned = claim.count(session, [back])

    report = services.purge_now.replay(planned)

    assert [one.account_id for one in report.purged] == [back]
    assert ids_left(services) == [bystander]


# Accepting ----------------------------------------------------------------------------------------


def accept(services: Services, account_id: int, *, reason: str = "by letter") -> None:
    with services.writing() as session:
        lifecycle.accept(
            session,
            account_id,
            reason=reason,
            promise=make_promise(reminders=[3 * DAY]),
            by=OPERATOR_ACTOR,
            clock=at(NOW + 20 * DAY),
        )


@of_each_mistake
def test_accepting_promises_a_full_grace_period_and_says_so(
    services: Services, mistake: Callable[[Services], int]
) -> None:
    account_id = mistake(services)
    purge_at = NOW + 20 * DAY + GRACE

    accept(services, account_id)

    account = get_account(services, account_id)
    assert (account.purge_at, account.reason) == (purge_at, "by letter")
    (event,) = events(services, "deletion.accepted")
    assert (event.subject, event.actor_kind, event.details) == (account.public_id, "operator", {})
    assert (event.epoch, event.purge_at) == (account.epoch, purge_at)
    owed = effects(services, "mail.scheduled", "mail.date_moved", "mail.reminder")
    assert [one.deliver_after for one in owed if one.subject == account.public_id] == [
        NOW + 20 * DAY,
        purge_at - 3 * DAY,
    ]
    # And the person can come back until then.
    reactivate(services, account_id, now=purge_at - SECOND)


def test_accepting_does_not_take_back_a_later_date_that_may_have_been_promised(
    services: Services,
) -> None:
    account = insert_account(services, purge_at=NOW + 60 * DAY, witnessed=False)
    far = insert_account(
        services,
        "far",
        purge_at=NOW + 5000 * DAY,
        deactivated_at=NOW + 4000 * DAY,
        witnessed=False,
    )

    accept(services, account.id)
    accept(services, far.id)

    assert get_account(services, account.id).purge_at == NOW + 60 * DAY
    # Staff could have moved it so far, from a deactivation that is not to come.
    moved = get_account(services, far.id)
    assert (moved.deactivated_at, moved.purge_at) == (NOW + 20 * DAY, NOW + 110 * DAY)


def test_accepting_moves_no_promise_and_deactivates_nobody(services: Services) -> None:
    promised, active = away(services), make_account(services, "bob", now=NOW)
    unexplained = insert_account(services, "eve", purge_at=NOW, witnessed=False)
    before = everything(services)

    accept(services, promised.id)
    with pytest.raises(NotDeactivated):
        accept(services, active.id)
    with pytest.raises(InvalidInput):
        accept(services, unexplained.id, reason=" ")

    assert everything(services) == before


# Being told ---------------------------------------------------------------------------------------


def test_a_sweep_tells_once_of_the_unexplained_and_how_to_end_it(services: Services) -> None:
    ids = insert_accounts(services, numbered("gone", 12), purge_at=NOW, witnessed=False)
    insert_accounts(services, ["held"], purge_at=NOW, witnessed=False, held=True)
    insert_accounts(services, ["later"], purge_at=NOW + 2 * GRACE, witnessed=False)

    with lines_of(sweeping) as lines:
        sweep(services, NOW, batch_size=1)

    (line,) = (line for line in lines if line["log_level"] == "error")
    public_ids = [str(get_account(services, account_id).public_id) for account_id in ids[:10]]
    assert line == {
        "event": "due accounts are not purged, nobody has promised it",
        "log_level": "error",
        "count": 12,
        "public_ids": public_ids,
        "list_them": "accountsvc accounts list --state unexplained",
        "end_it": "accountsvc accounts accept",
    }
    assert len(public_ids) == sweeping.MOST_NAMED


def test_a_sweep_that_finds_none_says_nothing(services: Services) -> None:
    insert_accounts(services, numbered("gone", 3), purge_at=NOW)

    with lines_of(sweeping) as lines:
        sweep(services, NOW)

    assert [line for line in lines if line["log_level"] == "error"] == []
    assert len(rows_of(services, Receipt)) == 3


def test_a_mail_about_a_date_that_nobody_promised_waits_until_it_is_accepted(
    services: Services,
) -> None:
    """It would tell people of a purge that does not come."""
    account = insert_account(services)
    deactivate(services, account.id)
    wrong = now(services) + timedelta(hours=1)
    with services.writing() as session:
        session.execute(update(Account).values(purge_at=wrong))

    waiting = services.deliver()
    (owed,) = effects(services, notices.SCHEDULED)

    assert waiting.delivered == 0
    assert owed.deliver_after > now(services)
    with services.writing() as session:
        lifecycle.accept(
            session, account.id, reason="a slip", promise=make_promise(), by=OPERATOR_ACTOR
        )
    assert services.deliver().delivered == 1
    assert effects(services, notices.SCHEDULED) == []
