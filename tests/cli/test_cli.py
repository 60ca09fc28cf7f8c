"""The operator's commands: what they say, what they leave alone, and how they end."""

from __future__ import annotations

import json
import os
import pty
import re
import select as readiness
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apiflask import APIFlask
from click.testing import Result
from sqlalchemy import select, text
from structlog.testing import capture_logs

from accountsvc.accounts import lifecycle, vault
from accountsvc.adapters.avatarstore import new_key
from accountsvc.db import rows
from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.engine import database_now
from accountsvc.db.models import ClockReading, Receipt
from accountsvc.db.orphaned import OrphanedFile
from accountsvc.outbox import queue
from accountsvc.outbox.payloads import FileDeletion
from accountsvc.purge import stops
from accountsvc.purge.clocks import Clocks, ClocksDiffer
from accountsvc.services import Services
from tests.cli.conftest import Run
from tests.support.addresses import ask_address, change_address
from tests.support.factories import (
    PASSWORD,
    SECRET_KEY,
    SIGNING_KEY,
    VAULT_KEY,
    Person,
    deactivate,
    dispose,
    insert_accounts,
    make_account,
    make_app,
    make_due,
    make_person,
    numbered,
    run_sql,
    services_of,
)
from tests.support.moments import now
from tests.support.processes import INHERITED, START, eventually
from tests.support.servers import free_port
from tests.support.state import (
    belongings,
    effects,
    events,
    everything,
    facts_of,
    read_account,
    rows_of,
    waits_for_a_lock,
)
from tests.support.work import note_work

ROOT = Path(__file__).resolve().parents[2]
STRAY = "CREATE TABLE stray (account_id BIGINT NOT NULL REFERENCES accounts (id))"


@pytest.fixture
def services(app: APIFlask) -> Services:
    return services_of(app)


@pytest.fixture
def ann(app: APIFlask) -> Person:
    return make_person(services_of(app), "ann")


@pytest.fixture
def bob(app: APIFlask) -> Person:
    """The bystander, who must keep everything."""
    return make_person(services_of(app), "bob")


def hold(app: APIFlask, account_id: int) -> int:
    with services_of(app).writing() as session:
        placed = lifecycle.place_hold(session, account_id, reason="court", by=OPERATOR_ACTOR)
        return placed.id


def receipt_of(app: APIFlask, person: Person) -> Receipt | None:
    with services_of(app).reading() as session:
        found = session.get(Receipt, person.public_id)
        session.expunge_all()
        return found


def document(result: Result) -> Any:
    """What was printed, which must be one JSON document and nothing else."""
    return json.loads(result.stdout)


# Purge ------------------------------------------------------------------------------------------


def test_purge_destroys_a_named_deactivated_account_at_once(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    deactivate(services_of(app), ann.id)
    before = belongings(services_of(app), bob)

    result = run("accounts", "purge", str(ann.id), "--yes")

    assert result.exit_code == 0, result.output
    assert "Purged: 1 account, 3 saved passwords and 1 file." in result.stdout
    assert read_account(services_of(app), ann.id) is None
    assert services_of(app).avatars.open(ann.avatar) is None
    receipt = receipt_of(app, ann)
    assert receipt is not None
    assert (receipt.saved_passwords, receipt.files) == (3, 1)
    assert belongings(services_of(app), bob) == before
    # All that was owed is done, so nothing waits for a worker.
    assert (
        effects(services_of(app), "file.delete") == effects(services_of(app), "ledger.append") == []
    )
    assert effects(services_of(app), "mail.purged") == []
    assert [line["public_id"] for line in services_of(app).ledger.read()] == [str(ann.public_id)]


def test_purge_scrubs_the_embedded_database_at_once(sqlite_url: str, tmp_path: Path) -> None:
    app = make_app(sqlite_url, tmp_path)
    ann = make_person(services_of(app), "annabella")
    bob = make_person(services_of(app), "bob")
    deactivate(services_of(app), ann.id)
    before = belongings(services_of(app), bob)

    result = app.test_cli_runner().invoke(args=["accounts", "purge", ann.email, "--yes"])

    assert result.exit_code == 0, result.output
    assert facts_of(services_of(app), ann.public_id)[-3:] == [
        "scrubbed",
        "completed",
        "verified",
    ]
    for path in tmp_path.glob("*.db*"):
        assert b"annabella" not in path.read_bytes(), path
    assert belongings(services_of(app), bob) == before
    dispose(app)


@pytest.mark.parametrize("options", [["--yes"], ["--dry-run"], ["--yes", "--json"]])
def test_purge_names_whom_it_destroys_on_stderr_alone(
    app: APIFlask, run: Run, ann: Person, options: list[str]
) -> None:
    deactivate(services_of(app), ann.id)
    run_sql(
        services_of(app),
        "UPDATE accounts SET username = :name WHERE id = :id",
        name="An\N{RIGHT-TO-LEFT OVERRIDE}na\x1b[2J",
        id=ann.id,
    )

    with capture_logs() as logs:
        result = run("accounts", "purge", str(ann.id), *options)

    assert result.exit_code == 0, result.output
    assert "An<U+202E>na<U+001B>[2J" in result.stderr
    assert ann.email in result.stderr
    assert ann.email not in result.stdout
    assert "An" not in result.stdout
    assert ann.email not in str(logs)


def test_a_plan_of_many_names_the_first(app: APIFlask, run: Run) -> None:
    services = services_of(app)
    ids = insert_accounts(services, numbered("due", 1023), purge_at=now(services))

    result = run("accounts", "purge", *map(str, ids), "--dry-run", "--json")

    assert result.exit_code == 0, result.output[-500:]
    assert [one["id"] for one in document(result)["would_purge"]] == ids
    said = result.stderr.splitlines()
    assert said[20].endswith("due19     due19@example.org")
    assert said[21:] == ["… and 1,003 more", "1023 accounts, 0 saved passwords and 0 files"]


@pytest.mark.parametrize(
    "typed", ["STRASSE@example.org", "strasse@Example.org", " strasse@example.org"]
)
@pytest.mark.parametrize(
    "words",
    [
        ["purge", "--yes"],
        ["purge", "--dry-run"],
        ["purge", "--force", "-y"],
        ["deactivate"],
        ["accept", "--reason", "asked by letter", "--yes"],
    ],
)
def test_whom_an_inexact_address_finds_has_to_be_named_by_id_to_be_ended(
    app: APIFlask, run: Run, ann: Person, words: list[str], typed: str
) -> None:
    strasse = make_person(services_of(app), "strasse")
    before = everything(services_of(app))

    result = run("accounts", *words, "--", ann.email, typed)

    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: {typed} is not the exact address of account {strasse.id}, which has "
        "strasse@example.org. If that is meant, name the account by its id: "
        f"`accounts {words[0]} {strasse.id}`. Nothing was changed.\n"
    )
    assert everything(services_of(app)) == before


def test_an_inexact_address_finds_for_what_ends_nothing(app: APIFlask, run: Run) -> None:
    strasse = make_person(services_of(app), "strasse")
    typed = "STRASSE@example.org"

    shown = run("accounts", "show", typed, "--json")
    held = run("accounts", "hold", typed, "--reason", "court")

    assert document(shown)["id"] == strasse.id
    assert held.exit_code == 0


