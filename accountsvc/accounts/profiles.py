"""Sign up, authenticate, change a profile, a password, an avatar; reset a password.

Functions that hash passwords or store files own their transactions, because neither belongs inside
one: they read, do the slow work, then lock the row and compare what they relied on. The others take a
Session inside a transaction of the caller.
"""

from __future__ import annotations

import re
import threading
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

import structlog
from argon2 import PasswordHasher as Argon2
from argon2 import Type
from argon2.exceptions import InvalidHashError, VerificationError
from marshmallow import ValidationError
from marshmallow.validate import Email
from sqlalchemy import delete, false, select, true, union_all, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker
from zxcvbn_rs_py import zxcvbn

from ..adapters import avatarstore
from ..db import audit, rows
from ..db.audit import Actor
from ..db.engine import Clock, database_now, reading, text_problem, writing
from ..db.models import ACTIVE, DEACTIVATED, DUE, OWNER, Account, Effect, unique_key
from ..errors import (
    AccountDeactivated,
    AccountNotFound,
    InvalidCredentials,
    InvalidInput,
    NotDeactivated,
    StoreUnavailable,
    TokenNotValid,
    WrongPassword,
)
from ..outbox import notices, queue
from ..tokens import Claims
from .vault import Keyring

log = structlog.get_logger(__name__)

PROFILE_FIELDS = ("username", "email", "first_name", "last_name", "number_phone")

_LONGEST = {
    "username": 150,
    "email": 254,
    "first_name": 150,
    "last_name": 150,
    "number_phone": 20,
    "password": 128,
    "new_password": 128,
}
_SHORTEST_PASSWORD = 8
# zxcvbn's own scale: below 2, under 10**6 guesses.
_WEAKEST_PASSWORD = 2
_check_email = Email()

# How long an upload may take before its file is deleted as an orphan of a crash.
UPLOAD_TIME = timedelta(hours=1)


class PasswordHasher:
    """argon2id (RFC 9106). At most two hashes are computed at once: each takes 64 MiB."""

    def __init__(self, cost: str = "normal") -> None:
        if cost == "cheap":
            self._argon2 = Argon2(time_cost=1, memory_cost=8, parallelism=1, type=Type.ID)
        else:
            self._argon2 = Argon2()
        self._slots = threading.BoundedSemaphore(2)
        self._decoy = self._argon2.hash(uuid.uuid4().hex)

    def hash(self, password: str) -> str:
        with self._slots:
            return self._argon2.hash(password)

    def verify(self, password_hash: str, password: str) -> bool:
        """Say whether *password* is the one; a hash that cannot be read is never right."""
        try:
            with self._slots:
                return self._argon2.verify(password_hash, password)
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False

    def burn(self, password: str) -> None:
        """Cost what :meth:`verify` costs, so that an unknown e-mail takes no less time."""
        self.verify(self._decoy, password)

    def is_outdated(self, password_hash: str) -> bool:
        return self._argon2.check_needs_rehash(password_hash)


def sign_up(
    session: Session,
    hasher: PasswordHasher,
    keyring: Keyring,
    fields: Mapping[str, str],
    *,
    is_staff: bool = False,
    by: Actor | None = None,
    clock: Clock = database_now,
) -> Account:
    """Create an account from ``username``, ``email``, ``password`` and optional profile fields.

    Owns its transactions. Names of deactivated accounts stay taken. Raises InvalidInput with a
    sentence for every bad field, and then has created nothing.
    """
    given = {name: fields.get(name, "") for name in PROFILE_FIELDS}
    problems = _problems(given)
    values = _cleaned(given)
    # What is no valid text can neither be looked up nor be compared with the password.
    sound = {name: value for name, value in values.items() if name not in problems}
    password = fields.get("password", "")
    problems |= _password_problems("password", password, sound)
    with reading(session):
        problems |= _taken(session, sound, but=None)
    if problems:
        raise InvalidInput(problems)
    password_hash = hasher.hash(password)
    public_id = uuid.uuid4()
    try:
        with writing(session):
            now = clock(session)
            account = Account(
                public_id=public_id,
                username_key=unique_key(values["username"]),
                email_key=unique_key(values["email"]),
                password_hash=password_hash,
                is_staff=is_staff,
                joined_at=now,
                epoch=0,
                **values,
            )
            session.add(account)
            session.flush()
            session.add(keyring.new_key(account))
            actor = by or Actor(OWNER, public_id)
            audit.record(session, "account.created", subject=public_id, by=actor, now=now)
            session.flush()
            session.refresh(account)
            session.expunge(account)
    except IntegrityError as exc:
        # Somebody else took the name in between.
        with reading(session):
            taken = _taken(session, values, but=None)
        if not taken:
            raise
        raise InvalidInput(taken) from exc
    return account


