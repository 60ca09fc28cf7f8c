"""What the commands print: words for people, and JSON whose every byte is kept for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from apiflask import APIFlask
from click.testing import Result

from accountsvc.accounts import profiles
from accountsvc.adapters.avatarstore import new_key
from accountsvc.cli import groups
from accountsvc.cli.purging import OBSTACLES
from accountsvc.cli.status import EFFECTS
from accountsvc.db.addresses import kept_key
from accountsvc.db.models import Account
from accountsvc.db.text import rfc3339
from accountsvc.purge import seals
from accountsvc.purge.at_once import Obstacle
from tests.cli.conftest import Run
from tests.support.factories import (
    PASSWORD,
    SECRET_KEY,
    SIGNING_KEY,
    VAULT_KEY,
    Person,
    dispose,
    insert_accounts,
    make_account,
    make_app,
    make_due,
    make_person,
    numbered,
    run_sql,
    services_of,
    witness,
)
from tests.support.processes import INHERITED, START

ROOT = Path(__file__).resolve().parents[2]
THEN = "2026-01-01 00:00:00.000000"
STAMP = "2026-01-01T00:00:00Z"


@pytest.fixture
def app(sqlite_url: str, tmp_path: Path) -> Iterator[APIFlask]:
    """On SQLite only: what is printed does not depend on the engine."""
    app = make_app(sqlite_url, tmp_path)
    yield app
    dispose(app)


@pytest.fixture
def ann(app: APIFlask) -> Person:
    """Somebody who has been due since THEN."""
    person = make_person(services_of(app), "ann")
    make_due(services_of(app), person, since=THEN)
    run_sql(services_of(app), "UPDATE accounts SET joined_at = :then", then=THEN)
    return person


def sign_up(app: APIFlask, name: str, email: str, *, staff: bool = False) -> Account:
    services = services_of(app)
    return profiles.sign_up(
        services.database,
        services.hasher,
        services.keyring,
        {"username": name, "email": email, "password": PASSWORD},
        is_staff=staff,
    )


def turn(app: APIFlask, account_id: int) -> None:
    """Give an account a name that turns its line around, as a release before took it."""
    run_sql(
        services_of(app),
        "UPDATE accounts SET username = :name WHERE id = :id",
        name="exe\u202egnp",
        id=account_id,
    )


def keep_keys(app: APIFlask, *account_ids: int) -> None:
    """Give accounts the keys of those that were one of two when their keys became the same."""
    for account_id in account_ids:
        run_sql(
            services_of(app),
            "UPDATE accounts SET email_key = :key WHERE id = :id",
            key=kept_key(f"{account_id}@example.org"),
            id=account_id,
        )


def fail_to_purge(app: APIFlask, account_id: int, *, attempts: int = 1) -> None:
    """Let the purge of an account have failed, with the next try in hours."""
    run_sql(
        services_of(app),
        "INSERT INTO purge_failures"
        " (account_id, attempts, failed_at, retry_at, error, constraint_name)"
        " VALUES (:id, :attempts, :then, datetime('now', '+5 hours') || '.000000',"
        " 'IntegrityError', 'stray_account_id_fkey')",
        id=account_id,
        attempts=attempts,
        then=THEN,
    )


def hold(app: APIFlask, run: Run, account_id: int, reason: str) -> None:
    assert run("accounts", "hold", str(account_id), "--reason", reason).exit_code == 0
    run_sql(services_of(app), "UPDATE legal_holds SET placed_at = :then", then=THEN)


def lines(result: Result) -> list[str]:
    return result.stdout.splitlines()


def exactly(document: object) -> str:
    """The bytes of a JSON document as programs have always got it."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


# Words ------------------------------------------------------------------------------------------


