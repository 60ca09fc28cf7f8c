"""``accountsvc restore``: put a backup in the place of the embedded database.

One rename decides: before it the database of before is there, after it that of the backup, wherever
the process is killed. Avatar files only come in addition, before it; no other file has their names.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sqlite3
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from .. import private
from ..config import Settings, load_settings
from ..db import schema, soundness
from ..db.audit import OPERATOR_ACTOR
from ..db.engine import BUSY_TIMEOUT_MS
from ..purge import stops
from ..services import Services, build_services
from . import Failure
from .backup import (
    CONTENTS,
    DATABASE,
    FORMAT,
    MEDIA,
    Contents,
    LedgerStand,
    count,
    database_file,
    doing,
    draft,
    sync,
)

# SQLite's bytes of shared locks (os_unix.c): whoever has a file with a write-ahead log open holds
# one of them for as long, also while nothing is asked.
_SHARED_FIRST, _SHARED_SIZE = 0x40000002, 510

_NEXT = """\
accountsvc: purging is paused, so that nobody is purged before you have looked; what comes next:
  accountsvc ledger replay --restored --dry-run
  accountsvc ledger replay --restored --yes
  accountsvc accounts list --state due
  accountsvc sweeps resume
  accountsvc avatars orphans
accountsvc: docs/operations.md says more, under "After a restore from a backup"
"""


def restore(file: Path) -> None:
    """Put the backup *file* in place, with purging paused; keep aside what was there.

    Raises ConfigError for a wrong setting, also for ``VAULT_KEYS`` that are not the backup's;
    Failure, with nothing changed, while the service runs and for an unfit *file*.
    """
    settings = load_settings()
    place = database_file(settings, "restore it with pg_restore, and its files by your store")
    with doing(f"{file} cannot be put in place"):
        schema.ensure_folder(settings.database_url)
        with _alone(place):
            # Whoever has forgotten to stop the service hears of it before the long part.
            pass
        with _opened(file) as packed, draft(place) as folder:
            contents = _contents(file, packed)
            staged = folder / DATABASE
            _stage(packed, staged, settings)
            aside = place.with_name(f"{place.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
            added, present = _add_avatars(packed, build_services(settings), aside)
            _settle(place)
            with _alone(place):
                kept = _replace(staged, place, aside)
                _outwait()
    sys.stdout.write(
        f"accountsvc: the database is that of {contents.made_at}, with "
        f"{count(contents.accounts, 'account')}; {count(added + present, 'avatar file')}: "
        f"{added} put back, {present} there already\n"
    )
    for path in kept:
        sys.stdout.write(f"accountsvc: kept of before, to be deleted in the end: {path}\n")
    if contents.ledger is not None:
        stand = contents.ledger
        sys.stdout.write(
            f"accountsvc: the ledger then stood at {stand.written_at} ({stand.name})\n"
        )
    sys.stdout.write(_NEXT)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Keep everybody else from the database file meanwhile; raise Failure if anybody has it open.

    No connection of this process to that file may be closed meanwhile: the system would drop this
    lock with it.
    """
    try:
        handle = os.open(place, os.O_RDWR)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
        except (BlockingIOError, PermissionError) as exc:
            raise _in_use(place) from exc
        yield
    finally:
        os.close(handle)


def _in_use(place: Path) -> Failure:
    return Failure(f"{place} is in use: stop web, worker, beat and every command first")


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        packed = zipfile.ZipFile(file)
    except zipfile.BadZipFile as exc:
        raise Failure(f"{file} is no backup, or is not whole") from exc
    except OSError as exc:
        raise Failure(f"{file} cannot be read: {exc.strerror}") from exc
    with packed:
        yield packed


