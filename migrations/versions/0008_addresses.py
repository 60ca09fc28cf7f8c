"""Compare addresses by mailbox: the name in NFC and lower case, the domain in A-labels.

The key of each account whose address is not all ASCII is made anew; of any other it is the same as
before. Of two accounts that become one mailbox the one with the lower id gets the key, and the
other one keeps the key by which it is found, in a form that is nobody else's.

Locks: ROW EXCLUSIVE on accounts and the lock of one row at a time (PostgreSQL), each for a
statement of its own, for about two seconds for each thousand addresses outside ASCII; or the file's
write lock for all of it (SQLite). The previous code does not find the accounts whose key has
changed while it is replaced; whom it signs up meanwhile the new code finds by the key of before.
Downgrade takes the same locks.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress

import idna
import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import IntegrityError

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
lost_by_downgrade = "the way in for accounts that the previous release takes for another's"

_KEPT = "KEPT:"
_CHUNK = 500

_accounts = sa.table(
    "accounts",
    sa.column("id", sa.BigInteger()),
    sa.column("email", sa.String()),
    sa.column("email_key", sa.String()),
)
_id, _email, _key = _accounts.c.id, _accounts.c.email, _accounts.c.email_key
_is_kept = sa.func.substr(_key, 1, len(_KEPT)) == _KEPT


# The forms of a key as this revision makes them, whatever the code does later.


def _new(email: str) -> str:
    text = email.strip()
    if len(text) > 254:
        return f"TOO-LONG:{_digest(text)}"
    name, at, domain = text.rpartition("@")
    try:
        domain = _a_label(domain)
    except ValueError:
        domain = _lowered(domain)
    key = f"{_lowered(name)}{at}{domain}"
    return f"SHA-256:{_digest(key)}" if len(key.encode()) > 600 else key


def _a_label(domain: str) -> str:
    mapped = domain.lower() if domain.isascii() else idna.uts46_remap(domain, std3_rules=False)
    labels = [
        label if label.isascii() else idna.alabel(label).decode() for label in mapped.split(".")
    ]
    name = ".".join(labels)
    if len(name) > 253 or not _is_host(labels):
        raise ValueError("is not the name of a domain")
    return name


def _is_host(labels: list[str]) -> bool:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-")
    if labels == ["localhost"]:
        return True
    return (
        len(labels) > 1
        and not labels[-1].isdigit()
        and all(
            0 < len(label) <= 63 and set(label) <= allowed and label[0] != "-" and label[-1] != "-"
            for label in labels
        )
    )


def _lowered(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())


def _before(email: str) -> str:
    text = email.strip()
    if len(text) > 254:
        return f"TOO-LONG:{_digest(text)}"
    folded = unicodedata.normalize("NFKC", text).casefold()
    key = unicodedata.normalize("NFKC", folded)
    return f"SHA-256:{_digest(key)}" if len(key.encode()) > 600 else key


def _kept(email: str) -> str:
    return f"{_KEPT}{_digest(_new(email) + chr(0) + _before(email))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def upgrade() -> None:
    with _each_by_itself():
        # First out of everybody's way: a key of before may be another account's key of now.
        for account_id, email, key in _rows(_is_outside_ascii()):
            if key not in (_new(email), _kept(email)):
                _rekey(account_id, email, key, _kept(email))
        for account_id, email, key in _rows(_is_kept):
            _settle(account_id, email, key)


def _settle(account_id: int, email: str, key: str) -> None:
    """Give an account its new key, unless that is an older account's."""
    holder = (
        op.get_bind()
        .execute(sa.select(_id, _email, _key).where(_key == _new(email), _id != account_id))
        .one_or_none()
    )
    if holder is not None and (holder.id < account_id or _new(holder.email) != holder.email_key):
        return
    if holder is not None:
        _rekey(holder.id, holder.email, holder.email_key, _kept(holder.email))
    _rekey(account_id, email, key, _new(email))


def downgrade() -> None:
    """Give back the keys of before, but not one that another account has."""
    with _each_by_itself():
        for account_id, email, key in _rows(_is_outside_ascii() | _is_kept):
            if key != _before(email):
                _rekey(account_id, email, key, _before(email))


def _each_by_itself() -> AbstractContextManager[None]:
    """Return what commits each statement by itself on PostgreSQL, so that nobody waits for long."""
    if op.get_context().dialect.name == "sqlite":
        return nullcontext()
    return op.get_context().autocommit_block()


def _is_outside_ascii() -> sa.ColumnElement[bool]:
    octets: Callable[[sa.ColumnElement[str]], sa.ColumnElement[int]] = sa.func.octet_length
    if op.get_context().dialect.name == "sqlite":
        octets = lambda column: sa.func.length(sa.cast(column, sa.LargeBinary()))  # noqa: E731
    return octets(_email) != sa.func.length(_email)


def _rows(which: sa.ColumnElement[bool]) -> Iterator[tuple[int, str, str]]:
    """Yield id, address and key of the accounts of *which*, in id order, a chunk at a time."""
    after = 0
    while True:
        chunk = (
            op.get_bind()
            .execute(
                sa.select(_id, _email, _key).where(which, _id > after).order_by(_id).limit(_CHUNK)
            )
            .all()
        )
        for row in chunk:
            yield row.id, row.email, row.email_key
        if len(chunk) < _CHUNK:
            return
        after = chunk[-1].id


def _rekey(account_id: int, email: str, key: str, new_key: str) -> None:
    """Replace the *key* of an account, unless another account has the new one.

    Or it has another address by now: whoever changed that has made the key.
    """
    other = _accounts.alias("other")
    statement = (
        sa.update(_accounts)
        .where(_id == account_id, _email == email, _key == key)
        .where(~sa.exists().where(other.c.email_key == new_key))
        .values(email_key=new_key)
    )
    # Somebody may sign up with it between the look and the write. Each statement is a transaction
    # of its own, so the next one is not refused for it.
    with suppress(IntegrityError):
        op.get_bind().execute(statement)
