"""Tables on no map are named before they fail a purge, or outlive one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine

from accountsvc.db import catalog
from accountsvc.db.catalog import Unmapped, unmapped
from accountsvc.monitoring import probes
from accountsvc.services import Services
from tests.support.factories import run_sql, services_of
from tests.support.loglines import lines_of


def looked_at(engine: Engine) -> tuple[Unmapped, ...]:
    with engine.connect() as connection:
        return unmapped(connection)


def test_the_tables_of_the_service_itself_are_on_the_map(engine: Engine) -> None:
    assert looked_at(engine) == ()


def test_a_table_that_refers_to_accounts_is_named(services: Services) -> None:
    run_sql(
        services, "CREATE TABLE notes (id integer PRIMARY KEY, who integer REFERENCES accounts)"
    )

    assert looked_at(services.database.engine) == (Unmapped("notes", "who", refers=True),)


def test_a_table_that_refers_to_what_else_a_purge_deletes_is_named(services: Services) -> None:
    run_sql(services, "CREATE TABLE shares (entry integer REFERENCES saved_passwords (id))")

    assert looked_at(services.database.engine) == (Unmapped("shares", "entry", refers=True),)


def test_a_table_whose_rows_go_with_the_account_is_not_named(services: Services) -> None:
    run_sql(
        services,
        "CREATE TABLE visits (user_id integer REFERENCES accounts ON DELETE CASCADE, email text)",
    )

    assert looked_at(services.database.engine) == ()


def test_a_table_that_goes_along_and_refers_by_another_column_is_named(services: Services) -> None:
    run_sql(
        services,
        "CREATE TABLE gifts (giver integer REFERENCES accounts ON DELETE CASCADE,"
        " taker integer REFERENCES accounts)",
    )

    assert looked_at(services.database.engine) == (Unmapped("gifts", "taker", refers=True),)


def test_a_table_that_lets_go_of_its_account_is_named_for_what_else_it_holds(
    services: Services,
) -> None:
    null = "REFERENCES accounts ON DELETE SET NULL"
    run_sql(services, f"CREATE TABLE orders (user_id integer {null}, total integer)")
    run_sql(services, f"CREATE TABLE letters (user_id integer {null}, Email text)")

    (named,) = looked_at(services.database.engine)

    assert (named.table, named.column.lower(), named.refers) == ("letters", "email", False)


@pytest.mark.parametrize("column", sorted(catalog.PERSONAL))
def test_a_column_that_is_named_like_a_persons_is_known_in_any_case(column: str) -> None:
    assert catalog.is_personal(column)
    assert catalog.is_personal(column.upper())


@pytest.mark.parametrize("column", ["name", "id", "address", "owner", "mailing", "emails_sent"])
def test_a_column_as_every_database_has_it_is_nobodys(column: str) -> None:
    assert not catalog.is_personal(column)


def test_a_table_without_a_foreign_key_is_named_by_its_column(services: Services) -> None:
    run_sql(services, "CREATE TABLE newsletter (id integer PRIMARY KEY, E_Mail text)")
    run_sql(services, "CREATE TABLE products (id integer PRIMARY KEY, name text)")

    (named,) = looked_at(services.database.engine)

    assert (named.table, named.column.lower(), named.refers) == ("newsletter", "e_mail", False)


def test_every_schema_with_its_views_and_partitions_is_looked_at(postgresql: Services) -> None:
    for statement in (
        "CREATE SCHEMA archive",
        "CREATE TABLE archive.accounts (id integer, email text)",
        "CREATE MATERIALIZED VIEW people AS SELECT id, username FROM accounts",
        "CREATE VIEW today AS SELECT id, username FROM accounts",
        "CREATE TABLE logins (user_id integer, at date) PARTITION BY RANGE (at)",
        "CREATE TABLE archive.bills (payer bigint REFERENCES public.accounts)",
    ):
        run_sql(postgresql, statement)

    assert looked_at(postgresql.database.engine) == (
        Unmapped("archive.accounts", "email", refers=False),
        Unmapped("archive.bills", "payer", refers=True),
        Unmapped("logins", "user_id", refers=False),
        Unmapped("people", "username", refers=False),
    )


def test_an_attached_file_is_looked_at(sqlite: Services, tmp_path: Path) -> None:
    with sqlite.database.engine.connect() as connection:
        connection.exec_driver_sql(f"ATTACH '{tmp_path}/other.db' AS other")
        connection.exec_driver_sql("PRAGMA query_only = OFF")
        connection.exec_driver_sql("CREATE TABLE other.accounts (id integer, phone text)")

        assert unmapped(connection) == (Unmapped("other.accounts", "phone", refers=False),)


def test_machines_are_told_which_tables_are_on_no_map(client: FlaskClient) -> None:
    services = services_of(client.application)
    run_sql(services, "CREATE TABLE newsletter (email text)")

    status, metrics = client.get("/statusz").get_json(), client.get("/metrics").text

    assert status["unmapped_tables"] == ["newsletter"]
    assert (status["status"], status["parts"]["catalog"]) == ("ok", "ok")
    assert 'accountsvc_unmapped_tables{because="column"} 1.0' in metrics
    assert 'accountsvc_unmapped_tables{because="foreign_key"} 0.0' in metrics


def test_the_service_is_degraded_by_a_table_that_may_fail_purges(client: FlaskClient) -> None:
    services = services_of(client.application)
    run_sql(services, "CREATE TABLE notes (who integer REFERENCES accounts)")

    status, metrics = client.get("/statusz").get_json(), client.get("/metrics").text

    assert (status["status"], status["unmapped_tables"]) == ("degraded", ["notes"])
    assert "notes" in status["parts"]["catalog"]
    assert 'accountsvc_unmapped_tables{because="foreign_key"} 1.0' in metrics


def test_tables_on_no_map_are_said_at_once_and_daily(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sql(services, "CREATE TABLE newsletter (email text)")
    run_sql(services, "CREATE TABLE notes (who integer REFERENCES accounts)")
    named = [("newsletter", "email"), ("notes", "who")]
    watch, clock = catalog.Watch(), [1000.0]
    monkeypatch.setattr(catalog.time, "monotonic", lambda: clock[0])

    with lines_of(catalog) as lines:
        watch.say(services.unmapped_tables)
        assert [(line["table"], line["column"]) for line in lines] == named
        clock[0] += catalog.EVERY.total_seconds() - 1
        watch.say(services.unmapped_tables)
        assert len(lines) == 2
        clock[0] += 1
        watch.say(services.unmapped_tables)

    assert [(line["table"], line["column"]) for line in lines] == named * 2
    assert {line["log_level"] for line in lines} == {"warning"}


def test_a_look_that_failed_comes_again_in_minutes_and_not_at_each_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch, clock, looks = catalog.Watch(), [1000.0], [0]
    monkeypatch.setattr(catalog.time, "monotonic", lambda: clock[0])

    def look() -> tuple[Unmapped, ...]:
        looks[0] += 1
        if looks[0] == 1:
            raise ConnectionError
        return (Unmapped("newsletter", "email", refers=False),)

    with lines_of(catalog) as lines:
        with pytest.raises(ConnectionError):
            watch.say(look)
        clock[0] += catalog.AGAIN_AFTER.total_seconds() - 1
        watch.say(look)
        assert (looks[0], len(lines)) == (1, 0)
        clock[0] += 1
        watch.say(look)

    assert (looks[0], len(lines)) == (2, 1)


def test_the_web_looks_again_every_ten_minutes_also_where_nothing_was_found(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, clock = services_of(client.application), [time.monotonic()]
    monkeypatch.setattr(probes.time, "monotonic", lambda: clock[0])

    def named() -> list[str]:
        found: list[str] = client.get("/statusz").get_json()["unmapped_tables"]
        return found

    assert named() == []
    run_sql(services, "CREATE TABLE newsletter (email text)")
    clock[0] += 599
    before = named()
    clock[0] += 2
    after = named()
    run_sql(services, "DROP TABLE newsletter")
    clock[0] += 601

    assert (before, after, named()) == ([], ["newsletter"], [])
