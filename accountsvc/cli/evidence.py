"""The command that shows what became of every request for deletion, for whoever has to be shown."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import click

from ..purge.evidence import Period, Request
from ..purge.reconciling import Amiss, InTheFuture, Reconciliation, SealEnd
from ..web import services
from .accounts import accounts_group
from .console import logs_aside, moment_option, sentences, show_lines, store_of
from .words import count, stamp

# What is written is kept in memory up to this size, and beyond it in a file without a name: of a
# period of years it is more than a process should hold.
_KEPT_IN_MEMORY = 1 << 20

# The facts that a row shows, each with its column.
_FACTS = (
    "files_absent",
    "ledger_written",
    "told",
    "not_told",
    "scrubbed",
    "completed",
    "verified",
    "residue_found",
)


def row(request: Request) -> dict[str, Any]:
    """Return *request* as a row shows it: numbers, times, counts and words from closed lists."""
    is_purged = request.outcome == "purged"
    return {
        "number": str(request.number),
        "requested_at": stamp(request.at),
        "requested_by": request.by,
        "action": request.action,
        "deactivated_at": stamp(request.deactivated_at),
        "promised_at": stamp(request.promised),
        "purge_at": stamp(request.purge_at),
        "moved": request.moved,
        "at_once_by": request.at_once,
        "holds": len(request.holds),
        "failures": request.failures,
        "outcome": str(request.outcome),
        "reason": request.reason,
        "ended_at": stamp(request.ended),
        "ended_by": request.ended_by,
        "erased_at": stamp(request.ended) if is_purged else None,
        **{f"{fact}_at": stamp(request.facts.get(fact)) for fact in _FACTS},
        "not_told_because": request.why_not_told,
        "erased_again_at": stamp(request.again or request.facts.get("erased_again")),
    }


COLUMNS = (
    "number",
    "requested_at",
    "requested_by",
    "action",
    "deactivated_at",
    "promised_at",
    "purge_at",
    "moved",
    "at_once_by",
    "holds",
    "failures",
    "outcome",
    "reason",
    "ended_at",
    "ended_by",
    "erased_at",
    *(f"{fact}_at" for fact in _FACTS),
    "not_told_because",
    "erased_again_at",
)


@accounts_group.command()
@moment_option("--from", "since", metavar="DATE", required=True, help_="From then on.")
@moment_option("--to", "until", metavar="DATE", required=True, help_="Before then.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "json"]),
    default="csv",
    show_default=True,
    help="JSON has the reconciliation in it; CSV has it on stderr.",
)
@sentences
def evidence(since: datetime, until: datetime, form: str) -> None:
    """Show what became of each request for deletion of a period.

    One row for each request, with its promise, its end and what became true since; who left, came
    back and left again has two. Then the reconciliation: events, receipts, ledger and seals of the
    period are compared, and whatever nothing explains is named. A DATE is its midnight in UTC; a
    time of RFC 3339 will do, too. Nothing in it is personal. It is printed whole or not at all.

    \b
    flask --app wsgi accounts evidence --from 2026-01-01 --to 2026-04-01
    flask --app wsgi accounts evidence --from 2026-01-01 --to 2026-04-01 --format json

    \b
    Exit codes: 0 nothing is unexplained, 1 something is (it is named), or it
    cannot be read; 2 bad usage.
    """
    if since >= until:
        raise click.UsageError("--from has to be before --to, which is not in the period itself.")
    with SpooledTemporaryFile(
        max_size=_KEPT_IN_MEMORY, mode="w+", encoding="ascii", newline=""
    ) as file:
        period = Period(since, until)
        write = _json_rows(file, period) if form == "json" else _csv_rows(file)
        found = _gather(period, write)
        if form == "json":
            file.write(f"\n  ],\n{_members(document(found))}\n}}\n")
        file.seek(0)
        for line in file:
            click.echo(line, nl=False)
    show_lines(_sentences(found) if form == "csv" else _complaints(found), err=True)
    if not found.is_complete:
        sys.exit(1)


def _gather(period: Period, write: Callable[[Request], None]) -> Reconciliation:
    try:
        with store_of("LEDGER_URL"), logs_aside():
            return services().evidence.gather(period, write)
    except InTheFuture:
        raise click.UsageError(
            "--to is in the future: a period has to be over. Give a time that has passed."
        ) from None


def _csv_rows(file: IO[str]) -> Callable[[Request], None]:
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()

    def write(request: Request) -> None:
        writer.writerow(row(request))

    return write


def _json_rows(file: IO[str], period: Period) -> Callable[[Request], None]:
    """Begin the document, and return what writes a request into it, each on a line of its own."""
    file.write("{\n")
    file.write(f'  "from": {json.dumps(stamp(period.since))},\n')
    file.write(f'  "to": {json.dumps(stamp(period.until))},\n')
    file.write('  "requests": [')
    between = iter([""])

    def write(request: Request) -> None:
        file.write(f"{next(between, ',')}\n    {json.dumps(row(request))}")

    return write


def _members(members: dict[str, Any]) -> str:
    """Return *members* as they stand in a document that is open."""
    return json.dumps(members, indent=2)[2:-2]


def document(found: Reconciliation) -> dict[str, Any]:
    """Return the reconciliation as the JSON document has it, behind the requests."""
    return {
        "as_of": stamp(found.at),
        "reconciliation": {
            "requests": dict(sorted(found.requests.items())),
            "events": found.events,
            "receipts": found.receipts,
            "ledger_lines": found.ledger_lines,
            "seals": {"before": _seal(found.before), "end": _seal(found.end)},
            "explained": dict(sorted(found.explained.items())),
            "unexplained": [
                {"what": one.what, "number": str(one.number), "at": stamp(one.at), "why": one.why}
                for one in found.unexplained
            ],
        },
    }


def _seal(seal: SealEnd | None) -> dict[str, Any] | None:
    if seal is None:
        return None
    return {"number": seal.number, "head": seal.head, "sealed_at": stamp(seal.sealed_at)}


def _sentences(found: Reconciliation) -> Iterator[str]:
    requests = count(found.requests.total(), "request")
    ends = ", ".join(f"{number} {outcome}" for outcome, number in sorted(found.requests.items()))
    yield f"{requests}{': ' + ends if ends else ''}."
    yield (
        f"{count(found.events.get('account.purged', 0), 'purge')} in the audit trail, "
        f"{count(found.receipts, 'receipt')}, {count(found.ledger_lines, 'line')} in the ledger."
    )
    for name, seal in (("before it", found.before), ("at its end", found.end)):
        if seal is not None:
            yield f"The seal {name}: {seal.number}, {seal.head}."
    if found.end is None:
        yield "No seal covers the end of the period yet."
    for reason, number in sorted(found.explained.items()):
        yield f"Explained: {number} {_EXPLAINED[reason]}."
    yield from _complaints(found)
    if found.is_complete:
        yield "Nothing is unexplained."


_EXPLAINED = {
    "before_witnesses": "asked before promises were written down as events",
    "purged_again": "erased once more, after a restore had brought them back",
    "put_back_by_a_replay": "have a receipt out of the ledger, since a restore lost their event",
    "pruned": "have no event any more, since `audit prune` has taken it",
    "owed_to_the_ledger": "have a line that is still to be written to the ledger",
}


def _complaints(found: Reconciliation) -> Iterator[str]:
    for one in found.unexplained:
        yield f"Unexplained: {one.number} {_complaint(one)}."


def _complaint(one: Amiss) -> str:
    why = f" ({_WHY[one.why]})" if one.why is not None else ""
    return _AMISS[one.what].format(at=stamp(one.at)) + why


_AMISS = {
    "request_without_outcome": "asked to leave at {at}, and nothing says what became of it",
    "purge_without_request": "was purged at {at}, and nobody had asked for it",
    "purge_without_receipt": "was purged at {at}, and has no receipt of that moment",
    "receipt_without_purge": "has a receipt of {at}, and no event says that it was purged",
    "receipt_without_ledger_line": "has a receipt of {at}, and no line in the ledger",
    "ledger_line_without_receipt": "has a line of {at} in the ledger, and no receipt",
    "receipt_unlike_ledger_line": "has a receipt that is not what its line of {at} says",
}

_WHY = {
    "gone": "the account is gone, and no event says that it was purged",
    "active": "the account is active, and no event says that it came back",
    "replaced": "another request followed, and no event says that it came back",
    "unpromised": "the account has a date that nobody promised: `accounts accept`",
    "overdue": "it is due, nothing keeps it from being purged, and nobody has purged it",
}
