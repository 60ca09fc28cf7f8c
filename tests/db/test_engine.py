"""Transactions, connections and the clock: what an engine of ours does that a plain one does not."""

from __future__ import annotations

import re
import select as polling
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, String, event, select, text, type_coerce, update
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from accountsvc.db.engine import Moment, database_now
from accountsvc.db.models import Account, LegalHold
from accountsvc.services import Services
from tests.support.factories import insert_account
from tests.support.moments import NOW
from tests.support.state import everything, get_account

REFUSED = "readonly|neither write nor lock"


def driver_of(session: Session) -> psycopg.Connection[object]:
    driver = session.connection().connection.dbapi_connection
    assert isinstance(driver, psycopg.Connection)
    return driver


# Reading and writing -----------------------------------------------------------------------------


def test_reading_leaves_no_transaction_open_and_writing_one(postgresql: Services) -> None:
    """An open one keeps old rows from being cleaned away, and costs two words with the server."""
    account = insert_account(postgresql)
    with postgresql.reading() as session:
        for _ in range(2):
            assert session.scalar(select(Account.id)) == account.id
            assert driver_of(session).info.transaction_status == TransactionStatus.IDLE

    with postgresql.writing() as session:
        assert session.scalar(select(Account.id)) == account.id
        assert driver_of(session).info.transaction_status == TransactionStatus.INTRANS


def test_each_statement_of_a_reading_transaction_sees_what_is_committed(
    postgresql: Services,
) -> None:
    account = insert_account(postgresql)
    query = select(Account.epoch).where(Account.id == account.id)
    with postgresql.reading() as session:
        before = session.scalar(query)
        with postgresql.writing() as other:
            other.get_one(Account, account.id).epoch = 7
        after = session.scalar(query)

    assert (before, after) == (0, 7)


