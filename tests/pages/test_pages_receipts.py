"""The page of a receipt: what it says is gone, what is to come, and how it is checked."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc.db import proofs
from tests.support.factories import Person, services_of
from tests.support.receipts import backdate, erase, record
from tests.support.state import belongings

from .conftest import heading, words

TITLE = "Receipt of a deleted account"
ALL = (
    proofs.FILES_ABSENT,
    proofs.LEDGER_WRITTEN,
    proofs.TOLD,
    proofs.SCRUBBED,
    proofs.COMPLETED,
    proofs.VERIFIED,
)
TO_COME = {
    proofs.FILES_ABSENT: "Its picture is gone from our store",
    proofs.LEDGER_WRITTEN: "Our ledger knows of it, so that",
    proofs.TOLD: "Its owner is told by mail, or",
    proofs.SCRUBBED: "What our database has freed is made unreadable.",
    proofs.COMPLETED: "The deletion is complete.",
    proofs.VERIFIED: "We have looked into every place",
}


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What is read is the same rows on either engine; that one is scrubbed which this is."""
    return sqlite_url


@pytest.mark.parametrize("known", range(len(ALL) + 1))
def test_the_page_says_what_is_gone_and_when_and_what_is_still_to_come(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person, known: int
) -> None:
    # given
    others = belongings(services_of(app), bob)
    receipt = erase(services_of(app), ann)
    record(services_of(app), ann, *ALL[:known])

    # when
    response = client.get(f"/receipts/{ann.public_id}/")

    # then
    said = words(response)
    assert (response.status_code, heading(response)) == (200, TITLE)
    assert str(ann.public_id) in said
    assert f"saved passwords (3) were erased on {receipt.purged_at:%-d %B %Y at %H:%M} UTC" in said
    to_come = {fact for fact, sentence in TO_COME.items() if sentence in said}
    assert to_come == set(ALL[known:])
    until = receipt.purged_at + timedelta(days=90)
    assert f"may hold something of it until {until:%-d %B %Y at %H:%M} UTC" in said
    assert ann.email not in response.text
    assert belongings(services_of(app), bob) == others


def test_a_residue_is_said_until_a_later_look_found_nothing(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    erase(services_of(app), ann)
    record(services_of(app), ann, *ALL, proofs.RESIDUE_FOUND)
    found = words(client.get(f"/receipts/{ann.public_id}/"))

    record(services_of(app), ann, proofs.VERIFIED)
    after = words(client.get(f"/receipts/{ann.public_id}/"))

    assert "What we found afterwards" in found
    assert "found nothing of the account" not in found
    assert "What we found afterwards" not in after
    assert "found nothing of the account" in after


def test_who_was_not_told_is_not_said_to_be(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    erase(services_of(app), ann)
    record(services_of(app), ann, proofs.NOT_TOLD)

    said = words(client.get(f"/receipts/{ann.public_id}/"))

    assert "Our mail could not be delivered" in said
    assert "had been told by mail" not in said
    assert TO_COME[proofs.TOLD] not in said


def test_the_page_leads_to_all_that_it_takes_to_check_it(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    erase(services_of(app), ann)

    page = client.get(f"/receipts/{ann.public_id}/")
    links = re.findall(r'<a href="([^"]+)" download="([^"]+)"', page.text)

    assert links == [
        (f"/api/receipts/{ann.public_id}/", "receipt.json"),
        ("/.well-known/accountsvc-keys.json", "keys.json"),
    ]
    for path, _name in links:
        assert client.get(path).status_code == 200
    assert "A part of this is not signed yet" in words(page)


def test_the_pages_are_as_protected_as_the_others_and_need_no_script(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    erase(services_of(app), ann)

    for path in ("/receipts/", f"/receipts/{ann.public_id}/"):
        response = client.get(path)

        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Robots-Tag"] == "noindex"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert "<script" not in response.text
        assert "Set-Cookie" not in response.headers


def test_the_form_leads_to_the_receipt_of_a_number_that_is_typed_or_pasted(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    erase(services_of(app), ann)
    form = client.get("/receipts/")
    typed = (
        f" {str(ann.public_id).upper()} ",
        f"\t{ann.public_id.hex}\n",
        ann.public_id.hex.upper(),
    )

    answers = [
        client.get("/receipts/", query_string={"number": text}, follow_redirects=True)
        for text in typed
    ]
    by_hand = client.get(f"/receipts/{ann.public_id.hex}/")

    assert heading(form) == TITLE
    assert [answer.request.path for answer in answers] == [f"/receipts/{ann.public_id}/"] * 3
    for answer in (*answers, by_hand):
        assert "What is gone" in words(answer)
        assert f"/api/receipts/{ann.public_id}/" in answer.text


@pytest.mark.parametrize("typed", ["1", "ann@example.org", "5007fedf-bcb1", "<b>x</b>", "\0"])
def test_what_is_no_number_is_asked_for_again(client: FlaskClient, typed: str) -> None:
    response = client.get("/receipts/", query_string={"number": typed})

    assert response.status_code == 400
    assert "Enter the whole number, as it stands in our mail." in words(response)
    assert "<b>" not in response.text


@pytest.mark.parametrize("number", ["5007fedf-bcb1-4b82-8bfd-3b5c8a1439d0", "x"])
def test_a_number_that_no_receipt_has_is_a_page_with_a_way_on(
    client: FlaskClient, number: str
) -> None:
    response = client.get(f"/receipts/{number}/")

    assert (response.status_code, heading(response)) == (404, "No receipt has this number")
    assert 'href="/receipts/"' in response.text


def test_the_account_of_a_bystander_has_no_receipt(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    erase(services_of(app), ann)

    assert client.get(f"/receipts/{bob.public_id}/").status_code == 404


def test_the_page_says_whether_all_of_it_is_signed_and_whether_it_was_changed(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    erase(services_of(app), ann)
    path = f"/receipts/{ann.public_id}/"

    waiting = words(client.get(path))
    services_of(app).seal(seconds=30, at_once=True)
    signed = words(client.get(path))
    backdate(services_of(app), ann)
    changed = words(client.get(path))

    sentences = ("not signed yet", "All of this is signed", "not what was signed")
    assert [[one in said for one in sentences] for said in (waiting, signed, changed)] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
