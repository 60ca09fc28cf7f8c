"""The seals of the trail as the ledger has them: which are lost or damaged, and written anew.

A row of the database holds all that its object does, so each can be written again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from sqlalchemy import select

from ..adapters import ledger as ledgers
from ..adapters.ledger import Ledger
from ..adapters.ledgerseal import Flaw, Mark, Untrusted
from ..db.engine import Database
from ..db.models import Seal
from .sealer import line_of, link_of, read_head

# So many rows are looked at by one statement.
_AT_ONCE = 1_000


@dataclass
class Found:
    """What the ledger has below ``seals/``, compared with the database.

    ``lost`` are the numbers of seals that it lacks or has otherwise, without those that are newer
    than all it has; ``by_unknown_key`` those that a key has sealed which is not listed.
    """

    untrusted: list[Untrusted] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    by_unknown_key: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Heads:
    """One database beside its ledger, which is given the seals that it lacks."""

    database: Database
    ledger: Ledger

    def find(self) -> Found:
        """Compare all seals in the ledger with those of the database.

        Raises StoreUnavailable if the ledger cannot be read.
        """
        found = Found()
        there: dict[int, str] = {}
        unknown: set[int] = set()
        for one in self.ledger.seals():
            header = read_head(one)
            if header is not None:
                there[header.number] = header.link.head
                continue
            name = one.name if isinstance(one, Untrusted) else one.link.name
            flaw = one.flaw if isinstance(one, Untrusted) else Flaw.FOREIGN
            found.untrusted.append(Untrusted(name, flaw))
            mark = ledgers.link_of_seal(name)
            if mark is not None and flaw is Flaw.UNKNOWN_KEY:
                unknown.add(mark.number)
        damaged = {mark.number for mark in map(_mark, found.untrusted) if mark is not None}
        newest = max([*there, *damaged], default=0)
        missing = []
        for number, head in self._stored():
            if number in unknown:
                found.by_unknown_key.append(number)
            elif there.get(number) != head:
                missing.append(number)
        # Newer ones are on their way, and so is the first seal of all.
        is_first = newest == 0 and len(missing) == 1
        found.lost = [] if is_first else [one for one in missing if one <= newest or not newest]
        return found

    def write(self, numbers: Collection[int]) -> int:
        """Write the seals of these *numbers* anew, each under its name; safe to repeat.

        Raises StoreUnavailable if something could not be written.
        """
        written = 0
        for number in sorted(numbers):
            with self.database.reading() as session:
                seal = session.get(Seal, number)
            if seal is not None:
                self.ledger.mend_seal(link_of(seal), line_of(seal))
                written += 1
        return written

    def _stored(self) -> Iterator[tuple[int, str]]:
        after = 0
        while True:
            query = select(Seal.number, Seal.head).where(Seal.number > after)
            with self.database.reading() as session:
                found = session.execute(query.order_by(Seal.number).limit(_AT_ONCE)).all()
            if not found:
                return
            yield from ((one.number, one.head) for one in found)
            after = found[-1].number


def _mark(one: Untrusted) -> Mark | None:
    return ledgers.link_of_seal(one.name)
