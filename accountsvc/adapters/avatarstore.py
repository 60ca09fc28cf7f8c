"""The store of avatar files: in a folder, or in an S3 bucket.

A file is an image that ``images.normalise`` has encoded anew; the store takes any bytes. botocore
is imported where it is needed, as boto3 is in ``objectstore``.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from ..errors import StoreUnavailable
from .objectstore import (
    Bucket,
    check_folder,
    file_errors,
    place_from_url,
    probe_folder,
    s3_errors,
    sync_folder,
    write_file,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

CONTENT_TYPE = "image/webp"

# S3 answers a missing permission with this code. Any other error is no reason to advise a
# permission.
_DENIED = "AccessDenied"


def new_key() -> str:
    """Return a random key, ``<32 hex digits>.webp``; its 128 bits cannot be guessed.

    Its digits are lower-case hex and not base64: so keys also differ where file names ignore case,
    and none begins with a dash, which a command would take for an option.
    """
    return f"{secrets.token_hex(16)}.webp"


_DIGITS = 32
# Each run of so many digits, also one that overlaps another: a name may begin with a hash.
_HAS_DIGITS = re.compile(f"(?=([0-9a-f]{{{_DIGITS}}}))")


def is_key(text: str) -> bool:
    """Say whether *text* is exactly of ``new_key``'s form, which cannot lead out of a folder."""
    return re.fullmatch(r"[0-9a-f]{32}\.webp", text) is not None


