"""Receipts outside the database, so that a restored backup can be purged again.

One sealed object a batch, one receipt a line: ids, times and counts, no personal data. Names sort
by time, the latest first, so that the newest are found in one listing. Objects without a good seal
are named and purge nobody.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import islice
from typing import Any

import structlog

from ..errors import StoreUnavailable
from .ledgerseal import LOST, Flaw, Link, Opened, Seal, SealKeys, Untrusted, encode, sealed
from .ledgerstore import LedgerStore, store_from_url

log = structlog.get_logger(__name__)

SEALED = "sealed/"
# So many objects that are not trusted are passed over in the search for the newest: whoever fills
# the store with them would otherwise keep every sweep reading.
MOST_PASSED_OVER = 50
# More objects that wait for their seal are not counted: it is said at each look.
MOST_COUNTED = 1_000
_DAY_MICROSECONDS = 86_400_000_000


@dataclass(frozen=True)
class Batch:
    """Lines that are one object: *batch* is the uuid of the effect that owes it, *at* its time."""

    batch: uuid.UUID
    lines: Sequence[Mapping[str, object]]
    at: datetime

    @property
    def name(self) -> str:
        return object_name(self.batch, self.at)


@dataclass(frozen=True)
class Newest:
    """The trusted objects that were written last, and what was passed over to find them."""

    objects: list[Opened] = field(default_factory=list)
    untrusted: list[Untrusted] = field(default_factory=list)


class Ledger:
    """A store of sealed batches apart from the database, so that a restore does not lose them.

    Every method raises StoreUnavailable if the store does not answer.
    """

    def __init__(self, store: LedgerStore, keys: SealKeys) -> None:
        self.store = store
        self.keys = keys
        self._previous: Link | None = None

    def seal_all(
        self, batches: Sequence[Batch], *, again: bool = False
    ) -> tuple[list[Seal], Link | None]:
        """Seal *batches*, each behind the one before it, and write nothing.

        The first follows what this writer wrote last, or else the newest object. Return the seals
        and the last object, for :meth:`follow` once the seals are stored. A batch that is there
        already keeps its seal, unless they are sealed *again*, in the place of what was there.

        Raises StoreUnavailable in a process without a signing key.
        """
        previous = self._previous
        if previous is None and batches:
            newest = self.newest(objects=1).objects
            previous = newest[0].link if newest else None
        seals: list[Seal] = []
        for batch in batches:
            body = encode(batch.lines)
            seal = None if again else self._seal_there(batch.name, body)
            if seal is None:
                behind = None if previous and previous.name == batch.name else previous
                seal = self.keys.sign(batch.name, body, previous=behind, mended=again)
            previous = Link.to(batch.name, sealed(body, seal))
            seals.append(seal)
        return seals, previous

    def _seal_there(self, name: str, body: bytes) -> Seal | None:
        """Return the seal of the object *name* if it is there, whole, with this *body*.

        After a restore a batch is owed again that was written already: with another seal, the
        object behind it would seem to follow one that is lost.
        """
        opened = self.open(name)
        is_there = isinstance(opened, Opened) and encode(opened.lines) == body
        return opened.seal if is_there and isinstance(opened, Opened) else None

    def follow(self, link: Link | None) -> None:
        """Let what is sealed next follow *link*, whose seal is stored: it will be written."""
        self._previous = link

    def vouches(self, batch: Batch, seal: Mapping[str, Any]) -> bool:
        """Say whether *seal* is a good one of *batch*."""
        return self.keys.flaw_of(batch.name, encode(batch.lines), seal) is None

    def append(self, batch: Batch, seal: Seal) -> None:
        """Write one batch with its *seal*; the same two write the same bytes again.

        No lines, no object. Raises ValueError if *at* has no time zone or a line is no receipt,
        TypeError if a value is not JSON.
        """
        body = encode(batch.lines)
        if body:
            self.store.put(batch.name, sealed(body, seal))

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield every trusted receipt once, the earliest first.

        A ``public_id`` that comes again (purged again after a restore) is dropped. Remembers the
        ids only: about 100 bytes a receipt. What is not trusted, and kinds of lines that this
        release does not know, are logged by name.
        """
        return receipts(self.scan())

    def scan(self) -> Iterator[Opened | Untrusted]:
        """Yield every object, the earliest sealed ones first, then what lies elsewhere.

        Those without a seal that counts are not logged.
        """
        names = list(self.store.names())
        inside = [name for name in names if name.startswith(SEALED)]
        yield from self._open_all(inside[::-1])
        yield from self._open_all([name for name in names if not name.startswith(SEALED)])

    def newest(self, *, objects: int = 5) -> Newest:
        """Return the trusted objects that were written last, at most *objects* of them.

        Costs one listing and as many reads, however old the ledger is; at most
        ``MOST_PASSED_OVER`` others are passed over.
        """
        found = Newest()
        for name in self.store.names(SEALED):
            (opened,) = self._open_all([name])
            if isinstance(opened, Opened):
                found.objects.append(opened)
            else:
                found.untrusted.append(opened)
            if len(found.objects) == objects or len(found.untrusted) == MOST_PASSED_OVER:
                break
        return found

    def open(self, name: str) -> Opened | Untrusted | None:
        """Return the object *name*; None if it is missing."""
        data = self.store.get(name)
        return None if data is None else self.keys.open(name, data)

    def of_moment(self, at: datetime) -> list[Opened | Untrusted]:
        """Return the objects of the batches of *at*; one listing and, mostly, one read."""
        names = islice(self.store.names(_moment(at)), MOST_PASSED_OVER)
        return list(self._open_all(list(names)))

    def unsealed(self) -> int:
        """Count the objects of releases before the seals, up to ``MOST_COUNTED``."""
        names = (name for name in self.store.names("2") if is_old_name(name))
        return sum(1 for _ in islice(names, MOST_COUNTED))

    def is_empty(self) -> bool:
        """Say whether nothing was ever written here, or all of it is gone."""
        return next(self.store.names(), None) is None

    def _open_all(self, names: Sequence[str]) -> Iterator[Opened | Untrusted]:
        ours = [is_sealed_name(name) or is_old_name(name) for name in names]
        data_of = self.store.get_all(
            [name for name, known in zip(names, ours, strict=True) if known]
        )
        for name, known in zip(names, ours, strict=True):
            if not known:
                yield Untrusted(name, Flaw.FOREIGN)
                continue
            _, data = next(data_of)
            if data is None:
                raise StoreUnavailable(
                    f"{name} vanished from the ledger while it was read. Read it again."
                )
            yield self.keys.open(name, data)

    def check(self) -> None:
        """Raise StoreUnavailable if receipts could not be written now."""
        self.store.check()


