"""Accounts found by the number that people have; their story, the trail, and evidence of a period."""

from __future__ import annotations

import csv
import io
import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apiflask import APIFlask
from click.testing import Result

from accountsvc.cli import evidence as evidence_command
from accountsvc.cli import stories
from accountsvc.db import audit
from accountsvc.db.audit import SYSTEM_ACTOR
from accountsvc.db.models import AuditEvent
from accountsvc.db.proofs import FACTS, ReceiptFact
from accountsvc.db.text import rfc3339
from accountsvc.purge import reconciling, story
from accountsvc.services import Services
from tests.cli.conftest import Run
from tests.support.factories import (
    Person,
    deactivate,
    dispose,
    insert_account,
    make_app,
    make_person,
    place_hold,
    release_hold,
    services_of,
)
from tests.support.lies import forget_event, forget_facts, forget_receipt
from tests.support.moments import now
from tests.support.state import belongings, everything, read_account, rows_of
from tests.support.sweeps import sweep

DAY = timedelta(days=1)
LEFT = datetime(2025, 6, 1, 9, 30, tzinfo=UTC)
NOBODY = "0f8c6e0a-5a55-4a3e-9d0e-3a8f2b7c1d64"


@pytest.fixture
def app(sqlite_url: str, tmp_path: Path) -> Iterator[APIFlask]:
    """On SQLite only: the queries are the core's, which is tested on each engine."""
    app = make_app(sqlite_url, tmp_path)
    yield app
    dispose(app)


@pytest.fixture
def services(app: APIFlask) -> Services:
    return services_of(app)


@pytest.fixture
def ann(services: Services) -> Person:
    return make_person(services, "ann")


@pytest.fixture
def bob(services: Services) -> Person:
    """The bystander, who must keep everything."""
    return make_person(services, "bob")


@pytest.fixture
def gone(services: Services) -> uuid.UUID:
    """Somebody who left, was held for a day, and was purged in time."""
    account = insert_account(services, "gone", joined_at=LEFT - DAY)
    deactivate(services, account.id, now=LEFT)
    hold = place_hold(services, account.id, now=LEFT + DAY)
    release_hold(services, account.id, hold, now=LEFT + 2 * DAY)
    sweep(services, LEFT + 15 * DAY, write_ledger=services.write_ledger)
    forget_facts(services)
    facts = [("files_absent", {}), ("not_told", {"why": "expired"}), ("completed", {})]
    with services.writing() as session:
        for number, (fact, details) in enumerate(facts):
            at = LEFT + 15 * DAY + number * timedelta(minutes=1)
            session.add(ReceiptFact(public_id=account.public_id, fact=fact, at=at, details=details))
    return account.public_id


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def forms_of(number: uuid.UUID) -> list[str]:
    """A number as people type it."""
    return [str(number), number.hex, str(number).upper()]


# By number -----------------------------------------------------------------------------------


def test_every_command_finds_an_account_by_its_number(
    services: Services, run: Run, ann: Person, bob: Person
) -> None:
    before = belongings(services, bob)
    number = str(ann.public_id)

    shown = [document(run("accounts", "show", form, "--json")) for form in forms_of(ann.public_id)]
    held = run("accounts", "hold", ann.public_id.hex, "--reason", "court")
    released = run("accounts", "release", number.upper(), "1")
    away = run("accounts", "deactivate", number)
    retried = run("accounts", "retry", number)
    back = run("accounts", "reactivate", number)
    accepted = run("accounts", "accept", number, "--reason", "by letter", "--yes")
    purged = run("accounts", "purge", number, str(ann.id), "--force", "--yes")

    assert [one["id"] for one in shown] == [ann.id] * 3
    assert [one.exit_code for one in (held, released, away, retried, back)] == [0] * 5
    # It is found, and there is nothing to accept about it.
    assert f"Account {ann.id}: " in accepted.stderr
    assert "Purged: 1 account, 3 saved passwords and 1 file." in purged.stdout
    assert read_account(services, ann.id) is None
    assert belongings(services, bob) == before


