"""Thousands fall due at once: only so many go in the first hour, whatever has made them due."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient
from sqlalchemy import func, select

from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.models import Account, Receipt
from accountsvc.purge import brake
from accountsvc.services import Services
from tests.conftest import NewApp
from tests.faults.mass import DUE, first_hour
from tests.support.factories import (
    access_token,
    bearer,
    insert_account,
    new_name,
    run_sql,
    services_of,
    witness,
)
from tests.support.moments import now
from tests.support.state import events, read_account


@pytest.mark.timeout(300)
def test_thousands_that_fall_due_at_once_wait_for_the_brake(new_app: NewApp) -> None:
    app = new_app()
    services, client = services_of(app), app.test_client()

    purged = first_hour(services)

    assert purged == brake.LEAST
    assert count(services, Account) == DUE + 200 - purged
    assert len(events(services, "purge.brake_held")) == 1
    status = client.get("/statusz").json
    assert status is not None
    assert status["status"] == "degraded"
    assert (status["sweep"]["braked"], status["sweep"]["late"]) == (True, False)
    assert status["backlog"]["braked"] == DUE - purged
    assert f"{DUE - purged} wait" in status["sweep"]["brake"]
    assert "accountsvc sweeps allow --up-to N --reason" in status["sweep"]["brake"]
    metrics = client.get("/metrics").text
    assert "accountsvc_brake_holds 1.0" in metrics
    assert f"accountsvc_brake_waiting {float(DUE - purged)}" in metrics

    # Somebody has looked, and it was right: the rest goes at once.
    with services.writing() as session:
        brake.allow(session, DUE, reason="it was right", by=OPERATOR_ACTOR)
    while count(services, Account) > 200:
        services.sweep(seconds=60)
    services.sweep()
    assert len(events(services, "purge.brake_let_go")) == 1
    assert count(services, Receipt) == DUE


def test_a_mass_deactivation_through_the_api_waits_for_the_brake(new_app: NewApp) -> None:
    app = new_app(GRACE_PERIOD="0s", HOLD_RELEASE_DELAY="0s")
    services, client = services_of(app), app.test_client()
    accounts = [
        insert_account(services, new_name("leaver"), joined_at=now(services)) for _ in range(55)
    ]

    for account in accounts:
        assert leave(client, services, account) == 204
    run_sql(services, "UPDATE accounts SET purge_at = deactivated_at")
    witness(services)
    services.sweep()

    gone = [one.id for one in accounts if read_account(services, one.id) is None]
    assert gone == [one.id for one in accounts[: brake.LEAST]]


def leave(client: FlaskClient, services: Services, account: Account) -> int:
    headers = bearer(access_token(services, account))
    return client.delete(f"/api/profile/{account.id}/delete/", headers=headers).status_code


def count(services: Services, model: type[Account] | type[Receipt]) -> int:
    with services.reading() as session:
        return session.scalar(select(func.count()).select_from(model)) or 0
