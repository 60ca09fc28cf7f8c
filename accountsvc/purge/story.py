"""The story of an account that is gone, out of what outlives it: events, receipt and facts.

Nothing personal is in these, so nothing personal is in a story.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..db.models import AuditEvent, Receipt
from ..db.proofs import ReceiptFact

PURGED = "account.purged"

# What an account's events tell of its end, in a closed list: tries of a password, say, do not.
TOLD = frozenset(
    {
        "account.created",
        "account.deactivated",
        "account.reactivated",
        PURGED,
        "deletion.rescheduled",
        "deletion.purge_requested",
        "deletion.accepted",
        "deletion.witnessed",
        "hold.placed",
        "hold.released",
        "purge.failed",
        "purge.stuck",
        "purge.retried",
    }
)

# Of the details of events and facts these are shown; another one is not, whatever wrote it.
_SHOWN = ("attempts", "saved_passwords", "files", "why", "place", "count")


@dataclass(frozen=True)
class Happening:
    """One thing that happened, or became true; ``what`` is an audit action or a fact.

    ``by`` is the kind of its actor, None for a fact. ``details`` are counts, times and words from
    closed lists; a promise has its ``purge_at`` among them.
    """

    at: datetime
    what: str
    by: str | None
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Story:
    """All that is known of an account without a row; ``receipt`` is None if it has none."""

    public_id: uuid.UUID
    receipt: Receipt | None
    happenings: Sequence[Happening]

    @property
    def purged_at(self) -> datetime | None:
        """Return when the account was purged first; None if nothing says that it was."""
        if self.receipt is not None:
            return self.receipt.purged_at
        return next((one.at for one in self.happenings if one.what == PURGED), None)


def tell(session: Session, public_id: uuid.UUID) -> Story | None:
    """Return the story of *public_id*; None if nobody was ever called so."""
    receipt = session.get(Receipt, public_id, populate_existing=True)
    happenings = [*_of_events(session, public_id), *_of_facts(session, public_id)]
    if receipt is None and not happenings:
        return None
    # A fact has the time at which it was written down, in the same order as the events.
    happenings.sort(key=lambda one: one.at)
    return Story(public_id, receipt, happenings)


def purged_at(session: Session, public_id: uuid.UUID) -> datetime | None:
    """Return when the account of *public_id* was purged; None if nothing says that it was."""
    story = tell(session, public_id)
    return None if story is None else story.purged_at


def _of_events(session: Session, public_id: uuid.UUID) -> Iterator[Happening]:
    query = select(AuditEvent).where(
        AuditEvent.subject == public_id, AuditEvent.action.in_(sorted(TOLD))
    )
    for event in session.scalars(query.order_by(AuditEvent.id)):
        details = _shown(event.details)
        if event.purge_at is not None:
            details["purge_at"] = event.purge_at
        yield Happening(event.at, event.action, event.actor_kind, details)


def _of_facts(session: Session, public_id: uuid.UUID) -> Iterator[Happening]:
    query = select(ReceiptFact).where(ReceiptFact.public_id == public_id)
    for fact in session.scalars(query.order_by(ReceiptFact.id)):
        yield Happening(fact.at, fact.fact, None, _shown(fact.details))


def _shown(details: Mapping[str, Any]) -> dict[str, Any]:
    return {name: details[name] for name in _SHOWN if name in details}
