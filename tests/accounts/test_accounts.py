"""Sign up, authenticate, change a profile, a password, an avatar; reset a password."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from accountsvc import documents
from accountsvc.accounts import avatars, credentials, fields, profiles
from accountsvc.adapters.avatarstore import FileStore
from accountsvc.db.audit import Actor
from accountsvc.db.models import Account
from accountsvc.db.rows import find_by_email, locate
from accountsvc.errors import (
    AccountDeactivated,
    InvalidCredentials,
    InvalidInput,
    NotDeactivated,
    StoreUnavailable,
    TokenNotValid,
    WrongPassword,
)
from accountsvc.outbox import notices, queue
from accountsvc.outbox.payloads import FileDeletion
from accountsvc.services import Services
from accountsvc.tokens import PASSWORD_RESET, Claims
from tests.support.factories import (
    PASSWORD,
    deactivate,
    insert_account,
    make_account,
    make_promise,
    owner,
    reactivate,
    save_password,
    set_avatar,
)
from tests.support.moments import BOUNDARY, GRACE, MICROSECOND, NOW, SECOND, at
from tests.support.processes import Crash
from tests.support.state import (
    effects,
    events,
    everything,
    files,
    get_account,
    possessions,
    read_account,
)
from tests.support.sweeps import sweep

NEW_PASSWORD = "another horse battery staple"
# Texts that no field may hold.
UNSOUND = ["a\0b", "a\udcffb", "a\nb", "a\x7fb", "\x1b[31m"]


class CountingHasher(credentials.PasswordHasher):
    """Counts what costs time."""

    def __init__(self) -> None:
        super().__init__("cheap")
        self.calls: list[str] = []

    def hash(self, password: str) -> str:
        self.calls.append("hash")
        return super().hash(password)

    def verify(self, password_hash: str, password: str) -> bool:
        self.calls.append("verify")
        return super().verify(password_hash, password)


class WaitingHasher(credentials.PasswordHasher):
    """Lets something happen while a password is hashed or verified: outside any transaction."""

    def __init__(self, meanwhile: Callable[[], object], during: str) -> None:
        super().__init__("cheap")
        self.meanwhile = meanwhile
        self.during = during

    def _let(self, what: str) -> None:
        if self.during == what:
            self.during = ""
            self.meanwhile()

    def hash(self, password: str) -> str:
        self._let("hash")
        return super().hash(password)

    def verify(self, password_hash: str, password: str) -> bool:
        self._let("verify")
        return super().verify(password_hash, password)


def authenticate(
    services: Services,
    email: str = "ann@example.org",
    password: str = PASSWORD,
    hasher: credentials.PasswordHasher | None = None,
) -> Account:
    return credentials.authenticate(
        services.database, hasher or services.hasher, email=email, password=password
    )


def change_password(services: Services, account: Account, **options: Any) -> Account:
    given: dict[str, Any] = {
        "password": PASSWORD,
        "new_password": NEW_PASSWORD,
        "promise": make_promise(grace=GRACE),
        "clock": at(NOW),
        **options,
    }
    hasher = given.pop("hasher", services.hasher)
    token = services.tokens.access(account, now=NOW, fresh=True)
    claims = services.tokens.read(token, "access", now=NOW)
    claims = dataclasses.replace(claims, epoch=given.pop("epoch", account.epoch))
    return credentials.change_password(services.database, hasher, claims, **given)


def update_profile(services: Services, account: Account, **changes: str) -> Account:
    with services.writing() as session:
        return profiles.update_profile(
            session,
            account.id,
            epoch=account.epoch,
            changes=changes,
            by=owner(account),
            promise=make_promise(grace=GRACE),
            clock=at(NOW),
        )


def reset_claims(services: Services, account: Account) -> Claims:
    token = services.tokens.password_reset(account, now=NOW)
    return services.tokens.read(token, PASSWORD_RESET, now=NOW)


def reset_password(
    services: Services, claims: Claims, password: str = NEW_PASSWORD, **o: Any
) -> None:
    given = {"promise": make_promise(grace=GRACE), "clock": at(NOW), **o}
    hasher = given.pop("hasher", services.hasher)
    credentials.reset_password(services.database, hasher, claims, password, **given)


def problems(call: Callable[[], object]) -> dict[str, list[str]]:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert all(said and said[0].endswith(".") for said in caught.value.fields.values())
    return caught.value.fields


# Sign up


def test_a_sign_up_makes_an_account_its_key_and_one_event(services: Services) -> None:
    made = make_account(
        services,
        "ann",
        username=" Ann ",
        email="Ann@Example.org ",
        first_name="Änne",
        number_phone="+49 (30) 1-2",
        now=NOW,
    )

    account = get_account(services, made.id)
    assert (account.username, account.email) == ("Ann", "Ann@Example.org")
    assert (account.first_name, account.last_name) == ("Änne", "")
    assert (account.number_phone, account.is_staff, account.epoch) == ("+49 (30) 1-2", False, 0)
    assert account.joined_at == NOW
    assert account.password_hash.startswith("$argon2id$")
    assert PASSWORD not in account.password_hash
    assert save_password(services, account, now=NOW) > 0
    (event,) = events(services, "account.created")
    assert (event.subject, event.actor, event.actor_kind) == (
        made.public_id,
        made.public_id,
        "owner",
    )
    assert event.details == {}


def test_all_bad_fields_are_named_at_once(services: Services) -> None:
    make_account(services, "ann", now=NOW)
    before = everything(services, attempts=True)

    found = problems(
        lambda: make_account(
            services,
            username="ANN",
            email="ann",
            password="short",
            first_name="x" * 151,
            last_name="a\0",
            number_phone="call me",
            now=NOW,
        )
    )

    assert set(found) == {
        "username",
        "email",
        "password",
        "first_name",
        "last_name",
        "number_phone",
    }
    assert everything(services, attempts=True) == before


def test_nothing_given_names_what_is_needed(services: Services) -> None:
    found = problems(
        lambda: profiles.sign_up(services.database, services.hasher, services.keyring, {})
    )

    assert set(found) == {"username", "email", "password"}


@pytest.mark.parametrize("text", UNSOUND)
@pytest.mark.parametrize("field", ["username", "email", "first_name", "password"])
def test_a_text_that_no_database_can_hold_is_a_bad_field(
    services: Services, field: str, text: str
) -> None:
    value = {"email": f"{text}@example.org", "password": f"{PASSWORD}{text}"}.get(field, text)
    if field == "password" and "\0" not in text and "\udcff" not in text:
        # What is only hashed may hold whatever can be typed.
        assert make_account(services, password=value, now=NOW).id
        return

    assert set(problems(lambda: make_account(services, **{field: value}, now=NOW))) == {field}


@pytest.mark.parametrize(
    "email",
    [
        "",
        " ",
        "ann",
        "@example.org",
        "ann@",
        "ann@@example.org",
        "ann@example.org, bob@example.org",
        "ann <ann@example.org>",
        "ann@exa mple.org",
        "a\tb@example.org",
        '"a b"@example.org',
        "ann@example.org\r\nBcc: bob@example.org",
        "x" * 250 + "@example.org",
    ],
)
def test_what_is_no_address_is_refused(services: Services, email: str) -> None:
    assert set(problems(lambda: make_account(services, email=email, now=NOW))) == {"email"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ann@example.org", "ANN@EXAMPLE.ORG"),
        ("Straße@example.org", "strasse@example.org"),
        ("ｆｕｌｌ@example.org", "full@example.org"),
        ("a\u0308@example.org", "\u00e4@example.org"),
    ],
)
def test_the_same_address_typed_differently_is_taken(
    services: Services, first: str, second: str
) -> None:
    with services.writing() as session:
        session.add(
            Account(
                username="x",
                username_key="x",
                email=first,
                email_key=profiles.unique_key(first),
                password_hash="x",
                joined_at=NOW,
            )
        )

    with services.reading() as session:
        assert find_by_email(session, second) is not None
        assert locate(session, second) is not None


def test_a_username_typed_differently_is_taken(services: Services) -> None:
    make_account(services, "ann", username="Straße", now=NOW)

    found = problems(lambda: make_account(services, "bob", username="STRASSE", now=NOW))

    assert found == {"username": ["This username is already taken."]}


def test_names_of_a_deactivated_account_stay_taken_and_those_of_a_purged_one_do_not(
    services: Services,
) -> None:
    account = make_account(services, "ann", now=NOW)
    deactivate(services, account.id, grace=timedelta(0), now=NOW)

    assert set(problems(lambda: make_account(services, "ann", now=NOW))) == {"username", "email"}

    sweep(services, NOW)
    again = make_account(services, "ann", now=NOW)
    assert again.id > account.id
    assert again.public_id != account.public_id


@pytest.mark.parametrize("same", ["email", "username"])
def test_of_two_sign_ups_at_once_one_wins_and_the_other_is_told(
    services: Services, same: str
) -> None:
    together = threading.Barrier(2)
    # Both have looked, and found the name free, before either writes.
    slow = WaitingHasher(lambda: None, "")

    def hash_together(password: str) -> str:
        together.wait(30)
        return credentials.PasswordHasher.hash(slow, password)

    slow.hash = hash_together  # type: ignore[method-assign]

    def try_it(name: str) -> object:
        fields = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
        fields[same] = {"email": "same@example.org", "username": "same"}[same]
        try:
            return profiles.sign_up(services.database, slow, services.keyring, fields)
        except InvalidInput as exc:
            return exc.fields

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(try_it, ["ann", "bob"]))

    (account,) = [one for one in found if isinstance(one, Account)]
    (told,) = [one for one in found if not isinstance(one, Account)]
    assert list(told) == [same]  # type: ignore[call-overload]
    assert len(events(services, "account.created")) == 1
    assert save_password(services, account, now=NOW)


@pytest.mark.parametrize(
    "password",
    [
        "",
        "1234567",
        "x" * 129,
        "password",
        "12345678",
        "aaaaaaaaaaaa",
        "qwertyuiop",
        "annabelle1",
        "annabelle@example.org",
    ],
)
def test_a_password_that_is_easy_to_guess_is_refused(services: Services, password: str) -> None:
    def call() -> Account:
        return make_account(
            services, "annabelle", username="annabelle1", password=password, now=NOW
        )

    assert set(problems(call)) == {"password"}


@pytest.mark.parametrize(
    "password", ["Zq8#vL2p", "пароль лошадь батарея", "🐎🔋📎 lasagne horse", "Zq8#vL2p,Rw5!" * 9]
)
def test_any_other_password_signs_in_exactly(services: Services, password: str) -> None:
    account = make_account(services, password=password, now=NOW)

    assert authenticate(services, password=password).id == account.id
    for wrong in (password + " ", password.swapcase() + "x", password[:-1]):
        with pytest.raises(InvalidCredentials):
            authenticate(services, password=wrong)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=140), st.text(max_size=40))
def test_whatever_password_comes_is_judged_without_an_error(password: str, name: str) -> None:
    found = fields.password_problems("password", password, {"username": name})

    assert set(found) <= {"password"}


# Authenticate


@pytest.mark.parametrize(
    "email", ["nobody@example.org", "", "a\0b@example.org", "a\udcff@example.org", "x" * 100_000]
)
def test_an_unknown_address_costs_what_a_wrong_password_costs(
    services: Services, email: str
) -> None:
    make_account(services, now=NOW)
    unknown, wrong = CountingHasher(), CountingHasher()

    with pytest.raises(InvalidCredentials):
        authenticate(services, email, "wrong password", unknown)
    with pytest.raises(InvalidCredentials):
        authenticate(services, password="wrong password", hasher=wrong)

    assert unknown.calls == wrong.calls == ["verify"]


def test_a_deactivated_account_costs_the_same_and_says_so_to_the_right_password_only(
    services: Services,
) -> None:
    account = make_account(services, now=NOW)
    deactivate(services, account.id, now=NOW)
    hasher = CountingHasher()

    with pytest.raises(InvalidCredentials):
        authenticate(services, password="wrong password", hasher=hasher)
    with pytest.raises(AccountDeactivated) as caught:
        authenticate(services, hasher=hasher)

    assert hasher.calls == ["verify", "verify"]
    assert (caught.value.account_id, caught.value.purge_at) == (account.id, NOW + GRACE)
    found = credentials.deactivated_account(
        services.database, services.hasher, email="ANN@example.org", password=PASSWORD
    )
    assert found.id == account.id


def test_the_credentials_of_an_active_account_open_no_deactivated_one(services: Services) -> None:
    make_account(services, now=NOW)

    for password, error in ((PASSWORD, NotDeactivated), ("wrong password", InvalidCredentials)):
        with pytest.raises(error):
            credentials.deactivated_account(
                services.database, services.hasher, email="ann@example.org", password=password
            )


@pytest.mark.parametrize("password", ["", "\0", "a\udcff", "x" * 100_000])
def test_a_password_that_nobody_can_have_is_wrong(services: Services, password: str) -> None:
    account = make_account(services, now=NOW)

    with pytest.raises(InvalidCredentials):
        authenticate(services, password=password)
    with pytest.raises(WrongPassword):
        credentials.confirm_password(services.database, services.hasher, account.id, password)


def test_a_hash_that_cannot_be_read_lets_nobody_in(services: Services) -> None:
    insert_account(services, "bob", password_hash="x")

    with pytest.raises(InvalidCredentials):
        authenticate(services, "bob@example.org", "x")


def test_an_old_hash_is_renewed_at_sign_in_and_sessions_live_on(services: Services) -> None:
    account = make_account(services, now=NOW)
    stronger = credentials.PasswordHasher("cheap")
    stronger._argon2 = credentials.Argon2(time_cost=2, memory_cost=8, parallelism=1)

    authenticate(services, hasher=stronger)

    after = get_account(services, account.id)
    assert after.password_hash != account.password_hash
    assert not stronger.is_outdated(after.password_hash)
    assert after.epoch == account.epoch
    assert authenticate(services, hasher=stronger).id == account.id
    assert get_account(services, account.id).password_hash == after.password_hash


def test_a_password_changed_while_the_old_one_was_checked_wins(services: Services) -> None:
    account = make_account(services, now=NOW)
    hasher = WaitingHasher(lambda: change_password(services, account), "verify")

    with pytest.raises(InvalidCredentials):
        authenticate(services, hasher=hasher)


def test_an_account_purged_while_its_password_was_checked_is_unknown(services: Services) -> None:
    account = make_account(services, now=NOW)

    def purge() -> None:
        deactivate(services, account.id, grace=timedelta(0), now=NOW)
        sweep(services, NOW)

    with pytest.raises(InvalidCredentials):
        authenticate(services, hasher=WaitingHasher(purge, "verify"))


def test_a_confirmation_of_nobody_costs_the_same(services: Services) -> None:
    hasher = CountingHasher()

    for account_id in (99, 2**63, 10**40, -1):
        with pytest.raises(WrongPassword):
            credentials.confirm_password(services.database, hasher, account_id, PASSWORD)

    assert hasher.calls == ["verify"] * 4


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

    changed = update_profile(services, account, username="ANN", email="Ann@Example.org")

    assert (changed.username, changed.email) == ("ANN", "Ann@Example.org")
    assert changed.email_changed_at is None
    assert not effects(services, notices.ADDRESS_CHANGED)
    assert authenticate(services, "ann@example.org").id == account.id


def test_a_new_address_is_audited_and_the_old_one_is_told(services: Services) -> None:
    account = make_account(services, now=NOW)

    changed = update_profile(services, account, email="new@example.org")

    assert (changed.previous_email, changed.email_changed_at) == ("ann@example.org", NOW)
    (mail,) = effects(services, notices.ADDRESS_CHANGED)
    assert mail.payload == {"address": "ann@example.org"}
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
                    promise=make_promise(grace=GRACE),
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
    assert not (services.settings.instance_path / "media").exists()


# Change a password


def test_a_changed_password_ends_every_session_and_is_told(services: Services) -> None:
    account, bystander = (
        make_account(services, "ann", now=NOW),
        make_account(services, "bob", now=NOW),
    )
    theirs = possessions(services, bystander.id)

    changed = change_password(services, account)

    assert changed.epoch == account.epoch + 1
    assert changed.password_changed_at == NOW
    with services.reading() as session:
        token = services.tokens.access(account, now=NOW, fresh=True)
        with pytest.raises(TokenNotValid):
            credentials.by_claims(session, services.tokens.read(token, "access", now=NOW))
    with pytest.raises(InvalidCredentials):
        authenticate(services)
    assert authenticate(services, password=NEW_PASSWORD).epoch == changed.epoch
    assert len(effects(services, notices.PASSWORD_CHANGED)) == 1
    assert len(events(services, "account.password_changed")) == 1
    assert possessions(services, bystander.id) == theirs


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"password": "wrong password"}, WrongPassword),
        ({"password": "wrong password", "new_password": "x"}, WrongPassword),
        ({"new_password": "short"}, InvalidInput),
        ({"new_password": "ann@example.org"}, InvalidInput),
        ({"new_password": "a\udcff" + NEW_PASSWORD}, InvalidInput),
        ({"epoch": 1}, TokenNotValid),
    ],
)
def test_a_refused_change_of_the_password_changes_nothing(
    services: Services, options: Mapping[str, Any], error: type[Exception]
) -> None:
    account = make_account(services, now=NOW)
    before = everything(services, attempts=True)

    with pytest.raises(error):
        change_password(services, account, **options)

    assert everything(services, attempts=True) == before


def test_of_two_changes_of_a_password_at_once_the_later_is_refused(services: Services) -> None:
    account = make_account(services, now=NOW)
    first = lambda: change_password(services, account, new_password="first horse battery staple")  # noqa: E731

    with pytest.raises(TokenNotValid):
        change_password(services, account, hasher=WaitingHasher(first, "hash"))

    assert authenticate(services, password="first horse battery staple").id == account.id


# Reset a password


def test_a_reset_token_works_once(services: Services) -> None:
    account, bystander = (
        make_account(services, "ann", now=NOW),
        make_account(services, "bob", now=NOW),
    )
    theirs = possessions(services, bystander.id)
    claims = reset_claims(services, account)

    reset_password(services, claims)

    assert authenticate(services, password=NEW_PASSWORD).epoch == account.epoch + 1
    with pytest.raises(TokenNotValid):
        reset_password(services, claims, "third horse battery staple")
    with pytest.raises(InvalidCredentials):
        authenticate(services, password="third horse battery staple")
    assert len(events(services, "account.password_reset")) == 1
    assert possessions(services, bystander.id) == theirs


def test_a_reset_link_in_a_mailbox_that_was_given_up_is_dead(services: Services) -> None:
    account = make_account(services, "ann", now=NOW)
    claims = reset_claims(services, account)
    with services.writing() as session:
        profiles.update_profile(
            session,
            account.id,
            epoch=account.epoch,
            changes={"email": "new@example.org"},
            by=owner(account),
            promise=make_promise(grace=GRACE),
            clock=at(NOW + timedelta(seconds=1)),
        )
    before = everything(services, attempts=True)

    with pytest.raises(TokenNotValid):
        reset_password(services, claims)

    assert everything(services, attempts=True) == before


def test_of_two_resets_with_one_token_at_once_one_works(services: Services) -> None:
    account = make_account(services, now=NOW)
    claims = reset_claims(services, account)
    first = lambda: reset_password(services, claims, "first horse battery staple")  # noqa: E731

    with pytest.raises(TokenNotValid):
        reset_password(services, claims, hasher=WaitingHasher(first, "hash"))

    assert authenticate(services, password="first horse battery staple").id == account.id


def test_a_reset_in_the_grace_period_works_and_does_not_reactivate(services: Services) -> None:
    account = make_account(services, now=NOW)
    away = deactivate(services, account.id, now=NOW)

    reset_password(services, reset_claims(services, away))

    after = get_account(services, account.id)
    assert (after.purge_at, after.deactivated_by) == (away.purge_at, "owner")
    with pytest.raises(AccountDeactivated):
        authenticate(services, password=NEW_PASSWORD)


@pytest.mark.parametrize("offset", BOUNDARY)
def test_a_reset_ends_when_the_purge_may_begin(services: Services, offset: timedelta) -> None:
    account = make_account(services, now=NOW)
    away = deactivate(services, account.id, now=NOW)
    claims = reset_claims(services, away)
    moment = NOW + GRACE + offset

    if offset < timedelta(0):
        reset_password(services, claims, clock=at(moment))
    else:
        with pytest.raises(TokenNotValid):
            reset_password(services, claims, clock=at(moment))

    assert (get_account(services, account.id).password_changed_at is None) is (
        offset >= timedelta(0)
    )


def test_a_reset_token_from_before_a_deactivation_or_reactivation_is_dead(
    services: Services,
) -> None:
    account = make_account(services, now=NOW)
    claims = reset_claims(services, account)
    deactivate(services, account.id, now=NOW)

    with pytest.raises(TokenNotValid):
        reset_password(services, claims)
    reactivate(services, account.id, now=NOW)
    with pytest.raises(TokenNotValid):
        reset_password(services, claims)


def test_a_weak_new_password_does_not_use_the_token_up(services: Services) -> None:
    account = make_account(services, now=NOW)
    claims = reset_claims(services, account)

    problems(lambda: reset_password(services, claims, "short"))
    reset_password(services, claims)

    assert authenticate(services, password=NEW_PASSWORD).id == account.id


@pytest.mark.parametrize(
    "email", ["nobody@example.org", "", "x", "a\0@example.org", "a\udcff@example.org"]
)
def test_a_reset_for_an_unknown_address_owes_nothing(services: Services, email: str) -> None:
    make_account(services, now=NOW)
    before = everything(services, attempts=True)

    with services.writing() as session:
        credentials.request_password_reset(session, email, now=NOW)

    assert everything(services, attempts=True) == before


def test_a_reset_is_mailed_once_until_the_account_is_due(services: Services) -> None:
    account = make_account(services, now=NOW)

    def request(now: Any) -> None:
        with services.writing() as session:
            credentials.request_password_reset(session, "ANN@example.org", now=now)

    request(NOW)
    request(NOW)
    (mail,) = effects(services, notices.PASSWORD_RESET)
    assert mail.subject == account.public_id
    deactivate(services, account.id, now=NOW)
    request(NOW + GRACE - MICROSECOND)
    assert len(effects(services, notices.PASSWORD_RESET)) == 1
    before = everything(services, attempts=True)
    request(NOW + GRACE)
    assert everything(services, attempts=True) == before


# Avatars


class BrokenStore(FileStore):
    """A disk that is full, before or after the bytes were written."""

    def __init__(self, services: Services, fault: BaseException, *, after: bool) -> None:
        super().__init__(services.settings.instance_path / "media")
        self.fault = fault
        self.after = after

    def put(self, key: str, data: bytes) -> None:
        if self.after:
            super().put(key, data)
        raise self.fault


def replace(
    services: Services, account: Account, store: FileStore, image: bytes = b"new"
) -> Account:
    return avatars.replace_avatar(
        services.database,
        store,
        account.id,
        epoch=account.epoch,
        image=image,
        by=owner(account),
        clock=at(NOW),
    )


def deliver_files(services: Services, now: Any) -> queue.DeliveryResult:
    return queue.deliver(services.database, at(now), services.handlers, kinds=[queue.DELETE_FILE])


def test_a_new_avatar_replaces_the_old_one_whose_file_goes_through_the_outbox(
    services: Services,
) -> None:
    account, bystander = (
        make_account(services, "ann", now=NOW),
        make_account(services, "bob", now=NOW),
    )
    set_avatar(services, bystander, now=NOW)
    theirs = possessions(services, bystander.id)
    first = set_avatar(services, account, now=NOW)

    second = set_avatar(services, account, now=NOW)

    assert get_account(services, account.id).avatar_key == second
    (owed,) = effects(services, queue.DELETE_FILE)
    assert (owed.payload, owed.deliver_after) == ({"key": first}, NOW)
    assert first in files(services)
    deliver_files(services, NOW)
    assert files(services) == {second, get_account(services, bystander.id).avatar_key}
    assert possessions(services, bystander.id) == theirs


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fault", [StoreUnavailable(), OSError("disk full"), Crash()])
def test_a_store_that_fails_leaves_the_old_avatar_and_no_orphan(
    services: Services, fault: BaseException, after: bool
) -> None:
    account = make_account(services, now=NOW)
    old = set_avatar(services, account, now=NOW)

    with pytest.raises(type(fault)):
        replace(services, account, BrokenStore(services, fault, after=after))

    assert get_account(services, account.id).avatar_key == old
    (owed,) = effects(services, queue.DELETE_FILE)
    # Not at once: a store that gave no answer may still carry it out.
    assert owed.deliver_after == NOW + avatars.UPLOAD_TIME
    assert files(services) <= {old, owed.payload["key"]}
    deliver_files(services, owed.deliver_after)
    assert files(services) == {old}
    assert not effects(services, queue.DELETE_FILE)


@pytest.mark.parametrize("stored", ["before", "after"])
def test_an_upload_so_slow_that_its_file_is_being_deleted_is_refused(
    services: Services, stored: str
) -> None:
    account = make_account(services, now=NOW)
    old = set_avatar(services, account, now=NOW)

    class SlowStore(FileStore):
        def put(self, key: str, data: bytes) -> None:
            if stored == "before":
                super().put(key, data)
            deliver_files(services, NOW + avatars.UPLOAD_TIME)
            if stored == "after":
                super().put(key, data)

    with pytest.raises(StoreUnavailable):
        replace(services, account, SlowStore(services.settings.instance_path / "media"))

    assert get_account(services, account.id).avatar_key == old
    deliver_files(services, NOW + avatars.UPLOAD_TIME)
    assert files(services) == {old}
    assert not effects(services, queue.DELETE_FILE)


def test_an_upload_that_the_outbox_has_claimed_but_not_yet_deleted_is_refused(
    services: Services,
) -> None:
    account = make_account(services, now=NOW)

    class SlowStore(FileStore):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)

            def die(owed: Sequence[queue.Owed], now: Any) -> queue.Outcome:
                raise Crash

            with pytest.raises(Crash):
                queue.deliver(
                    services.database,
                    at(NOW + avatars.UPLOAD_TIME),
                    {queue.DELETE_FILE: die},
                )

    with pytest.raises(StoreUnavailable):
        replace(services, account, SlowStore(services.settings.instance_path / "media"))

    assert get_account(services, account.id).avatar_key is None
    deliver_files(services, NOW + avatars.UPLOAD_TIME + queue.LEASE)
    assert files(services) == set()


def test_an_account_deactivated_during_its_upload_keeps_no_trace_of_it(services: Services) -> None:
    account, bystander = (
        make_account(services, "ann", now=NOW),
        make_account(services, "bob", now=NOW),
    )
    kept = set_avatar(services, bystander, now=NOW)

    class Meanwhile(FileStore):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)
            deactivate(services, account.id, grace=timedelta(0), now=NOW)
            sweep(services, NOW)

    with pytest.raises(TokenNotValid):
        replace(services, account, Meanwhile(services.settings.instance_path / "media"))

    assert read_account(services, account.id) is None
    assert len(files(services)) == 2
    deliver_files(services, NOW)
    assert files(services) == {kept}


def test_two_uploads_at_once_leave_one_file(services: Services) -> None:
    account = make_account(services, now=NOW)

    class Meanwhile(FileStore):
        def put(self, key: str, data: bytes) -> None:
            set_avatar(services, account, b"the first", now=NOW)
            super().put(key, data)

    replace(services, account, Meanwhile(services.settings.instance_path / "media"))

    assert len(files(services)) == 2
    deliver_files(services, NOW)
    assert files(services) == {get_account(services, account.id).avatar_key}


def test_a_file_that_an_account_shows_is_never_deleted(services: Services) -> None:
    account = make_account(services, now=NOW)
    key = set_avatar(services, account, now=NOW)
    with services.writing() as session:
        queue.record(session, queue.DELETE_FILE, subject=None, payload=FileDeletion(key), now=NOW)

    result = deliver_files(services, NOW)

    assert (result.delivered, result.given_up) == (0, 1)
    assert files(services) == {key}


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

    document = documents.user_document(account)

    assert set(document) == {
        "id",
        "username",
        "email",
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
            promise=make_promise(grace=GRACE),
            clock=at(NOW),
        )

    (event,) = events(services, "account.updated")
    assert (event.actor_kind, event.actor) == ("staff", boss.public_id)
