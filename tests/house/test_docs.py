"""What the documents name is there: tests, files, settings, commands, metrics."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import click
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc import bounds, spelling
from accountsvc.config import Settings
from accountsvc.monitoring import canary
from tests.support.factories import services_of

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").glob("*.md")]
# Folders whose files a document may name, written from the root.
FOLDERS = ("accountsvc", "bench", "docs", "migrations", "tests", "worker")


def in_documents(pattern: str) -> set[str]:
    """What *pattern* finds in the documents that people read."""
    return {found for path in DOCUMENTS for found in re.findall(pattern, path.read_text())}


def names_of_tests() -> set[str]:
    """The names of all tests, and of their files without the ending."""
    paths = list((ROOT / "tests").rglob("test_*.py"))
    return {path.stem for path in paths} | {
        name
        for path in paths
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))

    assert len(named) > 40
    assert named - names_of_tests() == set()


def test_every_test_that_a_document_names_exists() -> None:
    named = in_documents(r"\b(test_\w+)")

    assert len(named) > 60
    assert named - names_of_tests() == set()


def test_every_path_that_a_document_names_exists() -> None:
    """Written from the root, in backticks; NNNN and <words> stand for what differs."""
    named = in_documents(rf"`((?:{'|'.join(FOLDERS)})/[^`\s:]*)`")

    assert len(named) > 20
    exact = {name for name in named if not re.search(r"[<*…]|NNNN", name)}
    assert {name for name in exact if not (ROOT / name).exists()} == set()


def test_every_path_that_a_recipe_names_exists() -> None:
    """In the tables of CONTRIBUTING.md paths are below accountsvc/, unless they say otherwise."""
    lines = (ROOT / "CONTRIBUTING.md").read_text().splitlines()
    named = {
        name
        for line in lines
        if line.startswith("| ")
        for name in re.findall(r"`([\w/]+(?:/|\.py|\.yaml|\.md))`", line)
    }

    assert len(named) > 20
    assert {
        name
        for name in named
        if not (ROOT / name).exists() and not (ROOT / "accountsvc" / name).exists()
    } == set()


def variables_of_the_tools() -> set[str]:
    """The environment variables that the tests, the measurements and the Makefile read."""
    sources = [ROOT / "Makefile", *(ROOT / "bench").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    reading = r"environ(?:\.get\(|\[)\"([A-Z_]+)\"|\$[({]([A-Z_]+)[)}]"
    return {
        name
        for path in sources
        for names in re.findall(reading, path.read_text())
        for name in names
        if name
    }


def test_every_setting_that_a_document_names_exists() -> None:
    settings = {spec.metadata["name"] for spec in fields(Settings)}
    named = in_documents(r"`([A-Z]{2,}(?:_[A-Z]+)+)(?:=[^`]*)?`")

    assert len(named) > 3
    # Of other programs, or bounds.
    others = variables_of_the_tools() | {*vars(bounds)}
    others |= {"AWS_ENDPOINT_URL", "SSL_CERT_FILE", "MAILER_URL"}
    # Examples of a name that is nearly a setting's.
    others |= {"GRACE_PEROID", "REDIS_URI", *spelling.MEANT}
    assert named - settings - others == set()


def test_every_command_that_a_document_names_exists(app: APIFlask) -> None:
    named = in_documents(r"flask --app wsgi ([a-z]+ [a-z]+)")
    # At the beginning of a block's line or of what stands in backticks: elsewhere it is prose.
    groups = "accounts|sweeps|avatars|vault|ledger|db"
    named |= in_documents(rf"(?m:^ {{4}}|`)accountsvc ((?:{groups}) [a-z]+)")
    # In the text, without the program.
    named |= in_documents(r"`((?:accounts|sweeps|avatars|vault|ledger) [a-z]+)")
    there = {
        f"{name} {command}"
        for name, group in app.cli.commands.items()
        if isinstance(group, click.Group)
        for command in group.commands
    }

    assert len(named) > 8
    assert named - there == set()


def test_every_metric_that_a_document_names_exists(app: APIFlask, client: FlaskClient) -> None:
    # Without a sweep, a search or a canary, it has no age.
    services_of(app).sweep()
    services_of(app).orphans.run(seconds=60)
    canary.run(services_of(app))
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


def test_the_table_of_bounds_is_the_code_s() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \|", text, re.MULTILINE)
    counted = re.findall(
        r"^\| `[A-Z_]+` \| [^|]+ \|[^\n]* \|[^|\n]*`test_\w+`[^|\n]*\|$", text, re.MULTILINE
    )
    numbers = {name: str(value) for name, value in vars(bounds).items() if name[0].isupper()}

    assert len(rows) == len(numbers) == len(counted) > 30
    assert dict(rows) == numbers
