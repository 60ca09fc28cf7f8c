"""Commands for what lies beside the database: avatar files, vault keys, the ledger."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from flask.cli import AppGroup
from sqlalchemy import func, select

from ..accounts import avatars, vault
from ..db import audit, rows
from ..db.audit import OPERATOR_ACTOR
from ..db.engine import database_now
from ..db.models import (
    VaultKey,
)
from ..outbox import queue
from ..web import services
from .console import (
    ask,
    fail,
    json_option,
    logs_aside,
    sentences,
    show_json,
    stamp,
    yes_option,
)
from .purging import confirm, finish, progress_bar

avatars_group = AppGroup("avatars", help="Look after the avatar files.")

vault_group = AppGroup("vault", help="Look after the keys of the saved passwords.")

ledger_group = AppGroup(
    "ledger", help="Check the ledger, and replay it after a restore from a backup."
)


@avatars_group.command("orphans")
@click.option("--delete", is_flag=True, help="Delete them, through the outbox.")
@click.option("--force", is_flag=True, help="Also if there are more of them than accounts show.")
@yes_option
@json_option
@sentences
def orphans(*, delete: bool, force: bool, yes: bool, as_json: bool) -> None:
    """List avatar files that no account shows and that nothing is to delete.

    A restore from a backup forgets files; otherwise there should be none. Files younger than an hour may be
    uploads under way and are passed over. Safe while everything runs.

    \b
    flask --app wsgi avatars orphans
    flask --app wsgi avatars orphans --delete

    \b
    Exit codes: 0 there is none, or all are deleted; 1 there are some; 2 bad usage.
    """
    made = services()
    with services().reading() as session:
        now = database_now(session)
    total = shown = 0
    found: list[avatars.StoredAvatar] = []
    for one in avatars.stored_avatars(made.database, made.avatars, now=now):
        total += 1
        shown += one.is_shown
        if one.is_orphan:
            found.append(one)
    if not as_json:
        for one in found:
            click.echo(f"{one.key}  {stamp(one.written_at)}")
        click.echo(f"{len(found)} of {total} files are nobody's, {shown} are shown by an account.")
    left = len(found)
    if delete and found:
        if len(found) > shown and not force:
            fail(
                "More files are nobody's than this database's accounts show: is it the right one? "
                "Nothing was deleted; --force deletes them all the same."
            )
        ask("Delete these files for good?", yes=yes)
        left = _delete_files([one.key for one in found])
    if as_json:
        show_json(
            {
                "files": total,
                "shown": shown,
                "orphans": [{"key": one.key, "written_at": stamp(one.written_at)} for one in found],
                "deleted": len(found) - left,
            }
        )
    if delete and left:
        fail(f"{left} files are still to be deleted; the worker goes on trying.")
    if left:
        sys.exit(1)


def _delete_files(keys: Sequence[str]) -> int:
    """Delete files through the outbox, at once; return how many of them are still owed."""
    for page in rows.chunks(keys):
        with services().writing() as session:
            avatars.delete_orphaned_avatars(
                session, page, now=database_now(session), by=OPERATOR_ACTOR
            )
    with logs_aside():
        while services().deliver(kinds=[queue.DELETE_FILE], seconds=30).more:
            pass
    with services().reading() as session:
        return sum(len(session.scalars(queue.files_owed(page)).all()) for page in rows.chunks(keys))


@vault_group.command("rewrap")
@json_option
@sentences
def rewrap(*, as_json: bool) -> None:
    """Wrap every account's key by the first of VAULT_KEYS; then the others can be removed.

    Saved passwords are not touched. Safe while everything runs, and to repeat.
    """
    keyring = services().keyring
    done = 0
    while True:
        with services().writing() as session:
            count = vault.rewrap(session, keyring, limit=rows.CHUNK)
            if count:
                now = database_now(session)
                audit.record(
                    session,
                    "vault.rewrapped",
                    subject=None,
                    by=OPERATOR_ACTOR,
                    now=now,
                    count=count,
                )
        if not count:
            break
        done += count
    with services().reading() as session:
        # Those that another process had locked were passed over.
        others = select(func.count()).where(VaultKey.wrapped_by != keyring.newest)
        left = session.scalar(others) or 0
    if as_json:
        show_json({"rewrapped": done, "left": left})
    else:
        click.echo(f"{done} keys wrapped anew.")
    if left:
        fail(f"{left} keys are still wrapped by an older one. Repeat the command.")


@ledger_group.command("verify")
@json_option
@sentences
def verify(*, as_json: bool) -> None:
    """Compare the ledger with the database. Exit code 1 if they disagree.

    Nobody in the ledger may have an account (a restore brings people back), and every receipt has a
    line in the ledger, unless that is still owed.
    """
    found = services().restore.verify()
    if as_json:
        show_json(
            {
                "lines": found.lines,
                "receipts": found.receipts,
                "owed": found.owed,
                "back": found.back,
                "missing": [str(public_id) for public_id in found.missing],
            }
        )
    else:
        click.echo(f"{found.lines} purged accounts in the ledger, {found.receipts} receipts.")
    if found.back:
        click.echo(f"{len(found.back)} purged accounts are back: run `ledger replay`.", err=True)
    if found.missing:
        click.echo(f"{len(found.missing)} receipts are not in the ledger.", err=True)
    if found.back or found.missing:
        sys.exit(1)


@ledger_group.command("replay")
@click.option("--dry-run", is_flag=True, help="Show what would be destroyed, change nothing.")
@yes_option
@json_option
@sentences
def replay(*, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Purge again whoever a restore brought back.

    By public id only: whoever has got an account's number since cannot be hit. Works while purging is
    paused, so that nothing else is purged before you have looked.

    \b
    flask --app wsgi ledger replay --dry-run
    flask --app wsgi ledger replay
    """
    planned = services().restore.plan()
    if not confirm(planned, dry_run=dry_run, yes=yes, as_json=as_json):
        return
    with progress_bar(planned) as progress:
        report = services().purge_now.replay(planned, progress)
    finish(report, as_json=as_json)
