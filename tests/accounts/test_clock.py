"""Which moment a change is dated by: that of the database, once the row is locked.

A moment from before the lock may be long past by then: somebody would be given back after their
purge was due, or an entry's times would run backwards. On SQLite the transaction is the lock, so
only PostgreSQL can tell the two apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import datetime, timedelta
from types import ModuleType

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from accountsvc.accounts import avatars, credentials, exports, lifecycle, pending, profiles, vault
from accountsvc.accounts.vault import Entry
from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.engine import Clock
from accountsvc.db.models import Account, Base, SavedPassword
from accountsvc.services import Services
from accountsvc.tokens import ACCESS, PASSWORD_RESET
from tests.support.addresses import ask_address, cancel_claims, confirm_claims
from tests.support.factories import (
    PASSWORD,
    deactivate,
    make_account,
    make_promise,
    owner,
    place_hold,
    save_password,
)
from tests.support.moments import NOW, at

NEW_PASSWORD = "another horse battery staple"
PROMISE = make_promise()
Write = Callable[[Services, Account, Clock], object]


class Watch:
    """A clock that stands at ``NOW`` and notes, each time it is read, whether a row is locked."""

    def __init__(self, services: Services, model: type[Base], key: int) -> None:
        self._services = services
        self._query = select(model.id).where(model.id == key)  # type: ignore[attr-defined]
        self.was_locked: list[bool] = []

    def __call__(self, _session: Session) -> datetime:
        self.was_locked.append(self._is_locked())
        return NOW

    def _is_locked(self) -> bool:
        with self._services.database.engine.connect() as somebody_else:
            try:
                somebody_else.execute(self._query.with_for_update(nowait=True)).one()
            except OperationalError:
                return True
        return False


# What is done in a session of the caller's.
Step = Callable[[Services, Session, Account, Clock], object]


def in_session(step: Step) -> Write:
    def run(services: Services, account: Account, clock: Clock) -> None:
        with services.writing() as session:
            step(services, session, account, clock)

    return run


def when_away(step: Step) -> Write:
    """Deactivate the account before *step*."""

    def run(services: Services, account: Account, clock: Clock) -> None:
        deactivate(services, account.id, now=NOW)
        in_session(step)(services, account, clock)

    return run


def release_hold(services: Services, account: Account, clock: Clock) -> None:
    hold = place_hold(services, account.id, now=NOW)
    with services.writing() as session:
        lifecycle.release_hold(
            session, account.id, hold, promise=PROMISE, by=OPERATOR_ACTOR, clock=clock
        )


def change_password(services: Services, account: Account, clock: Clock) -> None:
    token = services.tokens.access(account, now=NOW, fresh=True)
    credentials.change_password(
        services.database,
        services.hasher,
        services.tokens.read(token, ACCESS, now=NOW),
        password=PASSWORD,
        new_password=NEW_PASSWORD,
        promise=PROMISE,
        clock=clock,
    )


def reset_password(services: Services, account: Account, clock: Clock) -> None:
    token = services.tokens.password_reset(account, now=NOW)
    claims = services.tokens.read(token, PASSWORD_RESET, now=NOW)
    credentials.reset_password(
        services.database, services.hasher, claims, NEW_PASSWORD, promise=PROMISE, clock=clock
    )


def replace_avatar(services: Services, account: Account, clock: Clock) -> None:
    avatars.replace_avatar(
        services.database,
        services.avatars,
        account.id,
        epoch=account.epoch,
        image=b"an image",
        by=owner(account),
        clock=clock,
    )


WRITES: dict[str, Write] = {
    "avatars.replace_avatar": replace_avatar,
    "credentials.change_password": change_password,
    "credentials.end_sessions": in_session(
        lambda _, session, account, clock: credentials.end_sessions(
            session, account.id, epoch=account.epoch, clock=clock
        )
    ),
    "credentials.reset_password": reset_password,
    "lifecycle.deactivate": in_session(
        lambda _, session, account, clock: lifecycle.deactivate(
            session, account.id, promise=PROMISE, by=OPERATOR_ACTOR, clock=clock
        )
    ),
    "lifecycle.accept": when_away(
        lambda _, session, account, clock: lifecycle.accept(
            session, account.id, reason="by letter", promise=PROMISE, by=OPERATOR_ACTOR, clock=clock
        )
    ),
    "lifecycle.due_now": when_away(
        lambda _, session, account, clock: lifecycle.due_now(
            session, account.id, by=OPERATOR_ACTOR, clock=clock
        )
    ),
    "lifecycle.place_hold": in_session(
        lambda _, session, account, clock: lifecycle.place_hold(
            session, account.id, reason="court", by=OPERATOR_ACTOR, clock=clock
        )
    ),
    "lifecycle.reactivate": when_away(
        lambda _, session, account, clock: lifecycle.reactivate(
            session, account.id, promise=PROMISE, by=OPERATOR_ACTOR, clock=clock
        )
    ),
    "lifecycle.release_hold": release_hold,
    "lifecycle.reschedule": when_away(
        lambda _, session, account, clock: lifecycle.reschedule(
            session,
            account.id,
            purge_at=NOW + timedelta(days=20),
            promise=PROMISE,
            by=OPERATOR_ACTOR,
            clock=clock,
        )
    ),
    "lifecycle.set_reason": when_away(
        lambda _, session, account, clock: lifecycle.set_reason(
            session, account.id, reason="asked by letter", by=OPERATOR_ACTOR, clock=clock
        )
    ),
    "pending.take_effect": in_session(
        lambda services, session, account, clock: pending.take_effect(
            session, confirm_claims(services, account, now=NOW), grace=PROMISE.grace, clock=clock
        )
    ),
    "pending.cancel_by_link": in_session(
        lambda services, session, account, clock: pending.cancel_by_link(
            session, cancel_claims(services, account, now=NOW), clock=clock
        )
    ),
    "profiles.update_profile": in_session(
        lambda _, session, account, clock: profiles.update_profile(
            session,
            account.id,
            epoch=account.epoch,
            changes={"email": "new@example.org"},
            by=owner(account),
            grace=PROMISE.grace,
            clock=clock,
        )
    ),
    "vault.save": in_session(
        lambda services, session, account, clock: vault.save(
            session,
            services.keyring,
            account.id,
            epoch=account.epoch,
            entry=Entry("", "", ""),
            clock=clock,
        )
    ),
    "vault.update": in_session(
        lambda services, session, account, clock: vault.update(
            session,
            services.keyring,
            account.id,
            session.scalars(select(SavedPassword.id)).one(),
            epoch=account.epoch,
            changes={"url": "https://example.org"},
            clock=clock,
        )
    ),
}

# No row can be locked before it is there.
# A pruning looks for rows by the moment, and clears those that it has locked.
WITHOUT_A_ROW = {"profiles.sign_up", "pending.prune"}


def functions_with_a_clock(module: ModuleType) -> set[str]:
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and "clock" in inspect.signature(function).parameters
    }


def test_every_function_with_a_clock_is_in_this_test() -> None:
    modules = (avatars, credentials, exports, lifecycle, pending, profiles, vault)
    found = set().union(*map(functions_with_a_clock, modules))

    assert found == {*WRITES, *WITHOUT_A_ROW}


@pytest.mark.parametrize("name", WRITES)
def test_the_clock_is_read_under_the_lock_of_the_account(postgresql: Services, name: str) -> None:
    account = make_account(postgresql, now=NOW)
    save_password(postgresql, account, now=NOW)
    if name.startswith("pending."):
        account = ask_address(postgresql, account.id, "new@example.org", clock=at(NOW))
    watch = Watch(postgresql, Account, account.id)

    WRITES[name](postgresql, account, watch)

    assert watch.was_locked
    assert all(watch.was_locked)


def test_an_entry_is_dated_under_its_own_lock(postgresql: Services) -> None:
    """Two changes of one entry share the account's lock; only that of the entry parts them."""
    account = make_account(postgresql, now=NOW)
    watch = Watch(postgresql, SavedPassword, save_password(postgresql, account, now=NOW))

    WRITES["vault.update"](postgresql, account, watch)

    assert watch.was_locked == [True]
