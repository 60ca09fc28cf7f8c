"""A fault at every boundary of the work, and after each what was promised still holds.

``make faults`` sets ``TEST_FAULTS=long`` and runs all of them, and later visits of each point too. Without it
there is one kill at each point and a share of the others. ``TEST_FAULT_SEED`` chooses which.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import LONG_FAULTS
from tests.faults.injection import Kind, points_for
from tests.faults.suite import Result, again, inject, plan, record, world

# On each engine; the later visits of the points make up what is missing.
LEAST = 500 if LONG_FAULTS else 100
SEED = int(os.environ.get("TEST_FAULT_SEED", "20261207"))

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def test_whatever_fails_every_promise_is_kept(
    database_url: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    engine = database_url.partition(":")[0].partition("+")[0]
    result = Result()
    with world(database_url, tmp_path) as here:
        result.points = record(here)
        faults = plan(result.points, list(Kind), share=1.0 if LONG_FAULTS else 0.1, seed=SEED)
        first, times = list(faults), 0
        while len(faults) < LEAST:
            times += 1
            faults += again(first, result.points, seed=SEED + times)

        inject(here, faults, result)

        result.violations += here.ledger_is_whole()

    record_property("table", result.table(engine))
    assert result.violations == [], "\n".join(result.violations)
    assert result.visited >= set(points_for(Kind.KILL, result.points))
    assert set(result.injected) == set(Kind)
    assert result.injected.total() >= LEAST
