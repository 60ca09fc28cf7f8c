"""The handler that deletes avatar files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import structlog
from sqlalchemy import select

from ..adapters.avatarstore import AvatarStore
from ..db.engine import Database
from ..db.models import Account
from . import moments, queue
from .payloads import FileDeletion
from .queue import Outcome, Owed

log = structlog.get_logger(__name__)

# So many files are named in the line of the log about those that cannot be deleted.
_NAMED = 5


def remover(database: Database, avatars: AvatarStore) -> queue.Handler:
    """Return the handler of file deletions; it gives up on a file that an account shows.

    One is done when the store says that no version is left, and with the last of a purged account
    it is written that its files are absent.
    """

    def remove(effects: Sequence[Owed], now: datetime) -> Outcome:
        by_key = {FileDeletion.read(effect.payload).key: effect for effect in effects}
        with database.reading() as session:
            # A file that an account shows is kept even if a row asks for its deletion: a mistake in
            # one row would otherwise cost a person their picture.
            shown = set(
                session.scalars(select(Account.avatar_key).where(Account.avatar_key.in_(by_key)))
            )
        failed = avatars.delete_many([key for key in by_key if key not in shown])
        if failed:
            # Nobody would find the one file of a million that stands in the way otherwise.
            keys = sorted(failed)[:_NAMED]
            log.warning("files cannot be deleted", count=len(failed), keys=keys)
        return Outcome(
            failed={by_key[key].uid: error for key, error in failed.items()},
            given_up={by_key[key].uid for key in shown if key is not None},
            settled=moments.files_deleted,
        )

    return remove
