"""Names that are nearly a setting's: nobody reads them, so that what they say would not count."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Names within reach of one of ours that other programs are known to read, beside which a shared
# environment or .env file must not keep us from starting.
_OF_OTHERS = frozenset(
    {
        "API_ENV",
        "EMAIL_FROM",  # of Auth.js and Directus
        "EMAIL_URL",  # of django-environ and dj-email-url
        "LOGLEVEL",
        "MAIN_URL",
        "SLEEP_INTERVAL",
    }
)

# Nobody reads these, whatever stands in their text: each with the setting that is meant instead.
MEANT = {"PURGE_MAX_PER_SWEEP": "PURGE_BRAKE"}

# Nobody types a longer name by mistake for one of ours, and each comparison has a bound.
_LONGEST = 40


def nearly(names: Iterable[str], settings: Iterable[str]) -> Mapping[str, str]:
    """Return those of *names* that are nearly a setting's, each with that setting.

    A name is nearly another if it differs in case, underscores and hyphens only, in one pair of
    signs that changed places, in the number (singular or plural) of a word, or in one letter; in
    two letters from 14 on. A name of fewer than 8
    letters is nearly too many, and a digit means another one of a kind (``DATABASE_URL_2``).
    """
    ours = [(name, letters := _letters(name), _mask(letters)) for name in sorted(settings)]
    exact = {name for name, _, _ in ours}
    found = {}
    singular = {_singular(name): name for name in sorted(settings)}
    for name in names:
        if name in exact or name in _OF_OTHERS or len(name) > _LONGEST:
            continue
        if name in MEANT and MEANT[name] in exact:
            found[name] = MEANT[name]
            continue
        if _singular(name) in singular:
            found[name] = singular[_singular(name)]
            continue
        letters = _letters(name)
        mask = _mask(letters)
        for setting, wanted, wanted_mask in ours:
            # An edit adds one letter at most and takes one away: nearly all pairs end here.
            if (mask ^ wanted_mask).bit_count() <= 4 and _is_near(letters, wanted):
                found[name] = setting
                break
    return found


def _singular(name: str) -> str:
    """Return *name* with each of its words in the singular, as far as English is regular."""
    words = re.split(r"[\s_.-]+", name.upper())
    return "_".join(re.sub(r"(?<=[A-Z]{2})(?<!S)S$", "", re.sub(r"IES$", "Y", w)) for w in words)


def shown(name: str) -> str:
    """Return *name* as a line may hold it: in ASCII, without a sign that moves the cursor."""
    return name if name.isascii() and name.isprintable() else ascii(name)


def _is_near(letters: str, wanted: str) -> bool:
    if any(sign.isdigit() for sign in letters):
        return False
    edits = 2 if len(wanted) >= 14 else 1 if len(wanted) >= 8 else 0
    if abs(len(letters) - len(wanted)) > edits:
        return False
    return _is_swapped(letters, wanted) or _distance(letters, wanted) <= edits


def _letters(name: str) -> str:
    return re.sub(r"[\s_.\ufeff-]", "", name.upper())


def _mask(letters: str) -> int:
    mask = 0
    for sign in letters:
        mask |= 1 << (ord(sign) % 64)
    return mask


def _is_swapped(left: str, right: str) -> bool:
    """Say whether the two differ only in one pair of neighbours that changed places."""
    if len(left) != len(right):
        return False
    places = [
        place for place, signs in enumerate(zip(left, right, strict=True)) if len({*signs}) > 1
    ]
    return (
        len(places) == 2
        and places[0] + 1 == places[1]
        and left[places[0]] == right[places[1]]
        and left[places[1]] == right[places[0]]
    )


def _distance(left: str, right: str) -> int:
    """Return how many signs are to be added, removed or replaced (Levenshtein)."""
    row = list(range(len(right) + 1))
    for number, sign in enumerate(left, 1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(right, 1):
            cost = min(row[place] + 1, row[place - 1] + 1, diagonal + (sign != other))
            diagonal, row[place] = row[place], cost
    return row[-1]
