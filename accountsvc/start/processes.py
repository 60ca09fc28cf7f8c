"""The processes of the service, as commands that are the same from a clone and from a wheel."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

from .. import readers
from ..config import ConfigError


def web(arguments: Sequence[str] = ()) -> list[str]:
    """Return the command that serves HTTP with the packaged configuration of gunicorn.

    Raises ConfigError for a wrong ``WEB_CONCURRENCY``, which gunicorn answers with a traceback.
    """
    _refuse_wrong_concurrency()
    return _python("gunicorn", "--config", "python:accountsvc.start.gunicorn_conf", *arguments)


def worker(arguments: Sequence[str] = (), *, beat: bool = False) -> list[str]:
    """Return the command that sweeps and delivers; with *beat* it also says when."""
    return _celery("worker", *(["-B"] if beat else []), *arguments)


def beat(arguments: Sequence[str] = ()) -> list[str]:
    """Return the command that says when to sweep and to deliver."""
    return _celery("beat", *arguments)


def _refuse_wrong_concurrency() -> None:
    text = os.environ.get("WEB_CONCURRENCY")
    if text is None:
        return
    try:
        readers.whole(1, 1000)(text)
    except ValueError as exc:
        raise ConfigError(f"WEB_CONCURRENCY {exc} ({text!r}); for example: 2") from None


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process by *command*, so that signals and the supervisor's pid reach it."""
    sys.stdout.flush()
    os.execv(command[0], list(command))  # noqa: S606 - no shell is wanted


def _celery(*words: str) -> list[str]:
    # Without --quiet Celery prints a banner, on which a program that reads the log would fail.
    return _python("celery", "--quiet", "--app", _worker_package(), *words)


def _python(module: str, *words: str) -> list[str]:
    # Name the module: scripts like bin/celery may lie in another folder than this interpreter.
    return [sys.executable, "-m", module, *words]


def _worker_package() -> str:
    """Return the worker's name: it lies inside an installed package, beside it in a bare clone."""
    installed = "accountsvc.worker"
    return installed if find_spec(installed) else "worker"
