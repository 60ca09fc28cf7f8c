"""The schema and its migrations, run by Alembic without a Flask application."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy.engine import make_url

from .. import private
from ..sources import Sources
from . import migration


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema of the database at *url* to *revision* by the migrations; idempotent."""
    command.upgrade(alembic_config(url), revision)


def downgrade(url: str, revision: str, *, lose_data: bool = False) -> None:
    """Take the schema of the database at *url* back to *revision*.

    Raises CommandError as :func:`refuse_loss` does, unless *lose_data* allows the loss.
    """
    config = alembic_config(url)
    if not lose_data:
        refuse_loss(config, revision)
    command.downgrade(config, revision)


def refuse_loss(config: Config, revision: str) -> None:
    """Raise CommandError in production if going back to *revision* would lose rows; change nothing.

    Each revision says of itself, in ``lost_by_downgrade``, which rows its step back loses.
    """
    sources = Sources.of_this_process()
    # A .env file that cannot be read may be the one that says production.
    if not (sources.is_production or sources.unreadable):
        return
    with migration.make_engine(config.attributes["url"]).connect() as connection:
        heads = MigrationContext.configure(connection).get_current_heads()
    scripts = ScriptDirectory.from_config(config)
    try:
        steps = list(scripts.iterate_revisions(heads, revision, select_for_downgrade=True))
    except RevisionError:
        # There is no way back to such a revision, so nothing can be lost; Alembic says why.
        return
    lost = [step.module.lost_by_downgrade for step in steps]
    # A revision that says nothing of its loss has the template's placeholder, which is no string.
    words = [
        text if isinstance(text, str) else "rows" for text in reversed(lost) if text is not None
    ]
    if words:
        raise CommandError(
            f"This would lose {'; '.join(words)}. Nothing was changed; --lose-data allows it."
        )


def alembic_config(url: str) -> Config:
    """Return Alembic's configuration for the database at *url*."""
    config = Config()
    # Alembic interpolates its options: a percent sign in the folder's name must be doubled, or it
    # is taken for the beginning of a variable.
    config.set_main_option("script_location", str(migrations_path()).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes["url"] = url
    return config


def migrations_path() -> Path:
    """Return the folder of the migrations: inside an installed package, beside it in a clone."""
    package = Path(__file__).resolve().parents[1]
    return (package if is_installed() else package.parent) / "migrations"


def is_installed() -> bool:
    """Say whether this is an installed package, which has the migrations inside, and no clone."""
    return (Path(__file__).resolve().parents[1] / "migrations").is_dir()


def ensure_folder(url: str) -> None:
    """Make the folder of a SQLite file, for its owner alone; do nothing for another engine."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        private.make_folder(Path(parsed.database).parent)
