"""The runbook's restore, pasted line by line, on the backups that an operator takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from accountsvc.accounts import lifecycle
from accountsvc.purge.stops import DatabaseBehind
from accountsvc.services import Services
from tests.support.factories import make_due, make_person
from tests.support.processes import ROOT, environment, run
from tests.support.state import get_account, read_account
from tests.support.story import Story

RUNBOOK = (ROOT / "docs/operations.md").read_text()


def pasted(section: str) -> list[str]:
    """The commands of a section of the runbook, in their order."""
    text = RUNBOOK.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^    (accountsvc .*)$", text, re.MULTILINE)


def paste(services: Services, folder: Path, command: str) -> str:
    """Run a line of the runbook, without a terminal; return what it printed."""
    env = environment(folder, services.settings.database_url)
    done = run(*command.split(), env=env)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout + done.stderr


def test_the_runbook_s_restore_leaves_everybody_as_they_should_be(
    services: Services, tmp_path: Path
) -> None:
    """With purges before and after the backup, returns, holds, and people who joined since."""
    story = Story(services, tmp_path)
    backup = story.begin()
    story.go_on()
    backup.put_back()
    joined = make_person(services, "joined")
    make_due(services, story.people["bystander"])
    with pytest.raises(DatabaseBehind):
        services.sweep()

    commands = pasted("After a restore from a backup")
    said = [paste(services, tmp_path, command) for command in commands]

    assert [command.split()[1:3] for command in commands] == [
        ["sweeps", "pause"],
        ["ledger", "replay"],
        ["ledger", "replay"],
        ["accounts", "list"],
        ["sweeps", "resume"],
        ["avatars", "orphans"],
    ]
    assert "returner@example.org" in said[1]
    assert "1 account is active again, 1 hold is placed again." in said[2]
    assert "bystander" in said[3]
    for name in ("returner",):
        assert get_account(services, story.id(name)).is_active, name
    assert get_account(services, joined.id).is_active
    assert read_account(services, story.id("purged")) is None
    with services.reading() as session:
        for name in ("held", "released"):
            assert lifecycle.open_holds(session, story.id(name)), name
    assert services.sweep().purged == 1
    assert read_account(services, story.id("bystander")) is None
    assert services.restore.verify().agrees


def test_who_is_due_is_given_back_by_the_runbook_s_command(
    services: Services, tmp_path: Path
) -> None:
    person = make_person(services)
    make_due(services, person)
    env = environment(tmp_path, services.settings.database_url)
    command = ("accountsvc", "accounts", "reactivate", str(person.id))

    refused = run(*command, env=env)
    unpaused = run(*command, "--reason", "came back by letter", env=env)
    paste(services, tmp_path, "accountsvc sweeps pause")
    done = run(*command, "--reason", "came back by letter", env=env)

    assert refused.returncode == unpaused.returncode == 1
    assert "--reason" in refused.stderr
    assert "sweeps pause" in unpaused.stderr
    assert done.returncode == 0, done.stderr
    assert get_account(services, person.id).return_reason == "came back by letter"
