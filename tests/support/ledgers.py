"""Ledgers for tests: what the outbox does with one, and keys of other people."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime

from accountsvc import readers
from accountsvc.adapters.ledger import Batch, Ledger
from accountsvc.adapters.ledgerseal import Mark, SealKeys

# Of a database that no test has.
ELSEWHERE = Mark(uuid.UUID(int=1), 1)

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
    """Seal *lines* and write them, as the outbox does; return the object's name.

    Its mark is that of the newest object, so that a database which knows that knows this one too.
    """
    owed = Batch(batch or uuid.uuid4(), lines, at)
    marks = [Mark(*one) for one in ledger.newest_marks().items()] or [ELSEWHERE]
    (seal,), last = ledger.seal_all([owed], marks[:1])
    ledger.follow(last)
    ledger.append(owed, seal)
    return owed.name
