"""The audit trail: what happened to whom, by public ids, in the transaction that does it.

It holds no e-mail, name, address or free text, because it outlives the person's data (GDPR
art. 5(2) against art. 17). Triggers make it append-only.

The event that makes or moves a promise is its witness: it holds the promised dates. Without one
nobody is purged, so a date that SQL, a script or a migration has set purges nobody.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from .models import OPERATOR, SYSTEM, Account, AuditEvent


@dataclass(frozen=True)
class Actor:
    """The author of an audit event.

    ``owner`` and ``staff`` have a public id; ``operator`` (the CLI), ``system`` and ``anybody``
    have none.
    """

    kind: str
    public_id: uuid.UUID | None = None


OPERATOR_ACTOR = Actor(OPERATOR)
SYSTEM_ACTOR = Actor(SYSTEM)
# A refused attempt has this actor, who has not proved to be anyone: were the owner named, the trail
# would say that they had attacked themselves.
ANYBODY = Actor("anybody")

# Every action is one of these. ``row`` makes every event and refuses any other action: a misspelt
# one would be missed by every program that reads the trail.
ACTIONS = frozenset(
    {
        "account.created",
        "account.updated",
        "account.email_asked",
        "account.email_cancelled",
        "account.email_changed",
        "account.password_changed",
        "account.password_reset",
        "account.password_reset_requested",
        "account.deactivated",
        "account.reactivated",
        "account.purged",
        "account.sessions_ended",
        "account.signed_out",
        "account.exported",
        "avatar.replaced",
        "avatar.orphans_deleted",
        "deletion.rescheduled",
        "deletion.reason_changed",
        "deletion.purge_requested",
        "deletion.accepted",
        # Written by the migration that brought the witnesses, for those who waited at that moment.
        "deletion.witnessed",
        "access.denied",
        "confirmation.failed",
        "confirmation.throttled",
        "deactivation.throttled",
        "sign_in.failed",
        "reactivation.failed",
        "hold.placed",
        "hold.released",
        "purge.brake_held",
        "purge.brake_let_go",
        "purge.brake_released",
        "purge.failed",
        "purge.paused",
        "purge.resumed",
        "purge.stuck",
        "purge.retried",
        "residue.found",
        "mail.given_up",
        "vault.rewrapped",
        "clock.moved",
        "clock.back",
        "clock.allowed",
        "ledger.adopted",
        "ledger.rebuilt",
        "ledger.replayed",
    }
)

# Without the session's bookkeeping: nobody reads an event in the transaction that writes it.
_INSERT = insert(AuditEvent.__table__)  # type: ignore[arg-type]

Detail = str | int | bool | None


@dataclass(frozen=True)
class Witness:
    """The promise that an event holds: the epoch and the dates of its account after the event.

    The dates are None after a reactivation, which ends every promise from before it.
    """

    epoch: int
    deactivated_at: datetime | None
    purge_at: datetime | None

    @classmethod
    def of(cls, account: Account) -> Witness:
        """Return what the row of *account* says."""
        return cls(account.epoch, account.deactivated_at, account.purge_at)

    def explains(self, account: Account) -> bool:
        """Say whether this, as the latest witness of *account*, is a promise of what its row says.

        It is of the same deactivation and the same epoch, and the row's ``purge_at`` is not before
        the promised one. ``rules.is_explained`` says the same in SQL; a test compares the two.
        """
        return (
            self.epoch == account.epoch
            and self.deactivated_at is not None
            and self.deactivated_at == account.deactivated_at
            and self.purge_at is not None
            and account.purge_at is not None
            and self.purge_at <= account.purge_at
        )


def row(
    action: str,
    *,
    subject: uuid.UUID | None,
    by: Actor,
    now: datetime,
    witness: Witness | None = None,
    **details: Detail,
) -> dict[str, Any]:
    """Return the columns of one event, for an INSERT of many at once.

    An event that makes, moves or ends a promise has its *witness*: one without leaves people whom
    no sweep purges. *details* hold counts, ids and words from closed lists, never personal data.
    Raises ValueError for an action that is not in ``ACTIONS``.
    """
    if action not in ACTIONS:
        raise ValueError(f"not an audited action: {action}")
    return {
        "at": now,
        "action": action,
        "subject": subject,
        "actor": by.public_id,
        "actor_kind": by.kind,
        "details": details,
        **({} if witness is None else vars(witness)),
    }


def record(
    session: Session,
    action: str,
    *,
    subject: uuid.UUID | None,
    by: Actor,
    now: datetime,
    witness: Witness | None = None,
    **details: Detail,
) -> None:
    """Add an event, made as :func:`row` says, to the current transaction.

    It is there if, and only if, that commits.
    """
    event = row(action, subject=subject, by=by, now=now, witness=witness, **details)
    session.connection().execute(_INSERT, event)


def is_explained(session: Session, account: Account) -> bool:
    """Say whether the latest witness of *account* is a promise of what its row says.

    Whoever moves a promise asks this before, and passes a witness on only then: otherwise a date
    that nobody promised would become one by the release of a hold or a reset of the password.
    """
    columns = AuditEvent.epoch, AuditEvent.deactivated_at, AuditEvent.purge_at
    latest = session.execute(
        select(*columns)
        .where(AuditEvent.subject == account.public_id, AuditEvent.epoch.is_not(None))
        .order_by(AuditEvent.id.desc())
        .limit(1)
    ).one_or_none()
    if latest is None:
        return False
    return Witness(latest.epoch, latest.deactivated_at, latest.purge_at).explains(account)


def events(
    session: Session,
    *,
    subject: uuid.UUID | None = None,
    action: str | None = None,
    since: datetime | None = None,
    after: int = 0,
    limit: int = 100,
) -> Sequence[AuditEvent]:
    """Return at most *limit* events in the order of their ids, which are above *after*.

    With *since*: only those from that moment on.
    """
    query = select(AuditEvent).where(AuditEvent.id > after).order_by(AuditEvent.id).limit(limit)
    if subject is not None:
        query = query.where(AuditEvent.subject == subject)
    if action is not None:
        query = query.where(AuditEvent.action == action)
    if since is not None:
        query = query.where(AuditEvent.at >= since)
    return session.scalars(query).all()
