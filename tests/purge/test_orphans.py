"""Orphans by schedule: found in slices, in quarantine for a day, deleted with a cap, never wrongly."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from accountsvc.accounts import avatars
from accountsvc.adapters.avatarstore import new_key
from accountsvc.db import generations
from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.models import Account, Effect
from accountsvc.db.orphaned import OrphanedFile
from accountsvc.errors import StoreUnavailable
from accountsvc.outbox import queue
from accountsvc.outbox.payloads import FileDeletion
from accountsvc.purge import orphans, stops
from accountsvc.purge.clocks import Clocks, ClocksDiffer
from accountsvc.purge.orphans import AGE_FLOOR, MOST_DELETED, QUARANTINE, Orphanage, Orphans
from accountsvc.services import Services
from tests.support.factories import insert_accounts, make_account, numbered, put_files, set_avatar
from tests.support.loglines import lines_of
from tests.support.moments import BOUNDARY, MICROSECOND, NOW, at
from tests.support.state import (
    effects,
    events,
    everything,
    files,
    get_account,
    possessions,
    rows_of,
)

DAY = timedelta(days=1)
# Long enough for a whole search; a slice of no time compares one chunk.
WHOLE = 60.0


def orphans_at(services: Services, moment: datetime, *, host: datetime | None = None) -> Orphans:
    """The schedule by clocks that stand at *moment*; *host* is what the host's shows."""
    clocks = Clocks(
        services.database,
        clock=at(moment),
        host_clock=lambda: host or moment,
        uptime=lambda: moment - NOW + DAY,
    )
    return Orphans(services.database, services.avatars, services.restore, clocks, at(moment))


def put(services: Services, *, written_at: datetime = NOW - DAY, key: str | None = None) -> str:
    """A file that is nobody's, written at a moment by the store's clock."""
    key = key or new_key()
    services.avatars.put(key, b"whose?")
    age(services, key, written_at)
    return key


def age(services: Services, key: str, written_at: datetime) -> None:
    path = services.settings.instance_path / "media" / key[:2] / key
    os.utime(path, (written_at.timestamp(), written_at.timestamp()))


def make_shown(services: Services, name: str = "bob") -> Account:
    """A bystander with an avatar that is as old as the orphans."""
    account = make_account(services, name, now=NOW)
    age(services, set_avatar(services, account, now=NOW), NOW - DAY)
    return get_account(services, account.id)


def deliver(services: Services, moment: datetime) -> None:
    queue.deliver(services.database, at(moment), services.handlers, kinds=[queue.DELETE_FILE])


def quarantined(services: Services) -> dict[str, datetime]:
    return {row.key: row.found_at for row in rows_of(services, OrphanedFile)}


def standing(services: Services, moment: datetime) -> Orphanage:
    with services.reading() as session:
        return orphans.standing(session, moment)


@pytest.mark.parametrize("step", BOUNDARY)
def test_a_file_that_is_nobodys_is_deleted_after_a_day_of_quarantine_and_not_before(
    services: Services, step: timedelta
) -> None:
    bystander = make_shown(services)
    theirs = possessions(services, bystander.id)
    orphan = put(services)
    orphans_at(services, NOW).run(seconds=WHOLE)
    assert quarantined(services) == {orphan: NOW}
    assert files(services) == {orphan, bystander.avatar_key}

    orphans_at(services, NOW + QUARANTINE + step).run(seconds=WHOLE)
    deliver(services, NOW + QUARANTINE + step)

    is_ripe = step >= timedelta(0)
    assert (orphan in files(services)) is not is_ripe
    assert bystander.avatar_key in files(services)
    assert possessions(services, bystander.id) == theirs
    found = [
        (event.actor_kind, event.details) for event in events(services, "avatar.orphans_deleted")
    ]
    assert found == ([("system", {"count": 1})] if is_ripe else [])
    assert standing(services, NOW + DAY).deleted == is_ripe


@pytest.mark.parametrize("step", BOUNDARY)
def test_a_file_whose_upload_may_be_under_way_is_passed_over(
    services: Services, step: timedelta
) -> None:
    make_shown(services)
    written_at = NOW - AGE_FLOOR + step
    # What the store of this test can keep of a time: microseconds, if the float holds them.
    key = put(services, written_at=written_at)
    (kept,) = [at for found, at in services.avatars.listing() if found == key]

    orphans_at(services, NOW).run(seconds=WHOLE)

    assert (key in quarantined(services)) is (kept < NOW - AGE_FLOOR)
    assert AGE_FLOOR > avatars.UPLOAD_TIME


