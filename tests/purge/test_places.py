"""The data map says how each place is verified, and so do the documents."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest

from accountsvc.db import datamap
from accountsvc.db.datamap import For, Place, Verified

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


def how(place: Place) -> str:
    if place.verified is not Verified.QUERY:
        return place.verified.value
    asked = ["number"] if place.columns_of_number() else []
    asked += ["public id"] if place.columns_of_public_id() else []
    return f"by query of the {' and the '.join(asked)}" if asked else "no column could hold anybody"


def until(place: Place) -> str:
    said = [place.stated] if place.stated else []
    said += ["it keeps the public id"] if place.keeps_public_id else []
    said += [f"on {place.engine} only"] if place.engine else []
    if isinstance(place.stated_for, timedelta):
        days = place.stated_for.days
        said.append(f"until {'a day' if days == 1 else f'{days} days'} behind the erasure")
    elif place.stated_for is For.BACKUPS:
        said.append("until `BACKUP_RETENTION` behind the erasure")
    elif place.stated_for is not None:
        said.append(place.stated_for.value)
    return "; ".join(said)


def test_the_document_says_of_each_place_how_it_is_verified() -> None:
    section = SECURITY.read_text().partition("## Where a purged person could be left\n")[2]
    rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| `")]

    assert rows == [
        f"| `{place.name}` | {how(place)} | {until(place)} |" for place in datamap.PLACES
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"verified": Verified.STATED}, "why it is only stated"),
        ({"stated": "nothing"}, "why it is only stated"),
        ({"model": None}, "how it is verified"),
    ],
)
def test_a_place_of_which_the_map_does_not_say_how_it_is_verified_is_named(
    change: dict[str, object], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = dataclasses.replace(datamap.PLACES[0], **change)  # type: ignore[arg-type]
    monkeypatch.setattr(datamap, "PLACES", (*datamap.PLACES, wrong))

    (gap,) = [one for one in datamap.gaps() if "saved_passwords" in one]

    assert named in gap


def test_every_column_that_could_hold_somebody_is_asked() -> None:
    asked = {
        (column.table.name, column.name)
        for place in datamap.PLACES
        for column in [*place.columns_of_number(), *place.columns_of_public_id()]
    }

    assert {
        ("accounts", "id"),
        ("accounts", "public_id"),
        ("former_addresses", "account_id"),
        ("kept_lines", "subject"),
        ("legal_holds", "account_id"),
        ("outbox", "subject"),
        ("purge_failures", "account_id"),
        ("saved_passwords", "account_id"),
        ("vault_keys", "account_id"),
    } <= asked
    # These keep the public id, for good.
    assert {table for table, _ in asked}.isdisjoint({"audit_events", "receipts", "receipt_facts"})
