"""Sign up, change a profile, list accounts.

A name or an e-mail belongs to one account at a time, in whatever form it is typed, also while that
account is deactivated; the database's unique keys have the last word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..db import audit, canaries, rows, rules
from ..db.addresses import address_key, is_another
from ..db.audit import Actor
from ..db.engine import Clock, Database, database_now
from ..db.models import ACTIVE, DEACTIVATED, DUE, OWNER, UNEXPLAINED, Account
from ..db.text import unique_key
from ..errors import InvalidInput
from . import pending
from .credentials import PasswordHasher
from .fields import PROFILE_FIELDS, cleaned, field_problems, password_problems
from .vault import Keyring

_TAKEN = {
    "email": "An account with this email is already taken.",
    "username": "This username is already taken.",
}


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

    Owns its transactions: the password is hashed outside them. *by* is the operator, if one creates
    it, or the canary; by default its owner. Raises InvalidInput with a sentence for every bad
    field, or Busy, and then has created nothing.
    """
    given = {name: fields.get(name, "") for name in PROFILE_FIELDS}
    problems = field_problems(given)
    values = cleaned(given)
    # Look up, and compare with the password, only fields without a problem: a text with a lone
    # surrogate would end the query with an error of the database's driver.
    sound = {name: value for name, value in values.items() if name not in problems}
    password = fields.get("password", "")
    problems |= password_problems("password", password, sound)
    with database.reading() as session:
        problems |= _taken(session, sound)
    if problems:
        raise InvalidInput(problems)
    password_hash = hasher.hash(password)
    # A canary brings its public id along; nobody else has one before.
    named = by.public_id if by is not None and by.kind == OWNER else None
    public_id = named or canaries.new_public_id()
    try:
        with database.writing() as session:
            now = clock(session)
            account = Account(
                public_id=public_id,
                username_key=unique_key(values["username"]),
                email_key=address_key(values["email"]),
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
        # Somebody else may have taken a name since it was looked up: say which one, like any other.
        with database.reading() as session:
            taken = _taken(session, values)
        if not taken:
            raise
        raise InvalidInput(taken) from exc
    return account


def check(account: Account, changes: Mapping[str, str]) -> None:
    """Raise InvalidInput for bad values in *changes*, as :func:`update_profile` does.

    What *account* has already is not asked about: a web app sends all fields for the change of one,
    and a name may be from before the rule that would refuse it. An address that is not another is
    not stored (:func:`update_profile`), in whatever spelling. It asks no database: call it before
    work that is dear and would be in vain.
    """
    asked = {
        name: changes[name]
        for name in PROFILE_FIELDS
        if name in changes and changes[name] != getattr(account, name)
    }
    if "email" in asked and not is_another(account.email, asked["email"]):
        del asked["email"]
    problems = field_problems(asked)
    if problems:
        raise InvalidInput(problems)


def changes_nothing(account: Account, changes: Mapping[str, str]) -> bool:
    """Say whether *changes* are what *account* has already, so that no lock need be taken.

    Unknown names are ignored. False for what is typed otherwise, which is looked up, and for what
    calls off a pending address.
    """
    if calls_off(account, changes):
        return False
    return all(
        changes[name].strip() == getattr(account, name)
        for name in PROFILE_FIELDS
        if name in changes
    )


def update_profile(
    session: Session,
    account_id: int,
    *,
    epoch: int,
    changes: Mapping[str, str],
    by: Actor,
    grace: timedelta,
    clock: Clock = database_now,
) -> Account:
    """Change the given profile fields, the others stay; unknown names in *changes* are ignored.

    Another e-mail address becomes the pending one (``pending.ask``), unless it was changed too
    often within a *grace* period; the caller has made sure that the owner is there, by a fresh
    token or the password. Another spelling of the domain is the same address: the one of the
    sign-up, or of the confirmation, stays, and no old session can give it one that people read
    otherwise. The address of today alone calls a pending one off; beside other fields it does not,
    because a form that sends all of them would call it off unasked.

    Raises InvalidInput; TokenNotValid if the account is no longer active or its *epoch* has moved
    on.
    """
    account = rows.lock_for_write(session, account_id, epoch=epoch, share=False)
    check(account, changes)
    values = cleaned({name: changes[name] for name in PROFILE_FIELDS if name in changes})
    now = clock(session)
    taken = _taken(session, values, own_id=account_id)
    if taken:
        raise InvalidInput(taken)
    address = values.pop("email", account.email)
    if is_another(account.email, address):
        pending.ask(session, account, address, by=by, grace=grace, now=now)
    elif calls_off(account, changes):
        pending.cancel(session, account, by=by, now=now)
    changed = {name for name, value in values.items() if getattr(account, name) != value}
    if "username" in changed:
        account.username_key = unique_key(values["username"])
    for name in changed:
        setattr(account, name, values[name])
    if changed:
        audit.record(session, "account.updated", subject=account.public_id, by=by, now=now)
    try:
        session.flush()
    except IntegrityError as exc:
        # Somebody else has taken the username since it was looked up: no other unique column is
        # written here.
        raise InvalidInput({"username": [_TAKEN["username"]]}) from exc
    return account


def calls_off(account: Account, changes: Mapping[str, str]) -> bool:
    """Say whether *changes* call off a pending address: the address of today, and nothing else.

    In another spelling it does not: who saves that has not thought of the other one.
    """
    alone = [name for name in PROFILE_FIELDS if name in changes] == ["email"]
    return account.pending_email is not None and alone and changes["email"].strip() == account.email


def list_accounts(
    session: Session,
    *,
    now: datetime,
    state: str | None = None,
    after: int = 0,
    limit: int = 100,
) -> Sequence[Account]:
    """Return at most *limit* accounts in id order, from the first id above *after*.

    With *state*: only those of which ``Account.state`` says that at *now*, or ``unexplained`` ones.
    """
    query = select(Account).where(Account.id > after).order_by(Account.id).limit(limit)
    if state == ACTIVE:
        query = query.where(rules.is_active())
    elif state == DEACTIVATED:
        query = query.where(rules.is_in_grace(now))
    elif state == DUE:
        query = query.where(rules.is_due(now))
    elif state == UNEXPLAINED:
        query = query.where(rules.is_unexplained())
    return session.scalars(query).all()


def _taken(
    session: Session, values: Mapping[str, str], *, own_id: int | None = None
) -> dict[str, list[str]]:
    """Return a sentence for each name of *values* that another account than *own_id* has."""
    problems = {}
    if "username" in values:
        key = unique_key(values["username"])
        owner_id = session.scalar(select(Account.id).where(Account.username_key == key))
        if owner_id is not None and owner_id != own_id:
            problems["username"] = [_TAKEN["username"]]
    if "email" in values and rows.other_with_email(session, values["email"], own_id):
        problems["email"] = [_TAKEN["email"]]
    return problems
