"""Keep what becomes true of a purge after its receipt in rows of their own.

Locks: none that anybody could wait for (PostgreSQL), or the file's write lock (SQLite);
milliseconds, the table is new. The previous code neither reads nor needs it. Downgrade takes ACCESS
EXCLUSIVE on the table only (PostgreSQL), or the file's write lock (SQLite); milliseconds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None
lost_by_downgrade = "when files were absent, the ledger written, people told and purges completed"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

_FACTS = (
    "fact IN ('files_absent', 'ledger_written', 'told', 'not_told', 'scrubbed', 'completed',"
    " 'verified', 'residue_found', 'erased_again')"
)
_ONCE = sa.text("fact IN ('files_absent', 'ledger_written', 'scrubbed', 'completed')")
_TOLD = sa.text("fact IN ('told', 'not_told')")

_SQLITE_TRIGGERS = (
    """
    CREATE TRIGGER receipt_facts_refuse_replace BEFORE INSERT ON receipt_facts
    WHEN EXISTS (SELECT 1 FROM receipt_facts WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'facts of receipts are append-only'); END
    """,
    """
    CREATE TRIGGER receipt_facts_refuse_update BEFORE UPDATE ON receipt_facts
    BEGIN SELECT RAISE(ABORT, 'facts of receipts are append-only'); END
    """,
    """
    CREATE TRIGGER receipt_facts_refuse_delete BEFORE DELETE ON receipt_facts
    BEGIN SELECT RAISE(ABORT, 'facts of receipts are append-only'); END
    """,
)
_POSTGRESQL_TRIGGERS = (
    """
    CREATE TRIGGER receipt_facts_refuse_change BEFORE UPDATE OR DELETE ON receipt_facts
    FOR EACH ROW EXECUTE FUNCTION accountsvc_refuse('facts of receipts are append-only')
    """,
    """
    CREATE TRIGGER receipt_facts_refuse_truncate BEFORE TRUNCATE ON receipt_facts
    FOR EACH STATEMENT EXECUTE FUNCTION accountsvc_refuse('facts of receipts are append-only')
    """,
)


def upgrade() -> None:
    op.create_table(
        "receipt_facts",
        sa.Column("id", _ID, sa.Identity(), nullable=False),
        sa.Column("public_id", sa.Uuid(), nullable=False),
        sa.Column("fact", sa.String(16), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("details", _JSON, nullable=False),
        sa.CheckConstraint(_FACTS, name=op.f("ck_receipt_facts_fact")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_receipt_facts")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_receipt_facts_public_id", "receipt_facts", ["public_id", "id"])
    for name, columns, where in (
        ("uq_receipt_facts_once", ["public_id", "fact"], _ONCE),
        ("uq_receipt_facts_told", ["public_id"], _TOLD),
    ):
        op.create_index(
            name,
            "receipt_facts",
            columns,
            unique=True,
            sqlite_where=where,
            postgresql_where=where,
        )
    is_sqlite = op.get_context().dialect.name == "sqlite"
    for statement in _SQLITE_TRIGGERS if is_sqlite else _POSTGRESQL_TRIGGERS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("receipt_facts")
