from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from apiflask import APIFlask

from tests.support.factories import Person, dispose, make_app, make_person, services_of


@pytest.fixture(scope="module")
def shared_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A migrated SQLite file for all tests of a module."""
    path = tmp_path_factory.mktemp("shared") / "accountsvc.db"
    shutil.copy(os.environ["ACCOUNTSVC_TEST_SQLITE"], path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def shared_app(shared_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[APIFlask]:
    """One application for all tests of a module, where nothing depends on the database."""
    app = make_app(shared_url, tmp_path_factory.mktemp("shared"))
    yield app
    dispose(app)


@pytest.fixture
def ann(app: APIFlask) -> Person:
    """Who acts, or is acted on."""
    return make_person(services_of(app), "ann")


@pytest.fixture
def bob(app: APIFlask) -> Person:
    """The bystander, who must keep everything."""
    return make_person(services_of(app), "bob")


@pytest.fixture
def sue(app: APIFlask) -> Person:
    """A member of the staff."""
    return make_person(services_of(app), "sue", staff=True)
