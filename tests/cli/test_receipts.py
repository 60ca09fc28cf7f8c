"""``accounts receipt``: what is left of a purge, and what has become true of it."""

from __future__ import annotations

import json
import uuid

import pytest
from apiflask import APIFlask

from accountsvc.cli.receipts import WORDS
from accountsvc.db.proofs import FACTS
from tests.cli.conftest import Run
from tests.support.factories import Person, deactivate, make_due, make_person, services_of
from tests.support.state import everything


@pytest.fixture
def ann(app: APIFlask) -> Person:
    return make_person(services_of(app), "ann")


def test_a_receipt_shows_what_has_become_true_in_its_order_and_what_is_to_come(
    app: APIFlask, run: Run, ann: Person
) -> None:
    services = services_of(app)
    make_due(services, ann)
    services.sweep()

    first = run("accounts", "receipt", str(ann.public_id))
    told = json.loads(run("accounts", "receipt", str(ann.public_id), "--json").stdout)
    services.deliver()
    then = json.loads(run("accounts", "receipt", str(ann.public_id), "--json").stdout)

    assert first.exit_code == 0, first.output
    lines = [" ".join(line.split()) for line in first.stdout.splitlines()]
    assert f"number {ann.public_id}" in lines
    assert "the files are absent in the store to come –" in lines
    assert any(line.startswith("the ledger has its line 20") for line in lines)
    assert any(line.startswith("file.delete 20") for line in lines)
    scrubbed = ["scrubbed"] if services.settings.is_sqlite else []
    assert [one["fact"] for one in told["facts"]] == ["ledger_written"]
    assert told["to_come"] == ["files_absent", "told", *scrubbed, "completed"]
    assert {one["kind"] for one in told["owed"]} == {"file.delete", "mail.purged"}
    assert [one["fact"] for one in then["facts"]] == ["ledger_written", "files_absent", "told"]
    assert (then["to_come"], then["owed"]) == ([*scrubbed, "completed"], [])
    assert (then["saved_passwords"], then["files"]) == (3, 1)


def test_a_completed_purge_has_nothing_to_come_and_names_nobody(
    app: APIFlask, run: Run, ann: Person
) -> None:
    deactivate(services_of(app), ann.id)
    assert run("accounts", "purge", str(ann.id), "--yes").exit_code == 0
    before = everything(services_of(app))

    shown = run("accounts", "receipt", str(ann.public_id), "--json")

    document = json.loads(shown.stdout)
    assert [one["fact"] for one in document["facts"][-2:]] == ["completed", "verified"]
    assert (document["to_come"], document["owed"]) == ([], [])
    assert "ann" not in shown.stdout
    text = run("accounts", "receipt", str(ann.public_id)).stdout
    assert "places: saved_passwords, vault_keys, " in text
    assert "mail_paces until 2" in text
    assert not set("{}[]'") & set(text)
    assert everything(services_of(app)) == before


def test_a_number_without_a_receipt_is_a_sentence(run: Run, app: APIFlask, ann: Person) -> None:
    for number in (uuid.uuid4(), ann.public_id):
        result = run("accounts", "receipt", str(number))

        assert result.exit_code == 1
        assert "There is no receipt of this number." in result.stderr
    assert run("accounts", "receipt", "7").exit_code == 2


def test_every_fact_has_its_words() -> None:
    assert set(WORDS) == set(FACTS)
