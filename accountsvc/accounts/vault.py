"""Saved passwords: none in clear at rest, none that opens elsewhere, each read by its owner alone.

Each account has a random key of its own, stored wrapped by one of ``VAULT_KEYS`` (envelope
encryption). AES-256-GCM (NIST SP 800-38D) with random 96-bit nonces throughout. The associated data
binds a wrapped key to its account and a ciphertext to its row: copied elsewhere, neither opens.
Functions take a Session inside a transaction of the caller.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..db.engine import Clock, database_now
from ..db.models import Account, SavedPassword, VaultKey
from ..db.rows import is_id, lock_for_write
from ..errors import PasswordNotFound, VaultKeyMissing

_NONCE_BYTES = 12
# So many rows are read and decrypted at once: a whole large vault in memory could end the process.
_PAGE_SIZE = 500


@dataclass(frozen=True)
class Entry:
    """A saved password in clear. No member is null; name and url may be empty."""

    name_pages: str
    url: str
    password_saved: str

    def __repr__(self) -> str:
        # Show no member: a traceback that shows its variables would put the password into a log.
        return "Entry()"


@dataclass(frozen=True)
class StoredEntry:
    """An entry with its row's id and times, in UTC."""

    id: int
    entry: Entry
    created_at: datetime
    updated_at: datetime


def _key_name(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:16]


def _encrypt(key: bytes, plain: bytes, bound_to: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, bound_to)


def _decrypt(key: bytes, encrypted: bytes, bound_to: bytes) -> bytes:
    return AESGCM(key).decrypt(encrypted[:_NONCE_BYTES], encrypted[_NONCE_BYTES:], bound_to)


class Keyring:
    """The wrapping keys, newest first: the newest wraps, each of them unwraps. Safe in threads."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self._keys = {_key_name(key): key for key in keys}
        self.newest = _key_name(keys[0])

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._keys)})"

    def new_key(self, account: Account) -> VaultKey:
        """Make an account's key, wrapped; the caller adds it in the account's transaction."""
        return VaultKey(
            account_id=account.id,
            wrapped_key=self._wrap(AESGCM.generate_key(256), account.public_id),
            wrapped_by=self.newest,
        )

    def unwrap(self, row: VaultKey, public_id: uuid.UUID) -> bytes:
        """Return the key of the account *public_id*.

        Raises VaultKeyMissing if none of the wrapping keys opens *row*, or it is another account's.
        """
        key = self._keys.get(row.wrapped_by)
        if key is None:
            raise VaultKeyMissing(row.wrapped_by)
        try:
            return _decrypt(key, row.wrapped_key, b"vault key " + public_id.bytes)
        except InvalidTag as exc:
            raise VaultKeyMissing(row.wrapped_by) from exc

    def rewrap(self, row: VaultKey, public_id: uuid.UUID) -> None:
        """Wrap the same key by the newest wrapping key; saved passwords are not touched."""
        row.wrapped_key = self._wrap(self.unwrap(row, public_id), public_id)
        row.wrapped_by = self.newest

    def _wrap(self, key: bytes, public_id: uuid.UUID) -> bytes:
        return _encrypt(self._keys[self.newest], key, b"vault key " + public_id.bytes)


def save(
    session: Session,
    keyring: Keyring,
    account_id: int,
    *,
    epoch: int,
    entry: Entry,
    clock: Clock = database_now,
) -> SavedPassword:
    """Save *entry* for an active account and return its row.

    Raises TokenNotValid if the account is no longer active or its *epoch* has moved on,
    VaultKeyMissing.
    """
    account = lock_for_write(session, account_id, epoch=epoch)
    now = clock(session)
    row = SavedPassword(
        uid=uuid.uuid4(),
        account_id=account.id,
        created_at=now,
        updated_at=now,
        ciphertext=b"",
    )
    row.ciphertext = _encrypt_entry(open_key(session, keyring, account), account, row, entry)
    session.add(row)
    session.flush()
    return row


def open_key(session: Session, keyring: Keyring, account: Account) -> bytes:
    """Return the account's own key. Raises VaultKeyMissing."""
    row = session.get_one(VaultKey, account.id, populate_existing=True)
    return keyring.unwrap(row, account.public_id)


