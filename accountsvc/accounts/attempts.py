"""A try of a password: counted before it is made, forgiven if it was right, else audited."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from ..adapters.throttle import AUDIT, PASSWORD, Throttle
from ..db import audit, rows
from ..db.audit import ANYBODY, Actor
from ..db.engine import Database, database_now
from ..db.models import OWNER, STAFF, Account
from ..db.text import unique_key
from ..errors import (
    AccountDeactivated,
    Busy,
    InvalidCredentials,
    InvalidInput,
    NotDeactivated,
    Throttled,
    WrongPassword,
)
from . import credentials
from .credentials import PasswordHasher

_Subject = Callable[[Session], uuid.UUID | None]


class Attempts:
    """Count and audit what somebody tried and was refused. Holds no state; safe in threads.

    All places that take a password share one count, so that none is an oracle for another. Every
    method owns its transactions and is called outside any other.
    """

    def __init__(self, database: Database, throttle: Throttle, hasher: PasswordHasher) -> None:
        self._database = database
        self._throttle = throttle
        self._hasher = hasher

    @contextmanager
    def password(self, email: str, *, address: str, failure: str) -> Iterator[None]:
        """Count the try of a password of *email*, from *address*, that happens inside.

        Counted before the try, known e-mail or not; a right password is forgiven, also to the
        address. A wrong one is audited as the action *failure*, for an unknown e-mail too, without
        a subject, so that both take the same time. A try at which no password was looked at (Busy)
        does not count. Raises Throttled, which is not audited.
        """

        def subject(session: Session) -> uuid.UUID | None:
            account = rows.find_by_email(session, email)
            return None if account is None else account.public_id

        with self._counted(unique_key(email), address, failure, subject):
            yield

    def confirm(self, account: Account, password: str, *, address: str) -> None:
        """Check the password of *account* (detached), as :meth:`password` counts and audits it.

        Raises Throttled, WrongPassword, Busy.
        """
        with self._counted(
            account.email_key, address, "confirmation.failed", lambda _: account.public_id
        ):
            credentials.confirm_password(self._database, self._hasher, account.id, password)

    def denied(self, caller: Account, subject: uuid.UUID) -> None:
        """Audit that *caller* reached for the account *subject*, which is somebody else's."""
        self._audit(
            "access.denied",
            counted_as=str(caller.public_id),
            by=Actor(STAFF if caller.is_staff else OWNER, caller.public_id),
            subject=lambda _: subject,
        )

    @contextmanager
    def _counted(
        self, email_key: str, address: str, failure: str, subject: _Subject
    ) -> Iterator[None]:
        self._throttle.spend(PASSWORD, account=email_key, address=address)
        try:
            yield
        except (InvalidCredentials, WrongPassword):
            self._audit(failure, counted_as=email_key, by=ANYBODY, subject=subject)
            raise
        except Busy:
            self._throttle.take_back(PASSWORD, account=email_key, address=address)
            raise
        except (AccountDeactivated, InvalidInput, NotDeactivated):
            # These three are raised only to whoever knows the password: a count that stayed would
            # lock owners out of their own account by their right password.
            self._throttle.forgive(PASSWORD, account=email_key, address=address)
            raise
        self._throttle.forgive(PASSWORD, account=email_key, address=address)

    def _audit(self, action: str, *, counted_as: str, by: Actor, subject: _Subject) -> None:
        """Audit a refused attempt, but only so often an hour, so that nobody can fill the trail."""
        try:
            self._throttle.spend(AUDIT, account=f"{action} {counted_as}")
        except Throttled:
            return
        with self._database.writing() as session:
            audit.record(
                session, action, subject=subject(session), by=by, now=database_now(session)
            )
