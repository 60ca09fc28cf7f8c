"""Accounts and what they own, without HTTP, as plain functions.

``NOW`` is a moment of the tests' own: the core takes the time as an argument, so nothing is frozen.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from accountsvc.accounts import avatars, lifecycle, profiles, vault
from accountsvc.accounts.vault import Entry
from accountsvc.db.audit import OPERATOR_ACTOR, Actor
from accountsvc.db.models import Account, AuditEvent, Base, Effect, SavedPassword, VaultKey
from accountsvc.db.rows import find
from accountsvc.purge.sweep import SweepResult
from accountsvc.services import Services
from tests.support import sweeps
from tests.support.factories import PASSWORD, at, make_promise, stored_tables

NOW = datetime(2026, 12, 7, 9, 30, 15, tzinfo=UTC)
GRACE = timedelta(days=14)
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
# Just under, exactly, just over.
BOUNDARY = (-MICROSECOND, timedelta(0), MICROSECOND)


class Crash(BaseException):
    """The process is gone: not an Exception, so that nothing of the code's own handling runs."""


@contextmanager
def write(services: Services) -> Iterator[Session]:
    with services.writing() as session:
        yield session


@contextmanager
def read(services: Services) -> Iterator[Session]:
    with services.reading() as session:
        yield session


def owner(account: Account) -> Actor:
    return Actor("owner", account.public_id)


def staff(account: Account) -> Actor:
    return Actor("staff", account.public_id)


def sign_up(services: Services, name: str = "ann", **fields: Any) -> Account:
    """A real sign-up of *name* with ``<name>@example.org`` and ``PASSWORD``."""
    is_staff = fields.pop("is_staff", False)
    return profiles.sign_up(
        services.database,
        services.hasher,
        services.keyring,
        {"username": name, "email": f"{name}@example.org", "password": PASSWORD, **fields},
        is_staff=is_staff,
        clock=at(NOW),
    )


def add_accounts(
    services: Services,
    count: int = 1,
    *,
    name: str = "ann",
    purge_at: datetime | None = None,
    passwords: int = 0,
    avatar: bool = False,
    **columns: Any,
) -> list[int]:
    """Insert accounts quickly, deactivated if there is a *purge_at*; return their ids in order."""
    if purge_at is not None:
        columns = {
            "deactivated_at": purge_at - GRACE,
            "purge_at": purge_at,
            "deactivated_by": "owner",
            **columns,
        }
    names = [f"{name}{number:04}" for number in range(count)]
    rows = [
        {
            "public_id": uuid.uuid4(),
            "username": one,
            "username_key": one,
            "email": f"{one}@example.org",
            "email_key": f"{one}@example.org",
            "password_hash": "x",
            "joined_at": NOW - timedelta(days=100),
            "avatar_key": f"{uuid.uuid4().hex}.webp" if avatar else None,
            **columns,
        }
        for one in names
    ]
    with write(services) as session:
        session.execute(insert(Account), rows)
        found = session.execute(
            select(Account.username_key, Account.id).where(Account.username_key.in_(names))
        )
        by_name = dict(iter(found))
        ids = [by_name[one] for one in names]
        session.execute(
            insert(VaultKey),
            [{"account_id": one, "wrapped_key": b"k", "wrapped_by": "w"} for one in ids],
        )
        if passwords:
            session.execute(
                insert(SavedPassword),
                [
                    {"account_id": one, "ciphertext": b"c", "created_at": NOW, "updated_at": NOW}
                    for one in ids
                    for _ in range(passwords)
                ],
            )
    return ids


def add_account(services: Services, name: str = "ann", **columns: Any) -> Account:
    """One account inserted quickly, as :func:`add_accounts`."""
    (account_id,) = add_accounts(services, 1, name=name, **columns)
    return get(services, account_id)


def find_account(services: Services, account_id: int) -> Account | None:
    with read(services) as session:
        account = find(session, account_id)
        if account is not None:
            session.expunge(account)
        return account


def get(services: Services, account_id: int) -> Account:
    account = find_account(services, account_id)
    assert account is not None, "the account is gone"
    return account


