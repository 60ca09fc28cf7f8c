"""The operator's doorway: ``flask --app wsgi accounts …``.

Exit codes: 0 when all that was asked is done (or was so already), 1 with a sentence when something is
not, 2 for bad usage. With ``--json`` one document goes to stdout; sentences and logs go to stderr.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, NoReturn, TypeVar, cast

import click
from flask import Flask, current_app
from flask.cli import AppGroup
from sqlalchemy import exists, func, inspect, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..accounts import lifecycle, profiles, vault
from ..db import audit, rows
from ..db.audit import OPERATOR_ACTOR
from ..db.engine import database_now, is_passing_fault, reading, text_problem, writing
from ..db.models import (
    ACTIVE,
    DEACTIVATED,
    DUE,
    MAX_ID,
    Account,
    Effect,
    PurgeFailure,
    Receipt,
    VaultKey,
)
from ..errors import (
    AccountError,
    AccountNotFound,
    InvalidInput,
    LastStaff,
    LegalHold,
    NotDeactivated,
)
from ..monitoring.status import read as read_status
from ..outbox import notices, queue
from ..purge import sweep
from ..purge.sweep import PlannedPurge
from ..services import Services

F = TypeVar("F", bound=Callable[..., Any])

# How long a command waits for what another process has locked, or does at the moment.
PATIENCE = timedelta(seconds=10)

accounts = AppGroup(
    "accounts",
    help="""List, deactivate, reactivate and purge accounts.

    \b
    Accounts are named by id or e-mail:
      flask --app wsgi accounts list --state due
      flask --app wsgi accounts show ann@example.org
      flask --app wsgi accounts purge 42 --dry-run
    """,
)
files = AppGroup("avatars", help="Look after the avatar files.")
keys = AppGroup("vault", help="Look after the keys of the saved passwords.")
sweeps = AppGroup("sweeps", help="Stop all purging, and let it go on.")
records = AppGroup("ledger", help="Check the ledger, and replay it after a restore from a backup.")


def init_app(app: Flask) -> None:
    """Register the commands on ``flask``."""
    for group in (accounts, sweeps, files, keys, records):
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
        except Exception as exc:
            if not isinstance(exc, DBAPIError) and not is_passing_fault(exc):
                raise
            if _lacks_tables():
                fail("The database has no tables yet. Run `python -m accountsvc prepare`.")
            if not is_passing_fault(exc):
                raise
            fail("The database does not answer. Nothing is half-done; repeat the command later.")

    return guarded  # type: ignore[return-value]


def _lacks_tables() -> bool:
    try:
        return not inspect(services().engine).has_table(Account.__tablename__)
    except Exception:
        # It does not answer at all.
        return False


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


@contextmanager
def logs_aside() -> Iterator[None]:
    """Send what the core logs meanwhile to stderr: stdout is for the answer."""
    with redirect_stdout(sys.stderr):
        yield


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
            # What the shell could not decode cannot be asked for either.
            account = None if text_problem(name) else rows.locate(session, name)
            if account is None:
                unknown.append(name)
            else:
                found[account.id] = None
    if unknown:
        shown = ", ".join(name.encode("ascii", "replace").decode() for name in unknown)
        fail(f"Not found: {shown}. Give ids or e-mails; nothing was changed.")
    return list(found)


def document(session: Session, account: Account, now: datetime) -> dict[str, Any]:
    settings = services().settings
    failure = session.get(PurgeFailure, account.id)
    held_by = lifecycle.open_holds(session, account.id)
    planned = sweep.count(session, [account.id])
    return {
        **profiles.user_document(account),
        "public_id": str(account.public_id),
        "state": account.state(now),
        "saved_passwords": planned[0].saved_passwords if planned else 0,
        "deactivated_at": stamp(account.deactivated_at),
        "deactivated_by": account.deactivated_by,
        "purge_at": stamp(account.purge_at),
        "reason": account.reason,
        "blocked_by": None
        if account.is_active
        else sweep.blocked_by(
            failure,
            is_held=bool(held_by),
            max_attempts=settings.purge_max_attempts,
        ),
        "attempts": 0 if failure is None else failure.attempts,
        "error": None if failure is None else failure.error,
        "constraint": None if failure is None else failure.constraint_name,
        "holds": [
            {"id": hold.id, "placed_at": stamp(hold.placed_at), "reason": hold.reason}
            for hold in held_by
        ],
    }


def print_fields(shown: Mapping[str, Any]) -> None:
    for name, value in shown.items():
        if value not in (None, "", [], {}):
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

    Named accounts lose the rest of their grace period; if one of them may not be purged (unknown,
    active, on hold), nothing is. Works while the worker runs, and without it.

    \b
    flask --app wsgi accounts purge --expired --dry-run
    flask --app wsgi accounts purge 42 ann@example.org
    flask --app wsgi accounts purge 42 --force --yes --json

    \b
    Exit codes: 0 all is gone, 1 something is not (it says what), 2 bad usage.
    """
    if bool(names) == expired:
        raise click.UsageError("Name accounts by id or e-mail, or give --expired; not both.")
    if force and expired:
        raise click.UsageError("--force is for named accounts: those that are due are not active.")
    if not dry_run:
        _refuse_if_stopped()
    planned = _plan_named(find(names), force=force) if names else _plan_due()
    if not _confirmed(planned, dry_run=dry_run, yes=yes, as_json=as_json):
        return
    if names:
        with write() as session:
            _refuse(_make_due(session, planned, force=force))
    outcome = _purge(planned)
    if expired:
        # Those that failed before wait for their next try, or for a person: due, but not in the plan.
        outcome.left |= {one: _why_left(one) for one in _troubled() if one not in outcome.left}
        if not outcome.purged:
            # The worker was faster; it may wait an hour before it scrubs again.
            with logs_aside():
                outcome.scrubbed = services().scrub(at_most_every=None)
    _finish(outcome, as_json=as_json)


