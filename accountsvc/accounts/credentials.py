"""Passwords and sessions: hash, authenticate, change, reset, and whose token it is.

Functions that hash passwords own their transactions, because a hash takes too long to hold a lock
meanwhile: they read, hash, then lock the row and compare what they relied on. Whether an e-mail
address has an account shows in no answer and, where a password is tried, in no time that it takes.
"""

from __future__ import annotations

import hmac
import os
import uuid
from dataclasses import dataclass, replace
from datetime import datetime

from argon2 import PasswordHasher as Argon2
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.profiles import RFC_9106_LOW_MEMORY
from sqlalchemy import update
from sqlalchemy.orm import Session

from .. import bounds
from ..db import audit, rows
from ..db.addresses import address_key
from ..db.audit import Actor, Witness
from ..db.engine import Clock, Database, database_now
from ..db.models import DUE, OWNER, Account
from ..errors import (
    BUSY_PASSWORDS,
    AccountDeactivated,
    AccountNotFound,
    Busy,
    InvalidCredentials,
    InvalidInput,
    NotDeactivated,
    TokenNotValid,
    WrongPassword,
)
from ..outbox import notices
from ..tokens import Claims
from ..turns import Turns
from .fields import is_too_long, normalised, password_problems, profile_of
from .lifecycle import Promise

# The setting PASSWORD_HASH_COST names one of these. "normal" is the second recommendation of RFC
# 9106 (section 4); with "cheap", which tests use, a stolen table of hashes would soon be guessed.
_PARAMETERS = {
    "normal": RFC_9106_LOW_MEMORY,
    "cheap": replace(RFC_9106_LOW_MEMORY, time_cost=1, memory_cost=8, parallelism=1),
}

# These are hashes of random passwords that nobody knows, of the parameters above. Were they made
# anew at each start, every command of the CLI would begin with half a second of hashing; were their
# parameters others, the time of an answer would tell which e-mail addresses have an account.
_DECOYS = {
    "normal": "$argon2id$v=19$m=65536,t=3,p=4$mnAXIctJH7qXm1X/YCeKEQ"
    "$GJQRK2B6ESnirXZLiy0Ij+IvP3ewuR+L03oeIsuMfHU",
    "cheap": "$argon2id$v=19$m=8,t=1,p=1$WHRdQoWio3MIuJkQYr4iKg"
    "$NoJRnE0qZqcTKcLzdGja1M+42YgWGBfbX+/LoWQObQw",
}


@dataclass(frozen=True)
class Verdict:
    """Whether a password is the one that was hashed, and if so, whether to hash it anew.

    ``is_outdated``: the hash was made with other parameters, or of the password as it was typed.
    """

    is_right: bool
    is_outdated: bool = False


WRONG = Verdict(is_right=False)


