"""What the documents name is there: tests, settings, commands, metrics."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import click
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc.config import Settings
from tests.support.factories import services_of

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }

    assert len(named) > 40
    assert named - there == set()


def in_documents(pattern: str) -> set[str]:
    """What *pattern* finds in the documents that people read."""
    return {
        found
        for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for found in re.findall(pattern, path.read_text())
    }


def test_every_setting_that_a_document_names_exists() -> None:
    settings = {spec.metadata["name"] for spec in fields(Settings)}
    named = in_documents(r"`([A-Z]{2,}(?:_[A-Z]+)+)(?:=[^`]*)?`")

    assert len(named) > 3
    # Of other programs, or of the processes' commands.
    assert named - settings - {"WEB_CONCURRENCY"} == set()


def test_every_command_that_a_document_names_exists(app: APIFlask) -> None:
    named = in_documents(r"flask --app wsgi ([a-z]+ [a-z]+)")
    # In the text, without the program.
    named |= in_documents(r"`((?:accounts|sweeps|avatars|vault|ledger) [a-z]+)")
    there = {
        f"{name} {command}"
        for name, group in app.cli.commands.items()
        if isinstance(group, click.Group)
        for command in group.commands
    } | {"db upgrade"}

    assert len(named) > 8
    assert named - there == set()


def test_every_metric_that_a_document_names_exists(app: APIFlask, client: FlaskClient) -> None:
    # Without a sweep it has no age.
    services_of(app).sweep()
    shown = client.get("/metrics").text
    named = in_documents(r"\b(accountsvc_[a-z_]+)")

    assert len(named) > 5
    assert {name for name in named if f"# TYPE {name} " not in shown} == set()


def test_every_test_that_the_code_names_exists() -> None:
    named = {
        name
        for path in (ROOT / "accountsvc").rglob("*.py")
        for name in re.findall(r"tests/[\w/]+\.py", path.read_text())
    }

    assert named
    assert {name for name in named if not (ROOT / name).is_file()} == set()
