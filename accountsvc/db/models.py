"""The tables, their constraints and triggers, and the rules that one row can decide.

The database has the last word: nobody's mistake can delete an active account, one with an open
hold, an audit event or a receipt (CHECKs, ``NO ACTION``, and the triggers in ``triggers.py``).
"""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    event,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from .. import bounds
from .base import Base, Id
from .canaries import Canary
from .orphaned import FileSearch, OrphanedFile
from .proofs import ReceiptFact, Seal
from .triggers import POSTGRESQL_FUNCTIONS, POSTGRESQL_TRIGGERS, SQLITE_TRIGGERS

# The metadata must have every table for whoever imports this module: Alembic would propose to drop
# one that it does not see.
__all__ = ["Base", "Canary", "FileSearch", "OrphanedFile", "ReceiptFact", "Seal"]

# The largest id that both engines can hold; asked for a larger one, they fail.
MAX_ID = 2**63 - 1

OWNER, STAFF, OPERATOR, SYSTEM = "owner", "staff", "operator", "system"

ACTIVE, DEACTIVATED, DUE = "active", "deactivated", "due"
# Not a state of a row by itself: ``rules.is_unexplained`` says it of those that are not active.
UNEXPLAINED = "unexplained"

SWEPT, PAUSED = "swept", "paused"

RETURNED, HELD = "returned", "held"

PENDING_FOR = timedelta(hours=bounds.PENDING_ADDRESS_HOURS)


class Account(Base):
    """A person's account: active, or deactivated at a time and to be purged at another."""

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint(
            "(deactivated_at IS NULL) = (purge_at IS NULL)"
            " AND (deactivated_at IS NULL) = (deactivated_by IS NULL)",
            name="deactivation_whole",
        ),
        CheckConstraint("purge_at >= deactivated_at", name="purge_after_deactivation"),
        CheckConstraint("deactivated_by IN ('owner', 'staff', 'operator')", name="deactivated_by"),
        CheckConstraint("deactivated_at IS NOT NULL OR reason IS NULL", name="reason_deactivated"),
        CheckConstraint(
            "(pending_email IS NULL) = (pending_email_at IS NULL)"
            " AND (pending_email IS NULL) = (pending_epoch IS NULL)",
            name="pending_whole",
        ),
        # Whoever clears pending addresses asks for them every few seconds: without the index each
        # time would read the whole table.
        Index(
            "ix_accounts_pending_email_at",
            "pending_email_at",
            sqlite_where=text("pending_email_at IS NOT NULL"),
            postgresql_where=text("pending_email_at IS NOT NULL"),
        ),
        Index(
            "ix_accounts_purge_at",
            "purge_at",
            "id",
            sqlite_where=text("purge_at IS NOT NULL"),
            postgresql_where=text("purge_at IS NOT NULL"),
        ),
        # An id is never given twice: an old link or command with the id of a purged account would
        # otherwise meet somebody else's.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, Identity(), primary_key=True)
    public_id: Mapped[uuid.UUID] = mapped_column(unique=True, default=uuid.uuid4)
    username: Mapped[str] = mapped_column(String(150))
    username_key: Mapped[str] = mapped_column(String(600), unique=True)
    email: Mapped[str] = mapped_column(String(254))
    email_key: Mapped[str] = mapped_column(String(1016), unique=True)
    first_name: Mapped[str] = mapped_column(String(150), default="")
    last_name: Mapped[str] = mapped_column(String(150), default="")
    number_phone: Mapped[str] = mapped_column(String(20), default="")
    password_hash: Mapped[str] = mapped_column(String(255))
    is_staff: Mapped[bool] = mapped_column(default=False, server_default=false())
    epoch: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    avatar_key: Mapped[str | None] = mapped_column(String(64), unique=True)
    joined_at: Mapped[datetime]
    deactivated_at: Mapped[datetime | None]
    purge_at: Mapped[datetime | None]
    deactivated_by: Mapped[str | None] = mapped_column(String(8))
    # Free text of the staff. It is here because the purge deletes this row: in the audit trail it
    # would outlive the person.
    reason: Mapped[str | None] = mapped_column(Text)
    # The oldest of the former addresses that follow each other within a grace period each: it is
    # all that processes of the release before know of them while they are replaced.
    previous_email: Mapped[str | None] = mapped_column(String(254))
    email_changed_at: Mapped[datetime | None]
    password_changed_at: Mapped[datetime | None]
    # Another address that was asked for, when, and under which epoch: it is the account's once its
    # mailbox and the password agree. Nobody else is refused for it.
    pending_email: Mapped[str | None] = mapped_column(String(254))
    pending_email_at: Mapped[datetime | None]
    pending_epoch: Mapped[int | None] = mapped_column(Integer)
    # Free text of whoever gave the account back for its owner, the staff or the operator; here for
    # the same reason as the one above.
    return_reason: Mapped[str | None] = mapped_column(Text)

    @property
    def is_active(self) -> bool:
        return self.deactivated_at is None

    def state(self, now: datetime) -> str:
        """Return ``active``, ``deactivated`` (in the grace period) or ``due`` at *now*."""
        if self.purge_at is None:
            return ACTIVE
        return DUE if now >= self.purge_at else DEACTIVATED

    def raise_epoch(self, by: int = 1) -> None:
        """End every session and mailed link, and clear a pending address, which ends with them."""
        self.epoch += by
        self.clear_pending()

    def clear_pending(self) -> None:
        """Forget the pending address, open or not."""
        self.pending_email = self.pending_email_at = self.pending_epoch = None

    def pending(self, now: datetime) -> str | None:
        """Return the pending address if it is open at *now*, else None.

        Whatever ends sessions closes it, and so does its age. ``rules.has_closed_address`` says the
        opposite in SQL; a test compares the two.
        """
        if self.pending_email_at is None or self.pending_epoch != self.epoch:
            return None
        # One that is far ahead was asked for under a clock that was wrong: it would stay open until
        # then.
        return self.pending_email if abs(now - self.pending_email_at) < PENDING_FOR else None


