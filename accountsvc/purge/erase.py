"""Erase locked accounts, and write their receipts, their events and what is owed.

Everything is done by ids, set by set: with a statement for each account a batch would take a
hundred times as long.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from ..db import audit, facts, rows
from ..db.audit import Actor
from ..db.datamap import purged_by_account
from ..db.models import Account, AuditEvent, Effect, LegalHold, Receipt
from ..db.proofs import ERASED_AGAIN
from ..db.text import rfc3339
from ..outbox import kept, notices, pacing, queue, recipients
from ..outbox.payloads import FileDeletion, Finish, LedgerLines, PurgedMail
from .claim import PlannedPurge

# Effects that the purge itself owes. They stay in the outbox until they are done: dropped with the
# account's others, they would leave a file on disk that no row knows.
_OWED_AFTER_PURGE = (
    queue.DELETE_FILE,
    queue.LEDGER,
    queue.REMOVE,
    queue.FINISH,
    notices.PURGED,
)

# What finishes a purge is looked at so long after it: the files, the ledger and the mail have
# mostly happened by then, so that one look is enough.
FINISHED_AFTER = timedelta(seconds=5)

_Row = dict[str, Any]


@dataclass(frozen=True)
class _Owner:
    """The part of an account's row that is needed once the row is gone."""

    id: int
    public_id: uuid.UUID
    email: str
    previous_email: str | None
    joined_at: datetime
    email_changed_at: datetime | None
    avatar_key: str | None
    deactivated_at: datetime
    deactivated_by: str


def erase(
    session: Session,
    accounts: Sequence[PlannedPurge],
    now: datetime,
    by: Actor,
    *,
    backups_kept: timedelta,
) -> None:
    """Delete the locked *accounts* and write what remains and what is owed, in this transaction.

    Their owners are told that backups hold something for as long as *backups_kept*. An open hold,
    and whatever else refuses, fails the whole transaction.
    """
    if not accounts:
        return
    owners = _read_owners(session, accounts)
    lanes = _read_lanes(session, owners, now)
    kept.forget(session, [owner.public_id for owner in owners], now)
    _delete_rows(session, accounts)
    receipts = _write_receipts(session, owners, accounts, now)
    _write_events(session, accounts, now, by)
    new = {receipt["public_id"] for receipt in receipts}
    again = [owner.public_id for owner in owners if owner.public_id not in new]
    facts.add(session, ERASED_AGAIN, again, now=now)
    mails = _Mails(lanes, until=rfc3339(now + backups_kept))
    queue.record_all(session, _owed(owners, receipts, mails, now))


def _read_owners(session: Session, accounts: Sequence[PlannedPurge]) -> list[_Owner]:
    columns = (
        Account.id,
        Account.public_id,
        Account.email,
        Account.previous_email,
        Account.joined_at,
        Account.email_changed_at,
        Account.avatar_key,
        Account.deactivated_at,
        Account.deactivated_by,
    )
    ids = [planned.account_id for planned in accounts]
    return [
        _Owner(**row._mapping)
        for row in session.execute(select(*columns).where(Account.id.in_(ids)))
    ]


def _read_lanes(
    session: Session, owners: Sequence[_Owner], now: datetime
) -> Mapping[uuid.UUID, int]:
    """Return the lane of the *purged* mail to each owner, by public id."""
    formers = recipients.remembered_by(session, owners)
    return {
        owner.public_id: pacing.lane(
            recipients.longest_held(formers[owner.id], owner, owner.email, now=now)
        )
        for owner in owners
    }


