"""How much a vault may hold, and that no two writes at once find the same room."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import event

from accountsvc import bounds
from accountsvc.accounts import vault
from accountsvc.accounts.vault import Entry
from accountsvc.db.models import Account, SavedPassword
from accountsvc.errors import VaultFull
from accountsvc.services import Services
from tests.support.factories import fill_vault, make_account, save_password
from tests.support.moments import NOW, at
from tests.support.state import possessions, rows_of, waits_for_a_lock

# ``["", "", ""]``, which is what an entry of empty texts is encrypted as.
FRAME = 12


def size_of(services: Services, account: Account) -> int:
    """The plaintext of the vault in bytes, counted here by decrypting nothing."""
    rows = rows_of(services, SavedPassword, SavedPassword.account_id == account.id)
    return sum(len(row.ciphertext) - 28 for row in rows)


def change(services: Services, account: Account, entry_id: int, **changes: str) -> None:
    with services.writing() as session:
        vault.update(
            session,
            services.keyring,
            account.id,
            entry_id,
            epoch=account.epoch,
            changes=changes,
            clock=at(NOW),
        )


def delete(services: Services, account: Account, entry_id: int) -> None:
    with services.writing() as session:
        vault.delete(session, account.id, entry_id, epoch=account.epoch)


def test_the_last_entry_is_taken_and_one_more_is_not(services: Services) -> None:
    ann, bob = make_account(services, "ann", now=NOW), make_account(services, "bob", now=NOW)
    of_bob = fill_vault(services, bob, 3)
    fill_vault(services, ann, bounds.VAULT_ENTRIES - 1)
    theirs = possessions(services, bob.id)

    last = save_password(services, ann, now=NOW)
    with pytest.raises(VaultFull):
        save_password(services, ann, now=NOW)

    assert possessions(services, bob.id) == theirs
    delete(services, ann, last)
    assert save_password(services, ann, now=NOW) > last
    assert save_password(services, bob, now=NOW) > of_bob[-1]


@pytest.mark.parametrize("character", ["x", "я", "🐎", '"', "\n"])
def test_the_last_byte_is_taken_and_one_more_is_not(
    services: Services, monkeypatch: pytest.MonkeyPatch, character: str
) -> None:
    """The bytes are those of the JSON that is encrypted, in UTF-8, whatever the characters are."""
    ann = make_account(services, "ann", now=NOW)
    save_password(services, ann, 10 * character, name_pages="", url="", now=NOW)
    taken = size_of(services, ann)
    monkeypatch.setattr(bounds, "VAULT_BYTES", 2 * taken)

    with pytest.raises(VaultFull):
        save_password(services, ann, 10 * character + "x", name_pages="", url="", now=NOW)
    save_password(services, ann, 10 * character, name_pages="", url="", now=NOW)

    assert size_of(services, ann) == bounds.VAULT_BYTES
    monkeypatch.setattr(bounds, "VAULT_BYTES", bounds.VAULT_BYTES + FRAME)
    save_password(services, ann, "", name_pages="", url="", now=NOW)


def test_who_has_more_reads_edits_and_deletes_on(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = make_account(services, "ann", now=NOW)
    ids = fill_vault(services, ann, 7, secret="0123456789")
    monkeypatch.setattr(bounds, "VAULT_ENTRIES", 5)
    monkeypatch.setattr(bounds, "VAULT_BYTES", size_of(services, ann) // 2)

    with services.reading() as session:
        account = session.get_one(Account, ann.id)
        assert len(list(vault.entries(session, services.keyring, account))) == 7
    change(services, ann, ids[0], password_saved="9876543210")
    change(services, ann, ids[0], password_saved="short")
    with pytest.raises(VaultFull):
        change(services, ann, ids[1], password_saved="0123456789+")
    with pytest.raises(VaultFull):
        save_password(services, ann, "x", now=NOW)
    delete(services, ann, ids[2])

    assert len(rows_of(services, SavedPassword)) == 6


def test_who_has_more_entries_but_room_for_bytes_edits_them_longer(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = make_account(services, "ann", now=NOW)
    ids = fill_vault(services, ann, 7)
    monkeypatch.setattr(bounds, "VAULT_ENTRIES", 5)

    change(services, ann, ids[0], password_saved="much longer than it was before")

    assert len(rows_of(services, SavedPassword)) == 7


def at_once(work: Callable[[], object], times: int) -> list[object]:
    """Do *work* in so many threads at once; return what each returned or raised."""
    results: list[object] = []
    barrier = threading.Barrier(times)

    def run() -> None:
        barrier.wait()
        try:
            results.append(work())
        except Exception as exc:
            results.append(exc)

    threads = [threading.Thread(target=run) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_saves_at_once_do_not_both_get_the_last_place(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = make_account(services, "ann", now=NOW)
    fill_vault(services, ann, 8)
    monkeypatch.setattr(bounds, "VAULT_ENTRIES", 10)

    results = at_once(lambda: save_password(services, ann, now=NOW), 6)

    assert sum(isinstance(result, int) for result in results) == 2
    assert sum(isinstance(result, VaultFull) for result in results) == 4
    assert len(rows_of(services, SavedPassword)) == 10


def test_a_save_that_waits_for_another_counts_what_that_one_has_saved(
    postgresql: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = make_account(postgresql, "ann", now=NOW)
    monkeypatch.setattr(bounds, "VAULT_ENTRIES", 1)
    results: list[object] = []

    def second() -> None:
        try:
            results.append(save_password(postgresql, ann, now=NOW))
        except VaultFull as exc:
            results.append(exc)

    with postgresql.writing() as session:
        vault.save(
            session,
            postgresql.keyring,
            ann.id,
            epoch=0,
            entry=Entry("", "", "first"),
            clock=at(NOW),
        )
        thread = threading.Thread(target=second)
        thread.start()
        wait_for_a_lock(postgresql)
    thread.join()

    assert [type(result) for result in results] == [VaultFull]


def test_two_edits_at_once_do_not_both_get_the_last_bytes(
    postgresql: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = make_account(postgresql, "ann", now=NOW)
    first, second = fill_vault(postgresql, ann, 2, secret="x")
    monkeypatch.setattr(bounds, "VAULT_BYTES", size_of(postgresql, ann) + 1)
    results: list[object] = []

    def edit() -> None:
        try:
            results.append(change(postgresql, ann, second, password_saved="xx"))
        except VaultFull as exc:
            results.append(exc)

    with postgresql.writing() as session:
        vault.update(
            session,
            postgresql.keyring,
            ann.id,
            first,
            epoch=0,
            changes={"password_saved": "xx"},
            clock=at(NOW),
        )
        session.flush()
        thread = threading.Thread(target=edit)
        thread.start()
        wait_for_a_lock(postgresql)
    thread.join()

    assert [type(result) for result in results] == [VaultFull]
    assert size_of(postgresql, ann) == bounds.VAULT_BYTES


def wait_for_a_lock(services: Services) -> None:
    deadline = threading.Event()
    for _ in range(500):
        if waits_for_a_lock(services.database.engine):
            return
        deadline.wait(0.01)
    raise AssertionError("nobody waits for a lock")


def test_a_save_reads_no_ciphertext_and_asks_as_often_however_full_the_vault_is(
    services: Services,
) -> None:
    ann, bob = make_account(services, "ann", now=NOW), make_account(services, "bob", now=NOW)
    fill_vault(services, bob, 500)
    seen: list[str] = []

    @event.listens_for(services.database.engine, "before_cursor_execute")
    def count(_c: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    counts = []
    for account in (ann, bob):
        seen.clear()
        save_password(services, account, now=NOW)
        counts.append(len(seen))
    event.remove(services.database.engine, "before_cursor_execute", count)

    assert counts[0] == counts[1]
    assert not [one for one in seen if "SELECT saved_passwords" in one]
