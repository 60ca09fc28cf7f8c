"""What is given back after a restore, by an operator or by a replay of the ledger.

Like ``lifecycle``: inside a writing transaction of the caller, by the locked row, with its event.
A replay mails nobody: whoever came back, or was told of anything, was told when it happened.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..db import audit
from ..db.audit import OPERATOR_ACTOR, Witness
from ..db.engine import Clock, database_now
from ..db.models import OPERATOR, Account, LegalHold
from ..db.rows import lock_many
from ..outbox import notices, queue
from . import lifecycle
from .reasons import Return

# What stands where the reason of such a hold was.
HELD_AGAIN = "Placed again by a replay of the ledger; who placed it has the reason."

# The epoch of every account goes up by a number out of this range, the same for all. By one, it
# would meet the epoch of a token from after the backup, which may have been ended since.
_JUMP = range(1_000, 1_000_000)


def give_back_due(
    session: Session,
    account_id: int,
    *,
    reason: str,
    promise: lifecycle.Promise,
    clock: Clock = database_now,
) -> Account:
    """Reactivate for an operator, although the account may be due; keep the *reason* on its row.

    The caller has made sure, in this transaction, that nobody can be purged at this moment. Its
    owner is mailed, as by any reactivation. Raises what ``lifecycle.reactivate`` does, but for
    GraceOver, and InvalidInput for a blank or unfit *reason*.
    """
    how = Return(reason, although_due=True)
    return lifecycle.reactivate(
        session, account_id, promise=promise, by=OPERATOR_ACTOR, how=how, clock=clock
    )


def give_back(
    session: Session, account_id: int, *, deactivated_at: datetime, clock: Clock = database_now
) -> bool:
    """Make the account active again; False if it is not the deactivation of *deactivated_at*."""
    account = lock_many(session, [account_id]).get(account_id)
    if account is None or account.deactivated_at != deactivated_at:
        return False
    lifecycle.end_deactivation(session, account)
    queue.forget(session, subject=account.public_id, kinds=notices.OF_THE_DATE)
    audit.record(
        session,
        "account.reactivated",
        subject=account.public_id,
        by=OPERATOR_ACTOR,
        now=clock(session),
        witness=Witness.of(account),
        replayed=True,
    )
    session.flush()
    return True


def hold_again(
    session: Session, account_id: int, *, placed_at: datetime, clock: Clock = database_now
) -> bool:
    """Place the hold of *placed_at* again; False if the account has it, open or released."""
    account = lock_many(session, [account_id]).get(account_id)
    if account is None:
        return False
    known = select(LegalHold.id).where(
        LegalHold.account_id == account_id, LegalHold.placed_at == placed_at
    )
    if session.scalar(known.limit(1)) is not None:
        return False
    hold = LegalHold(
        account_id=account_id,
        reason=HELD_AGAIN,
        placed_at=placed_at,
        placed_by=None,
        placed_by_kind=OPERATOR,
    )
    session.add(hold)
    session.flush()
    audit.record(
        session,
        "hold.placed",
        subject=account.public_id,
        by=OPERATOR_ACTOR,
        now=clock(session),
        hold=hold.id,
        replayed=True,
    )
    return True


def epoch_jump() -> int:
    """Return a number by which a replay raises every epoch."""
    return random.SystemRandom().choice(_JUMP)


def end_sessions(
    session: Session, account_ids: Sequence[int], *, jump: int, clock: Clock = database_now
) -> None:
    """End every session and every mailed link of these accounts; what was promised stays so."""
    now = clock(session)
    for account in lock_many(session, account_ids).values():
        # Without a witness of the next epoch nobody who waits for the purge would be purged.
        explained = not account.is_active and audit.is_explained(session, account)
        account.raise_epoch(jump)
        if explained:
            audit.record(
                session,
                "account.sessions_ended",
                subject=account.public_id,
                by=OPERATOR_ACTOR,
                now=now,
                witness=Witness.of(account),
            )
    session.flush()
