"""Applications, people and what they own, as plain functions.

The names hold no hash and no random part: a test that searches for them finds only what it made.
"""

from __future__ import annotations

import base64
import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

from apiflask import APIFlask
from PIL import Image
from sqlalchemy import Engine, Table, func, insert, inspect, select, text
from sqlalchemy.orm import Session

from accountsvc import create_app
from accountsvc.accounts import avatars, lifecycle, profiles, vault
from accountsvc.accounts.lifecycle import Promise
from accountsvc.accounts.vault import Entry
from accountsvc.adapters import avatarstore, images
from accountsvc.adapters.avatarstore import new_key
from accountsvc.config import Settings, load_settings
from accountsvc.db import audit
from accountsvc.db.engine import Clock, database_now
from accountsvc.db.models import Account, AuditEvent, Effect, LegalHold, SavedPassword, VaultKey
from accountsvc.db.rows import find
from accountsvc.outbox import delivery, queue
from accountsvc.outbox.queue import DeliveryResult
from accountsvc.services import Services
from tests.support.conformance import ConformingClient

PASSWORD = "correct horse battery staple"
SECRET_KEY = "a secret for tests, which is long enough"
VAULT_KEY = base64.urlsafe_b64encode(b"k" * 32).decode()


def make_settings(database_url: str, folder: Path, **changes: str) -> Settings:
    """Settings for tests: cheap hashes, no throttles; *changes* are environment variables."""
    return load_settings(
        {
            "INSTANCE_PATH": str(folder / "instance"),
            "SECRET_KEY": SECRET_KEY,
            "VAULT_KEYS": VAULT_KEY,
            "DATABASE_URL": database_url,
            "PASSWORD_HASH_COST": "cheap",
            "RATE_LIMITS": "off",
            **changes,
        }
    )


def make_app(database_url: str, folder: Path, **changes: str) -> APIFlask:
    """An application on a database that is already migrated; ``dispose`` it in the end."""
    app = create_app(make_settings(database_url, folder, **changes))
    app.test_client_class = ConformingClient
    return app


def services_of(app: APIFlask) -> Services:
    found: Services = app.extensions["accountsvc"]
    return found


def dispose(app: APIFlask) -> None:
    services_of(app).database.engine.dispose()


def make_account(
    app: APIFlask, name: str = "ann", *, staff: bool = False, **fields: str
) -> Account:
    """An active account *name* with the e-mail ``<name>@example.org`` and ``PASSWORD``."""
    made = services_of(app)
    return profiles.sign_up(
        made.database,
        made.hasher,
        made.keyring,
        {"username": name, "email": f"{name}@example.org", "password": PASSWORD, **fields},
        is_staff=staff,
    )


_NUMBERS = itertools.count()


def new_name(beginning: str) -> str:
    """A name that nobody in this process has, for tests that share a database."""
    return f"{beginning}{next(_NUMBERS)}"


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


def make_person(app: APIFlask, name: str = "ann", *, staff: bool = False) -> Person:
    """Somebody who has everything that an account can own."""
    account = make_account(app, name, staff=staff, first_name=name.title(), number_phone="+1 (2) 3")
    made = services_of(app)
    with made.writing() as session:
        saved = tuple(
            vault.save(
                session,
                made.keyring,
                account.id,
                epoch=account.epoch,
                entry=Entry(f"site {number}", "https://example.org", f"{name} {number}"),
            ).id
            for number in range(3)
        )
    account = avatars.replace_avatar(
        made.database,
        made.avatars,
        account.id,
        epoch=account.epoch,
        image=images.normalise(png()),
        by=audit.Actor("owner", account.public_id),
    )
    assert account.avatar_key is not None
    return Person(
        id=account.id,
        email=account.email,
        public_id=account.public_id,
        token=access_token(app, account),
        avatar=account.avatar_key,
        passwords=saved,
    )


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def access_token(
    app: APIFlask, account: Account, *, fresh: bool = True, age: timedelta = timedelta()
) -> str:
    """An access token that was made *age* ago by the database's clock."""
    return services_of(app).tokens.access(account, now=now(app) - age, fresh=fresh)


def read_account(app: APIFlask, account_id: int) -> Account | None:
    with services_of(app).reading() as session:
        account = find(session, account_id)
        if account is not None:
            session.expunge(account)
        return account


def make_promise(
    *,
    grace: timedelta = timedelta(days=14),
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
    app: APIFlask,
    account_id: int,
    *,
    by: str = "owner",
    grace: timedelta = timedelta(days=14),
    reminders: Sequence[timedelta] = (),
    ahead: timedelta = timedelta(),
) -> Account:
    """Deactivate without HTTP, *ahead* of now."""
    with services_of(app).writing() as session:
        found = find(session, account_id)
        assert found is not None
        account = lifecycle.deactivate(
            session,
            account_id,
            clock=lambda session: database_now(session) + ahead,
            promise=make_promise(grace=grace, reminders=reminders),
            by=audit.Actor(by, found.public_id if by == "owner" else None),
        )
        session.flush()
        session.expunge(account)
    return account


def deliver_after(
    app: APIFlask, pause: timedelta, *, kinds: Sequence[str] | None = None
) -> DeliveryResult:
    """Deliver what will be due *pause* from now, as if it was then."""
    made = services_of(app)
    return queue.deliver(
        made.database,
        lambda session: database_now(session) + pause,
        made.handlers,
        kinds=kinds,
        seconds=60,
        on_given_up=delivery.on_given_up,
    )


