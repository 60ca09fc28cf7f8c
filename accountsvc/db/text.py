"""Texts that can be stored, the form in which names are compared, and times as text."""

from __future__ import annotations

import hashlib
import unicodedata
from datetime import UTC, datetime

# A key of more bytes is replaced by its hash: the shorter of the two key columns holds no more
# characters, and PostgreSQL would refuse the row.
MAX_KEY_BYTES = 600


def is_text(text: str) -> bool:
    """Say whether *text* can be stored: no NUL bytes (PostgreSQL), no lone surrogates (UTF-8)."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def text_problem(text: str, *, allowed: str = "") -> str | None:
    """Say what to change about *text* before it can be the value of a field; None: nothing.

    NUL bytes, lone surrogates and control characters are refused, except for those *allowed*.
    """
    for character in text:
        if character not in allowed and unicodedata.category(character) in {"Cc", "Cs"}:
            return "Remove control characters; send valid Unicode text."
    return None


def unique_key(typed: str) -> str:
    """Return the form in which e-mails and usernames are compared: at most ``MAX_KEY_BYTES`` long.

    It is made in Python, because ``lower()`` differs between the engines, and normalised twice
    (NFKC), because case folding can leave a text that is not (Unicode, section 3.13, "identifier
    caseless match").
    """
    folded = unicodedata.normalize("NFKC", typed.strip()).casefold()
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
