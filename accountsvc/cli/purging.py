"""Commands that purge, and those that pause all purging."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from flask.cli import AppGroup

from ..db import rows
from ..db.audit import OPERATOR_ACTOR
from ..errors import LastStaff, LegalHold
from ..outbox import notices, queue
from ..purge import stops
from ..purge.at_once import STOPS, Kept, NotPurgeable, Obstacle, PurgeReport
from ..purge.claim import PlannedPurge
from ..purge.clocks import ClocksDiffer
from ..purge.stops import PurgingPaused
from ..purge.sweep import Progress
from ..web import services
from .accounts import accounts_group
from .console import (
    ask,
    fail,
    find,
    json_option,
    logs_aside,
    refuse_without_signing_key,
    sentences,
    show_json,
    show_lines,
    yes_option,
)
from .words import Column, clocks_differ, count, paused, stamp, table

# A plan shows so many accounts at most: more would scroll its totals, which are of all, and the
# question behind them out of sight.
MOST_SHOWN = 20

_NOTHING = "Nothing is to be purged."

sweeps_group = AppGroup(
    "sweeps",
    help="""Stop all purging, let it go on, let more go than the brake does.

    \b
    flask --app wsgi sweeps pause
    flask --app wsgi sweeps resume
    flask --app wsgi sweeps allow --clock
    flask --app wsgi sweeps allow --up-to 200 --reason "a school has closed"

    \b
    Exit codes: 0 done, or so already; 1 it cannot be done (it says why); 2 bad usage.
    """,
)


@accounts_group.command("purge")
@click.argument("names", nargs=-1, metavar="[ID|NUMBER|EMAIL]…")
@click.option("--expired", is_flag=True, help="All accounts that are due.")
@click.option("--force", is_flag=True, help="Also active accounts: deactivate them first.")
@click.option("--dry-run", is_flag=True, help="Do it and take it back: show who would be gone.")
@yes_option
@json_option
@sentences
def purge(
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
    active, on hold), nothing is. An e-mail has to be exact. Works while the worker runs, and
    without it.

    A dry run does all of that in the database, batch by batch, and takes each back: it names who
    would not be purged, and why. The table with names goes to stderr.

    \b
    flask --app wsgi accounts purge --expired --dry-run
    flask --app wsgi accounts purge 42 ann@example.org
    flask --app wsgi accounts purge 42 --force --yes --json

    \b
    Exit codes: 0 rows and files are gone, and the ledger has it (a mail or the
    scrub of the database may be left, it says so); 1 something is not, also if
    nobody is due and an earlier purge could not do it (it says what);
    2 bad usage.
    """
    if bool(names) == expired:
        raise click.UsageError(
            "Name accounts by id, number or e-mail, or give --expired; not both."
        )
    if force and expired:
        raise click.UsageError("--force is for named accounts: those that are due are not active.")
    purge_now = services().purge_now
    with refusals():
        if dry_run:
            say_if_stopped(services().rehearsal.refuse_if_stopped)
        else:
            refuse_without_signing_key()
            with logs_aside():
                purge_now.refuse_if_stopped()
        ids = find(names, exactly=True)
        waiting: list[PlannedPurge] = []
        if names:
            planned = purge_now.plan_named(ids, force=force)
        else:
            planned, waiting = services().rehearsal.split_by_brake(purge_now.plan_due())
        if not dry_run:
            confirm(planned, waiting=len(waiting), yes=yes, as_json=as_json)
        run = services().rehearsal if dry_run else purge_now
        with progress_bar(planned, dry_run=dry_run) as progress:
            if names:
                report = run.purge_named(planned, force=force, progress=progress)
            else:
                report = run.purge_due(planned, progress, waiting=waiting)
    finish(report, dry_run=dry_run, as_json=as_json, waiting=waiting)


OBSTACLES: Mapping[Obstacle, str] = {
    Obstacle.ACTIVE: "It is active. Deactivate it first, or give --force.",
    Obstacle.LAST_STAFF: LastStaff.message,
    Obstacle.HELD: LegalHold.message,
    Obstacle.UNEXPLAINED: "It is unexplained: nobody has promised its purge. "
    "`accounts accept` promises it.",
    Obstacle.REACTIVATED: "It was reactivated meanwhile.",
    Obstacle.BUSY: "Another process works on it. Repeat the command.",
    Obstacle.NO_RECEIPT: "It is gone without a receipt.",
    Obstacle.BRAKED: "The brake holds. It goes with a later sweep, or by `sweeps allow`.",
    Obstacle.PAUSED: "Purging was paused meanwhile. `sweeps resume` ends that.",
    Obstacle.LEDGER_BEHIND: "The ledger cannot be read or written. Mend it first.",
    Obstacle.LEDGER_UNREADABLE: "The ledger cannot be read. Mend it first.",
    Obstacle.LEDGER_GONE: "The ledger is empty though it was written. Give LEDGER_URL its store "
    "back, or run `ledger rebuild`; `ledger adopt` if a key was replaced.",
    Obstacle.DATABASE_BEHIND: "The database is older than its ledger: purged people are back, and "
    "who is due may have come back since. Run `ledger replay` first.",
    Obstacle.CLOCKS_DIFFER: "Two clocks differ by more than 5 minutes. Set the wrong one right; "
    "`accounts status` says which.",
    Obstacle.CLOCK_MOVED: "The database's clock has moved. Purging goes on by itself when it is "
    "back; if it is right as it is, run `sweeps allow --clock`.",
}


