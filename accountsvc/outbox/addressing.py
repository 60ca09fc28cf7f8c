"""The mails about an address that is not the account's: where each goes, and what is in it.

Each function about another address decides by the account's row at delivery. None means that nobody
is told: the mail would say what is not so.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ..db.models import PENDING_FOR, Account
from ..tokens import Tokens, asked_at
from .payloads import PendingMail, PurgedMail
from .queue import Owed

# A recipient, and the values for the template.
Addressed = tuple[str, Mapping[str, Any]]


def confirm(
    account: Account, effect: Owed, *, tokens: Tokens, url: str, now: datetime
) -> Addressed | None:
    """Address the mail with the link to the pending address, if that is still the one."""
    address = account.pending(now)
    if address is None or PendingMail.read(effect.payload).asked_at != asked_at(account):
        return None
    link = f"{url}/confirm-email/{tokens.confirm_email(account, now=now)}"
    return address, {"link": link, "until": _end(account)}


def asked(
    account: Account, effect: Owed, *, tokens: Tokens, url: str, now: datetime
) -> Addressed | None:
    """Address the news that another address was asked for; with a link only while one is pending.

    That may be a later one, whose own mail waits for its turn: the link calls off either. None once
    the address was changed: whoever had it is told that, which says more.
    """
    changed_at = account.email_changed_at
    if changed_at is not None and changed_at > effect.created_at:
        return None
    if account.pending(now) is None:
        return account.email, {"link": None}
    link = f"{url}/cancel-email/{tokens.cancel_email(account, now=now)}"
    return account.email, {"link": link, "until": _end(account)}


def purged(effect: Owed, *, url: str) -> dict[str, Any]:
    """Return the values for the last mail, whose account is gone."""
    until = PurgedMail.read(effect.payload).until
    return {
        "receipt": effect.subject,
        "receipt_page": f"{url}/receipts/{effect.subject}/",
        "until": until and datetime.fromisoformat(until),
    }


def _end(account: Account) -> datetime:
    assert account.pending_email_at is not None
    return account.pending_email_at + PENDING_FOR