class PasswordHasher:
    """Hash and verify passwords by argon2id (RFC 9106); safe to share between threads.

    A password is hashed :func:`~.fields.normalised`, so that it is the same on every system.

    All *processes* of a host together compute as many hashes at once as there are *cores* (by
    default those that this process may use), and ``HASHES_WAITING`` more wait. Each has an equal
    share of both, rounded down and at least one: ``at_once`` and ``waiting``. What is beyond is
    refused at once: each method that computes a hash raises Busy then, and holds nothing but its
    thread while it waits.

    A hash takes 64 MiB at the normal *cost*, and as many threads as it has lanes, four. So one
    alone may use four cores; several at once take longer each, but the processor's time of a hash
    and the hashes a second stay what they are. More at once than cores would only take memory.
    """

    def __init__(
        self, cost: str = "normal", *, processes: int = 1, cores: int | None = None
    ) -> None:
        self.at_once = max(1, (cores or _cores()) // processes)
        self.waiting = max(1, bounds.HASHES_WAITING // processes)
        self._argon2 = Argon2.from_parameters(_PARAMETERS[cost])
        self._turns = Turns(self.at_once, self.waiting, limit=BUSY_PASSWORDS)
        self._decoy = _DECOYS[cost]

    def hash(self, password: str) -> str:
        """Return a new hash of *password*, with its salt and parameters, in PHC format."""
        with self._turns.take():
            return self._argon2.hash(normalised(password))

    def judge(self, password_hash: str, password: str) -> Verdict:
        """Say whether *password_hash* is one of *password*; wrong also for an unreadable hash.

        Releases without normalising hashed what was typed, so a *password* that is typed otherwise
        than it is normalised is tried in both forms. Which hash is of which form nobody can see:
        the second costs a hash for every wrong password of that kind, known e-mail or not.

        Wrong for what is too long, of which no hash is, in the time of ``PASSWORD_CHARACTERS``.
        """
        if is_too_long(password):
            with self._turns.take():
                self._matches(password_hash, password[: bounds.PASSWORD_CHARACTERS])
            return WRONG
        normal = normalised(password)
        # Both forms in one turn: a right password is not refused for want of a second one.
        with self._turns.take():
            if self._matches(password_hash, normal):
                return Verdict(is_right=True, is_outdated=self.is_outdated(password_hash))
            if normal != password and self._matches(password_hash, password):
                return Verdict(is_right=True, is_outdated=True)
        return WRONG

    def verify(self, password_hash: str, password: str) -> bool:
        """Say whether *password_hash* is one of *password*, as :meth:`judge` does."""
        return self.judge(password_hash, password).is_right

    def burn(self, password: str) -> None:
        """Take the time of a wrong *password*, so that an unknown e-mail is answered no sooner."""
        self.judge(self._decoy, password)

    def is_outdated(self, password_hash: str) -> bool:
        """Say whether *password_hash* was made with other parameters than this hasher's."""
        return self._argon2.check_needs_rehash(password_hash)

    def _matches(self, password_hash: str, form: str) -> bool:
        try:
            return self._argon2.verify(password_hash, form)
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False


def _cores() -> int:
    """Return on how many cores this process may run: the whole host's, where nobody can say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def authenticate(
    database: Database, hasher: PasswordHasher, *, email: str, password: str
) -> Account:
    """Return the active account whose e-mail and password these are. Owns its transactions.

    Takes the same time whether the e-mail is known or not (ASVS 5.0, 6.3.8). Stores a new hash of
    the password if the old one is outdated.

    Raises InvalidCredentials, and AccountDeactivated only when the password is right; Busy, known
    e-mail or not.
    """
    with database.reading() as session:
        seen = rows.find_by_email(session, email)
    if seen is None:
        hasher.burn(password)
        raise InvalidCredentials
    verdict = hasher.judge(seen.password_hash, password)
    if not verdict.is_right:
        raise InvalidCredentials
    if verdict.is_outdated:
        _renew_hash(database, hasher, seen, password)
    with database.reading() as session:
        account = rows.find(session, seen.id)
        # Password or address may have been changed while the password was verified: the old one
        # must not sign in. A moved epoch alone makes no right password a wrong one: whoever presses
        # the button that keeps an account twice would be told so, and it would be counted.
        if (
            account is None
            or _has_another_password(account, seen)
            or account.email_key != seen.email_key
        ):
            raise InvalidCredentials
        if account.purge_at is not None:
            raise AccountDeactivated(
                account_id=account.id,
                purge_at=account.purge_at,
                way_back=_way_back(account, database_now(session)),
            )
    return account


def deactivated_account(
    database: Database, hasher: PasswordHasher, *, email: str, password: str
) -> Account:
    """Return the deactivated account whose credentials these are. Owns its transactions.

    Takes the time that :func:`authenticate` takes. Raises InvalidCredentials, Busy, and
    NotDeactivated when they are those of an active account.
    """
    try:
        authenticate(database, hasher, email=email, password=password)
    except AccountDeactivated as exc:
        with database.reading() as session:
            account = rows.find(session, exc.account_id)
        if account is None:
            raise InvalidCredentials from None
        return account
    raise NotDeactivated


def confirm_password(
    database: Database, hasher: PasswordHasher, account_id: int, password: str
) -> None:
    """Check that *password* is the account's. Owns its transactions; raises WrongPassword, Busy.

    Stores a new hash of the password if the old one is outdated, as :func:`authenticate` does: who
    stays signed in confirms more often than they sign in.

    A change of the password raises the epoch, so a caller that compares the epoch under the lock
    afterwards also knows that this still is the password.
    """
    with database.reading() as session:
        account = rows.find(session, account_id)
    if account is None:
        hasher.burn(password)
        raise WrongPassword
    verdict = hasher.judge(account.password_hash, password)
    if not verdict.is_right:
        raise WrongPassword
    if verdict.is_outdated:
        _renew_hash(database, hasher, account, password)


def seen_by_claims(session: Session, claims: Claims) -> tuple[Account, datetime]:
    """Return the active account of an access token that is in time, and the database's time.

    Raises TokenNotValid as :func:`by_claims` does, and for a token that is not in time.
    """
    seen = rows.see(session, claims.public_id)
    if seen is None:
        raise TokenNotValid
    account, now = seen
    if not claims.is_in_time(now=now):
        raise TokenNotValid
    return _if_active(account, claims), now


def by_claims(session: Session, claims: Claims) -> Account:
    """Return the active account of an access or refresh token.

    Raises TokenNotValid if it is gone, deactivated, or its sessions were ended since.
    """
    return _if_active(rows.find_by_public_id(session, claims.public_id), claims)


def _if_active(account: Account | None, claims: Claims) -> Account:
    if account is None or not account.is_active or account.epoch != claims.epoch:
        raise TokenNotValid
    return account


def deactivated_by_claims(session: Session, claims: Claims) -> Account:
    """Return the deactivated account of a recovery or mailed token, or raise TokenNotValid."""
    account = rows.find_by_public_id(session, claims.public_id)
    if account is None or account.is_active or account.epoch != claims.epoch:
        raise TokenNotValid
    return account


def change_password(
    database: Database,
    hasher: PasswordHasher,
    claims: Claims,
    *,
    password: str,
    new_password: str,
    promise: Promise,
    clock: Clock = database_now,
) -> Account:
    """Set *new_password* for the owner and end every session. Owns its transactions.

    *claims* are those of the owner's access token. Raises WrongPassword if *password* is not the
    current one, InvalidInput if the new one is too weak, Busy, TokenNotValid if the account was
    deactivated or its sessions were ended meanwhile.
    """
    with database.reading() as session:
        seen = rows.find_by_public_id(session, claims.public_id)
    if seen is None:
        raise TokenNotValid
    if not hasher.verify(seen.password_hash, password):
        raise WrongPassword
    problems = password_problems("new_password", new_password, profile_of(seen))
    if problems:
        raise InvalidInput(problems)
    new_hash = hasher.hash(new_password)
    with database.writing() as session:
        account = rows.lock_for_write(session, seen.id, epoch=claims.epoch, share=False)
        now = clock(session)
        if _has_another_password(account, seen):
            raise WrongPassword
        _set_password(session, account, new_hash, "account.password_changed", promise, now)
    return account


def end_sessions(
    session: Session, account_id: int, *, epoch: int, clock: Clock = database_now
) -> None:
    """End every session of the active account, that of *epoch* too; links to set a password end.

    Of two at once the later one finds its own session ended. An active account has no promise, so
    the event is the witness of none.

    Raises TokenNotValid if the account is gone or deactivated, or its epoch has moved on.
    """
    account = rows.lock_for_write(session, account_id, epoch=epoch, share=False)
    account.raise_epoch()
    owner = Actor(OWNER, account.public_id)
    audit.record(
        session, "account.signed_out", subject=account.public_id, by=owner, now=clock(session)
    )
    session.flush()


def request_password_reset(
    session: Session, email: str, *, decoy_key: bytes, now: datetime
) -> None:
    """Owe a mail with a reset link to the account of *email*, or a decoy that is never sent.

    The same statements run for every *email* and leave the same kind of row, so neither the time
    taken nor the count of what is owed tells who has an account (ASVS 5.0, 6.3.8). Delivery sends
    nothing for a decoy, nor for an account that is due; it also audits, since an event that is
    written here for accounts only would tell the same.
    """
    decoy = _decoy_subject(decoy_key, address_key(email))
    subject, epoch = rows.identify(session, email) or (decoy, 0)
    notices.password_reset(session, subject, epoch=epoch, now=now)


def _decoy_subject(key: bytes, email_key: str) -> uuid.UUID:
    """Return the subject of a decoy: an HMAC of the address, which nobody without *key* can make.

    It is the same for the same address, so that a second decoy replaces the first, as a second mail
    does: with a random one the count of what is owed would grow by each request for strangers only.
    """
    digest = hmac.digest(key, email_key.encode(errors="surrogatepass"), "sha256")
    return uuid.UUID(bytes=digest[:16], version=4)


def reset_is_current(account: Account, claims: Claims) -> bool:
    """Say whether the reset token of *claims* may still be used.

    It may until the account's sessions are ended or its address is changed: otherwise somebody who
    reads a mailbox that the owner has given up could take the account.
    """
    moved_at = account.email_changed_at
    return account.epoch == claims.epoch and (moved_at is None or moved_at <= claims.issued_at)


def reset_password(
    database: Database,
    hasher: PasswordHasher,
    claims: Claims,
    new_password: str,
    *,
    promise: Promise,
    clock: Clock = database_now,
) -> Account:
    """Set *new_password* by a mailed reset token, which is used up; every session ends.

    Works in the grace period too and does not reactivate. Every known address is told. Owns its
    transactions. Raises TokenNotValid (used, or the account is due or gone), InvalidInput, Busy.
    """
    with database.reading() as session:
        seen = rows.find_by_public_id(session, claims.public_id)
    if seen is None or not reset_is_current(seen, claims):
        raise TokenNotValid
    problems = password_problems("new_password", new_password, profile_of(seen))
    if problems:
        raise InvalidInput(problems)
    new_hash = hasher.hash(new_password)
    with database.writing() as session:
        try:
            account = rows.lock(session, seen.id)
        except AccountNotFound:
            raise TokenNotValid from None
        now = clock(session)
        if not reset_is_current(account, claims) or account.state(now) == DUE:
            raise TokenNotValid
        _set_password(session, account, new_hash, "account.password_reset", promise, now)
    return account


def _way_back(account: Account, now: datetime) -> str:
    """Say in the words of AccountDeactivated whether its owner can have the account back."""
    if account.state(now) == DUE:
        return AccountDeactivated.OVER
    if account.deactivated_by != OWNER:
        return AccountDeactivated.BY_STAFF
    return AccountDeactivated.BY_OWNER


def _set_password(
    session: Session,
    account: Account,
    password_hash: str,
    action: str,
    promise: Promise,
    now: datetime,
) -> None:
    """Store the hash on the locked *account*, end all its sessions and tell its owner."""
    owner = Actor(OWNER, account.public_id)
    # In the grace period the promise goes on under the next epoch: without a witness of that, who
    # has reset the password would not be purged any more.
    explained = audit.is_explained(session, account)
    account.password_hash = password_hash
    account.password_changed_at = now
    account.raise_epoch()
    witness = Witness.of(account) if explained else None
    audit.record(session, action, subject=account.public_id, by=owner, now=now, witness=witness)
    notices.password_changed(session, account, now=now, grace=promise.grace)
    session.flush()


def _has_another_password(account: Account, seen: Account) -> bool:
    """Say whether the password was changed since *seen* was read.

    A changed password raises the epoch. Another hash under the same epoch is one of the same
    password, which somebody has just used elsewhere: refusing it would call a right password wrong.
    """
    return account.password_hash != seen.password_hash and account.epoch != seen.epoch


def _renew_hash(database: Database, hasher: PasswordHasher, seen: Account, password: str) -> None:
    """Store a new hash of the right *password*; do nothing if the one that was *seen* is gone."""
    try:
        new_hash = hasher.hash(password)
    except Busy:
        # The next try can renew it: a right password is not refused for want of a second turn.
        return
    with database.writing() as session:
        rows.change(
            session,
            update(Account)
            .where(Account.id == seen.id, Account.password_hash == seen.password_hash)
            .values(password_hash=new_hash),
        )
