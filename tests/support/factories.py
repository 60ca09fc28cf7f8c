"""Applications, people and what they own and do, as plain functions.

Functions over :class:`Services`; a test of an application passes ``services_of(app)``. Each takes a
moment as *now*, and asks the database's clock without one. The names hold no hash and no random
part: a test that searches for them finds only what it made.
"""

from __future__ import annotations

import base64
import itertools
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from apiflask import APIFlask
from PIL import Image
from sqlalchemy import delete, insert, select, text
from sqlalchemy.orm import Session

from accountsvc import create_app
from accountsvc.accounts import avatars, lifecycle, profiles, vault
from accountsvc.accounts.lifecycle import Promise
from accountsvc.accounts.vault import Entry, Keyring
from accountsvc.adapters import avatarstore, images
from accountsvc.config import Settings, load_settings
from accountsvc.db import audit
from accountsvc.db.audit import OPERATOR_ACTOR, SYSTEM_ACTOR, Actor, Witness
from accountsvc.db.engine import database_now
from accountsvc.db.models import (
    Account,
    AuditEvent,
    Effect,
    FormerAddress,
    LegalHold,
    SavedPassword,
    VaultKey,
)
from accountsvc.db.rows import find
from accountsvc.outbox import delivery, queue
from accountsvc.outbox.queue import DeliveryResult
from accountsvc.services import Services
from tests.support import moments
from tests.support.conformance import ConformingClient
from tests.support.moments import GRACE, NOW, clock_of

PASSWORD = "correct horse battery staple"
# Of different bytes, as production wants keys: tests of it share databases with others.
SECRET_KEY = "Kq7-Vw2mX9tRb4Yc8ZdP5hLs3NfJ6gTa0Ue1Ri"
VAULT_KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
SIGNING_KEY = base64.urlsafe_b64encode(bytes(range(64, 96))).decode()

# Applications


def variables(database_url: str, folder: Path) -> dict[str, str]:
    """The environment variables of every test: cheap hashes, no throttles, all in *folder*."""
    return {
        "INSTANCE_PATH": str(folder / "instance"),
        "SECRET_KEY": SECRET_KEY,
        "VAULT_KEYS": VAULT_KEY,
        "LEDGER_SIGNING_KEY": SIGNING_KEY,
        "DATABASE_URL": database_url,
        "PASSWORD_HASH_COST": "cheap",
        "RATE_LIMITS": "off",
    }


def make_settings(database_url: str, folder: Path, **changes: str) -> Settings:
    """Settings for tests, of :func:`variables`; *changes* are other environment variables."""
    return load_settings({**variables(database_url, folder), **changes})


def make_app(database_url: str, folder: Path, **changes: str) -> APIFlask:
    """An application on a database that is already migrated; ``dispose`` it in the end."""
    app = create_app(make_settings(database_url, folder, **changes))
    app.test_client_class = ConformingClient
    return app


def services_of(app: APIFlask) -> Services:
    services: Services = app.extensions["accountsvc"]
    return services


def dispose(app: APIFlask) -> None:
    services_of(app).database.engine.dispose()


def run_sql(services: Services, statement: str, **values: Any) -> None:
    """Do by hand what no code of ours would."""
    with services.writing() as session:
        session.execute(text(statement), values)


# People


_NUMBERS = itertools.count()


def new_name(beginning: str) -> str:
    """A name that nobody in this process has, for tests that share a database."""
    return f"{beginning}{next(_NUMBERS)}"


def owner(account: Account) -> Actor:
    """The actor that an account is for itself."""
    return Actor("owner", account.public_id)


def make_account(
    services: Services,
    name: str = "ann",
    *,
    staff: bool = False,
    now: datetime | None = None,
    **fields: Any,
) -> Account:
    """A real sign-up of *name* with the e-mail ``<name>@example.org`` and ``PASSWORD``."""
    return profiles.sign_up(
        services.database,
        services.hasher,
        services.keyring,
        {"username": name, "email": f"{name}@example.org", "password": PASSWORD, **fields},
        is_staff=staff,
        clock=clock_of(now),
    )


def save_password(
    services: Services,
    account: Account,
    secret: str = "hunter2",
    *,
    now: datetime | None = None,
    **fields: str,
) -> int:
    """Save a password in the vault of *account*; return its id."""
    entry = Entry(fields.get("name_pages", "site"), fields.get("url", "https://x.example"), secret)
    with services.writing() as session:
        return vault.save(
            session,
            services.keyring,
            account.id,
            epoch=account.epoch,
            entry=entry,
            clock=clock_of(now),
        ).id


