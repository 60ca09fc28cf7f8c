"""``python -m accountsvc prepare``: what has to be there before any process starts.

``python -m accountsvc run``: web, worker and beat together, for development (``make run``).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from alembic.util import CommandError
from dotenv import dotenv_values
from sqlalchemy.exc import DBAPIError

from .config import ConfigError, load_settings, make_keys
from .db import schema


class Failure(Exception):
    """Nothing can be started; the message is one line that says why."""


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 it could not be done, 2 a setting or an argument is wrong."""
    parser = argparse.ArgumentParser(prog="python -m accountsvc", description="Start accountsvc.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "prepare",
        help="make what is missing: instance folder, keys (development only), schema; safe to repeat",
    )
    commands.add_parser("run", help="serve: web, worker and beat together; Ctrl-C stops them")
    chosen = parser.parse_args(arguments).command
    try:
        return run() if chosen == "run" else prepare()
    except ConfigError as exc:
        print(f"accountsvc: {exc}", file=sys.stderr)
        return 2
    except Failure as exc:
        print(f"accountsvc: {exc}", file=sys.stderr)
        return 1


def prepare() -> int:
    """Make keys, folder and schema where they are missing; idempotent, and safe beside itself.

    Raises ConfigError for a wrong setting, Failure if the folder or the database refuses.
    """
    given = {name: value for name, value in dotenv_values(".env").items() if value is not None}
    try:
        made = make_keys({**given, **os.environ})
        settings = load_settings()
        schema.ensure_folder(settings.database_url)
    except OSError as exc:
        raise Failure(f"the instance folder cannot be written: {exc.strerror}") from exc
    for name in made:
        print(f"accountsvc: made {name} in {settings.instance_path}")
    try:
        schema.upgrade(settings.database_url)
    except DBAPIError as exc:
        raise Failure(f"the database refused: {str(exc.orig).strip().splitlines()[0]}") from exc
    except CommandError as exc:
        raise Failure(f"the schema cannot be brought up to date: {exc}") from exc
    print("accountsvc: the database has the current schema")
    return 0


def run() -> int:
    """Run what the Procfile of the working directory names until a signal comes or one process ends.

    Then all are stopped. Returns 0 if a signal asked for it. Raises ConfigError for a wrong setting.
    """
    # Not ``honcho start``: it gives each process another PORT, so that the worker would mail links to a
    # port where nobody listens, and its own reading of .env differs from ours and wins over the environment.
    from honcho import manager as honcho  # type: ignore[import-untyped]
    from honcho.environ import parse_procfile  # type: ignore[import-untyped]

    settings = load_settings()
    try:
        procfile = Path("Procfile").read_text()
    except OSError as exc:
        raise Failure(f"the Procfile cannot be read: {exc.strerror}; go to its folder") from exc
    environ = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PORT": str(settings.port),
        "PYTHONUNBUFFERED": "1",
    }
    # Longer than gunicorn and the worker need to end in order.
    honcho.KILL_WAIT = 10
    manager = honcho.Manager()
    manager._procmgr = _Leaders()
    for name, command in parse_procfile(procfile).processes.items():
        manager.add_process(name, command, env=environ)
    # A closed terminal must not leave them behind.
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    manager.loop()
    asked = manager.returncode in {128 + signal.SIGINT, 128 + signal.SIGTERM}
    return 0 if asked else manager.returncode or 1


class _Leaders:
    """Stops process groups: asks only the leader, who stops its own processes in order."""

    def terminate(self, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return

    def kill(self, pid: int) -> None:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            return


if __name__ == "__main__":
    sys.exit(main())
