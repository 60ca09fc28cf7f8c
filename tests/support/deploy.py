"""The files for deployment, read by tests, so that these test the commands that are run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import crossplane
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
NGINX = ROOT / "docs" / "deploy" / "nginx" / "accountsvc.conf"


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


def nginx_refuses(config: str, folder: Path) -> list[str]:
    """Return what is wrong with *config*, which nginx would include in its block ``http``."""
    (folder / "included.conf").write_text(config)
    # Which directives are allowed is known only from the block around them.
    (folder / "nginx.conf").write_text("http { include included.conf; }\n")
    read = crossplane.parse(str(folder / "nginx.conf"), strict=True)
    return [str(one["error"]) for one in read["errors"]]


def _nginx() -> list[dict[str, Any]]:
    # It has no block `http` around it.
    parsed: list[dict[str, Any]] = crossplane.parse(str(NGINX), check_ctx=False)["config"][0][
        "parsed"
    ]
    return parsed


def nginx_directives(block: list[dict[str, Any]] | None = None) -> list[tuple[str, ...]]:
    """Return all directives of the example, each with its arguments; a block's stand behind it."""
    if block is None:
        block = _nginx()
    found: list[tuple[str, ...]] = []
    for one in block:
        found.append((one["directive"], *one["args"]))
        found += nginx_directives(one.get("block", []))
    return found


def nginx_location(path: str) -> list[tuple[str, ...]]:
    """Return the directives of the block that answers *path*: by a pattern, or the one of ``/``."""
    blocks = {
        tuple(one["args"]): one["block"]
        for server in _nginx()
        for one in server.get("block", [])
        if one["directive"] == "location"
    }
    for words, block in blocks.items():
        if words[0] == "~" and re.search(words[1], path):
            return nginx_directives(block)
    return nginx_directives(blocks[("/",)])
