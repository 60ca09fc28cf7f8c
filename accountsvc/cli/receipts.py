"""The command that shows the receipt of somebody who is gone, with what proves it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import click

from .. import documents
from ..adapters import signedreceipts
from ..adapters.signedreceipts import Flaw, Part
from ..errors import ReceiptNotFound
from ..web import services
from .accounts import accounts_group
from .console import fail, json_option, sentences, show_json, show_lines
from .words import Column, fields, stamp, table

_UNSIGNED = "not signed yet"


@accounts_group.command()
@click.argument("number", metavar="NUMBER")
@json_option
@sentences
def receipt(number: str, *, as_json: bool) -> None:
    """Show the receipt of a purged account, and what proves it.

    NUMBER is the account's public id, as in the mail that says that all is gone. What became true
    later is a fact each. With --json it is the signed receipt, which proves itself to whoever has
    it: `accountsvc verify-receipt` checks it, and so does anybody else.

    \b
    flask --app wsgi accounts receipt 5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0
    flask --app wsgi accounts receipt NUMBER --json > receipt.json

    \b
    Exit codes: 0 shown; 1 nobody was purged under this number, or what is shown is not what was
    signed; 2 bad usage.
    """
    public_id = documents.receipt_number(number.strip())
    if public_id is None:
        raise click.BadParameter("a number is like 5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0.")
    with services().reading() as session:
        found = documents.signed_receipt(session, public_id)
    if found is None:
        raise ReceiptNotFound
    text = json.dumps(found.document).encode()
    parts = signedreceipts.check(text, services().settings.ledger_public_keys)
    if as_json:
        show_json(found.document)
    else:
        show_lines(_lines(found, parts))
    refused = [part for part in parts if part.flaw not in {None, Flaw.UNSEALED}]
    if refused:
        fail(" ".join(f"{part.name[0].upper()}{part.name[1:]} {_words(part)}." for part in refused))


def _lines(found: documents.SignedReceipt, parts: Sequence[Part]) -> Iterator[str]:
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
            "signed": _words(parts[0]),
        }
    )
    if found.facts:
        yield ""
        rows = (
            (fact.fact, stamp(fact.at), _details(fact.details), _words(part))
            for fact, part in zip(found.facts, parts[1:], strict=True)
        )
        yield from table(["FACT", "AT", Column("DETAILS", 40), "SIGNED"], rows)
    yield ""
    seals = {part.seal.number: part.seal for part in parts if part.seal is not None}
    for number, seal in sorted(seals.items()):
        at: datetime = seal.sealed_at
        yield f"Seal {number} of {stamp(at)}: head {seal.link.head}, key {seal.key}"
    if any(part.flaw is Flaw.UNSEALED for part in parts):
        yield "What is not signed yet will be within minutes."


def _words(part: Part) -> str:
    if part.seal is not None:
        return f"by seal {part.seal.number}"
    if part.flaw is None or part.flaw is Flaw.UNSEALED:
        return _UNSIGNED
    return str(part.flaw.value)


def _details(details: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {details[name]}" for name in sorted(details))
