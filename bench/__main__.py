"""``python -m bench [NAME …]``: what the service costs, on a PostgreSQL that syncs to disk as usual.

``BENCH_TIMES`` sets how often each work is measured. Without names everything is, except
``servers``, the table of web servers, which takes half an hour and has to be named. For it
``BENCH_SECONDS`` sets for how long slow clients drip (10; 60 shows who closes them), and
``BENCH_SERVERS`` which candidates take part, by parts of their names with commas between.
``BENCH_EARLIER`` is the folder of another checkout of this repository, with a ``.venv`` of its own,
which is served beside them on the same database; its schema has to be an earlier one that can run
beside this one's, or the same. A bound that was passed ends it with 1.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import tracemalloc
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import delete, text

from accountsvc.accounts import vault
from accountsvc.accounts.credentials import PasswordHasher
from accountsvc.accounts.vault import Entry
from accountsvc.adapters.ledger import Batch, Ledger, ledger_from_url
from accountsvc.db.engine import database_now
from accountsvc.db.models import Account, LegalHold
from accountsvc.db.schema import upgrade
from accountsvc.services import Services
from bench.attack import attack
from bench.servers import servers
from bench.timing import Measured, Result, Work, in_turns
from tests.support.factories import (
    PASSWORD,
    Person,
    dispose,
    insert_accounts,
    make_app,
    make_person,
    new_name,
    numbered,
    services_of,
)
from tests.support.moments import now
from tests.support.processes import environment, run, worker
from tests.support.servers import PostgresServer

TIMES = int(os.environ.get("BENCH_TIMES", "5"))
DUE, HELD, ENTRIES, LINES = 400, 5_000, 20_000, 20_000


def add_due(services: Services, count: int, *, passwords: int = 5, held: bool = False) -> None:
    """Add accounts that are due, and let the database know how many there are."""
    # Held ones are older, so that a sweep meets them first.
    purge_at = now(services) - timedelta(hours=2 if held else 1)
    names = numbered(f"{new_name('due')}-", count)
    insert_accounts(services, names, purge_at=purge_at, passwords=passwords, held=held)
    with services.database.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))


def batches(app: APIFlask, _folder: Path) -> list[Measured]:
    """PURGE_BATCH_SIZE: the same backlog in batches of several sizes."""
    services = services_of(app)

    def sweep(size: int) -> Callable[[], object]:
        sized = replace(services, settings=replace(services.settings, purge_batch_size=size))

        def work() -> None:
            assert sized.sweep().purged == DUE

        return work

    def prepare() -> None:
        services.deliver(seconds=60)
        add_due(services, DUE)

    works = [Work("one account a transaction (reference)", sweep(1), prepare)]
    works += [Work(f"batches of {size}", sweep(size), prepare) for size in (20, 100, 500)]
    return [in_turns(f"purge {DUE} due accounts of 5 saved passwords", works, times=TIMES)]


def held(app: APIFlask, _folder: Path) -> list[Measured]:
    """Accounts under a hold at the head of the queue: they must not slow the rest."""
    services = services_of(app)

    def sweep() -> None:
        assert services.sweep().purged == DUE

    def nobody_held() -> None:
        with services.writing() as session:
            session.execute(delete(LegalHold))
        services.sweep()
        services.deliver(seconds=60)
        add_due(services, DUE)

    def many_held() -> None:
        nobody_held()
        add_due(services, HELD, passwords=0, held=True)

    works = [
        Work("nobody is held (reference)", sweep, nobody_held),
        Work(f"behind {HELD} older accounts that are held", sweep, many_held),
    ]
    return [in_turns(f"purge {DUE} due accounts", works, times=TIMES)]


def requests(app: APIFlask, _folder: Path) -> list[Measured]:
    """DELETE, which the web app waits for, beside a request that only reads."""
    client = FlaskClient(app, app.response_class)
    people: list[Person] = []

    def somebody() -> None:
        people.append(make_person(services_of(app), f"ann{uuid.uuid4().hex[:12]}"))

    def read() -> None:
        assert client.get("/api/profile/", headers=people[-1].auth).status_code == 200

    def deactivate() -> None:
        path = f"/api/profile/{people[-1].id}/delete/"
        assert client.delete(path, headers=people[-1].auth).status_code == 204

    works = [Work("GET profile (reference)", read, somebody), Work("DELETE", deactivate, somebody)]
    return [in_turns("one request, no network", works, times=10 * TIMES)]


def sign_in(app: APIFlask, _folder: Path) -> list[Measured]:
    """Signing in beside the hash alone; and whether the time tells who has an account."""
    dear = PasswordHasher()
    app.extensions["accountsvc"] = replace(services_of(app), hasher=dear)
    client = FlaskClient(app, app.response_class)
    person = make_person(services_of(app), f"ann{uuid.uuid4().hex[:12]}")
    stored = dear.hash(PASSWORD)

    def ask(email: str, password: str, status: int) -> Callable[[], object]:
        body = {"email": email, "password": password}

        def work() -> None:
            assert client.post("/api/sign-in/", json=body).status_code == status

        return work

    works = [
        Work("argon2id alone (reference)", lambda: dear.verify(stored, PASSWORD)),
        Work("the right password", ask(person.email, PASSWORD, 200)),
        Work("a wrong password", ask(person.email, "wrong horse battery", 401)),
        Work("an unknown e-mail address", ask("nobody@example.org", PASSWORD, 401)),
    ]
    return [in_turns("sign in", works, times=4 * TIMES)]


def export(app: APIFlask, _folder: Path) -> list[Measured]:
    """An export beside reading and decrypting alone, and its memory beside a small one's."""
    services = services_of(app)
    small, large = (
        make_person(services, f"{name}{uuid.uuid4().hex[:12]}") for name in ("few", "many")
    )
    with services.writing() as session:
        epoch = session.get_one(Account, large.id).epoch
        for number in range(ENTRIES):
            vault.save(
                session,
                services.keyring,
                large.id,
                epoch=epoch,
                entry=Entry(f"site {number}", "https://example.org", f"password {number}"),
            )

    def decrypt() -> None:
        after = found = 0
        while True:
            with services.reading() as session:
                account = session.get_one(Account, large.id)
                page = vault.entries(session, services.keyring, account, after=after, limit=500)
                ids = [one.id for one in page]
            if not ids:
                break
            found, after = found + len(ids), ids[-1]
        assert found >= ENTRIES

    def take(person: Person) -> int:
        with services.reading() as session:
            account = session.get_one(Account, person.id)
            now = database_now(session)
            session.expunge(account)
        pieces = services.export(account, epoch=account.epoch, address="192.0.2.1", now=now)
        return sum(len(piece) for piece in pieces)

    def memory(person: Person) -> float:
        take(small)
        tracemalloc.start()
        take(person)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak / 2**20

    works = [
        Work("read and decrypt them (reference)", decrypt),
        Work("export them as a ZIP", lambda: take(large)),
    ]
    return [
        in_turns(f"{ENTRIES} saved passwords", works, times=TIMES),
        Measured(
            "the most memory that an export takes",
            {
                "3 saved passwords (reference)": memory(small),
                f"{ENTRIES} saved passwords": memory(large),
            },
            "MiB",
        ),
    ]


