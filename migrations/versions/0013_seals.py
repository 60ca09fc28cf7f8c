"""Keep the seals of the trail, and let events go that a seal says were pruned.

Locks: none on the new table that anybody could wait for. ACCESS EXCLUSIVE on ``audit_events``
while its trigger is replaced (PostgreSQL), milliseconds, behind at most 5 s of waiting; SQLite: the
file's write lock, milliseconds. The previous code neither reads nor needs it: it deletes no event.
Downgrade the same.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None
lost_by_downgrade = "the seals of the trail; their heads stay in the ledger"

_COLUMNS = (
    "number",
    "chain",
    "sealed_at",
    "first_event",
    "last_event",
    "first_fact",
    "last_fact",
    "entries",
    "header",
    "head",
    "signature",
)
_IS_NOT = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _COLUMNS)
_DISTINCT = " OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in _COLUMNS)

_SQLITE = (
    "DROP TRIGGER audit_events_refuse_delete",
    """
    CREATE TRIGGER audit_events_refuse_delete BEFORE DELETE ON audit_events
    WHEN NOT EXISTS (SELECT 1 FROM seals WHERE pruned_at IS NOT NULL
      AND first_event <= OLD.id AND last_event >= OLD.id)
    BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END
    """,
    """
    CREATE TRIGGER seals_refuse_replace BEFORE INSERT ON seals
    WHEN EXISTS (SELECT 1 FROM seals WHERE number = NEW.number)
    BEGIN SELECT RAISE(ABORT, 'seals are append-only'); END
    """,
    f"""
    CREATE TRIGGER seals_refuse_update BEFORE UPDATE ON seals
    WHEN OLD.pruned_at IS NOT NULL OR NEW.pruned_at IS NULL
      OR {_IS_NOT}
    BEGIN SELECT RAISE(ABORT, 'seals are append-only'); END
    """,
    """
    CREATE TRIGGER seals_refuse_delete BEFORE DELETE ON seals
    BEGIN SELECT RAISE(ABORT, 'seals are append-only'); END
    """,
)
_SQLITE_BACK = (
    "DROP TRIGGER audit_events_refuse_delete",
    """
    CREATE TRIGGER audit_events_refuse_delete BEFORE DELETE ON audit_events
    BEGIN SELECT RAISE(ABORT, 'audit events are append-only'); END
    """,
)
_POSTGRESQL = (
    """
    CREATE FUNCTION accountsvc_refuse_unpruned() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          IF EXISTS (SELECT 1 FROM seals WHERE pruned_at IS NOT NULL
            AND first_event <= OLD.id AND last_event >= OLD.id) THEN
            RETURN OLD;
          END IF;
          RAISE EXCEPTION USING
            MESSAGE = TG_ARGV[0], ERRCODE = 'restrict_violation', CONSTRAINT = TG_NAME;
        END $$
    """,
    f"""
    CREATE TRIGGER seals_refuse_update BEFORE UPDATE ON seals
    FOR EACH ROW WHEN (OLD.pruned_at IS NOT NULL OR NEW.pruned_at IS NULL OR {_DISTINCT})
    EXECUTE FUNCTION accountsvc_refuse('seals are append-only')
    """,
    """
    CREATE TRIGGER seals_refuse_delete BEFORE DELETE ON seals
    FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('seals are append-only')
    """,
    """
    CREATE TRIGGER seals_refuse_truncate BEFORE TRUNCATE ON seals
    FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('seals are append-only')
    """,
    "DROP TRIGGER audit_events_refuse_change ON audit_events",
    """
    CREATE TRIGGER audit_events_refuse_change BEFORE UPDATE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('audit events are append-only')
    """,
    """
    CREATE TRIGGER audit_events_refuse_delete BEFORE DELETE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse_unpruned('audit events are append-only')
    """,
)
_POSTGRESQL_BACK = (
    "DROP TRIGGER audit_events_refuse_delete ON audit_events",
    "DROP TRIGGER audit_events_refuse_change ON audit_events",
    """
    CREATE TRIGGER audit_events_refuse_change BEFORE UPDATE OR DELETE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('audit events are append-only')
    """,
    "DROP FUNCTION accountsvc_refuse_unpruned()",
)


def _is_sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def upgrade() -> None:
    op.create_table(
        "seals",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("chain", sa.Uuid(), nullable=False),
        sa.Column("sealed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("first_event", sa.BigInteger(), nullable=False),
        sa.Column("last_event", sa.BigInteger(), nullable=False),
        sa.Column("first_fact", sa.BigInteger(), nullable=False),
        sa.Column("last_fact", sa.BigInteger(), nullable=False),
        sa.Column("entries", sa.LargeBinary(), nullable=False),
        sa.Column("header", sa.Text(), nullable=False),
        sa.Column("head", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(88), nullable=False),
        sa.Column("pruned_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("number >= 1", name=op.f("ck_seals_number")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_seals")),
    )
    op.create_index("ix_seals_last_event", "seals", ["last_event"])
    op.create_index("ix_seals_last_fact", "seals", ["last_fact"])
    for statement in _SQLITE if _is_sqlite() else _POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    for statement in _SQLITE_BACK if _is_sqlite() else _POSTGRESQL_BACK:
        op.execute(statement)
    op.drop_table("seals")
