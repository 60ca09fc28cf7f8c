"""Commands for the ledger: compare it, replay it, seal what has no seal, write what was lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import click
from flask.cli import AppGroup

from ..db.audit import OPERATOR_ACTOR
from ..db.models import KeptLine
from ..outbox.marks import LedgerAhead
from ..purge.mending import Adoption, Rebuilding
from ..purge.restore import Verification
from ..web import services
from .console import (
    ask,
    fail,
    json_option,
    logs_aside,
    refuse_without_signing_key,
    say_what_has_no_seal,
    sentences,
    show_json,
    show_lines,
    store_of,
    yes_option,
)
from .purging import MOST_SHOWN
from .words import count, printable, table

ledger_group = AppGroup(
    "ledger",
    help="""Check the ledger, mend it, and replay it after a restore.

    \b
    flask --app wsgi ledger verify
    flask --app wsgi ledger replay --dry-run

    \b
    Exit codes: 0 all is well, 1 it is not (it says why), 2 bad usage.
    """,
)
_dry_run = click.option("--dry-run", is_flag=True, help="Show what would be done, change nothing.")


@ledger_group.command()
@json_option
@sentences
def verify(*, as_json: bool) -> None:
    """Compare the ledger with the database.

    Nobody in the ledger may have an account (a restore brings people back), every receipt has a
    line in the ledger that says the same, unless that is still owed, and every object a seal that
    counts. Safe while everything runs; let it run daily.

    \b
    flask --app wsgi ledger verify

    \b
    Exit codes: 0 they agree; 1 they do not, or the ledger cannot be read;
    2 bad usage.
    """
    with store_of("LEDGER_URL"), logs_aside():
        verification = services().restore.verify()
    if as_json:
        show_json(
            {
                "lines": verification.lines,
                "receipts": verification.receipts,
                "owed": verification.owed,
                "back": verification.back,
                "missing": [str(public_id) for public_id in verification.missing],
                "differing": [str(public_id) for public_id in verification.differing],
                "untrusted": [
                    {"object": one.name, "why": one.flaw.value} for one in verification.untrusted
                ],
                "unsealed": verification.unsealed,
                "lost": [line.object_name for line in verification.lost],
                "lost_seals": verification.lost_seals,
                "is_behind": verification.is_behind,
            }
        )
    else:
        lines = count(verification.lines, "purged account")
        click.echo(f"{lines} in the ledger, {count(verification.receipts, 'receipt')}.")
    show_lines(complaints(verification), err=True)
    if not verification.agrees:
        sys.exit(1)


def complaints(verification: Verification) -> Iterator[str]:
    """Yield a sentence for each thing that is amiss, with what ends it."""
    for one in verification.untrusted:
        yield f"{printable(one.name)} {one.flaw.value}: it is ignored."
    if verification.back:
        back = count(len(verification.back), "purged account is", "purged accounts are")
        yield f"{back} back: run `ledger replay`."
    if verification.is_behind and not verification.back:
        yield "The database is older than its ledger: run `ledger replay`."
    if verification.lost:
        lost = count(len(verification.lost), "return or hold is", "returns and holds are")
        yield f"{lost} lost from the ledger: run `ledger rebuild`."
    if verification.lost_seals:
        lost = count(
            len(verification.lost_seals),
            "seal of the audit trail is",
            "seals of the audit trail are",
        )
        yield f"{lost} lost from the ledger: run `ledger rebuild`, or `ledger adopt`."
    if verification.missing:
        missing = count(len(verification.missing), "receipt is", "receipts are")
        remedy = "run `ledger adopt`" if verification.unsealed else "run `ledger rebuild`"
        yield f"{missing} not in the ledger: {remedy}. --json names the receipts."
    for public_id in verification.differing[:MOST_SHOWN]:
        yield f"Receipt {public_id} is not what its line in the ledger says: it was changed."
    if len(verification.differing) > MOST_SHOWN:
        yield f"… and {len(verification.differing) - MOST_SHOWN} more; --json names all."
    if verification.unsealed:
        objects = count(
            verification.unsealed, "object without a seal is", "objects without a seal are"
        )
        yield f"{objects} ignored: run `ledger adopt`."


@ledger_group.command()
@_dry_run
@yes_option
@json_option
@sentences
def adopt(*, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Seal the objects that an earlier release wrote.

    Each line is compared with its receipt first; only lines that are equal to one are sealed.
    Objects that a key has sealed which is no longer listed are taken the same way. What has other
    lines stays as it is, and purges nobody: it is named.

    \b
    flask --app wsgi ledger adopt --dry-run
    flask --app wsgi ledger adopt

    \b
    Exit codes: 0 all objects have seals; 1 some have none (it says which);
    2 bad usage.
    """
    mending = services().mending
    with store_of("LEDGER_URL"):
        _refuse_behind()
        found = mending.plan_adoption()
        lines = mending.lost_lines(by_unknown_key=True)
        seals = services().heads.find().by_unknown_key
    taken = [one for one in found if one.batch is not None]
    left = [one for one in found if not one.is_whole]
    if not as_json:
        show_lines(_adoption_lines(taken, left, lines, seals))
    if (taken or lines or seals) and not dry_run:
        refuse_without_signing_key()
        ask("Are these lines the purges that you know of? Seal them?", yes=yes)
        with store_of("LEDGER_URL"):
            mending.adopt(taken, by=OPERATOR_ACTOR)
            mending.write_lines(lines)
            services().heads.write(seals)
    adopted = [one.name for one in taken] + [line.object_name for line in lines]
    adopted += [f"seal {number}" for number in seals]
    if as_json:
        show_json(
            {
                "dry_run": dry_run,
                "adopted": adopted,
                "left": [{"object": one.name, "lines": list(one.others)} for one in left],
            }
        )
    elif adopted and not dry_run:
        click.echo(f"Sealed: {count(len(adopted), 'object')}.")
    if left:
        fail(
            f"{count(len(left), 'object has', 'objects have')} lines without an equal receipt, "
            "which nobody vouches for. Replay after a restore needs them: look at each, and remove "
            "what is not yours."
        )


