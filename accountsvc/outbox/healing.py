"""Have due again what a clock that was ahead has put off."""

from __future__ import annotations

from datetime import datetime

import structlog
from sqlalchemy import ColumnElement, and_, case, or_, select, update

from ..db.engine import Clock, Database
from ..db.models import Effect
from ..db.rows import change, chunks
from .queue import (
    FINISH,
    INTO_THE_LEDGER,
    LEASE,
    LONGEST_MAIL_RETRY,
    LONGEST_RETRY,
    MAIL_PREFIX,
    REMINDER,
)

log = structlog.get_logger(__name__)


def heal(database: Database, clock: Clock) -> int:
    """Have due now what a clock that was ahead has put off; return how many effects that were.

    No lease and no pause is longer than its kind's longest, so what has been tried and waits longer
    was put off by such a clock. So was what is from a time to come, if it was to be done at once,
    or a few seconds later to finish a purge. A reminder lies weeks ahead by right, and only a
    failure puts it off.
    """
    with database.reading() as session:
        now = clock(session)
        # Every sweep asks this: as an UPDATE it would take SQLite's write lock each time.
        ids = session.scalars(select(Effect.id).where(_is_put_off(now))).all()
    if not ids:
        return 0
    with database.writing() as session:
        now = clock(session)
        healed = sum(
            change(
                session,
                update(Effect)
                .where(Effect.id.in_(chunk), _is_put_off(now))
                .values(
                    deliver_after=now,
                    due_at=case((Effect.due_at > now, now), else_=Effect.due_at),
                ),
            )
            for chunk in chunks(ids)
        )
    log.warning("effects put off by a clock that was ahead are due", count=healed)
    return healed


def _is_put_off(now: datetime) -> ColumnElement[bool]:
    of_a_mail = Effect.kind.startswith(MAIL_PREFIX, autoescape=True)
    after_a_failure = or_(Effect.last_error.is_not(None), Effect.kind != REMINDER)
    too_far = or_(
        and_(Effect.kind.in_(INTO_THE_LEDGER), Effect.deliver_after > now + LEASE),
        and_(
            Effect.kind.not_in(INTO_THE_LEDGER),
            ~of_a_mail,
            Effect.deliver_after > now + LONGEST_RETRY,
        ),
        and_(of_a_mail, after_a_failure, Effect.deliver_after > now + LONGEST_MAIL_RETRY),
    )
    to_be_done_at_once = and_(
        Effect.attempts == 0,
        Effect.created_at > now,
        or_(Effect.deliver_after <= Effect.created_at, Effect.kind == FINISH),
    )
    return or_(and_(Effect.attempts > 0, too_far), to_be_done_at_once)
