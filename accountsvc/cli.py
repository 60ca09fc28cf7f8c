"""The operator's doorway: ``flask --app wsgi accounts …``.

Exit codes: 0 when all that was asked is done (or was so already), 1 with a sentence when something is
not, 2 for bad usage. With ``--json`` one document goes to stdout, sentences go to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, TypeVar, cast

import click
from flask import Flask, current_app
from flask.cli import AppGroup
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from . import accounts as core
from . import lifecycle, outbox, purge, rows, vault
from .audit import OPERATOR_ACTOR
from .database import database_now, is_passing_fault, reading, writing
from .errors import AccountError, InvalidInput
from .models import ACTIVE, DEACTIVATED, DUE, Account, PurgeFailure, Receipt
from .purge import PlannedPurge
from .services import Services

F = TypeVar("F", bound=Callable[..., Any])

accounts = AppGroup("accounts", help="List, deactivate, reactivate and purge accounts.")
keys = AppGroup("vault", help="Look after the keys of the saved passwords.")
records = AppGroup("ledger", help="Read the ledger, and replay it after a restore.")


def init_app(app: Flask) -> None:
    """Register the commands on ``flask``."""
    for group in (accounts, keys, records):
        app.cli.add_command(group)


def services() -> Services:
    return cast(Services, current_app.extensions["accountsvc"])


def fail(sentence: str) -> NoReturn:
    """End with exit code 1 and one sentence on stderr."""
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(1)


def sentences(command: F) -> F:
    """Turn what the core raises, and a database that does not answer, into a sentence and exit code 1."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except InvalidInput as exc:
            fail(" ".join(f"{name}: {' '.join(texts)}" for name, texts in exc.fields.items()))
        except AccountError as exc:
            fail(str(exc))
        except purge.LedgerBehind:
            fail("The ledger does not take its lines, so nothing more is purged. Mend it first.")
        except vault.VaultKeyMissing as exc:
            fail(f"No key in VAULT_KEYS opens what key {exc} wrapped. Add that key again.")
        except Exception as exc:
            if not is_passing_fault(exc):
                raise
            fail("The database does not answer. Nothing is half-done; repeat the command later.")

    return guarded  # type: ignore[return-value]


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@contextmanager
def read() -> Iterator[Session]:
    with services().sessions() as session, reading(session):
        yield session


@contextmanager
def write() -> Iterator[Session]:
    with services().sessions() as session, writing(session):
        yield session


