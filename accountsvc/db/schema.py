"""The schema and its migrations, run by Alembic without a Flask application."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema of the database at *url* to *revision* by the migrations; idempotent."""
    from alembic import command

    command.upgrade(alembic_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the schema of the database at *url* back to *revision*."""
    from alembic import command

    command.downgrade(alembic_config(url), revision)


def alembic_config(url: str) -> Any:
    """Return Alembic's configuration for the database at *url*."""
    from alembic.config import Config

    config = Config()
    folder = migrations_path()
    # Alembic interpolates its options: a percent sign in the folder's name must be doubled, or it
    # is taken for the beginning of a variable.
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    # Alembic prepends the folder each time that it is asked: ``sys.path`` would grow with every
    # health check.
    if str(folder.parent) not in sys.path:
        config.set_main_option("prepend_sys_path", str(folder.parent).replace("%", "%%"))
    config.attributes["url"] = url
    return config


def migrations_path() -> Path:
    """Return the folder of Alembic's environment and its revisions."""
    return Path(__file__).resolve().parents[2] / "migrations"


def ensure_folder(url: str) -> None:
    """Make the folder of a SQLite file, for its owner alone; do nothing for another engine."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
