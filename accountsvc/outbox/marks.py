"""The numbers of new objects of the ledger, refused to a database that is older than its ledger."""

from __future__ import annotations

from ..adapters.ledger import Ledger
from ..adapters.ledgerseal import Mark
from ..db import generations
from ..db.engine import Database, database_now
from ..errors import StoreUnavailable


class LedgerAhead(StoreUnavailable):
    """The database is older than its ledger, as after a restore, and may not write it."""

    def __init__(self) -> None:
        super().__init__(
            "The database is older than its ledger: run `accountsvc ledger replay` first."
        )


def take_marks(database: Database, ledger: Ledger, count: int) -> list[Mark]:
    """Return the marks of the next *count* objects, which are this database's for good.

    Raises LedgerAhead while the database is older than its ledger: numbers that others have had
    would make the two look alike, and who came back since the backup would be purged.
    """
    seen = ledger.newest_marks()
    with database.writing() as session:
        if not generations.knows(session, seen):
            raise LedgerAhead
        generation, numbers = generations.take_numbers(session, count, database_now(session))
    ledger.note({generation: numbers[-1]})
    return [Mark(generation, number) for number in numbers]