def fill_vault(services: Services, account: Account, count: int, secret: str = "x") -> list[int]:
    """Put *count* entries into the vault of *account* at once, past its quota; return their ids."""
    entries = [Entry(f"site {number}", "https://x.example", secret) for number in range(count)]
    with services.writing() as session:
        return _saved_passwords(session, services, account, entries, database_now(session))


def _saved_passwords(
    session: Session,
    services: Services,
    account: Account,
    entries: Sequence[Entry],
    moment: datetime,
) -> list[int]:
    key = vault.open_key(session, services.keyring, account)
    rows = [
        SavedPassword(
            uid=uuid.uuid4(),
            account_id=account.id,
            ciphertext=b"",
            created_at=moment,
            updated_at=moment,
        )
        for _ in entries
    ]
    for row, entry in zip(rows, entries, strict=True):
        row.ciphertext = vault._encrypt_entry(key, account, row, entry)
    session.add_all(rows)
    session.flush()
    return sorted(row.id for row in rows)


def set_avatar(
    services: Services, account: Account, image: bytes = b"an image", *, now: datetime | None = None
) -> str:
    """Replace the avatar of *account* by the file *image*; return its key."""
    changed = avatars.replace_avatar(
        services.database,
        services.avatars,
        account.id,
        epoch=account.epoch,
        image=image,
        by=owner(account),
        clock=clock_of(now),
    )
    assert changed.avatar_key is not None
    return changed.avatar_key


@dataclass(frozen=True)
class Person:
    """An account with three saved passwords and an avatar, and a fresh access token for it."""

    id: int
    email: str
    public_id: Any
    token: str
    avatar: str
    passwords: tuple[int, ...]

    @property
    def auth(self) -> dict[str, str]:
        return bearer(self.token)


def make_person(services: Services, name: str = "ann", *, staff: bool = False) -> Person:
    """Somebody who has everything that an account can own, a former address too."""
    account = make_account(
        services, name, staff=staff, first_name=name.title(), number_phone="+1 (2) 3"
    )
    avatar = avatarstore.new_key()
    services.avatars.begin()
    services.avatars.put(avatar, _picture())
    with services.writing() as session:
        account = session.merge(account, load=False)
        moment = database_now(session)
        saved = _saved_passwords(
            session,
            services,
            account,
            [
                Entry(f"site {number}", "https://example.org", f"{name} {number}")
                for number in range(3)
            ],
            moment,
        )
        # From long ago, so that no mail goes there.
        long_ago = account.joined_at - timedelta(days=365)
        session.add(
            FormerAddress(
                account_id=account.id,
                email=f"{name}@before.example",
                held_since=long_ago - timedelta(days=1),
                left_at=long_ago,
            )
        )
        account.avatar_key = avatar
        by = owner(account)
        audit.record(session, "avatar.replaced", subject=account.public_id, by=by, now=moment)
        session.flush()
    return Person(
        id=account.id,
        email=account.email,
        public_id=account.public_id,
        token=services.tokens.access(account, now=moment, fresh=True),
        avatar=avatar,
        passwords=tuple(saved),
    )


@cache
def _picture() -> bytes:
    """The avatar of every person, encoded once: a process started for each would be half of a test."""
    return images.normalise(png())


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def access_token(
    services: Services, account: Account, *, fresh: bool = True, age: timedelta = timedelta()
) -> str:
    """An access token that was made *age* ago by the database's clock."""
    return services.tokens.access(account, now=moments.now(services) - age, fresh=fresh)


def recovery_token(
    services: Services, account: Account, *, fresh: bool = True, age: timedelta = timedelta()
) -> str:
    """A recovery token as a sign-in of *age* ago gave it, or as an old session's deletion did."""
    moment = moments.now(services) - age
    return services.tokens.recovery(
        account, now=moment, fresh=fresh, password_at=moment if fresh else None
    )


def png(side: int = 16, colour: str = "red", mode: str = "RGB") -> bytes:
    file = BytesIO()
    Image.new(mode, (side, side), colour).save(file, "PNG")
    return file.getvalue()


# Many at once


def numbered(name: str, count: int) -> list[str]:
    """*count* names that begin with *name*, in order from 0."""
    return [f"{name}{number}" for number in range(count)]