def _refuse_if_stopped() -> None:
    """Fail, before anything is changed or asked, where a purge would be refused."""
    with read() as session:
        since = sweep.paused_at(session)
    if since is not None:
        fail(f"{_paused(since)} Nothing was changed.")
    try:
        services().refuse_after_restore()
    except sweep.Refused as exc:
        fail(f"{_REFUSALS[type(exc)]} Nothing was changed.")


_REFUSALS: Mapping[type[sweep.Refused], str] = {
    sweep.LedgerBehind: "The ledger cannot be read or written. Mend it first.",
    sweep.PurgedAreBack: "The database is older than its ledger: purged people are back, and who is due may have "
    "come back since. Run `ledger replay` first.",
    sweep.PurgingPaused: "Purging was paused meanwhile. `sweeps resume` ends that.",
}


def _paused(since: datetime) -> str:
    return f"Purging is paused since {stamp(since)}. `sweeps resume` ends that."


def _troubled() -> tuple[int, ...]:
    attempts = services().settings.purge_max_attempts
    with read() as session:
        now = database_now(session)
        found = read_status(session, now=now, max_attempts=attempts, most_ids=1000)
    return found.troubled_ids


def _plan_due() -> list[PlannedPurge]:
    with read() as session:
        now = database_now(session)
        attempts = services().settings.purge_max_attempts
        return list(sweep.plan(session, now=now, max_attempts=attempts))


def _plan_named(ids: Sequence[int], *, force: bool) -> list[PlannedPurge]:
    """Return what purging *ids* destroys; fail if it is refused: by doing it all and taking it back."""

    class TakenBack(Exception):
        pass

    planned: list[PlannedPurge] = []
    refused: dict[int, str] = {}
    try:
        with write() as session:
            planned = sweep.count(session, sorted(ids))
            refused = _make_due(session, planned, force=force)
            raise TakenBack
    except TakenBack:
        _refuse(refused)
    return planned


