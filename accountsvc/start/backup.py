"""``accountsvc backup``: the embedded database and its avatar files in one file, while all runs.

The file is a ZIP: ``accountsvc.db`` is a copy of the database at one moment, ``media/`` has the
avatar files that its accounts show, and ``backup.json`` says of what, when, and where the ledger
stood. It holds no keys.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import sys
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.engine import make_url

from .. import private
from ..adapters.ledger import moment_of
from ..config import Settings, load_settings
from ..db import soundness
from ..db.text import rfc3339
from ..errors import StoreUnavailable
from ..services import Services, build_services
from . import Failure

# The names in a backup. An avatar's is its key below MEDIA.
DATABASE, MEDIA, CONTENTS = "accountsvc.db", "media/", "backup.json"
FORMAT = 1
# The ZIP's name while it is written.
_PACKED = "packed"


@dataclass(frozen=True)
class LedgerStand:
    """Where the ledger stood before the database was copied: its newest object, and its time."""

    name: str
    written_at: str


@dataclass(frozen=True)
class Contents:
    """What a backup holds: a copy of the database, of the schema *revision*, and avatar files."""

    made_at: str
    revision: str
    accounts: int
    files: int
    ledger: LedgerStand | None
    format: int = FORMAT


def backup(file: Path) -> None:
    """Write a backup to *file*, which may not be there yet; whole or not at all.

    Nobody waits for it. Raises ConfigError for a wrong setting, Failure for any other obstacle.
    """
    settings = load_settings()
    database = database_file(
        settings, "back it up with pg_dump, and its avatar files by your store"
    )
    if file.exists():
        raise Failure(f"{file} is there already: name another file")
    if not file.parent.is_dir():
        raise Failure(f"there is no folder {file.parent}")
    if not database.is_file():
        raise Failure(f"there is no database at {database} yet")
    services = build_services(settings)
    try:
        with doing(f"{file} cannot be written"), draft(file) as folder:
            soundness.refuse_unsound(database)
            stand = _ledger_stand(services)
            copy_database(database, folder / DATABASE)
            soundness.refuse_unsound(folder / DATABASE, wholly=True)
            contents, missing = _pack(services, folder, stand)
            os.replace(folder / _PACKED, file)
            sync(file.parent)
    finally:
        services.database.engine.dispose()
    _say(file, contents, missing)


def database_file(settings: Settings, instead: str) -> Path:
    """Return the file of the embedded database; raise Failure on PostgreSQL, with what to do."""
    if not settings.is_sqlite:
        raise Failure(f"the database is PostgreSQL: {instead}; see docs/operations.md")
    return Path(make_url(settings.database_url).database or "")


@contextmanager
def doing(failing: str) -> Iterator[None]:
    """Turn what a disk, SQLite and the store raise into a Failure."""
    try:
        yield
    except soundness.Unsound as exc:
        raise Failure(str(exc)) from exc
    except OSError as exc:
        raise Failure(f"{failing}: {exc.strerror}") from exc
    except sqlite3.Error as exc:
        raise Failure(f"the database cannot be read: {exc}") from exc
    except StoreUnavailable as exc:
        raise Failure(f"STORAGE_URL: {exc}") from exc


@contextmanager
def draft(place: Path) -> Iterator[Path]:
    """Make a folder beside *place* for what is not whole yet, gone at the end; for one at a time.

    What a killed process has left in it is removed first. Raises OSError; Failure if another
    process is at work on *place*.
    """
    folder = place.with_name(f"{place.name}.part")
    private.make_folder(folder)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Failure(f"another process is at work on {place}") from exc
        _empty(folder)
        try:
            yield folder
        finally:
            _empty(folder)
            # Somebody else's folder of that name, with files in it, stays.
            with suppress(OSError):
                folder.rmdir()
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    for name in (_PACKED, *(f"{DATABASE}{suffix}" for suffix in ("", "-wal", "-shm", "-journal"))):
        (folder / name).unlink(missing_ok=True)


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite file, which may be in use, as it is at one moment into *target*: no log."""
    private.touch(target)
    live = sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)
    with closing(live), closing(sqlite3.connect(target)) as copy:
        # All pages in one step: in several, each write of the service's would begin it anew.
        live.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode = DELETE")


def sync(place: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _ledger_stand(services: Services) -> LedgerStand | None:
    """Read where the ledger stands; None if it is empty, or does not answer, which is said.

    Before the copy: what was purged until then is gone from the copy too.
    """
    try:
        newest = services.ledger.newest(objects=1).objects
    except StoreUnavailable as exc:
        sys.stderr.write(f"accountsvc: where the ledger stands is not known. LEDGER_URL: {exc}\n")
        return None
    name = newest[0].link.name if newest else ""
    written_at = moment_of(name)
    return None if written_at is None else LedgerStand(name, rfc3339(written_at))


def _pack(services: Services, folder: Path, stand: LedgerStand | None) -> tuple[Contents, int]:
    """Write the ZIP into *folder*, and read it back; return what it holds and lacks.

    A file is missing that went between the copy and now: its avatar was replaced, or its account
    was purged.
    """
    with closing(sqlite3.connect(folder / DATABASE)) as copy:
        (revision,) = copy.execute("SELECT version_num FROM alembic_version").fetchone()
        (accounts,) = copy.execute("SELECT count(*) FROM accounts").fetchone()
        keys = copy.execute("SELECT avatar_key FROM accounts WHERE avatar_key IS NOT NULL")
        shown = sorted(key for (key,) in keys)
    missing = 0
    with (
        open(folder / _PACKED, "wb", opener=private.open_new) as file,
        zipfile.ZipFile(file, "w", compression=zipfile.ZIP_STORED) as packed,
    ):
        packed.write(folder / DATABASE, DATABASE, zipfile.ZIP_DEFLATED, compresslevel=1)
        for key in shown:
            avatar = services.avatars.open(key)
            if avatar is None:
                missing += 1
                continue
            with avatar:
                packed.writestr(MEDIA + key, avatar.read())
        contents = Contents(
            made_at=rfc3339(datetime.now(UTC)),
            revision=revision,
            accounts=accounts,
            files=len(shown) - missing,
            ledger=stand,
        )
        packed.writestr(CONTENTS, json.dumps(asdict(contents), indent=2))
    with zipfile.ZipFile(folder / _PACKED) as packed:
        if (damaged := packed.testzip()) is not None:
            raise Failure(f"{damaged} could not be read back: is the disk sound?")
    sync(folder / _PACKED)
    return contents, missing


def count(number: int, noun: str) -> str:
    """Return *number* with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _say(file: Path, contents: Contents, missing: int) -> None:
    held = f"{count(contents.accounts, 'account')} and {count(contents.files, 'avatar file')}"
    stood = "empty" if contents.ledger is None else f"at {contents.ledger.written_at}"
    lines = [
        f"{file} holds {held}, as of {contents.made_at}",
        f"the ledger, which is not in it, was {stood}",
        "it holds no keys: keep SECRET_KEY and VAULT_KEYS elsewhere; without VAULT_KEYS no saved "
        "password opens",
    ]
    if missing:
        lines.append(f"{count(missing, 'avatar file')} had gone: replaced or purged meanwhile")
    sys.stdout.writelines(f"accountsvc: {line}\n" for line in lines)
