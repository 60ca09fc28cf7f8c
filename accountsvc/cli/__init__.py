"""The operator's doorway: words and exit codes."""

from __future__ import annotations

from flask import Flask

from . import accounts, purging, stores


def init_app(app: Flask) -> None:
    """Register the commands on ``flask``."""
    accounts.group.add_command(purging.purge_command)
    for group in (accounts.group, purging.sweeps, stores.files, stores.keys, stores.records):
        app.cli.add_command(group)
