"""The handler that deletes avatar files, and whether their store is the one with our files.

In a folder whose disk is not mounted, and in a wrong bucket, each file is missing. So what a store
says of missing files is believed only where a file that an account shows is in it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import structlog
from sqlalchemy import exists, literal, or_, select

from ..adapters.avatarstore import AvatarStore
from ..db.engine import Database
from ..db.models import Account, Effect, Receipt
from ..errors import StoreUnavailable
from . import moments, queue
from .payloads import FileDeletion
from .queue import Outcome, Owed

log = structlog.get_logger(__name__)

# So many files are named in the line of the log about those that cannot be deleted.
_NAMED = 5
# So many pictures that accounts show are looked for. With one alone, an account that has lost its
# file by itself would have every deletion wait.
SAMPLED = 5


class StoreLooksEmpty(StoreUnavailable):
    """The store has no picture that an account shows, so it is hardly the one with our files."""

    def __init__(self) -> None:
        super().__init__(
            "No picture that accounts show is in the store: mount its disk, or correct STORAGE_URL."
        )


def refuse_wrong_store(database: Database, avatars: AvatarStore) -> None:
    """Raise StoreLooksEmpty if accounts show files, and none of a few of them is in the store.

    Call it behind what the store has said, and before that is believed: a disk that was there now
    was there then. Costs one query, and a question to the store for each file until one is found.
    Raises StoreUnavailable.
    """
    with database.reading() as session:
        # Keys are random, so what follows a random one is a sample of all.
        start = secrets.token_hex(16)
        by_key = select(Account.avatar_key).order_by(Account.avatar_key).limit(SAMPLED)
        behind = by_key.where(Account.avatar_key >= start).subquery()
        before = by_key.where(Account.avatar_key < start).subquery()
        query = select(behind.c.avatar_key).union_all(select(before.c.avatar_key))
        shown = [key for key in session.scalars(query) if key is not None][:SAMPLED]
    if shown and not any(avatars.remaining([key]) for key in shown):
        log.error(
            "no picture that accounts show is in the store, so no file is believed to be deleted: "
            "mount its disk, or correct STORAGE_URL",
            looked_for=len(shown),
        )
        raise StoreLooksEmpty


def check(database: Database, avatars: AvatarStore) -> None:
    """Raise StoreUnavailable unless the store can be used; :func:`begin` it if that is due."""
    begin(database, avatars)
    avatars.check()


def begin(database: Database, avatars: AvatarStore) -> None:
    """Make the store, if it is missing, of a service that has stored no file yet.

    That of another is never made anew: each of its files would seem to be deleted. Raises
    StoreUnavailable.
    """
    if avatars.is_there():
        return
    used = or_(
        exists().where(Account.avatar_key.is_not(None)),
        exists().where(Effect.kind == queue.DELETE_FILE),
        exists().where(Receipt.files > 0),
    )
    with database.reading() as session:
        is_used = session.scalar(select(literal(1)).where(used)) is not None
    if not is_used:
        avatars.begin()


def delete_unshown(
    database: Database, avatars: AvatarStore, keys: Collection[str]
) -> tuple[set[str], Mapping[str, str]]:
    """Delete the files of *keys* but for those that an account shows; return both kinds that stay.

    That is who is shown, and each that may still be there with a short reason. A file that an
    account shows is kept even if a row asks for its deletion: a mistake in one row would otherwise
    cost a person their picture. Raises StoreUnavailable, also where the store is hardly ours.
    """
    with database.reading() as session:
        query = select(Account.avatar_key).where(Account.avatar_key.in_(keys))
        shown = {key for key in session.scalars(query) if key is not None}
    wanted = [key for key in keys if key not in shown]
    failed = avatars.delete_many(wanted)
    if len(failed) < len(wanted):
        refuse_wrong_store(database, avatars)
    if failed:
        # Nobody would find the one file of a million that stands in the way otherwise.
        log.warning("files cannot be deleted", count=len(failed), keys=sorted(failed)[:_NAMED])
    return shown, failed


def remover(database: Database, avatars: AvatarStore) -> queue.Handler:
    """Return the handler of file deletions; it gives up on a file that an account shows.

    One is done when the store says that no version is left, and is the one with our files. With the
    last of a purged account it is written that its files are absent.
    """

    def remove(effects: Sequence[Owed], now: datetime) -> Outcome:
        by_key = {FileDeletion.read(effect.payload).key: effect for effect in effects}
        shown, failed = delete_unshown(database, avatars, by_key)
        return Outcome(
            failed={by_key[key].uid: error for key, error in failed.items()},
            given_up={by_key[key].uid for key in shown},
            settled=moments.files_deleted,
        )

    return remove
