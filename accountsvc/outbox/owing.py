"""What is owed now, in counts: what should have happened by now and has not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..db.models import Effect
from .payloads import was_refused
from .queue import FINISH, LONGEST_MAIL_RETRY, LONGEST_RETRY, comes_later, waits

# A worker looks each minute whether a purge is finished.
LOOKED_AT_WITHIN = timedelta(minutes=5)


@dataclass(frozen=True)
class Owing:
    """What is owed of one kind: how many, how many of them have an error, how long the oldest is.

    ``waits``: purging is stopped, and they wait with it.
    """

    count: int
    failing: int
    oldest: timedelta
    waits: bool = False


def read_owed(session: Session, now: datetime) -> dict[str, Owing]:
    """Return what is owed at *now*, by kind; also what is being tried, or pauses after a failure.

    A reminder that waits for its day is not owed, nor a mail that waits for its turn, nor the news
    that all is gone before it is. What finishes a purge waits for the rest of it, which is owed:
    it is so only if it fails, or nobody looks at it.
    """
    due_at = func.coalesce(Effect.due_at, Effect.deliver_after)
    is_looked_at = (
        (Effect.kind == FINISH) & Effect.last_error.is_(None) & (due_at > now - LOOKED_AT_WITHIN)
    )
    found = session.execute(
        select(
            Effect.kind,
            func.count(),
            func.count(Effect.last_error),
            func.min(due_at),
        )
        # Neither a lease nor a pause after a failure is longer, so an index finds what is owed: all
        # reminders of weeks to come would be read otherwise.
        .where(Effect.deliver_after <= now + LONGEST_RETRY, due_at <= now, ~comes_later())
        .where(~is_looked_at)
        .group_by(Effect.kind)
    )
    return {
        kind: Owing(count, failing, now - oldest, waits(session, kind))
        for kind, count, failing, oldest in found
    }


def count_refused(session: Session, now: datetime) -> dict[str, int]:
    """Count the mails whose address was refused and that are tried again later, by kind."""
    rows = session.execute(
        select(Effect.kind, func.count())
        .where(
            Effect.deliver_after.between(now, now + LONGEST_MAIL_RETRY),
            Effect.last_error.is_(None),
            was_refused(Effect.payload),
        )
        .group_by(Effect.kind)
    )
    # A result has a method ``keys``: without ``iter``, dict() would take it for a mapping.
    return dict(iter(rows))