@pytest.mark.parametrize(
    "words",
    [
        ["hold", "--reason", "court"],
        ["release", "1"],
        ["deactivate"],
        ["reactivate"],
        ["retry"],
        ["accept", "--reason", "by letter", "--yes"],
        ["purge", "--yes"],
    ],
)
def test_every_command_says_of_somebody_who_was_purged_that_and_when(
    services: Services, run: Run, gone: uuid.UUID, bob: Person, words: list[str]
) -> None:
    before = everything(services)
    command, *rest = words

    known = run("accounts", command, gone.hex.upper(), *rest)
    unknown = run("accounts", command, NOBODY, *rest)

    purged_at = rfc3339(LEFT + 15 * DAY)
    assert (known.exit_code, unknown.exit_code) == (1, 1)
    assert known.stderr == (
        f"Error: Not found: {gone.hex.upper()}. The account of {gone} was purged at {purged_at}: "
        f"`accounts show {gone}` tells its story, `accounts receipt {gone}` proves it. Give ids, numbers or e-mails; nothing was "
        "changed.\n"
    )
    assert unknown.stderr == (
        f"Error: Not found: {NOBODY}. Give ids, numbers or e-mails; nothing was changed.\n"
    )
    assert everything(services) == before


# The story -------------------------------------------------------------------------------------


def test_the_story_of_somebody_who_is_gone_is_told_by_the_number(
    services: Services, run: Run, gone: uuid.UUID, bob: Person
) -> None:
    told = run("accounts", "show", gone.hex)

    assert told.exit_code == 0
    day = [rfc3339(LEFT + days * DAY) for days in range(16)]
    head, _, table = told.stdout.partition("\n\n")
    assert head.splitlines() == [
        f"number          {gone}",
        "state           purged",
        f"deactivated at  {day[0]}",
        "deactivated by  owner",
        f"purged at       {day[15]}",
        "receipt         yes",
    ]
    sentences = [line.split("  ", 2) for line in table.splitlines()[1:]]
    assert [[at, by.strip(), what.strip()] for at, by, what in sentences][:4] == [
        [day[0], "owner", f"asked to leave; the purge is promised for {day[14]}"],
        [day[1], "operator", "a hold is placed: no purge while it is open"],
        [day[2], "operator", "a hold is released"],
        [day[15], "system", "erased, with 0 saved passwords and 0 files"],
    ]
    assert "not told by mail that all is gone: expired" in table
    assert "the purge is complete" in table
    for personal in ("gone@example.org", "court", bob.email, str(bob.public_id)):
        assert personal not in told.stdout


def test_the_story_is_one_json_document_to_the_byte(
    services: Services, run: Run, gone: uuid.UUID
) -> None:
    forget_facts(services)

    told = run("accounts", "show", str(gone), "--json")

    days = [rfc3339(LEFT + day * DAY) for day in range(16)]
    at, purge_at = days[0], days[14]
    promise = {"purge_at": purge_at}
    counts = {"saved_passwords": 0, "files": 0}
    expected = {
        "public_id": str(gone),
        "state": "purged",
        "purged_at": days[15],
        "receipt": {
            "deactivated_at": at,
            "deactivated_by": "owner",
            "purge_at": purge_at,
            "purged_at": days[15],
            **counts,
        },
        "story": [
            {"at": at, "what": "account.deactivated", "by": "owner", "details": promise},
            {"at": days[1], "what": "hold.placed", "by": "operator", "details": {}},
            {"at": days[2], "what": "hold.released", "by": "operator", "details": promise},
            {"at": days[15], "what": "account.purged", "by": "system", "details": counts},
        ],
    }
    assert told.stdout == json.dumps(expected, indent=2) + "\n"


def test_somebody_without_a_receipt_has_a_story_and_nobody_has_none(
    services: Services, run: Run, gone: uuid.UUID
) -> None:
    forget_receipt(services, gone)
    without = run("accounts", "show", str(gone))
    forget_event(services, gone, "account.purged")
    neither = run("accounts", "show", str(gone))
    nobody = run("accounts", "show", NOBODY)

    assert "receipt    there is none" in without.stdout
    assert "state      purged" in without.stdout
    assert "state    gone without a receipt" in neither.stdout
    assert (nobody.exit_code, nobody.stdout) == (1, "")
    assert f"Not found: {NOBODY}. " in nobody.stderr


def test_everything_that_a_story_tells_has_its_sentence() -> None:
    assert stories.SENTENCES.keys() == story.TOLD | set(FACTS)
    assert story.TOLD <= audit.ACTIONS


def test_no_detail_that_is_not_on_the_list_is_told(
    services: Services, run: Run, gone: uuid.UUID
) -> None:
    with services.writing() as session:
        details = {"hold": 7, "name": "Ann Onymous"}
        audit.record(
            session,
            "hold.placed",
            subject=gone,
            by=SYSTEM_ACTOR,
            now=now(services),
            **details,
        )

    told = run("accounts", "show", str(gone)).stdout
    as_json = run("accounts", "show", str(gone), "--json").stdout

    assert "Onymous" not in told + as_json


