"""Rows of the trail as the seals have them: readable, and with a hash of all that is stored.

The columns are those of form 1, and stay: a column that comes later is in no seal of before.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, reduce
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Select,
    Text,
    cast,
    exists,
    func,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from .models import AuditEvent, Receipt, ReceiptFact, Seal
from .proofs import BY_REPLAY, LEDGER_WRITTEN

EVENT, FACT, RECEIPT = "event", "fact", "receipt"

# The columns by kind, the key first, and how a text of each is read.
COLUMNS: Mapping[str, Mapping[str, str]] = {
    EVENT: {
        "id": "number",
        "at": "time",
        "action": "text",
        "subject": "uuid",
        "actor": "uuid",
        "actor_kind": "text",
        "details": "json",
        "epoch": "number",
        "deactivated_at": "time",
        "purge_at": "time",
    },
    FACT: {"id": "number", "public_id": "uuid", "fact": "text", "at": "time", "details": "json"},
    RECEIPT: {
        "public_id": "uuid",
        "deactivated_at": "time",
        "deactivated_by": "text",
        "purge_at": "time",
        "purged_at": "time",
        "saved_passwords": "number",
        "files": "number",
        "scrubbed_at": "time",
    },
}
_SEAL_COLUMNS = {
    "chain": "uuid",
    "sealed_at": "time",
    "first_event": "number",
    "last_event": "number",
    "first_fact": "number",
    "last_fact": "number",
    "head": "text",
    "signature": "text",
    "pruned_at": "time",
    "entries": "bytes",
    "header": "bytes",
}
# What SQLite calls the type of a value in these columns of a seal; of any other it is "text".
_SQLITE_TYPES: Mapping[str, str] = {
    "first_event": "integer",
    "last_event": "integer",
    "first_fact": "integer",
    "last_fact": "integer",
    "entries": "blob",
}
_TABLES: Mapping[str, FromClause] = {
    EVENT: AuditEvent.__table__,
    FACT: ReceiptFact.__table__,
    RECEIPT: Receipt.__table__,
}


@dataclass(frozen=True)
class Row:
    """A row of the trail: what *stored* says of its columns, in their order.

    SQLite: of each column the first letter of its type and its bytes in hexadecimal digits.
    PostgreSQL: its text, None for NULL.
    """

    kind: str
    stored: Sequence[str | None]
    is_sqlite: bool

    @property
    def key(self) -> str:
        """The id of an event or a fact, the public id of a receipt, as text."""
        column = next(iter(COLUMNS[self.kind].values()))
        return str(_read(column, self._texts()[0]))

    def document(self) -> dict[str, Any]:
        """Return the entry: its kind, each column, and ``stored``, the hash of all that is stored.

        Never raises for what is in the row: a text that is none of its column stays a text.
        """
        columns = COLUMNS[self.kind]
        texts = self._texts()
        found = {
            name: _read(how, value)
            for (name, how), value in zip(columns.items(), texts, strict=True)
        }
        return {"kind": self.kind, **found, "stored": self.digest}

    @property
    def digest(self) -> str:
        """The SHA-256 of what is stored: joined by ``|`` (SQLite), or as a list of JSON."""
        spelled = (
            "|".join(value or "" for value in self.stored)
            if self.is_sqlite
            else json.dumps(list(self.stored), ensure_ascii=False, separators=(",", ":"))
        )
        return hashlib.sha256(spelled.encode("utf-8", "surrogatepass")).hexdigest()

    def under(self, key: str) -> Row:
        """Return the row as if it had the *key* of another: to find two that changed places."""
        stored = key.replace("-", "") if self.is_sqlite else key
        letter = "t" if self.kind == RECEIPT else "i"
        first = f"{letter}{stored.encode().hex().upper()}" if self.is_sqlite else stored
        return replace(self, stored=[first, *self.stored[1:]])

    def _texts(self) -> list[str | None]:
        if not self.is_sqlite:
            return list(self.stored)
        return [
            None if not value or value == "n" else bytes.fromhex(value[1:]).decode(errors="replace")
            for value in self.stored
        ]


def _read(how: str, value: str | None) -> Any:
    if value is None:
        return None
    try:
        if how == "number":
            # ``int`` takes more than one spelling: only the plain one is a number.
            return int(value) if str(int(value)) == value else value
        if how == "uuid":
            return str(uuid.UUID(value))
        if how == "time":
            at = datetime.fromisoformat(value)
            at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
            return f"{at:%Y-%m-%dT%H:%M:%S.%fZ}"
        if how == "json":
            found = json.loads(value)
            # Of what JSON does not know, and Python reads, no entry could be made.
            json.dumps(found, allow_nan=False)
            return found
    except (ValueError, OverflowError, RecursionError):
        pass
    return value


def in_range(session: Session, kind: str, first: int, last: int, *, limit: int) -> list[Row]:
    """Return events or facts with ids from *first* to *last*, at most *limit*, in id order."""
    key = _TABLES[kind].c["id"]
    query = _stored(kind, _is_sqlite(session)).where(key.between(first, last))
    return _rows(session, kind, query.order_by(key).limit(limit))


def by_id(session: Session, kind: str, ids: Sequence[int]) -> list[Row]:
    """Return the events or facts of *ids*, at most ``rows.CHUNK``, in id order."""
    key = _TABLES[kind].c["id"]
    query = _stored(kind, _is_sqlite(session)).where(key.in_(ids)).order_by(key)
    return _rows(session, kind, query)


def receipts(session: Session, public_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Row]:
    """Return the receipts of *public_ids*, at most ``rows.CHUNK``; those without are left out."""
    query = _stored(RECEIPT, _is_sqlite(session)).where(Receipt.public_id.in_(public_ids))
    return {uuid.UUID(row.key): row for row in _rows(session, RECEIPT, query)}


def put_back(facts: Iterable[Row]) -> list[uuid.UUID]:
    """Return whose receipts a replay has written again, by the word of *facts*."""
    found = []
    for document in (row.document() for row in facts):
        if document["fact"] == LEDGER_WRITTEN and document["details"] == BY_REPLAY:
            with suppress(ValueError):
                found.append(uuid.UUID(str(document["public_id"])))
    return found


def says(document: Mapping[str, Any], line: Mapping[str, object]) -> bool:
    """Say whether the entry of a receipt is what a *line* of the ledger says, column by column.

    A line of an early release may lack a column.
    """
    return all(
        document[name] == _read(how, str(line[name]))
        for name, how in COLUMNS[RECEIPT].items()
        if name in line
    )


def of_action(session: Session, action: str, *, limit: int) -> list[Row]:
    """Return the newest events of an *action*, at most *limit*, the latest first."""
    query = _stored(EVENT, _is_sqlite(session)).where(AuditEvent.action == action)
    return _rows(session, EVENT, query.order_by(AuditEvent.id.desc()).limit(limit))


def receipt_keys(session: Session, *, after_event: int) -> Iterator[str]:
    """Yield the public id of each receipt, but of those that are purged by a later event.

    One that is none is yielded as it is.
    """
    waits = exists().where(
        AuditEvent.subject == Receipt.public_id,
        AuditEvent.action == "account.purged",
        AuditEvent.id > after_event,
    )
    column = _in_hex(Receipt.__table__.c["public_id"], _is_sqlite(session))
    for shown in session.connection().execute(select(column).where(~waits)).scalars():
        yield str(_read("uuid", bytes.fromhex(shown).decode(errors="replace")))


@dataclass(frozen=True)
class StoredSeal:
    """The row of a seal as it is stored; a column that holds no such value is a text.

    ``is_typed`` says that each value has the type of its column, which SQLite leaves open: a text
    and its bytes read alike.
    """

    number: int
    columns: Mapping[str, Any]
    entries: bytes
    header: bytes
    is_typed: bool


def stored_seals(session: Session, numbers: Sequence[int]) -> list[StoredSeal]:
    """Return the rows of these *numbers* in their order, whatever is in them."""
    is_sqlite = _is_sqlite(session)
    table = Seal.__table__
    types = [func.typeof(table.c[name], type_=Text()) for name in _SEAL_COLUMNS]
    query = select(
        cast(table.c["number"], BigInteger),
        *(_in_hex(table.c[name], is_sqlite) for name in _SEAL_COLUMNS),
        *(types if is_sqlite else ()),
    )
    found = session.connection().execute(
        query.where(Seal.number.in_(numbers)).order_by(Seal.number)
    )
    cut = len(_SEAL_COLUMNS)
    return [_stored_seal(number, both[:cut], both[cut:]) for number, *both in found]


def _stored_seal(number: int, hexes: Sequence[str | None], types: Sequence[str]) -> StoredSeal:
    """Return a row; *types* are SQLite's, and empty where the engine keeps to those of columns."""
    is_typed = all(
        found == _SQLITE_TYPES.get(name, "text") or (name == "pruned_at" and found == "null")
        for name, found in zip(_SEAL_COLUMNS, types, strict=bool(types))
    )
    raw = {name: bytes.fromhex(one or "") for name, one in zip(_SEAL_COLUMNS, hexes, strict=True)}
    columns = {
        name: _read(how, raw[name].decode(errors="replace") or None)
        for name, how in _SEAL_COLUMNS.items()
        if how != "bytes"
    }
    return StoredSeal(number, columns, raw["entries"], raw["header"], is_typed)


