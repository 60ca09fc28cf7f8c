"""The world of the fault suite for processes that run: people come over HTTP, and the worker is left alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import httpx
from sqlalchemy import ColumnElement, select, tuple_

from accountsvc.db.engine import database_now
from accountsvc.db.models import Account, Effect
from accountsvc.outbox.queue import LEASE
from tests.faults.injection import Operation
from tests.faults.world import World
from tests.support.factories import png

# What a client may see of a failing part: its request took effect, or a sentence, or a broken connection.
HONEST = {0, 200, 204, 503}


@dataclass
class HttpWorld(World):
    """A world whose requests go to ``client``, and whose purges are a worker's."""

    client: httpx.Client = field(kw_only=True)
    addresses: Iterator[int] = field(default_factory=lambda: iter(range(1, 250)))

    def headers(self) -> dict[str, str]:
        """Somebody else's address each time, so that throttles see many people and not one."""
        return {"X-Forwarded-For": f"192.0.2.{next(self.addresses)}"}

    def _requests(
        self, leaver: int, uploader: int, bearer: dict[str, dict[str, str]], mailed: str
    ) -> list[Operation]:
        def ask(method: str, path: str, **options: Any) -> int:
            try:
                return self.client.request(method, path, **options).status_code
            except httpx.TransportError:
                return 0

        leaving = {**bearer["leaver"], **self.headers()}
        uploading = {**bearer["uploader"], **self.headers()}
        picture = {"avatar": ("me.png", png(), "image/png")}
        return [
            ("upload", partial(ask, "PUT", f"/api/profile/{uploader}/update/", files=picture, headers=uploading)),
            ("delete", partial(ask, "DELETE", f"/api/profile/{leaver}/delete/", headers=leaving)),
            ("reactivate", partial(ask, "POST", "/api/profile/reactivate/", json={"token": mailed}, headers=self.headers())),
        ]  # fmt: skip

    def _work(self) -> list[Operation]:
        """Sweep and deliver nothing: here that is the worker's."""
        return []

    def all_due_are_gone(self) -> bool:
        ids = [one.id for one in self._of("due")]
        with self.services.reading() as session:
            return not session.scalars(select(Account.id).where(Account.id.in_(ids))).all()

    def _nobodys(self) -> ColumnElement[bool]:
        """Leave out what a living worker is delivering: else recovery would do it a second time beside it."""
        dead = self._leases()
        for _ in range(40):
            if not dead:
                break
            time.sleep(0.25)
            dead &= self._leases()
        return (
            (Effect.attempts == 0)
            | (Effect.deliver_after <= self._soon())
            | tuple_(Effect.id, Effect.attempts).in_(dead)
        )

    def _leases(self) -> set[tuple[int, int]]:
        soon = self._soon()
        with self.services.reading() as session:
            query = select(Effect.id, Effect.attempts)
            leased = (Effect.attempts > 0) & (Effect.deliver_after > soon)
            return {(row.id, row.attempts) for row in session.execute(query.where(leased))}

    def _soon(self) -> datetime:
        """Return a time that lies after every pause for a retry here, and before the end of a new lease."""
        with self.services.reading() as session:
            return database_now(session) + LEASE / 2


def ask(answers: dict[str, int], name: str, work: Callable[[], int]) -> None:
    answers[name] = work()


def aftermath(world: HttpWorld, answers: dict[str, int]) -> list[str]:
    """Return what is not as promised once everything works again and who was due is gone."""
    found = [f"{name} answered {got}" for name, got in answers.items() if got not in HONEST]
    found += _settled(partial(world.violations, answers))
    world.recover()
    found += _settled(world.recover)
    return found + world.violations(answers)


def _settled(check: Callable[[], list[str]]) -> list[str]:
    """Return what *check* still finds after a while: what is only under way is no violation."""
    for _ in range(40):
        if not (found := check()):
            break
        time.sleep(0.25)
    return found
