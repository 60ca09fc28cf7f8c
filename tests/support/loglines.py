"""What one module logs, as data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import structlog
from structlog.testing import LogCapture
from structlog.typing import EventDict


@contextmanager
def lines_of(module: ModuleType) -> Iterator[list[EventDict]]:
    """The lines that ``module`` logs meanwhile, each with its ``event`` and ``log_level``.

    structlog's own ``capture_logs`` sees nothing of a logger that has already written in this
    process, since such a logger keeps its processors: a test with it would pass alone and fail
    behind another.
    """
    capture = LogCapture()
    kept = vars(module)["log"]
    vars(module)["log"] = structlog.wrap_logger(structlog.PrintLogger(), processors=[capture])
    try:
        yield capture.entries
    finally:
        vars(module)["log"] = kept
