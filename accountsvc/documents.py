"""Accounts, deletions, holds and audit events as they are shown, each form in one place.

The wire and the operator's console take their documents from here. All times are RFC 3339 in UTC
with ``Z``, in whole seconds. No document holds a password, its hash, a key, or a name in the form
in which names are compared.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from .accounts import lifecycle
from .adapters import signedreceipts
from .db import audit, entries, rules
from .db.models import (
    DEACTIVATED,
    DUE,
    OWNER,
    Account,
    AuditEvent,
    LegalHold,
    PurgeFailure,
    Receipt,
)
from .db.proofs import NOT_TOLD, ONCE, TOLD, ReceiptFact
from .db.text import rfc3339
from .purge import brake, claim, seals
from .purge.failures import BRAKED, blocked_by

Document = dict[str, Any]


def user_document(account: Account, *, now: datetime) -> Document:
    """Return the account as its owner sees it at *now*."""
    return {
        "id": account.id,
        "username": account.username,
        "email": account.email,
        "pending_email": account.pending(now),
        "first_name": account.first_name,
        "last_name": account.last_name,
        "number_phone": account.number_phone,
        "avatar": None if account.avatar_key is None else f"/media/avatars/{account.avatar_key}",
        "is_staff": account.is_staff,
        "date_joined": rfc3339(account.joined_at),
    }


def own_deletion_document(account: Account, *, now: datetime) -> Document:
    """Return the deletion of *account* as its owner sees it at *now*: without holds and reasons."""
    return _deletion(account, now, may_reactivate=account.deactivated_by == OWNER)


def deletion_documents(
    session: Session, accounts: Sequence[Account], *, now: datetime, max_attempts: int
) -> list[Document]:
    """Return the deletions of *accounts* as the staff see them at *now*, in the order given.

    Reads the holds, failures and witnesses of all of them in three statements. After *max_attempts*
    failures a purge is stuck.
    """
    ids = [account.id for account in accounts]
    holds: dict[int, list[LegalHold]] = {account_id: [] for account_id in ids}
    for hold in lifecycle.holds(session, ids):
        holds[hold.account_id].append(hold)
    failures = {
        failure.account_id: failure
        for failure in session.scalars(select(PurgeFailure).where(PurgeFailure.account_id.in_(ids)))
    }
    unexplained = set(
        session.scalars(select(Account.id).where(Account.id.in_(ids), rules.is_unexplained()))
    )
    return [
        {
            **_deletion(account, now, may_reactivate=True),
            "reason": account.reason,
            "holds": [hold_document(hold) for hold in holds[account.id]],
            "blocked_by": blocked_by(
                failure,
                is_held=any(hold.released_at is None for hold in holds[account.id]),
                is_unexplained=account.id in unexplained,
                max_attempts=max_attempts,
            ),
            "attempts": 0 if failure is None else failure.attempts,
        }
        for account in accounts
        for failure in [failures.get(account.id)]
    ]


def hold_document(hold: LegalHold) -> Document:
    """Return a hold as the staff see it; its owner never does."""
    return {
        "id": hold.id,
        "reason": hold.reason,
        "placed_at": rfc3339(hold.placed_at),
        "released_at": _time(hold.released_at),
    }


def event_document(event: AuditEvent) -> Document:
    """Return an audit event as the staff see it."""
    return {
        "id": event.id,
        "at": rfc3339(event.at),
        "action": event.action,
        "subject": None if event.subject is None else str(event.subject),
        "actor": None if event.actor is None else str(event.actor),
        "actor_kind": event.actor_kind,
        "details": event.details,
    }


def account_document(
    session: Session, account: Account, *, now: datetime, max_attempts: int
) -> Document:
    """Return all that an operator may see of *account* at *now*, open holds and the last error too.

    After *max_attempts* failures a purge is stuck. Whom nothing else keeps from it is blocked by
    the brake, while that holds.
    """
    failure = session.get(PurgeFailure, account.id)
    open_holds = lifecycle.open_holds(session, account.id)
    planned = claim.count(session, [account.id])
    unexplained = not account.is_active and not audit.is_explained(session, account)
    state = account.state(now)
    blocked = blocked_by(
        failure,
        is_held=bool(open_holds),
        is_unexplained=unexplained,
        max_attempts=max_attempts,
    )
    if blocked is None and state == DUE and brake.standing(session).held_at is not None:
        blocked = BRAKED
    return {
        **user_document(account, now=now),
        "public_id": str(account.public_id),
        "state": state,
        "saved_passwords": planned[0].saved_passwords if planned else 0,
        "deactivated_at": _time(account.deactivated_at),
        "deactivated_by": account.deactivated_by,
        "purge_at": _time(account.purge_at),
        "reason": account.reason,
        "return_reason": account.return_reason,
        "unexplained": unexplained,
        "blocked_by": None if account.is_active else blocked,
        "attempts": 0 if failure is None else failure.attempts,
        "error": None if failure is None else failure.error,
        "constraint": None if failure is None else failure.constraint_name,
        "holds": [
            {"id": hold.id, "placed_at": rfc3339(hold.placed_at), "reason": hold.reason}
            for hold in open_holds
        ],
    }


@dataclass(frozen=True)
class SignedReceipt:
    """A receipt and its facts, oldest first, and the document that proves them to anybody."""

    receipt: Receipt
    facts: Sequence[ReceiptFact]
    document: Document


def signed_receipt(session: Session, public_id: uuid.UUID) -> SignedReceipt | None:
    """Return the signed receipt of whoever was purged under *public_id*; None: nobody was.

    Of facts that may come again the newest are in it (``signedreceipts.MOST_REPEATED``).
    """
    receipt = session.get(Receipt, public_id)
    if receipt is None:
        return None
    facts = _facts(session, public_id)
    shown = [
        seals.entry(row)
        for row in (
            *entries.receipts(session, [public_id]).values(),
            *entries.by_id(session, entries.FACT, [fact.id for fact in facts]),
        )
    ]
    proofs = seals.proofs(session, [(one.kind, one.key) for one in shown])
    first, *others = [_part(one, proofs.get((one.kind, one.key))) for one in shown]
    document = {"form": signedreceipts.FORM, "receipt": first, "facts": others}
    return SignedReceipt(receipt, facts, document)


def _part(entry: seals.Entry, proof: seals.Proof | None) -> Document:
    # The proof is shown also where it does not fit the entry: whoever checks it finds that the row
    # was changed.
    shown = {"entry": entry.text.decode("utf-8", "surrogatepass")}
    if proof is None:
        return {**shown, "path": [], "index": None, "seal": None}
    return {
        **shown,
        "path": [one.hex() for one in proof.path],
        "index": proof.index,
        "seal": {"header": proof.header, "signature": proof.signature},
    }


def _facts(session: Session, public_id: uuid.UUID) -> Sequence[ReceiptFact]:
    once = ReceiptFact.fact.in_((*ONCE, TOLD, NOT_TOLD))
    newest = (
        select(ReceiptFact.id)
        .where(ReceiptFact.public_id == public_id, ~once)
        .order_by(ReceiptFact.id.desc())
        .limit(signedreceipts.MOST_REPEATED)
    )
    return session.scalars(
        select(ReceiptFact)
        .where(ReceiptFact.public_id == public_id, or_(once, ReceiptFact.id.in_(newest)))
        .order_by(ReceiptFact.id)
    ).all()


def _deletion(account: Account, now: datetime, *, may_reactivate: bool) -> Document:
    state = account.state(now)
    return {
        "user_id": account.id,
        "state": state,
        "deactivated_at": _time(account.deactivated_at),
        "purge_at": _time(account.purge_at),
        "deactivated_by": account.deactivated_by,
        "can_reactivate": state == DEACTIVATED and may_reactivate,
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)
