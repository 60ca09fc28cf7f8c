"""Saved passwords, and a generator for new ones."""

from __future__ import annotations

from typing import Any

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import Session

from .. import generator
from ..accounts import credentials, vault
from ..accounts.vault import Entry, StoredEntry
from ..db.text import rfc3339
from ..errors import InvalidInput, PasswordNotFound, TokenNotValid
from ..web import committed, services
from .http import auth, schemas
from .http.auth import Caller
from .http.describe import raises, sends

bp = APIBlueprint("vault", __name__, tag="Saved passwords")


@bp.get("/response-password/")
@bp.input(schemas.GeneratorQuery, location="query")
@bp.output(schemas.Generated)
@raises(InvalidInput)
def generate(query_data: dict[str, Any]) -> dict[str, str]:
    """Generate a password, or a passphrase of some words"""
    if "words" in query_data:
        return {"output": generator.passphrase(query_data["words"])}
    return {"output": generator.password(query_data["length"], symbols=query_data["symbols"])}


@bp.post("/save-passwords/")
@auth.signed_in
@bp.input(schemas.PasswordEntry)
@bp.output(schemas.Saved, 201)
@raises(InvalidInput)
def save(*, caller: Caller, json_data: dict[str, str]) -> dict[str, Any]:
    """Save a password, encrypted under the account's own key"""

    def keep(session: Session) -> int:
        row = vault.save(
            session,
            services().keyring,
            caller.account.id,
            epoch=caller.epoch,
            entry=Entry(**json_data),
        )
        return row.id

    return {"message": "password saved successfully", "id": committed(keep)}


@bp.get("/view-all-saved-passwords/")
@auth.signed_in
@bp.input(schemas.PageQuery, location="query")
@bp.output(schemas.StoredPasswords)
@sends(200, Link='</api/view-all-saved-passwords/?limit=100&cursor=100>; rel="next"')
@raises(InvalidInput)
def show_all(
    *, caller: Caller, query_data: dict[str, Any]
) -> dict[str, Any] | tuple[dict[str, Any], dict[str, str]]:
    """Show one's saved passwords in the order in which they were saved

    All at once; with ``limit`` a page at a time, and a ``Link`` to the next one.
    """
    limit = query_data.get("limit")
    try:
        with services().reading() as session:
            # Look at the account again, in the transaction that opens the vault: it may have been
            # deactivated since the guard looked, and its passwords would be shown all the same.
            account = credentials.by_claims(session, caller.claims)
            entries = list(
                vault.entries(
                    session,
                    services().keyring,
                    account,
                    after=query_data["cursor"],
                    limit=None if limit is None else limit + 1,
                )
            )
    except NoResultFound as exc:
        # The account was purged between two statements of this transaction, so its key is gone: the
        # answer is that of a token whose account is gone, not a 500.
        raise TokenNotValid from exc
    page = entries[:limit]
    body = {
        "message": "passwords retrieved successfully",
        "passwords": [_shown(entry, caller.account.id) for entry in page],
    }
    if len(page) == len(entries):
        return body
    following = f"/api/view-all-saved-passwords/?limit={limit}&cursor={page[-1].id}"
    return body, {"Link": f'<{following}>; rel="next"'}


@bp.put("/view-all-saved-passwords/<int:entry_id>/update/")
@auth.signed_in
@bp.input(schemas.PasswordEntryUpdate)
@bp.output(schemas.UpdatedPassword)
@raises(InvalidInput, PasswordNotFound)
def update(entry_id: int, *, caller: Caller, json_data: dict[str, str]) -> dict[str, Any]:
    """Change some fields of a saved password"""

    def change(session: Session) -> StoredEntry:
        return vault.update(
            session,
            services().keyring,
            caller.account.id,
            entry_id,
            epoch=caller.epoch,
            changes=json_data,
        )

    shown = _shown(committed(change), caller.account.id)
    return {"message": "password updated successfully", **shown}


@bp.delete("/view-all-saved-passwords/<int:entry_id>/delete/")
@auth.signed_in
@bp.output({}, 204)
@raises(PasswordNotFound)
def delete(entry_id: int, *, caller: Caller) -> Response:
    """Delete a saved password

    A body is ignored.
    """
    committed(
        lambda session: vault.delete(session, caller.account.id, entry_id, epoch=caller.epoch)
    )
    return Response(status=204)


def _shown(stored: StoredEntry, account_id: int) -> dict[str, Any]:
    return {
        "id": stored.id,
        "name_pages": stored.entry.name_pages,
        "url": stored.entry.url,
        "password_saved": stored.entry.password_saved,
        "user": account_id,
        "created_at": rfc3339(stored.created_at),
        "updated_at": rfc3339(stored.updated_at),
    }
