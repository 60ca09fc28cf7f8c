"""Record what happened, by public ids, in the transaction that does it.

No e-mail, name, address or free text: the trail outlives the person's data (GDPR art. 5(2) against
art. 17). Triggers make it append-only.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from .models import OPERATOR, SYSTEM, AuditEvent


@dataclass(frozen=True)
class Actor:
    """Who acts: ``owner`` or ``staff`` with a public id; ``operator`` (CLI), ``system`` and ``anybody``
    without."""

    kind: str
    public_id: uuid.UUID | None = None


OPERATOR_ACTOR = Actor(OPERATOR)
SYSTEM_ACTOR = Actor(SYSTEM)
# Somebody who has not proved to be anyone.
ANYBODY = Actor("anybody")

# The closed list of actions; ``record`` refuses any other, so that the trail can be read by machines.
ACTIONS = frozenset(
    {
        "account.created",
        "account.updated",
        "account.email_changed",
        "account.password_changed",
        "account.password_reset",
        "account.password_reset_requested",
        "account.deactivated",
        "account.reactivated",
        "account.purged",
        "account.exported",
        "avatar.replaced",
        "avatar.orphans_deleted",
        "deletion.rescheduled",
        "deletion.reason_changed",
        "deletion.purge_requested",
        "access.denied",
        "confirmation.failed",
        "sign_in.failed",
        "reactivation.failed",
        "hold.placed",
        "hold.released",
        "purge.failed",
        "purge.paused",
        "purge.resumed",
        "purge.stuck",
        "purge.retried",
        "mail.given_up",
        "vault.rewrapped",
    }
)

Detail = str | int | bool | None


def event(
    action: str,
    *,
    subject: uuid.UUID | None,
    by: Actor,
    now: datetime,
    **details: Detail,
) -> AuditEvent:
    """Make an audit event without adding it to a session. Raises ValueError for an unlisted action."""
    if action not in ACTIONS:
        raise ValueError(f"not an audited action: {action}")
    return AuditEvent(
        at=now,
        action=action,
        subject=subject,
        actor=by.public_id,
        actor_kind=by.kind,
        details=details,
    )


def record(
    session: Session,
    action: str,
    *,
    subject: uuid.UUID | None,
    by: Actor,
    now: datetime,
    **details: Detail,
) -> None:
    """Add one event to the current transaction: it is there if, and only if, the change is.

    *details* hold counts, ids and words from closed lists, never personal data.
    """
    session.add(event(action, subject=subject, by=by, now=now, **details))


def events(
    session: Session,
    *,
    subject: uuid.UUID | None = None,
    action: str | None = None,
    since: datetime | None = None,
    after: int = 0,
    limit: int = 100,
) -> Sequence[AuditEvent]:
    """Return events in the order in which they were written, from the first id above *after*."""
    query = select(AuditEvent).where(AuditEvent.id > after).order_by(AuditEvent.id).limit(limit)
    if subject is not None:
        query = query.where(AuditEvent.subject == subject)
    if action is not None:
        query = query.where(AuditEvent.action == action)
    if since is not None:
        query = query.where(AuditEvent.at >= since)
    return session.scalars(query).all()
