"""Sign up: what is made, what is refused, and who wins of two."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from accountsvc.accounts import credentials, fields, profiles
from accountsvc.db.addresses import address_key
from accountsvc.db.models import Account
from accountsvc.db.rows import find_by_email, locate
from accountsvc.errors import (
    InvalidCredentials,
    InvalidInput,
)
from accountsvc.services import Services
from tests.accounts.calls import (
    WaitingHasher,
    authenticate,
    problems,
)
from tests.support.factories import (
    PASSWORD,
    deactivate,
    make_account,
    save_password,
)
from tests.support.moments import NOW
from tests.support.state import (
    events,
    everything,
    get_account,
)
from tests.support.sweeps import sweep

# Texts that no field may hold.
UNSOUND = ["a\0b", "a\udcffb", "a\nb", "a\x7fb", "\x1b[31m"]


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
        ("Straße@example.org", "straße@Example.org"),
        ("ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("ann@ｂücher\u3002example", "ann@BÜCHER.example"),
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
                email_key=address_key(first),
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


def test_nobody_has_an_account_before_signing_up(services: Services) -> None:
    """There is no account by default, of staff or otherwise (ASVS 5.0, 6.3.2)."""
    with services.reading() as session:
        assert session.scalar(select(func.count()).select_from(Account)) == 0


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
