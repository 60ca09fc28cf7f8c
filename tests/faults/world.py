"""A round of people who leave, return, upload and are due; and the oracle, who knows what was promised."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

from apiflask import APIFlask
from sqlalchemy import ColumnElement, func, select, true, update
from sqlalchemy.orm import Session

from accountsvc.adapters.avatarstore import new_key
from accountsvc.db.engine import database_now
from accountsvc.db.models import (
    Account,
    AuditEvent,
    Effect,
    LegalHold,
    PurgeFailure,
    Receipt,
    SavedPassword,
    VaultKey,
)
from accountsvc.outbox.queue import DELETE_FILE, LEDGER
from accountsvc.services import Services
from tests.faults.injection import Operation
from tests.support.factories import insert_accounts_in, png, put_files, run_sql, services_of

PASSWORDS = 2
MAIL = "mail.purged"

# What the oracle asks each time, by the numbers of its violations.
CHECKED = """checked during and after each: 1 who is active lacks nothing, 2 of who is purged there is nothing left,
3 nobody is purged early, under a hold or without a promise, 4 one receipt and one event each, 5 no file is nobody's, 6 every 2xx was true"""


@dataclass(frozen=True)
class Member:
    """One person of a round, as inserted."""

    id: int
    public_id: uuid.UUID
    avatar: str
    role: str


