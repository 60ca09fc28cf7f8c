"""What a field of an account may hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from marshmallow import ValidationError
from marshmallow.validate import Email
from zxcvbn_rs_py import zxcvbn

from ..db.models import Account
from ..db.text import text_problem

PROFILE_FIELDS = ("username", "email", "first_name", "last_name", "number_phone")

_LONGEST = {
    "username": 150,
    "email": 254,
    "first_name": 150,
    "last_name": 150,
    "number_phone": 20,
    "password": 128,
    "new_password": 128,
}

_SHORTEST_PASSWORD = 8

# zxcvbn's own scale: below 2, under 10**6 guesses.
_WEAKEST_PASSWORD = 2

_check_email = Email()


def field_problems(values: Mapping[str, str]) -> dict[str, list[str]]:
    problems: dict[str, list[str]] = {}
    for name, value in values.items():
        if text_problem(value):
            problems[name] = [text_problem(value) or ""]
        elif name in {"username", "email"} and not value.strip():
            problems[name] = ["This field may not be blank."]
        elif len(value.strip()) > _LONGEST[name]:
            problems[name] = [f"Use at most {_LONGEST[name]} characters."]
        elif name == "email" and not _is_email(value.strip()):
            problems[name] = ["Enter a valid email address."]
        elif name == "number_phone" and not re.fullmatch(r"[0-9 +\-()]*", value):
            problems[name] = ["Use digits, spaces, and + - ( ) only."]
    return problems


def _is_email(value: str) -> bool:
    try:
        _check_email(value)
    except ValidationError:
        return False
    # What a mail header could misread.
    return not re.search(r'[\s<>,;:"\\()\[\]]', value)


def cleaned(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value.strip() for name, value in values.items()}


def password_problems(name: str, password: str, profile: Mapping[str, str]) -> dict[str, list[str]]:
    if not password:
        return {name: ["This field may not be blank."]}
    if any(unicodedata.category(character) == "Cs" for character in password) or "\0" in password:
        return {name: ["Remove NUL bytes; send valid Unicode text."]}
    if len(password) < _SHORTEST_PASSWORD:
        return {name: [f"Use at least {_SHORTEST_PASSWORD} characters."]}
    if len(password) > _LONGEST[name]:
        return {name: [f"Use at most {_LONGEST[name]} characters."]}
    known = [value for value in profile.values() if value]
    if int(zxcvbn(password, known).score) < _WEAKEST_PASSWORD:
        return {name: ["This password is too easy to guess. Add more words or characters."]}
    return {}


def profile_of(account: Account) -> dict[str, str]:
    return {name: getattr(account, name) for name in PROFILE_FIELDS}
