"""The payloads of effects: the keys that a row of the outbox holds, named once for each kind.

A payload is stored as a JSON object with the names of its fields as keys, in their order. Rows
outlive a release: a field that the previous one did not write needs a default, and a field whose
name is changed would leave the rows of before undeliverable.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from sqlalchemy import ColumnElement, Uuid, cast
from sqlalchemy.orm import InstrumentedAttribute

# A mail is for an account's address of today or for a former one, which is stored by these words:
# with another word, rows of an earlier release would be sent to the wrong one.
CURRENT, PREVIOUS = "current", "previous"

_REFUSALS = "refusals"
_DELAYED = "delayed"
_SEAL = "seal"


@dataclass(frozen=True)
class Payload:
    """The values that a kind of effect needs at delivery; a subclass is one row's JSON object."""

    def stored(self) -> dict[str, Any]:
        """Return the object to store."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """Return the payload that a row holds.

        A field that is missing there has its default, and keys that are no field are ignored.
        Raises KeyError if a field without a default is missing.
        """
        return cls(
            **{
                field.name: stored[field.name]
                for field in fields(cls)
                if field.default is MISSING or field.name in stored
            }
        )


@dataclass(frozen=True)
class FileDeletion(Payload):
    """The key of an avatar file to delete."""

    key: str

    @classmethod
    def key_of(cls, payload: InstrumentedAttribute[dict[str, Any]]) -> ColumnElement[str]:
        """Return the SQL expression for the key in a stored *payload* of this kind."""
        key: ColumnElement[str] = payload["key"].as_string()
        return key


@dataclass(frozen=True)
class LedgerLines(Payload):
    """The receipts of one batch of a purge, each as the ledger writes it."""

    lines: Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Removal(Payload):
    """The names of objects of the ledger that matter no longer."""

    names: Sequence[str]


@dataclass(frozen=True)
class Finish(Payload):
    """What is to be gone when a purge is finished: the account's number, and its avatar files.

    The number is None where no row says it any more. *scrubbed*: SQLite's file was rewritten when
    nothing else was owed for the purge.
    """

    account_id: int | None = None
    files: Sequence[str] = ()
    scrubbed: bool = False

    @staticmethod
    def is_scrubbed(payload: InstrumentedAttribute[dict[str, Any]]) -> ColumnElement[bool]:
        """Return the SQL expression that says of a stored *payload* whether it is *scrubbed*."""
        scrubbed: ColumnElement[bool] = payload["scrubbed"].as_boolean()
        return scrubbed


@dataclass(frozen=True)
class AddressedMail(Payload):
    """A mail to an address that no account has at delivery: of *purged* and *address changed*.

    *lane* is that of ``pacing.lane``, by how long the account has had the address.
    """

    address: str
    lane: int = 0


@dataclass(frozen=True)
class PurgedMail(AddressedMail):
    """The last mail. It is sent behind the ledger lines of the effect with the uid *ledger*.

    That is in 32 hexadecimal digits. *until* is the time (RFC 3339) from which no backup that is
    older than the purge is kept. A row of the release before has neither.
    """

    ledger: str | None = None
    until: str | None = None

    @staticmethod
    def ledger_of(payload: InstrumentedAttribute[dict[str, Any]]) -> ColumnElement[uuid.UUID]:
        """Return the SQL expression that takes *ledger* out of a stored *payload*, or null."""
        return cast(payload["ledger"].as_string(), Uuid())


@dataclass(frozen=True)
class AccountMail(Payload):
    """A mail to the account's current address or to a former one, which delivery looks up.

    *former* is the id of the row of the former one. Without it, as the release before wrote it, a
    mail to the previous address is for the oldest that is remembered. *was_off* is of the news that
    the account is back: not its owner had switched it off.
    """

    epoch: int
    to: str = CURRENT
    former: int | None = None
    was_off: bool = False


@dataclass(frozen=True)
class ReminderMail(Payload):
    """A reminder, which is due *before* (in seconds) the account's ``purge_at``."""

    epoch: int
    before: int


@dataclass(frozen=True)
class ResetMail(Payload):
    """A link to set a new password, which is void once the account's epoch has moved on."""

    epoch: int


@dataclass(frozen=True)
class PendingMail(Payload):
    """A mail about the pending address that was asked for at *asked_at*, of ``tokens.asked_at``.

    It holds no address: delivery looks it up in the row, if it is still open.
    """

    asked_at: str


def refusals(stored: Mapping[str, Any]) -> int:
    """Return how often the mail server has refused the mail of this payload."""
    return int(stored.get(_REFUSALS, 0))


def with_refusals(stored: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return the payload to store for a mail that was refused *count* times; the rest stays.

    It waits for the server then, and not for its turn.
    """
    rest = {name: value for name, value in stored.items() if name != _DELAYED}
    return {**rest, _REFUSALS: count}


def was_refused(payload: InstrumentedAttribute[dict[str, Any]]) -> ColumnElement[bool]:
    """Return the SQL expression that says of a stored *payload* whether its mail was refused."""
    refused: ColumnElement[bool] = payload[_REFUSALS].as_integer() > 0
    return refused


def seal_of(stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the seal with which this payload's lines are written; None before the first try."""
    seal = stored.get(_SEAL)
    return seal if isinstance(seal, dict) else None


def with_seal(stored: Mapping[str, Any], seal: Mapping[str, Any]) -> dict[str, Any]:
    """Return the payload to store for lines that are written with *seal*; the rest stays."""
    return {**stored, _SEAL: dict(seal)}


def with_delay(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the payload to store for a mail that waits for its turn; the rest stays."""
    return {**stored, _DELAYED: True}


def delayed(payload: InstrumentedAttribute[dict[str, Any]]) -> ColumnElement[bool]:
    """Return the SQL expression that says of a stored *payload* whether its mail was delayed."""
    was_delayed: ColumnElement[bool] = payload[_DELAYED].as_boolean()
    return was_delayed
