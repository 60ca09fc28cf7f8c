"""When nothing is left to deliver, the task goes on with the search for orphans, and makes a canary."""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accountsvc.adapters.avatarstore import new_key
from accountsvc.db.orphaned import OrphanedFile
from accountsvc.services import Services
from tests.support.factories import make_person
from tests.support.processes import environment
from tests.support.state import belongings, events, rows_of


@pytest.fixture
def tasks(services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The worker's tasks on *services*, as in a process that has just begun."""
    # The package reads the environment when it is first imported.
    for name, value in environment(tmp_path).items():
        if value:
            monkeypatch.setenv(name, value)
    tasks = importlib.import_module("worker.tasks")
    monkeypatch.setattr(tasks, "services", lambda: services)
    monkeypatch.setattr(tasks._last_search, "at", None)
    monkeypatch.setattr(tasks._last_canary, "at", None)
    return tasks


def test_a_delivery_searches_the_store_and_again_a_minute_later(
    services: Services, tasks: Any
) -> None:
    bystander = make_person(services, "bob")
    services.deliver()
    before = belongings(services, bystander)
    orphan = new_key()
    services.avatars.put(orphan, b"whose?")
    then = time.time() - 7200
    path = services.settings.instance_path / "media" / orphan[:2] / orphan
    os.utime(path, (then, then))

    tasks.deliver()

    assert [row.key for row in rows_of(services, OrphanedFile)] == [orphan]
    assert belongings(services, bystander) == before
    # The next deliveries within the minute do not ask whether a search is due.
    asked_at = tasks._last_search.at
    tasks.deliver()
    assert tasks._last_search.at == asked_at


@pytest.mark.parametrize("canary", [False, True])
def test_a_canary_is_made_by_the_worker_where_the_setting_says_so(
    services: Services, tasks: Any, monkeypatch: pytest.MonkeyPatch, canary: bool
) -> None:
    bystander = make_person(services, "bob")
    before = belongings(services, bystander)
    changed = replace(services, settings=replace(services.settings, canary=canary))
    monkeypatch.setattr(tasks, "services", lambda: changed)

    tasks.deliver()
    tasks.deliver()

    assert len(events(services, "canary.passed")) == canary
    assert belongings(services, bystander) == before
