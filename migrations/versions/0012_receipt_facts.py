"""Keep what becomes true of a purge after its receipt in rows of their own.

Locks: PostgreSQL: ACCESS EXCLUSIVE on the receipts to exchange a trigger, for milliseconds, and as
long ACCESS SHARE to read who is scrubbed, about a second for each hundred thousand; the table is
new. SQLite: the file's write lock, about the same. The previous code neither reads nor needs the
table. On SQLite it would date a receipt as scrubbed, which the trigger refuses: its task logs that
and goes on until it is replaced. Downgrade takes ACCESS EXCLUSIVE on both tables (PostgreSQL), or
the file's write lock (SQLite); milliseconds.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

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

# A receipt is written once. Before, one column of it could be set later.
_COLUMNS = (
    "public_id",
    "deactivated_at",
    "deactivated_by",
    "purge_at",
    "purged_at",
    "saved_passwords",
    "files",
)
_SCRUBBED = "OLD.scrubbed_at IS NOT NULL OR NEW.scrubbed_at IS NULL"


def _sqlite_update(when: str = "") -> str:
    return f"""
    CREATE TRIGGER receipts_refuse_update BEFORE UPDATE ON receipts
    {when}
    BEGIN SELECT RAISE(ABORT, 'receipts are append-only'); END
    """


def _postgresql_update(when: str = "") -> str:
    return f"""
    CREATE TRIGGER receipts_refuse_update BEFORE UPDATE ON receipts
    FOR EACH ROW {when}
    EXECUTE FUNCTION accountsvc_refuse('receipts are append-only')
    """


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
    op.execute(
        "INSERT INTO receipt_facts (public_id, fact, at, details)"
        " SELECT public_id, 'scrubbed', scrubbed_at, '{}' FROM receipts"
        " WHERE scrubbed_at IS NOT NULL ORDER BY scrubbed_at, public_id"
    )
    if is_sqlite:
        op.execute("DROP TRIGGER receipts_refuse_update")
        op.execute(_sqlite_update())
        _have_the_rest_scrubbed()
    else:
        op.execute("DROP TRIGGER receipts_refuse_update ON receipts")
        op.execute(_postgresql_update())


def _have_the_rest_scrubbed() -> None:
    """Owe ``purge.finish`` to the purges of which the file may still hold something."""
    connection = op.get_bind()
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    waiting = connection.exec_driver_sql(
        "SELECT public_id FROM receipts WHERE scrubbed_at IS NULL ORDER BY purged_at, public_id"
    ).all()
    for (public_id,) in waiting:
        connection.exec_driver_sql(
            "INSERT INTO outbox (uid, kind, subject, payload, created_at, deliver_after, due_at,"
            " attempts) VALUES (?, 'purge.finish', ?, ?, ?, ?, ?, 0)",
            (
                uuid.uuid4().hex,
                public_id,
                '{"account_id": null, "files": [], "scrubbed": false}',
                now,
                now,
                now,
            ),
        )


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        others = " OR ".join(f"OLD.{name} IS NOT NEW.{name}" for name in _COLUMNS)
        op.execute("DROP TRIGGER receipts_refuse_update")
        op.execute(_sqlite_update(f"WHEN {_SCRUBBED} OR {others}"))
    else:
        others = " OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in _COLUMNS)
        op.execute("DROP TRIGGER receipts_refuse_update ON receipts")
        op.execute(_postgresql_update(f"WHEN ({_SCRUBBED} OR {others})"))
    # The code before has no handler for it, and dates receipts itself.
    op.execute("DELETE FROM outbox WHERE kind = 'purge.finish'")
    op.drop_table("receipt_facts")
