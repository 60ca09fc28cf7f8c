"""Commands that purge, and those that stop all purging."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import click
from flask.cli import AppGroup, with_appcontext
from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from ..accounts import lifecycle
from ..db import rows
from ..db.audit import OPERATOR_ACTOR
from ..db.engine import database_now
from ..db.models import (
    Account,
    Effect,
    PurgeFailure,
    Receipt,
)
from ..errors import (
    AccountNotFound,
    LastStaff,
    LegalHold,
    NotDeactivated,
)
from ..monitoring.status import read as read_status
from ..outbox import notices, queue
from ..purge import brake, claim, sweep
from ..purge.claim import PlannedPurge
from .console import (
    PATIENCE,
    as_json,
    ask,
    fail,
    find,
    logs_aside,
    read,
    sentences,
    services,
    show_json,
    stamp,
    write,
    yes,
)

sweeps = AppGroup("sweeps", help="Stop all purging, and let it go on.")


@click.command("purge")
@click.argument("names", nargs=-1, metavar="[ID|EMAIL]…")
@click.option("--expired", is_flag=True, help="All accounts that are due.")
@click.option("--force", is_flag=True, help="Also active accounts: deactivate them first.")
@click.option("--dry-run", is_flag=True, help="Show what would be destroyed, change nothing.")
@yes
@as_json
@with_appcontext
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
        since = brake.paused_at(session)
    if since is not None:
        fail(f"{_paused(since)} Nothing was changed.")
    try:
        services().restore.refuse_after_restore()
    except brake.Refused as exc:
        fail(f"{_REFUSALS[type(exc)]} Nothing was changed.")


_REFUSALS: Mapping[type[brake.Refused], str] = {
    brake.LedgerBehind: "The ledger cannot be read or written. Mend it first.",
    brake.PurgedAreBack: "The database is older than its ledger: purged people are back, and who is due may have "
    "come back since. Run `ledger replay` first.",
    brake.PurgingPaused: "Purging was paused meanwhile. `sweeps resume` ends that.",
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
        return list(claim.plan(session, now=now, max_attempts=attempts))


def _plan_named(ids: Sequence[int], *, force: bool) -> list[PlannedPurge]:
    """Return what purging *ids* destroys; fail if it is refused: by doing it all and taking it back."""

    class TakenBack(Exception):
        pass

    planned: list[PlannedPurge] = []
    refused: dict[int, str] = {}
    try:
        with write() as session:
            planned = claim.count(session, sorted(ids))
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
                    # The promise is waived below. Were reminders owed, they would outlive it.
                    promise=replace(services().promise, reminders=()),
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
    except brake.Refused as exc:
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
    for page in rows.chunks(ids):
        services().sweep(only=page, by=OPERATOR_ACTOR, progress=progress, replaying=replaying)


def _receipts(planned: Sequence[PlannedPurge]) -> dict[uuid.UUID, Receipt]:
    """Return the receipts of those of *planned* who are gone; one of before proves nothing."""
    is_there = exists().where(Account.public_id == Receipt.public_id)
    with read() as session:
        found = [
            receipt
            for page in rows.chunks([one.public_id for one in planned])
            for receipt in session.scalars(
                select(Receipt).where(Receipt.public_id.in_(page), ~is_there)
            )
        ]
    return {receipt.public_id: receipt for receipt in found}


def _waiting(planned: Sequence[PlannedPurge], left: Mapping[int, str]) -> list[int]:
    """Return who is neither purged nor kept by anything that waiting would not change."""
    rest = [one for one in planned if one.account_id not in left]
    with read() as session:
        now = database_now(session)
        found: list[int] = []
        for page in rows.chunks([one.account_id for one in rest]):
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
    conditions = [of_ours & Effect.subject.in_(page) for page in rows.chunks(public_ids)]
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
                for page in rows.chunks(public_ids)
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


@sweeps.command()
@as_json
@sentences
def pause(*, as_json: bool) -> None:
    """Stop all purging: by the workers and by `accounts purge`, until `sweeps resume`.

    A batch under way ends first, within seconds. Accounts can be deactivated and reactivated meanwhile,
    mails go out, and what is due waits.
    """
    _brake(brake.pause, "Purging is paused.", "Purging was paused already.", as_json=as_json)


@sweeps.command()
@as_json
@sentences
def resume(*, as_json: bool) -> None:
    """Let purging go on: the next sweep takes what is due."""
    _brake(brake.resume, "Purging goes on.", "Purging was not paused.", as_json=as_json)


def _brake(work: Callable[..., bool], done: str, so: str, *, as_json: bool) -> None:
    with write() as session:
        changed = work(session, now=database_now(session), by=OPERATOR_ACTOR)
        since = brake.paused_at(session)
    if as_json:
        show_json({"changed": changed, "paused_at": stamp(since)})
    else:
        click.echo(done if changed else so)