def test_a_search_goes_on_where_it_has_ended_and_begins_anew_after_a_day(
    services: Services,
) -> None:
    bystander = make_shown(services)
    keys = [f"{number:032x}.webp" for number in range(1100)]
    put_files(services.settings.instance_path / "media", keys)
    for key in keys:
        age(services, key, NOW - DAY)
    reached = []

    # Each slice is that of another process, as after a restart.
    while orphans_at(services, NOW).search(seconds=0):
        reached.append(len(quarantined(services)))
    orphans_at(services, NOW + DAY - MICROSECOND).search(seconds=WHOLE)
    put(services, key="f" * 32 + ".webp")
    orphans_at(services, NOW + DAY - MICROSECOND).search(seconds=WHOLE)

    assert reached == [500, 1000]
    assert set(quarantined(services)) == set(keys) - {bystander.avatar_key}
    assert standing(services, NOW).searched_at == NOW
    orphans_at(services, NOW + DAY).search(seconds=WHOLE)
    assert standing(services, NOW + DAY).searched_at == NOW + DAY
    assert len(quarantined(services)) == 1101
    assert set(quarantined(services).values()) == {NOW, NOW + DAY}


def test_a_record_goes_when_its_file_is_gone_shown_or_owed(services: Services) -> None:
    account, gone, shown, owed, stays = (
        make_shown(services, "ann"),
        *(put(services) for _ in range(4)),
    )
    make_shown(services)
    orphans_at(services, NOW).search(seconds=WHOLE)
    assert len(quarantined(services)) == 4
    services.avatars.delete_many([gone])
    show(services, account, shown)
    with services.writing() as session:
        payload = FileDeletion(owed)
        queue.record(session, queue.DELETE_FILE, subject=None, payload=payload, now=NOW)

    orphans_at(services, NOW + DAY).search(seconds=WHOLE)

    assert quarantined(services) == {stays: NOW, str(account.avatar_key): NOW + DAY}


def show(services: Services, account: Account, key: str) -> None:
    with services.writing() as session:
        session.get_one(Account, account.id).avatar_key = key


def test_a_file_that_is_shown_again_is_not_deleted_though_its_quarantine_is_over(
    services: Services,
) -> None:
    account, orphan = make_shown(services, "ann"), put(services)
    orphans_at(services, NOW).run(seconds=WHOLE)
    show(services, account, orphan)

    deleted = orphans_at(services, NOW + DAY).delete_ripe()

    assert (deleted, quarantined(services), effects(services, queue.DELETE_FILE)) == (0, {}, [])
    deliver(services, NOW + DAY)
    assert orphan in files(services)


def pause(services: Services) -> None:
    with services.writing() as session:
        stops.pause(session, by=OPERATOR_ACTOR, clock=at(NOW))


def restore(services: Services) -> None:
    """As after a backup was put back, before its replay is done."""
    with services.writing() as session:
        generations.begin(session, {}, NOW)


def move_clock(services: Services) -> None:
    """As a host that was up for as long has seen it: an hour behind."""
    clocks = Clocks(services.database, clock=at(NOW), uptime=lambda: DAY - timedelta(hours=1))
    with services.writing() as session:
        clocks.keep(session, NOW, clocks_reading(clocks))


def clocks_reading(clocks: Clocks) -> orphans.Reading:
    return orphans.Reading.of(NOW, clocks.uptime())


@pytest.mark.parametrize(
    ("stop", "refusal"),
    [(pause, stops.PurgingPaused), (restore, stops.DatabaseBehind), (move_clock, stops.Refused)],
)
def test_nothing_is_deleted_while_purging_is_stopped(
    services: Services, stop: Callable[[Services], None], refusal: type[stops.Refused]
) -> None:
    make_shown(services)
    orphan = put(services)
    orphans_at(services, NOW).run(seconds=WHOLE)
    stop(services)

    with pytest.raises(refusal):
        orphans_at(services, NOW + DAY).run(seconds=WHOLE)

    assert (quarantined(services), effects(services, queue.DELETE_FILE)) == ({orphan: NOW}, [])
    deliver(services, NOW + DAY)
    assert orphan in files(services)


