"""People who are gone, with what is recorded of it."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text, update

from accountsvc.db.models import Receipt
from accountsvc.db.proofs import ReceiptFact
from accountsvc.services import Services

from .factories import Person, make_due
from .moments import now
from .sweeps import sweep


def erase(services: Services, person: Person) -> Receipt:
    """Have *person* purged; nothing that is owed for it is done yet."""
    make_due(services, person)
    assert sweep(services, now(services)).purged == 1
    with services.reading() as session:
        receipt = session.get(Receipt, person.public_id)
    assert receipt is not None
    return receipt


def record(services: Services, person: Person, *facts: str) -> None:
    """Record *facts* of *person*, a minute after the other, from the moment of the purge on."""
    with services.writing() as session:
        receipt = session.get(Receipt, person.public_id)
        assert receipt is not None
        for minutes, fact in enumerate(facts, start=1):
            at = receipt.purged_at + timedelta(minutes=minutes)
            session.add(ReceiptFact(public_id=person.public_id, fact=fact, at=at))
            session.flush()


def backdate(services: Services, person: Person) -> None:
    """Have somebody who may do anything to the database say that *person* was purged sooner."""
    is_sqlite = services.database.engine.dialect.name == "sqlite"
    with services.writing() as session:
        session.execute(
            text(
                "DROP TRIGGER receipts_refuse_update"
                if is_sqlite
                else "ALTER TABLE receipts DISABLE TRIGGER USER"
            )
        )
        session.execute(
            update(Receipt)
            .where(Receipt.public_id == person.public_id)
            .values(purged_at=Receipt.deactivated_at)
        )
