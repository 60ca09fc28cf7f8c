"""The canary: a made-up person who is signed up, deleted and purged, and then searched for.

Everything goes through the code that everybody's data goes through. Since the person is made up,
their words are known, and can be searched for where a real person's cannot: whatever is found is
left of others, too.

A run ends within two minutes. Its events are ``canary.passed`` and ``canary.failed``; one that has
ended with neither is an alarm an hour later. The words are made of the public id and
``SECRET_KEY``: one that a crash has left half-way is found by its public id, purged by the same
way, and searched for, before the next is signed up.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import struct
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from ..accounts import avatars, lifecycle, profiles, vault
from ..accounts.vault import Entry
from ..adapters import images
from ..db import audit, canaries, facts, rows
from ..db.audit import SYSTEM_ACTOR, Actor
from ..db.canaries import FAILED, PASSED, Canary
from ..db.engine import database_now
from ..db.models import OWNER, Account, AuditEvent, Effect
from ..db.proofs import RESIDUE_FOUND, VERIFIED
from ..outbox import notices, queue
from ..outbox.recording import is_anything_left
from ..purge.aftermath import Aftermath
from ..services import Services
from ..tokens import derive_key
from . import residues
from .residues import Wanted

log = structlog.get_logger(__name__)

RUN_EVERY = timedelta(days=1)
# A run that has not ended by then was killed.
LONGEST_RUN = timedelta(hours=1)
# After so long without one that passed, something keeps them from being made.
PASSED_LATE = timedelta(days=2)
# The worker's tasks are killed after 120 s, and four steps wait for so long.
PATIENCE = timedelta(seconds=20)

_MAILS = [notices.SCHEDULED, notices.PURGED]
# An address for documentation (RFC 5737), from which nobody comes.
_CLIENT = "192.0.2.1"


class Amiss(Exception):
    """A step did not lead to what it should: the class alone is told."""


@dataclass(frozen=True)
class Standing:
    """When a canary passed last, and failed last; ``step`` and ``places`` are of the failure.

    ``began_at`` is of a run that has not ended.
    """

    passed_at: datetime | None = None
    failed_at: datetime | None = None
    step: str | None = None
    places: str | None = None
    began_at: datetime | None = None

    def problem(self, now: datetime, *, is_daily: bool = True) -> str | None:
        """Say in words what is wrong, or None; that none was ever made is nothing wrong.

        *is_daily*: one is made each day, so that the last may be late.
        """
        if self.failed_at is not None and (self.passed_at or self.failed_at) <= self.failed_at:
            found = f", in {self.places}" if self.places else ""
            return f"failed at the step {self.step}{found}"
        if self.began_at is not None and now - self.began_at > LONGEST_RUN:
            return "did not end"
        if is_daily and self.passed_at is not None and now - self.passed_at > PASSED_LATE:
            return "is late"
        return None


def standing(session: Session) -> Standing:
    """Return how the canary stands."""
    passed, failed = _latest(session, PASSED), _latest(session, FAILED)
    row = session.get(Canary, 1, populate_existing=True)
    ended = row is None or row.began_at is None or row.ended_at is not None
    return Standing(
        passed_at=None if passed is None else passed.at,
        failed_at=None if failed is None else failed.at,
        step=None if failed is None else str(failed.details["step"]),
        places=None if failed is None else str(failed.details.get("places") or "") or None,
        began_at=None if ended or row is None else row.began_at,
    )


def _latest(session: Session, action: str) -> AuditEvent | None:
    query = select(AuditEvent).where(AuditEvent.action == action)
    return session.scalar(query.order_by(AuditEvent.id.desc()).limit(1))


@dataclass(frozen=True)
class Outcome:
    """What became of a run: ``step`` and ``error`` of what failed, ``places`` of what was found."""

    public_id: uuid.UUID
    step: str | None = None
    error: str | None = None
    places: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.step is None


def run_if_due(services: Services) -> Outcome | None:
    """Make a canary if none was begun within a day; None if one was.

    Raises Refused where nothing may be purged: then none is made.
    """
    with services.reading() as session:
        row, now = session.get(Canary, 1), database_now(session)
    if not _is_due(row, now):
        return None
    services.purge_now.refuse_if_stopped()
    return run(services, only_if_due=True)


def run(
    services: Services,
    *,
    only_if_due: bool = False,
    say: Callable[[str], None] = lambda step: None,
) -> Outcome | None:
    """Make a canary, and look what is left of it; *say* is told each step when it is done.

    None if another run is under way, or with *only_if_due* if one has begun within a day. Raises
    whatever is wrong with the database; any other failure is in the outcome, in the log, and in the
    audit trail.
    """
    public_id = canaries.new_canary_id()
    if not _claim(services, public_id, only_if_due=only_if_due):
        return None
    life = _Life(services, public_id)
    outcome = Outcome(public_id)
    step = "leftovers"
    try:
        _purge_leftovers(services)
        for step, do in life.steps().items():
            do()
            say(step)
        step = "search"
        found = residues.places(services, life.wanted())
        outcome = Outcome(public_id, step if found else None, places=tuple(found))
    except Exception as exc:
        # Only the class is told: the text of an exception may quote what it is about.
        outcome = Outcome(public_id, step, type(exc).__name__)
    _end(services, outcome)
    return outcome


def _is_due(row: Canary | None, now: datetime) -> bool:
    # One that began in a time to come did so by a clock that was ahead.
    return row is None or row.began_at is None or not (now - RUN_EVERY < row.began_at <= now)


def _claim(services: Services, public_id: uuid.UUID, *, only_if_due: bool) -> bool:
    """Begin a run in a transaction of its own, so that two processes never make one at once."""
    with services.writing() as session:
        first = rows.insert(session, Canary).on_conflict_do_nothing()
        session.execute(first, [{"id": 1, "mails": {}}])
        row = session.get_one(Canary, 1, with_for_update=True, populate_existing=True)
        now = database_now(session)
        if only_if_due and not _is_due(row, now):
            return False
        is_running = row.began_at is not None and row.ended_at is None
        if is_running and row.began_at is not None and now - LONGEST_RUN < row.began_at <= now:
            return False
        row.public_id, row.began_at, row.ended_at, row.mails = public_id, now, None, {}
    return True


def _end(services: Services, outcome: Outcome) -> None:
    """Write the event and drop the record of mails; then tell the log."""
    with services.writing() as session:
        row = session.get_one(Canary, 1, with_for_update=True, populate_existing=True)
        now = database_now(session)
        row.ended_at, row.mails = now, {}
        _record(session, outcome, now)
    if outcome.passed:
        log.info("the canary was purged, and nothing of it is left")
    else:
        log.error(
            "the canary failed: what is left of it is left of others, too",
            step=outcome.step,
            places=list(outcome.places),
            error=outcome.error,
        )


def _record(session: Session, outcome: Outcome, now: datetime) -> None:
    subject = outcome.public_id
    if outcome.passed:
        audit.record(session, PASSED, subject=subject, by=SYSTEM_ACTOR, now=now)
        return
    audit.record(
        session,
        FAILED,
        subject=subject,
        by=SYSTEM_ACTOR,
        now=now,
        step=outcome.step,
        error=outcome.error,
        places=", ".join(outcome.places),
    )


def _purge_leftovers(services: Services) -> None:
    """Purge, by the way that everybody goes, who was left half-way; look what is left of them.

    Raises Amiss if somebody is still there, or anything of them is.
    """
    with services.reading() as session:
        query = select(Account).where(canaries.is_of_canary(Account.public_id))
        left = session.scalars(query).all()
    for account in left:
        life = _Life(services, account.public_id, account=account)
        life.avatar_key = account.avatar_key
        life.deactivate()
        life.give_up_upload()
        life.purge()
        life.settle()
        life.complete()
        if residues.places(services, life.wanted()):
            raise Amiss


@dataclass
class _Life:
    """The life of one canary, step by step; each raises if it did not come to what it should."""

    services: Services
    public_id: uuid.UUID
    account: Account | None = None
    avatar_key: str | None = None
    marks: dict[str, int] = field(default_factory=dict)
    began_at: datetime | None = None

    def steps(self) -> dict[str, Callable[[], None]]:
        """Return the steps by name, in their order."""
        return {
            "sign_up": self.sign_up,
            "avatar": self.show_avatar,
            "vault": self.fill_vault,
            "export": self.export,
            "deactivate": self.deactivate,
            "mail_scheduled": self.await_scheduled,
            "purge": self.purge,
            "effects": self.settle,
            "mails": self.check_mails,
            "complete": self.complete,
        }

    def word(self, name: str) -> str:
        """Return the word of this canary for *name*: lower-case hex that stands nowhere else."""
        key = derive_key(self.services.settings.secret_key, "canary")
        digits = hmac.new(key, f"{self.public_id} {name}".encode(), hashlib.sha256).hexdigest()
        return digits[:26]

    @property
    def actor(self) -> Actor:
        return Actor(OWNER, self.public_id)

    @property
    def known(self) -> Account:
        assert self.account is not None
        return self.account

    def wanted(self) -> Wanted:
        names = ("username", "email", "password", "first", "site", "secret")
        return Wanted(
            public_id=self.public_id,
            account_id=self.known.id,
            words=[self.word(name) for name in names],
            avatar_key=self.avatar_key,
            marks=self.marks,
            began_at=self.began_at or self.known.joined_at,
        )

    def sign_up(self) -> None:
        services = self.services
        self.marks = residues.marks(services)
        fields = {
            "username": f"canary-{self.word('username')}",
            "email": f"{self.word('email')}@{canaries.DOMAIN}",
            "password": f"canary {self.word('password')}",
            "first_name": self.word("first"),
        }
        self.account = profiles.sign_up(
            services.database, services.hasher, services.keyring, fields, by=self.actor
        )
        self.began_at = self.account.joined_at

    def show_avatar(self) -> None:
        services = self.services
        changed = avatars.replace_avatar(
            services.database,
            services.avatars,
            self.known.id,
            epoch=self.known.epoch,
            image=images.normalise(_picture()),
            by=self.actor,
        )
        if changed.avatar_key is None or not services.avatars.remaining([changed.avatar_key]):
            raise Amiss
        self.avatar_key = changed.avatar_key

    def fill_vault(self) -> None:
        site = f"https://{self.word('site')}.{canaries.DOMAIN}/"
        with self.services.writing() as session:
            vault.save(
                session,
                self.services.keyring,
                self.known.id,
                epoch=self.known.epoch,
                entry=Entry(self.word("site"), site, self.word("secret")),
            )

    def export(self) -> None:
        """Take the data along; they are all there, so that what is searched for later was there."""
        with self.services.reading() as session:
            now = database_now(session)
        pieces = self.services.export(self.known, epoch=self.known.epoch, address=_CLIENT, now=now)
        with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist()).decode(
                "utf-8", "replace"
            )
        words = [self.word(name) for name in ("username", "email", "first", "site", "secret")]
        if not all(word in content for word in words):
            raise Amiss

    def deactivate(self) -> None:
        with self.services.writing() as session:
            self.account = lifecycle.deactivate(
                session, self.known.id, promise=self.services.promise, by=self.actor
            )

    def await_scheduled(self) -> None:
        self._await(lambda session: notices.SCHEDULED in _told(session, self.public_id))

    def purge(self) -> None:
        """Ask to be purged at once, as an owner does, and sweep until the row is gone."""
        with self.services.writing() as session:
            lifecycle.due_now(session, self.known.id, by=self.actor)
        stop_at = time.monotonic() + PATIENCE.total_seconds()
        while True:
            self.services.sweep(only=[self.known.id])
            with self.services.reading() as session:
                if rows.find_by_public_id(session, self.public_id) is None:
                    return
            if time.monotonic() >= stop_at:
                raise Amiss
            time.sleep(0.2)

    def give_up_upload(self) -> None:
        """Have the file of an upload that was broken off deleted now, not an hour after it began.

        Nobody is at it: its run has ended. The mail of the purge would wait for that hour.
        """
        later = (Effect.kind == queue.DELETE_FILE) & (Effect.attempts == 0)
        with self.services.writing() as session:
            now = database_now(session)
            rows.change(
                session,
                update(Effect)
                .where(Effect.subject == self.public_id, later, Effect.deliver_after > now)
                .values(deliver_after=now, due_at=now),
            )

    def settle(self) -> None:
        """Deliver until file, ledger line and mail are owed no more."""
        mail = (Effect.subject == self.public_id) & (Effect.kind == notices.PURGED)
        is_owed = select(Effect.id).where(mail).limit(1)

        def is_done(session: Session) -> bool:
            is_told = session.scalar(is_owed) is None
            return is_told and not is_anything_left(session, self.public_id)

        self._await(is_done)

    def check_mails(self) -> None:
        """See that the mails came that must, in their order, and none before what it tells of."""
        with self.services.reading() as session:
            mails = _mails(session, self.public_id)
        if [mail["kind"] for mail in mails] != _MAILS or mails[-1]["left"]:
            raise Amiss

    def complete(self) -> None:
        """Have the purge completed: scrubbed however young the last scrub is, and finished."""
        scrub = partial(self.services.scrub, at_most_every=None)
        aftermath = Aftermath(self.services.database, self.services.deliver, scrub)
        stop_at = time.monotonic() + PATIENCE.total_seconds()
        while True:
            aftermath.finish([self.public_id], PATIENCE)
            with self.services.reading() as session:
                true = facts.of(session, [self.public_id])[self.public_id]
            if VERIFIED in true and RESIDUE_FOUND not in true:
                return
            if RESIDUE_FOUND in true or time.monotonic() >= stop_at:
                raise Amiss
            time.sleep(0.2)

    def _await(self, is_done: Callable[[Session], bool]) -> None:
        """Deliver what is owed until *is_done*; other workers may do it meanwhile. Raises Amiss."""
        stop_at = time.monotonic() + PATIENCE.total_seconds()
        while True:
            self.services.deliver(seconds=5)
            with self.services.reading() as session:
                if is_done(session):
                    return
            if time.monotonic() >= stop_at:
                raise Amiss
            time.sleep(0.2)


def _mails(session: Session, public_id: uuid.UUID) -> list[dict[str, object]]:
    """Return the mails of this canary, in the order in which they were sent."""
    row = session.scalar(
        select(Canary)
        .where(Canary.public_id == public_id)
        .execution_options(populate_existing=True)
    )
    return [] if row is None else sorted(row.mails.values(), key=lambda mail: str(mail["at"]))


def _told(session: Session, public_id: uuid.UUID) -> list[object]:
    return [mail["kind"] for mail in _mails(session, public_id)]


def _picture() -> bytes:
    """Return a PNG of one pixel: Pillow is for the process that decodes alone."""

    def part(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    head = part(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixel = part(b"IDAT", zlib.compress(b"\0\xff\xd2\x00"))
    return b"\x89PNG\r\n\x1a\n" + head + pixel + part(b"IEND", b"")
