"""Nearly everybody falls due at once, by a statement that nobody meant, and two workers sweep."""

from __future__ import annotations

import threading
from datetime import timedelta

from sqlalchemy import func, select

from accountsvc.db.models import Receipt
from accountsvc.services import Services
from tests.support.factories import insert_accounts, numbered, run_sql, witness
from tests.support.moments import now

DUE, OTHERS = 3000, 200


def first_hour(services: Services) -> int:
    """Let ``DUE`` people fall due beside ``OTHERS`` who are active; return how many are purged.

    Two sweeps run beside each other, several times one after the other.
    """
    insert_accounts(services, numbered("other", OTHERS))
    week = timedelta(days=7)
    insert_accounts(services, numbered("waiting", DUE), purge_at=now(services) + week)
    run_sql(services, "UPDATE accounts SET purge_at = deactivated_at")
    witness(services)

    for _ in range(3):
        sweeps = [threading.Thread(target=services.sweep, kwargs={"seconds": 60}) for _ in range(2)]
        for sweep in sweeps:
            sweep.start()
        for sweep in sweeps:
            sweep.join()

    with services.reading() as session:
        return session.scalar(select(func.count()).select_from(Receipt)) or 0
