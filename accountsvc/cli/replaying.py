"""The command that replays the ledger after a restore."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from ..db import rows
from ..db.engine import database_now
from ..db.models import Account
from ..purge.at_once import PurgeReport
from ..purge.replay import GivenBack, Plan
from ..web import services
from .console import (
    ask,
    json_option,
    logs_aside,
    refuse_without_signing_key,
    sentences,
    show_lines,
    store_of,
    yes_option,
)
from .ledger import ledger_group
from .purging import MOST_SHOWN, finish, progress_bar, refusals, say_if_stopped
from .words import Column, count, printable, stamp, table


@ledger_group.command()
@click.option("--restored", is_flag=True, help="A backup was put back, even if none seems to be.")
@click.option("--dry-run", is_flag=True, help="Do it and take it back: show what would be done.")
@yes_option
@json_option
@sentences
def replay(*, restored: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Give back what a restore took back, and purge again.

    Who had come back since the backup is active again, holds are held, whom the ledger calls purged
    is purged again, and every session and mailed link of before ends. By public id only: whoever
    has got an account's number since cannot be hit, nor whoever joined since. Objects without a
    seal that counts are ignored. Works while purging is paused, so that nothing else is purged
    before you have looked; not by a clock that may be wrong. Repeat it if it is broken off.

    Give --restored after a restore from a backup: nothing tells it if nobody was purged, came back
    or was held since.

    \b
    flask --app wsgi ledger replay --restored --dry-run
    flask --app wsgi ledger replay --restored --yes

    \b
    Exit codes: 0 all is as the ledger says, also while files wait until purging
    goes on, which is said; 1 something is not (it says what); 2 bad usage.
    """
    if not dry_run:
        refuse_without_signing_key()
    with store_of("LEDGER_URL"), logs_aside():
        plan = services().replay.plan()
    if dry_run:
        say_if_stopped(services().rehearsal.refuse_by_clock)
    if not (plan.is_behind or restored):
        _say_nothing(as_json=as_json, dry_run=dry_run)
        return
    show_lines(_plan_lines(plan), err=True)
    if not dry_run:
        ask(
            "Replay it? What is purged is destroyed for good, and everybody is signed out.", yes=yes
        )
    with refusals(), progress_bar(plan.purges, dry_run=dry_run) as progress:
        if dry_run:
            report = services().rehearsal.replay(plan.purges, progress)
        else:
            report = services().replay.run(plan, progress)
    if not (dry_run or as_json):
        click.echo(f"{_given_back(plan)} All sessions and mailed links of before have ended.")
    also = {"returned": _ids(plan.returns), "held": _ids(plan.holds)}
    show_lines(_untrusted_lines(plan), err=True)
    # It is run while purging is paused, so files wait by right: an operator who got 1 each time
    # would learn to look away.
    finish(report, dry_run=dry_run, as_json=as_json, also=also, files_may_wait=True)
    if plan.untrusted:
        sys.exit(1)


def _untrusted_lines(plan: Plan) -> Iterator[str]:
    for one in plan.untrusted:
        yield f"{printable(one.name)} {one.flaw.value}: a return or a hold may be lost with it."
    if plan.untrusted:
        yield (
            "Put good copies back and replay once more, or look at everybody who is due "
            "(`accounts list --state due`) before `sweeps resume`."
        )


def _say_nothing(*, as_json: bool, dry_run: bool) -> None:
    if as_json:
        nothing = PurgeReport()
        finish(nothing, dry_run=dry_run, as_json=True, also={"returned": [], "held": []})
        return
    click.echo(
        "Nothing to replay: the database is not older than its ledger. Only if a backup was put "
        "back since the last replay: `ledger replay --restored` ends the sessions of before."
    )


def _ids(given_back: Sequence[GivenBack]) -> list[int]:
    return [one.account_id for one in given_back]


def _given_back(plan: Plan) -> str:
    active = count(len(plan.returns), "account is", "accounts are")
    holds = count(len(plan.holds), "hold is placed", "holds are placed")
    return f"{active} active again, {holds} again."


def _plan_lines(plan: Plan) -> Iterator[str]:
    """Yield whom a replay concerns, with state and dates: for stderr alone, as it has names."""
    purged = [planned.account_id for planned in plan.purges]
    for title, ids in (
        ("Active again:", _ids(plan.returns)),
        ("Held again:", _ids(plan.holds)),
        ("Purged again:", purged),
    ):
        if not ids:
            continue
        yield title
        yield from table(
            ["ID", "STATE", "JOINED", "PURGE AT", Column("USERNAME", most=32), "E-MAIL"],
            _rows(ids[:MOST_SHOWN]),
        )
        if len(ids) > MOST_SHOWN:
            yield f"… and {len(ids) - MOST_SHOWN:,} more"
    if plan.receipts:
        receipts = count(len(plan.receipts), "receipt is", "receipts are")
        yield f"{receipts} in the ledger alone, and written again."
    yield "Every session and every mailed link of before ends."


def _rows(ids: Sequence[int]) -> list[tuple[Any, ...]]:
    with services().reading() as session:
        now = database_now(session)
        accounts = [rows.find(session, account_id) for account_id in ids]
    return [_row(account, account.state(now)) for account in accounts if account is not None]


def _row(account: Account, state: str) -> tuple[Any, ...]:
    dates = stamp(account.joined_at), stamp(account.purge_at)
    return (account.id, state, *dates, account.username, account.email)
