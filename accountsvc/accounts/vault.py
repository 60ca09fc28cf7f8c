"""Saved passwords: none in clear at rest, none that opens elsewhere, each read by its owner alone.

Each account has a random key of its own, stored wrapped by one of ``VAULT_KEYS`` (envelope
encryption). AES-256-GCM (NIST SP 800-38D) with random 96-bit nonces throughout. The associated data
binds a wrapped key to its account and a ciphertext to its row: copied elsewhere, neither opens.
A vault has a bound of entries and of plaintext; whoever has more reads, edits and deletes on. One
ciphertext that does not open is shown as such and keeps no other entry from its owner. Functions
take a Session inside a transaction of the caller.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime
from typing import Any

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Row, bindparam, func, select
from sqlalchemy.orm import Session

from .. import bounds
from ..db.engine import Clock, database_now
from ..db.models import Account, SavedPassword, VaultKey
from ..db.rows import is_id, lock_for_write
from ..errors import InvalidInput, PasswordNotFound, TokenNotValid, VaultFull, VaultKeyMissing

log = structlog.get_logger(__name__)

_Columns = Row[*tuple[Any, ...]]

_NONCE_BYTES = 12
# A ciphertext is so much longer than its plaintext: by the nonce and GCM's tag of 128 bits.
_ADDED_BYTES = _NONCE_BYTES + 16
# So many rows are read and decrypted at once: a whole large vault in memory could end the process.
PAGE_SIZE = 200
_NAMED_IN_A_LINE = 10
# So many of the newest vault keys are tried to find out whether ``VAULT_KEYS`` fit the database.
_NEWEST = 20


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
    """An entry with its row's id and times, in UTC.

    What does not open, or opens to no entry, has three empty texts and ``is_readable`` False.
    """

    id: int
    entry: Entry
    created_at: datetime
    updated_at: datetime
    is_readable: bool = True


_UNREADABLE = Entry("", "", "")


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

    def unwrap(self, row: VaultKey | _Columns, public_id: uuid.UUID) -> bytes:
        """Return the key of the account *public_id* that the columns of *row* hold wrapped.

        Raises VaultKeyMissing if none of the wrapping keys opens *row*, or it is another account's.
        """
        key = self._keys.get(row.wrapped_by)
        if key is None:
            raise VaultKeyMissing(row.wrapped_by)
        try:
            return _decrypt(key, row.wrapped_key, b"vault key " + public_id.bytes)
        # A wrapped key that was cut off is a ValueError: its nonce is too short.
        except (InvalidTag, ValueError) as exc:
            raise VaultKeyMissing(row.wrapped_by) from exc

    def opens(self, row: VaultKey, public_id: uuid.UUID) -> bool:
        """Say whether :meth:`unwrap` would return a key."""
        try:
            self.unwrap(row, public_id)
        except VaultKeyMissing:
            return False
        return True

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

    Raises TokenNotValid if the account is no longer active or its *epoch* has moved on, VaultFull,
    VaultKeyMissing.
    """
    account = lock_for_write(session, account_id, epoch=epoch)
    key = open_key(session, keyring, account, lock=True)
    now = clock(session)
    row = SavedPassword(
        uid=uuid.uuid4(),
        account_id=account.id,
        created_at=now,
        updated_at=now,
        ciphertext=b"",
    )
    row.ciphertext = _encrypt_entry(key, account, row, entry)
    _check_room(session, account, entries=1, size=len(row.ciphertext) - _ADDED_BYTES)
    session.add(row)
    session.flush()
    return row


def open_key(session: Session, keyring: Keyring, account: Account, *, lock: bool = False) -> bytes:
    """Return the account's own key, with its row locked (``FOR UPDATE``) if *lock* says so.

    Whatever makes a vault bigger holds that lock until it commits: two writes that count the vault
    at once would both find room for one. Raises VaultKeyMissing.
    """
    row = session.get_one(
        VaultKey, account.id, populate_existing=True, with_for_update=True if lock else None
    )
    return keyring.unwrap(row, account.public_id)


