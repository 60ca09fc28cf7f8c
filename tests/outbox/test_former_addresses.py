"""Every mailbox that an account has had lately is told, whatever it is moved to afterwards."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from accountsvc.db.models import Account, FormerAddress
from accountsvc.outbox import notices, recipients
from accountsvc.outbox.letters import in_words
from accountsvc.outbox.payloads import CURRENT, PREVIOUS, AccountMail
from accountsvc.outbox.recipients import Former
from accountsvc.services import Services
from tests.outbox.test_way_back import links, move, opens, reset
from tests.support.addresses import change_address
from tests.support.factories import (
    Person,
    insert_account,
    make_person,
    run_sql,
    services_of,
)
from tests.support.moments import BOUNDARY, NOW, at, now
from tests.support.post import DAY, GRACE, Post
from tests.support.smtp import text_of
from tests.support.state import belongings, effects, get_account, possessions, rows_of

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
OWNERS, THIEFS = "ann@new.example", "thief@elsewhere.example"


def remembered(services: Services, account_id: int) -> list[Former]:
    with services.reading() as session:
        return list(recipients.remembered(session, session.get_one(Account, account_id)))


def former(email: str, left_at: datetime, held: timedelta) -> dict[str, Any]:
    return {"email": email, "held_since": left_at - held, "left_at": left_at}


def add_former(services: Services, account_id: int, *formers: dict[str, Any]) -> list[int]:
    """Write rows, as if the account had moved then; return their ids."""
    with services.writing() as session:
        rows = [FormerAddress(account_id=account_id, **values) for values in formers]
        session.add_all(rows)
        session.flush()
        return [row.id for row in rows]


@pytest.fixture
def bob(post: Post) -> Person:
    """The bystander."""
    return make_person(services_of(post.app), "bob")


# Who is told


@pytest.mark.parametrize("moves", [1, 5, 9])
def test_the_owners_mailboxes_have_a_way_back_however_often_a_thief_moves_the_account(
    post: Post, ann: Person, bob: Person, moves: int
) -> None:
    # given: the owner moves, and some days later somebody who has session and password does
    spared = belongings(services_of(post.app), bob)
    post.change_address(ann, OWNERS)
    post.ahead += 3 * DAY
    for number in range(moves):
        post.change_address(ann, f"{number}.{THIEFS}")
        post.ahead += HOUR

    # when
    post.leave(ann)
    post.later()

    # then
    owners = (ann.email, OWNERS)
    mailed = links(post)
    assert len(mailed) == 2 + moves
    assert [opens(post, ann, mailed[to]) for to in owners] == [True, True]
    for ends_the_link in (reset, move):
        ends_the_link(post, ann)
        post.later()
        mailed = links(post)
        assert [opens(post, ann, mailed[to]) for to in owners] == [True, True]
    post.come_back(ann)
    post.later()
    assert {*owners} <= {to for to, subject in post.new() if subject.endswith("active again")}
    assert belongings(services_of(post.app), bob) == spared


def test_each_is_told_until_when_it_was_the_accounts(post: Post, ann: Person) -> None:
    post.change_address(ann, OWNERS)
    post.ahead += DAY
    post.change_address(ann, THIEFS)
    left = {row.email: row.left_at for row in remembered(services_of(post.app), ann.id)}
    post.leave(ann)

    post.later()

    said = {str(one["To"]): " ".join(text_of(one).split()) for one in post.inbox.messages}
    for address in (ann.email, OWNERS):
        assert f"was the account's until {in_words(left[address])}" in said[address]
    assert left[OWNERS] - left[ann.email] >= DAY
    assert "was the account's until" not in said[THIEFS]


@pytest.mark.parametrize(
    ("distance", "is_told"), [*zip(BOUNDARY, [True, False, False], strict=True)]
)
def test_each_is_told_for_one_grace_period_of_its_own(
    services: Services, distance: timedelta, is_told: bool
) -> None:
    account = insert_account(services, email_changed_at=NOW - HOUR, previous_email="a@x.example")
    add_former(
        services,
        account.id,
        former("a@x.example", NOW - GRACE - distance, DAY),
        former("b@x.example", NOW - HOUR, DAY),
    )

    with services.reading() as session:
        found = recipients.told(session, account, at=NOW, within=GRACE)

    told = ["a@x.example", "b@x.example"] if is_told else ["b@x.example"]
    assert [one.email for one in found] == told


def test_who_came_back_to_an_address_is_told_there_once_and_the_others_too(
    post: Post, ann: Person
) -> None:
    for address in (OWNERS, ann.email, THIEFS, ann.email):
        post.change_address(ann, address)
    post.leave(ann)

    post.later()

    assert sorted(to for to, _ in post.new()) == [ann.email, OWNERS, THIEFS]


@pytest.mark.parametrize(
    ("before", "after"),
    [("ann@example.org", "ANN@example.org"), ("e\u0301@example.org", "\u00e9@example.org")],
    ids=["capitals", "accents"],
)
def test_an_address_in_another_spelling_of_its_name_is_told_too(
    post: Post, bob: Person, before: str, after: str
) -> None:
    """Its server may give it to somebody else (RFC 5321, section 2.4)."""
    cid = make_person(services_of(post.app), "cid")
    for address in (before, after):
        post.change_address(cid, address)
    spared = belongings(services_of(post.app), bob)
    post.leave(cid)

    # They share the pace of one mailbox.
    for _ in range(2):
        post.later(timedelta(minutes=11))

    told = [to for to, subject in post.new() if subject.startswith("Your account will be deleted")]
    assert sorted(told) == sorted([before, after, cid.email])
    assert belongings(services_of(post.app), bob) == spared


def test_a_mail_that_waited_goes_to_the_address_that_was_the_accounts_when_it_was_owed(
    post: Post, ann: Person
) -> None:
    """Whoever moves the account once more keeps no news from the mailbox before."""
    services = services_of(post.app)
    post.change_address(ann, OWNERS)
    with services.writing() as session:
        account = session.get_one(Account, ann.id)
        notices.password_changed(session, account, now=post.clock(session), grace=GRACE)
    post.ahead += MINUTE
    for address in (THIEFS, "2." + THIEFS):
        post.change_address(ann, address)
        post.ahead += MINUTE

    post.later(kinds=(notices.PASSWORD_CHANGED,))

    assert sorted(to for to, _ in post.new()) == [ann.email, OWNERS]


@pytest.mark.parametrize(
    ("owed_at", "address"),
    [
        *zip(
            [NOW - HOUR + off for off in BOUNDARY],
            ["a@x.example", *["b@x.example"] * 2],
            strict=True,
        ),
        *zip(
            [NOW + off for off in BOUNDARY], ["b@x.example", *["ann@example.org"] * 2], strict=True
        ),
    ],
)
def test_an_address_is_the_accounts_from_a_change_on_until_the_next(
    services: Services, owed_at: datetime, address: str
) -> None:
    account = insert_account(services, email_changed_at=NOW, previous_email="a@x.example")
    add_former(
        services,
        account.id,
        former("a@x.example", NOW - HOUR, DAY),
        former("b@x.example", NOW, HOUR),
    )

    with services.reading() as session:
        found = recipients.addressee(session, account, AccountMail(0), owed_at=owed_at)

    assert found is not None
    assert found.email == address


# What the release before has written, and what is gone


def test_what_the_release_before_has_changed_meanwhile_is_told_and_remembered(
    post: Post, ann: Person, bob: Person
) -> None:
    services = services_of(post.app)
    spared = possessions(services, bob.id)
    moment = now(services)
    with services.writing() as session:
        account = session.get_one(Account, ann.id)
        account.previous_email, account.email = account.email, OWNERS
        account.email_key, account.email_changed_at = OWNERS, moment
    before = remembered(services, ann.id)[-1]
    post.ahead += DAY

    # Another process moves it on, and neither takes the first address away.
    post.change_address(ann, THIEFS)
    post.leave(ann)
    post.later()

    assert (before.id, before.email, before.left_at) == (None, ann.email, moment)
    assert [one.email for one in own_rows(services, ann.id)][1:] == [ann.email, OWNERS]
    assert all(one.id is not None for one in remembered(services, ann.id))
    mailed = links(post)
    assert [opens(post, ann, mailed[to]) for to in (ann.email, OWNERS)] == [True, True]
    assert possessions(services, bob.id) == spared


def own_rows(services: Services, account_id: int) -> list[FormerAddress]:
    return rows_of(services, FormerAddress, FormerAddress.account_id == account_id)


def test_an_address_of_the_column_alone_has_a_row_once_a_mail_names_it(
    services: Services,
) -> None:
    account = insert_account(services, previous_email="a@x.example", email_changed_at=NOW)

    for _ in range(2):
        with services.writing() as session:
            row = session.get_one(Account, account.id)
            notices.password_changed(session, row, now=NOW, grace=GRACE)

    (kept,) = own_rows(services, account.id)
    assert (kept.email, kept.held_since, kept.left_at) == ("a@x.example", account.joined_at, NOW)
    assert [one.payload["former"] for one in effects(services)] == [None, kept.id] * 2


def test_a_mail_of_the_release_before_goes_to_the_oldest_address_that_is_remembered(
    services: Services,
) -> None:
    account = insert_account(services, email_changed_at=NOW)
    ids = add_former(
        services,
        account.id,
        former("a@x.example", NOW - HOUR, DAY),
        former("b@x.example", NOW, HOUR),
    )

    with services.reading() as session:
        found = [
            recipients.addressee(session, account, mail, owed_at=NOW)
            for mail in (
                AccountMail.read({"epoch": 0, "to": PREVIOUS}),
                AccountMail(0, PREVIOUS, ids[1]),
                # Its row was forgotten; and one that is another account's.
                AccountMail(0, PREVIOUS, ids[1] + 1),
                AccountMail.read({"epoch": 0, "to": CURRENT}),
            )
        ]

    assert [None if one is None else one.email for one in found] == [
        "a@x.example",
        "b@x.example",
        None,
        "ann@example.org",
    ]


def test_a_mail_names_no_row_of_another_account(services: Services) -> None:
    ann, bob = (insert_account(services, name, email_changed_at=NOW) for name in ("ann", "bob"))
    (theirs,) = add_former(services, bob.id, former("b@x.example", NOW, DAY))

    with services.reading() as session:
        found = recipients.addressee(session, ann, AccountMail(0, PREVIOUS, theirs), owed_at=NOW)

    assert found is None


def test_a_mail_whose_address_is_forgotten_is_not_sent(post: Post, ann: Person) -> None:
    services = services_of(post.app)
    post.change_address(ann, OWNERS)
    post.leave(ann)
    run_sql(services, "DELETE FROM former_addresses WHERE account_id = :id", id=ann.id)
    # The time that tells a change of the release before from others.
    run_sql(services, "UPDATE accounts SET previous_email = NULL WHERE id = :id", id=ann.id)

    post.later()

    assert [to for to, _ in post.new()] == [OWNERS]


# What is forgotten


@pytest.mark.parametrize("off", BOUNDARY)
def test_an_address_is_forgotten_a_grace_period_after_the_last_change(
    services: Services, off: timedelta
) -> None:
    ann, bob = (
        insert_account(services, name, email_changed_at=NOW - distance)
        for name, distance in (("ann", GRACE + off), ("bob", GRACE - HOUR))
    )
    for account in (ann, bob):
        # All of an account go together: that of long ago says how long it had its mailbox.
        add_former(
            services,
            account.id,
            former("a@x.example", NOW - GRACE - DAY, DAY),
            former("b@x.example", account.email_changed_at or NOW, DAY),
        )

    forgotten = recipients.prune(services.database, at(NOW), GRACE)

    assert forgotten == (0 if off < timedelta() else 2)
    assert len(own_rows(services, ann.id)) == 2 - forgotten
    assert len(own_rows(services, bob.id)) == 2


def test_no_address_is_forgotten_while_the_account_is_away_or_is_owed_a_mail(
    services: Services,
) -> None:
    long_ago = NOW - 3 * GRACE
    away = insert_account(services, "away", purge_at=NOW + DAY, email_changed_at=long_ago)
    owed = insert_account(services, "owed", email_changed_at=long_ago)
    over = insert_account(services, "over", email_changed_at=long_ago)
    for account in (away, owed, over):
        add_former(services, account.id, former("a@x.example", long_ago, DAY))
    with services.writing() as session:
        row = session.get_one(Account, owed.id)
        notices.reactivated(session, row, now=NOW, grace=GRACE, deactivated_at=long_ago)

    forgotten = recipients.prune(services.database, at(NOW), GRACE)

    assert forgotten == 1
    assert [len(own_rows(services, one.id)) for one in (away, owed, over)] == [1, 1, 0]
    (mail,) = [one for one in effects(services) if one.payload["to"] == PREVIOUS]
    assert mail.payload["former"] == own_rows(services, owed.id)[0].id


def test_the_worker_forgets_them(post: Post, ann: Person, bob: Person) -> None:
    services = services_of(post.app)
    change_address(services, ann.id, OWNERS, clock=at(now(services) - 20 * DAY))
    change_address(services, bob.id, "bob@new.example")
    assert ann.email in [one.email for one in own_rows(services, ann.id)]
    # The mails about the change are sent first.
    services.deliver()

    services.deliver()

    assert effects(services) == []
    assert [len(own_rows(services, one.id)) for one in (ann, bob)] == [0, 2]


# How long a mailbox was had


def test_who_moved_away_and_came_back_has_had_the_mailbox_as_long_as_before(
    services: Services,
) -> None:
    account = insert_account(services, email_changed_at=NOW - HOUR)
    add_former(
        services,
        account.id,
        former("ann@EXAMPLE.org", NOW - 3 * HOUR, 40 * DAY),
        former("b@x.example", NOW - HOUR, 2 * HOUR),
    )

    with services.reading() as session:
        held = [
            recipients.held(session, account, address, now=NOW)
            for address in ("ann@example.org", "B@x.example", "c@x.example")
        ]

    assert held == [40 * DAY, 2 * HOUR, timedelta()]


def test_an_address_that_was_never_changed_is_had_since_the_account_is(services: Services) -> None:
    account = insert_account(services)

    with services.reading() as session:
        held = recipients.held(session, account, account.email, now=NOW)

    assert held == NOW - account.joined_at


# The purge


def test_the_purge_leaves_none_of_them(post: Post, ann: Person, bob: Person) -> None:
    services = services_of(post.app)
    post.change_address(ann, OWNERS)
    post.change_address(bob, "bob@new.example")
    post.leave(ann)
    post.ahead += GRACE + DAY
    spared = possessions(services, bob.id)

    assert post.sweep() == 1

    assert own_rows(services, ann.id) == []
    assert possessions(services, bob.id) == spared
    assert get_account(services, bob.id).email == "bob@new.example"
