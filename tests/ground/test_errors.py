"""The words of the errors that say more than one thing."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from accountsvc.errors import AccountDeactivated

PAGE = "https://accounts.example.org/keep-account/"


@pytest.mark.parametrize(
    "moment",
    [
        # Half an hour of the day by UTC: in America it is the day before, and all of it to come.
        datetime(2026, 12, 7, 0, 30, tzinfo=UTC),
        datetime(2027, 1, 1, 0, 0, tzinfo=UTC),
        datetime(2028, 2, 29, 23, 59, 59, tzinfo=UTC),
    ],
)
@pytest.mark.parametrize("way_back", ["BY_OWNER", "BY_STAFF", "OVER"])
def test_who_signs_in_is_told_the_time_and_the_zone(moment: datetime, way_back: str) -> None:
    refused = AccountDeactivated(
        account_id=1, purge_at=moment, way_back=getattr(AccountDeactivated, way_back)
    )

    for said in (str(refused), str(refused.by_page(PAGE))):
        assert f"on {moment.day} {moment:%B %Y} at {moment:%H:%M} UTC. " in said
        assert "before then" not in said
    assert (PAGE in said) is (way_back == "BY_OWNER")
