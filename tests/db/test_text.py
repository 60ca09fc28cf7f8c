"""Times as text: the bytes of the one writer are those of the wire, the export and the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountsvc.db.text import rfc3339

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
