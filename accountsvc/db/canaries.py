"""The canary's public ids, by which it is told from people, and the row of its runs.

A canary is a made-up person who lives for seconds. Its public id is a uuid of version 4 with a
fixed beginning of 48 bits: a person who signs up would draw it once in 2.8 * 10**14 times, and
draws again.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ColumnElement, Integer
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base

# The first and the last of them, in the order of both engines: by bytes, or by hex digits. All
# between begin with ``ca9a7100-ca9a-4``.
_FIRST = uuid.UUID("ca9a7100-ca9a-4000-8000-000000000000")
_LAST = uuid.UUID("ca9a7100-ca9a-4fff-bfff-ffffffffffff")

# A domain that nobody can have (RFC 2606, section 2).
DOMAIN = "canary.accountsvc.invalid"

# The events that a run leaves: one of the two.
PASSED, FAILED = "canary.passed", "canary.failed"


def is_canary(public_id: uuid.UUID | None) -> bool:
    """Say whether *public_id* is a canary's; :func:`is_of_canary` says the same in SQL."""
    return public_id is not None and _FIRST <= public_id <= _LAST


def is_of_canary(public_id: Any) -> ColumnElement[bool]:
    """Select rows whose *public_id*, a column, is a canary's. It is a range, so an index serves."""
    found: ColumnElement[bool] = public_id.between(_FIRST, _LAST)
    return found


def new_canary_id() -> uuid.UUID:
    """Return the public id of another canary."""
    return uuid.UUID(int=_FIRST.int | uuid.uuid4().int & (_FIRST.int ^ _LAST.int))


def new_public_id() -> uuid.UUID:
    """Return the public id of a person, which is never a canary's."""
    while is_canary(public_id := uuid.uuid4()):
        pass
    return public_id


class Canary(Base):
    """The one row of the canary: its last run, and the mails that it was sent meanwhile.

    ``mails`` holds, by the uid of the effect, its kind, the time, and whether anything was left by
    then that the mail of a purge may not come before.
    """

    __tablename__ = "canary"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    public_id: Mapped[uuid.UUID | None]
    began_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    mails: Mapped[dict[str, Any]] = mapped_column(default=dict)