WRITES: dict[str, Callable[[Session, int], object]] = {
    "an UPDATE": lambda session, _: session.execute(update(Account).values(epoch=9)),
    "SQL by hand": lambda session, _: session.execute(text("\n  update accounts set epoch = 9")),
    "a changed object": lambda session, account_id: setattr(
        session.get_one(Account, account_id), "epoch", 9
    ),
    "an added object": lambda session, account_id: session.add(
        LegalHold(account_id=account_id, reason="x", placed_at=NOW, placed_by_kind="operator")
    ),
    "a deleted object": lambda session, account_id: session.delete(
        session.get_one(Account, account_id)
    ),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_reading_transaction_cannot_write_whatever_it_writes_by(
    services: Services, what: str
) -> None:
    account = insert_account(services)
    before = everything(services)

    def write() -> None:
        with services.reading() as session:
            WRITES[what](session, account.id)
            session.flush()

    with pytest.raises((RuntimeError, OperationalError), match=REFUSED):
        write()

    assert everything(services) == before


LOCKS: dict[str, Callable[[Session, int], object]] = {
    "to change": lambda session, _: session.scalar(select(Account).with_for_update()),
    "to read": lambda session, _: session.scalar(select(Account).with_for_update(read=True)),
    "of a key": lambda session, _: session.scalar(select(Account).with_for_update(key_share=True)),
    "an object": lambda session, account_id: session.get(
        Account, account_id, with_for_update={"skip_locked": True}
    ),
    "a table": lambda session, _: session.execute(text("LOCK TABLE accounts")),
    "and empty a table": lambda session, _: session.execute(text("TRUNCATE accounts CASCADE")),
    "in a WITH that writes": lambda session, _: session.execute(
        text("WITH one AS (UPDATE accounts SET epoch = 9 RETURNING id) SELECT * FROM one")
    ),
}


@pytest.mark.parametrize("what", LOCKS)
def test_a_reading_transaction_cannot_lock(postgresql: Services, what: str) -> None:
    """The lock would be gone before the next statement, which relies on it."""
    account = insert_account(postgresql)

    with (
        pytest.raises(RuntimeError, match="neither write nor lock"),
        postgresql.reading() as session,
    ):
        LOCKS[what](session, account.id)

    assert get_account(postgresql, account.id).epoch == 0


# Connections -------------------------------------------------------------------------------------


def backend_of_the_next(engine: Engine) -> tuple[int, bool]:
    """The server's process behind the connection that the pool gives out next, and its autocommit."""
    raw = engine.raw_connection()
    try:
        driver = raw.dbapi_connection
        assert isinstance(driver, psycopg.Connection)
        return driver.info.backend_pid, driver.autocommit
    finally:
        raw.close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_connection_comes_back_to_the_pool_as_it_went(postgresql: Services, fails: bool) -> None:
    def read() -> int:
        with postgresql.reading() as session:
            driver = driver_of(session)
            assert driver.autocommit
            if fails:
                session.execute(text("SELECT 1 / 0"))
            return driver.info.backend_pid

    if fails:
        with pytest.raises(DBAPIError):
            read()
        used = backend_of_the_next(postgresql.database.engine)[0]
    else:
        used = read()

    assert backend_of_the_next(postgresql.database.engine) == (used, False)
    with postgresql.writing() as session:
        assert driver_of(session).info.backend_pid == used
        session.execute(text("SELECT 1"))
        assert driver_of(session).info.transaction_status == TransactionStatus.INTRANS


def terminate_all(url: str) -> int:
    """End the server's processes behind all other connections of its database; their number."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        # The second argument waits until each is gone.
        found = connection.execute(
            "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert found is not None
    return int(found[0])


def test_idle_connections_that_the_server_has_closed_are_replaced_and_nobody_notices(
    postgresql: Services, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    account = insert_account(postgresql)

    def read_by_three() -> list[int]:
        with ExitStack() as stack:
            sessions = [stack.enter_context(postgresql.reading()) for _ in range(3)]
            assert [one.scalar(select(Account.id)) for one in sessions] == [account.id] * 3
            return [driver_of(one).info.backend_pid for one in sessions]

    before = read_by_three()
    assert terminate_all(postgresql.settings.database_url) == 3

    with postgresql.reading() as session:
        assert session.scalar(select(Account.id)) == account.id
    assert set(read_by_three()).isdisjoint(before)

    terminate_all(postgresql.settings.database_url)
    with postgresql.writing() as session:
        session.get_one(Account, account.id).epoch = 3

    assert get_account(postgresql, account.id).epoch == 3
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []
    assert capsys.readouterr() == ("", "")


def test_a_connection_that_ends_while_it_is_read_from_is_one_error_and_not_two(
    postgresql: Services,
) -> None:
    """It must leave the pool: whoever came next would get the same error."""
    account = insert_account(postgresql)

    def read_over_the_end() -> None:
        with postgresql.reading() as session:
            session.scalar(select(Account.id))
            terminate_all(postgresql.settings.database_url)
            session.scalar(select(Account.id))

    with pytest.raises(OperationalError):
        read_over_the_end()
    with postgresql.reading() as session:
        # It ends behind the last statement: nobody has noticed when it goes back to the pool.
        session.scalar(select(Account.id))
        terminate_all(postgresql.settings.database_url)
    with postgresql.writing() as session:
        assert session.scalar(select(Account.id)) == account.id


def test_a_connection_that_was_closed_on_this_side_is_replaced(postgresql: Services) -> None:
    """The driver closes one after some faults: it has no socket to ask the kernel about."""
    with postgresql.reading() as session:
        driver = driver_of(session)
    driver.close()

    with postgresql.reading() as session:
        assert session.scalar(select(1)) == 1
        assert driver_of(session) is not driver


def test_what_a_server_sends_first_does_not_have_a_new_connection_replaced(
    postgresql: Services,
) -> None:
    """Each would be replaced by one to which it sends the same, and nobody be served."""
    engine, made = postgresql.database.engine, []

    def notify(connection: psycopg.Connection[object], _record: object) -> None:
        made.append(connection)
        connection.execute("LISTEN news")
        connection.commit()
        url = postgresql.settings.database_url.replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("NOTIFY news")
        waiting = polling.poll()
        waiting.register(connection.fileno(), polling.POLLIN)
        assert waiting.poll(60_000)

    event.listen(engine, "connect", notify)
    with postgresql.reading() as session:
        assert session.scalar(select(1)) == 1
    event.remove(engine, "connect", notify)

    assert len(made) == 1


# The clock ---------------------------------------------------------------------------------------


def test_a_moment_is_the_time_of_the_database_in_utc(services: Services) -> None:
    with services.writing() as session:
        moments = [
            database_now(session),
            session.scalar(select(Moment())),
            database_now(session),
            session.scalar(select(Moment())),
        ]

    assert all(moment is not None and moment.tzinfo is UTC for moment in moments)
    assert moments == sorted(moments)  # type: ignore[type-var]
    if services.database.engine.dialect.name == "sqlite":
        assert {moment.microsecond % 1000 for moment in moments if moment} == {0}


def test_a_moment_is_not_the_start_of_the_transaction(postgresql: Services) -> None:
    with postgresql.writing() as session:
        began, moment = session.execute(select(text("now()"), Moment())).one()

    assert began < moment


def test_stored_times_are_compared_with_a_moment(services: Services) -> None:
    with services.writing() as session:
        now = database_now(session)
    insert_account(services, "past", joined_at=now)
    insert_account(services, "tomorrow", joined_at=now + timedelta(days=1))
    insert_account(services, "today", joined_at=now - timedelta(milliseconds=1))
    insert_account(services, "later", joined_at=now + timedelta(minutes=10))

    with services.reading() as session:
        past = session.scalars(select(Account.username).where(Account.joined_at <= Moment()))
        assert sorted(past) == ["past", "today"]


def test_a_moment_has_the_form_of_a_stored_time(sqlite: Services) -> None:
    """Both are texts: of another form, one would be later than the other whatever the time is."""
    insert_account(sqlite, joined_at=NOW)

    with sqlite.reading() as session:
        stored = session.scalar(text("SELECT joined_at FROM accounts"))
        moment = session.scalar(select(type_coerce(Moment(), String)))

    assert re.sub(r"\d", "0", moment or "") == re.sub(r"\d", "0", stored)


# The file of SQLite --------------------------------------------------------------------------------


def test_a_file_that_was_replaced_is_refused_until_the_restart(sqlite: Services) -> None:
    """Written into the old one, what was answered with 200 would be gone with the process."""
    path = Path(sqlite.database.engine.url.database or "")
    account = insert_account(sqlite)
    other = path.with_name("other.db")
    with closing(sqlite3.connect(path)) as old, closing(sqlite3.connect(other)) as new:
        old.backup(new)
    other.replace(path)

    for opened in (sqlite.reading, sqlite.writing):
        with pytest.raises(OperationalError, match="restart this process"), opened():
            pass

    for suffix in ("-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").unlink()
    sqlite.database.engine.dispose()
    assert get_account(sqlite, account.id).username == account.username
