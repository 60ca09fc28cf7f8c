"""The service as ``compose.yaml`` starts it, while its database, broker, store, mail server and processes fail."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from accountsvc.db.schema import upgrade
from tests.faults.http_world import HttpWorld, aftermath, ask
from tests.faults.world import CHECKED
from tests.support.deploy import compose_command
from tests.support.factories import (
    PASSWORD,
    deactivate,
    dispose,
    make_app,
    make_due,
    make_person,
    services_of,
)
from tests.support.processes import Running, client_of, eventually, is_ready, production
from tests.support.s3 import S3Server, error, start_moto
from tests.support.servers import PostgresServer, ValkeyServer
from tests.support.smtp import Inbox, smtp_server
from tests.support.state import read_account

SEED = int(os.environ.get("TEST_FAULT_SEED", "20261207"))
pytestmark = pytest.mark.timeout(1800)


@dataclass
class Site:
    """Everything that runs, and what it runs on."""

    postgres: PostgresServer
    redis: ValkeyServer
    s3: S3Server
    inbox: Inbox
    env: dict[str, str]
    client: httpx.Client
    stack: ExitStack
    running: dict[str, Running] = field(default_factory=dict)

    def start(self, name: str) -> None:
        self.running[name] = self.stack.enter_context(Running(*compose_command(name), env=self.env))

    def supervise(self) -> None:
        """Start again what has ended, as ``restart: unless-stopped`` does."""
        for name, running in list(self.running.items()):
            if running.process.poll() is not None:
                self.start(name)

    def eventually(self, check: Callable[[], bool]) -> None:
        """Wait until *check* holds, beside a supervisor."""

        def supervised() -> bool:
            self.supervise()
            return check()

        try:
            eventually(supervised)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.tails}") from exc

    @property
    def tails(self) -> str:
        """The last that each process said, for the message of a failure."""
        return "\n".join(f"--- {name}\n{one.log[-3000:]}" for name, one in self.running.items())

    def kill(self, name: str) -> None:
        """SIGKILL a whole process tree, as a host that dies."""
        self.running.pop(name).kill()

    def kill_a_child(self, name: str) -> None:
        running = self.running[name]
        children = [pid for pid in running.alive() if pid != running.process.pid]
        os.kill(children[-1], signal.SIGKILL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    inbox = Inbox()
    with ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer(max_connections=80))
        redis = stack.enter_context(ValkeyServer())
        s3 = stack.enter_context(start_moto())
        mail = stack.enter_context(smtp_server(inbox))
        bucket = s3.make_bucket()
        url = postgres.create_database("site")
        upgrade(url)
        env = production(
            folder,
            url,
            redis=redis.url,
            bucket=bucket,
            mail=mail,
            **s3.env,
            TRUSTED_PROXIES="127.0.0.1",
            SWEEP_INTERVAL="1s",
            PURGE_BATCH_SIZE="2",
        )
        client = stack.enter_context(client_of(env))
        site = Site(postgres, redis, s3, inbox, env, client, stack)
        for process in ("web", "worker", "beat"):
            site.start(process)
        eventually(lambda: is_ready(client))
        site.running["worker"].wait_for("worker is ready")
        yield site


@pytest.fixture
def world(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SiteWorld]:
    for name, value in site.s3.env.items():
        monkeypatch.setenv(name, value)
    names = ("STORAGE_URL", "LEDGER_URL", "MAIL_URL", "MAIL_FROM")
    app = make_app(site.env["DATABASE_URL"], tmp_path, **{name: site.env[name] for name in names})
    yield SiteWorld(app, app, tmp_path, client=site.client, site=site)
    dispose(app)


@dataclass
class SiteWorld(HttpWorld):
    """The world of the fault suite, whose files lie in S3."""

    site: Site = field(kw_only=True)

    @property
    def _bucket(self) -> str:
        return self.site.env["STORAGE_URL"].split("/")[2]

    def _put(self, key: str) -> None:
        self.site.s3.client.put_object(Bucket=self._bucket, Key=f"avatars/{key}", Body=b"an image")

    def _files(self) -> set[str]:
        pages = self.site.s3.client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix="avatars/"
        )
        return {Path(one["Key"]).name for page in pages for one in page.get("Contents", [])}


@dataclass(frozen=True)
class Trouble:
    """Something that fails from ``begin`` to ``end``, which are ``seconds`` apart."""

    name: str
    begin: Callable[[], object]
    end: Callable[[], object] = lambda: None
    seconds: float = 0.0


def troubles(site: Site) -> list[Trouble]:
    postgres, redis, inbox = site.postgres, site.redis, site.inbox
    taken: list[psycopg.Connection[Any]] = []

    def take_all_connections() -> None:
        while True:
            try:
                taken.append(psycopg.connect(postgres.url("site")))
            except psycopg.OperationalError:
                return

    def lock_everybody() -> None:
        taken.append(psycopg.connect(postgres.url("site")))
        taken[-1].execute("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")

    def give_back() -> None:
        while taken:
            taken.pop().close()

    def read_only(value: str) -> None:
        postgres.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        postgres.execute("SELECT pg_reload_conf()")

    def limit_redis(size: str) -> None:
        with redis.client() as client:
            client.config_set("maxmemory", size)

    def s3(answer: Callable[[str, str], Any] | None) -> None:
        site.s3.fault = answer

    def hang(_method: str, _path: str) -> None:
        time.sleep(8)

    def delete_nothing(method: str, path: str) -> tuple[int, bytes] | None:
        bulk = method == "POST" and "delete" in path
        return (200, b"<DeleteResult></DeleteResult>") if bulk else None

    def smtp(**answers: str) -> None:
        inbox.answers = answers

    def restart(name: str) -> None:
        site.kill(name)
        site.start(name)

    return [
        Trouble("PostgreSQL restarted", partial(postgres.restart, "fast")),
        Trouble("PostgreSQL stopped at once", partial(postgres.stop, "immediate"), postgres.start, 3),
        Trouble("PostgreSQL killed", partial(postgres.stop, "kill"), postgres.start, 1),
        Trouble("PostgreSQL without connections", take_all_connections, give_back, 7),
        Trouble("accounts locked by somebody", lock_everybody, give_back, 8),
        Trouble("PostgreSQL read-only", partial(read_only, "on"), partial(read_only, "off"), 3),
        Trouble("Redis killed", partial(redis.stop, "kill"), redis.start, 3),
        Trouble("Redis flushed", redis.flushall),
        Trouble("Redis full", partial(limit_redis, "1"), partial(limit_redis, "0"), 3),
        Trouble(
            "Redis hangs",
            lambda: os.kill(redis.pid, signal.SIGSTOP),
            lambda: os.kill(redis.pid, signal.SIGCONT),
            4,
        ),
        Trouble("S3 says 500", partial(s3, lambda *_: error(500, "InternalError")), partial(s3, None), 4),
        Trouble("S3 says 503", partial(s3, lambda *_: error(503, "SlowDown")), partial(s3, None), 4),
        Trouble("S3 hangs", partial(s3, hang), partial(s3, None), 6),
        Trouble("S3 deletes nothing in bulk", partial(s3, delete_nothing), partial(s3, None), 4),
        Trouble("SMTP refuses for now", partial(smtp, MAIL="451 later"), smtp, 4),
        Trouble(
            "SMTP drops after DATA",
            partial(setattr, inbox, "drop_after_data", True),
            partial(setattr, inbox, "drop_after_data", False),
            4,
        ),
        Trouble(
            "SMTP hangs",
            partial(setattr, inbox, "hangs", True),
            partial(setattr, inbox, "hangs", False),
            4,
        ),
        Trouble("a web process killed", partial(site.kill_a_child, "web")),
        Trouble("a worker's process killed", partial(site.kill_a_child, "worker")),
        Trouble("the worker killed whole", partial(restart, "worker")),
        Trouble("beat killed", partial(restart, "beat")),
    ]  # fmt: skip


def test_whichever_engine_fails_every_promise_is_kept(
    site: Site, world: SiteWorld, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(SEED)
    planned = troubles(site)
    chance.shuffle(planned)
    found: list[str] = []
    rows = []

    for trouble in planned:
        operations = world.new_round()
        answers: dict[str, int] = {}
        threads = [threading.Thread(target=ask, args=(answers, *one)) for one in operations]
        # Half of what is asked is under way when it begins, and half comes while it lasts.
        chance.shuffle(threads)
        threads[0].start()
        time.sleep(chance.uniform(0, 0.03))
        trouble.begin()
        for thread in threads[1:]:
            thread.start()
        time.sleep(trouble.seconds)
        trouble.end()
        for thread in threads:
            thread.join()

        # It is the worker that finishes what is due, without anybody's help.
        site.eventually(world.all_due_are_gone)
        bad = aftermath(world, answers)
        rows.append(f"{trouble.name:32} {answers!s:60} {len(bad)}")
        found += [f"{trouble.name}: {one} {answers}" for one in bad]

    heading = f"{'FAULT OF AN ENGINE':32} {'ANSWERED MEANWHILE':60} VIOLATIONS"
    record_property("table", "\n".join([heading, *rows, CHECKED]))
    assert found == [], "\n".join(found)
    assert world.ledger_is_whole() == []
    assert "deadlock" not in site.postgres.log
    # Every mail came; twice at most, and then as the same one.
    ids = defaultdict(set)
    for message in site.inbox.messages:
        ids[message["To"], message["Subject"]].add(message["Message-ID"])
    assert {said: each for said, each in ids.items() if len(each) > 1} == {}
    assert max(Counter(message["Message-ID"] for message in site.inbox.messages).values()) <= 2


def test_without_redis_people_leave_and_come_back_and_purges_resume_with_it(
    site: Site, world: SiteWorld
) -> None:
    app, client = world.outside, site.client
    leaver, returner, due = (
        make_person(services_of(app), name) for name in ("leaver", "returner", "gone")
    )
    deactivate(services_of(app), returner.id)
    lost = "Connection to broker lost"
    before = site.running["worker"].log.count(lost)
    site.redis.stop("kill")
    # No sweep is under way any more by the time that somebody is due.
    eventually(lambda: site.running["worker"].log.count(lost) > before)

    # when
    deleted = client.delete(
        f"/api/profile/{leaver.id}/delete/", headers={**leaver.auth, **world.headers()}
    )
    told = client.post(
        "/api/sign-in/",
        json={"email": leaver.email, "password": PASSWORD},
        headers=world.headers(),
    )
    back = client.post(
        "/api/profile/reactivate/",
        json={"email": returner.email, "password": PASSWORD},
        headers=world.headers(),
    )
    make_due(services_of(app), due)

    # then
    assert deleted.status_code == 204
    assert (told.status_code, "recovery_token" in told.json()) == (403, True), told.text
    assert back.status_code == 200
    assert "throttles are counted in this process only" in site.running["web"].log
    assert read_account(services_of(app), due.id) is not None

    # when
    site.redis.start()

    # then
    site.eventually(lambda: read_account(services_of(app), due.id) is None)
    assert read_account(services_of(app), leaver.id) is not None
