"""The places where an account's data lives, or could be left: each once.

It says of every place how it is purged, which file of the export shows it, how long it is kept, and
how it is verified that nothing of a purged account is left in it. The purge, the export, the
verification and the completeness test read this map. A new table that is not in it fails
``tests/purge/test_purge_promises.py``, which names this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement, Uuid

from .. import bounds
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
    Seal,
    SweepMark,
    VaultKey,
)

DATABASE_FILE = "database file"


class Purge(Enum):
    """The way in which a place is emptied when an account is purged."""

    BY_ACCOUNT = "deleted by account id, before the account's row"
    ACCOUNT = "the account's own row, deleted last"
    BY_SUBJECT = "deleted by public id; what the purge itself still owes stays until it is done"
    FILES = "deleted through the outbox after the commit"
    SCRUB = "rewritten behind the purge"
    AGE = "not reached by the purge: it goes by its age"
    KEPT = "kept: it holds no personal data"


class Verified(Enum):
    """The way in which it is verified that nothing of a purged account is left in a place."""

    QUERY = "by query"
    STORE = "by asking the store for each key, with every version"
    BYTES = "by every byte outside of rows, behind the scrub"
    STATED = "stated"


class For(Enum):
    """How long a place that is only stated may hold something, where it is not a number of days."""

    BACKUPS = "BACKUP_RETENTION"
    OPERATOR = "as long as the operator keeps it"


@dataclass(frozen=True)
class Place:
    """One table, file set or other place. *exported* names the file of the export that shows it.

    A table is verified by query: for the account's number in each column that refers to accounts,
    and for its public id in each column of that type, unless the table *keeps_public_id*. What is
    only *stated* says why nothing, or what, may be left there, and *stated_for* how long behind the
    erasure that may be. *engine* is that of the database which has the place; None: each.
    """

    name: str
    model: type[Base] | None
    purge: Purge
    exported: str | None
    not_exported_because: str | None
    kept_for: str
    verified: Verified = Verified.QUERY
    keeps_public_id: bool = False
    stated: str | None = None
    stated_for: timedelta | For | None = None
    engine: str | None = None

    def columns_of_number(self) -> list[ColumnElement[Any]]:
        """Return the columns that could hold the account's number."""
        if self.model is None or self.verified is not Verified.QUERY:
            return []
        table = self.model.__table__
        return [
            column
            for column in table.columns
            if column.name == "account_id"
            or (self.purge is Purge.ACCOUNT and column.primary_key)
            or any(key.column.table.name == "accounts" for key in column.foreign_keys)
        ]

    def columns_of_public_id(self) -> list[ColumnElement[Any]]:
        """Return the columns that could hold the account's public id, and may not."""
        if self.model is None or self.verified is not Verified.QUERY or self.keeps_public_id:
            return []
        return [column for column in self.model.__table__.columns if isinstance(column.type, Uuid)]


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
        # Of the member of the staff who placed or released it, who may be purged before it is.
        keeps_public_id=True,
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
        verified=Verified.STORE,
    ),
    Place(
        "audit_events",
        AuditEvent,
        Purge.KEPT,
        exported="activity.json",
        not_exported_because=None,
        kept_for="for AUDIT_RETENTION at least: public ids, actions, times and numbers only",
        keeps_public_id=True,
    ),
    Place(
        "mail_paces",
        MailPace,
        Purge.KEPT,
        exported=None,
        not_exported_because="times under an HMAC that names nobody, for a day",
        kept_for="a day after the last mail of its kind, also over a purge: an HMAC, tied to none",
        verified=Verified.STATED,
        stated="times under an HMAC of an address, which no id leads to",
        stated_for=timedelta(days=1),
    ),
    Place(
        "receipts",
        Receipt,
        Purge.KEPT,
        exported=None,
        not_exported_because="written when the person's data is gone",
        kept_for="for good: the proof that the data is gone",
        keeps_public_id=True,
    ),
    Place(
        "receipt_facts",
        ReceiptFact,
        Purge.KEPT,
        exported=None,
        not_exported_because="written when the person's data is gone",
        kept_for="for good: what became true of the purge, and when",
        keeps_public_id=True,
    ),
    Place(
        "seals",
        Seal,
        Purge.KEPT,
        exported=None,
        not_exported_because="hashes of the trail, about the service",
        kept_for="for good: ids, hashes and signatures; after `audit prune` the hashes alone",
        keeps_public_id=True,
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
        keeps_public_id=True,
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
    Place(
        "ledger",
        None,
        Purge.KEPT,
        exported=None,
        not_exported_because="written when the person's data is gone",
        kept_for="for good: the proof that the data is gone, outside of the database",
        verified=Verified.STATED,
        keeps_public_id=True,
        stated="public ids, times and counts only",
    ),
    Place(
        DATABASE_FILE,
        None,
        Purge.SCRUB,
        exported=None,
        not_exported_because="where the tables above are stored",
        kept_for="what a purge has freed in it until the scrub, an hour as a rule",
        verified=Verified.BYTES,
        engine="sqlite",
    ),
    Place(
        "database pages",
        None,
        Purge.AGE,
        exported=None,
        not_exported_because="where the tables above are stored, and copies of it",
        kept_for="what a purge has freed in pages, write-ahead log and replicas until they are "
        "reused, and no longer than backups are kept",
        verified=Verified.STATED,
        stated="freed rows in pages, in the write-ahead log and on replicas, until it is reused",
        stated_for=For.BACKUPS,
        engine="postgresql",
    ),
    Place(
        "backups",
        None,
        Purge.AGE,
        exported=None,
        not_exported_because="copies of the tables above and of your picture",
        kept_for="for BACKUP_RETENTION; a restore from one is followed by the same purges",
        verified=Verified.STATED,
        stated="copies from before the purge, until they are deleted",
        stated_for=For.BACKUPS,
    ),
    Place(
        "redis",
        None,
        Purge.AGE,
        exported=None,
        not_exported_because="counts under HMACs that name nobody",
        kept_for=f"at most {bounds.KNOWN_DAYS} days",
        verified=Verified.STATED,
        stated="counts and times under HMACs, each with an end",
        stated_for=timedelta(days=bounds.KNOWN_DAYS),
    ),
    Place(
        "broker",
        None,
        Purge.AGE,
        exported=None,
        not_exported_because="names of tasks, about nobody",
        kept_for="until a worker has taken them",
        verified=Verified.STATED,
        stated="names of tasks and nothing else",
    ),
    Place(
        "logs",
        None,
        Purge.AGE,
        exported=None,
        not_exported_because="public ids, routes and times of requests",
        kept_for="as long as whoever runs this service keeps them",
        verified=Verified.STATED,
        keeps_public_id=True,
        stated="public ids, routes, times and counts; nothing that a person wrote",
        stated_for=For.OPERATOR,
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
    names = {place.name for place in PLACES}
    sentences += [
        f"{name} is not in accountsvc/db/datamap.py: add a Place for it"
        for name in _WITHOUT_TABLE
        if name not in names
    ]
    sentences += [sentence for place in PLACES for sentence in _unverified(place)]
    return sentences


# What has no table, and so is missed by nothing but this list.
_WITHOUT_TABLE = (
    *("avatars", "ledger", DATABASE_FILE, "database pages"),
    *("backups", "redis", "broker", "logs"),
)


def _unverified(place: Place) -> Iterator[str]:
    """Name what the map does not say of how *place* is verified."""
    if (place.verified is Verified.STATED) != bool(place.stated):
        yield f"{place.name}: say in accountsvc/db/datamap.py why it is only stated, or look there"
    if place.verified is Verified.QUERY and place.model is None:
        yield f"{place.name} has no table: say in accountsvc/db/datamap.py how it is verified"
