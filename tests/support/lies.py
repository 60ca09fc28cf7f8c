"""What an administrator can do to the past who has dropped the triggers, or has the ledger's store."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import delete, text, update

from accountsvc.adapters.ledgerseal import Opened
from accountsvc.db.models import AuditEvent, Receipt, ReceiptFact
from accountsvc.services import Services


def drop_trigger(services: Services, table: str, name: str) -> None:
    """Drop the trigger *name* of *table*, which may be gone already."""
    on = f" ON {table}" if services.database.engine.dialect.name == "postgresql" else ""
    with services.writing() as session:
        session.execute(text(f"DROP TRIGGER IF EXISTS {name}{on}"))


def forget_receipt(services: Services, number: uuid.UUID) -> None:
    """Delete the receipt of *number*."""
    drop_trigger(services, "receipts", "receipts_refuse_delete")
    with services.writing() as session:
        session.execute(delete(Receipt).where(Receipt.public_id == number))


def backdate_receipt(services: Services, number: uuid.UUID, moment: datetime) -> None:
    """Have the receipt of *number* tell another story, which ended at *moment*."""
    drop_trigger(services, "receipts", "receipts_refuse_update")
    other = {"deactivated_at": moment, "purge_at": moment, "purged_at": moment}
    with services.writing() as session:
        session.execute(
            update(Receipt)
            .where(Receipt.public_id == number)
            .values(**other, deactivated_by="staff", saved_passwords=9)
        )


def forget_event(services: Services, number: uuid.UUID, action: str) -> None:
    """Delete the events of *action* about *number*."""
    drop_trigger(services, "audit_events", "audit_events_refuse_delete")
    with services.writing() as session:
        session.execute(
            delete(AuditEvent).where(AuditEvent.subject == number, AuditEvent.action == action)
        )


def forget_facts(services: Services) -> None:
    """Delete every fact of every receipt."""
    drop_trigger(services, "receipt_facts", "receipt_facts_refuse_delete")
    with services.writing() as session:
        session.execute(delete(ReceiptFact))


def forget_line(services: Services, number: uuid.UUID) -> set[uuid.UUID]:
    """Remove the object that holds the ledger's line of *number*; return all who are in it."""
    for opened in services.ledger.scan():
        assert isinstance(opened, Opened)
        people = {uuid.UUID(line["public_id"]) for line in opened.receipts}
        if number in people:
            services.ledger.store.remove(opened.link.name)
            return people
    raise AssertionError(f"the ledger has no line of {number}")
