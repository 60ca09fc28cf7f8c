"""${message}

Locks: PostgreSQL: which tables, in which mode, for how long. SQLite: the file's write lock, how long.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}
# Name the rows that a downgrade loses, in words that end the sentence "This would lose …"; or None.
lost_by_downgrade = ...


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
