"""The state of everything: rows, files, and all that somebody has; nothing here changes it.

Functions over :class:`Services`; a test of an application passes ``services_of(app)``.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, Select, Table, inspect, select, text
from sqlalchemy.orm import Session

from accountsvc.accounts import vault
from accountsvc.db import facts
from accountsvc.db.models import Account, AuditEvent, Base, Effect, FormerAddress
from accountsvc.db.rows import find
from accountsvc.services import Services
from tests.support.factories import Person

# A refused attempt is written down by these actions, which change nobody's data: counted as
# changes, every refusal would seem to have had an effect.
ATTEMPTS = (
    "access.denied",
    "confirmation.failed",
    "deletion.denied",
    "reactivation.failed",
    "sign_in.failed",
)


def read_account(services: Services, account_id: int) -> Account | None:
    """The account, detached; None if it is gone."""
    with services.reading() as session:
        account = find(session, account_id)
        if account is not None:
            session.expunge(account)
        return account


def get_account(services: Services, account_id: int) -> Account:
    """The account, detached; fail if it is gone."""
    account = read_account(services, account_id)
    assert account is not None, "the account is gone"
    return account


def rows_of(services: Services, model: type[Base], *conditions: Any) -> list[Any]:
    """All rows of *model* in the order of their keys, detached."""
    with services.reading() as session:
        keys = model.__table__.primary_key.columns  # type: ignore[attr-defined]
        rows = list(session.scalars(select(model).where(*conditions).order_by(*keys)))
        session.expunge_all()
        return rows


def events(services: Services, action: str) -> list[AuditEvent]:
    """The audit events of one *action*, oldest first."""
    return rows_of(services, AuditEvent, AuditEvent.action == action)


def effects(services: Services, *kinds: str) -> list[Effect]:
    """The effects that the outbox owes, of these *kinds* only if any are given."""
    return rows_of(services, Effect, *([Effect.kind.in_(kinds)] if kinds else []))


def facts_of(services: Services, public_id: uuid.UUID) -> list[str]:
    """What became true of a purge, in the order in which it was written."""
    with services.reading() as session:
        return [one.fact for one in facts.story(session, public_id)]


def ids_left(services: Services) -> list[int]:
    """The ids of all accounts, in order."""
    with services.reading() as session:
        return list(session.scalars(select(Account.id).order_by(Account.id)))


def public_ids(services: Services, ids: Collection[int]) -> set[uuid.UUID]:
    """The public ids of these accounts."""
    with services.reading() as session:
        return set(session.scalars(select(Account.public_id).where(Account.id.in_(ids))))


def stored_tables(session: Session) -> list[Table]:
    """The tables of the models that the database has, parents first.

    A table without a revision is missing in it: that is the matter of the migrations' tests alone.
    """
    there = set(inspect(session.connection()).get_table_names())
    return [table for table in Base.metadata.sorted_tables if table.name in there]


def everything(
    services: Services, *, but: Sequence[str] = (), attempts: bool = False
) -> Mapping[str, list[Any]]:
    """Every row of every table: equal before and after means that nothing was changed.

    Leaves out the tables in *but*, and the events of refused attempts unless *attempts*.
    """
    rows = {}
    with services.reading() as session:
        for table in stored_tables(session):
            if table.name in but:
                continue
            query = table.select()
            if table.name == AuditEvent.__tablename__ and not attempts:
                query = query.where(table.c.action.not_in(ATTEMPTS))
            rows[table.name] = _sorted_rows(session, query)
    return rows


def _sorted_rows(session: Session, query: Select[*tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The rows of *query* as stored, in an order that depends on nothing but them."""
    return sorted((tuple(row) for row in session.execute(query)), key=repr)


def belongings(services: Services, person: Person) -> Mapping[str, Any]:
    """All that *person* can see of their own, to compare before and after an act that spares it.

    The row, the saved passwords in clear, the picture, and all events but refused attempts.
    """
    with services.reading() as session:
        account = find(session, person.id)
        assert account is not None, "the account is gone"
        file = services.avatars.open(person.avatar)
        assert file is not None, "the avatar is gone"
        with file:
            image = file.read()
        return {
            "row": _columns(account),
            "passwords": [
                (stored.id, stored.entry, stored.updated_at)
                for stored in vault.entries(session, services.keyring, account)
            ],
            "avatar": image,
            "former": session.execute(
                select(FormerAddress.email, FormerAddress.held_since, FormerAddress.left_at)
                .where(FormerAddress.account_id == account.id)
                .order_by(FormerAddress.id)
            ).all(),
            "events": session.scalars(
                select(AuditEvent.id).where(
                    AuditEvent.subject == account.public_id, AuditEvent.action.not_in(ATTEMPTS)
                )
            ).all(),
        }


def possessions(services: Services, account_id: int) -> dict[str, Any]:
    """Every row that names an account, as stored: also its key, its events and what is owed."""
    with services.reading() as session:
        account = find(session, account_id)
        assert account is not None, "the bystander is gone"
        rows: dict[str, Any] = {"row": _columns(account)}
        for table in stored_tables(session):
            if "account_id" in table.c:
                query = table.select().where(table.c.account_id == account_id)
            elif "subject" in table.c:
                query = table.select().where(table.c.subject == account.public_id)
            else:
                continue
            rows[table.name] = _sorted_rows(session, query)
        return rows


def _columns(account: Account) -> dict[str, Any]:
    """The columns of an account's row, by their names."""
    return {column.name: getattr(account, column.name) for column in Account.__table__.columns}


def files(services: Services) -> set[str]:
    """The keys of all files that are in the store."""
    services.avatars.begin()
    return {key for key, _ in services.avatars.listing()}


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
