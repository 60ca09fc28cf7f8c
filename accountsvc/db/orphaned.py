"""The tables of the search for orphans: files of the avatar store that are nobody's."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base


class OrphanedFile(Base):
    """A file in quarantine, nobody's since ``found_at``. Its key is random, and names nobody.

    The file stays where it is, under its name: an account that shows it after all loses nothing.
    """

    __tablename__ = "orphaned_files"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    found_at: Mapped[datetime] = mapped_column(index=True)
    # By the store's clock.
    written_at: Mapped[datetime]


class FileSearch(Base):
    """The one row of the daily search: how far it has come, and what it has counted.

    ``reached`` is the last key that was compared, in the order of the store's listing, and null
    while no search is under way. ``seen`` counts what accounts show so far,
    ``shown`` what they showed in the last whole search, which ended at ``ended_at``.
    """

    __tablename__ = "file_search"
    __table_args__ = (
        CheckConstraint("id = 1", name="one_row"),
        CheckConstraint("seen >= 0 AND shown >= 0 AND deleted >= 0 AND taken >= 0", name="counts"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    began_at: Mapped[datetime | None]
    reached: Mapped[str | None] = mapped_column(String(64))
    seen: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    shown: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    ended_at: Mapped[datetime | None]
    # Orphans whose deletion was owed by schedule: since this search began, and in all.
    taken: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    deleted: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
