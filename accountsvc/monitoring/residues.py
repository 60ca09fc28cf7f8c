"""The search for somebody of whom nothing may be left, by words that stand nowhere else.

It is for the canary: a person's own words are not known once they are purged. What it reads it does
not keep, and what it says is a place and never the word.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    cast,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session
from sqlalchemy.types import NullType, TypeEngine

from ..adapters.ledgerseal import Opened
from ..adapters.objectstore import file_errors
from ..db.datamap import PLACES, Purge
from ..db.models import Effect, KeptLine, Receipt
from ..db.orphaned import OrphanedFile
from ..outbox import queue
from ..services import Services

# The places, as an alarm names them. What is searched and named by none of them is a table.
DATABASE, SQLITE_FILE, OUTBOX = "database", "sqlite file", "outbox"
AVATARS, QUARANTINE, LEDGER = "avatars", "quarantine", "ledger"
BROKER, REDIS, MAIL_FOLDER = "broker", "redis", "mail folder"

_PIECE = 1 << 20
# So many keys of Redis are looked at: it may be shared with others, who have millions.
_MOST_KEYS = 20_000
_MOST_ITEMS = 1000


@dataclass(frozen=True)
class Wanted:
    """What is searched for: *words* (lower case), the avatar's key if it had one, both ids.

    *marks* are the largest ids of the tables before the person came: rows up to there are of others
    and are not read. *began_at* is by the same token for files of mails.
    """

    public_id: uuid.UUID
    account_id: int
    words: Sequence[str]
    avatar_key: str | None
    marks: Mapping[str, int]
    began_at: datetime

    @property
    def all_words(self) -> list[str]:
        return [*self.words, *([] if self.avatar_key is None else [self.avatar_key])]


def marks(services: Services) -> dict[str, int]:
    """Return the largest id of every table that has one, to search behind it later."""
    found: dict[str, int] = {}
    with services.reading() as session:
        for table in _tables(services):
            if (number := _number(table)) is not None:
                found[table.name] = session.scalar(select(func.max(number))) or 0
    return found


def places(services: Services, wanted: Wanted) -> list[str]:
    """Return every place in which something of *wanted* is, sorted; none if all is gone.

    Logs go to the output of a process, which nobody here can read; PostgreSQL's freed pages, its
    WAL, replicas and backups keep what they have until ``docs/operations.md`` says.
    """
    found = {
        *_in_tables(services, wanted),
        *_in_rows(services, wanted),
        *_in_stores(services, wanted),
        *_in_files(services, wanted),
    }
    return sorted(found)


def _tables(services: Services) -> list[Table]:
    """Return the tables that the database has, also those that no model knows."""
    metadata = MetaData()
    metadata.reflect(services.database.engine)
    return [table for table in metadata.sorted_tables if table.name != "alembic_version"]


def _number(table: Table) -> Column[Any] | None:
    """Return the column by which later rows of *table* are larger; None if it has none."""
    keys = list(table.primary_key.columns)
    is_number = len(keys) == 1 and isinstance(keys[0].type, Integer)
    return keys[0] if is_number and keys[0].name in {"id", "account_id"} else None


def _in_tables(services: Services, wanted: Wanted) -> Iterator[str]:
    for table in _tables(services):
        is_outbox = table.name == Effect.__tablename__
        # Of the outbox the key is no residue: whoever verifies a purge is still owed it there.
        words = wanted.words if is_outbox else wanted.all_words
        conditions = [
            condition
            for column in table.columns
            for condition in _mentions(services, column, words)
        ]
        if not conditions:
            continue
        query = select(literal(1)).select_from(table).where(or_(*conditions)).limit(1)
        number, mark = _number(table), wanted.marks.get(table.name)
        # A table of one row is searched whole: its row is older than anybody.
        if number is not None and mark is not None and mark > 1:
            query = query.where(number > mark)
        with services.reading() as session:
            if session.scalar(query) is not None:
                yield _PLACE_OF.get(table.name, DATABASE)


_PLACE_OF = {Effect.__tablename__: OUTBOX, OrphanedFile.__tablename__: QUARANTINE}


def _mentions(
    services: Services, column: Column[Any], words: Sequence[str]
) -> Iterator[ColumnElement[bool]]:
    """Yield a condition for each of *words* that *column* can hold."""
    kind: TypeEngine[Any] = column.type
    if isinstance(kind, LargeBinary):
        is_sqlite = services.settings.is_sqlite
        as_hex = func.hex(column) if is_sqlite else func.encode(column, "hex")
        for word in words:
            yield func.lower(as_hex, type_=Text).contains(word.encode().hex())
    elif isinstance(kind, (String, JSON, NullType)):
        length = getattr(kind, "length", None)
        for word in words:
            if length is None or length >= len(word):
                text = cast(column, Text)
                yield func.lower(text, type_=Text).contains(word, autoescape=True)


def _in_rows(services: Services, wanted: Wanted) -> Iterator[str]:
    """Yield a place for rows that the map empties, and that name the person by an id."""
    owed = Effect.kind.not_in(_OWED_LATER)
    with services.reading() as session:
        for place in PLACES:
            if place.purge is Purge.BY_ACCOUNT and place.model is not None:
                # Every table that is purged by account has an account_id, which no type says.
                account_id = place.model.account_id  # type: ignore[attr-defined]
                if _any(session, account_id == wanted.account_id):
                    yield DATABASE
        if _any(session, KeptLine.subject == wanted.public_id):
            yield DATABASE
        if _any(session, (Effect.subject == wanted.public_id) & owed):
            yield OUTBOX


# Whoever looks whether a purge is complete is owed after it.
_OWED_LATER = (queue.FINISH,)


def _any(session: Session, condition: ColumnElement[bool]) -> bool:
    return session.scalar(select(literal(1)).where(condition).limit(1)) is not None


def _in_stores(services: Services, wanted: Wanted) -> Iterator[str]:
    if wanted.avatar_key is not None and services.avatars.remaining([wanted.avatar_key]):
        yield AVATARS
    with services.reading() as session:
        receipt = session.get(Receipt, wanted.public_id)
    written = [] if receipt is None else services.ledger.of_moment(receipt.purged_at)
    names = [one.link.name if isinstance(one, Opened) else one.name for one in written]
    for name in names:
        if _has(services.ledger.store.get(name) or b"", wanted.all_words):
            yield LEDGER
    if services.settings.redis_url and _in_redis(services.settings.redis_url, wanted.words):
        yield REDIS


def _in_files(services: Services, wanted: Wanted) -> Iterator[str]:
    settings = services.settings
    if settings.is_sqlite:
        # A key that names nobody may stand in freed pages until the next scrub.
        path = Path(str(make_url(settings.database_url).database))
        if any(_file_has(one, wanted.words) for one in path.parent.glob(f"{path.name}*")):
            yield SQLITE_FILE
    broker = urlsplit(settings.celery_broker_url)
    if broker.scheme == "filesystem":
        folder = Path(unquote(broker.path))
        if any(_file_has(one, wanted.words) for one in folder.rglob("*")):
            yield BROKER
    elif _in_redis(settings.celery_broker_url, wanted.words):
        yield BROKER
    if settings.mail_url.startswith("file://"):
        since = wanted.began_at.timestamp() - 60
        mails = Path(settings.mail_url.removeprefix("file://")).rglob("*")
        if any(_is_since(one, since) and _file_has(one, wanted.words) for one in mails):
            yield MAIL_FOLDER


def _is_since(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime >= since
    except FileNotFoundError:
        return False


def _file_has(path: Path, words: Sequence[str]) -> bool:
    """Say whether the file has one of *words* in its name or its bytes, read piece by piece."""
    if _has(path.name.encode(), words):
        return True
    overlap = max(map(len, words))
    with file_errors():
        try:
            with path.open("rb") as file:
                rest = b""
                while piece := file.read(_PIECE):
                    if _has(rest + piece, words):
                        return True
                    rest = piece[-overlap:]
        except (FileNotFoundError, IsADirectoryError):
            return False
    return False


def _in_redis(url: str, words: Sequence[str]) -> bool:
    # Where Redis is not used, importing it would be a seventh of the time that a start takes.
    from redis import Redis

    with Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as redis:
        for key in islice(redis.scan_iter(count=1000), _MOST_KEYS):
            if _has(key, words) or any(_has(item, words) for item in _items(redis, key)):
                return True
    return False


def _items(redis: Any, key: bytes) -> Iterable[bytes]:
    """Return what a key of Redis holds, up to a thousand items of it."""
    kind = redis.type(key)
    if kind == b"string":
        return [redis.get(key) or b""]
    if kind == b"list":
        return list(redis.lrange(key, 0, _MOST_ITEMS))
    if kind == b"hash":
        return [part for pair in islice(redis.hscan_iter(key), _MOST_ITEMS) for part in pair]
    if kind == b"zset":
        return list(redis.zrange(key, 0, _MOST_ITEMS))
    if kind == b"set":
        return list(islice(redis.sscan_iter(key), _MOST_ITEMS))
    return []


def _has(content: bytes, words: Sequence[str]) -> bool:
    lowered = content.lower()
    return any(word.encode() in lowered for word in words)
