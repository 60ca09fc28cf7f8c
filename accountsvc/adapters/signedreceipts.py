"""The form of a signed receipt, and the check of what one proves; no database, and no network.

A signed receipt is one JSON document for whoever has its number: the receipt, and each fact that
became true of it later, as the text that a seal covers, with the inclusion proof (RFC 9162, section
2.1.3) and the seal's signed header. So nobody signs at a request, and the process that serves it
holds no key. What no seal covers yet is in it without a proof.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from . import merkle, sealform
from .ledgerseal import SealKeys, key_name
from .sealform import Header

# Where the public keys are served (RFC 8615).
KEYS_PATH = "/.well-known/accountsvc-keys.json"
FORM = "accountsvc receipt, form 1"
# The kinds of entries that a seal covers and a signed receipt may hold.
RECEIPT, FACT = "receipt", "fact"
# A receipt with a hundred facts has a tenth of it. What is longer is not read: nested, it would
# take all memory to find out that it is no receipt.
MOST_BYTES = 1 << 22
# What may come again (a residue that was looked for, and looked for again) is shown so often: each
# may be in a seal of its own, which is read for it.
MOST_REPEATED = 10

# What each fact says, as the end of "On …, ".
SENTENCES = {
    "files_absent": "its files were absent from the store, in every version",
    "ledger_written": "the line about it was in the ledger, from which no restore brings it back",
    "told": "its owner had been told by mail, and the address that the mail needed was removed",
    "not_told": "it was settled that no mail reaches its owner, and the address was removed",
    "scrubbed": "what the database file had freed was made unreadable",
    "completed": "the deletion was complete",
    "verified": "every place was looked into, and nothing of the account was found",
    "residue_found": "something of the account was found, and it is erased again",
    "erased_again": "a restore had brought the account back, and it was erased once more",
}

# A member beside these would be read, and believed, though nobody has signed it.
_MEMBERS = {"form", "receipt", "facts"}
_MEMBERS_OF_PART = {"entry", "path", "index", "seal"}
_MEMBERS_OF_SEAL = {"header", "signature"}

_HASH = re.compile(r"[0-9a-f]{64}")

Document = dict[str, Any]


class Flaw(Enum):
    """Why a part of a signed receipt proves nothing, in the words of what is said about it."""

    UNSEALED = "is not signed yet: download the receipt again in a few minutes"
    BROKEN = "has not the form of a part of a signed receipt"
    UNKNOWN_KEY = "is signed by a key that is not among the keys given"
    BAD_SIGNATURE = "has a signature that does not fit"
    NOT_INCLUDED = "is not what was signed: it, or its proof, was changed"
    OTHER_KIND = "is an entry of another kind"
    OTHER_NUMBER = "is about another number than the receipt"
    REPEATED = "is in it twice"


class NotAReceipt(Exception):
    """What was given is no signed receipt; the message is a sentence that says why."""


@dataclass(frozen=True)
class Part:
    """A part of a signed receipt: what it is called, its entry, and the seal that proves it.

    With a flaw it has no seal, and nobody may believe the entry.
    """

    name: str
    entry: Mapping[str, Any]
    seal: Header | None
    flaw: Flaw | None


def check(text: bytes, keys: Sequence[bytes]) -> list[Part]:
    """Check each part of the signed receipt *text* by the public *keys*; the receipt comes first.

    A part without a flaw is proved by its seal, and is about the receipt's number. Raises
    NotAReceipt for what has no parts at all; never anything else, whatever *text* is.
    """
    if len(text) > MOST_BYTES:
        raise NotAReceipt(f"It is longer than {MOST_BYTES:,} bytes, so it is no signed receipt.")
    try:
        document = _parsed(text)
    except _MemberTwice:
        raise NotAReceipt(
            "It has a member twice, of which a program reads the one or the other."
        ) from None
    if not isinstance(document, dict) or "form" not in document:
        raise NotAReceipt("It is no signed receipt: it is cut, damaged or something else.")
    if document["form"] != FORM:
        raise NotAReceipt(f"It has another form than “{FORM}”, which is what this program knows.")
    if set(document) != _MEMBERS:
        raise NotAReceipt(f"It has other members than {', '.join(sorted(_MEMBERS))}.")
    facts = document["facts"]
    if not isinstance(facts, list):
        raise NotAReceipt("It is no signed receipt: it has no list of facts.")
    known = SealKeys(None, keys)
    receipt = _part("the receipt", document["receipt"], RECEIPT, None, known)
    number = receipt.entry.get("public_id")
    parts = [
        _part(f"fact {place}", fact, FACT, number, known)
        for place, fact in enumerate(facts, start=1)
    ]
    texts = [fact.get("entry") if isinstance(fact, dict) else None for fact in facts]
    return [
        receipt,
        *(
            replace(part, seal=None, flaw=Flaw.REPEATED)
            if part.flaw is None and texts[place] in texts[:place]
            else part
            for place, part in enumerate(parts)
        ),
    ]


def _part(name: str, part: object, kind: str, number: object, keys: SealKeys) -> Part:
    try:
        entry, seal, flaw = _proved(part, keys)
    except (KeyError, TypeError, ValueError, RecursionError):
        return Part(name, {}, None, Flaw.BROKEN)
    if flaw is None and entry.get("kind") != kind:
        flaw = Flaw.OTHER_KIND
    elif flaw is None and number is not None and entry.get("public_id") != number:
        flaw = Flaw.OTHER_NUMBER
    return Part(name, entry, None if flaw else seal, flaw)


def _proved(part: Any, keys: SealKeys) -> tuple[Mapping[str, Any], Header | None, Flaw | None]:
    """Return the entry of *part*, and the seal that proves it or why it does not.

    Raises KeyError, TypeError, ValueError or RecursionError for what has another form.
    """
    entry = _object(part["entry"])
    if set(part) != _MEMBERS_OF_PART:
        raise ValueError("a part has these members, and no other that nobody has signed")
    if part["seal"] is None:
        return entry, None, Flaw.UNSEALED
    if set(part["seal"]) != _MEMBERS_OF_SEAL:
        raise ValueError("a seal has these members, and no other that nobody has signed")
    text, signature = part["seal"]["header"].encode(), part["seal"]["signature"]
    header = Header.read(text)
    if not sealform.knows(keys, header.key):
        return entry, None, Flaw.UNKNOWN_KEY
    if not sealform.is_signed(keys, text, signature, header.key):
        return entry, None, Flaw.BAD_SIGNATURE
    if type(part["index"]) is not int or not isinstance(part["path"], list):
        raise TypeError("an inclusion proof is a number and a list of hashes")
    if not merkle.is_included(
        merkle.leaf_hash(part["entry"].encode()),
        index=part["index"],
        size=header.entries,
        path=[_hash(text) for text in part["path"]],
        root=_hash(header.root),
    ):
        return entry, None, Flaw.NOT_INCLUDED
    return entry, header, None


def _hash(text: str) -> bytes:
    """Read a hash in its one spelling; in capitals, the proof would be another text."""
    if not _HASH.fullmatch(text):
        raise ValueError("a hash is 64 hexadecimal digits in lower case")
    return bytes.fromhex(text)


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise TypeError("an entry and a header are objects")
    return found


class _MemberTwice(Exception):
    """A document has two members of one name."""


def _parsed(text: bytes) -> object:
    """Return the document that *text* is, None if it is none. Raises _MemberTwice."""
    try:
        return json.loads(text.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None


def _once(members: Sequence[tuple[str, object]]) -> Document:
    found = dict(members)
    if len(found) < len(members):
        raise _MemberTwice
    return found


# The public keys ---------------------------------------------------------------------------------


def key_set(keys: Sequence[bytes]) -> Document:
    """Return the public *keys* as a JSON Web Key Set (RFC 7517, RFC 8037), in their order."""
    return {
        "keys": [
            {
                "kty": "OKP",
                "crv": "Ed25519",
                "x": base64.urlsafe_b64encode(key).decode().rstrip("="),
                "kid": key_name(key),
                "use": "sig",
                "alg": "EdDSA",
            }
            for key in keys
        ]
    }


def keys_in(text: bytes) -> list[bytes]:
    """Return the Ed25519 keys of the key set *text*; those of other kinds are passed over.

    Raises ValueError if it is no key set.
    """
    try:
        document: Any = _parsed(text) if len(text) <= MOST_BYTES else None
        listed = [key for key in document["keys"] if key.get("crv") == "Ed25519"]
        found = [base64.urlsafe_b64decode(key["x"] + "=") for key in listed]
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error, _MemberTwice):
        found = []
    if not found or any(len(key) != 32 for key in found):
        raise ValueError(f"holds no set of Ed25519 keys, as {KEYS_PATH} is")
    return found
