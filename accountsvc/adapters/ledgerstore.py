"""Where the objects of the ledger lie: a folder, or below a prefix of an S3 bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from .objectstore import Bucket, check_folder, file_errors, place_from_url, write_file

# So many objects of a bucket are asked for at once: one after the other, ten thousand would take
# minutes.
_AT_ONCE = 8
_WINDOW = 64


class LedgerStore(Protocol):
    """Objects by name. Every method raises StoreUnavailable if the store does not answer."""

    def put(self, name: str, data: bytes) -> None:
        """Write the object durably, whole or not at all."""

    def get(self, name: str) -> bytes | None:
        """Return the object's bytes; None if it is missing, or is a folder."""

    def get_all(self, names: list[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield each of *names* with what :meth:`get` returns, in their order."""

    def names(self, below: str = "", *, without: str = "") -> Iterator[str]:
        """Yield every name that begins with *below*, sorted, and no sooner than it is asked for.

        The folder *without* is not even listed, however much is in it. A folder in the place of an
        object ends with a slash. Drafts of a killed process are left out, and nothing is missing in
        a store that was never written.
        """

    def remove(self, name: str) -> None:
        """Remove the object; one that is missing is no error."""

    def check(self) -> None:
        """Raise StoreUnavailable if nothing could be written now."""


class FolderStore:
    """A folder, which should lie on another disk than the database.

    A process killed while it writes may leave a ``.part`` file, which no reader takes for an
    object.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, name: str, data: bytes) -> None:
        with file_errors():
            write_file(self._root / name, data)

    def get(self, name: str) -> bytes | None:
        with file_errors():
            try:
                return (self._root / name).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def get_all(self, names: list[str]) -> Iterator[tuple[str, bytes | None]]:
        return ((name, self.get(name)) for name in names)

    def names(self, below: str = "", *, without: str = "") -> Iterator[str]:
        with file_errors():
            yield from self._walk("", below, without)

    def _walk(self, folder: str, below: str, without: str) -> Iterator[str]:
        try:
            with os.scandir(self._root / folder) as entries:
                # A folder sorts as its contents do, which have a slash behind its name.
                found = sorted(
                    f"{folder}{entry.name}{'/' if entry.is_dir() else ''}" for entry in entries
                )
        except FileNotFoundError:
            return
        for name in found:
            if name.endswith("/"):
                if name == without or not (name.startswith(below) or below.startswith(name)):
                    continue
                if name.endswith(".jsonl/"):
                    yield name
                else:
                    yield from self._walk(name, below, without)
            elif name.startswith(below) and not name.endswith(".part"):
                yield name

    def remove(self, name: str) -> None:
        with file_errors():
            (self._root / name).unlink(missing_ok=True)

    def check(self) -> None:
        with file_errors():
            check_folder(self._root)


class BucketStore:
    """A prefix of an S3 bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def put(self, name: str, data: bytes) -> None:
        self._bucket.put(name, data, content_type="application/x-ndjson")

    def get(self, name: str) -> bytes | None:
        return self._bucket.get(name)

    def get_all(self, names: list[str]) -> Iterator[tuple[str, bytes | None]]:
        if len(names) == 1:
            yield names[0], self.get(names[0])
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for start in range(0, len(names), _WINDOW):
                window = names[start : start + _WINDOW]
                yield from zip(window, pool.map(self.get, window), strict=True)

    def names(self, below: str = "", *, without: str = "") -> Iterator[str]:
        for key, _ in self._bucket.listing(below):
            if without and key.startswith(without):
                break
            yield key
        else:
            return
        # No name that anybody writes there sorts behind this.
        for key, _ in self._bucket.listing(below, after=f"{without}~"):
            yield key

    def remove(self, name: str) -> None:
        self._bucket.remove(name)

    def check(self) -> None:
        self._bucket.check()


def store_from_url(url: str) -> LedgerStore:
    """Return the store that ``file:///folder`` or ``s3://bucket/prefix`` names; touch nothing yet.

    Raises ValueError for any other URL.
    """
    place = place_from_url(url)
    return BucketStore(place) if isinstance(place, Bucket) else FolderStore(place)
