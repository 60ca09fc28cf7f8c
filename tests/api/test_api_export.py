"""CONTRACT section 4: ``profile/{id}/export/``, which is for the owner alone.

Whatever does not depend on the database runs once, on the application of the module.
"""

from __future__ import annotations

import csv
import gc
import io
import json
import random
import tracemalloc
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import func, select
from werkzeug.test import TestResponse

from accountsvc.accounts import vault
from accountsvc.accounts.exports import ExportBroken
from accountsvc.accounts.vault import Entry
from accountsvc.db import audit, rows
from accountsvc.db.engine import database_now
from accountsvc.db.models import Account, AuditEvent, SavedPassword
from accountsvc.errors import in_words
from tests.api.answers import (
    CONFIRM,
    NO_TOKEN,
    NOT_AUTHORIZED,
    NOT_FOUND,
    NOT_VALID,
    WRONG_PASSWORD,
)
from tests.conftest import NewApp
from tests.support.addresses import ask_address, change_address
from tests.support.factories import (
    PASSWORD,
    Person,
    access_token,
    bearer,
    deactivate,
    make_account,
    make_person,
    new_name,
    recovery_token,
    run_sql,
    services_of,
    witness,
)
from tests.support.moments import at, now
from tests.support.state import belongings, events, everything, read_account

FILES = [
    "README.txt",
    "saved_passwords.csv",
    "saved_passwords.json",
    "former_addresses.json",
    "account.json",
    "avatar.webp",
    "activity.json",
]

Answer = tuple[int, bytes]


@pytest.fixture
def shared_client(shared_app: APIFlask) -> FlaskClient:
    return shared_app.test_client()


@pytest.fixture
def eve(shared_app: APIFlask) -> Person:
    """Who takes her data along, where nothing depends on the database."""
    return make_person(services_of(shared_app), new_name("eve"))


@pytest.fixture
def bystander(app: APIFlask, bob: Person) -> Iterator[Person]:
    before = belongings(services_of(app), bob)
    yield bob
    assert belongings(services_of(app), bob) == before


def url(person: Person | Account) -> str:
    return f"/api/profile/{person.id}/export/"


def answer(response: TestResponse) -> Answer:
    return response.status_code, response.data


def account_of(app: APIFlask, person: Person) -> Account:
    account = read_account(services_of(app), person.id)
    assert account is not None
    return account


def unfresh(app: APIFlask, person: Person) -> dict[str, str]:
    return bearer(access_token(services_of(app), account_of(app, person), fresh=False))


def recovery(app: APIFlask, person: Person) -> dict[str, str]:
    return bearer(recovery_token(services_of(app), account_of(app, person)))


def mailed(app: APIFlask, person: Person) -> dict[str, str]:
    return bearer(
        services_of(app).tokens.mailed(account_of(app, person), now=now(services_of(app)))
    )


def opened(response: TestResponse) -> dict[str, bytes]:
    """The files of an answer that is a sound archive, in their order."""
    assert response.status_code == 200
    return unpacked(response.data)


def unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert len(set(archive.namelist())) == len(archive.namelist())
        return {name: archive.read(name) for name in archive.namelist()}


def is_archive(data: bytes) -> bool:
    try:
        zipfile.ZipFile(io.BytesIO(data)).close()
    except zipfile.BadZipFile:
        return False
    return True


def table(files: dict[str, bytes]) -> list[list[str]]:
    return list(csv.reader(io.StringIO(files["saved_passwords.csv"].decode(), newline="")))


def save(app: APIFlask, person: Person | Account, entries: Iterable[Entry]) -> None:
    """Save entries as ``vault.save`` does, with one look at the account and one INSERT for all."""
    services = services_of(app)
    with services.writing() as session:
        account = rows.lock(session, person.id)
        key, moment = vault.open_key(session, services.keyring, account), database_now(session)
        for entry in entries:
            row = SavedPassword(
                uid=uuid.uuid4(), account_id=account.id, created_at=moment, updated_at=moment
            )
            row.ciphertext = vault._encrypt_entry(key, account, row, entry)
            session.add(row)


Happened = tuple[str, uuid.UUID | None, uuid.UUID | None, str]


def mark(app: APIFlask) -> int:
    """The last audit event so far."""
    with services_of(app).reading() as session:
        return session.scalar(select(func.max(AuditEvent.id))) or 0


