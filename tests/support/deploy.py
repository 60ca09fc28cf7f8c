"""The files for deployment, read by tests, so that these test the commands that are run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return document


def compose_command(service: str) -> list[str]:
    """Return the command that ``compose.yaml`` starts *service* with."""
    command: list[str] = compose()["services"][service]["command"]
    return command


def compose_environment(service: str, dotenv: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of *service*, with what Compose puts in from *dotenv*.

    Raises KeyError for a variable that has to be in that file and is not, or is empty.
    """

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match.groups()
        if operator == ":?" and not dotenv.get(name):
            raise KeyError(name)
        return dotenv.get(name) or rest

    given: dict[str, str] = compose()["services"][service]["environment"]
    return {name: re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", value, text) for name, text in given.items()}


def upgrade_values() -> dict[str, str]:
    """Return the values that the *Upgrade* section of CHANGELOG.md has for pasting."""
    text = (ROOT / "CHANGELOG.md").read_text()
    section = text.partition("### Upgrade")[2].partition("\n## ")[0]
    return dict(re.findall(r"^    ([A-Z_]+)=(.+)$", section, re.MULTILINE))


def systemd_environment() -> dict[str, str]:
    """Return what the example of the units' environment file sets."""
    lines = (ROOT / "docs" / "deploy" / "systemd" / "accountsvc.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def procfile_command(process: str) -> list[str]:
    """Return the command that the Procfile starts *process* with."""
    (line,) = (
        line
        for line in (ROOT / "Procfile").read_text().splitlines()
        if line.startswith(f"{process}: ")
    )
    return shlex.split(line.removeprefix(f"{process}: ").removeprefix("exec "))


def systemd_text(unit: str) -> str:
    return (ROOT / "docs" / "deploy" / "systemd" / f"accountsvc-{unit}.service").read_text()


def systemd_command(unit: str) -> list[str]:
    """Return a unit's command, without the folder that it is installed in."""
    (line,) = (line for line in systemd_text(unit).splitlines() if line.startswith("ExecStart="))
    program, *arguments = shlex.split(line.removeprefix("ExecStart="))
    return [Path(program).name, *arguments]


def kubernetes() -> list[dict[str, Any]]:
    path = ROOT / "docs" / "deploy" / "kubernetes" / "accountsvc.yaml"
    return list(yaml.safe_load_all(path.read_text()))


def kubernetes_container(name: str) -> dict[str, Any]:
    """Return the container of a Deployment or a Job."""
    containers: list[dict[str, Any]] = [
        document["spec"]["template"]["spec"]["containers"][0]
        for document in kubernetes()
        if document["kind"] in {"Deployment", "Job"}
        and document["metadata"]["name"] == f"accountsvc-{name}"
    ]
    (container,) = containers
    return container