def _in_hex(column: ColumnElement[Any], is_sqlite: bool) -> ColumnElement[Any]:
    """Return the bytes of *column* in hexadecimal digits: the driver could refuse to read them."""
    if is_sqlite:
        return func.hex(column)
    if column.type.python_type is bytes:
        return func.encode(column, "hex")
    return func.encode(func.convert_to(cast(column, Text), "UTF8"), "hex")


def _rows(session: Session, kind: str, query: Select[Any]) -> list[Row]:
    is_sqlite = _is_sqlite(session)
    found = session.connection().execute(query).scalars()
    if is_sqlite:
        return [Row(kind, stored.split("|"), True) for stored in found]
    return [Row(kind, stored, False) for stored in found]


def _is_sqlite(session: Session) -> bool:
    return session.connection().dialect.name == "sqlite"


@lru_cache(maxsize=8)
def _stored(kind: str, is_sqlite: bool) -> Select[Any]:
    """Select one text or list a row, which holds all columns of its form.

    On SQLite ``quote`` and the driver's texts would end at a NUL, so bytes behind one would be in
    no hash.
    """
    columns = [_TABLES[kind].c[name] for name in COLUMNS[kind]]
    if not is_sqlite:
        return select(postgresql.array([cast(column, Text) for column in columns]))
    texts = [
        func.substr(func.typeof(column), 1, 1, type_=Text()).concat(func.hex(column))
        for column in columns
    ]
    return select(reduce(lambda before, one: before.concat("|").concat(one), texts))