def _check_room(session: Session, account: Account, *, entries: int, size: int) -> None:
    """Raise VaultFull unless the vault has room for *entries* more with *size* bytes of plaintext.

    Call it under the lock of :func:`open_key`. A vault is measured in the bytes that are encrypted:
    of each entry a JSON array of its three texts in UTF-8, with quotes and escapes. They are
    counted from the lengths of the ciphertexts, which are not read.
    """
    length = func.length(SavedPassword.ciphertext) - _ADDED_BYTES
    present, stored = session.execute(
        select(func.count(), func.coalesce(func.sum(length), 0)).where(
            SavedPassword.account_id == account.id
        )
    ).one()
    if present + entries > bounds.VAULT_ENTRIES and entries > 0:
        raise VaultFull(VaultFull.ENTRIES)
    if stored + size > bounds.VAULT_BYTES:
        raise VaultFull(VaultFull.BYTES)


# A page of a vault with the key that opens it. While there is no entry, it is one row without one.
_PAGE = (
    select(
        VaultKey.wrapped_key,
        VaultKey.wrapped_by,
        SavedPassword.id,
        SavedPassword.uid,
        SavedPassword.ciphertext,
        SavedPassword.created_at,
        SavedPassword.updated_at,
    )
    .select_from(Account)
    .join(VaultKey, VaultKey.account_id == Account.id)
    .outerjoin(
        SavedPassword,
        (SavedPassword.account_id == Account.id) & (SavedPassword.id > bindparam("after")),
    )
    .where(Account.id == bindparam("account_id"), Account.epoch == bindparam("epoch"))
    .order_by(SavedPassword.id)
    .limit(bindparam("size"))
)


