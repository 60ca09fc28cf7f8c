"""Commands for the audit trail: verify it against its seals, and take what is old enough."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click
from flask.cli import AppGroup

from ..db.audit import OPERATOR_ACTOR
from ..purge.auditing import Finding, Report
from ..purge.pruning import Month
from ..web import services
from .console import (
    ask,
    json_option,
    logs_aside,
    sentences,
    show_json,
    show_lines,
    store_of,
    yes_option,
)
from .ledger import complaints
from .words import count, printable, stamp, table

audit_group = AppGroup(
    "audit",
    help="""List and verify the audit trail, and take what is old enough.

    \b
    flask --app wsgi audit list --action account.purged --since 2026-12-07
    flask --app wsgi audit verify

    \b
    Exit codes: 0 all is well, 1 it is not (it says why), 2 bad usage.
    """,
)
# So many findings are shown to a person; the first says the most.
_MOST_SHOWN = 20


@audit_group.command()
@json_option
@sentences
def verify(*, as_json: bool) -> None:
    """Verify the audit trail by its seals and the ledger.

    Every event, fact and receipt is read. Names the first entry that was changed, removed,
    inserted or moved, a seal that is missing or not signed by a known key, and a tail that was cut
    off. What came after the last seal is counted and cannot be verified yet; what a restore has
    lost is called lost. Safe while everything runs; let it run daily.

    \b
    flask --app wsgi audit verify

    \b
    Exit codes: 0 nothing is amiss; 1 something is, or the ledger cannot be read;
    2 bad usage.
    """
    with store_of("LEDGER_URL"), logs_aside():
        report = services().auditing.verify()
    if as_json:
        show_json(_document(report))
    else:
        show_lines(_summary(report))
    show_lines(_amiss(report), err=True)
    if not report.is_whole:
        sys.exit(1)


def _document(report: Report) -> dict[str, Any]:
    waiting = report.unsealed
    return {
        "is_whole": report.is_whole,
        "seals": report.seals,
        "entries": report.entries,
        "pruned_seals": report.pruned,
        "last": None if report.last is None else report.last.document(),
        "unsealed": {
            "events": 0 if waiting is None else waiting.events,
            "facts": 0 if waiting is None else waiting.facts,
            "since": None if waiting is None else stamp(waiting.since),
        },
        "found": report.found,
        "findings": [
            {"why": one.why.value, "kind": one.kind, "key": one.key, "seal": one.seal}
            for one in report.findings
        ],
        "lost": [
            {
                "chain": str(one.chain),
                "first": one.first,
                "last": one.last,
                "entries": one.entries,
            }
            for one in report.lost
        ],
        "ledger_agrees": report.ledger is not None and report.ledger.agrees,
    }


def _summary(report: Report) -> Iterator[str]:
    yield f"{count(report.entries, 'entry', 'entries')} in {count(report.seals, 'seal')}."
    if report.pruned:
        yield f"{count(report.pruned, 'seal')} pruned: their events are gone, the hashes are here."
    waiting = report.unsealed
    if waiting is not None and waiting.since is not None:
        entries = f"{count(waiting.events, 'event')} and {count(waiting.facts, 'fact')}"
        yield f"Not sealed yet, since {stamp(waiting.since)}: {entries}."
    for one in report.lost:
        entries = "" if one.entries is None else f", {count(one.entries, 'entry', 'entries')}"
        numbers = f"{one.first} to {one.last}" if one.first < one.last else f"{one.first}"
        yield f"Lost by a restore: seal {numbers} of chain {one.chain}{entries}."


def _amiss(report: Report) -> Iterator[str]:
    for one in report.findings[:_MOST_SHOWN]:
        yield _sentence(one)
    if report.found > _MOST_SHOWN:
        yield f"… and {report.found - _MOST_SHOWN} more; --json shows the first 100."
    if report.ledger is not None:
        yield from complaints(report.ledger)


def _sentence(one: Finding) -> str:
    place = "" if one.seal is None or one.kind == "hashes" else f" (seal {one.seal})"
    return f"{one.kind.capitalize()} {printable(one.key)}{place} {one.why.value}."


@audit_group.command()
@click.option("--dry-run", is_flag=True, help="Show what would be taken, change nothing.")
@yes_option
@json_option
@sentences
def prune(*, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Take months of events older than AUDIT_RETENTION.

    They are sealed, and their hashes stay; receipts and facts stay too. A month with the latest
    promise of somebody who has an account is kept. Nothing is ever taken but by this command.

    \b
    flask --app wsgi audit prune --dry-run
    flask --app wsgi audit prune

    \b
    Exit codes: 0 done, or nothing is old enough; 1 the database does not
    answer; 2 bad usage.
    """
    pruning = services().pruning
    months = pruning.plan()
    wanted = [one for one in months if not one.witnesses]
    taken = 0
    if not as_json:
        show_lines(_months(months))
    if wanted and not dry_run:
        events = count(sum(one.events for one in wanted), "event")
        ask(f"Take {events} for good?", yes=yes)
        taken = pruning.prune(wanted, by=OPERATOR_ACTOR)
    if as_json:
        show_json(
            {
                "dry_run": dry_run,
                "months": [
                    {
                        "month": f"{one.begin:%Y-%m}",
                        "seals": len(one.seals),
                        "events": one.events,
                        "witnesses": one.witnesses,
                    }
                    for one in months
                ],
                "taken": taken,
            }
        )
    elif wanted and not dry_run:
        click.echo(f"Taken: {count(taken, 'event')}.")


def _months(months: list[Month]) -> Iterator[str]:
    if not months:
        yield "Nothing is old enough."
        return
    yield from table(
        ["MONTH", "SEALS", "EVENTS", "KEPT"],
        (
            (
                f"{one.begin:%Y-%m}",
                len(one.seals),
                one.events,
                f"{count(one.witnesses, 'promise')} of accounts" if one.witnesses else None,
            )
            for one in months
        ),
    )
