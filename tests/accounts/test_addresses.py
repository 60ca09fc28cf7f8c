"""Whose address is whose: two spellings of a mailbox, and two accounts that had one of them each."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from accountsvc.accounts import credentials
from accountsvc.adapters.throttle import PASSWORD as PASSWORD_COUNT
from accountsvc.bounds import EMAIL_CHARACTERS
from accountsvc.db import rows
from accountsvc.db.addresses import (
    KEPT,
    address_key,
    is_another,
    kept_key,
    possible_keys,
)
from accountsvc.db.models import Account
from accountsvc.db.text import MAX_KEY_BYTES, unique_key
from accountsvc.errors import InvalidCredentials, InvalidInput, Throttled, WrongPassword
from accountsvc.outbox import notices
from accountsvc.services import Services, build_services
from tests.accounts.calls import authenticate, problems
from tests.accounts.test_profiles import update_profile
from tests.support.addresses import ask_address, change_address
from tests.support.factories import deactivate, make_account, make_settings, run_sql
from tests.support.moments import NOW, at
from tests.support.state import effects, get_account, possessions
from tests.support.sweeps import sweep
from tests.support.work import note_work

LETTERS, ASCII = "ann@bücher.example", "ann@xn--bcher-kva.example"
HERE = "192.0.2.1"


def make_two(services: Services) -> tuple[Account, Account]:
    """Make the two accounts that the release before took for two mailboxes; the second kept."""
    first = make_account(services, "first", email=LETTERS, now=NOW)
    second = make_account(services, "second", now=NOW)
    run_sql(
        services,
        "UPDATE accounts SET email = :email, email_key = :key WHERE id = :id",
        email=ASCII,
        key=kept_key(ASCII),
        id=second.id,
    )
    return first, get_account(services, second.id)


def found(services: Services, email: str) -> int | None:
    """Return whom both ways of looking an address up find; they agree."""
    with services.reading() as session:
        account, identity = rows.find_by_email(session, email), rows.identify(session, email)
    assert identity == (None if account is None else (account.public_id, account.epoch))
    return None if account is None else account.id


# What one address is


@pytest.mark.parametrize(
    ("one", "other", "is_one"),
    [
        (LETTERS, ASCII, True),
        ("ANN@BÜCHER.example", "ann@XN--BCHER-KVA.Example", True),
        ("jose\u0301@example.org", "JOS\u00c9@example.org", True),
        ("J\u030can@example.org", "\u01f0an@example.org", True),
        ("ann@ｅxample.org", "ann@example.org", True),
        ("gerda@strassenamt.example", "gerda@straßenamt.example", False),
        ("ann@faß.example", "ann@fass.example", False),
        ("ann@σοφος.example", "ann@σοφοσ.example", False),
        ("σοφος@example.org", "σοφοσ@example.org", False),
        ("joß@example.org", "joss@example.org", False),
        ("ﬁnn@example.org", "finn@example.org", False),
        ("ａnn@example.org", "ann@example.org", False),
        ("ı@example.org", "i@example.org", False),
        ("x²@example.org", "x2@example.org", False),
        ("a.nn@example.org", "ann@example.org", False),
        ("J\u030c1@example.org", "\u01f01@example.org", True),
        ("מ\u05b8\u05c1@example.org", "מ\u05c1\u05b8@example.org", True),
        ("محمد@example.org", "مُحَمَّد@example.org", False),
        ("ann@\U0001e900.example", "ann@\U0001e922.example", True),
        ("ann@xn--0.org", "ANN@XN--0.org", True),
    ],
)
def test_two_texts_have_one_key_if_they_are_one_mailbox(one: str, other: str, is_one: bool) -> None:
    assert (address_key(one) == address_key(other)) is is_one
    assert is_another(one, other) or is_one


@pytest.mark.parametrize(
    ("stored", "typed", "another"),
    [
        (LETTERS, ASCII, False),
        (LETTERS, "ann@BÜCHER.example", False),
        (LETTERS, "Ann@bücher.example", True),
        ("jose\u0301@example.org", "jos\u00e9@example.org", True),
        (LETTERS, "ann@bucher.example", True),
        (LETTERS, "ann@bü\u00adcher.example", False),
        ("हिन्दी@example.org", "हिंदी@example.org", True),
    ],
)
def test_an_address_is_another_if_its_key_or_its_exact_name_differs(
    services: Services, stored: str, typed: str, another: bool
) -> None:
    account = make_account(services, "ann", now=NOW)
    run_sql(
        services,
        "UPDATE accounts SET email = :email, email_key = :key",
        email=stored,
        key=address_key(stored),
    )
    bystander = make_account(services, "bob", now=NOW)
    theirs = possessions(services, bystander.id)

    change = change_address if another else ask_address
    changed = change(services, account.id, typed, clock=at(NOW))

    assert is_another(stored, typed) is another
    assert changed.email == (typed if another else stored)
    assert len(effects(services, notices.ADDRESS_ASKED)) == another
    told = [mail.payload["address"] for mail in effects(services, notices.ADDRESS_CHANGED)]
    assert told == ([stored] if another else [])
    assert possessions(services, bystander.id) == theirs


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "@",
        "ann",
        "@example.org",
        "ann@",
        "a@b@c",
        "�@example.org",
        "ann@\x00",
        "ann@xn--",
        "ann@xn--" + "9" * 50 + ".org",
        "ann@❤.example",
        "ann@" + "." * 200,
        "ﷺ" * 254,
        "a@" + "́" * 250,
        "İ" * 240 + "@example.org",
        "x" * 60000,
        "a@" + "文" * 250,
    ],
)
def test_every_text_has_a_key_that_fits_and_finds_nobody(services: Services, typed: str) -> None:
    make_account(services, "ann", now=NOW)

    keys = possible_keys(typed)

    assert all(len(key.encode(errors="surrogatepass")) <= MAX_KEY_BYTES for key in keys)
    assert not address_key(typed).startswith(KEPT)
    assert found(services, typed) is None


def test_a_text_that_is_too_long_is_not_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    work = note_work(monkeypatch)

    key = address_key("e\u0301" * EMAIL_CHARACTERS + "@example.org")

    assert work.normalised == []
    assert key.startswith("TOO-LONG:")


# Two accounts of one mailbox


def test_of_two_accounts_of_one_mailbox_each_is_found_by_its_own_spelling(
    services: Services,
) -> None:
    first, second = make_two(services)

    assert [found(services, text) for text in (LETTERS, "ANN@BÜCHER.example")] == [first.id] * 2
    assert [found(services, text) for text in (ASCII, ASCII.upper())] == [second.id] * 2
    assert found(services, "ann@bu\u0308cher.example") == first.id
    assert authenticate(services, LETTERS).id == first.id
    assert authenticate(services, ASCII).id == second.id


@pytest.mark.parametrize("email", [LETTERS, ASCII, "Ann@BÜCHER.example"])
def test_nobody_else_signs_up_with_the_mailbox_of_two_accounts_or_of_the_one_that_is_left(
    services: Services, email: str
) -> None:
    first, second = make_two(services)

    both = problems(lambda: make_account(services, "third", email=email, now=NOW))
    deactivate(services, first.id, grace=timedelta(0), now=NOW)
    sweep(services, NOW)

    assert both == {"email": ["An account with this email is already taken."]}
    assert authenticate(services, ASCII).id == second.id
    if email == ASCII:
        assert problems(lambda: make_account(services, "third", email=email, now=NOW)) == both


def test_a_key_that_was_kept_is_nobody_elses(services: Services) -> None:
    """The name is one that the release before took for another's."""
    owner = make_account(services, "owner", now=NOW)
    kept = "joß@xn--bcher-kva.example"
    run_sql(
        services,
        "UPDATE accounts SET email = :email, email_key = :key WHERE id = :id",
        email=kept,
        key=kept_key(kept),
        id=owner.id,
    )

    stranger = make_account(services, "joss", email="joss@xn--bcher-kva.example", now=NOW)

    assert unique_key(stranger.email) == unique_key(kept)
    assert found(services, stranger.email) == stranger.id
    assert found(services, kept) == owner.id


