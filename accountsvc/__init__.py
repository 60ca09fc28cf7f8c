"""accountsvc: accounts that can be deleted, with a grace period, for good and provably.

Importing the package loads nothing else, so that the worker, which needs no Flask, loads none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apiflask import APIFlask

    from .config import Settings

# The one place of the version: the build reads it from this line.
__version__ = "0.1.0"


def create_app(settings: Settings | None = None) -> APIFlask:
    """Make the application, as :func:`accountsvc.app.create_app` promises."""
    from .app import create_app

    return create_app(settings)