def _way_back(account: Account, now: datetime) -> str:
    if account.state(now) == DUE:
        return AccountDeactivated.OVER
    if account.deactivated_by != OWNER:
        return AccountDeactivated.BY_STAFF
    return AccountDeactivated.BY_OWNER


def authenticate(session: Session, hasher: PasswordHasher, *, email: str, password: str) -> Account:
    """Return the active account whose e-mail and password these are. Owns its transactions.

    Takes the same time whether the e-mail is known or not (ASVS 5.0, 6.3.8). Raises
    InvalidCredentials, and AccountDeactivated only when the password is right.
    """
    with reading(session):
        account = rows.find_by_email(session, email)
        seen = None if account is None else (account.id, account.password_hash, account.epoch)
    if seen is None:
        hasher.burn(password)
        raise InvalidCredentials
    account_id, password_hash, epoch = seen
    if not hasher.verify(password_hash, password):
        raise InvalidCredentials
    renewed = hasher.hash(password) if hasher.is_outdated(password_hash) else None
    with reading(session):
        account = rows.find(session, account_id)
        # Changed, or purged, while the password was checked: what was checked no longer counts.
        if account is None or account.password_hash != password_hash:
            raise InvalidCredentials
        if account.purge_at is not None:
            raise AccountDeactivated(
                account_id=account_id,
                purge_at=account.purge_at,
                way_back=_way_back(account, database_now(session)),
            )
        if account.epoch != epoch:
            raise InvalidCredentials
        session.expunge(account)
    if renewed is not None:
        _renew_hash(session, account_id, old=password_hash, new=renewed)
    return account


def deactivated_account(
    session: Session, hasher: PasswordHasher, *, email: str, password: str
) -> Account:
    """Return the deactivated account whose credentials these are. Owns its transactions.

    Raises InvalidCredentials, and NotDeactivated when they are those of an active account.
    """
    try:
        authenticate(session, hasher, email=email, password=password)
    except AccountDeactivated as exc:
        with reading(session):
            account = rows.find(session, exc.account_id)
            if account is None:
                raise InvalidCredentials from None
            session.expunge(account)
        return account
    raise NotDeactivated


def confirm_password(
    session: Session, hasher: PasswordHasher, account_id: int, password: str
) -> None:
    """Check that *password* is the account's. Owns its transactions; raises WrongPassword.

    A change of the password raises the epoch, so a caller that compares the epoch under the lock
    afterwards also knows that this password still is the one.
    """
    with reading(session):
        account = rows.find(session, account_id)
        password_hash = None if account is None else account.password_hash
    if password_hash is None:
        hasher.burn(password)
        raise WrongPassword
    if not hasher.verify(password_hash, password):
        raise WrongPassword


def by_claims(session: Session, claims: Claims) -> Account:
    """Return the active account of an access or refresh token.

    Raises TokenNotValid if it is gone, deactivated, or its sessions were ended since.
    """
    account = rows.find_by_public_id(session, claims.public_id)
    if account is None or not account.is_active or account.epoch != claims.epoch:
        raise TokenNotValid
    return account


