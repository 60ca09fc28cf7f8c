"""New passwords and passphrases, from the operating system's random source.

``secrets`` only: nothing here can be seeded, and nothing is remembered.
"""

from __future__ import annotations

import secrets
import string
from functools import cache
from pathlib import Path

MIN_LENGTH = 8
MAX_LENGTH = 128
MIN_WORDS = 3
MAX_WORDS = 20

# The symbols leave out quotes, backslash, comma, semicolon, angle brackets and space: these break
# forms, CSV files and shells often enough that people would weaken the password by hand.
SYMBOLS = "!#$%&*+-.:=?@^_~"

_WORD_LIST = Path(__file__).with_name("data") / "eff_large_wordlist.txt"


def password(length: int = 20, *, symbols: bool = True) -> str:
    """Return *length* random characters with at least one of each promised class.

    The classes are lower case, upper case, digits and, with *symbols*, the 16 of ``SYMBOLS``. Every
    string that keeps the promise is equally likely. That is 6.28 bits a character with symbols and
    5.95 without, less what the promise excludes: 125.5 and 119.0 bits at the default length, 49.2
    and 47.1 at the least (both rounded down).

    Raises ValueError if *length* is not within ``MIN_LENGTH`` and ``MAX_LENGTH``.
    """
    if not MIN_LENGTH <= length <= MAX_LENGTH:
        raise ValueError(f"length must be between {MIN_LENGTH} and {MAX_LENGTH}")
    classes = [string.ascii_lowercase, string.ascii_uppercase, string.digits]
    if symbols:
        classes.append(SYMBOLS)
    alphabet = "".join(classes)
    # Whole strings are drawn again until one fits: putting a digit where one is missing would make
    # some strings likelier than others. At the least length every second draw fits.
    while True:
        drawn = "".join(secrets.choice(alphabet) for _ in range(length))
        if all(any(char in wanted for char in drawn) for wanted in classes):
            return drawn


def passphrase(words: int = 6, separator: str = "-") -> str:
    """Return *words* random words of the EFF's long list, joined by *separator*.

    Words may repeat. Each adds log2(7776) = 12.92 bits: 77.5 bits at the default number, 38.7 at
    the least (rounded down). No word begins another, so this holds for any *separator*, also an
    empty one. No class of characters is promised.

    Raises ValueError if *words* is not within ``MIN_WORDS`` and ``MAX_WORDS``.
    """
    if not MIN_WORDS <= words <= MAX_WORDS:
        raise ValueError(f"words must be between {MIN_WORDS} and {MAX_WORDS}")
    return separator.join(secrets.choice(word_list()) for _ in range(words))


@cache
def word_list() -> tuple[str, ...]:
    """Return the 7,776 words of the EFF's long list, in its order; read once a process."""
    return tuple(_WORD_LIST.read_text(encoding="ascii").split())
