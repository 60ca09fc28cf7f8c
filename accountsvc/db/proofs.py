"""The tables of what has become true of a purge, and of the seals: rows that are only ever added.

A receipt is written once, in the transaction that erases the account. Whatever becomes true later
is a fact of its own, with its own time.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Identity,
    Index,
    LargeBinary,
    String,
    Text,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Id

# The files of the account are absent in the store, with all their versions.
FILES_ABSENT = "files_absent"
LEDGER_WRITTEN = "ledger_written"
# The *purged* mail was sent, or never will be; ``details`` say why. One of the two.
TOLD, NOT_TOLD = "told", "not_told"
# SQLite: freed pages hold nothing that could be read. PostgreSQL has no such fact.
SCRUBBED = "scrubbed"
# All of the above, as far as the engine has them.
COMPLETED = "completed"
# Each place was looked into, and nothing was found; or something was, and is erased again.
VERIFIED, RESIDUE_FOUND = "verified", "residue_found"
# The details of LEDGER_WRITTEN where a restore had lost the receipt, and a replay has put it back.
BY_REPLAY = {"why": "replayed"}
# A restore had brought the account back, and it was erased once more.
ERASED_AGAIN = "erased_again"

FACTS = (
    FILES_ABSENT,
    LEDGER_WRITTEN,
    TOLD,
    NOT_TOLD,
    SCRUBBED,
    COMPLETED,
    VERIFIED,
    RESIDUE_FOUND,
    ERASED_AGAIN,
)
# These become true once. The others may come again: a residue is looked for again later.
ONCE = (FILES_ABSENT, LEDGER_WRITTEN, SCRUBBED, COMPLETED)


def _in(column: str, words: tuple[str, ...]) -> str:
    quoted = ", ".join(f"'{word}'" for word in words)
    return f"{column} IN ({quoted})"


class ReceiptFact(Base):
    """One thing that became true of a purge after its receipt was written; no personal data."""

    __tablename__ = "receipt_facts"
    __table_args__ = (
        CheckConstraint(_in("fact", FACTS), name="fact"),
        Index("ix_receipt_facts_public_id", "public_id", "id"),
        Index(
            "uq_receipt_facts_once",
            "public_id",
            "fact",
            unique=True,
            sqlite_where=text(_in("fact", ONCE)),
            postgresql_where=text(_in("fact", ONCE)),
        ),
        # Somebody was told, or was not.
        Index(
            "uq_receipt_facts_told",
            "public_id",
            unique=True,
            sqlite_where=text(_in("fact", (TOLD, NOT_TOLD))),
            postgresql_where=text(_in("fact", (TOLD, NOT_TOLD))),
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, Identity(), primary_key=True)
    public_id: Mapped[uuid.UUID]
    fact: Mapped[str] = mapped_column(String(16))
    at: Mapped[datetime]
    # Details are counts, times and words from closed lists.
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Seal(Base):
    """A signed batch of the trail: events, facts and receipts, in their order, by their hashes.

    The entries' hashes are here, so that a verification can name the entry that was changed, also
    when the entry itself was taken by ``audit prune``.
    """

    __tablename__ = "seals"
    __table_args__ = (
        CheckConstraint("number >= 1", name="number"),
        Index("ix_seals_last_event", "last_event"),
        Index("ix_seals_last_fact", "last_fact"),
    )

    # Numbers go on over all chains; after a restore they leave out what the ledger has and the
    # database has lost.
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    # The generation of the database that sealed it.
    chain: Mapped[uuid.UUID]
    sealed_at: Mapped[datetime]
    # Ids of ``audit_events`` and ``receipt_facts``, both ends covered. Without a row of a table,
    # the last is the one before the first.
    first_event: Mapped[int] = mapped_column(BigInteger)
    last_event: Mapped[int] = mapped_column(BigInteger)
    first_fact: Mapped[int] = mapped_column(BigInteger)
    last_fact: Mapped[int] = mapped_column(BigInteger)
    # Records of 49 bytes: the kind's letter, the id in 16 bytes, the hash of the leaf in 32.
    entries: Mapped[bytes] = mapped_column(LargeBinary)
    header: Mapped[str] = mapped_column(Text)
    head: Mapped[str] = mapped_column(String(64))
    signature: Mapped[str] = mapped_column(String(88))
    # ``audit prune`` took the events then. Only this may be set, once.
    pruned_at: Mapped[datetime | None]
