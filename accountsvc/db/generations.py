"""The generations of the database, and how far each has written the ledger.

A restore from a backup takes the database back in time, and its ledger stays. Each object of the
ledger carries the generation that sealed it, and its number in a sequence that goes on over all
generations; the database keeps the highest of these numbers. So one whose ledger has a higher
number, or a generation that it does not know, is the older of the two.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import rows
from .models import Generation

# The highest number that somebody has seen, for each generation.
Marks = Mapping[uuid.UUID, int]

_CURRENT = select(Generation).order_by(Generation.number.desc()).limit(1)


class HighWater(NamedTuple):
    """How far a database has come; of two readings of one database, the later is not smaller."""

    generation: int
    mark: int


def current(session: Session, *, lock: bool = False) -> Generation | None:
    """Return the present generation; None in a database that has none yet."""
    query = _CURRENT.with_for_update() if lock else _CURRENT
    return session.scalar(query.execution_options(populate_existing=True))


def high_water(session: Session) -> HighWater:
    """Return how far this database has come."""
    found = session.execute(
        select(Generation.number, Generation.mark).order_by(Generation.number.desc()).limit(1)
    ).one_or_none()
    return HighWater(0, 0) if found is None else HighWater(*found)


def knows(session: Session, seen: Marks) -> bool:
    """Say whether this database has itself sealed all that was *seen* in the ledger.

    If not, it is older than its ledger: what it says of who is due, or under a hold, may be wrong.
    """
    if not seen:
        return True
    known = session.execute(
        select(Generation.id, Generation.mark).where(Generation.id.in_(list(seen)))
    )
    marks = dict(iter(known))
    return all(number <= marks.get(generation, -1) for generation, number in seen.items())


def is_replayed(session: Session) -> bool:
    """Say whether no replay is under way, or has been broken off."""
    generation = current(session)
    return generation is None or generation.replayed_at is not None


def take_numbers(session: Session, count: int, now: datetime) -> tuple[uuid.UUID, range]:
    """Raise the mark by *count*; return the present generation, and the numbers that are its now.

    Committed before an object with one of these numbers is written, so that the mark is never
    behind what this database has written. Numbers that nobody uses are no fault.
    """
    generation = current(session, lock=True)
    if generation is None:
        first = {"number": 1, "id": uuid.uuid4(), "began_at": now, "mark": 0, "replayed_at": now}
        session.execute(rows.insert(session, Generation).values(first).on_conflict_do_nothing())
        generation = current(session, lock=True)
        assert generation is not None
    start = generation.mark + 1
    generation.mark += count
    session.flush()
    return generation.id, range(start, start + count)


def begin(session: Session, seen: Marks, now: datetime) -> Generation:
    """Begin a generation in a database that was restored, and know all that was *seen*.

    Until :func:`finish` it counts as not replayed.
    """
    known = {one.id: one for one in session.scalars(select(Generation).with_for_update())}
    number = max((one.number for one in known.values()), default=0)
    for generation, mark in seen.items():
        if generation in known:
            known[generation].mark = max(known[generation].mark, mark)
            continue
        # Of a generation from after the backup nothing is known but what the ledger says.
        number += 1
        session.add(
            Generation(number=number, id=generation, began_at=now, mark=mark, replayed_at=now)
        )
    highest = max([*seen.values(), *(one.mark for one in known.values())], default=0)
    begun = Generation(number=number + 1, id=uuid.uuid4(), began_at=now, mark=highest)
    session.add(begun)
    session.flush()
    return begun


def finish(session: Session, now: datetime) -> None:
    """Say that the replay with which the present generation began is done."""
    generation = current(session, lock=True)
    if generation is not None and generation.replayed_at is None:
        generation.replayed_at = now
        session.flush()
