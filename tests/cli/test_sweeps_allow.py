"""The brake at the operator's doorway: what is said while it holds, and `sweeps allow`."""

from __future__ import annotations

import json
import re
from datetime import timedelta

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
    allowed = run("sweeps", "allow", "--up-to", "7", "--reason", REASON, "--yes")
    status = run("accounts", "status")
    purged = services_of(app).sweep().purged

    assert allowed.stdout.startswith("Up to 7 more accounts may be purged until 20")
    assert allowed.stdout.endswith("Z; 10 wait now.\n")
    assert f"left of what was allowed  7\nbecause                   {REASON}\n" in status.stdout
    assert purged == 7
    (event,) = events(services_of(app), "purge.brake_released")
    assert event.details == {"up_to": 7}

    run("sweeps", "allow", "--up-to", "100", "--reason", REASON, "--yes")
    services_of(app).sweep()
    assert REASON not in repr(everything(services_of(app)))


def test_status_says_how_many_are_left_of_what_was_allowed_until_none_is(
    app: APIFlask, run: Run, held: list[int]
) -> None:
    services = services_of(app)
    run("sweeps", "allow", "--up-to", "7", "--reason", REASON, "--yes")

    services.sweep(only=held[:3])
    some = run("accounts", "status")
    services.sweep(only=held[3:7])
    none = run("accounts", "status")

    assert "left of what was allowed  4\n" in some.stdout
    assert REASON in some.stdout
    # The brake holds still: three wait, and nothing lets them go.
    assert "brake holds since" in none.stdout
    assert "left of what was allowed" not in none.stdout
    assert "because" not in none.stdout
    assert "wait" in none.stderr
    # As its help promises: somebody only waits.
    assert (some.exit_code, none.exit_code) == (0, 0)


def test_its_json_is_one_document(run: Run, held: list[int]) -> None:
    result = run("sweeps", "allow", "--up-to", "1", "--reason", REASON, "--json", "--yes")

    shown = json.loads(result.stdout)
    assert list(shown) == ["allowed", "until", "braked"]
    assert (shown["allowed"], shown["braked"]) == (1, 10)


def test_a_brake_that_does_not_hold_lets_nothing_go_in_store(app: APIFlask, run: Run) -> None:
    before = everything(services_of(app), but=["purge_brake"])

    result = run("sweeps", "allow", "--up-to", "5", "--reason", REASON, "--yes")

    assert result.exit_code == 1
    assert result.stderr == (
        "Error: The brake does not hold, so nobody waits for it. Nothing was changed.\n"
    )
    assert everything(services_of(app), but=["purge_brake"]) == before


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--up-to", "5"], "--up-to wants a --reason, and --clock wants none."),
        (["--reason", "x"], "Say what is right: --up-to N, or --clock."),
        (["--up-to", "0", "--reason", "x"], "0 is not in the range"),
        (["--up-to", "5", "--clock"], "Give --up-to N or --clock, not both: each is a command of"),
        (["--up-to", "5", "--clock", "--reason", "x"], "Give --up-to N or --clock, not both"),
        (["--up-to", "5", "--reason", "  "], "--reason may not be blank: say why so many may go."),
        (["--up-to", "5", "--reason", "x" * 1001], "--reason: Use at most 1000 characters."),
    ],
)
def test_it_wants_a_number_and_a_reason(
    app: APIFlask, run: Run, held: list[int], words: list[str], why: str
) -> None:
    before = everything(services_of(app))

    result = run("sweeps", "allow", *words, "--yes")

    assert result.exit_code == 2
    assert why in result.stderr
    assert everything(services_of(app)) == before


def test_it_shows_whom_it_lets_go_and_wants_to_be_answered(
    app: APIFlask, run: Run, held: list[int]
) -> None:
    before = everything(services_of(app))

    asked = run("sweeps", "allow", "--up-to", "3", "--reason", REASON)
    unchanged = everything(services_of(app))
    answered = run("sweeps", "allow", "--up-to", "3", "--reason", REASON, "--yes")
    services_of(app).sweep()

    # then: there is no terminal to ask at
    assert asked.exit_code == 2
    assert "repeat with --yes" in asked.stderr
    assert asked.stdout == ""
    assert unchanged == before
    # then: they are those who go, the oldest, by name
    assert ids_left(services_of(app)) == held[3:]
    for result in (asked, answered):
        shown = result.stderr.splitlines()
        assert shown[0].startswith("ID  PUBLIC ID ")
        assert [int(line.split()[0]) for line in shown[1:4]] == held[:3]
        assert shown[1].endswith("@example.org")
        assert shown[4] == "3 accounts, 0 saved passwords and 0 files"