def _make_due(session: Session, planned: Sequence[PlannedPurge], *, force: bool) -> dict[int, str]:
    """Make accounts due now, active ones only with *force*; return those that are refused, and why.

    An account that is gone meanwhile is passed over: the worker has purged it.
    """
    refused: dict[int, str] = {}
    ids = sorted(one.account_id for one in planned)
    lifecycle.lock_for_deactivation(session, ids)
    for account_id in ids:
        try:
            account = rows.lock(session, account_id)
            if account.is_active and force:
                lifecycle.deactivate(
                    session,
                    account_id,
                    # Not of the promise, which is waived below: how long ago a previous address counts.
                    grace=services().settings.grace_period,
                    by=OPERATOR_ACTOR,
                )
            lifecycle.due_now(session, account_id, by=OPERATOR_ACTOR)
        except AccountNotFound:
            continue
        except NotDeactivated:
            refused[account_id] = "It is active. Deactivate it first, or give --force."
        except (LastStaff, LegalHold) as exc:
            refused[account_id] = str(exc)
    return refused


def _refuse(refused: Mapping[int, str]) -> None:
    if refused:
        why = " ".join(f"Account {account_id}: {text}" for account_id, text in refused.items())
        fail(f"{why} Nothing was changed.")


def _confirmed(planned: Sequence[PlannedPurge], *, dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Show what will be destroyed and ask; False if that is all that is to be done."""
    lines = [_line(one) for one in planned]
    if dry_run and as_json:
        show_json({"dry_run": True, **_totals(lines), "would_purge": lines})
    else:
        _print_plan(lines, most=len(lines) if dry_run else 20, err=as_json)
    if dry_run:
        return False
    if planned:
        _ask("Destroy this for good?", yes=yes)
    return True


def _ask(question: str, *, yes: bool) -> None:
    """Ask at the terminal unless *yes*; end the command at a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask at: repeat with --yes.")
    click.confirm(question, abort=True, err=True)


def _line(one: PlannedPurge) -> dict[str, Any]:
    return {
        "id": one.account_id,
        "public_id": str(one.public_id),
        "saved_passwords": one.saved_passwords,
        "files": one.files,
    }


def _totals(lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {
        "accounts": len(lines),
        "saved_passwords": sum(line["saved_passwords"] for line in lines),
        "files": sum(line["files"] for line in lines),
    }


def _print_plan(lines: Sequence[Mapping[str, Any]], *, most: int, err: bool) -> None:
    if lines:
        click.echo(f"{'ID':>10}  {'PUBLIC ID':36}  {'PASSWORDS':>9}  {'FILES':>5}", err=err)
    for line in lines[:most]:
        click.echo(
            f"{line['id']:>10}  {line['public_id']}  {line['saved_passwords']:>9}  {line['files']:>5}",
            err=err,
        )
    if len(lines) > most:
        click.echo(f"{'…':>10}  and {len(lines) - most} more; --dry-run shows all", err=err)
    click.echo(_sum(_totals(lines)) if lines else "Nothing is to be purged.", err=err)


def _sum(totals: Mapping[str, int]) -> str:
    words = {"accounts": "account", "saved_passwords": "saved password", "files": "file"}
    parts = [f"{n} {words[name]}{'' if n == 1 else 's'}" for name, n in totals.items()]
    return f"{parts[0]}, {parts[1]} and {parts[2]}"


@dataclass
class _Outcome:
    """What became of a plan: what was destroyed, who is left and why, what is still owed."""

    purged: list[dict[str, Any]] = field(default_factory=list)
    left: dict[int, str] = field(default_factory=dict)
    owed: dict[str, int] = field(default_factory=dict)
    scrubbed: bool = True


def _purge(
    planned: Sequence[PlannedPurge],
    refused: Mapping[int, str] | None = None,
    *,
    replaying: bool = False,
) -> _Outcome:
    """Purge just these accounts, then do what that owes, at once; what the worker purged counts too."""
    outcome = _Outcome(left=dict(refused or {}))
    ids = [one.account_id for one in planned if one.account_id not in outcome.left]
    bar: Any = nullcontext()
    if sys.stderr.isatty():
        bar = click.progressbar(length=len(ids), label="Purging", file=sys.stderr)
    stopped = None
    try:
        with bar as shown, logs_aside():
            _sweep(ids, None if shown is None else shown.update, replaying)
        # What another process had locked is its to purge, or free in a moment.
        give_up_at = time.monotonic() + PATIENCE.total_seconds()
        while (waiting := _waiting(planned, outcome.left)) and time.monotonic() <= give_up_at:
            time.sleep(0.2)
            with logs_aside():
                _sweep(waiting, None, replaying)
    except sweep.Refused as exc:
        stopped = _REFUSALS[type(exc)]
    # Only now: who is no longer waited for may have been purged a moment ago.
    receipts = _receipts(planned)
    for one in planned:
        receipt = receipts.get(one.public_id)
        if receipt is not None:
            counts = {"saved_passwords": receipt.saved_passwords, "files": receipt.files}
            outcome.purged.append({**_line(one), **counts})
        elif one.account_id not in outcome.left:
            outcome.left[one.account_id] = stopped or _why_left(one.account_id)
    if outcome.purged:
        outcome.owed = _deliver(list(receipts))
        outcome.scrubbed = not outcome.owed and _scrub(list(receipts))
    return outcome


def _sweep(ids: Sequence[int], progress: sweep.Progress | None, replaying: bool) -> None:
    for page in rows.pages(ids):
        services().sweep(only=page, by=OPERATOR_ACTOR, progress=progress, replaying=replaying)


def _receipts(planned: Sequence[PlannedPurge]) -> dict[uuid.UUID, Receipt]:
    """Return the receipts of those of *planned* who are gone; one of before proves nothing."""
    is_there = exists().where(Account.public_id == Receipt.public_id)
    with read() as session:
        found = [
            receipt
            for page in rows.pages([one.public_id for one in planned])
            for receipt in session.scalars(
                select(Receipt).where(Receipt.public_id.in_(page), ~is_there)
            )
        ]
        session.expunge_all()
    return {receipt.public_id: receipt for receipt in found}


def _waiting(planned: Sequence[PlannedPurge], left: Mapping[int, str]) -> list[int]:
    """Return who is neither purged nor kept by anything that waiting would not change."""
    rest = [one for one in planned if one.account_id not in left]
    with read() as session:
        now = database_now(session)
        found: list[int] = []
        for page in rows.pages([one.account_id for one in rest]):
            found += session.scalars(
                select(Account.id)
                .outerjoin(PurgeFailure)
                .where(Account.id.in_(page), Account.purge_at <= now)
                .where(PurgeFailure.account_id.is_(None))
            )
        return [account_id for account_id in found if not lifecycle.open_holds(session, account_id)]


def _why_left(account_id: int) -> str:
    with read() as session:
        account = rows.find(session, account_id)
        failure = session.get(PurgeFailure, account_id)
        if account is None:
            return "It is gone without a receipt."
        if lifecycle.open_holds(session, account_id):
            return LegalHold.message
        if failure is not None:
            constraint = f" ({failure.constraint_name})" if failure.constraint_name else ""
            return f"It failed with {failure.error}{constraint}, {failure.attempts} times by now."
        if account.is_active:
            return "It was reactivated meanwhile."
        return "Another process works on it. Repeat the command."


def _deliver(public_ids: Sequence[uuid.UUID]) -> dict[str, int]:
    """Deliver what the purge owes; return what is still owed when a try has failed or nothing moves."""
    give_up_at = time.monotonic() + PATIENCE.total_seconds()
    before: int | None = None
    while True:
        with logs_aside():
            services().deliver(seconds=5)
        owed, failed = _owed(public_ids)
        count = sum(owed.values())
        if count == failed:
            return owed
        if before is None or count < before:
            give_up_at = time.monotonic() + PATIENCE.total_seconds()
        elif time.monotonic() > give_up_at:
            return owed
        before = count
        time.sleep(0.1)


def _owed(public_ids: Sequence[uuid.UUID]) -> tuple[dict[str, int], int]:
    """Count what is owed for purged accounts, by kind, and how much of it was tried in vain."""
    owed: dict[str, int] = {}
    failed = 0
    of_ours = Effect.kind.in_([queue.DELETE_FILE, notices.PURGED])
    conditions = [of_ours & Effect.subject.in_(page) for page in rows.pages(public_ids)]
    with read() as session:
        for condition in [Effect.kind == queue.LEDGER, *conditions]:
            for kind, count, tried in session.execute(
                select(Effect.kind, func.count(), func.count(Effect.last_error))
                .where(condition)
                .group_by(Effect.kind)
            ):
                owed[kind] = owed.get(kind, 0) + count
                failed += tried
    return owed, failed


def _scrub(public_ids: Sequence[uuid.UUID]) -> bool:
    """Scrub at once; False if a reader was in the way all the time. PostgreSQL: nothing to do."""
    if not services().settings.is_sqlite:
        return True
    give_up_at = time.monotonic() + PATIENCE.total_seconds()
    while True:
        with logs_aside():
            services().scrub(at_most_every=None)
        with read() as session:
            covered = sum(
                session.scalar(
                    select(func.count()).where(
                        Receipt.public_id.in_(page), Receipt.scrubbed_at.is_not(None)
                    )
                )
                or 0
                for page in rows.pages(public_ids)
            )
        if covered == len(public_ids):
            return True
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.2)


_OWED = {
    queue.DELETE_FILE: "files are still to be deleted",
    queue.LEDGER: "ledger lines are still to be written",
    notices.PURGED: "mails are still to be sent",
}


def _finish(outcome: _Outcome, *, as_json: bool) -> None:
    """Say what was done and what is left; exit code 1 if anything is."""
    if as_json:
        show_json(
            {
                "dry_run": False,
                **_totals(outcome.purged),
                "purged": outcome.purged,
                "left": [{"id": one, "reason": why} for one, why in outcome.left.items()],
                "owed": outcome.owed,
                "scrubbed": outcome.scrubbed,
            }
        )
    elif outcome.purged:
        click.echo(f"Purged: {_sum(_totals(outcome.purged))}.")
    for kind, count in outcome.owed.items():
        click.echo(f"Left: {count} {_OWED[kind]}; the worker goes on trying.", err=True)
    if not outcome.scrubbed:
        click.echo("Left: the database file is not scrubbed yet; the worker does it.", err=True)
    for account_id, why in outcome.left.items():
        click.echo(f"Left: account {account_id}. {why}", err=True)
    if outcome.owed or outcome.left or not outcome.scrubbed:
        sys.exit(1)


# Deactivate, reactivate, show, list, create -----------------------------------------------------


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
    with write() as session:
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


@accounts.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|EMAIL…")
@click.option("--reason", help="Stored on the account until its purge.")
@as_json
@sentences
def deactivate(names: tuple[str, ...], *, reason: str | None, as_json: bool) -> None:
    """End all access at once; the purge follows after the grace period.

    \b
    flask --app wsgi accounts deactivate ann@example.org --reason "asked by letter"
    """
    settings = services().settings

    def work(session: Session, account_id: int) -> bool:
        was_active = rows.lock(session, account_id).is_active
        account = lifecycle.deactivate(
            session,
            account_id,
            grace=settings.grace_period,
            by=OPERATOR_ACTOR,
            reminders=settings.reminders,
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


@accounts.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|EMAIL…")
@as_json
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
            grace=services().settings.grace_period,
            by=OPERATOR_ACTOR,
        )
        return True

    _each(names, work, "is active again", "was active already", as_json=as_json)


@accounts.command()
@click.argument("name", metavar="ID|EMAIL")
@as_json
@sentences
def show(name: str, *, as_json: bool) -> None:
    """Show one account: its state, its dates, and why it is not purged."""
    (account_id,) = find([name])
    with read() as session:
        account = rows.find(session, account_id)
        if account is None:
            raise AccountNotFound
        shown = document(session, account, database_now(session))
    if as_json:
        show_json(shown)
    else:
        print_fields(shown)


@accounts.command("list")
@click.option("--state", type=click.Choice([ACTIVE, DEACTIVATED, DUE]), help="Only these.")
@click.option("--after", type=click.IntRange(0, MAX_ID), default=0, help="Only ids above this one.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@as_json
@sentences
def list_command(state: str | None, after: int, limit: int, *, as_json: bool) -> None:
    """List accounts by id, a page at a time.

    \b
    flask --app wsgi accounts list --state deactivated --limit 20
    """
    with read() as session:
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


@accounts.command()
@click.option("--username", required=True)
@click.option("--email", required=True)
@click.option("--staff", is_flag=True, help="The account may act on others.")
@as_json
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
    with made.sessions() as session:
        account = profiles.sign_up(
            session,
            made.hasher,
            made.keyring,
            {"username": username, "email": email, "password": password},
            is_staff=staff,
            by=OPERATOR_ACTOR,
        )
    if as_json:
        show_json({**profiles.user_document(account), "public_id": str(account.public_id)})
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
        placed = lifecycle.place_hold(session, account_id, reason=reason, by=OPERATOR_ACTOR)
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
    """Release a legal hold. After the last one the purge waits at least HOLD_RELEASE_DELAY.

    `accounts show` lists the holds of an account.
    """
    (account_id,) = find([name])
    with write() as session:
        lifecycle.release_hold(
            session,
            account_id,
            hold_id,
            delay=services().settings.hold_release_delay,
            by=OPERATOR_ACTOR,
        )
        shown = document(session, rows.lock(session, account_id), database_now(session))
    if as_json:
        show_json(shown)
    else:
        until = f", purge at {shown['purge_at']}" if shown["purge_at"] else ""
        click.echo(f"Hold {hold_id} released; account {account_id} is {shown['state']}{until}.")


@accounts.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|EMAIL…")
@as_json
@sentences
def retry(names: tuple[str, ...], *, as_json: bool) -> None:
    """Let the next sweep try failing or stuck accounts again.

    Mend the cause first: `accounts show` names the error and the constraint.
    """

    def work(session: Session, account_id: int) -> bool:
        return sweep.retry(session, account_id, now=database_now(session), by=OPERATOR_ACTOR)

    _each(names, work, "will be tried again", "had not failed", as_json=as_json)


@accounts.command()
@as_json
@sentences
def status(*, as_json: bool) -> None:
    """Show what is due, overdue, held, failing and stuck, and what is owed.

    Exit code 1 if an account is stuck.
    """
    settings = services().settings
    with read() as session:
        now = database_now(session)
        found = read_status(session, now=now, max_attempts=settings.purge_max_attempts)
    if found.paused_at is not None and not as_json:
        click.echo(_paused(found.paused_at), err=True)
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


# The brake --------------------------------------------------------------------------------------


@sweeps.command()
@as_json
@sentences
def pause(*, as_json: bool) -> None:
    """Stop all purging: by the workers and by `accounts purge`, until `sweeps resume`.

    A batch under way ends first, within seconds. Accounts can be deactivated and reactivated meanwhile,
    mails go out, and what is due waits.
    """
    _brake(sweep.pause, "Purging is paused.", "Purging was paused already.", as_json=as_json)


@sweeps.command()
@as_json
@sentences
def resume(*, as_json: bool) -> None:
    """Let purging go on: the next sweep takes what is due."""
    _brake(sweep.resume, "Purging goes on.", "Purging was not paused.", as_json=as_json)


def _brake(work: Callable[..., bool], done: str, so: str, *, as_json: bool) -> None:
    with write() as session:
        changed = work(session, now=database_now(session), by=OPERATOR_ACTOR)
        since = sweep.paused_at(session)
    if as_json:
        show_json({"changed": changed, "paused_at": stamp(since)})
    else:
        click.echo(done if changed else so)


# Avatar files -----------------------------------------------------------------------------------


@files.command("orphans")
@click.option("--delete", is_flag=True, help="Delete them, through the outbox.")
@click.option("--force", is_flag=True, help="Also if there are more of them than accounts show.")
@yes
@as_json
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
    with read() as session:
        now = database_now(session)
    total = shown = 0
    found: list[profiles.StoredAvatar] = []
    for one in profiles.stored_avatars(made.sessions, made.avatars, now=now):
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
        _ask("Delete these files for good?", yes=yes)
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
    for page in rows.pages(keys):
        with write() as session:
            profiles.delete_orphaned_avatars(
                session, page, now=database_now(session), by=OPERATOR_ACTOR
            )
    with logs_aside():
        while services().deliver(kinds=[queue.DELETE_FILE], seconds=30).more:
            pass
    with read() as session:
        return sum(len(session.scalars(queue.files_owed(page)).all()) for page in rows.pages(keys))


@keys.command("rewrap")
@as_json
@sentences
def rewrap(*, as_json: bool) -> None:
    """Wrap every account's key by the first of VAULT_KEYS; then the others can be removed.

    Saved passwords are not touched. Safe while everything runs, and to repeat.
    """
    keyring = services().keyring
    done = 0
    while True:
        with write() as session:
            count = vault.rewrap(session, keyring, limit=rows.PAGE)
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
    with read() as session:
        # Those that another process had locked were passed over.
        others = select(func.count()).where(VaultKey.wrapped_by != keyring.newest)
        left = session.scalar(others) or 0
    if as_json:
        show_json({"rewrapped": done, "left": left})
    else:
        click.echo(f"{done} keys wrapped anew.")
    if left:
        fail(f"{left} keys are still wrapped by an older one. Repeat the command.")


# The ledger -------------------------------------------------------------------------------------


@records.command("verify")
@as_json
@sentences
def verify(*, as_json: bool) -> None:
    """Compare the ledger with the database. Exit code 1 if they disagree.

    Nobody in the ledger may have an account (a restore brings people back), and every receipt has a
    line in the ledger, unless that is still owed.
    """
    known = _ledger()
    back = _back(known)
    with read() as session:
        receipts = set(session.scalars(select(Receipt.public_id)))
        owed = {
            uuid.UUID(str(line["public_id"]))
            for payload in session.scalars(
                select(Effect.payload).where(Effect.kind == queue.LEDGER)
            )
            for line in payload["lines"]
        }
    missing = receipts - set(known) - owed
    if as_json:
        show_json(
            {
                "lines": len(known),
                "receipts": len(receipts),
                "owed": len(owed),
                "back": [one.account_id for one in back],
                "missing": sorted(str(public_id) for public_id in missing),
            }
        )
    else:
        click.echo(f"{len(known)} purged accounts in the ledger, {len(receipts)} receipts.")
    if back:
        click.echo(f"{len(back)} purged accounts are back: run `ledger replay`.", err=True)
    if missing:
        click.echo(f"{len(missing)} receipts are not in the ledger.", err=True)
    if back or missing:
        sys.exit(1)


@records.command("replay")
@click.option("--dry-run", is_flag=True, help="Show what would be destroyed, change nothing.")
@yes
@as_json
@sentences
def replay(*, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Purge again whoever a restore brought back.

    By public id only: whoever has got an account's number since cannot be hit. Works while purging is
    paused, so that nothing else is purged before you have looked.

    \b
    flask --app wsgi ledger replay --dry-run
    flask --app wsgi ledger replay
    """
    planned = _back(_ledger())
    if not _confirmed(planned, dry_run=dry_run, yes=yes, as_json=as_json):
        return
    refused: dict[int, str] = {}
    for page in rows.pages(planned):
        with write() as session:
            refused |= _make_due(session, page, force=True)
    _finish(_purge(planned, refused, replaying=True), as_json=as_json)


def _ledger() -> list[uuid.UUID]:
    return [uuid.UUID(str(line["public_id"])) for line in services().ledger.read()]


def _back(known: Sequence[uuid.UUID]) -> list[PlannedPurge]:
    """Return what purging those accounts would destroy whose public id the ledger knows."""
    with read() as session:
        ids = [
            account_id
            for page in rows.pages(known)
            for account_id in session.scalars(select(Account.id).where(Account.public_id.in_(page)))
        ]
        return sweep.count(session, ids)