@contextmanager
def refusals() -> Iterator[None]:
    """End the command with a sentence where the core has refused before it changed anything."""
    try:
        yield
    except NotPurgeable as exc:
        reasons = [f"Account {account_id}: {_why(kept)}" for account_id, kept in exc.kept.items()]
        fail(f"{' '.join(reasons)} Nothing was changed.")
    except stops.Refused as exc:
        fail(f"{_stopped(exc)} Nothing was changed.")


def _stopped(exc: stops.Refused) -> str:
    """Say why nothing may be purged now."""
    if isinstance(exc, PurgingPaused):
        with services().reading() as session:
            since = stops.paused_at(session)
        return paused(since)
    if isinstance(exc, ClocksDiffer):
        return clocks_differ(exc)
    return OBSTACLES[STOPS[type(exc)]]


def say_if_stopped(refuse: Callable[[], None]) -> None:
    """Say on stderr that the real run would be refused, if *refuse* does; the dry run goes on."""
    try:
        with logs_aside():
            refuse()
    except stops.Refused as exc:
        click.echo(f"A purge is refused now. {_stopped(exc)}", err=True)


def _why(kept: Kept, *, once: str = "1 time") -> str:
    failure = kept.failure
    if failure is None:
        return OBSTACLES[kept.obstacle]
    constraint = f" ({failure.constraint_name})" if failure.constraint_name else ""
    times = once if failure.attempts == 1 else f"{failure.attempts} times"
    return f"It failed with {failure.error}{constraint}, {times} by now."


@contextmanager
def progress_bar(
    planned: Sequence[PlannedPurge], *, dry_run: bool = False
) -> Iterator[Progress | None]:
    """Show at a terminal how many of *planned* are dealt with; send logs to stderr meanwhile."""
    with logs_aside():
        if not planned or not sys.stderr.isatty():
            yield None
            return
        label = "Rehearsing" if dry_run else "Purging"
        bar = click.progressbar(length=len(planned), label=label, file=sys.stderr)
        with bar as shown:
            yield shown.update


def confirm(planned: Sequence[PlannedPurge], *, waiting: int, yes: bool, as_json: bool) -> None:
    """Show on stderr whom a purge would destroy, and ask; end the command at a no.

    So many more are *waiting* for the brake.
    """
    if not planned:
        click.echo(_NOTHING, err=as_json)
        return
    show_lines(plan_lines(planned), err=True)
    if waiting:
        click.echo(f"Not among these: {_wait(waiting)}", err=True)
    ask("Destroy this for good?", yes=yes)


def _purge_document(planned: PlannedPurge) -> dict[str, Any]:
    return {
        "id": planned.account_id,
        "public_id": str(planned.public_id),
        "saved_passwords": planned.saved_passwords,
        "files": planned.files,
    }


def _totals(planned: Sequence[PlannedPurge]) -> dict[str, int]:
    return {
        "accounts": len(planned),
        "saved_passwords": sum(plan.saved_passwords for plan in planned),
        "files": sum(plan.files for plan in planned),
    }


def plan_lines(planned: Sequence[PlannedPurge]) -> Iterator[str]:
    """Yield the first of *planned* with their names, by which a person sees who it is.

    For stderr alone: what goes to stdout may end in a file that nobody purges.
    """
    yield from _first(planned)
    yield _total(planned)


def _first(planned: Sequence[PlannedPurge]) -> Iterator[str]:
    shown = planned[:MOST_SHOWN]
    with services().reading() as session:
        names = rows.names(session, [plan.account_id for plan in shown])
    yield from table(
        ["ID", "PUBLIC ID", "PASSWORDS", "FILES", Column("USERNAME", most=32), "E-MAIL"],
        [
            [*_purge_document(plan).values(), *names.get(plan.account_id, (None, None))]
            for plan in shown
        ],
    )
    if len(planned) > MOST_SHOWN:
        yield f"… and {len(planned) - MOST_SHOWN:,} more"


def _total(planned: Sequence[PlannedPurge]) -> str:
    totals = _totals(planned)
    accounts = count(totals["accounts"], "account")
    passwords = count(totals["saved_passwords"], "saved password")
    return f"{accounts}, {passwords} and {count(totals['files'], 'file')}"


