"""``accountsvc run``: web and worker with beat together, for development.

Each process has a session of its own, so that Ctrl-C reaches only the runner, which ends them in
order. A guard, forked before them, ends them when the runner is gone without having done so.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NoReturn
from urllib.parse import urlsplit

from .. import logs
from ..config import Settings, load_settings
from ..sources import Faults
from . import listening, prepare, processes

# gunicorn and the worker end within ten seconds of SIGTERM, and cut off by themselves what is left
# then. With less, they would be killed while they do so.
_END_SECONDS = 12.0
# A process prints these words when it is ready, by when_ready in gunicorn_conf.py and by say_ready
# in worker/app.py. Changed in one place only, the runner would never say where to look.
_READY = {"web": "accountsvc: serving ", "worker": "worker is ready"}


def run(program: str, *, prepare_first: bool = False) -> int:
    """Run web, worker and beat until a signal comes or one of them ends; then end them all.

    *program* is how this was called, for the advice to call it again. *prepare_first* makes what is
    missing, as ``accountsvc prepare`` does. Returns the exit code: 0 if a signal asked for the end.
    Raises ConfigError for a wrong setting, Failure if the web could not listen; prepare's too.
    """
    faults = Faults()
    with faults.caught():
        settings = prepare.make_folder_and_keys() if prepare_first else load_settings()
    with faults.caught():
        commands = {"web": processes.web(), "worker": processes.worker(beat=True)}
    faults.refuse()
    # The port is looked at before the schema, which may take minutes to bring up to date.
    listening.refuse_taken(settings.port, "make run" if "MAKELEVEL" in os.environ else program)
    if prepare_first:
        prepare.upgrade_schema(settings)
        prepare.tighten(settings)
    environ = {
        **os.environ,
        "PORT": str(settings.port),
        "PYTHONUNBUFFERED": "1",
        # The processes write into a pipe: they cannot see whether a person reads at its other end.
        logs.CONSOLE: "1" if sys.stdout.isatty() else "",
    }
    runner = Runner(environ, ready=_where_to_look(settings))
    return runner.run(commands)


def _where_to_look(settings: Settings) -> str:
    mail = urlsplit(settings.mail_url)
    mails = mail.path if mail.scheme == "file" else f"sent through {mail.hostname}"
    return (
        "accountsvc: everything runs; Ctrl-C stops it\n"
        f"  service  {settings.public_url}\n"
        f"  docs     {settings.public_url}/api/docs/\n"
        f"  mails    {mails}\n"
        "  next     the calls of README.md, in another terminal\n"
    )


class Runner:
    """Run commands side by side, print what they print, and end all when one of them ends."""

    def __init__(self, environ: Mapping[str, str], *, ready: str) -> None:
        self._environ = environ
        self._ready = ready
        # SimpleQueue, because a signal handler puts into it: Queue's lock is not reentrant.
        self._events: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._children: dict[str, subprocess.Popen[str]] = {}
        self._not_ready = set(_READY)
        self._is_asked_to_end = False

    def run(self, commands: Mapping[str, Sequence[str]]) -> int:
        """Run *commands*, by name, to their common end; return what :func:`run` promises."""
        guard = _Guard()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask_to_end)
        if sys.stdout.isatty():
            threading.Thread(target=self._end_with_the_terminal, daemon=True).start()
        try:
            for name, command in commands.items():
                self._start(name, command)
                guard.watch(self._children[name].pid)
            first = self._print_until_an_end()
        finally:
            self._end_all()
            guard.dismiss()
        if self._is_asked_to_end:
            return 0
        code = self._children[first].returncode
        # A shell says in the same way that a signal ended a process.
        return 128 - code if code < 0 else code or 1

    def _ask_to_end(self, _number: int, _frame: FrameType | None) -> None:
        self._end_soon()

    def _end_soon(self) -> None:
        self._is_asked_to_end = True
        self._events.put(("", ""))

    def _end_with_the_terminal(self) -> None:
        """Wait until the terminal is closed, then ask for the end.

        The system sends SIGHUP to the leader of the terminal's session alone. If that is make, as
        after ``ssh -t host make run``, it waits for its children and tells them nothing.
        """
        terminal = select.poll()
        terminal.register(sys.stdout, 0)
        # Where poll knows no terminals it answers POLLNVAL, and SIGHUP has to be enough.
        if any(happened & select.POLLHUP for _, happened in terminal.poll()):
            self._end_soon()

    def _start(self, name: str, command: Sequence[str]) -> None:
        child = subprocess.Popen(  # noqa: S603 - the command is ours
            command,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._children[name] = child
        for target in (self._read, self._wait):
            threading.Thread(target=target, args=(name, child), daemon=True).start()

    def _read(self, name: str, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self._events.put((name, line))

    def _wait(self, name: str, child: subprocess.Popen[str]) -> None:
        # Wait for the process and not for the end of its output, which a child of its own may hold
        # open for ever.
        child.wait()
        self._events.put((name, ""))

    def _print_until_an_end(self) -> str:
        """Print what comes; return the name of the process that ended, "" after a signal."""
        while True:
            name, line = self._events.get()
            if not line:
                return name
            self._print(name, line)

    def _print(self, name: str, line: str) -> None:
        shown = f"{name:6} | {line}"
        if name in self._not_ready and _READY[name] in line:
            self._not_ready.discard(name)
            if not self._not_ready:
                shown += self._ready
        # The terminal may be closed by now; an error here would keep the end from being orderly.
        with suppress(OSError):
            sys.stdout.write(shown)
            sys.stdout.flush()

    def _end_all(self) -> None:
        children = self._children.values()
        for child in children:
            # Ask the leader only: it ends its own processes in order.
            child.terminate()
        deadline = time.monotonic() + _END_SECONDS
        while any(child.poll() is None for child in children) and time.monotonic() < deadline:
            self._print_next(seconds=0.1)
        for child in children:
            _kill_group(child.pid)
            child.wait()
        while self._print_next(seconds=0.1):
            pass

    def _print_next(self, *, seconds: float) -> bool:
        """Print the next line, which is waited for so long; say whether anything came."""
        try:
            name, line = self._events.get(timeout=seconds)
        except Empty:
            return False
        if line:
            self._print(name, line)
        return True


class _Guard:
    """A process that ends what it watches when this one is gone without having dismissed it.

    It holds the other end of a pipe, which the system closes whatever ends this process: SIGKILL
    as well.
    """

    def __init__(self) -> None:
        reading, self._pipe = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._pipe)
            _guard(reading)
        os.close(reading)

    def watch(self, pid: int) -> None:
        self._say(f"{pid}\n")

    def dismiss(self) -> None:
        self._say("dismissed\n")
        os.close(self._pipe)
        os.waitpid(self._pid, 0)

    def _say(self, line: str) -> None:
        # Somebody may have killed the guard; the service runs all the same.
        with suppress(BrokenPipeError):
            os.write(self._pipe, line.encode())


def _guard(pipe: int) -> NoReturn:
    # A session of its own keeps the signals of the terminal away, which are for the runner.
    os.setsid()
    with os.fdopen(pipe) as lines:
        words = lines.read().split()
    if "dismissed" not in words:
        _end_groups([int(word) for word in words])
    os._exit(0)


def _end_groups(leaders: Sequence[int]) -> None:
    for pid in leaders:
        if _is_group(pid):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _END_SECONDS
    while any(_is_group(pid) for pid in leaders) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in leaders:
        _kill_group(pid)


def _is_group(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _kill_group(pid: int) -> None:
    # macOS answers PermissionError where all that is left of a group are zombies.
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
