"""Finding and locking rows: no id or text is an error, and locks come in id order."""

from __future__ import annotations

import threading
import uuid

import pytest
from sqlalchemy import text

from accountsvc.db import rows
from accountsvc.db.engine import database_now
from accountsvc.db.models import MAX_ID, Account
from accountsvc.errors import AccountNotFound, TokenNotValid
from accountsvc.services import Services
from tests.support.factories import deactivate, insert_account, insert_accounts, numbered
from tests.support.moments import NOW, SECOND
from tests.support.processes import eventually
from tests.support.state import waits_for_a_lock

NO_ID = [0, -1, 999, MAX_ID, MAX_ID + 1, 2**64, -(2**63), 10**40]


@pytest.mark.parametrize("account_id", NO_ID)
def test_an_id_that_nobody_has_is_nobodys(services: Services, account_id: int) -> None:
    insert_account(services)

    with services.reading() as session:
        assert rows.find(session, account_id) is None
    for share in (False, True):
        with services.writing() as session, pytest.raises(AccountNotFound):
            rows.lock(session, account_id, share=share)
    with services.writing() as session, pytest.raises(TokenNotValid):
        rows.lock_for_write(session, account_id, epoch=0)


@pytest.mark.parametrize(
    "named",
    [
        "",
        " ",
        "x",
        "@",
        "0",
        "-1",
        "+1",
        "1.0",
        "1e0",
        "1_0",
        "٣",
        "²",
        "9" * 19,
        "9" * 20,
        "9" * 5000,
        "nobody@example.org",
        "' OR '1'='1",
        "x@example.org' OR 1=1 --",
        "%@example.org",
        "____@example.org",
        "a\0@example.org",
        "a\udcff@example.org",
        "\udcff",
        "\0",
    ],
)
def test_a_name_that_nobody_has_finds_nobody(services: Services, named: str) -> None:
    insert_account(services)

    with services.reading() as session:
        assert rows.locate(session, named) is None


def test_an_account_is_located_by_id_address_or_number(services: Services) -> None:
    account = insert_account(services, "ann")

    with services.reading() as session:
        for named in (
            str(account.id),
            f"0{account.id}",
            "ann@example.org",
            "ANN@Example.org",
            str(account.public_id),
            str(account.public_id).upper(),
            account.public_id.hex,
            account.public_id.hex.upper(),
        ):
            found = rows.locate(session, named)
            assert found is not None
            assert found.id == account.id
        # Half of its hyphens, or braces around it, are no form that anybody was shown.
        half = str(account.public_id).replace("-", "", 1)
        for other in (half, f"{{{account.public_id}}}", f"urn:uuid:{account.public_id}"):
            assert rows.locate(session, other) is None
        by_public_id = rows.find_by_public_id(session, account.public_id)
        assert by_public_id is not None
        assert rows.find_by_public_id(session, uuid.uuid4()) is None


def test_several_rows_are_locked_in_id_order_and_missing_ones_left_out(services: Services) -> None:
    ids = insert_accounts(services, numbered("ann", 3))

    with services.writing() as session:
        found = rows.lock_many(session, [ids[2], 999, ids[0]])

    assert list(found) == [ids[0], ids[2]]


def test_a_locked_row_is_read_anew(services: Services) -> None:
    account = insert_account(services)

    with services.writing() as session:
        stale = rows.find(session, account.id)
        assert stale is not None
        if services.database.engine.dialect.name == "postgresql":
            # On SQLite nobody else can write while this transaction lasts.
            deactivate(services, account.id, now=NOW)
            assert rows.lock(session, account.id).deactivated_at == NOW
            assert rows.lock_many(session, [account.id])[account.id].deactivated_at == NOW
    deactivate(services, account.id, now=NOW)
    with services.writing() as session:
        assert rows.lock(session, account.id).deactivated_at == NOW


