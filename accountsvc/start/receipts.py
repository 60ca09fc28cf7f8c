"""``accountsvc verify-receipt``: says what a signed receipt proves, without any server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO

from ..adapters import signedreceipts
from ..adapters.sealform import moment
from ..adapters.signedreceipts import RECEIPT, NotAReceipt, Part
from . import Failure


def report(file: BinaryIO, keys: Sequence[bytes]) -> tuple[list[str], bool]:
    """Return what the signed receipt in *file* proves by *keys*, as lines, and whether it is all.

    Raises Failure for what is no signed receipt.
    """
    # One byte more tells a file that is too long from one that is as long as it may be.
    text = file.read(signedreceipts.MOST_BYTES + 1)
    try:
        parts = signedreceipts.check(text, keys)
    except NotAReceipt as exc:
        raise Failure(str(exc)) from None
    refused = [part.name for part in parts if part.flaw is not None]
    lines = [line for part in parts for line in _lines(part)]
    if refused:
        return [*lines, f"NOT PROVED: {', '.join(refused)}."], False
    number = parts[0].entry["public_id"]
    return [*lines, f"All of this is proved of the number {number}, and of no other."], True


def _lines(part: Part) -> Iterator[str]:
    seal = part.seal
    if seal is None:
        # Its words are not shown: whoever forged them would have them read.
        flaw = "" if part.flaw is None else part.flaw.value
        yield f"{part.name[0].upper()}{part.name[1:]} {flaw}."
        return
    yield _sentence(part)
    yield f"  proved by seal {seal.number} of {moment(seal.sealed_at)}"
    yield f"  (head {seal.link.head}, signed by the key {seal.key})"


def _sentence(part: Part) -> str:
    entry = part.entry
    if entry["kind"] == RECEIPT:
        return (
            f"The account of the number {entry.get('public_id')} was deactivated on "
            f"{entry.get('deactivated_at')} (by: {entry.get('deactivated_by')}), was to be purged "
            f"on {entry.get('purge_at')}, and was erased on {entry.get('purged_at')}, with "
            f"{entry.get('saved_passwords')} saved passwords and {entry.get('files')} files."
        )
    fact = str(entry.get("fact"))
    details = entry.get("details")
    # A later release may know facts that this one does not.
    said = signedreceipts.SENTENCES.get(fact, fact)
    return f"On {entry.get('at')} {said}{f' ({_words(details)})' if details else ''}."


def _words(details: object) -> str:
    if not isinstance(details, dict):
        return str(details)
    return ", ".join(f"{name}: {details[name]}" for name in sorted(details))
