"""Tell a restored database from its ledger, and keep returns and holds there.

Holds that are open are owed to the ledger at once.

Locks: ACCESS EXCLUSIVE on accounts for a column without a default (PostgreSQL), milliseconds, or
the file's write lock (SQLite); a second for each ten thousand open holds. The tables are new. The
previous code neither reads nor needs any of it, and writes no return and no hold into the ledger
meanwhile. Downgrade takes ACCESS EXCLUSIVE on the two tables and on accounts, and ROW EXCLUSIVE on
the outbox (PostgreSQL), or the file's write lock (SQLite); milliseconds.
"""

from __future__ import annotations

import uuid
from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from accountsvc.db.engine import Moment, UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None
lost_by_downgrade = "returns and holds that the ledger has, and which restores were replayed"

_json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("accounts", sa.Column("return_reason", sa.Text(), nullable=True))
    generations = op.create_table(
        "generations",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("began_at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("mark", sa.BigInteger(), nullable=False),
        sa.Column("replayed_at", UtcDateTime(timezone=True), nullable=True),
        sa.CheckConstraint("mark >= 0", name=op.f("ck_generations_mark")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_generations")),
        sa.UniqueConstraint("id", name=op.f("uq_generations_id")),
    )
    kept_lines = op.create_table(
        "kept_lines",
        sa.Column("uid", sa.Uuid(), nullable=False),
        sa.Column("subject", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("deactivated_at", UtcDateTime(timezone=True), nullable=True),
        sa.Column("object_name", sa.String(120), nullable=True),
        sa.CheckConstraint("kind IN ('returned', 'held')", name=op.f("ck_kept_lines_kind")),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_kept_lines")),
    )
    op.create_index(op.f("ix_kept_lines_at"), "kept_lines", ["at"])
    op.create_index(op.f("ix_kept_lines_subject"), "kept_lines", ["subject"])
    now = op.get_bind().execute(sa.select(Moment())).scalar_one()
    op.bulk_insert(
        generations,
        [{"number": 1, "id": uuid.uuid4(), "began_at": now, "mark": 0, "replayed_at": now}],
    )
    _owe_open_holds(kept_lines, now)


def _owe_open_holds(kept_lines: sa.Table, now: datetime) -> None:
    accounts = sa.table("accounts", sa.column("id"), sa.column("public_id", sa.Uuid()))
    holds = sa.table(
        "legal_holds",
        sa.column("account_id"),
        sa.column("placed_at", UtcDateTime(timezone=True)),
        sa.column("released_at"),
    )
    outbox = sa.table(
        "outbox",
        sa.column("uid", sa.Uuid()),
        sa.column("kind"),
        sa.column("subject", sa.Uuid()),
        sa.column("payload", _json),
        sa.column("created_at", UtcDateTime(timezone=True)),
        sa.column("deliver_after", UtcDateTime(timezone=True)),
    )
    opened = op.get_bind().execute(
        sa.select(accounts.c.public_id, holds.c.placed_at)
        .join_from(holds, accounts, holds.c.account_id == accounts.c.id)
        .where(holds.c.released_at.is_(None))
    )
    lines = [
        {"uid": uuid.uuid4(), "subject": public_id, "kind": "held", "at": placed_at}
        for public_id, placed_at in opened
    ]
    if not lines:
        return
    op.bulk_insert(kept_lines, lines)
    op.bulk_insert(
        outbox,
        [
            {
                "uid": line["uid"],
                "kind": "ledger.keep",
                "subject": line["subject"],
                "payload": {},
                "created_at": now,
                "deliver_after": now,
            }
            for line in lines
        ],
    )


def downgrade() -> None:
    # The previous code knows no such kinds, and would fail at each try.
    op.execute("DELETE FROM outbox WHERE kind IN ('ledger.keep', 'ledger.remove')")
    op.drop_table("kept_lines")
    op.drop_table("generations")
    op.drop_column("accounts", "return_reason")
