"""Whether a SQLite file is fit to be used: looked at without changing it, also while it is in use.

Opened as usual, a file beside a write-ahead log that is not its own would take in that log's pages
when it is closed again, and be lost for good.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path


class Unsound(Exception):
    """The file cannot be used; the message is one line that says why, and what to do."""


_ADVICE = "stop the service and put a backup in its place: `accountsvc restore FILE`"


def refuse_unsound(path: Path, *, wholly: bool = False) -> None:
    """Raise Unsound if SQLite could not work with the file at *path*, if there is one.

    Every page that is in use is read, which takes a second for some hundred megabytes. *wholly*
    compares indexes and foreign keys with the rows too, and is slower; so it is where a write-ahead
    log holds anything, because one of another file shows in no other way.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except OSError as exc:
        raise Unsound(f"{path} cannot be read: {exc.strerror}") from exc
    if path.is_dir():
        raise Unsound(f"{path} is a folder, and no database: correct DATABASE_URL")
    if not os.access(path, os.R_OK | os.W_OK):
        raise Unsound(f"{path} belongs to another user: run this as its owner, or give it back")
    if found.st_size == 0:
        return
    log = log_of(path)
    has_log = log.is_file() and log.stat().st_size > 0
    fault = _fault(path, wholly=wholly or has_log)
    if fault is None and has_log and not _log_knows_newest_event(path):
        fault = "it lacks the newest event of the database"
    if fault is None:
        return
    if has_log and _fault(path, wholly=True, without_log=True) is None:
        raise Unsound(
            f"{log} is not of {path.name}, or is damaged: stop the service and move {log.name} and "
            f"{path.name}-shm elsewhere; what was written last is lost then ({fault})"
        )
    raise Unsound(f"{path} is damaged ({fault}): {_ADVICE}")


def log_of(path: Path) -> Path:
    """Return the place of the write-ahead log of the file at *path*."""
    return path.with_name(f"{path.name}-wal")


def _log_knows_newest_event(path: Path) -> bool:
    """Say whether the newest audit event of the file itself is there with its log, too.

    The log of a young database holds all its pages: beside any other file it is sound, and hides
    all of that. Events are never deleted nor changed, so that the log of the same file has them.
    """
    newest = "SELECT * FROM audit_events ORDER BY id DESC LIMIT 1"
    try:
        with closing(_look(path, without_log=True)) as file:
            event = file.execute(newest).fetchone()
    except sqlite3.Error:
        # Without its log a file may be in the midst of anything, which proves nothing.
        return True
    by_id = "SELECT * FROM audit_events WHERE id = ?"
    try:
        with closing(_look(path)) as file:
            found = file.execute(by_id, (event[0] if event else None,)).fetchone()
    except sqlite3.Error:
        return False
    return bool(found == event)


def _look(path: Path, *, without_log: bool = False) -> sqlite3.Connection:
    """Connect to the file for reading; *without_log* leaves out what its write-ahead log holds."""
    options = "mode=ro&immutable=1" if without_log else "mode=ro"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True)


def _fault(path: Path, *, wholly: bool, without_log: bool = False) -> str | None:
    """Return the first fault of the file in SQLite's words, which quote no row; None for none."""
    try:
        with closing(_look(path, without_log=without_log)) as file:
            (words,) = file.execute(
                "PRAGMA integrity_check(1)" if wholly else "PRAGMA quick_check(1)"
            ).fetchone()
            if words != "ok":
                return str(words).splitlines()[-1]
            if wholly and (row := file.execute("PRAGMA foreign_key_check").fetchone()):
                return f"a row of {row[0]} refers to none of {row[2]}"
    except sqlite3.Error as exc:
        return str(exc)
    return None
