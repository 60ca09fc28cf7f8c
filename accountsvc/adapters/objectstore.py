"""A file written durably, and one S3 bucket: shared by the avatar store, the ledger and the mailer.

Every failure leaves as :class:`~accountsvc.errors.StoreUnavailable` with the cause chained; no
message holds a path, a key or a credential. boto3 is imported where it is first used: a command
that needs no bucket would wait for a large part of a second longer.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import private, turns
from ..errors import StoreUnavailable
from ..urls import is_bucket_name

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@contextmanager
def file_errors() -> Iterator[None]:
    """Turn an OSError of the body into StoreUnavailable."""
    try:
        yield
    except OSError as exc:
        raise StoreUnavailable(
            "The file store cannot be used. Try again in a few seconds."
        ) from exc


@contextmanager
def s3_errors() -> Iterator[None]:
    """Turn whatever boto3 raises in the body into StoreUnavailable."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as exc:
        raise StoreUnavailable(
            "The object store does not answer or refuses. Try again in a few seconds."
        ) from exc


def write_file(path: Path, data: bytes, *, part: Path | None = None) -> None:
    """Put *data* at *path* durably: a reader, also one after a crash, finds all of it or the old.

    It is for the owner alone, and so are missing folders, which are made. *part* is the draft that
    is written first, a path in the same folder that nobody else writes at the same time; by default
    its name is of this call alone. It is gone afterwards unless the process was killed.

    Raises OSError.
    """
    if part is None:
        # After a lease has run out, a second worker may write the same file: with one name for both
        # drafts, both would write into one.
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    _make_folder(path.parent)
    try:
        with open(part, "wb", opener=private.open_new) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in *folder* survive a power cut. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_folder(folder: Path) -> None:
    """Make *folder* if it is missing and prove that a byte can be written there. Raises OSError."""
    _make_folder(folder)
    probe_folder(folder)


def probe_folder(folder: Path) -> None:
    """Prove that a byte can be written in *folder*, which is never made. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        probe.write(b"\0")


def _make_folder(folder: Path) -> None:
    for made in private.make_folder(folder):
        sync_folder(made.parent)


def s3_client(*, read_timeout: float = 10) -> S3Client:
    """Make an S3 client from the usual ``AWS_…`` environment, with bounded time and retries.

    *read_timeout* is in seconds, for each try; some stores take several to delete 1,000 keys.
    """
    import boto3
    from botocore.config import Config

    config = Config(
        # botocore's own time-outs of a minute each would hold a request, and a sweep, for as long.
        connect_timeout=2,
        read_timeout=read_timeout,
        # The default mode, "legacy", would raise throttling errors that "standard" tries again. The
        # pauses between four tries are 7 seconds together at most.
        retries={"mode": "standard", "total_max_attempts": 4},
    )
    # Make a session for each client: boto3's default one is not safe when several threads use it.
    return boto3.session.Session().client("s3", config=config)


class Bucket:
    """The objects below one prefix of an S3 bucket. Share it between threads and across forks."""

    def __init__(
        self, name: str, prefix: str = "", client_factory: Callable[[], S3Client] = s3_client
    ) -> None:
        self.name = name
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client_factory = client_factory
        self._client: tuple[int, S3Client] | None = None

    @property
    def client(self) -> S3Client:
        """The client of this process, made when it is first needed."""
        # Whoever asks for it is about to wait for the store.
        turns.before_waiting()
        # Make another client after a fork: with one of before it, two processes would read each
        # other's answers from its connections. No lock is taken, since one that is held during a
        # fork stays locked in the child; that two threads may each make a client does no harm.
        if self._client is None or self._client[0] != os.getpid():
            self._client = (os.getpid(), self._client_factory())
        return self._client[1]

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Write the object, whole or not at all. Raises StoreUnavailable."""
        with s3_errors():
            self.client.put_object(
                Bucket=self.name, Key=self.prefix + key, Body=data, ContentType=content_type
            )

    def get(self, key: str) -> bytes | None:
        """Return the object's bytes, None if it is missing. Raises StoreUnavailable."""
        with s3_errors():
            try:
                answer = self.client.get_object(Bucket=self.name, Key=self.prefix + key)
                return answer["Body"].read()
            except self.client.exceptions.NoSuchKey:
                return None

    def remove(self, key: str) -> None:
        """Remove the object; one that is missing is no error. Raises StoreUnavailable."""
        with s3_errors():
            self.client.delete_object(Bucket=self.name, Key=self.prefix + key)

    def listing(self, below: str = "", *, after: str = "") -> Iterator[tuple[str, datetime]]:
        """Yield each key that begins with *below*, sorted, and when it was written (UTC).

        With *after*, only those that sort behind it. Keys are without the bucket's prefix. Raises
        StoreUnavailable.
        """
        start: dict[str, Any] = {"StartAfter": self.prefix + after} if after else {}
        with s3_errors():
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.name, Prefix=self.prefix + below, **start
            )
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry["Key"].removeprefix(self.prefix), entry["LastModified"]

    def check(self) -> None:
        """Raise StoreUnavailable unless the bucket exists, answers and lets us in."""
        with s3_errors():
            self.client.head_bucket(Bucket=self.name)


def place_from_url(url: str) -> Path | Bucket:
    """Read ``file:///folder`` or ``s3://bucket/prefix``.

    The folder is taken literally, without percent-decoding, as SQLAlchemy does with ``sqlite:///``:
    the default lies under a folder of the operator's choosing.

    Raises ValueError for anything else.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "file" and rest.startswith("/") and rest.strip("/"):
        return Path(rest)
    bucket, _, prefix = rest.partition("/")
    if scheme == "s3" and is_bucket_name(bucket):
        return Bucket(bucket, prefix)
    raise ValueError("must be file:///folder or s3://bucket/prefix")
