"""Keep what each host has seen of the database's clock, and that it has moved.

Locks: upgrade takes none that anybody could wait for, since the table is new; milliseconds. The
previous code neither reads nor needs it, and purges although the clock has moved. Downgrade takes
ACCESS EXCLUSIVE on this table only (PostgreSQL) or the file's write lock (SQLite); milliseconds. It
ends a stop by the clock, so stop the workers first if there is one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
lost_by_downgrade = "what was seen of the database's clock, and whether it has stopped purging"


def upgrade() -> None:
    op.create_table(
        "clock_readings",
        sa.Column("boot", sa.String(32), nullable=False),
        sa.Column("booted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("read_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("boot", name=op.f("pk_clock_readings")),
    )


def downgrade() -> None:
    op.drop_table("clock_readings")
