"""Keep what was purged within the hour, for the brake, and find receipts by when that was.

Locks: the index is made CONCURRENTLY (PostgreSQL), which waits for older transactions and blocks
nobody; a second for each million receipts. SQLite: the file's write lock for as long. The table is
new; milliseconds. The previous code neither reads nor needs it, and purges without a brake
meanwhile. Downgrade takes ACCESS EXCLUSIVE on the table only, and drops the index CONCURRENTLY
(PostgreSQL), or the file's write lock (SQLite); milliseconds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from accountsvc.db import migration

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
lost_by_downgrade = "how many were purged within the hour, and whether the brake holds"


def upgrade() -> None:
    # The index comes first: it commits what stands before it, and is made anew by a second attempt.
    migration.create_index(op.f("ix_receipts_purged_at"), "receipts", ["purged_at"])
    json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.create_table(
        "purge_brake",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("purged", json, nullable=False),
        sa.Column("reserved", json, nullable=False),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("full_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("held_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("allowed", sa.Integer(), nullable=False),
        sa.Column("allowed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_purge_brake_one_row")),
        sa.CheckConstraint("allowed >= 0", name=op.f("ck_purge_brake_allowed")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_purge_brake")),
    )


def downgrade() -> None:
    op.drop_table("purge_brake")
    migration.drop_index(op.f("ix_receipts_purged_at"), "receipts")
