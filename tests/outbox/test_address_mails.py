"""The mails about another address: to whom, when, with which link, over a real SMTP server."""

from __future__ import annotations

from datetime import timedelta

import pytest

from accountsvc.accounts import pending
from accountsvc.db.audit import Actor
from accountsvc.db.models import PENDING_FOR, Account, Effect
from accountsvc.outbox import notices
from accountsvc.tokens import CANCEL_EMAIL, CONFIRM_EMAIL, MAILED, Claims
from tests.support.addresses import (
    CANCEL,
    CONFIRM,
    ask_address,
    change_address,
    confirm_claims,
    mailed_path,
)
from tests.support.factories import Person, make_person, services_of
from tests.support.post import DAY, GRACE, SOON, Post
from tests.support.smtp import text_of
from tests.support.state import effects, get_account

NEW = "new@example.org"
ASKED = "Another email address was asked for your account"
CONFIRM_IT = "Confirm your email address"
CHANGED = "The email address of your account was changed"


def ask(post: Post, person: Person, address: str = NEW) -> Account:
    return ask_address(services_of(post.app), person.id, address, clock=post.clock)


def texts(post: Post) -> dict[str, str]:
    """The texts of all mails so far, each in one line, by recipient; the last of several."""
    return {str(one["To"]): " ".join(text_of(one).split()) for one in post.inbox.messages}


def test_both_mailboxes_are_told_each_with_a_link_of_its_own(post: Post, ann: Person) -> None:
    account = ask(post, ann)

    post.later()

    said = texts(post)
    assert sorted(post.new()) == [(ann.email, ASKED), (NEW, CONFIRM_IT)]
    tokens = services_of(post.app).tokens
    for mail, page, kind in (
        (said[NEW], CONFIRM, CONFIRM_EMAIL),
        (said[ann.email], CANCEL, CANCEL_EMAIL),
    ):
        claims = tokens.was(mailed_path(mail, page).removeprefix(page), kind)
        assert claims is not None
        assert (claims.public_id, claims.epoch) == (ann.public_id, account.epoch)
        assert pending.is_current(account, claims, now=claims.issued_at)
        assert "/recover/" not in mail
    assert NEW not in said[ann.email]
    assert ann.email not in said[NEW]


def test_the_mails_say_until_when_the_links_work(post: Post, ann: Person) -> None:
    account = ask(post, ann)
    assert account.pending_email_at is not None
    until = account.pending_email_at + PENDING_FOR

    post.later()

    words = f"{until:%-d %B %Y} at {until:%H:%M} UTC"
    assert f"The link works until {words}" in texts(post)[NEW]
    assert f"before {words}" in texts(post)[ann.email]


def test_what_is_owed_meanwhile_holds_no_address(post: Post, ann: Person) -> None:
    ask(post, ann)

    assert not any("@" in str(one.payload) for one in effects(services_of(post.app)))


def call_off(post: Post, person: Person) -> None:
    with services_of(post.app).writing() as session:
        account = session.get_one(Account, person.id)
        by = Actor("owner", person.public_id)
        pending.cancel(session, account, by=by, now=post.clock(session))


@pytest.mark.parametrize(
    "end",
    [
        call_off,
        lambda post, person: post.leave(person),
        lambda post, person: setattr(post, "ahead", post.ahead + PENDING_FOR),
    ],
    ids=["called off", "deactivated", "old"],
)
def test_a_change_that_is_void_is_told_to_the_address_of_today_alone_without_a_link(
    post: Post, ann: Person, end: object
) -> None:
    ask(post, ann)
    assert callable(end)
    end(post, ann)

    post.later(kinds=(notices.ADDRESS_ASKED, notices.CONFIRM_ADDRESS))

    assert post.inbox.messages[0]["To"] == ann.email
    assert "Nothing has changed, and nothing will" in post.text()
    assert CANCEL not in post.text()
    assert post.new() == [(ann.email, ASKED)]
    assert effects(services_of(post.app), notices.CONFIRM_ADDRESS) == []


def test_of_two_that_were_asked_for_the_newest_alone_is_mailed(post: Post, ann: Person) -> None:
    ask(post, ann, "first@example.org")
    ask(post, ann, "second@example.org")

    post.later()

    said = texts(post)
    assert sorted(post.new()) == [(ann.email, ASKED), ("second@example.org", CONFIRM_IT)]
    assert CANCEL in said[ann.email]


def cancel_claims_of(post: Post, mail: str) -> Claims:
    token = mailed_path(mail, CANCEL).removeprefix(CANCEL)
    claims = services_of(post.app).tokens.was(token, CANCEL_EMAIL)
    assert claims is not None
    return claims


def test_while_the_mail_about_a_second_address_waits_the_link_of_the_first_calls_it_off(
    post: Post, ann: Person
) -> None:
    ask(post, ann, "first@example.org")
    post.later()
    link = cancel_claims_of(post, texts(post)[ann.email])
    post.new()
    ask(post, ann, "second@example.org")
    post.later(timedelta(seconds=5))
    assert post.new() == [("second@example.org", CONFIRM_IT)]

    with services_of(post.app).writing() as session:
        pending.cancel_by_link(session, link, clock=post.clock)

    assert get_account(services_of(post.app), ann.id).pending_email is None
    post.later(timedelta(minutes=10))
    assert "it was called off since, or has ended" in texts(post)[ann.email]
    assert post.new() == [(ann.email, ASKED)]