def test_list_is_aligned_whatever_people_are_called(app: APIFlask, run: Run, ann: Person) -> None:
    sign_up(app, "王小明", "wang@example.org")
    sign_up(app, "😀 family", "smile@example.org", staff=True)
    sign_up(app, "שלום עולם", "shalom@example.org")
    sign_up(app, "x" * 150, "long@example.org")
    turned = sign_up(app, "turned", "turned@example.org")
    turn(app, turned.id)

    assert lines(run("accounts", "list")) == [
        "ID  STATE   PURGE AT              STAFF  USERNAME                          E-MAIL",
        f" 1  due     {STAMP}  no     ann                               ann@example.org",
        " 2  active  –                     no     王小明                            "
        "wang@example.org",
        " 3  active  –                     yes    😀 family                         "
        "smile@example.org",
        " 4  active  –                     no     שלום עולם                         "
        "shalom@example.org",
        f" 5  active  –                     no     {'x' * 31}…  long@example.org",
        " 6  active  –                     no     exe<U+202E>gnp                    "
        "turned@example.org",
    ]


def test_list_of_nobody_is_a_sentence(run: Run) -> None:
    assert run("accounts", "list").stdout == "No accounts.\n"


def test_show_has_a_line_for_each_hold_and_no_python(app: APIFlask, run: Run, ann: Person) -> None:
    hold(app, run, ann.id, "court")
    hold(app, run, ann.id, "police\nof 法院")
    fail_to_purge(app, ann.id)
    run_sql(services_of(app), "UPDATE accounts SET reason = :reason", reason="by\nletter")

    result = run("accounts", "show", str(ann.id))

    assert result.stdout == (
        "id               1\n"
        f"public id        {ann.public_id}\n"
        "username         ann\n"
        "e-mail           ann@example.org\n"
        "first name       Ann\n"
        "phone            +1 (2) 3\n"
        f"avatar           /media/avatars/{ann.avatar}\n"
        "staff            no\n"
        f"joined at        {STAMP}\n"
        "state            due\n"
        "saved passwords  3\n"
        f"deactivated at   {STAMP}\n"
        "deactivated by   operator\n"
        f"purge at         {STAMP}\n"
        "reason           by letter\n"
        "blocked by       an open hold: `accounts release` ends it\n"
        "failed tries     1\n"
        "error            IntegrityError\n"
        "constraint       stray_account_id_fkey\n"
        "\n"
        "HOLD  PLACED AT             REASON\n"
        f"   1  {STAMP}  court\n"
        f"   2  {STAMP}  police of 法院\n"
    )


def test_show_says_what_ends_a_failure(app: APIFlask, run: Run, ann: Person) -> None:
    fail_to_purge(app, ann.id)
    failing = run("accounts", "show", str(ann.id))
    run_sql(services_of(app), "UPDATE purge_failures SET attempts = 8")
    stuck = run("accounts", "show", str(ann.id))

    assert "blocked by       a failure: it is tried again by itself" in lines(failing)
    assert "blocked by       a failure, too often: mend the cause, then `accounts retry`" in lines(
        stuck
    )


