"""People who live on after a backup that is put back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from accountsvc.accounts import lifecycle
from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.models import LegalHold
from accountsvc.services import Services
from tests.support.backups import Backup
from tests.support.factories import (
    Person,
    deactivate,
    make_due,
    make_person,
    place_hold,
    reactivate,
    release_hold,
)
from tests.support.state import rows_of


@dataclass
class Story:
    """People by what they did: some before the backup, and some after it."""

    services: Services
    folder: Path
    people: dict[str, Person] = field(default_factory=dict)

    def new(self, name: str) -> Person:
        self.people[name] = make_person(self.services, name)
        return self.people[name]

    def id(self, name: str) -> int:
        return self.people[name].id

    def begin(self) -> Backup:
        """Live until the backup; return it."""
        make_due(self.services, self.new("early"))
        self.services.sweep()
        for name in ("leaver", "returner", "held", "released", "purged"):
            deactivate(self.services, self.new(name).id)
        self.new("bystander")
        place_hold(self.services, self.id("released"))
        self.settle()
        return Backup(self.services.settings.database_url, self.folder)

    def go_on(self) -> None:
        """Live from the backup until the loss."""
        services = self.services
        reactivate(services, self.id("returner"))
        place_hold(services, self.id("held"))
        (hold,) = rows_of(services, LegalHold, LegalHold.account_id == self.id("released"))
        release_hold(services, self.id("released"), hold.id)
        with services.writing() as session:
            lifecycle.due_now(session, self.id("purged"), by=OPERATOR_ACTOR)
        make_due(services, self.new("late"))
        self.settle()
        assert services.sweep().purged == 2
        self.settle()

    def settle(self) -> None:
        self.services.deliver(seconds=60)
