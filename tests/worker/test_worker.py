"""Real worker processes with their beat, as an operator starts them."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from apiflask import APIFlask
from kombu import Connection
from sqlalchemy import func, select

from accountsvc.adapters.throttle import SIGN_UP, Throttle
from accountsvc.config import ConfigError
from accountsvc.db.models import Account, Effect, Receipt
from accountsvc.db.schema import upgrade
from tests.support.factories import (
    Person,
    deactivate,
    dispose,
    insert_accounts,
    make_app,
    make_person,
    make_settings,
    numbered,
    services_of,
)
from tests.support.processes import START, environment, eventually, run, worker
from tests.support.servers import PostgresServer, ValkeyServer
from tests.support.state import belongings, facts_of, read_account

LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@contextmanager
def application(database_url: str, folder: Path, **changes: str) -> Iterator[APIFlask]:
    app = make_app(database_url, folder, **changes)
    yield app
    dispose(app)


def make_due(app: APIFlask, *people: Person) -> None:
    for person in people:
        deactivate(services_of(app), person.id, by="owner", grace=timedelta())


def is_purged(app: APIFlask, person: Person) -> bool:
    """Say whether everything of *person* is gone and everything that this owes is done."""
    services = services_of(app)
    with services.reading() as session:
        receipt = session.get(Receipt, person.public_id)
        owed = session.scalar(select(func.count()).select_from(Effect))
    return (
        receipt is not None
        and owed == 0
        and read_account(services, person.id) is None
        and services.avatars.open(person.avatar) is None
    )


@pytest.fixture
def redis_server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.mark.parametrize(
    ("engine_name", "broker"),
    [("sqlite", "folder"), ("postgresql", "folder"), ("postgresql", "redis")],
)
def test_a_due_account_goes_while_a_worker_runs(
    request: pytest.FixtureRequest, tmp_path: Path, engine_name: str, broker: str
) -> None:
    # given
    url: str = request.getfixturevalue(f"{engine_name}_url")
    redis: ValkeyServer | None = None
    env = environment(tmp_path, url, SWEEP_INTERVAL="1s")
    if broker == "redis":
        redis = request.getfixturevalue("redis_server")
        env["REDIS_URL"] = redis.url
    with application(url, tmp_path) as app, worker(env) as running:
        bystander = make_person(services_of(app), "bob")
        waiting = make_person(services_of(app), "waiting")
        deactivate(services_of(app), waiting.id)
        gone = make_person(services_of(app), "annabella")
        before = [belongings(services_of(app), person) for person in (bystander, waiting)]
        running.wait_for("worker is ready")

        # when
        make_due(app, gone)
        if redis is not None:
            # The rows are the schedule: whatever was in the broker is not missed.
            redis.flushall()

        # then
        eventually(lambda: is_purged(app, gone))
        if engine_name == "sqlite":
            eventually(lambda: is_scrubbed(app, gone))
            assert_no_byte_is_left_of(b"annabella", tmp_path)
        assert [belongings(services_of(app), person) for person in (bystander, waiting)] == before
        running.stop()
        assert running.ended_well()
        eventually(lambda: running.alive() == [])
        # One JSON object a line, ids and counts only.
        lines = [json.loads(line) for line in running.log.splitlines() if line.startswith("{")]
        assert {"swept", "delivered"} <= {line["event"] for line in lines}
        assert "annabella" not in running.log
        assert "Traceback" not in running.log


def test_a_worker_that_is_killed_at_its_start_leaves_nobody_behind(
    sqlite_url: str, tmp_path: Path
) -> None:
    for _ in range(3):
        with worker(environment(tmp_path, sqlite_url)) as running:
            running.wait_for("worker is ready")

            os.kill(running.process.pid, signal.SIGKILL)

            eventually(lambda running=running: running.alive() == [])  # type: ignore[misc]


def is_scrubbed(app: APIFlask, person: Person) -> bool:
    return "scrubbed" in facts_of(services_of(app), person.public_id)


def assert_no_byte_is_left_of(name: bytes, folder: Path) -> None:
    """Search all files but the mails that were sent."""
    for path in folder.rglob("*"):
        if path.is_file() and "mail" not in path.parts:
            assert name not in path.read_bytes(), path


def test_sigterm_in_the_middle_of_a_backlog_ends_in_time_and_leaves_nothing_half_done(
    sqlite_url: str, tmp_path: Path
) -> None:
    # given: so many accounts, one by one, that a sweep is always under way
    env = environment(
        tmp_path, sqlite_url, SWEEP_INTERVAL="1s", PURGE_BATCH_SIZE="1", PURGE_BRAKE="off"
    )
    with application(sqlite_url, tmp_path) as app, worker(env) as running:
        insert_accounts(services_of(app), numbered("due", 1500), purge_at=LONG_AGO)
        eventually(lambda: count(app, Receipt) > 20)

        # when
        running.stop()

        # then
        eventually(lambda: running.alive() == [])
        assert count(app, Account) > 0, "the backlog was too small to be in the middle of"
        assert count(app, Account) + count(app, Receipt) == 1500
        assert "Traceback" not in running.log


def test_sigterm_ends_a_worker_in_time_whose_mail_server_hangs(
    sqlite_url: str, tmp_path: Path
) -> None:
    # given: a mail server that takes the connection and says nothing
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"smtp://127.0.0.1:{server.getsockname()[1]}/?tls=none"
        env = environment(tmp_path, sqlite_url, SWEEP_INTERVAL="1s", MAIL_URL=url)
        with application(sqlite_url, tmp_path) as app, worker(env) as running:
            deactivate(services_of(app), make_person(services_of(app), "ann").id)
            server.settimeout(START)
            connection, _ = server.accept()

            # when
            running.stop()

            # then
            eventually(lambda: running.alive() == [])
            connection.close()
            # It is still owed, and will be tried again.
            assert count(app, Effect) > 0


def test_a_backlog_neither_piles_up_messages_nor_keeps_mails_waiting(
    sqlite_url: str, tmp_path: Path
) -> None:
    # given
    env = environment(
        tmp_path, sqlite_url, SWEEP_INTERVAL="1s", PURGE_BATCH_SIZE="1", PURGE_BRAKE="off"
    )
    broker = tmp_path / "instance" / "broker"
    with application(sqlite_url, tmp_path) as app, worker(env) as running:
        insert_accounts(services_of(app), numbered("due", 1500), purge_at=LONG_AGO)
        eventually(lambda: count(app, Receipt) > 0)
        mails = tmp_path / "instance" / "mail"

        # when
        deactivate(services_of(app), make_person(services_of(app), "ann").id)
        most = 0

        def is_mailed() -> bool:
            nonlocal most
            most = max(most, sum(1 for _ in broker.glob("*.msg")))
            return any(b"ann@example.org" in path.read_bytes() for path in mails.rglob("*.eml"))

        # then
        eventually(is_mailed)
        assert count(app, Account) > 1, "the backlog was too small to stand in the way"
        # A tick of each kind and a successor or two; what nobody took in time has expired.
        assert most < 12
        assert "Traceback" not in running.log


def test_a_database_that_comes_back_is_swept_again_and_its_absence_is_one_line_a_tick(
    tmp_path: Path,
) -> None:
    with PostgresServer() as server:
        url = server.url()
        upgrade(url)
        env = environment(tmp_path, url, SWEEP_INTERVAL="1s")
        with application(url, tmp_path) as app, worker(env) as running:
            gone = make_person(services_of(app), "ann")
            make_due(app, gone)
            running.wait_for("worker is ready")
            eventually(lambda: is_purged(app, gone))

            # when
            server.stop("immediate")
            running.wait_for("the database does not answer")
            server.start()

            # then
            services_of(app).database.engine.dispose()
            again = make_person(services_of(app), "again")
            make_due(app, again)
            eventually(lambda: is_purged(app, again))
            assert "Traceback" not in running.log


@pytest.mark.parametrize(
    "command",
    [
        ("celery", "-A", "worker", "worker"),
        ("gunicorn", "--config", "gunicorn.conf.py"),
        ("flask", "--app", "wsgi", "accounts", "list"),
        ("python", "-m", "accountsvc", "run"),
    ],
    ids=" ".join,
)
def test_a_wrong_setting_stops_the_start_with_one_line(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    result = run(*command, env=environment(tmp_path, GRACE_PERIOD="soon"))

    assert result.returncode != 0
    said = result.stdout + result.stderr
    assert "accountsvc: GRACE_PERIOD is not a duration ('soon'); for example: 14d" in said
    assert "Traceback" not in said
    if command[0] == "python":
        assert result.returncode == 2


# The settings of Celery -------------------------------------------------------------------------


@pytest.fixture
def celery_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module ``worker.app``, whose package reads the environment when it is first imported."""
    for name, value in environment(tmp_path).items():
        if value:
            monkeypatch.setenv(name, value)
    return importlib.import_module("worker.app")


