"""Many lives, each to its end by the core's own functions, and what evidence has to say of each.

The clock is the test's: two months pass in a few seconds. Nobody is mailed.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from accountsvc.accounts import lifecycle
from accountsvc.db.audit import OPERATOR_ACTOR, Actor
from accountsvc.db.models import Account
from accountsvc.errors import TokenNotValid
from accountsvc.outbox import queue
from accountsvc.purge import failures
from accountsvc.services import Services
from tests.support.backups import Backup
from tests.support.factories import insert_accounts, make_promise, numbered, owner, run_sql
from tests.support.moments import at
from tests.support.moments import now as time_of
from tests.support.sweeps import sweep

DAY = timedelta(days=1)
# A life begins on one of the first days. The last day is before today, so that all of it is past.
BEGINNINGS, LAST, TODAY = 20, 60, 62
SWEPT_EVERY = 3
STAFF = Actor("staff", uuid.UUID(int=7))


@dataclass
class Life:
    """One account, and what its requests should have become, each with who ended it."""

    account_id: int
    owner: Actor
    kind: str
    holds: list[int] = field(default_factory=list)

    @property
    def number(self) -> uuid.UUID:
        assert self.owner.public_id is not None
        return self.owner.public_id


Step = Callable[[Session, Life, datetime, Services], object]


def leave(by: Actor | None = None) -> Step:
    def step(session: Session, life: Life, now: datetime, _services: Services) -> None:
        lifecycle.deactivate(
            session, life.account_id, promise=make_promise(), by=by or life.owner, clock=at(now)
        )

    return step


def be_refused(session: Session, life: Life, now: datetime, _services: Services) -> None:
    with suppress(TokenNotValid):
        lifecycle.deactivate(
            session,
            life.account_id,
            promise=make_promise(),
            by=life.owner,
            epoch=99,
            clock=at(now),
        )


def come_back(by: Actor | None = None) -> Step:
    def step(session: Session, life: Life, now: datetime, _services: Services) -> None:
        lifecycle.reactivate(
            session, life.account_id, promise=make_promise(), by=by or life.owner, clock=at(now)
        )

    return step


def ask_at_once(by: Actor | None = None) -> Step:
    def step(session: Session, life: Life, now: datetime, _services: Services) -> None:
        lifecycle.due_now(session, life.account_id, by=by or life.owner, clock=at(now))

    return step


def move(session: Session, life: Life, now: datetime, _services: Services) -> None:
    lifecycle.reschedule(
        session,
        life.account_id,
        purge_at=now + 20 * DAY,
        promise=make_promise(),
        by=STAFF,
        clock=at(now),
    )


def hold(session: Session, life: Life, now: datetime, _services: Services) -> None:
    placed = lifecycle.place_hold(
        session, life.account_id, reason="court", by=OPERATOR_ACTOR, clock=at(now)
    )
    life.holds.append(placed.id)


def release(session: Session, life: Life, now: datetime, _services: Services) -> None:
    lifecycle.release_hold(
        session,
        life.account_id,
        life.holds.pop(),
        promise=make_promise(),
        by=OPERATOR_ACTOR,
        clock=at(now),
    )


def fail(times: int | None = 1) -> Step:
    """Let the purge fail so often; None: until it is stuck."""

    def step(session: Session, life: Life, now: datetime, services: Services) -> None:
        most = services.settings.purge_max_attempts
        for _ in range(times or most):
            failures.note(session, life.account_id, RuntimeError(), now, most)
            session.flush()

    return step


@dataclass(frozen=True)
class Kind:
    """What happens on which day of a life, and the outcomes of its requests, each with its end."""

    steps: Mapping[int, Sequence[Step]]
    outcomes: Sequence[tuple[str, str | None]]
    # The life begins so many days before the last one, and not on one of the first.
    before_the_end: int | None = None


PURGED = ("purged", "system")
KINDS = {
    "refused": Kind({0: [be_refused]}, []),
    "purged": Kind({0: [leave()]}, [PURGED]),
    "purged for the staff": Kind({0: [leave(STAFF)]}, [PURGED]),
    "cancelled": Kind({0: [leave()], 5: [come_back()]}, [("cancelled", "owner")]),
    "given back": Kind({0: [leave(STAFF)], 5: [come_back(STAFF)]}, [("cancelled", "staff")]),
    "moved": Kind({0: [leave()], 3: [move]}, [PURGED]),
    "at once by the owner": Kind({0: [leave()], 2: [ask_at_once()]}, [PURGED]),
    "at once by the staff": Kind({0: [leave()], 2: [ask_at_once(STAFF)]}, [PURGED]),
    "forced": Kind({0: [leave(OPERATOR_ACTOR), ask_at_once(OPERATOR_ACTOR)]}, [PURGED]),
    "twice": Kind({0: [leave()], 4: [come_back()], 8: [leave()]}, [("cancelled", "owner"), PURGED]),
    "held": Kind({0: [leave()], 1: [hold]}, [("held", None)]),
    "released": Kind({0: [leave()], 1: [hold], 20: [release]}, [PURGED]),
    "failed for a while": Kind({0: [leave()], 15: [fail(2)]}, [PURGED]),
    "failing": Kind({0: [leave()], 15: [fail()]}, [("failed", None)], before_the_end=15),
    "stuck": Kind({0: [leave()], 15: [fail(None)]}, [("stuck", None)]),
    "waiting": Kind({0: [leave()]}, [("waiting", None)], before_the_end=3),
}
# What happens on the last day is lost with a restore from a backup of the evening before.
LOST = {
    "lost, purged again": Kind({0: [leave()]}, [("purged", None)], before_the_end=15),
    "lost, asked and purged": Kind({0: [leave(), ask_at_once()]}, [], before_the_end=0),
    "lost, came back": Kind(
        {0: [leave()], 10: [come_back()]}, [("cancelled", "operator")], before_the_end=10
    ),
}


@dataclass
class World:
    """Lives that were lived, from ``since`` on."""

    services: Services
    since: datetime
    lives: list[Life] = field(default_factory=list)

    @property
    def expected(self) -> dict[uuid.UUID, list[tuple[str, str | None]]]:
        """The outcomes of each life that has a request, in their order, with who ended each."""
        kinds = KINDS | LOST
        found = {life.number: list(kinds[life.kind].outcomes) for life in self.lives}
        return {number: outcomes for number, outcomes in found.items() if outcomes}

    def numbers(self, kind: str) -> list[uuid.UUID]:
        return [life.number for life in self.lives if life.kind == kind]


def live(services: Services, count: int, folder: Path, *, restored: bool = True) -> World:
    """Let *count* accounts live in turn by each of ``KINDS``; a backup is put back in the end.

    *restored*: with three more of each of ``LOST``, who live through the restore.
    """
    world = World(services, time_of(services) - TODAY * DAY)
    names = list(KINDS)
    kinds = [names[number % len(names)] for number in range(count)]
    kinds += [kind for kind in LOST for _ in range(3)] if restored else []
    world.lives = _born(world, kinds)
    for day in range(LAST):
        _pass(world, day)
    if not restored:
        _pass(world, LAST)
        return world
    backup = Backup(services.settings.database_url, folder)
    _pass(world, LAST)
    backup.put_back()
    services.replay.run(services.replay.plan())
    # The others live through the day that was lost once more.
    _pass(world, LAST, kinds=KINDS)
    return world


def _born(world: World, kinds: Sequence[str]) -> list[Life]:
    ids = insert_accounts(
        world.services, numbered("life", len(kinds)), joined_at=world.since - DAY, passwords=1
    )
    with world.services.reading() as session:
        accounts = {account.id: account for account in session.scalars(select(Account))}
    return [
        Life(account_id, owner(accounts[account_id]), kind)
        for account_id, kind in zip(ids, kinds, strict=True)
    ]


def _pass(world: World, day: int, *, kinds: Mapping[str, Kind] = KINDS | LOST) -> None:
    """Let everybody do what they do on *day*; on every third, sweep and write the ledger."""
    now = world.since + day * DAY
    services = world.services
    steps = [
        (step, life)
        for number, life in enumerate(world.lives)
        for step in _steps(kinds, life, number, day)
    ]
    if steps:
        with services.writing() as session:
            for step, life in steps:
                step(session, life, now, services)
    if day % SWEPT_EVERY:
        return
    run_sql(services, f"DELETE FROM outbox WHERE kind LIKE '{queue.MAIL_PREFIX}%'")
    sweep(
        services,
        now,
        write_ledger=services.write_ledger,
        max_attempts=services.settings.purge_max_attempts,
    )
    services.write_ledger()


def _steps(kinds: Mapping[str, Kind], life: Life, number: int, day: int) -> Iterator[Step]:
    kind = kinds.get(life.kind)
    if kind is None:
        return
    # The holds, failures and returns of a kind do not fall on one day.
    begin = number % BEGINNINGS if kind.before_the_end is None else LAST - kind.before_the_end
    yield from kind.steps.get(day - begin, ())