def deactivated_by_claims(session: Session, claims: Claims) -> Account:
    """Return the deactivated account of a recovery or mailed token, or raise TokenNotValid."""
    account = rows.find_by_public_id(session, claims.public_id)
    if account is None or account.is_active or account.epoch != claims.epoch:
        raise TokenNotValid
    return account


def update_profile(
    session: Session,
    account_id: int,
    *,
    epoch: int,
    changes: Mapping[str, str],
    by: Actor,
    grace: timedelta,
    now: datetime,
) -> Account:
    """Change the given profile fields, the others stay; unknown names in *changes* are ignored.

    A changed e-mail address is audited and the address before it is told. The one that is remembered,
    and told of what happens within *grace*, is the oldest of several in a row: who changes it twice does
    not shake off the owner. The caller has made sure that the person is there (a fresh token or the
    password). Raises InvalidInput, TokenNotValid.
    """
    given = {name: changes[name] for name in PROFILE_FIELDS if name in changes}
    problems = _problems(given)
    if problems:
        raise InvalidInput(problems)
    values = _cleaned(given)
    account = rows.lock_for_write(session, account_id, epoch=epoch, share=False)
    taken = _taken(session, values, but=account_id)
    if taken:
        raise InvalidInput(taken)
    changed = {name for name, value in values.items() if getattr(account, name) != value}
    if "email" in changed and unique_key(values["email"]) != account.email_key:
        notices.address_changed(session, account, previous=account.email, now=now)
        if not notices.recently_moved(account, now=now, within=grace):
            account.previous_email = account.email
        account.email_changed_at = now
        audit.record(session, "account.email_changed", subject=account.public_id, by=by, now=now)
    for name in changed:
        setattr(account, name, values[name])
    if "username" in changed:
        account.username_key = unique_key(values["username"])
    if "email" in changed:
        account.email_key = unique_key(values["email"])
    if changed:
        audit.record(session, "account.updated", subject=account.public_id, by=by, now=now)
    try:
        session.flush()
    except IntegrityError as exc:
        # A sign-up or update took the name between the look and the write.
        name = "email" if "email_key" in str(exc.orig) else "username"
        raise InvalidInput({name: [_TAKEN[name]]}) from exc
    return account


def change_password(
    session: Session,
    hasher: PasswordHasher,
    account_id: int,
    *,
    epoch: int,
    password: str,
    new_password: str,
    grace: timedelta,
    by: Actor,
    clock: Clock = database_now,
) -> Account:
    """Set *new_password* and end every session. Owns its transactions.

    Raises WrongPassword if *password* is not the current one, InvalidInput if the new one is too weak,
    TokenNotValid if the account was deactivated or its sessions ended meanwhile.
    """
    with reading(session):
        account = rows.find(session, account_id)
        if account is None:
            raise TokenNotValid
        password_hash, profile = account.password_hash, _profile(account)
    if not hasher.verify(password_hash, password):
        raise WrongPassword
    problems = _password_problems("new_password", new_password, profile)
    if problems:
        raise InvalidInput(problems)
    new_hash = hasher.hash(new_password)
    with writing(session):
        account = rows.lock_for_write(session, account_id, epoch=epoch, share=False)
        if account.password_hash != password_hash:
            raise WrongPassword
        _set_password(
            session,
            account,
            new_hash,
            "account.password_changed",
            grace,
            by,
            clock(session),
        )
        session.flush()
        session.expunge(account)
    return account


def request_password_reset(session: Session, email: str, *, now: datetime) -> None:
    """Owe a mail with a reset link if *email* is an account's, deactivated or not; say nothing.

    It need not take the same time in both cases. The mail is sent later.
    """
    account = rows.find_by_email(session, email)
    if account is None or account.state(now) == DUE:
        return
    notices.password_reset(session, account, now=now)
    audit.record(
        session,
        "account.password_reset_requested",
        subject=account.public_id,
        by=audit.ANYBODY,
        now=now,
    )


