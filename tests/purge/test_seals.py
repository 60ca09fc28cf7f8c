"""What has come into the trail is sealed once, in its order, and proved entry by entry."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine, insert, select, text

from accountsvc.adapters import merkle, sealform
from accountsvc.adapters.ledgerseal import Opened
from accountsvc.adapters.sealform import Header
from accountsvc.db import audit, entries
from accountsvc.db.audit import SYSTEM_ACTOR
from accountsvc.db.models import AuditEvent, Receipt, ReceiptFact, Seal
from accountsvc.purge import seals
from accountsvc.purge.sealer import Sealed, Sealer
from accountsvc.services import Services
from tests.support.factories import insert_accounts
from tests.support.moments import BOUNDARY, NOW, at
from tests.support.sweeps import sweep

KEPT_ALIVE = "bystander"


def seal_all(services: Services) -> Sealed:
    return services.seal(seconds=30, at_once=True)


def sealer(services: Services, now: datetime = NOW) -> Sealer:
    return Sealer(services.database, services.ledger, at(now))


def stored(services: Services) -> list[Seal]:
    with services.reading() as session:
        return list(session.scalars(select(Seal).order_by(Seal.number)))


def purge_some(services: Services, count: int = 3) -> list[uuid.UUID]:
    """Purge *count* people beside one who stays, each with a fact; return their public ids."""
    insert_accounts(services, [KEPT_ALIVE])
    insert_accounts(services, [f"gone{number}" for number in range(count)], purge_at=NOW)
    sweep(services, NOW)
    with services.writing() as session:
        gone = list(session.scalars(select(Receipt.public_id).order_by(Receipt.public_id)))
        session.execute(
            insert(ReceiptFact),
            [
                {"public_id": one, "fact": "files_absent", "at": NOW, "details": {"files": 0}}
                for one in gone
            ],
        )
    return gone


def test_everything_is_sealed_once_and_each_entry_proved_by_the_signed_root(
    services: Services,
) -> None:
    gone = purge_some(services)

    first, again = seal_all(services), seal_all(services)

    assert first.seals == 1
    assert again == Sealed()
    with services.reading() as session:
        events = entries.in_range(session, "event", 1, 10_000, limit=100)
        facts = entries.in_range(session, "fact", 1, 10_000, limit=100)
        rows = [*events, *facts, *entries.receipts(session, gone).values()]
        found = seals.proofs(session, [(row.kind, row.key) for row in rows])
    assert first.entries == len(rows) == len(found)
    for row in rows:
        proof = found[row.kind, row.key]
        header = Header.read(proof.header.encode())
        assert merkle.is_included(
            merkle.leaf_hash(seals.entry(row).text),
            index=proof.index,
            size=header.entries,
            path=proof.path,
            root=bytes.fromhex(header.root),
        )
        assert sealform.is_signed(
            services.ledger.keys, proof.header.encode(), proof.signature, header.key
        )


def test_a_receipt_stands_behind_the_event_of_its_purge(services: Services) -> None:
    gone = purge_some(services)

    seal_all(services)

    (seal,) = stored(services)
    order = [seals.read_key(record) for record in seals.records(seal.entries)]
    kinds = [kind for kind, _ in order]
    assert kinds == ["event"] * 3 + ["event", "receipt"] * 3 + ["fact"] * 3
    assert {key for kind, key in order if kind == "receipt"} == {str(one) for one in gone}


def test_an_entry_is_readable_and_the_same_until_a_byte_of_its_row_changes(
    services: Services,
) -> None:
    (gone,) = purge_some(services, 1)

    with services.reading() as session:
        (row,) = entries.receipts(session, [gone]).values()
        before = seals.entry(row)

    said = json.loads(before.text)
    assert said["kind"] == "receipt"
    assert said["public_id"] == str(gone)
    assert said["purged_at"] == "2026-12-07T09:30:15.000000Z"
    assert set(said) == {"kind", "stored", *entries.COLUMNS["receipt"]}
    with services.reading() as session:
        (again,) = entries.receipts(session, [gone]).values()
    assert seals.entry(again) == before


def test_the_columns_of_an_entry_are_those_of_its_table() -> None:
    tables = {"event": AuditEvent, "fact": ReceiptFact, "receipt": Receipt}

    columns = {kind: list(table.__table__.c.keys()) for kind, table in tables.items()}

    assert {kind: list(names) for kind, names in entries.COLUMNS.items()} == columns


@pytest.mark.parametrize("distance", BOUNDARY)
@pytest.mark.parametrize(("with_receipt", "minutes"), [(True, 1), (False, 5)])
def test_what_waits_is_sealed_after_five_minutes_and_a_receipt_after_one(
    services: Services, distance: timedelta, with_receipt: bool, minutes: int
) -> None:
    purge_some(services, 1)
    sealer(services).run(seconds=5)
    with services.writing() as session:
        subject = session.scalar(select(AuditEvent.subject).where(AuditEvent.subject.is_not(None)))
        action = "account.purged" if with_receipt else "account.updated"
        audit.record(session, action, subject=subject, by=SYSTEM_ACTOR, now=NOW)

    moment = NOW + timedelta(minutes=minutes) + distance
    found = sealer(services, moment).run(seconds=5)

    assert found.seals == (1 if distance >= timedelta(0) else 0)


def test_the_ledger_has_each_head_and_what_was_not_written_comes_with_the_next_run(
    services: Services,
) -> None:
    purge_some(services, 1)
    seal_all(services)
    purge_more(services)
    seal_all(services)
    (newest,) = services.ledger.seals(objects=1)
    assert isinstance(newest, Opened)

    # Killed between the two, a process leaves the row without its object.
    services.ledger.store.remove(newest.link.name)
    seal_all(services)

    heads = list(services.ledger.seals())
    assert [dict(one.lines[0]) for one in heads if isinstance(one, Opened)] == [
        {"kind": "seal", "header": seal.header, "signature": seal.signature}
        for seal in reversed(stored(services))
    ]
    assert [seal.number for seal in stored(services)] == [1, 2]
    assert stored(services)[1].header.count(f'"previous":"{stored(services)[0].head}"') == 1


def purge_more(services: Services) -> None:
    with services.writing() as session:
        for _ in range(3):
            audit.record(session, "account.updated", subject=None, by=SYSTEM_ACTOR, now=NOW)


def test_nothing_is_sealed_past_a_transaction_that_could_still_commit_a_lower_id(
    postgresql: Services, postgresql_engine: Engine
) -> None:
    services = postgresql
    purge_some(services, 1)
    seal_all(services)
    late = text(
        "INSERT INTO audit_events (at, action, actor_kind, details)"
        " VALUES (now(), 'account.updated', 'system', '{}') RETURNING id"
    )

    with postgresql_engine.connect() as other:
        lower = other.scalar(late)
        purge_more(services)
        meanwhile = seal_all(services)
        other.commit()
    afterwards = seal_all(services)

    assert meanwhile == Sealed()
    assert afterwards.entries == 4
    last = stored(services)[-1]
    keys = [seals.read_key(record)[1] for record in seals.records(last.entries)]
    assert keys[0] == str(lower)
    assert keys == sorted(keys, key=int)


def test_two_that_seal_at_once_make_one_seal(services: Services) -> None:
    purge_some(services, 1)
    first, second = sealer(services), sealer(services)
    base = first._base()

    made, refused = first._seal(base), second._seal(base)

    assert made is not None
    assert refused is None
    assert [seal.number for seal in stored(services)] == [1]
