"""The operator's doorway: words and exit codes."""

from __future__ import annotations

from flask import Flask

from .accounts import accounts_group
from .purging import sweeps_group
from .stores import avatars_group, ledger_group, vault_group


def init_app(app: Flask) -> None:
    """Register the commands on *app*."""
    for group in (accounts_group, sweeps_group, avatars_group, vault_group, ledger_group):
        app.cli.add_command(group)