def make(celery_app: ModuleType, folder: Path, **changes: str) -> Any:
    settings = make_settings(f"sqlite:///{folder}/none.db", folder, **changes)
    return celery_app.make_celery(settings).conf


@pytest.mark.parametrize("interval", ["1s", "60s", "1h"])
def test_every_tick_expires_when_the_next_one_comes_by_any_hosts_clock(
    celery_app: ModuleType, tmp_path: Path, interval: str
) -> None:
    conf = make(celery_app, tmp_path, SWEEP_INTERVAL=interval)

    assert set(conf.beat_schedule) == {"sweep", "deliver", "seal"}
    for entry in conf.beat_schedule.values():
        apart = timedelta(minutes=1)
        assert entry["options"]["expires"] == (entry["schedule"] + apart).total_seconds()
    assert conf.beat_schedule["deliver"]["schedule"] <= timedelta(seconds=5)
    # A clock that goes back while beat reckons how long to sleep is noticed within seconds.
    assert conf.beat_max_loop_interval <= 5


def test_every_task_has_a_queue_of_its_own(celery_app: ModuleType, tmp_path: Path) -> None:
    tasks = importlib.import_module("worker.tasks")

    conf = make(celery_app, tmp_path)

    names = {tasks.sweep.name, tasks.deliver.name, tasks.seal.name}
    assert {queue.name for queue in conf.task_queues} == names
    assert {name: route["queue"] for name, route in conf.task_routes.items()} == {
        name: name for name in names
    }


