"""Commands that purge, and those that stop all purging."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from flask.cli import AppGroup

from ..db.audit import OPERATOR_ACTOR
from ..db.engine import database_now
from ..errors import LastStaff, LegalHold
from ..outbox import notices, queue
from ..purge import brake
from ..purge.at_once import Kept, NotPurgeable, Obstacle, PurgeReport
from ..purge.brake import LedgerBehind, PurgedAreBack, PurgingPaused
from ..purge.claim import PlannedPurge
from ..purge.sweep import Progress
from ..web import services
from .accounts import accounts_group
from .console import (
    ask,
    fail,
    find,
    json_option,
    logs_aside,
    paused,
    sentences,
    show_json,
    stamp,
    yes_option,
)

sweeps_group = AppGroup("sweeps", help="Stop all purging, and let it go on.")


@accounts_group.command("purge")
@click.argument("names", nargs=-1, metavar="[ID|EMAIL]…")
@click.option("--expired", is_flag=True, help="All accounts that are due.")
@click.option("--force", is_flag=True, help="Also active accounts: deactivate them first.")
@click.option("--dry-run", is_flag=True, help="Show what would be destroyed, change nothing.")
@yes_option
@json_option
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
    purge_now = services().purge_now
    try:
        if not dry_run:
            purge_now.refuse_if_stopped()
        planned = purge_now.plan_named(find(names), force=force) if names else purge_now.plan_due()
        if not confirm(planned, dry_run=dry_run, yes=yes, as_json=as_json):
            return
        with progress_bar(planned) as progress:
            report = (
                purge_now.purge_named(planned, force=force, progress=progress)
                if names
                else purge_now.purge_due(planned, progress)
            )
    except NotPurgeable as exc:
        why = " ".join(
            f"Account {account_id}: {_why(kept)}" for account_id, kept in exc.kept.items()
        )
        fail(f"{why} Nothing was changed.")
    except PurgingPaused:
        with services().reading() as session:
            since = brake.paused_at(session)
        fail(f"{paused(since)} Nothing was changed.")
    except LedgerBehind:
        fail(f"{_OBSTACLES[Obstacle.LEDGER_BEHIND]} Nothing was changed.")
    except PurgedAreBack:
        fail(f"{_OBSTACLES[Obstacle.PURGED_ARE_BACK]} Nothing was changed.")
    finish(report, as_json=as_json)


_OBSTACLES: Mapping[Obstacle, str] = {
    Obstacle.ACTIVE: "It is active. Deactivate it first, or give --force.",
    Obstacle.LAST_STAFF: LastStaff.message,
    Obstacle.HELD: LegalHold.message,
    Obstacle.REACTIVATED: "It was reactivated meanwhile.",
    Obstacle.BUSY: "Another process works on it. Repeat the command.",
    Obstacle.NO_RECEIPT: "It is gone without a receipt.",
    Obstacle.PAUSED: "Purging was paused meanwhile. `sweeps resume` ends that.",
    Obstacle.LEDGER_BEHIND: "The ledger cannot be read or written. Mend it first.",
    Obstacle.PURGED_ARE_BACK: "The database is older than its ledger: purged people are back, and "
    "who is due may have come back since. Run `ledger replay` first.",
}


def _why(kept: Kept) -> str:
    if kept.failure is None:
        return _OBSTACLES[kept.obstacle]
    failure = kept.failure
    constraint = f" ({failure.constraint_name})" if failure.constraint_name else ""
    return f"It failed with {failure.error}{constraint}, {failure.attempts} times by now."


@contextmanager
def progress_bar(planned: Sequence[PlannedPurge]) -> Iterator[Progress | None]:
    """Show at a terminal how many of *planned* are dealt with."""
    with logs_aside():
        if not sys.stderr.isatty():
            yield None
            return
        bar = click.progressbar(length=len(planned), label="Purging", file=sys.stderr)
        with bar as shown:
            yield shown.update


def confirm(planned: Sequence[PlannedPurge], *, dry_run: bool, yes: bool, as_json: bool) -> bool:
    """Show what will be destroyed and ask; False if that is all that is to be done."""
    lines = [_line(one) for one in planned]
    if dry_run and as_json:
        show_json({"dry_run": True, **_totals(lines), "would_purge": lines})
    else:
        _print_plan(lines, most=len(lines) if dry_run else 20, err=as_json)
    if dry_run:
        return False
    if planned:
        ask("Destroy this for good?", yes=yes)
    return True


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


_OWED = {
    queue.DELETE_FILE: "files are still to be deleted",
    queue.LEDGER: "ledger lines are still to be written",
    notices.PURGED: "mails are still to be sent",
}


def finish(report: PurgeReport, *, as_json: bool) -> None:
    """Say what was done and what is left; exit code 1 if anything is."""
    purged = [_line(one) for one in report.purged]
    if as_json:
        show_json(
            {
                "dry_run": False,
                **_totals(purged),
                "purged": purged,
                "left": [
                    {"id": account_id, "reason": _why(kept)}
                    for account_id, kept in report.kept.items()
                ],
                "owed": report.owed,
                "scrubbed": report.scrubbed,
            }
        )
    elif purged:
        click.echo(f"Purged: {_sum(_totals(purged))}.")
    for kind, count in report.owed.items():
        click.echo(f"Left: {count} {_OWED[kind]}; the worker goes on trying.", err=True)
    if not report.scrubbed:
        click.echo("Left: the database file is not scrubbed yet; the worker does it.", err=True)
    for account_id, kept in report.kept.items():
        click.echo(f"Left: account {account_id}. {_why(kept)}", err=True)
    if report.owed or report.kept or not report.scrubbed:
        sys.exit(1)


@sweeps_group.command()
@json_option
@sentences
def pause(*, as_json: bool) -> None:
    """Stop all purging: by the workers and by `accounts purge`, until `sweeps resume`.

    A batch under way ends first, within seconds. Accounts can be deactivated and reactivated meanwhile,
    mails go out, and what is due waits.
    """
    _brake(brake.pause, "Purging is paused.", "Purging was paused already.", as_json=as_json)


@sweeps_group.command()
@json_option
@sentences
def resume(*, as_json: bool) -> None:
    """Let purging go on: the next sweep takes what is due."""
    _brake(brake.resume, "Purging goes on.", "Purging was not paused.", as_json=as_json)


def _brake(work: Callable[..., bool], done: str, so: str, *, as_json: bool) -> None:
    with services().writing() as session:
        changed = work(session, now=database_now(session), by=OPERATOR_ACTOR)
        since = brake.paused_at(session)
    if as_json:
        show_json({"changed": changed, "paused_at": stamp(since)})
    else:
        click.echo(done if changed else so)