def test_a_dry_run_names_who_would_fail_and_how_it_ends(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    run_sql(services_of(app), STRAY)
    run_sql(services_of(app), "INSERT INTO stray VALUES (:id)", id=ann.id)
    for person in (ann, bob):
        deactivate(services_of(app), person.id)
    names = [str(ann.id), str(bob.id)]
    before = everything(services_of(app))

    planned = run("accounts", "purge", *names, "--dry-run", "--json")
    in_words = run("accounts", "purge", *names, "--dry-run")
    unchanged = everything(services_of(app))
    real = run("accounts", "purge", *names, "--yes", "--json")

    assert unchanged == before
    assert planned.exit_code == in_words.exit_code == real.exit_code == 1
    assert document(planned)["would_purge"] == document(real)["purged"]
    assert document(planned)["would_leave"] == document(real)["left"]
    assert in_words.stdout == "Would be purged: 1 account, 3 saved passwords and 1 file.\n"
    assert f"Would be left: account {ann.id}. It failed with IntegrityError" in in_words.stderr


@pytest.mark.parametrize("option", ["--yes", "--dry-run"])
def test_what_the_ledger_logs_is_not_in_the_json_of_a_purge(
    app: APIFlask, run: Run, ann: Person, option: str
) -> None:
    make_due(services_of(app), ann)
    strange = services_of(app).settings.instance_path / "ledger" / "sealed" / "strange.jsonl"
    strange.parent.mkdir(parents=True)
    strange.write_text("{}\n")

    result = run("accounts", "purge", "--expired", option, "--json")

    assert result.exit_code == 0, result.output
    assert document(result)["accounts"] == 1
    assert "an object of the ledger is not trusted" in result.stderr


def test_purge_refuses_an_active_account_and_touches_no_other(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    deactivate(services_of(app), ann.id)
    before = everything(services_of(app))

    result = run("accounts", "purge", str(ann.id), bob.email, "--yes")

    assert result.exit_code == 1
    assert f"Account {bob.id}: It is active." in result.stderr
    assert everything(services_of(app)) == before


def test_purge_with_force_deactivates_an_active_account_first(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    before = belongings(services_of(app), bob)

    result = run("accounts", "purge", ann.email, "--force", "--yes")

    assert result.exit_code == 0, result.output
    receipt = receipt_of(app, ann)
    assert receipt is not None
    assert receipt.deactivated_by == "operator"
    assert [one.actor_kind for one in events(services_of(app), "account.deactivated")] == [
        "operator"
    ]
    assert belongings(services_of(app), bob) == before


def test_purge_with_an_unknown_name_destroys_nothing(app: APIFlask, run: Run, ann: Person) -> None:
    deactivate(services_of(app), ann.id)
    before = everything(services_of(app))

    for unknown in ("9" * 30, "777", "nobody@example.org", "ann", "\udcff@example.org", "-0", ""):
        result = run("accounts", "purge", "--yes", "--", str(ann.id), unknown)
        assert result.exit_code == 1, unknown
        assert "Not found" in result.stderr

    assert everything(services_of(app)) == before


def test_purge_refuses_a_held_account_and_touches_no_other(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    deactivate(services_of(app), ann.id)
    make_due(services_of(app), bob)
    hold(app, bob.id)
    before = everything(services_of(app))

    for options in ([], ["--force"], ["--dry-run"]):
        result = run("accounts", "purge", str(ann.id), str(bob.id), "--yes", *options)
        assert result.exit_code == 1
        assert "legal hold" in result.stderr

    assert everything(services_of(app)) == before


def test_purge_refuses_the_last_active_staff_account_even_with_force(
    app: APIFlask, run: Run, ann: Person
) -> None:
    sue = make_person(services_of(app), "sue", staff=True)
    before = everything(services_of(app))

    for option in ("--yes", "--dry-run"):
        result = run("accounts", "purge", str(ann.id), str(sue.id), "--force", option)
        assert result.exit_code == 1
        assert "last active staff" in result.stderr

    assert everything(services_of(app)) == before


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_dry_run_of_named_accounts_prints_exactly_what_the_real_run_destroys(
    app: APIFlask, run: Run, ann: Person, bob: Person, force: list[str]
) -> None:
    eve = make_account(services_of(app), "eve")
    for account_id in (ann.id, eve.id):
        if not force:
            deactivate(services_of(app), account_id)
    names = [ann.email, str(eve.id), str(ann.id)]
    before = everything(services_of(app))

    planned = document(run("accounts", "purge", *names, *force, "--dry-run", "--json"))
    unchanged = everything(services_of(app))
    real = document(run("accounts", "purge", *names, *force, "--yes", "--json"))

    assert unchanged == before
    assert planned["dry_run"]
    assert real["purged"] == planned["would_purge"]
    assert {one["id"] for one in real["purged"]} == {ann.id, eve.id}
    totals = ("accounts", "saved_passwords", "files")
    assert [real[name] for name in totals] == [planned[name] for name in totals] == [2, 3, 1]
    assert read_account(services_of(app), bob.id) is not None


def test_a_dry_run_of_what_is_due_prints_exactly_what_the_real_run_destroys(
    app: APIFlask, run: Run, bob: Person
) -> None:
    due = [make_person(services_of(app), name) for name in ("ann", "eve", "kim")]
    for person in due:
        make_due(services_of(app), person)
    waiting = make_person(services_of(app), "waiting")
    deactivate(services_of(app), waiting.id)
    hold(app, due[2].id)
    before = everything(services_of(app))

    planned = document(run("accounts", "purge", "--expired", "--dry-run", "--json"))
    unchanged = everything(services_of(app))
    result = run("accounts", "purge", "--expired", "--yes", "--json")

    assert unchanged == before
    assert result.exit_code == 0, result.output
    assert document(result)["purged"] == planned["would_purge"]
    assert [one["id"] for one in planned["would_purge"]] == [due[0].id, due[1].id]
    for person in (due[2], waiting, bob):
        assert len(belongings(services_of(app), person)["passwords"]) == 3


def test_a_dry_run_in_words_names_every_account_and_the_totals(
    app: APIFlask, run: Run, ann: Person
) -> None:
    make_due(services_of(app), ann)

    result = run("accounts", "purge", "--expired", "--dry-run")

    assert result.exit_code == 0
    assert str(ann.public_id) in result.stderr
    assert result.stdout == "Would be purged: 1 account, 3 saved passwords and 1 file.\n"
    assert read_account(services_of(app), ann.id) is not None


def test_purge_of_what_is_due_says_when_nothing_is(run: Run, bob: Person) -> None:
    result = run("accounts", "purge", "--expired", "--yes")

    assert result.exit_code == 0
    assert "Nothing is to be purged." in result.stdout


def test_purge_goes_beyond_a_page_of_ids(
    app: APIFlask, run: Run, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "CHUNK", 5)
    before = belongings(services_of(app), bob)
    services = services_of(app)
    insert_accounts(services, numbered("due", 11), purge_at=now(services))

    result = run("accounts", "purge", "--expired", "--yes", "--json")

    assert result.exit_code == 0, result.output[-500:]
    assert document(result)["accounts"] == 11
    assert belongings(services, bob) == before


def test_an_account_that_cannot_be_purged_is_named_and_the_others_are_purged(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    run_sql(services_of(app), STRAY)
    run_sql(services_of(app), "INSERT INTO stray VALUES (:id)", id=ann.id)
    eve = make_person(services_of(app), "eve")
    for person in (ann, eve):
        make_due(services_of(app), person)

    first = run("accounts", "purge", "--expired", "--yes", "--json")
    again = run("accounts", "purge", "--expired", "--yes")
    status = run("accounts", "status", "--json")

    assert first.exit_code == 1
    assert [one["id"] for one in document(first)["purged"]] == [eve.id]
    assert [one["id"] for one in document(first)["left"]] == [ann.id]
    assert f"Left: account {ann.id}. It failed with IntegrityError" in first.stderr
    # It waits for its next try: not in the plan any more, but not forgotten either.
    assert again.exit_code == 1
    assert f"Left: account {ann.id}." in again.stderr
    assert document(status)["failing"] == 1
    assert document(status)["troubled"] == [ann.id]
    assert len(belongings(services_of(app), ann)["passwords"]) == 3

    run_sql(services_of(app), "DELETE FROM stray")
    mended = run("accounts", "purge", str(ann.id), "--yes")
    assert mended.exit_code == 0, mended.output
    assert read_account(services_of(app), ann.id) is None


def test_files_that_cannot_be_deleted_are_said_to_be_left(
    app: APIFlask, run: Run, ann: Person
) -> None:
    deactivate(services_of(app), ann.id)
    path = next((services_of(app).settings.instance_path / "media").rglob(f"*{ann.avatar}*"))
    image = path.read_bytes()
    path.unlink()
    # Neither root nor anybody else can unlink a folder that holds something.
    path.mkdir()
    (path / "stone").touch()

    result = run("accounts", "purge", str(ann.id), "--yes", "--json")

    assert result.exit_code == 1
    # The mail says that the picture is gone, so it waits for that.
    assert document(result)["owed"] == {"file.delete": 1, "mail.purged": 1}
    assert "Left: 1 file is still to be deleted" in result.stderr
    # Who repeats it, as a timer would, is not told that all is well.
    again = run("accounts", "purge", "--expired", "--yes")
    assert (again.exit_code, again.stdout) == (1, "Nothing is to be purged.\n")
    assert "Left: 1 file is still to be deleted" in again.stderr
    (path / "stone").unlink()
    path.rmdir()
    path.write_bytes(image)


def test_purge_stops_when_the_ledger_takes_nothing(app: APIFlask, run: Run, ann: Person) -> None:
    ledger = services_of(app).settings.instance_path / "ledger" / "sealed"
    ledger.parent.mkdir(parents=True, exist_ok=True)
    ledger.touch()
    eve = make_person(services_of(app), "eve")
    for person in (ann, eve):
        deactivate(services_of(app), person.id)
    run("accounts", "purge", str(eve.id), "--yes")

    result = run("accounts", "purge", str(ann.id), "--yes")

    assert result.exit_code == 1
    assert f"Left: account {ann.id}. The ledger cannot be read or written." in result.stderr
    assert read_account(services_of(app), ann.id) is not None


def test_an_account_that_the_worker_purged_meanwhile_counts_as_purged(
    postgresql_url: str, tmp_path: Path
) -> None:
    # given: another process holds the row's lock, so that the command has to pass it over
    app = make_app(postgresql_url, tmp_path)
    ann = make_person(services_of(app), "ann")
    make_due(services_of(app), ann)
    services = services_of(app)
    locked, purged = threading.Event(), threading.Event()

    def work() -> None:
        with services.writing() as session:
            rows.lock(session, ann.id, share=True)
            locked.set()
            time.sleep(1)
        services.sweep(only=[ann.id])
        purged.set()

    worker = threading.Thread(target=work)
    worker.start()
    assert locked.wait(60)

    # when
    result = app.test_cli_runner().invoke(
        args=["accounts", "purge", "--expired", "--yes", "--json"]
    )

    # then
    worker.join()
    assert result.exit_code == 0, result.output
    assert [one["id"] for one in document(result)["purged"]] == [ann.id]
    dispose(app)


def test_a_pause_while_the_command_waits_is_a_sentence_and_loses_no_report(
    postgresql_url: str, tmp_path: Path
) -> None:
    # given: one of two that are due is locked by another process, so that the command waits for it
    app = make_app(postgresql_url, tmp_path)
    ann, eve = make_person(services_of(app), "ann"), make_person(services_of(app), "eve")
    for person in (ann, eve):
        make_due(services_of(app), person)
    results: list[Result] = []

    def purge() -> None:
        words = ["accounts", "purge", "--expired", "--yes", "--json"]
        results.append(app.test_cli_runner().invoke(args=words))

    thread = threading.Thread(target=purge)
    with services_of(app).writing() as session:
        rows.lock(session, ann.id)
        thread.start()
        eventually(lambda: read_account(services_of(app), eve.id) is None)

        # when
        # Not by the command: two of them in threads of one process would share their stdout.
        with services_of(app).writing() as other:
            stops.pause(other, by=OPERATOR_ACTOR)
        thread.join(timeout=120)

    # then
    (result,) = results
    assert result.exit_code == 1, result.output
    assert [one["id"] for one in document(result)["purged"]] == [eve.id]
    assert document(result)["left"] == [
        {"id": ann.id, "reason": "Purging was paused meanwhile. `sweeps resume` ends that."}
    ]
    # The file waits for the end of the pause, as all files do.
    assert document(result)["paused"] == 1
    assert document(result)["owed"] == {"mail.purged": 1}
    dispose(app)


@pytest.mark.parametrize(
    "words",
    [
        ["purge"],
        ["purge", "--yes"],
        ["purge", "7", "--expired"],
        ["purge", "--expired", "--force"],
        ["purge", "--nonsense"],
        ["release", "7", "0"],
        ["list", "--state", "gone"],
        ["hold", "7"],
        ["create", "--username", "x", "--email", "x@example.org", "--password", "secret"],
        ["nonsense"],
    ],
)
def test_bad_usage_ends_with_2_and_a_sentence(app: APIFlask, run: Run, words: list[str]) -> None:
    before = everything(services_of(app))

    result = run("accounts", *words)

    assert result.exit_code == 2
    assert "Error:" in result.stderr
    assert everything(services_of(app)) == before


def test_purge_without_a_terminal_and_without_yes_asks_for_yes(
    app: APIFlask, run: Run, ann: Person
) -> None:
    make_due(services_of(app), ann)
    before = everything(services_of(app))

    for words in (["--expired"], [str(ann.id)]):
        result = run("accounts", "purge", *words, stdin="y\n")
        assert result.exit_code == 2
        assert "--yes" in result.stderr

    assert everything(services_of(app)) == before


# Deactivate, reactivate, show, list, create -----------------------------------------------------


def test_deactivate_says_done_then_already_so(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    before = belongings(services_of(app), bob)

    first = run("accounts", "deactivate", ann.email, "--json")
    promised = read_account(services_of(app), ann.id)
    second = run("accounts", "deactivate", str(ann.id))

    assert first.exit_code == second.exit_code == 0
    assert document(first)[0]["changed"] is True
    assert document(first)[0]["state"] == "deactivated"
    assert f"Account {ann.id} was deactivated already" in second.stdout
    assert promised is not None
    now = read_account(services_of(app), ann.id)
    assert now is not None
    assert (now.purge_at, now.deactivated_by) == (promised.purge_at, "operator")
    assert len(events(services_of(app), "account.deactivated")) == 1
    assert belongings(services_of(app), bob) == before


def test_reactivate_says_done_then_already_so(app: APIFlask, run: Run, ann: Person) -> None:
    run("accounts", "deactivate", str(ann.id), "--reason", "by letter")

    first = run("accounts", "reactivate", ann.email)
    second = run("accounts", "reactivate", ann.email, "--json")

    assert first.exit_code == second.exit_code == 0
    assert f"Account {ann.id} is active again." in first.stdout
    assert document(second)[0]["changed"] is False
    assert len(belongings(services_of(app), ann)["passwords"]) == 3


def test_the_reason_of_a_return_that_is_none_is_said_not_to_be_stored(
    app: APIFlask, run: Run, ann: Person
) -> None:
    before = everything(services_of(app))

    result = run("accounts", "reactivate", str(ann.id), "--reason", "asked by letter")

    assert result.exit_code == 0
    assert result.stdout == (f"Account {ann.id} was active already. The reason was not stored.\n")
    assert everything(services_of(app)) == before


def test_the_reason_of_a_return_in_time_stays_too(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    before = belongings(services_of(app), bob)
    run("accounts", "deactivate", str(ann.id))

    result = run("accounts", "reactivate", str(ann.id), "--reason", "asked by letter")
    shown = run("accounts", "show", str(ann.id), "--json")

    assert result.exit_code == 0
    assert document(shown)["return_reason"] == "asked by letter"
    (event,) = events(services_of(app), "account.reactivated")
    assert (event.actor_kind, event.details) == ("operator", {"reason": "stored"})
    assert belongings(services_of(app), bob) == before


@pytest.mark.parametrize("reason", ["", "  ", "x" * 1001, "\x1b[2J"])
def test_an_unfit_reason_of_a_return_gives_nobody_back(
    app: APIFlask, run: Run, ann: Person, reason: str
) -> None:
    run("accounts", "deactivate", str(ann.id))
    before = everything(services_of(app))

    result = run("accounts", "reactivate", str(ann.id), "--reason", reason)

    assert result.exit_code == 2
    assert "Error: --reason: " in result.stderr
    assert everything(services_of(app)) == before


@pytest.mark.parametrize("command", ["deactivate", "reactivate", "show", "retry"])
def test_an_unknown_account_is_not_found_and_nothing_changes(
    app: APIFlask, run: Run, ann: Person, command: str
) -> None:
    before = everything(services_of(app))

    result = run("accounts", command, "nobody@example.org")

    assert result.exit_code == 1
    assert "Not found: nobody@example.org" in result.stderr
    assert everything(services_of(app)) == before


def test_deactivating_several_is_all_or_nothing(app: APIFlask, run: Run, ann: Person) -> None:
    sue = make_person(services_of(app), "sue", staff=True)
    before = everything(services_of(app))

    result = run("accounts", "deactivate", str(ann.id), str(sue.id))

    assert result.exit_code == 1
    assert f"Account {sue.id}: This is the last active staff account." in result.stderr
    assert everything(services_of(app)) == before


def test_a_due_account_cannot_be_reactivated(app: APIFlask, run: Run, ann: Person) -> None:
    make_due(services_of(app), ann)
    before = everything(services_of(app))

    result = run("accounts", "reactivate", str(ann.id))

    assert result.exit_code == 1
    assert "grace period is over" in result.stderr
    assert everything(services_of(app)) == before


def test_show_tells_state_and_dates_and_never_the_hash(
    app: APIFlask, run: Run, ann: Person
) -> None:
    run("accounts", "deactivate", str(ann.id), "--reason", "by letter")

    words = run("accounts", "show", ann.email).stdout
    shown = document(run("accounts", "show", str(ann.id), "--json"))

    assert "by letter" in words
    assert shown["state"] == "deactivated"
    assert shown["saved_passwords"] == 3
    assert shown["purge_at"].endswith("Z")
    assert "argon2" not in words + json.dumps(shown)


def test_show_tells_an_address_that_waits_and_none_that_does_not(
    app: APIFlask, run: Run, ann: Person
) -> None:
    ask_address(services_of(app), ann.id, "new@example.org")

    words = run("accounts", "show", str(ann.id)).stdout
    shown = document(run("accounts", "show", str(ann.id), "--json"))
    deactivate(services_of(app), ann.id)
    later = run("accounts", "show", str(ann.id)).stdout

    assert re.search(r"^pending e-mail +new@example\.org$", words, re.MULTILINE)
    assert (shown["email"], shown["pending_email"]) == (ann.email, "new@example.org")
    assert "new@example.org" not in later


def test_who_was_moved_away_is_found_by_the_address_that_they_know(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    change_address(services_of(app), ann.id, "thief@example.org")

    unknown = run("accounts", "show", ann.email.upper())
    nobodys = run("accounts", "show", "nobody@example.org")
    words = run("accounts", "show", str(ann.id)).stdout
    shown = document(run("accounts", "show", str(ann.id), "--json"))

    assert unknown.exit_code == nobodys.exit_code == 1
    until = shown["former_emails"][-1]["left_at"]
    assert f"{ann.email.upper()} was the address of account {ann.id} until {until}. Give" in (
        unknown.stderr
    )
    assert "was the address" not in nobodys.stderr
    assert re.search(rf"^former e-mails +.*\b{ann.email} until {until}$", words, re.MULTILINE)
    assert bob.email not in words + unknown.stderr


def test_list_pages_by_id(app: APIFlask, run: Run, ann: Person, bob: Person) -> None:
    deactivate(services_of(app), bob.id)

    first = run("accounts", "list", "--limit", "1", "--json")
    rest = run("accounts", "list", "--after", str(ann.id))
    filtered = document(run("accounts", "list", "--state", "deactivated", "--json"))

    assert [one["id"] for one in document(first)] == [ann.id]
    assert f"--after {ann.id}" in first.stderr
    assert bob.email in rest.stdout
    assert ann.email not in rest.stdout
    assert [one["id"] for one in filtered] == [bob.id]


def test_create_reads_the_password_from_standard_input(
    app: APIFlask, run: Run, services: Services
) -> None:
    words = ["accounts", "create", "--username", "kim", "--email", "kim@example.org", "--staff"]

    result = run(*words, "--json", stdin=f"{PASSWORD}\n")

    assert result.exit_code == 0, result.output
    made = document(result)
    account = read_account(services_of(app), made["id"])
    assert account is not None
    assert account.is_staff
    assert services.hasher.verify(account.password_hash, PASSWORD)
    assert [one.actor_kind for one in events(services_of(app), "account.created")] == ["operator"]
    assert PASSWORD not in result.output


@pytest.mark.parametrize(
    ("email", "password", "sentence"),
    [
        ("ann@example.org", PASSWORD, "email: An account with this email is already taken."),
        ("kim", PASSWORD, "email: Enter a valid email address."),
        ("kim@example.org", "12345678", "password: This password is too easy to guess."),
        ("kim@example.org", "", "password: This field may not be blank."),
    ],
)
def test_create_refuses_what_sign_up_refuses(
    app: APIFlask, run: Run, ann: Person, email: str, password: str, sentence: str
) -> None:
    before = everything(services_of(app))

    result = run("accounts", "create", "--username", "kim", "--email", email, stdin=password)

    assert result.exit_code == 1
    assert sentence in result.stderr
    assert everything(services_of(app)) == before


@pytest.mark.parametrize("text", ["\u0301\u0316" * 15_000, "a" * 60_000, "\u1112\u1161" * 9_000])
def test_a_name_that_is_too_long_is_refused_and_never_normalised(
    app: APIFlask, run: Run, ann: Person, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    before, work = everything(services_of(app)), note_work(monkeypatch)

    create = ("accounts", "create", "--username", "kim", "--email", "kim@example.org")
    refused = {
        "email": run(*create[:5], f"{text}@example.org", stdin=PASSWORD),
        "username": run(*create[:3], text, *create[4:], stdin=PASSWORD),
        "password": run(*create, stdin=text),
    }
    unknown = run("accounts", "show", f"{text}@example.org")

    for name, result in refused.items():
        assert result.exit_code == 1
        assert re.search(rf"{name}: Use at most [0-9]+ characters\.", result.stderr)
    assert unknown.exit_code == 1
    assert "Not found" in unknown.stderr
    assert sum(work.normalised) < 1_000
    assert max(work.judged) <= 64
    assert work.hashed == []
    assert everything(services_of(app)) == before


# Holds, failures, status ------------------------------------------------------------------------


def test_a_hold_keeps_an_account_until_it_is_released(app: APIFlask, run: Run, ann: Person) -> None:
    make_due(services_of(app), ann)

    placed = document(run("accounts", "hold", ann.email, "--reason", "court", "--json"))
    kept = run("accounts", "purge", "--expired", "--yes", "--json")
    shown = document(run("accounts", "show", str(ann.id), "--json"))
    wrong = run("accounts", "release", str(ann.id), str(placed["hold"] + 1))
    released = document(run("accounts", "release", str(ann.id), str(placed["hold"]), "--json"))

    assert document(kept)["purged"] == []
    assert shown["blocked_by"] == "hold"
    assert shown["holds"][0]["reason"] == "court"
    assert wrong.exit_code == 1
    assert "No open hold" in wrong.stderr
    # A mistaken release is not final.
    assert released["state"] == "deactivated"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (" ", "This field may not be blank."),
        ("x" * 1001, "Use at most 1000 characters"),
        ("a\x1b[31mred", "Remove control characters"),
        ("\udcff", "Remove control characters"),
    ],
    ids=["blank", "long", "escape", "surrogate"],
)
@pytest.mark.parametrize("command", ["hold", "deactivate", "reactivate", "accept"])
def test_a_reason_that_http_would_refuse_is_bad_usage_of_that_option(
    app: APIFlask, run: Run, ann: Person, command: str, reason: str, said: str
) -> None:
    before = everything(services_of(app))

    result = run("accounts", command, ann.email, "--reason", reason)

    assert result.exit_code == 2
    assert f"Error: --reason: {said}" in result.stderr
    assert everything(services_of(app)) == before


def test_a_reason_can_be_given_later(app: APIFlask, run: Run, ann: Person) -> None:
    deactivate(services_of(app), ann.id)
    promised = read_account(services_of(app), ann.id)
    assert promised is not None

    told = document(run("accounts", "deactivate", ann.email, "--reason", "by letter", "--json"))

    after = read_account(services_of(app), ann.id)
    assert after is not None
    assert (after.reason, after.purge_at) == ("by letter", promised.purge_at)
    assert told[0]["changed"] is True
    assert len(events(services_of(app), "deletion.reason_changed")) == 1


def test_an_id_beyond_all_ids_is_bad_usage(run: Run) -> None:
    assert run("accounts", "list", "--after", str(2**63)).exit_code == 2


def test_what_the_worker_has_purged_is_scrubbed_too(sqlite_url: str, tmp_path: Path) -> None:
    app = make_app(sqlite_url, tmp_path)
    ann = make_person(services_of(app), "ann")
    make_due(services_of(app), ann)
    assert services_of(app).sweep().purged == 1
    services_of(app).deliver()

    result = app.test_cli_runner().invoke(
        args=["accounts", "purge", "--expired", "--yes", "--json"]
    )

    assert document(result)["scrubbed"] is True
    assert "scrubbed" in facts_of(services_of(app), ann.public_id)
    dispose(app)


def test_retry_lets_a_stuck_account_be_tried_again(app: APIFlask, run: Run, ann: Person) -> None:
    make_due(services_of(app), ann)
    run_sql(
        services_of(app),
        "INSERT INTO purge_failures (account_id, attempts, failed_at, retry_at, error)"
        " SELECT id, 8, purge_at, purge_at, 'IntegrityError' FROM accounts WHERE id = :id",
        id=ann.id,
    )

    stuck = run("accounts", "status", "--json")
    passed_over = run("accounts", "purge", "--expired", "--yes", "--json")
    first = run("accounts", "retry", str(ann.id))
    second = run("accounts", "retry", str(ann.id), "--json")
    purged = run("accounts", "purge", "--expired", "--yes")

    assert stuck.exit_code == 1
    assert document(stuck)["stuck"] == 1
    assert passed_over.exit_code == 1
    assert document(passed_over)["purged"] == []
    assert "will be tried again" in first.stdout
    assert second.exit_code == 0
    assert document(second)[0]["changed"] is False
    assert purged.exit_code == 0, purged.output
    assert read_account(services_of(app), ann.id) is None


def test_status_counts_what_is_due_overdue_held_and_owed(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    eve = make_person(services_of(app), "eve")
    make_due(services_of(app), ann, since="2026-01-01 00:00:00.000000")
    make_due(services_of(app), eve)
    hold(app, eve.id)

    shown = document(run("accounts", "status", "--json"))
    words = run("accounts", "status")

    assert (shown["active"], shown["due"], shown["held"], shown["stuck"]) == (1, 2, 1, 0)
    assert shown["overdue_seconds"] > 3600
    assert shown["owed"] == {"mail.scheduled": 2, "ledger.keep": 1}
    assert words.exit_code == 0
    assert re.search(r"^overdue +\d+ d( \d+ h)?$", words.stdout, re.MULTILINE)


def test_purge_and_status_say_that_the_clock_has_moved_and_one_command_ends_it(
    app: APIFlask, run: Run, ann: Person
) -> None:
    make_due(services_of(app), ann)
    services_of(app).sweep(only=[0])
    assert run("sweeps", "allow", "--clock").stdout == "No clock has stopped purging.\n"
    clock_moved(services_of(app))

    refused = [
        run("accounts", "purge", "--expired", "--yes"),
        run("accounts", "purge", str(ann.id), "--yes"),
    ]
    dry_runs = [
        run("accounts", "purge", "--expired", "--dry-run"),
        run("ledger", "replay", "--dry-run"),
    ]
    status = run("accounts", "status")
    shown = document(run("accounts", "status", "--json"))
    asked = run("sweeps", "allow", "--clock")
    nothing_said = run("sweeps", "allow", "--yes")

    for result in refused:
        assert result.exit_code == 1
        assert "The database's clock has moved." in result.stderr
        assert "`sweeps allow --clock`. Nothing was changed." in result.stderr
    for result in dry_runs:
        assert result.exit_code == 0
        said = "A purge is refused now. The database's clock has moved."
        assert result.stderr.startswith(said)
    assert "purging is stopped since 2026-11-20T00:00:00Z, until it is back." in status.stderr
    assert shown["clock_moved_at"] == "2026-11-20T00:00:00Z"
    assert asked.exit_code == nothing_said.exit_code == 2
    assert read_account(services_of(app), ann.id) is not None

    allowed = run("sweeps", "allow", "--clock", "--yes", "--json")
    assert document(allowed) == {"changed": True}
    assert run("accounts", "purge", "--expired", "--yes").exit_code == 0


def test_orphans_are_not_deleted_while_purging_is_stopped(app: APIFlask, run: Run) -> None:
    key = new_key()
    services_of(app).avatars.begin()
    services_of(app).avatars.put(key, b"x")
    then = time.time() - 7200
    (path,) = (services_of(app).settings.instance_path / "media").rglob("*.webp")
    os.utime(path, (then, then))
    delete = ("avatars", "orphans", "--delete", "--force", "--yes")
    run("sweeps", "pause")

    paused = run(*delete)
    run("sweeps", "resume")
    clock_moved(services_of(app))
    stopped = run(*delete)
    listed = run("avatars", "orphans")

    assert paused.exit_code == stopped.exit_code == listed.exit_code == 1
    assert "`sweeps resume` ends that. Nothing was changed." in paused.stderr
    assert "`sweeps allow --clock`. Nothing was changed." in stopped.stderr
    assert key in listed.stdout
    assert path.exists()
    assert effects(services_of(app), queue.DELETE_FILE) == []
    run("sweeps", "allow", "--clock", "--yes")
    assert run(*delete).exit_code == 0
    assert not path.exists()


def test_purge_and_status_say_which_clocks_differ(
    app: APIFlask, run: Run, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_due(services_of(app), ann)
    differs = ClocksDiffer("Redis", timedelta(minutes=-6))
    monkeypatch.setattr(Clocks, "_differs", lambda *_: differs)
    said = (
        "The database's clock is 360 s behind the one of Redis. "
        "Nothing is purged until the wrong one is set right."
    )

    refused = run("accounts", "purge", str(ann.id), "--yes")
    dry_run = run("accounts", "purge", str(ann.id), "--dry-run")
    status = run("accounts", "status")

    assert refused.exit_code == 1
    assert refused.stderr == f"Error: {said} Nothing was changed.\n"
    assert dry_run.stderr.startswith(f"A purge is refused now. {said}\n")
    assert f"{said}\n" in status.stderr
    assert read_account(services_of(app), ann.id) is not None
    clock_moved(services_of(app))
    assert run("sweeps", "allow", "--clock", "--yes").exit_code == 1


def clock_moved(services: Services) -> None:
    """Let another host have found that the clock has moved."""
    then = datetime(2026, 11, 20, tzinfo=UTC)
    with services.writing() as session:
        session.add(ClockReading(boot="another", booted_at=then, read_at=then, moved_at=then))


def test_the_commands_say_what_they_did_and_purge_says_why_it_does_not(
    app: APIFlask, run: Run, ann: Person
) -> None:
    make_due(services_of(app), ann)
    assert run("sweeps", "pause").stdout == "Purging is paused.\n"
    assert run("sweeps", "pause").stdout == "Purging was paused already.\n"
    before = everything(services_of(app))

    refused = [
        run("accounts", "purge", "--expired", "--yes"),
        run("accounts", "purge", str(ann.id), "--yes"),
    ]
    planned = run("accounts", "purge", "--expired", "--dry-run")
    status = run("accounts", "status")
    shown = document(run("accounts", "status", "--json"))

    for result in refused:
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: Purging is paused since 20")
        assert "`sweeps resume` ends that. Nothing was changed." in result.stderr
    assert planned.exit_code == 0
    assert "1 account," in planned.stdout
    assert planned.stderr.startswith("A purge is refused now. Purging is paused since 20")
    assert "Purging is paused since" in status.stderr
    assert shown["paused_at"].endswith("Z")
    assert everything(services_of(app)) == before

    resumed = document(run("sweeps", "resume", "--json"))
    assert resumed == {"changed": True, "paused_at": None}
    assert run("sweeps", "resume").stdout == "Purging was not paused.\n"
    assert run("accounts", "purge", "--expired", "--yes").exit_code == 0
    assert read_account(services_of(app), ann.id) is None


NOTHING_LEFT = "Nothing is left: all keys are wrapped by the first of VAULT_KEYS."


def test_rewrap_wraps_every_key_by_the_newest(database_url: str, tmp_path: Path) -> None:
    old = make_app(database_url, tmp_path)
    ann = make_person(services_of(old), "ann")
    saved = belongings(services_of(old), ann)["passwords"]
    dispose(old)
    newest = "bmV3" + VAULT_KEY[4:]
    app = make_app(database_url, tmp_path, VAULT_KEYS=f"{newest},{VAULT_KEY}")

    first = app.test_cli_runner().invoke(args=["vault", "rewrap", "--json"])
    second = app.test_cli_runner().invoke(args=["vault", "rewrap"])
    dispose(app)

    assert document(first) == {"rewrapped": 1, "left": 0, "unopened": 0}
    assert second.exit_code == 0
    assert second.stdout.splitlines() == ["0 keys wrapped anew.", NOTHING_LEFT]
    assert NOTHING_LEFT in (ROOT / "docs" / "operations.md").read_text()
    only_newest = make_app(database_url, tmp_path, VAULT_KEYS=newest)
    with services_of(only_newest).reading() as session:
        account = session.merge(read_account(services_of(only_newest), ann.id))
        entries = list(vault.entries(session, services_of(only_newest).keyring, account))
    assert [one.entry for one in entries] == [entry for _, entry, _ in saved]
    dispose(only_newest)


def test_rewrap_says_which_key_is_missing(database_url: str, tmp_path: Path) -> None:
    app = make_app(database_url, tmp_path)
    make_person(services_of(app), "ann")
    dispose(app)
    other = make_app(database_url, tmp_path, VAULT_KEYS="bmV3" + VAULT_KEY[4:])

    result = other.test_cli_runner().invoke(args=["vault", "rewrap"])

    assert result.exit_code == 1
    assert "VAULT_KEYS" in result.stderr
    assert NOTHING_LEFT not in result.output
    dispose(other)


# The ledger -------------------------------------------------------------------------------------


def restore(app: APIFlask, person: Person, run: Run) -> None:
    """Purge *person* and bring the row back, as a restore from a backup does."""
    public_id = str(person.public_id)
    run("accounts", "purge", str(person.id), "--force", "--yes")
    if services_of(app).settings.is_sqlite:
        public_id = person.public_id.hex
        run_sql(services_of(app), "DROP TRIGGER receipts_refuse_delete")
    else:
        run_sql(services_of(app), "DROP TRIGGER receipts_refuse_delete ON receipts")
    run_sql(services_of(app), "DELETE FROM receipts WHERE public_id = :id", id=public_id)
    # Somebody else has got the name and the number since; the public id alone says who it is.
    back = make_person(services_of(app), "back")
    run_sql(
        services_of(app),
        "UPDATE accounts SET public_id = :id, joined_at = :joined WHERE id = :back",
        joined="2020-01-01 00:00:00.000000",
        id=public_id,
        back=back.id,
    )
    # The ciphertext belongs to the old public id; nothing here reads it.


def test_replay_purges_again_whom_a_restore_brought_back_and_nobody_else(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    restore(app, ann, run)
    before = belongings(services_of(app), bob)
    epoch = before["row"].pop("epoch")

    verified = run("ledger", "verify", "--json")
    planned = document(run("ledger", "replay", "--dry-run", "--json"))
    asked = run("ledger", "replay")
    real = run("ledger", "replay", "--yes", "--json")
    verified_again = run("ledger", "verify")

    assert verified.exit_code == 1
    assert document(verified)["back"] == [planned["would_purge"][0]["id"]]
    assert [one["public_id"] for one in planned["would_purge"]] == [str(ann.public_id)]
    assert asked.exit_code == 2
    assert real.exit_code == 0, real.output
    assert document(real)["purged"] == planned["would_purge"]
    assert receipt_of(app, ann) is not None
    assert verified_again.exit_code == 0, verified_again.output
    after = belongings(services_of(app), bob)
    assert after["row"].pop("epoch") > epoch
    assert after == before


def test_a_ledger_of_a_newer_database_is_not_written_by_an_older_one(
    app: APIFlask, run: Run, ann: Person
) -> None:
    """It knows nothing of what came since, and would call the ledger whole."""
    restore(app, ann, run)

    refused = [run("ledger", "rebuild", "--yes"), run("ledger", "adopt", "--yes")]
    status = run("accounts", "status")

    for result in [*refused, status]:
        assert result.exit_code == 1
        assert (
            "The database is older than its ledger: run `accountsvc ledger replay`" in result.stderr
        )


def test_a_replay_that_is_done_is_not_done_again(app: APIFlask, run: Run, ann: Person) -> None:
    restore(app, ann, run)
    run("ledger", "replay", "--yes")
    done = everything(services_of(app))

    again = run("ledger", "replay", "--yes")

    assert again.exit_code == 0
    assert again.stdout == (
        "Nothing to replay: the database is not older than its ledger. Only if a backup was put "
        "back since the last replay: `ledger replay --restored` ends the sessions of before.\n"
    )
    assert everything(services_of(app)) == done


def test_replay_works_while_everything_else_is_paused(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    restore(app, ann, run)
    make_due(services_of(app), bob)
    run("sweeps", "pause")

    began = time.monotonic()
    real = run("ledger", "replay", "--yes", "--json")

    # The file waits as all files do, and nobody waits for it.
    assert real.exit_code == 0, real.output
    assert [one["public_id"] for one in document(real)["purged"]] == [str(ann.public_id)]
    assert document(real)["paused"] == 1
    assert "Left: 1 file waits until purging goes on: `sweeps resume`.\n" in real.stderr
    assert time.monotonic() - began < 8
    # Who is due waits until somebody has looked: a hold or a return may be lost with the backup.
    assert read_account(services_of(app), bob.id) is not None


def test_somebody_of_whom_a_receipt_is_left_is_purged_again(
    app: APIFlask, run: Run, ann: Person
) -> None:
    """Only the row was brought back: a part of a backup."""
    run("accounts", "purge", str(ann.id), "--force", "--yes")
    back = make_person(services_of(app), "back")
    public_id = ann.public_id.hex if services_of(app).settings.is_sqlite else str(ann.public_id)
    run_sql(
        services_of(app),
        "UPDATE accounts SET public_id = :id, joined_at = :joined WHERE id = :back",
        joined="2020-01-01 00:00:00.000000",
        id=public_id,
        back=back.id,
    )

    result = run("ledger", "replay", "--yes", "--json")

    assert result.exit_code == 0, result.output
    assert [one["id"] for one in document(result)["purged"]] == [back.id]
    assert read_account(services_of(app), back.id) is None
    assert len(events(services_of(app), "account.purged")) == 2


def test_replay_leaves_who_is_on_hold_and_says_so(app: APIFlask, run: Run, ann: Person) -> None:
    restore(app, ann, run)
    planned = document(run("ledger", "replay", "--dry-run", "--json"))["would_purge"]
    hold(app, planned[0]["id"])

    result = run("ledger", "replay", "--yes", "--json")

    assert result.exit_code == 1
    assert [one["id"] for one in document(result)["left"]] == [planned[0]["id"]]
    assert "legal hold" in result.stderr


def test_verify_misses_a_receipt_that_is_not_in_the_ledger(
    app: APIFlask, run: Run, ann: Person
) -> None:
    deactivate(services_of(app), ann.id)
    run("accounts", "purge", str(ann.id), "--yes")
    for path in (services_of(app).settings.instance_path / "ledger").rglob("*.jsonl"):
        path.unlink()

    result = run("ledger", "verify", "--json")

    assert result.exit_code == 1
    assert document(result)["missing"] == [str(ann.public_id)]


def test_a_ledger_that_was_never_written_agrees(run: Run) -> None:
    result = run("ledger", "verify")

    assert result.exit_code == 0, result.output


def test_a_ledger_that_cannot_be_read_is_not_taken_for_an_empty_one(
    app: APIFlask, run: Run
) -> None:
    ledger = services_of(app).settings.instance_path / "ledger"
    ledger.parent.mkdir(exist_ok=True)
    ledger.touch()

    result = run("ledger", "verify")

    assert result.exit_code == 1
    assert "Error:" in result.stderr


# As processes -----------------------------------------------------------------------------------


def environment(database_url: str, folder: Path) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name in INHERITED}
    return {
        **given,
        "INSTANCE_PATH": str(folder / "instance"),
        "SECRET_KEY": SECRET_KEY,
        "VAULT_KEYS": VAULT_KEY,
        "LEDGER_SIGNING_KEY": SIGNING_KEY,
        "DATABASE_URL": database_url,
        "PASSWORD_HASH_COST": "cheap",
    }


def flask(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flask", "--app", "wsgi", *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=START, check=False, **options
    )


def test_help_shows_the_commands_with_examples(sqlite_url: str, tmp_path: Path) -> None:
    app = make_app(sqlite_url, tmp_path)
    run = app.test_cli_runner().invoke

    top = flask("--help", env=environment(sqlite_url, tmp_path))
    group = run(args=["accounts", "--help"])
    command = run(args=["accounts", "purge", "--help"])

    assert top.returncode == group.exit_code == command.exit_code == 0
    for name in ("accounts", "ledger", "vault", "db"):
        assert f"\n  {name} " in top.stdout
    for name in ("purge", "deactivate", "reactivate", "show", "list", "create", "status"):
        assert f"\n  {name} " in group.stdout
    assert "flask --app wsgi accounts purge 42" in command.stdout
    assert "Exit codes:" in command.stdout
    dispose(app)


@pytest.mark.parametrize("gone", ["postgresql", "sqlite"])
def test_a_database_that_is_down_is_one_sentence_and_no_traceback(
    tmp_path: Path, gone: str
) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/none"
    if gone == "sqlite":
        (tmp_path / "folder").mkdir()
        url = f"sqlite:///{tmp_path}/folder"

    result = flask("accounts", "status", "--json", env=environment(url, tmp_path))

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: The database does not answer.")
    assert result.stderr.count("\n") == 1


def test_a_database_without_tables_says_what_to_do(new_database: Any, tmp_path: Path) -> None:
    result = flask("accounts", "list", env=environment(new_database(), tmp_path))

    assert result.returncode == 1
    assert result.stderr == (
        "Error: The database has no tables yet. Run `python -m accountsvc prepare`.\n"
    )


@pytest.mark.parametrize(("answer", "code"), [(b"n\n", 1), (b"y\n", 0)])
def test_purge_asks_at_a_terminal_and_does_what_is_answered(
    sqlite_url: str, tmp_path: Path, answer: bytes, code: int
) -> None:
    # given
    app = make_app(sqlite_url, tmp_path)
    ann = make_person(services_of(app), "ann")
    make_due(services_of(app), ann)
    ours, theirs = pty.openpty()

    # when
    words = ["accounts", "purge", "--expired"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "wsgi", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env={**environment(sqlite_url, tmp_path), "TERM": "xterm"},
        close_fds=True,
    )
    os.close(theirs)
    said = read_until(ours, b"for good? [y/N]:")
    os.write(ours, answer)
    said += read_until(ours, None)
    os.close(ours)

    # then
    assert process.wait(60) == code, said
    assert str(ann.public_id).encode() in said
    assert b"1 account, 3 saved passwords and 1 file" in said
    assert (read_account(services_of(app), ann.id) is None) == (code == 0)
    # The bar that counts accounts up is for terminals.
    assert (b"Purging" in said) == (code == 0)
    dispose(app)


def read_until(terminal: int, words: bytes | None) -> bytes:
    """Read from a terminal until *words* come, or it is closed."""
    said = b""
    deadline = time.monotonic() + 120
    while words is None or words not in said:
        assert time.monotonic() < deadline, said
        if not readiness.select([terminal], [], [], 1)[0]:
            continue
        try:
            more = os.read(terminal, 4096)
        except OSError:
            break  # Linux: the other side is closed.
        if not more:
            break
        said += more
    return said


def test_the_password_of_create_is_asked_for_at_a_terminal_and_not_shown(
    sqlite_url: str, tmp_path: Path
) -> None:
    app = make_app(sqlite_url, tmp_path)
    ours, theirs = pty.openpty()

    words = ["--username", "kim", "--email", "kim@example.org"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "wsgi", "accounts", "create", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=environment(sqlite_url, tmp_path),
        start_new_session=True,
    )
    os.close(theirs)
    said = read_until(ours, b"Password:")
    os.write(ours, PASSWORD.encode() + b"\n")
    said += read_until(ours, b"confirmation:")
    os.write(ours, PASSWORD.encode() + b"\n")
    said += read_until(ours, None)
    os.close(ours)

    assert process.wait(60) == 0, said
    assert PASSWORD.encode() not in said
    with services_of(app).reading() as session:
        made = rows.find(session, 1)
        assert made is not None
        assert made.username == "kim"
    dispose(app)


def test_no_command_leaves_a_receipt_behind_for_somebody_who_was_not_named(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    make_due(services_of(app), bob)

    run("accounts", "purge", ann.email, "--force", "--yes")

    with services_of(app).reading() as session:
        assert session.scalars(select(Receipt.public_id)).all() == [ann.public_id]
    assert len(belongings(services_of(app), bob)["passwords"]) == 3


def test_the_rows_that_decide_are_locked_in_id_order(postgresql_url: str, tmp_path: Path) -> None:
    """As every request locks them; else the two could wait for each other."""
    app = make_app(postgresql_url, tmp_path)
    sam, sue = (make_account(services_of(app), name, staff=True) for name in ("sam", "sue"))
    services = services_of(app)
    results: list[Result] = []

    def purge() -> None:
        words = ["accounts", "purge", str(sue.id), "--force", "--yes"]
        results.append(app.test_cli_runner().invoke(args=words))

    thread = threading.Thread(target=purge)
    with services.writing() as session:
        rows.lock(session, sam.id)
        thread.start()
        eventually(lambda: waits_for_a_lock(services.database.engine))
        # Would wait for the command, which waits for us.
        session.execute(
            text("SELECT 1 FROM accounts WHERE id = :id FOR UPDATE NOWAIT"), {"id": sue.id}
        )
    thread.join(timeout=120)

    assert [result.exit_code for result in results] == [0], results[0].output
    assert read_account(services_of(app), sue.id) is None
    dispose(app)


# Avatar files -----------------------------------------------------------------------------------


def age_files(app: APIFlask) -> None:
    """Let every file of the store be two hours old."""
    then = time.time() - 7200
    for path in (services_of(app).settings.instance_path / "media").rglob("*.webp"):
        os.utime(path, (then, then))


def test_orphans_are_the_files_that_nobody_shows_and_nothing_deletes(
    app: APIFlask, run: Run, ann: Person, bob: Person
) -> None:
    store = services_of(app).avatars
    # given: one of a lost timeline, one whose upload may be under way, one that is owed
    lost, fresh, owed = new_key(), new_key(), new_key()
    for key in (lost, owed):
        store.put(key, b"x")
    age_files(app)
    store.put(fresh, b"x")
    with services_of(app).writing() as session:
        later = database_now(session) + timedelta(hours=1)
        queue.record(session, "file.delete", subject=None, now=later, payload=FileDeletion(owed))
    before = everything(services_of(app))

    shown = run("avatars", "orphans")
    asked = run("avatars", "orphans", "--delete")

    assert shown.exit_code == 1
    assert lost in shown.stdout
    assert document(run("avatars", "orphans", "--json"))["orphans"][0]["found_at"] is None
    assert "5 files: 1 nobody's, 2 shown by an account." in shown.stdout
    assert (asked.exit_code, everything(services_of(app))) == (2, before)
    assert {key for key, _ in store.listing()} == {lost, fresh, owed, ann.avatar, bob.avatar}

    # when: told to, after the worker has found it too
    services_of(app).orphans.run(seconds=60)
    result = run("avatars", "orphans", "--delete", "--yes", "--json")
    again = run("avatars", "orphans", "--json")

    assert result.exit_code == 0, result.output
    (orphan,) = document(result)["orphans"]
    assert (orphan["key"], document(result)["deleted"]) == (lost, 1)
    assert orphan["found_at"] is not None
    assert rows_of(services_of(app), OrphanedFile) == []
    assert {key for key, _ in store.listing()} == {fresh, owed, ann.avatar, bob.avatar}
    (event,) = events(services_of(app), "avatar.orphans_deleted")
    assert (event.subject, event.actor_kind, event.details) == (None, "operator", {"count": 1})
    assert (again.exit_code, document(again)) == (
        0,
        {"files": 4, "shown": 2, "orphans": [], "deleted": 0},
    )


def test_a_store_of_which_this_database_knows_little_is_not_emptied(
    app: APIFlask, run: Run, ann: Person
) -> None:
    """As if the settings named the store of another service, which lives."""
    store = services_of(app).avatars
    for _ in range(2):
        store.put(new_key(), b"x")
    age_files(app)
    fresh = new_key()
    store.put(fresh, b"x")

    result = run("avatars", "orphans", "--delete", "--yes")

    assert result.exit_code == 1
    assert "is it the right one?" in result.stderr
    assert len(list(store.listing())) == 4

    # when: it is
    forced = run("avatars", "orphans", "--delete", "--force", "--yes")
    assert forced.exit_code == 0, forced.output
    assert {key for key, _ in store.listing()} == {ann.avatar, fresh}


def test_a_store_that_fails_is_a_sentence(app: APIFlask, run: Run) -> None:
    folder = services_of(app).settings.instance_path
    folder.mkdir(exist_ok=True)
    (folder / "media").touch()

    result = run("avatars", "orphans")

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.output
