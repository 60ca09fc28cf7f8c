"""Run the migrations, for ``accountsvc db …`` and for ``accountsvc.db.schema.upgrade``.

Alembic loads this file and the revisions by their paths, outside any package: they import what they
share from ``accountsvc.db.migration``.

The connection is never one of the application's engine, which enforces foreign keys and refuses
writes outside ``writing()``: ``migration.make_engine`` says what a migration needs instead.
"""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from alembic.util import CommandError
from sqlalchemy.engine import make_url

from accountsvc.db import migration
from accountsvc.db.engine import UtcDateTime
from accountsvc.db.models import Base


def database_url() -> str:
    given = context.config.attributes.get("url")
    if given is not None:
        return str(given)
    from flask import current_app, has_app_context

    if not has_app_context():
        raise CommandError("No database is named. Run `accountsvc db …`.")
    engine = current_app.extensions["migrate"].db.engine
    return str(engine.url.render_as_string(hide_password=False))


def render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Freeze our own type in a new revision: the class may change later, the revision may not."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def run_online(url: str) -> None:
    engine = migration.make_engine(url)
    sqlite = engine.dialect.name == "sqlite"
    with engine.connect() as connection:
        migration.wait_for_turn(connection)
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_item=render_item,
            transactional_ddl=True,
            # SQLite: one transaction around reading the current revision and all steps makes the
            # second of two deploys wait and then find nothing to do. PostgreSQL has the advisory
            # lock for that, and needs a transaction a step for ``autocommit_block``.
            transaction_per_migration=not sqlite,
            on_version_apply=migration.check_foreign_keys,
        )
        with context.begin_transaction():
            context.run_migrations()


def run_offline(url: str) -> None:
    """Print the SQL for PostgreSQL; who runs it sees to it that nobody else migrates meanwhile."""
    if make_url(url).get_backend_name() == "sqlite":
        raise CommandError("SQLite tables are rebuilt from what is there: leave out --sql.")
    context.configure(
        url=url,
        target_metadata=Base.metadata,
        literal_binds=True,
        transaction_per_migration=True,
    )
    context.execute(f"SET lock_timeout = {migration.LOCK_TIMEOUT_MS}")
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline(database_url())
else:
    run_online(database_url())