class FormerAddress(Base):
    """An address that an account has had, which is told for a while of what happens to it.

    Somebody who has taken the account over changes the address first, and would be told alone; who
    changes it again and again pushes none of these out.
    """

    __tablename__ = "former_addresses"
    # Mails that are owed name a row by its id: one that came again would be another's address.
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Id, Identity(), primary_key=True)
    account_id: Mapped[int] = mapped_column(
        Id, ForeignKey("accounts.id", ondelete="CASCADE"), index=True
    )
    email: Mapped[str] = mapped_column(String(254))
    held_since: Mapped[datetime]
    # The worker asks every few seconds which are old.
    left_at: Mapped[datetime] = mapped_column(index=True)


class SavedPassword(Base):
    """One entry of a vault, encrypted."""

    __tablename__ = "saved_passwords"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(Id, Identity(), primary_key=True)
    # The uid is a part of the encryption's associated data, so that a ciphertext that somebody
    # copies to another row does not open there.
    uid: Mapped[uuid.UUID] = mapped_column(unique=True, default=uuid.uuid4)
    account_id: Mapped[int] = mapped_column(
        Id, ForeignKey("accounts.id", ondelete="CASCADE"), index=True
    )
    ciphertext: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class VaultKey(Base):
    """The key of one account's saved passwords, wrapped; without it their ciphertext is noise."""

    __tablename__ = "vault_keys"

    account_id: Mapped[int] = mapped_column(
        Id,
        ForeignKey("accounts.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
    wrapped_key: Mapped[bytes] = mapped_column(LargeBinary)
    # The name of the key out of VAULT_KEYS that wrapped it: the first bytes of its SHA-256. Without
    # it each key would have to be tried, and nobody could say when an old one is needed no longer.
    wrapped_by: Mapped[str] = mapped_column(String(16), index=True)


class LegalHold(Base):
    """A reason that suspends the purge while ``released_at`` is null."""

    __tablename__ = "legal_holds"
    __table_args__ = (
        CheckConstraint("placed_by_kind IN ('staff', 'operator')", name="placed_by_kind"),
        CheckConstraint("released_at IS NOT NULL OR released_by IS NULL", name="release_whole"),
        Index(
            "ix_legal_holds_open",
            "account_id",
            sqlite_where=text("released_at IS NULL"),
            postgresql_where=text("released_at IS NULL"),
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, Identity(), primary_key=True)
    # The foreign key has NO ACTION, so that an open hold makes the account undeletable: a cascade
    # would delete the hold with it. The purge deletes released ones itself.
    account_id: Mapped[int] = mapped_column(Id, ForeignKey("accounts.id"), index=True)
    reason: Mapped[str] = mapped_column(Text)
    placed_at: Mapped[datetime]
    placed_by: Mapped[uuid.UUID | None]
    placed_by_kind: Mapped[str] = mapped_column(String(8))
    released_at: Mapped[datetime | None]
    released_by: Mapped[uuid.UUID | None]


class PurgeFailure(Base):
    """A due account that could not be purged, and when it is tried again.

    The error's text is not kept, because it may quote personal data.
    """

    __tablename__ = "purge_failures"
    __table_args__ = (CheckConstraint("attempts >= 1", name="attempts"),)

    account_id: Mapped[int] = mapped_column(
        Id,
        ForeignKey("accounts.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
    attempts: Mapped[int] = mapped_column(Integer)
    failed_at: Mapped[datetime]
    retry_at: Mapped[datetime]
    error: Mapped[str] = mapped_column(String(100))
    constraint_name: Mapped[str | None] = mapped_column(String(100))


class Effect(Base):
    """A side effect that is still owed. ``attempts`` counts claims, and so names the lease.

    ``due_at`` is when it is to happen: it is owed from then on, however often it fails.
    ``deliver_after`` is when it may be tried next: a lease and the pause after a failure move it.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        Index("ix_outbox_deliver_after", "deliver_after", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, Identity(), primary_key=True)
    uid: Mapped[uuid.UUID] = mapped_column(unique=True, default=uuid.uuid4)
    kind: Mapped[str] = mapped_column(String(40))
    # The subject has no foreign key: the effects that a purge owes outlive the account.
    subject: Mapped[uuid.UUID | None] = mapped_column(index=True)
    payload: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    deliver_after: Mapped[datetime]
    # It is null in a row of the release before, until its first try: ``deliver_after`` counts then.
    due_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    last_error: Mapped[str | None] = mapped_column(String(100))


class MailPace(Base):
    """The times at which one recipient was mailed one kind, so that nobody is flooded.

    It outlives accounts, since a stranger's address can be given to one account after another, and
    is tied to none. The row is the lock of its recipient and kind.
    """

    __tablename__ = "mail_paces"

    # An HMAC of the address: an address in here would outlive the person's purge.
    recipient: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(40), primary_key=True)
    # The times as ISO 8601 in UTC, by the uid of the mail. A mail that is tried again after a crash
    # would otherwise wait for itself.
    sent: Mapped[dict[str, Any]] = mapped_column(default=dict)
    last_at: Mapped[datetime] = mapped_column(index=True)


class Receipt(Base):
    """All that remains of a purged account: an opaque id, times and counts; no personal data."""

    __tablename__ = "receipts"
    __table_args__ = (
        CheckConstraint("saved_passwords >= 0 AND files >= 0", name="counts"),
        Index(
            "ix_receipts_unscrubbed",
            "purged_at",
            sqlite_where=text("scrubbed_at IS NULL"),
            postgresql_where=text("scrubbed_at IS NULL"),
        ),
        # The brake counts the receipts of four weeks, once a sweep.
        Index("ix_receipts_purged_at", "purged_at"),
    )

    public_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    deactivated_at: Mapped[datetime]
    deactivated_by: Mapped[str] = mapped_column(String(8))
    purge_at: Mapped[datetime]
    purged_at: Mapped[datetime]
    saved_passwords: Mapped[int] = mapped_column(Integer)
    files: Mapped[int] = mapped_column(Integer)
    # Nobody writes this, because that a file was scrubbed is a fact of its own. Without the column
    # processes of the release before would fail while they are replaced.
    scrubbed_at: Mapped[datetime | None]


class SweepMark(Base):
    """A moment of the sweeps as a whole.

    ``swept`` is the end of the last one; ``paused`` is the beginning of a pause, and is missing
    while there is none.
    """

    __tablename__ = "sweep_marks"
    __table_args__ = (CheckConstraint("name IN ('swept', 'paused')", name="name"),)

    name: Mapped[str] = mapped_column(String(8), primary_key=True)
    at: Mapped[datetime]


class ClockReading(Base):
    """The database's clock as one host has seen it last, beside a clock that nobody can set.

    ``boot`` names one life of the host. ``booted_at`` is the time that the database's clock showed,
    or would have shown, when that began; ``read_at`` is when it was read.
    """

    __tablename__ = "clock_readings"

    boot: Mapped[str] = mapped_column(String(32), primary_key=True)
    booted_at: Mapped[datetime]
    read_at: Mapped[datetime]
    # While this is set in any row nothing is purged. It is the host's own mark: another host that
    # began while the clock was wrong would find that all is well. It is the time that the clock
    # should have shown, because the one that it showed may be years away.
    moved_at: Mapped[datetime | None]


class PurgeBrake(Base):
    """The one row of the brake: what was purged within the hour, and since when it holds."""

    __tablename__ = "purge_brake"
    __table_args__ = (
        CheckConstraint("id = 1", name="one_row"),
        CheckConstraint("allowed >= 0", name="allowed"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    # Counts by the minute, in ISO 8601 in UTC, and what sweeps have taken for a batch, by its uid.
    purged: Mapped[dict[str, Any]] = mapped_column(default=dict)
    reserved: Mapped[dict[str, Any]] = mapped_column(default=dict)
    looked_at: Mapped[datetime | None]
    # From then on, for an hour, nobody goes: the clock was put back.
    full_at: Mapped[datetime | None]
    held_at: Mapped[datetime | None]
    allowed: Mapped[int] = mapped_column(Integer, default=0)
    allowed_at: Mapped[datetime | None]
    # Free text of the operator. It is here because it goes when the brake lets go: in the audit
    # trail a name in it would stay.
    reason: Mapped[str | None] = mapped_column(Text)


class Generation(Base):
    """One life of this database beside its ledger; each restore from a backup begins another.

    The one with the largest number is the present one. The earlier ones are kept, so that what they
    wrote into the ledger is known; an object of one that is not here is from after the backup.
    """

    __tablename__ = "generations"
    __table_args__ = (CheckConstraint("mark >= 0", name="mark"),)

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    id: Mapped[uuid.UUID] = mapped_column(unique=True, default=uuid.uuid4)
    began_at: Mapped[datetime]
    # The high-water mark: the number of the last object of the ledger that this generation has
    # sealed. Each object carries its number, so a database with a lower mark is the older one.
    mark: Mapped[int] = mapped_column(BigInteger, default=0)
    # While it is null, a restore is being replayed, and nobody is purged by time.
    replayed_at: Mapped[datetime | None]


class KeptLine(Base):
    """A return or a hold that is in the ledger while it matters, so that a replay gives it back."""

    __tablename__ = "kept_lines"
    __table_args__ = (CheckConstraint("kind IN ('returned', 'held')", name="kind"),)

    # The uid of the effect that owes the line.
    uid: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    subject: Mapped[uuid.UUID] = mapped_column(index=True)
    kind: Mapped[str] = mapped_column(String(8))
    at: Mapped[datetime] = mapped_column(index=True)
    # The deactivation that a return has ended; without it a replay could end a later one.
    deactivated_at: Mapped[datetime | None]
    # The name of the object that holds the line; null until it is sealed. Without it nobody could
    # remove the object.
    object_name: Mapped[str | None] = mapped_column(String(120))


class AuditEvent(Base):
    """One thing that happened, by public ids; no e-mail, name, address or free text."""

    __tablename__ = "audit_events"
    __table_args__ = (
        Index("ix_audit_events_subject", "subject", "id"),
        Index("ix_audit_events_action", "action", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    action: Mapped[str] = mapped_column(String(40))
    subject: Mapped[uuid.UUID | None]
    actor: Mapped[uuid.UUID | None]
    actor_kind: Mapped[str] = mapped_column(String(8))
    # Details are counts, ids and words from closed lists: personal data in here would outlive the
    # purge.
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    # A witness holds these of the account as its event left it. A reactivation has the epoch alone,
    # so that no promise from before it counts again; any other event has none of them.
    epoch: Mapped[int | None] = mapped_column(Integer)
    deactivated_at: Mapped[datetime | None]
    purge_at: Mapped[datetime | None]


def _create_triggers(_metadata: MetaData, connection: Any, **_options: object) -> None:
    if connection.dialect.name == "sqlite":
        statements = [*SQLITE_TRIGGERS.values()]
    else:
        statements = [*POSTGRESQL_FUNCTIONS.values(), *POSTGRESQL_TRIGGERS.values()]
    for statement in statements:
        connection.exec_driver_sql(statement)


event.listen(Base.metadata, "after_create", _create_triggers)

# SQLAlchemy declares ``__table__`` as any FromClause; of a class with a ``__tablename__`` it is a
# Table.
ACCOUNTS: Table = Account.__table__  # type: ignore[assignment]
