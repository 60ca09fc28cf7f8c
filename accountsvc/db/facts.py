"""Write and read what becomes true of a purge after its receipt; ``proofs`` has the words.

A fact is only ever added. Adding one that is there already changes nothing, so whoever finds that
something is true may say so, however often.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, Table, literal, select, union_all
from sqlalchemy.orm import Session

from . import rows
from .proofs import ReceiptFact

_TABLE: Table = ReceiptFact.__table__  # type: ignore[assignment]
_COLUMNS = ("public_id", "fact", "at", "details")


def add(
    session: Session,
    fact: str,
    public_ids: Collection[uuid.UUID],
    *,
    now: datetime,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write in one statement that *fact* is true of *public_ids* since *now*.

    Of whom it was true before it stays as it was, with its time and details.
    """
    if not public_ids:
        return
    added = [
        {"public_id": public_id, "fact": fact, "at": now, "details": dict(details or {})}
        for public_id in public_ids
    ]
    # No conflict target is named: both partial indexes count, of what is once and of who was told.
    session.connection().execute(rows.insert(session, ReceiptFact).on_conflict_do_nothing(), added)


def add_found(session: Session, found: Mapping[str, Select[uuid.UUID]], *, now: datetime) -> None:
    """Write by one statement each fact of *found* for the public ids that its query selects."""
    at = literal(now, ReceiptFact.at.type)
    details = literal({}, ReceiptFact.details.type)
    each = []
    for fact, query in found.items():
        ids = query.subquery()
        word = literal(fact, ReceiptFact.fact.type)
        each.append(select(ids.c[0].label("public_id"), word.label("fact")))
    true = union_all(*each).subquery()
    # Without a condition SQLite would take ON CONFLICT for that of a join.
    query_of_all = select(true.c.public_id, true.c.fact, at, details).where(
        true.c.public_id.is_not(None)
    )
    statement = rows.insert(session, ReceiptFact).from_select(_COLUMNS, query_of_all)
    session.connection().execute(statement.on_conflict_do_nothing())


def of(
    session: Session, public_ids: Collection[uuid.UUID]
) -> dict[uuid.UUID, dict[str, ReceiptFact]]:
    """Return what is true of each of *public_ids*, by the fact; of one that came again the last."""
    found: dict[uuid.UUID, dict[str, ReceiptFact]] = {public_id: {} for public_id in public_ids}
    for chunk in rows.chunks(list(public_ids)):
        query = select(ReceiptFact).where(ReceiptFact.public_id.in_(chunk))
        for row in session.scalars(query.order_by(ReceiptFact.id)):
            found[row.public_id][row.fact] = row
    return found


def story(session: Session, public_id: uuid.UUID) -> Sequence[ReceiptFact]:
    """Return all that became true of one purge, in the order in which it was written."""
    query = select(ReceiptFact).where(ReceiptFact.public_id == public_id)
    return session.scalars(query.order_by(ReceiptFact.id)).all()
