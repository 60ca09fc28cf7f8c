"""Texts that can be stored, the form in which names are compared, and times as text."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from datetime import UTC, datetime

from .. import bounds

# A key of more bytes is replaced by its hash: the shorter of the two key columns holds no more
# characters, and PostgreSQL would refuse the row.
MAX_KEY_BYTES = 600

# Categories of Unicode as classes of an expression, which reads a body of 64 KiB in a tenth of the
# time that a loop over its characters takes.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")


# Letters and signs that are drawn as nothing, though their categories say otherwise: fillers of
# Hangul, the empty cell of Braille, a note without a head, and what is set aside to be ignored
# (Unicode's Default_Ignorable_Code_Point).
_DRAWN_AS_NOTHING = re.compile(
    "[\u115f\u1160\u2065\u2800\u3164\uffa0\ufff0-\ufff8\U0001d159\U000e0000-\U000e0fff]"
)
_TURNS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
_MARKS_OF_DIRECTION = frozenset("\u061c\u200e\u200f")


def is_drawn(character: str) -> bool:
    """Say whether a person sees *character* by itself: no space, control, mark or filler."""
    category = unicodedata.category(character)
    if category[0] in "ZM" or category in {"Cc", "Cf", "Cs"}:
        return False
    return _DRAWN_AS_NOTHING.match(character) is None


def changes_direction(character: str) -> bool:
    """Say whether *character* is there to change the direction in which others are written."""
    return character in _MARKS_OF_DIRECTION or unicodedata.bidirectional(character) in _TURNS


def name_problem(name: str) -> str | None:
    """Say what to change about *name* before people can be told apart by it; None: nothing.

    A name that shows nothing, or turns around what stands beside it, or breaks a line, lets the
    staff act on another account than they see. Joiners within a name, of an emoji or of a Persian
    word, are well.
    """
    if any(map(changes_direction, name)):
        return "Remove characters that change the direction of the text."
    if any(unicodedata.category(character) in {"Zl", "Zp"} for character in name):
        return "Remove line and paragraph separators."
    if not any(map(is_drawn, name)):
        return "Use at least one character that can be seen."
    return None


def is_text(text: str) -> bool:
    """Say whether *text* can be stored: no NUL bytes (PostgreSQL), no lone surrogates (UTF-8)."""
    return _UNSTORABLE.search(text) is None


def text_problem(text: str, *, allowed: str = "") -> str | None:
    """Say what to change about *text* before it can be the value of a field; None: nothing.

    NUL bytes, lone surrogates and control characters are refused, except for those *allowed*.
    """
    looked_at = text.translate(dict.fromkeys(map(ord, allowed))) if allowed else text
    if _CONTROL.search(looked_at):
        return "Remove control characters; send valid Unicode text."
    return None


def unique_key(typed: str) -> str:
    """Return the form in which usernames are compared: at most ``MAX_KEY_BYTES`` long.

    E-mails have a form of their own, :func:`.addresses.address_key`.

    It is made in Python, because ``lower()`` differs between the engines, and normalised twice
    (NFKC), because case folding can leave a text that is not (Unicode, section 3.13, "identifier
    caseless match").

    A text of more than ``EMAIL_CHARACTERS`` without the spaces around it is not normalised, which
    takes time that grows with its square: it gets a key that no account has.
    """
    text = typed.strip()
    if len(text) > bounds.EMAIL_CHARACTERS:
        return f"TOO-LONG:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"
    folded = unicodedata.normalize("NFKC", text).casefold()
    key = unicodedata.normalize("NFKC", folded)
    # Normalisation can make eighteen characters of one (U+FDFA), too many for the column and for an
    # index entry. The hash meets no other key by chance: folding leaves no capitals such as its
    # own.
    encoded = key.encode(errors="surrogatepass")
    if len(encoded) > MAX_KEY_BYTES:
        return f"SHA-256:{hashlib.sha256(encoded).hexdigest()}"
    return key


def rfc3339(moment: datetime, *, timespec: str = "seconds", utc: str = "Z") -> str:
    """Write *moment*, which is aware, as RFC 3339 in UTC, for example ``2026-12-07T09:30:15Z``.

    *timespec* is that of ``datetime.isoformat``: whole seconds, rounded down, or ``auto`` for all
    that *moment* has. *utc* is how the offset is written, ``Z`` or ``+00:00``; both mean the same.
    """
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=timespec) + utc
