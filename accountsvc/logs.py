"""Logs as one JSON object a line on stdout.

A line has a fixed text and fields that are ids, counts and words from closed lists. Never a path, a
query, an e-mail address or a token: the log outlives the person's data. For that reason an exception is
logged as its class and the places it passed, without its text, which may quote a row.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# Whose lines are shown from LOG_LEVEL on; everybody else's from WARNING on.
_OURS = ("accountsvc", "worker")


class _Stdout(logging.StreamHandler[TextIO]):
    """Writes to whatever ``sys.stdout`` is at the time; a captured one is replaced under us."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the stream is always sys.stdout")


def configure(level: str) -> None:
    """Send this process's logs to stdout; idempotent, and other handlers are left in place."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _without_text,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = _Stdout()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Stdout)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(level)


def _without_text(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Replace an exception by its class and where it passed."""
    given = line.pop("exc_info", None)
    exc = sys.exception() if given is True else given
    if isinstance(exc, tuple):
        exc = exc[1]
    if isinstance(exc, BaseException):
        line.update(describe(exc))
    return line


def describe(exc: BaseException) -> Mapping[str, Any]:
    """Return the loggable part of *exc*: its class, its cause's class, and the frames it passed."""
    fields: dict[str, Any] = {"error": type(exc).__name__}
    cause = exc.__cause__ or exc.__context__
    if cause is not None:
        fields["cause"] = type(cause).__name__
    fields["frames"] = [
        f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(exc.__traceback__)[-12:]
    ]
    return fields
