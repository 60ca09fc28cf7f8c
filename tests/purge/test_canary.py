"""The canary passes where nothing is left, and finds what is left anywhere."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from accountsvc.accounts import profiles
from accountsvc.adapters.avatarstore import new_key
from accountsvc.db import audit, canaries
from accountsvc.db.audit import OPERATOR_ACTOR, SYSTEM_ACTOR
from accountsvc.db.canaries import Canary
from accountsvc.db.models import Account, AuditEvent, Effect, KeptLine, MailPace, Receipt
from accountsvc.db.orphaned import OrphanedFile
from accountsvc.monitoring import canary, residues, status
from accountsvc.monitoring.canary import LONGEST_RUN, PASSED_LATE, Outcome, Standing, _Life
from accountsvc.outbox import notices, queue
from accountsvc.outbox.payloads import AddressedMail
from accountsvc.purge import brake, stops
from accountsvc.purge.evidence import Period, Request
from accountsvc.services import Services
from tests.support.factories import insert_account, make_account, make_person, run_sql
from tests.support.loglines import lines_of
from tests.support.moments import BOUNDARY, GRACE, NOW, now
from tests.support.processes import Crash
from tests.support.state import belongings, events, files, rows_of

STEPS = list(_Life(None, uuid.uuid4()).steps())  # type: ignore[arg-type]


def run(services: Services, after: str = "", do: Callable[[_Life], None] | None = None) -> Outcome:
    """A run of the canary in which *do* is called once the step *after* is done."""

    def said(step: str) -> None:
        if step == after and do is not None:
            (row,) = rows_of(services, Canary)
            life = _Life(services, row.public_id)
            life.account = _account(services)
            do(life)

    outcome = canary.run(services, say=said)
    assert outcome is not None
    return outcome


def _account(services: Services) -> Account | None:
    found = rows_of(services, Account, canaries.is_of_canary(Account.public_id))
    return found[0] if found else None


def mails(services: Services) -> list[Path]:
    return [
        path for path in (services.settings.instance_path / "mail").rglob("*") if path.is_file()
    ]


def test_a_canary_passes_and_leaves_nothing_but_what_is_kept_of_everybody(
    services: Services,
) -> None:
    bystander = make_person(services, "bob")
    before = belongings(services, bystander)
    steps: list[str] = []

    with lines_of(canary) as lines:
        outcome = canary.run(services, say=steps.append)

    assert outcome is not None
    assert (outcome.step, outcome.error, outcome.places) == (None, None, ())
    assert steps == STEPS
    assert canaries.is_canary(outcome.public_id)
    assert belongings(services, bystander) == before
    assert files(services) == {bystander.avatar}
    assert [receipt.public_id for receipt in rows_of(services, Receipt)] == [outcome.public_id]
    (event,) = events(services, "canary.passed")
    assert (event.subject, event.actor_kind, event.details) == (outcome.public_id, "system", {})
    assert [line["log_level"] for line in lines] == ["info"]
    # Its mails went through everybody's handlers, and into no post.
    assert mails(services) == []
    assert {pace.kind for pace in rows_of(services, MailPace)} == {
        notices.SCHEDULED,
        notices.PURGED,
    }
    (row,) = rows_of(services, Canary)
    assert (row.mails, row.ended_at is not None) == ({}, True)


def stray(life: _Life) -> None:
    """A row in a table that the purge does not know, without a foreign key."""
    run_sql(life.services, "CREATE TABLE crm (id INTEGER PRIMARY KEY, note VARCHAR(200))")
    run_sql(life.services, "INSERT INTO crm VALUES (7, :note)", note=f"met {life.word('first')}")


def stray_bytes(life: _Life) -> None:
    kind = "BLOB" if life.services.settings.is_sqlite else "BYTEA"
    run_sql(life.services, f"CREATE TABLE cache (name VARCHAR(9), body {kind})")
    body = b"\0" + life.word("secret").encode()
    run_sql(life.services, "INSERT INTO cache VALUES ('x', :body)", body=body)


def stray_json(life: _Life) -> None:
    kind = "JSON" if life.services.settings.is_sqlite else "JSONB"
    run_sql(life.services, f"CREATE TABLE facts (body {kind})")
    body = json.dumps({"mail": f"{life.word('email')}@{canaries.DOMAIN}"})
    run_sql(life.services, "INSERT INTO facts VALUES (:body)", body=body)


def in_the_trail(life: _Life) -> None:
    with life.services.writing() as session:
        details = {"name": life.word("username")}
        session.add(AuditEvent(at=NOW, action="x", actor_kind="system", details=details))


def a_kept_line(life: _Life) -> None:
    with life.services.writing() as session:
        session.add(KeptLine(uid=uuid.uuid4(), subject=life.public_id, kind="held", at=NOW))


def quarantined(life: _Life) -> None:
    """A file that the search has found, whose key the canary's account has shown."""
    with life.services.writing() as session:
        session.add(OrphanedFile(key=life.word("site") + ".webp", found_at=NOW, written_at=NOW))


