"""``db …``: Flask-Migrate's commands, which say in a sentence what went wrong.

In production ``db downgrade`` wants a flag before it loses rows.
"""

from __future__ import annotations

import copy
import logging
from contextlib import suppress
from functools import cache
from typing import Any

import click
from alembic.util import CommandError
from flask.cli import with_appcontext
from flask_migrate.cli import db as flask_migrate  # type: ignore[import-untyped]

from ..config import ConfigError
from ..db import schema
from ..web import services
from .console import fail, sentences

_downgrade = flask_migrate.commands["downgrade"]
# These write into the folder of the migrations.
_WRITING = frozenset({"edit", "init", "merge", "migrate", "revision"})


@cache
def db_group() -> click.Group:
    """Return Flask-Migrate's group with our ``downgrade``; theirs stays as it is."""
    # Flask-Migrate logs its errors; a person who types a command would read a line of JSON.
    errors = logging.getLogger("flask_migrate")
    errors.addHandler(_Sentences())
    errors.propagate = False
    ours: click.Group = copy.copy(flask_migrate)
    ours.callback = _begin
    ours.commands = {
        name: command
        for name, command in {**flask_migrate.commands, "downgrade": downgrade}.items()
        # Into an installed package they would write a revision that the next upgrade runs.
        if not (name in _WRITING and schema.is_installed())
    }
    return ours


def _begin(**options: Any) -> None:
    """Do what Flask-Migrate does before each of its commands, with an application for it."""
    # Leave a wrong setting to the command itself, so that its help can be read all the same.
    with suppress(ConfigError):
        flask_migrate.callback(**options)


class _Sentences(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(record.getMessage(), err=True)


@click.command("downgrade", params=list(_downgrade.params), help=_downgrade.help)
@click.option("--lose-data", is_flag=True, help="Allow it to lose rows in production.")
@click.pass_context
@with_appcontext
@sentences
def downgrade(ctx: click.Context, /, *, revision: str, lose_data: bool, **options: Any) -> None:
    # With --sql the statements are only printed, so there is no loss to refuse.
    if not lose_data and not options["sql"]:
        try:
            config = schema.alembic_config(services().settings.database_url)
            schema.refuse_loss(config, revision)
        except CommandError as exc:
            fail(str(exc))
    ctx.invoke(_downgrade, revision=revision, **options)
