"""Keep when was swept last, and whether purging is paused.

Locks: upgrade takes none that anybody could wait for, since the table is new; milliseconds. The
previous code neither reads nor needs it. Downgrade takes ACCESS EXCLUSIVE on this table only
(PostgreSQL) or the file's write lock (SQLite); milliseconds. It ends a pause, so stop the workers
first if there is one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
lost_by_downgrade = "whether purging is paused, and when was swept last"


def upgrade() -> None:
    op.create_table(
        "sweep_marks",
        sa.Column("name", sa.String(8), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_sweep_marks")),
        sa.CheckConstraint("name IN ('swept', 'paused')", name=op.f("ck_sweep_marks_name")),
    )


def downgrade() -> None:
    op.drop_table("sweep_marks")
