"""Logs on stdout: a JSON object a line, or a line of words where a person looks while developing.

A line has a fixed text and fields that are ids, counts and words from closed lists. Never a path,
a query, an e-mail address or a token: the log outlives the person's data. For that reason an
exception is logged as its class and the places it passed, without its text, which may quote a row.
The two forms differ in how a line is written, never in what may be in it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# A runner sets this variable to 1 where its own output is a terminal. Its processes write into a
# pipe, so without it they would take the person who reads along for a machine.
CONSOLE = "ACCOUNTSVC_CONSOLE"

# The lines of these loggers are shown from LOG_LEVEL on, those of libraries from WARNING on.
_OURS = ("accountsvc", "worker")
# Each request leaves a line by this logger. Under another name a person would see it as a heap of
# fields.
_ACCESS = "accountsvc.access"


class _Stdout(logging.StreamHandler[TextIO]):
    """Write to the ``sys.stdout`` of the moment, which a test or a command may have replaced."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the stream is always sys.stdout")


def for_people(*, production: bool) -> bool:
    """Say whether a person reads this process's output: on a terminal, or through a runner on one.

    In *production* never: there a terminal shows the same lines that a machine would read.
    """
    return not production and (os.environ.get(CONSOLE) == "1" or sys.stdout.isatty())


def configure(level: str, *, production: bool) -> None:
    """Send this process's logs to stdout; idempotent, and other handlers are left in place.

    A line is JSON unless :func:`for_people` says that a person looks, which is asked for each line.
    """
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
    as_json = structlog.processors.JSONRenderer()

    def render(logger: WrappedLogger, method: str, line: EventDict) -> str | bytes:
        return _words(line) if for_people(production=production) else as_json(logger, method, line)

    handler = _Stdout()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old, _Stdout):
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(level)


def say_misspelled(names: Mapping[str, str]) -> None:
    """Log one line with those *names* of the environment that are nearly a setting's, if any.

    Each is named with the setting that it is near to.

    It is a warning and no refusal: other programs share the environment. Values may be secrets.
    """
    if names:
        structlog.get_logger(__name__).warning(
            "the environment has names that are nearly a setting's, and are not read",
            names=[f"{name} (near {setting})" for name, setting in names.items()],
        )


def _words(line: EventDict) -> str:
    """Write *line* as one line for a person: the time of day here, what happened, its fields."""
    fields = {name: value for name, value in line.items() if value is not None}
    # A person finds the lines of a request beside each other; its id would fill half of each line.
    for name in ("at", "request_id"):
        fields.pop(name, None)
    event, logger, level = (str(fields.pop(name)) for name in ("event", "logger", "level"))
    if logger == _ACCESS:
        text = _request(fields)
    else:
        text = " ".join([event, *(f"{name}={_value(value)}" for name, value in fields.items())])
        if not logger.startswith(_OURS):
            text = f"{logger}: {text}"
    if level != "info":
        text = f"{level}: {text}"
    text = f"{time.strftime('%H:%M:%S')} {text}"
    # A library may log several lines, or what a client sent to it: it stays one line of plain
    # signs.
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _request(fields: Mapping[str, Any]) -> str:
    words = [fields["method"], fields.get("route", "(no such address)"), fields["status"]]
    words += [fields["duration_ms"], "ms"]
    for name, preposition in (("caller", "by"), ("subject", "about")):
        if name in fields:
            words += [preposition, fields[name]]
    if "limit" in fields:
        words += ["met the limit", fields["limit"]]
    return " ".join(map(str, words))


def _value(value: object) -> str:
    if isinstance(value, list):
        return " > ".join(map(str, value))
    return value if isinstance(value, str) and " " not in value else json.dumps(value, default=str)


def _without_text(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Replace an exception by its class and the frames that it passed."""
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
