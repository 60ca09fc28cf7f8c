"""Receipts outside the database: written once, read whole."""

from __future__ import annotations

import os
import re
import stat
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from accountsvc.adapters.ledger import Batch, Ledger, ledger_from_url, moment_of
from accountsvc.adapters.ledgerseal import Opened, Untrusted
from accountsvc.adapters.ledgerstore import BucketStore, FolderStore
from accountsvc.adapters.objectstore import Bucket
from accountsvc.adapters.sealform import Link as SealLink
from accountsvc.errors import StoreUnavailable
from tests.support.ledgers import ELSEWHERE, keys, write
from tests.support.s3 import S3Server, start_moto

AT = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with start_moto() as server:
        yield server


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | Bucket:
    if request.param == "file":
        return tmp_path / "ledger"
    server: S3Server = request.getfixturevalue("s3")
    return Bucket(server.make_bucket(), "some/ledger", client_factory=lambda: server.client)


@pytest.fixture
def ledger(place: Path | Bucket) -> Ledger:
    store = BucketStore(place) if isinstance(place, Bucket) else FolderStore(place)
    made = Ledger(store, keys())
    made.check()
    return made


def receipt(**more: object) -> dict[str, object]:
    return {"public_id": str(uuid.uuid4()), "saved_passwords": 3, "files": 1, **more}


def test_what_was_appended_is_read_again(ledger: Ledger) -> None:
    lines = [receipt(purged_at="2026-11-23T09:30:00Z"), receipt(odd="\u2028 \n é")]

    write(ledger, lines, at=AT)

    assert list(ledger.read()) == lines


def test_an_empty_ledger_reads_as_nothing(ledger: Ledger) -> None:
    assert list(ledger.read()) == []


def test_the_same_batch_twice_is_there_once(ledger: Ledger, place: Path | Bucket) -> None:
    batch, lines = uuid.uuid4(), [receipt(), receipt()]

    for _ in range(2):
        name = write(ledger, lines, at=AT, batch=batch)

    assert list(ledger.read()) == lines
    assert objects(place) == [name]


def test_a_repeat_in_another_key_order_writes_the_same_bytes(tmp_path: Path) -> None:
    ledger, line = ledger_from_url(f"file://{tmp_path}", keys()), receipt()
    owed = Batch(uuid.uuid4(), [line], AT)
    (seal,), _ = ledger.seal_all([owed], [ELSEWHERE])
    ledger.append(owed, seal)
    before = (tmp_path / owed.name).read_bytes()

    ledger.append(replace(owed, lines=[dict(reversed(line.items()))]), seal)

    assert (tmp_path / owed.name).read_bytes() == before


def test_a_receipt_in_two_batches_is_read_once_as_it_was_first(ledger: Ledger) -> None:
    first, bystander = receipt(files=1), receipt()
    again = {**first, "files": 2}
    write(ledger, [again], at=AT + timedelta(days=31))
    write(ledger, [first, bystander], at=AT)

    found = list(ledger.read())

    assert found == [first, bystander]


def test_the_earliest_are_read_first(ledger: Ledger) -> None:
    moments = [AT + timedelta(microseconds=passed) for passed in (5, 0, 1, 86_400_000_000, 10**12)]
    lines = {moment: receipt() for moment in moments}
    for moment, line in lines.items():
        write(ledger, [line], at=moment)

    assert list(ledger.read()) == [lines[moment] for moment in sorted(moments)]


def test_the_newest_are_found_in_one_listing(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "4")
    bucket = Bucket(s3.make_bucket(), "l", client_factory=lambda: s3.client)
    ledger = Ledger(BucketStore(bucket), keys())
    lines = [receipt() for _ in range(6)]
    for day, line in enumerate(lines):
        write(ledger, [line], at=AT + timedelta(days=40 * day))
    asked: list[str] = []
    monkeypatch.setattr(s3, "fault", lambda method, path: asked.append(method))

    found = ledger.newest(objects=3)

    assert [opened.receipts for opened in found.objects] == [[line] for line in lines[:2:-1]]
    assert len(asked) == 4


def test_a_name_says_the_moment_in_utc(ledger: Ledger, place: Path | Bucket) -> None:
    at = datetime(2027, 1, 1, 0, 30, 0, 7, tzinfo=timezone(timedelta(hours=1)))

    name = write(ledger, [receipt()], at=at)

    assert objects(place) == [name]
    assert re.fullmatch(r"sealed/[0-9]{5}-2026-12-31/[0-9]{11}-233000Z-.{36}\.jsonl", name)
    assert moment_of(name) == at


def test_no_lines_write_no_object(ledger: Ledger, place: Path | Bucket) -> None:
    write(ledger, [], at=AT)

    assert objects(place) == []


def test_a_time_without_zone_is_refused(ledger: Ledger, place: Path | Bucket) -> None:
    with pytest.raises(ValueError, match="zone"):
        write(ledger, [receipt()], at=AT.replace(tzinfo=None))

    assert objects(place) == []


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"files": 1}, ValueError),
        ({"public_id": 7}, ValueError),
        ({"public_id": "x", "purged_at": AT}, TypeError),
        ({"public_id": "x", "files": float("nan")}, ValueError),
    ],
)
def test_a_line_that_could_not_be_read_again_is_refused_with_its_batch(
    ledger: Ledger, place: Path | Bucket, bad: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        write(ledger, [receipt(), bad], at=AT)

    assert objects(place) == []


def test_a_batch_half_written_by_a_killed_process_is_not_read(tmp_path: Path) -> None:
    ledger, line = ledger_from_url(f"file://{tmp_path}", keys()), receipt()
    write(ledger, [line], at=AT)
    (folder,) = (tmp_path / "sealed").iterdir()
    (folder / ".x.0a1b2c3d.part").write_bytes(b'{"public_id"')

    assert list(ledger.read()) == [line]


def test_files_are_for_the_owner_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "ledger"
    before = os.umask(0)
    try:
        write(ledger_from_url(f"file://{root}", keys()), [receipt()], at=AT)
    finally:
        os.umask(before)

    (file,) = (path for path in root.rglob("*") if path.is_file())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root, *file.parents[:2])} == {0o700}


