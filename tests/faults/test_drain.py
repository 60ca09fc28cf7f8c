"""Several workers and beats at once: the work is shared, and everybody is purged once.

``TEST_DRAIN`` sets how many accounts are due.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from accountsvc.db.models import Account, AuditEvent, LegalHold, Receipt, SavedPassword
from accountsvc.db.schema import upgrade
from accountsvc.services import Services
from tests.support.deploy import compose_command
from tests.support.factories import (
    dispose,
    insert_accounts,
    make_app,
    make_person,
    numbered,
    services_of,
)
from tests.support.moments import now
from tests.support.processes import Running, environment, eventually
from tests.support.servers import PostgresServer, ValkeyServer
from tests.support.state import belongings, public_ids

DUE = int(os.environ.get("TEST_DRAIN", "20000"))
WORKERS, BEATS, HELD = 4, 2, 50


@pytest.mark.timeout(1800)
def test_four_workers_and_two_beats_share_a_backlog(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    # given: everybody is in the grace period until all workers are there
    with PostgresServer() as server, ValkeyServer() as redis, ExitStack() as stack:
        url = server.create_database("drain")
        upgrade(url)
        app = make_app(url, tmp_path)
        stack.callback(dispose, app)
        services = services_of(app)
        bystander = make_person(services_of(app), "bob")
        before = belongings(services_of(app), bystander)
        hour = timedelta(hours=1)
        insert_accounts(
            services,
            numbered("held", HELD),
            purge_at=now(services) - 2 * hour,
            passwords=1,
            held=True,
        )
        names, purge_at = numbered("due", DUE), now(services) - hour
        due = public_ids(services, insert_accounts(services, names, purge_at=purge_at, passwords=2))
        with services.writing() as session:
            session.execute(
                update(Account)
                .where(Account.public_id.in_(due))
                .values(purge_at=now(services_of(app)) + timedelta(days=30))
            )
        # Batches and slices are small, so that there is something to share.
        env = environment(
            tmp_path,
            url,
            REDIS_URL=redis.url,
            SWEEP_INTERVAL="1s",
            PURGE_BATCH_SIZE="50",
            PURGE_BRAKE="off",
        )
        workers = [
            stack.enter_context(Running(*compose_command("worker"), env=env))
            for _ in range(WORKERS)
        ]
        for worker in workers:
            worker.wait_for("worker is ready")
        for _ in range(BEATS):
            stack.enter_context(Running(*compose_command("beat"), env=env))

        # when
        with services.writing() as session:
            session.execute(
                update(Account).where(Account.public_id.in_(due)).values(purge_at=purge_at)
            )

        # then
        def receipts() -> int:
            with services.reading() as session:
                return session.scalar(select(func.count()).select_from(Receipt)) or 0

        eventually(lambda: receipts() >= DUE, 1200, pause=0.5)
        purged = [swept(worker) for worker in workers]
        record_property("table", f"{DUE} due accounts, purged by {WORKERS} workers: {purged}")
        eventually(lambda: sum(swept(worker) for worker in workers) == DUE)
        assert min(swept(worker) for worker in workers) >= DUE / 10
        with services.reading() as session:
            assert set(session.scalars(select(Receipt.public_id))) == due
            events = Counter(
                session.scalars(
                    select(AuditEvent.subject).where(AuditEvent.action == "account.purged")
                )
            )
            assert events == Counter(due)
            assert session.scalar(select(func.count()).select_from(LegalHold)) == HELD
            assert session.scalar(select(func.count()).select_from(SavedPassword)) == HELD + 3
        eventually(lambda: ledger_lines(services) == Counter(due), pause=1)
        assert belongings(services_of(app), bystander) == before
        for worker in workers:
            worker.stop()
            assert "Traceback" not in worker.log
        assert "deadlock" not in server.log


def swept(worker: Running) -> int:
    """Return how many accounts *worker* says it has purged."""
    whole = (line for line in worker.log.splitlines() if line[:1] == "{" and line[-1:] == "}")
    return sum(one["purged"] for one in map(json.loads, whole) if one["event"] == "swept")


def ledger_lines(services: Services) -> Counter[uuid.UUID]:
    return Counter(uuid.UUID(str(line["public_id"])) for line in services.ledger.read())
