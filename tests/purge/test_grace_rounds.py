"""Coming back, the purge and a hold, all at the one moment that divides them.

``TEST_ROUNDS`` sets how many accounts are fought over.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest
from apiflask import APIFlask
from sqlalchemy import func, select

from accountsvc.accounts import lifecycle
from accountsvc.db.audit import OPERATOR_ACTOR, Actor
from accountsvc.db.models import Account, Receipt, SavedPassword, VaultKey
from accountsvc.errors import AccountError
from accountsvc.services import Services
from tests.support import sweeps
from tests.support.factories import Person, deactivate, make_person, make_promise, services_of
from tests.support.moments import at
from tests.support.state import belongings, read_account

ROUNDS = int(os.environ.get("TEST_ROUNDS", "30"))
MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
def database_url(postgresql_url: str) -> str:
    return postgresql_url


def test_an_account_ends_whole_or_wholly_gone_and_every_yes_was_true(app: APIFlask) -> None:
    services = services_of(app)
    bob = make_person(services, "bob")
    before = belongings(services, bob)
    ends: Counter[str] = Counter()

    for number in range(ROUNDS):
        ann = make_person(services, f"ann{number}")
        owned = belongings(services, ann)
        account = deactivate(services, ann.id)
        came_back, was_purged, was_held = fight_over(services, account, number)
        after = read_account(services, ann.id)

        assert not (came_back and was_purged)
        if came_back:
            # Whole and active, for good: nobody's sweep takes it afterwards, held or not.
            assert sweep(services, account) == 0
            assert after is not None
            assert after.is_active
            assert kept(belongings(services, ann)) == kept(owned)
            ends["active"] += 1
        elif was_purged:
            assert not was_held
            assert_gone(services, ann)
            ends["purged"] += 1
        else:
            # Only a hold stops both; it holds until it is released, and its delay is over.
            assert was_held
            assert after is not None
            assert not after.is_active
            assert sweep(services, account) == 0
            assert kept(belongings(services, ann)) == kept(owned)
            release(services, account)
            assert sweep(services, account, later=timedelta(hours=24)) == 1
            assert_gone(services, ann)
            ends["held"] += 1

    assert belongings(services, bob) == before
    assert set(ends) == {"active", "purged", "held"}, ends


def fight_over(services: Services, account: Account, number: int) -> tuple[bool, bool, bool]:
    """Let three connections act at once; return who succeeded: reactivate, purge, hold.

    *number* decides who is first by how many milliseconds, so that each wins some rounds. In every
    third the person comes a microsecond too late: then it is between the purge and the hold.
    """
    assert account.purge_at is not None
    purge_at = account.purge_at
    is_late = number % 3 == 2
    barrier = threading.Barrier(3)
    succeeded: dict[str, bool] = {}
    broken: list[BaseException] = []

    def come_back() -> bool:
        with services.writing() as session:
            lifecycle.reactivate(
                session,
                account.id,
                clock=at(purge_at if is_late else purge_at - MICROSECOND),
                promise=make_promise(),
                by=Actor("owner", account.public_id),
                epoch=account.epoch,
            )
        return True

    def hold() -> bool:
        with services.writing() as session:
            lifecycle.place_hold(
                session,
                account.id,
                reason="a lawsuit",
                clock=at(purge_at),
                by=OPERATOR_ACTOR,
            )
        return True

    chance = random.Random(number)

    def act(name: str, what: Callable[[], bool], late: float) -> None:
        try:
            barrier.wait(timeout=120)
            time.sleep(late)
            succeeded[name] = what()
        except AccountError:
            succeeded[name] = False
        except BaseException as exc:
            broken.append(exc)

    acts = {
        "reactivate": come_back,
        "purge": lambda: sweep(services, account) == 1,
        "hold": hold,
    }
    first = list(acts)[number % 3]
    threads = [
        threading.Thread(
            target=act, args=(name, what, 0 if name == first else chance.uniform(0, 0.03))
        )
        for name, what in acts.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert broken == []
    return succeeded["reactivate"], succeeded["purge"], succeeded["hold"]


def sweep(services: Services, account: Account, *, later: timedelta = timedelta(0)) -> int:
    """Sweep at the moment of the promise, or *later*; return how many were purged."""
    assert account.purge_at is not None
    result = sweeps.sweep(services, account.purge_at + later)
    assert result.failed == 0
    return result.purged


def release(services: Services, account: Account) -> None:
    purge_at = account.purge_at
    assert purge_at is not None
    with services.writing() as session:
        for hold in lifecycle.open_holds(session, account.id):
            lifecycle.release_hold(
                session,
                account.id,
                hold.id,
                clock=at(purge_at),
                promise=make_promise(),
                by=OPERATOR_ACTOR,
            )


def kept(owned: object) -> tuple[object, object]:
    assert isinstance(owned, dict)
    return owned["passwords"], owned["avatar"]


def assert_gone(services: Services, person: Person) -> None:
    with services.reading() as session:
        for model in (SavedPassword, VaultKey):
            count = select(func.count()).where(model.account_id == person.id)
            assert session.scalar(count) == 0
        assert session.get(Account, person.id) is None
        assert session.get(Receipt, person.public_id) is not None
