"""Whoever can write into Redis: what a real worker does with messages that are no ticks of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Exchange, Producer

from tests.support.factories import make_person, services_of
from tests.support.processes import Running, environment, eventually, worker
from tests.support.servers import ValkeyServer

from .test_worker import application, is_purged, make_due

QUEUE = "accountsvc.deliver"
# Words of a stranger's, which no log may repeat.
WORD = "s3cret-of-a-stranger"
NO_MORE = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


@pytest.fixture
def redis() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def stranger(redis: ValkeyServer) -> Iterator[Celery]:
    """A Celery application of somebody else's, which can do with Redis whatever it likes."""
    app = Celery("stranger", broker=redis.url, set_as_current=False)
    app.conf.task_create_missing_queues = True
    yield app
    app.close()


def header(task: Any = QUEUE, **changes: Any) -> dict[str, Any]:
    return {"task": task, "id": "f0090e27", "eta": None, "timelimit": [None, None], **changes}


def body(*args: Any, kwargs: Any = None, **embedded: Any) -> list[Any]:
    return [list(args), kwargs or {}, {**NO_MORE, **embedded}]


FOREIGN: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    # Celery's own tasks, which run others: by them a message would say what is done.
    (body({"task": QUEUE}, [[], []]), header("celery.starmap"), {}),
    (body([WORD]), header("celery.chain"), {}),
    (body(WORD), header("celery.backend_cleanup"), {}),
    (body(WORD), header("os.system"), {}),
    # A task of ours, with what no tick of ours has.
    (body(WORD), header(), {}),
    (body(kwargs={"seconds": WORD}), header(), {}),
    (body(callbacks=[{"task": WORD, "args": []}]), header(), {}),
    (body(chain=[{"task": WORD, "args": []}]), header(), {}),
    (body(), header(eta="2030-01-01T00:00:00+00:00"), {}),
    (body(), header(timelimit=[1_000_000, None]), {}),
    (body(), header(shadow=WORD), {}),
    (body(), header(expires=WORD), {}),
    (body(), header(id={"a": WORD}), {}),
    (body(), header(retries=WORD), {}),
    # No task at all.
    (body(), header([WORD]), {}),
    (body(), {}, {}),
    ({"task": QUEUE, "id": "1", "args": [], "kwargs": {}}, {}, {}),
    (WORD, header(), {}),
    # Another form than JSON, which could carry code.
    (body(WORD), header(), {"serializer": "pickle"}),
    (b"\x80\x04N.", header(), {"content_type": "application/x-python-serialize"}),
    (b'{"half": ', header(), {"content_type": "application/json", "content_encoding": "utf-8"}),
]


# Not even a message.
PROPERTIES = {"delivery_tag": "1", "delivery_info": {}}
ENVELOPE = {"body": "", "headers": {}, "properties": PROPERTIES}
UNREADABLE = ["", WORD, "{}", "[1]", "null", b"\xff\xfe"] + [
    json.dumps({**ENVELOPE, **changes})
    for changes in (
        {"body": 5},
        {"headers": [WORD]},
        {"properties": 5},
        {"properties": {**PROPERTIES, "body_encoding": [WORD]}},
        {"properties": {**PROPERTIES, "delivery_tag": []}},
        {"body": "x", "properties": {**PROPERTIES, "body_encoding": "base64"}},
    )
]


def push(redis: ValkeyServer, text: str | bytes) -> None:
    with redis.client() as client:
        client.lpush(QUEUE, text)


def send(redis: ValkeyServer, payload: Any, headers: dict[str, Any], options: Any) -> None:
    with Connection(redis.url) as connection, connection.channel() as channel:
        producer = Producer(channel, Exchange("", type="direct"), routing_key=QUEUE)
        producer.publish(payload, headers=headers, **{"serializer": "json", **options})


def test_no_message_in_redis_commands_a_worker_or_makes_it_run_what_is_not_a_tick(
    sqlite_url: str, tmp_path: Path, redis: ValkeyServer, stranger: Celery
) -> None:
    env = environment(tmp_path, sqlite_url, SWEEP_INTERVAL="1s", REDIS_URL=redis.url)
    with application(sqlite_url, tmp_path) as app, worker(env) as running:
        running.wait_for("worker is ready")
        bystander, gone = (make_person(services_of(app), name) for name in ("bob", "ann"))
        before = set(running.alive())

        # when
        for command in ("shutdown", "pool_shrink", "cancel_consumer", "rate_limit"):
            stranger.control.broadcast(command, arguments={"n": 2, "queue": QUEUE})
        ask(stranger)
        for message in FOREIGN:
            send(redis, *message)
        for text in UNREADABLE:
            push(redis, text)
        eventually(lambda: len(refusals(running)) == len(FOREIGN))
        eventually(lambda: running.log.count("cannot be read was dropped") == len(UNREADABLE))
        make_due(app, gone)

        # then: it works on, with the same processes
        eventually(lambda: is_purged(app, gone))
        assert set(running.alive()) == before
        assert not is_purged(app, bystander)
        with redis.client() as client:
            names = {str(name) for name in client.keys("*")}  # type: ignore[union-attr]
        assert [name for name in names if "reply" not in name and is_control(name)] == []
        running.stop()
        assert running.ended_well()

        # then: a line names the task, if it is a name, and nothing else of the message
        assert WORD not in running.log
        assert "Traceback" not in running.log
        tasks = {line["task"] for line in refusals(running)}
        assert tasks == {"celery.starmap", "celery.chain", "celery.backend_cleanup", "os.system",
                         QUEUE, None}  # fmt: skip


def ask(stranger: Celery) -> None:
    """Hold an election, whose winner would publish the task that the message names."""
    with stranger.events.default_dispatcher(hostname=WORD) as dispatcher:
        dispatcher.send("worker-elect", id="1", topic="x", action="task", cver=1)


def is_control(name: str) -> bool:
    return "pidbox" in name or "celeryev" in name


def refusals(running: Running) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in running.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "a message that is no tick was refused"]


def test_a_worker_that_loses_redis_in_the_midst_of_its_tasks_asks_for_further_ones(
    redis: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking, it notices that Redis is gone; otherwise it would be deaf for good."""
    # The package ``worker`` reads the environment when it is first imported.
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        send(redis, body(), header(), {})
    with Connection(redis.url, transport="worker.redis:Transport") as connection:
        channel = connection.channel()
        channel.basic_qos(0, 2, False)
        taken: list[Any] = []
        channel.basic_consume(QUEUE, no_ack=False, callback=taken.append, consumer_tag="1")
        while len(taken) < 2:
            connection.drain_events(timeout=60)
        assert not channel.qos.can_consume()

        # when
        redis.stop()
        for message in taken:
            with pytest.raises(channel.connection_errors):
                message.ack()

        # then
        assert channel.qos.can_consume()
        # Nothing is given back at the end of a connection that is gone.
        channel.qos.restore_at_shutdown = False
