"""Behind its completion a purge is looked at in every place; what is left is found and erased again."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text

from accountsvc.adapters.avatarstore import S3Store, new_key
from accountsvc.adapters.objectstore import Bucket
from accountsvc.db import facts, proofs, vacuum
from accountsvc.db.models import (
    AuditEvent,
    Base,
    Effect,
    FormerAddress,
    KeptLine,
    LegalHold,
    PurgeFailure,
    ReceiptFact,
    SavedPassword,
    VaultKey,
)
from accountsvc.outbox import notices, queue
from accountsvc.outbox.payloads import AddressedMail, Finish
from accountsvc.purge import scrub, verify
from accountsvc.purge.finish import RESIDUE
from accountsvc.purge.verify import Purged, Residue, Verifier
from accountsvc.services import Services
from tests.support.factories import Person, make_due, make_person, run_sql
from tests.support.loglines import lines_of
from tests.support.moments import now
from tests.support.s3 import start_moto
from tests.support.state import belongings

Seed = Callable[[Person, datetime], tuple[type[Base], dict[str, Any]]]

# What could be written late, or come back: a row in each table from which a purge deletes.
SEEDS: dict[str, Seed] = {
    "saved_passwords": lambda ann, at: (
        SavedPassword,
        {"account_id": ann.id, "ciphertext": b"sealed", "created_at": at, "updated_at": at},
    ),
    "vault_keys": lambda ann, _: (
        VaultKey,
        {"account_id": ann.id, "wrapped_key": b"wrapped", "wrapped_by": "key"},
    ),
    "legal_holds": lambda ann, at: (
        LegalHold,
        {
            "account_id": ann.id,
            "reason": "Ann's lawyer",
            "placed_at": at,
            "placed_by_kind": "operator",
            "released_at": at,
        },
    ),
    "purge_failures": lambda ann, at: (
        PurgeFailure,
        {"account_id": ann.id, "attempts": 1, "failed_at": at, "retry_at": at, "error": "X"},
    ),
    "former_addresses": lambda ann, at: (
        FormerAddress,
        {"account_id": ann.id, "email": "ann@late.example", "held_since": at, "left_at": at},
    ),
    "outbox": lambda ann, at: (
        Effect,
        queue.row(
            notices.ADDRESS_CHANGED,
            subject=ann.public_id,
            now=at,
            payload=AddressedMail("ann@late.example"),
            after=at + timedelta(days=1),
        ),
    ),
    "kept_lines": lambda ann, at: (
        KeptLine,
        {"uid": uuid.uuid4(), "subject": ann.public_id, "kind": "held", "at": at},
    ),
}


@pytest.fixture
def ann(services: Services) -> Person:
    return purged(services)


def purged(services: Services, *, scrubbed: bool = True) -> Person:
    """Somebody whose account is purged, and of whom all is done but the look behind it."""
    person = make_person(services, "ann")
    make_due(services, person)
    assert services.sweep().purged == 1
    services.deliver(seconds=60)
    if scrubbed:
        assert services.scrub(at_most_every=None)
    return person


def finish(services: Services) -> None:
    """Do once more all that waits for its time."""
    run_sql(
        services,
        "UPDATE outbox SET deliver_after = created_at WHERE kind = :finish OR kind = 'file.delete'",
        finish=queue.FINISH,
    )
    services.deliver(seconds=60)


def seed(services: Services, model: type[Base], values: dict[str, Any]) -> None:
    """Write a row as a program does that keeps to no foreign key."""
    connection = services.database.engine.connect()
    with connection:
        if connection.dialect.name == "sqlite":
            connection.connection.cursor().execute("PRAGMA foreign_keys = OFF")
            connection.connection.cursor().execute("PRAGMA query_only = OFF")
            connection = connection.execution_options(writes=True)
        else:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(insert(model), values)
        connection.commit()
        if connection.dialect.name == "sqlite":
            connection.connection.cursor().execute("PRAGMA foreign_keys = ON")


def story(services: Services, person: Person) -> list[tuple[str, dict[str, Any]]]:
    with services.reading() as session:
        found = session.scalars(
            select(ReceiptFact)
            .where(
                ReceiptFact.public_id == person.public_id,
                ReceiptFact.fact.in_([proofs.VERIFIED, proofs.RESIDUE_FOUND]),
            )
            .order_by(ReceiptFact.id)
        )
        return [(fact.fact, fact.details) for fact in found]


def is_verified(services: Services, person: Person) -> bool:
    return proofs.VERIFIED in [fact for fact, _ in story(services, person)]


def owed_with(services: Services, person: Person) -> str | None:
    """The error with which the end of the purge is owed."""
    with services.reading() as session:
        return session.scalars(
            select(Effect.last_error).where(
                Effect.subject == person.public_id, Effect.kind == queue.FINISH
            )
        ).one()


def count(services: Services, model: type[Base]) -> int:
    with services.reading() as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


def events(services: Services) -> list[AuditEvent]:
    with services.reading() as session:
        query = select(AuditEvent).where(AuditEvent.action == "residue.found")
        return list(session.scalars(query.order_by(AuditEvent.id)))


def test_who_is_found_nowhere_is_verified_place_by_place(services: Services, ann: Person) -> None:
    finish(services)

    ((fact, details),) = story(services, ann)
    assert fact == proofs.VERIFIED
    assert {"accounts", "saved_passwords", "outbox", "former_addresses", "avatars"} <= set(
        details["places"]
    )
    assert set(details["places"]).isdisjoint(details["stated"])
    # What is kept on purpose is neither.
    assert {"receipts", "audit_events"}.isdisjoint({*details["places"], *details["stated"]})
    assert details["stated"]["broker"] is None
    assert details["stated"]["backups"].endswith("Z")
    is_sqlite = services.settings.is_sqlite
    assert ("database file" in details["places"]) is is_sqlite
    assert ("database pages" in details["stated"]) is not is_sqlite
    with services.reading() as session:
        assert session.scalar(select(Effect.id).where(Effect.kind == queue.FINISH)) is None


def test_a_place_that_is_only_stated_is_stated_for_as_long_as_backups_are_kept(
    services: Services, ann: Person
) -> None:
    before = now(services)
    finish(services)

    ((_, details),) = story(services, ann)

    until = datetime.fromisoformat(details["stated"]["backups"])
    kept = services.settings.backup_retention
    assert timedelta() <= before + kept - until < timedelta(minutes=2)


def test_whatever_is_left_of_somebody_is_found_and_erased_again(
    services: Services, ann: Person
) -> None:
    # given
    bob = make_person(services, "bob")
    before = belongings(services, bob)
    for made in SEEDS.values():
        seed(services, *made(ann, now(services)))

    # when
    with lines_of(verify) as lines:
        finish(services)

    # then: each place is named, and nothing is called verified
    found = [{"place": place, "count": 1} for place in SEEDS]
    assert story(services, ann) == [(proofs.RESIDUE_FOUND, one) for one in found]
    assert owed_with(services, ann) == RESIDUE
    assert [event.details for event in events(services)] == found
    assert {event.subject for event in events(services)} == {ann.public_id}
    assert [(line["place"], line["erased"]) for line in lines] == [(one, True) for one in SEEDS]
    assert {line["log_level"] for line in lines} == {"error"}
    # when
    services.scrub(at_most_every=None)
    finish(services)
    # then
    assert is_verified(services, ann)
    assert len(story(services, ann)) == len(SEEDS) + 1
    assert belongings(services, bob) == before


def test_on_sqlite_the_bytes_of_a_residue_are_scrubbed_before_it_is_verified(
    sqlite: Services,
) -> None:
    ann = purged(sqlite)
    seed(sqlite, *SEEDS["former_addresses"](ann, now(sqlite)))
    finish(sqlite)

    finish(sqlite)

    assert owed_with(sqlite, ann) == RESIDUE
    assert sqlite.scrub(at_most_every=None)
    finish(sqlite)
    assert is_verified(sqlite, ann)


def test_a_residue_waits_for_its_scrub_for_minutes_and_not_for_the_hour_of_the_others(
    sqlite: Services,
) -> None:
    ann, bob = purged(sqlite), make_person(sqlite, "bob")
    before, scrubbed_at = belongings(sqlite, bob), now(sqlite)
    seed(sqlite, *SEEDS["former_addresses"](ann, scrubbed_at))
    finish(sqlite)

    def scrub_after(passed: timedelta) -> bool:
        at = scrubbed_at + passed
        return scrub.scrub(sqlite.database, lambda _: at, at_most_every=timedelta(hours=1))

    assert owed_with(sqlite, ann) == RESIDUE
    assert not scrub_after(scrub.AFTER_RESIDUE - timedelta(minutes=1))
    assert scrub_after(scrub.AFTER_RESIDUE + timedelta(minutes=1))

    finish(sqlite)
    assert is_verified(sqlite, ann)
    assert belongings(sqlite, bob) == before


def test_a_file_that_came_back_is_found_and_deleted_again(services: Services, ann: Person) -> None:
    key = ann.avatar.rpartition("/")[2]
    bob = make_person(services, "bob")
    before = belongings(services, bob)
    services.avatars.put(key, b"from a replica")

    finish(services)

    assert story(services, ann) == [(proofs.RESIDUE_FOUND, {"place": "avatars", "count": 1})]
    assert owed_with(services, ann) == RESIDUE
    finish(services)
    assert services.avatars.open(key) is None
    finish(services)
    assert is_verified(services, ann)
    assert belongings(services, bob) == before


def test_a_version_of_a_file_is_found(services: Services) -> None:
    with start_moto() as server:
        name = server.make_bucket(versions="Enabled")
        store = S3Store(Bucket(name, "media", client_factory=lambda: server.client))
        gone, stays = new_key(), new_key()
        store.put(gone, b"a picture")
        store.put(stays, b"bob's")
        # Somebody deletes it as one deletes in a bucket without versions.
        server.client.delete_object(Bucket=name, Key=f"media/{gone}")
        assert store.open(gone) is None
        ann, bob = (Purged(uuid.uuid4(), None, [key]) for key in (gone, new_key()))

        found = verifier(services, avatars=store).look([ann, bob])

        assert found == {ann.public_id: [Residue("avatars", 1)]}


def verifier(services: Services, **changes: Any) -> Verifier:
    parts = {
        "database": services.database,
        "avatars": services.avatars,
        "clock": lambda _session: now(services),
        "backups_kept": timedelta(days=30),
    }
    return Verifier(**{**parts, **changes})


def test_many_are_looked_for_by_as_many_statements_as_one(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    original = verify._count_rows

    def counted(*arguments: Any) -> dict[uuid.UUID, int]:
        asked.append(len(arguments[2]))
        return original(*arguments)

    monkeypatch.setattr(verify, "_count_rows", counted)
    many = [Purged(uuid.uuid4(), 10_000 + number, []) for number in range(200)]

    assert verifier(services).look(many) == {}

    assert set(asked) == {200}


def left(belongings: dict[str, Any]) -> dict[str, Any]:
    """What somebody has, without the events: the alarm is one."""
    return {name: what for name, what in belongings.items() if name != "events"}


@pytest.mark.parametrize("by", ["number", "public id"])
def test_nothing_is_erased_of_somebody_who_lives(services: Services, by: str) -> None:
    # given: an effect that names somebody who is there, by a mistake of ours
    bob = make_person(services, "bob")
    before = belongings(services, bob)
    key = bob.avatar.rpartition("/")[2]
    wrong = (
        Purged(uuid.uuid4(), bob.id, [key])
        if by == "number"
        else Purged(bob.public_id, 99_999, [key])
    )
    looking = verifier(services)

    # when
    residues = looking.look([wrong])
    with lines_of(verify) as lines:
        looking.erase_again([wrong], residues)
    services.deliver(seconds=60)

    # then
    assert "accounts" in [residue.place for residue in residues[wrong.public_id]]
    assert left(belongings(services, bob)) == left(before)
    assert {line["erased"] for line in lines} == {False}
    assert {event.details["place"] for event in events(services)} >= {"accounts", "avatars"}


def test_an_open_hold_is_never_erased(services: Services, ann: Person) -> None:
    model, values = SEEDS["legal_holds"](ann, now(services))
    seed(services, model, {**values, "released_at": None})
    seed(services, *SEEDS["saved_passwords"](ann, now(services)))

    for _ in range(2):
        finish(services)

    assert (count(services, LegalHold), count(services, SavedPassword)) == (1, 1)
    assert not is_verified(services, ann)
    assert owed_with(services, ann) == RESIDUE


def test_nothing_is_erased_of_whom_no_receipt_speaks(services: Services) -> None:
    ann = make_person(services, "ann")
    stranger = replace(ann, id=77_777, public_id=uuid.uuid4())
    seed(services, *SEEDS["outbox"](stranger, now(services)))
    looking = verifier(services)
    purged = [Purged(stranger.public_id, None, [])]

    looking.erase_again(purged, looking.look(purged))

    assert [residue.place for residue in looking.look(purged)[stranger.public_id]] == ["outbox"]


def test_a_residue_that_stays_is_written_down_once_a_day(
    services: Services, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, values = SEEDS["legal_holds"](ann, now(services))
    seed(services, model, {**values, "released_at": None})

    for _ in range(3):
        finish(services)
    assert len(events(services)) == 1
    monkeypatch.setattr(verify, "SAID_AGAIN_AFTER", timedelta())
    finish(services)

    assert len(events(services)) == len(story(services, ann)) == 2


def test_who_has_a_public_id_in_lines_that_are_owed_is_found(services: Services) -> None:
    ann = Purged(uuid.uuid4(), None, [])
    with services.writing() as session:
        queue.record(session, queue.REMOVE, subject=None, now=now(services))
        lines = queue.row(queue.LEDGER, subject=None, now=now(services))
        queue.record_all(
            session, [{**lines, "payload": {"lines": [{"public_id": str(ann.public_id)}]}}]
        )

    assert verifier(services).look([ann]) == {ann.public_id: [Residue("outbox", 1)]}


def test_of_whom_the_number_is_not_known_the_places_that_know_it_are_not_called_verified(
    services: Services, ann: Person
) -> None:
    with services.writing() as session:
        effect = session.scalars(select(Effect).where(Effect.kind == queue.FINISH)).one()
        effect.payload = {**effect.payload, **Finish().stored(), "scrubbed": True}

    finish(services)

    ((_, details),) = story(services, ann)
    unknown = {place for place, until in details["stated"].items() if until == verify.UNKNOWN}
    assert {"saved_passwords", "former_addresses", "legal_holds", "avatars"} <= unknown
    assert {"accounts", "outbox"} <= set(details["places"])


# The bytes of the SQLite file


def soil(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a word come back into the file behind each rewrite, where no row is."""
    original = vacuum._look

    def looked(path: str, *arguments: Any) -> vacuum.Rewritten | None:
        with open(path, "r+b") as file:
            content = file.read()
            file.seek(min(gaps_of(content)))
            file.write(b"ann@example.org")
        return original(path, *arguments)

    monkeypatch.setattr(vacuum, "_look", looked)


