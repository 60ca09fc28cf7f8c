"""Times as text have the bytes of each place; names are compared by keys of bounded work."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountsvc.bounds import EMAIL_CHARACTERS
from accountsvc.db.text import MAX_KEY_BYTES, is_text, rfc3339, text_problem, unique_key
from tests.support.work import note_work

NOON = datetime(2026, 12, 7, 12, tzinfo=UTC)
# Years that a row can hold: those before 1000 are written in other ways by other systems.
MOMENTS = st.datetimes(
    min_value=datetime(1000, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC)
)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (NOON, "2026-12-07T12:00:00Z"),
        (NOON + timedelta(microseconds=999_999), "2026-12-07T12:00:00Z"),
        (NOON.astimezone(timezone(timedelta(hours=5, minutes=30))), "2026-12-07T12:00:00Z"),
    ],
)
def test_a_time_on_the_wire_is_in_utc_and_in_whole_seconds(moment: datetime, text: str) -> None:
    assert rfc3339(moment) == text


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (NOON, "2026-12-07T12:00:00Z"),
        (NOON + timedelta(milliseconds=5), "2026-12-07T12:00:00.005000Z"),
        (NOON + timedelta(microseconds=1), "2026-12-07T12:00:00.000001Z"),
    ],
)
def test_a_time_in_an_export_has_all_its_digits(moment: datetime, text: str) -> None:
    assert rfc3339(moment, timespec="auto") == text


@given(MOMENTS)
def test_the_bytes_are_those_of_each_place(moment: datetime) -> None:
    assert rfc3339(moment) == f"{moment:%Y-%m-%dT%H:%M:%SZ}"
    assert rfc3339(moment, timespec="auto") == moment.isoformat().replace("+00:00", "Z")
    ledger = rfc3339(moment, timespec="auto", utc="+00:00")
    assert ledger == moment.isoformat()
    assert datetime.fromisoformat(ledger) == moment


@pytest.mark.parametrize("character", ["a", "\u0301", "\ufdfa", "\u0130", "\U0001d1c0", "\ud800"])
def test_a_name_is_normalised_to_its_longest_and_never_a_longer_one(
    monkeypatch: pytest.MonkeyPatch, character: str
) -> None:
    work = note_work(monkeypatch)

    longest, longer, longest_of_all = (
        unique_key(character * length)
        for length in (EMAIL_CHARACTERS, EMAIL_CHARACTERS + 1, 60_000)
    )

    assert work.normalised[0] == EMAIL_CHARACTERS
    assert len(work.normalised) == 2
    assert len({longest, longer, longest_of_all}) == 3
    assert all(len(key.encode()) <= MAX_KEY_BYTES for key in (longer, longest_of_all))


def test_no_name_that_fits_has_the_key_of_a_longer_one() -> None:
    # One that would be normalised to a name that fits, and one that is the key of such a name.
    in_parts = "e\u0301" * 200
    expanded = unicodedata.normalize("NFKC", "\ufdfa" * 40)

    assert unique_key(in_parts) != unique_key(unicodedata.normalize("NFC", in_parts))
    assert unique_key(expanded) != unique_key("\ufdfa" * 40)
    assert unique_key(unique_key(in_parts)) != unique_key(in_parts)


@pytest.mark.parametrize("space", [" ", "\u3000", "\t\r\n", "\x85"])
def test_spaces_around_a_name_are_not_counted(space: str) -> None:
    name = "a" * EMAIL_CHARACTERS

    assert unique_key(f"{space * 10_000}{name}{space * 10_000}") == unique_key(name)
    assert unique_key(f"{space * 10_000}{name}b{space}") == unique_key(f"{name}b")


def test_what_can_be_stored_is_said_of_every_character() -> None:
    everything = [chr(code) for code in range(0x110000)]
    control = [text for text in everything if unicodedata.category(text) in {"Cc", "Cs"}]
    surrogates = [text for text in everything if unicodedata.category(text) == "Cs"]

    assert [text for text in everything if text_problem(text)] == control
    assert [text for text in everything if not is_text(text)] == ["\0", *surrogates]
    assert text_problem("a\tb\n\r", allowed="\t\n\r") is None
    assert text_problem("a\tb\x0b", allowed="\t\n\r") is not None
