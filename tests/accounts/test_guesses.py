"""No password is taken that anybody would try first, and no other is refused for it."""

from __future__ import annotations

import pytest

from accountsvc.accounts.fields import password_problems
from accountsvc.accounts.guesses import CONTEXT_WORDS, common_passwords

TOO_EASY = "This password is too easy to guess. Add more words or characters."


def problems(password: str) -> list[str]:
    return password_problems("password", password, {}).get("password", [])


def test_the_most_common_passwords_are_refused() -> None:
    """At least the 3,000 most common ones that are long enough (ASVS 5.0, 6.2.4)."""
    assert len(common_passwords()) > 3000
    assert min(map(len, common_passwords())) == 8

    taken = [password for password in common_passwords() if problems(password) != [TOO_EASY]]

    assert taken == []


# Those of the first line zxcvbn would take for good ones; each in another case, too.
@pytest.mark.parametrize(
    "password",
    [
        *("1g2w3e4r", "zag12wsx", "hotmail1", "yahoo.com", "passer2009", "qti7zxh18u"),
        *("1G2W3E4R", "Zag12wsx", "HotMail1", "QTI7ZXH18U", "Password", "Trustno1", "IloveYou2"),
    ],
)
def test_a_common_password_is_refused_in_any_case(password: str) -> None:
    assert problems(password) == [TOO_EASY]


@pytest.mark.parametrize("word", CONTEXT_WORDS)
@pytest.mark.parametrize("ending", ["", "1", "2026", "!", "123"])
def test_a_word_of_this_service_makes_no_password(word: str, ending: str) -> None:
    assert problems((word + ending).capitalize().ljust(8, "1")) == [TOO_EASY]


@pytest.mark.parametrize(
    "password", ["accountsvc ocean lasagne", "vault-lasagne-horse-9", "1g2w3e4r zag12wsx hotmail1"]
)
def test_such_words_do_no_harm_among_others(password: str) -> None:
    assert problems(password) == []
