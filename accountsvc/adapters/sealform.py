"""The form of a seal: a signed header over many entries, which names the header before it.

All texts are canonical JSON: UTF-8, keys sorted, no white space, so that each has one form and one
hash. The head of a seal is the SHA-256 of its header's text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..errors import StoreUnavailable
from .ledgerseal import SealKeys, key_name

# It stands before all that is signed, so that a signature means nothing to another program.
MEANT = b"accountsvc seal, form 1\n"
FORM = 1


def canonical(document: Mapping[str, Any]) -> bytes:
    """Return *document* in its one form. Raises TypeError or ValueError if it is not JSON."""
    return json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8", "surrogatepass")


def moment(at: datetime) -> str:
    """Return *at* as all entries and headers have it: RFC 3339 in UTC, with microseconds."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


@dataclass(frozen=True)
class Link:
    """A seal as a later one names it."""

    chain: uuid.UUID
    number: int
    head: str

    def document(self) -> dict[str, Any]:
        return {"chain": str(self.chain), "number": self.number, "head": self.head}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Link:
        """Read what :meth:`document` returns. Raises KeyError, TypeError or ValueError."""
        return cls(uuid.UUID(document["chain"]), int(document["number"]), str(document["head"]))


@dataclass(frozen=True)
class Header:
    """What is signed. *events* and *facts* are the first and the last id that the seal covers.

    A range without a row has its last id before its first. *root* is that of the tree over all
    entries, *records* the SHA-256 of what the row keeps of them, and *previous* the head of the
    seal before it in this database. The first seal of a chain that a restore began *continues*
    the last one that the ledger had then, which the database may have lost.
    """

    chain: uuid.UUID
    number: int
    sealed_at: datetime
    events: tuple[int, int]
    facts: tuple[int, int]
    entries: int
    root: str
    records: str
    previous: str | None
    key: str
    continues: Link | None = None

    def text(self) -> bytes:
        """Return the canonical text, which is what is signed and hashed."""
        return canonical(
            {
                "form": FORM,
                "chain": str(self.chain),
                "number": self.number,
                "sealed_at": moment(self.sealed_at),
                "events": list(self.events),
                "facts": list(self.facts),
                "entries": self.entries,
                "root": self.root,
                "records": self.records,
                "previous": self.previous,
                "continues": None if self.continues is None else self.continues.document(),
                "key": self.key,
            }
        )

    @classmethod
    def read(cls, text: bytes) -> Header:
        """Read what :meth:`text` returns. Raises ValueError for any other text."""
        try:
            found = json.loads(text)
            header = cls(
                chain=uuid.UUID(found["chain"]),
                number=int(found["number"]),
                sealed_at=datetime.fromisoformat(found["sealed_at"]),
                events=(int(found["events"][0]), int(found["events"][1])),
                facts=(int(found["facts"][0]), int(found["facts"][1])),
                entries=int(found["entries"]),
                root=str(found["root"]),
                records=str(found["records"]),
                previous=found["previous"],
                key=str(found["key"]),
                continues=None if found["continues"] is None else Link.read(found["continues"]),
            )
            is_whole = header.text() == text
        except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as exc:
            raise ValueError("not the header of a seal") from exc
        if not is_whole:
            raise ValueError("not the header of a seal in its one form")
        return header

    @property
    def link(self) -> Link:
        return Link(self.chain, self.number, head(self.text()))


def head(text: bytes) -> str:
    """Return the head of the seal whose header is *text*, in hexadecimal digits."""
    return hashlib.sha256(text).hexdigest()


def signing_name(keys: SealKeys) -> str:
    """Return the name of the key that :func:`sign` uses.

    Raises StoreUnavailable in a process without a signing key.
    """
    return key_name(_private(keys).public_key().public_bytes_raw())


def sign(keys: SealKeys, text: bytes) -> str:
    """Return the signature of the header *text* in base64url.

    Raises StoreUnavailable in a process without a signing key.
    """
    return base64.urlsafe_b64encode(_private(keys).sign(MEANT + text)).decode()


def _private(keys: SealKeys) -> Any:
    if keys.signing is None:
        raise StoreUnavailable("This process has no LEDGER_SIGNING_KEY, so it seals nothing.")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(keys.signing)


def knows(keys: SealKeys, name: str) -> bool:
    """Say whether the key of this *name* is one whose seals count."""
    return any(key_name(raw) == name for raw in keys.public)


def is_signed(keys: SealKeys, text: bytes, signature: str, name: str) -> bool:
    """Say whether *signature* is that of the header *text* by the known key of this *name*."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    for raw in keys.public:
        if key_name(raw) != name:
            continue
        try:
            known = base64.b64decode(signature.encode(), altchars=b"-_", validate=True)
            Ed25519PublicKey.from_public_bytes(raw).verify(known, MEANT + text)
        except (InvalidSignature, ValueError, binascii.Error):
            return False
        # Of the last character only some bits count: another one would decode to the same bytes.
        return base64.urlsafe_b64encode(known).decode() == signature
    return False