@dataclass
class World:
    """A database, a media folder and everybody in them; ``inside`` is the application that is hit."""

    outside: APIFlask
    inside: APIFlask
    folder: Path
    members: list[Member] = field(default_factory=list)
    purged: set[uuid.UUID] = field(default_factory=set)

    @property
    def services(self) -> Services:
        return services_of(self.outside)

    def new_round(self) -> list[Operation]:
        """Let new people in and return what is to be done to them, in a child.

        Each round is an hour of its own to the brake, which would hold after some twenty of them.
        """
        services = self.services
        run_sql(services, "DELETE FROM purge_brake")
        with services.reading() as session:
            now = database_now(session)
        past, future = now - timedelta(hours=1), now + timedelta(days=7)
        roles: list[tuple[str, dict[str, Any]]] = [
            *[("due", {"purge_at": past})] * 3,
            ("held", {"purge_at": past}),
            # Older than who is due: at the head of the queue they must not keep anybody from it.
            *[("mistaken", {"purge_at": past - timedelta(hours=1), "witnessed": False})] * 2,
            ("returner", {"purge_at": future}),
            ("waiting", {"purge_at": future}),
            ("leaver", {}),
            ("uploader", {}),
            ("bystander", {}),
        ]
        with services.writing() as session:
            self.members = [self._add(session, role, **state) for role, state in roles]
        return self._operations(now)

    def _add(self, session: Session, role: str, **state: Any) -> Member:
        public_id, key = uuid.uuid4(), new_key()
        self._put(key)
        (account_id,) = insert_accounts_in(
            session,
            [f"{role}-{public_id.hex[:12]}"],
            passwords=PASSWORDS,
            avatar_key=lambda _name: key,
            held=role == "held",
            public_id=public_id,
            **state,
        )
        return Member(account_id, public_id, key, role)

    def _put(self, key: str) -> None:
        put_files(self.folder, [key])

    def _of(self, *roles: str) -> list[Member]:
        return [one for one in self.members if one.role in roles]

    def _operations(self, now: datetime) -> list[Operation]:
        (leaver,), (returner,) = self._of("leaver"), self._of("returner")
        (uploader,) = self._of("uploader")
        with self.services.reading() as session:
            tokens = self.services.tokens
            bearer = {
                one.role: {
                    "Authorization": "Bearer "
                    + tokens.access(session.get_one(Account, one.id), now=now, fresh=True)
                }
                for one in (leaver, uploader)
            }
            mailed = tokens.mailed(session.get_one(Account, returner.id), now=now)
        return [*self._requests(leaver.id, uploader.id, bearer, mailed), *self._work()]

    def _requests(
        self, leaver: int, uploader: int, bearer: dict[str, dict[str, str]], mailed: str
    ) -> list[Operation]:
        client = self.inside.test_client()

        def upload() -> int:
            return client.put(
                f"/api/profile/{uploader}/update/",
                data={"avatar": (BytesIO(png()), "me.png")},
                headers=bearer["uploader"],
            ).status_code

        def delete() -> int:
            path = f"/api/profile/{leaver}/delete/"
            return client.delete(path, headers=bearer["leaver"]).status_code

        def reactivate() -> int:
            return client.post("/api/profile/reactivate/", json={"token": mailed}).status_code

        return [("upload", upload), ("delete", delete), ("reactivate", reactivate)]

    def _work(self) -> list[Operation]:
        inside = services_of(self.inside)

        def sweep() -> int:
            return inside.sweep(seconds=60).purged

        def deliver() -> int:
            return inside.deliver(seconds=60).delivered

        return [("sweep", sweep), ("deliver", deliver)]

    # The oracle ---------------------------------------------------------------------------------

    def violations(self, answers: dict[str, int]) -> list[str]:
        """Return what must not be at any moment, whatever happened, given the *answers* that were got."""
        found: list[str] = []
        with self.services.reading() as session:
            ids = [one.id for one in self.members]
            rows = {
                one.id: one for one in session.scalars(select(Account).where(Account.id.in_(ids)))
            }
            saved = self._count(session, SavedPassword, ids)
            keys = self._count(session, VaultKey, ids)
            holds = self._count(session, LegalHold, ids)
            failed = self._count(session, PurgeFailure, ids)
            owed = {
                str(payload["key"])
                for payload in session.scalars(
                    select(Effect.payload).where(Effect.kind == DELETE_FILE)
                )
            }
            shown = set(session.scalars(select(Account.avatar_key)))
            subjects = [one.public_id for one in self.members]
            receipts = self._by_subject(session, Receipt.public_id, subjects)
            purges = self._by_subject(
                session, AuditEvent.subject, subjects, AuditEvent.action == "account.purged"
            )
            session.expunge_all()
        files = self._files()
        for one in self.members:
            row = rows.get(one.id)
            who = f"{one.role} {one.id}"
            if row is None:
                if one.role != "due":
                    found.append(f"3: {who} was purged, and was not due")
                if saved[one.id] or keys[one.id] or holds[one.id] or failed[one.id]:
                    found.append(f"2: {who} is purged and has rows")
                if one.avatar in files and one.avatar not in owed:
                    found.append(f"2: {who} is purged, and nobody owes the deletion of the file")
                if (receipts[one.public_id], purges[one.public_id]) != (1, 1):
                    found.append(f"4: {who} is purged without one receipt and one event")
                continue
            if (saved[one.id], keys[one.id]) != (PASSWORDS, 1):
                found.append(f"1: {who} lacks saved passwords or their key")
            if row.avatar_key not in files:
                found.append(f"1: {who} lacks the avatar")
            if receipts[one.public_id] or purges[one.public_id]:
                found.append(f"4: {who} has a receipt, but is there")
            found += self._broken_promises(one, row, answers)
        # What a killed upload had begun to write is deleted with the key that it was for.
        for key in {name.removeprefix(".").removesuffix(".part") for name in files} - shown - owed:
            found.append(f"5: the file {key} is nobody's, and nobody owes its deletion")
        return found

    def _broken_promises(self, one: Member, row: Account, answers: dict[str, int]) -> list[str]:
        who = f"{one.role} {one.id}"
        if one.role == "leaver" and answers.get("delete") == 204 and row.is_active:
            return [f"6: {who} was told 204 and is active"]
        if one.role == "returner" and answers.get("reactivate") == 200 and not row.is_active:
            return [f"6: {who} was told 200 and is deactivated"]
        if one.role == "uploader" and answers.get("upload") == 200 and row.avatar_key == one.avatar:
            return [f"6: {who} was told 200 and has the old avatar"]
        if one.role in {"held", "waiting", "mistaken"} and row.is_active:
            return [f"6: {who} became active by itself"]
        if one.role in {"bystander", "uploader"} and not row.is_active:
            return [f"6: {who} became deactivated by itself"]
        return []

    def recover(self) -> list[str]:
        """Let everything work again, and return what is not as it should be in the end."""
        self._work_on()
        # What the first time has owed or put off is done by the second.
        if self._unfinished():
            self._work_on()
        return self._unfinished()

    def _work_on(self) -> None:
        services = self.services
        # Leases of the killed, pauses after a failure and the first hour of an upload pass in a moment.
        with services.writing() as session:
            session.execute(
                update(Effect)
                .where((Effect.attempts > 0) | Effect.kind.in_([DELETE_FILE, LEDGER]))
                .where(self._nobodys())
                .values(deliver_after=Effect.created_at)
            )
        services.deliver(seconds=60)
        services.sweep()
        services.deliver(seconds=60)

    def _unfinished(self) -> list[str]:
        found = []
        with self.services.reading() as session:
            left = [one.id for one in self._of("due") if session.get(Account, one.id)]
            owed = session.scalars(
                select(Effect.kind).where(
                    Effect.kind.in_([DELETE_FILE, LEDGER, MAIL]) | Effect.last_error.is_not(None)
                )
            ).all()
            keys = set(session.scalars(select(Account.avatar_key)))
        if left:
            found.append(f"due accounts are left after all: {left}")
        if owed:
            found.append(f"effects are left after all: {sorted(owed)}")
        if orphans := self._files() - keys:
            found.append(f"files are left after all: {sorted(orphans)}")
        return found

    def _nobodys(self) -> ColumnElement[bool]:
        """Say of which effects no living process has the lease: here, of all."""
        return true()

    def ledger_is_whole(self) -> list[str]:
        """Compare the ledger with the receipts, at the end of many rounds."""
        services = self.services
        lines = Counter(uuid.UUID(str(line["public_id"])) for line in services.ledger.read())
        with services.reading() as session:
            receipts = set(session.scalars(select(Receipt.public_id)))
        found = []
        if set(lines) != receipts:
            found.append("the ledger and the receipts differ")
        if doubles := [one for one, count in lines.items() if count > 1]:
            found.append(f"twice in the ledger: {doubles}")
        return found

    def _files(self) -> set[str]:
        return {path.name for path in self.folder.rglob("*") if path.is_file()}

    @staticmethod
    def _count(session: Any, model: Any, ids: list[int]) -> Counter[int]:
        query = select(model.account_id, func.count()).where(model.account_id.in_(ids))
        return Counter(dict(iter(session.execute(query.group_by(model.account_id)))))

    @staticmethod
    def _by_subject(
        session: Any, column: Any, subjects: list[uuid.UUID], *conditions: Any
    ) -> Counter[uuid.UUID]:
        query = select(column, func.count()).where(column.in_(subjects), *conditions)
        return Counter(dict(iter(session.execute(query.group_by(column)))))
