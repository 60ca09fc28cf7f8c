"""What a real worker process loads, and what it prints from its start to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from accountsvc import logs
from tests.support.factories import deactivate, make_person, services_of
from tests.support.processes import ROOT, START, Running, environment, eventually
from tests.support.servers import ValkeyServer
from tests.support.state import read_account

from .test_worker import application, is_purged, make_due

# Frameworks of the web process, and what it alone is made of.
WEB = {
    "accountsvc.api",
    "accountsvc.app",
    "accountsvc.pages",
    "accountsvc.web",
    "apiflask",
    "flask",
    "flask_cors",
    "flask_jwt_extended",
    "flask_migrate",
    "flask_sqlalchemy",
    "werkzeug",
}

# Python imports a module of this name before anything else. It starts a thread in each process,
# also in one that is forked later, which writes down what the process has loaded when it is asked
# to. (A signal would end the processes of the pool: they take it for a broken pipe.)
SITECUSTOMIZE = """
import os, pathlib, sys, threading, time

folder = pathlib.Path(os.environ["LOADED_MODULES"])

def write_down():
    while not (folder / "now").exists():
        time.sleep(0.05)
    draft = folder / f"{os.getpid()}.draft"
    draft.write_text("\\n".join(list(sys.modules)))
    draft.rename(folder / f"{os.getpid()}.modules")

def start():
    threading.Thread(target=write_down, daemon=True).start()

os.register_at_fork(after_in_child=start)
start()
"""


def bare_worker(env: dict[str, str]) -> Running:
    """A worker by the command of the README, without an option that makes it quiet."""
    return Running("celery", "-A", "worker", "worker", "-B", env=env)


def test_settings_load_no_web_framework() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import accountsvc.config"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=START,
        check=True,
    )

    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "accountsvc.config" in loaded
    assert loaded & WEB == set()


def test_no_process_of_a_worker_that_has_swept_has_loaded_a_web_framework(
    sqlite_url: str, tmp_path: Path
) -> None:
    # given
    loaded, site = tmp_path / "loaded", tmp_path / "site"
    loaded.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)
    env = environment(
        tmp_path,
        sqlite_url,
        SWEEP_INTERVAL="1s",
        PYTHONPATH=str(site),
        LOADED_MODULES=str(loaded),
    )
    with application(sqlite_url, tmp_path) as app, bare_worker(env) as running:
        gone = make_person(services_of(app), "ann")
        make_due(app, gone)
        eventually(lambda: is_purged(app, gone))

        # when
        (loaded / "now").touch()
        processes = {str(pid) for pid in running.alive()}
        eventually(lambda: {path.stem for path in loaded.glob("*.modules")} >= processes, 60)

        # then: the worker, its beat and its pool of two, one of which has swept
        modules = {path.stem: set(path.read_text().split()) for path in loaded.glob("*.modules")}
        assert len(processes) == 4
        assert all("accountsvc.purge.sweep" in modules[pid] for pid in processes)
        assert {pid: names & WEB for pid, names in modules.items() if names & WEB} == {}


@pytest.fixture
def redis_server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def test_a_worker_prints_nothing_but_its_log(sqlite_url: str, tmp_path: Path) -> None:
    env = environment(tmp_path, sqlite_url, SWEEP_INTERVAL="1s")
    with application(sqlite_url, tmp_path) as app, bare_worker(env) as running:
        running.wait_for("worker is ready")
        gone = make_person(services_of(app), "ann")
        make_due(app, gone)
        eventually(lambda: is_purged(app, gone))
        running.stop()

        lines = [json.loads(line) for line in running.log.splitlines()]
        assert {line["logger"].partition(".")[0] for line in lines} <= {"accountsvc", "worker"}
        assert {line["event"] for line in lines} >= {"worker is ready", "swept", "worker stops"}
        assert {line["level"] for line in lines} == {"info"}


def test_a_person_is_told_by_the_worker_in_words(sqlite_url: str, tmp_path: Path) -> None:
    env = environment(tmp_path, sqlite_url, SWEEP_INTERVAL="1s", **{logs.CONSOLE: "1"})
    with application(sqlite_url, tmp_path) as app, bare_worker(env) as running:
        running.wait_for("worker is ready")
        gone = make_person(services_of(app), "ann")
        deactivate(services_of(app), gone.id, by="owner", grace=timedelta())
        eventually(lambda: read_account(services_of(app), gone.id) is None)
        running.wait_for("swept")
        running.stop()

        # Each line begins with the time of day.
        lines = [line.partition(" ")[2] for line in running.log.splitlines()]
        assert lines[0] == "worker is ready"
        assert "worker stops" in lines
        swept = next(line for line in lines if line.startswith("swept"))
        assert swept.startswith("swept purged=1 saved_passwords=3 files=1 failed=0 stuck=0 more=")
        assert all(line.startswith(("worker", "swept", "delivered")) for line in lines)


def ticks_sent(redis: ValkeyServer) -> int:
    with redis.client() as client:
        counts: dict[str, dict[str, int]] = client.info("commandstats")  # type: ignore[assignment]
    return counts.get("cmdstat_lpush", {}).get("calls", 0)


def test_a_broker_that_is_gone_is_a_line_a_tick(
    sqlite_url: str, tmp_path: Path, redis_server: ValkeyServer
) -> None:
    env = environment(tmp_path, sqlite_url, SWEEP_INTERVAL="1s", REDIS_URL=redis_server.url)
    with bare_worker(env) as running:
        running.wait_for("worker is ready")
        eventually(lambda: ticks_sent(redis_server) > 0)

        redis_server.stop()
        running.wait_for("the broker does not answer; the next tick goes on")
        # The worker itself may find out later: if it is not just waiting for a message, by a look
        # every ten seconds.
        running.wait_for("Trying again in 2.00 seconds")
        running.stop()

        lines = [json.loads(line) for line in running.log.splitlines()]
        ticks = [line for line in lines if line["event"].startswith("the broker does not answer")]
        assert {(line["level"], line["task"]) for line in ticks} <= {
            ("warning", "accountsvc.sweep"),
            ("warning", "accountsvc.deliver"),
        }
        # Celery says that it tries again; its beat prints no stack, and nobody gives advice.
        assert "Trying again in 2.00 seconds" in running.log
        assert {line["logger"] for line in lines} & {"celery.beat", "py.warnings"} == set()
