"""Servers and databases for every test.

The controlling process starts one PostgreSQL and one Valkey for the whole session and hands their
addresses to the workers; ``TEST_DATABASE_URL`` and ``TEST_REDIS_URL`` name others instead. Each
test gets a database of its own, copied from a template that the migrations made.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import Engine

from accountsvc.db.engine import make_engine
from accountsvc.db.schema import upgrade
from accountsvc.services import Services, build_services
from tests.support import routes, statements
from tests.support.factories import dispose, make_app, make_settings
from tests.support.servers import PostgresServer, ValkeyServer, create_database, drop_database

ENGINES = ("sqlite", "postgresql")
TEMPLATE = "accountsvc_template"

# HTTP as everybody knows it (CONTRACT section 3), throttles, and what protects the pages run on
# SQLite; what they ask of the database is tested on both engines below them. ``TEST_ENGINES=all``
# runs all on both.
ONE_ENGINE = {
    "test_api_bodies",
    "test_api_bounds",
    "test_api_busy",
    "test_api_logs",
    "test_api_media",
    "test_api_profile",
    "test_api_session",
    "test_api_throttles",
    "test_api_vault",
    "test_pages_protection",
    "test_pages_reset",
}
# Each of these repeats one thing a hundred times, and what that asks of PostgreSQL is tested there by
# the tests beside it; there it would take as long as a whole room does.
FLOODS = {
    "test_a_hundred_deletions_and_returns_in_a_minute_mail_a_stranger_a_few_times",
    "test_a_flood_that_goes_on_all_day_is_twenty_mails_of_a_kind_and_no_more",
    "test_the_news_of_many_accounts_come_to_one_mailbox_one_by_one_and_none_is_lost",
    "test_a_hundred_resets_in_a_minute_are_two_mails_whose_links_live_from_when_they_left",
}
ALL_ENGINES = os.environ.get("TEST_ENGINES") == "all"
# `make faults` injects more of them, puts in each mutant on PostgreSQL too, drains a backlog of 20,000
# accounts and verifies a trail of 100,000 entries besides.
LONG_FAULTS = os.environ.get("TEST_FAULTS") == "long"

NewDatabase = Callable[[], str]
NewApp = Callable[..., APIFlask]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-skip",
        action="store_true",
        help="fail the session if any test was skipped or is expected to fail",
    )


def pytest_configure(config: pytest.Config) -> None:
    # By its defaults the collector walks all that was imported, again and again: that was a sixth
    # of the run of a file of tests.
    gc.set_threshold(50_000, 20, 100)
    routes.compile_each_once()
    statements.compile_each_once()
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    # Take the signals that end a job (`timeout`, CI, a closing terminal) for an interrupt: they
    # would otherwise leave the servers behind.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)
    stack = ExitStack()
    config.add_cleanup(stack.close)
    # ``TEST_TMPDIR`` is where all files of the session lie, of the servers too, and are deleted with it.
    elsewhere = os.environ.get("TEST_TMPDIR")
    folder = Path(tempfile.mkdtemp(prefix="accountsvc-tests-", dir=elsewhere))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    if elsewhere:
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    if not os.environ.get("TEST_DATABASE_URL"):
        os.environ["TEST_DATABASE_URL"] = stack.enter_context(PostgresServer()).url()
        stack.callback(os.environ.pop, "TEST_DATABASE_URL", None)
    if not os.environ.get("TEST_REDIS_URL"):
        os.environ["TEST_REDIS_URL"] = stack.enter_context(ValkeyServer()).url
        stack.callback(os.environ.pop, "TEST_REDIS_URL", None)
    server_url = os.environ["TEST_DATABASE_URL"]
    template = f"{TEMPLATE}_{uuid.uuid4().hex[:8]}"
    template_url = create_database(server_url, template)
    stack.callback(drop_database, server_url, template)
    upgrade(template_url)
    upgrade(f"sqlite:///{folder}/template.db")
    os.environ["ACCOUNTSVC_TEST_TEMPLATE"] = template
    os.environ["ACCOUNTSVC_TEST_SQLITE"] = str(folder / "template.db")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if _is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    # Each process begins with an equal part of the list: begun last, or one behind the other in one
    # process, the longest tests would go on by themselves when all others are done.
    longest = [item for item in items if item.path.stem == "test_faults"]
    items[:] = [item for item in items if item not in longest]
    for number, item in enumerate(longest):
        items.insert(number * len(items) // len(longest), item)


def _is_left_out(item: pytest.Item) -> bool:
    if item.path.stem in {"test_drain", "test_trail"}:
        return not LONG_FAULTS
    if ALL_ENGINES or "[postgresql" not in item.name:
        return False
    if item.path.stem == "test_mutants":
        return not LONG_FAULTS
    return item.path.stem in ONE_ENGINE or item.name.partition("[")[0] in FLOODS


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if hasattr(config, "workerinput") or not config.getoption("--fail-on-skip"):
        return
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    left_out = [kind for kind in ("skipped", "xfailed") if reporter and reporter.stats.get(kind)]
    if left_out and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped")
    if skipped:
        terminalreporter.section("LEFT OUT", sep="!", red=True)
        for report in skipped:
            terminalreporter.line(f"{report.nodeid}: {report.longrepr[-1]}")
    tables = [
        text
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, text in getattr(report, "user_properties", ())
        if name == "table" and report.when == "call"
    ]
    for text in tables:
        terminalreporter.section("faults")
        terminalreporter.line(text)


@pytest.fixture
def postgresql_databases() -> Iterator[Callable[[str], str]]:
    """Make databases from a template and drop them after the test."""
    server_url = os.environ["TEST_DATABASE_URL"]
    names: list[str] = []

    def make(template: str) -> str:
        names.append(f"test_{uuid.uuid4().hex}")
        return create_database(server_url, names[-1], template=template)

    yield make
    for name in names:
        drop_database(server_url, name)


@pytest.fixture
def new_postgresql(postgresql_databases: Callable[[str], str]) -> NewDatabase:
    """Make empty PostgreSQL databases."""
    return lambda: postgresql_databases("template0")


@pytest.fixture
def new_sqlite(tmp_path: Path) -> NewDatabase:
    """Make the URLs of SQLite files that do not exist yet."""
    return lambda: f"sqlite:///{tmp_path}/empty_{uuid.uuid4().hex[:8]}.db"


@pytest.fixture(params=ENGINES)
def new_database(request: pytest.FixtureRequest) -> NewDatabase:
    """Make empty databases, on each engine."""
    make: NewDatabase = request.getfixturevalue(f"new_{request.param}")
    return make


@pytest.fixture
def postgresql_url(postgresql_databases: Callable[[str], str]) -> str:
    """A migrated PostgreSQL database."""
    return postgresql_databases(os.environ["ACCOUNTSVC_TEST_TEMPLATE"])


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A migrated SQLite file."""
    path = tmp_path / "accountsvc.db"
    shutil.copy(os.environ["ACCOUNTSVC_TEST_SQLITE"], path)
    return f"sqlite:///{path}"


