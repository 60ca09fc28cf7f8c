"""Soon after a change, a release or a deactivation by staff nothing is purged at once or exported."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from accountsvc.accounts import credentials, exports, lifecycle
from accountsvc.accounts.settling import SETTLING
from accountsvc.db.audit import OPERATOR_ACTOR, Actor
from accountsvc.db.models import Account
from accountsvc.errors import InvalidSchedule, LegalHold, RecentChange
from accountsvc.services import Services
from accountsvc.tokens import PASSWORD_RESET
from tests.support.factories import (
    deactivate,
    insert_account,
    make_person,
    make_promise,
    place_hold,
    reactivate,
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


@pytest.mark.parametrize("by", ["owner", "staff", "operator"])
@pytest.mark.parametrize("offset", BOUNDARY, ids=str)
def test_a_deactivation_by_the_staff_that_was_taken_back_counts_behind_any_other(
    services: Services, by: str, offset: timedelta
) -> None:
    bystander = make_person(services, "bob")
    ann, spared = insert_account(services, "ann"), belongings(services, bystander)
    deactivate(services, ann.id, by=STAFF, now=NOW)
    reactivate(services, ann.id, now=NOW + HOUR)
    deactivate(services, ann.id, by=by, now=NOW + 2 * HOUR)
    since = NOW + 2 * HOUR if by == "staff" else NOW
    moment = since + DELAY + offset

    if offset < timedelta():
        with pytest.raises(RecentChange):
            waive(services, ann, moment)
    else:
        assert waive(services, ann, moment) == moment.replace(microsecond=0)

    assert belongings(services, bystander) == spared


def test_what_the_staff_did_to_another_account_keeps_nobody(services: Services) -> None:
    ann, bob = insert_account(services, "ann"), insert_account(services, "bob")
    deactivate(services, bob.id, by=STAFF, now=NOW)
    deactivate(services, ann.id, now=NOW)

    assert waive(services, ann, NOW + HOUR) == NOW + HOUR


def test_no_other_call_of_the_staffs_makes_a_purge_come_sooner(services: Services) -> None:
    ann = insert_account(services, "ann")
    first = deactivate(services, ann.id, by=STAFF, now=NOW).purge_at
    assert first is not None
    hold_id = place_hold(services, ann.id, now=NOW + HOUR)
    release_hold(services, ann.id, hold_id, now=NOW + 2 * HOUR)

    for purge_at in (NOW + 3 * HOUR, first - SECOND):
        with pytest.raises(InvalidSchedule), services.writing() as session:
            lifecycle.reschedule(
                session,
                ann.id,
                purge_at=purge_at,
                promise=make_promise(),
                by=STAFF,
                clock=at(NOW + 2 * HOUR),
            )

    assert get_account(services, ann.id).purge_at == first


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


def reset(services: Services, account: Account, moment: datetime) -> None:
    """Set another password by a mailed link."""
    row = get_account(services, account.id)
    link = services.tokens.password_reset(row, now=moment)
    credentials.reset_password(
        services.database,
        services.hasher,
        services.tokens.read(link, PASSWORD_RESET, now=moment),
        f"nine purple otters sing {moment:%H%M%S%f}",
        promise=make_promise(),
        clock=at(moment),
    )


@pytest.mark.parametrize(("grace", "wait"), [(14 * DAY, SETTLING), (4 * HOUR, 2 * HOUR)], ids=str)
@pytest.mark.parametrize("again", [False, True], ids=["back", "away again"])
@pytest.mark.parametrize("offset", BOUNDARY, ids=str)
def test_a_return_makes_the_wait_for_the_data_no_shorter(
    services: Services, grace: timedelta, wait: timedelta, again: bool, offset: timedelta
) -> None:
    ann = insert_account(services, "ann")
    deactivate(services, ann.id, grace=grace, now=NOW)
    reset(services, ann, NOW + HOUR)
    reactivate(services, ann.id, by=Actor("owner", ann.public_id), now=NOW + HOUR + SECOND)
    # Another one while the account is active ends no wait, and begins one for the next time alone.
    reset(services, ann, NOW + HOUR + 2 * SECOND)
    if again:
        deactivate(services, ann.id, grace=grace, now=NOW + HOUR + 3 * SECOND)
    moment = NOW + HOUR + (2 * SECOND if again else timedelta()) + wait + offset

    if offset < timedelta():
        with pytest.raises(RecentChange, match="by a mailed link"):
            export(services, ann, moment)
    else:
        assert export(services, ann, moment).startswith(b"PK")


def test_a_reset_of_an_account_that_comes_back_from_what_nobody_promised_waits_a_day(
    services: Services,
) -> None:
    ann = insert_account(services, "ann", purge_at=NOW + DAY, witnessed=False)
    reset(services, ann, NOW)
    reactivate(services, ann.id, by=Actor("owner", ann.public_id), now=NOW + SECOND)

    with pytest.raises(RecentChange):
        export(services, ann, NOW + SETTLING - MICROSECOND)

    assert export(services, ann, NOW + SETTLING).startswith(b"PK")


@pytest.mark.parametrize("back", [False, True])
def test_a_reset_while_the_account_is_active_keeps_no_data_back(
    services: Services, back: bool
) -> None:
    ann = insert_account(services, "ann")
    if back:
        deactivate(services, ann.id, now=NOW - 2 * HOUR)
        reactivate(services, ann.id, now=NOW - HOUR)
    reset(services, ann, NOW)

    assert export(services, ann, NOW + SECOND).startswith(b"PK")


@pytest.mark.parametrize("offset", BOUNDARY, ids=str)
def test_in_the_grace_period_a_reset_before_it_keeps_the_data_back_too(
    services: Services, offset: timedelta
) -> None:
    ann = insert_account(services, "ann")
    reset(services, ann, NOW)
    deactivate(services, ann.id, grace=4 * HOUR, now=NOW + SECOND)
    moment = NOW + 2 * HOUR + offset

    if offset < timedelta():
        with pytest.raises(RecentChange, match=r"by a mailed link .* from \d.* UTC on\.$"):
            export(services, ann, moment)
    else:
        assert export(services, ann, moment).startswith(b"PK")


def test_the_owner_is_told_from_when_the_rest_of_the_time_can_be_given_up(
    services: Services,
) -> None:
    ann = insert_account(services, "ann")
    owner = Actor("owner", ann.public_id)
    deactivate(services, ann.id, now=NOW)
    reset(services, ann, NOW)

    with pytest.raises(RecentChange, match="at once from 8 December 2026 at 09:31 UTC on"):
        waive(services, ann, NOW + SETTLING - MICROSECOND, by=owner)

    assert waive(services, ann, NOW + SETTLING, by=owner) == NOW + SETTLING
