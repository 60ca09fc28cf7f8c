"""Real processes of the service: started as an operator does, watched, and ended by their pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import httpx

from tests.support.factories import variables
from tests.support.production import PRODUCTION_ASKS
from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = sys.executable
# Its `sitecustomize` keeps from a process what only the tests have installed.
LEAN = Path(__file__).parent / "lean"

# These are bounds against hanging, not measures: on a busy machine a start takes minutes.
START = 300.0
STOP = 120.0

# Our processes inherit these variables: where programs are, and how `.ci/run` lets memory be taken.
# All others of the developer's would make a test pass on one machine only.
INHERITED = {"PATH", "HOME", "LANG", "PYTHONMALLOC", "GLIBC_TUNABLES"}

OPS_TOKEN = "for-the-operators-machines-0123456789"

_MARK = "ACCOUNTSVC_TEST_PROCESS"

T = TypeVar("T")


class Crash(BaseException):
    """The process is gone: not an Exception, so that nothing of the code's own handling runs."""


def environment(folder: Path, database_url: str = "", **changes: str) -> dict[str, str]:
    """An environment with nothing of ours but what a test says; its instance is in *folder*."""
    inherited = {name: value for name, value in os.environ.items() if name in INHERITED}
    ours = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(LEAN)}
    return {**inherited, **variables(database_url, folder), **ours, **changes}


def eventually(check: Callable[[], T], seconds: float = START, *, pause: float = 0.05) -> T:
    """Return the first true answer of *check*; fail with its last one after *seconds*."""
    deadline = time.monotonic() + seconds
    while not (answer := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s; the last answer was {answer!r}")
        time.sleep(pause)
    return answer


def production(
    folder: Path, database_url: str, *, redis: str, bucket: str, mail: int, **changes: str
) -> dict[str, str]:
    """The environment of production: every engine, throttles, hashes at full cost.

    The engines are on this machine, and so need no TLS.
    """
    asked = {
        **PRODUCTION_ASKS,
        "PORT": str(free_port()),
        "WEB_CONCURRENCY": "2",
        "REDIS_URL": redis,
        "STORAGE_URL": f"s3://{bucket}/avatars",
        "LEDGER_URL": f"s3://{bucket}/ledger",
        "MAIL_URL": f"smtp://127.0.0.1:{mail}/?tls=none",
        "TRUSTED_PROXIES": "none",
        "OPS_TOKEN": OPS_TOKEN,
    }
    env = environment(folder, database_url, **{**asked, **changes})
    for name in ("RATE_LIMITS", "PASSWORD_HASH_COST"):
        del env[name]
    return env


def client_of(env: dict[str, str]) -> httpx.Client:
    """Return a client of the web process that *env* is for."""
    return httpx.Client(base_url=f"http://127.0.0.1:{env['PORT']}", timeout=120)


def for_operations() -> dict[str, str]:
    """The header by which the operator's machines ask a service in production."""
    return {"Authorization": f"Bearer {OPS_TOKEN}"}


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def run(
    *command: str, env: dict[str, str], stdin: str = "", folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a command of the virtual environment (``python``, ``flask`` …) in *folder* to its end.

    An absolute path is a command of another environment.
    """
    return subprocess.run(
        [str(Path(PYTHON).parent / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        cwd=folder,
        env=env,
        input=stdin,
        timeout=START,
        check=False,
    )


class Running:
    """A command that runs, with everything that it started; ended and cleaned up on exit."""

    def __init__(self, *command: str, env: dict[str, str], folder: Path = ROOT) -> None:
        self._mark = uuid.uuid4().hex
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        self.process = subprocess.Popen(
            [str(Path(PYTHON).parent / command[0]), *command[1:]],
            cwd=folder,
            env={**env, _MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            # A process group of its own: what is sent to it must not reach the tests.
            start_new_session=True,
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is not None:
            # pytest shows this of a failed test; otherwise nobody would see why it failed.
            print(self.log)
        self.kill()
        self._log.close()

    @property
    def log(self) -> str:
        """All that the processes have printed so far."""
        self._log.flush()
        return os.pread(self._log.fileno(), 10_000_000, 0).decode(errors="replace")

    def wait_for(self, words: str, seconds: float = START) -> None:
        """Wait until *words* are printed; fail at once if the process ends before."""

        def said() -> bool:
            ended = self.process.poll() is not None
            if words in self.log:
                return True
            assert not ended, f"ended with {self.process.returncode}:\n{self.log[-5000:]}"
            return False

        eventually(said, seconds)

    def alive(self) -> list[int]:
        """Return the pids of all processes that were started, directly or not, and still run."""
        mark = f"{_MARK}={self._mark}".encode()
        return [pid for pid in _pids() if mark in _read(pid, "environ") and not _is_zombie(pid)]

    def stop(self, how: signal.Signals = signal.SIGTERM, *, group: bool = False) -> None:
        """Send a signal, to the whole group as a terminal does if asked, and wait for the end."""
        (os.killpg if group else os.kill)(self.process.pid, how)
        self.process.wait(STOP)

    def ended_well(self) -> bool:
        """Say whether it ended in order, or cut itself off and said so, as on a slow machine."""
        cut_off = "the stop takes too long" in self.log
        return self.process.returncode == (-signal.SIGKILL if cut_off else 0)

    def kill(self) -> None:
        """SIGKILL everything, until nothing is left."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + STOP
        while pids := self.alive():
            assert time.monotonic() < deadline, f"not to be killed: {pids}"
            for pid in pids:
                with _gone():
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def worker(env: dict[str, str]) -> Running:
    """Start worker and beat as one command, as Celery is started in a clone."""
    words = ("--quiet", "-A", "worker", "worker", "-B", "--concurrency", "2")
    return Running("celery", *words, env=env)


@contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    with _gone():
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


def _is_zombie(pid: int) -> bool:
    # The state follows the command's name, which is in parentheses and may hold anything.
    return _read(pid, "stat").rpartition(b")")[2].strip().startswith(b"Z")


def children(pid: int) -> list[int]:
    """Return the pids of the processes that *pid* has started and that have not ended."""
    with _gone():
        lists = list(Path(f"/proc/{pid}/task").glob("*/children"))
        found = [int(child) for one in lists for child in one.read_text().split()]
        return [child for child in found if not _is_zombie(child)]
    return []


def image_workers(pid: int) -> list[int]:
    """Return the pids of the image workers that *pid* has started and that have not ended."""
    return [child for child in children(pid) if b"imageworker" in _read(child, "cmdline")]