def test_status_counts_in_words(app: APIFlask, run: Run, ann: Person) -> None:
    for name in ("bob", "eve", "kim"):
        make_due(services_of(app), make_person(services_of(app), name), since=THEN)
    hold(app, run, 2, "court")
    fail_to_purge(app, 3)
    fail_to_purge(app, 4, attempts=8)
    make_account(services_of(app), "bystander")
    long_ago = "datetime('now', '-2 hours', '-5 minutes', '-20 seconds') || '.000000'"
    run_sql(
        services_of(app),
        f"UPDATE accounts SET purge_at = {long_ago}, deactivated_at = {long_ago} WHERE id = 1",
    )
    witness(services_of(app), 1)
    run_sql(
        services_of(app),
        "DELETE FROM outbox WHERE id NOT IN"
        " (SELECT id FROM outbox WHERE kind = 'mail.scheduled' LIMIT 2)",
    )
    run_sql(
        services_of(app),
        "UPDATE outbox SET due_at = datetime('now', '-3 hours', '-20 seconds') || '.000000'",
    )
    run_sql(
        services_of(app),
        "UPDATE outbox SET last_error = 'TimeoutError' WHERE id IN (SELECT min(id) FROM outbox)",
    )
    run("sweeps", "pause")
    run_sql(services_of(app), "UPDATE sweep_marks SET at = :then", then=THEN)

    with services_of(app).reading() as session:
        since = seals.unsealed_since(session, seals.tail(session))
    assert since is not None

    result = run("accounts", "status")

    assert result.exit_code == 1
    assert result.stdout == (
        "ACCOUNTS  STATE\n"
        "       1  active\n"
        "       0  deactivated, in their grace period\n"
        "       4  due\n"
        "       1    of these on hold\n"
        "       1    of these failing\n"
        "       1    of these stuck\n"
        "       0    of these waiting for the brake\n"
        "       0  unexplained, due or not: not purged\n"
        "\n"
        "overdue            2 h 5 min\n"
        "failing or stuck   3, 4\n"
        f"paused since       {STAMP}\n"
        "receipts to scrub  0\n"
        f"not sealed since   {rfc3339(since)}\n"
        "mails delayed      0\n"
        "\n"
        "OWED  FAILING  SINCE  WHAT                               KIND\n"
        "   2        1  3 h    mails: the account will be purged  mail.scheduled\n"
    )
    assert result.stderr == (
        f"Purging is paused since {STAMP}. `sweeps resume` ends that.\n"
        "Error: 1 account is stuck. `accounts show ID` says why."
        " The outbox owes what has failed or is late: the table says what, and since when.\n"
    )


def test_status_names_some_of_many_troubled_accounts(app: APIFlask, run: Run) -> None:
    for number in range(23):
        account = make_account(services_of(app), f"p{number}")
        run_sql(
            services_of(app),
            "UPDATE accounts SET deactivated_at = :then, purge_at = :then, deactivated_by = 'owner'"
            " WHERE id = :id",
            then=THEN,
            id=account.id,
        )
        fail_to_purge(app, account.id, attempts=8)
    witness(services_of(app))

    result = run("accounts", "status")

    named = ", ".join(map(str, range(1, 21)))
    assert f"failing or stuck   {named} and 3 more" in lines(result)
    assert "Error: 23 accounts are stuck." in result.stderr


def test_status_of_an_idle_service_is_short(run: Run) -> None:
    result = run("accounts", "status")

    assert result.exit_code == 0
    assert lines(result)[-5:] == [
        "overdue            0 s",
        "receipts to scrub  0",
        "mails delayed      0",
        "",
        "The outbox owes nothing.",
    ]


def test_a_plan_is_a_table_with_a_total(app: APIFlask, run: Run, ann: Person) -> None:
    result = run("accounts", "purge", "--expired", "--dry-run")

    assert result.stderr == (
        "ID  PUBLIC ID                             PASSWORDS  FILES  USERNAME  E-MAIL\n"
        f" 1  {ann.public_id}          3      1  ann       ann@example.org\n"
        "1 account, 3 saved passwords and 1 file\n"
    )
    assert result.stdout == "Would be purged: 1 account, 3 saved passwords and 1 file.\n"


def test_who_is_left_is_said_in_words(app: APIFlask, run: Run, ann: Person) -> None:
    fail_to_purge(app, ann.id)
    once = run("accounts", "purge", "--expired", "--yes")
    run_sql(services_of(app), "UPDATE purge_failures SET attempts = 2")
    twice = run("accounts", "purge", "--expired", "--yes")

    said = "Left: account 1. It failed with IntegrityError (stray_account_id_fkey)"
    assert once.stderr == f"{said}, 1 time by now.\n"
    assert twice.stderr == f"{said}, 2 times by now.\n"


def test_every_effect_and_every_obstacle_has_words(app: APIFlask) -> None:
    assert set(EFFECTS) == set(services_of(app).handlers)
    # A failure has an exception's name, so that its sentence is made for it.
    assert set(OBSTACLES) == set(Obstacle) - {Obstacle.FAILED}


def every_command(app: APIFlask) -> Iterator[tuple[str, click.Command]]:
    for registered in groups():
        name = str(registered.name)
        # Most of its commands, and their help, are Flask-Migrate's.
        if name == "db":
            continue
        group = app.cli.commands[name]
        assert isinstance(group, click.Group)
        yield name, group
        for command in group.commands.values():
            yield f"{name} {command.name}", command


