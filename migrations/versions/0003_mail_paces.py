"""Keep for a day when a recipient was mailed, by an HMAC of the address and the kind of mail.

Locks: upgrade takes none that anybody could wait for, since the table is new; milliseconds. The
previous code neither reads nor needs it, and sends without a pace meanwhile. Downgrade takes ACCESS
EXCLUSIVE on this table only (PostgreSQL) or the file's write lock (SQLite); milliseconds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
lost_by_downgrade = "when a recipient was mailed within the last day: mails begin at once again"


def upgrade() -> None:
    op.create_table(
        "mail_paces",
        sa.Column("recipient", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("sent", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("recipient", "kind", name=op.f("pk_mail_paces")),
    )
    op.create_index(op.f("ix_mail_paces_last_at"), "mail_paces", ["last_at"])


def downgrade() -> None:
    op.drop_table("mail_paces")
