"""The bytes of a SQLite file outside of what lives in it: a process that reads one file and ends.

A row that is deleted leaves its bytes behind in many places: in the gap of a page, in a free block,
in a page of the freelist, at the end of an overflow chain, in the write-ahead log. Behind a
``VACUUM`` with ``secure_delete`` all of these are zero, except for numbers of SQLite's own, which
stay where a list of them has become shorter: offsets within a page, sizes of a cell, and in the
inner pages of tables numbers of pages and of rows. So no word of anybody has to be kept to look for
it: four bytes behind each other that are neither live, nor zero, nor such numbers, are found.

:mod:`.vacuum` starts it (``python -I -S`` this file) with the root pages as lines of its standard
input; the answer is one JSON object. It is a process of its own because to close a file drops all
locks that a process has on it: SQLite's own would be gone, and another process could take the
write-ahead log away under a transaction. It imports nothing of ours, since each scrub waits for it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

_TABLE_LEAF, _TABLE_INNER, _INDEX_LEAF, _INDEX_INNER = 13, 5, 10, 2
_INNER = (_TABLE_INNER, _INDEX_INNER)
_TABLE = (_TABLE_LEAF, _TABLE_INNER)

# The page with this byte of the file is never used: there other systems lock.
_LOCK_BYTE = 1 << 30
# In a larger page an offset of two bytes may be two letters.
_LARGEST_PAGE = 4096
_UTF_8 = 1

# No page has a larger number in a file that is looked into; three letters are one.
_LARGEST_NUMBER = 1 << 21
# The first byte of an offset within a page of 4 KiB is no larger, and no letter is as small.
_LARGEST_FIRST = 0x10
# A row's number of up to four bytes, as SQLite writes it.
_LONGEST_VARINT = 4


class NotThisForm(Exception):
    """The file has a form that is not looked into; the message says which, in a few words."""


@dataclass
class Look:
    """What was found in how many pages; ``found`` counts places by their kind, in words."""

    pages: int = 0
    found: dict[str, int] = field(default_factory=dict)

    def note(self, where: str) -> None:
        """Count one place that holds bytes which are neither live nor zero."""
        self.found[where] = self.found.get(where, 0) + 1


def look(path: str, roots: Iterable[int]) -> Look:
    """Look at every byte of the file at *path*, whose trees begin in *roots*, and of its log.

    Nothing may be written into the file meanwhile: a reading transaction that began behind an empty
    log keeps it as it is. Page by page; the memory is one byte for each page.

    Raises NotThisForm for a file of another form than this service makes, OSError.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        return _File(handle, path).look(roots)
    finally:
        os.close(handle)


