"""Soon after a change, a release or a deactivation by staff nothing is purged at once or exported."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from accountsvc.accounts import exports, lifecycle
from accountsvc.accounts.settling import SETTLING
from accountsvc.db.audit import OPERATOR_ACTOR, Actor
from accountsvc.db.models import Account
from accountsvc.errors import LegalHold, RecentChange
from accountsvc.services import Services
from tests.support.factories import (
    deactivate,
    insert_account,
    make_person,
    place_hold,
    release_hold,
    run_sql,
)
from tests.support.moments import BOUNDARY, MICROSECOND, NOW, SECOND, at
from tests.support.state import belongings, get_account

STAFF = Actor("staff")
DELAY = timedelta(hours=24)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def waive(
    services: Services, account: Account, moment: datetime, *, by: Actor = STAFF
) -> datetime | None:
    with services.writing() as session:
        return lifecycle.due_now(
            session, account.id, by=by, staff_delay=DELAY, clock=at(moment)
        ).purge_at


@pytest.mark.parametrize("offset", BOUNDARY, ids=str)
def test_the_staff_cannot_purge_at_once_what_they_have_just_deactivated(
    services: Services, offset: timedelta
) -> None:
    bystander = make_person(services, "bob")
    ann, spared = insert_account(services, "ann"), belongings(services, bystander)
    promised = deactivate(services, ann.id, by=STAFF, now=NOW).purge_at
    moment = NOW + DELAY + offset

    if moment < NOW + DELAY:
        with pytest.raises(RecentChange, match=r"from 8 December 2026 at 09:31 UTC on\.$"):
            waive(services, ann, moment)
        assert get_account(services, ann.id).purge_at == promised
    else:
        assert waive(services, ann, moment) == moment.replace(microsecond=0)

    assert belongings(services, bystander) == spared


@pytest.mark.parametrize("offset", BOUNDARY, ids=str)
def test_the_staff_cannot_purge_at_once_behind_the_release_of_a_hold(
    services: Services, offset: timedelta
) -> None:
    bystander = make_person(services, "bob")
    ann, spared = insert_account(services, "ann"), belongings(services, bystander)
    deactivate(services, ann.id, now=NOW)
    older, newer = (place_hold(services, ann.id, now=NOW) for _ in range(2))
    release_hold(services, ann.id, older, now=NOW)
    release_hold(services, ann.id, newer, now=NOW + HOUR)
    moment = NOW + HOUR + DELAY + offset

    if moment < NOW + HOUR + DELAY:
        with pytest.raises(RecentChange, match=r"from 8 December 2026 at 10:31 UTC on\.$"):
            waive(services, ann, moment)
    else:
        assert waive(services, ann, moment) == moment.replace(microsecond=0)

    assert belongings(services, bystander) == spared


def test_a_hold_that_was_released_before_the_deactivation_counts_too(services: Services) -> None:
    ann = insert_account(services, "ann")
    release_hold(services, ann.id, place_hold(services, ann.id, now=NOW), now=NOW)
    deactivate(services, ann.id, now=NOW + HOUR)

    with pytest.raises(RecentChange):
        waive(services, ann, NOW + 2 * HOUR)


def test_a_hold_that_is_open_is_what_is_said(services: Services) -> None:
    ann = insert_account(services, "ann")
    deactivate(services, ann.id, by=STAFF, now=NOW)
    place_hold(services, ann.id, now=NOW)

    with pytest.raises(LegalHold):
        waive(services, ann, NOW + HOUR)


def test_the_hold_of_another_account_and_whoever_else_deactivated_it_do_not_matter(
    services: Services,
) -> None:
    ann, cat = insert_account(services, "ann"), insert_account(services, "cat")
    deactivate(services, ann.id, now=NOW)
    deactivate(services, cat.id, by="operator", now=NOW)
    bob = insert_account(services, "bob")
    release_hold(services, bob.id, place_hold(services, bob.id, now=NOW), now=NOW)

    assert waive(services, ann, NOW + HOUR) == NOW + HOUR
    assert waive(services, cat, NOW + HOUR) == NOW + HOUR


def test_an_operator_and_the_owner_are_not_kept_by_what_is_for_the_staff(
    services: Services,
) -> None:
    ann, cat = insert_account(services, "ann"), insert_account(services, "cat")
    for account in (ann, cat):
        deactivate(services, account.id, by=STAFF, now=NOW)
        release_hold(services, account.id, place_hold(services, account.id, now=NOW), now=NOW)

    assert waive(services, ann, NOW + HOUR, by=OPERATOR_ACTOR) == NOW + HOUR
    assert waive(services, cat, NOW + HOUR, by=Actor("owner", cat.public_id)) == NOW + HOUR


def export(services: Services, account: Account, moment: datetime) -> bytes:
    row = get_account(services, account.id)
    return b"".join(
        exports.export(
            services.database,
            services.keyring,
            services.avatars,
            account.id,
            epoch=row.epoch,
            now=moment,
        )
    )


def away(services: Services, *, grace: timedelta, changed_at: datetime) -> Account:
    """Somebody who is away from ``NOW`` on, and whose password was changed at *changed_at*."""
    ann = insert_account(services, "ann")
    deactivate(services, ann.id, grace=grace, now=NOW)
    run_sql(
        services,
        "UPDATE accounts SET password_changed_at = :at WHERE id = :id",
        at=changed_at if services.database.engine.dialect.name == "postgresql" else str(changed_at),
        id=ann.id,
    )
    return ann


@pytest.mark.parametrize(
    ("grace", "wait"),
    [(14 * DAY, SETTLING), (2 * DAY, DAY), (2 * DAY - 2 * SECOND, DAY - SECOND), (HOUR, HOUR / 2)],
    ids=str,
)
@pytest.mark.parametrize("offset", BOUNDARY, ids=str)
def test_the_data_is_kept_for_a_while_from_whoever_set_a_password_by_mail_in_the_grace_period(
    services: Services, grace: timedelta, wait: timedelta, offset: timedelta
) -> None:
    ann = away(services, grace=grace, changed_at=NOW + SECOND)
    moment = NOW + SECOND + wait + offset

    if offset < timedelta():
        with pytest.raises(RecentChange, match=r"by a mailed link .* from \d.* UTC on\.$"):
            export(services, ann, moment)
    else:
        assert export(services, ann, moment).startswith(b"PK")


@pytest.mark.parametrize("before", [MICROSECOND, DAY])
def test_a_password_that_was_changed_before_the_deactivation_keeps_no_data_back(
    services: Services, before: timedelta
) -> None:
    ann = away(services, grace=14 * DAY, changed_at=NOW - before)

    assert export(services, ann, NOW + HOUR).startswith(b"PK")


def test_at_the_time_that_the_sentence_says_the_wait_is_over(services: Services) -> None:
    ann = away(services, grace=HOUR, changed_at=NOW)

    with pytest.raises(RecentChange, match="from 7 December 2026 at 10:01 UTC on"):
        export(services, ann, NOW + HOUR / 2 - MICROSECOND)

    assert export(services, ann, datetime(2026, 12, 7, 10, 1, tzinfo=NOW.tzinfo))