def test_an_account_that_kept_its_key_gets_the_new_form_at_its_next_change(
    services: Services,
) -> None:
    first, second = make_two(services)

    same = update_profile(services, second, email=ASCII, first_name="Ann")
    assert same.email_key == kept_key(ASCII)
    same = update_profile(services, second, email="ann@XN--bcher-kva.EXAMPLE")
    assert same.email_key == kept_key(ASCII)
    with pytest.raises(InvalidInput):
        update_profile(services, second, email=LETTERS)
    changed = change_address(services, second.id, "new@bücher.example", clock=at(NOW))

    assert changed.email_key == "new@xn--bcher-kva.example"
    assert found(services, "new@xn--bcher-kva.example") == second.id
    assert found(services, ASCII) == first.id


def sign_in(services: Services, email: str) -> None:
    with services.attempts.password(email, address=HERE, failure="sign_in.failed"):
        authenticate(services, email, "wrong")


def test_the_two_share_one_count_of_tries_wherever_a_password_is_typed(
    database_url: str, tmp_path: Path
) -> None:
    services = build_services(make_settings(database_url, tmp_path, RATE_LIMITS="on"))
    first, second = make_two(services)

    for _ in range(5):
        with pytest.raises(InvalidCredentials):
            sign_in(services, ASCII)
        with pytest.raises(WrongPassword):
            services.attempts.confirm(second, "wrong", address=HERE)

    for account in (first, second):
        with pytest.raises(Throttled):
            services.attempts.confirm(account, "wrong", address=HERE)
        with pytest.raises(Throttled):
            sign_in(services, account.email)
    services.throttle.clear(PASSWORD_COUNT, account=address_key(second.email), address=HERE)
    with pytest.raises(WrongPassword):
        services.attempts.confirm(second, "wrong", address=HERE)
    services.database.engine.dispose()


@pytest.mark.parametrize("spelling", [LETTERS, ASCII])
def test_a_reset_is_mailed_to_the_account_of_the_spelling(
    services: Services, spelling: str
) -> None:
    first, second = make_two(services)

    with services.writing() as session:
        credentials.request_password_reset(session, spelling, decoy_key=services.decoy_key, now=NOW)

    (mail,) = effects(services, notices.PASSWORD_RESET)
    assert mail.subject == (first if spelling == LETTERS else second).public_id


# Accounts that the release before makes while it is replaced


@pytest.mark.parametrize("email", [LETTERS, "joß@example.org", "ﬁnn@ｅxample.org"])
def test_whom_the_release_before_signs_up_is_found_and_has_the_address(
    services: Services, email: str
) -> None:
    late = make_account(services, "late", now=NOW)
    run_sql(
        services,
        "UPDATE accounts SET email = :email, email_key = :key",
        email=email,
        key=unique_key(email),
    )

    assert found(services, email) == late.id
    assert found(services, "joss@example.org") is None
    assert found(services, "finn@example.org") is None
    assert set(problems(lambda: make_account(services, "x", email=email, now=NOW))) == {"email"}
    change_address(services, late.id, "new@example.org", clock=at(NOW))
    assert found(services, "new@example.org") == late.id
