"""A store that has vanished is not taken for one from which all is deleted, or in which all is."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from accountsvc.accounts.avatars import replace_avatar
from accountsvc.db.audit import SYSTEM_ACTOR
from accountsvc.errors import StoreUnavailable
from accountsvc.outbox import files as stores
from accountsvc.outbox import gone, queue
from accountsvc.purge.stops import LedgerBehind
from accountsvc.services import Services
from tests.support.factories import (
    Person,
    deactivate,
    deliver_after,
    make_account,
    make_due,
    make_person,
    reactivate,
    run_sql,
)
from tests.support.loglines import lines_of
from tests.support.state import belongings, effects, facts_of, files

DAY = timedelta(days=1)


@pytest.fixture
def ann(services: Services) -> Person:
    """Somebody who is purged, and of whom everything but the ledger's line is owed."""
    person = make_person(services, "ann")
    make_due(services, person)
    assert services.sweep().purged == 1
    return person


@pytest.fixture
def bob(services: Services) -> Person:
    """The bystander, who must keep everything."""
    return make_person(services, "bob")


def key_of(person: Person) -> str:
    return person.avatar.rpartition("/")[2]


def unmount(services: Services, *, leave_a_folder: bool) -> Path:
    """Take the disk of the avatars away; return where it is meanwhile."""
    media = services.settings.instance_path / "media"
    elsewhere = media.rename(media.with_name("elsewhere"))
    if leave_a_folder:
        media.mkdir()
    return elsewhere


def mount(services: Services, disk: Path) -> None:
    media = services.settings.instance_path / "media"
    if media.exists():
        media.rmdir()
    disk.rename(media)


def errors(services: Services, kind: str) -> set[str | None]:
    return {effect.last_error for effect in effects(services) if effect.kind == kind}


def go_on(services: Services, ahead: timedelta = timedelta(hours=1)) -> None:
    """Do all that is owed, to its end, so much later."""
    for minutes in range(0, 15, 5):
        deliver_after(services, ahead + timedelta(minutes=minutes))
        services.scrub(at_most_every=None)


@pytest.mark.parametrize("leave_a_folder", [True, False])
def test_no_file_counts_as_deleted_while_its_disk_is_not_mounted(
    services: Services,
    bob: Person,
    ann: Person,
    leave_a_folder: bool,
) -> None:
    before = belongings(services, bob)
    disk = unmount(services, leave_a_folder=leave_a_folder)

    with lines_of(stores) as lines:
        go_on(services)

    why = "StoreLooksEmpty" if leave_a_folder else "FileNotFoundError"
    assert facts_of(services, ann.public_id) == ["ledger_written"]
    assert errors(services, queue.DELETE_FILE) == {why}
    assert any("STORAGE_URL" in line["event"] for line in lines) is leave_a_folder

    mount(services, disk)
    go_on(services, DAY)

    assert files(services) == {key_of(bob)}
    assert facts_of(services, ann.public_id)[-2:] == ["completed", "verified"]
    assert belongings(services, bob) == before


def test_nothing_is_verified_while_its_disk_is_not_mounted(
    services: Services, bob: Person, ann: Person
) -> None:
    before = belongings(services, bob)
    services.deliver()
    disk = unmount(services, leave_a_folder=True)

    go_on(services)

    assert "verified" not in facts_of(services, ann.public_id)
    assert errors(services, queue.FINISH) == {"StoreLooksEmpty"}

    mount(services, disk)
    go_on(services, DAY)

    assert "verified" in facts_of(services, ann.public_id)
    assert belongings(services, bob) == before


def test_an_absence_that_nobody_has_written_down_is_not_believed_of_a_disk_that_is_not_mounted(
    services: Services, bob: Person, ann: Person
) -> None:
    before = belongings(services, bob)
    run_sql(services, "DELETE FROM outbox WHERE kind = 'file.delete'")
    disk = unmount(services, leave_a_folder=True)

    go_on(services)

    assert not {"files_absent", "completed"} & set(facts_of(services, ann.public_id))
    assert errors(services, queue.FINISH) == {"StoreLooksEmpty"}

    mount(services, disk)
    go_on(services, DAY)

    assert files(services) == {key_of(bob)}
    assert belongings(services, bob) == before


def test_one_account_that_has_lost_its_file_stops_nothing(
    services: Services, bob: Person, ann: Person
) -> None:
    for name in ("cid", "dan", "eve", "fay"):
        make_person(services, name)
    services.avatars.delete_many([key_of(bob)])

    go_on(services)

    assert "verified" in facts_of(services, ann.public_id)
    assert len(files(services)) == 4


