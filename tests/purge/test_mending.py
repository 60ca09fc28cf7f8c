"""A ledger that is forged, cut, lost or of before the seals: nobody is purged by it, and it mends."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from apiflask import APIFlask
from click.testing import Result
from sqlalchemy import select, update

from accountsvc.adapters.ledger import Ledger, object_name
from accountsvc.adapters.ledgerseal import Flaw, Opened, encode, sealed
from accountsvc.db.models import Effect, Receipt
from accountsvc.errors import StoreUnavailable
from accountsvc.outbox import queue
from accountsvc.outbox.payloads import seal_of
from accountsvc.purge.stops import LedgerBehind, LedgerGone
from accountsvc.services import Services
from tests.support.factories import (
    Person,
    dispose,
    make_app,
    make_due,
    make_person,
    run_sql,
    services_of,
)
from tests.support.ledgers import OTHER_KEY, keys, write
from tests.support.production import PUBLIC_KEY
from tests.support.s3 import start_moto
from tests.support.state import events, everything

Run = Callable[..., Result]


@pytest.fixture
def run(app: APIFlask) -> Run:
    runner = app.test_cli_runner()
    return lambda *words: runner.invoke(args=list(words))


@pytest.fixture
def services(app: APIFlask) -> Services:
    return services_of(app)


@pytest.fixture
def bob(services: Services) -> Person:
    """Somebody active, whom a forged line names."""
    return make_person(services, "bob")


@pytest.fixture
def folder(services: Services) -> Path:
    return services.settings.instance_path / "ledger"


def purge(services: Services, *names: str) -> list[Person]:
    """Purge people of these names, each in a batch of its own."""
    people = []
    for name in names:
        person = make_person(services, name)
        make_due(services, person)
        services.sweep()
        people.append(person)
    return people


def sealed_files(folder: Path) -> list[Path]:
    """The sealed objects, the earliest first."""
    return sorted((path for path in (folder / "sealed").rglob("*.jsonl")), reverse=True)


def forge(folder: Path, person: Person, *, old: bool = False) -> Path:
    """Write an object that calls *person* purged, later than any other, without the key."""
    at = datetime.now(UTC) + timedelta(days=1)
    line = {"public_id": str(person.public_id), "purged_at": at.isoformat()}
    name = f"{at:%Y/%m}/{uuid.uuid4()}.jsonl" if old else object_name(uuid.uuid4(), at)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode([line]))
    return path


def by_stranger(folder: Path, person: Person) -> Path:
    from accountsvc.adapters.ledgerstore import FolderStore

    ledger = Ledger(FolderStore(folder), keys(OTHER_KEY))
    line = {"public_id": str(person.public_id)}
    return folder / write(ledger, [line], at=datetime.now(UTC) + timedelta(days=1))


@pytest.mark.parametrize("how", ["no seal", "of before the seals", "a stranger's seal"])
def test_a_forged_line_stops_nothing_and_purges_nobody(
    app: APIFlask, services: Services, run: Run, bob: Person, folder: Path, how: str
) -> None:
    purge(services, "ann")
    if how == "a stranger's seal":
        by_stranger(folder, bob)
    else:
        forge(folder, bob, old=how == "of before the seals")
    due = make_person(services, "cid")
    make_due(services, due)
    before = everything(services)

    ready = app.test_client().get("/readyz")
    verified = json.loads(run("ledger", "verify", "--json").stdout)
    replayed = run("ledger", "replay", "--yes")

    assert ready.status_code == 200
    assert verified["back"] == []
    assert len(verified["untrusted"]) + verified["unsealed"] == 1
    assert replayed.exit_code == 0, replayed.output
    assert "Nothing to replay" in replayed.output
    assert everything(services) == before
    assert services.sweep().purged_ids == [due.id]

    # when: adopted or rebuilt
    adopted = run("ledger", "adopt", "--yes")
    rebuilt = run("ledger", "rebuild", "--yes")

    assert adopted.exit_code == 1
    assert str(bob.public_id) in adopted.output
    assert "Nothing is lost." in rebuilt.output
    assert services.restore.verify().back == []


def test_repeats_write_the_same_bytes_whatever_has_come_in_between(
    services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies between the PUT and the end of its transaction."""
    ann = make_person(services, "ann")
    make_due(services, ann)
    first: list[bytes] = []
    append = services.ledger.append

    def die(*arguments: object) -> None:
        append(*arguments)  # type: ignore[arg-type]
        first.extend(path.read_bytes() for path in sealed_files(folder))
        raise RuntimeError("killed")

    monkeypatch.setattr(services.ledger, "append", die)
    with pytest.raises(LedgerBehind):
        services.sweep()
    monkeypatch.undo()
    path = sealed_files(folder)[0]
    with services.reading() as session:
        (owed,) = session.scalars(select(Effect.payload).where(Effect.kind == queue.LEDGER))
    assert seal_of(owed) is not None
    write(services.ledger, [{"public_id": str(uuid.uuid4())}], at=datetime(2020, 1, 1, tzinfo=UTC))

    let_due(services)
    assert services.write_ledger()

    assert [path.read_bytes()] == first


