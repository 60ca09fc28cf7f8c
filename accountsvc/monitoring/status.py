"""The service in numbers, for ``/statusz``, the metrics and the CLI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from ..db import rules
from ..db.canaries import is_of_canary
from ..db.models import Account, Effect, PurgeFailure, Receipt
from ..outbox import kept, owing, pacing
from ..outbox.owing import Owing
from ..purge import brake, claim, clocks, failures, finish, orphans, seals, stops
from ..purge.brake import Standing
from ..purge.orphans import Orphanage
from . import canary

# A worker seals every entry sooner than this; what is older says that none seals.
SEALED_WITHIN = 2 * seals.AT_MOST_EVERY

# What is owed for longer is a fault, though nothing has failed: nobody delivers.
OWED_LATE = timedelta(minutes=10)


@dataclass(frozen=True)
class Status:
    """Counts of accounts, and the moments of the sweeps, at ``at``; times are aware, in UTC.

    ``active`` is None unless it was asked for: to count those takes a pass over the whole table.
    Of those that are ``due``, ``held`` wait for a hold's release, ``unexplained_due`` for somebody
    to accept them, ``failing`` for their next try and ``stuck`` for a person, each counted once;
    the others are for the next sweep, and ``overdue`` is how long the oldest of these has waited.
    ``braked`` counts those of them who wait for the ``brake``: none while it does not hold.
    ``unexplained`` counts those in their grace period and under a hold, too. ``failing_again``
    counts those of the failing, and of the stuck, that have failed more than once.

    ``owing`` says by kind what should have happened by now; ``delayed`` counts mails that wait for
    their turn, ``refused`` those whose address was refused and is tried again, both by kind and
    not owed meanwhile; ``unscrubbed`` counts purges that wait for a scrub; ``under_way`` counts
    those that are not completed, the oldest of which has begun ``oldest_under_way`` ago;
    ``unkept`` counts returns and holds that should be in the ledger by now; ``orphans`` is how the
    files stand that are nobody's.
    ``canary`` is how the last canaries ended.
    ``last_seal`` is the number of the trail's last seal, and ``unsealed_since`` the time of the
    oldest entry that is in none. ``troubled_ids`` are the first failing or stuck accounts.
    ``clock_moved_at`` is when the clock has stopped purging.
    """

    at: datetime
    active: int | None
    deactivated: int
    due: int
    held: int
    failing: int
    failing_again: int
    stuck: int
    unexplained: int
    unexplained_due: int
    overdue: timedelta
    owing: Mapping[str, Owing]
    delayed: Mapping[str, int]
    refused: Mapping[str, int]
    last_purged_at: datetime | None
    swept_at: datetime | None
    paused_at: datetime | None
    clock_moved_at: datetime | None
    brake: Standing
    braked: int
    unscrubbed: int
    under_way: int
    oldest_under_way: timedelta
    unkept: int
    last_seal: int | None
    unsealed_since: datetime | None
    orphans: Orphanage
    canary: canary.Standing
    troubled_ids: tuple[int, ...]

    @property
    def unsealed_late(self) -> timedelta:
        """The age of the oldest entry of the trail that waits for its seal, if that is late.

        An age below ``SEALED_WITHIN`` would tell that an event was just written, and so whether the
        reset that somebody has asked for was of an account.
        """
        if self.unsealed_since is None:
            return timedelta()
        age = self.at - self.unsealed_since
        return age if age >= SEALED_WITHIN else timedelta()

    @property
    def owed(self) -> dict[str, int]:
        """How many effects are owed, by kind."""
        return {kind: one.count for kind, one in self.owing.items()}

    @property
    def owed_failing(self) -> dict[str, int]:
        """How many of the owed effects have failed and are tried again, by kind."""
        return {kind: one.failing for kind, one in self.owing.items() if one.failing}

    @property
    def owed_oldest(self) -> dict[str, timedelta]:
        """How long the oldest of the owed effects is owed, by kind."""
        return {kind: one.oldest for kind, one in self.owing.items()}

    @property
    def paused(self) -> dict[str, int]:
        """How many of the owed effects wait until purging goes on, by kind."""
        return {kind: one.count for kind, one in self.owing.items() if one.waits}

    @property
    def owes_what_is_late(self) -> bool:
        """Whether anything that is owed has failed, or should have happened a while ago."""
        return any(
            one.failing or one.oldest > OWED_LATE for one in self.owing.values() if not one.waits
        )


def count_braked(session: Session, *, now: datetime, max_attempts: int) -> int:
    """Count the accounts that wait for the brake; 0 while it does not hold."""
    if brake.standing(session).held_at is None:
        return 0
    return claim.count_due(session, now, max_attempts)


def _count_people(session: Session, *conditions: ColumnElement[bool]) -> int:
    # A canary lives for seconds, and is nobody.
    is_person = ~is_of_canary(Account.public_id)
    people = select(func.count()).select_from(Account).where(is_person, *conditions)
    return session.scalar(people) or 0


def read(
    session: Session,
    *,
    now: datetime,
    max_attempts: int,
    most_ids: int = 20,
    count_active: bool = True,
) -> Status:
    """Count everything at *now*, in the transaction of *session*.

    At most *most_ids* troubled accounts are named; active ones are counted with *count_active*.
    """
    count = partial(_count_people, session)
    tail = seals.tail(session)
    is_due, held = rules.is_due(now), rules.has_open_hold()
    failed, explained = rules.has_failed(), rules.is_explained()
    given_up = rules.has_failed(PurgeFailure.attempts >= max_attempts)
    under_way, oldest_under_way = finish.count_under_way(session, now)
    oldest = session.scalar(
        select(func.min(Account.purge_at)).where(is_due, ~held, ~failed, explained)
    )
    return Status(
        at=now,
        active=count(rules.is_active()) if count_active else None,
        deactivated=count(rules.is_in_grace(now)),
        due=count(is_due),
        held=count(is_due, held),
        failing=count(is_due, ~held, failed, ~given_up, explained),
        failing_again=count(is_due, ~held, rules.has_failed(PurgeFailure.attempts >= 2), explained),
        stuck=count(is_due, ~held, given_up, explained),
        unexplained=count(rules.is_unexplained()),
        unexplained_due=count(is_due, ~held, ~explained),
        overdue=timedelta() if oldest is None else now - oldest,
        owing=owing.read_owed(session, now),
        delayed=pacing.count_delayed(session, now),
        refused=owing.count_refused(session, now),
        last_purged_at=session.scalar(
            select(func.max(Receipt.purged_at)).where(~is_of_canary(Receipt.public_id))
        ),
        swept_at=stops.swept_at(session),
        paused_at=stops.paused_at(session),
        clock_moved_at=clocks.stopped_at(session),
        brake=brake.standing(session, now),
        braked=count_braked(session, now=now, max_attempts=max_attempts),
        unscrubbed=session.scalar(
            select(func.count()).select_from(Effect).where(finish.waits_for_a_scrub())
        )
        or 0,
        under_way=under_way,
        oldest_under_way=oldest_under_way,
        unkept=kept.count_overdue(session, now),
        last_seal=None if tail.link is None else tail.link.number,
        unsealed_since=seals.unsealed_since(session, tail),
        orphans=orphans.standing(session, now),
        canary=canary.standing(session),
        troubled_ids=tuple(session.scalars(failures.troubled(now, most_ids))),
    )
