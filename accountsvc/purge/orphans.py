"""Orphans by schedule: found daily in slices, in quarantine for a day, then deleted with a cap.

An orphan is a file that no account shows and whose deletion nobody owes. A search compares the
whole store with the database once a day, and goes on after a restart where it has ended. What it
finds is written down and stays where it is; a day later the transaction that owes the deletion asks
again. Nothing is deleted while purging is stopped, for whatever reason: a restored database forgets
files that it will know again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import ColumnElement, delete, exists, func, select
from sqlalchemy.orm import Session

from ..accounts import avatars
from ..accounts.avatars import StoredAvatar
from ..adapters.avatarstore import AvatarStore
from ..db import generations, rows
from ..db.audit import SYSTEM_ACTOR
from ..db.engine import Clock, Database, database_now
from ..db.orphaned import FileSearch, OrphanedFile
from ..outbox import files as stores
from . import stops
from .clocks import Clocks, Reading
from .restore import Restore

log = structlog.get_logger(__name__)

SEARCH_EVERY = timedelta(days=1)
QUARANTINE = timedelta(hours=24)
# The clocks of the store and of the database may differ by this much, or a file whose upload is
# under way would look old.
AGE_FLOOR = avatars.UPLOAD_TIME + timedelta(minutes=10)
# One slice compares so many files at most, four requests to S3 or a few folders.
SLICE_FILES = 4000
# So many are deleted for each search, so that a mistake costs a hundred files a day, and somebody
# sees it before it has cost all of them.
MOST_DELETED = 100


@dataclass(frozen=True)
class Orphanage:
    """The files in quarantine, and what was deleted by schedule since this database is there.

    ``oldest`` is how long the oldest is nobody's. ``is_refused``: there are more of them than files
    that accounts show, so none is deleted by schedule. ``searched_at`` is when the last search of
    the whole store ended.
    """

    count: int
    oldest: timedelta
    deleted: int
    searched_at: datetime | None
    is_refused: bool


def standing(session: Session, now: datetime) -> Orphanage:
    """Return how the quarantine stands at *now*."""
    count, oldest = _quarantined(session)
    search = session.get(FileSearch, 1, populate_existing=True)
    return Orphanage(
        count=count,
        oldest=timedelta() if oldest is None else max(now - oldest, timedelta()),
        deleted=0 if search is None else search.deleted,
        searched_at=None if search is None else search.ended_at,
        is_refused=search is not None and _is_refused(search, count),
    )


def since(session: Session, keys: Sequence[str]) -> dict[str, datetime]:
    """Return since when each of *keys*, a chunk at most, is in quarantine; the others are not."""
    found = session.execute(
        select(OrphanedFile.key, OrphanedFile.found_at).where(OrphanedFile.key.in_(keys))
    )
    # Iterate over the result: it has a method ``keys``, so dict() would take it for a mapping.
    return dict(iter(found))


@dataclass(frozen=True)
class Orphans:
    """The daily search, and the deletions that follow from it. Safe beside itself."""

    database: Database
    store: AvatarStore
    restore: Restore
    clocks: Clocks
    clock: Clock = database_now

    def run(self, *, seconds: float) -> bool:
        """Go on with the day's search for about *seconds*, then delete what is ripe.

        Returns True if the search has more to compare. Raises StoreUnavailable if the store cannot
        be listed, and Refused if files are ripe and nothing may be purged: both change nothing.
        """
        if self.search(seconds=seconds):
            return True
        self.delete_ripe()
        return False

    def search(self, *, seconds: float) -> bool:
        """Compare one slice of the store, if a search is due or under way; True if more remain.

        Files that are nobody's go into quarantine; of those that were in it, and are gone or
        somebody's by now, the record is removed. Raises StoreUnavailable.
        """
        with self.database.reading() as session:
            now = self.clock(session)
            before = session.get(FileSearch, 1, populate_existing=True)
            position = (None, None) if before is None else (before.began_at, before.reached)
            if before is not None and before.reached is None and not _is_due(before, now):
                return False
        after = position[1] or ""
        if not after:
            # Nobody has uploaded anything to a service that has just begun: its folder is made, or
            # each search would fail until then.
            stores.check(self.database, self.store)
        files, is_whole = self._compare(after, now, seconds)
        with self.database.writing() as session:
            search = _lock(session)
            if position != (search.began_at, search.reached):
                # Another process was faster: its slice counts.
                return False
            if search.reached is None:
                search.began_at, search.seen, search.taken = now, 0, 0
            reached = files[-1].key if files else after
            _write_down(session, files, after, None if is_whole else reached, now)
            search.seen += sum(file.is_shown for file in files)
            search.reached = reached
            if is_whole:
                search.reached, search.shown, search.ended_at = None, search.seen, now
                count, _ = _quarantined(session)
        if is_whole:
            self._say_found(count, search)
        return not is_whole

    def delete_ripe(self) -> int:
        """Owe the deletion of files whose quarantine is over; return how many.

        At most ``MOST_DELETED`` for each search, and none while a search is under way, or while
        more files are nobody's than accounts show: it may be the wrong database. Raises Refused as
        a purge does.
        """
        with self.database.reading() as session:
            now = self.clock(session)
            if not _may_delete(session.get(FileSearch, 1), session) or not session.scalar(
                select(exists().where(_is_ripe(now)))
            ):
                return 0
            high_water = generations.high_water(session)
        reading = self.clocks.look()
        self.restore.refuse_after_restore()
        with self.database.writing() as session:
            search = _lock(session)
            now = self.clock(session)
            self._heed(session, now, reading, high_water)
            if not _may_delete(search, session):
                return 0
            ripe = session.scalars(
                select(OrphanedFile.key)
                .where(_is_ripe(now))
                .order_by(OrphanedFile.found_at, OrphanedFile.key)
                .limit(MOST_DELETED - search.taken)
            ).all()
            theirs = avatars.claimed(session, ripe)
            orphaned = [key for key in ripe if key not in theirs]
            if theirs:
                session.execute(delete(OrphanedFile).where(OrphanedFile.key.in_(list(theirs))))
            if orphaned:
                avatars.delete_orphaned_avatars(session, orphaned, now=now, by=SYSTEM_ACTOR)
            search.taken += len(orphaned)
            search.deleted += len(orphaned)
        if orphaned:
            log.warning("files that were nobody's for a day are deleted", count=len(orphaned))
        return len(orphaned)

    def _compare(
        self, after: str, now: datetime, seconds: float
    ) -> tuple[list[StoredAvatar], bool]:
        """Compare the files behind *after*, a chunk at least; say whether they were the last."""
        stop_at = time.monotonic() + seconds
        files: list[StoredAvatar] = []
        for file in avatars.stored_avatars(self.database, self.store, now=now, after=after):
            files.append(file)
            is_page = len(files) % rows.CHUNK == 0
            if len(files) >= SLICE_FILES or (is_page and time.monotonic() >= stop_at):
                return files, False
        return files, True

    def _heed(
        self,
        session: Session,
        now: datetime,
        reading: Reading,
        high_water: generations.HighWater,
    ) -> None:
        """Raise Refused inside the transaction that would delete, as a batch of a purge does."""
        # A backup may have been put back since the ledger was looked at.
        if not generations.is_replayed(session) or generations.high_water(session) < high_water:
            raise stops.DatabaseBehind
        stops.heed_pause(session)
        self.clocks.heed(session, now, reading)

    def _say_found(self, count: int, search: FileSearch) -> None:
        if _is_refused(search, count):
            log.error(
                "more files are nobody's than accounts show, so none is deleted by schedule: is "
                "it the right database? `accountsvc avatars orphans`",
                orphans=count,
                shown=search.shown,
            )
        elif count:
            log.warning("files are nobody's, and in quarantine", count=count)


def _is_due(search: FileSearch, now: datetime) -> bool:
    # One that began in a time to come did so by a clock that was ahead: until then none would.
    began = search.began_at
    return began is None or not (now - SEARCH_EVERY < began <= now)


def _is_ripe(now: datetime) -> ColumnElement[bool]:
    return OrphanedFile.found_at <= now - QUARANTINE


def _is_refused(search: FileSearch, count: int) -> bool:
    return search.ended_at is not None and count > search.shown


def _may_delete(search: FileSearch | None, session: Session) -> bool:
    if search is None or search.reached is not None or search.taken >= MOST_DELETED:
        return False
    return search.ended_at is not None and not _is_refused(search, _quarantined(session)[0])


def _quarantined(session: Session) -> tuple[int, datetime | None]:
    count, oldest = session.execute(
        select(func.count(), func.min(OrphanedFile.found_at)).select_from(OrphanedFile)
    ).one()
    return count, oldest


def _write_down(
    session: Session,
    files: Sequence[StoredAvatar],
    after: str,
    reached: str | None,
    now: datetime,
) -> None:
    """Have the quarantine of the keys from *after* to *reached*, or to the end, as was found."""
    orphans = {
        file.key: file.written_at
        for file in files
        if file.is_orphan and file.written_at < now - AGE_FLOOR
    }
    within = [OrphanedFile.key > after]
    if reached is not None:
        within.append(OrphanedFile.key <= reached)
    there = session.execute(select(OrphanedFile.key, OrphanedFile.found_at).where(*within)).all()
    # Found in a time to come, by a clock that was ahead, it would be ripe only then: it is found
    # anew.
    known = {key for key, found_at in there if found_at <= now}
    ended = [key for key, _ in there if key not in orphans or key not in known]
    for chunk in rows.chunks(ended):
        session.execute(delete(OrphanedFile).where(OrphanedFile.key.in_(chunk)))
    found = [
        {"key": key, "found_at": now, "written_at": written_at}
        for key, written_at in orphans.items()
        if key not in known
    ]
    if found:
        session.execute(rows.insert(session, OrphanedFile).on_conflict_do_nothing(), found)


def _lock(session: Session) -> FileSearch:
    """Lock the row of the search, and make it first if it is missing."""
    query = select(FileSearch).with_for_update().execution_options(populate_existing=True)
    search = session.scalar(query)
    if search is None:
        session.execute(rows.insert(session, FileSearch).on_conflict_do_nothing(), [{"id": 1}])
        search = session.scalars(query).one()
    return search