def test_an_older_mail_that_comes_late_has_a_link_against_what_is_pending_by_then(
    post: Post, ann: Person
) -> None:
    ask(post, ann, "first@example.org")
    asked = ask(post, ann, "second@example.org")
    older, newer = effects(services_of(post.app), notices.ADDRESS_ASKED)
    with services_of(post.app).writing() as session:
        # As the newer one has been sent, while the older was refused for a time.
        session.delete(session.get_one(Effect, newer.id))

    post.later()

    said = texts(post)[ann.email]
    assert older.payload != newer.payload
    assert "the address that was asked for last" in said
    assert "nothing will" not in said
    assert pending.is_current(asked, cancel_claims_of(post, said), now=older.created_at)


def test_when_it_took_effect_the_previous_address_is_told_what_to_do(
    post: Post, ann: Person
) -> None:
    change_address(services_of(post.app), ann.id, NEW, clock=post.clock)

    post.later()

    said = post.text()
    assert post.new() == [(ann.email, CHANGED)]
    assert "entered the password of the account" in said
    assert "contact the support of localhost:8000 now" in said
    assert "http" not in said
    assert effects(services_of(post.app)) == []


def test_an_owner_whose_address_was_changed_before_the_deletion_has_a_way_back_in_that_mail(
    post: Post, ann: Person
) -> None:
    change_address(services_of(post.app), ann.id, NEW, clock=post.clock)
    account = post.leave(ann)

    post.later(kinds=(notices.ADDRESS_CHANGED,))

    assert [str(one["To"]) for one in post.inbox.messages] == [ann.email]
    token = mailed_path(post.text(), "/recover/").removeprefix("/recover/")
    claims = services_of(post.app).tokens.was(token, MAILED)
    assert claims is not None
    assert (claims.public_id, claims.epoch) == (ann.public_id, account.epoch)


def test_what_the_staff_has_switched_off_has_no_link_in_that_mail(post: Post, ann: Person) -> None:
    change_address(services_of(post.app), ann.id, NEW, clock=post.clock)
    post.leave(ann, by="operator")

    post.later(kinds=(notices.ADDRESS_CHANGED,))

    assert "/recover/" not in post.text()
    assert "contact the support before then" in post.text()


def test_asked_for_again_and_again_a_mailbox_gets_its_link_at_its_pace(
    post: Post, ann: Person
) -> None:
    for _ in range(5):
        ask(post, ann)
        post.later(timedelta(seconds=5))

    assert sorted(post.new()) == [(ann.email, ASKED), (NEW, CONFIRM_IT)]
    post.later(timedelta(minutes=10))
    assert post.new() == [(NEW, CONFIRM_IT)]
    post.later(DAY)
    assert post.new() == []


def test_many_accounts_that_ask_for_a_strangers_mailbox_mail_it_at_its_pace(
    post: Post, ann: Person
) -> None:
    people = [ann, *(make_person(services_of(post.app), name) for name in ("b", "c", "d"))]
    for person in people:
        ask(post, person, "stranger@example.net")

    for _ in range(30):
        post.later(timedelta(seconds=10))

    to_stranger = [one for one in post.new() if one[0] == "stranger@example.net"]
    assert to_stranger == [("stranger@example.net", CONFIRM_IT)]


def test_a_link_in_a_mail_that_waited_ends_when_the_change_does(post: Post, ann: Person) -> None:
    account = ask(post, ann)
    post.inbox.answers["MAIL"] = "451 later"
    post.later()
    post.inbox.answers.clear()
    post.later(timedelta(hours=60))

    token = mailed_path(texts(post)[NEW], CONFIRM).removeprefix(CONFIRM)
    claims = services_of(post.app).tokens.was(token, CONFIRM_EMAIL)
    assert claims is not None
    assert account.pending_email_at is not None
    assert claims.expires_at == (account.pending_email_at + PENDING_FOR).replace(microsecond=0)


def test_the_previous_address_is_told_of_what_follows_from_when_it_took_effect(
    post: Post, ann: Person
) -> None:
    """The grace period of the previous address is counted from the confirmation."""
    services = services_of(post.app)
    asked = ask(post, ann)
    post.ahead += timedelta(hours=71)
    with services.writing() as session:
        now = post.clock(session)
        claims = confirm_claims(services, asked, now=now)
        pending.take_effect(session, claims, grace=GRACE, clock=post.clock)
    post.later()
    post.new()
    post.ahead += GRACE - timedelta(hours=1)

    post.leave(ann)
    post.later(SOON)

    assert sorted(to for to, _ in post.new()) == [ann.email, NEW]
    changed_at = get_account(services, ann.id).email_changed_at
    assert changed_at is not None
    assert asked.pending_email_at is not None
    assert changed_at - asked.pending_email_at >= timedelta(hours=71)
