"""Change a profile, and what is shown of an account."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from accountsvc import documents
from accountsvc.accounts import credentials, profiles
from accountsvc.adapters.mail import mailbox
from accountsvc.db.addresses import address_key
from accountsvc.db.audit import Actor
from accountsvc.db.models import Account
from accountsvc.db.text import unique_key
from accountsvc.errors import (
    InvalidCredentials,
    InvalidInput,
    TokenNotValid,
)
from accountsvc.outbox import notices
from accountsvc.services import Services
from accountsvc.tokens import Claims
from tests.accounts.calls import (
    NEW_PASSWORD,
    authenticate,
    change_password,
    problems,
)
from tests.support.addresses import change_address
from tests.support.factories import (
    PASSWORD,
    deactivate,
    insert_account,
    make_account,
    owner,
    run_sql,
    save_password,
    set_avatar,
)
from tests.support.moments import GRACE, NOW, SECOND, at
from tests.support.state import (
    effects,
    events,
    everything,
    files,
    get_account,
    possessions,
)
from tests.support.sweeps import sweep


def update_profile(services: Services, account: Account, **changes: str) -> Account:
    with services.writing() as session:
        return profiles.update_profile(
            session,
            account.id,
            epoch=account.epoch,
            changes=changes,
            by=owner(account),
            grace=GRACE,
            clock=at(NOW),
        )


# Change a profile


def test_the_given_fields_change_and_nothing_else(services: Services) -> None:
    account, bystander = (
        make_account(services, "ann", last_name="Lee", now=NOW),
        make_account(services, "bob", now=NOW),
    )
    before, theirs = get_account(services, account.id), possessions(services, bystander.id)

    update_profile(services, account, first_name=" Änne ", id="9", is_staff="true", epoch="7")

    after = get_account(services, account.id)
    changed = {
        c.name
        for c in Account.__table__.columns
        if getattr(after, c.name) != getattr(before, c.name)
    }
    assert changed == {"first_name"}
    assert after.first_name == "Änne"
    assert len(events(services, "account.updated")) == 1
    assert possessions(services, bystander.id) == theirs


def test_a_change_to_what_is_there_already_is_no_change(services: Services) -> None:
    account = make_account(services, now=NOW)
    before = everything(services, attempts=True)

    update_profile(services, account, username="ann", email="ann@example.org")

    assert everything(services, attempts=True) == before


def test_another_way_to_write_the_own_name_is_not_taken(services: Services) -> None:
    account = make_account(services, now=NOW)

    changed = update_profile(services, account, username="ANN", email="ann@EXAMPLE.org")

    assert (changed.username, changed.email) == ("ANN", "ann@example.org")
    assert (changed.email_changed_at, changed.pending_email) == (None, None)
    assert not effects(services)
    assert authenticate(services, "ann@example.org").id == account.id


@pytest.mark.parametrize(
    ("username", "email"),
    [
        ("st1\u200b", "ann@exam\u00adple.org"),
        ("ann\ufe0f", "x" * 65 + "@example.org"),
        ("an\u200dn", "a@xn--0.org"),
        ("\U000e0001ann", "\u115fann@example.org"),
    ],
)
def test_who_has_a_name_and_an_address_that_are_refused_by_now_keeps_both(
    services: Services, username: str, email: str
) -> None:
    account = make_account(services, now=NOW)
    values = {"username": username, "email": email}
    keys = {"username_key": unique_key(username), "email_key": address_key(email)}
    run_sql(
        services,
        "UPDATE accounts SET username = :username, username_key = :username_key,"
        " email = :email, email_key = :email_key",
        **values,
        **keys,
    )

    changed = update_profile(services, account, **values, first_name="Ann")

    assert (changed.username, changed.email, changed.first_name) == (username, email, "Ann")
    assert authenticate(services, email).id == account.id
    assert mailbox(email).username == email.partition("@")[0]
    assert set(problems(lambda: make_account(services, username, email="b" + email))) == set(values)
    other = {"username": f"x{username}", "email": f"x{email}"}
    assert set(problems(lambda: update_profile(services, account, **other))) == set(values)


@pytest.mark.parametrize(
    "typed",
    [
        "ann@BÜCHER.example",
        "ann@xn--bcher-kva.example",
        "ann@bü\u200bcher.example",
        "ann@bücher.exam\u00adple",
        "ann@\ufeffbücher.example",
        "ann@bücher.sub\u3002example",
    ],
)
def test_no_session_gives_the_address_another_spelling(services: Services, typed: str) -> None:
    email = "ann@bücher.sub.example" if "sub" in typed else "ann@bücher.example"
    account = make_account(services, email=email, now=NOW)
    before = everything(services, attempts=True)

    changed = update_profile(services, account, email=typed)

    assert (changed.email, changed.email_key) == (email, address_key(email))
    assert everything(services, attempts=True) == before


def test_a_new_address_is_audited_and_the_old_one_is_told(services: Services) -> None:
    account = make_account(services, now=NOW)

    changed = change_address(services, account.id, "new@example.org", clock=at(NOW))

    assert (changed.previous_email, changed.email_changed_at) == ("ann@example.org", NOW)
    (mail,) = effects(services, notices.ADDRESS_CHANGED)
    assert mail.payload == {"address": "ann@example.org", "lane": 0}
    assert mail.expires_at == NOW + timedelta(hours=72)
    (event,) = events(services, "account.email_changed")
    assert "example.org" not in repr(event.details)
    with pytest.raises(InvalidCredentials):
        authenticate(services, "ann@example.org")
    assert authenticate(services, "new@example.org").id == account.id


@pytest.mark.parametrize(
    "changes",
    [
        {"username": ""},
        {"email": "x"},
        {"first_name": "a\0"},
        {"last_name": "\udcff"},
        {"number_phone": "1" * 21},
        {"username": "bob", "first_name": "Good"},
        {"email": "BOB@example.org"},
    ],
)
def test_a_bad_or_taken_field_changes_nothing(
    services: Services, changes: Mapping[str, str]
) -> None:
    account = make_account(services, "ann", now=NOW)
    make_account(services, "bob", now=NOW)
    before = everything(services, attempts=True)

    problems(lambda: update_profile(services, account, **changes))

    assert everything(services, attempts=True) == before


def test_of_two_changes_to_the_same_name_at_once_one_wins(postgresql: Services) -> None:
    services = postgresql
    people = [make_account(services, name, now=NOW) for name in ("ann", "bob")]
    together = threading.Barrier(2)

    def change(account: Account) -> object:
        try:
            with services.writing() as session:
                looked = session.scalar

                def look(*args: Any, **options: Any) -> Any:
                    found = looked(*args, **options)
                    if "username_key" in str(args[0]).split("WHERE")[-1]:
                        together.wait(30)
                    return found

                session.scalar = look  # type: ignore[method-assign]
                return profiles.update_profile(
                    session,
                    account.id,
                    epoch=0,
                    changes={"username": "same"},
                    by=owner(account),
                    grace=GRACE,
                    clock=at(NOW),
                )
        except InvalidInput as exc:
            return exc.fields

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(change, people))

    assert [one for one in found if not isinstance(one, Account)] == [
        {"username": ["This username is already taken."]}
    ]
    assert sorted(get_account(services, one.id).username for one in people) != ["same", "same"]


def test_no_doorway_writes_for_an_account_that_is_gone_deactivated_or_signed_out(
    services: Services,
) -> None:
    gone, away, out = (make_account(services, name, now=NOW) for name in ("gone", "away", "out"))
    deactivate(services, gone.id, grace=timedelta(0), now=NOW)
    sweep(services, NOW)
    deactivate(services, away.id, now=NOW)
    change_password(services, out)
    before = everything(services, attempts=True)

    for account in (gone, away, out):
        for write_it in (
            lambda a=account: update_profile(services, a, first_name="X"),
            lambda a=account: save_password(services, a, now=NOW),
            lambda a=account: set_avatar(services, a, now=NOW),
            lambda a=account: change_password(
                services, a, password=PASSWORD if a is not out else NEW_PASSWORD
            ),
        ):
            with pytest.raises(TokenNotValid):
                write_it()

    assert everything(services, attempts=True) == before
    assert files(services) == set()


# Reading


@pytest.mark.parametrize("state", [None, "active", "deactivated", "due"])
def test_accounts_are_listed_by_state_page_by_page(services: Services, state: str | None) -> None:
    for name in ("ann", "bob"):
        insert_account(services, f"active-{name}0000")
        insert_account(services, f"deactivated-{name}0000", purge_at=NOW + SECOND)
        insert_account(services, f"due-{name}0000", purge_at=NOW)
    found: list[str] = []
    after = 0

    while True:
        with services.reading() as session:
            page = profiles.list_accounts(session, now=NOW, state=state, after=after, limit=1)
            if not page:
                break
            after = page[0].id
            found.append(page[0].username)

    wanted = ["active", "deactivated", "due"] if state is None else [state]
    assert found == [f"{one}-{name}0000" for name in ("ann", "bob") for one in wanted]


def test_the_wire_document_shows_no_secret(services: Services) -> None:
    account = make_account(services, first_name="Ann", now=NOW)

    document = documents.user_document(account, now=NOW)

    assert set(document) == {
        "id",
        "username",
        "email",
        "pending_email",
        "first_name",
        "last_name",
        "number_phone",
        "avatar",
        "is_staff",
        "date_joined",
    }
    assert (document["avatar"], document["date_joined"]) == (None, "2026-12-07T09:30:15Z")
    assert account.password_hash not in repr(document)


def test_only_the_right_epoch_and_state_open_an_account(services: Services) -> None:
    account = make_account(services, now=NOW)

    def claims(now_of: Account) -> Claims:
        token = services.tokens.access(now_of, now=NOW, fresh=False)
        return services.tokens.read(token, "access", now=NOW)

    old = claims(account)
    with services.reading() as session:
        assert credentials.by_claims(session, old).id == account.id
        with pytest.raises(TokenNotValid):
            credentials.deactivated_by_claims(session, old)
    new = claims(deactivate(services, account.id, now=NOW))
    with services.reading() as session:
        assert credentials.deactivated_by_claims(session, new).id == account.id
        for look in (credentials.by_claims, credentials.deactivated_by_claims):
            with pytest.raises(TokenNotValid):
                look(session, old)
        with pytest.raises(TokenNotValid):
            credentials.by_claims(session, new)


def test_a_token_from_before_a_restore_with_other_epochs_opens_nothing(services: Services) -> None:
    account = make_account(services, now=NOW)
    token = services.tokens.access(account, now=NOW, fresh=False)
    claims = services.tokens.read(token, "access", now=NOW)
    with services.writing() as session:
        session.execute(update(Account).values(epoch=Account.epoch + 1))

    with services.reading() as session, pytest.raises(TokenNotValid):
        credentials.by_claims(session, claims)


def test_an_actor_is_recorded_as_who_it_is(services: Services) -> None:
    account = make_account(services, "ann", now=NOW)
    boss = make_account(services, "boss", staff=True, now=NOW)

    with services.writing() as session:
        profiles.update_profile(
            session,
            account.id,
            epoch=0,
            changes={"first_name": "Ann"},
            by=Actor("staff", boss.public_id),
            grace=GRACE,
            clock=at(NOW),
        )

    (event,) = events(services, "account.updated")
    assert (event.actor_kind, event.actor) == ("staff", boss.public_id)
