"""Keep another e-mail address on its account's row until its mailbox and the password agree.

Locks: ACCESS EXCLUSIVE on accounts for columns without a default and a constraint that is not
checked yet (PostgreSQL), milliseconds; then SHARE UPDATE EXCLUSIVE while it is checked, which keeps
nobody from reading or writing, a second for each million accounts; the index is made CONCURRENTLY.
SQLite: the table is rebuilt under the file's write lock, a second for each hundred thousand
accounts. The previous code neither reads nor needs any of it, and changes an address at once
meanwhile. Downgrade takes ACCESS EXCLUSIVE on accounts and ROW EXCLUSIVE on the outbox
(PostgreSQL), milliseconds, or rebuilds the table as before (SQLite).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from accountsvc.db import migration

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None
lost_by_downgrade = (
    "the addresses that wait to be confirmed: whoever asked for one has to ask again"
)

_WHOLE = (
    "(pending_email IS NULL) = (pending_email_at IS NULL)"
    " AND (pending_email IS NULL) = (pending_epoch IS NULL)"
)
_CHECK = "ck_accounts_pending_whole"
_INDEX = "ix_accounts_pending_email_at"


def upgrade() -> None:
    columns = (
        sa.Column("pending_email", sa.String(254), nullable=True),
        sa.Column("pending_email_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pending_epoch", sa.Integer(), nullable=True),
    )
    if op.get_context().dialect.name == "sqlite":
        with migration.altered("accounts") as batch:
            for column in columns:
                batch.add_column(column)
            batch.create_check_constraint(op.f(_CHECK), _WHOLE)
    else:
        # Each step may have been done by an attempt that was broken off behind it.
        for column in columns:
            op.add_column("accounts", column, if_not_exists=True)
        op.execute(f"ALTER TABLE accounts DROP CONSTRAINT IF EXISTS {_CHECK}")
        op.execute(f"ALTER TABLE accounts ADD CONSTRAINT {_CHECK} CHECK ({_WHOLE}) NOT VALID")
        with op.get_context().autocommit_block():
            op.execute(f"ALTER TABLE accounts VALIDATE CONSTRAINT {_CHECK}")
    asked = sa.text("pending_email_at IS NOT NULL")
    migration.create_index(
        op.f(_INDEX),
        "accounts",
        ["pending_email_at"],
        sqlite_where=asked,
        postgresql_where=asked,
    )


def downgrade() -> None:
    # The previous code knows no such kinds, and would fail at each try.
    op.execute("DELETE FROM outbox WHERE kind IN ('mail.confirm_address', 'mail.address_asked')")
    if op.get_context().dialect.name == "sqlite":
        migration.drop_index(op.f(_INDEX), "accounts")
        with migration.altered("accounts") as batch:
            batch.drop_constraint(op.f(_CHECK), type_="check")
            for name in ("pending_epoch", "pending_email_at", "pending_email"):
                batch.drop_column(name)
        return
    for name in ("pending_epoch", "pending_email_at", "pending_email"):
        op.drop_column("accounts", name)
