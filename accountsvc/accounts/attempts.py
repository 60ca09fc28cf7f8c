"""A try of a password: counted before it is made, forgiven if it was right, else audited."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from ..adapters.throttle import (
    AUDIT,
    PASSWORD,
    STAFF_CONFIRMATION,
    STAFF_CONFIRMATION_TOLD,
    STAFF_DEACTIVATION,
    STAFF_DEACTIVATION_TOLD,
    Throttle,
)
from ..db import audit, rows
from ..db.addresses import address_key
from ..db.audit import ANYBODY, Actor
from ..db.engine import Database, database_now
from ..db.models import OWNER, STAFF, Account
from ..errors import (
    AccountDeactivated,
    Busy,
    ConfirmationRequired,
    InvalidCredentials,
    InvalidInput,
    NotDeactivated,
    Throttled,
    WrongPassword,
)
from ..outbox import queue
from . import credentials
from .credentials import PasswordHasher

_Subject = Callable[[Session], uuid.UUID | None]


class Attempts:
    """Count and audit what somebody tried and was refused. Holds no state; safe in threads.

    All places that take a password share one count, so that none is an oracle for another. Every
    method owns its transactions and is called outside any other.
    """

    def __init__(
        self,
        database: Database,
        throttle: Throttle,
        hasher: PasswordHasher,
        *,
        count_unknown: Callable[[], None],
    ) -> None:
        self._database = database
        self._throttle = throttle
        self._hasher = hasher
        # It is called once for each password that is tried for an e-mail without an account.
        self._count_unknown = count_unknown

    @contextmanager
    def password(self, email: str, *, address: str, failure: str) -> Iterator[None]:
        """Count the try of a password of *email*, from *address*, that happens inside.

        Counted before the try, known e-mail or not; a right password is forgiven, also to the
        address. A wrong one is audited as the action *failure*; one for an unknown e-mail is
        counted in a metric, and takes the same time. A try at which no password was looked at
        (Busy) does not count. Raises Throttled, which is not audited.
        """

        def subject(session: Session) -> uuid.UUID | None:
            account = rows.find_by_email(session, email)
            return None if account is None else account.public_id

        with self._counted(email, address, failure, subject):
            yield

    def confirm(self, account: Account, password: str, *, address: str) -> None:
        """Check the password of *account* (detached), as :meth:`password` counts and audits it.

        Raises Throttled, WrongPassword, Busy.
        """
        with self._counted(
            account.email, address, "confirmation.failed", lambda _: account.public_id
        ):
            credentials.confirm_password(self._database, self._hasher, account.id, password)

    def clear(self, account: Account, *, address: str) -> None:
        """Forget the wrong passwords of *account*, to which *address* is known from now on.

        For whoever has just shown that it is theirs: somebody who goes on guessing for its e-mail
        cannot keep them out.
        """
        self._throttle.clear(PASSWORD, account=address_key(account.email), address=address)

    def denied(self, caller: Account, subject: uuid.UUID) -> None:
        """Audit that *caller* reached for the account *subject*, which is somebody else's.

        It is the caller's own where they reached for what is the staff's, and not for an account.
        Only so often an hour for the caller too: who reaches for every account in turn would
        otherwise fill the trail. The caller's own count is asked first, so that such a one does not
        use up the counts of the accounts.
        """
        if not self._may_audit(f"caller {caller.public_id}"):
            return
        # What their own account is the subject of counts once: with its other count, they could
        # keep wrong passwords for it out of the trail.
        if subject != caller.public_id and not self._may_audit(f"subject {subject}"):
            return
        by = Actor(STAFF if caller.is_staff else OWNER, caller.public_id)
        with self._database.writing() as session:
            now = database_now(session)
            audit.record(session, "access.denied", subject=subject, by=by, now=now)

    def deactivates(self, caller: Account, subject: uuid.UUID) -> None:
        """Count that *caller*, of the staff, deactivates the account *subject*.

        Raises Throttled; the first refusal of each hour is audited.
        """
        self._spend_as_staff(
            (STAFF_DEACTIVATION, STAFF_DEACTIVATION_TOLD),
            "deactivation.throttled",
            caller,
            subject,
        )

    @contextmanager
    def staff_confirmation(self, caller: Account, subject: uuid.UUID) -> Iterator[None]:
        """Count that *caller*, of the staff, confirms inside what is to happen to *subject*.

        Counted before it is looked at; a right one is forgiven, with all before it, and one that
        was not looked at (Busy, ConfirmationRequired) does not count. Raises Throttled; the first
        refusal of each window is audited.
        """
        kinds = (STAFF_CONFIRMATION, STAFF_CONFIRMATION_TOLD)
        self._spend_as_staff(kinds, "confirmation.throttled", caller, subject)
        try:
            yield
        except (Busy, ConfirmationRequired):
            for kind in kinds:
                self._throttle.take_back(kind, account=str(caller.public_id))
            raise
        for kind in kinds:
            self._throttle.forgive(kind, account=str(caller.public_id))

    def _spend_as_staff(
        self, kinds: tuple[str, str], action: str, caller: Account, subject: uuid.UUID
    ) -> None:
        """Count one try of both *kinds*, the second of which allows one more than the first.

        Whom only the first refuses is the first to be refused: that is audited, and what follows in
        the same window is not, or a program of the staff's could fill the trail.
        """
        refusal = self._refusal(kinds[0], caller)
        told = self._refusal(kinds[1], caller) is not None
        if refusal is None:
            return
        if not told:
            with self._database.writing() as session:
                audit.record(
                    session,
                    action,
                    subject=subject,
                    by=Actor(STAFF, caller.public_id),
                    now=database_now(session),
                )
        raise refusal

    def _refusal(self, kind: str, caller: Account) -> Throttled | None:
        try:
            self._throttle.spend(kind, account=str(caller.public_id))
        except Throttled as exc:
            return exc
        return None

    @contextmanager
    def _counted(self, email: str, address: str, failure: str, subject: _Subject) -> Iterator[None]:
        # By the mailbox, and not by the key that the row has: an account that kept its key in the
        # collision of two would otherwise have one count where its address is typed, and another
        # where its row is known.
        email_key = address_key(email)
        self._throttle.spend(PASSWORD, account=email_key, address=address)
        try:
            yield
        except (InvalidCredentials, WrongPassword):
            self._audit(failure, subject)
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

    def _audit(self, action: str, subject: _Subject) -> None:
        """Audit that somebody was refused, so often an hour for an account, whatever was tried.

        An unknown e-mail is counted and leaves no row. Each refusal runs the same number of
        statements and one COMMIT of a written row, whether that stays or not: the time of a COMMIT
        would otherwise tell which e-mails have an account (ASVS 5.0, 6.3.8).
        """
        with self._database.reading() as session:
            public_id = subject(session)
        if public_id is None:
            self._count_unknown()
        # The nil UUID is no account's: its count is spent for unknown e-mails, to take as long.
        may_audit = self._may_audit(f"subject {public_id or uuid.UUID(int=0)}")
        with self._database.writing() as session:
            if public_id is not None and may_audit:
                now = database_now(session)
                audit.record(session, action, subject=public_id, by=ANYBODY, now=now)
            else:
                queue.write_nothing(session)

    def _may_audit(self, counted_as: str) -> bool:
        """Count one event of this account, as subject or as caller; say whether it is written."""
        try:
            self._throttle.spend(AUDIT, account=counted_as)
        except Throttled:
            return False
        return True
