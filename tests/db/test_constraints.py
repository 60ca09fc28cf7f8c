"""The database has the last word: by hand, in SQL, nobody gets round the rules of the schema."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from accountsvc.db.engine import Database, database_now, reading, writing
from accountsvc.db.models import (
    Account,
    AuditEvent,
    LegalHold,
    PurgeFailure,
    Receipt,
    SavedPassword,
    VaultKey,
)

NOW = datetime(2026, 11, 23, 9, 30, 15, 123456, tzinfo=UTC)
LATER = NOW + timedelta(days=14)
MICROSECOND = timedelta(microseconds=1)
DEACTIVATED = {"deactivated_at": NOW, "purge_at": LATER, "deactivated_by": "owner"}

ByHand = Callable[[], AbstractContextManager[Connection]]


@pytest.fixture(params=["service", "shell"])
def by_hand(request: pytest.FixtureRequest, database_url: str, engine: Engine) -> ByHand:
    """A way to write: as the service connects, and as a person's shell does, without a pragma."""
    stranger = create_engine(database_url, poolclass=NullPool)
    if request.param == "shell":
        return stranger.begin

    @contextmanager
    def begin() -> Iterator[Connection]:
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    return begin


@contextmanager
def writer(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


def add_account(engine: Engine, name: str, **columns: Any) -> int:
    values = {
        "public_id": uuid.uuid4(),
        "username": name,
        "username_key": name,
        "email": f"{name}@example.org",
        "email_key": f"{name}@example.org",
        "password_hash": "x",
        "joined_at": NOW,
        **columns,
    }
    with writer(engine) as connection:
        return connection.execute(insert(Account).values(values).returning(Account.id)).scalar_one()


def add_hold(engine: Engine, account_id: int, **columns: Any) -> None:
    with writer(engine) as connection:
        connection.execute(
            insert(LegalHold).values(
                account_id=account_id,
                reason="court",
                placed_at=NOW,
                placed_by_kind="staff",
                **columns,
            )
        )


def add_belongings(engine: Engine, account_id: int) -> None:
    with writer(engine) as connection:
        for _ in range(2):
            connection.execute(
                insert(SavedPassword).values(
                    account_id=account_id, ciphertext=b"\0", created_at=NOW, updated_at=NOW
                )
            )
        connection.execute(
            insert(VaultKey).values(account_id=account_id, wrapped_key=b"\0", wrapped_by="k")
        )
        connection.execute(
            insert(PurgeFailure).values(
                account_id=account_id, attempts=1, failed_at=NOW, retry_at=LATER, error="Error"
            )
        )


def add_receipt(engine: Engine, **columns: Any) -> uuid.UUID:
    public_id = uuid.uuid4()
    with writer(engine) as connection:
        connection.execute(
            insert(Receipt).values(
                public_id=public_id,
                deactivated_at=NOW,
                deactivated_by="owner",
                purge_at=LATER,
                purged_at=LATER,
                saved_passwords=2,
                files=1,
                **columns,
            )
        )
    return public_id


def add_event(engine: Engine) -> None:
    with writer(engine) as connection:
        connection.execute(
            insert(AuditEvent).values(at=NOW, action="purged", actor_kind="system", details={})
        )


def rows(engine: Engine, table: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        found = connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY 1")
        return [tuple(row) for row in found]


def belongings(engine: Engine, account_id: int) -> list[int]:
    with engine.connect() as connection:
        return [
            connection.exec_driver_sql(
                f"SELECT count(*) FROM {table} WHERE account_id = {account_id}"
            ).scalar_one()
            for table in ("saved_passwords", "vault_keys", "purge_failures")
        ]


def refused(by_hand: ByHand, statement: str, because: str = "") -> None:
    """Assert that the database itself refuses *statement*."""
    with pytest.raises(IntegrityError) as caught, by_hand() as connection:
        connection.exec_driver_sql(statement)
    assert because in str(caught.value)


# Accounts


def test_an_active_account_cannot_be_deleted(engine: Engine, by_hand: ByHand) -> None:
    account_id = add_account(engine, "anna")
    add_belongings(engine, account_id)

    refused(by_hand, f"DELETE FROM accounts WHERE id = {account_id}", "active account")

    assert len(rows(engine, "accounts")) == 1
    assert belongings(engine, account_id) == [2, 1, 1]


def test_one_active_account_saves_the_others_of_the_statement(
    engine: Engine, by_hand: ByHand
) -> None:
    add_account(engine, "anna", **DEACTIVATED)
    add_account(engine, "bert")

    refused(by_hand, "DELETE FROM accounts", "active account")

    assert len(rows(engine, "accounts")) == 2


def test_an_account_with_an_open_hold_cannot_be_deleted(engine: Engine, by_hand: ByHand) -> None:
    account_id = add_account(engine, "anna", **DEACTIVATED)
    add_belongings(engine, account_id)
    add_hold(engine, account_id)

    refused(by_hand, f"DELETE FROM accounts WHERE id = {account_id}")

    # No cascade has run before the refusal.
    assert len(rows(engine, "accounts")) == 1
    assert belongings(engine, account_id) == [2, 1, 1]


def test_a_hold_does_not_go_with_its_account_even_when_released(engine: Engine) -> None:
    account_id = add_account(engine, "anna", **DEACTIVATED)
    add_hold(engine, account_id, released_at=NOW)

    with pytest.raises(IntegrityError), writer(engine) as connection:
        connection.exec_driver_sql(f"DELETE FROM accounts WHERE id = {account_id}")

    assert len(rows(engine, "legal_holds")) == 1


def test_a_deactivated_account_goes_with_its_belongings_and_nobody_elses(engine: Engine) -> None:
    account_id = add_account(engine, "anna", **DEACTIVATED)
    bystander_id = add_account(engine, "bert", **DEACTIVATED)
    for owner_id in (account_id, bystander_id):
        add_belongings(engine, owner_id)

    with writer(engine) as connection:
        connection.exec_driver_sql(f"DELETE FROM accounts WHERE id = {account_id}")

    assert belongings(engine, account_id) == [0, 0, 0]
    assert belongings(engine, bystander_id) == [2, 1, 1]
    assert [row[0] for row in rows(engine, "accounts")] == [bystander_id]


def test_accounts_cannot_be_truncated(postgresql_engine: Engine) -> None:
    add_account(postgresql_engine, "anna", **DEACTIVATED)

    for statement in ("TRUNCATE accounts CASCADE", "TRUNCATE accounts, saved_passwords CASCADE"):
        with pytest.raises(IntegrityError, match="truncated"), writer(postgresql_engine) as hand:
            hand.exec_driver_sql(statement)

    assert len(rows(postgresql_engine, "accounts")) == 1


@pytest.mark.parametrize("key", ["id", "email_key", "username_key", "public_id"])
def test_an_active_account_cannot_be_replaced(sqlite_engine: Engine, key: str) -> None:
    account_id = add_account(sqlite_engine, "anna")
    add_belongings(sqlite_engine, account_id)
    before = rows(sqlite_engine, "accounts")
    columns = {
        "id": "99", "public_id": "'00'", "username": "'x'", "username_key": "'x'",
        "email": "'x'", "email_key": "'x'", "first_name": "''", "last_name": "''",
        "number_phone": "''", "password_hash": "''", "joined_at": "joined_at",
    } | {key: key}  # fmt: skip

    with pytest.raises(IntegrityError, match="active account"), writer(sqlite_engine) as hand:
        hand.exec_driver_sql(
            f"INSERT OR REPLACE INTO accounts ({', '.join(columns)})"
            f" SELECT {', '.join(columns.values())} FROM accounts"
        )

    assert rows(sqlite_engine, "accounts") == before
    assert belongings(sqlite_engine, account_id) == [2, 1, 1]


@pytest.mark.parametrize(
    "columns",
    [
        ["deactivated_at"],
        ["purge_at"],
        ["deactivated_by"],
        ["deactivated_at", "purge_at"],
        ["deactivated_at", "deactivated_by"],
        ["purge_at", "deactivated_by"],
    ],
    ids="+".join,
)
def test_a_half_deactivated_account_cannot_be(engine: Engine, columns: list[str]) -> None:
    half = {name: value for name, value in DEACTIVATED.items() if name in columns}

    with pytest.raises(IntegrityError, match="deactivation_whole"):
        add_account(engine, "anna", **half)


@pytest.mark.parametrize("column", list(DEACTIVATED))
def test_an_account_cannot_be_half_reactivated(
    engine: Engine, by_hand: ByHand, column: str
) -> None:
    add_account(engine, "anna", **DEACTIVATED)

    refused(by_hand, f"UPDATE accounts SET {column} = NULL", "deactivation_whole")


@pytest.mark.parametrize(
    ("grace", "allowed"),
    [(-MICROSECOND, False), (timedelta(0), True), (MICROSECOND, True)],
    ids=["before", "at once", "after"],
)
def test_a_purge_is_never_before_the_deactivation(
    engine: Engine, grace: timedelta, allowed: bool
) -> None:
    times = DEACTIVATED | {"purge_at": NOW + grace}

    if allowed:
        add_account(engine, "anna", **times)
    else:
        with pytest.raises(IntegrityError, match="purge_after_deactivation"):
            add_account(engine, "anna", **times)


def test_nobody_else_deactivates(engine: Engine) -> None:
    with pytest.raises(IntegrityError, match="deactivated_by"):
        add_account(engine, "anna", **DEACTIVATED | {"deactivated_by": "system"})


def test_an_active_account_keeps_no_reason(engine: Engine) -> None:
    with pytest.raises(IntegrityError, match="reason_deactivated"):
        add_account(engine, "anna", reason="spam")


PENDING = {"pending_email": "new@example.org", "pending_email_at": NOW, "pending_epoch": 0}


@pytest.mark.parametrize("column", list(PENDING))
def test_a_pending_address_is_whole(engine: Engine, by_hand: ByHand, column: str) -> None:
    add_account(engine, "anna", **PENDING)

    refused(by_hand, f"UPDATE accounts SET {column} = NULL", "pending_whole")

    with pytest.raises(IntegrityError, match="pending_whole"):
        add_account(engine, "bert", **{column: PENDING[column]})


def test_an_id_never_comes_again(engine: Engine) -> None:
    add_account(engine, "anna", **DEACTIVATED)
    gone = add_account(engine, "bert", **DEACTIVATED)
    with writer(engine) as connection:
        connection.exec_driver_sql("DELETE FROM accounts")

    assert add_account(engine, "carla") > gone


def test_an_effect_outlives_its_account(engine: Engine) -> None:
    public_id = uuid.uuid4()
    account_id = add_account(engine, "anna", public_id=public_id, **DEACTIVATED)
    with writer(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO outbox (uid, kind, subject, payload, created_at, deliver_after)"
                " VALUES (:id, 'delete_file', :id, '{}', :now, :now)"
            ),
            {"id": public_id.hex, "now": str(NOW)},
        )
        connection.exec_driver_sql(f"DELETE FROM accounts WHERE id = {account_id}")

    assert len(rows(engine, "outbox")) == 1


# Audit events and receipts


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_events SET action = 'x'",
        "UPDATE audit_events SET id = id",
        "DELETE FROM audit_events",
    ],
)
def test_an_audit_event_cannot_be_changed(engine: Engine, by_hand: ByHand, statement: str) -> None:
    add_event(engine)
    before = rows(engine, "audit_events")

    refused(by_hand, statement, "append-only")

    assert rows(engine, "audit_events") == before


