"""The command that shows what is left of a purge: its receipt, and what has become true of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..db import facts
from ..db.models import Effect, Receipt
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
from ..purge import finish
from ..web import services
from .accounts import accounts_group
from .console import fail, json_option, sentences, show_json, show_lines
from .words import fields, stamp, table


@accounts_group.command("receipt")
@click.argument("number", type=click.UUID, metavar="NUMBER")
@json_option
@sentences
def receipt(number: uuid.UUID, *, as_json: bool) -> None:
    """Show the receipt of a purge, and what has become true of it.

    NUMBER is the account's public id, which the last mail to its owner calls the number of the
    receipt. What is still to come is shown too, until the purge is completed.

    \b
    flask --app wsgi accounts receipt 3f0c6f0e-6f1b-4a52-9c55-6a2a3f6f9d10

    \b
    Exit codes: 0 shown, 1 there is no such receipt, 2 bad usage.
    """
    with services().reading() as session:
        found = session.get(Receipt, number)
        if found is None:
            fail("There is no receipt of this number.")
        story = facts.story(session, number)
        owed = finish.owed_to(session, number)
        shown = {
            "public_id": str(found.public_id),
            "deactivated_at": stamp(found.deactivated_at),
            "deactivated_by": found.deactivated_by,
            "purge_at": stamp(found.purge_at),
            "purged_at": stamp(found.purged_at),
            "saved_passwords": found.saved_passwords,
            "files": found.files,
            "facts": [
                {"fact": one.fact, "at": stamp(one.at), "details": one.details} for one in story
            ],
            "to_come": finish.to_come(
                {one.fact for one in story}, is_sqlite=services().settings.is_sqlite
            ),
            "owed": [_owed_document(one) for one in owed],
        }
    if as_json:
        show_json(shown)
    else:
        show_lines(_lines(shown))


def _owed_document(effect: Effect) -> dict[str, Any]:
    return {
        "kind": effect.kind,
        "since": stamp(effect.due_at or effect.deliver_after),
        "attempts": effect.attempts,
        "error": effect.last_error,
    }


def _lines(shown: Mapping[str, Any]) -> Iterator[str]:
    yield from fields(
        {
            "number": shown["public_id"],
            "deactivated at": shown["deactivated_at"],
            "deactivated by": shown["deactivated_by"],
            "purge at": shown["purge_at"],
            "erased at": shown["purged_at"],
            "saved passwords": shown["saved_passwords"],
            "files": shown["files"],
        }
    )
    yield ""
    yield from table(
        ["WHAT BECAME TRUE", "AT", "DETAILS"],
        [
            *((WORDS[one["fact"]], one["at"], _details(one["details"])) for one in shown["facts"]),
            *((WORDS[fact], "to come", None) for fact in shown["to_come"]),
        ],
    )
    if shown["owed"]:
        yield ""
        yield from table(
            ["OWED", "SINCE", "ERROR"],
            ((one["kind"], one["since"], one["error"]) for one in shown["owed"]),
        )


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
