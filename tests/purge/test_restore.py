"""Who is back after a restore, and whether all that was purged is on record."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from apiflask import APIFlask

from accountsvc.adapters.ledger import Ledger
from accountsvc.adapters.ledgerseal import Opened, Untrusted
from accountsvc.purge.restore import Restore
from accountsvc.purge.stops import DatabaseBehind, LedgerBehind, LedgerUnreadable
from accountsvc.services import Services
from tests.support.factories import Person, make_due, make_person, run_sql, services_of
from tests.support.state import everything


@pytest.fixture
def ann(app: APIFlask) -> Person:
    """Somebody who is due."""
    person = make_person(services_of(app), "ann")
    make_due(services_of(app), person)
    return person


def bring_back(app: APIFlask, person: Person) -> int:
    """Give the public id of *person*, who was purged, to another account, as a restore does."""
    back = make_person(services_of(app), "back")
    sqlite = services_of(app).settings.is_sqlite
    public_id = person.public_id.hex if sqlite else str(person.public_id)
    run_sql(
        services_of(app),
        "UPDATE accounts SET public_id = :id, joined_at = :joined WHERE id = :back",
        id=public_id,
        joined="2020-01-01 00:00:00.000000",
        back=back.id,
    )
    return back.id


def test_nothing_is_refused_until_somebody_is_back(app: APIFlask, ann: Person) -> None:
    restore = services_of(app).restore
    services_of(app).sweep()
    restore.refuse_after_restore()
    assert services_of(app).replay.plan().purges == []

    account_id = bring_back(app, ann)
    before = everything(services_of(app))

    with pytest.raises(DatabaseBehind):
        restore.refuse_after_restore()
    assert [planned.account_id for planned in services_of(app).replay.plan().purges] == [account_id]
    assert restore.verify().back == [account_id]
    assert everything(services_of(app)) == before


def test_a_ledger_that_cannot_be_read_refuses_as_one_that_is_behind(
    app: APIFlask, ann: Person
) -> None:
    services_of(app).sweep()
    ledger = services_of(app).settings.instance_path / "ledger"
    ledger.rename(ledger.with_name("elsewhere"))
    ledger.touch()

    with pytest.raises(LedgerUnreadable):
        services_of(app).restore.refuse_after_restore()


def test_a_line_that_is_owed_is_not_missing(app: APIFlask, ann: Person) -> None:
    services = services_of(app)
    # A file in the place of a folder of the ledger: nothing can be written until it is gone.
    ledger = services.settings.instance_path / "ledger" / "sealed"
    ledger.parent.mkdir(exist_ok=True)
    ledger.touch()
    with pytest.raises(LedgerBehind):
        services.sweep()
    ledger.unlink()

    found = services.restore.verify()

    assert (found.lines, found.receipts, found.owed) == (0, 1, 1)
    assert (found.back, found.missing) == ([], [])


class BusyLedger(Ledger):
    """A ledger during whose reading somebody is purged."""

    def __init__(self, services: Services) -> None:
        super().__init__(services.ledger.store, services.ledger.keys)
        self.services = services

    def scan(self) -> Iterator[Opened | Untrusted]:
        found = list(super().scan())
        self.services.sweep()
        yield from found


def test_a_purge_while_the_ledger_is_read_is_no_disagreement(app: APIFlask, ann: Person) -> None:
    services = services_of(app)
    services.sweep()
    bob = make_person(services, "bob")
    make_due(services, bob)

    found = Restore(services.database, BusyLedger(services)).verify()

    assert (found.back, found.missing) == ([], [])
    assert services.restore.verify().lines == 2
