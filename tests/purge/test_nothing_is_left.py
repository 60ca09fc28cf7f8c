"""After a whole life and its purge, nothing personal is found anywhere but in the mails that were sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc.db.schema import upgrade
from tests.support.addresses import confirm_address
from tests.support.factories import (
    dispose,
    drop_mails,
    insert_accounts,
    make_app,
    make_person,
    numbered,
    png,
    run_sql,
    services_of,
    witness,
)
from tests.support.moments import now
from tests.support.servers import PostgresServer
from tests.support.state import belongings

# Words that stand in no code, no key and no hash.
USERNAME, FIRST, LAST, PHONE = "Wilhelminka", "Adelgundis", "Quarringtonov", "+49 30 7788 9911"
EMAIL, NEW_EMAIL = "wilhelminka@quarrington.example", "adelgundis@quarrington.example"
PENDING_EMAIL = "ottokar@elsewhere.example"
PASSWORD, NEW_PASSWORD, WRONG = "xylograph-turnip-91", "zugzwang-marmot-37", "my old passphrase"
SECRET, SITE = "hunter2-at-the-bank", "bank-of-quarrington.example"
PERSONAL = [
    *(USERNAME, FIRST, LAST, PHONE, EMAIL, NEW_EMAIL, PASSWORD, NEW_PASSWORD, WRONG, SECRET, SITE),
    *(USERNAME.lower(), "quarrington", PENDING_EMAIL),
]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of its own: what other tests leave in the shared one is not this test's matter."""
    with PostgresServer() as server:
        yield server


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_nothing_personal_is_found_after_a_whole_life(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    engine: str,
) -> None:
    # given
    if engine == "sqlite":
        url: str = request.getfixturevalue("sqlite_url")
    else:
        url = request.getfixturevalue("server").create_database("life")
        upgrade(url)
    app = make_app(url, tmp_path)
    bob = make_person(services_of(app), "bob")
    before = belongings(services_of(app), bob)

    # when
    live(app)
    purge(app)

    # then
    out, err = capfd.readouterr()
    logs = out + err
    assert '"method": "DELETE"' in logs, "the logs of the requests are not here"
    if engine == "sqlite":
        left = {path.name: path.read_bytes() for path in tmp_path.glob("accountsvc.db*")}
        assert left
    else:
        left = {"dump": request.getfixturevalue("server").dump("life")}
    left["logs"] = logs.encode()
    instance = tmp_path / "instance"
    ledger = [path for path in (instance / "ledger").rglob("*") if path.is_file()]
    assert len(ledger) == 1
    for path in instance.rglob("*"):
        if path.is_file() and "mail" not in path.relative_to(instance).parts:
            left[str(path)] = path.read_bytes()
    found = [
        (where, word)
        for where, content in left.items()
        for word in PERSONAL
        if word.lower().encode() in content.lower()
    ]
    assert found == []
    # The search would have found somebody who is still there.
    assert any(b"bob@example.org" in content for content in left.values())
    # The mails were sent, so that addresses were somewhere.
    mails = b"".join(path.read_bytes() for path in (instance / "mail").rglob("*.eml"))
    assert EMAIL.encode() in mails
    assert NEW_EMAIL.encode() in mails
    assert PENDING_EMAIL.encode() in mails
    after = belongings(services_of(app), bob)
    assert (after["passwords"], after["avatar"]) == (before["passwords"], before["avatar"])
    dispose(app)


