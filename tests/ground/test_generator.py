"""New passwords keep what they promise, and are as random as they say."""

from __future__ import annotations

import string
from collections import Counter
from itertools import pairwise
from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accountsvc import generator
from accountsvc.generator import (
    MAX_LENGTH,
    MAX_WORDS,
    MIN_LENGTH,
    MIN_WORDS,
    SYMBOLS,
    passphrase,
    password,
    word_list,
)

CLASSES = (string.ascii_lowercase, string.ascii_uppercase, string.digits)


@settings(deadline=None)
@given(length=st.integers(MIN_LENGTH, MAX_LENGTH))
def test_a_password_has_the_length_and_every_promised_class(length: int) -> None:
    made = password(length)

    assert len(made) == length
    assert all(set(made) & set(wanted) for wanted in (*CLASSES, SYMBOLS))
    assert set(made) <= set("".join((*CLASSES, SYMBOLS)))


@settings(deadline=None)
@given(length=st.integers(MIN_LENGTH, MAX_LENGTH))
def test_a_password_without_symbols_has_none_and_every_other_class(length: int) -> None:
    made = password(length, symbols=False)

    assert len(made) == length
    assert all(set(made) & set(wanted) for wanted in CLASSES)
    assert set(made) <= set("".join(CLASSES))


@settings(deadline=None)
@given(
    length=st.one_of(st.integers(max_value=MIN_LENGTH - 1), st.integers(min_value=MAX_LENGTH + 1)),
    symbols=st.booleans(),
)
def test_a_length_out_of_bounds_is_refused(length: int, symbols: bool) -> None:
    with pytest.raises(ValueError, match="between 8 and 128"):
        password(length, symbols=symbols)


def test_the_default_password_is_20_characters_long_with_symbols() -> None:
    made = password()

    assert len(made) == 20
    assert set(made) & set(SYMBOLS)


@pytest.mark.parametrize("symbols", [True, False])
def test_every_character_is_equally_likely_at_every_place(symbols: bool) -> None:
    # The promise must not favour a place or a character of a class: compare the first and the last
    # place with the exact chance, which by symmetry is the same at each. One false alarm in 10**8.
    rounds, length = 4000, MIN_LENGTH
    made = [password(length, symbols=symbols) for _ in range(rounds)]

    classes = [*CLASSES, *([SYMBOLS] if symbols else [])]
    for wanted in classes:
        expected = _chance_of_class_at_a_place(wanted, classes, length)
        slack = 6.2 * (expected * (1 - expected) / rounds) ** 0.5
        for place in (0, length - 1):
            share = sum(one[place] in wanted for one in made) / rounds
            assert abs(share - expected) < slack, (wanted, place)
    # Within a class each character is as likely as the others.
    counts = Counter("".join(made))
    mean = sum(counts[char] for char in string.digits) / 10
    assert all(abs(counts[char] - mean) < 7 * mean**0.5 for char in string.digits)


def test_the_stated_entropy_of_passwords_is_right() -> None:
    with_symbols, without = [*CLASSES, SYMBOLS], list(CLASSES)

    assert _entropy(with_symbols, 20) == pytest.approx(125.59, abs=0.01)
    assert _entropy(without, 20) == pytest.approx(119.04, abs=0.01)
    assert _entropy(with_symbols, 8) == pytest.approx(49.24, abs=0.01)
    assert _entropy(without, 8) == pytest.approx(47.18, abs=0.01)
    doc = generator.password.__doc__ or ""
    assert all(number in doc for number in ("125.5", "119.0", "49.2", "47.1"))


def test_symbols_are_16_distinct_ones_that_survive_forms_csv_and_shells() -> None:
    assert len(set(SYMBOLS)) == len(SYMBOLS) == 16
    assert set(SYMBOLS) <= set(string.punctuation)
    assert not set(SYMBOLS) & set("\"'\\,;<>`|()[]{}")


def test_two_passwords_are_never_the_same() -> None:
    assert len({password(MIN_LENGTH) for _ in range(2000)}) == 2000


@settings(deadline=None)
@given(words=st.integers(MIN_WORDS, MAX_WORDS))
def test_a_passphrase_has_the_number_of_words_asked_for(words: int) -> None:
    made = passphrase(words, " ")

    assert len(made.split(" ")) == words
    assert set(made.split(" ")) <= set(word_list())


@pytest.mark.parametrize("words", [-1, 0, MIN_WORDS - 1, MAX_WORDS + 1, 10**9])
def test_a_number_of_words_out_of_bounds_is_refused(words: int) -> None:
    with pytest.raises(ValueError, match="between 3 and 20"):
        passphrase(words)


def test_the_default_passphrase_is_six_words_joined_by_hyphens() -> None:
    # Four words hold a hyphen themselves, so the count of hyphens is only a lower bound.
    assert passphrase().count("-") >= 5


def test_the_word_list_is_the_whole_list_without_doubles() -> None:
    words = word_list()

    assert len(words) == len(set(words)) == 7776
    assert (words[0], words[-1]) == ("abacus", "zoom")
    assert all(set(word) <= set(string.ascii_lowercase + "-") for word in words)
    assert 6 * log2(7776) == pytest.approx(77.54, abs=0.01)
    assert 3 * log2(7776) == pytest.approx(38.77, abs=0.01)


def test_no_word_begins_another_so_the_stated_entropy_holds_for_any_separator() -> None:
    # In sorted order a prefix stands right before a word that it begins.
    assert not [pair for pair in pairwise(sorted(word_list())) if pair[1].startswith(pair[0])]


def _count(alphabet: int, missing: list[int], length: int) -> int:
    """Count the strings of *length* over *alphabet* characters that hold each of the classes."""
    if not missing:
        return int(alphabet**length)
    first, rest = missing[0], missing[1:]
    return _count(alphabet, rest, length) - _count(alphabet - first, rest, length)


def _entropy(classes: list[str], length: int) -> float:
    sizes = [len(one) for one in classes]
    return log2(_count(sum(sizes), sizes, length))


def _chance_of_class_at_a_place(wanted: str, classes: list[str], length: int) -> float:
    sizes = [len(one) for one in classes]
    others = [len(one) for one in classes if one is not wanted]
    total = _count(sum(sizes), sizes, length)
    return len(wanted) * _count(sum(sizes), others, length - 1) / total
