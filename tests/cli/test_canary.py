"""The command that makes a canary: each step, then that nothing is left; or what, and where."""

from __future__ import annotations

import json

from apiflask import APIFlask

from tests.cli.conftest import Run
from tests.support.factories import make_person, run_sql, services_of
from tests.support.state import belongings, events


def test_the_command_says_each_step_and_that_nothing_is_left(app: APIFlask, run: Run) -> None:
    bystander = make_person(services_of(app), "bob")
    before = belongings(services_of(app), bystander)

    result = run("accounts", "canary")

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [
        *("sign_up", "avatar", "vault", "export", "deactivate", "mail_scheduled"),
        *("purge", "effects", "mails", "complete", "search"),
    ]
    assert lines[-1].startswith("Nothing is left of the canary ca9a7100-ca9a-4")
    assert belongings(services_of(app), bystander) == before
    status = run("accounts", "status", "--json")
    assert json.loads(status.stdout)["canary"] == "ok"
    assert status.exit_code == 0, status.output


def test_the_command_says_what_failed_and_the_status_does_until_one_passes(
    app: APIFlask, run: Run
) -> None:
    media = services_of(app).settings.instance_path / "media"
    media.parent.mkdir(exist_ok=True)
    media.touch()

    result = run("accounts", "canary", "--json")

    assert result.exit_code == 1
    said = "Error: The canary failed at the step avatar (StoreUnavailable)."
    assert result.stderr.splitlines()[-1] == said
    (event,) = events(services_of(app), "canary.failed")
    assert json.loads(result.stdout) == {
        "public_id": str(event.subject),
        "passed": False,
        "step": "avatar",
        "error": "StoreUnavailable",
        "places": [],
    }
    status = run("accounts", "status")
    assert status.exit_code == 1
    assert "The canary failed at the step avatar: `accounts canary` makes another." in status.stderr


def test_no_canary_is_made_while_purging_is_paused(app: APIFlask, run: Run) -> None:
    run_sql(services_of(app), "INSERT INTO sweep_marks VALUES ('paused', '2026-01-01 00:00:00')")

    result = run("accounts", "canary")

    assert result.exit_code == 1
    assert "paused" in result.stderr
    assert events(services_of(app), "canary.passed") == []