def finish(
    report: PurgeReport,
    *,
    as_json: bool,
    dry_run: bool = False,
    also: Mapping[str, object] | None = None,
    waiting: Sequence[PlannedPurge] = (),
    files_may_wait: bool = False,
) -> None:
    """Report a purge or its dry run; exit with code 1 if somebody or something is not gone.

    A mail and a scrub that are still to come are said, and leave the code at 0; with
    *files_may_wait* so do files that wait until purging goes on.

    The JSON document has the members of *also* besides. A dry run shows on stderr the first of
    those who are *waiting* for the brake, too.
    """
    if dry_run and report.purged:
        show_lines(plan_lines(report.purged), err=True)
    elif dry_run:
        click.echo(_NOTHING, err=as_json)
    if dry_run and waiting:
        click.echo("Would wait for the brake:", err=True)
        show_lines(_first(waiting), err=True)
    if as_json:
        show_json({**_report_document(report, dry_run=dry_run), **(also or {})})
    elif report.purged:
        click.echo(f"{'Would be purged' if dry_run else 'Purged'}: {_total(report.purged)}.")
    for kind, number in report.owed.items():
        effects, done = _OWED[kind]
        still = f"{count(number, *effects)} still to be {done}"
        click.echo(f"Left: {still}; the worker goes on trying.", err=True)
    if report.paused:
        files = count(report.paused, "file waits", "files wait")
        click.echo(f"Left: {files} until purging goes on: `sweeps resume`.", err=True)
    if not report.scrubbed:
        click.echo("Left: the database file is not scrubbed yet; the worker does it.", err=True)
    left = "Would be left" if dry_run else "Left"
    braked = sum(kept.obstacle is Obstacle.BRAKED for kept in report.kept.values())
    if braked:
        # One line: a line for each of thousands would hide the others.
        click.echo(f"{left}: {_wait(braked)}", err=True)
    for account_id, kept in report.kept.items():
        if kept.obstacle is not Obstacle.BRAKED:
            click.echo(f"{left}: account {account_id}. {_why(kept)}", err=True)
    if not report.is_done or (report.paused and not files_may_wait):
        sys.exit(1)


def _wait(number: int) -> str:
    wait = count(number, "account waits", "accounts wait")
    return (
        f"{wait} for the brake. Look who they are (`accounts list --state due`); they go with "
        "later sweeps, oldest first, or by `sweeps allow --up-to N --reason …`."
    )


def _report_document(report: PurgeReport, *, dry_run: bool) -> dict[str, Any]:
    purged = [_purge_document(purged) for purged in report.purged]
    # Programs compare this sentence, so it keeps its words.
    left = [
        {"id": account_id, "reason": _why(kept, once="1 times")}
        for account_id, kept in report.kept.items()
    ]
    shown = {"dry_run": dry_run, **_totals(report.purged)}
    if dry_run:
        return {**shown, "would_purge": purged, "would_leave": left}
    return {
        **shown,
        "purged": purged,
        "left": left,
        "owed": report.owed,
        "scrubbed": report.scrubbed,
        "paused": report.paused,
    }


# A purge owes effects of these kinds: the words for one, for several, and for what is still to be
# done. A kind without words would end the report with an error.
_OWED = {
    queue.DELETE_FILE: (("file is", "files are"), "deleted"),
    queue.LEDGER: (("batch is", "batches are"), "written to the ledger"),
    notices.PURGED: (("mail is", "mails are"), "sent"),
}


@sweeps_group.command()
@json_option
@sentences
def pause(*, as_json: bool) -> None:
    """Stop all purging until `sweeps resume`.

    By the workers and by `accounts purge`; only `ledger replay` still purges. A batch under way
    ends first, within seconds. Accounts can be deactivated and reactivated meanwhile, mails go out,
    and what is due waits; so do files that are to be deleted.

    \b
    flask --app wsgi sweeps pause

    \b
    Exit codes: 0 purging is paused, or was already; 1 the database does not
    answer; 2 bad usage.
    """
    _change_pause(
        stops.pause,
        done="Purging is paused.",
        already="Purging was paused already.",
        as_json=as_json,
    )


@sweeps_group.command()
@json_option
@sentences
def resume(*, as_json: bool) -> None:
    """Let purging go on: the next sweep takes what is due.

    \b
    flask --app wsgi sweeps resume

    \b
    Exit codes: 0 purging goes on, or did already; 1 the database does not
    answer; 2 bad usage.
    """
    _change_pause(
        stops.resume,
        done="Purging goes on.",
        already="Purging was not paused.",
        as_json=as_json,
    )


def _change_pause(change: Callable[..., bool], *, done: str, already: str, as_json: bool) -> None:
    with services().writing() as session:
        changed = change(session, by=OPERATOR_ACTOR)
        since = stops.paused_at(session)
    if as_json:
        show_json({"changed": changed, "paused_at": stamp(since)})
    else:
        click.echo(done if changed else already)
