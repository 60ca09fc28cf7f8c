from __future__ import annotations

from collections.abc import Callable

import pytest
from apiflask import APIFlask
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def run(app: APIFlask) -> Run:
    """Run ``flask …`` and return what it printed and how it ended."""
    runner = app.test_cli_runner()

    def run(*words: str, stdin: str | None = None) -> Result:
        return runner.invoke(args=words, input=stdin)

    return run
