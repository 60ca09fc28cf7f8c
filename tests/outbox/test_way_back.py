"""Who is away finds the way back in the newest mail, at the previous address too."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta

import pytest

from accountsvc.accounts import credentials, lifecycle
from accountsvc.db.audit import OPERATOR_ACTOR, Actor
from accountsvc.db.models import Account, LegalHold
from accountsvc.outbox import notices
from accountsvc.tokens import MAILED, PASSWORD_RESET
from tests.support.factories import Person, make_person, make_promise, run_sql, services_of
from tests.support.moments import BOUNDARY
from tests.support.post import DAY, GRACE, SOON, Post
from tests.support.smtp import text_of
from tests.support.state import belongings, get_account, rows_of

NEW = "new@example.org"
PROMISE = make_promise(grace=GRACE)


def reset(post: Post, person: Person, password: str = "nine purple otters sing") -> None:
    """Set a new password by a mailed link, as whoever reads the mailbox can."""
    services = services_of(post.app)
    account = get_account(services, person.id)
    with services.reading() as session:
        now = post.clock(session)
    token = services.tokens.password_reset(account, now=now)
    credentials.reset_password(
        services.database,
        services.hasher,
        services.tokens.read(token, PASSWORD_RESET, now=now),
        password,
        promise=PROMISE,
        clock=post.clock,
    )


def move(post: Post, person: Person) -> None:
    services = services_of(post.app)
    purge_at = get_account(services, person.id).purge_at
    assert purge_at is not None
    with services.writing() as session:
        lifecycle.reschedule(
            session,
            person.id,
            purge_at=purge_at + 10 * DAY,
            promise=PROMISE,
            by=Actor("staff", None),
            clock=post.clock,
        )


def hold(post: Post, person: Person) -> None:
    with services_of(post.app).writing() as session:
        lifecycle.place_hold(
            session, person.id, reason="a lawsuit", by=OPERATOR_ACTOR, clock=post.clock
        )


def release(post: Post, person: Person) -> None:
    services = services_of(post.app)
    (open_hold,) = rows_of(services, LegalHold, LegalHold.account_id == person.id)
    with services.writing() as session:
        lifecycle.release_hold(
            session,
            person.id,
            open_hold.id,
            promise=PROMISE,
            by=OPERATOR_ACTOR,
            clock=post.clock,
        )


def links(post: Post) -> dict[str, str | None]:
    """Take the mails that have come: the token of the link in the last one to each address."""
    found: dict[str, str | None] = {}
    for message in post.inbox.messages:
        link = re.search(r"/recover/(\S+)", text_of(message))
        found[str(message["To"])] = None if link is None else link[1]
    post.inbox.messages.clear()
    return found


def opens(post: Post, person: Person, token: str | None) -> bool:
    """Say whether *token* gives the account back at this moment, and until its purge; it does not."""
    if token is None:
        return False
    services = services_of(post.app)
    account = get_account(services, person.id)
    assert account.purge_at is not None
    with services.reading() as session:
        claims = services.tokens.read(token, MAILED, now=post.clock(session))
    return claims.epoch == account.epoch and claims.expires_at == account.purge_at


@pytest.fixture
def bob(post: Post) -> Person:
    """The bystander, who has left too."""
    return make_person(services_of(post.app), "bob")


@pytest.mark.parametrize("happens", [reset, move], ids=["a new password", "another date"])
@pytest.mark.parametrize("days", [0, 6, 13])
def test_whatever_ends_the_link_mails_another_to_both_addresses(
    post: Post, ann: Person, bob: Person, happens: Callable[[Post, Person], None], days: int
) -> None:
    # Nearly a grace period before: the change would be too long ago by the time that it happens.
    post.change_address(ann, NEW)
    post.ahead += GRACE - timedelta(hours=1)
    post.leave(ann)
    post.later()
    first = links(post)
    assert [opens(post, ann, first[to]) for to in (ann.email, NEW)] == [True, True]
    spared = belongings(services_of(post.app), bob)
    post.ahead += days * DAY

    happens(post, ann)
    post.later()

    mailed = links(post)
    assert not opens(post, ann, first[ann.email])
    assert [opens(post, ann, mailed[to]) for to in (ann.email, NEW)] == [True, True]
    assert belongings(services_of(post.app), bob) == spared


def test_a_released_hold_that_gives_more_time_mails_another_link(
    post: Post, ann: Person, bob: Person
) -> None:
    post.change_address(ann, NEW)
    post.leave(ann)
    post.later()
    hold(post, ann)
    post.ahead += GRACE + DAY
    spared = belongings(services_of(post.app), bob)
    links(post)

    release(post, ann)
    post.later()

    mailed = links(post)
    assert [opens(post, ann, mailed[to]) for to in (ann.email, NEW)] == [True, True]
    assert belongings(services_of(post.app), bob) == spared


def test_a_released_hold_that_moves_no_date_mails_nothing(post: Post, ann: Person) -> None:
    post.leave(ann)
    post.later()
    hold(post, ann)
    links(post)

    release(post, ann)
    post.later()

    assert links(post) == {}


def test_each_of_several_resets_mails_a_link_that_opens_and_the_last_one_lasts(
    post: Post, ann: Person
) -> None:
    post.change_address(ann, NEW)
    post.leave(ann)
    post.later()
    links(post)

    for number in range(3):
        reset(post, ann, f"nine purple otters sing {number}")
        # The third mail of a kind in a day waits for an hour.
        post.later(timedelta(hours=2))

        mailed = links(post)
        assert [opens(post, ann, mailed[to]) for to in (ann.email, NEW)] == [True, True]


def test_a_reset_shortly_before_the_purge_leaves_no_time_without_a_link(
    post: Post, ann: Person
) -> None:
    post.change_address(ann, NEW)
    post.leave(ann)
    post.later()
    post.ahead += GRACE - timedelta(minutes=4)
    links(post)

    reset(post, ann)
    post.later(timedelta(seconds=5))

    assert opens(post, ann, links(post)[ann.email])


@pytest.mark.parametrize(("distance", "told"), [*zip(BOUNDARY, [True, False, False], strict=True)])
def test_an_address_that_was_given_up_a_grace_period_before_the_deletion_is_told_of_nothing(
    post: Post, ann: Person, distance: timedelta, told: bool
) -> None:
    services = services_of(post.app)
    post.change_address(ann, NEW)
    post.leave(ann)
    post.later()
    links(post)
    with services.writing() as session:
        row = session.get_one(Account, ann.id)
        assert row.deactivated_at is not None
        row.email_changed_at = row.deactivated_at - GRACE - distance

    owed = []
    for happens in (reset, move):
        happens(post, ann)
        post.later(timedelta(hours=2))
        owed.append(ann.email in links(post))

    assert owed == [told, told]


def test_who_was_told_of_the_deletion_is_told_of_the_return(post: Post, ann: Person) -> None:
    post.change_address(ann, NEW)
    post.ahead += GRACE - timedelta(hours=1)
    post.leave(ann)
    post.later()
    post.new()
    post.ahead += 13 * DAY

    post.come_back(ann)
    post.later()

    back = "Your account is active again"
    assert sorted(post.new()) == [(ann.email, back), (NEW, back)]


@pytest.mark.parametrize("by", ["staff", "operator"])
@pytest.mark.parametrize("happens", [reset, move], ids=["a new password", "another date"])
def test_whom_the_staff_switched_off_gets_no_link_but_the_word_support(
    post: Post, ann: Person, happens: Callable[[Post, Person], None], by: str
) -> None:
    post.change_address(ann, NEW)
    post.leave(ann, by=by)
    post.later()
    links(post)

    happens(post, ann)
    post.later()

    texts = [" ".join(text_of(one).split()) for one in post.inbox.messages]
    assert links(post) == {ann.email: None, NEW: None}
    assert all("contact the support" in text for text in texts)
    assert not any("/keep-account/" in text for text in texts)


def test_a_new_password_of_an_active_account_mails_no_way_back(post: Post, ann: Person) -> None:
    post.change_address(ann, NEW)
    post.ahead += SOON

    reset(post, ann)
    post.later()

    assert links(post) == {ann.email: None, NEW: None}


def test_a_date_that_nobody_promised_ends_no_link(post: Post, ann: Person) -> None:
    """The news of the password leaves all the same, and names the page without a link."""
    post.leave(ann)
    post.later()
    run_sql(services_of(post.app), "UPDATE accounts SET epoch = epoch + 1")
    links(post)

    reset(post, ann)
    post.later(kinds=(notices.PASSWORD_CHANGED,))

    text = post.text()
    assert links(post) == {ann.email: None}
    assert "Keep my account: http://localhost:8000/keep-account/" in text