def entries(
    session: Session,
    keyring: Keyring,
    account: Account,
    *,
    after: int = 0,
    limit: int | None = None,
) -> Iterator[StoredEntry]:
    """Yield the account's entries in id order, from the first id above *after*, *limit* at most.

    Memory stays bounded, however many there are. Raises VaultKeyMissing.
    """
    key = open_key(session, keyring, account)
    remaining = limit
    while remaining is None or remaining > 0:
        page = session.scalars(
            select(SavedPassword)
            .where(SavedPassword.account_id == account.id, SavedPassword.id > after)
            .order_by(SavedPassword.id)
            .limit(_PAGE_SIZE if remaining is None else min(_PAGE_SIZE, remaining))
        ).all()
        if not page:
            return
        for row in page:
            yield StoredEntry(
                row.id, _decrypt_entry(key, account, row), row.created_at, row.updated_at
            )
            session.expunge(row)
        after = page[-1].id
        remaining = None if remaining is None else remaining - len(page)


def update(
    session: Session,
    keyring: Keyring,
    account_id: int,
    entry_id: int,
    *,
    epoch: int,
    changes: Mapping[str, str],
    clock: Clock = database_now,
) -> StoredEntry:
    """Change the given fields of one entry, the others stay.

    Raises PasswordNotFound (also for another person's entry), TokenNotValid as :func:`save` does,
    VaultKeyMissing.
    """
    account = lock_for_write(session, account_id, epoch=epoch)
    row = _lock_owned(session, account, entry_id)
    now = clock(session)
    key = open_key(session, keyring, account)
    entry = replace(_decrypt_entry(key, account, row), **changes)
    row.ciphertext = _encrypt_entry(key, account, row, entry)
    row.updated_at = now
    return StoredEntry(row.id, entry, row.created_at, row.updated_at)


def delete(session: Session, account_id: int, entry_id: int, *, epoch: int) -> None:
    """Delete one entry.

    Raises PasswordNotFound (also for another person's entry), TokenNotValid as :func:`save` does.
    """
    account = lock_for_write(session, account_id, epoch=epoch)
    session.delete(_lock_owned(session, account, entry_id))


def rewrap(session: Session, keyring: Keyring, *, limit: int) -> int:
    """Wrap up to *limit* keys by the newest wrapping key and return how many; 0 means finished.

    Keys that another transaction has locked are passed over, so several can work at once.
    Raises VaultKeyMissing if a key was wrapped by one that ``VAULT_KEYS`` no longer lists.
    """
    keys = session.execute(
        select(VaultKey, Account.public_id)
        .join(Account, Account.id == VaultKey.account_id)
        .where(VaultKey.wrapped_by != keyring.newest)
        .order_by(VaultKey.account_id)
        .limit(limit)
        .with_for_update(of=VaultKey, skip_locked=True)
    ).all()
    for row, public_id in keys:
        keyring.rewrap(row, public_id)
    return len(keys)


def _lock_owned(session: Session, account: Account, entry_id: int) -> SavedPassword:
    """Lock the account's entry. Raises PasswordNotFound."""
    row = None
    if is_id(entry_id):
        row = session.scalar(
            select(SavedPassword)
            .where(SavedPassword.id == entry_id, SavedPassword.account_id == account.id)
            .with_for_update()
        )
    if row is None:
        raise PasswordNotFound
    return row


def _bound_to(account: Account, row: SavedPassword) -> bytes:
    return b"saved password " + account.public_id.bytes + row.uid.bytes


def _encrypt_entry(key: bytes, account: Account, row: SavedPassword, entry: Entry) -> bytes:
    plain = json.dumps([entry.name_pages, entry.url, entry.password_saved], ensure_ascii=False)
    return _encrypt(key, plain.encode(), _bound_to(account, row))


def _decrypt_entry(key: bytes, account: Account, row: SavedPassword) -> Entry:
    return Entry(*json.loads(_decrypt(key, row.ciphertext, _bound_to(account, row))))
