"""Each requirement of ASVS 5.0.0, levels 1 and 2, has one verdict, with its reason or its proof.

``asvs-5.0.0.csv`` has the numbers and levels of the standard alone. In the document a row may be of
several numbers, and ``10.1`` is the whole section.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "asvs.md"
VERDICTS = ("met", "not met", "not applicable")


@dataclass(frozen=True)
class Row:
    numbers: tuple[str, ...]
    verdict: str
    why: str


def levels() -> dict[str, int]:
    """The level of each requirement, by its number."""
    with Path(__file__).with_name("asvs-5.0.0.csv").open() as file:
        return {row["requirement"]: int(row["level"]) for row in csv.DictReader(file)}


def expanded(cell: str) -> tuple[str, ...]:
    return tuple(
        number
        for part in cell.split(", ")
        for number in ([part] if part.count(".") == 2 else section(part))
    )


def section(name: str) -> list[str]:
    return [number for number in levels() if number.startswith(f"{name}.")] or [name]


def rows() -> list[Row]:
    found = re.findall(
        r"^\| ([0-9]+\.[0-9., ]*) \| [^|]+ \| ([^|]+) \| (.+) \|$",
        DOCUMENT.read_text(),
        re.MULTILINE,
    )
    return [Row(expanded(cell), verdict, why) for cell, verdict, why in found]


def test_every_requirement_of_the_standard_is_judged_once() -> None:
    judged = Counter(number for row in rows() for number in row.numbers)

    assert len(levels()) == 253
    assert judged == Counter(dict.fromkeys(levels(), 1))
    assert {row.verdict for row in rows()} == set(VERDICTS)


def test_the_requirements_stand_in_the_order_of_the_standard_under_their_chapters() -> None:
    chapter, misplaced = "", []
    for line in DOCUMENT.read_text().splitlines():
        heading = re.match(r"## V([0-9]+) ", line)
        if heading:
            chapter = heading[1]
        elif re.match(r"\| [0-9]+\.", line) and not line.startswith(f"| {chapter}."):
            misplaced.append(line)
    order = [tuple(map(int, number.split("."))) for row in rows() for number in row.numbers[:1]]

    assert misplaced == []
    assert order == sorted(order)


def test_what_is_met_names_a_test_or_a_file_and_the_rest_a_reason() -> None:
    for row in rows():
        if row.verdict == "met":
            files = re.findall(r"`([\w./-]+/[\w./-]+|[\w-]+\.\w+)`|\]\(([\w-]+\.md)?#?", row.why)
            assert re.search(r"`test_\w+`", row.why) or files, row
        else:
            assert len(row.why.split()) > 2, row


@pytest.mark.parametrize("level", [1, 2])
def test_the_counts_are_those_of_the_tables(level: int) -> None:
    counted = Counter(
        row.verdict for row in rows() for number in row.numbers if levels()[number] == level
    )
    said = re.search(rf"^\| {level} \|(.+)\|$", DOCUMENT.read_text(), re.MULTILINE)

    assert said is not None
    assert [int(cell) for cell in said[1].split("|")] == [
        sum(counted.values()),
        *(counted[verdict] for verdict in VERDICTS),
    ]


def test_every_place_in_a_document_that_it_leads_to_is_there() -> None:
    text = DOCUMENT.read_text()

    for name, anchor in re.findall(r"\]\(([\w./-]*)#?([\w-]*)\)", text):
        document = DOCUMENT.parent / name if name else DOCUMENT
        headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
        anchors = {
            re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
        }
        assert not anchor or anchor in anchors, (name, anchor)


def test_the_threat_model_claims_nothing_that_is_not_met() -> None:
    """Its column names requirements that are met, or of level 3, which this test does not know."""
    text = (ROOT / "docs" / "security.md").read_text()
    table = text.partition("## What stands in the way")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| [0-9] [^|]+\| [^|]+ \| ([^|]+) \| `", table, re.MULTILINE)
    verdicts = {number: row.verdict for row in rows() for number in row.numbers}
    claimed = {number for cell in cells for number in cell.split(", ") if cell != "–"}

    assert len(cells) > 20
    assert {
        number for number in claimed if not re.fullmatch(r"[0-9]+(\.[0-9]+){2}", number)
    } == set()
    assert {number for number in claimed if verdicts.get(number, "met") != "met"} == set()
