"""What anybody tries first: the passwords that breaches made common, and the words of this service.

zxcvbn counts guesses, and knows neither list: of the 3,000 most common passwords that are long
enough, it would take 164 for good ones.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

# A guesser tries these first in a password for this service (ASVS 5.0, 6.1.2). With one of them a
# password is as weak as without it; without this list "accountsvc2026" would pass for a strong one.
CONTEXT_WORDS = (
    "accountsvc",
    "account",
    "accounts",
    "savedpasswords",
    "passwords",
    "vault",
    "avatar",
    "profile",
    "deletion",
    "operator",
    "staff",
    "administrator",
)

_COMMON = Path(__file__).parents[1] / "data" / "common_passwords.txt"


def is_common(password: str) -> bool:
    """Say whether *password*, in any case, is one of the most common ones (ASVS 5.0, 6.2.4)."""
    return password.casefold() in common_passwords()


@cache
def common_passwords() -> frozenset[str]:
    """Return the most common passwords that are long enough, in lower case; read once a process."""
    return frozenset(_COMMON.read_text(encoding="ascii").split("\n")) - {""}
