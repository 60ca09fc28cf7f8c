"""Erase locked accounts and write what remains of them and what is owed."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import (
    delete,
    insert,
    select,
)
from sqlalchemy.orm import Session

from ..db.audit import Actor
from ..db.datamap import purged_by_account
from ..db.models import (
    Account,
    AuditEvent,
    Effect,
    LegalHold,
    Receipt,
)
from ..outbox import notices, queue
from .claim import PlannedPurge

# What the purge itself owes: it stays in the outbox until it is done.
_OWED_AFTER_PURGE = (queue.DELETE_FILE, queue.LEDGER, notices.PURGED)


def erase(session: Session, accounts: Sequence[PlannedPurge], now: datetime, by: Actor) -> None:
    """Delete the locked *accounts* and write what remains and what is owed; all by id, set by set."""
    if not accounts:
        return
    ids = [one.account_id for one in accounts]
    subjects = [one.public_id for one in accounts]
    owners = session.execute(
        select(
            Account.public_id,
            Account.email,
            Account.avatar_key,
            Account.deactivated_at,
            Account.deactivated_by,
        ).where(Account.id.in_(ids))
    ).all()
    for model in purged_by_account():
        statement = delete(model).where(model.account_id.in_(ids))  # type: ignore[attr-defined]
        if model is LegalHold:
            # An open hold must make the whole transaction fail, whatever went wrong before.
            statement = statement.where(LegalHold.released_at.is_not(None))
        session.execute(statement.execution_options(synchronize_session=False))
    session.execute(
        delete(Effect)
        .where(Effect.subject.in_(subjects), Effect.kind.not_in(_OWED_AFTER_PURGE))
        .execution_options(synchronize_session=False)
    )
    session.execute(
        delete(Account).where(Account.id.in_(ids)).execution_options(synchronize_session=False)
    )
    counts = {one.public_id: one for one in accounts}
    # Somebody whom a part of a backup has brought back has one already, and it stays as it was.
    known = set(session.scalars(select(Receipt.public_id).where(Receipt.public_id.in_(subjects))))
    receipts = [
        {
            "public_id": owner.public_id,
            "deactivated_at": owner.deactivated_at,
            "deactivated_by": owner.deactivated_by,
            "purge_at": counts[owner.public_id].purge_at,
            "purged_at": now,
            "saved_passwords": counts[owner.public_id].saved_passwords,
            "files": counts[owner.public_id].files,
        }
        for owner in owners
        if owner.public_id not in known
    ]
    if receipts:
        session.execute(insert(Receipt), receipts)
    session.execute(
        insert(AuditEvent),
        [
            {
                "at": now,
                "action": "account.purged",
                "subject": public_id,
                "actor": by.public_id,
                "actor_kind": by.kind,
                "details": {"saved_passwords": one.saved_passwords, "files": one.files},
            }
            for public_id, one in counts.items()
        ],
    )
    effects = [
        _effect(queue.DELETE_FILE, owner.public_id, {"key": owner.avatar_key}, now)
        for owner in owners
        if owner.avatar_key is not None
    ]
    effects += [
        _effect(
            notices.PURGED,
            owner.public_id,
            {"address": owner.email},
            now,
            expires_at=now + notices.ADDRESS_KEPT,
        )
        for owner in owners
    ]
    effects.append(
        _effect(queue.LEDGER, None, {"lines": [_ledger_line(one) for one in receipts]}, now)
    )
    session.execute(insert(Effect), effects)


def _effect(
    kind: str,
    subject: uuid.UUID | None,
    payload: dict[str, object],
    now: datetime,
    expires_at: datetime | None = None,
) -> dict[str, object]:
    return {
        "uid": uuid.uuid4(),
        "kind": kind,
        "subject": subject,
        "payload": payload,
        "created_at": now,
        "deliver_after": now,
        "expires_at": expires_at,
        "attempts": 0,
    }


def _ledger_line(receipt: dict[str, object]) -> dict[str, object]:
    return {
        name: value.isoformat()
        if isinstance(value, datetime)
        else value
        if isinstance(value, int)
        else str(value)
        for name, value in receipt.items()
    }
