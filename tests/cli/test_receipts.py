"""``accounts receipt``: what is left of a purge, what has become true of it, and what proves it."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest
from apiflask import APIFlask
from sqlalchemy import select

from accountsvc.adapters import signedreceipts
from accountsvc.adapters.signedreceipts import Flaw
from accountsvc.cli.receipts import WORDS
from accountsvc.db import proofs
from accountsvc.db.models import Effect
from accountsvc.outbox import moments, queue
from tests.cli.conftest import Run
from tests.support.factories import Person, deactivate, make_due, make_person, services_of
from tests.support.receipts import backdate, erase, record
from tests.support.state import belongings, everything
from tests.support.sweeps import sweep


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
    (absent,) = [line for line in lines if line.startswith(WORDS[proofs.FILES_ABSENT])]
    (told,) = [line for line in lines if line.startswith(WORDS[proofs.TOLD])]
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


def test_what_is_to_come_and_what_is_owed_for_it_is_shown_until_it_is_true(
    app: APIFlask, run: Run
) -> None:
    services = services_of(app)
    bea = make_person(services, "bea")
    make_due(services, bea)
    services.sweep()

    first = run("accounts", "receipt", str(bea.public_id))
    services.deliver()
    then = run("accounts", "receipt", str(bea.public_id))

    before, after = (
        [" ".join(line.split()) for line in one.stdout.splitlines()] for one in (first, then)
    )
    assert (first.exit_code, then.exit_code) == (0, 0)
    assert "the files are absent in the store to come – –" in before
    assert any(line.startswith("the ledger has its line 20") for line in before)
    for kind in ("file.delete", "mail.purged"):
        assert any(line.startswith(f"{kind} 20") for line in before)
        assert not any(line.startswith(kind) for line in after)
    assert any(line.startswith("the files are absent in the store 20") for line in after)
    assert any(line.startswith("the owner was told by mail 20") for line in after)
    assert "the purge is completed to come – –" in after


def test_a_line_that_the_ledger_does_not_take_is_owed_of_whom_it_is_about_with_its_error(
    app: APIFlask, run: Run
) -> None:
    # given
    services = services_of(app)
    bea, bob = make_person(services, "bea"), make_person(services, "bob")
    others = belongings(services, bob)
    make_due(services, bea)
    sweep(services, datetime.now(UTC))
    cleo = make_person(services, "cleo")
    make_due(services, cleo)
    sweep(services, datetime.now(UTC))
    with services.writing() as session:
        for effect in session.scalars(select(Effect).where(Effect.kind == queue.LEDGER)):
            if bea.public_id in moments.people_in([effect]):
                effect.last_error = "StoreUnavailable"

    # when
    shown = {
        one: [
            " ".join(line.split()) for line in run("accounts", "receipt", one).stdout.splitlines()
        ]
        for one in (str(bea.public_id), str(cleo.public_id))
    }

    # then
    of_bea, of_cleo = (
        [line for line in lines if line.startswith("ledger.append 20")] for lines in shown.values()
    )
    assert [line.endswith("StoreUnavailable") for line in of_bea] == [True]
    assert [line.endswith("–") for line in of_cleo] == [True]
    assert "the ledger has its line to come – –" in shown[str(bea.public_id)]
    assert belongings(services, bob) == others


def test_a_completed_purge_has_nothing_to_come_and_names_nobody(app: APIFlask, run: Run) -> None:
    bea = make_person(services_of(app), "bea")
    deactivate(services_of(app), bea.id)
    assert run("accounts", "purge", str(bea.id), "--yes").exit_code == 0
    before = everything(services_of(app))

    shown = run("accounts", "receipt", str(bea.public_id))

    assert "the purge is completed" in shown.stdout
    assert "places: saved_passwords, vault_keys, " in shown.stdout
    assert "mail_paces until 2" in shown.stdout
    assert not set("{}[]'") & set(shown.stdout)
    assert "to come" not in shown.stdout
    assert "OWED" not in shown.stdout
    assert "bea@" not in shown.stdout
    assert everything(services_of(app)) == before


def test_a_number_without_a_receipt_is_a_sentence(run: Run, app: APIFlask) -> None:
    bob = make_person(services_of(app), "bob")

    for number in (uuid.uuid4(), bob.public_id):
        result = run("accounts", "receipt", str(number))

        assert result.exit_code == 1
        assert "No receipt has this number." in result.stderr


def test_a_number_is_taken_as_every_other_command_takes_it(run: Run, ann: Person) -> None:
    number = str(ann.public_id)
    typed = (number, number.upper(), ann.public_id.hex)
    no_numbers = ("7", f"{{{number}}}", ann.public_id.urn, number.replace("-", "--", 1), "")

    for spelling in typed:
        shown = run("accounts", "receipt", spelling)
        assert (shown.exit_code, number in shown.stdout) == (0, True), spelling
    for spelling in no_numbers:
        refused = run("accounts", "receipt", spelling)
        assert refused.exit_code == 2, spelling
        assert "with its four hyphens or without" in " ".join(refused.stderr.split())


def test_every_fact_has_its_words() -> None:
    assert set(WORDS) == set(proofs.FACTS)
