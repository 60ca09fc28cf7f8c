"""What docs/architecture.md draws is what the linter holds and what the code does."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()
GROUND = {"bounds", "config", "errors", "logs", "private", "production"}
GROUND |= {"mailboxes", "readers", "sources", "spelling", "turns", "urls"}
# Importing the package imports nothing; the function in its door imports the application.
DOOR = "accountsvc"

Arrows = dict[str, set[str]]


def room(module: str) -> str:
    """The room of *module*: a name below ``accountsvc``, or the worker."""
    package, *below = module.split(".")
    return below[0] if below and package == "accountsvc" else package


def arrows_of_the_code() -> Arrows:
    graph = grimp.build_graph("accountsvc", "worker")
    found: Arrows = {}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            source, target = room(module), room(imported)
            if source != target and DOOR not in {source, target}:
                found.setdefault(source, set()).add("ground" if target in GROUND else target)
    return {source: targets for source, targets in found.items() if source not in GROUND}


def arrows_of_the_document() -> Arrows:
    """The rows of the table "All arrows, room by room"."""
    (table,) = re.findall(r"All arrows, room by room.*?\n\n((?:\|.*\n)+)", DOCUMENT)
    found: Arrows = {}
    for row in table.splitlines()[2:]:
        sources, targets = row.strip("|").split("|")
        for source in re.findall(r"`(\w+)`", sources):
            found[source] = {
                "ground" if name in GROUND else name for name in re.findall(r"`(\w+)`", targets)
            } | ({"ground"} if re.search(r"\bground\b", targets) else set())
    return found


def test_the_order_in_the_document_is_the_one_that_the_linter_holds() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    (section,) = re.findall(r"## The import order\n(.*?)\n## ", DOCUMENT, re.DOTALL)
    drawn = [
        set(re.findall(r"`(\w+)`", line)) for line in re.findall(r"^\d+\. (.*)$", section, re.M)
    ]

    held = [
        {name.strip() for name in line.split("|")}
        for contract in ("doorways", "layers")
        for line in parser[f"importlinter:contract:{contract}"]["layers"].strip().splitlines()
        if line.strip() != DOOR
    ]

    assert drawn == held, "docs/architecture.md and setup.cfg: write the same order in both"


def test_the_document_has_every_arrow_of_the_code_and_no_other() -> None:
    drawn, found = arrows_of_the_document(), arrows_of_the_code()
    for through_the_door in ("__main__", "start"):
        drawn[through_the_door].discard("app")

    assert drawn == found, "docs/architecture.md: mend the table of arrows, or the import"


def test_every_module_is_named_in_the_row_of_its_room() -> None:
    rows = re.findall(r"^\| `(\w+(?:/\w+)?)/` \|(.*)$", DOCUMENT, re.MULTILINE)
    assert len(rows) > 8

    missing = {
        f"{name}/{path.name}"
        for name, text in rows
        for folder in [
            ROOT / name if name in {"worker", "migrations"} else ROOT / "accountsvc" / name
        ]
        if name != "migrations"
        for path in folder.glob("*.py")
        if path.stem != "__init__" and f"`{path.stem}`" not in text
    }

    assert missing == set(), "docs/architecture.md: name these modules in the table of rooms"
