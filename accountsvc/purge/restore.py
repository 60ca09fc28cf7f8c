"""A restore from a backup: find who is back, refuse to purge meanwhile, verify the ledger.

The database is compared with its ledger by public id only, since somebody else may have got an
account's number in the meantime.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from ..adapters.ledger import Ledger
from ..db.engine import Database, database_now
from ..db.models import Account, Effect, Receipt
from ..db.rows import chunks
from ..errors import StoreUnavailable
from ..outbox import queue
from ..outbox.payloads import LedgerLines
from . import brake, claim
from .claim import PlannedPurge


@dataclass(frozen=True)
class Verification:
    """The ledger and the database, compared.

    ``lines``, ``receipts`` and ``owed`` count people: in the ledger, with a receipt, and with a
    line that waits in the outbox. ``back`` holds the ids of accounts that the ledger calls purged,
    ``missing`` the public ids of receipts without a line.
    """

    lines: int
    receipts: int
    owed: int
    back: list[int]
    missing: list[uuid.UUID]


@dataclass(frozen=True)
class Restore:
    """One database beside its ledger. Nothing here changes either of them."""

    database: Database
    ledger: Ledger

    def refuse_after_restore(self) -> None:
        """Raise PurgedAreBack while :meth:`purged_are_back`.

        Raises LedgerBehind if the ledger cannot be read.
        """
        try:
            back = self.purged_are_back()
        except StoreUnavailable as exc:
            raise brake.LedgerBehind from exc
        if back:
            raise brake.PurgedAreBack

    def purged_are_back(self) -> bool:
        """Say whether anybody of the batches that the ledger got last has an account.

        Costs the same however old the service is. Raises StoreUnavailable if the ledger cannot be
        read.
        """
        with self.database.reading() as session:
            now = database_now(session)
        purged = [uuid.UUID(str(line["public_id"])) for line in self.ledger.newest(now)]
        with self.database.reading() as session:
            return any(
                session.scalar(select(Account.id).where(Account.public_id.in_(chunk)).limit(1))
                for chunk in chunks(purged)
            )

    def plan(self) -> list[PlannedPurge]:
        """Return what a replay would destroy: everybody in the whole ledger who has an account.

        Raises StoreUnavailable if the ledger cannot be read.
        """
        return self._back(self._purged())

    def verify(self) -> Verification:
        """Compare the whole ledger with the database, safely while purges go on.

        Raises StoreUnavailable if the ledger cannot be read.
        """
        # Read the receipts before the ledger; the other way round, somebody who is purged in
        # between would have a receipt and seem to have no line.
        with self.database.reading() as session:
            receipts = set(session.scalars(select(Receipt.public_id)))
            owed = {
                uuid.UUID(str(line["public_id"]))
                for payload in session.scalars(
                    select(Effect.payload).where(Effect.kind == queue.LEDGER)
                )
                for line in LedgerLines.read(payload).lines
            }
        purged = self._purged()
        return Verification(
            lines=len(purged),
            receipts=len(receipts),
            owed=len(owed),
            back=[planned.account_id for planned in self._back(purged)],
            missing=sorted(receipts - set(purged) - owed, key=str),
        )

    def _purged(self) -> list[uuid.UUID]:
        return [uuid.UUID(str(line["public_id"])) for line in self.ledger.read()]

    def _back(self, purged: Sequence[uuid.UUID]) -> list[PlannedPurge]:
        with self.database.reading() as session:
            ids = [
                account_id
                for chunk in chunks(purged)
                for account_id in session.scalars(
                    select(Account.id).where(Account.public_id.in_(chunk))
                )
            ]
            return claim.count(session, ids)