def entries(
    session: Session,
    keyring: Keyring,
    account: Account,
    *,
    after: int = 0,
    limit: int | None = None,
) -> Iterator[StoredEntry]:
    """Yield the account's entries in id order, from the first id above *after*, *limit* at most.

    Memory stays bounded, however many there are. What cannot be read is yielded too, and said in
    the log by its ids. *account* is as the caller saw it: the statement that reads a page also asks
    whether it still is, so that nothing is shown after a deactivation.

    Raises TokenNotValid if it is gone or its epoch has moved on since, VaultKeyMissing.
    """
    remaining = limit
    while remaining is None or remaining > 0:
        size = PAGE_SIZE if remaining is None else min(PAGE_SIZE, remaining)
        place = {"account_id": account.id, "epoch": account.epoch, "after": after, "size": size}
        page = session.connection().execute(_PAGE, place).all()
        if not page:
            raise TokenNotValid
        key = keyring.unwrap(page[0], account.public_id)
        if page[0].id is None:
            return
        unreadable = []
        for row in page:
            stored = _stored(key, account, row)
            if not stored.is_readable:
                unreadable.append(row.id)
            yield stored
        if unreadable:
            log.error(
                "saved passwords cannot be read",
                account=str(account.public_id),
                count=len(unreadable),
                # All of a vault's would be a line of thousands of ids, at each look into it.
                entries=unreadable[:_NAMED_IN_A_LINE],
            )
        if len(page) < size:
            return
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

    One that does not make the entry bigger is done however full the vault is. An entry that cannot
    be read is overwritten by all three fields. Raises PasswordNotFound (also for another person's
    entry), InvalidInput for a field of such an entry that is not given, VaultFull, TokenNotValid as
    :func:`save` does, VaultKeyMissing.
    """
    account = lock_for_write(session, account_id, epoch=epoch)
    row = _lock_owned(session, account, entry_id)
    now = clock(session)
    key = open_key(session, keyring, account)
    stored = _stored(key, account, row)
    if not stored.is_readable:
        _refuse_a_part(changes)
    entry = replace(stored.entry, **changes)
    ciphertext = _encrypt_entry(key, account, row, entry)
    growth = len(ciphertext) - len(row.ciphertext)
    if growth > 0:
        open_key(session, keyring, account, lock=True)
        _check_room(session, account, entries=0, size=growth)
    row.ciphertext = ciphertext
    row.updated_at = now
    return StoredEntry(row.id, entry, row.created_at, row.updated_at)


def _refuse_a_part(changes: Mapping[str, str]) -> None:
    """Raise InvalidInput for each missing field: what it was is lost, empty would be a guess."""
    missing = [field.name for field in fields(Entry) if field.name not in changes]
    if missing:
        sentence = (
            "This entry cannot be read any more. "
            "Delete it, or send all three fields to overwrite it."
        )
        raise InvalidInput({name: [sentence] for name in missing})


def delete(session: Session, account_id: int, entry_id: int, *, epoch: int) -> None:
    """Delete one entry.

    Raises PasswordNotFound (also for another person's entry), TokenNotValid as :func:`save` does.
    """
    account = lock_for_write(session, account_id, epoch=epoch)
    session.delete(_lock_owned(session, account, entry_id))


@dataclass(frozen=True)
class Rewrapped:
    """What one call of :func:`rewrap` did: keys wrapped anew, and keys that did not open.

    ``last_id`` is the account of the last key that it looked at, None if there was none; and
    ``unopened_by`` names the wrapping keys of those that did not open.
    """

    count: int
    unopened: int
    unopened_by: frozenset[str]
    last_id: int | None


def rewrap(session: Session, keyring: Keyring, *, limit: int, after: int = 0) -> Rewrapped:
    """Wrap up to *limit* keys by the newest wrapping key, of the accounts above the id *after*.

    A key that none of ``VAULT_KEYS`` opens stays as it is, is counted and said in the log, and
    keeps no other from being wrapped. Keys that another transaction has locked are passed over, so
    several can work at once.
    """
    keys = session.execute(
        select(VaultKey, Account.public_id)
        .join(Account, Account.id == VaultKey.account_id)
        .where(VaultKey.wrapped_by != keyring.newest, VaultKey.account_id > after)
        .order_by(VaultKey.account_id)
        .limit(limit)
        .with_for_update(of=VaultKey, skip_locked=True)
    ).all()
    unopened: list[tuple[str, str]] = []
    for row, public_id in keys:
        try:
            keyring.rewrap(row, public_id)
        except VaultKeyMissing:
            unopened.append((str(public_id), row.wrapped_by))
    if unopened:
        log.error("vault keys do not open", accounts=[account for account, _ in unopened])
    return Rewrapped(
        count=len(keys) - len(unopened),
        unopened=len(unopened),
        unopened_by=frozenset(name for _, name in unopened),
        last_id=keys[-1][0].account_id if keys else None,
    )


def keys_open(session: Session, keyring: Keyring) -> bool:
    """Say whether ``VAULT_KEYS`` fit this database: one opens any of its newest 20 vault keys.

    True too while there is none. A key that was damaged is not taken for a wrong setting, nor is a
    rotation under way, while one of the newest opens.
    """
    newest = session.execute(
        select(VaultKey, Account.public_id)
        .join(Account, Account.id == VaultKey.account_id)
        .order_by(VaultKey.account_id.desc())
        .limit(_NEWEST)
    ).all()
    return not newest or any(keyring.opens(row, public_id) for row, public_id in newest)


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


def _bound_to(account: Account, row: SavedPassword | _Columns) -> bytes:
    return b"saved password " + account.public_id.bytes + row.uid.bytes


def _encrypt_entry(key: bytes, account: Account, row: SavedPassword, entry: Entry) -> bytes:
    plain = json.dumps(astuple(entry), ensure_ascii=False)
    return _encrypt(key, plain.encode(), _bound_to(account, row))


def _stored(key: bytes, account: Account, row: SavedPassword | _Columns) -> StoredEntry:
    entry = _decrypt_entry(key, account, row)
    return StoredEntry(
        row.id, entry or _UNREADABLE, row.created_at, row.updated_at, is_readable=entry is not None
    )


def _decrypt_entry(key: bytes, account: Account, row: SavedPassword | _Columns) -> Entry | None:
    """Return the entry, or None for a ciphertext that does not open or opens to anything else.

    It may have been changed, cut off, or copied from another row; or a fault of ours may have
    encrypted what is no entry: neither may keep the other entries from their owner.
    """
    try:
        texts = json.loads(_decrypt(key, row.ciphertext, _bound_to(account, row)))
        if not isinstance(texts, list) or len(texts) != len(fields(Entry)):
            return None
        if not all(isinstance(text, str) for text in texts):
            return None
        # JSON can spell a lone surrogate, which whoever shows the text could not write as UTF-8.
        "".join(texts).encode()
    # A nonce that was cut off is a ValueError, and so is what is no UTF-8 or no JSON; what is
    # nested too deep ends the recursion.
    except (InvalidTag, ValueError, RecursionError):
        return None
    return Entry(*texts)