def test_the_store_is_asked_for_a_few_files_and_for_no_more_than_the_first_it_has(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [make_person(services, name) for name in ("a", "b", "c", "d", "e", "f", "g")]
    asked: list[str] = []
    remaining = services.avatars.remaining

    def count(keys: list[str]) -> object:
        asked.extend(keys)
        return remaining(keys)

    monkeypatch.setattr(services.avatars, "remaining", count)

    stores.refuse_wrong_store(services.database, services.avatars)
    first = len(asked)
    services.avatars.delete_many([key_of(one) for one in people])
    with pytest.raises(stores.StoreLooksEmpty):
        stores.refuse_wrong_store(services.database, services.avatars)

    assert first == 1
    assert len(asked) == len(set(asked[1:])) + 1 == 1 + stores.SAMPLED


def test_a_folder_that_was_used_is_made_again_by_no_probe_and_by_no_upload(
    services: Services, bob: Person
) -> None:
    disk = unmount(services, leave_a_folder=False)

    with pytest.raises(StoreUnavailable):
        stores.check(services.database, services.avatars)
    with pytest.raises(StoreUnavailable):
        services.avatars.put(key_of(bob), b"anew")

    assert not (services.settings.instance_path / "media").exists()
    mount(services, disk)
    stores.check(services.database, services.avatars)
    assert files(services) == {key_of(bob)}


@pytest.mark.parametrize("by", ["probe", "upload"])
def test_a_folder_that_was_never_used_is_made_by_the_first_probe_or_upload(
    services: Services, by: str
) -> None:
    account = make_account(services)
    folder = services.settings.instance_path / "media"
    assert not folder.exists()

    if by == "probe":
        stores.check(services.database, services.avatars)
    else:
        replace_avatar(
            services.database,
            services.avatars,
            account.id,
            epoch=account.epoch,
            image=b"x",
            by=SYSTEM_ACTOR,
        )

    assert folder.is_dir()
    assert len(files(services)) == (by == "upload")


# The ledger


def lose_ledger(services: Services, *keep: str) -> Path:
    """Take the disk of the ledger away but for the folders *keep*; return where it is meanwhile."""
    ledger = services.settings.instance_path / "ledger"
    elsewhere = ledger.rename(ledger.with_name("elsewhere"))
    for name in keep:
        (elsewhere / name).rename(private_folder(ledger) / name)
    return elsewhere


def private_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def purge_without_its_line(
    services: Services, name: str, monkeypatch: pytest.MonkeyPatch
) -> Person:
    """Purge somebody whose line the ledger does not take, and is owed."""
    person = make_person(services, name)
    make_due(services, person)
    with monkeypatch.context() as broken:
        broken.setattr(services.ledger.store, "put", refuse)
        with pytest.raises(LedgerBehind):
            services.sweep()
    assert errors(services, queue.LEDGER) == {"StoreUnavailable"}
    return person


def refuse(*_: object) -> None:
    raise StoreUnavailable


@pytest.mark.parametrize("kept", [(), ("seals", "kept")])
def test_nothing_is_written_into_a_ledger_that_has_lost_what_was_written(
    services: Services,
    bob: Person,
    ann: Person,
    kept: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = belongings(services, bob)
    keep_something(services, make_person(services, "dan"))
    assert services.seal(seconds=5, at_once=True).seals == 1
    cid = purge_without_its_line(services, "cid", monkeypatch)
    disk = lose_ledger(services, *kept)
    there = sorted(services.ledger.store.names())

    with lines_of(gone) as said:
        go_on(services)

    assert facts_of(services, cid.public_id) == ["files_absent"]
    assert errors(services, queue.LEDGER) == {"LedgerLost"}
    assert sorted(services.ledger.store.names()) == there
    assert "LEDGER_URL" in said[0]["event"]

    ledger = private_folder(services.settings.instance_path / "ledger")
    for name in kept:
        (ledger / name).rename(disk / name)
    ledger.rmdir()
    disk.rename(ledger)
    go_on(services, DAY)

    assert "verified" in facts_of(services, cid.public_id)
    assert services.restore.verify().agrees
    assert belongings(services, bob) == before


def test_a_rebuilt_ledger_takes_the_lines_that_are_owed(
    services: Services, bob: Person, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = belongings(services, bob)
    cid = purge_without_its_line(services, "cid", monkeypatch)
    lose_ledger(services)
    go_on(services)

    mending = services.mending
    assert mending.rebuild(mending.plan_rebuilding(), by=SYSTEM_ACTOR) == 1
    go_on(services, DAY)

    assert {"ledger_written", "verified"} <= set(facts_of(services, cid.public_id))
    assert services.restore.verify().agrees
    assert belongings(services, bob) == before


def keep_something(services: Services, person: Person) -> None:
    """Have the ledger keep that somebody came back."""
    deactivate(services, person.id)
    reactivate(services, person.id)
    services.deliver(kinds=[queue.KEEP])
    assert any(services.ledger.store.names("kept/"))