def test_a_crash_before_the_put_keeps_the_seal(
    services: Services, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailable("gone")

    ann = make_person(services, "ann")
    make_due(services, ann)
    monkeypatch.setattr(services.ledger, "append", fail)
    with pytest.raises(LedgerBehind):
        services.sweep()
    monkeypatch.undo()
    with services.reading() as session:
        (payload,) = session.scalars(select(Effect.payload).where(Effect.kind == queue.LEDGER))

    let_due(services)
    assert services.write_ledger()

    (path,) = sealed_files(folder)
    assert json.loads(path.read_bytes().splitlines()[-1])["seal"] == seal_of(payload)
    assert services.restore.verify().agrees


def let_due(services: Services) -> None:
    with services.writing() as session:
        session.execute(
            update(Effect)
            .where(Effect.kind == queue.LEDGER)
            .values(deliver_after=Effect.created_at)
        )


DAMAGE: dict[str, Callable[[Path], object]] = {
    "lost": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "without its seal": lambda path: path.write_bytes(path.read_bytes().splitlines(True)[0]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen_without_verify_and_rebuilt(
    services: Services, run: Run, folder: Path, damage: str
) -> None:
    people = purge(services, "ann", "bob", "cid")
    path = sealed_files(folder)[1]
    lines = path.read_bytes().splitlines()[:-1]
    DAMAGE[damage](path)

    look = services.restore.look()
    verified = run("ledger", "verify")
    dry = run("ledger", "rebuild", "--dry-run", "--json")
    untouched = run("ledger", "verify")
    asked = run("ledger", "rebuild")
    rebuilt = run("ledger", "rebuild", "--yes")

    assert look.missing == [people[1].public_id]
    assert verified.exit_code == untouched.exit_code == 1
    assert path.relative_to(folder).as_posix() in verified.stderr
    assert "run `ledger rebuild`" in verified.stderr
    assert "Traceback" not in verified.output
    assert [one["lines"] for one in json.loads(dry.stdout)["objects"]] == [1]
    assert asked.exit_code == 2
    assert rebuilt.exit_code == 0, rebuilt.output
    assert path.read_bytes().splitlines()[:-1] == lines
    assert services.restore.verify().agrees
    assert services.restore.look().missing == []
    assert [event.details for event in events(services, "ledger.rebuilt")] == [{"count": 1}]


def test_a_lost_object_without_receipts_is_written_down_as_lost(
    services: Services, run: Run, folder: Path
) -> None:
    """After a restore nobody knows what was in it; the object behind it knows that it was."""
    ann, _ = purge(services, "ann", "bob")
    path = sealed_files(folder)[0]
    path.unlink()
    forget_receipt(services, ann)

    found = services.restore.verify()
    rebuilt = run("ledger", "rebuild", "--yes")

    assert [one.flaw for one in found.untrusted] == [Flaw.LOST]
    assert found.missing == []
    assert rebuilt.exit_code == 0, rebuilt.output
    assert services.restore.verify().agrees
    assert b'"kind": "lost"' in path.read_bytes()


def forget_receipt(services: Services, person: Person) -> None:
    table = "" if services.settings.is_sqlite else " ON receipts"
    run_sql(services, f"DROP TRIGGER receipts_refuse_delete{table}")
    public_id = person.public_id.hex if services.settings.is_sqlite else str(person.public_id)
    run_sql(services, "DELETE FROM receipts WHERE public_id = :id", id=public_id)


def test_an_earlier_object_put_back_under_its_name_is_noticed(
    services: Services, run: Run, folder: Path
) -> None:
    """Two objects of one name were both sealed well; only one is what the next one followed."""
    ann, _ = purge(services, "ann", "bob")
    path = sealed_files(folder)[0]
    (opened, _) = services.ledger.scan()
    assert isinstance(opened, Opened)
    body = encode([{"public_id": str(ann.public_id)}])
    seal = services.ledger.keys.sign(opened.link.name, body, opened.mark)
    path.write_bytes(sealed(body, seal))

    (found,) = services.restore.verify().untrusted
    rebuilt = run("ledger", "rebuild", "--yes")

    assert found.flaw is Flaw.REPLACED
    assert rebuilt.exit_code == 0, rebuilt.output
    assert services.restore.verify().agrees


def test_a_ledger_that_is_gone_is_not_taken_for_a_fresh_one(
    app: APIFlask, services: Services, run: Run, folder: Path
) -> None:
    purge(services, "ann", "bob")
    folder.rename(folder.with_name("elsewhere"))
    due = make_person(services, "cid")
    make_due(services, due)

    with pytest.raises(LedgerGone):
        services.sweep()
    refused = run("accounts", "purge", "--expired", "--yes")
    status = app.test_client().get("/statusz").json

    assert "The ledger is empty though it was written." in refused.stderr
    assert status is not None
    assert status["parts"]["ledger"].startswith("is empty though it was written")

    # when: rebuilt
    assert run("ledger", "rebuild", "--yes").exit_code == 0
    assert services.sweep().purged_ids == [due.id]
    assert services.restore.verify().agrees


# Objects of before the seals --------------------------------------------------------------------


def as_before(services: Services, folder: Path) -> list[Path]:
    """Make each object one of a release before the seals: under its old name, without a seal."""
    made = []
    for path in sealed_files(folder):
        lines = path.read_bytes().splitlines(True)[:-1]
        old = folder / "2026" / "10" / path.name[-42:]
        old.parent.mkdir(parents=True, exist_ok=True)
        old.write_bytes(b"".join(lines))
        path.unlink()
        made.append(old)
    services.ledger.follow(None)
    return made


def test_after_the_upgrade_the_service_goes_on_and_says_what_waits(
    app: APIFlask, services: Services, run: Run, folder: Path
) -> None:
    purge(services, "ann", "bob")
    as_before(services, folder)
    due = make_person(services, "cid")
    make_due(services, due)

    status = app.test_client().get("/statusz").json
    shown = run("accounts", "status")
    verified = run("ledger", "verify")

    assert app.test_client().get("/readyz").status_code == 200
    assert status is not None
    assert status["parts"]["ledger"] == "holds 2 without a seal: run `accountsvc ledger adopt`"
    assert "2 objects of the ledger have no seal" in shown.stderr
    assert "2 objects without a seal are ignored: run `ledger adopt`." in verified.stderr
    assert services.sweep().purged_ids == [due.id]


def test_adopt_seals_what_equals_the_receipts(services: Services, run: Run, folder: Path) -> None:
    people = purge(services, "ann", "bob")
    before = sealed_files(folder)
    old = as_before(services, folder)

    dry = run("ledger", "adopt", "--dry-run", "--json")
    asked = run("ledger", "adopt")
    assert all(path.exists() for path in old)
    adopted = run("ledger", "adopt", "--yes")
    again = run("ledger", "adopt", "--yes")

    assert sorted(json.loads(dry.stdout)["adopted"]) == sorted(
        path.relative_to(folder).as_posix() for path in old
    )
    assert asked.exit_code == 2
    assert adopted.exit_code == again.exit_code == 0, adopted.output + again.output
    assert not any(path.exists() for path in old)
    assert sealed_files(folder) == before
    found = services.restore.verify()
    assert found.agrees
    assert found.lines == len(people)
    assert [event.details for event in events(services, "ledger.adopted")] == [{"count": 2}]


def test_adopt_signs_no_line_that_differs_from_its_receipt(
    services: Services, run: Run, folder: Path, bob: Person
) -> None:
    purge(services, "ann")
    (old,) = as_before(services, folder)
    true = json.loads(old.read_text())
    made_up = {**true, "public_id": str(bob.public_id)}
    other = old.with_name(f"{uuid.uuid4()}.jsonl")
    other.write_bytes(encode([{**true, "files": 99}]))
    old.write_bytes(encode([true, made_up]))

    result = run("ledger", "adopt", "--yes")

    assert result.exit_code == 1
    assert f"{old.relative_to(folder)}: {bob.public_id} has no equal receipt." in result.output
    assert old.exists()
    assert other.exists()
    assert [line["public_id"] for line in services.ledger.read()] == [true["public_id"]]
    assert services.replay.plan().purges == []


def test_a_true_line_in_an_object_of_another_name_takes_nothing_away(
    services: Services, run: Run, folder: Path
) -> None:
    """Adopted under the name of a whole object, it would leave that one with a part of its lines."""
    people = [make_person(services, name) for name in ("ann", "bob")]
    for person in people:
        make_due(services, person)
    services.sweep()
    (path,) = sealed_files(folder)
    old = folder / "2026" / "10" / path.name[-42:]
    old.parent.mkdir(parents=True)
    old.write_bytes(path.read_bytes().splitlines(True)[0])

    result = run("ledger", "adopt", "--yes")

    assert result.exit_code == 0, result.output
    assert not old.exists()
    assert len(list(services.ledger.read())) == len(people)
    assert services.restore.verify().agrees


def test_what_a_removed_key_has_sealed_is_adopted(
    services: Services, run: Run, folder: Path
) -> None:
    (ann,) = purge(services, "ann")
    (path,) = sealed_files(folder)
    lines = [json.loads(text) for text in path.read_bytes().splitlines()[:-1]]
    from accountsvc.adapters.ledgerstore import FolderStore

    with services.reading() as session:
        at = session.scalars(select(Receipt.purged_at)).one()
    batch = uuid.UUID(path.stem[-36:])
    path.unlink()
    write(Ledger(FolderStore(folder), keys(OTHER_KEY)), lines, at=at, batch=batch)
    assert [one.flaw for one in services.restore.verify().untrusted] == [Flaw.UNKNOWN_KEY]

    result = run("ledger", "adopt", "--yes")

    assert result.exit_code == 0, result.output
    assert services.restore.verify().agrees
    assert [line["public_id"] for line in services.ledger.read()] == [str(ann.public_id)]


def test_a_bucket_is_mended_as_a_folder_is(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_moto() as s3:
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
        app = make_app(sqlite_url, tmp_path, LEDGER_URL=f"s3://{s3.make_bucket()}/ledger")
        services = services_of(app)
        purge(services, "ann", "bob", "cid")
        store = services.ledger.store
        newest, middle, oldest = store.names()
        data = store.get(oldest)
        assert data is not None
        # The first is of before the seals, the second is empty, and the third is lost.
        store.put(f"2026/10/{oldest[-42:]}", data.splitlines(True)[0])
        store.remove(oldest)
        store.put(middle, b"")
        store.remove(newest)
        found = services.restore.verify()

        results = [
            app.test_cli_runner().invoke(args=["ledger", *words, "--yes"])
            for words in (["adopt"], ["rebuild"])
        ]

        assert (found.unsealed, len(found.missing)) == (1, 3)
        assert [result.exit_code for result in results] == [0, 0], results[0].output
        assert list(store.names())[1:] == [middle, oldest]
        assert services.restore.verify().agrees
        assert services.restore.look().missing == []
        dispose(app)


@pytest.mark.parametrize(
    "words", [["accounts", "purge", "1"], ["ledger", "replay"], ["accounts", "purge", "--expired"]]
)
def test_a_command_without_the_key_changes_nothing(
    sqlite_url: str, tmp_path: Path, words: list[str]
) -> None:
    app = make_app(sqlite_url, tmp_path, LEDGER_SIGNING_KEY="", LEDGER_PUBLIC_KEYS=PUBLIC_KEY)
    make_due(services_of(app), make_person(services_of(app), "ann"))
    before = everything(services_of(app))

    result = app.test_cli_runner().invoke(args=[*words, "--yes"])

    assert result.exit_code == 1
    assert "LEDGER_SIGNING_KEY is not set here" in result.stderr
    assert everything(services_of(app)) == before
    dispose(app)
