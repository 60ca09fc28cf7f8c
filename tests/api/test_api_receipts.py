"""CONTRACT section 4: a receipt for whoever has its number, and the keys that check it."""

from __future__ import annotations

import json
from pathlib import Path

from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc import readers
from accountsvc.adapters import signedreceipts
from accountsvc.adapters.signedreceipts import Flaw, keys_in
from accountsvc.db import proofs
from tests.conftest import NewApp
from tests.support.factories import Person, deactivate, services_of
from tests.support.ledgers import OTHER_KEY
from tests.support.processes import ROOT, run
from tests.support.receipts import backdate, erase, record
from tests.support.state import belongings
from tests.support.work import Work

KEYS = "/.well-known/accountsvc-keys.json"
SCRIPT = ROOT / "docs" / "verify_receipt.py"
ORIGIN = "http://localhost:3000"
FACTS = (proofs.FILES_ABSENT, proofs.LEDGER_WRITTEN, proofs.TOLD, proofs.COMPLETED)


def path_of(person: Person) -> str:
    return f"/api/receipts/{person.public_id}/"


def test_a_receipt_is_for_whoever_has_its_number_and_names_nobody(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    # given
    others = belongings(services_of(app), bob)
    receipt = erase(services_of(app), ann)
    record(services_of(app), ann, *FACTS)

    # when
    response = client.get(path_of(ann))

    # then
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json is not None
    entry = json.loads(response.json["receipt"]["entry"])
    assert (entry["kind"], entry["public_id"]) == ("receipt", str(ann.public_id))
    assert entry["purged_at"] == receipt.purged_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    facts = [json.loads(fact["entry"]) for fact in response.json["facts"]]
    assert [fact["fact"] for fact in facts] == list(FACTS)
    assert {fact["public_id"] for fact in facts} == {str(ann.public_id)}
    for personal in (ann.email, "ann", ann.avatar):
        assert personal not in response.text.lower()
    assert belongings(services_of(app), bob) == others


def test_until_it_is_sealed_a_receipt_says_so_and_from_then_on_it_proves_itself(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    # given
    others = belongings(services_of(app), bob)
    erase(services_of(app), ann)
    record(services_of(app), ann, *FACTS[:2])
    keys = keys_in(client.get(KEYS).data)

    # when
    before = signedreceipts.check(client.get(path_of(ann)).data, keys)
    services_of(app).seal(seconds=30, at_once=True)
    record(services_of(app), ann, *FACTS[2:3])
    between = signedreceipts.check(client.get(path_of(ann)).data, keys)
    services_of(app).seal(seconds=30, at_once=True)
    after = signedreceipts.check(client.get(path_of(ann)).data, keys)

    # then
    assert [part.flaw for part in before] == [Flaw.UNSEALED] * 3
    assert [part.flaw for part in between] == [None, None, None, Flaw.UNSEALED]
    assert [part.flaw for part in after] == [None] * 4
    assert {part.entry["public_id"] for part in after} == {str(ann.public_id)}
    assert belongings(services_of(app), bob) == others


def test_the_script_proves_what_the_service_serves_and_refuses_what_was_changed_since(
    app: APIFlask, client: FlaskClient, ann: Person, tmp_path: Path
) -> None:
    """With the two files of the service alone, in a folder without anything of it."""
    # given
    receipt, keys = tmp_path / "receipt.json", tmp_path / "keys.json"
    erase(services_of(app), ann)
    record(services_of(app), ann, *FACTS)
    services_of(app).seal(seconds=30, at_once=True)
    keys.write_bytes(client.get(KEYS).data)

    # when
    receipt.write_bytes(client.get(path_of(ann)).data)
    proved = run("python", str(SCRIPT), str(receipt), str(keys), env={}, folder=tmp_path)
    backdate(services_of(app), ann)
    receipt.write_bytes(client.get(path_of(ann)).data)
    changed = run("python", str(SCRIPT), str(receipt), str(keys), env={}, folder=tmp_path)

    # then
    assert (proved.returncode, proved.stderr) == (0, "")
    assert proved.stdout.count(str(ann.public_id)) == 1 + len(FACTS)
    assert (changed.returncode, changed.stdout) == (1, "")
    assert changed.stderr == "The receipt is not what was signed.\n"


def test_a_number_may_be_in_capitals_and_without_hyphens_and_is_answered_in_one_spelling(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    erase(services_of(app), ann)
    number = ann.public_id
    spellings = [str(number), str(number).upper(), number.hex, number.hex.upper()]

    answers = [client.get(f"/api/receipts/{spelling}/") for spelling in spellings]

    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.data for answer in answers}) == 1
    assert answers[0].json is not None
    assert json.loads(answers[0].json["receipt"]["entry"])["public_id"] == str(number)
    for spelling in (f"{{{number}}}", number.urn, str(number).replace("-", "--", 1)):
        assert client.get(f"/api/receipts/{spelling}/").status_code == 404


def test_any_other_number_is_404_in_whatever_form_also_of_who_is_not_gone(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    deactivate(services_of(app), ann.id)
    numbers = [
        str(ann.public_id),
        str(bob.public_id),
        "5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0",
        "1",
        "x" * 3000,
        "{5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0}",
        "5007fedfbcb14b828bfd3b5c8a1439d0",
        "%00",
        "%ED%A0%80",
    ]

    answers = [client.get(f"/api/receipts/{number}/") for number in numbers]

    assert {(answer.status_code, answer.data) for answer in answers} == {
        (
            404,
            b'{"error": "No receipt has this number. Check it, or ask again after the time for '
            b'which the deletion was promised.", "code": "receipt_not_found"}',
        )
    }


def test_what_came_again_and_again_is_shown_bounded_and_what_came_once_always(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    erase(services_of(app), ann)
    record(services_of(app), ann, proofs.FILES_ABSENT, *[proofs.RESIDUE_FOUND] * 60)
    record(services_of(app), ann, proofs.COMPLETED, proofs.VERIFIED)
    services_of(app).seal(seconds=30, at_once=True)
    work = Work()

    with work.of(services_of(app).database.engine):
        response = client.get(path_of(ann))

    assert response.json is not None
    facts = [json.loads(fact["entry"])["fact"] for fact in response.json["facts"]]
    repeated = signedreceipts.MOST_REPEATED - 1
    assert facts == [
        proofs.FILES_ABSENT,
        *[proofs.RESIDUE_FOUND] * repeated,
        proofs.COMPLETED,
        proofs.VERIFIED,
    ]
    # Receipt and facts, as rows and as entries; of each entry its seal's number, and the seal.
    assert len(work.statements) <= 4 + 2 * (1 + len(facts))


def test_the_keys_are_those_whose_seals_count_old_ones_too_and_may_be_kept_an_hour(
    new_app: NewApp,
) -> None:
    app = new_app()
    own = services_of(app).settings.ledger_public_keys
    old = readers.public_key_of(OTHER_KEY)
    both = ",".join(readers.key_text(key) for key in (*own, old))
    client = new_app(LEDGER_PUBLIC_KEYS=both).test_client()

    response = client.get(KEYS, headers={"Origin": ORIGIN})

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "public, max-age=3600"
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "Origin" in response.headers["Vary"]
    assert keys_in(response.data) == [*own, old]
    assert response.json is not None
    for key in response.json["keys"]:
        assert (key["kty"], key["crv"], key["use"], key["alg"]) == (
            "OKP",
            "Ed25519",
            "sig",
            "EdDSA",
        )
        # A private key would have this member.
        assert "d" not in key
