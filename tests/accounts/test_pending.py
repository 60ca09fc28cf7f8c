"""A pending address: what opens it, what closes it, and what is left of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from accountsvc.accounts import giveback, pending, profiles
from accountsvc.db.models import PENDING_FOR, Account, FormerAddress
from accountsvc.db.rows import lock
from accountsvc.errors import InvalidCredentials, InvalidInput, TokenNotValid
from accountsvc.outbox import notices, recipients
from accountsvc.services import Services
from tests.accounts.calls import authenticate, change_password, problems
from tests.support.addresses import ask_address, cancel_claims, change_address, confirm_claims
from tests.support.factories import deactivate, make_account, make_person, owner, reactivate
from tests.support.moments import BOUNDARY, GRACE, NOW, SECOND, at
from tests.support.state import (
    belongings,
    effects,
    events,
    everything,
    get_account,
    possessions,
    rows_of,
)

NEW = "new@example.org"
LATER = NOW + timedelta(hours=1)


def ask(services: Services, account: Account, address: str = NEW, now: datetime = NOW) -> Account:
    return ask_address(services, account.id, address, clock=at(now))


def confirm(services: Services, account: Account, *, now: datetime = LATER) -> Account:
    """Open the link that *account*, as it was, was mailed with."""
    claims = confirm_claims(services, account, now=account.pending_email_at or NOW)
    with services.writing() as session:
        return pending.take_effect(session, claims, grace=GRACE, clock=at(now))


def cancel(services: Services, account: Account, *, now: datetime = LATER) -> Account:
    claims = cancel_claims(services, account, now=account.pending_email_at or NOW)
    with services.writing() as session:
        return pending.cancel_by_link(session, claims, clock=at(now))


def opens_nothing(services: Services, account: Account, *, now: datetime = LATER) -> None:
    """Neither of the two links of *account*, as it was, does anything."""
    before = everything(services)
    for link in (confirm, cancel):
        with pytest.raises(TokenNotValid):
            link(services, account, now=now)
    assert everything(services) == before


# Asked for


def test_who_asks_keeps_the_address_and_both_mailboxes_are_told(services: Services) -> None:
    account, bystander = make_account(services, now=NOW), make_account(services, "bob", now=NOW)
    theirs = possessions(services, bystander.id)

    asked = ask(services, account)

    assert (asked.email, asked.email_key) == (account.email, account.email_key)
    assert (asked.previous_email, asked.email_changed_at) == (None, None)
    assert asked.pending(NOW) == NEW
    assert authenticate(services, account.email).id == account.id
    with pytest.raises(InvalidCredentials):
        authenticate(services, NEW)
    told, link = effects(services, notices.ADDRESS_ASKED, notices.CONFIRM_ADDRESS)
    assert (told.kind, link.kind) == (notices.ADDRESS_ASKED, notices.CONFIRM_ADDRESS)
    assert told.payload == link.payload == {"asked_at": "2026-12-07T09:30:15.000000Z"}
    assert link.expires_at == NOW + PENDING_FOR
    assert [one.actor_kind for one in events(services, "account.email_asked")] == ["owner"]
    assert events(services, "account.updated") == []
    assert possessions(services, bystander.id) == theirs


@pytest.mark.parametrize(
    "typed",
    ["Ann@example.org", "anné@example.org", "ann@example.com", "ann@sub.example.org"],
)
def test_another_name_or_domain_waits_for_its_mailbox(services: Services, typed: str) -> None:
    """A server may tell two spellings of a name apart: they may be two people."""
    account = make_account(services, now=NOW)

    asked = ask(services, account, typed)

    assert (asked.email, asked.pending(NOW)) == ("ann@example.org", typed)


@pytest.mark.parametrize(
    ("stored", "typed"),
    [
        ("ann@example.org", "ann@EXAMPLE.ORG"),
        ("ann@bücher.example", "ann@BÜCHER.example"),
    ],
)
def test_another_spelling_of_the_domain_changes_nothing_and_mails_nobody(
    services: Services, stored: str, typed: str
) -> None:
    account = make_account(services, email=stored, now=NOW)

    changed = ask(services, account, typed)

    assert (changed.email, changed.pending_email) == (stored, None)
    assert effects(services) == []
    assert events(services, "account.updated") == []
    assert authenticate(services, typed).id == account.id


def test_asked_for_once_more_it_stays_as_it_is_and_only_its_mailbox_is_mailed_again(
    services: Services,
) -> None:
    account = make_account(services, now=NOW)
    asked = ask(services, account)

    for number in range(3):
        again = ask(services, account, "new@EXAMPLE.org", now=NOW + number * SECOND)

    assert (again.pending_email, again.pending_email_at) == (NEW, NOW)
    assert len(events(services, "account.email_asked")) == 1
    assert len(effects(services, notices.ADDRESS_ASKED)) == 1
    assert len(effects(services, notices.CONFIRM_ADDRESS)) == 1
    assert confirm(services, asked).email == NEW


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("new@bücher.example", "new@xn--bcher-kva.example"),
        ("new@xn--bcher-kva.example", "new@BÜCHER.example"),
        ("new@sub.büro.example", "new@sub.BÜRO\u3002example"),
        ("new@xn--n3h.example", "new@XN--N3H.EXAMPLE"),
    ],
)
def test_asked_for_in_another_spelling_it_is_the_same_and_its_first_link_lives(
    services: Services, first: str, again: str
) -> None:
    account = make_account(services, now=NOW)
    asked = ask(services, account, first)

    repeated = ask(services, account, again, now=NOW + SECOND)

    assert (repeated.pending_email, repeated.pending_email_at) == (first, NOW)
    assert len(events(services, "account.email_asked")) == 1
    assert confirm(services, asked).email == first


@pytest.mark.parametrize(
    "typed", [f"{NEW}.", f"{NEW}\u3002", "new@example\u200b.org", f"{NEW}\u00ad"]
)
def test_a_spelling_that_is_refused_leaves_the_pending_one_as_it_is(
    services: Services, typed: str
) -> None:
    account = make_account(services, now=NOW)
    asked = ask(services, account)
    before = everything(services)

    assert problems(lambda: ask(services, account, typed)).keys() == {"email"}

    assert everything(services) == before
    assert confirm(services, asked).email == NEW


@pytest.mark.parametrize("pause", [timedelta(0), SECOND])
def test_another_one_takes_the_place_of_the_first_whose_link_to_its_mailbox_is_dead(
    services: Services, pause: timedelta
) -> None:
    account = make_account(services, now=NOW)
    first = ask(services, account, "first@example.org")

    second = ask(services, account, "second@example.org", now=NOW + pause)

    assert second.pending(NOW) == "second@example.org"
    before = everything(services)
    with pytest.raises(TokenNotValid):
        confirm(services, first)
    assert everything(services) == before
    assert confirm(services, second).email == "second@example.org"


def test_a_pending_address_is_reserved_for_nobody(services: Services) -> None:
    account = make_account(services, now=NOW)
    asked = ask(services, account)

    other = make_account(services, "other", email=NEW, now=NOW)

    before = everything(services)
    assert problems(lambda: confirm(services, asked)).keys() == {"email"}
    assert everything(services) == before
    assert authenticate(services, NEW).id == other.id
    assert get_account(services, account.id).pending(LATER) == NEW


def test_two_may_wait_for_one_address_and_the_first_to_confirm_has_it(services: Services) -> None:
    people = [make_account(services, name, now=NOW) for name in ("ann", "bob")]
    asked = [ask(services, one) for one in people]

    confirm(services, asked[1])

    with pytest.raises(InvalidInput):
        confirm(services, asked[0])
    assert [get_account(services, one.id).email for one in people] == ["ann@example.org", NEW]


def test_of_two_who_confirm_one_address_at_once_one_has_it(postgresql: Services) -> None:
    services = postgresql
    people = [make_account(services, name, now=NOW) for name in ("ann", "bob")]
    claims = [confirm_claims(services, ask(services, one), now=NOW) for one in people]
    together = threading.Barrier(2)

    def take(number: int) -> str:
        try:
            with services.writing() as session:

                def meet(_session: object) -> datetime:
                    together.wait(30)
                    return LATER

                pending.take_effect(session, claims[number], grace=GRACE, clock=meet)
        except InvalidInput:
            return "taken"
        return "has it"

    with ThreadPoolExecutor(2) as pool:
        found = sorted(pool.map(take, range(2)))

    assert found == ["has it", "taken"]
    emails = [get_account(services, one.id).email for one in people]
    assert emails.count(NEW) == 1


# Confirmed


def test_confirmed_it_is_the_accounts_and_sessions_stay(services: Services) -> None:
    person, bystander = make_person(services, "ann"), make_person(services, "bob")
    theirs = belongings(services, bystander)
    asked = ask_address(services, person.id, NEW)
    assert asked.pending_email_at is not None

    changed = confirm(services, asked, now=asked.pending_email_at + SECOND)

    assert (changed.email, changed.previous_email) == (NEW, person.email)
    assert changed.email_changed_at == asked.pending_email_at + SECOND
    assert (changed.pending_email, changed.pending_email_at, changed.pending_epoch) == (None,) * 3
    assert changed.epoch == asked.epoch
    assert authenticate(services, NEW).id == person.id
    with pytest.raises(InvalidCredentials):
        authenticate(services, person.email)
    (mail,) = effects(services, notices.ADDRESS_CHANGED)
    assert mail.payload == {"address": person.email, "lane": 0}
    (event,) = events(services, "account.email_changed")
    assert (event.actor_kind, event.actor, event.details) == ("owner", person.public_id, {})
    assert belongings(services, bystander) == theirs


def test_of_two_changes_within_a_grace_period_the_oldest_address_is_remembered(
    services: Services,
) -> None:
    account = make_account(services, now=NOW)
    change_address(services, account.id, "first@example.org", clock=at(NOW))

    second = change_address(services, account.id, "second@example.org", clock=at(LATER))

    assert (second.email, second.previous_email) == ("second@example.org", "ann@example.org")
    owed = effects(services, notices.ADDRESS_CHANGED)
    assert [one.payload["address"] for one in owed] == ["ann@example.org", "first@example.org"]


def test_each_of_the_addresses_that_are_left_is_remembered(services: Services) -> None:
    account, bystander = make_account(services, now=NOW), make_account(services, "bob", now=NOW)
    theirs = possessions(services, bystander.id)

    for number, address in enumerate(["first@x.example", "second@x.example", "ann@example.org"]):
        change_address(services, account.id, address, clock=at(NOW + number * SECOND))

    formers = [
        (one.email, one.held_since - NOW, one.left_at - NOW)
        for one in rows_of(services, FormerAddress)
    ]
    assert formers == [
        ("ann@example.org", 0 * SECOND, 0 * SECOND),
        ("first@x.example", 0 * SECOND, SECOND),
        ("second@x.example", SECOND, 2 * SECOND),
    ]
    assert possessions(services, bystander.id) == theirs


def move_often(services: Services, account: Account, count: int) -> None:
    """Change the address *count* times, a second after one another, from ``NOW`` on."""
    for number in range(count):
        moment = at(NOW + number * SECOND)
        change_address(services, account.id, f"{number}@x.example", clock=moment)


@pytest.mark.parametrize("off", BOUNDARY)
def test_an_address_changes_ten_times_in_a_grace_period_and_no_more(
    services: Services, off: timedelta
) -> None:
    """What is left is told for one: of any number somebody could have the service mail them all."""
    account, other = make_account(services, now=NOW), make_account(services, "bob", now=NOW)
    move_often(services, account, 10)
    before = everything(services)
    theirs = possessions(services, other.id)

    def again() -> Account:
        return change_address(services, account.id, NEW, clock=at(NOW + GRACE + off))

    if off < timedelta():
        assert problems(again) == {
            "email": [
                "The address of this account was changed 10 times lately. Another change is "
                "possible from 21 December 2026 at 09:31 UTC on."
            ]
        }
        assert everything(services) == before
    else:
        assert again().email == NEW
    assert possessions(services, other.id) == theirs
    # Somebody else's changes count for nobody.
    assert change_address(services, other.id, "bob@new.example", clock=at(LATER)).email_key


def test_one_that_was_asked_for_before_there_were_ten_does_not_take_effect_after_them(
    services: Services,
) -> None:
    account = make_account(services, now=NOW)
    move_often(services, account, 9)
    asked = ask(services, account, now=NOW + 9 * SECOND)
    with services.writing() as session:
        # As a process of the release before changes it, which keeps what is pending.
        row = lock(session, account.id)
        recipients.leave(session, row, now=NOW + 10 * SECOND)
        row.email_changed_at = NOW + 10 * SECOND
    before = everything(services)

    found = problems(lambda: confirm(services, asked))

    assert found.keys() == {"email"}
    assert "changed 10 times lately" in found["email"][0]
    assert everything(services) == before


def test_a_link_works_once(services: Services) -> None:
    asked = ask(services, make_account(services, now=NOW))
    confirm(services, asked)

    opens_nothing(services, asked)


def test_of_a_confirmation_and_a_cancellation_at_once_one_is_done(postgresql: Services) -> None:
    services = postgresql
    asked = ask(services, make_account(services, now=NOW))

    def done(link: Callable[..., Account]) -> bool:
        try:
            link(services, asked)
        except TokenNotValid:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(done, (confirm, cancel)))

    assert sorted(found) == [False, True]
    assert (get_account(services, asked.id).email == NEW) is found[0]


@pytest.mark.parametrize("since", BOUNDARY)
def test_it_is_open_for_72_hours_and_not_longer(services: Services, since: timedelta) -> None:
    asked = ask(services, make_account(services, now=NOW))
    moment = NOW + PENDING_FOR + since

    if since < timedelta(0):
        assert confirm(services, asked, now=moment).email == NEW
    else:
        opens_nothing(services, asked, now=moment)


# Called off


def test_the_address_of_today_alone_calls_it_off(services: Services) -> None:
    account = make_account(services, now=NOW)
    asked = ask(services, account)

    kept = ask(services, account, account.email, now=LATER)

    assert (kept.email, kept.pending_email) == (account.email, None)
    assert len(events(services, "account.email_cancelled")) == 1
    opens_nothing(services, asked)
    assert not profiles.changes_nothing(asked, {"email": account.email})
    assert profiles.changes_nothing(kept, {"email": account.email})


def test_a_form_that_sends_every_field_as_it_is_calls_nothing_off(services: Services) -> None:
    account = make_account(services, now=NOW)
    asked = ask(services, account)
    fields = {"username": "ann", "email": account.email, "first_name": "Ann"}

    with services.writing() as session:
        profiles.update_profile(
            session,
            account.id,
            epoch=0,
            changes=fields,
            by=owner(account),
            grace=GRACE,
            clock=at(LATER),
        )

    assert get_account(services, account.id).pending(LATER) == NEW
    assert confirm(services, asked).email == NEW


def test_the_link_in_the_mail_to_the_address_of_today_calls_it_off(services: Services) -> None:
    account, bystander = make_account(services, now=NOW), make_account(services, "bob", now=NOW)
    asked = ask(services, account)
    theirs = ask(services, bystander, "bob2@example.org")

    cancel(services, asked)

    after = get_account(services, account.id)
    assert (after.email, after.pending_email, after.epoch) == (account.email, None, 0)
    assert len(events(services, "account.email_cancelled")) == 1
    opens_nothing(services, asked)
    assert confirm(services, theirs).email == "bob2@example.org"


@pytest.mark.parametrize("is_called_off", [False, True])
def test_a_link_about_an_earlier_change_calls_off_the_one_that_is_pending(
    services: Services, is_called_off: bool
) -> None:
    account, bystander = make_account(services, now=NOW), make_account(services, "bob", now=NOW)
    first = ask(services, account, "first@example.org")
    theirs = ask(services, bystander, "bob2@example.org")
    if is_called_off:
        cancel(services, first, now=NOW + SECOND)
    second = ask(services, account, "second@example.org", now=NOW + timedelta(minutes=1))

    kept = cancel(services, first)

    assert (kept.email, kept.pending_email) == (account.email, None)
    opens_nothing(services, second)
    opens_nothing(services, first)
    assert get_account(services, bystander.id).pending_email == theirs.pending_email
    third = ask(services, account, "third@example.org", now=LATER)
    assert cancel(services, second, now=LATER).pending_email is None
    opens_nothing(services, third, now=LATER)


@pytest.mark.parametrize("end", ["sessions ended", "moved", "moved and back"])
def test_a_link_calls_nothing_off_for_another_mailbox_or_behind_the_end_of_sessions(
    services: Services, end: str
) -> None:
    account = make_account(services, now=NOW)
    first = ask(services, account, "first@example.org")
    if end == "sessions ended":
        with services.writing() as session:
            giveback.end_sessions(session, [account.id], jump=7, clock=at(NOW))
    else:
        confirm(services, first, now=NOW + SECOND)
    if end == "moved and back":
        change_address(services, account.id, account.email, clock=at(NOW + 2 * SECOND))
    second = ask(services, account, "second@example.org", now=NOW + timedelta(minutes=1))
    before = everything(services)

    with pytest.raises(TokenNotValid):
        cancel(services, first)

    assert everything(services) == before
    assert cancel(services, second).pending_email is None


def end_sessions(services: Services, account: Account) -> None:
    with services.writing() as session:
        giveback.end_sessions(session, [account.id], jump=7, clock=at(NOW))


def leave_and_return(services: Services, account: Account) -> None:
    deactivate(services, account.id, now=NOW)
    reactivate(services, account.id, now=NOW)


@pytest.mark.parametrize(
    "end",
    [
        lambda services, account: deactivate(services, account.id, now=NOW),
        leave_and_return,
        change_password,
        end_sessions,
    ],
    ids=["deactivation", "return", "another password", "a replay of the ledger"],
)
def test_whatever_ends_sessions_calls_it_off(
    services: Services, end: Callable[[Services, Account], object]
) -> None:
    account = make_account(services, now=NOW)
    asked = ask(services, account)

    end(services, account)

    after = get_account(services, account.id)
    assert (after.pending_email, after.pending_email_at, after.pending_epoch) == (None,) * 3
    opens_nothing(services, asked)


def test_a_link_about_one_account_opens_no_other(services: Services) -> None:
    ann, bob = (make_account(services, name, now=NOW) for name in ("ann", "bob"))
    asked = ask(services, ann)
    ask(services, bob, "bob2@example.org")
    theirs = possessions(services, bob.id)

    confirm(services, asked)

    assert possessions(services, bob.id) == theirs


# What is left of it


def test_what_is_not_open_is_cleared_and_what_is_open_stays(services: Services) -> None:
    names = ("open", "old", "ended", "none")
    people = {name: make_account(services, name, now=NOW) for name in names}
    ask(services, people["open"], "a@example.org", now=NOW)
    ask(services, people["old"], "b@example.org", now=NOW - timedelta(hours=1))
    ask(services, people["ended"], "c@example.org", now=NOW)
    with services.writing() as session:
        # As a process of the release before ends sessions.
        lock(session, people["ended"].id).epoch += 1
    untouched = {name: possessions(services, people[name].id) for name in ("open", "none")}
    clock = at(NOW + PENDING_FOR - timedelta(minutes=30))

    cleared = [pending.prune(services.database, clock) for _ in range(2)]

    assert cleared == [2, 0]
    for name in ("old", "ended"):
        assert get_account(services, people[name].id).pending_email is None
    assert {name: possessions(services, people[name].id) for name in ("open", "none")} == untouched


def test_a_delivery_of_everything_clears_it(services: Services) -> None:
    account = make_account(services)
    ask(services, account, now=NOW - timedelta(days=9_000))

    services.deliver()

    assert get_account(services, account.id).pending_email is None


def test_who_is_locked_is_cleared_the_next_time(postgresql: Services) -> None:
    account = make_account(postgresql, now=NOW)
    ask(postgresql, account)
    clock = at(NOW + PENDING_FOR)
    with postgresql.writing() as session:
        lock(session, account.id)

        meanwhile = pending.prune(postgresql.database, clock)

    assert (meanwhile, pending.prune(postgresql.database, clock)) == (0, 1)