def trail(app: APIFlask, since: int) -> list[Happened]:
    """What was written since: action, subject, actor and its kind, and no word more."""
    with services_of(app).reading() as session:
        found = audit.events(session, after=since, limit=1000)
        assert [event.details for event in found] == [{}] * len(found)
        return [(event.action, event.subject, event.actor, event.actor_kind) for event in found]


# What is in it


def test_the_owner_takes_everything_along_by_a_fresh_token(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    before, since = belongings(services_of(app), ann), mark(app)

    response = client.get(url(ann), headers=ann.auth)

    files = opened(response)
    assert list(files) == FILES
    assert response.headers["Content-Type"] == "application/zip"
    disposition = 'attachment; filename="account-data.zip"'
    assert response.headers["Content-Disposition"] == disposition
    assert response.headers["Cache-Control"] == "no-store"
    assert "Content-Length" not in response.headers
    assert trail(app, since) == [("account.exported", ann.public_id, ann.public_id, "owner")]
    after = belongings(services_of(app), ann)
    assert (after["row"], after["passwords"]) == (before["row"], before["passwords"])
    assert files["avatar.webp"] == before["avatar"]
    names = [("site 0", "ann 0"), ("site 1", "ann 1"), ("site 2", "ann 2")]
    assert table(files) == [
        ["name", "url", "username", "password", "note"],
        *([name, "https://example.org", "", password, ""] for name, password in names),
    ]
    listed = client.get("/api/view-all-saved-passwords/", headers=ann.auth)
    assert listed.json is not None
    shown = ("id", "name_pages", "url", "password_saved")
    assert [
        {name: one[name] for name in shown} for one in json.loads(files["saved_passwords.json"])
    ] == [{name: one[name] for name in shown} for one in listed.json["passwords"]]


def wire(moment: Any) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def test_the_account_file_says_what_the_row_says_and_no_secret(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    deactivate(services_of(app), ann.id)
    account = account_of(app, ann)

    files = opened(client.get(url(ann), headers=recovery(app, ann)))

    assert json.loads(files["account.json"]) == {
        "id": ann.id,
        "public_id": str(ann.public_id),
        "username": "ann",
        "email": "ann@example.org",
        "first_name": "Ann",
        "last_name": "",
        "number_phone": "+1 (2) 3",
        "is_staff": False,
        "avatar_key": ann.avatar,
        "joined_at": wire(account.joined_at),
        "deactivated_at": wire(account.deactivated_at),
        "purge_at": wire(account.purge_at),
        "deactivated_by": "owner",
        "previous_email": None,
        "email_changed_at": None,
        "password_changed_at": None,
        "pending_email": None,
        "pending_email_at": None,
    }
    assert account.password_hash.encode() not in b"".join(files.values())


def test_the_addresses_that_an_account_has_left_are_in_it_and_nobody_elses(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    services, moved_at = services_of(app), now(services_of(app))
    change_address(services, ann.id, "new@example.org", clock=at(moved_at))
    change_address(services, bob.id, "bobs@example.org", clock=at(moved_at))

    files = opened(client.get(url(ann), headers=ann.auth))

    former = json.loads(files["former_addresses.json"])
    assert former[-1]["email"] == ann.email
    assert former[-1]["left_at"] == wire(moved_at)
    assert former[-1]["held_since"] <= former[-1]["left_at"]
    assert bob.email.encode() not in b"".join(files.values())


@pytest.mark.parametrize(("age", "shown"), [(0, True), (71, True), (72, False)])
def test_an_address_that_waits_is_in_it_while_it_is_open(
    app: APIFlask, client: FlaskClient, ann: Person, age: int, shown: bool
) -> None:
    asked_at = now(services_of(app)) - timedelta(hours=age)
    ask_address(services_of(app), ann.id, "new@example.org", clock=at(asked_at))

    files = opened(client.get(url(ann), headers=ann.auth))

    account = json.loads(files["account.json"])
    wanted = ("new@example.org", wire(asked_at)) if shown else (None, None)
    assert (account["pending_email"], account["pending_email_at"]) == wanted
    assert account["email"] == ann.email
    assert "pending_epoch" not in account
    profile = client.get("/api/profile/", headers=ann.auth).json
    assert profile is not None
    assert profile["pending_email"] == wanted[0]
    assert wanted[0] is None or b"new@example.org" in files["account.json"]


def test_the_activity_names_nobody_else_and_shows_no_hold(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person, sue: Person
) -> None:
    client.delete(f"/api/profile/{ann.id}/delete/", headers=bystander.auth)
    client.delete(f"/api/profile/{ann.id}/delete/", headers=sue.auth)
    held = client.post(
        f"/api/profile/{ann.id}/holds/", headers=sue.auth, json={"reason": "a court case"}
    )
    noted = client.patch(
        f"/api/profile/{ann.id}/deletion/",
        headers={**sue.auth, "If-Match": "*"},
        json={"reason": "asked on the phone"},
    )
    client.post("/api/sign-in/", json={"email": ann.email, "password": "wrong"})

    files = opened(client.get(url(ann), headers=recovery(app, ann)))

    assert (held.status_code, noted.status_code) == (201, 200)
    activity = json.loads(files["activity.json"])
    assert [(one["action"], one["by"]) for one in activity] == [
        ("account.created", "you"),
        ("avatar.replaced", "you"),
        ("access.denied", "another account"),
        ("account.deactivated", "staff"),
        ("deletion.reason_changed", "staff"),
        ("sign_in.failed", "anybody"),
        ("account.exported", "you"),
    ]
    assert all(set(one) == {"at", "action", "by"} for one in activity)
    everything_written = b"".join(files.values())
    for hidden in (b"a court case", b"asked on the phone", b"hold.placed"):
        assert hidden not in everything_written
    for other in (bystander, sue):
        assert str(other.public_id).encode() not in everything_written
        assert other.email.encode() not in everything_written


def test_an_archive_without_passwords_or_picture_is_whole_too(
    shared_app: APIFlask, shared_client: FlaskClient
) -> None:
    account = make_account(services_of(shared_app), new_name("bare"))
    token = access_token(services_of(shared_app), account)

    files = opened(shared_client.get(url(account), headers=bearer(token)))

    assert list(files) == [name for name in FILES if name != "avatar.webp"]
    assert table(files) == [["name", "url", "username", "password", "note"]]
    assert json.loads(files["saved_passwords.json"]) == []
    assert b"cannot be found" not in files["README.txt"]


def test_the_readme_warns_and_explains(shared_client: FlaskClient, eve: Person) -> None:
    files = opened(shared_client.get(url(eve), headers=eve.auth))

    readme = " ".join(files["README.txt"].decode().split())
    assert "KEEP THIS SAFE" in readme
    assert "Do not open saved_passwords.csv in Excel or another spreadsheet." in readme
    for name in FILES[1:]:
        assert name in readme
    for reason in ("password_hash of your account", "vault_keys:", "legal_holds:"):
        assert reason in readme


def test_a_picture_whose_file_is_gone_is_said_to_be_missing(
    shared_app: APIFlask, shared_client: FlaskClient, eve: Person
) -> None:
    services_of(shared_app).avatars.delete_many([eve.avatar])

    files = opened(shared_client.get(url(eve), headers=eve.auth))

    assert "avatar.webp" not in files
    readme = " ".join(files["README.txt"].decode().split())
    assert "Your picture is missing in it: its file cannot be found." in readme


# Who may


def test_a_token_that_is_not_fresh_needs_the_password(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    headers, since = unfresh(app, ann), mark(app)
    before = everything(services_of(app))

    unconfirmed = [
        client.get(url(ann), headers=headers),
        client.get(url(ann), headers=headers, json={"password": 5}),
        client.get(f"{url(ann)}?password={PASSWORD}", headers=headers),
        client.post(url(ann), headers=headers),
        client.post(url(ann), headers=headers, json={}),
    ]
    assert trail(app, since) == []
    wrong = [
        client.post(url(ann), headers=headers, json={"password": "wrong"}),
        client.get(url(ann), headers=headers, json={"password": "wrong"}),
    ]
    assert everything(services_of(app)) == before

    for response in unconfirmed:
        assert answer(response) == (401, CONFIRM)
        assert response.headers["WWW-Authenticate"] == (
            'Bearer error="insufficient_user_authentication", max_age=86400'
        )
    assert [answer(response) for response in wrong] == [(403, WRONG_PASSWORD)] * 2
    failed = ("confirmation.failed", ann.public_id, None, "anybody")
    assert trail(app, since) == [failed, failed]
    by_post = client.post(url(ann), headers=headers, json={"password": PASSWORD})
    by_get = client.get(url(ann), headers=headers, json={"password": PASSWORD})
    assert list(opened(by_post)) == list(opened(by_get)) == FILES
    exported = ("account.exported", ann.public_id, ann.public_id, "owner")
    assert trail(app, since)[2:] == [exported, exported]


def test_a_fresh_token_grows_stale(new_app: NewApp, app: APIFlask, ann: Person) -> None:
    client = new_app(FRESH_TOKEN_MINUTES="15").test_client()
    account = account_of(app, ann)
    ages = [timedelta(minutes=16), timedelta(minutes=5)]
    old, young = (bearer(access_token(services_of(app), account, age=age)) for age in ages)

    stale = client.get(url(ann), headers=old)
    fresh = client.get(url(ann), headers=young)

    assert answer(stale) == (401, CONFIRM)
    assert stale.headers["WWW-Authenticate"].endswith(", max_age=900")
    assert list(opened(fresh)) == FILES


def test_a_password_of_another_shape_is_refused(
    shared_app: APIFlask, shared_client: FlaskClient, eve: Person
) -> None:
    headers, before = unfresh(shared_app, eve), mark(shared_app)
    bodies: list[tuple[object, dict[str, object]]] = [
        ({"password": 5}, {"password": ["Send text."]}),
        ({"password": None}, {"password": ["This field may not be null."]}),
        ({"password": ""}, {"password": ["This field may not be blank."]}),
        ([], {"error": "Send a JSON object.", "code": "bad_request"}),
    ]

    answers = [shared_client.post(url(eve), headers=headers, json=body) for body, _ in bodies]

    found = [(response.status_code, response.json) for response in answers]
    assert found == [(400, wanted) for _, wanted in bodies]
    assert trail(shared_app, before) == []


def test_nobody_but_the_owner_takes_an_account_along(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person, sue: Person
) -> None:
    cat = make_person(services_of(app), "cat")
    deactivate(services_of(app), cat.id)
    password, before, since = {"password": PASSWORD}, everything(services_of(app)), mark(app)

    anonymous = [client.get(url(ann)), client.post(url(ann), json=password)]
    others = [
        client.get(url(ann), headers=sue.auth),
        client.post(url(ann), headers=sue.auth, json=password),
        client.get(url(cat), headers=sue.auth),
        client.get(url(ann), headers=bystander.auth),
        client.post(url(ann), headers=bystander.auth, json=password),
    ]
    unseen = [
        client.get(url(cat), headers=bystander.auth),
        client.get(url(ann), headers=recovery(app, cat)),
        client.post(url(ann), headers=mailed(app, cat), json=password),
        client.get("/api/profile/4711/export/", headers=ann.auth),
        client.get("/api/profile/4711/export/", headers=sue.auth),
        client.get(f"/api/profile/{2**63}/export/", headers=ann.auth),
    ]

    assert [answer(response) for response in anonymous] == [(401, NO_TOKEN)] * 2
    assert [answer(response) for response in others] == [(403, NOT_AUTHORIZED)] * len(others)
    assert [answer(response) for response in unseen] == [(404, NOT_FOUND)] * len(unseen)
    denied = [
        (one.subject, one.actor, one.details) for one in events(services_of(app), "access.denied")
    ]
    by_sue, by_bob = (sue.public_id, {}), (bystander.public_id, {})
    assert denied == [
        (ann.public_id, *by_sue),
        (ann.public_id, *by_sue),
        (cat.public_id, *by_sue),
        (ann.public_id, *by_bob),
        (ann.public_id, *by_bob),
    ]
    assert len(trail(app, since)) == len(denied)
    assert everything(services_of(app)) == before


def test_staff_take_along_what_is_their_own(client: FlaskClient, sue: Person) -> None:
    files = opened(client.get(url(sue), headers=sue.auth))

    assert json.loads(files["account.json"])["is_staff"] is True


def test_in_the_grace_period_the_password_is_needed_in_one_way_or_another(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    deactivate(services_of(app), ann.id)
    by_mail, since, before = mailed(app, ann), mark(app), everything(services_of(app))
    account = account_of(app, ann)
    ours, moment = services_of(app).tokens, now(services_of(app))
    dead = [
        ann.token,
        ours.access(account, now=moment, fresh=True),
        ours.refresh(account, now=moment),
        ours.password_reset(account, now=moment),
        recovery_token(services_of(app), account, age=timedelta(minutes=15, seconds=61)),
        "null",
    ]

    refused = [
        client.post(url(ann), headers=bearer(token), json={"password": PASSWORD}) for token in dead
    ]
    refused += [client.get(url(ann), headers=bearer(token)) for token in dead]
    unconfirmed = [
        client.get(url(ann), headers=by_mail),
        client.post(url(ann), headers=by_mail, json={}),
    ]
    assert trail(app, since) == []
    wrong = client.post(url(ann), headers=by_mail, json={"password": "wrong"})
    assert everything(services_of(app)) == before

    assert [answer(response) for response in refused] == [(401, NOT_VALID)] * len(refused)
    assert [answer(response) for response in unconfirmed] == [(401, CONFIRM)] * 2
    challenge = 'Bearer error="insufficient_user_authentication"'
    assert {response.headers["WWW-Authenticate"] for response in unconfirmed} == {challenge}
    assert answer(wrong) == (403, WRONG_PASSWORD)
    assert trail(app, since) == [("confirmation.failed", ann.public_id, None, "anybody")]
    taken = [
        client.get(url(ann), headers=recovery(app, ann)),
        client.post(url(ann), headers=recovery(app, ann)),
        client.post(url(ann), headers=by_mail, json={"password": PASSWORD}),
        client.get(url(ann), headers=by_mail, json={"password": PASSWORD}),
    ]
    assert [list(opened(response)) for response in taken] == [FILES] * 4
    exported = ("account.exported", ann.public_id, ann.public_id, "owner")
    assert trail(app, since)[1:] == [exported] * 4
    assert not account_of(app, ann).is_active


def test_an_account_that_is_gone_is_not_exported(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    deactivate(services_of(app), ann.id)
    tokens = [ann.auth, recovery(app, ann), mailed(app, ann)]
    purge(app, ann)

    answers = [
        client.post(url(ann), headers=headers, json={"password": PASSWORD}) for headers in tokens
    ]

    assert [answer(response) for response in answers] == [(401, NOT_VALID)] * 3
    assert events(services_of(app), "account.exported") == []


def purge(app: APIFlask, person: Person) -> None:
    run_sql(
        services_of(app),
        "UPDATE accounts SET purge_at = deactivated_at WHERE id = :id",
        id=person.id,
    )
    witness(services_of(app), person.id)
    assert services_of(app).sweep(only=[person.id]).purged == 1


# Byte for byte

NASTY = [
    '"',
    '""',
    '","',
    ",",
    "\n",
    "\r\n",
    "\r",
    "\n\r",
    "=1+1",
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t",
    "\tx\t",
    " both ends ",
    "\u00a0",
    "\ufeffmark",
    "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e",
    "\x01\x1a\x1b\x7f",
    "\\",
    '\\"',
    "'",
    "\U0001f511\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "e\u0301 \u00e9 \ufb01",
    "\u202eabc",
    "\uffff\U0010ffff",
    "null",
    "NaN",
    "0x1F",
    "1e5",
    "007",
    '"' * 4096,
    "\U0001f511" * 4096,
    "\r\n" * 2048,
]


def nasty_texts(count: int) -> list[str]:
    """All of the list, then mixtures of it, the same in every run."""
    chance = random.Random(7)
    short = [text for text in NASTY if len(text) < 100]
    mixtures = ("".join(chance.choices(short, k=chance.randint(2, 12))) for _ in range(count))
    return [*NASTY, *mixtures][:count]


def test_a_thousand_nasty_passwords_come_out_as_they_went_in(
    shared_app: APIFlask, shared_client: FlaskClient
) -> None:
    account = make_account(services_of(shared_app), new_name("nasty"))
    texts = nasty_texts(1000)
    save(shared_app, account, (Entry(text[:255], text[::-1][:2048], text) for text in texts))

    response = shared_client.get(
        url(account), headers=bearer(access_token(services_of(shared_app), account))
    )

    files = opened(response)
    header, *lines = table(files)
    wanted = [(text[:255], text[::-1][:2048], text) for text in texts]
    assert [(name, place, password) for name, place, _, password, _ in lines] == wanted
    assert {(username, note) for _, _, username, _, note in lines} == {("", "")}
    assert header == ["name", "url", "username", "password", "note"]
    entries = json.loads(files["saved_passwords.json"].decode())
    found = [(one["name_pages"], one["url"], one["password_saved"]) for one in entries]
    assert found == wanted
    assert not files["saved_passwords.csv"].startswith(b"\xef\xbb\xbf")
    assert files["saved_passwords.csv"].endswith(b"\r\n")


# Piece by piece


def random_entries(count: int) -> Iterator[Entry]:
    """Entries that do not compress well, the same in every run."""
    chance = random.Random(11)
    for number in range(count):
        yield Entry(f"site {number}", "https://example.org", chance.randbytes(400).hex())


def test_a_big_archive_is_streamed_in_memory_that_does_not_grow_with_it(
    shared_app: APIFlask, shared_client: FlaskClient, eve: Person, tmp_path: Path
) -> None:
    account = make_account(services_of(shared_app), new_name("big"))
    save(shared_app, account, random_entries(2500))
    headers = bearer(access_token(services_of(shared_app), account))
    # Whatever is made once is made before memory is looked at.
    opened(shared_client.get(url(eve), headers=eve.auth))
    gc.collect()

    tracemalloc.start()
    try:
        response = shared_client.get(url(account), headers=headers)
        with (tmp_path / "archive.zip").open("wb") as file:
            sizes = [file.write(piece) for piece in response.iter_encoded()]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert response.is_streamed
    assert sum(sizes) > 2 * 1024 * 1024
    assert len(sizes) > 25
    assert max(sizes) < 256 * 1024
    files = unpacked((tmp_path / "archive.zip").read_bytes())
    assert peak < sum(len(file) for file in files.values())
    wanted = [entry.password_saved for entry in random_entries(2500)]
    assert [line[3] for line in table(files)[1:]] == wanted
    entries = json.loads(files["saved_passwords.json"])
    assert [one["password_saved"] for one in entries] == wanted


Change = Callable[[APIFlask, Person], None]


def deactivate_now(app: APIFlask, person: Person) -> None:
    deactivate(services_of(app), person.id)


def purge_now(app: APIFlask, person: Person) -> None:
    deactivate(services_of(app), person.id)
    purge(app, person)


def change_password(app: APIFlask, person: Person) -> None:
    response = app.test_client().post(
        f"/api/profile/{person.id}/password/",
        headers=person.auth,
        json={"password": PASSWORD, "new_password": "another horse, another battery"},
    )
    assert response.status_code == 200


CHANGES: list[Change] = [deactivate_now, purge_now, change_password]


def read_until(pieces: Iterator[bytes], wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        data += next(pieces)
    return data


@pytest.mark.parametrize("change", CHANGES)
def test_a_stream_breaks_off_when_the_account_is_no_longer_its_readers(
    app: APIFlask, client: FlaskClient, bystander: Person, change: Change
) -> None:
    for name, place in (("ann", b"README.txt"), ("amy", b"saved_passwords.csv")):
        person = make_person(services_of(app), name)
        save(app, person, random_entries(250))
        response = client.get(url(person), headers=person.auth)
        pieces = iter(response.iter_encoded())
        data = [read_until(pieces, place)]

        change(app, person)
        with pytest.raises(ExportBroken):
            data.extend(pieces)
        response.close()

        assert response.status_code == 200
        assert not is_archive(b"".join(data))
    # Nothing that is left of the archives complains when it is collected.
    gc.collect()


def test_a_stream_in_the_grace_period_breaks_off_when_the_account_is_given_back(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    deactivate(services_of(app), ann.id)
    response = client.get(url(ann), headers=recovery(app, ann))
    pieces = iter(response.iter_encoded())
    data = [read_until(pieces, b"README.txt")]

    back = app.test_client().post(
        "/api/profile/reactivate/", json={"email": ann.email, "password": PASSWORD}
    )
    with pytest.raises(ExportBroken):
        data.extend(pieces)
    response.close()

    assert back.status_code == 200
    assert not is_archive(b"".join(data))


def test_a_client_that_stops_reading_keeps_nobody_waiting(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    save(app, ann, random_entries(250))
    response = client.get(url(ann), headers=ann.auth)
    pieces = iter(response.iter_encoded())
    data = read_until(pieces, b"saved_passwords.csv")

    while_it_waits = app.test_client().patch(
        f"/api/profile/{ann.id}/update/", headers=ann.auth, json={"first_name": "A"}
    )
    response.close()
    gc.collect()

    assert while_it_waits.status_code == 200
    assert not is_archive(data)
    deactivate(services_of(app), ann.id)
    purge(app, ann)
    assert read_account(services_of(app), ann.id) is None


def test_what_is_written_meanwhile_does_not_break_the_stream(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    response = client.get(url(ann), headers=ann.auth)
    pieces = iter(response.iter_encoded())
    data = [read_until(pieces, b"README.txt")]

    saved = app.test_client().post(
        "/api/save-passwords/", headers=ann.auth, json={"password_saved": "later"}
    )
    data.extend(pieces)

    assert saved.status_code == 201
    assert table(unpacked(b"".join(data)))[-1][3] == "later"


# How often


def test_an_account_is_exported_ten_times_an_hour(
    new_app: NewApp, app: APIFlask, ann: Person, bob: Person
) -> None:
    client = new_app(RATE_LIMITS="on").test_client()
    headers = unfresh(app, ann)
    wrong = [client.post(url(ann), headers=headers, json={"password": "wrong"}) for _ in range(9)]

    taken = [client.get(url(ann), headers=ann.auth) for _ in range(10)]
    throttled = client.get(url(ann), headers=ann.auth)
    other = client.get(url(bob), headers=bob.auth)

    assert [answer(response) for response in wrong] == [(403, WRONG_PASSWORD)] * 9
    assert [list(opened(response)) for response in taken] == [FILES] * 10
    assert throttled.status_code == 429
    seconds = int(throttled.headers["Retry-After"])
    assert 0 < seconds <= 3600
    assert throttled.json == {
        "error": f"Too many requests of this kind. Try again in {in_words(seconds)}.",
        "code": "throttled",
    }
    assert list(opened(other)) == FILES
    exported = [one.subject for one in events(services_of(app), "account.exported")]
    assert exported == [*[ann.public_id] * 10, bob.public_id]


def test_an_address_exports_thirty_times_an_hour_whoever_asks(
    new_app: NewApp, app: APIFlask, ann: Person, bob: Person
) -> None:
    client = new_app(RATE_LIMITS="on").test_client()
    people = [ann, bob, *(make_person(services_of(app), name) for name in ("cid", "dan"))]
    for person in people[:3]:
        for _ in range(10):
            assert client.get(url(person), headers=person.auth).status_code == 200

    here = client.get(url(people[3]), headers=people[3].auth)
    elsewhere = client.get(
        url(people[3]), headers=people[3].auth, environ_overrides={"REMOTE_ADDR": "192.0.2.9"}
    )

    assert (here.status_code, elsewhere.status_code) == (429, 200)
    assert list(opened(elsewhere)) == FILES


def test_wrong_passwords_are_throttled_as_at_sign_in(
    new_app: NewApp, app: APIFlask, ann: Person, bystander: Person
) -> None:
    client = new_app(RATE_LIMITS="on").test_client()
    headers = unfresh(app, ann)
    statuses = [
        client.post(url(ann), headers=headers, json={"password": "wrong"}).status_code
        for _ in range(10)
    ]

    throttled = client.post(url(ann), headers=headers, json={"password": PASSWORD})
    sign_in = client.post("/api/sign-in/", json={"email": ann.email, "password": PASSWORD})
    fresh = client.get(url(ann), headers=ann.auth)

    assert statuses == [403] * 10
    assert (throttled.status_code, sign_in.status_code) == (429, 429)
    assert 0 < int(throttled.headers["Retry-After"]) <= 15 * 60
    assert list(opened(fresh)) == FILES


# How errors look


def test_errors_are_problem_documents_for_who_asks_for_them(
    shared_app: APIFlask, shared_client: FlaskClient, eve: Person
) -> None:
    headers = {**unfresh(shared_app, eve), "Accept": "application/problem+json"}

    response = shared_client.get(url(eve), headers=headers)

    assert response.status_code == 401
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Request-ID"]
    assert response.json == {
        "type": "urn:problem-type:accountsvc:confirmation_required",
        "title": "Confirmation required",
        "status": 401,
        "detail": "Password confirmation required.",
        "code": "confirmation_required",
    }
