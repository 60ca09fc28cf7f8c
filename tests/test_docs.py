"""What the documents say of tests and settings is so."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from accountsvc.config import Settings

ROOT = Path(__file__).resolve().parent.parent


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }

    assert len(named) > 40
    assert named - there == set()


def test_every_setting_that_a_document_names_exists() -> None:
    settings = {spec.metadata["name"] for spec in fields(Settings)}
    named = {
        word
        for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for word in re.findall(r"`([A-Z]{2,}(?:_[A-Z]+)+)(?:=[^`]*)?`", path.read_text())
    }

    assert len(named) > 3
    # Of other programs, or of the processes' commands.
    assert named - settings - {"WEB_CONCURRENCY"} == set()
