"""Files and folders that the user of this process alone may read, whatever the umask is.

Whoever may list the folder above them, another account of the host, reads neither keys nor mails.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700
# The rights of everybody but the owner.
_OTHERS = 0o077


def make_folder(folder: Path) -> list[Path]:
    """Make *folder*, and what is missing above it, for the owner alone; return what was made.

    One that is there stays as it is: it may be the operator's, with rights on purpose. Raises
    OSError.
    """
    if folder.is_dir():
        return []
    made = make_folder(folder.parent)
    try:
        folder.mkdir(FOLDER_MODE)
    except FileExistsError:
        # Another process has made it meanwhile; if it is no folder, that is an error.
        if not folder.is_dir():
            raise
        return made
    # The umask has cut the mode: with one of 0277 not even the owner could write into it.
    folder.chmod(FOLDER_MODE)
    return [*made, folder]


def open_new(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file for the owner alone; to be given to ``open`` as its ``opener``."""
    handle = os.open(path, flags, FILE_MODE)
    os.fchmod(handle, FILE_MODE)
    return handle


def touch(path: Path) -> None:
    """Make an empty file for the owner alone, unless there is one; the rights of that one stay.

    Raises OSError.
    """
    try:
        os.close(open_new(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return


def tighten(place: Path) -> int:
    """Take the rights of all others from *place* and from everything in it; return from how many.

    Links are neither followed nor changed. What vanishes meanwhile is left out. Raises OSError, for
    what belongs to another user.
    """
    return sum(_tighten(path) for path in _all_of(place))


def _all_of(place: Path) -> Iterator[Path]:
    yield place
    for folder, folders, files in os.walk(place):
        yield from (Path(folder, name) for name in (*folders, *files))


def _tighten(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(found.st_mode) or not found.st_mode & _OTHERS:
        return False
    try:
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
    except FileNotFoundError:
        return False
    return True