def reset_is_current(account: Account, claims: Claims) -> bool:
    """Say whether a reset token of *claims* still opens: no session has ended and no address changed since.

    Otherwise whoever reads a mailbox that was given up could take the account.
    """
    moved_at = account.email_changed_at
    return account.epoch == claims.epoch and (moved_at is None or moved_at <= claims.issued_at)


def reset_password(
    session: Session,
    hasher: PasswordHasher,
    claims: Claims,
    new_password: str,
    *,
    grace: timedelta,
    clock: Clock = database_now,
) -> Account:
    """Set *new_password* by a mailed reset token, which is used up; every session ends.

    Works in the grace period too and does not reactivate. Every known address is told. Owns its
    transactions. Returns the account, detached. Raises TokenNotValid (used, or the account is due or
    gone), InvalidInput.
    """
    with reading(session):
        account = rows.find_by_public_id(session, claims.public_id)
        if account is None or not reset_is_current(account, claims):
            raise TokenNotValid
        account_id, profile = account.id, _profile(account)
    problems = _password_problems("new_password", new_password, profile)
    if problems:
        raise InvalidInput(problems)
    new_hash = hasher.hash(new_password)
    with writing(session):
        try:
            account = rows.lock(session, account_id)
        except AccountNotFound:
            raise TokenNotValid from None
        now = clock(session)
        if not reset_is_current(account, claims) or account.state(now) == DUE:
            raise TokenNotValid
        actor = Actor(OWNER, account.public_id)
        _set_password(session, account, new_hash, "account.password_reset", grace, actor, now)
        session.flush()
        session.expunge(account)
    return account


def replace_avatar(
    session: Session,
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
    with writing(session):
        account = rows.lock_for_write(session, account_id, epoch=epoch)
        now = clock(session)
        pending = queue.record(
            session,
            queue.DELETE_FILE,
            subject=account.public_id,
            payload={"key": key},
            now=now,
            after=now + UPLOAD_TIME,
        )
        pending_uid, subject = pending.uid, account.public_id
    store.put(key, image)
    try:
        with writing(session):
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
                    payload={"key": account.avatar_key},
                    now=now,
                )
            account.avatar_key = key
            audit.record(session, "avatar.replaced", subject=account.public_id, by=by, now=now)
            session.flush()
            session.expunge(account)
    except Exception:
        _hasten(session, pending_uid, subject, key, clock)
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
    sessions: sessionmaker[Session], store: avatarstore.AvatarStore, *, now: datetime
) -> Iterator[StoredAvatar]:
    """Yield every file of the store, held against the database. Raises StoreUnavailable."""
    files = store.listing()
    while page := list(islice(files, rows.PAGE)):
        keys = [key for key, _ in page]
        with sessions() as session, reading(session):
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
        queue.record(session, queue.DELETE_FILE, subject=None, payload={"key": key}, now=now)
    audit.record(session, "avatar.orphans_deleted", subject=None, by=by, now=now, count=len(keys))


def list_accounts(
    session: Session,
    *,
    now: datetime,
    state: str | None = None,
    after: int = 0,
    limit: int = 100,
) -> Sequence[Account]:
    """Return accounts in id order from the first id above *after*; *state* as ``Account.state`` says it."""
    query = select(Account).where(Account.id > after).order_by(Account.id).limit(limit)
    if state == ACTIVE:
        query = query.where(Account.purge_at.is_(None))
    elif state == DEACTIVATED:
        query = query.where(Account.purge_at > now)
    elif state == DUE:
        query = query.where(Account.purge_at <= now)
    return session.scalars(query).all()


def user_document(account: Account) -> dict[str, object]:
    """Return the account as its owner sees it on the wire; never the hash."""
    return {
        "id": account.id,
        "username": account.username,
        "email": account.email,
        "first_name": account.first_name,
        "last_name": account.last_name,
        "number_phone": account.number_phone,
        "avatar": None if account.avatar_key is None else f"/media/avatars/{account.avatar_key}",
        "is_staff": account.is_staff,
        "date_joined": f"{account.joined_at:%Y-%m-%dT%H:%M:%SZ}",
    }


