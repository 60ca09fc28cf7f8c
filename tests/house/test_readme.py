"""What the README tells a newcomer to type works, also the second time."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, START, Running, environment, eventually, run
from tests.support.servers import free_port

README = (ROOT / "README.md").read_text()
# The status of each answer is written to stderr, beside the answer, which the commands read.
PROGRAM = "command curl" if shutil.which("curl") else f"{sys.executable} -m tests.support.curl"
SHOW_STATUS = rf"""curl() {{ {PROGRAM} -w '%{{stderr}}status %{{http_code}}\n' "$@"; }}"""


def transcript() -> tuple[list[str], str]:
    """The commands of the README's one transcript, and the command that asks how all stands."""
    (block,) = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    *commands, status = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    return commands, status


def type_in(commands: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Type *commands* into a shell, in the clone, for the service that *env* is for."""
    script = "\n".join(commands)
    script = script.replace("localhost:8000", f"localhost:{env['PORT']}")
    # The virtual environment of this run, which is the clone's for everybody but some of our tools.
    script = script.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    return subprocess.run(
        ["bash", "-euc", f"{SHOW_STATUS}\n{script}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env,
        timeout=START,
        check=False,
    )


def test_the_transcript_works_again_and_again(tmp_path: Path) -> None:
    # given: what somebody has who has just cloned it
    given = dict(
        re.findall(r"(\w+)=(\w+)", README.partition(" make run` in one")[0].split("`")[-1])
    )
    assert set(given) == {"GRACE_PERIOD", "SWEEP_INTERVAL"}
    env = environment(tmp_path, PORT=str(free_port()), **{**given, "GRACE_PERIOD": "3s"})
    for name in ("SECRET_KEY", "VAULT_KEYS", "LEDGER_SIGNING_KEY", "DATABASE_URL"):
        del env[name]
    prepared = run("python", "-m", "accountsvc", "prepare", env=env)
    assert prepared.returncode == 0, prepared.stderr
    commands, status = transcript()
    with Running("python", "-m", "accountsvc", "run", env=env) as running:
        running.wait_for("worker is ready")
        running.wait_for("serving http://localhost")

        for _ in range(2):
            # when
            typed = type_in(commands, env)

            # then
            assert typed.returncode == 0, typed.stderr
            # A slow machine may have purged the account by the time of the sign-in.
            statuses = re.findall(r"status (\d+)", typed.stderr)
            assert statuses[:2] == ["201", "204"]
            assert statuses[2:] in (["403"], ["401"])
            assert re.search(r"^Sunset: \w", typed.stdout, re.MULTILINE)

        # then: what the last command is to show
        eventually(lambda: is_all_purged(type_in([status], env)), pause=0.5)


def is_all_purged(typed: subprocess.CompletedProcess[str]) -> object:
    assert typed.returncode == 0, typed.stderr
    nobody_waits = all(
        re.search(rf"^ +0  {state}\b", typed.stdout, re.MULTILINE)
        for state in ("deactivated", "due")
    )
    return nobody_waits and re.search(r"^last purge at +\d{4}-", typed.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", ["run", "test"])
def test_the_two_commands_are_targets(command: str) -> None:
    assert f"\n    make {command} " in README
    assert f"\n{command}: " in (ROOT / "Makefile").read_text()