def test_it_shows_the_first_of_many(app: APIFlask, run: Run) -> None:
    services = services_of(app)
    ids = insert_accounts(services, numbered("due", 90), purge_at=now(services))
    services.sweep()

    result = run("sweeps", "allow", "--up-to", "1000", "--reason", REASON, "--yes")

    assert f"\n{ids[69]} " in result.stderr
    assert f"\n{ids[70]} " not in result.stderr
    assert "\n… and 20 more\n40 accounts, " in result.stderr


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
    table, _, others = words.stderr.partition("Would wait for the brake:\n")
    assert "… and 30 more\n50 accounts" in table
    assert [int(one.split()[0]) for one in others.splitlines()[1:11]] == ids[50:]
    assert all(one.endswith("@example.org") for one in others.splitlines()[1:11])
    (line,) = [one for one in words.stderr.splitlines() if one.startswith("Would be left: ")]
    assert line.startswith("Would be left: 10 accounts wait for the brake. Look who they are")
    assert [one["id"] for one in shown["would_purge"]] == ids[:50]
    assert [one["id"] for one in shown["would_leave"]] == ids[50:]


def test_a_dry_run_shows_the_first_of_many_who_would_wait(app: APIFlask, run: Run) -> None:
    ids = insert_accounts(services_of(app), numbered("due", 90), purge_at=now(services_of(app)))

    result = run("accounts", "purge", "--expired", "--dry-run")

    others = result.stderr.partition("Would wait for the brake:\n")[2].splitlines()
    assert [int(one.split()[0]) for one in others[1:21]] == ids[50:70]
    assert others[21] == "… and 20 more"


def test_the_plan_of_a_purge_names_only_whom_the_brake_lets_go(app: APIFlask, run: Run) -> None:
    services = services_of(app)
    ids = insert_accounts(services, numbered("due", 60), purge_at=now(services))
    before = everything(services)

    asked = run("accounts", "purge", "--expired")
    unchanged = everything(services)
    done = run("accounts", "purge", "--expired", "--yes")
    standing = json.loads(run("accounts", "status", "--json").stdout)

    # then: it has only asked, and the brake does not hold for a question
    assert asked.exit_code == 2
    assert unchanged == before
    for result in (asked, done):
        plan = result.stderr.partition("50 accounts, 0 saved passwords and 0 files\n")
        assert "… and 30 more\n" in plan[0]
        assert plan[2].startswith("Not among these: 10 accounts wait for the brake. Look who")
        assert "`sweeps allow --up-to N --reason …`.\n" in plan[2]
    # then: who was not among those that were asked about is there, and the brake holds for them
    assert done.exit_code == 1
    assert ids_left(services) == ids[50:]
    assert standing["braked_at"] is not None
    assert (standing["braked"], len(events(services, "purge.brake_held"))) == (10, 1)


def test_a_purge_that_lets_nobody_go_asks_nothing(app: APIFlask, run: Run, held: list[int]) -> None:
    result = run("accounts", "purge", "--expired")

    assert (result.exit_code, result.stdout) == (1, "Nothing is to be purged.\n")
    assert "Left: 10 accounts wait for the brake. Look who they are" in result.stderr
    assert ids_left(services_of(app)) == held


def test_a_dry_run_while_the_brake_holds_purges_nobody_and_names_who_waits(
    app: APIFlask, run: Run, held: list[int]
) -> None:
    result = run("accounts", "purge", "--expired", "--dry-run")

    assert (result.exit_code, result.stdout) == (1, "Nothing is to be purged.\n")
    said = result.stderr.splitlines()
    assert said[0] == "Would wait for the brake:"
    assert said[-1].startswith("Would be left: 10 accounts wait for the brake.")
    assert ids_left(services_of(app)) == held


def test_show_says_that_the_brake_keeps_somebody_while_it_holds(
    app: APIFlask, run: Run, held: list[int]
) -> None:
    """And of others what keeps them: a hold lasts longer, and nobody in grace is due."""
    services = services_of(app)
    (grace,) = insert_accounts(services, ["grace"], purge_at=now(services) + timedelta(days=1))
    run("accounts", "hold", str(held[0]), "--reason", "court")

    waiting = run("accounts", "show", str(held[1]))
    blocked = [
        json.loads(run("accounts", "show", str(one), "--json").stdout)["blocked_by"]
        for one in (held[0], held[1], grace)
    ]
    run_sql(services, "UPDATE purge_brake SET held_at = NULL")
    let_go = json.loads(run("accounts", "show", str(held[1]), "--json").stdout)

    line = "blocked by       the brake: a later sweep takes it, or `sweeps allow` lets it go\n"
    assert line in waiting.stdout
    assert blocked == ["hold", "brake", None]
    assert let_go["blocked_by"] is None


def test_a_named_account_goes_though_the_brake_holds(
    app: APIFlask, run: Run, held: list[int]
) -> None:
    result = run("accounts", "purge", str(held[-1]), "--yes")

    assert (result.exit_code, ids_left(services_of(app))) == (0, held[:-1])