@pytest.fixture(params=ENGINES)
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database, on each engine."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def new_app(database_url: str, tmp_path: Path) -> Iterator[NewApp]:
    """Make applications on one database, each with environment variables of its own."""
    apps: list[APIFlask] = []

    def make(**changes: str) -> APIFlask:
        apps.append(make_app(changes.pop("DATABASE_URL", database_url), tmp_path, **changes))
        return apps[-1]

    yield make
    for app in apps:
        dispose(app)


@pytest.fixture
def app(new_app: NewApp) -> APIFlask:
    return new_app()


@pytest.fixture
def client(app: APIFlask) -> FlaskClient:
    return app.test_client()


def _engine(url: str) -> Iterator[Engine]:
    engine = make_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    yield from _engine(database_url)


@pytest.fixture
def postgresql_engine(postgresql_url: str) -> Iterator[Engine]:
    yield from _engine(postgresql_url)


@pytest.fixture
def sqlite_engine(sqlite_url: str) -> Iterator[Engine]:
    yield from _engine(sqlite_url)


@pytest.fixture
def redis_url() -> str:
    """A Redis that other tests use too: keep to keys of your own."""
    return os.environ["TEST_REDIS_URL"]


def _services(url: str, folder: Path) -> Iterator[Services]:
    services = build_services(make_settings(url, folder))
    yield services
    services.database.engine.dispose()


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