def test_a_folder_that_cannot_be_used_is_reported_without_its_path(tmp_path: Path) -> None:
    blocked = tmp_path / "ledger"
    blocked.write_text("not a folder")
    ledger = ledger_from_url(f"file://{blocked}", keys())

    for use in (
        ledger.check,
        lambda: write(ledger, [receipt()], at=AT),
        lambda: list(ledger.read()),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            use()
        assert str(tmp_path) not in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger"]


def test_a_folder_that_was_never_written_is_empty(tmp_path: Path) -> None:
    ledger = ledger_from_url(f"file://{tmp_path}/fresh", keys())

    assert ledger.is_empty()
    assert list(ledger.read()) == []
    assert ledger.newest().objects == []


def test_a_missing_bucket_is_reported(s3: S3Server) -> None:
    ledger = Ledger(BucketStore(Bucket("no-such-bucket", "x", lambda: s3.client)), keys())

    for use in (
        ledger.check,
        lambda: write(ledger, [receipt()], at=AT),
        lambda: list(ledger.read()),
    ):
        with pytest.raises(StoreUnavailable):
            use()


def test_an_s3_ledger_reads_every_page_and_ignores_other_objects(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    bucket = Bucket(s3.make_bucket(), "l", client_factory=lambda: s3.client)
    ledger, lines = Ledger(BucketStore(bucket), keys()), [receipt() for _ in range(5)]
    for line in lines:
        write(ledger, [line], at=AT)
    bucket.put("README", b"not a receipt", content_type="text/plain")
    beside = Bucket(bucket.name, "lx", client_factory=lambda: s3.client)
    beside.put("2026/11/x.jsonl", b"another prefix", content_type="text/plain")

    found = list(ledger.read())

    assert len(found) == 5
    assert {line["public_id"] for line in found} == {line["public_id"] for line in lines}


def test_an_object_that_vanishes_while_reading_is_reported(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(s3.make_bucket(), "l", client_factory=lambda: s3.client)
    ledger = Ledger(BucketStore(bucket), keys())
    for _ in range(2):
        write(ledger, [receipt()], at=AT)
    listed = [key for key, _ in bucket.listing()]

    read = ledger.store.get_all

    def get_all(names: list[str]) -> Iterator[tuple[str, bytes | None]]:
        s3.client.delete_object(Bucket=bucket.name, Key=f"l/{listed[1]}")
        return read(names)

    monkeypatch.setattr(ledger.store, "get_all", get_all)

    with pytest.raises(StoreUnavailable, match="vanished"):
        list(ledger.read())


def test_a_url_names_the_ledger(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in s3.env.items():
        monkeypatch.setenv(key, value)
    bucket, files, lines = s3.make_bucket(), tmp_path / "50%20 #1?", [receipt()]

    write(ledger_from_url(f"file://{files}", keys()), lines, at=AT)
    write(ledger_from_url(f"s3://{bucket}/a/b/", keys()), lines, at=AT)

    assert list(Ledger(FolderStore(files), keys()).read()) == lines
    there = BucketStore(Bucket(bucket, "a/b", lambda: s3.client))
    assert list(Ledger(there, keys()).read()) == lines


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/srv/ledger",
        "file://",
        "file:///",
        "file://host/x",
        "http://x/y",
        "s3://",
        "s3://A_B/c",
    ],
)
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="file:///folder or s3://bucket/prefix"):
        ledger_from_url(url, keys())


def objects(place: Path | Bucket) -> list[str]:
    """List what a ledger holds, relative to its root."""
    if isinstance(place, Path):
        files = (path for path in place.rglob("*") if path.is_file())
        return sorted(path.relative_to(place).as_posix() for path in files)
    return [key for key, _ in place.listing()]


def test_the_seals_of_the_trail_are_written_once_latest_first_and_are_in_no_other_reading(
    ledger: Ledger,
) -> None:
    links = [replace(ELSEWHERE, number=number) for number in (1, 2, 10)]
    seals = [SealLink(link.generation, link.number, "") for link in links]
    lines = [{"kind": "seal", "header": str(one.number)} for one in seals]

    written = [ledger.put_seal(*one) for one in zip(seals, lines, strict=True)]

    assert written == [True, True, True]
    assert ledger.put_seal(seals[0], lines[0])
    assert not ledger.put_seal(seals[0], lines[1])
    assert [dict(one.lines[0]) for one in ledger.seals() if isinstance(one, Opened)] == lines[::-1]
    assert ledger.is_empty()
    ledger.store.put("z-foreign", b"another program's")
    write(ledger, [receipt()], at=AT)
    assert not ledger.is_empty()
    assert len(list(ledger.read())) == 1
    assert [one.name for one in ledger.scan() if isinstance(one, Untrusted)] == ["z-foreign"]