_TAKEN = {
    "email": "An account with this email is already taken.",
    "username": "This username is already taken.",
}


def _problems(values: Mapping[str, str]) -> dict[str, list[str]]:
    problems: dict[str, list[str]] = {}
    for name, value in values.items():
        if text_problem(value):
            problems[name] = [text_problem(value) or ""]
        elif name in {"username", "email"} and not value.strip():
            problems[name] = ["This field may not be blank."]
        elif len(value.strip()) > _LONGEST[name]:
            problems[name] = [f"Use at most {_LONGEST[name]} characters."]
        elif name == "email" and not _is_email(value.strip()):
            problems[name] = ["Enter a valid email address."]
        elif name == "number_phone" and not re.fullmatch(r"[0-9 +\-()]*", value):
            problems[name] = ["Use digits, spaces, and + - ( ) only."]
    return problems


def _is_email(value: str) -> bool:
    try:
        _check_email(value)
    except ValidationError:
        return False
    # What a mail header could misread.
    return not re.search(r'[\s<>,;:"\\()\[\]]', value)


def _cleaned(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value.strip() for name, value in values.items()}


def _password_problems(
    name: str, password: str, profile: Mapping[str, str]
) -> dict[str, list[str]]:
    if not password:
        return {name: ["This field may not be blank."]}
    if any(unicodedata.category(character) == "Cs" for character in password) or "\0" in password:
        return {name: ["Remove NUL bytes; send valid Unicode text."]}
    if len(password) < _SHORTEST_PASSWORD:
        return {name: [f"Use at least {_SHORTEST_PASSWORD} characters."]}
    if len(password) > _LONGEST[name]:
        return {name: [f"Use at most {_LONGEST[name]} characters."]}
    known = [value for value in profile.values() if value]
    if int(zxcvbn(password, known).score) < _WEAKEST_PASSWORD:
        return {name: ["This password is too easy to guess. Add more words or characters."]}
    return {}


def _profile(account: Account) -> dict[str, str]:
    return {name: getattr(account, name) for name in PROFILE_FIELDS}


def _taken(session: Session, values: Mapping[str, str], *, but: int | None) -> dict[str, list[str]]:
    taken = {}
    for name, column in (
        ("username", Account.username_key),
        ("email", Account.email_key),
    ):
        if name not in values:
            continue
        found = session.scalar(select(Account.id).where(column == unique_key(values[name])))
        if found is not None and found != but:
            taken[name] = [_TAKEN[name]]
    return taken


def _set_password(
    session: Session,
    account: Account,
    password_hash: str,
    action: str,
    grace: timedelta,
    by: Actor,
    now: datetime,
) -> None:
    account.password_hash = password_hash
    account.password_changed_at = now
    account.epoch += 1
    audit.record(session, action, subject=account.public_id, by=by, now=now)
    notices.password_changed(session, account, now=now, grace=grace)


def _renew_hash(session: Session, account_id: int, *, old: str, new: str) -> None:
    with writing(session):
        session.execute(
            update(Account)
            .where(Account.id == account_id, Account.password_hash == old)
            .values(password_hash=new)
            .execution_options(synchronize_session=False)
        )


def _hasten(
    session: Session, pending_uid: uuid.UUID, subject: uuid.UUID, key: str, clock: Clock
) -> None:
    """Have a file that nobody will know deleted now; if even this fails, it goes an hour later."""
    try:
        with writing(session):
            now = clock(session)
            hastened = session.execute(
                update(Effect)
                .where(Effect.uid == pending_uid, Effect.attempts == 0)
                .values(deliver_after=now)
                .execution_options(synchronize_session=False)
            )
            if hastened.rowcount != 1:  # type: ignore[attr-defined]
                # The worker may have looked for the file before it was there.
                payload = {"key": key}
                queue.record(session, queue.DELETE_FILE, subject=subject, payload=payload, now=now)
    except Exception as exc:
        log.warning("an unused file will be deleted later", error=type(exc).__name__)