def an_address_that_waits(life: _Life) -> None:
    with life.services.writing() as session:
        queue.record(
            session,
            notices.REACTIVATED,
            subject=None,
            payload=AddressedMail(f"{life.word('email')}@{canaries.DOMAIN}"),
            now=NOW,
            after=now(life.services) + timedelta(days=1),
        )


def a_draft_of_a_mail(life: _Life) -> None:
    folder = life.services.settings.instance_path / "mail"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".1.eml.part").write_text(f"To: {life.word('email')}@{canaries.DOMAIN}\n")


def in_the_broker(life: _Life) -> None:
    folder = life.services.settings.instance_path / "broker" / "accountsvc.deliver"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "1.msg").write_text(json.dumps({"body": life.word("username").upper()}))


def a_file(life: _Life, name: str = "{}") -> None:
    assert life.avatar_key is not None
    folder = life.services.settings.instance_path / "media" / life.avatar_key[:2]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name.format(life.avatar_key)).write_bytes(b"half of it")


def half_a_file(life: _Life) -> None:
    a_file(life, ".{}.part")


def in_the_ledger(life: _Life) -> None:
    store = life.services.ledger.store
    (name,) = store.names("sealed")
    store.put(name, (store.get(name) or b"") + life.word("first").encode())


@pytest.mark.parametrize(
    ("residue", "place"),
    [
        (stray, residues.DATABASE),
        (stray_bytes, residues.DATABASE),
        (stray_json, residues.DATABASE),
        (in_the_trail, residues.DATABASE),
        (a_kept_line, residues.DATABASE),
        (quarantined, residues.QUARANTINE),
        (an_address_that_waits, residues.OUTBOX),
        (a_draft_of_a_mail, residues.MAIL_FOLDER),
        (in_the_broker, residues.BROKER),
        (a_file, residues.AVATARS),
        (half_a_file, residues.AVATARS),
    ],
)
def test_what_is_left_of_a_canary_is_found_where_it_is(
    services: Services, residue: Callable[[_Life], None], place: str
) -> None:
    insert_account(services, "bob", passwords=1)
    life = gone(services)
    assert residues.places(services, life.wanted()) == []

    residue(life)

    found = residues.places(services, life.wanted())
    assert place in found
    # On SQLite a row stands in the file, too.
    assert set(found) <= {place, residues.SQLITE_FILE}


def gone(services: Services) -> _Life:
    """The life of a canary of whom nothing is left, with marks from when it came."""
    marks = residues.marks(services)
    nobody = Account(id=1_000_000, joined_at=now(services))
    services.avatars.begin()
    return _Life(
        services, canaries.new_canary_id(), account=nobody, avatar_key=new_key(), marks=marks
    )


def test_a_residue_is_an_alarm_and_named_by_its_place_alone(services: Services) -> None:
    bystander = make_person(services, "bob")
    before = belongings(services, bystander)

    def leave(life: _Life) -> None:
        stray(life)
        in_the_ledger(life)

    with lines_of(canary) as lines:
        outcome = run(services, "complete", leave)

    assert outcome.step == "search"
    assert set(outcome.places) - {residues.SQLITE_FILE} == {residues.DATABASE, residues.LEDGER}
    (event,) = events(services, "canary.failed")
    places = ", ".join(outcome.places)
    assert event.details == {"step": "search", "error": None, "places": places}
    assert [(line["log_level"], line["places"]) for line in lines] == [
        ("error", list(outcome.places))
    ]
    with services.reading() as session:
        assert canary.standing(session).problem(NOW) == f"failed at the step search, in {places}"
    assert belongings(services, bystander) == before


