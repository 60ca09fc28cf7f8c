"""The form of an object of the ledger: lines of JSON, and a seal as the last one.

A seal is an Ed25519 signature over the object's lines, its name, and the object that its writer
wrote before: who may write into the store, but has no key, can neither make up a line nor change,
move or copy one unseen. A line has a ``kind``; without one it is a receipt.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import StoreUnavailable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

# It stands before all that is signed, so that a signature means nothing to another program.
_MEANT = b"accountsvc ledger, form 1\n"
RECEIPT = "receipt"
# The kind of the one line of an object that stands for a lost one of which nothing is known.
LOST = "lost"

Line = dict[str, Any]
# The last line's object: ``key``, ``name``, ``previous``, ``mended``, ``mark`` and ``signature``.
Seal = dict[str, Any]


class Flaw(Enum):
    """Why an object is not trusted, in the words of what is said about it."""

    FOREIGN = "is no object of the ledger"
    EMPTY = "is empty"
    UNREADABLE = "cannot be read: it is cut or damaged"
    UNSEALED = "has no seal"
    UNKNOWN_KEY = "is sealed by a key that LEDGER_PUBLIC_KEYS does not hold"
    MOVED = "was sealed under another name"
    BAD_SIGNATURE = "has a seal that does not fit it"
    REPLACED = "is not the object that the next one was sealed behind"
    LOST = "is lost"


@dataclass(frozen=True)
class Link:
    """An object as the next one of its writer names it: its name, and the SHA-256 of its bytes."""

    name: str
    digest: str

    @classmethod
    def to(cls, name: str, data: bytes) -> Link:
        return cls(name, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Mark:
    """Which object of its database an object is: the generation that sealed it, and its number."""

    generation: uuid.UUID
    number: int


@dataclass(frozen=True)
class Opened:
    """An object with a good seal; ``lines`` are all of it, of every kind, in their order.

    ``mended`` ones were written in the place of an earlier object, whose bytes they do not have.
    """

    link: Link
    lines: Sequence[Line]
    previous: Link | None
    mended: bool
    mark: Mark
    seal: Seal

    @property
    def receipts(self) -> list[Line]:
        return [line for line in self.lines if line.get("kind", RECEIPT) == RECEIPT]

    @property
    def other_kinds(self) -> set[str]:
        return {str(line["kind"]) for line in self.lines if line.get("kind", RECEIPT) != RECEIPT}


@dataclass(frozen=True)
class Untrusted:
    """An object that purges nobody, and why; ``lines`` are its own words, where they can be read.

    Nobody may act on these lines before they have been compared with something else.
    """

    name: str
    flaw: Flaw
    lines: Sequence[Line] = ()


@dataclass(frozen=True)
class SealKeys:
    """The keys of the ledger: one that seals, where there is one, and all whose seals count."""

    signing: bytes | None
    public: Sequence[bytes]

    @property
    def can_sign(self) -> bool:
        return self.signing is not None

    def sign(
        self,
        name: str,
        body: bytes,
        mark: Mark,
        *,
        previous: Link | None = None,
        mended: bool = False,
    ) -> Seal:
        """Seal *body* under *name*, with the same bytes each time.

        Raises StoreUnavailable in a process without a signing key.
        """
        if self.signing is None:
            raise StoreUnavailable(
                "This process has no LEDGER_SIGNING_KEY, so it writes no ledger. Set it."
            )
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = Ed25519PrivateKey.from_private_bytes(self.signing)
        seal: Seal = {
            "key": key_name(key.public_key().public_bytes_raw()),
            "name": name,
            "previous": None if previous is None else vars(previous),
            "mended": mended,
            "mark": {"generation": str(mark.generation), "number": mark.number},
        }
        signature = key.sign(_signed(name, body, seal))
        return {**seal, "signature": base64.urlsafe_b64encode(signature).decode()}

    def flaw_of(self, name: str, body: bytes, seal: Mapping[str, Any]) -> Flaw | None:
        """Say why *seal* does not vouch for *body* under *name*; None if it does."""
        from cryptography.exceptions import InvalidSignature

        key = self._by_name.get(str(seal.get("key")))
        if key is None:
            return Flaw.UNKNOWN_KEY
        rest = {part: value for part, value in seal.items() if part != "signature"}
        try:
            text = str(seal.get("signature")).encode()
            signature = base64.urlsafe_b64decode(text)
            key.verify(signature, _signed(str(seal.get("name")), body, rest))
        except (InvalidSignature, ValueError, binascii.Error):
            return Flaw.BAD_SIGNATURE
        # Of the last character only some bits count: with another one it would be the same bytes.
        if base64.urlsafe_b64encode(signature) != text:
            return Flaw.BAD_SIGNATURE
        return None if seal.get("name") == name else Flaw.MOVED

    @cached_property
    def _by_name(self) -> Mapping[str, Ed25519PublicKey]:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        return {key_name(raw): Ed25519PublicKey.from_public_bytes(raw) for raw in self.public}

    def open(self, name: str, data: bytes) -> Opened | Untrusted:
        """Read the object *name*, whose bytes are *data*; never raises for what is in them."""
        if not data.strip():
            return Untrusted(name, Flaw.EMPTY)
        texts = data.split(b"\n")
        lines = [_parsed(text) for text in texts[:-1]]
        # A last line without its end is a cut object, though the line may be whole by chance.
        if texts[-1] or None in lines:
            return Untrusted(name, Flaw.UNREADABLE)
        found = [line for line in lines if line is not None]
        seal = found[-1].get("seal")
        if not isinstance(seal, dict):
            return Untrusted(name, Flaw.UNSEALED, found)
        # The seal signs the lines before it, and not how its own is written: one form is left.
        if texts[-2] != _text({"seal": seal}):
            return Untrusted(name, Flaw.BAD_SIGNATURE, found[:-1])
        found.pop()
        body = b"".join(text + b"\n" for text in texts[:-2])
        flaw = self.flaw_of(name, body, seal)
        if flaw is not None:
            return Untrusted(name, flaw, found)
        try:
            previous = seal["previous"]
            link = None if previous is None else Link(**previous)
            mark = Mark(uuid.UUID(seal["mark"]["generation"]), int(seal["mark"]["number"]))
            opened = Opened(Link.to(name, data), found, link, bool(seal["mended"]), mark, seal)
            for line in opened.receipts:
                uuid.UUID(line["public_id"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return Untrusted(name, Flaw.UNREADABLE)
        return opened


def key_name(public: bytes) -> str:
    """Return the name by which a seal names the key *public*: the first bytes of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def encode(lines: Sequence[Mapping[str, object]]) -> bytes:
    """Return *lines* as an object holds them, the same bytes for equal lines.

    Raises ValueError if a line is neither a receipt with its ``public_id`` nor of another ``kind``,
    TypeError if a value is not JSON.
    """
    for line in lines:
        if not isinstance(line.get("public_id"), str) and line.get("kind", RECEIPT) == RECEIPT:
            raise ValueError("every receipt in the ledger needs a public_id")
    return b"".join(_text(line) + b"\n" for line in lines)


def sealed(body: bytes, seal: Mapping[str, Any]) -> bytes:
    """Return the bytes of the whole object."""
    return body + _text({"seal": seal}) + b"\n"


def _text(line: Mapping[str, object]) -> bytes:
    # Keys are sorted, so that a repeat writes the same bytes: of two versions that differ, nobody
    # could say which is the true one.
    return json.dumps(dict(line), sort_keys=True, allow_nan=False).encode()


def _parsed(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _signed(name: str, body: bytes, seal: Mapping[str, Any]) -> bytes:
    # The name comes with its end: of two parts without one, the border between them could move.
    return _MEANT + json.dumps(name).encode() + b"\n" + _text(seal) + b"\n" + body
