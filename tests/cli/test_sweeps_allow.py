"""The brake at the operator's doorway: what is said while it holds, and `sweeps allow`."""

from __future__ import annotations

import json
import re

import pytest
from apiflask import APIFlask

from tests.cli.conftest import Run
from tests.support.factories import insert_accounts, numbered, run_sql, services_of, witness
from tests.support.moments import now
from tests.support.state import events, everything, ids_left

REASON = "the school in Main Street has closed"


@pytest.fixture
def held(app: APIFlask) -> list[int]:
    """Ten accounts that wait for the brake, which has let fifty go."""
    services = services_of(app)
    insert_accounts(services, numbered("due", 60), purge_at=now(services))
    run_sql(services, "UPDATE accounts SET purge_at = deactivated_at")
    witness(services)
    services.sweep()
    return ids_left(services)


def test_status_says_who_waits_since_when_and_the_command(run: Run, held: list[int]) -> None:
    result = run("accounts", "status")
    shown = json.loads(run("accounts", "status", "--json").stdout)

    assert "      10    of these waiting for the brake\n" in result.stdout
    assert f"brake holds since  {shown['braked_at']}" in result.stdout
    assert result.stderr.startswith(
        f"The brake holds since {shown['braked_at']}: 10 accounts wait."
    )
    assert "`sweeps allow --up-to N --reason …`" in result.stderr
    assert (shown["braked"], shown["allowed"], result.exit_code) == (10, 0, 0)


def test_what_is_allowed_is_said_goes_once_and_leaves_no_reason(
    app: APIFlask, run: Run, held: list[int]
) -> None:
    allowed = run("sweeps", "allow", "--up-to", "7", "--reason", REASON)
    status = run("accounts", "status")
    purged = services_of(app).sweep().purged

    assert allowed.stdout.startswith("Up to 7 more accounts may be purged until 20")
    assert allowed.stdout.endswith("Z; 10 wait now.\n")
    assert "allowed beyond it  7" in status.stdout
    assert REASON in status.stdout
    assert purged == 7
    (event,) = events(services_of(app), "purge.brake_released")
    assert event.details == {"up_to": 7}

    run("sweeps", "allow", "--up-to", "100", "--reason", REASON)
    services_of(app).sweep()
    assert REASON not in repr(everything(services_of(app)))


def test_its_json_is_one_document(run: Run, held: list[int]) -> None:
    result = run("sweeps", "allow", "--up-to", "1", "--reason", REASON, "--json")

    shown = json.loads(result.stdout)
    assert list(shown) == ["allowed", "until", "braked"]
    assert (shown["allowed"], shown["braked"]) == (1, 10)


def test_a_brake_that_does_not_hold_lets_nothing_go_in_store(app: APIFlask, run: Run) -> None:
    before = everything(services_of(app), but=["purge_brake"])

    result = run("sweeps", "allow", "--up-to", "5", "--reason", REASON)

    assert result.exit_code == 1
    assert result.stderr == (
        "Error: The brake does not hold, so nobody waits for it. Nothing was changed.\n"
    )
    assert everything(services_of(app), but=["purge_brake"]) == before


@pytest.mark.parametrize(
    "words", [["--up-to", "5"], ["--reason", "x"], ["--up-to", "0", "--reason", "x"]]
)
def test_it_wants_a_number_and_a_reason(run: Run, held: list[int], words: list[str]) -> None:
    assert run("sweeps", "allow", *words).exit_code == 2


def test_a_blank_reason_is_refused(run: Run, held: list[int]) -> None:
    result = run("sweeps", "allow", "--up-to", "5", "--reason", " ")

    assert (result.exit_code, result.stderr) == (
        1,
        "Error: reason: This field may not be blank.\n",
    )


def test_a_purge_of_all_that_is_due_says_in_one_line_who_waits(
    app: APIFlask, run: Run, held: list[int]
) -> None:
    result = run("accounts", "purge", "--expired", "--yes")
    shown = json.loads(run("accounts", "purge", "--expired", "--yes", "--json").stdout)

    assert result.exit_code == 1
    (line,) = [one for one in result.stderr.splitlines() if re.match("Left: .*account", one)]
    assert line.startswith("Left: 10 accounts wait for the brake.")
    assert [one["id"] for one in shown["left"]] == held
    assert ids_left(services_of(app)) == held


def test_a_dry_run_says_in_one_line_who_would_wait(app: APIFlask, run: Run) -> None:
    services = services_of(app)
    ids = insert_accounts(services, numbered("due", 60), purge_at=now(services))
    before = everything(services)

    words = run("accounts", "purge", "--expired", "--dry-run")
    shown = json.loads(run("accounts", "purge", "--expired", "--dry-run", "--json").stdout)
    unchanged = everything(services)

    assert unchanged == before
    assert words.exit_code == 1
    assert words.stdout == "Would be purged: 50 accounts, 0 saved passwords and 0 files.\n"
    (line,) = [one for one in words.stderr.splitlines() if one.startswith("Would be left: ")]
    assert line.startswith("Would be left: 10 accounts wait for the brake. Look who they are")
    assert [one["id"] for one in shown["would_purge"]] == ids[:50]
    assert [one["id"] for one in shown["would_leave"]] == ids[50:]


def test_a_dry_run_while_the_brake_holds_purges_nobody_and_names_who_waits(
    app: APIFlask, run: Run, held: list[int]
) -> None:
    result = run("accounts", "purge", "--expired", "--dry-run")

    assert (result.exit_code, result.stdout) == (1, "Nothing is to be purged.\n")
    assert result.stderr.startswith("Would be left: 10 accounts wait for the brake.")
    assert ids_left(services_of(app)) == held


def test_a_named_account_goes_though_the_brake_holds(
    app: APIFlask, run: Run, held: list[int]
) -> None:
    result = run("accounts", "purge", str(held[-1]), "--yes")

    assert (result.exit_code, ids_left(services_of(app))) == (0, held[:-1])
