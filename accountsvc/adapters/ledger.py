"""Receipts outside the database, so that a restored backup can be purged again.

One sealed object a batch, one receipt a line: ids, times and counts, no personal data. Names sort
by time, the latest first, so that the newest are found in one listing. Objects without a good seal
are named and purge nobody.

Beside them are returns and holds, each in an object of its own below ``kept/``, which is removed
when it matters no longer. Their names sort by number, the highest first: a clock that was ahead for
an hour would otherwise hide what came after it. So do the seals of the audit trail below
``seals/``, which are written once.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import islice
from typing import Any, Protocol

import structlog

from ..errors import StoreUnavailable
from .ledgerseal import (
    LOST,
    Flaw,
    Line,
    Link,
    Mark,
    Opened,
    Seal,
    SealKeys,
    Untrusted,
    encode,
    sealed,
)
from .ledgerstore import LedgerStore, store_from_url

log = structlog.get_logger(__name__)

SEALED = "sealed/"
KEPT = "kept/"
SEALS = "seals/"
# More numbers there are not: one a second for thirty thousand years.
_NUMBERS = 10**12
# So many objects that are not trusted are passed over in the search for the newest: whoever fills
# the store with them would otherwise keep every sweep reading.
MOST_PASSED_OVER = 50
# More objects that wait for their seal are not counted: it is said at each look.
MOST_COUNTED = 1_000
# So many seals of the audit trail are read at once.
_SEALS_AT_ONCE = 1_000
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
        # The highest number of each generation that this process has seen here.
        self.seen: dict[uuid.UUID, int] = {}
        self._previous: Link | None = None

    def seal_all(
        self, batches: Sequence[Batch], marks: Sequence[Mark], *, again: bool = False
    ) -> tuple[list[Seal], Link | None]:
        """Seal *batches* with their *marks*, each behind the one before it, and write nothing.

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
        for batch, mark in zip(batches, marks, strict=True):
            body = encode(batch.lines)
            seal = None if again else self._seal_there(batch.name, body)
            if seal is None:
                behind = None if previous and previous.name == batch.name else previous
                seal = self.keys.sign(batch.name, body, mark, previous=behind, mended=again)
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

    def keep(self, name: str, line: Mapping[str, object]) -> None:
        """Write the one *line* of a return or a hold under *name*, of :func:`kept_name`.

        The same two write the same bytes again. Raises StoreUnavailable in a process without a
        signing key too.
        """
        mark = mark_of_kept(name)
        assert mark is not None
        body = encode([line])
        self.store.put(name, sealed(body, self.keys.sign(name, body, mark)))

    def kept(self) -> Iterator[Opened | Untrusted]:
        """Yield every object of a return or a hold, the latest first; those removed are no more."""
        yield from self.open_kept(list(self.store.names(KEPT)))

    def newest_kept(self, *, objects: int = 5) -> list[Opened | Untrusted]:
        """Return the first objects there, which are the newest, or not ours."""
        return list(self.open_kept(list(islice(self.store.names(KEPT), objects))))

    def newest_marks(self, newest: Newest | None = None) -> dict[uuid.UUID, int]:
        """Return the highest number of each generation in the objects that were written last.

        *newest* is what :meth:`newest` has just returned, if somebody has asked already. Costs two
        listings and a few reads, however old the ledger is.
        """
        objects = (self.newest() if newest is None else newest).objects
        marks = highest(opened.mark for opened in [*objects, *self._newest_trusted_kept()])
        self.note(marks)
        return marks

    def note(self, marks: Mapping[uuid.UUID, int]) -> None:
        """Remember that somebody has had these numbers, or will have them in a moment."""
        self.seen = highest(Mark(*one) for one in [*self.seen.items(), *marks.items()])

    def _newest_trusted_kept(self) -> list[Opened]:
        for name in islice(self.store.names(KEPT), MOST_PASSED_OVER):
            for opened in self.open_kept([name]):
                if isinstance(opened, Opened):
                    return [opened]
        return []

    def open_kept(self, names: Sequence[str]) -> Iterator[Opened | Untrusted]:
        """Yield the objects of these names, without those that are missing."""
        ours = [name for name in names if mark_of_kept(name) is not None]
        yield from (Untrusted(name, Flaw.FOREIGN) for name in names if name not in set(ours))
        for name, data in self.store.get_all(ours):
            # One that was removed between the listing and here matters no longer.
            if data is not None:
                yield self.keys.open(name, data)

    def put_seal(self, link: SealLink, line: Line) -> bool:
        """Write a seal of the audit trail, unless it is there; False if something else is there.

        The same bytes are written by whoever writes it. Raises StoreUnavailable in a process
        without a signing key too.
        """
        name = seal_name(link)
        there = self.open(name)
        if there is not None:
            return isinstance(there, Opened) and list(there.lines) == [line]
        self.mend_seal(link, line)
        return True

    def mend_seal(self, link: SealLink, line: Line) -> None:
        """Write a seal of the audit trail in the place of whatever is there."""
        name, body = seal_name(link), encode([line])
        mark = Mark(link.chain, link.number)
        self.store.put(name, sealed(body, self.keys.sign(name, body, mark)))

    def seals(self, *, objects: int | None = None) -> Iterator[Opened | Untrusted]:
        """Yield the seals of the audit trail, the latest first; at most *objects* of them."""
        names = iter(self.store.names(SEALS))
        names = names if objects is None else islice(names, objects)
        while chunk := list(islice(names, _SEALS_AT_ONCE)):
            ours = [name for name in chunk if link_of_seal(name) is not None]
            yield from (Untrusted(name, Flaw.FOREIGN) for name in chunk if name not in set(ours))
            for name, data in self.store.get_all(ours):
                opened = Untrusted(name, Flaw.LOST) if data is None else self.keys.open(name, data)
                yield opened

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield every trusted receipt once, the earliest first.

        A ``public_id`` that comes again (purged again after a restore) is dropped. Remembers the
        ids only: about 100 bytes a receipt. What is not trusted, and kinds of lines that this
        release does not know, are logged by name.
        """
        return receipts(self.scan())

    def scan(self) -> Iterator[Opened | Untrusted]:
        """Yield every object but the :meth:`kept` ones and the seals of the trail.

        The earliest sealed come first, then the others. Those without a seal that counts are not
        logged.
        """
        names = [name for name in self.store.names(without=SEALS) if not name.startswith(KEPT)]
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

    def of_day(self, day: date) -> Iterator[Opened | Untrusted]:
        """Yield the objects of the batches of one *day* in UTC; one listing and their reads."""
        yield from self._open_all(list(self.store.names(_folder(day))))

    def unsealed(self) -> int:
        """Count the objects of releases before the seals, up to ``MOST_COUNTED``."""
        names = (name for name in self.store.names("2") if is_old_name(name))
        return sum(1 for _ in islice(names, MOST_COUNTED))

    def has_lines(self) -> bool:
        """Say whether an object of purges is here, trusted or not, sealed or of before the seals.

        Returns and holds, and the seals of the trail, do not count.
        """
        return any(next(self.store.names(below), None) for below in (SEALED, "2"))

    def is_empty(self) -> bool:
        """Say whether nothing was ever written here, or all of it is gone; seals do not count."""
        return next(self.store.names(without=SEALS), None) is None

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
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    passed = (at - midnight).seconds * 1_000_000 + at.microsecond
    left = _DAY_MICROSECONDS - 1 - passed
    return f"{_folder(at.date())}{left:011d}-{at:%H%M%S}Z-"


def _folder(day: date) -> str:
    number = (day - date(1970, 1, 1)).days
    return f"{SEALED}{99_999 - number:05d}-{day:%Y-%m-%d}/"


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


def kept_name(uid: uuid.UUID, mark: Mark) -> str:
    """Return the name of the object of a return or a hold; later ones sort before it.

    ``kept/<10^12 - number>-<generation>-<uid>.jsonl``
    """
    return f"{KEPT}{_NUMBERS - mark.number:013d}-{mark.generation.hex}-{uid.hex}.jsonl"


def mark_of_kept(name: str) -> Mark | None:
    """Return the mark in the *name* of such an object; None if it is no such name."""
    match = re.fullmatch(KEPT + r"([0-9]{13})-([0-9a-f]{32})-([0-9a-f]{32})\.jsonl", name)
    if match is None:
        return None
    return Mark(uuid.UUID(match[2]), _NUMBERS - int(match[1]))


class SealLink(Protocol):
    """Which seal of the audit trail it is."""

    @property
    def chain(self) -> uuid.UUID: ...

    @property
    def number(self) -> int: ...


def seal_name(link: SealLink) -> str:
    """Return the name of the object of a seal of the audit trail; later ones sort before it.

    ``seals/<10^12 - number>-<chain>.jsonl``
    """
    return f"{SEALS}{_NUMBERS - link.number:013d}-{link.chain.hex}.jsonl"


def link_of_seal(name: str) -> Mark | None:
    """Return chain and number in the *name* of such an object; None if it is no such name."""
    match = re.fullmatch(SEALS + r"([0-9]{13})-([0-9a-f]{32})\.jsonl", name)
    return None if match is None else Mark(uuid.UUID(match[2]), _NUMBERS - int(match[1]))


def uid_of_kept(name: str) -> uuid.UUID:
    """Return the uid in the *name* of such an object."""
    return uuid.UUID(name.removesuffix(".jsonl")[-32:])


def highest(marks: Iterable[Mark]) -> dict[uuid.UUID, int]:
    """Return the highest number of each generation in *marks*."""
    found: dict[uuid.UUID, int] = {}
    for mark in marks:
        found[mark.generation] = max(mark.number, found.get(mark.generation, 0))
    return found


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
