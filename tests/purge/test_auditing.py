"""Whoever may do anything to the database, but has neither key nor ledger, changes nothing unseen."""

from __future__ import annotations

import os
import random
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, insert, select, text
from sqlalchemy.exc import DBAPIError

from accountsvc.adapters.ledger import Ledger
from accountsvc.db import audit, entries, generations
from accountsvc.db.audit import OPERATOR_ACTOR, SYSTEM_ACTOR, Witness
from accountsvc.db.engine import database_now
from accountsvc.db.models import Account, AuditEvent, Receipt, ReceiptFact, Seal
from accountsvc.purge import sealer
from accountsvc.purge.auditing import Auditing, Report, Why
from accountsvc.purge.pruning import Pruning
from accountsvc.purge.sealer import Sealer
from accountsvc.services import Services
from tests.support.factories import insert_accounts, run_sql
from tests.support.ledgers import OTHER_KEY, keys
from tests.support.moments import BOUNDARY, at, now
from tests.support.sweeps import sweep

TABLES = {"event": "audit_events", "fact": "receipt_facts", "receipt": "receipts", "seal": "seals"}
KEYS = {"event": "id", "fact": "id", "receipt": "public_id"}
# `make faults` tries more.
ROUNDS = 40 if os.environ.get("TEST_FAULTS") == "long" else 3
YEARS = timedelta(days=6 * 365)
OLD = datetime(2020, 1, 31, 12, tzinfo=UTC)
# When the month of OLD is old enough to go.
ENDS = datetime(2020, 2, 1, tzinfo=UTC) + YEARS


def verify(services: Services, retention: timedelta = YEARS) -> Report:
    return Auditing(services.database, services.ledger, database_now, retention).verify()


def named(report: Report) -> set[tuple[str, str]]:
    return {(one.kind, one.key) for one in report.findings}


