"""The files for deployment, read by tests, so that these test the commands that are run."""

from __future__ import annotations

import shlex
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


def procfile_command(process: str) -> list[str]:
    """Return the command that the Procfile starts *process* with."""
    (line,) = (
        line
        for line in (ROOT / "Procfile").read_text().splitlines()
        if line.startswith(f"{process}: ")
    )
    return shlex.split(line.removeprefix(f"{process}: ").removeprefix("exec "))


def systemd_command(unit: str) -> list[str]:
    """Return a unit's command, without the folder that it is installed in."""
    text = (ROOT / "docs" / "deploy" / "systemd" / f"accountsvc-{unit}.service").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
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
