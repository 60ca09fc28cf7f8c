"""What the service says when nothing, or the wrong thing, would be purged is in the runbook."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from accountsvc.cli.purging import OBSTACLES
from accountsvc.monitoring import probes
from accountsvc.outbox.marks import LedgerAhead
from accountsvc.purge.at_once import STOPS
from tests.support.processes import ROOT

RUNBOOK = (ROOT / "docs/operations.md").read_text().replace("`", "").lower()
LOGGING = (
    "worker/tasks.py",
    *(f"accountsvc/purge/{name}.py" for name in ("brake", "clocks", "restore", "sweep")),
    "accountsvc/adapters/ledger.py",
    *(f"accountsvc/outbox/{name}.py" for name in ("files", "gone", "sealing")),
    "accountsvc/outbox/kept.py",
)


def logged(path: str) -> Iterator[str]:
    """The fixed text of each warning and error that a module logs."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"error", "warning"}
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "log"
        ):
            parts = [one.value for one in ast.walk(node.args[0]) if isinstance(one, ast.Constant)]
            yield "".join(map(str, parts))


def said() -> dict[str, str]:
    """Each message, by where it is said."""
    found = {f"{path}: {text}": text for path in LOGGING for text in logged(path) if text}
    found |= {f"CLI: {STOPS[one]}": OBSTACLES[STOPS[one]] for one in STOPS}
    for name in ("CLOCK_MOVED", "DATABASE_BEHIND", "LEDGER_GONE", "LINES_MISSING"):
        found[f"/statusz: {name}"] = vars(probes)[name]
    found["CLI: LedgerAhead"] = str(LedgerAhead())
    return found


@pytest.mark.parametrize("where", sorted(said()))
def test_each_message_is_in_the_runbook_with_its_command(where: str) -> None:
    text = said()[where]
    beginning = re.split(r"[:;.,(]", text.replace("`", ""))[0].strip()

    lines = [line for line in RUNBOOK.splitlines() if beginning.lower() in line]
    assert lines, f"docs/operations.md says nothing of: {beginning}"
    for command in re.findall(r"`(?:accountsvc )?((?:ledger|sweeps|accounts) [a-z]+)", text):
        found = any(command in line for line in lines)
        assert found, f"docs/operations.md does not say `{command}` to: {beginning}"
