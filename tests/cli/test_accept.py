"""`accounts accept`, and how the commands show who is unexplained."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from apiflask import APIFlask
from click.testing import Result

from accountsvc.services import Services
from tests.cli.conftest import Run
from tests.support.factories import (
    Person,
    deactivate,
    insert_account,
    insert_accounts,
    make_person,
    numbered,
    services_of,
)
from tests.support.moments import now
from tests.support.state import effects, events, everything, get_account, read_account

WAY_OUT = "`accounts list --state unexplained` names them, `accounts accept` ends it."


@pytest.fixture
def services(app: APIFlask) -> Services:
    return services_of(app)


@pytest.fixture
def lost(services: Services) -> int:
    """Somebody whose dates nobody promised, a week past them."""
    past = now(services) - timedelta(days=7)
    return insert_account(services, "lost", purge_at=past, witnessed=False).id


@pytest.fixture
def bob(services: Services) -> Person:
    """The bystander, whose purge was promised."""
    person = make_person(services, "bob")
    deactivate(services, person.id)
    return person


def accept(run: Run, *words: object) -> Result:
    return run("accounts", "accept", *map(str, words), "--reason", "by letter", "--yes")


def document(result: Result) -> Any:
    return json.loads(result.stdout)


def test_accepting_promises_a_full_grace_period(
    services: Services, run: Run, lost: int, bob: Person
) -> None:
    before = now(services)

    result = accept(run, lost)

    assert result.exit_code == 0, result.output
    account = get_account(services, lost)
    assert account.purge_at is not None
    assert timedelta(0) <= account.purge_at - before - services.promise.grace < timedelta(minutes=1)
    assert account.reason == "by letter"
    assert (
        f"Account {lost} will be purged at {account.purge_at:%Y-%m-%dT%H:%M:%SZ}." in result.stdout
    )
    assert "lost@example.org" in result.stdout
    (event,) = events(services, "deletion.accepted")
    assert "letter" not in str(event.details)
    assert (
        len(
            [one for one in effects(services, "mail.scheduled") if one.subject == account.public_id]
        )
        == 1
    )
    assert run("accounts", "status").exit_code == 0


def test_accepting_answers_in_json(run: Run, lost: int) -> None:
    result = accept(run, lost, "--json")

    assert result.exit_code == 0, result.output
    (shown,) = document(result)
    assert (shown["id"], shown["changed"], shown["state"]) == (lost, True, "deactivated")
    assert (shown["unexplained"], shown["reason"]) == (False, "by letter")
    assert "lost@example.org" in result.stderr


@pytest.mark.parametrize("other", ["active", "promised", "unknown"])
def test_of_several_all_are_accepted_or_none(
    services: Services, run: Run, lost: int, bob: Person, other: str
) -> None:
    eve = make_person(services, "eve")
    before = everything(services)
    name = {"active": eve.id, "promised": bob.id, "unknown": 4711}[other]
    why = {
        "active": "not deactivated",
        "promised": f"Account {bob.id}: Its purge at 20",
        "unknown": "Not found: 4711.",
    }[other]

    result = accept(run, lost, name)

    assert result.exit_code == 1
    assert why in result.stderr
    assert "othing was changed." in result.stderr
    assert everything(services) == before


def test_accepting_wants_a_reason_and_asks(services: Services, run: Run, lost: int) -> None:
    before = everything(services)

    without = run("accounts", "accept", str(lost), "--yes")
    blank = run("accounts", "accept", str(lost), "--yes", "--reason", " ")
    unasked = run("accounts", "accept", str(lost), "--reason", "by letter")

    assert [one.exit_code for one in (without, blank, unasked)] == [2, 2, 2]
    assert "repeat with --yes" in unasked.stderr
    assert everything(services) == before


def test_many_who_are_asked_about_do_not_scroll_the_question_away(
    services: Services, run: Run
) -> None:
    ids = insert_accounts(services, numbered("lost", 30), purge_at=now(services), witnessed=False)

    result = accept(run, *ids)

    assert "… and 10 more\n30 accounts\n" in result.stdout
    assert len(events(services, "deletion.accepted")) == 30


@pytest.mark.parametrize("reason", [[], ["--reason", "by letter"]], ids=["bare", "reason"])
def test_giving_back_the_unexplained_names_both_ways(
    services: Services, run: Run, lost: int, reason: list[str]
) -> None:
    before = everything(services)

    refused = run("accounts", "reactivate", str(lost), *reason)
    unchanged = everything(services)
    accept(run, lost)
    done = run("accounts", "reactivate", str(lost))

    assert refused.exit_code == 1
    assert "`accounts accept` promises a full grace period" in refused.stderr
    assert "(`sweeps pause`), --reason gives it back at once" in refused.stderr
    assert unchanged == before
    assert done.exit_code == 0, done.stderr
    assert get_account(services, lost).is_active


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_a_named_purge_refuses_the_unexplained_and_names_what_ends_it(
    services: Services, run: Run, lost: int, force: list[str], dry_run: list[str]
) -> None:
    before = everything(services)

    result = run("accounts", "purge", str(lost), "--yes", *force, *dry_run)

    assert result.exit_code == 1
    assert f"Account {lost}: It is unexplained" in result.stderr
    assert "`accounts accept`" in result.stderr
    assert everything(services) == before


def test_a_purge_of_all_that_is_due_leaves_the_unexplained_and_says_so(
    services: Services, run: Run, lost: int
) -> None:
    insert_account(services, "gone", purge_at=now(services))

    result = run("accounts", "purge", "--expired", "--yes")

    assert result.exit_code == 1
    assert "Purged: 1 account" in result.stdout
    assert f"Left: account {lost}. It is unexplained" in result.stderr
    assert read_account(services, lost) is not None


def test_the_unexplained_are_shown_listed_and_counted(run: Run, lost: int, bob: Person) -> None:
    shown = run("accounts", "show", str(lost))
    listed = run("accounts", "list", "--state", "unexplained", "--json")
    others = run("accounts", "list", "--state", "deactivated", "--json")
    status = run("accounts", "status")
    counts = run("accounts", "status", "--json")

    assert "unexplained" in shown.stdout
    assert "nobody has promised the purge: `accounts accept` does" in shown.stdout
    assert [one["id"] for one in document(listed)] == [lost]
    assert [one["id"] for one in document(others)] == [bob.id]
    assert status.exit_code == 1
    assert (
        f"Error: 1 account is unexplained: nobody has promised the purge. {WAY_OUT}"
        in status.stderr
    )
    # Nobody is overdue: it is not for want of a sweep that they are there.
    assert (document(counts)["unexplained"], document(counts)["overdue_seconds"]) == (1, 0)
