"""Ledger lines on their way out: sealed at the first try, the same bytes at every other.

The seal is stored in the effect's row before anything is written. So a process that is killed
between the two leaves a batch that whoever tries it next writes with the very same seal.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import update

from ..adapters.ledger import Batch, Ledger
from ..db import rows
from ..db.engine import Database
from ..db.models import Effect
from . import moments, queue
from .marks import take_marks
from .payloads import LedgerLines, seal_of, with_seal
from .queue import Outcome, Owed


def handler(database: Database, ledger: Ledger) -> queue.Handler:
    """Return the handler of ledger lines: it seals each batch once, and writes it at every try."""

    def append(effects: Sequence[Owed], now: datetime) -> Outcome:
        batches = [
            Batch(effect.uid, LedgerLines.read(effect.payload).lines, effect.created_at)
            for effect in effects
        ]
        owed = [pair for pair in zip(effects, batches, strict=True) if pair[1].lines]
        seals = _stored_seals(ledger, owed)
        unsealed = [pair for pair in owed if pair[0].uid not in seals]
        if unsealed:
            seals |= _store_seals(database, ledger, unsealed)
        for effect, batch in owed:
            ledger.append(batch, seals[effect.uid])
        return Outcome(settled=moments.ledger_written)

    return append


def _stored_seals(
    ledger: Ledger, owed: Sequence[tuple[Owed, Batch]]
) -> dict[uuid.UUID, dict[str, Any]]:
    """Return the seals of earlier tries; one whose key has been removed since counts as none."""
    seals = ((effect, batch, seal_of(effect.payload)) for effect, batch in owed)
    return {
        effect.uid: seal
        for effect, batch, seal in seals
        if seal is not None and ledger.vouches(batch, seal)
    }


def _store_seals(
    database: Database, ledger: Ledger, owed: Sequence[tuple[Owed, Batch]]
) -> dict[uuid.UUID, dict[str, Any]]:
    """Seal the batches, and store the seals in their rows before anything is written.

    A repeat then writes the same bytes, whoever makes it, and whatever the ledger got meanwhile.
    Raises LedgerAhead while the database is older than its ledger, and LookupError if another
    process has one of them in hand since: its seal counts.
    """
    again = any(seal_of(effect.payload) is not None for effect, _ in owed)
    marks = take_marks(database, ledger, len(owed))
    seals, last = ledger.seal_all([batch for _, batch in owed], marks, again=again)
    with database.writing() as session:
        for (effect, _), seal in zip(owed, seals, strict=True):
            stored = rows.change(
                session,
                update(Effect)
                .where(Effect.uid == effect.uid, Effect.attempts == effect.attempts)
                .values(payload=with_seal(effect.payload, seal)),
            )
            if not stored:
                raise LookupError("the lease of a batch has run out")
    ledger.follow(last)
    return {effect.uid: seal for (effect, _), seal in zip(owed, seals, strict=True)}
