"""A script sets the dates of thousands: they stay, and those who were promised a purge go."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from apiflask import APIFlask
from sqlalchemy import func, select, update

from accountsvc.db.models import Account, Receipt
from accountsvc.services import Services
from tests.support.factories import dispose, insert_accounts, make_app, numbered, services_of
from tests.support.moments import now
from tests.support.state import public_ids

MISTAKEN, PROMISED = 3000, 200


@pytest.fixture
def crowd(database_url: str, tmp_path: Path) -> Iterator[APIFlask]:
    # The witness alone is asked here: with the brake, whoever it keeps would be kept by two.
    app = make_app(database_url, tmp_path, PURGE_BATCH_SIZE="50", PURGE_BRAKE="off")
    yield app
    dispose(app)


def receipts(services: Services) -> set[object]:
    with services.reading() as session:
        return set(session.scalars(select(Receipt.public_id)))


def left(services: Services) -> int:
    with services.reading() as session:
        return session.scalar(select(func.count()).select_from(Account)) or 0


def set_dates(services: Services, ids: list[int], **dates: object) -> None:
    with services.writing() as session:
        session.execute(update(Account).where(Account.id.between(ids[0], ids[-1])).values(dates))


def test_of_3200_who_wait_the_3000_whose_date_a_script_set_stay_and_the_200_go(
    crowd: APIFlask,
) -> None:
    services = services_of(crowd)
    moment = now(services)
    hour, week = timedelta(hours=1), timedelta(days=7)
    mistaken = insert_accounts(services, numbered("mistaken", MISTAKEN), purge_at=moment + week)
    promised = insert_accounts(services, numbered("promised", PROMISED), purge_at=moment - hour)
    due = public_ids(services, promised)
    # At the head of the queue, so that they would fill every batch.
    set_dates(services, mistaken, purge_at=moment - 2 * hour)

    purged = [services.sweep().purged for _ in range(2)]
    by_hand = services.purge_now.purge_due(services.purge_now.plan_due())

    assert purged == [PROMISED, 0]
    assert by_hand.purged == []
    assert receipts(services) == due
    assert left(services) == MISTAKEN


def test_of_active_people_whom_a_script_deactivates_nobody_goes(
    crowd: APIFlask,
) -> None:
    services = services_of(crowd)
    moment = now(services)
    active = insert_accounts(services, numbered("active", MISTAKEN // 10))
    promised = insert_accounts(services, numbered("promised", PROMISED // 10), purge_at=moment)
    due = public_ids(services, promised)
    set_dates(
        services,
        active,
        deactivated_at=moment - timedelta(days=20),
        purge_at=moment - timedelta(days=6),
        deactivated_by="owner",
    )

    services.sweep()

    assert receipts(services) == due
    assert left(services) == MISTAKEN // 10
