"""The operator's doorway: ``flask --app wsgi accounts …``.

Exit codes: 0 when all that was asked is done (or was so already), 1 with a sentence when something is
not, 2 for bad usage. With ``--json`` one document goes to stdout; sentences and logs go to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import click
from flask.cli import AppGroup
from sqlalchemy.orm import Session

from .. import documents
from ..accounts import lifecycle, profiles
from ..db import rows
from ..db.audit import OPERATOR_ACTOR
from ..db.engine import database_now
from ..db.models import (
    ACTIVE,
    DEACTIVATED,
    DUE,
    MAX_ID,
)
from ..errors import (
    AccountError,
    AccountNotFound,
)
from ..monitoring.status import read as read_status
from ..purge import failures
from ..web import services
from .console import (
    document,
    fail,
    find,
    json_option,
    paused,
    print_fields,
    sentences,
    show_json,
    stamp,
)

accounts_group = AppGroup(
    "accounts",
    help="""List, deactivate, reactivate and purge accounts.

    \b
    Accounts are named by id or e-mail:
      flask --app wsgi accounts list --state due
      flask --app wsgi accounts show ann@example.org
      flask --app wsgi accounts purge 42 --dry-run
    """,
)


def _each(
    names: Sequence[str],
    work: Callable[[Session, int], bool],
    done: str,
    so: str,
    *,
    as_json: bool,
    lock: Callable[[Session, Sequence[int]], object] = rows.lock_many,
) -> None:
    """Do *work*, which says whether it changed anything, for all accounts or, if one refuses, for none.

    *lock* takes all that *work* will lock, in id order, before the first of them.
    """
    results = []
    ids = sorted(find(names))
    with services().writing() as session:
        lock(session, ids)
        for account_id in ids:
            try:
                changed = work(session, account_id)
                shown = document(session, rows.lock(session, account_id), database_now(session))
            except AccountError as exc:
                fail(f"Account {account_id}: {exc} Nothing was changed.")
            results.append({"changed": changed, **shown})
    if as_json:
        show_json(results)
        return
    for shown in results:
        until = f"; purge at {shown['purge_at']}" if shown["purge_at"] else ""
        click.echo(f"Account {shown['id']} {done if shown['changed'] else so}{until}.")


@accounts_group.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|EMAIL…")
@click.option("--reason", help="Stored on the account until its purge.")
@json_option
@sentences
def deactivate(names: tuple[str, ...], *, reason: str | None, as_json: bool) -> None:
    """End all access at once; the purge follows after the grace period.

    \b
    flask --app wsgi accounts deactivate ann@example.org --reason "asked by letter"
    """

    def work(session: Session, account_id: int) -> bool:
        was_active = rows.lock(session, account_id).is_active
        account = lifecycle.deactivate(
            session,
            account_id,
            promise=services().promise,
            by=OPERATOR_ACTOR,
            reason=reason,
        )
        if reason is None or account.reason == reason:
            return was_active
        lifecycle.set_reason(session, account_id, reason=reason, by=OPERATOR_ACTOR)
        return True

    _each(
        names,
        work,
        "is deactivated",
        "was deactivated already",
        as_json=as_json,
        lock=lifecycle.lock_for_deactivation,
    )


@accounts_group.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|EMAIL…")
@json_option
@sentences
def reactivate(names: tuple[str, ...], *, as_json: bool) -> None:
    """Give accounts back in their grace period, whoever deactivated them.

    \b
    flask --app wsgi accounts reactivate 42
    """

    def work(session: Session, account_id: int) -> bool:
        if rows.lock(session, account_id).is_active:
            return False
        lifecycle.reactivate(
            session,
            account_id,
            promise=services().promise,
            by=OPERATOR_ACTOR,
        )
        return True

    _each(names, work, "is active again", "was active already", as_json=as_json)


@accounts_group.command()
@click.argument("name", metavar="ID|EMAIL")
@json_option
@sentences
def show(name: str, *, as_json: bool) -> None:
    """Show one account: its state, its dates, and why it is not purged."""
    (account_id,) = find([name])
    with services().reading() as session:
        account = rows.find(session, account_id)
        if account is None:
            raise AccountNotFound
        shown = document(session, account, database_now(session))
    if as_json:
        show_json(shown)
    else:
        print_fields(shown)


@accounts_group.command("list")
@click.option("--state", type=click.Choice([ACTIVE, DEACTIVATED, DUE]), help="Only these.")
@click.option("--after", type=click.IntRange(0, MAX_ID), default=0, help="Only ids above this one.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@json_option
@sentences
def list_command(state: str | None, after: int, limit: int, *, as_json: bool) -> None:
    """List accounts by id, a page at a time.

    \b
    flask --app wsgi accounts list --state deactivated --limit 20
    """
    with services().reading() as session:
        now = database_now(session)
        found = profiles.list_accounts(session, now=now, state=state, after=after, limit=limit + 1)
        page = [
            {
                "id": one.id,
                "username": one.username,
                "email": one.email,
                "is_staff": one.is_staff,
                "state": one.state(now),
                "purge_at": stamp(one.purge_at),
            }
            for one in found[:limit]
        ]
    if as_json:
        show_json(page)
    elif page:
        click.echo(f"{'ID':>8}  {'STATE':11}  {'PURGE AT':20}  {'':5}  USERNAME  E-MAIL")
        for one in page:
            click.echo(
                f"{one['id']:>8}  {one['state']:11}  {one['purge_at'] or '':20}  "
                f"{'staff' if one['is_staff'] else '':5}  {one['username']}  {one['email']}"
            )
    else:
        click.echo("No accounts.")
    if len(found) > limit:
        click.echo(f"More: repeat with --after {page[-1]['id']}.", err=True)


@accounts_group.command()
@click.option("--username", required=True)
@click.option("--email", required=True)
@click.option("--staff", is_flag=True, help="The account may act on others.")
@json_option
@sentences
def create(username: str, email: str, *, staff: bool, as_json: bool) -> None:
    """Create an account; the password is asked for, or read from standard input.

    It is never given on the command line, where others could read it.

    \b
    flask --app wsgi accounts create --username ann --email ann@example.org --staff
    pwgen 20 1 | flask --app wsgi accounts create --username bob --email bob@example.org
    """
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        # What is not UTF-8 comes through as surrogates, which no password may hold.
        line = sys.stdin.buffer.readline()
        password = line.decode(errors="surrogateescape").rstrip("\r\n")
    made = services()
    account = profiles.sign_up(
        made.database,
        made.hasher,
        made.keyring,
        {"username": username, "email": email, "password": password},
        is_staff=staff,
        by=OPERATOR_ACTOR,
    )
    if as_json:
        show_json({**documents.user_document(account), "public_id": str(account.public_id)})
    else:
        click.echo(f"Account {account.id} created{' for staff' if staff else ''}.")


@accounts_group.command()
@click.argument("name", metavar="ID|EMAIL")
@click.option("--reason", required=True, help="Stored on the account until its purge.")
@json_option
@sentences
def hold(name: str, *, reason: str, as_json: bool) -> None:
    """Place a legal hold: the account is not purged until it is released."""
    (account_id,) = find([name])
    with services().writing() as session:
        placed = lifecycle.place_hold(session, account_id, reason=reason, by=OPERATOR_ACTOR)
        shown = {"account": account_id, "hold": placed.id, "placed_at": stamp(placed.placed_at)}
    if as_json:
        show_json(shown)
    else:
        click.echo(f"Hold {shown['hold']} placed on account {account_id}.")


@accounts_group.command()
@click.argument("name", metavar="ID|EMAIL")
@click.argument("hold_id", type=click.IntRange(min=1), metavar="HOLD")
@json_option
@sentences
def release(name: str, hold_id: int, *, as_json: bool) -> None:
    """Release a legal hold. After the last one the purge waits at least HOLD_RELEASE_DELAY.

    `accounts show` lists the holds of an account.
    """
    (account_id,) = find([name])
    with services().writing() as session:
        lifecycle.release_hold(
            session,
            account_id,
            hold_id,
            promise=services().promise,
            by=OPERATOR_ACTOR,
        )
        shown = document(session, rows.lock(session, account_id), database_now(session))
    if as_json:
        show_json(shown)
    else:
        until = f", purge at {shown['purge_at']}" if shown["purge_at"] else ""
        click.echo(f"Hold {hold_id} released; account {account_id} is {shown['state']}{until}.")


@accounts_group.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|EMAIL…")
@json_option
@sentences
def retry(names: tuple[str, ...], *, as_json: bool) -> None:
    """Let the next sweep try failing or stuck accounts again.

    Mend the cause first: `accounts show` names the error and the constraint.
    """

    def work(session: Session, account_id: int) -> bool:
        return failures.retry(session, account_id, now=database_now(session), by=OPERATOR_ACTOR)

    _each(names, work, "will be tried again", "had not failed", as_json=as_json)


@accounts_group.command()
@json_option
@sentences
def status(*, as_json: bool) -> None:
    """Show what is due, overdue, held, failing and stuck, and what is owed.

    Exit code 1 if an account is stuck.
    """
    settings = services().settings
    with services().reading() as session:
        now = database_now(session)
        found = read_status(session, now=now, max_attempts=settings.purge_max_attempts)
    if found.paused_at is not None and not as_json:
        click.echo(paused(found.paused_at), err=True)
    shown = {
        "active": found.active,
        "deactivated": found.deactivated,
        "due": found.due,
        "held": found.held,
        "failing": found.failing,
        "stuck": found.stuck,
        "overdue_seconds": round(found.overdue.total_seconds()),
        "owed": dict(found.owed),
        "last_purged_at": stamp(found.last_purged_at),
        "swept_at": stamp(found.swept_at),
        "paused_at": stamp(found.paused_at),
        "unscrubbed": found.unscrubbed if settings.is_sqlite else 0,
        "troubled": list(found.troubled_ids),
    }
    if as_json:
        show_json(shown)
    else:
        print_fields(shown)
    if found.stuck:
        fail(f"{found.stuck} accounts are stuck. `accounts show ID` says why.")
