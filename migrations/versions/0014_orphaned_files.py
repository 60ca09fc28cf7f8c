"""Keep files that are nobody's in quarantine, how far the search has come, and the canary's run.

Locks: none that anybody could wait for (PostgreSQL), or the file's write lock (SQLite);
milliseconds, the tables are new. The previous code neither reads nor needs them. Downgrade takes
ACCESS EXCLUSIVE on the three tables only (PostgreSQL), or the file's write lock (SQLite);
milliseconds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None
lost_by_downgrade = (
    "since when files are nobody's, how many were deleted by schedule, and the canary's last run"
)

_TIME = sa.DateTime(timezone=True)
_NONE = sa.text("0")
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "orphaned_files",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("found_at", _TIME, nullable=False),
        sa.Column("written_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_orphaned_files")),
    )
    op.create_index("ix_orphaned_files_found_at", "orphaned_files", ["found_at"])
    op.create_table(
        "file_search",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("began_at", _TIME, nullable=True),
        sa.Column("reached", sa.String(64), nullable=True),
        sa.Column("seen", sa.BigInteger(), server_default=_NONE, nullable=False),
        sa.Column("shown", sa.BigInteger(), server_default=_NONE, nullable=False),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.Column("taken", sa.Integer(), server_default=_NONE, nullable=False),
        sa.Column("deleted", sa.BigInteger(), server_default=_NONE, nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_file_search_one_row")),
        sa.CheckConstraint(
            "seen >= 0 AND shown >= 0 AND deleted >= 0 AND taken >= 0",
            name=op.f("ck_file_search_counts"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file_search")),
    )
    op.create_table(
        "canary",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("public_id", sa.Uuid(), nullable=True),
        sa.Column("began_at", _TIME, nullable=True),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.Column("mails", _JSON, nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_canary_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_canary")),
    )


def downgrade() -> None:
    op.drop_table("canary")
    op.drop_table("file_search")
    op.drop_table("orphaned_files")
