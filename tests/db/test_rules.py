"""What SQL says of an account is what Python says of its row, at every boundary."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select

from accountsvc.db import rules
from accountsvc.db.models import ACTIVE, DEACTIVATED, DUE, PENDING_FOR, Account
from accountsvc.services import Services
from tests.support.factories import deactivate, insert_accounts, make_account
from tests.support.moments import BOUNDARY, GRACE, MICROSECOND, NOW
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


@pytest.mark.parametrize("age", [PENDING_FOR, -PENDING_FOR], ids=["past", "ahead"])
@pytest.mark.parametrize("since", BOUNDARY)
def test_a_pending_address_is_closed_in_sql_exactly_if_the_row_says_so(
    services: Services, age: timedelta, since: timedelta
) -> None:
    asked_at = NOW - age - since
    asked = {"pending_email": "new@example.org", "pending_email_at": asked_at}
    insert_accounts(services, ["same epoch"], epoch=3, pending_epoch=3, **asked)
    insert_accounts(services, ["other epoch"], epoch=4, pending_epoch=3, **asked)
    insert_accounts(services, ["nothing"], epoch=3)

    with services.reading() as session:
        closed = set(session.scalars(select(Account.username).where(rules.has_closed_address(NOW))))
        accounts = session.scalars(select(Account)).all()
        said = {one.username: one.pending(NOW) for one in accounts}

    within = abs(age + since) < PENDING_FOR
    assert said == {
        "same epoch": "new@example.org" if within else None,
        "other epoch": None,
        "nothing": None,
    }
    assert closed == ({"other epoch"} if within else {"other epoch", "same epoch"})
    assert within is (abs(asked_at - NOW) <= PENDING_FOR - MICROSECOND)
