"""Ledgers for tests: what the outbox does with one, and keys of other people."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime

from accountsvc import readers
from accountsvc.adapters.ledger import Batch, Ledger
from accountsvc.adapters.ledgerseal import SealKeys

KEY, OTHER_KEY = bytes(range(32)), bytes(range(32, 64))


def keys(signing: bytes | None = KEY, *others: bytes) -> SealKeys:
    """Return the keys of a process that seals with *signing*, and trusts that and *others*."""
    trusted = [key for key in (signing, *others) if key is not None]
    return SealKeys(signing, [readers.public_key_of(key) for key in trusted])


def write(
    ledger: Ledger,
    lines: Sequence[Mapping[str, object]],
    *,
    at: datetime,
    batch: uuid.UUID | None = None,
) -> str:
    """Seal *lines* and write them, as the outbox does; return the object's name."""
    owed = Batch(batch or uuid.uuid4(), lines, at)
    (seal,), last = ledger.seal_all([owed])
    ledger.follow(last)
    ledger.append(owed, seal)
    return owed.name
