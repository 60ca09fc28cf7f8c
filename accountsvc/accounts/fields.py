"""The rules for the fields of an account: each check returns a sentence for every bad field.

The checks are pure: the same values give the same sentences, and no database is asked. Whether a
name is still free is for :mod:`.profiles` to say.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping

from zxcvbn_rs_py import zxcvbn

from .. import bounds, mailboxes
from ..db.models import Account
from ..db.text import (
    JOINERS,
    changes_direction,
    invisible_problem,
    is_text,
    name_problem,
    text_problem,
)
from .guesses import CONTEXT_WORDS, is_common

PROFILE_FIELDS = ("username", "email", "first_name", "last_name", "number_phone")

_MAX_LENGTH = {
    "username": bounds.USERNAME_CHARACTERS,
    "email": bounds.EMAIL_CHARACTERS,
    "first_name": 150,
    "last_name": 150,
    "number_phone": 20,
}

_MIN_PASSWORD_LENGTH = 8

# zxcvbn's own scale of 0 to 4: a score of 1 means fewer than 10**6 guesses, too few against a
# stolen table of hashes.
_MIN_PASSWORD_SCORE = 2

# The characters that zxcvbn also reads as a letter: one set for each letter, and one way to read a
# password for each choice of one from each of them.
_READ_AS_LETTERS = ("4@", "8", "([{<", "3", "69", "1!|", "1|7", "0", "$5", "+7", "%", "2")


def field_problems(values: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the problems of *values*, profile fields by their names; {} if there is none.

    The length is that of what is stored, without the spaces around it, and is looked at first.
    """
    problems: dict[str, list[str]] = {}
    for name, value in values.items():
        if len(value.strip()) > _MAX_LENGTH[name]:
            problems[name] = [f"Use at most {_MAX_LENGTH[name]} characters."]
        elif problem := text_problem(value):
            problems[name] = [problem]
        elif name in _RULES and not value.strip():
            problems[name] = ["This field may not be blank."]
        elif name in _RULES and (problem := _RULES[name](value.strip())):
            problems[name] = [problem]
        elif name == "number_phone" and not re.fullmatch(r"[0-9 +\-()]*", value):
            problems[name] = ["Use digits, spaces, and + - ( ) only."]
    return problems


def email_problem(text: str) -> str | None:
    """Say what to change about *text*, without spaces around it, before it can sign up.

    None: nothing. Of what is drawn as nothing only joiners in the domain are well, where IDNA asks
    for letters that they belong to; any other would be in the stored text, and in no mail.
    """
    name, _, domain = text.rpartition("@")
    shown = name + "".join(character for character in domain if character not in JOINERS)
    # That an address turns its text around is a fault that IDNA and the rule of names find.
    unseen = "".join(character for character in shown if not changes_direction(character))
    return invisible_problem(unseen) or mailboxes.problem(text)


# Whatever an account cannot be without has a rule of its own.
_RULES = {"username": name_problem, "email": email_problem}


def cleaned(values: Mapping[str, str]) -> dict[str, str]:
    """Return *values* as they are stored: without spaces around them."""
    return {name: value.strip() for name, value in values.items()}


def password_problems(name: str, password: str, profile: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the problems of *password*, by *name*, the field that it came in; {} if it has none.

    It must not be easy to guess (NIST SP 800-63B, section 3.1.1.2), also for somebody who knows the
    values of *profile*, the words of this service and the most common passwords. It is judged by
    its first ``STRENGTH_CHARACTERS`` at most, and so is each of those values: one whose beginning
    is easy to guess is refused, whatever follows.
    """
    if not password:
        return {name: ["This field may not be blank."]}
    if is_too_long(password):
        return {name: [f"Use at most {bounds.PASSWORD_CHARACTERS} characters."]}
    if not is_text(password):
        return {name: ["Remove NUL bytes; send valid Unicode text."]}
    # Judge what is hashed: typed in parts, "é" would count for two characters, and a name of the
    # person's, typed in parts or whole, would not be seen in a password that is typed otherwise.
    password = normalised(password)
    if len(password) < _MIN_PASSWORD_LENGTH:
        return {name: [f"Use at least {_MIN_PASSWORD_LENGTH} characters."]}
    longest = bounds.STRENGTH_CHARACTERS
    own = (normalised(value[:longest])[:longest] for value in profile.values() if value)
    known = [*CONTEXT_WORDS, *own]
    if is_common(password) or int(zxcvbn(_judged(password), known).score) < _MIN_PASSWORD_SCORE:
        return {name: ["This password is too easy to guess. Add more words or characters."]}
    return {}


def normalised(password: str) -> str:
    """Return the form of *password* in which it is judged, hashed and checked: NFC (RFC 8265, 4.2).

    Systems type one character in different ways: ``é`` is one code point or two, a Korean syllable
    one or three. Whatever else differs makes another password: case, width, spaces.
    """
    return unicodedata.normalize("NFC", password)


def is_too_long(password: str) -> bool:
    """Say whether *password* has more than ``PASSWORD_CHARACTERS``, as it came and normalised.

    One of more than ``PASSWORD_PARTS`` is not normalised, which takes time that grows with its
    square.
    """
    if len(password) <= bounds.PASSWORD_CHARACTERS:
        return False
    if len(password) > bounds.PASSWORD_PARTS:
        return True
    return len(normalised(password)) > bounds.PASSWORD_CHARACTERS


def _judged(password: str) -> str:
    """Return the beginning of *password* on which zxcvbn spends ``STRENGTH_LOOKUPS`` at most.

    Its look-ups are the square of the length times the ways to read it. What is left of a password
    of very many signs is still long enough to be strong by itself.
    """
    seen = password[: bounds.STRENGTH_CHARACTERS]
    while _ways_to_read(seen) * len(seen) ** 2 > bounds.STRENGTH_LOOKUPS:
        seen = seen[:-1]
    return seen


def _ways_to_read(text: str) -> int:
    found = set(text)
    return math.prod(max(1, len(found & set(signs))) for signs in _READ_AS_LETTERS)


def profile_of(account: Account) -> dict[str, str]:
    """Return the profile fields of *account*, as :func:`password_problems` takes them."""
    return {name: getattr(account, name) for name in PROFILE_FIELDS}