class _File:
    """One open file, and what was found in it."""

    def __init__(self, handle: int, path: str) -> None:
        self._handle, self._path = handle, path
        header = os.pread(handle, 100, 0)
        if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
            raise NotThisForm("no SQLite file")
        size = _number(header, 16, 2)
        self._size = 65536 if size == 1 else size
        self._usable = self._size - header[20]
        self._count = _number(header, 28, 4)
        if self._size > _LARGEST_PAGE:
            raise NotThisForm("larger pages")
        if self._count >= _LARGEST_NUMBER:
            raise NotThisForm("too many pages")
        if _number(header, 52, 4):
            raise NotThisForm("auto_vacuum")
        if _number(header, 56, 4) != _UTF_8:
            raise NotThisForm("another encoding")
        self._freelist = _number(header, 32, 4)
        self._seen = bytearray(self._count + 1)
        self._result = Look(self._count)

    def look(self, roots: Iterable[int]) -> Look:
        for root in roots:
            waiting = [root]
            while waiting:
                waiting.extend(self._look_at_tree_page(waiting.pop()))
        self._look_at_freelist()
        self._look_at_the_rest()
        return self._result

    def _page(self, number: int) -> bytes:
        """Return a page that nothing else has had; raises NotThisForm if the file is damaged."""
        if not 1 <= number <= self._count or self._seen[number]:
            raise NotThisForm("damaged")
        self._seen[number] = 1
        page = os.pread(self._handle, self._size, (number - 1) * self._size)
        if len(page) != self._size:
            raise NotThisForm("damaged")
        return page

    def _look_at_tree_page(self, number: int) -> list[int]:
        """Look at one page of a tree, and at what its cells have elsewhere; return its children."""
        page = self._page(number)
        start = 100 if number == 1 else 0
        kind = page[start]
        if kind not in (_TABLE_LEAF, _TABLE_INNER, _INDEX_LEAF, _INDEX_INNER):
            raise NotThisForm("damaged")
        cells = _number(page, start + 3, 2)
        content = _number(page, start + 5, 2) or 65536
        pointers = start + (12 if kind in _INNER else 8)
        behind = pointers + 2 * cells
        if any(page[72:92]) and number == 1:
            self._result.note("header")
        self._judge("gap", page[behind:content], inner_table=kind == _TABLE_INNER)
        self._judge("reserved", page[self._usable :])
        offsets = [int.from_bytes(page[at : at + 2], "big") for at in range(pointers, behind, 2)]
        extents = [(at, self._end_of_cell(page, at, kind)) for at in offsets]
        if sum(end - at for at, end in extents) != self._usable - content:
            self._look_between(page, content, [*extents, *self._free_blocks(page, start)])
        if kind not in _INNER:
            return []
        children = [_number(page, at, 4) for at in offsets]
        return [*children, _number(page, start + 8, 4)]

    def _end_of_cell(self, page: bytes, at: int, kind: int) -> int:
        """Return where a cell ends in its page; look at the rest of it, if that is elsewhere."""
        start = at
        if kind in _INNER:
            at += 4
        size = 0
        if kind != _TABLE_INNER:
            size, at = _varint(page, at)
        if kind in _TABLE:
            _, at = _varint(page, at)
        usable = self._usable
        most = usable - 35 if kind == _TABLE_LEAF else (usable - 12) * 64 // 255 - 23
        if size <= most:
            # SQLite gives each cell four bytes at least.
            return max(at + size, start + 4)
        least = (usable - 12) * 32 // 255 - 23
        local = least + (size - least) % (usable - 4)
        local = local if local <= most else least
        self._look_at_overflow(_number(page, at + local, 4), size - local)
        return at + local + 4

    def _look_at_overflow(self, number: int, left: int) -> None:
        room = self._usable - 4
        while left > 0:
            page = self._page(number)
            if left < room:
                self._judge("overflow", page[4 + left :])
            number, left = _number(page, 0, 4), left - room
        if number:
            raise NotThisForm("damaged")

    def _free_blocks(self, page: bytes, start: int) -> Iterator[tuple[int, int]]:
        """Yield the heads of the free blocks of *page*, which are numbers of SQLite's own."""
        at = _number(page, start + 1, 2)
        while at:
            yield at, at + 4
            following = _number(page, at, 2)
            if following and following <= at:
                raise NotThisForm("damaged")
            at = following

    def _look_between(self, page: bytes, start: int, extents: Sequence[tuple[int, int]]) -> None:
        """Look at what lies between *extents* from *start* on."""
        at = start
        for begin, end in sorted(extents):
            if begin > at:
                self._judge("between rows", page[at:begin])
            at = max(at, end)
        self._judge("between rows", page[at : self._usable])

    def _look_at_freelist(self) -> None:
        trunk = self._freelist
        while trunk:
            page = self._page(trunk)
            leaves = _number(page, 4, 4)
            end = 8 + 4 * leaves
            if end > self._usable:
                raise NotThisForm("damaged")
            # Behind the list there may be numbers of pages, which were in it before.
            self._judge("free page", page[end:])
            for at in range(8, end, 4):
                self._judge("free page", self._page(_number(page, at, 4)))
            trunk = _number(page, 0, 4)

    def _look_at_the_rest(self) -> None:
        """Look at pages that are in no tree and in no list, behind the last one, and for a journal.

        The write-ahead log was emptied before, and others may have written into it since.
        """
        at = self._seen.find(0, 1)
        while at != -1:
            if at != _LOCK_BYTE // self._size + 1:
                self._judge("page of nothing", self._page(at))
            at = self._seen.find(0, at + 1)
        if os.fstat(self._handle).st_size > self._count * self._size:
            self._result.note("behind the last page")
        with suppress(FileNotFoundError):
            if os.stat(f"{self._path}-journal").st_size:
                self._result.note("journal")

    def _judge(self, where: str, rest: bytes, *, inner_table: bool = False) -> None:
        """Note *rest* unless it is zero, or nothing but numbers of SQLite's own."""
        if rest.count(0) != len(rest) and not is_numbers(rest, inner_table=inner_table):
            self._result.note(where)


def is_numbers(rest: bytes, *, inner_table: bool) -> bool:
    """Say whether *rest* can be read as offsets and zeros, with two other bytes between at most.

    No word of four letters can, in whatever script.

    In the gap of an *inner_table* page there are cells, too: a number of a page and of a row.
    """
    # The first number of a page may begin with zeros.
    rest = b"\0\0\0" + rest.strip(b"\0")
    length = len(rest)
    reached = bytearray(length + 13)
    reached[0] = 1
    for at in range(length):
        if not reached[at]:
            continue
        if rest[at] <= _LARGEST_FIRST:
            reached[at + 1] |= rest[at] == 0
            reached[at + 2] = 1
        for behind in (at + 1, at + 2):
            # Two bytes of a cell's head may be left before a number, but not before other bytes.
            if behind >= length or rest[behind] <= _LARGEST_FIRST:
                reached[behind] = 1
        if inner_table:
            for start in (at, at + 4) if _number(rest, at, 4) < _LARGEST_NUMBER else (at,):
                end = start
                while end - start < _LONGEST_VARINT - 1 and end < length and rest[end] > 127:
                    end += 1
                end += 1
                if end >= length or rest[end] == 0:
                    reached[end] = 1
    return any(reached[length:])


def _number(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "big")


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """Return SQLite's number of one to nine bytes at *at*, and where it ends."""
    first = page[at]
    if first < 128:
        return first, at + 1
    value = first & 127
    for position in range(at + 1, at + 8):
        byte = page[position]
        value = value << 7 | byte & 127
        if byte < 128:
            return value, position + 1
    return value << 8 | page[at + 8], at + 9


def main() -> None:
    """Look at the file that is named, with the roots on standard input; write what was found."""
    roots = [int(line) for line in sys.stdin.read().split()]
    try:
        sys.stdout.write(json.dumps(asdict(look(sys.argv[1], roots))))
    except NotThisForm as exc:
        sys.stdout.write(json.dumps({"form": str(exc)}))
    except IndexError:
        # A cell that goes on behind its page.
        sys.stdout.write(json.dumps({"form": "damaged"}))


if __name__ == "__main__":
    main()
