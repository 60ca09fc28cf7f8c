"""``accounts receipt``: what the operator sees of somebody who is gone, and hands on."""

from __future__ import annotations

import json

import pytest
from apiflask import APIFlask

from accountsvc.adapters import signedreceipts
from accountsvc.adapters.signedreceipts import Flaw
from accountsvc.db import proofs
from tests.cli.conftest import Run
from tests.support.factories import Person, make_person, services_of
from tests.support.receipts import backdate, erase, record
from tests.support.state import belongings


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What is printed does not depend on the engine."""
    return sqlite_url


@pytest.fixture
def ann(app: APIFlask) -> Person:
    """Who is gone."""
    person = make_person(services_of(app), "ann")
    erase(services_of(app), person)
    return person


def test_json_is_the_signed_receipt_and_nothing_else(app: APIFlask, run: Run, ann: Person) -> None:
    record(services_of(app), ann, proofs.FILES_ABSENT)
    services_of(app).seal(seconds=30, at_once=True)

    shown = run("accounts", "receipt", str(ann.public_id), "--json")
    served = app.test_client().get(f"/api/receipts/{ann.public_id}/")

    assert shown.exit_code == 0
    assert json.loads(shown.stdout) == served.json
    parts = signedreceipts.check(
        shown.stdout.encode(), services_of(app).settings.ledger_public_keys
    )
    assert [part.flaw for part in parts] == [None, None]


def test_words_say_what_is_recorded_and_which_seal_covers_it(
    app: APIFlask, run: Run, ann: Person
) -> None:
    # given
    bob = make_person(services_of(app), "bob")
    others = belongings(services_of(app), bob)
    record(services_of(app), ann, proofs.FILES_ABSENT)
    services_of(app).seal(seconds=30, at_once=True)
    record(services_of(app), ann, proofs.TOLD)

    # when
    shown = run("accounts", "receipt", str(ann.public_id).upper())

    # then
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert shown.exit_code == 0
    assert f"number {ann.public_id}" in lines
    assert "saved passwords 3" in lines
    assert "signed by seal 1" in lines
    (absent,) = [line for line in lines if line.startswith("files_absent ")]
    (told,) = [line for line in lines if line.startswith("told ")]
    assert absent.endswith("by seal 1")
    assert told.endswith("not signed yet")
    (seal,) = [line for line in lines if line.startswith("Seal 1 of ")]
    assert ": head " in seal
    assert ", key " in seal
    assert "What is not signed yet will be within minutes." in lines
    assert ann.email not in shown.output
    assert belongings(services_of(app), bob) == others


def test_what_was_changed_is_shown_and_said_with_exit_code_1(
    app: APIFlask, run: Run, ann: Person
) -> None:
    services_of(app).seal(seconds=30, at_once=True)
    backdate(services_of(app), ann)

    shown = run("accounts", "receipt", str(ann.public_id))

    assert shown.exit_code == 1
    assert Flaw.NOT_INCLUDED.value in shown.stderr
    assert f"The receipt {Flaw.NOT_INCLUDED.value}." in shown.stderr


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        ("5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0", 1, "No receipt has this number."),
        ("42", 2, "a number is like"),
        ("ann@example.org", 2, "a number is like"),
    ],
)
def test_what_no_receipt_has_is_a_sentence(run: Run, number: str, code: int, said: str) -> None:
    shown = run("accounts", "receipt", number)

    assert shown.exit_code == code
    assert said in shown.stderr