class AvatarStore(Protocol):
    """A store of avatars by key. Safe to share between threads and across forks.

    It is never made by the way: what looks like a fresh one may be a disk that is not mounted.
    """

    def begin(self) -> None:
        """Make the store of a service that has stored nothing yet; one that is there stays.

        Raises StoreUnavailable.
        """

    def is_there(self) -> bool:
        """Say whether :meth:`begin` would have nothing to make, as far as that costs nothing."""

    def put(self, key: str, data: bytes) -> None:
        """Write the file durably, whole or not at all; a repeat replaces it.

        Raises StoreUnavailable if it may not have been written, ValueError unless ``is_key(key)``.
        """

    def open(self, key: str) -> BinaryIO | None:
        """Return the file at its beginning, which the caller closes; None if there is none.

        Raises StoreUnavailable.
        """

    def delete_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Remove the files for good, with every earlier version and what a killed ``put`` has left.

        Returns the keys that may still be there, each with a short reason (the class of the
        exception, or S3's error code and the permission that it wants), never a message. A missing
        file is a success; one failure does not keep the others. Repeat it freely. A store that
        keeps versions is asked afterwards whether any is left.

        Raises StoreUnavailable if the store as a whole cannot be used; some may be gone by then.
        """

    def remaining(self, keys: Sequence[str]) -> Mapping[str, int]:
        """Count what is left of the files, by key; whoever is not named has nothing left.

        Each earlier version counts, and so does what a killed ``put`` has left, and in a folder
        each file beside it whose name holds the key's digits. Nothing is taken for granted: raises
        StoreUnavailable if the store cannot be asked about each of them.
        """

    def listing(self, *, after: str = "") -> Iterator[tuple[str, datetime]]:
        """Yield every key and when it was written (UTC), also what a killed ``put`` left behind.

        Each once, sorted; those behind the key *after*, if it is not empty, so that a search can go
        on where it has ended. It must allow for uploads under way. Other files are ignored.

        Raises StoreUnavailable.
        """

    def check(self) -> None:
        """Raise StoreUnavailable, if possible with what it needs, unless it can be used now."""


class FileStore:
    """Avatars in a folder, spread over 256 of its subfolders."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def begin(self) -> None:
        with file_errors():
            check_folder(self._root)

    def is_there(self) -> bool:
        return self._root.is_dir()

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self._require_root()
        with file_errors():
            write_file(path, data, part=_part(path))

    def open(self, key: str) -> BinaryIO | None:
        if not is_key(key):
            return None
        with file_errors():
            try:
                return self._path(key).open("rb")
            except FileNotFoundError:
                return None

    def delete_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        self._require_root()
        failed: dict[str, str] = {}
        by_folder: dict[Path, list[str]] = {}
        for key in dict.fromkeys(keys):
            if not is_key(key):
                failed[key] = ValueError.__name__
                continue
            path = self._path(key)
            try:
                path.unlink(missing_ok=True)
                _part(path).unlink(missing_ok=True)
            except OSError as exc:
                failed[key] = type(exc).__name__
            else:
                by_folder.setdefault(path.parent, []).append(key)
        for folder, removed in by_folder.items():
            # A power cut undoes a removal that is not synced, and no row would remember the file.
            try:
                sync_folder(folder)
            except FileNotFoundError:
                pass
            except OSError as exc:
                failed.update(dict.fromkeys(removed, type(exc).__name__))
        return failed

    def remaining(self, keys: Sequence[str]) -> Mapping[str, int]:
        # A copy under another name (``….webp~``, ``….webp.part``), as an editor or a backup leaves
        # it, is as much of the picture as the file itself.
        self._require_root()
        wanted = {key[:_DIGITS]: key for key in filter(is_key, keys)}
        left: dict[str, int] = {}
        with file_errors():
            for folder in sorted({key[:2] for key in wanted}):
                for name in _names_in(self._root / folder):
                    for found in {match[1] for match in _HAS_DIGITS.finditer(name.lower())}:
                        if found in wanted:
                            left[wanted[found]] = left.get(wanted[found], 0) + 1
        return left

    def listing(self, *, after: str = "") -> Iterator[tuple[str, datetime]]:
        self._require_root()
        with file_errors():
            for folder in sorted(self._root.glob("[0-9a-f][0-9a-f]")):
                if folder.name >= after[:2]:
                    found = _written(folder).items()
                    yield from sorted(entry for entry in found if entry[0] > after)

    def check(self) -> None:
        with file_errors():
            probe_folder(self._root)

    def _path(self, key: str) -> Path:
        _require_key(key)
        return self._root / key[:2] / key

    def _require_root(self) -> None:
        # On a disk that is not mounted every file would look as if it had been deleted.
        with file_errors():
            next(self._root.iterdir(), None)


def _names_in(folder: Path) -> Sequence[str]:
    """Return the names in *folder*; none if it is not there, which is so until the first file."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _written(folder: Path) -> dict[str, datetime]:
    """Return when each key of *folder* was written last, its draft counted as the file."""
    written: dict[str, datetime] = {}
    for path in folder.iterdir():
        key = path.name.removeprefix(".").removesuffix(".part")
        if not is_key(key):
            continue
        try:
            modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        except FileNotFoundError:
            continue
        written[key] = max(modified, written.get(key, modified))
    return written


def _part(path: Path) -> Path:
    # The name is made of the key, so that a deletion also finds the draft of a ``put`` that was
    # killed: half a picture would otherwise outlive its owner.
    return path.with_name(f".{path.name}.part")


# A version is a key and the id of one version of its object; None stands for the current one, whose
# deletion would leave the others in a bucket that keeps versions.
_Version = tuple[str, str | None]


class S3Store:
    """Avatars below a prefix of an S3 bucket.

    Needs ``s3:GetObject``, ``s3:PutObject``, ``s3:DeleteObject`` and ``s3:ListBucket``. A bucket
    that keeps versions needs ``s3:ListBucketVersions`` and ``s3:DeleteObjectVersion`` too, and
    ``s3:GetBucketVersioning`` if ``check`` shall notice that they are missing.
    """

    # One DeleteObjects request names so many objects at most: S3 refuses one with more as a whole.
    BULK = 1000

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def begin(self) -> None:
        """Do nothing: a bucket is made by whoever owns it, and a prefix by its first object."""

    def is_there(self) -> bool:
        return True

    def put(self, key: str, data: bytes) -> None:
        _require_key(key)
        self._bucket.put(key, data, content_type=CONTENT_TYPE)

    def open(self, key: str) -> BinaryIO | None:
        data = self._bucket.get(key) if is_key(key) else None
        return None if data is None else BytesIO(data)

    def delete_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        failed = {key: ValueError.__name__ for key in keys if not is_key(key)}
        wanted = [key for key in dict.fromkeys(keys) if key not in failed]
        refused, hidden = self._delete([(key, None) for key in wanted])
        failed.update(refused)
        versions: list[_Version] = []
        for key in hidden:
            versions_of_key = self._versions(key)
            if versions_of_key is None:
                failed[key] = "AccessDenied: needs s3:ListBucketVersions"
            else:
                versions += versions_of_key
        refused, _ = self._delete(versions)
        for key, code in refused.items():
            needs = ": needs s3:DeleteObjectVersion" if code == _DENIED else ""
            failed[key] = f"{code}{needs}"
        for key in hidden:
            # An answer that calls a version deleted is not believed: a bucket that locks objects,
            # or copies them back from another, has it still.
            if key not in failed and self._versions(key) != []:
                failed[key] = "VersionsLeft"
        return failed

    def remaining(self, keys: Sequence[str]) -> Mapping[str, int]:
        left: dict[str, int] = {}
        for key in filter(is_key, dict.fromkeys(keys)):
            number = self._count_versions(key)
            if number:
                left[key] = number
        return left

    def listing(self, *, after: str = "") -> Iterator[tuple[str, datetime]]:
        return (entry for entry in self._bucket.listing(after=after) if is_key(entry[0]))

    def check(self) -> None:
        self._bucket.check()
        if self._keeps_versions() and self._versions(f"{'0' * 32}.webp") is None:
            raise StoreUnavailable(
                "The bucket keeps versions, and an avatar is gone only with all of them. Allow "
                "s3:ListBucketVersions and s3:DeleteObjectVersion, or take one without versions."
            )

    def _delete(self, objects: Sequence[_Version]) -> tuple[dict[str, str], list[str]]:
        """Remove *objects* in bulk, and singly those that a bulk request did not remove.

        Returns S3's error code for each key that failed, and the keys of which versions are left: a
        bucket that keeps versions hides them behind a marker, and says so.
        """
        from botocore.exceptions import ClientError

        bucket, client, prefix = self._bucket.name, self._bucket.client, self._bucket.prefix
        failed: dict[str, str] = {}
        hidden: list[str] = []
        for start in range(0, len(objects), self.BULK):
            chunk = [
                _identifier(prefix + key, version) for key, version in objects[start:][: self.BULK]
            ]
            with s3_errors():
                answer = client.delete_objects(Bucket=bucket, Delete={"Objects": chunk})
            gone = set()
            for deleted in answer.get("Deleted", []):
                gone.add((deleted["Key"], deleted.get("VersionId")))
                if deleted.get("DeleteMarker"):
                    hidden.append(deleted["Key"].removeprefix(prefix))
            # The answer is a 200 even if it holds errors. Whatever it does not name as deleted is
            # tried again: taken for deleted, it would stay in the bucket for good.
            for wanted in chunk:
                if (wanted["Key"], wanted.get("VersionId")) in gone:
                    continue
                key = wanted["Key"].removeprefix(prefix)
                request: dict[str, Any] = {"Bucket": bucket, **wanted}
                with s3_errors():
                    try:
                        single = client.delete_object(**request)
                    except ClientError as exc:
                        failed[key] = exc.response["Error"]["Code"]
                        continue
                if single.get("DeleteMarker"):
                    hidden.append(key)
        return failed, hidden

    def _versions(self, key: str) -> list[_Version] | None:
        """Return all versions and markers of *key*; None if listing them is not allowed."""
        from botocore.exceptions import ClientError

        name = self._bucket.prefix + key
        with s3_errors():
            try:
                pages = list(
                    self._bucket.client.get_paginator("list_object_versions").paginate(
                        Bucket=self._bucket.name, Prefix=name
                    )
                )
            except ClientError as exc:
                if exc.response["Error"]["Code"] == _DENIED:
                    return None
                raise
        return [
            (key, entry["VersionId"])
            for page in pages
            for entry in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            if entry["Key"] == name
        ]

    def _count_versions(self, key: str) -> int:
        """Count the versions of *key*, markers of deletions left out: they hold nothing.

        Raises StoreUnavailable where versions are kept and may not be listed.
        """
        from botocore.exceptions import ClientError

        name = self._bucket.prefix + key
        with s3_errors():
            pages = self._bucket.client.get_paginator("list_object_versions").paginate(
                Bucket=self._bucket.name, Prefix=name
            )
            try:
                return sum(
                    entry["Key"] == name for page in pages for entry in page.get("Versions", [])
                )
            except ClientError as exc:
                if exc.response["Error"]["Code"] != _DENIED or self._keeps_versions():
                    raise
        # Without versions there is one object or none.
        return sum(found == key for found, _ in self._bucket.listing(key))

    def _keeps_versions(self) -> bool:
        from botocore.exceptions import ClientError

        with s3_errors():
            try:
                answer = self._bucket.client.get_bucket_versioning(Bucket=self._bucket.name)
            except ClientError:
                # The question is not allowed, or unknown to this store. A deletion that leaves
                # versions says so by itself, so this is no reason to refuse to start.
                return False
        return "Status" in answer


def store_from_url(url: str) -> AvatarStore:
    """Return the store that ``file:///folder`` or ``s3://bucket/prefix`` names; touch nothing yet.

    Raises ValueError for any other URL.
    """
    place = place_from_url(url)
    return S3Store(place) if isinstance(place, Bucket) else FileStore(place)


def _require_key(key: str) -> None:
    if not is_key(key):
        raise ValueError("not an avatar key")


def _identifier(key: str, version: str | None) -> ObjectIdentifierTypeDef:
    return {"Key": key} if version is None else {"Key": key, "VersionId": version}
