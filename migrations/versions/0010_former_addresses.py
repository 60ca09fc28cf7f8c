"""Remember each address that an account has left in a row of its own.

Locks: SHARE ROW EXCLUSIVE on accounts for the foreign key (PostgreSQL), held while the addresses
that are remembered on their rows are copied, a second for each million accounts: profiles and
deletions wait for it, reading goes on. SQLite: the file's write lock for as long. The table is new.
The previous code neither reads nor needs it: it goes on with the column of accounts, which is read
beside the table. Downgrade takes ACCESS EXCLUSIVE on the table only (PostgreSQL), or the file's
write lock (SQLite); milliseconds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None
lost_by_downgrade = (
    "the former addresses but one of each account: the others are told of no deletion any more"
)

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "former_addresses",
        sa.Column("id", _ID, sa.Identity(), nullable=False),
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("held_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("left_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["accounts.id"],
            name=op.f("fk_former_addresses_account_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_former_addresses")),
        sqlite_autoincrement=True,
    )
    for column in ("account_id", "left_at"):
        op.create_index(op.f(f"ix_former_addresses_{column}"), "former_addresses", [column])
    # The time is the one on the account's row to the microsecond: by it the code knows that the
    # column of the row says nothing which is not here.
    op.execute(
        "INSERT INTO former_addresses (account_id, email, held_since, left_at)"
        " SELECT id, previous_email, joined_at, email_changed_at FROM accounts"
        " WHERE previous_email IS NOT NULL AND email_changed_at IS NOT NULL ORDER BY id"
    )


def downgrade() -> None:
    op.drop_table("former_addresses")
