from __future__ import annotations

import os

import psycopg
import pytest
import redis

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
