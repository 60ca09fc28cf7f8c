"""Create the tables, with their constraints, indexes and triggers.

Locks: upgrade takes none that anybody could wait for, since all tables are new; milliseconds.
Downgrade takes ACCESS EXCLUSIVE on every table (PostgreSQL) or the file's write lock (SQLite) until
it commits; milliseconds, and everything is gone afterwards, receipts and audit events too.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
lost_by_downgrade = "every account with all that belongs to it, every receipt and the audit trail"

# SQLite numbers rows only in a column that is declared INTEGER.
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
Moment = sa.DateTime(timezone=True)

TABLES = (
    "accounts", "audit_events", "outbox", "receipts",
    "legal_holds", "purge_failures", "saved_passwords", "vault_keys",
)  # fmt: skip

SQLITE_TRIGGERS = (
    """
    CREATE TRIGGER accounts_refuse_active_delete BEFORE DELETE ON accounts
    WHEN OLD.deactivated_at IS NULL
    BEGIN SELECT RAISE(ABORT, 'an active account cannot be deleted'); END
    """,
    """
    CREATE TRIGGER accounts_refuse_held_delete BEFORE DELETE ON accounts
    WHEN EXISTS (SELECT 1 FROM legal_holds WHERE account_id = OLD.id AND released_at IS NULL)
    BEGIN SELECT RAISE(ABORT, 'an account with an open hold cannot be deleted'); END
    """,
    """
    CREATE TRIGGER audit_events_refuse_replace BEFORE INSERT ON audit_events
    WHEN EXISTS (SELECT 1 FROM audit_events WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END
    """,
    """
    CREATE TRIGGER audit_events_refuse_update BEFORE UPDATE ON audit_events
    BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END
    """,
    """
    CREATE TRIGGER audit_events_refuse_delete BEFORE DELETE ON audit_events
    BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END
    """,
    """
    CREATE TRIGGER receipts_refuse_replace BEFORE INSERT ON receipts
    WHEN EXISTS (SELECT 1 FROM receipts WHERE public_id = NEW.public_id)
    BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END
    """,
    """
    CREATE TRIGGER receipts_refuse_update BEFORE UPDATE ON receipts
    WHEN OLD.scrubbed_at IS NOT NULL OR NEW.scrubbed_at IS NULL
      OR OLD.public_id IS NOT NEW.public_id
      OR OLD.deactivated_at IS NOT NEW.deactivated_at
      OR OLD.deactivated_by IS NOT NEW.deactivated_by
      OR OLD.purge_at IS NOT NEW.purge_at
      OR OLD.purged_at IS NOT NEW.purged_at
      OR OLD.saved_passwords IS NOT NEW.saved_passwords
      OR OLD.files IS NOT NEW.files
    BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END
    """,
    """
    CREATE TRIGGER receipts_refuse_delete BEFORE DELETE ON receipts
    BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END
    """,
)

POSTGRESQL_FUNCTION = """
        CREATE FUNCTION accountsvc_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          RAISE EXCEPTION USING
            MESSAGE = TG_ARGV[0], ERRCODE = 'restrict_violation', CONSTRAINT = TG_NAME;
        END $$"""

POSTGRESQL_TRIGGERS = (
    """
    CREATE TRIGGER accounts_refuse_active_delete BEFORE DELETE ON accounts
    FOR EACH ROW WHEN (OLD.deactivated_at IS NULL)
    EXECUTE FUNCTION accountsvc_refuse('an active account cannot be deleted')
    """,
    """
    CREATE TRIGGER accounts_refuse_truncate BEFORE TRUNCATE ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('accounts cannot be truncated')
    """,
    """
    CREATE TRIGGER audit_events_refuse_change BEFORE UPDATE OR DELETE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('audit events are append-only')
    """,
    """
    CREATE TRIGGER audit_events_refuse_truncate BEFORE TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('audit events are append-only')
    """,
    """
    CREATE TRIGGER receipts_refuse_update BEFORE UPDATE ON receipts
    FOR EACH ROW WHEN (OLD.scrubbed_at IS NOT NULL OR NEW.scrubbed_at IS NULL
      OR OLD.public_id IS DISTINCT FROM NEW.public_id
      OR OLD.deactivated_at IS DISTINCT FROM NEW.deactivated_at
      OR OLD.deactivated_by IS DISTINCT FROM NEW.deactivated_by
      OR OLD.purge_at IS DISTINCT FROM NEW.purge_at
      OR OLD.purged_at IS DISTINCT FROM NEW.purged_at
      OR OLD.saved_passwords IS DISTINCT FROM NEW.saved_passwords
      OR OLD.files IS DISTINCT FROM NEW.files)
    EXECUTE FUNCTION accountsvc_refuse('receipts are append-only')
    """,
    """
    CREATE TRIGGER receipts_refuse_delete BEFORE DELETE ON receipts
    FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('receipts are append-only')
    """,
    """
    CREATE TRIGGER receipts_refuse_truncate BEFORE TRUNCATE ON receipts
    FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('receipts are append-only')
    """,
)


def upgrade() -> None:
    create_accounts()
    create_what_refers_to_accounts()
    create_what_outlives_accounts()
    if op.get_context().dialect.name == "sqlite":
        for statement in SQLITE_TRIGGERS:
            op.execute(statement)
    else:
        op.execute(POSTGRESQL_FUNCTION)
        for statement in POSTGRESQL_TRIGGERS:
            op.execute(statement)


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION accountsvc_refuse()")


def create_accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", Id, sa.Identity(), nullable=False),
        sa.Column("public_id", sa.Uuid(), nullable=False),
        sa.Column("username", sa.String(150), nullable=False),
        sa.Column("username_key", sa.String(600), nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("email_key", sa.String(1016), nullable=False),
        sa.Column("first_name", sa.String(150), nullable=False),
        sa.Column("last_name", sa.String(150), nullable=False),
        sa.Column("number_phone", sa.String(20), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("is_staff", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("epoch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("avatar_key", sa.String(64)),
        sa.Column("joined_at", Moment, nullable=False),
        sa.Column("deactivated_at", Moment),
        sa.Column("purge_at", Moment),
        sa.Column("deactivated_by", sa.String(8)),
        sa.Column("reason", sa.Text()),
        sa.Column("previous_email", sa.String(254)),
        sa.Column("email_changed_at", Moment),
        sa.Column("password_changed_at", Moment),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.CheckConstraint(
            "(deactivated_at IS NULL) = (purge_at IS NULL)"
            " AND (deactivated_at IS NULL) = (deactivated_by IS NULL)",
            name=op.f("ck_accounts_deactivation_whole"),
        ),
        sa.CheckConstraint(
            "purge_at >= deactivated_at",
            name=op.f("ck_accounts_purge_after_deactivation"),
        ),
        sa.CheckConstraint(
            "deactivated_by IN ('owner', 'staff', 'operator')",
            name=op.f("ck_accounts_deactivated_by"),
        ),
        sa.CheckConstraint(
            "deactivated_at IS NOT NULL OR reason IS NULL",
            name=op.f("ck_accounts_reason_deactivated"),
        ),
        sa.UniqueConstraint("public_id", name=op.f("uq_accounts_public_id")),
        sa.UniqueConstraint("username_key", name=op.f("uq_accounts_username_key")),
        sa.UniqueConstraint("email_key", name=op.f("uq_accounts_email_key")),
        sa.UniqueConstraint("avatar_key", name=op.f("uq_accounts_avatar_key")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_accounts_purge_at"),
        "accounts",
        ["purge_at", "id"],
        sqlite_where=sa.text("purge_at IS NOT NULL"),
        postgresql_where=sa.text("purge_at IS NOT NULL"),
    )


def create_what_refers_to_accounts() -> None:
    op.create_table(
        "saved_passwords",
        sa.Column("id", Id, sa.Identity(), nullable=False),
        sa.Column("uid", sa.Uuid(), nullable=False),
        sa.Column("account_id", Id, nullable=False),
        sa.Column("ciphertext", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_passwords")),
        sa.UniqueConstraint("uid", name=op.f("uq_saved_passwords_uid")),
        account_of("saved_passwords", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_saved_passwords_account_id"), "saved_passwords", ["account_id"])
    op.create_table(
        "vault_keys",
        sa.Column("account_id", Id, autoincrement=False, nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.Column("wrapped_by", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_vault_keys")),
        account_of("vault_keys", ondelete="CASCADE"),
    )
    op.create_index(op.f("ix_vault_keys_wrapped_by"), "vault_keys", ["wrapped_by"])
    op.create_table(
        "legal_holds",
        sa.Column("id", Id, sa.Identity(), nullable=False),
        sa.Column("account_id", Id, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("placed_at", Moment, nullable=False),
        sa.Column("placed_by", sa.Uuid()),
        sa.Column("placed_by_kind", sa.String(8), nullable=False),
        sa.Column("released_at", Moment),
        sa.Column("released_by", sa.Uuid()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_legal_holds")),
        sa.CheckConstraint(
            "placed_by_kind IN ('staff', 'operator')",
            name=op.f("ck_legal_holds_placed_by_kind"),
        ),
        sa.CheckConstraint(
            "released_at IS NOT NULL OR released_by IS NULL",
            name=op.f("ck_legal_holds_release_whole"),
        ),
        account_of("legal_holds", ondelete=None),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_legal_holds_account_id"), "legal_holds", ["account_id"])
    op.create_index(
        op.f("ix_legal_holds_open"),
        "legal_holds",
        ["account_id"],
        sqlite_where=sa.text("released_at IS NULL"),
        postgresql_where=sa.text("released_at IS NULL"),
    )
    op.create_table(
        "purge_failures",
        sa.Column("account_id", Id, autoincrement=False, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failed_at", Moment, nullable=False),
        sa.Column("retry_at", Moment, nullable=False),
        sa.Column("error", sa.String(100), nullable=False),
        sa.Column("constraint_name", sa.String(100)),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_purge_failures")),
        sa.CheckConstraint("attempts >= 1", name=op.f("ck_purge_failures_attempts")),
        account_of("purge_failures", ondelete="CASCADE"),
    )


def account_of(table: str, *, ondelete: str | None) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["account_id"],
        ["accounts.id"],
        name=op.f(f"fk_{table}_account_id"),
        ondelete=ondelete,
    )


def create_what_outlives_accounts() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", Id, sa.Identity(), nullable=False),
        sa.Column("uid", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("subject", sa.Uuid()),
        sa.Column("payload", Json, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("deliver_after", Moment, nullable=False),
        sa.Column("expires_at", Moment),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_error", sa.String(100)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("uid", name=op.f("uq_outbox_uid")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_outbox_deliver_after"), "outbox", ["deliver_after", "id"])
    op.create_index(op.f("ix_outbox_subject"), "outbox", ["subject"])
    op.create_table(
        "receipts",
        sa.Column("public_id", sa.Uuid(), nullable=False),
        sa.Column("deactivated_at", Moment, nullable=False),
        sa.Column("deactivated_by", sa.String(8), nullable=False),
        sa.Column("purge_at", Moment, nullable=False),
        sa.Column("purged_at", Moment, nullable=False),
        sa.Column("saved_passwords", sa.Integer(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("scrubbed_at", Moment),
        sa.PrimaryKeyConstraint("public_id", name=op.f("pk_receipts")),
        sa.CheckConstraint("saved_passwords >= 0 AND files >= 0", name=op.f("ck_receipts_counts")),
    )
    op.create_index(
        op.f("ix_receipts_unscrubbed"),
        "receipts",
        ["purged_at"],
        sqlite_where=sa.text("scrubbed_at IS NULL"),
        postgresql_where=sa.text("scrubbed_at IS NULL"),
    )
    op.create_table(
        "audit_events",
        sa.Column("id", Id, sa.Identity(), nullable=False),
        sa.Column("at", Moment, nullable=False),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("subject", sa.Uuid()),
        sa.Column("actor", sa.Uuid()),
        sa.Column("actor_kind", sa.String(8), nullable=False),
        sa.Column("details", Json, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_audit_events_at"), "audit_events", ["at"])
    op.create_index(op.f("ix_audit_events_subject"), "audit_events", ["subject", "id"])
    op.create_index(op.f("ix_audit_events_action"), "audit_events", ["action", "id"])
