"""Commands for what lies beside the database: avatar files and vault keys."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import click
from flask.cli import AppGroup
from sqlalchemy import func, select

from ..accounts import avatars, vault
from ..db import audit, rows
from ..db.audit import OPERATOR_ACTOR
from ..db.engine import database_now
from ..db.models import VaultKey
from ..outbox import queue
from ..purge.orphans import since
from ..web import services
from .console import (
    ask,
    fail,
    json_option,
    logs_aside,
    sentences,
    show_json,
    show_lines,
    store_of,
    yes_option,
)
from .purging import refusals
from .words import count, stamp, table

avatars_group = AppGroup(
    "avatars",
    help="""Look after the avatar files.

    \b
    flask --app wsgi avatars orphans

    \b
    Exit codes: 0 all is well, 1 it is not (it says why), 2 bad usage.
    """,
)

vault_group = AppGroup(
    "vault",
    help="""Look after the keys of the saved passwords.

    \b
    flask --app wsgi vault rewrap

    \b
    Exit codes: 0 all is well, 1 it is not (it says why), 2 bad usage.
    """,
)


@avatars_group.command()
@click.option("--delete", is_flag=True, help="Delete them, through the outbox.")
@click.option("--force", is_flag=True, help="Also if there are more of them than accounts show.")
@yes_option
@json_option
@sentences
def orphans(*, delete: bool, force: bool, yes: bool, as_json: bool) -> None:
    """List avatar files that are nobody's.

    No account shows them, and nothing is to delete them. A restore from a backup forgets files;
    otherwise there should be none. Files younger than an hour may be uploads under way and are
    passed over. The worker finds them daily, and deletes them a day later: since when it knows of
    one is shown. Safe while everything runs. None is deleted while purging is paused.

    \b
    flask --app wsgi avatars orphans
    flask --app wsgi avatars orphans --delete

    \b
    Exit codes: 0 there is none, or all are deleted; 1 there are some;
    2 bad usage.
    """
    if delete:
        with refusals():
            services().purge_now.refuse_if_paused()
    with services().reading() as session:
        now = database_now(session)
    total = in_use = 0
    orphaned: list[avatars.StoredAvatar] = []
    with store_of("STORAGE_URL"):
        for avatar in avatars.stored_avatars(services().database, services().avatars, now=now):
            total += 1
            in_use += avatar.is_shown
            if avatar.is_orphan:
                orphaned.append(avatar)
    known = _known_since([avatar.key for avatar in orphaned])
    if not as_json:
        show_lines(_orphan_lines(orphaned, known, total=total, in_use=in_use))
    remaining = len(orphaned)
    if delete and orphaned:
        if len(orphaned) > in_use and not force:
            fail(
                "More files are nobody's than this database's accounts show: is it the right one? "
                "Nothing was deleted; --force deletes them all the same."
            )
        ask("Delete these files for good?", yes=yes)
        remaining = _delete_files([avatar.key for avatar in orphaned])
    deleted = len(orphaned) - remaining
    if as_json:
        show_json(
            {
                "files": total,
                "shown": in_use,
                "orphans": [
                    {
                        "key": avatar.key,
                        "written_at": stamp(avatar.written_at),
                        "found_at": stamp(known.get(avatar.key)),
                    }
                    for avatar in orphaned
                ],
                "deleted": deleted,
            }
        )
    elif deleted:
        click.echo(f"Deleted: {count(deleted, 'file')}.")
    if delete and remaining:
        files = count(remaining, "file is", "files are")
        fail(f"{files} still to be deleted; the worker goes on trying.")
    if remaining:
        sys.exit(1)


def _known_since(keys: Sequence[str]) -> dict[str, datetime]:
    """Return since when the worker knows that files are nobody's, by key."""
    known: dict[str, datetime] = {}
    with services().reading() as session:
        for chunk in rows.chunks(keys):
            known |= since(session, chunk)
    return known


def _orphan_lines(
    orphaned: Sequence[avatars.StoredAvatar],
    known: Mapping[str, datetime],
    *,
    total: int,
    in_use: int,
) -> Iterator[str]:
    if orphaned:
        files = (
            (avatar.key, stamp(avatar.written_at), stamp(known.get(avatar.key)))
            for avatar in orphaned
        )
        yield from table(["KEY", "WRITTEN AT", "NOBODY'S SINCE"], files)
    yield f"{count(total, 'file')}: {len(orphaned)} nobody's, {in_use} shown by an account."


def _delete_files(keys: Sequence[str]) -> int:
    """Delete files through the outbox, at once; return how many of them are still owed."""
    for chunk in rows.chunks(keys):
        with services().writing() as session:
            avatars.delete_orphaned_avatars(
                session, chunk, now=database_now(session), by=OPERATOR_ACTOR
            )
    with logs_aside():
        while services().deliver(kinds=[queue.DELETE_FILE], seconds=30).more:
            pass
    with services().reading() as session:
        return sum(
            len(session.scalars(queue.files_owed(chunk)).all()) for chunk in rows.chunks(keys)
        )


@vault_group.command()
@json_option
@sentences
def rewrap(*, as_json: bool) -> None:
    """Wrap every account's key by the first of VAULT_KEYS.

    Then the others can be removed. Saved passwords are not touched. A key that none of VAULT_KEYS
    opens stays as it is. Safe while everything runs, and to repeat.

    \b
    flask --app wsgi vault rewrap

    \b
    Exit codes: 0 all keys are wrapped by the first, 1 some are not yet, 2 bad usage.
    """
    keyring = services().keyring
    with logs_aside():
        rewrapped, unopened, unopened_by = _rewrap_all(keyring)
    with services().reading() as session:
        # Keys that another process has locked were passed over; without this count an operator
        # would remove the old key that still wraps them.
        others = select(func.count()).where(VaultKey.wrapped_by != keyring.newest)
        remaining = session.scalar(others) or 0
    if as_json:
        show_json({"rewrapped": rewrapped, "left": remaining, "unopened": unopened})
    else:
        click.echo(f"{count(rewrapped, 'key')} wrapped anew.")
    if unopened:
        keys = count(unopened, "key is", "keys are")
        fail(
            f"{keys} opened by none of VAULT_KEYS. Add what wrapped them again "
            f"({', '.join(sorted(unopened_by))}), unless they are damaged; the log names them."
        )
    if remaining:
        keys = count(remaining, "key is", "keys are")
        fail(f"{keys} still wrapped by an older one. Repeat the command.")
    if not as_json:
        click.echo("Nothing is left: all keys are wrapped by the first of VAULT_KEYS.")


def _rewrap_all(keyring: vault.Keyring) -> tuple[int, int, set[str]]:
    """Rewrap in transactions of a chunk each; return how many, how many did not open, and by what.

    Each chunk begins above the last one's accounts: keys that do not open would come again and
    again.
    """
    rewrapped = unopened = after = 0
    unopened_by: set[str] = set()
    while True:
        with services().writing() as session:
            done = vault.rewrap(session, keyring, limit=rows.CHUNK, after=after)
            if done.count:
                audit.record(
                    session,
                    "vault.rewrapped",
                    subject=None,
                    by=OPERATOR_ACTOR,
                    now=database_now(session),
                    count=done.count,
                )
        rewrapped += done.count
        unopened += done.unopened
        unopened_by |= done.unopened_by
        if done.last_id is None:
            return rewrapped, unopened, unopened_by
        after = done.last_id