def live(app: APIFlask) -> None:
    """Do by HTTP whatever a person can do, wrong tries too, up to waiving the rest of the grace period."""
    client, made = app.test_client(), services_of(app)
    body = {"username": USERNAME, "email": EMAIL, "password": PASSWORD}
    body |= {"first_name": FIRST, "last_name": LAST, "number_phone": PHONE}
    signed_up = client.post("/api/sign-up/", json=body)
    assert signed_up.status_code == 201
    assert signed_up.json is not None
    user_id = signed_up.json["user"]["id"]
    auth = {"Authorization": f"Bearer {signed_up.json['access']}"}
    assert sign_in(client, EMAIL, WRONG) == 401
    assert client.post("/api/sign-up/", json=body).status_code == 400
    entry = {
        "name_pages": SITE,
        "url": f"https://{SITE}/?user={USERNAME}",
        "password_saved": SECRET,
    }
    assert client.post("/api/save-passwords/", json=entry, headers=auth).status_code == 201
    update = f"/api/profile/{user_id}/update/"
    form = {"avatar": (BytesIO(png()), f"{USERNAME}.png")}
    assert client.put(update, data=form, headers=auth).status_code == 200
    assert client.put(update, json={"email": NEW_EMAIL}, headers=auth).status_code == 200
    confirmed = confirm_address(made, app.test_client(), user_id, PASSWORD)
    assert confirmed.status_code == 200
    assert client.post("/api/password-reset/", json={"email": NEW_EMAIL}).status_code == 202
    change = {"password": PASSWORD, "new_password": NEW_PASSWORD}
    changed = client.post(f"/api/profile/{user_id}/password/", json=change, headers=auth)
    assert changed.status_code == 200
    assert changed.json is not None
    auth = {"Authorization": f"Bearer {changed.json['access']}"}
    assert client.put(update, json={"email": PENDING_EMAIL}, headers=auth).status_code == 200
    exported = client.get(f"/api/profile/{user_id}/export/", headers=auth)
    assert exported.data.startswith(b"PK")
    made.deliver(seconds=60)
    # Whoever has just changed the address or the password cannot waive the rest.
    run_sql(
        services_of(app), "UPDATE accounts SET password_changed_at = NULL, email_changed_at = NULL"
    )
    deleted = client.delete(
        f"/api/profile/{user_id}/delete/", json={"password": WRONG}, headers=auth
    )
    assert deleted.status_code == 204
    made.deliver(seconds=60)
    assert sign_in(client, NEW_EMAIL, WRONG) == 401
    assert sign_in(client, NEW_EMAIL, NEW_PASSWORD) == 403
    token = mailed_token(app.instance_path)
    assert client.get(f"/recover/{token}").status_code == 303
    assert NEW_PASSWORD not in client.get("/recover/").text
    purge_at = client.get(
        f"/api/profile/{user_id}/deletion/", headers={"Authorization": f"Bearer {token}"}
    )
    assert purge_at.status_code == 200


def sign_in(client: FlaskClient, email: str, password: str) -> int:
    return client.post("/api/sign-in/", json={"email": email, "password": password}).status_code


def mailed_token(instance_path: str) -> str:
    """Find the link in the newest mail that has one."""
    mails = sorted(
        Path(instance_path, "mail").rglob("*.eml"), key=lambda path: path.stat().st_mtime
    )
    found = [one for path in mails for one in re.findall(r"/recover/([\w.~-]+)", path.read_text())]
    token: str = found[-1]
    return token


def purge(app: APIFlask) -> None:
    """Let the grace period end, and do all that the worker does then."""
    services = services_of(app)
    run_sql(
        services,
        "UPDATE accounts SET deactivated_at = :then, purge_at = :then"
        " WHERE deactivated_at IS NOT NULL",
        then=then(app, timedelta(hours=1)),
    )
    witness(services)
    assert services.sweep().purged == 1
    run_sql(services, "UPDATE outbox SET deliver_after = created_at")
    services.deliver(seconds=60)
    assert services.scrub(at_most_every=None)


def then(app: APIFlask, ago: timedelta) -> object:
    moment = now(services_of(app)) - ago
    if services_of(app).settings.is_sqlite:
        return f"{moment:%Y-%m-%d %H:%M:%S}.000000"
    return moment


def test_the_file_of_sqlite_holds_no_byte_of_those_who_are_purged(
    sqlite_url: str, tmp_path: Path
) -> None:
    # given: three thousand accounts, every second of them due
    app = make_app(sqlite_url, tmp_path, PURGE_BRAKE="off")
    made = services_of(app)
    moment = now(services_of(app)) - timedelta(hours=1)
    insert_accounts(made, numbered("stays", 1500), passwords=1)
    insert_accounts(made, numbered("vanishes", 1500), purge_at=moment, passwords=1)

    # when
    assert made.sweep().purged == 1500
    # Mails hold the addresses until they are sent; that they are is another test's matter.
    drop_mails(made, now(made))
    assert made.scrub(at_most_every=None)

    # then
    left = b"".join(path.read_bytes() for path in tmp_path.glob("accountsvc.db*"))
    assert b"vanishes" not in left
    assert len(set(re.findall(rb"sealed for stays\d+", left))) == 1500
    assert len(set(re.findall(rb"stays\d+@example\.org", left))) == 1500
    dispose(app)