@pytest.mark.parametrize("kind", ["name", "string", "list", "hash", "set", "zset"])
def test_words_in_redis_are_found_whatever_holds_them(redis_url: str, kind: str) -> None:
    word, key = uuid.uuid4().hex, f"canary-test-{uuid.uuid4().hex[:8]}"
    with Redis.from_url(redis_url) as redis:
        assert not residues._in_redis(redis_url, [word])
        name = f"{key}-{word.upper()}" if kind == "name" else key
        {
            "name": lambda: redis.set(name, "x"),
            "string": lambda: redis.set(name, f"a {word}"),
            "list": lambda: redis.rpush(name, "x", f"a {word}"),
            "hash": lambda: redis.hset(name, "field", word),
            "set": lambda: redis.sadd(name, word),
            "zset": lambda: redis.zadd(name, {word: 1}),
        }[kind]()

        found = residues._in_redis(redis_url, [word])
        redis.delete(name)

    assert found


def test_bytes_that_a_scrub_has_left_in_the_sqlite_file_are_found(sqlite: Services) -> None:
    life = gone(sqlite)
    stranger = sqlite3.connect(str(sqlite.database.engine.url.database))
    # Freed pages that nobody overwrites.
    stranger.execute("PRAGMA secure_delete = OFF")
    stranger.execute("CREATE TABLE scratch (note)")
    stranger.execute("INSERT INTO scratch VALUES (?)", (life.word("secret") * 3,))
    stranger.execute("DELETE FROM scratch")
    stranger.commit()
    stranger.close()

    assert residues.places(sqlite, life.wanted()) == [residues.SQLITE_FILE]


@pytest.mark.parametrize("step", ["avatar", "purge"])
def test_a_canary_that_a_crash_has_left_is_purged_before_the_next(
    services: Services, step: str
) -> None:
    bystander = make_person(services, "bob")
    before = belongings(services, bystander)

    def die(_life: _Life) -> None:
        raise Crash

    with pytest.raises(Crash):
        run(services, step, die)
    # The next day.
    age(services, LONGEST_RUN + timedelta(days=1))
    outcome = canary.run_if_due(services)

    assert outcome is not None
    assert outcome.passed, outcome
    assert _account(services) is None
    assert len(rows_of(services, Receipt)) == 2
    assert files(services) == {bystander.avatar}
    assert belongings(services, bystander) == before


def age(services: Services, by: timedelta) -> None:
    """Let the last run have begun so much earlier."""
    with services.writing() as session:
        row = session.get_one(Canary, 1)
        assert row.began_at is not None
        row.began_at -= by


def test_one_canary_is_made_a_day_and_none_beside_another(services: Services) -> None:
    seen: list[Any] = []

    def said(step: str) -> None:
        if step == "sign_up":
            seen.append((canary.run_if_due(services), canary.run(services)))

    assert canary.run(services, say=said) is not None

    assert seen == [(None, None)]
    assert canary.run_if_due(services) is None
    age(services, timedelta(days=1))
    assert canary.run_if_due(services) is not None
    assert len(events(services, "canary.passed")) == 2


def test_no_canary_is_made_while_purging_is_stopped(services: Services) -> None:
    with services.writing() as session:
        stops.pause(session, by=OPERATOR_ACTOR)

    with pytest.raises(stops.PurgingPaused):
        canary.run_if_due(services)

    assert rows_of(services, Canary) == []
    assert rows_of(services, Account) == []


def test_a_step_that_fails_is_an_alarm_by_its_name_and_class(services: Services) -> None:
    media = services.settings.instance_path / "media"
    media.parent.mkdir(exist_ok=True)
    media.touch()

    outcome = run(services)

    assert (outcome.step, outcome.error, outcome.places) == ("avatar", "StoreUnavailable", ())
    (event,) = events(services, "canary.failed")
    assert event.details == {"step": "avatar", "error": "StoreUnavailable", "places": ""}
    media.unlink()
    media.mkdir()
    again = run(services)
    assert again.passed, again


