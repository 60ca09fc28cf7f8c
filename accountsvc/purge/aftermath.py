"""What a purge at once still has to do when the rows are gone: deliver, scrub, complete."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from sqlalchemy import exists, func, select
from sqlalchemy.orm import aliased

from ..db import rows
from ..db.engine import Database, database_now
from ..db.models import Effect
from ..outbox import queue
from ..outbox.pacing import is_delayed
from . import finish


class Deliver(Protocol):
    """Deliver for about *seconds* what the outbox owes, as ``Services.deliver`` promises."""

    def __call__(self, *, seconds: float) -> object: ...


@dataclass(frozen=True)
class Aftermath:
    """Deliver, scrub and complete for who is purged, on one database; each waits with *patience*.

    *scrub* scrubs however young the last scrub is.
    """

    database: Database
    deliver: Deliver
    scrub: Callable[[], bool]

    def deliver_all(self, public_ids: Sequence[uuid.UUID], patience: timedelta) -> dict[str, int]:
        """Deliver what the purge owes; return what is still owed.

        Ends when all of that was tried in vain, or nothing has moved for a while.
        """
        give_up_at = time.monotonic() + patience.total_seconds()
        before: int | None = None
        while True:
            self.deliver(seconds=5)
            owed, failed = self._owed(public_ids)
            count = sum(owed.values())
            if count == failed:
                return owed
            if before is None or count < before:
                give_up_at = time.monotonic() + patience.total_seconds()
            elif time.monotonic() > give_up_at:
                return owed
            before = count
            time.sleep(0.1)

    def _owed(self, public_ids: Sequence[uuid.UUID]) -> tuple[dict[str, int], int]:
        """Count what is owed for purged accounts, by kind, and how much of it will not move soon.

        That was tried in vain, is a mail that waits for its turn or for files and ledger, or a file
        while purging is stopped.
        """
        owed: dict[str, int] = {}
        failed = 0
        of_the_purge = Effect.kind.in_([queue.DELETE_FILE, queue.PURGED])
        conditions = [of_the_purge & Effect.subject.in_(chunk) for chunk in rows.chunks(public_ids)]
        with self.database.reading() as session:
            waits = (
                Effect.last_error.is_not(None)
                | is_delayed(database_now(session))
                | queue.comes_later()
            )
            if queue.waits(session, queue.DELETE_FILE):
                waits |= Effect.kind == queue.DELETE_FILE
            for condition in [Effect.kind == queue.LEDGER, *conditions]:
                for kind, count, tried in session.execute(
                    select(Effect.kind, func.count(), func.count().filter(waits))
                    .where(condition)
                    .group_by(Effect.kind)
                ):
                    owed[kind] = owed.get(kind, 0) + count
                    failed += tried
        return owed, failed

    def failing(self) -> dict[str, int]:
        """Count the files and ledger lines of earlier purges that could not be done, by kind."""
        finishing = aliased(Effect)
        of_a_purge = exists().where(
            finishing.subject == Effect.subject, finishing.kind == queue.FINISH
        )
        query = select(Effect.kind, func.count()).where(
            Effect.kind.in_([queue.DELETE_FILE, queue.LEDGER]),
            Effect.last_error.is_not(None),
            (Effect.kind == queue.LEDGER) | of_a_purge,
        )
        with self.database.reading() as session:
            # A result has a method ``keys``: without ``iter``, dict() would take it for a mapping.
            return dict(iter(session.execute(query.group_by(Effect.kind))))

    def finish(self, public_ids: Sequence[uuid.UUID], patience: timedelta) -> bool:
        """Scrub, and complete these purges; False if readers were in the way of the scrub."""
        self._look(public_ids)
        scrubbed = self._scrub(public_ids, patience)
        if self.database.engine.dialect.name == "sqlite":
            self._look(public_ids)
        return scrubbed

    def _look(self, public_ids: Sequence[uuid.UUID]) -> None:
        """Have what finishes these purges look at once, which it does by itself seconds later."""
        with self.database.writing() as session:
            finish.have_due(session, public_ids, database_now(session))
        self.deliver(seconds=5)

    def _scrub(self, public_ids: Sequence[uuid.UUID], patience: timedelta) -> bool:
        """Scrub until nothing of these purges waits for it; False if readers were in the way."""
        if self.database.engine.dialect.name != "sqlite":
            return True
        give_up_at = time.monotonic() + patience.total_seconds()
        while True:
            self.scrub()
            with self.database.reading() as session:
                waiting = any(
                    session.scalar(
                        select(
                            exists().where(Effect.subject.in_(chunk), finish.waits_for_a_scrub())
                        )
                    )
                    for chunk in rows.chunks(public_ids)
                )
            if not waiting:
                return True
            if time.monotonic() > give_up_at:
                return False
            time.sleep(0.2)