def _contents(file: Path, packed: zipfile.ZipFile) -> Contents:
    """Return what the backup says that it holds; raise Failure for what is none of ours."""
    names = packed.namelist()
    avatars = [name for name in names if re.fullmatch(rf"{MEDIA}[0-9a-f]{{32}}\.webp", name)]
    try:
        if sorted(names) != sorted([DATABASE, CONTENTS, *avatars]):
            raise ValueError
        damaged = packed.testzip()
        said = json.loads(packed.read(CONTENTS))
        if said["format"] != FORMAT:
            raise Failure(f"{file} was made by a later release: install that one first")
        stand = said.pop("ledger")
        contents = Contents(**said, ledger=None if stand is None else LedgerStand(**stand))
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, LookupError, TypeError) as exc:
        raise Failure(f"{file} is no backup of accountsvc, or is damaged") from exc
    if damaged is not None:
        raise Failure(f"{file} is damaged: {damaged} in it is not what was written")
    return contents


def _stage(packed: zipfile.ZipFile, staged: Path, settings: Settings) -> None:
    """Unpack the database, prove that it is sound, bring its schema up to date, pause purging."""
    with (
        packed.open(DATABASE) as source,
        open(staged, "wb", opener=private.open_new) as target,
    ):
        while block := source.read(1 << 20):
            target.write(block)
    soundness.refuse_unsound(staged, wholly=True)
    url = f"sqlite:///{staged}"
    try:
        schema.upgrade(url)
    except CommandError as exc:
        raise Failure(f"the backup was made by a later release: {exc}") from exc
    except DBAPIError as exc:
        raise Failure("the backup holds a database of another program") from exc
    services = build_services(replace(settings, database_url=url))
    try:
        services.refuse_wrong_vault_keys()
        with services.writing() as session:
            stops.pause(session, by=OPERATOR_ACTOR)
    finally:
        services.database.engine.dispose()
    _make_one_file(staged)
    sync(staged)


def _add_avatars(packed: zipfile.ZipFile, services: Services, aside: Path) -> tuple[int, int]:
    """Put the backup's avatar files beside those that are there.

    Return how many were put there, and how many were there already.

    A file of that name with other bytes is damaged, and is kept in the folder *aside*``.media``.
    """
    added = already = 0
    for name in packed.namelist():
        if not name.startswith(MEDIA):
            continue
        key, data = name.removeprefix(MEDIA), packed.read(name)
        present = services.avatars.open(key)
        if present is not None:
            with present:
                found = present.read()
            if found == data:
                already += 1
                continue
            folder = aside.with_name(f"{aside.name}.media")
            private.make_folder(folder)
            with open(folder / key, "wb", opener=private.open_new) as kept:
                kept.write(found)
        services.avatars.begin()
        services.avatars.put(key, data)
        added += 1
    return added, already


def _settle(place: Path) -> None:
    """Have a sound database take in its log, so that it is whole without it, wherever this ends.

    An unsound one is left as it is: only a person can say what its log is worth. Raises Failure if
    anybody has begun to use it meanwhile.
    """
    if not place.exists():
        return
    try:
        soundness.refuse_unsound(place)
    except soundness.Unsound:
        return
    try:
        _make_one_file(place)
    except sqlite3.OperationalError as exc:
        raise _in_use(place) from exc


def _make_one_file(path: Path) -> None:
    """Have a SQLite file take in its write-ahead log. Raises sqlite3.Error if it is in use."""
    with closing(sqlite3.connect(path, timeout=1)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        file.execute("PRAGMA journal_mode = DELETE").fetchone()


def _replace(staged: Path, place: Path, aside: Path) -> list[Path]:
    """Put *staged* in place and what was there at *aside*; return what is kept there.

    A log of before goes first: beside the new database SQLite would take it for its own.
    """
    kept = []
    for suffix in ("-wal", "-shm", "-journal"):
        left = place.with_name(f"{place.name}{suffix}")
        if left.exists():
            kept.append(left.rename(aside.with_name(f"{aside.name}{suffix}")))
    if place.exists():
        kept.insert(0, aside)
        try:
            os.link(place, aside)
        except OSError:
            # A file system without links: for a moment there is no database, then the backup's.
            place.rename(aside)
    os.replace(staged, place)
    sync(place.parent)
    return kept


def _outwait() -> None:
    """Wait until whoever has just opened the old file, and waits for its lock, has given up.

    Let in, they would write into it, and their log would lie beside the new one.
    """
    time.sleep(BUSY_TIMEOUT_MS / 1000 + 0.5)