# The trail ---------------------------------------------------------------------------------------


def test_the_trail_is_listed_by_subject_action_and_time(
    services: Services, run: Run, gone: uuid.UUID, ann: Person
) -> None:
    of_gone = document(run("audit", "list", "--subject", gone.hex.upper(), "--json"))
    of_ann = document(run("audit", "list", "--subject", ann.email, "--json"))
    holds = document(run("audit", "list", "--action", "hold.placed", "--json"))
    later = document(
        run("audit", "list", "--since", rfc3339(LEFT + 2 * DAY), "--subject", str(gone), "--json")
    )
    until = f"{LEFT + 2 * DAY:%Y-%m-%dT%H:%M:%S}+00:00"
    earlier = document(run("audit", "list", "--until", until, "--subject", str(gone), "--json"))

    events = rows_of(services, AuditEvent, AuditEvent.subject == gone)
    assert [one["id"] for one in of_gone] == [event.id for event in events]
    assert {one["subject"] for one in of_ann} == {str(ann.public_id)}
    assert [one["action"] for one in holds] == ["hold.placed"]
    assert [one["action"] for one in later] == ["hold.released", "account.purged"]
    assert [one["action"] for one in earlier] == ["account.deactivated", "hold.placed"]


def test_the_trail_is_paged_and_printed(services: Services, run: Run, gone: uuid.UUID) -> None:
    first = run("audit", "list", "--subject", str(gone), "--limit", "2")
    after = re.findall(r"--after (\d+)", first.stderr)
    second = run("audit", "list", "--subject", str(gone), "--after", after[0], "--limit", "2")
    nothing = run("audit", "list", "--subject", NOBODY)

    assert first.stdout.splitlines() == [
        "ID  AT                    ACTION               SUBJECT"
        "                               BY        ACTOR"
        "                                 DETAILS",
        f" 1  {rfc3339(LEFT)}  account.deactivated  {gone}  owner     {gone}  –",
        f" 2  {rfc3339(LEFT + DAY)}  hold.placed          {gone}  operator  –{' ' * 37}hold=1",
    ]
    assert [line.split()[2] for line in second.stdout.splitlines()[1:]] == [
        "hold.released",
        "account.purged",
    ]
    assert second.stderr == ""
    assert (nothing.exit_code, nothing.stdout) == (0, "No events.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--action", "account.purge"], "Did you mean account.purged"),
        (["--action", "purged"], "account.purged"),
        (["--action", "x"], "It is one of: access.denied, "),
        (["--since", "yesterday"], "yesterday is no time: give a date such as 2026-12-07"),
        (["--since", "2026-02-30"], "2026-02-30 is no time"),
        (["--until", "2026-12-07T09:30:00"], "with its zone"),
        (["--until", "0001-01-01T00:00:00+23:00"], "is no time"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_a_wrong_question_to_the_trail_is_bad_usage(run: Run, words: list[str], said: str) -> None:
    result = run("audit", "list", *words)

    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", ["nobody@example.org", "99", "", "x\udcff"])
def test_the_trail_of_an_account_that_is_not_there_is_not_found(run: Run, name: str) -> None:
    result = run("audit", "list", "--subject", name)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "who is purged has the number alone." in result.stderr


# Evidence ----------------------------------------------------------------------------------------


def test_evidence_is_one_json_document_to_the_byte(
    services: Services, run: Run, gone: uuid.UUID, bob: Person
) -> None:
    forget_facts(services)
    since, until = rfc3339(LEFT - DAY), rfc3339(LEFT + 16 * DAY)

    result = run("accounts", "evidence", "--from", since, "--to", until, "--format", "json")

    days = [rfc3339(LEFT + day * DAY) for day in range(16)]
    row = {
        "number": str(gone),
        "requested_at": days[0],
        "requested_by": "owner",
        "action": "account.deactivated",
        "deactivated_at": days[0],
        "promised_at": days[14],
        "purge_at": days[14],
        "moved": 0,
        "at_once_by": None,
        "holds": 1,
        "failures": 0,
        "outcome": "purged",
        "reason": None,
        "ended_at": days[15],
        "ended_by": "system",
        "erased_at": days[15],
        "files_absent_at": None,
        "ledger_written_at": None,
        "told_at": None,
        "not_told_at": None,
        "scrubbed_at": None,
        "completed_at": None,
        "verified_at": None,
        "residue_found_at": None,
        "not_told_because": None,
        "erased_again_at": None,
    }
    found = {
        "reconciliation": {
            "requests": {"purged": 1},
            "events": {
                "account.deactivated": 1,
                "account.purged": 1,
                "hold.placed": 1,
                "hold.released": 1,
            },
            "receipts": 1,
            "ledger_lines": 1,
            "seals": {"before": None, "end": None},
            "explained": {},
            "unexplained": [],
        }
    }
    as_of = json.loads(result.stdout)["as_of"]
    assert (result.exit_code, result.stderr) == (0, "")
    assert tuple(row) == evidence_command.COLUMNS
    assert result.stdout == (
        "{\n"
        f'  "from": "{since}",\n  "to": "{until}",\n'
        f'  "requests": [\n    {json.dumps(row)}\n  ],\n'
        f'  "as_of": "{as_of}",\n'
        f"{json.dumps(found, indent=2)[2:]}\n"
    )
    assert bob.email not in result.stdout


def test_evidence_in_csv_has_the_facts_and_says_on_stderr_that_it_is_complete(
    services: Services, run: Run, gone: uuid.UUID
) -> None:
    period = ("--from", f"{LEFT - DAY:%Y-%m-%d}", "--to", f"{LEFT + 20 * DAY:%Y-%m-%d}")

    result = run("accounts", "evidence", *period)

    (row,) = csv.DictReader(io.StringIO(result.stdout))
    assert tuple(row) == evidence_command.COLUMNS
    assert (row["number"], row["outcome"], row["reason"]) == (str(gone), "purged", "")
    assert row["files_absent_at"] == rfc3339(LEFT + 15 * DAY)
    assert row["not_told_because"] == "expired"
    assert row["completed_at"] == rfc3339(LEFT + 15 * DAY + timedelta(minutes=2))
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "1 request: 1 purged.",
        "1 purge in the audit trail, 1 receipt, 1 line in the ledger.",
        "No seal covers the end of the period yet.",
        "Nothing is unexplained.",
    ]


