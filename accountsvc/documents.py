"""Accounts, deletions and holds as they are shown."""

from __future__ import annotations

from .db.models import Account


def user_document(account: Account) -> dict[str, object]:
    """Return the account as its owner sees it on the wire; never the hash."""
    return {
        "id": account.id,
        "username": account.username,
        "email": account.email,
        "first_name": account.first_name,
        "last_name": account.last_name,
        "number_phone": account.number_phone,
        "avatar": None if account.avatar_key is None else f"/media/avatars/{account.avatar_key}",
        "is_staff": account.is_staff,
        "date_joined": f"{account.joined_at:%Y-%m-%dT%H:%M:%SZ}",
    }
