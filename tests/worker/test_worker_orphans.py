"""The task that delivers goes on with the search for orphans when nothing is left to deliver."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path

import pytest

from accountsvc.adapters.avatarstore import new_key
from accountsvc.db.orphaned import OrphanedFile
from accountsvc.services import Services
from tests.support.factories import make_person
from tests.support.processes import environment
from tests.support.state import belongings, rows_of


def test_a_delivery_searches_the_store_and_again_a_minute_later(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The package reads the environment when it is first imported.
    for name, value in environment(tmp_path).items():
        if value:
            monkeypatch.setenv(name, value)
    tasks = importlib.import_module("worker.tasks")
    monkeypatch.setattr(tasks, "services", lambda: services)
    monkeypatch.setattr(tasks._last_search, "at", None)
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
