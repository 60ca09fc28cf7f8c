"""Who has no key can make up nothing, and whatever lies in the store ends no reading."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from accountsvc.adapters.ledger import Batch, Ledger
from accountsvc.adapters.ledgerseal import Flaw, Opened, SealKeys, Untrusted, encode, sealed
from accountsvc.adapters.ledgerstore import BucketStore, FolderStore, LedgerStore
from accountsvc.adapters.objectstore import Bucket
from accountsvc.errors import StoreUnavailable
from tests.support.ledgers import ELSEWHERE, KEY, OTHER_KEY, keys, write
from tests.support.s3 import S3Server, start_moto

AT = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with start_moto() as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LedgerStore:
    if request.param == "folder":
        return FolderStore(tmp_path / "ledger")
    server: S3Server = request.getfixturevalue("s3")
    return BucketStore(Bucket(server.make_bucket(), "l", client_factory=lambda: server.client))


def receipt() -> dict[str, object]:
    return {"public_id": str(uuid.uuid4()), "files": 1}


def flaws(ledger: Ledger) -> dict[str, Flaw]:
    return {one.name: one.flaw for one in ledger.scan() if isinstance(one, Untrusted)}


def people(ledger: Ledger) -> list[Any]:
    return [line["public_id"] for line in ledger.read()]


def a_line_more(data: bytes) -> bytes:
    return encode([receipt()]) + data


def another_line(data: bytes) -> bytes:
    _first, _, rest = data.partition(b"\n")
    return encode([receipt()]) + rest


def a_line_less(data: bytes) -> bytes:
    return data.partition(b"\n")[2]


def no_seal(data: bytes) -> bytes:
    return data[: data.rstrip(b"\n").rindex(b"\n") + 1]


def of_seal(**changes: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        seal = json.loads(data.splitlines()[-1])["seal"]
        return sealed(no_seal(data), {**seal, **changes})

    return change


def by_a_stranger(data: bytes) -> bytes:
    """Seal it well, with a key that nobody trusts."""
    seal = json.loads(data.splitlines()[-1])["seal"]
    made = keys(OTHER_KEY).sign(seal["name"], no_seal(data), ELSEWHERE)
    return sealed(no_seal(data), made)


def by_a_stranger_under_our_name(data: bytes) -> bytes:
    seal = json.loads(data.splitlines()[-1])["seal"]
    made = keys(OTHER_KEY).sign(seal["name"], no_seal(data), ELSEWHERE)
    return sealed(no_seal(data), {**made, "key": seal["key"]})


CHANGES: dict[str, tuple[Callable[[bytes], bytes], Flaw]] = {
    "a line more": (a_line_more, Flaw.BAD_SIGNATURE),
    "another line": (another_line, Flaw.BAD_SIGNATURE),
    "a line less": (a_line_less, Flaw.BAD_SIGNATURE),
    "no seal": (no_seal, Flaw.UNSEALED),
    "no signature": (of_seal(signature=None), Flaw.BAD_SIGNATURE),
    "a short signature": (of_seal(signature="AAAA"), Flaw.BAD_SIGNATURE),
    "a signature that is none": (of_seal(signature="ü"), Flaw.BAD_SIGNATURE),
    "another previous": (of_seal(previous=None, mended=True), Flaw.BAD_SIGNATURE),
    "said to be mended": (of_seal(mended=True), Flaw.BAD_SIGNATURE),
    "a stranger's": (by_a_stranger, Flaw.UNKNOWN_KEY),
    "a stranger's under our name": (by_a_stranger_under_our_name, Flaw.BAD_SIGNATURE),
    "a key that is none": (of_seal(key=["x"]), Flaw.UNKNOWN_KEY),
    "empty": (lambda _: b"", Flaw.EMPTY),
    "only an end": (lambda _: b"\n", Flaw.EMPTY),
    "cut in the seal": (lambda data: data[:-20], Flaw.UNREADABLE),
    "cut by one byte": (lambda data: data[:-1], Flaw.UNREADABLE),
    "cut in a line": (lambda data: data[:20], Flaw.UNREADABLE),
    "no text": (lambda _: b"\xff\xfe\n", Flaw.UNREADABLE),
    "no object": (lambda _: b"[]\n", Flaw.UNREADABLE),
    "a deep one": (lambda _: b"[" * 100_000 + b"\n", Flaw.UNREADABLE),
    "a seal that is none": (lambda data: no_seal(data) + b'{"seal": 7}\n', Flaw.UNSEALED),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_changed_is_said_and_ignored(store: LedgerStore, change: str) -> None:
    ledger = Ledger(store, keys())
    kept, lines = receipt(), [receipt(), receipt()]
    write(ledger, [kept], at=AT)
    name = write(ledger, lines, at=AT + timedelta(seconds=1))
    made, flaw = CHANGES[change]
    data = store.get(name)
    assert data is not None

    store.put(name, made(data))

    assert flaws(ledger) == {name: flaw}
    assert people(ledger) == [kept["public_id"]]
    newest = ledger.newest()
    assert [one.receipts for one in newest.objects] == [[kept]]
    assert [one.name for one in newest.untrusted] == [name]


def test_two_objects_that_change_places_are_both_said(store: LedgerStore) -> None:
    ledger = Ledger(store, keys())
    names = [write(ledger, [receipt()], at=AT + timedelta(days=day)) for day in (0, 1)]
    one, other = (store.get(name) for name in names)
    assert one is not None
    assert other is not None

    store.put(names[0], other)
    store.put(names[1], one)

    assert flaws(ledger) == dict.fromkeys(names, Flaw.MOVED)
    assert people(ledger) == []


def test_an_old_object_under_a_later_name_is_not_the_newest(store: LedgerStore) -> None:
    ledger = Ledger(store, keys())
    name = write(ledger, [receipt()], at=AT)
    data = store.get(name)
    assert data is not None
    later = Batch(uuid.uuid4(), [], AT + timedelta(days=9)).name

    store.put(later, data)

    assert flaws(ledger) == {later: Flaw.MOVED}
    assert len(people(ledger)) == 1


def test_a_retired_key_counts_as_long_as_it_is_listed(store: LedgerStore) -> None:
    name = write(Ledger(store, keys(KEY)), [receipt()], at=AT)
    rotated = Ledger(store, keys(OTHER_KEY, KEY))
    write(rotated, [receipt()], at=AT + timedelta(days=1))

    assert len(people(rotated)) == 2
    assert flaws(Ledger(store, keys(OTHER_KEY))) == {name: Flaw.UNKNOWN_KEY}
    assert len(people(Ledger(store, keys(OTHER_KEY)))) == 1


@pytest.mark.parametrize(
    "name", ["._x.jsonl", "sealed/._x.jsonl", "2026/11/x.jsonl", "sealed/79000-2026-01-01/x.jsonl"]
)
def test_what_is_none_of_ours_is_named(store: LedgerStore, name: str) -> None:
    ledger = Ledger(store, keys())
    kept = receipt()
    write(ledger, [kept], at=AT)

    store.put(name, b"\x00\x05\x16\x07")

    assert flaws(ledger) == {name: Flaw.FOREIGN}
    assert people(ledger) == [kept["public_id"]]
    assert len(ledger.newest().objects) == 1


def test_a_folder_in_the_place_of_an_object_is_named(tmp_path: Path) -> None:
    ledger = Ledger(FolderStore(tmp_path), keys())
    name = write(ledger, [receipt()], at=AT)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()

    assert flaws(ledger) == {f"{name}/": Flaw.FOREIGN}
    assert people(ledger) == []


def test_a_sealed_line_whose_id_is_none_ends_nothing(store: LedgerStore) -> None:
    ledger = Ledger(store, keys())
    name = write(ledger, [{"public_id": "no uuid"}], at=AT)

    assert flaws(ledger) == {name: Flaw.UNREADABLE}
    assert people(ledger) == []


def test_lines_of_another_kind_are_kept_and_purge_nobody(store: LedgerStore) -> None:
    ledger = Ledger(store, keys())
    other, line = {"kind": "return", "public_id": str(uuid.uuid4())}, receipt()
    write(ledger, [other, line], at=AT)

    (opened,) = ledger.scan()

    assert isinstance(opened, Opened)
    assert opened.lines == [other, line]
    assert opened.other_kinds == {"return"}
    assert people(ledger) == [line["public_id"]]


def test_each_writer_names_what_it_wrote_before(store: LedgerStore) -> None:
    one, other = Ledger(store, keys()), Ledger(store, keys())
    names = [
        write(ledger, [receipt()], at=AT + timedelta(seconds=second))
        for second, ledger in enumerate((one, other, one, other))
    ]

    found = {opened.link.name: opened.previous for opened in one.scan() if is_opened(opened)}

    before = {name: link.name if link else None for name, link in found.items()}
    assert before == {
        names[0]: None,
        names[1]: names[0],
        names[2]: names[0],
        names[3]: names[1],
    }


def is_opened(opened: Opened | Untrusted) -> bool:
    return isinstance(opened, Opened)


def test_a_process_without_the_key_reads_and_cannot_seal(store: LedgerStore) -> None:
    write(Ledger(store, keys()), [receipt()], at=AT)
    reader = Ledger(store, SealKeys(None, keys().public))

    assert len(people(reader)) == 1
    with pytest.raises(StoreUnavailable, match="LEDGER_SIGNING_KEY"):
        reader.seal_all([Batch(uuid.uuid4(), [receipt()], AT)], [ELSEWHERE])


def test_a_flood_of_forged_objects_is_passed_over_up_to_a_bound(store: LedgerStore) -> None:
    ledger = Ledger(store, keys())
    write(ledger, [receipt()], at=AT)
    for second in range(60):
        later = AT + timedelta(days=1, seconds=second)
        store.put(Batch(uuid.uuid4(), [], later).name, encode([receipt()]))

    newest = ledger.newest()

    assert len(newest.untrusted) == 50
    assert newest.objects == []
    assert len(people(ledger)) == 1


def test_an_object_can_be_removed_and_one_that_is_missing_is_no_error(store: LedgerStore) -> None:
    ledger = Ledger(store, keys())
    name = write(ledger, [receipt()], at=AT)

    for _ in range(2):
        store.remove(name)

    assert ledger.is_empty()
    assert ledger.open(name) is None
