"""How often a call asks the database: each statement is a way there and back for everybody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import Connection, event

from tests.support.factories import Person, make_person, services_of

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def ann(app: APIFlask) -> Person:
    return make_person(services_of(app), "ann")


@contextmanager
def statements(app: APIFlask) -> Iterator[list[str]]:
    """What the database is asked, as "SELECT accounts"; a transaction has "BEGIN" before it.

    That is the driver's, which sends it before what is not to be committed by itself. The COMMIT
    that ends it is not in the list.
    """
    seen: list[str] = []
    engine = services_of(app).database.engine

    def note(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, psycopg.Connection)
        status = driver.info.transaction_status
        if not driver.autocommit and status == psycopg.pq.TransactionStatus.IDLE:
            seen.append("BEGIN")
        verb = statement.split(maxsplit=1)[0]
        table = re.search(r"\b(?:FROM|INTO|UPDATE) ([a-z_]+)", statement)
        seen.append(f"{verb} {table[1] if table else 'the time'}")

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_a_profile_is_one_statement_and_no_transaction(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    with statements(app) as seen:
        assert client.get("/api/profile/", headers=ann.auth).status_code == 200

    # The guard's: the account of the token, with the database's time.
    assert seen == ["SELECT accounts"]


@pytest.mark.parametrize("query", ["", "?limit=2"])
def test_a_list_of_saved_passwords_is_two_statements_and_no_transaction(
    app: APIFlask, client: FlaskClient, ann: Person, query: str
) -> None:
    with statements(app) as seen:
        url = f"/api/view-all-saved-passwords/{query}"
        assert client.get(url, headers=ann.auth).status_code == 200

    # The guard's, and the page with the key that opens it, if the account is still as it was.
    assert seen == ["SELECT accounts", "SELECT accounts"]


def test_a_deactivation_is_so_many_statements_and_one_transaction(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    with statements(app) as seen:
        answer = client.delete(f"/api/profile/{ann.id}/delete/", headers=ann.auth)
        assert answer.status_code == 204

    assert seen == [
        # The guard's: the account of the token, with the database's time.
        "SELECT accounts",
        "BEGIN",
        # The rows that decide are locked; then the clock is read, which must not be sooner.
        "SELECT accounts",
        "SELECT the time",
        # What happened, what is owed for it (a mail and its reminders in one), and the row.
        "INSERT audit_events",
        "INSERT outbox",
        "UPDATE accounts",
    ]
