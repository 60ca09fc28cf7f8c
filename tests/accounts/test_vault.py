"""Saved passwords: nothing in clear at rest, nothing can be moved, keys rotate."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select, text, update

from accountsvc.accounts import vault
from accountsvc.accounts.vault import Entry, Keyring, VaultKeyMissing
from accountsvc.db.models import MAX_ID, Account, SavedPassword, VaultKey
from accountsvc.db.rows import find
from accountsvc.errors import PasswordNotFound, TokenNotValid
from accountsvc.services import Services
from tests.support.factories import (
    deactivate,
    fill_vault,
    make_account,
    reactivate,
    save_password,
)
from tests.support.moments import NOW, SECOND, at
from tests.support.state import events, get_account, possessions, rows_of

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32


def entries(
    services: Services, account: Account, keyring: Keyring | None = None, **page: int
) -> list[vault.StoredEntry]:
    with services.reading() as session:
        found = find(session, account.id)
        assert found is not None
        return list(vault.entries(session, keyring or services.keyring, found, **page))


def change(
    services: Services, account: Account, entry_id: int, **changes: str
) -> vault.StoredEntry:
    with services.writing() as session:
        return vault.update(
            session,
            services.keyring,
            account.id,
            entry_id,
            epoch=account.epoch,
            changes=changes,
            clock=at(NOW + SECOND),
        )


def delete(services: Services, account: Account, entry_id: int) -> None:
    with services.writing() as session:
        vault.delete(session, account.id, entry_id, epoch=account.epoch)


def rewrap(services: Services, keyring: Keyring, limit: int = 100) -> int:
    with services.writing() as session:
        return vault.rewrap(session, keyring, limit=limit).count


def test_what_is_saved_comes_back_exactly(services: Services) -> None:
    account = make_account(services, now=NOW)
    texts = [
        "",
        "x",
        " padded ",
        "a\0b",
        '"\\\n\t',
        "пароль",
        "🐎" * 500,
        "e\u0301",
        "\u00e9",
        "\ufeff",
    ]
    saved = [
        save_password(services, account, one, name_pages=one, url=one[::-1], now=NOW)
        for one in texts
    ]

    found = entries(services, account)

    assert [one.id for one in found] == saved
    assert [one.entry for one in found] == [Entry(one, one[::-1], one) for one in texts]
    assert {(one.created_at, one.updated_at) for one in found} == {(NOW, NOW)}


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.builds(Entry, st.text(), st.text(), st.text()))
def test_any_text_that_is_unicode_comes_back(sqlite: Services, entry: Entry) -> None:
    with sqlite.reading() as session:
        account = session.scalar(select(Account))
        session.expunge_all()
    account = account or make_account(sqlite, now=NOW)
    saved = save_password(
        sqlite, account, entry.password_saved, name_pages=entry.name_pages, url=entry.url, now=NOW
    )

    assert entries(sqlite, account, after=saved - 1)[0].entry == entry


def test_each_person_sees_their_own(services: Services) -> None:
    ann, bob = make_account(services, "ann", now=NOW), make_account(services, "bob", now=NOW)
    save_password(services, ann, "of ann", now=NOW)
    save_password(services, bob, "of bob", now=NOW)

    assert [one.entry.password_saved for one in entries(services, ann)] == ["of ann"]
    assert [one.entry.password_saved for one in entries(services, bob)] == ["of bob"]


def test_pages_join_without_a_gap_also_beyond_one_of_the_database(services: Services) -> None:
    account = make_account(services, now=NOW)
    saved = fill_vault(services, account, 1001)

    assert [one.id for one in entries(services, account)] == saved
    assert [one.id for one in entries(services, account, limit=501)] == saved[:501]
    assert [one.id for one in entries(services, account, after=saved[499], limit=2)] == saved[
        500:502
    ]
    assert entries(services, account, after=saved[-1]) == []
    assert entries(services, account, limit=0) == []
    assert entries(services, account)[-1].entry.name_pages == "site 1000"


def test_the_given_fields_change_and_the_others_stay(services: Services) -> None:
    account = make_account(services, now=NOW)
    first, second = (
        save_password(services, account, "one", now=NOW),
        save_password(services, account, "two", now=NOW),
    )
    before = rows_of(services, SavedPassword)

    changed = change(services, account, first, url="", password_saved="three")

    assert changed.entry == Entry("site", "", "three")
    assert (changed.created_at, changed.updated_at) == (NOW, NOW + SECOND)
    assert entries(services, account)[0] == changed
    after = rows_of(services, SavedPassword)
    assert (after[0].id, after[0].uid) == (before[0].id, before[0].uid)
    assert after[0].ciphertext[:12] != before[0].ciphertext[:12], "a nonce was used twice"
    assert after[1].ciphertext == before[1].ciphertext
    assert after[1].id == second


def test_only_the_named_entry_is_deleted(services: Services) -> None:
    account = make_account(services, now=NOW)
    first, second = (
        save_password(services, account, now=NOW),
        save_password(services, account, now=NOW),
    )

    delete(services, account, first)

    assert [one.id for one in entries(services, account)] == [second]
    with pytest.raises(PasswordNotFound):
        delete(services, account, first)


@pytest.mark.parametrize("entry_id", [0, -1, 999, MAX_ID, MAX_ID + 1, 10**40])
def test_an_entry_that_is_not_there_is_not_found(services: Services, entry_id: int) -> None:
    account = make_account(services, now=NOW)

    with pytest.raises(PasswordNotFound):
        change(services, account, entry_id, url="")
    with pytest.raises(PasswordNotFound):
        delete(services, account, entry_id)


def test_another_persons_entry_is_not_found_and_not_touched(services: Services) -> None:
    ann, bob = make_account(services, "ann", now=NOW), make_account(services, "bob", now=NOW)
    of_bob = save_password(services, bob, now=NOW)
    theirs = possessions(services, bob.id)

    with pytest.raises(PasswordNotFound):
        change(services, ann, of_bob, url="")
    with pytest.raises(PasswordNotFound):
        delete(services, ann, of_bob)

    assert possessions(services, bob.id) == theirs


def test_nobody_writes_after_a_deactivation_and_all_is_back_after_a_reactivation(
    services: Services,
) -> None:
    account = make_account(services, now=NOW)
    saved = save_password(services, account, "kept", now=NOW)
    before = rows_of(services, SavedPassword)[0].ciphertext
    away = deactivate(services, account.id, now=NOW)

    for epoch_of in (account, away):
        with pytest.raises(TokenNotValid):
            save_password(services, epoch_of, now=NOW)
        with pytest.raises(TokenNotValid):
            change(services, epoch_of, saved, url="x")
        with pytest.raises(TokenNotValid):
            delete(services, epoch_of, saved)
    assert [one.ciphertext for one in rows_of(services, SavedPassword)] == [before]

    back = reactivate(services, account.id, now=NOW)
    for epoch_of in (account, away):
        with pytest.raises(TokenNotValid):
            save_password(services, epoch_of, now=NOW)
    assert entries(services, back)[0].entry.password_saved == "kept"
    assert save_password(services, back, now=NOW) > saved


# At rest


def in_clear(services: Services, tmp_path: Path) -> bytes:
    """All bytes of the database: the file and its log, or a dump of every row as text."""
    if services.database.engine.dialect.name == "sqlite":
        return b"".join(path.read_bytes() for path in tmp_path.glob("accountsvc.db*"))
    found = []
    with services.database.engine.connect() as connection:
        for (name,) in connection.execute(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ):
            for (row,) in connection.execute(text(f'SELECT t::text FROM "{name}" t')):
                found.append(row.encode())
    return b"\n".join(found)


def test_nothing_of_a_saved_password_is_in_the_database_in_clear(
    services: Services, tmp_path: Path
) -> None:
    account = make_account(services, last_name="Findable", now=NOW)
    words = ["Passwordlike", "Sitelike", "urllike.example"]
    saved = save_password(services, account, words[0], name_pages=words[1], url=words[2], now=NOW)
    change(services, account, saved, password_saved="Changedlike")

    with services.reading() as session:
        key = services.keyring.unwrap(session.get_one(VaultKey, account.id), account.public_id)
    found = in_clear(services, tmp_path)

    assert b"Findable" in found, "the search itself does not work"
    for word in [*words, "Changedlike"]:
        for form in (word.encode(), word.encode().hex().encode(), word.encode("utf-16-le")):
            assert form not in found, word
    for secret in (key, services.settings.vault_keys[0]):
        assert secret not in found
        assert secret.hex().encode() not in found


def test_the_same_text_twice_gives_unlike_ciphertexts(services: Services) -> None:
    account = make_account(services, now=NOW)
    for _ in range(2):
        save_password(services, account, "same", now=NOW)

    first, second = rows_of(services, SavedPassword)

    assert first.ciphertext != second.ciphertext
    assert first.ciphertext[:12] != second.ciphertext[:12]


def test_a_ciphertext_moved_to_another_row_or_person_does_not_open(services: Services) -> None:
    ann, bob = make_account(services, "ann", now=NOW), make_account(services, "bob", now=NOW)
    first, second = (
        save_password(services, ann, "first", now=NOW),
        save_password(services, ann, "second", now=NOW),
    )
    of_bob = save_password(services, bob, "of bob", now=NOW)
    by_id = {row.id: row.ciphertext for row in rows_of(services, SavedPassword)}

    for source, target, whose in ((first, second, ann), (first, of_bob, bob), (of_bob, first, ann)):
        with services.writing() as session:
            session.execute(
                update(SavedPassword)
                .where(SavedPassword.id == target)
                .values(ciphertext=by_id[source])
            )
        assert not next(one for one in entries(services, whose) if one.id == target).is_readable
        with services.writing() as session:
            session.execute(
                update(SavedPassword)
                .where(SavedPassword.id == target)
                .values(ciphertext=by_id[target])
            )


def test_a_whole_row_moved_to_another_person_does_not_open_even_with_its_key(
    services: Services,
) -> None:
    ann, bob = make_account(services, "ann", now=NOW), make_account(services, "bob", now=NOW)
    saved = save_password(services, ann, now=NOW)
    key_of_ann = rows_of(services, VaultKey, VaultKey.account_id == ann.id)[0].wrapped_key
    with services.writing() as session:
        session.execute(
            update(SavedPassword).where(SavedPassword.id == saved).values(account_id=bob.id)
        )
    assert [one.is_readable for one in entries(services, bob)] == [False]

    with services.writing() as session:
        session.execute(
            update(VaultKey).where(VaultKey.account_id == bob.id).values(wrapped_key=key_of_ann)
        )

    with pytest.raises(VaultKeyMissing):
        entries(services, bob)


@pytest.mark.parametrize("damage", [b"", b"x", b"x" * 11, b"x" * 12, b"x" * 28, b"x" * 200])
def test_a_damaged_ciphertext_does_not_open(services: Services, damage: bytes) -> None:
    account = make_account(services, now=NOW)
    save_password(services, account, now=NOW)
    with services.writing() as session:
        session.execute(update(SavedPassword).values(ciphertext=damage))

    assert [one.is_readable for one in entries(services, account)] == [False]


def test_every_account_has_a_key_of_its_own(services: Services) -> None:
    people = [make_account(services, name, now=NOW) for name in ("ann", "bob")]

    with services.reading() as session:
        keys = {
            services.keyring.unwrap(session.get_one(VaultKey, one.id), one.public_id)
            for one in people
        }

    assert len(keys) == 2


# Rotation


@pytest.fixture
def people(services: Services) -> list[Account]:
    """Three people whose keys an old wrapping key has wrapped, with a saved password each."""
    old = Keyring((OLD,))
    made = [make_account(services, name, now=NOW) for name in ("ann", "bob", "eve")]
    with services.writing() as session:
        for one in made:
            row = session.get_one(VaultKey, one.id)
            key = services.keyring.unwrap(row, one.public_id)
            row.wrapped_key = vault._encrypt(OLD, key, b"vault key " + one.public_id.bytes)
            row.wrapped_by = old.newest
    with services.writing() as session:
        for one in made:
            vault.save(
                session,
                old,
                one.id,
                epoch=0,
                entry=Entry("", "", f"of {one.username}"),
                clock=at(NOW),
            )
    return made


def test_keys_rotate_without_touching_a_ciphertext(
    services: Services, people: list[Account]
) -> None:
    both, new_only = Keyring((NEW, OLD)), Keyring((NEW,))
    before = [(row.id, row.ciphertext) for row in rows_of(services, SavedPassword)]
    with pytest.raises(VaultKeyMissing):
        entries(services, people[0], new_only)
    assert entries(services, people[0], both)[0].entry.password_saved == "of ann"

    assert [rewrap(services, both, limit=2) for _ in range(3)] == [2, 1, 0]

    assert {row.wrapped_by for row in rows_of(services, VaultKey)} == {new_only.newest}
    assert [(row.id, row.ciphertext) for row in rows_of(services, SavedPassword)] == before
    for one in people:
        found = entries(services, one, new_only)
        assert [entry.entry.password_saved for entry in found] == [f"of {one.username}"]


def test_a_wrapping_key_removed_too_early_is_said_and_nothing_is_lost(
    services: Services, people: list[Account]
) -> None:
    before = [(row.account_id, row.wrapped_key) for row in rows_of(services, VaultKey)]

    with services.writing() as session:
        done = vault.rewrap(session, Keyring((NEW, OTHER)), limit=100)

    assert (done.count, done.unopened, done.unopened_by) == (0, 3, {Keyring((OLD,)).newest})
    assert [(row.account_id, row.wrapped_key) for row in rows_of(services, VaultKey)] == before
    assert rewrap(services, Keyring((NEW, OLD))) == 3


def test_a_key_that_calls_itself_another_does_not_open(
    services: Services, people: list[Account]
) -> None:
    with services.writing() as session:
        session.execute(update(VaultKey).values(wrapped_by=Keyring((NEW,)).newest))

    with pytest.raises(VaultKeyMissing):
        entries(services, people[0], Keyring((NEW, OLD)))


def test_two_rotations_at_once_share_the_keys(
    postgresql: Services,
) -> None:
    for name in ("ann", "bob"):
        make_account(postgresql, name, now=NOW)
    both = Keyring((NEW, postgresql.settings.vault_keys[0]))

    with postgresql.writing() as first:
        assert vault.rewrap(first, both, limit=1).count == 1
        first.flush()
        with postgresql.writing() as second:
            assert vault.rewrap(second, both, limit=10).count == 1

    assert rewrap(postgresql, both) == 0


def test_nothing_secret_is_printed() -> None:
    keyring = Keyring((OLD, NEW))
    shown = repr(keyring) + repr(Entry("name", "url", "secret"))

    assert not [one for one in ("oooo", "nnnn", OLD.hex(), "secret", "url") if one in shown]


def test_a_page_is_read_with_one_statement(services: Services) -> None:
    account = make_account(services, now=NOW)
    with services.writing() as session:
        for _ in range(50):
            vault.save(
                session,
                services.keyring,
                account.id,
                epoch=0,
                entry=Entry("", "", ""),
                clock=at(NOW),
            )
    seen: list[str] = []
    with services.reading() as session:
        found = find(session, account.id)
        assert found is not None

        @event.listens_for(services.database.engine, "before_cursor_execute")
        def count(_c: object, _cursor: object, statement: str, *_: object) -> None:
            seen.append(statement)

        assert len(list(vault.entries(session, services.keyring, found, limit=50))) == 50
        event.remove(services.database.engine, "before_cursor_execute", count)

    assert len(seen) == 1


def test_saving_writes_no_event_that_tells_what_was_saved(services: Services) -> None:
    account = make_account(services, now=NOW)

    save_password(services, account, now=NOW)

    assert events(services, "account.updated") == []
    assert get_account(services, account.id).epoch == 0