def test_redis_does_not_give_a_task_away_that_may_still_run(
    celery_app: ModuleType, tmp_path: Path
) -> None:
    conf = make(celery_app, tmp_path, REDIS_URL="redis://127.0.0.1:1/0")

    assert conf.broker_transport_options["visibility_timeout"] > conf.task_time_limit
    assert conf.task_time_limit > celery_app.SLICE.total_seconds()


def test_a_message_is_json_and_nothing_else_is_read(celery_app: ModuleType, tmp_path: Path) -> None:
    """Whoever can write to the broker can send no object that runs code when it is read."""
    conf = make(celery_app, tmp_path)

    assert conf.accept_content == ["json"]
    assert conf.task_serializer == conf.result_serializer == "json"


def test_the_certificate_of_a_redis_with_tls_is_checked(
    celery_app: ModuleType, tmp_path: Path
) -> None:
    conf = make(celery_app, tmp_path, REDIS_URL="rediss://redis.example:6379/0")

    assert conf.broker_use_ssl["ssl_cert_reqs"].name == "CERT_REQUIRED"


# No other test has this database of the session's Redis.
OWN_DATABASE = 11


def test_throttle_and_broker_meet_in_the_database_of_the_url(
    celery_app: ModuleType, redis_url: str, tmp_path: Path
) -> None:
    server = urlsplit(redis_url)
    text = f" redis://LOCALHOST:{server.port}/0{OWN_DATABASE} "
    settings = make_settings(f"sqlite:///{tmp_path}/unused.db", tmp_path, REDIS_URL=text)
    celery = celery_app.make_celery(settings)

    with redis.Redis.from_url(f"redis://localhost:{server.port}/{OWN_DATABASE}") as client:
        client.flushdb()
        throttle = Throttle(b"k" * 32, redis_url=settings.redis_url)
        throttle.spend(SIGN_UP, address="192.0.2.1")
        with celery.connection_for_write() as connection:
            celery.send_task(celery_app.SWEEP, connection=connection)
        keys = {key.decode() for key in client.keys("*")}
        client.flushdb()

    assert celery_app.SWEEP in keys
    assert [key for key in keys if key.startswith("accountsvc-throttle")]


def test_a_broker_folder_that_cannot_be_made_is_one_line(
    celery_app: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="CELERY_BROKER_URL names a folder that cannot be made"):
        make(celery_app, tmp_path, CELERY_BROKER_URL=f"filesystem://{tmp_path}/file/broker")


# The broker in a folder -------------------------------------------------------------------------


@pytest.fixture
def channel(celery_app: ModuleType, tmp_path: Path) -> Iterator[Any]:
    with connect(tmp_path) as connection:
        yield connection.channel()


def connect(folder: Path) -> Connection:
    return Connection(
        transport="worker.filesystem:Transport", transport_options={"folder": str(folder)}
    )


def test_messages_come_in_the_order_in_which_they_were_put(channel: Any) -> None:
    for number in range(50):
        channel._put("a", {"number": number})
    channel._put("b", {"number": -1})

    assert channel._size("a") == 50
    assert [channel._get("a")["number"] for _ in range(50)] == list(range(50))
    with pytest.raises(Empty):
        channel._get("a")
    assert channel._purge("b") == 1


def test_no_message_is_torn_or_taken_twice_however_hard_is_polled(
    channel: Any, tmp_path: Path
) -> None:
    count, taken, broken = 600, [], []
    done = threading.Event()

    def poll() -> None:
        with connect(tmp_path) as connection:
            own = connection.channel()
            while not (done.is_set() and own._size("a") == 0):
                try:
                    taken.append(own._get("a")["number"])
                except Empty:
                    continue
                except Exception as exc:
                    broken.append(repr(exc))

    threads = [threading.Thread(target=poll) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(count):
        channel._put("a", {"number": number, "padding": "x" * 2000})
    done.set()
    for thread in threads:
        thread.join()

    assert broken == []
    assert sorted(taken) == list(range(count))
    assert list(tmp_path.glob("*.msg*")) == []


# ------------------------------------------------------------------------------------------------


def count(app: APIFlask, model: type[Any]) -> int:
    with services_of(app).reading() as session:
        return session.scalar(select(func.count()).select_from(model)) or 0