def insert_accounts(services: Services, names: Sequence[str], **options: Any) -> list[int]:
    """Insert accounts in one transaction, with the options of :func:`insert_accounts_in`."""
    with services.writing() as session:
        return insert_accounts_in(session, names, **options)


def insert_account(services: Services, name: str = "ann", **options: Any) -> Account:
    """Insert one account, with the options of :func:`insert_accounts_in`."""
    with services.writing() as session:
        (account_id,) = insert_accounts_in(session, [name], **options)
        return session.get_one(Account, account_id)


def witness(services: Services, account_id: int | None = None) -> None:
    """Write the witness of what the row says, of one account or of everybody who is away.

    For a date that a test has set by hand and that somebody promised all the same.
    """
    with services.writing() as session:
        witness_in(session, None if account_id is None else [account_id])


def witness_in(session: Session, ids: Sequence[int] | None = None) -> None:
    """Write witnesses as :func:`witness` does; with *ids* of those who are away among them."""
    session.flush()
    away = select(Account).where(Account.deactivated_at.is_not(None))
    if ids is not None:
        away = away.where(Account.id.in_(ids))
    now = database_now(session)
    events = [
        audit.row(
            "deletion.witnessed",
            subject=account.public_id,
            by=SYSTEM_ACTOR,
            now=now,
            witness=Witness.of(account),
        )
        for account in session.scalars(away.execution_options(populate_existing=True))
    ]
    if events:
        session.execute(insert(AuditEvent), events)


def insert_accounts_in(
    session: Session,
    names: Sequence[str],
    *,
    purge_at: datetime | None = None,
    passwords: int = 0,
    avatar_key: Callable[[str], str] | None = None,
    held: bool = False,
    witnessed: bool = True,
    **columns: Any,
) -> list[int]:
    """Insert accounts with a vault key each, quickly, and return their ids in the order of *names*.

    Nothing is hashed, no entry encrypted and no file made. Who has a *purge_at* was deactivated by
    the owner ``GRACE`` before, with the witness of it unless *witnessed* is false; no other event is
    written. *held* ones have an open hold. Each has *passwords*
    saved passwords, and *avatar_key* makes the key of its avatar from its name. *columns* are the
    same for all.
    """
    then = NOW if purge_at is None else purge_at - GRACE
    if purge_at is not None:
        away = {"deactivated_at": then, "purge_at": purge_at, "deactivated_by": "owner"}
        columns = {**away, **columns}
    people: list[dict[str, Any]] = [
        {
            "public_id": uuid.uuid4(),
            "username": name,
            "username_key": name,
            "email": f"{name}@example.org",
            "email_key": f"{name}@example.org",
            "password_hash": "!",
            "joined_at": then - timedelta(days=86),
            "avatar_key": None if avatar_key is None else avatar_key(name),
            **columns,
        }
        for name in names
    ]
    added = insert(Account).returning(Account.id, sort_by_parameter_order=True)
    ids = list(session.scalars(added, people))
    session.execute(insert(VaultKey), _vault_keys(ids, people))
    if witnessed and people and people[0].get("purge_at") is not None:
        session.execute(insert(AuditEvent), _witnesses(people))
    entries = [
        {
            "account_id": number,
            "ciphertext": f"sealed for {name}".encode(),
            "created_at": then,
            "updated_at": then,
        }
        for number, name in zip(ids, names, strict=True)
        for _ in range(passwords)
    ]
    if entries:
        session.execute(insert(SavedPassword), entries)
    if held:
        hold = {"reason": "court", "placed_at": then, "placed_by_kind": "operator"}
        session.execute(insert(LegalHold), [{"account_id": number, **hold} for number in ids])
    return ids


def _witnesses(people: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        audit.row(
            "account.deactivated",
            subject=person["public_id"],
            by=Actor("owner", person["public_id"]),
            now=person["deactivated_at"],
            witness=Witness(person.get("epoch", 0), person["deactivated_at"], person["purge_at"]),
        )
        for person in people
    ]