def gaps_of(content: bytes) -> Iterator[int]:
    """Where a leaf of a table has a hundred bytes that are nobody's."""
    for start in range(4096, len(content), 4096):
        cells, first = struct.unpack(">HH", content[start + 3 : start + 7])
        gap = start + 8 + 2 * cells + 40
        if content[start] == 13 and not any(content[gap : gap + 100]) and gap + 100 < start + first:
            yield gap


def test_bytes_in_the_file_are_found_and_nobody_is_scrubbed(
    sqlite: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    ann = purged(sqlite, scrubbed=False)
    with monkeypatch.context() as within:
        soil(sqlite, within)

        # when
        with lines_of(scrub) as lines:
            assert not sqlite.scrub(at_most_every=None)
            again = sqlite.scrub(at_most_every=timedelta(hours=1))
        finish(sqlite)

    # then
    assert not again
    (line,) = (line for line in lines if line["log_level"] == "error")
    assert line["places"] == {"gap": 1}
    (event,) = events(sqlite)
    assert (event.subject, event.details) == (None, {"place": "database file", "count": 1})
    with sqlite.reading() as session:
        true = facts.of(session, [ann.public_id])[ann.public_id]
    assert true.keys().isdisjoint({proofs.SCRUBBED, proofs.COMPLETED, proofs.VERIFIED})
    # when the file is clean at last
    assert sqlite.scrub(at_most_every=None)
    finish(sqlite)
    assert is_verified(sqlite, ann)


def test_a_file_that_was_not_looked_at_is_stated(
    sqlite: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacuum, "_look", lambda *_: vacuum.Rewritten(unseen=vacuum.TOO_LARGE))
    ann = purged(sqlite, scrubbed=False)

    assert sqlite.scrub(at_most_every=None)
    finish(sqlite)

    ((_, details),) = story(sqlite, ann)
    assert "database file" in details["stated"]
    assert "database file" not in details["places"]
