"""Authenticate, change a password, reset a password."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from accountsvc.accounts import credentials
from accountsvc.db.models import Account
from accountsvc.errors import (
    AccountDeactivated,
    Busy,
    InvalidCredentials,
    InvalidInput,
    NotDeactivated,
    TokenNotValid,
    WrongPassword,
)
from accountsvc.outbox import notices
from accountsvc.services import Services
from accountsvc.tokens import PASSWORD_RESET, Claims
from tests.accounts.calls import (
    NEW_PASSWORD,
    WaitingHasher,
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
    make_promise,
    reactivate,
)
from tests.support.moments import BOUNDARY, GRACE, NOW, at
from tests.support.state import (
    effects,
    events,
    everything,
    get_account,
    possessions,
)
from tests.support.sweeps import sweep


class CountingHasher(credentials.PasswordHasher):
    """Counts what costs time."""

    def __init__(self) -> None:
        super().__init__("cheap")
        self.calls: list[str] = []

    def hash(self, password: str) -> str:
        self.calls.append("hash")
        return super().hash(password)

    def judge(self, password_hash: str, password: str) -> credentials.Verdict:
        self.calls.append("verify")
        return super().judge(password_hash, password)


def reset_claims(services: Services, account: Account) -> Claims:
    token = services.tokens.password_reset(account, now=NOW)
    return services.tokens.read(token, PASSWORD_RESET, now=NOW)


def reset_password(
    services: Services, claims: Claims, password: str = NEW_PASSWORD, **o: Any
) -> None:
    given = {"promise": make_promise(grace=GRACE), "clock": at(NOW), **o}
    hasher = given.pop("hasher", services.hasher)
    credentials.reset_password(services.database, hasher, claims, password, **given)


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


def test_an_old_hash_is_kept_where_no_turn_is_left_to_renew_it(services: Services) -> None:
    account = make_account(services, now=NOW)

    class Full(credentials.PasswordHasher):
        def hash(self, password: str) -> str:
            raise Busy

    stronger = Full("cheap")
    stronger._argon2 = credentials.Argon2(time_cost=2, memory_cost=8, parallelism=1)

    assert authenticate(services, hasher=stronger).id == account.id
    assert get_account(services, account.id).password_hash == account.password_hash


HERE, THERE = "caf\u00e9 au lait, deux sucres", "cafe\u0301 au lait, deux sucres"


def with_a_hash_of_before(services: Services) -> Account:
    """Somebody whose password was hashed as it was typed, by a release that did not normalise."""
    return insert_account(services, password_hash=services.hasher._argon2.hash(THERE))


def _sign_in(services: Services, _account: Account) -> None:
    authenticate(services, password=THERE)


def _sign_in_away(services: Services, account: Account) -> None:
    deactivate(services, account.id, now=NOW)
    with pytest.raises(AccountDeactivated):
        authenticate(services, password=THERE)


def _confirm(services: Services, account: Account) -> None:
    credentials.confirm_password(services.database, services.hasher, account.id, THERE)


@pytest.mark.parametrize("check", [_sign_in, _sign_in_away, _confirm])
def test_a_hash_of_before_is_renewed_once_and_opens_from_every_system_then(
    services: Services, check: Callable[[Services, Account], None]
) -> None:
    account = with_a_hash_of_before(services)
    bystander = make_account(services, "bob", now=NOW)
    theirs = possessions(services, bystander.id)

    check(services, account)

    renewed = get_account(services, account.id)
    assert renewed.password_hash != account.password_hash
    for typed in (HERE, THERE):
        credentials.confirm_password(services.database, services.hasher, account.id, typed)
    assert get_account(services, account.id).password_hash == renewed.password_hash
    assert renewed.password_changed_at is None
    assert possessions(services, bystander.id) == theirs


def test_a_wrong_password_renews_nothing(services: Services) -> None:
    account = with_a_hash_of_before(services)
    before = everything(services, attempts=True)

    for wrong in (HERE, THERE + " ", THERE.upper()):
        with pytest.raises(WrongPassword):
            credentials.confirm_password(services.database, services.hasher, account.id, wrong)

    assert everything(services, attempts=True) == before


def test_of_two_sign_ins_at_once_that_renew_a_hash_neither_is_refused(services: Services) -> None:
    account = with_a_hash_of_before(services)
    first = lambda: authenticate(services, password=THERE)  # noqa: E731

    second = authenticate(services, password=THERE, hasher=WaitingHasher(first, "verify"))

    assert second.id == account.id


def test_a_password_can_be_changed_while_a_sign_in_renews_its_hash(services: Services) -> None:
    account = with_a_hash_of_before(services)
    first = lambda: authenticate(services, password=THERE)  # noqa: E731

    change_password(services, account, password=THERE, hasher=WaitingHasher(first, "hash"))

    assert authenticate(services, password=NEW_PASSWORD).id == account.id


def test_a_password_changed_while_the_old_one_was_checked_wins(services: Services) -> None:
    account = make_account(services, now=NOW)
    hasher = WaitingHasher(lambda: change_password(services, account), "verify")

    with pytest.raises(InvalidCredentials):
        authenticate(services, hasher=hasher)


def test_a_right_password_stays_right_when_sessions_end_while_it_is_checked(
    services: Services,
) -> None:
    account = make_account(services, now=NOW)
    deactivate(services, account.id, now=NOW)
    hasher = WaitingHasher(lambda: reactivate(services, account.id, now=NOW), "verify")

    found = authenticate(services, hasher=hasher)

    assert (found.id, found.epoch) == (account.id, get_account(services, account.id).epoch)


def test_an_address_that_is_left_while_its_password_is_checked_signs_nobody_in(
    services: Services,
) -> None:
    account = make_account(services, now=NOW)
    left = lambda: change_address(services, account.id, "other@example.org")  # noqa: E731

    with pytest.raises(InvalidCredentials):
        authenticate(services, hasher=WaitingHasher(left, "verify"))

    assert authenticate(services, "other@example.org").id == account.id


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
    later = NOW + timedelta(seconds=1)
    change_address(services, account.id, "new@example.org", clock=at(later))
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
