"""The service as its outbox sees it, with a clock that can be moved and a real SMTP server."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from apiflask import APIFlask
from sqlalchemy.orm import Session

from accountsvc.accounts import lifecycle
from accountsvc.db.audit import Actor
from accountsvc.db.engine import database_now
from accountsvc.db.models import Account
from accountsvc.outbox import notices, queue
from accountsvc.outbox.queue import DeliveryResult
from tests.support.addresses import change_address
from tests.support.factories import (
    Person,
    deactivate,
    deliver_after,
    make_promise,
    services_of,
)
from tests.support.smtp import Inbox, text_of
from tests.support.sweeps import sweep

DAY = timedelta(days=1)
GRACE = 14 * DAY
SOON = timedelta(minutes=1)
REMINDERS = (7 * DAY, DAY)
OF_THE_ADDRESS = (notices.ADDRESS_ASKED, notices.CONFIRM_ADDRESS, notices.ADDRESS_CHANGED)


@dataclass
class Post:
    """The service as its outbox sees it: ``later`` moves its clock on, and everything that is due is done."""

    app: APIFlask
    inbox: Inbox
    ahead: timedelta = field(default_factory=timedelta)

    def clock(self, session: Session) -> datetime:
        return database_now(session) + self.ahead

    def later(
        self, pause: timedelta = SOON, *, kinds: tuple[str, ...] | None = None
    ) -> DeliveryResult:
        self.ahead += pause
        return deliver_after(services_of(self.app), self.ahead, kinds=kinds)

    def new(self) -> list[tuple[str, str]]:
        """Return recipient and subject of what has come since the last call."""
        found = [(str(message["To"]), str(message["Subject"])) for message in self.inbox.messages]
        self.inbox.messages.clear()
        return found

    def text(self) -> str:
        """Return the text of the last mail, in one line."""
        return " ".join(text_of(self.inbox.messages[-1]).split())

    # What is done to accounts

    def leave(self, person: Person, *, by: str = "owner") -> Account:
        """Deactivate *person* now, by the moved clock, and return the row."""
        return deactivate(
            services_of(self.app),
            person.id,
            by=by,
            grace=GRACE,
            reminders=REMINDERS,
            ahead=self.ahead,
        )

    def come_back(self, person: Person) -> None:
        with services_of(self.app).writing() as session:
            lifecycle.reactivate(
                session,
                person.id,
                clock=self.clock,
                promise=make_promise(grace=GRACE),
                by=Actor("owner", person.public_id),
            )

    def change_address(self, person: Person, address: str) -> None:
        change_address(services_of(self.app), person.id, address, clock=self.clock, grace=GRACE)
        with services_of(self.app).writing() as session:
            # What that mails is not looked at here.
            queue.forget(session, subject=person.public_id, kinds=OF_THE_ADDRESS)

    def sweep(self) -> int:
        return sweep(services_of(self.app), self.clock).purged