def test_every_help_says_what_it_does_and_how_it_ends_with_an_example(
    app: APIFlask, run: Run
) -> None:
    for name, command in every_command(app):
        text = run(*name.split(), "--help").stdout

        assert f"flask --app wsgi {name.split()[0]} " in text, f"{name}: give its help an example"
        assert "Exit codes: 0 " in text, f"{name}: say in its help how it ends"
        assert "2 bad usage." in text, f"{name}: say in its help how it ends"
        # In the list of its group it has one line, which must not be cut.
        assert "..." not in command.get_short_help_str(limit=68), f"{name}: first line too long"
        assert max(map(len, text.splitlines())) <= 88, name


@pytest.mark.parametrize(
    "words",
    [
        ["accounts", "show"],
        ["accounts", "show", "1", "2"],
        ["accounts", "deactivate"],
        ["accounts", "retry"],
        ["accounts", "release", "1", "x"],
        ["accounts", "list", "--limit", "0"],
        ["accounts", "list", "--after", "-1"],
        ["accounts", "status", "now"],
        ["accounts", "create", "--username", "kim"],
        ["avatars", "orphans", "--all"],
        ["ledger", "verify", "everything"],
        ["sweeps", "stop"],
        ["vault"],
    ],
)
def test_wrong_arguments_end_with_2_and_one_sentence(run: Run, words: list[str]) -> None:
    result = run(*words)

    assert result.exit_code == 2
    assert result.stdout == ""
    if len(words) > 1:
        sentence = result.stderr.splitlines()[-1]
        assert sentence.startswith("Error: ")
        assert len(sentence.split()) > 3


def test_a_name_that_is_not_found_is_said_as_it_was_given(run: Run) -> None:
    result = run("accounts", "show", "王@example.org\x1b[31m")

    assert result.exit_code == 1
    assert result.stderr == (
        "Error: Not found: 王@example.org<U+001B>[31m. Give ids, numbers or e-mails; nothing "
        "was changed.\n"
    )


