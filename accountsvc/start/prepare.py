"""Make what has to be there before any process starts: instance folder, keys, schema."""

from __future__ import annotations

import sys

from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from ..config import Settings, load_settings
from ..db import schema
from ..services import build_services
from ..sources import Faults, Sources, make_keys
from . import Failure


def prepare() -> None:
    """Make keys, folder and schema where they are missing; idempotent, and safe beside itself.

    Raises ConfigError for a wrong setting, also for ``VAULT_KEYS`` that are not the database's;
    Failure if the folder or the database refuses.
    """
    settings = make_folder_and_keys()
    upgrade_schema(settings)
    services = build_services(settings)
    services.refuse_wrong_vault_keys()
    services.database.engine.dispose()


def make_folder_and_keys() -> Settings:
    """Make the instance folder and, in development, keys; return the settings, now complete."""
    try:
        faults, names = Faults(), list[str]()
        # A folder that cannot be named is not all that may be wrong: what else is, is said too.
        with faults.caught():
            names = make_keys(Sources.of_this_process().given)
        with faults.caught():
            settings = load_settings()
        faults.refuse()
        schema.ensure_folder(settings.database_url)
    except OSError as exc:
        raise Failure(f"the instance folder cannot be written: {exc.strerror}") from exc
    for name in names:
        sys.stdout.write(f"accountsvc: made {name} in {settings.instance_path}\n")
    return settings


def upgrade_schema(settings: Settings) -> None:
    """Bring the schema up to date, and say so."""
    try:
        schema.upgrade(settings.database_url)
    except DBAPIError as exc:
        raise Failure(f"the database refused: {str(exc.orig).strip().splitlines()[0]}") from exc
    except CommandError as exc:
        raise Failure(f"the schema cannot be brought up to date: {exc}") from exc
    sys.stdout.write("accountsvc: the database has the current schema\n")
