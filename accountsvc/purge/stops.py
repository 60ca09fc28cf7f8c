"""The pause of all purging, the other reasons to refuse it, and the marks of the sweeps."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..db import audit, rows
from ..db.audit import Actor
from ..db.engine import Clock, database_now
from ..db.models import PAUSED, SWEPT, SweepMark


class Refused(Exception):
    """Nothing may be purged now; what was purged before stays so."""


class LedgerBehind(Refused):
    """The ledger does not take its lines, so no further batch may be purged."""


class LedgerUnreadable(LedgerBehind):
    """The ledger cannot be read, so nobody knows whether a restore has brought people back."""


class LedgerGone(LedgerUnreadable):
    """The ledger has nothing of what was written: its store is another one, or its keys are."""


class DatabaseBehind(Refused):
    """The database is older than its ledger: a restore has brought purged people back."""


class PurgingPaused(Refused):
    """An operator has paused purging, so no batch may be begun."""


def pause(session: Session, *, by: Actor, clock: Clock = database_now) -> bool:
    """Let no batch begin after this commits; False if purging was paused already.

    A batch that is under way ends first. People can be deactivated and can come back meanwhile. Of
    two pauses at once one waits for the other, and then finds that purging is paused.
    """
    now = clock(session)
    statement = rows.insert(session, SweepMark).values(name=PAUSED, at=now).on_conflict_do_nothing()
    if session.scalar(statement.returning(SweepMark.name)) is None:
        return False
    audit.record(session, "purge.paused", subject=None, by=by, now=now)
    return True


def resume(session: Session, *, by: Actor, clock: Clock = database_now) -> bool:
    """Let sweeps purge again; False if purging was not paused."""
    pause_mark = session.get(SweepMark, PAUSED, populate_existing=True, with_for_update=True)
    if pause_mark is None:
        return False
    session.delete(pause_mark)
    audit.record(session, "purge.resumed", subject=None, by=by, now=clock(session))
    return True


def paused_at(session: Session) -> datetime | None:
    """Return the time at which the pause of purging began, None if there is none."""
    return session.scalar(select(SweepMark.at).where(SweepMark.name == PAUSED))


def swept_at(session: Session) -> datetime | None:
    """Return the end of the last sweep over all that is due; None if none has ended.

    A sweep that could not run, for want of the database or the ledger, has not ended.
    """
    return session.scalar(select(SweepMark.at).where(SweepMark.name == SWEPT))


def mark(session: Session, name: str, now: datetime) -> None:
    """Set the mark *name* to *now*; an upsert, because the very first sweeps may end at once."""
    statement = rows.insert(session, SweepMark).values(name=name, at=now)
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_={"at": now}))


def heed_pause(session: Session) -> None:
    """Raise PurgingPaused if purging is paused, inside the transaction that would purge."""
    if paused_at(session) is not None:
        raise PurgingPaused
