"""The forms in which people see values: counted nouns, durations, fields and aligned tables.

A value may hold anything that people have typed, so every text goes through :func:`printable`:
nothing that is stored can move a terminal's cursor, turn a line around, or break a column.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..db.text import is_drawn, rfc3339
from ..purge.clocks import ClocksDiffer

DASH = "–"

# Joiners hold one emoji or one Persian word together; without them it would fall into its parts.
_JOINERS = "\u200c\u200d"

# In a document of JSON there is no other of category Cc but its own line breaks.
_ACTS = re.compile(
    "[\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def stamp(moment: datetime | None) -> str | None:
    """Return *moment* in RFC 3339, or None if there is none."""
    return None if moment is None else rfc3339(moment)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return *number* with its noun: ``1 file``, ``2 files``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def duration(length: timedelta) -> str:
    """Return *length* in its two largest units: ``3 d 4 h``, ``2 h 5 min``, ``40 s``."""
    seconds = max(0, round(length.total_seconds()))
    for index, (unit, size) in enumerate(_UNITS):
        if seconds >= size:
            parts = [f"{seconds // size} {unit}"]
            for smaller, smaller_size in _UNITS[index + 1 : index + 2]:
                if rest := seconds % size // smaller_size:
                    parts.append(f"{rest} {smaller}")
            return " ".join(parts)
    return "0 s"


def printable(text: str) -> str:
    """Return *text* as one line without control characters.

    Line breaks and tabs become spaces. Characters that would act on the terminal (control and
    bidirectional formatting characters, lone surrogates), and letters that are drawn as nothing,
    are named: ``<U+202E>``.
    """
    return "".join(_printable(character) for character in text)


def _printable(character: str) -> str:
    if character in "\t\n\r\u2028\u2029":
        return " "
    if character in _JOINERS or is_drawn(character):
        return character
    # Spaces and marks stand for themselves beside what is drawn.
    if unicodedata.category(character)[0] in "ZM":
        return character
    return f"<U+{ord(character):04X}>"


def escaped(document: str) -> str:
    """Return the JSON *document* with escapes for what acts on a terminal: the same to a program.

    These characters stand in its texts alone, where an escape means the character.
    """
    return _ACTS.sub(lambda found: json.dumps(found[0])[1:-1], document)


def width(text: str) -> int:
    """Return the columns that *text* takes on a terminal: two for East Asian characters and emoji.

    Combining characters take none (Unicode Standard Annex #11).
    """
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, most: int) -> str:
    """Return *text*, or its beginning and ``…`` if it is wider than *most* columns."""
    if width(text) <= most:
        return text
    beginning, room = "", most - 1
    for character in text:
        room -= _width(character)
        if room < 0:
            break
        beginning += character
    return f"{beginning}…"


def shown(value: object) -> str:
    """Return a value in words: yes or no, a dash for none, any other as :func:`printable` does."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value))


@dataclass(frozen=True)
class Column:
    """A column of a table, cut at *most* columns of the terminal."""

    title: str
    most: int | None = None


def table(columns: Sequence[Column | str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table, the titles first: aligned, numbers to the right.

    A column is one of numbers if nothing else is in it.
    """
    rows = list(rows)
    titled = [Column(column) if isinstance(column, str) else column for column in columns]
    cells = [
        [_cell(value, column) for value, column in zip(row, titled, strict=True)] for row in rows
    ]
    titles = [column.title for column in titled]
    widths = [max(map(width, column)) for column in zip(titles, *cells, strict=True)]
    numbers = [bool(rows) and all(map(_is_number, column)) for column in zip(*rows, strict=True)]
    numbers = numbers or [False] * len(titled)
    for line in [titles, *cells]:
        yield "  ".join(map(_aligned, line, widths, numbers)).rstrip()


def _cell(value: object, column: Column) -> str:
    return shown(value) if column.most is None else cut(shown(value), column.most)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _aligned(text: str, columns: int, is_number: bool) -> str:
    padding = " " * (columns - width(text))
    return f"{padding}{text}" if is_number else f"{text}{padding}"


def fields(values: Mapping[str, object]) -> Iterator[str]:
    """Yield a line for each value, behind its name; those that are None or empty are left out."""
    present = {name: value for name, value in values.items() if value not in (None, "")}
    longest = max(map(width, present), default=0)
    for name, value in present.items():
        yield f"{_aligned(name, longest, False)}  {shown(value)}"


def braked(since: datetime | None, waiting: int) -> str:
    """Return the sentence that the brake holds since a time, who waits, and what ends that."""
    accounts = count(waiting, "account waits", "accounts wait")
    return (
        f"The brake holds since {stamp(since)}: {accounts}. Look who they are (`accounts list "
        "--state due`); `sweeps allow --up-to N --reason …` lets more go."
    )


def paused(since: datetime | None) -> str:
    """Return the sentence that purging is paused since a time, and what ends that."""
    return f"Purging is paused since {stamp(since)}. `sweeps resume` ends that."


def clocks_differ(difference: ClocksDiffer) -> str:
    """Return the sentence that two clocks differ, and what ends that."""
    text = str(difference)
    return f"{text[0].upper()}{text[1:]}. Nothing is purged until the wrong one is set right."


def clock_moved(since: datetime) -> str:
    """Return the sentence that the clock has stopped purging since a time, and what ends that."""
    return (
        f"The database's clock has moved: purging is stopped since {stamp(since)}, until it is "
        "back. If it is right as it is, `sweeps allow --clock` ends that."
    )
