"""The places where an account's data lives: each table and file set once.

It says of every place how it is purged, which file of the export shows it, and how long it is kept.
The purge, the export and the completeness test read this map. A new table that is not in it fails
``tests/purge/test_purge_promises.py``, which names this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .models import (
    Account,
    AuditEvent,
    Base,
    Canary,
    ClockReading,
    Effect,
    FileSearch,
    FormerAddress,
    Generation,
    KeptLine,
    LegalHold,
    MailPace,
    OrphanedFile,
    PurgeBrake,
    PurgeFailure,
    Receipt,
    ReceiptFact,
    SavedPassword,
    SweepMark,
    VaultKey,
)


class Purge(Enum):
    """The way in which a place is emptied when an account is purged."""

    BY_ACCOUNT = "deleted by account id, before the account's row"
    ACCOUNT = "the account's own row, deleted last"
    BY_SUBJECT = "deleted by public id; what the purge itself still owes stays until it is done"
    FILES = "deleted through the outbox after the commit"
    KEPT = "kept: it holds no personal data"


@dataclass(frozen=True)
class Place:
    """One table or file set. *exported* names the file of the export that shows it, if any does."""

    name: str
    model: type[Base] | None
    purge: Purge
    exported: str | None
    not_exported_because: str | None
    kept_for: str


# The purge empties the places in this order. The account's own row comes after all that refer to
# it: before them, the foreign keys would refuse the purge.
PLACES = (
    Place(
        "saved_passwords",
        SavedPassword,
        Purge.BY_ACCOUNT,
        exported="saved_passwords.json",
        not_exported_because=None,
        kept_for="until deleted by the owner, or the purge",
    ),
    Place(
        "vault_keys",
        VaultKey,
        Purge.BY_ACCOUNT,
        exported=None,
        not_exported_because="a key of ours; what it opens is exported in clear",
        kept_for="until the purge",
    ),
    Place(
        "legal_holds",
        LegalHold,
        Purge.BY_ACCOUNT,
        exported=None,
        not_exported_because="hidden from the owner while proceedings last",
        kept_for="released ones until the purge; an open one prevents it",
    ),
    Place(
        "purge_failures",
        PurgeFailure,
        Purge.BY_ACCOUNT,
        exported=None,
        not_exported_because="about our faults, not about the person",
        kept_for="until the purge succeeds",
    ),
    Place(
        "former_addresses",
        FormerAddress,
        Purge.BY_ACCOUNT,
        exported="former_addresses.json",
        not_exported_because=None,
        kept_for="until the address has stayed the same for a grace period, or the purge",
    ),
    Place(
        "outbox",
        Effect,
        Purge.BY_SUBJECT,
        exported=None,
        not_exported_because="work in progress; it shows in account.json and activity.json",
        kept_for="until delivered; an address 72 hours at most",
    ),
    Place(
        "kept_lines",
        KeptLine,
        Purge.BY_SUBJECT,
        exported=None,
        not_exported_because="times of returns, which activity.json shows, and hidden holds",
        kept_for="until the purge, or for BACKUP_RETENTION; the ledger's copies as long",
    ),
    Place(
        "accounts",
        Account,
        Purge.ACCOUNT,
        exported="account.json",
        not_exported_because=None,
        kept_for="until the purge; an address that waits to be confirmed 72 hours at most",
    ),
    Place(
        "avatars",
        None,
        Purge.FILES,
        exported="avatar",
        not_exported_because=None,
        kept_for="until replaced, or the purge",
    ),
    Place(
        "audit_events",
        AuditEvent,
        Purge.KEPT,
        exported="activity.json",
        not_exported_because=None,
        kept_for="for good: public ids, actions, times and numbers only",
    ),
    Place(
        "mail_paces",
        MailPace,
        Purge.KEPT,
        exported=None,
        not_exported_because="times under an HMAC that names nobody, for a day",
        kept_for="a day after the last mail of its kind, also over a purge: an HMAC, tied to none",
    ),
    Place(
        "receipts",
        Receipt,
        Purge.KEPT,
        exported=None,
        not_exported_because="written when the person's data is gone",
        kept_for="for good: the proof that the data is gone",
    ),
    Place(
        "receipt_facts",
        ReceiptFact,
        Purge.KEPT,
        exported=None,
        not_exported_because="written when the person's data is gone",
        kept_for="for good: what became true of the purge, and when",
    ),
    Place(
        "orphaned_files",
        OrphanedFile,
        Purge.KEPT,
        exported=None,
        not_exported_because="files that no account shows: whose they were, nobody knows",
        kept_for="until the file is gone, or an account shows it: a random key that names nobody",
    ),
    Place(
        "file_search",
        FileSearch,
        Purge.KEPT,
        exported=None,
        not_exported_because="about the service, not about a person",
        kept_for="for good: one row, with the random key at which the day's search stands",
    ),
    Place(
        "canary",
        Canary,
        Purge.KEPT,
        exported=None,
        not_exported_because="about a person who was made up",
        kept_for="for good: one row, without names and addresses",
    ),
    Place(
        "purge_brake",
        PurgeBrake,
        Purge.KEPT,
        exported=None,
        not_exported_because="about the service, not about a person",
        kept_for="counts for an hour; an operator's reason until the brake lets go",
    ),
    Place(
        "generations",
        Generation,
        Purge.KEPT,
        exported=None,
        not_exported_because="about the service, not about a person",
        kept_for="for good: one row for each restore",
    ),
    Place(
        "sweep_marks",
        SweepMark,
        Purge.KEPT,
        exported=None,
        not_exported_because="about the service, not about a person",
        kept_for="for good: two times",
    ),
    Place(
        "clock_readings",
        ClockReading,
        Purge.KEPT,
        exported=None,
        not_exported_because="about the service's hosts, not about a person",
        kept_for="90 days after a host has swept last",
    ),
)


def purged_by_account() -> tuple[type[Base], ...]:
    """Return the tables that the purge empties by ``account_id``, in order."""
    return tuple(
        place.model
        for place in PLACES
        if place.purge is Purge.BY_ACCOUNT and place.model is not None
    )


def gaps(base: type[Base] = Base) -> list[str]:
    """Name what the map does not cover, one sentence each; empty when it is complete.

    Every table must be in the map; one that holds account ids must be purged by them.
    """
    known = {place.model.__tablename__: place for place in PLACES if place.model is not None}
    sentences = []
    for table in base.metadata.sorted_tables:
        place = known.get(table.name)
        if place is None:
            sentences.append(
                f"table {table.name} is not in accountsvc/db/datamap.py: add a Place for it"
            )
            continue
        refers_to_accounts = "account_id" in table.c or any(
            key.column.table.name == "accounts" for key in table.foreign_keys
        )
        if refers_to_accounts and place.purge is not Purge.BY_ACCOUNT:
            sentences.append(
                f"table {table.name} refers to accounts, so in accountsvc/db/datamap.py "
                "it must be purged BY_ACCOUNT"
            )
        if place.exported is None and not place.not_exported_because:
            sentences.append(
                f"table {table.name}: say in accountsvc/db/datamap.py why it is not exported"
            )
    if not any(place.purge is Purge.FILES for place in PLACES):
        sentences.append("avatar files are not in accountsvc/db/datamap.py: add a Place for them")
    return sentences