def test_the_purged_mail_before_the_file_is_gone_is_an_alarm(services: Services) -> None:
    def forge(life: _Life) -> None:
        with services.writing() as session:
            row = session.get_one(Canary, 1)
            row.mails = {
                uid: {**mail, "left": mail["left"] or mail["kind"] == notices.PURGED}
                for uid, mail in row.mails.items()
            }

    outcome = run(services, "effects", forge)

    assert (outcome.step, outcome.error) == ("mails", "Amiss")


def test_a_canary_counts_for_nothing_that_people_count_for(services: Services) -> None:
    make_account(services, "bob")
    seen: list[status.Status] = []

    def look(_life: _Life) -> None:
        seen.append(read(services))

    run(services, "sign_up", look)
    run(services, "deactivate", look)

    assert [(found.active, found.deactivated) for found in seen] == [(1, 0), (1, 0)]
    assert read(services).last_purged_at is None
    with services.reading() as session:
        later = now(services) + timedelta(hours=12)
        assert brake._largest_hour(session, later) == 0
    assert all(not row.purged and not row.reserved for row in rows_of(services, brake.PurgeBrake))
    moment, requests = now(services), list[Request]()
    evidence = services.evidence.gather(Period(moment - GRACE, moment), requests.append)
    assert (requests, evidence.receipts, evidence.ledger_lines) == ([], 0, 0)
    assert (evidence.unexplained, set(evidence.events)) == ([], {"account.created"})


def read(services: Services) -> status.Status:
    with services.reading() as session:
        return status.read(session, now=now(services), max_attempts=8)


def test_who_signs_up_never_has_a_canarys_public_id(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = [canaries.new_canary_id(), canaries.new_canary_id(), uuid.uuid4()]
    monkeypatch.setattr(canaries.uuid, "uuid4", iter(drawn).__next__)

    public_id = canaries.new_public_id()

    assert public_id == drawn[-1]
    assert [canaries.is_canary(one) for one in drawn] == [True, True, False]
    assert {one.version for one in drawn} == {4}


def test_python_and_sql_agree_on_who_is_a_canary(services: Services) -> None:
    below, above = uuid.UUID(int=canaries._FIRST.int - 1), uuid.UUID(int=canaries._LAST.int + 1)
    ids = [below, canaries._FIRST, canaries.new_canary_id(), canaries._LAST, above]
    with services.writing() as session:
        for public_id in ids:
            audit.record(session, "account.created", subject=public_id, by=SYSTEM_ACTOR, now=NOW)

    found = rows_of(services, AuditEvent, canaries.is_of_canary(AuditEvent.subject))

    assert {event.subject for event in found} == set(ids[1:4])
    assert [canaries.is_canary(one) for one in ids] == [False, True, True, True, False]


def test_a_mail_to_somebody_with_an_address_of_that_domain_goes_into_the_post(
    services: Services,
) -> None:
    fields = {"username": "eve", "email": f"eve@{canaries.DOMAIN}", "password": "a long sea shanty"}
    eve = profiles.sign_up(services.database, services.hasher, services.keyring, fields)
    with services.writing() as session:
        notices.password_changed(session, eve, now=now(services), grace=timedelta(days=14))

    services.deliver()

    assert len(mails(services)) == 1
    assert rows_of(services, Effect) == []


@pytest.mark.parametrize("step", BOUNDARY)
def test_a_canary_that_is_late_or_has_not_ended_is_a_problem(step: timedelta) -> None:
    late = Standing(passed_at=NOW - PASSED_LATE - step)
    killed = Standing(passed_at=NOW, began_at=NOW - LONGEST_RUN - step)

    assert late.problem(NOW) == ("is late" if step > timedelta(0) else None)
    assert killed.problem(NOW) == ("did not end" if step > timedelta(0) else None)
    assert Standing().problem(NOW) is None
    failed = Standing(NOW, NOW + timedelta(hours=1), "search", "avatars")
    assert failed.problem(NOW) == "failed at the step search, in avatars"
    assert Standing(NOW, NOW - timedelta(hours=1), "search", None).problem(NOW) is None