def test_nothing_is_deleted_by_a_clock_that_another_contradicts(services: Services) -> None:
    make_shown(services)
    orphan = put(services)
    orphans_at(services, NOW).run(seconds=WHOLE)

    with pytest.raises(ClocksDiffer):
        orphans_at(services, NOW + DAY, host=NOW).run(seconds=WHOLE)

    assert (quarantined(services), effects(services, queue.DELETE_FILE)) == ({orphan: NOW}, [])


def test_a_store_of_which_this_database_knows_little_is_not_emptied_by_schedule(
    services: Services,
) -> None:
    account = make_shown(services)
    keys = {put(services), put(services)}

    with lines_of(orphans) as lines:
        orphans_at(services, NOW).run(seconds=WHOLE)
        deleted = orphans_at(services, NOW + 3 * DAY).run(seconds=WHOLE)

    assert not deleted
    assert set(quarantined(services)) == keys
    assert not effects(services, queue.DELETE_FILE)
    assert standing(services, NOW + DAY) == Orphanage(2, DAY, 0, NOW + 3 * DAY, is_refused=True)
    assert [(line["log_level"], line["orphans"], line["shown"]) for line in lines] == [
        ("error", 2, 1)
    ] * 2
    # As many as accounts show are deleted.
    services.avatars.delete_many(list(keys)[:1])
    orphans_at(services, NOW + 4 * DAY).run(seconds=WHOLE)
    deliver(services, NOW + 4 * DAY)
    assert files(services) == {account.avatar_key}


def test_at_most_so_many_are_deleted_for_each_search(services: Services) -> None:
    names = numbered("p", MOST_DELETED + 1)
    shown = {name: new_key() for name in names}
    insert_accounts(services, names, avatar_key=shown.__getitem__)
    orphaned = [new_key() for _ in names]
    put_files(services.settings.instance_path / "media", [*shown.values(), *orphaned])
    for key in [*shown.values(), *orphaned]:
        age(services, key, NOW - DAY)
    orphans_at(services, NOW).run(seconds=WHOLE)

    orphans_at(services, NOW + DAY).run(seconds=WHOLE)
    again = orphans_at(services, NOW + DAY).delete_ripe()

    assert (again, len(effects(services, queue.DELETE_FILE))) == (0, MOST_DELETED)
    assert len(quarantined(services)) == 1
    deliver(services, NOW + DAY)
    orphans_at(services, NOW + 2 * DAY).run(seconds=WHOLE)
    deliver(services, NOW + 2 * DAY)
    assert files(services) == set(shown.values())
    assert standing(services, NOW + 2 * DAY).deleted == MOST_DELETED + 1


def test_a_file_that_was_found_by_a_clock_that_was_ahead_is_found_anew(services: Services) -> None:
    make_shown(services)
    orphan = put(services)
    orphans_at(services, NOW + 30 * DAY).search(seconds=WHOLE)

    orphans_at(services, NOW).search(seconds=WHOLE)

    assert quarantined(services) == {orphan: NOW}


def test_a_slice_that_another_process_has_compared_meanwhile_is_counted_once(
    services: Services,
) -> None:
    make_shown(services)
    put(services)
    first = orphans_at(services, NOW)

    class Meanwhile(type(services.avatars)):  # type: ignore[misc]
        def listing(self, *, after: str = "") -> object:
            first.search(seconds=WHOLE)
            return services.avatars.listing(after=after)

    slow = Orphans(
        services.database,
        Meanwhile(services.settings.instance_path / "media"),
        services.restore,
        first.clocks,
        at(NOW + MICROSECOND),
    )
    before = everything(services)
    slow.search(seconds=WHOLE)

    assert before != everything(services)
    assert set(quarantined(services).values()) == {NOW}
    assert standing(services, NOW).searched_at == NOW


def test_a_service_to_which_nobody_has_uploaded_anything_is_searched(services: Services) -> None:
    make_account(services, now=NOW)

    more = orphans_at(services, NOW).run(seconds=WHOLE)

    assert (more, standing(services, NOW).searched_at) == (False, NOW)


def test_a_store_that_does_not_answer_changes_nothing(services: Services) -> None:
    make_shown(services)
    orphan = put(services)
    orphans_at(services, NOW).run(seconds=WHOLE)
    media = services.settings.instance_path / "media"
    media.rename(media.with_name("elsewhere"))
    media.touch()

    with pytest.raises(StoreUnavailable):
        orphans_at(services, NOW + DAY).run(seconds=WHOLE)

    assert quarantined(services) == {orphan: NOW}
    assert not rows_of(services, Effect)
