"""Keep the promised dates in the event that makes or moves a promise; nobody is purged without.

Who waits at this moment gets a witness of what their row says.

Locks: upgrade takes ACCESS EXCLUSIVE on ``audit_events`` for the three columns (PostgreSQL), for
milliseconds, and then none that anybody could wait for, while it writes a row for each deactivated
account: a few seconds for 100,000 of them. On SQLite the file's write lock is held for all of it.
The previous code neither reads nor needs the columns; whom it deactivates meanwhile is unexplained
afterwards, see *Upgrades* in docs/operations.md. Downgrade takes ACCESS EXCLUSIVE on that table
(PostgreSQL), for milliseconds; on SQLite it rewrites the table under the file's write lock. The
events that this revision wrote stay.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
lost_by_downgrade = "what was promised to whom: an upgrade later takes the dates of the rows for it"

# Whoever waits and has no witness yet: a run that was broken off after its columns begins again.
_WITNESS = """
    INSERT INTO audit_events
      (at, action, subject, actor_kind, details, epoch, deactivated_at, purge_at)
    SELECT {now}, 'deletion.witnessed', public_id, 'system', '{{}}', epoch, deactivated_at, purge_at
    FROM accounts
    WHERE deactivated_at IS NOT NULL AND NOT EXISTS (
      SELECT 1 FROM audit_events AS earlier
      WHERE earlier.subject = accounts.public_id AND earlier.epoch IS NOT NULL
    )
"""


def upgrade() -> None:
    columns = (
        sa.Column("epoch", sa.Integer(), nullable=True),
        sa.Column("deactivated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("purge_at", sa.DateTime(timezone=True), nullable=True),
    )
    is_sqlite = op.get_context().dialect.name == "sqlite"
    for column in columns:
        op.add_column("audit_events", column, if_not_exists=None if is_sqlite else True)
    if is_sqlite:
        op.execute(_WITNESS.format(now="strftime('%Y-%m-%d %H:%M:%f000', 'now')"))
        return
    # In a transaction of its own: in that of the columns, whose lock keeps everybody from the
    # table, requests would wait for as long as this takes.
    with op.get_context().autocommit_block():
        op.execute(_WITNESS.format(now="clock_timestamp()"))


def downgrade() -> None:
    for name in ("purge_at", "deactivated_at", "epoch"):
        op.drop_column("audit_events", name)
