"""Receipts outside the database, so that a restored backup can be purged again.

One object a batch, ``<yyyy>/<mm>/<name>.jsonl``, one receipt a line. It holds ids, times and
counts; no personal data.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from ..errors import StoreUnavailable
from .objectstore import Bucket, check_folder, file_errors, place_from_url, write_file


class Ledger(Protocol):
    """A store of receipts apart from the database, so that a restore does not lose them."""

    def append(self, name: str, lines: Sequence[Mapping[str, object]], *, at: datetime) -> None:
        """Write one batch of receipts durably, whole or not at all.

        *name* is the uuid of the effect that owes it and *at* when that was recorded: the same two
        write the same object again, so a repeat changes nothing. Other batches are untouched. No
        lines, no object.

        Raises StoreUnavailable if it may not have been written, ValueError if *name* is no uuid,
        *at* has no time zone or a line has no ``public_id``, TypeError if a value is not JSON.
        """

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield every receipt once, the earliest month first.

        A ``public_id`` that comes again (purged again after a restore) is dropped. Remembers the
        ids only: about 100 bytes a receipt.

        Raises StoreUnavailable if any of it cannot be read: a gap would let somebody come back.
        """

    def newest(self, now: datetime, *, objects: int = 5) -> list[dict[str, Any]]:
        """Return the receipts of the batches that were written last, at most *objects* of them.

        Only the month of *now* and the one before it are looked into, so that the cost does not
        grow with the years. Raises StoreUnavailable if any of it cannot be read.
        """

    def check(self) -> None:
        """Raise StoreUnavailable if receipts could not be written now."""


class FileLedger:
    """A ledger in a folder, which should lie on another disk than the database.

    A process killed while it writes may leave a ``.part`` file, which no reader takes for a batch.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def append(self, name: str, lines: Sequence[Mapping[str, object]], *, at: datetime) -> None:
        data = _encode(lines)
        if not data:
            return
        with file_errors():
            write_file(self._root / _object_name(name, at), data)

    def read(self) -> Iterator[dict[str, Any]]:
        with file_errors():
            # This raises if the folder is missing, which would look like an empty ledger: a replay
            # would then find nobody to purge.
            next(self._root.iterdir(), None)
            paths = sorted(self._root.glob("[0-9][0-9][0-9][0-9]/[0-9][0-9]/*.jsonl"))
        yield from _receipts(
            (path.relative_to(self._root).as_posix(), _read_file(path)) for path in paths
        )

    def newest(self, now: datetime, *, objects: int = 5) -> list[dict[str, Any]]:
        with file_errors():
            batches = [
                (path.stat().st_mtime_ns, path)
                for month in _months(now)
                for path in (self._root / month).glob("*.jsonl")
            ]
        batches.sort(reverse=True)
        return list(_receipts((path.name, _read_file(path)) for _, path in batches[:objects]))

    def check(self) -> None:
        with file_errors():
            check_folder(self._root)


class S3Ledger:
    """A ledger below a prefix of an S3 bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def append(self, name: str, lines: Sequence[Mapping[str, object]], *, at: datetime) -> None:
        data = _encode(lines)
        if data:
            self._bucket.put(_object_name(name, at), data, content_type="application/x-ndjson")

    def read(self) -> Iterator[dict[str, Any]]:
        keys = [key for key, _ in self._bucket.listing() if key.endswith(".jsonl")]
        yield from _receipts((key, self._bucket.get(key)) for key in keys)

    def newest(self, now: datetime, *, objects: int = 5) -> list[dict[str, Any]]:
        batches = [
            (written_at, key)
            for month in _months(now)
            for key, written_at in self._bucket.listing(f"{month}/")
            if key.endswith(".jsonl")
        ]
        batches.sort(reverse=True)
        return list(_receipts((key, self._bucket.get(key)) for _, key in batches[:objects]))

    def check(self) -> None:
        self._bucket.check()


def ledger_from_url(url: str) -> Ledger:
    """Return the ledger that ``file:///folder`` or ``s3://bucket/prefix`` names; touch nothing yet.

    Raises ValueError for any other URL.
    """
    place = place_from_url(url)
    return S3Ledger(place) if isinstance(place, Bucket) else FileLedger(place)


def _object_name(name: str, at: datetime) -> str:
    if name != str(uuid.UUID(name)) or at.tzinfo is None:
        raise ValueError("a batch of the ledger needs a uuid and a time with its zone")
    return f"{at.astimezone(UTC):%Y/%m}/{name}.jsonl"


def _months(now: datetime) -> tuple[str, str]:
    first = now.astimezone(UTC).replace(day=1)
    return f"{first:%Y/%m}", f"{first - timedelta(days=1):%Y/%m}"


def _encode(lines: Sequence[Mapping[str, object]]) -> bytes:
    if not all(_is_receipt(line) for line in lines):
        raise ValueError("every line of the ledger needs a public_id")
    # Keys are sorted, so that a repeat writes the same bytes: of two versions that differ, nobody
    # could say which is the true one.
    return b"".join(
        json.dumps(dict(line), sort_keys=True, allow_nan=False).encode() + b"\n" for line in lines
    )


def _is_receipt(line: object) -> bool:
    return isinstance(line, Mapping) and isinstance(line.get("public_id"), str)


def _read_file(path: Path) -> bytes:
    with file_errors():
        return path.read_bytes()


def _receipts(objects: Iterable[tuple[str, bytes | None]]) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for name, data in objects:
        if data is None:
            raise StoreUnavailable(
                f"{name} vanished from the ledger while it was read. Read it again."
            )
        for number, text in enumerate(data.splitlines(), start=1):
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            if not _is_receipt(line):
                raise StoreUnavailable(
                    f"Line {number} of {name} in the ledger is not a receipt. "
                    "Put a good copy of this object in its place."
                )
            if line["public_id"] not in seen:
                seen.add(line["public_id"])
                yield line
