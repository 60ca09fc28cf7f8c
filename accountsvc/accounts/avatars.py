"""An account's avatar: no crash leaves a file behind that nobody knows, or a row without its file.

The one exception is a file that is lost with its row's history: a restored backup forgets it. Such
orphans are listed; ``purge.orphans`` puts them into quarantine, and deletes them later.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

import structlog
from sqlalchemy import delete, false, select, true, union_all, update
from sqlalchemy.orm import Session

from .. import bounds
from ..adapters import avatarstore
from ..db import audit, rows
from ..db.audit import Actor
from ..db.engine import Clock, Database, database_now
from ..db.models import Account, Effect
from ..db.orphaned import OrphanedFile
from ..errors import BUSY_FILES, StoreUnavailable
from ..outbox import files as stores
from ..outbox import queue
from ..outbox.payloads import FileDeletion
from ..turns import Turns

log = structlog.get_logger(__name__)

# Take a turn before a request reads or writes a file.
file_turns = Turns(
    bounds.FILES_AT_ONCE,
    bounds.FILES_WAITING,
    limit=BUSY_FILES,
    refusal="Too many pictures are being read or stored at this moment. "
    "Try again in a few seconds.",
)

# An upload may take so long before its file is deleted as the orphan of a crash. With less, a slow
# store would have its files deleted while they are being stored.
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

    First "delete this file, not before an hour from now" is committed, then the file is stored,
    then one transaction makes it the avatar and takes the deletion back: a crash anywhere leaves no
    orphan. The old file is deleted through the outbox. A store that gives no answer may still carry
    the upload out, so its file is deleted no sooner than after that hour.

    Raises TokenNotValid if the account is no longer active or its *epoch* has moved on,
    StoreUnavailable if the file may not have been stored.
    """
    key = avatarstore.new_key()
    # Behind the deletion the first upload of all would find a store that was used.
    stores.begin(database, store)
    with database.writing() as session:
        account = rows.lock_for_write(session, account_id, epoch=epoch)
        now = clock(session)
        deletion_uid = queue.record(
            session,
            queue.DELETE_FILE,
            subject=account.public_id,
            payload=FileDeletion(key),
            now=now,
            after=now + UPLOAD_TIME,
        )
        subject = account.public_id
    store.put(key, image)
    try:
        with database.writing() as session:
            account = rows.lock_for_write(session, account_id, epoch=epoch, share=False)
            now = clock(session)
            withdrawn = rows.change(
                session, delete(Effect).where(Effect.uid == deletion_uid, Effect.attempts == 0)
            )
            if not withdrawn:
                # The upload took so long that the worker has claimed the deletion: the account
                # would show a file that is about to go.
                raise StoreUnavailable
            _owe_deletion_of_old(session, account, now)
            account.avatar_key = key
            audit.record(session, "avatar.replaced", subject=account.public_id, by=by, now=now)
            session.flush()
    except Exception:
        _hasten(database, deletion_uid, subject, key, clock)
        raise
    return account


def _owe_deletion_of_old(session: Session, account: Account, now: datetime) -> None:
    if account.avatar_key is not None:
        queue.record(
            session,
            queue.DELETE_FILE,
            subject=account.public_id,
            payload=FileDeletion(account.avatar_key),
            now=now,
        )


@dataclass(frozen=True)
class StoredAvatar:
    """A file of the store: ``is_shown`` by an account, ``is_orphan``, or neither.

    An orphan is shown by no account and its deletion is not owed: a restore has forgotten it, or
    its upload arrived after it had been given up. A file younger than ``UPLOAD_TIME`` is no orphan:
    its account may be about to show it.
    """

    key: str
    written_at: datetime
    is_shown: bool
    is_orphan: bool


def stored_avatars(
    database: Database, store: avatarstore.AvatarStore, *, now: datetime, after: str = ""
) -> Iterator[StoredAvatar]:
    """Yield every file of the store behind the key *after*, compared with the database as of *now*.

    Sorted by key. Reads in pages, each in a short transaction. Raises StoreUnavailable.
    """
    files = store.listing(after=after)
    while page := list(islice(files, rows.CHUNK)):
        with database.reading() as session:
            is_shown = claimed(session, [key for key, _ in page])
        for key, written_at in page:
            is_old = written_at < now - UPLOAD_TIME
            yield StoredAvatar(
                key, written_at, bool(is_shown.get(key)), is_old and key not in is_shown
            )


def claimed(session: Session, keys: Sequence[str]) -> dict[str, bool]:
    """Return those of *keys* that are somebody's: True if an account shows it, else it is owed.

    At most a chunk of keys. Both places are looked into in one statement: between two, a file could
    move from the account's row to the outbox, and would be taken for an orphan.
    """
    shown = select(Account.avatar_key, true()).where(Account.avatar_key.in_(keys))
    owed = queue.files_owed(keys).add_columns(false())
    # Iterate over the result: it has a method ``keys``, so dict() would take it for a mapping.
    return dict(iter(session.execute(union_all(owed, shown))))


def delete_orphaned_avatars(
    session: Session, keys: Sequence[str], *, now: datetime, by: Actor
) -> None:
    """Owe the deletion of orphans of :func:`stored_avatars`; one that is shown by then stays.

    *keys* are those of the orphans, a chunk at most, which leave their quarantine. One audit event
    counts them.
    """
    session.execute(delete(OrphanedFile).where(OrphanedFile.key.in_(keys)))
    for key in keys:
        queue.record(session, queue.DELETE_FILE, subject=None, payload=FileDeletion(key), now=now)
    audit.record(session, "avatar.orphans_deleted", subject=None, by=by, now=now, count=len(keys))


def _hasten(
    database: Database, deletion_uid: uuid.UUID, subject: uuid.UUID, key: str, clock: Clock
) -> None:
    """Have the file of a failed replacement deleted at once instead of after ``UPLOAD_TIME``.

    Raises nothing: if this fails too, the file is deleted then.
    """
    try:
        with database.writing() as session:
            now = clock(session)
            hastened = rows.change(
                session,
                update(Effect)
                .where(Effect.uid == deletion_uid, Effect.attempts == 0)
                .values(deliver_after=now),
            )
            if not hastened:
                # The worker has claimed the deletion, perhaps before the file was there. Owe it
                # once more, or the file would stay for ever.
                payload = FileDeletion(key)
                queue.record(session, queue.DELETE_FILE, subject=subject, payload=payload, now=now)
    except Exception as exc:
        log.warning("an unused file will be deleted later", error=type(exc).__name__)
