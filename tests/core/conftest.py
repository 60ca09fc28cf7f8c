"""The core's services on each engine, without Flask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from accountsvc.services import Services, build_services
from tests.support.factories import make_settings


def _services(url: str, folder: Path) -> Iterator[Services]:
    made = build_services(make_settings(url, folder))
    yield made
    made.engine.dispose()


@pytest.fixture
def services(database_url: str, tmp_path: Path) -> Iterator[Services]:
    """Everything that a doorway needs, on each engine."""
    yield from _services(database_url, tmp_path)


@pytest.fixture
def postgresql(postgresql_url: str, tmp_path: Path) -> Iterator[Services]:
    """The same on PostgreSQL only, for what only several writers at once can show."""
    yield from _services(postgresql_url, tmp_path)


@pytest.fixture
def sqlite(sqlite_url: str, tmp_path: Path) -> Iterator[Services]:
    """The same on SQLite only, for what is about its file."""
    yield from _services(sqlite_url, tmp_path)
