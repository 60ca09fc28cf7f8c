"""Say of each effect when it was first to happen, beside when it may be tried next.

Locks: ACCESS EXCLUSIVE on the outbox for a column without a default (PostgreSQL), milliseconds;
then ROW EXCLUSIVE while the rows that are owed get their time, about a second for each hundred
thousand. SQLite: the file's write lock meanwhile, about the same. The previous code neither reads
nor needs it: it leaves the column null in what it writes, and such a row counts by
``deliver_after`` until its first try. Downgrade takes ACCESS EXCLUSIVE on the outbox, milliseconds
(PostgreSQL), or rebuilds the table under the file's write lock (SQLite).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from accountsvc.db import migration

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

lost_by_downgrade = "since when what has failed is owed"

# What was tried in vain is owed since it was recorded. A reminder was recorded weeks before its
# day, and is due when it is to be tried.
_DUE = (
    "UPDATE outbox SET due_at = CASE"
    " WHEN last_error IS NULL OR kind = 'mail.reminder' THEN deliver_after ELSE created_at END"
    " WHERE due_at IS NULL"
)


def upgrade() -> None:
    due_at = sa.Column("due_at", sa.DateTime(timezone=True), nullable=True)
    if op.get_context().dialect.name == "sqlite":
        op.add_column("outbox", due_at)
        op.execute(_DUE)
        return
    # The step may have been done by an attempt that was broken off behind it.
    op.add_column("outbox", due_at, if_not_exists=True)
    # In a transaction of its own: in that of the column, whose lock keeps everybody from the table,
    # requests would wait for as long as this takes.
    with op.get_context().autocommit_block():
        op.execute(_DUE)


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        with migration.altered("outbox") as batch:
            batch.drop_column("due_at")
        return
    op.drop_column("outbox", "due_at")
