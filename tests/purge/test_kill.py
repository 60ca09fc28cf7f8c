"""SIGKILL at random moments while two thousand accounts are due.

``TEST_KILLS`` and ``TEST_KILL_SEED`` set how many, and which.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from accountsvc.adapters.avatarstore import new_key
from accountsvc.db.models import Effect, Receipt, SavedPassword
from accountsvc.outbox.queue import DELETE_FILE, LEDGER
from accountsvc.services import Services
from tests.support.factories import (
    dispose,
    insert_accounts,
    make_app,
    make_person,
    numbered,
    put_files,
    services_of,
)
from tests.support.moments import now
from tests.support.processes import environment, eventually, worker
from tests.support.state import belongings, files, public_ids

DUE, PASSWORDS = 2000, 10
# Each costs the start of a worker; ten are for `make faults`.
KILLS = int(os.environ.get("TEST_KILLS", "2"))


@pytest.mark.timeout(1800)
def test_a_worker_killed_at_random_moments_purges_everybody_once_and_nobody_else(
    sqlite_url: str, tmp_path: Path
) -> None:
    # given
    seed = int(os.environ.get("TEST_KILL_SEED", "20261207"))
    chance = random.Random(seed)
    app = make_app(sqlite_url, tmp_path)
    services = services_of(app)
    bystanders = [make_person(services_of(app), f"bystander{number}") for number in range(3)]
    before = [belongings(services_of(app), person) for person in bystanders]
    keys = [new_key() for _ in range(DUE)]
    names, purge_at = numbered("due", DUE), now(services) - timedelta(hours=1)
    key_of = dict(zip(names, keys, strict=True)).__getitem__
    due = public_ids(
        services,
        insert_accounts(services, names, purge_at=purge_at, passwords=PASSWORDS, avatar_key=key_of),
    )
    media = tmp_path / "instance" / "media"
    put_files(media, keys)
    assert files(services) >= set(keys)
    assert count_files(media) == DUE + len(bystanders)
    # Small batches, so that there are many moments; a mail is a matter of its own.
    env = environment(
        tmp_path, sqlite_url, SWEEP_INTERVAL="1s", PURGE_BATCH_SIZE="20", PURGE_BRAKE="off"
    )

    # when: killed after so many accounts, and a few milliseconds more
    moments = sorted(chance.sample(range(1, DUE - 100), KILLS))
    for moment in moments:
        with worker(env) as running:
            eventually(partial(reached, services, moment), pause=0.005)
            time.sleep(chance.uniform(0, 0.05))
            running.kill()
    assert 0 < receipts(services) < DUE, f"killed too late to matter, seed {seed}"

    # then: after a restart everybody is purged
    with worker(env) as running:
        eventually(lambda: receipts(services) == DUE)
        # What the killed ones had claimed is theirs for five minutes, which pass here in a moment.
        let_leases_run_out(services)
        eventually(lambda: owed(services) == 0)
        assert "Traceback" not in running.log
    with services.reading() as session:
        assert set(session.scalars(select(Receipt.public_id))) == due
        # Counted when they were destroyed: nothing was lost between, nothing counted twice.
        counts = select(Receipt.saved_passwords, Receipt.files).distinct()
        assert session.execute(counts).all() == [(PASSWORDS, 1)]
        left = session.scalar(select(func.count()).select_from(SavedPassword))
    assert left == 3 * len(bystanders)
    assert count_files(media) == len(bystanders)
    assert [belongings(services_of(app), person) for person in bystanders] == before
    assert {uuid.UUID(line["public_id"]) for line in services.ledger.read()} == due
    dispose(app)


def receipts(services: Services) -> int:
    with services.reading() as session:
        return session.scalar(select(func.count()).select_from(Receipt)) or 0


def reached(services: Services, count: int) -> bool:
    return receipts(services) >= count


def owed(services: Services) -> int:
    """Count files to delete and ledger lines to write."""
    with services.reading() as session:
        query = select(func.count()).where(Effect.kind.in_([DELETE_FILE, LEDGER]))
        return session.scalar(query) or 0


def let_leases_run_out(services: Services) -> None:
    with services.writing() as session:
        session.execute(update(Effect).values(deliver_after=Effect.created_at))


def count_files(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file())
