"""A ciphertext that does not open: shown as such, in nobody's way, and nothing else is lost."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable

import pytest
from sqlalchemy import update

from accountsvc.accounts import exports, vault
from accountsvc.accounts.vault import Entry, Keyring, StoredEntry
from accountsvc.db.models import Account, SavedPassword, VaultKey
from accountsvc.errors import InvalidInput
from accountsvc.services import Services
from tests.support.factories import fill_vault, make_account, save_password
from tests.support.moments import NOW, at
from tests.support.state import possessions, rows_of

Damage = Callable[[Services, Account, SavedPassword], bytes]


def encrypted(plain: bytes) -> Damage:
    """A ciphertext that opens rightly and is no entry."""

    def damage(services: Services, account: Account, row: SavedPassword) -> bytes:
        with services.reading() as session:
            key = vault.open_key(session, services.keyring, account)
        return vault._encrypt(key, plain, vault._bound_to(account, row))

    return damage


def flipped(index: int) -> Damage:
    def damage(_services: Services, _account: Account, row: SavedPassword) -> bytes:
        content = bytearray(row.ciphertext)
        content[index] ^= 1
        return bytes(content)

    return damage


def cut(length: int) -> Damage:
    return lambda _services, _account, row: row.ciphertext[:length]


def of_another_row(services: Services, _account: Account, row: SavedPassword) -> bytes:
    other = next(one for one in rows_of(services, SavedPassword) if one.id != row.id)
    content: bytes = other.ciphertext
    return content


DAMAGES: dict[str, Damage] = {
    "first bit of the nonce": flipped(0),
    "a bit of the text": flipped(14),
    "last bit of the tag": flipped(-1),
    "empty": cut(0),
    "one byte": cut(1),
    "a part of the nonce": cut(11),
    "the nonce alone": cut(12),
    "nonce and no whole tag": cut(27),
    "without its last byte": cut(-1),
    "longer": lambda _services, _account, row: row.ciphertext + b"x",
    "zeros": lambda _services, _account, row: bytes(len(row.ciphertext)),
    "swapped": of_another_row,
    "no JSON": encrypted(b"hunter2"),
    "no text at all": encrypted(b""),
    "no UTF-8": encrypted(b'["\xff", "", ""]'),
    "an object": encrypted(b'{"name_pages": "", "url": "", "password_saved": ""}'),
    "a word": encrypted(b'"abc"'),
    "two texts": encrypted(b'["", ""]'),
    "four texts": encrypted(b'["", "", "", ""]'),
    "null among them": encrypted(b'["", "", null]'),
    "a number among them": encrypted(b'["", "", 5]'),
    "a list among them": encrypted(b'["", "", ["x"]]'),
    "a lone surrogate": encrypted(b'["", "", "\\ud800"]'),
    "a long number": encrypted(b"9" * 5000),
    "deep": encrypted(b"[" * 200_000),
    "two documents": encrypted(b'["", "", ""] ["", "", ""]'),
}


@pytest.fixture
def ann(services: Services) -> Account:
    return make_account(services, "ann", now=NOW)


@pytest.fixture
def ids(services: Services, ann: Account) -> list[int]:
    return [save_password(services, ann, f"secret {number}", now=NOW) for number in range(3)]


def read(services: Services, account: Account) -> list[StoredEntry]:
    with services.reading() as session:
        return list(vault.entries(session, services.keyring, account))


def damage_row(services: Services, account: Account, entry_id: int, damage: Damage) -> None:
    (row,) = rows_of(services, SavedPassword, SavedPassword.id == entry_id)
    content = damage(services, account, row)
    with services.writing() as session:
        session.execute(
            update(SavedPassword).where(SavedPassword.id == entry_id).values(ciphertext=content)
        )


def change(services: Services, account: Account, entry_id: int, **changes: str) -> StoredEntry:
    with services.writing() as session:
        return vault.update(
            session,
            services.keyring,
            account.id,
            entry_id,
            epoch=account.epoch,
            changes=changes,
            clock=at(NOW),
        )


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_one_that_does_not_open_is_shown_so_and_keeps_no_other_from_its_owner(
    services: Services, ann: Account, ids: list[int], damage: Damage
) -> None:
    bob = make_account(services, "bob", now=NOW)
    save_password(services, bob, now=NOW)
    theirs = possessions(services, bob.id)
    damage_row(services, ann, ids[1], damage)

    first, second, third = read(services, ann)

    assert (second.id, second.entry, second.is_readable) == (ids[1], Entry("", "", ""), False)
    assert [first.entry.password_saved, third.entry.password_saved] == ["secret 0", "secret 2"]
    assert first.is_readable
    assert third.is_readable
    # It is overwritten by all three fields, or deleted; and by no part of them.
    for part in ({}, {"password_saved": "x"}, {"name_pages": "", "url": ""}):
        with pytest.raises(InvalidInput) as refused:
            change(services, ann, ids[1], **part)
        assert set(refused.value.fields) == {"name_pages", "url", "password_saved"} - set(part)
    change(services, ann, ids[1], name_pages="n", url="u", password_saved="p")
    assert read(services, ann)[1].entry == Entry("n", "u", "p")
    assert read(services, ann)[1].is_readable

    damage_row(services, ann, ids[1], damage)
    with services.writing() as session:
        vault.delete(session, ann.id, ids[1], epoch=ann.epoch)
    assert [stored.id for stored in read(services, ann)] == [ids[0], ids[2]]
    assert possessions(services, bob.id) == theirs


def test_an_entry_that_reads_empty_and_is_whole_is_no_damaged_one(
    services: Services, ann: Account
) -> None:
    save_password(services, ann, "", name_pages="", url="", now=NOW)

    (stored,) = read(services, ann)

    assert (stored.entry, stored.is_readable) == (Entry("", "", ""), True)


def test_the_log_names_the_entries_and_nothing_of_them(
    services: Services, ann: Account, ids: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    damage_row(services, ann, ids[0], flipped(14))
    damage_row(services, ann, ids[2], cut(3))
    capfd.readouterr()

    read(services, ann)

    output = capfd.readouterr().out
    assert output.count("saved passwords cannot be read") == 1
    assert str(ann.public_id) in output
    assert f"[{ids[0]}, {ids[2]}]" in output
    assert "secret" not in output


def test_an_export_says_which_cannot_be_read_and_has_all_others(
    services: Services, ann: Account, ids: list[int]
) -> None:
    damage_row(services, ann, ids[1], flipped(14))

    pieces = exports.export(
        services.database, services.keyring, services.avatars, ann.id, epoch=ann.epoch, now=NOW
    )
    archive = zipfile.ZipFile(io.BytesIO(b"".join(pieces)))

    listed = json.loads(archive.read("saved_passwords.json"))
    assert [(one["id"], one.get("unreadable")) for one in listed] == [
        (ids[0], None),
        (ids[1], True),
        (ids[2], None),
    ]
    assert listed[1]["password_saved"] == ""
    table = archive.read("saved_passwords.csv").decode()
    assert ("secret 0" in table, "secret 2" in table, len(table.splitlines())) == (True, True, 3)
    assert '"unreadable": true' in " ".join(archive.read("README.txt").decode().split())


# Vault keys


OLD, NEW = b"o" * 32, b"n" * 32


def wrap_all(services: Services, by: bytes) -> None:
    with services.writing() as session:
        for row in session.query(VaultKey).all():
            public_id = session.get_one(Account, row.account_id).public_id
            key = services.keyring.unwrap(row, public_id)
            row.wrapped_key = vault._encrypt(by, key, b"vault key " + public_id.bytes)
            row.wrapped_by = Keyring((by,)).newest


@pytest.mark.parametrize(
    "damage",
    [
        lambda key: key[:20] + bytes([key[20] ^ 1]) + key[21:],
        lambda key: key[:5],
        lambda key: b"",
        lambda key: key + b"x",
    ],
    ids=["flipped", "cut", "empty", "longer"],
)
@pytest.mark.parametrize("limit", [1, 2, 100])
def test_rewrapping_goes_on_past_a_damaged_key_and_says_how_many(
    services: Services, damage: Callable[[bytes], bytes], limit: int
) -> None:
    people = [make_account(services, name, now=NOW) for name in ("ann", "bob", "cid", "dan")]
    wrap_all(services, OLD)
    with services.writing() as session:
        for person in (people[0], people[2]):
            row = session.get_one(VaultKey, person.id)
            row.wrapped_key = damage(row.wrapped_key)
    before = {row.account_id: row.wrapped_key for row in rows_of(services, VaultKey)}
    both = Keyring((NEW, OLD))

    counts, after = [], 0
    for _ in range(10):
        with services.writing() as session:
            done = vault.rewrap(session, both, limit=limit, after=after)
        counts.append((done.count, done.unopened))
        if done.last_id is None:
            break
        after = done.last_id

    assert [sum(column) for column in zip(*counts, strict=True)] == [2, 2]
    assert done.last_id is None
    found = {row.account_id: row for row in rows_of(services, VaultKey)}
    for person in (people[0], people[2]):
        assert found[person.id].wrapped_key == before[person.id]
    for person in (people[1], people[3]):
        assert both.opens(found[person.id], person.public_id)
        assert found[person.id].wrapped_by == both.newest


def test_keys_fit_if_one_of_the_newest_twenty_opens(services: Services) -> None:
    right, wrong = services.keyring, Keyring((NEW,))

    def fit(keyring: Keyring) -> bool:
        with services.reading() as session:
            return vault.keys_open(session, keyring)

    assert fit(wrong), "without rows nothing is wrong"
    people = [make_account(services, f"p{number}", now=NOW) for number in range(21)]
    assert (fit(right), fit(wrong), fit(Keyring((NEW, services.settings.vault_keys[0])))) == (
        True,
        False,
        True,
    )
    with services.writing() as session:
        for person in people[2:]:
            session.get_one(VaultKey, person.id).wrapped_key = b""
    assert fit(right), "the twentieth from the end is whole"
    with services.writing() as session:
        session.get_one(VaultKey, people[1].id).wrapped_key = b""
    assert not fit(right), "the twenty-first is not looked at"


def test_a_large_vault_with_damage_in_every_page_is_read_to_its_end(services: Services) -> None:
    ann = make_account(services, "ann", now=NOW)
    ids = fill_vault(services, ann, 2 * vault.PAGE_SIZE + 1)
    broken = [ids[0], ids[vault.PAGE_SIZE], ids[-1]]
    for entry_id in broken:
        damage_row(services, ann, entry_id, cut(0))

    found = read(services, ann)

    assert [stored.id for stored in found] == ids
    assert [stored.id for stored in found if not stored.is_readable] == broken