def make_due(app: APIFlask, person: Person, *, since: str | None = None) -> None:
    """Deactivate *person* with a purge time that has come: now, or at the moment *since*."""
    deactivate(app, person.id, by="operator", grace=timedelta())
    # The promise is rounded up to a whole second.
    run_sql(app, "UPDATE accounts SET purge_at = deactivated_at WHERE id = :id", id=person.id)
    if since is not None:
        run_sql(
            app,
            "UPDATE accounts SET deactivated_at = :since, purge_at = :since WHERE id = :id",
            since=since,
            id=person.id,
        )


def insert_due(
    services: Services, count: int, *, passwords: int, avatars: bool = False, held: bool = False
) -> set[uuid.UUID]:
    """Insert many accounts that were due an hour ago and return their public ids; hash and encrypt nothing.

    Those under a hold are older than the others.
    """
    with services.reading() as session:
        first = (session.scalar(select(func.max(Account.id))) or 0) + 1
        then = database_now(session) - timedelta(hours=2 if held else 1)
    people = [
        {
            "public_id": uuid.uuid4(),
            "username": f"due{number}",
            "username_key": f"due{number}",
            "email": f"due{number}@example.net",
            "email_key": f"due{number}@example.net",
            "password_hash": "!",
            "avatar_key": new_key() if avatarstore else None,
            "joined_at": then,
            "deactivated_at": then,
            "purge_at": then,
            "deactivated_by": "owner",
        }
        for number in range(first, first + count)
    ]
    with services.writing() as session:
        ids = session.scalars(insert(Account).returning(Account.id), people).all()
        keys = [{"account_id": one, "wrapped_key": b"k", "wrapped_by": "none"} for one in ids]
        session.execute(insert(VaultKey), keys)
        saved = {"ciphertext": b"c" * 100, "created_at": then, "updated_at": then}
        if entries := [{"account_id": one, **saved} for one in ids for _ in range(passwords)]:
            session.execute(insert(SavedPassword), entries)
        if held:
            hold = {"reason": "court", "placed_at": then, "placed_by_kind": "operator"}
            session.execute(insert(LegalHold), [{"account_id": one, **hold} for one in ids])
    if avatarstore:
        media = services.settings.instance_path / "media"
        for person in people:
            key = str(person["avatar_key"])
            # As the store lays them out, but without its care for power cuts, many times.
            (media / key[:2]).mkdir(parents=True, exist_ok=True)
            (media / key[:2] / key).write_bytes(b"an image")
            with services.avatars.open(key) as file:  # type: ignore[union-attr]
                assert file.read() == b"an image"
    return {person["public_id"] for person in people}  # type: ignore[misc]


def stored_tables(session: Session) -> list[Table]:
    """The tables of the models that the database has, parents first.

    A table without a revision is missing in it: that is the matter of the migrations' tests alone.
    """
    there = set(inspect(session.connection()).get_table_names())
    return [table for table in Account.metadata.sorted_tables if table.name in there]


def at(moment: datetime) -> Clock:
    """A clock that stands at *moment*."""
    return lambda _session: moment


def waits_for_a_lock(engine: Engine) -> bool:
    """Say whether a connection to this PostgreSQL database waits for a row.

    In a transaction of its own each time: within one, PostgreSQL shows what it showed first.
    """
    query = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with engine.connect() as watcher:
        return bool(watcher.scalar(text(query)))


def now(app: APIFlask) -> datetime:
    with services_of(app).reading() as session:
        return database_now(session)


# What is written of an attempt that was refused: it is no change to anybody's data.
ATTEMPTS = (
    "access.denied",
    "confirmation.failed",
    "deletion.denied",
    "reactivation.failed",
    "sign_in.failed",
)


def belongings(app: APIFlask, person: Person) -> Mapping[str, Any]:
    """Everything that *person* has, to be compared before and after what must not touch it."""
    made = services_of(app)
    with made.reading() as session:
        account = find(session, person.id)
        assert account is not None, "the account is gone"
        file = made.avatars.open(person.avatar)
        assert file is not None, "the avatar is gone"
        with file:
            image = file.read()
        return {
            "row": {
                column.name: getattr(account, column.name) for column in Account.__table__.columns
            },
            "passwords": [
                (one.id, one.entry, one.updated_at)
                for one in vault.entries(session, made.keyring, account)
            ],
            "avatar": image,
            "events": session.scalars(
                select(AuditEvent.id).where(
                    AuditEvent.subject == account.public_id, AuditEvent.action.not_in(ATTEMPTS)
                )
            ).all(),
        }


def everything(app: APIFlask) -> Mapping[str, list[Any]]:
    """Every row but those of attempts: equal before and after means that nothing was changed."""
    found = {}
    with services_of(app).reading() as session:
        for table in stored_tables(session):
            query = table.select()
            if table.name == AuditEvent.__tablename__:
                query = query.where(table.c.action.not_in(ATTEMPTS))
            found[table.name] = sorted(session.execute(query).all(), key=repr)
    return found


def events(app: APIFlask, action: str) -> list[AuditEvent]:
    """The audit events of one *action*, oldest first."""
    return _all(app, select(AuditEvent).where(AuditEvent.action == action).order_by(AuditEvent.id))


def effects(app: APIFlask, kind: str) -> list[Effect]:
    """What the outbox owes of one *kind*."""
    return _all(app, select(Effect).where(Effect.kind == kind).order_by(Effect.id))


def _all(app: APIFlask, query: Any) -> list[Any]:
    with services_of(app).reading() as session:
        found = list(session.scalars(query))
        session.expunge_all()
    return found


def run_sql(app: APIFlask, statement: str, **values: Any) -> None:
    """Do by hand what no code of ours would."""
    with services_of(app).writing() as session:
        session.execute(text(statement), values)


def png(side: int = 16, colour: str = "red", mode: str = "RGB") -> bytes:
    file = BytesIO()
    Image.new(mode, (side, side), colour).save(file, "PNG")
    return file.getvalue()
