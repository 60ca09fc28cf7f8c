"""Saved passwords, and a generator for new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import Any

from apiflask import APIBlueprint
from flask import Response, current_app
from sqlalchemy.orm import Session

from .. import bounds, generator
from ..accounts import vault
from ..accounts.vault import Entry, StoredEntry
from ..adapters.throttle import VAULT_WRITE
from ..db.text import rfc3339
from ..errors import BUSY_LISTS, Busy, InvalidInput, PasswordNotFound, VaultFull
from ..services import Services
from ..turns import Turns
from ..web import committed, services
from .http import auth, schemas
from .http.auth import Caller
from .http.describe import raises, sends

long_lists = Turns(
    bounds.LISTS_AT_ONCE,
    bounds.LISTS_WAITING,
    limit=BUSY_LISTS,
    refusal="Too many long lists are being read at this moment. Try again in a few seconds, "
    "or ask for a page by limit.",
)

bp = APIBlueprint("vault", __name__, tag="Saved passwords")

# An answer of more bytes is begun before it is read whole. A vault within its quota never is so
# long: the wire is ASCII, which spells DEL, one byte of plaintext, in six.
_MOST_AT_ONCE = 7 * bounds.VAULT_BYTES


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
@auth.counted(VAULT_WRITE)
@bp.input(schemas.PasswordEntry)
@bp.output(schemas.Saved, 201)
@raises(InvalidInput, VaultFull)
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
@raises(InvalidInput, Busy)
def show_all(*, caller: Caller, query_data: dict[str, Any]) -> Response:
    """Show one's saved passwords in the order in which they were saved

    All at once; with ``limit`` a page at a time, and a ``Link`` to the next one. Of vaults of many
    pages few are read at once, and whoever comes then is asked to come again. An entry that
    cannot be read has ``unreadable`` and empty texts: it can be deleted, or overwritten by an
    update of all three fields.
    """
    limit, after = query_data.get("limit"), query_data["cursor"]
    if limit is None:
        pages = _pages(services(), caller, after=after)
        first = next(pages, [])
        is_long = len(first) == vault.PAGE_SIZE
        pages = chain(iter([first]), pages)
        # Let go of the page: it would be kept until the last one is read.
        del first
        with long_lists.take() if is_long else nullcontext():
            return _json_stream(pages, caller)
    entries = [
        stored
        for page in _pages(services(), caller, after=after, limit=limit + 1)
        for stored in page
    ]
    response = _json_stream(iter([entries[:limit]]), caller)
    if len(entries) > limit:
        following = f"/api/view-all-saved-passwords/?limit={limit}&cursor={entries[limit - 1].id}"
        response.headers["Link"] = f'<{following}>; rel="next"'
    return response


def _pages(
    services: Services, caller: Caller, *, after: int, limit: int | None = None
) -> Iterator[list[StoredEntry]]:
    """Yield the caller's entries by pages, each read in a short transaction of its own.

    Each asks for the account again: it may have been deactivated since the guard looked, and its
    passwords would be shown all the same. Raises TokenNotValid, VaultKeyMissing.
    """
    remaining = limit
    while remaining is None or remaining > 0:
        size = vault.PAGE_SIZE if remaining is None else min(vault.PAGE_SIZE, remaining)
        with services.reading() as session:
            page = list(
                vault.entries(session, services.keyring, caller.account, after=after, limit=size)
            )
        if page:
            yield page
        if len(page) < size:
            return
        after = page[-1].id
        remaining = None if remaining is None else remaining - size


def _json_stream(pages: Iterator[list[StoredEntry]], caller: Caller) -> Response:
    """Answer with the entries of *pages* as one document, never as objects of more than a page.

    A vault within its quota is read whole before the answer begins, and has a Content-Length. One
    that is larger, from a time without a quota, is sent while it is read: a fault then breaks the
    answer off, which is no JSON without its end.
    """
    pieces = _pieces(pages, caller.account.id, current_app.json.dumps)
    head: list[bytes] = []
    size = 0
    for piece in pieces:
        head.append(piece)
        size += len(piece)
        if size > _MOST_AT_ONCE:
            return Response(chain(head, pieces), mimetype="application/json")
    return Response(head, mimetype="application/json")


def _pieces(
    pages: Iterator[list[StoredEntry]], account_id: int, dumps: Callable[[Any], str]
) -> Iterator[bytes]:
    """Yield the document of all entries of *pages*, one piece a page."""
    opening = '{"message": "passwords retrieved successfully", "passwords": ['
    for page in pages:
        if page:
            shown = ", ".join(dumps(_shown(stored, account_id)) for stored in page)
            yield f"{opening}{shown}".encode()
            opening = ", "
    yield b"]}" if opening == ", " else f"{opening}]}}".encode()


@bp.put("/view-all-saved-passwords/<int:entry_id>/update/")
@auth.signed_in
@auth.counted(VAULT_WRITE)
@bp.input(schemas.PasswordEntryUpdate)
@bp.output(schemas.UpdatedPassword)
@raises(InvalidInput, PasswordNotFound, VaultFull)
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
@auth.counted(VAULT_WRITE)
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
    shown: dict[str, Any] = {
        "id": stored.id,
        "name_pages": stored.entry.name_pages,
        "url": stored.entry.url,
        "password_saved": stored.entry.password_saved,
        "user": account_id,
        "created_at": rfc3339(stored.created_at),
        "updated_at": rfc3339(stored.updated_at),
    }
    return shown if stored.is_readable else shown | {"unreadable": True}
