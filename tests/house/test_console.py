"""`make run` on a terminal, as a person reads it from the start to Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import httpx

from tests.support.processes import ROOT, STOP, environment, eventually, run
from tests.support.servers import free_port


class Terminal:
    """A command on a terminal, and all that it shows there."""

    def __init__(self, *command: str, env: dict[str, str]) -> None:
        self.shown = ""
        self._ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs, process_group=0
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process.poll() is None:
            self.press_ctrl_c()
        self._reader.join(STOP)
        os.close(self._ours)

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(STOP)

    def _read(self) -> None:
        # Linux raises EIO once the last process that could write is gone.
        with suppress(OSError):
            while piece := os.read(self._ours, 65536):
                self.shown += piece.decode(errors="replace")

    def lines(self) -> list[str]:
        """Return what can be read: without colours, and without what a runner puts in front."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self.shown)
        return [line.rpartition("| ")[2] for line in plain.splitlines()]


def test_a_closed_terminal_ends_everything_also_if_nobody_passes_the_signal_on(
    tmp_path: Path,
) -> None:
    env = environment(tmp_path, PORT=str(free_port()))
    del env["DATABASE_URL"]
    assert run("python", "-m", "accountsvc", "prepare", env=env).returncode == 0
    ours, theirs = os.openpty()
    words = [sys.executable, "-m", "accountsvc", "run"]
    # It is not the terminal of the session, so its end sends no signal: as under make.
    with subprocess.Popen(words, cwd=ROOT, env=env, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"everything runs" not in shown:
            shown += os.read(ours, 65536)

        os.close(ours)

        try:
            assert process.wait(STOP) == 0
        finally:
            process.kill()


def test_a_person_reads_a_line_a_request_and_no_noise(tmp_path: Path) -> None:
    # given
    env = environment(tmp_path, PORT=str(free_port()), SWEEP_INTERVAL="1s")
    del env["DATABASE_URL"]
    assert run("python", "-m", "accountsvc", "prepare", env=env).returncode == 0

    # when
    with Terminal(sys.executable, "-m", "accountsvc", "run", env=env) as terminal:
        for words in ("worker is ready", "serving http://localhost"):
            eventually(lambda words=words: words in terminal.shown)  # type: ignore[misc]
        assert httpx.get(f"http://localhost:{env['PORT']}/healthz").status_code == 200
        eventually(lambda: "GET /healthz" in terminal.shown)
        terminal.press_ctrl_c()

    # then
    assert terminal.process.returncode == 0
    assert any(
        re.fullmatch(r"\d\d:\d\d:\d\d GET /healthz 200 [\d.]+ ms", line)
        for line in terminal.lines()
    )
    # Neither JSON, nor gunicorn's and Celery's own lines, nor advice, nor a traceback.
    for noise in ('{"', "[INFO]", "gunicorn", "Warning", "celery", "superuser", "Traceback"):
        assert noise not in terminal.shown, noise
