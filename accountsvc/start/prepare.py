"""Make what has to be there before any process starts: instance folder, keys, schema."""

from __future__ import annotations

import sys
from pathlib import Path

from alembic.util import CommandError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from .. import private
from ..config import Settings, load_settings
from ..db import rows, schema, soundness
from ..errors import StoreUnavailable
from ..services import Services, build_services
from ..sources import MADE_KEYS, Faults, Sources, make_keys
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
    _say_how_the_ledger_is(services)
    _say_who_kept_a_key(services)
    services.database.engine.dispose()
    tighten(settings)


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


def _say_how_the_ledger_is(services: Services) -> None:
    """Say that a backup was put back, or that objects of the ledger wait for `ledger adopt`.

    A ledger that does not answer is no reason not to start: `/statusz` and each sweep say so.
    """
    try:
        unsealed, is_behind = services.ledger.unsealed(), services.restore.is_behind()
    except StoreUnavailable:
        return
    if is_behind:
        sys.stdout.write(
            "accountsvc: the database is older than its ledger, so nothing is purged: "
            "run `accountsvc ledger replay`\n"
        )
    if unsealed:
        what = (
            "1 object of the ledger has"
            if unsealed == 1
            else f"{unsealed} objects of the ledger have"
        )
        sys.stdout.write(
            f"accountsvc: {what} no seal, so a restore could not be replayed: "
            "run `accountsvc ledger adopt`\n"
        )


def _say_who_kept_a_key(services: Services) -> None:
    """Say which accounts share their mailbox with another, since their keys became the same."""
    with services.reading() as session:
        number, ids = rows.kept_keys(session, most=20)
    if not number:
        return
    whose = "1 account has" if number == 1 else f"{number} accounts have"
    more = f" and {number - len(ids)} more" if number > len(ids) else ""
    sys.stdout.write(
        f"accountsvc: {whose} the mailbox of another account in another spelling, and are found "
        f"by their own: {', '.join(map(str, ids))}{more}\n"
    )


def tighten(settings: Settings) -> None:
    """Take the rights of others from what the service has made in the instance folder; say so.

    An earlier release, or a copy that was put back, may have left wider ones. The folder itself,
    and folders elsewhere, are the operator's: of a folder that others may look into, a line says
    so.
    """
    try:
        changed = sum(private.tighten(place) for place in _places(settings) if place.exists())
    except OSError as exc:
        raise Failure(
            f"files in {settings.instance_path} belong to another user, "
            f"and their rights cannot be changed: {exc.strerror}"
        ) from exc
    if changed:
        what = "1 file or folder" if changed == 1 else f"{changed} files and folders"
        sys.stdout.write(f"accountsvc: {what} could be read by others, and no longer can\n")
    rights = settings.instance_path.stat().st_mode & 0o777 if settings.instance_path.exists() else 0
    if rights & 0o077:
        sys.stdout.write(
            f"accountsvc: others may look into {settings.instance_path} ({rights:04o}), "
            "though not into what is in it\n"
        )


def _places(settings: Settings) -> list[Path]:
    """Return what the service has made for itself: keys, the database's files, and folders."""
    instance = settings.instance_path
    places = [instance / name.lower() for name in MADE_KEYS]
    if settings.is_sqlite:
        database = make_url(settings.database_url).database or ""
        places += [Path(f"{database}{suffix}") for suffix in ("", "-wal", "-shm", "-journal")]
    for url in (
        settings.celery_broker_url,
        settings.storage_url,
        settings.mail_url,
        settings.ledger_url,
    ):
        scheme, _, path = url.partition("://")
        if scheme in {"file", "filesystem"} and Path(path).is_relative_to(instance):
            places.append(Path(path))
    return [place for place in places if place != instance]


def upgrade_schema(settings: Settings) -> None:
    """Bring the schema up to date, and say so.

    A SQLite file that is damaged, or beside a write-ahead log that is not its own, is a Failure: a
    process would start with it, and its sweeps would fail for ever.
    """
    try:
        if settings.is_sqlite:
            soundness.refuse_unsound(Path(make_url(settings.database_url).database or ""))
        schema.upgrade(settings.database_url)
    except soundness.Unsound as exc:
        raise Failure(str(exc)) from exc
    except DBAPIError as exc:
        raise Failure(f"the database refused: {str(exc.orig).strip().splitlines()[0]}") from exc
    except CommandError as exc:
        raise Failure(f"the schema cannot be brought up to date: {exc}") from exc
    sys.stdout.write("accountsvc: the database has the current schema\n")