@pytest.mark.parametrize("table", ["audit_events", "receipts"])
def test_what_only_grows_cannot_be_truncated(postgresql_engine: Engine, table: str) -> None:
    add_event(postgresql_engine)
    add_receipt(postgresql_engine)

    with pytest.raises(IntegrityError, match="append-only"), writer(postgresql_engine) as hand:
        hand.exec_driver_sql(f"TRUNCATE {table}")

    assert len(rows(postgresql_engine, table)) == 1


@pytest.mark.parametrize("table", ["audit_events", "receipts"])
@pytest.mark.parametrize("pragma", ["ON", "OFF"])
def test_what_only_grows_cannot_be_replaced(sqlite_engine: Engine, table: str, pragma: str) -> None:
    add_event(sqlite_engine)
    add_receipt(sqlite_engine)
    before = rows(sqlite_engine, table)

    with writer(sqlite_engine) as hand:
        hand.exec_driver_sql(f"PRAGMA recursive_triggers = {pragma}")
        with pytest.raises(IntegrityError, match="append-only"):
            hand.exec_driver_sql(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")

    assert rows(sqlite_engine, table) == before


@pytest.mark.parametrize(
    "change",
    [
        "saved_passwords = 0",
        "files = 9",
        "deactivated_by = 'staff'",
        "deactivated_at = purge_at",
        "purge_at = deactivated_at",
        "purged_at = deactivated_at",
        "public_id = '00000000000000000000000000000000'",
        "scrubbed_at = purged_at",
    ],
)
def test_a_receipt_cannot_be_changed(engine: Engine, by_hand: ByHand, change: str) -> None:
    add_receipt(engine)
    before = rows(engine, "receipts")

    refused(by_hand, f"UPDATE receipts SET {change}", "append-only")

    assert rows(engine, "receipts") == before


@pytest.mark.parametrize("scrubbed_at", [None, LATER], ids=["unscrubbed", "scrubbed"])
def test_a_receipt_cannot_be_deleted(
    engine: Engine, by_hand: ByHand, scrubbed_at: datetime | None
) -> None:
    add_receipt(engine, scrubbed_at=scrubbed_at)

    refused(by_hand, "DELETE FROM receipts", "append-only")

    assert len(rows(engine, "receipts")) == 1


# Transactions


def test_a_reading_transaction_cannot_write(sqlite_engine: Engine) -> None:
    account_id = add_account(sqlite_engine, "anna")
    with Session(sqlite_engine) as session:
        with pytest.raises(OperationalError, match="readonly"), reading(session):
            session.execute(update(Account).values(epoch=1))

        with writing(session):
            session.execute(update(Account).values(epoch=2))
        with pytest.raises(OperationalError, match="readonly"), reading(session):
            session.execute(update(Account).values(epoch=3))

    with Session(sqlite_engine) as session, reading(session):
        assert session.get_one(Account, account_id).epoch == 2


def test_a_failed_writing_transaction_leaves_nothing(engine: Engine) -> None:
    account_id = add_account(engine, "anna")
    database = Database(engine)

    def interrupted() -> None:
        with database.writing() as session:
            session.get_one(Account, account_id).epoch = 7
            session.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    with database.reading() as session:
        assert session.get_one(Account, account_id).epoch == 0


def test_writers_queue_instead_of_failing_or_overwriting(engine: Engine) -> None:
    account_id = add_account(engine, "anna")
    database = Database(engine)
    together = threading.Barrier(4)

    def raise_epoch() -> None:
        together.wait(timeout=120)
        for _ in range(10):
            with database.writing() as session:
                session.get_one(Account, account_id, with_for_update=True).epoch += 1

    with ThreadPoolExecutor(together.parties) as pool:
        writers = [pool.submit(raise_epoch) for _ in range(together.parties)]
        for running in writers:
            running.result(timeout=120)

    with database.reading() as session:
        assert session.get_one(Account, account_id).epoch == 40


def test_a_writing_transaction_on_sqlite_holds_the_lock_from_its_start(
    sqlite_engine: Engine,
) -> None:
    with Session(sqlite_engine) as second, Database(sqlite_engine).writing():
        # It has not written yet, and still nobody else may begin.
        second.connection(execution_options={"writes": False}).exec_driver_sql(
            "PRAGMA busy_timeout = 50"
        )
        second.rollback()
        with pytest.raises(OperationalError, match="locked"), writing(second):
            raise AssertionError("a second writer began")

        with reading(second):
            assert second.scalars(select(Account.id)).all() == []


def test_the_database_tells_the_time_in_utc(engine: Engine) -> None:
    before = datetime.now(UTC)
    with Session(engine) as session, reading(session):
        first = database_now(session)
        second = database_now(session)

    # SQLite cuts to milliseconds.
    assert before - timedelta(milliseconds=1) <= first <= second <= datetime.now(UTC)
    assert first.utcoffset() == timedelta(0)
