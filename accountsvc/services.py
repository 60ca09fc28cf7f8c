"""The parts of one process, wired from its settings; the worker uses them without Flask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from .accounts import exports, lifecycle, pending, vault
from .accounts.attempts import Attempts
from .accounts.credentials import PasswordHasher
from .accounts.vault import Keyring
from .adapters.avatarstore import AvatarStore, store_from_url
from .adapters.ledger import Ledger, ledger_from_url
from .adapters.ledgerseal import SealKeys
from .adapters.mail import Mailer, mailer_from_url
from .adapters.redisclock import redis_clock
from .adapters.throttle import EXPORT, Throttle
from .config import ConfigError, Settings
from .db import catalog
from .db.addresses import address_key
from .db.audit import SYSTEM_ACTOR, Actor
from .db.engine import Database, database_now, make_engine
from .db.models import Account
from .outbox import delivery, healing, kept, pacing, queue, recipients
from .outbox.delivery import Origin
from .outbox.pacing import Pace
from .outbox.queue import DeliveryResult
from .purge import finish, scrub, verify
from .purge.at_once import PurgeNow
from .purge.clocks import Clocks
from .purge.mending import Mending
from .purge.rehearsal import Rehearsal
from .purge.replay import Replay
from .purge.restore import Restore
from .purge.sweep import Progress, Rules, Sweep, SweepResult
from .tokens import Tokens, derive_key

# An idle worker scrubs no sooner again: each time the whole SQLite file is rewritten.
SCRUB_AT_MOST_EVERY = timedelta(hours=1)


@dataclass(frozen=True)
class Services:
    """The parts that a doorway needs. Engines connect lazily, so it can be made before a fork."""

    settings: Settings
    promise: lifecycle.Promise
    database: Database
    tokens: Tokens
    # Makes the subjects of decoys; see credentials.request_password_reset.
    decoy_key: bytes
    hasher: PasswordHasher
    keyring: Keyring
    avatars: AvatarStore
    ledger: Ledger
    mailer: Mailer
    throttle: Throttle
    attempts: Attempts
    handlers: Mapping[str, queue.Handler]
    clocks: Clocks
    adopter: finish.Adopter

    @property
    def sweep_rules(self) -> Rules:
        """The rules that every sweep of this process heeds, by its settings."""
        settings = self.settings
        return Rules(
            batch_size=settings.purge_batch_size,
            max_attempts=settings.purge_max_attempts,
            has_brake=settings.purge_brake,
            backups_kept=settings.backup_retention,
        )

    def reading(self) -> AbstractContextManager[Session]:
        """Open a transaction that only reads, as ``Database.reading`` promises."""
        return self.database.reading()

    def writing(self) -> AbstractContextManager[Session]:
        """Open a writing transaction, as ``Database.writing`` promises."""
        return self.database.writing()

    def sweep(
        self,
        *,
        seconds: float | None = None,
        only: Sequence[int] | None = None,
        named: bool = False,
        replaying: bool = False,
        by: Actor = SYSTEM_ACTOR,
        progress: Progress | None = None,
    ) -> SweepResult:
        """Purge what is due, as ``Sweep.run`` promises, with this process's settings and ledger.

        The brake does not bound accounts that somebody has *named*. *replaying* the ledger ends
        what a restore has brought back, so neither that, nor a pause, nor the brake stops it. A
        clock that may be wrong does.

        What was scheduled by a clock that was ahead is due first; the ledger's lines would
        otherwise keep the sweep waiting until that clock's time.
        """
        healing.heal(self.database, database_now)
        sweep = Sweep(
            self.database,
            self.sweep_rules,
            self.write_ledger,
            restore=None if replaying else self.restore,
            clock=database_now,
            only=only,
            although_paused=replaying,
            named=named or replaying,
            by=by,
            clocks=self.clocks,
        )
        return sweep.run(seconds=seconds, progress=progress)

    @property
    def restore(self) -> Restore:
        """The database beside its ledger, to find whom a restore from a backup has brought back."""
        return Restore(self.database, self.ledger)

    @property
    def replay(self) -> Replay:
        """The replay of the ledger after a restore."""
        return Replay(self.database, self.ledger, self.restore, self.purge_now)

    @property
    def mending(self) -> Mending:
        """The ledger, to be given what the receipts in the database say."""
        return Mending(self.database, self.ledger)

    @property
    def purge_now(self) -> PurgeNow:
        """The purge that an operator asks for, by the parts and settings of this process."""
        return PurgeNow(
            self.database,
            self.restore,
            self.clocks,
            sweep=self.sweep,
            deliver=self.deliver,
            scrub=partial(self.scrub, at_most_every=None),
            promise=self.promise,
            max_attempts=self.settings.purge_max_attempts,
        )

    @property
    def rehearsal(self) -> Rehearsal:
        """The dry run of :attr:`purge_now`."""
        return Rehearsal(self.purge_now, self.sweep_rules)

    def deliver(
        self, *, seconds: float = 5.0, kinds: Sequence[str] | None = None
    ) -> DeliveryResult:
        """Deliver what the outbox owes, as ``queue.deliver`` promises.

        If that is of all *kinds*, forget of recipients what is a day old, too, the pending
        addresses that are not open, and the former ones that nobody will be told at; once in a
        while, owe to the purges that lack it what finishes them. No file is deleted while two
        clocks differ so much that nothing is purged.
        """
        if kinds is None:
            self.adopter.adopt(self.database, database_now)
            pacing.prune(self.database, database_now)
            pending.prune(self.database, database_now)
            recipients.prune(self.database, database_now, self.promise.grace)
        everything, kinds = kinds is None, list(self.handlers) if kinds is None else kinds
        if queue.DELETE_FILE in kinds and self.clocks.differ() is not None:
            kinds = [kind for kind in kinds if kind != queue.DELETE_FILE]
        elif everything:
            kept.prune(self.database, database_now, self.settings.backup_retention)
        return queue.deliver(
            self.database,
            database_now,
            self.handlers,
            kinds=kinds,
            seconds=seconds,
            on_dropped=delivery.on_dropped,
        )

    def export(
        self, account: Account, *, epoch: int, address: str, now: datetime
    ) -> Iterator[bytes]:
        """Return all of the account's data as a ZIP, as ``exports.export`` promises.

        Call it after the confirmation: an export counts against the account, so that somebody else
        could otherwise use up its owner's exports. Raises Throttled too.
        """
        self.throttle.spend(EXPORT, account=address_key(account.email), address=address)
        return exports.export(
            self.database, self.keyring, self.avatars, account.id, epoch=epoch, now=now
        )

    def vault_keys_fit(self) -> bool:
        """Say whether ``VAULT_KEYS`` are those of this database, as ``vault.keys_open`` does."""
        with self.reading() as session:
            return vault.keys_open(session, self.keyring)

    def unmapped_tables(self) -> Sequence[catalog.Unmapped]:
        """Return the tables of the database that are on no map, as ``catalog.unmapped`` does."""
        with self.reading() as session:
            return catalog.unmapped(session.connection())

    def say_unmapped_tables(self) -> None:
        """Log a line for each of :meth:`unmapped_tables`; none while the database is away."""
        try:
            catalog.say(self.unmapped_tables())
        except SQLAlchemyError:
            return

    def refuse_wrong_vault_keys(self) -> None:
        """Raise ConfigError if this process could open nobody's saved passwords. Call it at start.

        Where the database does not answer, or has no schema yet, nothing is known and nothing is
        refused: a process that starts before its database goes on, and ``/statusz`` tells later.
        """
        try:
            fit = self.vault_keys_fit()
        except SQLAlchemyError:
            return
        if not fit:
            raise ConfigError(
                "VAULT_KEYS opens none of this database's newest vault keys; "
                "add the key that wrapped them, or correct DATABASE_URL"
            )

    def refuse_without_signing_key(self) -> None:
        """Raise ConfigError if this process could not write the ledger. Call it at start."""
        if not self.ledger.keys.can_sign:
            raise ConfigError(
                "LEDGER_SIGNING_KEY is not set, which the worker needs to seal the ledger; "
                "for example: the output of `accountsvc signing-key`"
            )

    def write_ledger(self) -> bool:
        """Deliver the ledger lines that are owed; False if one could not be written."""
        if self.deliver(kinds=[queue.LEDGER, queue.KEEP], seconds=30).more:
            return False
        with self.reading() as session:
            return not queue.is_behind(session, queue.LEDGER, database_now(session))

    def scrub(self, *, at_most_every: timedelta | None = SCRUB_AT_MOST_EVERY) -> bool:
        """Scrub the SQLite file, as ``scrub.scrub`` promises."""
        return scrub.scrub(self.database, database_now, at_most_every=at_most_every)


def _count_nothing() -> None:
    """Stand in for a metric in a process that shows none."""


def build_services(
    settings: Settings,
    database: Database | None = None,
    *,
    count_unknown: Callable[[], None] = _count_nothing,
) -> Services:
    """Wire the parts for *settings*, on *database* or, by default, with an engine of their own.

    *count_unknown* is called once for each password that is tried for an unknown e-mail.
    """
    database = database or Database(make_engine(settings.database_url))
    avatars = store_from_url(settings.storage_url)
    keys = SealKeys(settings.ledger_signing_key, settings.ledger_public_keys)
    ledger = ledger_from_url(settings.ledger_url, keys)
    mailer = mailer_from_url(settings.mail_url)
    hasher = PasswordHasher(settings.password_hash_cost, processes=settings.web_processes)
    throttle = Throttle(
        derive_key(settings.secret_key, "throttle"),
        redis_url=settings.redis_url,
        enabled=settings.rate_limits,
    )
    tokens = Tokens(
        settings.secret_key,
        access=settings.access_token_lifetime,
        refresh=settings.refresh_token_lifetime,
    )
    handlers = delivery.handlers(
        database,
        avatars,
        ledger,
        mailer,
        tokens,
        origin=Origin(settings.public_url.rstrip("/"), settings.mail_from),
        pace=Pace(derive_key(settings.secret_key, "mail recipient")),
    )
    # Its handler looks into the places of the data map, which is not the outbox's to do.
    look = verify.Verifier(database, avatars, database_now, settings.backup_retention)
    handlers |= {queue.FINISH: finish.Finisher(database, avatars, look)}
    clocks = Clocks(database)
    if settings.redis_url:
        clocks = replace(clocks, redis_clock=redis_clock(settings.redis_url))
    return Services(
        settings=settings,
        promise=lifecycle.Promise.from_settings(settings),
        database=database,
        tokens=tokens,
        decoy_key=derive_key(settings.secret_key, "decoy"),
        hasher=hasher,
        keyring=Keyring(settings.vault_keys),
        avatars=avatars,
        ledger=ledger,
        mailer=mailer,
        throttle=throttle,
        attempts=Attempts(database, throttle, hasher, count_unknown=count_unknown),
        handlers=handlers,
        clocks=clocks,
        adopter=finish.Adopter(),
    )
