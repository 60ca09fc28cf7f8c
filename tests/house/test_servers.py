from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pytest
import redis

from tests.support.processes import START, STOP
from tests.support.servers import PostgresServer, ValkeyServer


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_postgresql_answers_and_leaves_nothing_behind(how: str) -> None:
    with PostgresServer(fsync=True) as server:
        url, pid, folder = server.create_database("mine"), server.pid, server.folder
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
            version = connection.info.server_version

        server.restart(how)

        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT 2").fetchone() == (2,)
        assert version >= 160000
        assert not _is_alive(pid)
        pid = server.pid

    assert not _is_alive(pid)
    assert not folder.exists()


def test_valkey_answers_and_leaves_nothing_behind() -> None:
    with ValkeyServer() as server:
        with server.client() as client:
            client.set("a", "b")
            assert client.get("a") == b"b"
        server.flushall()
        with server.client() as client:
            assert client.get("a") is None
        pid, folder = server.pid, server.folder

    with pytest.raises(redis.ConnectionError):
        server.client().ping()
    assert not _is_alive(pid)
    assert not folder.exists()


def test_each_test_has_a_migrated_database_of_its_own(postgresql_url: str, sqlite_url: str) -> None:
    with psycopg.connect(postgresql_url) as connection:
        assert connection.execute("SELECT count(*) FROM accounts").fetchone() == (0,)
    assert sqlite_url.endswith("accountsvc.db")


def test_redis_is_there_for_every_test(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()


def test_a_run_that_is_terminated_leaves_no_server_and_no_folder() -> None:
    with tempfile.TemporaryDirectory() as name:
        # given a run with servers of its own, inside a test
        folder, root = Path(name), Path(__file__).parents[2]
        # The servers run as somebody else when this is root.
        folder.chmod(0o755)
        (folder / "test_long.py").write_text(
            "import os, pathlib, time\n"
            "def test_long():\n"
            "    urls = [os.environ['TEST_DATABASE_URL'], os.environ['TEST_REDIS_URL']]\n"
            f"    draft = pathlib.Path({name!r}, 'draft')\n"
            "    draft.write_text('\\n'.join(urls))\n"
            "    draft.rename(draft.with_name('urls'))\n"
            "    time.sleep(100)\n"
        )
        left_out = {"TEST_DATABASE_URL", "TEST_REDIS_URL", "PYTEST_ADDOPTS"}
        env = {key: value for key, value in os.environ.items() if key not in left_out}
        options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", name]
        run = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, str(folder / "test_long.py")],
            cwd=root,
            env={**env, "TMPDIR": name, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            deadline = time.monotonic() + START
            while not (folder / "urls").exists() and time.monotonic() < deadline:
                if run.poll() is not None:
                    break
                time.sleep(0.1)
        finally:
            # when it is terminated
            run.send_signal(signal.SIGTERM)
            output, _ = run.communicate(timeout=STOP)

        # then both servers are gone, and so is what they wrote
        assert (folder / "urls").exists(), output
        database_url, redis_url = (folder / "urls").read_text().split()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(database_url)
        with pytest.raises(redis.ConnectionError):
            redis.Redis.from_url(redis_url).ping()
        assert list(folder.glob("accountsvc-*")) == []
