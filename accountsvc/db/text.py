"""What a text must be to be stored, and the form in which names are compared."""

from __future__ import annotations

import hashlib
import unicodedata


def is_text(text: str) -> bool:
    """Say whether *text* can be stored: no NUL bytes (PostgreSQL), no lone surrogates (UTF-8)."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def text_problem(text: str, *, allowed: str = "") -> str | None:
    """Say what makes *text* unfit for a field: NUL bytes, lone surrogates, control characters not *allowed*."""
    for character in text:
        if character not in allowed and unicodedata.category(character) in {"Cc", "Cs"}:
            return "Remove control characters; send valid Unicode text."
    return None


# What the shorter of the two key columns holds.
MAX_KEY_BYTES = 600


def unique_key(typed: str) -> str:
    """Return the form in which e-mails and usernames are compared.

    Normalised in Python, because ``lower()`` differs between the engines. NFKC twice: case folding
    can leave a text that is not normalised (Unicode, section 3.13, "identifier caseless match").
    """
    folded = unicodedata.normalize("NFKC", typed.strip()).casefold()
    key = unicodedata.normalize("NFKC", folded)
    # One character can become eighteen (U+FDFA): too long for the column and for an index entry. No
    # other key begins so, since folding leaves no capitals.
    encoded = key.encode(errors="surrogatepass")
    if len(encoded) > MAX_KEY_BYTES:
        return f"SHA-256:{hashlib.sha256(encoded).hexdigest()}"
    return key
