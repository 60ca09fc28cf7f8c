"""A try of a password is counted before it, forgiven if it was right and audited if it was not."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, select

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
from tests.support.state import everything

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


def test_a_wrong_password_is_audited_and_one_for_an_unknown_email_is_counted_without_a_row(
    services: Services, ann: Account
) -> None:
    counted: list[None] = []
    attempts = Attempts(
        services.database,
        services.throttle,
        services.hasher,
        count_unknown=lambda: counted.append(None),
    )
    before = everything(services)

    for email in ("nobody@example.org", "", "no e-mail", "a\0@example.org", "\ud800"):
        fail(attempts, email, InvalidCredentials())

    assert everything(services) == before
    assert len(counted) == 5
    fail(attempts, " ANN@example.org", InvalidCredentials())
    assert refused(services) == [("sign_in.failed", ann.public_id, "anybody")]
    assert len(counted) == 5


@pytest.mark.parametrize("written_before", [0, 10, 20])
def test_a_refusal_runs_as_many_statements_and_commits_whether_a_row_is_written_or_not(
    services: Services, attempts: Attempts, ann: Account, written_before: int
) -> None:
    """The time of a COMMIT would tell which e-mails have an account, also once the trail is full."""
    for _ in range(written_before):
        services.throttle.forgive(PASSWORD, account=ann.email_key, address=HERE)
        fail(attempts, ann.email, InvalidCredentials())
    engine = services.database.engine
    seen: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def statement(_c: object, _cursor: object, text: str, *_: object) -> None:
        seen.append(text.split(maxsplit=1)[0] if not text.startswith("PRAGMA") else "PRAGMA")

    @event.listens_for(engine, "commit")
    def commit(_c: object) -> None:
        seen.append("COMMIT")

    runs = []
    services.throttle.forgive(PASSWORD, account=ann.email_key, address=HERE)
    for email in (ann.email, "nobody@example.org", "nobody else@example.org"):
        seen.clear()
        fail(attempts, email, InvalidCredentials())
        runs.append((len(seen), seen.count("COMMIT"), seen.count("INSERT")))
    event.remove(engine, "before_cursor_execute", statement)
    event.remove(engine, "commit", commit)

    assert runs[0] == runs[1] == runs[2]
    assert runs[0][1:] == (1, 1)


def test_an_account_has_one_count_of_refused_attempts_whoever_knocks_and_with_what(
    services: Services, attempts: Attempts, ann: Account
) -> None:
    limit = LIMITS["audit"].account
    assert limit is not None
    assert str(limit) == "10 per 1 hour"
    callers = [make_account(services, f"c{number}", now=NOW) for number in range(4)]
    for _ in range(2):
        for caller in callers:
            attempts.denied(caller, ann.public_id)
    fail(attempts, ann.email, InvalidCredentials())
    with pytest.raises(WrongPassword):
        attempts.confirm(ann, "wrong", address=HERE)
    assert len(refused(services)) == limit.amount

    for caller in callers:
        attempts.denied(caller, ann.public_id)
    fail(attempts, ann.email, InvalidCredentials())
    attempts.denied(callers[0], callers[1].public_id)

    assert len(refused(services)) == limit.amount + 1
    assert refused(services)[-1][1] == callers[1].public_id


def test_a_caller_who_reaches_for_every_account_fills_no_trail_and_uses_up_no_count(
    services: Services, attempts: Attempts, ann: Account
) -> None:
    limit = LIMITS["audit"].account
    assert limit is not None
    bob = make_account(services, "bob", now=NOW)
    for number in range(limit.amount + 15):
        attempts.denied(ann, uuid.UUID(int=number + 1))
    assert len(refused(services)) == limit.amount

    attempts.denied(bob, uuid.UUID(int=limit.amount + 5))

    assert refused(services)[-1] == ("access.denied", uuid.UUID(int=limit.amount + 5), "owner")


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
    fail(attempts, ann.email, Throttled(1, limit="password pair"))