def save_password(
    services: Services, account: Account, text: str = "hunter2", **fields: str
) -> int:
    entry = Entry(fields.get("name_pages", "site"), fields.get("url", "https://x.example"), text)
    with write(services) as session:
        return vault.save(
            session, services.keyring, account.id, epoch=account.epoch, entry=entry, clock=at(NOW)
        ).id


def set_avatar(services: Services, account: Account, image: bytes = b"an image") -> str:
    changed = avatars.replace_avatar(
        services.database,
        services.avatars,
        account.id,
        epoch=account.epoch,
        image=image,
        by=owner(account),
        clock=at(NOW),
    )
    assert changed.avatar_key is not None
    return changed.avatar_key


def files(services: Services) -> set[str]:
    """The keys of all files that are in the store."""
    services.avatars.check()
    return {key for key, _ in services.avatars.listing()}


def deactivate(services: Services, account_id: int, **options: Any) -> Account:
    """Deactivate by the owner at ``NOW`` for ``GRACE``, unless *options* say otherwise."""
    with write(services) as session:
        if "by" not in options:
            found = find(session, account_id)
            options["by"] = Actor("owner", None if found is None else found.public_id)
        clock = at(options.pop("now", NOW))
        promise = make_promise(grace=options.pop("grace", GRACE))
        return lifecycle.deactivate(session, account_id, clock=clock, promise=promise, **options)


def reactivate(services: Services, account_id: int, **options: Any) -> Account:
    with write(services) as session:
        clock = at(options.pop("now", NOW))
        return lifecycle.reactivate(
            session,
            account_id,
            clock=clock,
            promise=make_promise(grace=GRACE),
            **{"by": Actor("staff"), **options},
        )


def place_hold(services: Services, account_id: int, *, now: datetime = NOW) -> int:
    with write(services) as session:
        return lifecycle.place_hold(
            session, account_id, reason="court", clock=at(now), by=OPERATOR_ACTOR
        ).id


def release_hold(
    services: Services,
    account_id: int,
    hold_id: int,
    *,
    now: datetime = NOW,
    delay: timedelta = timedelta(hours=24),
) -> None:
    with write(services) as session:
        lifecycle.release_hold(
            session,
            account_id,
            hold_id,
            clock=at(now),
            promise=make_promise(hold_release_delay=delay),
            by=OPERATOR_ACTOR,
        )


def sweep(services: Services, now: datetime = NOW) -> SweepResult:
    """Purge by a clock that stands at *now*, with a ledger that takes everything."""
    return sweeps.sweep(services, now)


def rows_of(services: Services, model: type[Base], *conditions: Any) -> list[Any]:
    """All rows of *model* in the order of their keys, detached."""
    with read(services) as session:
        keys = model.__table__.primary_key.columns  # type: ignore[attr-defined]
        found = list(session.scalars(select(model).where(*conditions).order_by(*keys)))
        session.expunge_all()
        return found


def events(services: Services, action: str) -> list[AuditEvent]:
    return rows_of(services, AuditEvent, AuditEvent.action == action)


def effects(services: Services, *kinds: str) -> list[Effect]:
    return rows_of(services, Effect, *([Effect.kind.in_(kinds)] if kinds else []))


def ids_left(services: Services) -> list[int]:
    with read(services) as session:
        return list(session.scalars(select(Account.id).order_by(Account.id)))


def everything(services: Services, *, but: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Every row of every table: equal before and after means that nothing was changed."""
    with read(services) as session:
        return {
            table.name: sorted((tuple(row) for row in session.execute(table.select())), key=repr)
            for table in stored_tables(session)
            if table.name not in but
        }


def possessions(services: Services, account_id: int) -> dict[str, Any]:
    """What a bystander must still have: row, ciphertexts, key, events and what is owed."""
    with read(services) as session:
        account = find(session, account_id)
        assert account is not None, "the bystander is gone"
        found: dict[str, Any] = {
            "row": {c.name: getattr(account, c.name) for c in Account.__table__.columns}
        }
        for table in stored_tables(session):
            if "account_id" in table.c:
                rows = session.execute(table.select().where(table.c.account_id == account_id))
                found[table.name] = sorted((tuple(row) for row in rows), key=repr)
            elif "subject" in table.c:
                rows = session.execute(table.select().where(table.c.subject == account.public_id))
                found[table.name] = sorted((tuple(row) for row in rows), key=repr)
        return found