@pytest.mark.parametrize("share", [False, True])
def test_a_write_needs_an_active_account_and_the_epoch_of_the_token(
    services: Services, share: bool
) -> None:
    active = insert_account(services, "active", epoch=4)
    away = insert_account(services, "away", epoch=4, purge_at=NOW + SECOND)

    with services.writing() as session:
        assert rows.lock_for_write(session, active.id, epoch=4, share=share).id == active.id
        for account_id, epoch in ((active.id, 3), (active.id, 5), (away.id, 4), (away.id, 3)):
            with pytest.raises(TokenNotValid):
                rows.lock_for_write(session, account_id, epoch=epoch, share=share)


def test_writers_share_a_row_and_a_deactivation_waits_for_them(postgresql: Services) -> None:
    account = insert_account(postgresql)
    done = threading.Event()

    def wait_and_deactivate() -> None:
        deactivate(postgresql, account.id, now=NOW)
        done.set()

    with postgresql.writing() as first, postgresql.writing() as second:
        rows.lock_for_write(first, account.id, epoch=0)
        rows.lock_for_write(second, account.id, epoch=0)
        thread = threading.Thread(target=wait_and_deactivate)
        thread.start()
        while not waits_for_a_lock(postgresql.database.engine):
            assert not done.wait(0.02)
        assert not done.is_set()
    thread.join(30)
    assert done.is_set()


def test_an_account_is_seen_with_the_time_at_which_it_was_so(services: Services) -> None:
    account = insert_account(services, "ann")
    insert_account(services, "bob")

    with services.reading() as session:
        before = database_now(session)
        seen = rows.see(session, account.public_id)
        after = database_now(session)
        assert rows.see(session, uuid.uuid4()) is None

    assert seen is not None
    found, moment = seen
    assert (found.id, found.username) == (account.id, "ann")
    assert before <= moment <= after


@pytest.mark.parametrize("chunk", [500, 2])
def test_a_deactivation_locks_all_active_staff_if_one_of_them_is_staff(
    services: Services, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(rows, "CHUNK", chunk)
    ann, bob, cid = insert_accounts(services, ["ann", "bob", "cid"])
    first = insert_account(services, "first", is_staff=True).id
    insert_account(services, "away", is_staff=True, purge_at=NOW + SECOND)
    dot = insert_account(services, "dot").id
    last = insert_account(services, "last", is_staff=True).id

    with services.writing() as session:
        nobody = rows.lock_for_deactivation(session, [dot, cid, ann, bob, ann, 999, -1])
        some = rows.lock_for_deactivation(session, [last, dot, bob, ann])
        others = rows.lock_for_deactivation(session, [first])
        assert list(rows.lock_for_deactivation(session, [])) == []
        assert some[last] is session.get_one(Account, last)

    assert list(nobody) == [ann, bob, cid, dot]
    assert list(some) == [ann, bob, first, dot, last]
    assert list(others) == [first, last]


@pytest.mark.parametrize("chunk", [500, 1])
def test_staff_are_locked_in_id_order_and_not_for_others(
    postgresql: Services, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Two who lock in different orders wait for each other until one of them is refused."""
    monkeypatch.setattr(rows, "CHUNK", chunk)
    low, middle, high = (
        insert_account(postgresql, name, is_staff=True).id for name in ("low", "middle", "high")
    )
    ann, bob = insert_accounts(postgresql, ["ann", "bob"])
    database = postgresql.database

    def is_locked(account_id: int) -> bool:
        with postgresql.reading() as session:
            query = "SELECT 1 FROM accounts WHERE id = :id"
            assert session.scalar(text(query), {"id": account_id}) == 1
        with database.engine.connect() as other:
            free = other.execute(text(f"{query} FOR UPDATE SKIP LOCKED"), {"id": account_id})
            return free.first() is None

    with postgresql.writing() as session:
        rows.lock_for_deactivation(session, [bob, ann])
        assert [is_locked(one) for one in (low, middle, high, ann, bob)] == [False] * 3 + [True] * 2

    def lock() -> None:
        with postgresql.writing() as session:
            rows.lock_for_deactivation(session, [high, ann])

    with postgresql.writing() as session:
        rows.lock(session, middle)
        thread = threading.Thread(target=lock)
        thread.start()
        eventually(lambda: waits_for_a_lock(database.engine), pause=0)
        locked = [is_locked(one) for one in (low, middle, high, ann)]
    thread.join(60)

    assert locked == [True, True, False, False]
