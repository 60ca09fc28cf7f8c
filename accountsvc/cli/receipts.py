"""The command that shows what is left of a purge: its receipt, and what has become true of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from .. import documents
from ..adapters import signedreceipts
from ..adapters.signedreceipts import Flaw, Part
from ..db import rows
from ..db.models import Effect
from ..db.proofs import (
    COMPLETED,
    ERASED_AGAIN,
    FILES_ABSENT,
    LEDGER_WRITTEN,
    NOT_TOLD,
    RESIDUE_FOUND,
    SCRUBBED,
    TOLD,
    VERIFIED,
)
from ..documents import SignedReceipt
from ..errors import ReceiptNotFound
from ..purge import finish
from ..web import services
from .accounts import accounts_group
from .console import fail, json_option, sentences, show_json, show_lines
from .words import fields, stamp, table


def _number(_ctx: click.Context, _param: click.Parameter, typed: str) -> uuid.UUID:
    """Return the number that was *typed*, as every other command reads it."""
    number = rows.read_number(typed)
    if number is None:
        raise click.BadParameter(
            "A number has 32 digits and letters from a to f, with its four hyphens or without, "
            "as it stands in the mail."
        )
    return number


@accounts_group.command("receipt")
@click.argument("number", callback=_number, metavar="NUMBER")
@json_option
@sentences
def receipt(number: uuid.UUID, *, as_json: bool) -> None:
    """Show the receipt of a purge, and what has become true of it.

    NUMBER is the account's public id, which the last mail to its owner calls the number of the
    receipt. What is still to come is shown too, until the purge is completed. With --json it is the
    signed receipt, which proves itself to whoever has it: `accountsvc verify-receipt` checks it.

    \b
    flask --app wsgi accounts receipt 3f0c6f0e-6f1b-4a52-9c55-6a2a3f6f9d10
    flask --app wsgi accounts receipt NUMBER --json > receipt.json

    \b
    Exit codes: 0 shown; 1 there is no such receipt, or what is shown is not
    what was signed; 2 bad usage.
    """
    with services().reading() as session:
        found = documents.signed_receipt(session, number)
        if found is None:
            raise ReceiptNotFound
        owed = finish.owed_to(session, number)
    text = json.dumps(found.document).encode()
    parts = signedreceipts.check(text, services().settings.ledger_public_keys)
    if as_json:
        show_json(found.document)
    else:
        show_lines(_lines(found, parts, owed))
    changed = [part for part in parts if part.flaw not in {None, Flaw.UNSEALED}]
    if changed:
        named = " ".join(f"{part.name.capitalize()} {_signed(part)}." for part in changed)
        fail(f"{named} `audit verify` says what else was changed.")


def _lines(found: SignedReceipt, parts: Sequence[Part], owed: Sequence[Effect]) -> Iterator[str]:
    receipt = found.receipt
    yield from fields(
        {
            "number": receipt.public_id,
            "deactivated at": stamp(receipt.deactivated_at),
            "deactivated by": receipt.deactivated_by,
            "purge at": stamp(receipt.purge_at),
            "erased at": stamp(receipt.purged_at),
            "saved passwords": receipt.saved_passwords,
            "files": receipt.files,
            "signed": _signed(parts[0]),
        }
    )
    yield ""
    known = {one.fact for one in found.facts}
    to_come = finish.to_come(known, is_sqlite=services().settings.is_sqlite)
    yield from table(
        ["WHAT BECAME TRUE", "AT", "DETAILS", "SIGNED"],
        [
            *(
                (WORDS[fact.fact], stamp(fact.at), _details(fact.details), _signed(part))
                for fact, part in zip(found.facts, parts[1:], strict=True)
            ),
            *((WORDS[fact], "to come", None, None) for fact in to_come),
        ],
    )
    if owed:
        yield ""
        yield from table(
            ["OWED", "SINCE", "ERROR"],
            ((one.kind, stamp(one.due_at or one.deliver_after), one.last_error) for one in owed),
        )
    yield ""
    seals = {part.seal.number: part.seal for part in parts if part.seal is not None}
    for number, seal in sorted(seals.items()):
        yield f"Seal {number} of {stamp(seal.sealed_at)}: head {seal.link.head}, key {seal.key}."
    if any(part.flaw is Flaw.UNSEALED for part in parts):
        yield "What is not signed yet will be within minutes."


def _signed(part: Part) -> str:
    if part.seal is not None:
        return f"by seal {part.seal.number}"
    flaw = part.flaw or Flaw.UNSEALED
    return "not signed yet" if flaw is Flaw.UNSEALED else str(flaw.value)


def _details(details: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')}: {_plain(what)}" for name, what in details.items())


def _plain(what: object) -> str:
    """Return a detail as a person reads it: of places that are stated also until when."""
    if isinstance(what, Mapping):
        return ", ".join(f"{name} until {until}" if until else name for name, until in what.items())
    if isinstance(what, list):
        return ", ".join(map(str, what))
    if isinstance(what, bool):
        return "yes" if what else "no"
    return str(what)


# Every fact has its words; one without would end the command with an error.
WORDS = {
    FILES_ABSENT: "the files are absent in the store",
    LEDGER_WRITTEN: "the ledger has its line",
    TOLD: "the owner was told by mail",
    NOT_TOLD: "the owner could not be told",
    SCRUBBED: "the database file was rewritten",
    COMPLETED: "the purge is completed",
    VERIFIED: "each place was looked into, nothing was found",
    RESIDUE_FOUND: "something was found",
    ERASED_AGAIN: "a restore had brought it back, it was erased again",
}
