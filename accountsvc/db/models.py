"""The tables, their constraints and triggers, and the rules that one row can decide.

The database has the last word: an active account, one with an open hold, an audit event and a
receipt cannot be deleted by anybody's mistake (CHECKs, ``NO ACTION`` and triggers below).
"""

from __future__ import annotations

import hashlib
import unicodedata
import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
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
    Uuid,
    event,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .engine import UtcDateTime

# The largest id that both engines can hold.
MAX_ID = 2**63 - 1
# What the shorter of the two key columns holds.
MAX_KEY_BYTES = 600

OWNER, STAFF, OPERATOR, SYSTEM = "owner", "staff", "operator", "system"
ACTIVE, DEACTIVATED, DUE = "active", "deactivated", "due"
SWEPT, PAUSED = "swept", "paused"

# INTEGER PRIMARY KEY is what makes AUTOINCREMENT possible on SQLite.
_Id = BigInteger().with_variant(Integer, "sqlite")
_Json = JSON().with_variant(JSONB, "postgresql")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own protocol
        datetime: UtcDateTime,
        uuid.UUID: Uuid,
        dict[str, Any]: _Json,
    }


def unique_key(typed: str) -> str:
    """Return the form in which e-mails and usernames are compared.

    Normalised in Python, because ``lower()`` differs between the engines. NFKC twice: case folding
    can leave a text that is not normalised (Unicode, section 3.13, "identifier caseless match").
    """
    folded = unicodedata.normalize("NFKC", typed.strip()).casefold()
    key = unicodedata.normalize("NFKC", folded)
    # One character can become eighteen (U+FDFA): too long for the column and for an index entry. No
    # other key begins so, since folding leaves no capitals.
    encoded = key.encode(errors="surrogatepass")
    if len(encoded) > MAX_KEY_BYTES:
        return f"SHA-256:{hashlib.sha256(encoded).hexdigest()}"
    return key


class Account(Base):
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
        Index(
            "ix_accounts_purge_at",
            "purge_at",
            "id",
            sqlite_where=text("purge_at IS NOT NULL"),
            postgresql_where=text("purge_at IS NOT NULL"),
        ),
        # ``id`` is never reused: a token or a ledger line of a purged account must not meet another.
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Id, Identity(), primary_key=True)
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
    # Free text of the staff; it lives here, and not in the audit trail, because the purge deletes it.
    reason: Mapped[str | None] = mapped_column(Text)
    # Told too when the account is deactivated: an attacker's first act is to change the address.
    previous_email: Mapped[str | None] = mapped_column(String(254))
    email_changed_at: Mapped[datetime | None]
    password_changed_at: Mapped[datetime | None]

    @property
    def is_active(self) -> bool:
        return self.deactivated_at is None

    def state(self, now: datetime) -> str:
        """Return ``active``, ``deactivated`` (in the grace period) or ``due`` at *now*."""
        if self.purge_at is None:
            return ACTIVE
        return DUE if now >= self.purge_at else DEACTIVATED