def show_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def stamp(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def find(names: Sequence[str]) -> list[int]:
    """Return the ids of the named accounts, each once; fail if any is unknown, before anything is done."""
    found: dict[int, None] = {}
    unknown = []
    with read() as session:
        for name in names:
            account = rows.locate(session, name)
            if account is None:
                unknown.append(name)
            else:
                found[account.id] = None
    if unknown:
        fail(f"No account {', '.join(unknown)}. Give ids or e-mails; nothing was changed.")
    return list(found)


def document(session: Session, account: Account, now: datetime) -> dict[str, Any]:
    failure = session.get(PurgeFailure, account.id)
    return {
        **core.user_document(account),
        "public_id": str(account.public_id),
        "state": account.state(now),
        "deactivated_at": stamp(account.deactivated_at),
        "deactivated_by": account.deactivated_by,
        "purge_at": stamp(account.purge_at),
        "reason": account.reason,
        "blocked_by": None
        if account.is_active
        else purge.blocked_by(
            session,
            account.id,
            now=now,
            max_attempts=services().settings.purge_max_attempts,
        ),
        "attempts": 0 if failure is None else failure.attempts,
        "error": None if failure is None else failure.error,
        "constraint": None if failure is None else failure.constraint_name,
        "holds": [
            {"id": hold.id, "placed_at": stamp(hold.placed_at), "reason": hold.reason}
            for hold in lifecycle.open_holds(session, account.id)
        ],
    }


def print_account(shown: dict[str, Any]) -> None:
    for name, value in shown.items():
        if value not in (None, "", [], 0):
            click.echo(f"{name:15} {value}")


# Purge ------------------------------------------------------------------------------------------


@accounts.command("purge")
@click.argument("names", nargs=-1, metavar="[ID|EMAIL]…")
@click.option("--expired", is_flag=True, help="All accounts that are due.")
@click.option("--force", is_flag=True, help="Also active accounts: deactivate them first.")
@click.option("--dry-run", is_flag=True, help="Show what would be destroyed, change nothing.")
@yes
@as_json
@sentences
def purge_command(
    names: tuple[str, ...],
    *,
    expired: bool,
    force: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Purge accounts now and for good: rows, saved passwords, files.

    Named accounts lose the rest of their grace period. Works while the worker runs, and without it.

    \b
    flask --app wsgi accounts purge --expired --dry-run
    flask --app wsgi accounts purge 42 ann@example.org
    """
    if bool(names) == expired:
        raise click.UsageError("Name accounts by id or e-mail, or give --expired; not both.")
    if force and expired:
        raise click.UsageError("--force is for named accounts: those that are due are not active.")
    only = find(names) if names else None
    planned = _plan(only, force=force)
    total = _totals(planned)
    if not as_json:
        _print_plan(planned, total)
    if dry_run:
        if as_json:
            show_json({"dry_run": True, **total, "would_purge": [_line(one) for one in planned]})
        return
    if not planned:
        if as_json:
            show_json({**total, "purged": 0, "failed": []})
        return
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("There is no terminal to ask at: repeat with --yes.")
        click.confirm("Destroy this for good?", abort=True, err=True)
    ids = [one.account_id for one in planned]
    if only is not None:
        _make_due(ids, force=force)
    _purge(planned, None if only is None else ids, as_json=as_json)


def _plan(only: list[int] | None, *, force: bool) -> list[PlannedPurge]:
    """Return what a purge would destroy, as the sweep itself counts it; fail if it would be refused."""
    settings = services().settings
    with read() as session:
        now = database_now(session)
        if only is None:
            return list(purge.plan(session, now=now, max_attempts=settings.purge_max_attempts))
        for account_id in only:
            account = rows.find(session, account_id)
            if account is not None and account.is_active and not force:
                fail(f"Account {account_id} is active. Deactivate it first, or give --force.")
            if lifecycle.open_holds(session, account_id):
                fail(f"A legal hold suspends the purge of account {account_id}. Release it first.")
        return purge.count(session, only)


def _totals(planned: Sequence[PlannedPurge]) -> dict[str, int]:
    return {
        "accounts": len(planned),
        "saved_passwords": sum(one.saved_passwords for one in planned),
        "files": sum(one.files for one in planned),
    }


def _line(one: PlannedPurge) -> dict[str, Any]:
    return {
        "id": one.account_id,
        "public_id": str(one.public_id),
        "saved_passwords": one.saved_passwords,
        "files": one.files,
    }


def _print_plan(planned: Sequence[PlannedPurge], total: dict[str, int]) -> None:
    for one in planned:
        click.echo(
            f"account {one.account_id}  {one.public_id}  "
            f"{one.saved_passwords} saved passwords, {one.files} files"
        )
    click.echo(
        f"{total['accounts']} accounts, {total['saved_passwords']} saved passwords, "
        f"{total['files']} files"
    )


def _make_due(ids: Sequence[int], *, force: bool) -> None:
    for account_id in ids:
        with write() as session:
            now = database_now(session)
            try:
                account = rows.lock(session, account_id)
            except AccountError:
                continue  # The worker purged it meanwhile.
            if account.is_active and force:
                lifecycle.deactivate(
                    session,
                    account_id,
                    now=now,
                    grace=services().settings.grace_period,
                    by=OPERATOR_ACTOR,
                )
            lifecycle.due_now(session, account_id, now=now, by=OPERATOR_ACTOR)


def _purge(planned: Sequence[PlannedPurge], only: list[int] | None, *, as_json: bool) -> None:
    shown = sys.stdout.isatty() and not as_json
    bar: Any = click.progressbar(length=len(planned), label="Purging") if shown else nullcontext()
    with bar as progress:
        services().sweep(
            only=only,
            by=OPERATOR_ACTOR,
            progress=progress.update if progress is not None else None,
        )
    services().deliver(seconds=30)
    scrubbed = services().scrub(at_most_every=None)
    public_ids = [one.public_id for one in planned]
    gone: set[Any] = set()
    with read() as session:
        for start in range(0, len(public_ids), 500):
            gone.update(
                session.scalars(
                    select(Receipt.public_id).where(
                        Receipt.public_id.in_(public_ids[start : start + 500])
                    )
                )
            )
        owed = outbox.pending(session, database_now(session)).get(outbox.DELETE_FILE, 0)
    left = [one for one in planned if one.public_id not in gone]
    if as_json:
        show_json(
            {
                **_totals([one for one in planned if one.public_id in gone]),
                "purged": len(gone),
                "failed": [one.account_id for one in left],
                "files_owed": owed,
                "scrubbed": scrubbed,
            }
        )
    else:
        click.echo(f"{len(gone)} accounts purged.")
    if owed:
        click.echo(f"{owed} files are still to be deleted; the worker goes on with it.", err=True)
    if not scrubbed:
        click.echo("The database file is scrubbed later: another process reads it.", err=True)
    if left:
        names = ", ".join(str(one.account_id) for one in left[:20])
        fail(f"{len(left)} accounts are left: {names}. `accounts show ID` says why.")


# Deactivate, reactivate, show, list, create -----------------------------------------------------


def _each(
    names: Sequence[str],
    work: Callable[[Session, int, datetime], bool],
    done: str,
    so: str,
    *,
    as_json: bool,
) -> None:
    """Do *work* for each account in a transaction of its own; it says whether anything changed."""
    results = []
    for account_id in find(names):
        with write() as session:
            now = database_now(session)
            changed = work(session, account_id, now)
            shown = document(session, rows.lock(session, account_id), now)
        results.append({"changed": changed, **shown})
        if not as_json:
            until = f"; purge at {shown['purge_at']}" if shown["purge_at"] else ""
            click.echo(f"Account {account_id}: {done if changed else so}{until}.")
    if as_json:
        show_json(results)


@accounts.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|EMAIL…")
@click.option("--reason", help="Stored on the account until its purge.")
@as_json
@sentences
def deactivate(names: tuple[str, ...], *, reason: str | None, as_json: bool) -> None:
    """End all access at once; the purge follows after the grace period."""
    settings = services().settings

    def work(session: Session, account_id: int, now: datetime) -> bool:
        was_active = rows.lock(session, account_id).is_active
        lifecycle.deactivate(
            session,
            account_id,
            now=now,
            grace=settings.grace_period,
            by=OPERATOR_ACTOR,
            reminders=settings.reminders,
            reason=reason,
        )
        return was_active

    _each(names, work, "deactivated", "was deactivated already", as_json=as_json)


@accounts.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|EMAIL…")
@as_json
@sentences
def reactivate(names: tuple[str, ...], *, as_json: bool) -> None:
    """Give accounts back in their grace period, whoever deactivated them."""

    def work(session: Session, account_id: int, now: datetime) -> bool:
        if rows.lock(session, account_id).is_active:
            return False
        lifecycle.reactivate(
            session,
            account_id,
            now=now,
            grace=services().settings.grace_period,
            by=OPERATOR_ACTOR,
        )
        return True

    _each(names, work, "reactivated", "was active already", as_json=as_json)


@accounts.command()
@click.argument("name", metavar="ID|EMAIL")
@as_json
@sentences
def show(name: str, *, as_json: bool) -> None:
    """Show one account: its state, its dates, and why it is not purged."""
    (account_id,) = find([name])
    with read() as session:
        account = rows.find(session, account_id)
        assert account is not None
        shown = document(session, account, database_now(session))
    if as_json:
        show_json(shown)
    else:
        print_account(shown)


@accounts.command("list")
@click.option("--state", type=click.Choice([ACTIVE, DEACTIVATED, DUE]), help="Only these.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only ids above this one.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@as_json
@sentences
def list_command(state: str | None, after: int, limit: int, *, as_json: bool) -> None:
    """List accounts by id, a page at a time."""
    with read() as session:
        now = database_now(session)
        found = core.list_accounts(session, now=now, state=state, after=after, limit=limit + 1)
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
    else:
        for one in page:
            click.echo(
                f"{one['id']:>8}  {one['state']:11}  {one['purge_at'] or '':20}  "
                f"{'staff' if one['is_staff'] else '     '}  {one['username']}  {one['email']}"
            )
        if not page:
            click.echo("No accounts.")
    if len(found) > limit:
        click.echo(f"More: repeat with --after {page[-1]['id']}.", err=True)


@accounts.command()
@click.option("--username", required=True)
@click.option("--email", required=True)
@click.option("--staff", is_flag=True, help="The account may act on others.")
@click.option(
    "--password-stdin",
    is_flag=True,
    help="Read the password from standard input; else it is asked.",
)
@as_json
@sentences
def create(username: str, email: str, *, staff: bool, password_stdin: bool, as_json: bool) -> None:
    """Create an account. The password is never given on the command line, where others could read it."""
    if password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    made = services()
    with made.sessions() as session:
        account = core.sign_up(
            session,
            made.hasher,
            made.keyring,
            {"username": username, "email": email, "password": password},
            is_staff=staff,
            by=OPERATOR_ACTOR,
        )
    if as_json:
        show_json({**core.user_document(account), "public_id": str(account.public_id)})
    else:
        click.echo(f"Account {account.id} created{' for staff' if staff else ''}.")


# Holds, failures, status ------------------------------------------------------------------------


@accounts.command()
@click.argument("name", metavar="ID|EMAIL")
@click.option("--reason", required=True, help="Stored on the account until its purge.")
@as_json
@sentences
def hold(name: str, *, reason: str, as_json: bool) -> None:
    """Place a legal hold: the account is not purged until it is released."""
    (account_id,) = find([name])
    with write() as session:
        now = database_now(session)
        placed = lifecycle.place_hold(
            session, account_id, reason=reason, now=now, by=OPERATOR_ACTOR
        )
        shown = {"account": account_id, "hold": placed.id, "placed_at": stamp(placed.placed_at)}
    if as_json:
        show_json(shown)
    else:
        click.echo(f"Hold {shown['hold']} placed on account {account_id}.")


@accounts.command()
@click.argument("name", metavar="ID|EMAIL")
@click.argument("hold_id", type=click.IntRange(min=1), metavar="HOLD")
@as_json
@sentences
def release(name: str, hold_id: int, *, as_json: bool) -> None:
    """Release a legal hold. After the last one the purge waits at least HOLD_RELEASE_DELAY."""
    (account_id,) = find([name])
    with write() as session:
        now = database_now(session)
        lifecycle.release_hold(
            session,
            account_id,
            hold_id,
            now=now,
            delay=services().settings.hold_release_delay,
            by=OPERATOR_ACTOR,
        )
        shown = document(session, rows.lock(session, account_id), now)
    if as_json:
        show_json(shown)
    else:
        click.echo(f"Hold {hold_id} released; account {account_id} is {shown['state']}.")


@accounts.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|EMAIL…")
@as_json
@sentences
def retry(names: tuple[str, ...], *, as_json: bool) -> None:
    """Let the next sweep try failing or stuck accounts again."""

    def work(session: Session, account_id: int, now: datetime) -> bool:
        return purge.retry(session, account_id, now=now, by=OPERATOR_ACTOR)

    _each(names, work, "will be tried again", "had not failed", as_json=as_json)


@accounts.command()
@as_json
@sentences
def status(*, as_json: bool) -> None:
    """Show what is due, overdue, held, failing and stuck, and what is owed. Exit code 1 if any is stuck."""
    settings = services().settings
    with read() as session:
        now = database_now(session)
        due = lifecycle.deletions(session, now=now, state=DUE, limit=1)
        waiting = select(func.count()).select_from(Account).where(Account.purge_at > now)
        overdue = select(func.count()).select_from(Account).where(Account.purge_at <= now)
        attempts = select(func.count()).select_from(PurgeFailure)
        shown = {
            "deactivated": session.scalar(waiting),
            "due": session.scalar(overdue),
            "oldest_due": stamp(due[0].purge_at) if due else None,
            "held": purge.held(session),
            "failing": session.scalar(attempts),
            "stuck": session.scalar(
                attempts.where(PurgeFailure.attempts >= settings.purge_max_attempts)
            ),
            "owed": outbox.pending(session, now),
            "unscrubbed_receipts": session.scalar(
                select(func.count()).select_from(Receipt).where(Receipt.scrubbed_at.is_(None))
            )
            if settings.is_sqlite
            else 0,
        }
    if as_json:
        show_json(shown)
    else:
        for name, value in shown.items():
            click.echo(f"{name:20} {value if value is not None else '-'}")
    if shown["stuck"]:
        fail(f"{shown['stuck']} accounts are stuck. `accounts show ID` says why.")


@keys.command("rewrap")
@sentences
def rewrap() -> None:
    """Wrap every account's key by the first of VAULT_KEYS; afterwards the others can be removed."""
    done = 0
    while True:
        with write() as session:
            count = vault.rewrap(session, services().keyring, limit=500)
        if not count:
            break
        done += count
    click.echo(f"{done} keys wrapped anew; nothing is left.")


@records.command("verify")
@sentences
def verify() -> None:
    """Check that nobody in the ledger is in the database. Exit code 1 if somebody is."""
    back = _resurrected()
    if back:
        fail(f"{len(back)} purged accounts are back, from a restore? Run `ledger replay`.")
    click.echo("Nobody whom the ledger knows as purged is in the database.")


@records.command("replay")
@click.option("--dry-run", is_flag=True, help="Show what would be destroyed, change nothing.")
@yes
@as_json
@sentences
def replay(*, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Purge again whoever a restore brought back; by public id only, so nobody else can be hit."""
    ids = _resurrected()
    with read() as session:
        planned = purge.count(session, ids)
    if not as_json:
        _print_plan(planned, _totals(planned))
    if dry_run or not planned:
        if as_json:
            show_json({"dry_run": dry_run, "would_purge": [_line(one) for one in planned]})
        return
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("There is no terminal to ask at: repeat with --yes.")
        click.confirm("Purge these again?", abort=True, err=True)
    _make_due(ids, force=True)
    _purge(planned, ids, as_json=as_json)


def _resurrected() -> list[int]:
    """Return the ids of accounts whose public id the ledger knows as purged."""
    import uuid

    known = [uuid.UUID(str(line["public_id"])) for line in services().ledger.read()]
    found: list[int] = []
    with read() as session:
        for start in range(0, len(known), 500):
            found += session.scalars(
                select(Account.id).where(Account.public_id.in_(known[start : start + 500]))
            ).all()
    return found
