"""Signed receipts, made by hand: what a process with the signing key has sealed, and forgeries."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from accountsvc import readers
from accountsvc.adapters.ledgerseal import key_name
from accountsvc.adapters.signedreceipts import FORM

from .ledgers import KEY

ANN, BOB = "5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0", "0c6a7d4b-53e5-4d3c-9d6f-7f5d1c1b8f11"

Paper = dict[str, Any]


def canonical(members: dict[str, Any]) -> str:
    return json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def receipt(number: str = ANN) -> str:
    """The entry of a receipt."""
    return canonical(
        {
            "kind": "receipt",
            "public_id": number,
            "deactivated_at": "2026-11-01T09:29:59.000000Z",
            "deactivated_by": "owner",
            "purge_at": "2026-11-15T09:30:00.000000Z",
            "purged_at": "2026-11-15T09:30:02.000000Z",
            "saved_passwords": 3,
            "files": 1,
        }
    )


def fact(name: str, number: str = ANN, **details: object) -> str:
    """The entry of a fact."""
    at = "2026-11-15T09:31:00.000000Z"
    return canonical(
        {"kind": "fact", "public_id": number, "fact": name, "at": at, "details": details}
    )


def paper(
    receipt_entry: str | None = None,
    facts: Sequence[str] = (),
    *,
    beside: int = 4,
    key: bytes = KEY,
) -> Paper:
    """A signed receipt: its receipt in a seal with *beside* entries of others, its facts in the next."""
    first = [receipt_entry or receipt(), *(fact("told", BOB, n=n) for n in range(beside))]
    parts = sealed(first[::-1], number=1, key=key)
    (of_receipt,) = [part for part in parts if part["entry"] == first[0]]
    return {
        "form": FORM,
        "receipt": of_receipt,
        "facts": sealed(facts, number=2, key=key) if facts else [],
    }


def sealed(entries: Sequence[str], *, number: int = 1, key: bytes = KEY) -> list[Paper]:
    """Seal *entries*, and return each as a part of a signed receipt."""
    leaves = [hashlib.sha256(b"\0" + entry.encode()).digest() for entry in entries]
    header = canonical(
        {
            "form": 1,
            "chain": "11111111-1111-4111-8111-111111111111",
            "number": number,
            "sealed_at": "2026-11-15T09:35:00.000000Z",
            "events": [1, len(entries)],
            "facts": [1, 0],
            "entries": len(entries),
            "root": _root(leaves).hex(),
            "records": "0" * 64,
            "previous": None,
            "continues": None,
            "key": key_name(readers.public_key_of(key)),
        }
    )
    signer = Ed25519PrivateKey.from_private_bytes(key)
    signature = signer.sign(b"accountsvc seal, form 1\n" + header.encode())
    seal = {"header": header, "signature": base64.urlsafe_b64encode(signature).decode()}
    return [
        {
            "entry": entry,
            "path": [one.hex() for one in _path(index, leaves)],
            "index": index,
            "seal": dict(seal),
        }
        for index, entry in enumerate(entries)
    ]


def _split(size: int) -> int:
    """The largest power of two below *size* (RFC 9162, section 2.1.1)."""
    return 1 << ((size - 1).bit_length() - 1)


def _root(leaves: Sequence[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    middle = _split(len(leaves))
    return hashlib.sha256(b"\1" + _root(leaves[:middle]) + _root(leaves[middle:])).digest()


def _path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 9162, section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    middle = _split(len(leaves))
    if index < middle:
        return [*_path(index, leaves[:middle]), _root(leaves[middle:])]
    return [*_path(index - middle, leaves[middle:]), _root(leaves[:middle])]
