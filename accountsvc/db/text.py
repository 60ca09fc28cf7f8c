"""Texts that can be stored, the form in which names are compared, and times as text."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from datetime import UTC, datetime

import idna

from .. import bounds

# A key of more bytes is replaced by its hash: the shorter of the two key columns holds no more
# characters, and PostgreSQL would refuse the row.
MAX_KEY_BYTES = 600

# Categories of Unicode as classes of an expression, which reads a body of 64 KiB in a tenth of the
# time that a loop over its characters takes.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")

# What is drawn as nothing, whatever its category: all of Unicode's Default_Ignorable_Code_Point
# (fillers of Hangul, selectors of variants, tags, joiners), the empty cell of Braille, a note
# without a head, the controls of notes between lines, the stand-in for an object, the filler of
# Khitan, and the controls and blanks of Egyptian, some of which Python's tables do not know yet.
_DRAWN_AS_NOTHING = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffc\U00013430-\U0001343f"
    "\U00013441\U00013442\U00016fe4\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
NON_JOINER, JOINER = "\u200c", "\u200d"
JOINERS = NON_JOINER + JOINER
# The pictures that a joiner makes of several (Unicode's emoji-zwj-sequences, without selectors of
# variants): families, and people with what they work with. Between others it would be drawn as
# nothing, and one name could look like another.
_ADULT = "[\U0001f468\U0001f469\U0001f9d1]"
_TOOLS = (
    "\U0001f33e\U0001f373\U0001f37c\U0001f384\U0001f393\U0001f3a4\U0001f3a8\U0001f3eb"
    "\U0001f3ed\U0001f4bb\U0001f4bc\U0001f527\U0001f52c\U0001f680\U0001f692\U0001f9af-\U0001f9b3"
    "\U0001f9bc\U0001f9bd"
)
_JOINED_PICTURE = re.compile(
    f"{_ADULT}(?:\u200d{_ADULT})?(?:\u200d[\U0001f466\U0001f467\U0001f9d2]){{1,2}}"
    f"|{_ADULT}[\U0001f3fb-\U0001f3ff]?\u200d[{_TOOLS}]"
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

    A name that shows nothing, or has what shows nothing beside the rest, or turns around what
    stands beside it, or breaks a line, lets the staff act on another account than they see.
    Joiners that are seen, within an emoji or a word of Persian or Hindi, are well.
    """
    if any(map(changes_direction, name)):
        return "Remove characters that change the direction of the text."
    if any(unicodedata.category(character) in {"Zl", "Zp"} for character in name):
        return "Remove line and paragraph separators."
    if re.search(r"\s\s", name):
        return "Use one space between words."
    if not any(map(is_drawn, name)):
        return "Use at least one character that can be seen."
    return invisible_problem(_without_seen_joiners(name))


def invisible_problem(text: str) -> str | None:
    """Ask for the removal of characters of *text* that are drawn as nothing; None: there are none.

    The first is named by its code point, since nobody sees where it stands.
    """
    found = _DRAWN_AS_NOTHING.search(text)
    return found and f"Remove invisible characters, such as U+{ord(found[0]):04X}."


def _without_seen_joiners(name: str) -> str:
    """Return *name* without the joiners that make a difference to how it is drawn."""
    name = _JOINED_PICTURE.sub(lambda found: found[0].replace(JOINER, ""), name)
    return "".join(
        character
        for position, character in enumerate(name)
        if character not in JOINERS or not _is_seen_joiner(name, position)
    )


def _is_seen_joiner(name: str, position: int) -> bool:
    """Say whether the joiner at *position* of *name* is seen, by IDNA 2008 (RFC 5892, appendix A).

    It stands behind a virama, or keeps two letters apart that would be drawn as one shape. A
    non-joiner at an end, or before a sign, keeps nothing apart.
    """
    following = name[position + 1 : position + 2]
    keeps_apart = bool(following) and unicodedata.category(following)[0] in "LM"
    if name[position] == NON_JOINER and (not keeps_apart or following.isascii()):
        return False
    try:
        return idna.valid_contextj(name, position)
    except ValueError:
        # The character before it is none that this release of Unicode knows.
        return False


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
