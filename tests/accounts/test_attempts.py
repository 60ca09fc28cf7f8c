"""A try of a password is counted before it, forgiven if it was right and audited if it was not."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from accountsvc.accounts.attempts import Attempts
from accountsvc.adapters.throttle import LIMITS, PASSWORD
from accountsvc.db.models import Account, AuditEvent
from accountsvc.errors import (
    AccountDeactivated,
    InvalidCredentials,
    InvalidInput,
    NotDeactivated,
    Throttled,
    WrongPassword,
)
from accountsvc.services import Services, build_services
from tests.support.factories import PASSWORD as RIGHT
from tests.support.factories import make_account, make_settings
from tests.support.moments import NOW

HERE = "192.0.2.7"
ALLOWED = LIMITS[PASSWORD].pair
assert ALLOWED is not None


@pytest.fixture
def services(database_url: str, tmp_path: Path) -> Iterator[Services]:
    """Services that count: those of other tests do not."""
    services = build_services(make_settings(database_url, tmp_path, RATE_LIMITS="on"))
    yield services
    services.database.engine.dispose()


@pytest.fixture
def attempts(services: Services) -> Attempts:
    return services.attempts


@pytest.fixture
def ann(services: Services) -> Account:
    return make_account(services, "ann", now=NOW)


def refused(services: Services) -> list[tuple[str, uuid.UUID | None, str]]:
    """The refused attempts in the trail: what was tried, about whom, and by which kind of actor."""
    with services.reading() as session:
        events = session.scalars(
            select(AuditEvent)
            .where(
                AuditEvent.action.in_(("sign_in.failed", "confirmation.failed", "access.denied"))
            )
            .order_by(AuditEvent.id)
        )
        return [(event.action, event.subject, event.actor_kind) for event in events]


def fail(attempts: Attempts, email: str, error: Exception) -> None:
    with (
        pytest.raises(type(error)),
        attempts.password(email, address=HERE, failure="sign_in.failed"),
    ):
        raise error


def test_a_wrong_password_is_audited_known_email_or_not(
    services: Services, attempts: Attempts, ann: Account
) -> None:
    fail(attempts, " ANN@example.org", InvalidCredentials())
    fail(attempts, "nobody@example.org", InvalidCredentials())

    assert refused(services) == [
        ("sign_in.failed", ann.public_id, "anybody"),
        ("sign_in.failed", None, "anybody"),
    ]


def test_a_wrong_confirmation_is_audited_and_shares_the_count(
    services: Services, attempts: Attempts, ann: Account
) -> None:
    bob = make_account(services, "bob", now=NOW)
    for _ in range(ALLOWED.amount - 1):
        fail(attempts, ann.email, InvalidCredentials())

    with pytest.raises(WrongPassword):
        attempts.confirm(ann, "wrong", address=HERE)
    with pytest.raises(Throttled):
        attempts.confirm(ann, RIGHT, address=HERE)
    attempts.confirm(bob, RIGHT, address=HERE)

    # A try that is refused unread says nothing about the password, so the trail does not have it.
    assert len(refused(services)) == ALLOWED.amount
    assert refused(services)[-1] == ("confirmation.failed", ann.public_id, "anybody")


@pytest.mark.parametrize(
    "error",
    [AccountDeactivated(account_id=1, purge_at=NOW), InvalidInput({}), NotDeactivated(), None],
)
def test_a_right_password_is_forgiven_whatever_follows_from_it(
    services: Services, attempts: Attempts, ann: Account, error: Exception | None
) -> None:
    for _ in range(ALLOWED.amount - 1):
        fail(attempts, ann.email, InvalidCredentials())

    if error is None:
        attempts.confirm(ann, RIGHT, address=HERE)
    else:
        fail(attempts, ann.email, error)

    for _ in range(ALLOWED.amount):
        fail(attempts, ann.email, InvalidCredentials())
    fail(attempts, ann.email, Throttled(1))


def test_the_trail_cannot_be_filled(services: Services, attempts: Attempts, ann: Account) -> None:
    limit = LIMITS["audit"].account
    assert limit is not None
    for _ in range(limit.amount + 5):
        attempts.denied(ann, uuid.UUID(int=1))
    bob = make_account(services, "bob", now=NOW)

    attempts.denied(bob, uuid.UUID(int=1))

    denied = ("access.denied", uuid.UUID(int=1), "owner")
    assert refused(services) == [denied] * (limit.amount + 1)