def receipts(objects: Iterator[Opened | Untrusted]) -> Iterator[dict[str, Any]]:
    """Yield the receipts of the trusted ones of *objects*, each person's first; log the others."""
    seen: set[str] = set()
    kinds: set[str] = set()
    unsealed = 0
    for opened in objects:
        if isinstance(opened, Untrusted):
            # There may be years of these: they are counted, and not named one by one.
            if is_unsealed(opened):
                unsealed += 1
            else:
                log_untrusted(opened)
            continue
        kinds |= opened.other_kinds
        for line in opened.receipts:
            if line["public_id"] not in seen:
                seen.add(line["public_id"])
                yield line
    if unsealed:
        log_unsealed(unsealed)
    log_kinds(kinds)


def is_unsealed(untrusted: Untrusted) -> bool:
    """Say whether it is of a release before the seals, by its name and its form."""
    return untrusted.flaw is Flaw.UNSEALED and is_old_name(untrusted.name)


def log_kinds(kinds: set[str]) -> None:
    """Name in the log the *kinds* of lines that are kept and ignored."""
    if kinds - {LOST}:
        log.warning(
            "the ledger has lines of kinds that this release does not know",
            kinds=sorted(kinds - {LOST}),
        )


def log_unsealed(number: int) -> None:
    log.warning(
        "objects of the ledger have no seal, and are ignored: `accountsvc ledger adopt`",
        count=number,
    )


def log_untrusted(untrusted: Untrusted) -> None:
    log.warning(
        "an object of the ledger is not trusted, and ignored: see `accountsvc ledger verify`",
        object=untrusted.name,
        why=untrusted.flaw.value,
    )


def ledger_from_url(url: str, keys: SealKeys) -> Ledger:
    """Return the ledger that ``file:///folder`` or ``s3://bucket/prefix`` names; touch nothing yet.

    Raises ValueError for any other URL.
    """
    return Ledger(store_from_url(url), keys)


def object_name(batch: uuid.UUID, at: datetime) -> str:
    """Return the name of the object of *batch*; later ones sort before it.

    ``sealed/<99999 - day>-<date>/<microseconds left of the day>-<time>Z-<uuid>.jsonl``

    Raises ValueError if *at* has no time zone.
    """
    return f"{_moment(at)}{batch}.jsonl"


def _moment(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError("a batch of the ledger needs a time with its zone")
    at = at.astimezone(UTC)
    day = (at.date() - date(1970, 1, 1)).days
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    passed = (at - midnight).seconds * 1_000_000 + at.microsecond
    left = _DAY_MICROSECONDS - 1 - passed
    return f"{SEALED}{99_999 - day:05d}-{at:%Y-%m-%d}/{left:011d}-{at:%H%M%S}Z-"


def moment_of(name: str) -> datetime | None:
    """Return the time in the *name* of a sealed object; None if it is no such name."""
    folder, _, rest = name.removeprefix(SEALED).partition("/")
    try:
        day, left = date.fromisoformat(folder[6:]), int(rest[:11])
        passed = _DAY_MICROSECONDS - 1 - left
        second, microsecond = divmod(passed, 1_000_000)
        at = datetime(
            day.year,
            day.month,
            day.day,
            second // 3600,
            second // 60 % 60,
            second % 60,
            microsecond,
            UTC,
        )
        batch = uuid.UUID(rest[20:].removesuffix(".jsonl"))
    except ValueError:
        return None
    return at if object_name(batch, at) == name else None


def is_sealed_name(name: str) -> bool:
    return moment_of(name) is not None


def is_old_name(name: str) -> bool:
    """Say whether *name* is ``<yyyy>/<mm>/<uuid>.jsonl``, as releases before the seals wrote it."""
    match = re.fullmatch(r"[0-9]{4}/(?:0[1-9]|1[0-2])/(.{36})\.jsonl", name)
    if match is None:
        return False
    try:
        return str(uuid.UUID(match[1])) == match[1]
    except ValueError:
        return False
