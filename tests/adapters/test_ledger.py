"""Receipts outside the database: written once, read whole."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from accountsvc.adapters.ledger import FileLedger, Ledger, S3Ledger, ledger_from_url
from accountsvc.adapters.objectstore import Bucket
from accountsvc.errors import StoreUnavailable
from tests.support.s3 import S3Server, start_moto

SOME = "0f8fad5b-d9cb-469f-a165-70867728950e"
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
    made: Ledger = S3Ledger(place) if isinstance(place, Bucket) else FileLedger(place)
    made.check()
    return made


def receipt(**more: object) -> dict[str, object]:
    return {"public_id": str(uuid.uuid4()), "saved_passwords": 3, "files": 1, **more}


def name() -> str:
    return str(uuid.uuid4())


def test_what_was_appended_is_read_again(ledger: Ledger) -> None:
    lines = [receipt(purged_at="2026-11-23T09:30:00Z"), receipt(odd="\u2028 \n é")]

    ledger.append(name(), lines, at=AT)

    assert list(ledger.read()) == lines


def test_an_empty_ledger_reads_as_nothing(ledger: Ledger) -> None:
    assert list(ledger.read()) == []


def test_the_same_batch_twice_is_there_once(ledger: Ledger, place: Path | Bucket) -> None:
    batch, lines = name(), [receipt(), receipt()]

    for _ in range(2):
        ledger.append(batch, lines, at=AT)

    assert list(ledger.read()) == lines
    assert objects(place) == [f"2026/11/{batch}.jsonl"]


def test_a_repeat_in_another_key_order_writes_the_same_bytes(tmp_path: Path) -> None:
    ledger, batch, line = ledger_from_url(f"file://{tmp_path}"), name(), receipt()
    path = tmp_path / "2026" / "11" / f"{batch}.jsonl"
    ledger.append(batch, [line], at=AT)
    before = path.read_bytes()

    ledger.append(batch, [dict(reversed(line.items()))], at=AT)

    assert path.read_bytes() == before


def test_a_receipt_in_two_batches_is_read_once_as_it_was_first(ledger: Ledger) -> None:
    first, bystander = receipt(files=1), receipt()
    again = {**first, "files": 2}
    ledger.append(name(), [again], at=AT + timedelta(days=31))
    ledger.append(name(), [first, bystander], at=AT)

    found = list(ledger.read())

    assert found == [first, bystander]


def test_months_are_read_in_order(ledger: Ledger) -> None:
    lines = {month: receipt() for month in (12, 1, 11)}
    for month, line in lines.items():
        ledger.append(
            name(), [line], at=datetime(2027 if month == 1 else 2026, month, 1, tzinfo=UTC)
        )

    assert list(ledger.read()) == [lines[11], lines[12], lines[1]]


def test_the_month_is_that_of_utc(ledger: Ledger, place: Path | Bucket) -> None:
    batch = name()

    ledger.append(
        batch, [receipt()], at=datetime(2027, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=1)))
    )

    assert objects(place) == [f"2026/12/{batch}.jsonl"]


def test_no_lines_write_no_object(ledger: Ledger, place: Path | Bucket) -> None:
    ledger.append(name(), [], at=AT)

    assert objects(place) == []


@pytest.mark.parametrize(
    "bad",
    [
        "../../etc/passwd",
        "a",
        "",
        "..",
        f"{SOME}\n",
        SOME.replace("-", ""),
        f"{{{SOME}}}",
        SOME.upper(),
    ],
)
def test_a_name_that_is_no_uuid_is_refused(ledger: Ledger, place: Path | Bucket, bad: str) -> None:
    with pytest.raises(ValueError):
        ledger.append(bad, [receipt()], at=AT)

    assert objects(place) == []


def test_a_time_without_zone_is_refused(ledger: Ledger, place: Path | Bucket) -> None:
    with pytest.raises(ValueError, match="zone"):
        ledger.append(name(), [receipt()], at=AT.replace(tzinfo=None))

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
        ledger.append(name(), [receipt(), bad], at=AT)

    assert objects(place) == []


@pytest.mark.parametrize(
    "damage", [b"{", b"[]", b'"x"', b"\xff", b'{"files":1}', b"\n", b'{"public_id":[]}']
)
def test_a_damaged_line_stops_the_reading_and_is_named(tmp_path: Path, damage: bytes) -> None:
    ledger, batch, line = ledger_from_url(f"file://{tmp_path}"), name(), receipt()
    ledger.append(batch, [line], at=AT)
    path = tmp_path / "2026" / "11" / f"{batch}.jsonl"
    path.write_bytes(path.read_bytes() + damage + b"\n")

    found = ledger.read()

    assert next(found) == line
    with pytest.raises(StoreUnavailable, match=f"Line 2 of 2026/11/{batch}.jsonl") as caught:
        next(found)
    assert str(tmp_path) not in str(caught.value)


def test_a_batch_half_written_by_a_killed_process_is_not_read(tmp_path: Path) -> None:
    ledger, line = ledger_from_url(f"file://{tmp_path}"), receipt()
    ledger.append(name(), [line], at=AT)
    (tmp_path / "2026" / "11" / f".{name()}.0a1b2c3d.part").write_bytes(b'{"public_id"')

    assert list(ledger.read()) == [line]


def test_files_are_for_the_owner_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "ledger"
    before = os.umask(0)
    try:
        ledger_from_url(f"file://{root}").append(name(), [receipt()], at=AT)
    finally:
        os.umask(before)

    (file,) = (path for path in root.rglob("*") if path.is_file())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root, *file.parents[:2])} == {0o700}


def test_a_folder_that_cannot_be_used_is_reported_without_its_path(tmp_path: Path) -> None:
    blocked = tmp_path / "ledger"
    blocked.write_text("not a folder")
    ledger = ledger_from_url(f"file://{blocked}")

    for use in (
        ledger.check,
        lambda: ledger.append(name(), [receipt()], at=AT),
        lambda: list(ledger.read()),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            use()
        assert str(tmp_path) not in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger"]


def test_a_missing_folder_does_not_read_as_an_empty_ledger(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        list(ledger_from_url(f"file://{tmp_path}/gone").read())


def test_a_missing_bucket_is_reported(s3: S3Server) -> None:
    ledger = S3Ledger(Bucket("no-such-bucket", "x", client_factory=lambda: s3.client))

    for use in (
        ledger.check,
        lambda: ledger.append(name(), [receipt()], at=AT),
        lambda: list(ledger.read()),
    ):
        with pytest.raises(StoreUnavailable):
            use()


def test_an_s3_ledger_reads_every_page_and_ignores_other_objects(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    bucket = Bucket(s3.make_bucket(), "l", client_factory=lambda: s3.client)
    ledger, lines = S3Ledger(bucket), [receipt() for _ in range(5)]
    for line in lines:
        ledger.append(name(), [line], at=AT)
    bucket.put("README", b"not a receipt", content_type="text/plain")
    beside = Bucket(bucket.name, "lx", client_factory=lambda: s3.client)
    beside.put("2026/11/x.jsonl", b"another prefix", content_type="text/plain")

    found = list(ledger.read())

    assert len(found) == 5
    assert {line["public_id"] for line in found} == {line["public_id"] for line in lines}


def test_an_object_that_vanishes_while_reading_is_reported(s3: S3Server) -> None:
    bucket = Bucket(s3.make_bucket(), "l", client_factory=lambda: s3.client)
    ledger = S3Ledger(bucket)
    for _ in range(2):
        ledger.append(name(), [receipt()], at=AT)
    keys = [key for key, _ in bucket.listing()]

    found = ledger.read()
    next(found)
    s3.client.delete_object(Bucket=bucket.name, Key=f"l/{keys[1]}")

    with pytest.raises(StoreUnavailable, match="vanished"):
        next(found)


def test_a_url_names_the_ledger(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in s3.env.items():
        monkeypatch.setenv(key, value)
    bucket, files, lines = s3.make_bucket(), tmp_path / "50%20 #1?", [receipt()]

    ledger_from_url(f"file://{files}").append(name(), lines, at=AT)
    ledger_from_url(f"s3://{bucket}/a/b/").append(name(), lines, at=AT)

    assert list(FileLedger(files).read()) == lines
    assert list(S3Ledger(Bucket(bucket, "a/b", lambda: s3.client)).read()) == lines


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
        ledger_from_url(url)


def objects(place: Path | Bucket) -> list[str]:
    """List what a ledger holds, relative to its root."""
    if isinstance(place, Path):
        files = (path for path in place.rglob("*") if path.is_file())
        return sorted(path.relative_to(place).as_posix() for path in files)
    return [key for key, _ in place.listing()]