def test_what_is_unexplained_is_named_and_ends_with_1(
    services: Services, run: Run, gone: uuid.UUID
) -> None:
    period = ("--from", rfc3339(LEFT), "--to", rfc3339(LEFT + 16 * DAY))
    forget_receipt(services, gone)

    as_csv = run("accounts", "evidence", *period)
    as_json = run("accounts", "evidence", *period, "--format", "json")

    purged_at = rfc3339(LEFT + 15 * DAY)
    named = [
        f"Unexplained: {gone} was purged at {purged_at}, and has no receipt of that moment.",
        f"Unexplained: {gone} has a line of {purged_at} in the ledger, and no receipt.",
    ]
    assert (as_csv.exit_code, as_json.exit_code) == (1, 1)
    assert as_csv.stderr.splitlines()[-2:] == named
    assert as_json.stderr.splitlines() == named
    assert json.loads(as_json.stdout)["reconciliation"]["unexplained"] == [
        {"what": what, "number": str(gone), "at": purged_at, "why": None}
        for what in (reconciling.EVENT_ALONE, reconciling.LINE_ALONE)
    ]


def test_evidence_of_nothing_is_whole(run: Run) -> None:
    period = ("--from", "2020-01-01", "--to", "2020-02-01")

    as_csv = run("accounts", "evidence", *period)
    as_json = run("accounts", "evidence", *period, "--format", "json")

    assert as_csv.stdout == ",".join(evidence_command.COLUMNS) + "\n"
    assert json.loads(as_json.stdout)["requests"] == []
    assert (as_csv.exit_code, as_json.exit_code) == (0, 0)


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [
        ("2026-01-01", "2026-01-01", "--from has to be before --to"),
        ("2026-02-01", "2026-01-01", "--from has to be before --to"),
        ("2026-01-01", "9999-01-01", "--to is in the future"),
        ("soon", "2026-01-01", "soon is no time"),
    ],
)
def test_a_period_that_is_none_or_not_over_is_bad_usage(
    run: Run, since: str, until: str, said: str
) -> None:
    result = run("accounts", "evidence", "--from", since, "--to", until)

    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.split())


def test_evidence_without_a_ledger_that_answers_prints_nothing(
    app: APIFlask, services: Services, run: Run, gone: uuid.UUID
) -> None:
    folder = Path(services.settings.ledger_url.removeprefix("file://"))
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    folder.write_text("no folder")

    result = run("accounts", "evidence", "--from", "2020-01-01", "--to", rfc3339(now(services)))

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: LEDGER_URL: ")


def test_all_that_is_amiss_or_explained_has_its_words() -> None:
    assert evidence_command._AMISS.keys() == set(reconciling.AMISS)
    assert evidence_command._EXPLAINED.keys() == set(reconciling.EXPLAINED)