def shutdown(app: APIFlask, folder: Path) -> list[Measured]:
    """SIGTERM to an idle worker, beside the time that Python takes to import it: its start."""
    url = services_of(app).database.engine.url.render_as_string(hide_password=False)
    env = environment(folder, url)

    def import_it() -> None:
        assert run("python", "-c", "import worker", env=env).returncode == 0

    running = []

    def start() -> None:
        running.append(worker(env))
        running[-1].wait_for("worker is ready")

    def stop() -> None:
        running[-1].stop()
        running[-1].kill()

    works = [
        Work("import the worker (reference)", import_it),
        Work("SIGTERM to the end of all its processes", stop, start),
    ]
    return [in_turns("the worker process", works, times=TIMES)]


def ledger(app: APIFlask, folder: Path) -> list[Measured]:
    """Reading the ledger with its seals checked, beside its JSON alone; and a look at the newest."""
    services = services_of(app)
    lines = [
        {"public_id": str(uuid.uuid4()), "purged_at": "2026-11-27T23:00:00+00:00", "files": n}
        for n in range(LINES)
    ]
    began = now(services) - timedelta(days=LINES)

    def filled(size: int, count: int) -> Ledger:
        made = ledger_from_url(f"file://{folder}/ledger-{size}", services.ledger.keys)
        batches = [
            Batch(uuid.uuid4(), lines[first : first + size], began + timedelta(days=first))
            for first in range(0, count, size)
        ]
        for batch, seal in zip(batches, made.seal_all(batches)[0], strict=True):
            made.append(batch, seal)
        return made

    def parse() -> None:
        assert len([json.loads(json.dumps(line)) for line in lines]) == LINES

    def read(made: Ledger, count: int) -> Callable[[], None]:
        def work() -> None:
            assert sum(1 for _ in made.read()) == count

        return work

    large, small = filled(500, LINES), filled(1, LINES // 10)
    works = [
        Work("their JSON alone (reference)", parse),
        Work("in batches of 500", read(large, LINES)),
        Work("a tenth of them in batches of one", read(small, LINES // 10)),
        Work("the five newest batches of one", small.newest),
    ]
    return [in_turns(f"read {LINES} lines of the ledger", works, times=TIMES)]


Bench = Callable[[APIFlask, Path], Sequence[Result]]
BY_DEFAULT: tuple[Bench, ...] = (
    batches,
    held,
    requests,
    sign_in,
    export,
    ledger,
    shutdown,
    attack,
)
BENCHES = {one.__name__: one for one in (*BY_DEFAULT, servers)}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"{', '.join(unknown)}: not known; there are: {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    # What was started is stopped however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    passed = 0
    with PostgresServer(fsync=True) as server, tempfile.TemporaryDirectory() as folder:
        for name in names or [one.__name__ for one in BY_DEFAULT]:
            # Each on a database and an application of its own: none inherits what another left.
            url = server.create_database(f"bench_{name}")
            upgrade(url)
            app = make_app(url, Path(folder) / name, LOG_LEVEL="ERROR", PURGE_BRAKE="off")
            for measured in BENCHES[name](app, Path(folder) / name):
                print(measured, end="\n\n", flush=True)
                passed += len(measured.faults)
            dispose(app)
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
