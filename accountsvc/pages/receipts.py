"""The page of a receipt, for whoever has its number: what is gone, and what is still to come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from flask import Response, redirect, render_template, request, url_for

from .. import documents
from ..adapters import signedreceipts
from ..adapters.signedreceipts import KEYS_PATH
from ..adapters.throttle import RECEIPT
from ..db import rows
from ..db.models import Receipt
from ..db.proofs import ERASED_AGAIN, FILES_ABSENT, RESIDUE_FOUND, SCRUBBED, VERIFIED, ReceiptFact
from ..errors import Throttled
from ..purge import finish
from ..web import about, client, services
from .answers import Problems, say, too_many
from .messages import NO_RECEIPT, STILL_TO_COME

_FIELD = "number"


@dataclass(frozen=True)
class Story:
    """A receipt as a person reads it: its newest fact of each kind, and what none says yet."""

    receipt: Receipt
    facts: dict[str, ReceiptFact]
    to_come: Sequence[str]
    has_residue: bool


def ask() -> Response:
    """Show the form for a number, or lead to the receipt of the one that was entered."""
    entered = request.args.get(_FIELD, "").strip()
    if not entered:
        return _form()
    number = rows.read_number(entered)
    if number is None:
        return _form(400, {_FIELD: "Enter the whole number, as it stands in our mail."})
    response = redirect(url_for("pages.receipt", number=number), 303)
    assert isinstance(response, Response)
    return response


def show(number: str) -> Response:
    """Show the receipt of *number*; whoever has it may read it, and it names nobody."""
    try:
        services().throttle.spend(RECEIPT, address=client())
    except Throttled as exc:
        return too_many(exc, lambda problems: _form(429, problems))
    public_id = rows.read_number(number)
    if public_id is None:
        return say(NO_RECEIPT)
    about(public_id)
    with services().reading() as session:
        found = documents.signed_receipt(session, public_id)
    if found is None:
        return say(NO_RECEIPT)
    text = render_template(
        "receipt.html",
        number=str(public_id),
        story=_story(found.receipt, found.facts),
        flaws=_flaws(found),
        backups_until=found.receipt.purged_at + services().settings.backup_retention,
        json_path=url_for("receipts.receipt", number=public_id),
        keys_path=KEYS_PATH,
    )
    return Response(text)


def _flaws(found: documents.SignedReceipt) -> list[str]:
    """Return the names of what keeps the receipt from proving itself; nothing if it does."""
    text = json.dumps(found.document).encode()
    parts = signedreceipts.check(text, services().settings.ledger_public_keys)
    return sorted({part.flaw.name for part in parts if part.flaw is not None})


def _story(receipt: Receipt, facts: Sequence[ReceiptFact]) -> Story:
    newest = {fact.fact: fact for fact in facts}
    owed = finish.to_come(newest.keys(), is_sqlite=services().settings.is_sqlite)
    # What a receipt has no file of, or what the release before recorded on the receipt itself.
    known = {FILES_ABSENT} if receipt.files == 0 else set()
    known |= {SCRUBBED} if receipt.scrubbed_at is not None else set()
    to_come = {*owed, *([] if VERIFIED in newest else [VERIFIED])} - known
    looks = [fact.fact for fact in facts if fact.fact in {VERIFIED, RESIDUE_FOUND, ERASED_AGAIN}]
    return Story(
        receipt,
        newest,
        [sentence for fact, sentence in STILL_TO_COME.items() if fact in to_come],
        has_residue=looks[-1:] == [RESIDUE_FOUND],
    )


def _form(status: int = 200, problems: Problems | None = None) -> Response:
    entered = request.args.get(_FIELD, "")
    text = render_template("receipts.html", number=entered, problems=problems or {})
    return Response(text, status)
