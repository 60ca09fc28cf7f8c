"""Sign up, authenticate, change a profile, a password, an avatar; reset a password.

Functions that hash passwords or store files own their transactions, because neither belongs inside
one: they read, do the slow work, then lock the row and compare what they relied on. The others take a
Session inside a transaction of the caller.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..db import audit, rows
from ..db.audit import Actor
from ..db.engine import Clock, Database, database_now
from ..db.models import ACTIVE, DEACTIVATED, DUE, OWNER, Account
from ..db.text import unique_key
from ..errors import (
    InvalidInput,
)
from ..outbox import notices
from .credentials import PasswordHasher
from .fields import PROFILE_FIELDS, cleaned, field_problems, password_problems
from .lifecycle import Promise
from .vault import Keyring

log = structlog.get_logger(__name__)


def sign_up(
    database: Database,
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
    problems = field_problems(given)
    values = cleaned(given)
    # What is no valid text can neither be looked up nor be compared with the password.
    sound = {name: value for name, value in values.items() if name not in problems}
    password = fields.get("password", "")
    problems |= password_problems("password", password, sound)
    with database.reading() as session:
        problems |= _taken(session, sound, but=None)
    if problems:
        raise InvalidInput(problems)
    password_hash = hasher.hash(password)
    public_id = uuid.uuid4()
    try:
        with database.writing() as session:
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
    except IntegrityError as exc:
        # Somebody else took the name in between.
        with database.reading() as session:
            taken = _taken(session, values, but=None)
        if not taken:
            raise
        raise InvalidInput(taken) from exc
    return account


def update_profile(
    session: Session,
    account_id: int,
    *,
    epoch: int,
    changes: Mapping[str, str],
    by: Actor,
    promise: Promise,
    clock: Clock = database_now,
) -> Account:
    """Change the given profile fields, the others stay; unknown names in *changes* are ignored.

    A changed e-mail address is audited and the address before it is told. The one that is remembered,
    and told of what happens in a grace period, is the oldest of several in a row: who changes it twice does
    not shake off the owner. The caller has made sure that the person is there (a fresh token or the
    password). Raises InvalidInput, TokenNotValid.
    """
    given = {name: changes[name] for name in PROFILE_FIELDS if name in changes}
    problems = field_problems(given)
    if problems:
        raise InvalidInput(problems)
    values = cleaned(given)
    account = rows.lock_for_write(session, account_id, epoch=epoch, share=False)
    now = clock(session)
    taken = _taken(session, values, but=account_id)
    if taken:
        raise InvalidInput(taken)
    changed = {name for name, value in values.items() if getattr(account, name) != value}
    if "email" in changed and unique_key(values["email"]) != account.email_key:
        notices.address_changed(session, account, previous=account.email, now=now)
        if not notices.recently_moved(account, now=now, within=promise.grace):
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


_TAKEN = {
    "email": "An account with this email is already taken.",
    "username": "This username is already taken.",
}


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
