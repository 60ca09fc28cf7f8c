"""CONTRACT sections 3 and 5: what a vault may hold and cost, and entries that cannot be read."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import update
from werkzeug.test import EnvironBuilder, TestResponse, run_wsgi_app

from accountsvc import bounds
from accountsvc.accounts import vault
from accountsvc.adapters.throttle import LIMITS, VAULT_WRITE
from accountsvc.api import vault as api
from accountsvc.db.models import MAX_ID, Account, SavedPassword
from accountsvc.errors import TokenNotValid
from tests.conftest import NewApp
from tests.support.factories import (
    Person,
    deactivate,
    fill_vault,
    make_person,
    services_of,
)
from tests.support.state import belongings, everything, get_account, possessions

SAVE, ALL = "/api/save-passwords/", "/api/view-all-saved-passwords/"
FULL = (
    b'{"error": "The vault is full: it holds 5,000 entries, the most that it takes. '
    b'Delete saved passwords that are not needed any more.", "code": "vault_full"}'
)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What is asked of the database is tested on both engines below HTTP."""
    return sqlite_url


def account_of(app: APIFlask, person: Person) -> Account:
    return get_account(services_of(app), person.id)


def entry(number: int) -> str:
    return f"{ALL}{number}/update/"


def test_a_full_vault_says_so_and_nobody_else_is_refused(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    fill_vault(services_of(app), account_of(app, ann), bounds.VAULT_ENTRIES - len(ann.passwords))
    before = everything(services_of(app))

    refused = client.post(SAVE, headers=ann.auth, json={"password_saved": "x"})

    assert (refused.status_code, refused.data) == (409, FULL)
    assert everything(services_of(app)) == before
    assert client.post(SAVE, headers=bob.auth, json={"password_saved": "x"}).status_code == 201
    shown = client.get(ALL, headers=ann.auth).json
    assert shown is not None
    assert len(shown["passwords"]) == bounds.VAULT_ENTRIES
    gone = client.delete(f"{ALL}{ann.passwords[0]}/delete/", headers=ann.auth)
    assert gone.status_code == 204
    assert client.post(SAVE, headers=ann.auth, json={"password_saved": "x"}).status_code == 201


def test_a_longer_text_is_refused_where_the_bytes_are_used_up(
    client: FlaskClient, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "VAULT_BYTES", 0)

    longer = client.put(entry(ann.passwords[0]), headers=ann.auth, json={"url": "x" * 99})
    shorter = client.put(entry(ann.passwords[0]), headers=ann.auth, json={"url": ""})

    assert (longer.status_code, longer.get_json()["code"]) == (409, "vault_full")
    assert "entries would have more than 4 MiB. Delete" in longer.get_json()["error"]
    assert shorter.status_code == 200


WRITES: dict[str, Callable[[FlaskClient, Person], TestResponse]] = {
    "saved": lambda client, who: client.post(SAVE, headers=who.auth, json={"password_saved": "x"}),
    "changed": lambda client, who: client.put(
        entry(who.passwords[0]), headers=who.auth, json={"url": ""}
    ),
    "changed, not found": lambda client, who: client.put(
        entry(4711), headers=who.auth, json={"url": ""}
    ),
    "deleted": lambda client, who: client.delete(f"{ALL}4711/delete/", headers=who.auth),
    "no JSON": lambda client, who: client.post(SAVE, headers=who.auth, data=b"\xff"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_writes_to_a_vault_share_one_count_which_is_asked_before_the_body_is_read(
    new_app: NewApp, write: Callable[[FlaskClient, Person], TestResponse]
) -> None:
    app = new_app(RATE_LIMITS="on")
    ann, bob = make_person(services_of(app), "ann"), make_person(services_of(app), "bob")
    client = app.test_client()
    limit = LIMITS[VAULT_WRITE].account
    assert limit is not None
    assert str(limit) == "120 per 1 minute"
    saved = WRITES["deleted"]
    for _ in range(limit.amount - 1):
        saved(client, ann)
    assert write(client, ann).status_code != 429
    before = possessions(services_of(app), ann.id)

    refused = write(client, ann)

    assert refused.status_code == 429
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert possessions(services_of(app), ann.id) == before
    assert client.get(ALL, headers=ann.auth).status_code == 200
    assert write(client, bob).status_code != 429


# The list


def pieces(app: APIFlask, who: Person, query: str = "") -> tuple[Iterable[bytes], dict[str, str]]:
    """The answer as a server sees it, piece by piece: a client of the tests would join them."""
    environ = EnvironBuilder(path=ALL, query_string=query, headers=who.auth).get_environ()
    body, status, headers = run_wsgi_app(app, environ, buffered=False)
    assert status == "200 OK"
    return body, dict(headers)


def literal(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("count", [0, 1, vault.PAGE_SIZE, vault.PAGE_SIZE + 1])
def test_the_list_is_one_document_to_the_byte_however_many_pages_it_is_read_in(
    app: APIFlask, client: FlaskClient, bob: Person, count: int
) -> None:
    who = make_person(services_of(app), "zoe")
    for number in who.passwords:
        client.delete(f"{ALL}{number}/delete/", headers=who.auth)
    fill_vault(services_of(app), account_of(app, who), count, secret='я"🐎\n\x7f')

    response = client.get(ALL, headers=who.auth)

    document = response.get_json()
    assert response.data == literal(document)
    assert response.headers["Content-Length"] == str(len(response.data))
    assert list(document) == ["message", "passwords"]
    assert [one["name_pages"] for one in document["passwords"]] == [
        f"site {number}" for number in range(count)
    ]


def peak_of(app: APIFlask, who: Person) -> tuple[int, int]:
    """The bytes of an answer, and the most that were held at once while it was made and sent."""
    sum(map(len, pieces(app, who)[0]))
    tracemalloc.start()
    size = sum(map(len, pieces(app, who)[0]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size, peak


def test_a_list_is_never_in_memory_as_more_than_its_bytes_and_a_page(
    app: APIFlask, ann: Person
) -> None:
    fill_vault(services_of(app), account_of(app, ann), 3_000, secret="x" * 1_000)

    size, peak = peak_of(app, ann)

    assert size > 3_000_000
    assert peak < 1.5 * size


def test_a_list_beyond_the_quota_is_sent_while_it_is_read(
    app: APIFlask, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accountsvc.api.vault._MOST_AT_ONCE", 500_000)
    fill_vault(services_of(app), account_of(app, ann), 6_000, secret="x" * 1_000)

    size, peak = peak_of(app, ann)
    body, headers = pieces(app, ann)

    assert size > 6_000_000
    assert peak < size / 3
    assert "Content-Length" not in headers
    assert len(json.loads(b"".join(body))["passwords"]) == 6_000 + len(ann.passwords)


def test_who_loses_the_account_in_the_midst_gets_no_whole_document(
    app: APIFlask, ann: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accountsvc.api.vault._MOST_AT_ONCE", 0)
    fill_vault(services_of(app), account_of(app, ann), 3 * vault.PAGE_SIZE)
    theirs = belongings(services_of(app), bob)
    received = b""

    body, headers = pieces(app, ann)
    iterator = iter(body)
    received += next(iterator)
    deactivate(services_of(app), ann.id)
    with pytest.raises(TokenNotValid):
        next(iterator)

    assert "Content-Length" not in headers
    assert received
    with pytest.raises(json.JSONDecodeError):
        json.loads(received)
    assert belongings(services_of(app), bob) == theirs


def test_a_vault_within_its_quota_is_always_read_before_it_is_answered() -> None:
    """The form of the wire is at most six times as long as the text in UTF-8, and has a frame."""
    longest = max(
        (len(json.dumps(character)) - 2)
        / len(json.dumps(character, ensure_ascii=False)[1:-1].encode())
        for character in map(chr, (*range(0xD800), *range(0xE000, 0x11_0000, 97)))
    )
    empty = {"id": MAX_ID, "name_pages": "", "url": "", "password_saved": "", "user": MAX_ID}
    times = dict.fromkeys(("created_at", "updated_at"), "2026-12-07T09:30:20.123456Z")
    frame = len(json.dumps({**empty, **times, "unreadable": True})) + 2

    assert longest == 6, "DEL is one byte, and six on the wire"
    assert longest * bounds.VAULT_BYTES + frame * bounds.VAULT_ENTRIES < api._MOST_AT_ONCE


# What cannot be read


def test_an_entry_that_cannot_be_read_says_so_and_is_overwritten_or_deleted(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    theirs = belongings(services_of(app), bob)
    first, second, third = ann.passwords
    with services_of(app).writing() as session:
        session.execute(
            update(SavedPassword)
            .where(SavedPassword.id.in_((first, second)))
            .values(ciphertext=b"\0" * 50)
        )

    shown = client.get(ALL, headers=ann.auth).get_json()["passwords"]
    part = client.put(entry(first), headers=ann.auth, json={"url": "x"})
    whole = client.put(
        entry(first),
        headers=ann.auth,
        json={"name_pages": "n", "url": "u", "password_saved": "p"},
    )
    gone = client.delete(f"{ALL}{second}/delete/", headers=ann.auth)

    assert [one["id"] for one in shown] == [first, second, third]
    for one in shown[:2]:
        assert (one["name_pages"], one["url"], one["password_saved"]) == ("", "", "")
        assert list(one)[-1] == "unreadable"
        assert one["unreadable"] is True
    assert "unreadable" not in shown[2]
    assert shown[2]["password_saved"] == "ann 2"
    assert part.status_code == 400
    sentence = (
        "This entry cannot be read any more. Delete it, or send all three fields to overwrite it."
    )
    assert part.get_json() == {"name_pages": [sentence], "password_saved": [sentence]}
    assert whole.status_code == 200
    assert gone.status_code == 204
    after = client.get(ALL, headers=ann.auth).get_json()["passwords"]
    assert [(one["id"], one["password_saved"]) for one in after] == [(first, "p"), (third, "ann 2")]
    assert belongings(services_of(app), bob) == theirs
