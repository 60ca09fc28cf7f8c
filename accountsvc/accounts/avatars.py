"""An account's avatar: replaced so that no crash leaves a file behind; and orphans."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from sqlalchemy import delete, false, select, true, union_all, update
from sqlalchemy.orm import Session

from ..adapters import avatarstore
from ..db import audit, rows
from ..db.audit import Actor
from ..db.engine import Clock, Database, database_now
from ..db.models import Account, Effect
from ..errors import (
    StoreUnavailable,
)
from ..outbox import queue
from ..outbox.payloads import FileDeletion
from .profiles import log

# How long an upload may take before its file is deleted as an orphan of a crash.
UPLOAD_TIME = timedelta(hours=1)


def replace_avatar(
    database: Database,
    store: avatarstore.AvatarStore,
    account_id: int,
    *,
    epoch: int,
    image: bytes,
    by: Actor,
    clock: Clock = database_now,
) -> Account:
    """Make *image* (already checked and re-encoded) the account's avatar. Owns its transactions.

    First "delete this file, not before an hour from now" is committed, then the file is stored, then one
    transaction makes it the avatar and takes that back: a crash anywhere leaves no orphan. The old
    file is deleted through the outbox. A store that gives no answer may still carry the upload out, so what it
    was to store is deleted no sooner than after that hour. Raises TokenNotValid, StoreUnavailable.
    """
    key = avatarstore.new_key()
    with database.writing() as session:
        account = rows.lock_for_write(session, account_id, epoch=epoch)
        now = clock(session)
        pending = queue.record(
            session,
            queue.DELETE_FILE,
            subject=account.public_id,
            payload=FileDeletion(key),
            now=now,
            after=now + UPLOAD_TIME,
        )
        pending_uid, subject = pending.uid, account.public_id
    store.put(key, image)
    try:
        with database.writing() as session:
            account = rows.lock_for_write(session, account_id, epoch=epoch, share=False)
            now = clock(session)
            taken_back = session.execute(
                delete(Effect).where(Effect.uid == pending_uid, Effect.attempts == 0)
            )
            if taken_back.rowcount != 1:  # type: ignore[attr-defined]
                # It took so long that the worker has begun to delete the file.
                raise StoreUnavailable
            if account.avatar_key is not None:
                queue.record(
                    session,
                    queue.DELETE_FILE,
                    subject=account.public_id,
                    payload=FileDeletion(account.avatar_key),
                    now=now,
                )
            account.avatar_key = key
            audit.record(session, "avatar.replaced", subject=account.public_id, by=by, now=now)
            session.flush()
    except Exception:
        _hasten(database, pending_uid, subject, key, clock)
        raise
    return account


@dataclass(frozen=True)
class StoredAvatar:
    """A file of the store: ``is_shown`` by an account, ``is_orphan``, or neither.

    An orphan is shown by no account and owed to no deletion: a restore has forgotten it, or its upload came
    when nobody waited for it any more. What is younger than an upload may take is none.
    """

    key: str
    written_at: datetime
    is_shown: bool
    is_orphan: bool


def stored_avatars(
    database: Database, store: avatarstore.AvatarStore, *, now: datetime
) -> Iterator[StoredAvatar]:
    """Yield every file of the store, held against the database. Raises StoreUnavailable."""
    files = store.listing()
    while page := list(islice(files, rows.CHUNK)):
        keys = [key for key, _ in page]
        with database.reading() as session:
            # In one statement: a file that is replaced meanwhile is found in one of the two places.
            known = select(Account.avatar_key, true()).where(Account.avatar_key.in_(keys))
            going = queue.files_owed(keys).add_columns(false())
            # A result has `keys`, so dict() alone would take it for a mapping.
            is_shown: dict[str, bool] = dict(iter(session.execute(union_all(going, known))))
        for key, written_at in page:
            is_old = written_at < now - UPLOAD_TIME
            yield StoredAvatar(
                key, written_at, bool(is_shown.get(key)), is_old and key not in is_shown
            )


def delete_orphaned_avatars(
    session: Session, keys: Sequence[str], *, now: datetime, by: Actor
) -> None:
    """Owe the deletion of orphans of :func:`stored_avatars`; one that is shown by then stays."""
    for key in keys:
        queue.record(session, queue.DELETE_FILE, subject=None, payload=FileDeletion(key), now=now)
    audit.record(session, "avatar.orphans_deleted", subject=None, by=by, now=now, count=len(keys))


def _hasten(
    database: Database, pending_uid: uuid.UUID, subject: uuid.UUID, key: str, clock: Clock
) -> None:
    """Have a file that nobody will know deleted now; if even this fails, it goes an hour later."""
    try:
        with database.writing() as session:
            now = clock(session)
            hastened = session.execute(
                update(Effect)
                .where(Effect.uid == pending_uid, Effect.attempts == 0)
                .values(deliver_after=now)
                .execution_options(synchronize_session=False)
            )
            if hastened.rowcount != 1:  # type: ignore[attr-defined]
                # The worker may have looked for the file before it was there.
                payload = FileDeletion(key)
                queue.record(session, queue.DELETE_FILE, subject=subject, payload=payload, now=now)
    except Exception as exc:
        log.warning("an unused file will be deleted later", error=type(exc).__name__)