def test_a_hold_that_is_not_open_says_where_to_look(run: Run, ann: Person) -> None:
    result = run("accounts", "release", str(ann.id), "9")

    assert result.stderr == (
        "Error: No open hold 9 on account 1. `accounts show 1` lists those that are open.\n"
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_encoding_without_a_name_ends_no_command(
    app: APIFlask, tmp_path: Path, encoding: str
) -> None:
    sign_up(app, "王😀", "wang@example.org")
    given = {name: value for name, value in os.environ.items() if name in INHERITED}
    environment = {
        **given,
        "INSTANCE_PATH": str(tmp_path / "instance"),
        "SECRET_KEY": SECRET_KEY,
        "VAULT_KEYS": VAULT_KEY,
        "LEDGER_SIGNING_KEY": SIGNING_KEY,
        "DATABASE_URL": services_of(app).settings.database_url,
        "PYTHONIOENCODING": encoding,
    }

    results = [
        subprocess.run(
            [sys.executable, "-m", "flask", "--app", "wsgi", "accounts", "list", *options],
            capture_output=True,
            cwd=ROOT,
            env=environment,
            timeout=START,
            check=False,
        )
        for options in ([], ["--json"])
    ]

    assert [result.returncode for result in results] == [0, 0], results
    assert b"wang@example.org" in results[0].stdout
    assert json.loads(results[1].stdout)[0]["username"] == "王😀"
    # Escapes are for an encoding that needs them; Click writes UTF-8 instead of ASCII.
    assert ("王😀".encode() in results[1].stdout) == (encoding != "latin-1")


# JSON -------------------------------------------------------------------------------------------


def account_document(person: Person, **changes: Any) -> dict[str, Any]:
    return {
        "id": person.id,
        "username": "ann",
        "email": "ann@example.org",
        "pending_email": None,
        "first_name": "Ann",
        "last_name": "",
        "number_phone": "+1 (2) 3",
        "avatar": f"/media/avatars/{person.avatar}",
        "is_staff": False,
        "date_joined": STAMP,
        "public_id": str(person.public_id),
        "state": "due",
        "saved_passwords": 3,
        "deactivated_at": STAMP,
        "deactivated_by": "operator",
        "purge_at": STAMP,
        "reason": None,
        "return_reason": None,
        "unexplained": False,
        "blocked_by": None,
        "attempts": 0,
        "error": None,
        "constraint": None,
        "holds": [],
        **changes,
    }


def test_json_of_show_keeps_every_byte(app: APIFlask, run: Run, ann: Person) -> None:
    bare = run("accounts", "show", "1", "--json")
    hold(app, run, ann.id, "police\nof 法院")
    fail_to_purge(app, ann.id)
    full = run("accounts", "show", "1", "--json")

    shown_besides = {"former_emails": []}
    assert bare.stdout == exactly(account_document(ann) | shown_besides)
    troubled = account_document(
        ann,
        blocked_by="hold",
        attempts=1,
        error="IntegrityError",
        constraint="stray_account_id_fkey",
        holds=[{"id": 1, "placed_at": STAMP, "reason": "police\nof 法院"}],
    )
    assert full.stdout == exactly(troubled | shown_besides)


def test_json_of_changes_keeps_every_byte(app: APIFlask, run: Run, ann: Person) -> None:
    retried = run("accounts", "retry", "1", "--json")
    again = run("accounts", "deactivate", "1", "--json")
    reactivated = run("accounts", "reactivate", "1", "--json")

    assert retried.stdout == exactly([{"changed": False, **account_document(ann)}])
    assert again.stdout == retried.stdout
    assert (reactivated.exit_code, reactivated.stdout) == (1, "")


def test_json_of_list_keeps_every_byte(app: APIFlask, run: Run, ann: Person) -> None:
    sign_up(app, "王" * 50, "wang@example.org", staff=True)

    assert run("accounts", "list", "--json").stdout == exactly(
        [
            {
                "id": 1,
                "username": "ann",
                "email": "ann@example.org",
                "is_staff": False,
                "state": "due",
                "purge_at": STAMP,
            },
            {
                "id": 2,
                "username": "王" * 50,
                "email": "wang@example.org",
                "is_staff": True,
                "state": "active",
                "purge_at": None,
            },
        ]
    )
    assert run("accounts", "list", "--state", "deactivated", "--json").stdout == "[]\n"


def test_json_of_status_keeps_every_byte(app: APIFlask, run: Run, ann: Person) -> None:
    fail_to_purge(app, ann.id)

    with services_of(app).reading() as session:
        since = seals.unsealed_since(session, seals.tail(session))
    assert since is not None
    assert run("accounts", "status", "--json").stdout == exactly(
        {
            "active": 0,
            "deactivated": 0,
            "due": 1,
            "held": 0,
            "failing": 1,
            "failing_again": 0,
            "stuck": 0,
            "braked": 0,
            "unexplained": 0,
            "overdue_seconds": 0,
            "owed": {"mail.scheduled": 1},
            "owed_failing": {},
            "owed_oldest_seconds": {"mail.scheduled": 0},
            "paused": {},
            "delayed": {},
            "refused": {},
            "last_purged_at": None,
            "swept_at": None,
            "paused_at": None,
            "clock_moved_at": None,
            "braked_at": None,
            "allowed": 0,
            "unscrubbed": 0,
            "under_way": 0,
            "oldest_under_way_seconds": 0,
            "unkept": 0,
            "last_seal": None,
            "unsealed_since": rfc3339(since),
            "orphans": 0,
            "orphans_oldest_seconds": 0,
            "orphans_deleted": 0,
            "orphans_searched_at": None,
            "canary": None,
            "canary_passed_at": None,
            "troubled": [1],
            "kept_keys": 0,
            "kept_key_ids": [],
            "unmapped_tables": [],
        }
    )


def test_json_turns_no_line_around_and_means_the_same(app: APIFlask, run: Run, ann: Person) -> None:
    turn(app, ann.id)

    shown = run("accounts", "show", str(ann.id), "--json").stdout

    assert "\u202e" not in shown
    assert '"username": "exe\\u202egnp"' in shown
    assert json.loads(shown)["username"] == "exe\u202egnp"


@pytest.mark.parametrize(("number", "named"), [(0, ""), (2, "1, 2"), (21, ", 20 and 1 more")])
def test_status_names_the_accounts_that_kept_a_key_by_id_alone(
    app: APIFlask, run: Run, number: int, named: str
) -> None:
    ids = insert_accounts(services_of(app), numbered("ann", number)) if number else []
    keep_keys(app, *ids)

    text, document = run("accounts", "status"), run("accounts", "status", "--json")

    lines_of = [line for line in lines(text) if line.startswith("kept keys")]
    assert len(lines_of) == (1 if number else 0)
    assert all(line.endswith(named) for line in lines_of)
    assert "@" not in text.output
    shown = json.loads(document.stdout)
    assert (shown["kept_keys"], shown["kept_key_ids"]) == (number, ids[:20])


def test_json_of_a_purge_keeps_every_byte(app: APIFlask, run: Run, ann: Person) -> None:
    eve = make_person(services_of(app), "eve")
    make_due(services_of(app), eve)
    fail_to_purge(app, ann.id)
    purged = {"id": eve.id, "public_id": str(eve.public_id), "saved_passwords": 3, "files": 1}
    totals = {"accounts": 1, "saved_passwords": 3, "files": 1}

    planned = run("accounts", "purge", "--expired", "--dry-run", "--json")
    real = run("accounts", "purge", "--expired", "--yes", "--json")

    failed = "It failed with IntegrityError (stray_account_id_fkey), 1 times by now."
    left = [{"id": 1, "reason": failed}]
    assert planned.stdout == exactly(
        {"dry_run": True, **totals, "would_purge": [purged], "would_leave": left}
    )
    assert real.stdout == exactly(
        {
            "dry_run": False,
            **totals,
            "purged": [purged],
            "left": left,
            "owed": {},
            "scrubbed": True,
            "paused": 0,
        }
    )


def test_json_of_what_lies_beside_the_database_keeps_every_byte(
    app: APIFlask, run: Run, ann: Person
) -> None:
    key = new_key()
    services_of(app).avatars.put(key, b"x")
    then = time.time() - 7200
    for path in (services_of(app).settings.instance_path / "media").rglob("*.webp"):
        os.utime(path, (then, then))
    run("accounts", "purge", "1", "--yes")
    ledger = services_of(app).settings.instance_path / "ledger"

    found = json.loads(run("avatars", "orphans", "--json").stdout)
    agreed = run("ledger", "verify", "--json")
    for path in ledger.rglob("*.jsonl"):
        path.unlink()
    missing = run("ledger", "verify", "--json")

    assert list(found) == ["files", "shown", "orphans", "deleted"]
    assert list(found["orphans"][0]) == ["key", "written_at", "found_at"]
    assert agreed.stdout == exactly(
        {
            "lines": 1,
            "receipts": 1,
            "owed": 0,
            "back": [],
            "missing": [],
            "differing": [],
            "untrusted": [],
            "unsealed": 0,
            "lost": [],
            "lost_seals": [],
            "is_behind": False,
        }
    )
    assert missing.stdout == exactly(
        {
            "lines": 0,
            "receipts": 1,
            "owed": 0,
            "back": [],
            "missing": [str(ann.public_id)],
            "differing": [],
            "untrusted": [],
            "unsealed": 0,
            "lost": [],
            "lost_seals": [],
            "is_behind": False,
        }
    )
    assert missing.stderr == (
        "1 receipt is not in the ledger: run `ledger rebuild`. --json names the receipts.\n"
    )
    assert run("vault", "rewrap", "--json").stdout == exactly(
        {"rewrapped": 0, "left": 0, "unopened": 0}
    )
    assert run("sweeps", "resume", "--json").stdout == exactly(
        {"changed": False, "paused_at": None}
    )