def _refuse_behind() -> None:
    """Fail in a database that is older than its ledger: of what came since it knows nothing."""
    if services().restore.is_behind():
        fail(str(LedgerAhead()))


def _adoption_lines(
    taken: Sequence[Adoption],
    left: Sequence[Adoption],
    kept: Sequence[KeptLine],
    seals: Sequence[int],
) -> Iterator[str]:
    if not taken and not left and not kept and not seals:
        yield "Every object has a seal."
    if kept:
        known = count(len(kept), "return or hold is", "returns and holds are")
        yield f"{known} as the database knows them."
    if seals:
        known = count(len(seals), "seal of the audit trail is", "seals of the audit trail are")
        yield f"{known} as the database has them."
    lines = sum(len(one.batch.lines) for one in taken if one.batch is not None)
    if taken:
        yield f"{count(lines, 'line')} in {count(len(taken), 'object')} equal their receipts."
    for one in left:
        for public_id in one.others or ("its lines",):
            yield f"{printable(one.name)}: {printable(public_id)} has no equal receipt."


@ledger_group.command()
@_dry_run
@yes_option
@json_option
@sentences
def rebuild(*, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Write anew what the ledger has lost, from the database.

    Run `ledger adopt` first if objects have no seal: of what is in them, nothing is lost.
    An object that is lost, empty, cut or changed is written under its name again. Of a lost one
    without receipts, as after a restore, no more can be written than that it is lost: put a copy of
    it back first, if there is one.

    \b
    flask --app wsgi ledger rebuild --dry-run
    flask --app wsgi ledger rebuild

    \b
    Exit codes: 0 nothing is lost any more; 1 the ledger cannot be read or
    written; 2 bad usage.
    """
    mending = services().mending
    say_what_has_no_seal()
    with store_of("LEDGER_URL"), logs_aside():
        _refuse_behind()
        plans = mending.plan_rebuilding()
        lines = mending.lost_lines()
        seals = services().heads.find().lost
    if not as_json:
        most = len(plans) if dry_run else MOST_SHOWN
        show_lines(_rebuilding_lines(plans, lines, seals, most=most))
    if (plans or lines or seals) and not dry_run:
        refuse_without_signing_key()
        ask("Write these objects?", yes=yes)
        with store_of("LEDGER_URL"):
            mending.rebuild(plans, by=OPERATOR_ACTOR)
            mending.write_lines(lines)
            services().heads.write(seals)
    if as_json:
        show_json(
            {
                "dry_run": dry_run,
                "objects": [
                    {
                        "object": one.batch.name,
                        "why": one.flaw.value,
                        "lines": len(one.batch.lines) if one.is_known else 0,
                    }
                    for one in plans
                ],
                "kept": [line.object_name for line in lines],
                "seals": seals,
            }
        )
    elif (plans or lines or seals) and not dry_run:
        click.echo(f"Written: {count(len(plans) + len(lines) + len(seals), 'object')}.")


def _rebuilding_lines(
    plans: Sequence[Rebuilding],
    lines: Sequence[KeptLine],
    seals: Sequence[int],
    *,
    most: int,
) -> Iterator[str]:
    if not plans and not lines and not seals:
        yield "Nothing is lost."
    if seals:
        lost = count(len(seals), "seal of the audit trail is", "seals of the audit trail are")
        yield f"{lost} lost; the database has them."
    if lines:
        lost = count(len(lines), "return or hold is", "returns and holds are")
        yield f"{lost} lost; the database knows them."
    if not plans:
        return
    yield from table(
        ["LINES", "OBJECT", "WHY"],
        (
            (
                len(one.batch.lines) if one.is_known else "no receipt",
                one.batch.name,
                one.flaw.value,
            )
            for one in plans[:most]
        ),
    )
    if len(plans) > most:
        yield f"… and {len(plans) - most} more; --dry-run shows all"