def _vault_keys(ids: Sequence[int], people: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A real key for each account: a process whose keys open none of the newest does not start."""
    keyring = Keyring((base64.urlsafe_b64decode(VAULT_KEY),))
    keys = [
        keyring.new_key(Account(id=number, public_id=person["public_id"]))
        for number, person in zip(ids, people, strict=True)
    ]
    return [
        {
            "account_id": key.account_id,
            "wrapped_key": key.wrapped_key,
            "wrapped_by": key.wrapped_by,
        }
        for key in keys
    ]


def put_files(folder: Path, keys: Sequence[str]) -> None:
    """Write an avatar's file for each key, laid out as the store does, without its care."""
    for key in keys:
        (folder / key[:2]).mkdir(parents=True, exist_ok=True)
        (folder / key[:2] / key).write_bytes(b"an image")


# What is done to an account


def make_promise(
    *,
    grace: timedelta = GRACE,
    reminders: Sequence[timedelta] = (),
    hold_release_delay: timedelta = timedelta(hours=24),
) -> Promise:
    """A promise as the settings make it by default, but without reminders."""
    return Promise(
        grace=grace,
        max_grace=timedelta(days=90),
        reminders=reminders,
        hold_release_delay=hold_release_delay,
    )


def deactivate(
    services: Services,
    account_id: int,
    *,
    by: str | Actor = "owner",
    grace: timedelta = GRACE,
    reminders: Sequence[timedelta] = (),
    now: datetime | None = None,
    ahead: timedelta = timedelta(),
    **options: Any,
) -> Account:
    """Deactivate at *now*, or *ahead* of the database's clock, by the owner unless *by* differs."""
    with services.writing() as session:
        if isinstance(by, str):
            account = find(session, account_id)
            by = Actor(by, account.public_id if account is not None and by == "owner" else None)
        account = lifecycle.deactivate(
            session,
            account_id,
            clock=clock_of(now, ahead=ahead),
            promise=make_promise(grace=grace, reminders=reminders),
            by=by,
            **options,
        )
        session.flush()
        session.expunge(account)
    return account


def make_due(services: Services, person: Person, *, since: str | None = None) -> None:
    """Deactivate *person* with a purge time that has come: now, or at the moment *since*."""
    deactivate(services, person.id, by="operator", grace=timedelta())
    # The promise is rounded up to a whole second.
    run_sql(services, "UPDATE accounts SET purge_at = deactivated_at WHERE id = :id", id=person.id)
    if since is not None:
        run_sql(
            services,
            "UPDATE accounts SET deactivated_at = :since, purge_at = :since WHERE id = :id",
            since=since,
            id=person.id,
        )
    witness(services, person.id)


def reactivate(
    services: Services,
    account_id: int,
    *,
    by: Actor | None = None,
    now: datetime | None = None,
    **options: Any,
) -> Account:
    """Reactivate, by the staff unless *by* is another."""
    with services.writing() as session:
        return lifecycle.reactivate(
            session,
            account_id,
            clock=clock_of(now),
            promise=make_promise(),
            by=Actor("staff") if by is None else by,
            **options,
        )


def place_hold(services: Services, account_id: int, *, now: datetime | None = None) -> int:
    """Suspend the purge of an account; return the hold's id."""
    with services.writing() as session:
        return lifecycle.place_hold(
            session, account_id, reason="court", clock=clock_of(now), by=OPERATOR_ACTOR
        ).id


def release_hold(
    services: Services,
    account_id: int,
    hold_id: int,
    *,
    now: datetime | None = None,
    delay: timedelta = timedelta(hours=24),
) -> None:
    """End a hold; the purge waits for *delay* from then on."""
    with services.writing() as session:
        lifecycle.release_hold(
            session,
            account_id,
            hold_id,
            clock=clock_of(now),
            promise=make_promise(hold_release_delay=delay),
            by=OPERATOR_ACTOR,
        )


def deliver_after(
    services: Services, pause: timedelta, *, kinds: Sequence[str] | None = None
) -> DeliveryResult:
    """Deliver what will be due *pause* from now, as if it was then."""
    return queue.deliver(
        services.database,
        lambda session: database_now(session) + pause,
        services.handlers,
        kinds=kinds,
        seconds=60,
        on_dropped=delivery.on_dropped,
    )


def drop_mails(services: Services, now: datetime) -> None:
    """Have the files deleted that are owed at *now*, and drop *purged* mails as at their expiry."""
    files = [queue.DELETE_FILE]
    queue.deliver(services.database, clock_of(now), services.handlers, kinds=files, seconds=60)
    with services.writing() as session:
        mails = session.scalars(select(Effect).where(Effect.kind == queue.PURGED)).all()
        owed = [queue.as_owed(one) for one in mails]
        delivery.on_dropped(session, owed, now, why=queue.EXPIRED)
        session.execute(delete(Effect).where(Effect.kind == queue.PURGED))
