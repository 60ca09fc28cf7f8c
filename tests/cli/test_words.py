"""How values are shown: aligned, in words, and without harm to the terminal."""

from __future__ import annotations

from datetime import timedelta

import pytest

from accountsvc.cli.words import (
    Column,
    count,
    cut,
    duration,
    fields,
    printable,
    shown,
    table,
    width,
)


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (1_000, "1000 files")]
)
def test_a_noun_agrees_with_its_number(number: int, said: str) -> None:
    assert count(number, "file") == said


def test_a_verb_may_agree_too() -> None:
    assert count(1, "batch is", "batches are") == "1 batch is"
    assert count(0, "batch is", "batches are") == "0 batches are"


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (timedelta(), "0 s"),
        (timedelta(seconds=-5), "0 s"),
        (timedelta(seconds=59), "59 s"),
        (timedelta(seconds=60), "1 min"),
        (timedelta(seconds=61), "1 min 1 s"),
        (timedelta(hours=1), "1 h"),
        (timedelta(hours=2, minutes=5, seconds=59), "2 h 5 min"),
        (timedelta(hours=23, minutes=59, seconds=59), "23 h 59 min"),
        (timedelta(hours=24), "1 d"),
        # Two neighbouring units only.
        (timedelta(days=1, minutes=5), "1 d"),
        (timedelta(days=330, hours=12), "330 d 12 h"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(length: timedelta, said: str) -> None:
    assert duration(length) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("王小明", "王小明"),
        ("שלום", "שלום"),
        ("by\r\nletter\tof 3 May", "by  letter of 3 May"),
        ("a\x1b[31mred\x07", "a<U+001B>[31mred<U+0007>"),
        ("exe\u202egnp", "exe<U+202E>gnp"),
        ("\udcff", "<U+DCFF>"),
        ("zero\u200bwidth", "zero<U+200B>width"),
        ("\u3164\u2800\uffa0", "<U+3164><U+2800><U+FFA0>"),
        ("\u061cann\u2067\ufeff", "<U+061C>ann<U+2067><U+FEFF>"),
        ("\u2028line", " line"),
        # A family, and a Persian word with a joiner in it, stay whole.
        ("👩‍👧", "👩‍👧"),
        ("می‌خواهم", "می‌خواهم"),
    ],
)
def test_what_acts_on_a_terminal_is_named_and_not_sent(text: str, said: str) -> None:
    assert printable(text) == said


@pytest.mark.parametrize(
    ("text", "columns"),
    [("", 0), ("ann", 3), ("王小明", 6), ("😀", 2), ("é", 1), ("שלום", 4), ("ｆ", 2)],
)
def test_width_counts_columns_and_not_characters(text: str, columns: int) -> None:
    assert width(text) == columns


def test_what_is_too_wide_is_cut_at_a_whole_character() -> None:
    assert cut("annabella", 9) == "annabella"
    assert cut("annabella", 8) == "annabel…"
    assert cut("王小明", 5) == "王小…"
    assert cut("王小明", 4) == "王…"


def test_values_are_words() -> None:
    assert [shown(value) for value in (True, False, None, "", 0, "x")] == [
        "yes",
        "no",
        "–",
        "–",
        "0",
        "x",
    ]


def test_a_table_is_aligned_with_numbers_to_the_right() -> None:
    lines = table(
        ["ID", Column("NAME", most=8), "STAFF", "E-MAIL"],
        [
            [7, "王小明", True, "wang@example.org"],
            [1234, "x" * 150, False, None],
            [15, "שלום\n", False, "😀@example.org"],
        ],
    )

    assert list(lines) == [
        "  ID  NAME      STAFF  E-MAIL",
        "   7  王小明    yes    wang@example.org",
        "1234  xxxxxxx…  no     –",
        "  15  שלום      no     😀@example.org",
    ]


def test_a_table_of_nothing_is_its_titles() -> None:
    assert list(table(["ID", "NAME"], [])) == ["ID  NAME"]


def test_a_dash_among_numbers_makes_a_column_of_texts() -> None:
    assert list(table(["N"], [[10], [None]])) == ["N", "10", "–"]


def test_fields_are_aligned_and_leave_out_what_is_not_there() -> None:
    lines = fields({"id": 0, "first name": "", "reason": None, "staff": False, "phone": "+1"})

    assert list(lines) == ["id     0", "staff  no", "phone  +1"]
