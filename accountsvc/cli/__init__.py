"""The operator's doorway: words and exit codes."""

from __future__ import annotations

from flask import Flask

from . import accounts


def init_app(app: Flask) -> None:
    """Register the commands on ``flask``."""
    accounts.init_app(app)