class SavedPassword(Base):
    __tablename__ = "saved_passwords"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(_Id, Identity(), primary_key=True)
    # Part of the associated data: a ciphertext copied to another row does not open.
    uid: Mapped[uuid.UUID] = mapped_column(unique=True, default=uuid.uuid4)
    account_id: Mapped[int] = mapped_column(
        _Id, ForeignKey("accounts.id", ondelete="CASCADE"), index=True
    )
    ciphertext: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class VaultKey(Base):
    """The key of one account's saved passwords, wrapped; without it their ciphertext is noise."""

    __tablename__ = "vault_keys"

    account_id: Mapped[int] = mapped_column(
        _Id,
        ForeignKey("accounts.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
    wrapped_key: Mapped[bytes] = mapped_column(LargeBinary)
    # Which of VAULT_KEYS wrapped it: the first bytes of that key's SHA-256.
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

    id: Mapped[int] = mapped_column(_Id, Identity(), primary_key=True)
    # NO ACTION: an open hold makes the account undeletable; the purge removes released ones itself.
    account_id: Mapped[int] = mapped_column(_Id, ForeignKey("accounts.id"), index=True)
    reason: Mapped[str] = mapped_column(Text)
    placed_at: Mapped[datetime]
    placed_by: Mapped[uuid.UUID | None]
    placed_by_kind: Mapped[str] = mapped_column(String(8))
    released_at: Mapped[datetime | None]
    released_by: Mapped[uuid.UUID | None]


class PurgeFailure(Base):
    """Why a due account could not be purged; no text of the error, which may quote personal data."""

    __tablename__ = "purge_failures"
    __table_args__ = (CheckConstraint("attempts >= 1", name="attempts"),)

    account_id: Mapped[int] = mapped_column(
        _Id,
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
    """A side effect still owed. ``attempts`` counts claims and so names the current lease."""

    __tablename__ = "outbox"
    __table_args__ = (
        Index("ix_outbox_deliver_after", "deliver_after", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Id, Identity(), primary_key=True)
    uid: Mapped[uuid.UUID] = mapped_column(unique=True, default=uuid.uuid4)
    kind: Mapped[str] = mapped_column(String(40))
    # No foreign key: what a purge owes must outlive the account.
    subject: Mapped[uuid.UUID | None] = mapped_column(index=True)
    payload: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime]
    deliver_after: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    last_error: Mapped[str | None] = mapped_column(String(100))


class Receipt(Base):
    """What remains of a purged account: an opaque id, times and counts; no personal data."""

    __tablename__ = "receipts"
    __table_args__ = (
        CheckConstraint("saved_passwords >= 0 AND files >= 0", name="counts"),
        Index(
            "ix_receipts_unscrubbed",
            "purged_at",
            sqlite_where=text("scrubbed_at IS NULL"),
            postgresql_where=text("scrubbed_at IS NULL"),
        ),
    )

    public_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    deactivated_at: Mapped[datetime]
    deactivated_by: Mapped[str] = mapped_column(String(8))
    purge_at: Mapped[datetime]
    purged_at: Mapped[datetime]
    saved_passwords: Mapped[int] = mapped_column(Integer)
    files: Mapped[int] = mapped_column(Integer)
    # SQLite only: when the freed pages of the file had become unreadable.
    scrubbed_at: Mapped[datetime | None]


class SweepMark(Base):
    """A moment of the sweeps as a whole: ``swept`` is the last one, ``paused`` is there while nobody may purge."""

    __tablename__ = "sweep_marks"
    __table_args__ = (CheckConstraint("name IN ('swept', 'paused')", name="name"),)

    name: Mapped[str] = mapped_column(String(8), primary_key=True)
    at: Mapped[datetime]


class AuditEvent(Base):
    """What happened to whom, by public ids; no e-mail, name, address or free text."""

    __tablename__ = "audit_events"
    __table_args__ = (
        Index("ix_audit_events_subject", "subject", "id"),
        Index("ix_audit_events_action", "action", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Id, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    action: Mapped[str] = mapped_column(String(40))
    subject: Mapped[uuid.UUID | None]
    actor: Mapped[uuid.UUID | None]
    actor_kind: Mapped[str] = mapped_column(String(8))
    # A few counts, ids and words from closed lists.
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)


# Triggers, as they are now; the migrations have frozen copies, and a test compares the outcome.

_RECEIPT_FACTS = (
    "public_id", "deactivated_at", "deactivated_by", "purge_at", "purged_at", "saved_passwords", "files",
)  # fmt: skip

SQLITE_TRIGGERS = {
    "accounts_refuse_active_delete": """
        CREATE TRIGGER accounts_refuse_active_delete BEFORE DELETE ON accounts
        WHEN OLD.deactivated_at IS NULL
        BEGIN SELECT RAISE(ABORT, 'an active account cannot be deleted'); END""",
    # The foreign key says the same, but only to a connection that switched foreign keys on.
    "accounts_refuse_held_delete": """
        CREATE TRIGGER accounts_refuse_held_delete BEFORE DELETE ON accounts
        WHEN EXISTS (SELECT 1 FROM legal_holds WHERE account_id = OLD.id AND released_at IS NULL)
        BEGIN SELECT RAISE(ABORT, 'an account with an open hold cannot be deleted'); END""",
    # INSERT OR REPLACE fires delete triggers only on a connection with recursive_triggers.
    "audit_events_refuse_replace": """
        CREATE TRIGGER audit_events_refuse_replace BEFORE INSERT ON audit_events
        WHEN EXISTS (SELECT 1 FROM audit_events WHERE id = NEW.id)
        BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END""",
    "audit_events_refuse_update": """
        CREATE TRIGGER audit_events_refuse_update BEFORE UPDATE ON audit_events
        BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END""",
    "audit_events_refuse_delete": """
        CREATE TRIGGER audit_events_refuse_delete BEFORE DELETE ON audit_events
        BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END""",
    "receipts_refuse_replace": """
        CREATE TRIGGER receipts_refuse_replace BEFORE INSERT ON receipts
        WHEN EXISTS (SELECT 1 FROM receipts WHERE public_id = NEW.public_id)
        BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END""",
    "receipts_refuse_update": f"""
        CREATE TRIGGER receipts_refuse_update BEFORE UPDATE ON receipts
        WHEN OLD.scrubbed_at IS NOT NULL OR NEW.scrubbed_at IS NULL
          OR {" OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _RECEIPT_FACTS)}
        BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END""",
    "receipts_refuse_delete": """
        CREATE TRIGGER receipts_refuse_delete BEFORE DELETE ON receipts
        BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END""",
}

POSTGRESQL_FUNCTIONS = {
    "accountsvc_refuse": """
        CREATE FUNCTION accountsvc_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          RAISE EXCEPTION USING
            MESSAGE = TG_ARGV[0], ERRCODE = 'restrict_violation', CONSTRAINT = TG_NAME;
        END $$""",
}

POSTGRESQL_TRIGGERS = {
    "accounts_refuse_active_delete": """
        CREATE TRIGGER accounts_refuse_active_delete BEFORE DELETE ON accounts
        FOR EACH ROW WHEN (OLD.deactivated_at IS NULL)
        EXECUTE FUNCTION accountsvc_refuse('an active account cannot be deleted')""",
    "accounts_refuse_truncate": """
        CREATE TRIGGER accounts_refuse_truncate BEFORE TRUNCATE ON accounts
        FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('accounts cannot be truncated')""",
    "audit_events_refuse_change": """
        CREATE TRIGGER audit_events_refuse_change BEFORE UPDATE OR DELETE ON audit_events
        FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('audit events are append-only')""",
    "audit_events_refuse_truncate": """
        CREATE TRIGGER audit_events_refuse_truncate BEFORE TRUNCATE ON audit_events
        FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('audit events are append-only')""",
    "receipts_refuse_update": f"""
        CREATE TRIGGER receipts_refuse_update BEFORE UPDATE ON receipts
        FOR EACH ROW WHEN (OLD.scrubbed_at IS NOT NULL OR NEW.scrubbed_at IS NULL
          OR {" OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in _RECEIPT_FACTS)})
        EXECUTE FUNCTION accountsvc_refuse('receipts are append-only')""",
    "receipts_refuse_delete": """
        CREATE TRIGGER receipts_refuse_delete BEFORE DELETE ON receipts
        FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('receipts are append-only')""",
    "receipts_refuse_truncate": """
        CREATE TRIGGER receipts_refuse_truncate BEFORE TRUNCATE ON receipts
        FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('receipts are append-only')""",
}


def _create_triggers(_metadata: MetaData, connection: Any, **_options: object) -> None:
    if connection.dialect.name == "sqlite":
        statements = [*SQLITE_TRIGGERS.values()]
    else:
        statements = [*POSTGRESQL_FUNCTIONS.values(), *POSTGRESQL_TRIGGERS.values()]
    for statement in statements:
        connection.exec_driver_sql(statement)


event.listen(Base.metadata, "after_create", _create_triggers)

ACCOUNTS: Table = Account.__table__  # type: ignore[assignment]
