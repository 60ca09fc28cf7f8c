"""The operator's doorway: words and exit codes."""

from __future__ import annotations

import click
from flask import Flask

from . import accepting, schema  # noqa: F401 - accepting adds its command to accounts_group
from . import canary as _canary  # noqa: F401 - adds its command to the accounts' group
from . import evidence as _evidence  # noqa: F401 - adds its command to the accounts' group
from . import receipts as _receipts  # noqa: F401 - adds its command to the accounts' group
from . import replaying as _replaying  # noqa: F401 - adds its command to the ledger's group
from . import status as _status  # noqa: F401 - adds its command to the accounts' group
from . import sweeps as _sweeps  # noqa: F401 - adds its command to the sweeps' group
from . import trail as _trail  # noqa: F401 - adds its command to the trail's group
from .accounts import accounts_group
from .auditing import audit_group
from .ledger import ledger_group
from .purging import sweeps_group
from .stores import avatars_group, vault_group


def groups() -> tuple[click.Group, ...]:
    """Return the groups of commands; their help needs no application."""
    db_group = schema.db_group()
    return (
        accounts_group,
        sweeps_group,
        avatars_group,
        vault_group,
        ledger_group,
        audit_group,
        db_group,
    )


def init_app(app: Flask) -> None:
    """Register the commands on *app*; ``db`` takes the place of Flask-Migrate's."""
    for group in groups():
        app.cli.add_command(group)
