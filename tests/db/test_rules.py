"""What SQL says of an account is what Python says of its row, at every boundary."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select

from accountsvc.db import rules
from accountsvc.db.models import ACTIVE, DEACTIVATED, DUE, Account
from accountsvc.services import Services
from tests.support.factories import deactivate, make_account
from tests.support.moments import BOUNDARY, GRACE, NOW
from tests.support.state import get_account


@pytest.mark.parametrize("since", BOUNDARY)
def test_the_rules_in_sql_agree_with_the_state_of_the_row(
    services: Services, since: timedelta
) -> None:
    active, away = make_account(services, "ann", now=NOW), make_account(services, "bob", now=NOW)
    deactivate(services, away.id, now=NOW - GRACE)
    purge_at = get_account(services, away.id).purge_at
    assert purge_at is not None
    now = purge_at + since

    with services.reading() as session:
        found = {
            state: set(session.scalars(select(Account.id).where(rule)))
            for state, rule in (
                (ACTIVE, rules.is_active()),
                (DEACTIVATED, rules.is_in_grace(now)),
                (DUE, rules.is_due(now)),
            )
        }

    assert found == {
        state: {
            account.id
            for account in (get_account(services, active.id), get_account(services, away.id))
            if account.state(now) == state
        }
        for state in (ACTIVE, DEACTIVATED, DUE)
    }
    assert len(found[DUE]) == (0 if since < timedelta() else 1)