def live(services: Services) -> None:
    """A life with people who go, a bystander who stays, and ids with gaps, sealed three times."""
    moment = now(services)
    insert_accounts(services, ["bystander"])
    for part in range(3):
        for number in range(8):
            # No two receipts are alike: of such, nobody could say that they have changed places.
            due = moment - timedelta(seconds=8 * part + number)
            insert_accounts(services, [f"gone{part}_{number}"], purge_at=due)
        sweep(services, moment)
        with services.writing() as session:
            gone = session.scalars(
                select(Receipt.public_id).where(
                    Receipt.public_id.not_in(select(ReceiptFact.public_id))
                )
            ).all()
            first = 1_000 * (part + 1)
            session.execute(
                insert(AuditEvent),
                [
                    {
                        "id": first + 3 * number,
                        **audit.row(
                            "account.updated",
                            subject=gone[number % len(gone)],
                            by=SYSTEM_ACTOR,
                            now=moment + timedelta(seconds=number),
                            count=number,
                        ),
                    }
                    for number in range(40)
                ],
            )
            session.execute(
                insert(ReceiptFact),
                [
                    {
                        "id": first + 3 * number,
                        "public_id": gone[number // 2],
                        "fact": ("files_absent", "completed")[number % 2],
                        "at": moment + timedelta(seconds=number),
                        "details": {"files": number},
                    }
                    for number in range(2 * len(gone))
                ],
            )
            if session.connection().dialect.name == "postgresql":
                for table in ("audit_events", "receipt_facts"):
                    session.execute(
                        text(
                            f"SELECT setval(pg_get_serial_sequence('{table}', 'id'),"
                            f" (SELECT max(id) FROM {table}))"
                        )
                    )
        assert services.write_ledger()
        services.seal(seconds=30, at_once=True)


@dataclass
class Intruder:
    """A superuser of the database: without triggers, checks and unique keys in the way."""

    services: Services
    drawn: random.Random

    def __post_init__(self) -> None:
        self.is_sqlite = self.services.database.engine.dialect.name == "sqlite"
        if self.is_sqlite:
            with self.services.reading() as session:
                triggers = session.scalars(
                    text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
                ).all()
            for name in triggers:
                self.run(f"DROP TRIGGER {name}")
        else:
            for table in TABLES.values():
                self.run(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
            self.run("ALTER TABLE receipt_facts DROP CONSTRAINT ck_receipt_facts_fact")
        for name in ("uq_receipt_facts_once", "uq_receipt_facts_told"):
            self.run(f"DROP INDEX {name}")
        for table in TABLES.values():
            self.run(f"CREATE TABLE before_{table} AS SELECT * FROM {table}")

    def run(self, statement: str, **values: object) -> None:
        run_sql(self.services, statement, **values)

    def put_back(self) -> None:
        for table in TABLES.values():
            self.run(f"DELETE FROM {table}")
            by_hand = "" if self.is_sqlite else "OVERRIDING SYSTEM VALUE"
            self.run(f"INSERT INTO {table} {by_hand} SELECT * FROM before_{table}")

    def any_key(self, kind: str) -> str:
        key = KEYS[kind]
        with self.services.reading() as session:
            found = session.execute(text(f"SELECT {key} FROM {TABLES[kind]} ORDER BY {key}"))
            return str(self.drawn.choice(found.scalars().all()))

    def edit(self, kind: str) -> str:
        """Change one character in one column of a row, whatever the engine takes."""
        table, key, row = TABLES[kind], KEYS[kind], self.any_key(kind)
        where = f"CAST({key} AS text) = :row"
        while True:
            column = self.drawn.choice(list(entries.COLUMNS[kind]))
            with self.services.reading() as session:
                before = session.scalar(
                    text(f"SELECT CAST({column} AS text) FROM {table} WHERE {where}"), {"row": row}
                )
            if not before:
                continue
            place = self.drawn.randrange(len(before))
            other = chr(self.drawn.randrange(32, 127))
            if other == before[place]:
                continue
            changed = before[:place] + other + before[place + 1 :]
            try:
                self.set(table, column, changed, where, row)
            except DBAPIError:
                # It is none of the column's type.
                continue
            with self.services.reading() as session:
                still = session.scalar(
                    text(
                        f"SELECT count(*) FROM {table} WHERE {where} AND CAST({column} AS text) = :b"
                    ),
                    {"row": row, "b": before},
                )
            # PostgreSQL reads more than one text as one value: then no byte of it has changed.
            if not still:
                return row

    def set(self, table: str, column: str, value: str, where: str, row: str) -> None:
        if self.is_sqlite:
            self.run(f"UPDATE {table} SET {column} = :value WHERE {where}", value=value, row=row)
            return
        with self.services.reading() as session:
            kind = session.scalar(
                text(
                    "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
                    f" WHERE attrelid = '{table}'::regclass AND attname = :column".replace(
                        "::", "\\:\\:"
                    )
                ),
                {"column": column},
            )
        self.run(
            f"UPDATE {table} SET {column} = CAST(:value AS {kind}) WHERE {where}",
            value=value,
            row=row,
        )

    def remove(self, kind: str) -> str:
        row = self.any_key(kind)
        self.run(f"DELETE FROM {TABLES[kind]} WHERE CAST({KEYS[kind]} AS text) = :row", row=row)
        return row

    def insert(self, kind: str) -> str:
        """Put in the copy of a row, between others, before all, or under a number of its own."""
        like, key, table = self.any_key(kind), KEYS[kind], TABLES[kind]
        if kind == "receipt":
            stranger = uuid.UUID(int=self.drawn.getrandbits(128), version=4)
            added = stranger.hex if self.is_sqlite else str(stranger)
            value = "CAST(:added AS text)" if self.is_sqlite else "CAST(:added AS uuid)"
        else:
            with self.services.reading() as session:
                taken = set(session.scalars(text(f"SELECT id FROM {table}")))
            free = set(range(-5, max(taken))) - taken
            added = str(self.drawn.choice(sorted(free)))
            value = "CAST(:added AS bigint)"
        others = ", ".join(name for name in entries.COLUMNS[kind] if name != key)
        by_hand = "" if self.is_sqlite or kind == "receipt" else "OVERRIDING SYSTEM VALUE"
        self.run(
            f"INSERT INTO {table} ({key}, {others}) {by_hand}"
            f" SELECT {value}, {others} FROM {table} WHERE CAST({key} AS text) = :like",
            added=added,
            like=like,
        )
        return str(uuid.UUID(added)) if kind == "receipt" else added

    def swap(self, kind: str) -> str:
        """Let two rows change their numbers."""
        first, second = self.any_key(kind), self.any_key(kind)
        while first == second:
            second = self.any_key(kind)
        table, key = TABLES[kind], KEYS[kind]
        kind_of = {"receipt": "text" if self.is_sqlite else "uuid"}.get(kind, "bigint")
        spare = (
            "-77"
            if kind != "receipt"
            else (uuid.UUID(int=7).hex if self.is_sqlite else str(uuid.UUID(int=7)))
        )
        for old, new in ((first, spare), (second, first), (spare, second)):
            by_hand = f"UPDATE {table} SET {key} = CAST(:new AS {kind_of})"
            if not self.is_sqlite and kind != "receipt":
                self.run(f"ALTER TABLE {table} ALTER COLUMN id DROP IDENTITY IF EXISTS")
            self.run(f"{by_hand} WHERE CAST({key} AS text) = :old", new=new, old=old)
        return first


def canonical(kind: str, key: str) -> tuple[str, str]:
    """The name by which a finding has a row: SQLite stores a public id without hyphens."""
    return kind, str(uuid.UUID(key)) if kind == "receipt" else key


def test_whatever_is_done_to_an_event_a_fact_or_a_receipt_is_named(services: Services) -> None:
    live(services)
    intruder = Intruder(services, random.Random(services.database.engine.dialect.name))
    assert verify(services).is_whole

    for kind in KEYS:
        for act in (intruder.edit, intruder.remove, intruder.insert, intruder.swap):
            for _ in range(ROUNDS):
                key = act(kind)
                report = verify(services)
                assert canonical(kind, key) in named(report), (act.__name__, kind, key)
                assert not report.is_whole
                intruder.put_back()

    assert verify(services).is_whole


def test_two_that_have_changed_places_are_said_to_have_each_others(services: Services) -> None:
    live(services)
    intruder = Intruder(services, random.Random(2))

    for kind in KEYS:
        intruder.swap(kind)
        report = verify(services)
        assert {one.why for one in report.findings} == {Why.MOVED}
        assert report.found == 2
        intruder.put_back()


def test_whatever_is_done_to_a_line_of_the_ledger_is_named(services: Services) -> None:
    live(services)
    store, drawn = services.ledger.store, random.Random(3)
    names = list(store.names())
    assert any(name.startswith("seals/") for name in names)

    for _ in range(3 * ROUNDS):
        name, other = drawn.sample(names, 2)
        data, others = store.get(name), store.get(other)
        assert data is not None
        assert others is not None
        place = drawn.randrange(len(data))
        edited = bytes([*data[:place], data[place] ^ 1 << drawn.randrange(7), *data[place + 1 :]])
        for wrong in (edited, others, data[:place], b""):
            store.put(name, wrong)
            report = verify(services)
            assert report.ledger is not None
            found = {key for _, key in named(report)} | {
                one.name for one in report.ledger.untrusted
            }
            assert name in found, (name, wrong)
            assert not report.is_whole
        store.put(name, data)

    assert verify(services).is_whole


@pytest.mark.parametrize("column", ["header", "signature", "head", "entries", "sealed_at", "chain"])
def test_whatever_is_done_to_a_seal_is_named(services: Services, column: str) -> None:
    live(services)
    intruder = Intruder(services, random.Random(4))
    with services.reading() as session:
        seal = session.get_one(Seal, 2)
        before = getattr(seal, column)
    wrong = {
        "entries": lambda: bytes([before[0], before[1] ^ 1, *before[2:]]),
        "sealed_at": lambda: before + timedelta(microseconds=1),
        "chain": uuid.uuid4,
        "head": lambda: before[::-1],
        "signature": lambda: before[::-1],
        "header": lambda: before.replace('"number":2', '"number":3'),
    }

    with services.writing() as session:
        setattr(session.get_one(Seal, 2), column, wrong[column]())

    report = verify(services)
    assert report.findings[0].seal == 2 or report.findings[0].key == "2"
    intruder.put_back()
    assert verify(services).is_whole


def test_the_same_bytes_of_another_type_of_sqlite_are_named(sqlite: Services) -> None:
    live(sqlite)
    intruder = Intruder(sqlite, random.Random(8))
    others = ("header", "BLOB"), ("signature", "BLOB"), ("chain", "BLOB"), ("entries", "TEXT")
    assert verify(sqlite).is_whole

    for column, other in others:
        intruder.run(f"UPDATE seals SET {column} = CAST({column} AS {other}) WHERE number = 2")

        report = verify(sqlite)
        assert (Why.CHANGED, "2") in {(one.why, one.key) for one in report.findings}, column
        intruder.put_back()
        assert verify(sqlite).is_whole, column


def test_a_seal_in_the_midst_that_is_gone_is_named_and_nothing_else_is_blamed(
    services: Services,
) -> None:
    live(services)
    intruder = Intruder(services, random.Random(5))

    intruder.run("DELETE FROM seals WHERE number = 2")

    report = verify(services)
    assert {(one.why, one.kind, one.key) for one in report.findings} == {
        (Why.REMOVED, "seal", "2"),
        (Why.CUT, "seal", "2"),
    }


def cut_tail(services: Services) -> None:
    """Take the last seal and all that it covers, as a restore from before it does."""
    with services.writing() as session:
        last = session.get_one(Seal, 3)
        session.execute(delete(AuditEvent).where(AuditEvent.id >= last.first_event))
        session.execute(delete(ReceiptFact).where(ReceiptFact.id >= last.first_fact))
        kept = select(AuditEvent.subject).where(AuditEvent.action == "account.purged")
        session.execute(delete(Receipt).where(Receipt.public_id.not_in(kept)))
        session.execute(delete(Seal).where(Seal.number == 3))


def test_a_cut_tail_is_named_and_nothing_is_sealed_over_it(services: Services) -> None:
    live(services)
    Intruder(services, random.Random(6))

    cut_tail(services)

    report = verify(services)
    assert (Why.CUT, "seal", "3") in {(one.why, one.kind, one.key) for one in report.findings}
    with services.writing() as session:
        audit.record(
            session, "account.updated", subject=None, by=SYSTEM_ACTOR, now=database_now(session)
        )
    with pytest.raises(sealer.SealsBehind):
        services.seal(seconds=5, at_once=True)


def test_what_a_restore_has_lost_is_called_lost_and_a_chain_begins_behind_it(
    services: Services,
) -> None:
    live(services)
    Intruder(services, random.Random(7))
    with services.reading() as session:
        lost = session.get_one(Seal, 3)
    cut_tail(services)
    # A replay of the ledger begins another generation.
    with services.writing() as session:
        moment = database_now(session)
        generations.begin(session, services.ledger.newest_marks(), moment)
        generations.finish(session, moment)
        audit.record(session, "account.updated", subject=None, by=SYSTEM_ACTOR, now=moment)

    services.seal(seconds=5, at_once=True)

    report = verify(services)
    assert report.found == 0
    assert [(one.chain, one.first, one.last) for one in report.lost] == [(lost.chain, 3, 3)]
    assert report.lost[0].entries == len(lost.entries) // 49
    with services.reading() as session:
        begun = session.get_one(Seal, 4)
    assert begun.chain != lost.chain
    assert f'"head":"{lost.head}","number":3' in begun.header


def test_what_came_after_the_last_seal_is_not_sealed_yet_and_no_finding(services: Services) -> None:
    live(services)
    insert_accounts(services, ["late"], purge_at=now(services))
    sweep(services, now(services))
    assert services.write_ledger()

    report = verify(services)

    assert report.is_whole
    assert report.unsealed is not None
    # Of the purge there are the ledger's line and, without a file, that none is there.
    assert (report.unsealed.events, report.unsealed.facts) == (2, 2)


def test_seals_of_a_key_that_nobody_knows_are_named(services: Services) -> None:
    live(services)
    stranger = Ledger(services.ledger.store, keys(OTHER_KEY))

    report = Auditing(services.database, stranger, database_now, YEARS).verify()

    assert {one.key for one in report.findings if one.why is Why.UNKNOWN_KEY} == {"1", "2", "3"}


# Old months


def old_seals(services: Services) -> None:
    """Two months of seals: one event each of somebody gone, and one promise of somebody here."""
    insert_accounts(services, ["ann"])
    for moment, witnessed in ((OLD, False), (OLD + timedelta(days=40), True)):
        with services.writing() as session:
            subject = session.scalars(select(Account.public_id)).one()
            witness = Witness(0, None, None) if witnessed else None
            audit.record(
                session,
                "account.updated",
                subject=subject,
                by=SYSTEM_ACTOR,
                now=moment,
                witness=witness,
            )
        Sealer(services.database, services.ledger, at(moment)).run(seconds=5, at_once=True)


def pruning(services: Services, moment: datetime) -> Pruning:
    return Pruning(services.database, at(moment), YEARS)


def events_left(services: Services) -> list[str]:
    with services.reading() as session:
        return list(session.scalars(select(AuditEvent.action).order_by(AuditEvent.id)))


@pytest.mark.parametrize("distance", BOUNDARY)
def test_a_month_goes_when_all_of_it_is_older_than_the_retention(
    services: Services, distance: timedelta
) -> None:
    old_seals(services)

    months = pruning(services, ENDS + distance).plan()

    assert [one.seals for one in months] == ([[1]] if distance >= timedelta(0) else [])


def test_what_is_pruned_is_said_leaves_its_hashes_and_is_verified(services: Services) -> None:
    old_seals(services)
    late = pruning(services, ENDS + timedelta(days=90))
    months = late.plan()

    taken = late.prune(months, by=OPERATOR_ACTOR)

    # The month with a promise that somebody's account rests on is kept.
    assert [(one.events, one.witnesses) for one in months] == [(1, 0), (1, 1)]
    assert taken == 1
    assert events_left(services) == ["account.updated", "audit.pruned"]
    report = verify(services)
    assert report.is_whole
    assert (report.seals, report.pruned, report.entries) == (2, 1, 2)
    assert [one.seals for one in late.plan()] == [[2]]
    assert late.prune(late.plan(), by=OPERATOR_ACTOR) == 0


def test_an_event_goes_only_inside_a_seal_that_says_it_was_pruned(services: Services) -> None:
    old_seals(services)

    with pytest.raises(DBAPIError, match="append-only"):
        run_sql(services, "DELETE FROM audit_events")

    with pytest.raises(DBAPIError, match="append-only"):
        run_sql(services, "UPDATE seals SET signature = head")
    assert len(events_left(services)) == 2


@pytest.mark.parametrize(("sets_time", "why"), [(ENDS, Why.UNSAID), (OLD, Why.TOO_YOUNG)])
def test_what_was_pruned_by_hand_is_named(
    services: Services, sets_time: datetime, why: Why
) -> None:
    old_seals(services)
    with services.writing() as session:
        session.get_one(Seal, 1).pruned_at = sets_time
    with services.writing() as session:
        session.execute(delete(AuditEvent).where(AuditEvent.id == 1))
        if why is Why.TOO_YOUNG:
            details = {"first_seal": 1, "last_seal": 1, "count": 1}
            audit.record(
                session, "audit.pruned", subject=None, by=OPERATOR_ACTOR, now=ENDS, **details
            )

    report = verify(services)

    assert [(one.why, one.key) for one in report.findings] == [(why, "1")]
