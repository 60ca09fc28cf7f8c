"""Upload an avatar: it replaces the one before, and no crash leaves a file that is nobody's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from accountsvc.accounts import avatars
from accountsvc.adapters.avatarstore import FileStore
from accountsvc.db.models import Account
from accountsvc.errors import (
    StoreUnavailable,
    TokenNotValid,
)
from accountsvc.outbox import queue
from accountsvc.outbox.payloads import FileDeletion
from accountsvc.services import Services
from tests.support.factories import (
    deactivate,
    make_account,
    owner,
    set_avatar,
)
from tests.support.moments import NOW, at
from tests.support.processes import Crash
from tests.support.state import (
    effects,
    files,
    get_account,
    possessions,
    read_account,
)
from tests.support.sweeps import sweep


class BrokenStore(FileStore):
    """A disk that is full, before or after the bytes were written."""

    def __init__(self, services: Services, fault: BaseException, *, after: bool) -> None:
        super().__init__(services.settings.instance_path / "media")
        self.fault = fault
        self.after = after

    def put(self, key: str, data: bytes) -> None:
        if self.after:
            super().put(key, data)
        raise self.fault


def replace(
    services: Services, account: Account, store: FileStore, image: bytes = b"new"
) -> Account:
    return avatars.replace_avatar(
        services.database,
        store,
        account.id,
        epoch=account.epoch,
        image=image,
        by=owner(account),
        clock=at(NOW),
    )


def deliver_files(services: Services, now: Any) -> queue.DeliveryResult:
    return queue.deliver(services.database, at(now), services.handlers, kinds=[queue.DELETE_FILE])


def test_a_new_avatar_replaces_the_old_one_whose_file_goes_through_the_outbox(
    services: Services,
) -> None:
    account, bystander = (
        make_account(services, "ann", now=NOW),
        make_account(services, "bob", now=NOW),
    )
    set_avatar(services, bystander, now=NOW)
    theirs = possessions(services, bystander.id)
    first = set_avatar(services, account, now=NOW)

    second = set_avatar(services, account, now=NOW)

    assert get_account(services, account.id).avatar_key == second
    (owed,) = effects(services, queue.DELETE_FILE)
    assert (owed.payload, owed.deliver_after) == ({"key": first}, NOW)
    assert first in files(services)
    deliver_files(services, NOW)
    assert files(services) == {second, get_account(services, bystander.id).avatar_key}
    assert possessions(services, bystander.id) == theirs


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fault", [StoreUnavailable(), OSError("disk full"), Crash()])
def test_a_store_that_fails_leaves_the_old_avatar_and_no_orphan(
    services: Services, fault: BaseException, after: bool
) -> None:
    account = make_account(services, now=NOW)
    old = set_avatar(services, account, now=NOW)

    with pytest.raises(type(fault)):
        replace(services, account, BrokenStore(services, fault, after=after))

    assert get_account(services, account.id).avatar_key == old
    (owed,) = effects(services, queue.DELETE_FILE)
    # Not at once: a store that gave no answer may still carry it out.
    assert owed.deliver_after == NOW + avatars.UPLOAD_TIME
    assert files(services) <= {old, owed.payload["key"]}
    deliver_files(services, owed.deliver_after)
    assert files(services) == {old}
    assert not effects(services, queue.DELETE_FILE)


@pytest.mark.parametrize("stored", ["before", "after"])
def test_an_upload_so_slow_that_its_file_is_being_deleted_is_refused(
    services: Services, stored: str
) -> None:
    account = make_account(services, now=NOW)
    old = set_avatar(services, account, now=NOW)

    class SlowStore(FileStore):
        def put(self, key: str, data: bytes) -> None:
            if stored == "before":
                super().put(key, data)
            deliver_files(services, NOW + avatars.UPLOAD_TIME)
            if stored == "after":
                super().put(key, data)

    with pytest.raises(StoreUnavailable):
        replace(services, account, SlowStore(services.settings.instance_path / "media"))

    assert get_account(services, account.id).avatar_key == old
    deliver_files(services, NOW + avatars.UPLOAD_TIME)
    assert files(services) == {old}
    assert not effects(services, queue.DELETE_FILE)


def test_an_upload_that_the_outbox_has_claimed_but_not_yet_deleted_is_refused(
    services: Services,
) -> None:
    account = make_account(services, now=NOW)

    class SlowStore(FileStore):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)

            def die(owed: Sequence[queue.Owed], now: Any) -> queue.Outcome:
                raise Crash

            with pytest.raises(Crash):
                queue.deliver(
                    services.database,
                    at(NOW + avatars.UPLOAD_TIME),
                    {queue.DELETE_FILE: die},
                )

    with pytest.raises(StoreUnavailable):
        replace(services, account, SlowStore(services.settings.instance_path / "media"))

    assert get_account(services, account.id).avatar_key is None
    deliver_files(services, NOW + avatars.UPLOAD_TIME + queue.LEASE)
    assert files(services) == set()


def test_an_account_deactivated_during_its_upload_keeps_no_trace_of_it(services: Services) -> None:
    account, bystander = (
        make_account(services, "ann", now=NOW),
        make_account(services, "bob", now=NOW),
    )
    kept = set_avatar(services, bystander, now=NOW)

    class Meanwhile(FileStore):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data)
            deactivate(services, account.id, grace=timedelta(0), now=NOW)
            sweep(services, NOW)

    with pytest.raises(TokenNotValid):
        replace(services, account, Meanwhile(services.settings.instance_path / "media"))

    assert read_account(services, account.id) is None
    assert len(files(services)) == 2
    deliver_files(services, NOW)
    assert files(services) == {kept}


def test_two_uploads_at_once_leave_one_file(services: Services) -> None:
    account = make_account(services, now=NOW)

    class Meanwhile(FileStore):
        def put(self, key: str, data: bytes) -> None:
            set_avatar(services, account, b"the first", now=NOW)
            super().put(key, data)

    replace(services, account, Meanwhile(services.settings.instance_path / "media"))

    assert len(files(services)) == 2
    deliver_files(services, NOW)
    assert files(services) == {get_account(services, account.id).avatar_key}


def test_a_file_that_an_account_shows_is_never_deleted(services: Services) -> None:
    account = make_account(services, now=NOW)
    key = set_avatar(services, account, now=NOW)
    with services.writing() as session:
        queue.record(session, queue.DELETE_FILE, subject=None, payload=FileDeletion(key), now=NOW)

    result = deliver_files(services, NOW)

    assert (result.delivered, result.given_up) == (0, 1)
    assert files(services) == {key}
