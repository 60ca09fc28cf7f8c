"""Nearly everybody is due at once, as by a clock that is ahead, and two workers sweep."""

from __future__ import annotations

import threading
from datetime import timedelta

from sqlalchemy import func, select

from accountsvc.db.models import Receipt
from accountsvc.services import Services
from tests.support.factories import insert_accounts, numbered
from tests.support.moments import now

DUE, OTHERS = 3000, 200


def first_hour(services: Services, due: int = DUE) -> int:
    """Let so many be *due* beside ``OTHERS`` who are active; return how many are purged.

    Two sweeps run beside each other, and then two more.
    """
    insert_accounts(services, numbered("other", OTHERS))
    # To the witness a clock that is ten days ahead looks like this: each date is a promised one.
    three_days_ago = now(services) - timedelta(days=3)
    insert_accounts(services, numbered("waiting", due), purge_at=three_days_ago)

    for _ in range(2):
        sweeps = [threading.Thread(target=services.sweep, kwargs={"seconds": 60}) for _ in range(2)]
        for sweep in sweeps:
            sweep.start()
        for sweep in sweeps:
            sweep.join()

    with services.reading() as session:
        return session.scalar(select(func.count()).select_from(Receipt)) or 0
