"""`audit verify` and `audit prune`: words, exit codes, and JSON alone on stdout."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from apiflask import APIFlask
from sqlalchemy import select

from accountsvc.db import audit
from accountsvc.db.audit import SYSTEM_ACTOR
from accountsvc.db.models import AuditEvent, Seal
from accountsvc.purge.sealer import Sealer, link_of
from accountsvc.services import Services
from tests.cli.conftest import Run
from tests.support.factories import insert_accounts, run_sql, services_of
from tests.support.moments import at

OLD = datetime(2020, 1, 31, 12, tzinfo=UTC)


def seal_old(services: Services, *moments: datetime) -> None:
    """Write and seal an event of nobody at each of *moments*, beside somebody who has an account."""
    insert_accounts(services, ["bystander"])
    for moment in moments:
        with services.writing() as session:
            audit.record(session, "account.updated", subject=None, by=SYSTEM_ACTOR, now=moment)
        Sealer(services.database, services.ledger, at(moment)).run(seconds=5, at_once=True)


def test_a_whole_trail_is_said_in_counts_and_ends_with_0(app: APIFlask, run: Run) -> None:
    services = services_of(app)
    seal_old(services, OLD)
    with services.writing() as session:
        audit.record(session, "account.updated", subject=None, by=SYSTEM_ACTOR, now=OLD)

    text, document = run("audit", "verify"), run("audit", "verify", "--json")

    assert (text.exit_code, document.exit_code) == (0, 0)
    assert text.stdout.splitlines() == [
        "1 entry in 1 seal.",
        "Not sealed yet, since 2020-01-31T12:00:00Z: 1 event and 0 facts.",
    ]
    shown = json.loads(document.stdout)
    assert (shown["is_whole"], shown["seals"], shown["entries"], shown["found"]) == (True, 1, 1, 0)
    with services.reading() as session:
        assert shown["last"] == link_of(session.get_one(Seal, 1)).document()


def test_what_was_changed_is_named_with_its_seal_and_ends_with_1(app: APIFlask, run: Run) -> None:
    services = services_of(app)
    seal_old(services, OLD)
    with services.reading() as session:
        number = session.scalars(select(AuditEvent.id)).one()
    if services.settings.is_sqlite:
        run_sql(services, "DROP TRIGGER audit_events_refuse_update")
    else:
        run_sql(services, "ALTER TABLE audit_events DISABLE TRIGGER ALL")
    run_sql(services, "UPDATE audit_events SET actor_kind = 'staff'")

    text, document = run("audit", "verify"), run("audit", "verify", "--json")

    assert (text.exit_code, document.exit_code) == (1, 1)
    assert text.stderr == f"Event {number} (seal 1) was changed.\n"
    (finding,) = json.loads(document.stdout)["findings"]
    assert finding == {"why": "was changed", "kind": "event", "key": str(number), "seal": 1}


def test_a_seal_that_the_ledger_has_lost_is_written_again_by_a_rebuild(
    app: APIFlask, run: Run
) -> None:
    services = services_of(app)
    seal_old(services, OLD, OLD + timedelta(days=1), OLD + timedelta(days=2))
    store = services.ledger.store
    newest, middle, _ = names = list(store.names("seals/"))
    whole = store.get(newest)
    store.remove(middle)
    store.put(newest, b"damaged\n")

    before = run("ledger", "verify", "--json")
    plan, done = run("ledger", "rebuild", "--dry-run"), run("ledger", "rebuild", "--yes")
    after = run("ledger", "verify", "--json")

    assert (before.exit_code, after.exit_code) == (1, 0)
    assert json.loads(before.stdout)["lost_seals"] == [2, 3]
    assert plan.stdout == "2 seals of the audit trail are lost; the database has them.\n"
    assert done.stdout.endswith("Written: 2 objects.\n")
    assert list(store.names("seals/")) == names
    assert store.get(newest) == whole
    assert run("audit", "verify").exit_code == 0


def test_pruning_shows_takes_and_says_what_it_took(app: APIFlask, run: Run) -> None:
    services = services_of(app)
    seal_old(services, OLD)

    shown = run("audit", "prune", "--dry-run")
    refused = run("audit", "prune")
    done, again = run("audit", "prune", "--yes", "--json"), run("audit", "prune")

    assert shown.stdout.splitlines() == [
        "MONTH    SEALS  EVENTS  KEPT",
        "2020-01      1       1  –",
    ]
    assert refused.exit_code == 2
    assert json.loads(done.stdout) == {
        "dry_run": False,
        "months": [{"month": "2020-01", "seals": 1, "events": 1, "witnesses": 0}],
        "taken": 1,
    }
    assert again.stdout == "Nothing is old enough.\n"
    assert run("audit", "verify").exit_code == 0
    with services.reading() as session:
        assert session.scalars(select(AuditEvent.action)).all() == ["audit.pruned"]
        assert session.scalars(select(Seal.pruned_at)).one() is not None
