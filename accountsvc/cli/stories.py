"""The story of an account that is gone, in sentences and in JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..purge.story import Happening, Story
from .words import count, fields, stamp, table

# A word without a sentence here would end the command with an error; a test has them all.
SENTENCES = {
    "account.created": "signed up",
    "account.deactivated": "asked to leave; the purge is promised for {purge_at}",
    "account.reactivated": "came back",
    "account.purged": "erased, with {saved_passwords} and {files}",
    "deletion.rescheduled": "the purge is moved to {purge_at}",
    "deletion.purge_requested": "asked to be purged at once; the purge is promised for {purge_at}",
    "deletion.accepted": "the purge is promised for {purge_at}",
    "deletion.witnessed": "an upgrade has written down the promise for {purge_at}",
    "hold.placed": "a hold is placed: no purge while it is open",
    "hold.released": "a hold is released",
    "purge.failed": "the purge failed, {attempts} by then",
    "purge.stuck": "the purge failed, {attempts} by then, and waits for an operator",
    "purge.retried": "the purge may be tried again",
    "files_absent": "the files are absent in the store",
    "ledger_written": "the ledger has the line",
    "told": "told by mail that all is gone",
    "not_told": "not told by mail that all is gone: {why}",
    "scrubbed": "nothing can be read in freed pages of the database's file",
    "completed": "the purge is complete",
    "verified": "every place was looked into, and nothing was found",
    "residue_found": "something was found: {place}",
    "erased_again": "erased again, after a restore had brought the account back",
}


def document(story: Story) -> dict[str, Any]:
    """Return *story* as JSON has it."""
    receipt = story.receipt
    return {
        "public_id": str(story.public_id),
        "state": "purged" if story.purged_at is not None else "gone",
        "purged_at": stamp(story.purged_at),
        "receipt": None
        if receipt is None
        else {
            "deactivated_at": stamp(receipt.deactivated_at),
            "deactivated_by": receipt.deactivated_by,
            "purge_at": stamp(receipt.purge_at),
            "purged_at": stamp(receipt.purged_at),
            "saved_passwords": receipt.saved_passwords,
            "files": receipt.files,
        },
        "story": [_happening(one) for one in story.happenings],
    }


def _happening(one: Happening) -> dict[str, Any]:
    details = dict(one.details)
    if "purge_at" in details:
        details["purge_at"] = stamp(details["purge_at"])
    return {"at": stamp(one.at), "what": one.what, "by": one.by, "details": details}


def lines(story: Story) -> Iterator[str]:
    """Yield the lines of *story* as a person reads them."""
    receipt = story.receipt
    yield from fields(
        {
            "number": story.public_id,
            "state": "purged" if story.purged_at is not None else "gone without a receipt",
            "deactivated at": None if receipt is None else stamp(receipt.deactivated_at),
            "deactivated by": None if receipt is None else receipt.deactivated_by,
            "purged at": stamp(story.purged_at),
            "receipt": "yes" if receipt is not None else "there is none",
        }
    )
    if story.happenings:
        yield ""
        yield from table(
            ["AT", "BY", "WHAT"],
            [(stamp(one.at), one.by, _sentence(one)) for one in story.happenings],
        )


def _sentence(one: Happening) -> str:
    details = one.details
    return SENTENCES[one.what].format(
        purge_at=stamp(details.get("purge_at")) or "a date that nobody wrote down",
        saved_passwords=count(details.get("saved_passwords", 0), "saved password"),
        files=count(details.get("files", 0), "file"),
        attempts=count(details.get("attempts", 1), "time"),
        why=details.get("why", "nobody wrote down why"),
        place=details.get("place", "nobody wrote down where"),
    )