def _delete_rows(session: Session, accounts: Sequence[PlannedPurge]) -> None:
    """Empty the tables of the data map, drop what else is owed, then delete the accounts' rows."""
    ids = [planned.account_id for planned in accounts]
    subjects = [planned.public_id for planned in accounts]
    for model in purged_by_account():
        # Every table of purged_by_account() has an account_id, which no type says of it.
        statement = delete(model).where(model.account_id.in_(ids))  # type: ignore[attr-defined]
        if model is LegalHold:
            # An open hold stays, so that its foreign key makes the transaction fail: deleted with
            # the released ones, a hold that slipped through every check would not even be noticed.
            statement = statement.where(LegalHold.released_at.is_not(None))
        rows.change(session, statement)
    of_these = Effect.subject.in_(subjects) & Effect.kind.not_in(_OWED_AFTER_PURGE)
    rows.change(session, delete(Effect).where(of_these))
    rows.change(session, delete(Account).where(Account.id.in_(ids)))


def _write_receipts(
    session: Session,
    owners: Sequence[_Owner],
    accounts: Sequence[PlannedPurge],
    now: datetime,
) -> list[_Row]:
    """Write a receipt for each account and return those that are new.

    Somebody whom a partial restore has brought back has one already, and it stays as it was:
    receipts are append-only, and the ledger has that line.
    """
    planned = {account.public_id: account for account in accounts}
    known = set(session.scalars(select(Receipt.public_id).where(Receipt.public_id.in_(planned))))
    receipts = [
        {
            "public_id": owner.public_id,
            "deactivated_at": owner.deactivated_at,
            "deactivated_by": owner.deactivated_by,
            "purge_at": planned[owner.public_id].purge_at,
            "purged_at": now,
            "saved_passwords": planned[owner.public_id].saved_passwords,
            "files": planned[owner.public_id].files,
        }
        for owner in owners
        if owner.public_id not in known
    ]
    if receipts:
        session.execute(insert(Receipt), receipts)
    return receipts


def _write_events(
    session: Session, accounts: Sequence[PlannedPurge], now: datetime, by: Actor
) -> None:
    session.execute(
        insert(AuditEvent),
        [
            audit.row(
                "account.purged",
                subject=planned.public_id,
                by=by,
                now=now,
                saved_passwords=planned.saved_passwords,
                files=planned.files,
            )
            for planned in accounts
        ],
    )


@dataclass(frozen=True)
class _Mails:
    """What the *purged* mails need: their lanes by public id, and until when backups are kept."""

    lanes: Mapping[uuid.UUID, int]
    until: str


def _owed(
    owners: Collection[_Owner], receipts: Sequence[_Row], mails: _Mails, now: datetime
) -> list[_Row]:
    """Return what a purge owes, for one INSERT.

    It is the deletion of the files, one batch of ledger lines, the mails behind both, and behind
    all of these what finishes each purge.
    """
    lines = LedgerLines([ledger_line(receipt) for receipt in receipts])
    ledger = queue.row(queue.LEDGER, subject=None, now=now, payload=lines)
    new = {receipt["public_id"] for receipt in receipts}
    effects = [ledger]
    for owner in owners:
        files = [] if owner.avatar_key is None else [owner.avatar_key]
        effects += [
            queue.row(
                queue.DELETE_FILE, subject=owner.public_id, now=now, payload=FileDeletion(key)
            )
            for key in files
        ]
        # Whoever has a receipt already, from before a restore, was told then.
        if owner.public_id in new:
            lane = mails.lanes[owner.public_id]
            mail = PurgedMail(owner.email, lane, ledger["uid"].hex, mails.until)
            effects.append(
                queue.row(
                    notices.PURGED,
                    subject=owner.public_id,
                    now=now,
                    payload=mail,
                    expires_at=now + notices.ADDRESS_KEPT,
                )
            )
        effects.append(
            queue.row(
                queue.FINISH,
                subject=owner.public_id,
                now=now,
                payload=Finish(owner.id, files),
                after=now + FINISHED_AFTER,
            )
        )
    return effects


def ledger_line(receipt: Mapping[str, object]) -> dict[str, str | int]:
    """Return *receipt* as JSON holds it: times in ISO 8601 with their zone, counts as numbers."""

    def plain(value: object) -> str | int:
        if isinstance(value, datetime):
            return rfc3339(value, timespec="auto", utc="+00:00")
        return value if isinstance(value, int) else str(value)

    return {name: plain(value) for name, value in receipt.items()}
