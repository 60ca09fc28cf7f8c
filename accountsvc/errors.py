"""The tree of exceptions. No HTTP in here: ``api/http/errors.py`` maps each leaf to a status.

::

    AccountError
    ├── InvalidInput              fields: what is wrong with each
    ├── InvalidImage
    ├── ImageTooLarge
    ├── NotAuthenticated          no credentials were given
    ├── TokenNotValid             malformed, expired, revoked, of another type, or of nobody
    ├── InvalidCredentials        e-mail or password is wrong (which one is not said)
    ├── WrongPassword             a confirmation did not match
    ├── ConfirmationRequired      a password, or a token fresh from one, is needed
    ├── NotAuthorized             known caller, not allowed
    ├── AccountNotFound
    ├── PasswordNotFound          a saved password
    ├── HoldNotFound
    ├── ReceiptNotFound           nobody was purged under this number
    ├── VaultFull                 no room for another saved password, or for a longer one
    ├── AccountDeactivated        the right password of a deactivated account
    ├── ReactivationForbidden     staff or an operator deactivated it
    ├── LastStaff
    ├── NotDeactivated
    ├── GraceOver
    ├── LegalHold
    ├── Unexplained               deactivated, but nobody has promised the purge
    ├── RecentChange              too soon after a change, or an act of the staff (`settling`)
    ├── VersionMismatch           If-Match does not name the current version
    ├── VersionRequired           If-Match is missing
    ├── InvalidSchedule           a purge time that may not be promised
    ├── Throttled                 retry_after: whole seconds; limit: which limit was met
    └── Unavailable               a part that the service needs does not answer
        ├── DatabaseUnavailable
        ├── StoreUnavailable
        ├── MailUnavailable
        ├── VaultKeyMissing       no key in VAULT_KEYS opens what is saved
        └── Busy                  too many passwords wait to be hashed, or images to be decoded

Ids are kept as attributes, causes are chained. Messages carry no personal data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from . import bounds

# The limits at which Busy is said. The last one is no limit of requests but a fault of the
# installation, for which an operator is woken up.
BUSY_PASSWORDS = "busy passwords"
BUSY_IMAGES = "busy images"
BUSY_LISTS = "busy lists"
BUSY_FILES = "busy files"
NO_IMAGE_WORKER = "no image worker"

# The server puts a status under this name into the environment of what is no request (PEP 3333), so
# that the application refuses it as it refuses everything else.
UNREADABLE = "accountsvc.unreadable"


class AccountError(Exception):
    """The base of everything this service raises on purpose; ``str()`` says what to do."""

    message = "The request could not be carried out."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.message)


class InvalidInput(AccountError):
    """Some fields are bad; ``fields`` has at least one sentence for each."""

    message = "Some fields are not valid."

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.fields = {name: list(sentences) for name, sentences in fields.items()}


class InvalidImage(AccountError):
    message = "Upload a PNG, JPEG, WebP or GIF image."


class ImageTooLarge(AccountError):
    message = "The image is too large: at most 5 MiB."


class NotAuthenticated(AccountError):
    message = "Authentication credentials were not provided."


class TokenNotValid(AccountError):
    message = "Given token not valid for any token type. Sign in again."


class InvalidCredentials(AccountError):
    message = "Invalid email or password"


class WrongPassword(AccountError):
    message = "Invalid password"


class ConfirmationRequired(AccountError):
    """A fresh token is enough up to an age of ``max_age`` seconds (RFC 9470); None: never."""

    message = "Password confirmation required."

    def __init__(self, max_age: int | None = None) -> None:
        super().__init__()
        self.max_age = max_age


class NotAuthorized(AccountError):
    message = "Not authorized"


class AccountNotFound(AccountError):
    message = "Not found."


class PasswordNotFound(AccountError):
    message = "Password not found."


class HoldNotFound(AccountError):
    message = "No open hold with this id on this account."


class ReceiptNotFound(AccountError):
    message = (
        "No receipt has this number. Check it, or ask again after the time for which the deletion "
        "was promised."
    )


class VaultFull(AccountError):
    """There is no room for another entry, or for so many bytes; the sentence says which."""

    ENTRIES = f"it holds {bounds.VAULT_ENTRIES:,} entries, the most that it takes"
    BYTES = f"with this, its entries would have more than {bounds.VAULT_BYTES // 2**20} MiB"

    def __init__(self, why: str = ENTRIES) -> None:
        super().__init__(
            f"The vault is full: {why}. Delete saved passwords that are not needed any more."
        )


class AccountDeactivated(AccountError):
    """Raised only when the password was right; its attributes let a doorway offer the way back.

    The sentence has the time of *purge_at* (aware, UTC) and its zone: by the day alone, somebody
    far east or west of it would be late.
    """

    BY_OWNER = "To keep it, open the link in our newest mail."
    BY_STAFF = "The staff deactivated it. To keep it, contact support before that time."
    OVER = "That time has come, so it cannot be reactivated any more."

    def __init__(self, *, account_id: int, purge_at: datetime, way_back: str = BY_OWNER) -> None:
        super().__init__(
            f"This account is scheduled for deletion on {purge_at:%-d %B %Y} at {purge_at:%H:%M} "
            f"UTC. {way_back}"
        )
        self.account_id = account_id
        self.purge_at = purge_at
        self.way_back = way_back

    def by_page(self, url: str) -> AccountDeactivated:
        """Return the same that names the page at *url* too, if its owner has a way back at all."""
        if self.way_back != self.BY_OWNER:
            return self
        way_back = f"To keep it, sign in on the page {url} or open the link in our newest mail."
        return AccountDeactivated(
            account_id=self.account_id, purge_at=self.purge_at, way_back=way_back
        )


class ReactivationForbidden(AccountError):
    message = "This account was deactivated by the staff. Contact support to have it back."


class LastStaff(AccountError):
    message = (
        "This is the last active staff account. Make another staff account before you delete it."
    )


class NotDeactivated(AccountError):
    message = "This account is not deactivated."


class GraceOver(AccountError):
    message = "The grace period is over. This account can no longer be reactivated."


class LegalHold(AccountError):
    message = "A legal hold suspends the purge of this account. Release it first."


class Unexplained(AccountError):
    message = "Nobody has promised the purge of this account. An operator has to accept it first."


class RecentChange(AccountError):
    message = "Something that this rests on has changed a short time ago. Try again in a day."


class VersionMismatch(AccountError):
    message = "The deletion has changed since it was read. Read it again and repeat."


class VersionRequired(AccountError):
    message = "Send If-Match with the ETag of the deletion document."


class InvalidSchedule(AccountError):
    message = "The purge time can only be moved later, within the longest grace period."


class Throttled(AccountError):
    """*limit* is which one was met, in words of a closed list such as ``upload account``."""

    def __init__(self, retry_after: int, *, limit: str) -> None:
        super().__init__(f"Too many requests of this kind. Try again in {in_words(retry_after)}.")
        self.retry_after = retry_after
        self.limit = limit


def in_words(seconds: int) -> str:
    """Say how long *seconds* are, as people do: never less, but for an hour that is nearly whole.

    The exact number is for programs, in ``Retry-After``.
    """
    minutes = math.ceil(seconds / 60)
    if minutes <= 1:
        return f"{seconds} second{'s' * (seconds != 1)}" if seconds < 60 else "a minute"
    if minutes <= 55:
        return f"{minutes} minutes"
    return "about an hour" if minutes <= 60 else f"about {math.ceil(minutes / 60)} hours"


class Unavailable(AccountError):
    message = "The service cannot do this at the moment. Try again in a few seconds."


class DatabaseUnavailable(Unavailable):
    """The database does not answer, or not in time; nothing was changed."""


class StoreUnavailable(Unavailable):
    """The file or object store does not answer or refuses; nothing was lost."""


class MailUnavailable(Unavailable):
    """The mail server does not answer, or not now; the mail may have been taken all the same."""


class VaultKeyMissing(Unavailable):
    """None of ``VAULT_KEYS`` opens this account's key; nothing was lost.

    This process has not got a new one yet, or an old one was removed before ``accountsvc vault
    rewrap`` ended. Until the operator adds the key, every repeat is refused too.
    """

    message = (
        "Your saved passwords cannot be opened until the operator of this service has mended its "
        "settings. None is lost. Tell the operator if this lasts."
    )

    def __init__(self, wrapped_by: str | None = None) -> None:
        super().__init__(
            f"No key in VAULT_KEYS opens what key {wrapped_by} wrapped. Add that key again."
        )


class Busy(Unavailable):
    """Too many wait for work that is dear; nothing was looked at, and nothing was changed.

    Its own words are about passwords; another work says its own. *limit* is what was full, or
    failed, as :class:`Throttled` has it.
    """

    message = "Too many passwords are being checked at this moment. Try again in a few seconds."

    def __init__(self, message: str | None = None, *, limit: str = BUSY_PASSWORDS) -> None:
        super().__init__(message)
        self.limit = limit
