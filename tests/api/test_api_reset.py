"""CONTRACT section 4: a forgotten password is reset by mail, in the grace period too."""

from __future__ import annotations

import email
import email.policy
import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc.db.models import Account
from accountsvc.db.rows import find
from tests.api.answers import NOT_VALID
from tests.support.addresses import confirm_address
from tests.support.factories import (
    PASSWORD,
    Person,
    access_token,
    bearer,
    deactivate,
    make_account,
    services_of,
    witness,
)
from tests.support.moments import now
from tests.support.smtp import text_of
from tests.support.state import ATTEMPTS, belongings, effects, events, everything, read_account

NEW_PASSWORD = "nine purple otters sing"
ASK, CONFIRM = "/api/password-reset/", "/api/password-reset/confirm/"
ON_ITS_WAY = b'{"message": "If this email belongs to an account, a link is on its way to it."}'
CHANGED = b'{"message": "The password was changed. Sign in with the new one."}'
HOUR = timedelta(hours=1)


def account_of(app: APIFlask, person: Person) -> Account:
    account = read_account(services_of(app), person.id)
    assert account is not None
    return account


def reset_token(app: APIFlask, person: Person, *, age: timedelta = timedelta()) -> str:
    made_at = now(services_of(app)) - age
    return services_of(app).tokens.password_reset(account_of(app, person), now=made_at)


def confirm(client: FlaskClient, token: str, password: str = NEW_PASSWORD) -> tuple[int, bytes]:
    response = client.post(CONFIRM, json={"token": token, "new_password": password})
    assert response.headers["Cache-Control"] == "no-store"
    return response.status_code, response.data


def sign_in(client: FlaskClient, person: Person, password: str) -> tuple[int, Any]:
    body = {"email": person.email, "password": password}
    response = client.post("/api/sign-in/", json=body)
    return response.status_code, response.json


def write(app: APIFlask, account_id: int, **values: Any) -> None:
    """Set columns of an account as if it had come so."""
    with services_of(app).writing() as session:
        account = find(session, account_id)
        assert account is not None
        for name, value in values.items():
            setattr(account, name, value)


def end_grace(app: APIFlask, account_id: int) -> None:
    purge_at = now(services_of(app)).replace(microsecond=0)
    write(app, account_id, deactivated_at=purge_at - timedelta(days=14), purge_at=purge_at)
    witness(services_of(app), account_id)


def mails(app: APIFlask) -> dict[str, list[str]]:
    """Deliver what is owed; return the texts of all mails so far, by recipient."""
    services_of(app).deliver(seconds=10)
    found: dict[str, list[str]] = {}
    for path in sorted((services_of(app).settings.instance_path / "mail").glob("*.eml")):
        message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        found.setdefault(str(message["To"]), []).append(f"{message['Subject']}\n{text_of(message)}")
    return found


# Asking for the mail


def test_the_answer_is_the_same_for_every_e_mail_and_only_a_known_one_is_written_to(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    away, due = make_account(services_of(app), "cid"), make_account(services_of(app), "dan")
    for account in (away, due):
        deactivate(services_of(app), account.id)
    end_grace(app, due.id)
    known = ["ann@example.org", "BOB@Example.ORG", " cid@example.org "]
    unknown = ["nobody@example.org", "dan@example.org", "no address", "x" * 300, "ann"]

    answers = [client.post(ASK, json={"email": one}) for one in [*known, *unknown]]

    for response in answers:
        assert (response.status_code, response.data) == (202, ON_ITS_WAY)
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
    assert len({frozenset(got.headers.keys()) for got in answers}) == 1
    # Everybody is owed the same, and only who has an account that is not due gets a mail.
    owed = effects(services_of(app), "mail.password_reset")
    assert len(owed) == len(known) + len(unknown)
    told = [ann, bob, away]
    assert set(mails(app)) >= {account.email for account in told}
    assert len(links_mailed(app)) == len(known)
    asked = events(services_of(app), "account.password_reset_requested")
    assert [one.subject for one in asked] == [account.public_id for account in told]
    assert [(one.actor, one.details) for one in asked] == [(None, {})] * 3


def links_mailed(app: APIFlask) -> list[str]:
    return [text for texts in mails(app).values() for text in texts if "/reset-password/" in text]


def test_nothing_is_kept_of_an_unknown_e_mail(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = everything(services_of(app))

    response = client.post(ASK, json={"email": "nobody@example.org"})
    (decoy,) = effects(services_of(app), "mail.password_reset")
    services_of(app).deliver()

    assert response.status_code == 202
    assert decoy.payload == {"epoch": 0}
    after = everything(services_of(app))
    # When it was mailed is kept for a day under an HMAC, as of a known one.
    assert len(after.pop("mail_paces")) == 1
    assert before.pop("mail_paces") == []
    assert after == before
    assert [events(services_of(app), action) for action in ATTEMPTS] == [[]] * len(ATTEMPTS)


def test_asking_changes_nothing_about_the_account(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = belongings(services_of(app), ann)

    for _ in range(2):
        client.post(ASK, json={"email": ann.email})

    after = belongings(services_of(app), ann)
    assert {**after, "events": before["events"]} == before
    assert client.get("/api/profile/", headers=ann.auth).status_code == 200
    # The second mail replaces the first, which was not sent yet.
    assert len(effects(services_of(app), "mail.password_reset")) == 1


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        (ASK, {}, ["email"]),
        (ASK, {"email": ""}, ["email"]),
        (ASK, {"email": None}, ["email"]),
        (ASK, {"email": 5}, ["email"]),
        (ASK, {"email": ["ann@example.org"]}, ["email"]),
        (ASK, {"email": "a\0@example.org"}, ["email"]),
        (ASK, {"email": "\ud800@example.org"}, ["email"]),
        (CONFIRM, {}, ["new_password", "token"]),
        (CONFIRM, {"token": "", "new_password": NEW_PASSWORD}, ["token"]),
        (CONFIRM, {"token": 5, "new_password": NEW_PASSWORD}, ["token"]),
        (CONFIRM, {"token": "a.b.c", "new_password": None}, ["new_password"]),
        (CONFIRM, {"token": "a.b.c", "new_password": 12345678}, ["new_password"]),
    ],
)
def test_a_missing_or_broken_field_is_named(
    shared_app: APIFlask, path: str, body: dict[str, Any], fields: list[str]
) -> None:
    before = everything(services_of(shared_app))

    response = shared_app.test_client().post(path, json=body)

    assert response.status_code == 400
    assert response.json is not None
    assert sorted(response.json) == fields
    for sentences in response.json.values():
        assert all(one.endswith(".") for one in sentences)
    assert everything(services_of(shared_app)) == before


@pytest.mark.parametrize("state", ["active", "deactivated"])
def test_the_mailed_link_leads_to_a_new_password(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person, state: str
) -> None:
    if state == "deactivated":
        deactivate(services_of(app), ann.id)
    client.post(ASK, json={"email": ann.email.upper()})

    sent = mails(app)

    assert set(sent) == {ann.email}
    (text,) = [one for one in sent[ann.email] if one.startswith("Set a new password\n")]
    links = re.findall(r"http://localhost:8000/reset-password/(\S+)", text)
    assert len(links) == 1
    assert confirm(client, links[0]) == (200, CHANGED)
    assert sign_in(client, ann, NEW_PASSWORD)[0] == (200 if state == "active" else 403)


# Setting the password


def test_a_token_sets_the_password_and_ends_every_session(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    others = belongings(services_of(app), bob)
    account = account_of(app, ann)
    refresh = services_of(app).tokens.refresh(account, now=now(services_of(app)))
    token = reset_token(app, ann)
    not_fresh = access_token(services_of(app), account, fresh=False)

    answer = confirm(client, token)

    assert answer == (200, CHANGED)
    assert sign_in(client, ann, PASSWORD)[0] == 401
    status, signed_in = sign_in(client, ann, NEW_PASSWORD)
    assert status == 200
    for access in (ann.token, not_fresh):
        response = client.get("/api/profile/", headers=bearer(access))
        assert (response.status_code, response.data) == (401, NOT_VALID)
    renewed = client.post("/api/token/refresh/", json={"refresh": refresh})
    assert (renewed.status_code, renewed.data) == (401, NOT_VALID)
    opened = client.get("/api/view-all-saved-passwords/", headers=bearer(signed_in["access"]))
    assert opened.json is not None
    assert [one["password_saved"] for one in opened.json["passwords"]] == [
        "ann 0",
        "ann 1",
        "ann 2",
    ]
    assert belongings(services_of(app), bob) == others


def test_a_reset_is_audited_and_told_without_the_password(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    confirm(client, reset_token(app, ann))

    (event,) = events(services_of(app), "account.password_reset")
    assert (event.subject, event.actor, event.actor_kind) == (ann.public_id, ann.public_id, "owner")
    assert event.details == {}
    assert events(services_of(app), "account.password_changed") == []
    (told,) = effects(services_of(app), "mail.password_changed")
    assert (told.subject, told.payload["to"]) == (ann.public_id, "current")
    (text,) = mails(app)[ann.email]
    assert NEW_PASSWORD not in text


@pytest.mark.parametrize(
    ("age", "told"),
    [
        (HOUR, ["ann@example.org", "new@example.org"]),
        (timedelta(days=13, hours=23), ["ann@example.org", "new@example.org"]),
        (timedelta(days=14), ["new@example.org"]),
    ],
    ids=["an hour ago", "just within the grace period", "before"],
)
def test_every_address_of_the_last_grace_period_is_told(
    app: APIFlask, client: FlaskClient, ann: Person, age: timedelta, told: list[str]
) -> None:
    changed = client.patch(
        f"/api/profile/{ann.id}/update/", headers=ann.auth, json={"email": "new@example.org"}
    )
    confirmed = confirm_address(services_of(app), app.test_client(), ann.id)
    mails(app)
    write(app, ann.id, email_changed_at=now(services_of(app)) - age)
    before = {path.name for path in mail_folder_of(app)}

    answer = confirm(client, reset_token(app, ann))

    assert (changed.status_code, confirmed.status_code, answer) == (200, 200, (200, CHANGED))
    assert len(effects(services_of(app), "mail.password_changed")) == len(told)
    mails(app)
    new = [path for path in mail_folder_of(app) if path.name not in before]
    assert sorted(recipient(path.read_bytes()) for path in new) == told
    assert effects(services_of(app), "mail.password_changed") == []


def mail_folder_of(app: APIFlask) -> list[Any]:
    return list((services_of(app).settings.instance_path / "mail").glob("*.eml"))


def recipient(data: bytes) -> str:
    return str(email.message_from_bytes(data, policy=email.policy.default)["To"])


def test_in_the_grace_period_it_works_and_does_not_reactivate(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    deactivate(services_of(app), ann.id)
    before = account_of(app, ann)

    answer = confirm(client, reset_token(app, ann))

    after = account_of(app, ann)
    assert answer == (200, CHANGED)
    assert after.state(now(services_of(app))) == "deactivated"
    assert (after.deactivated_at, after.purge_at, after.deactivated_by) == (
        before.deactivated_at,
        before.purge_at,
        "owner",
    )
    assert events(services_of(app), "account.reactivated") == []
    assert sign_in(client, ann, PASSWORD) == (401, {"error": "Invalid email or password"})
    status, body = sign_in(client, ann, NEW_PASSWORD)
    assert (status, body["code"]) == (403, "account_deactivated")
    back = client.post("/api/profile/reactivate/", json={"token": body["recovery_token"]})
    assert back.status_code == 200


def test_what_the_staff_deactivated_is_not_given_back_by_a_reset(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    deactivate(services_of(app), ann.id, by="staff")

    answer = confirm(client, reset_token(app, ann))

    assert answer == (200, CHANGED)
    back = client.post(
        "/api/profile/reactivate/", json={"email": ann.email, "password": NEW_PASSWORD}
    )
    assert (back.status_code, (back.json or {})["code"]) == (403, "reactivation_forbidden")


def test_tokens_of_the_grace_period_from_before_a_reset_are_dead(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    """A reset ends everything that was open; a mail that is sent later opens again."""
    account = deactivate(services_of(app), ann.id)
    made = services_of(app).tokens
    recovery, mailed = (
        made.recovery(account, now=now(services_of(app))),
        made.mailed(account, now=now(services_of(app))),
    )
    confirm(client, reset_token(app, ann))
    before = everything(services_of(app))

    for token in (recovery, mailed):
        headers = bearer(token)
        back = client.post("/api/profile/reactivate/", json={"token": token})
        status = client.get(f"/api/profile/{ann.id}/deletion/", headers=headers)

        for response in (back, status):
            assert (response.status_code, response.data) == (401, NOT_VALID)
    assert everything(services_of(app)) == before
    mailed_later = " ".join(mails(app)[ann.email])
    links = re.findall(r"/recover/(\S+)", mailed_later)
    # The mail with the date had not left yet, and the one about the password has a link, too.
    assert len(links) == 2
    later = [client.post("/api/profile/reactivate/", json={"token": link}) for link in links]
    assert [one.status_code for one in later] == [200, 401]


def test_a_token_works_once(app: APIFlask, client: FlaskClient, ann: Person) -> None:
    token, twin = reset_token(app, ann), reset_token(app, ann)
    confirm(client, token)
    before = everything(services_of(app))

    for used in (token, twin):
        assert confirm(client, used, "another long phrase") == (401, NOT_VALID)

    assert everything(services_of(app)) == before
    assert sign_in(client, ann, "another long phrase")[0] == 401
    assert sign_in(client, ann, NEW_PASSWORD)[0] == 200


def test_a_token_lasts_an_hour_and_the_leeway_of_a_minute(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    late = reset_token(app, ann, age=HOUR + timedelta(seconds=61))
    at_the_end = reset_token(app, ann, age=HOUR)
    before = everything(services_of(app))

    assert confirm(client, late) == (401, NOT_VALID)
    assert everything(services_of(app)) == before
    assert confirm(client, at_the_end) == (200, CHANGED)


def test_any_other_token_sets_no_password(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    made, moment = services_of(app).tokens, now(services_of(app))
    cid = make_account(services_of(app), "cid")
    of_due, of_purged = (make_account(services_of(app), name) for name in ("dan", "eve"))
    tokens = {"access": ann.token, "refresh": made.refresh(cid, now=moment)}
    tokens["before deactivation"] = made.password_reset(cid, now=moment)
    cid = deactivate(services_of(app), cid.id)
    tokens["recovery"] = made.recovery(cid, now=moment)
    tokens["mailed"] = made.mailed(cid, now=moment)
    tokens["purged"] = made.password_reset(deactivate(services_of(app), of_purged.id), now=moment)
    end_grace(app, of_purged.id)
    assert services_of(app).sweep().purged == 1
    tokens["due"] = made.password_reset(deactivate(services_of(app), of_due.id), now=moment)
    end_grace(app, of_due.id)
    good = reset_token(app, ann)
    head, body, signature = good.split(".")
    other_body = reset_token(app, bob).split(".")[1]
    tokens["another's claims"] = f"{head}.{other_body}.{signature}"
    tokens["unsigned"] = f"{head}.{body}."
    tokens |= {"null": "null", "no token": "a.b.c", "long": "x" * 5000, "spaced": f" {good}"}
    before = everything(services_of(app))

    answers = {name: confirm(client, token) for name, token in tokens.items()}

    assert answers == dict.fromkeys(tokens, (401, NOT_VALID))
    assert everything(services_of(app)) == before


def test_a_weak_password_is_a_bad_field_and_does_not_use_the_token_up(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    token = reset_token(app, ann)
    before = everything(services_of(app))
    weak = {
        "": "This field may not be blank.",
        "x7$kq!z": "Use at least 8 characters.",
        "password": "This password is too easy to guess. Add more words or characters.",
        "ann@example.org": "This password is too easy to guess. Add more words or characters.",
        "x7$kq!zü" * 17: "Use at most 128 characters.",
    }

    for password, sentence in weak.items():
        response = client.post(CONFIRM, json={"token": token, "new_password": password})

        assert (password, response.status_code) == (password, 400)
        assert response.json == {"new_password": [sentence]}
    assert everything(services_of(app)) == before
    assert confirm(client, token) == (200, CHANGED)


def test_a_reset_lets_no_fresh_thief_purge_at_once(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    """Who has the mailbox can set a password; for a day that is not enough to end the account."""
    deactivate(services_of(app), ann.id)
    confirm(client, reset_token(app, ann))
    mailed = services_of(app).tokens.mailed(account_of(app, ann), now=now(services_of(app)))
    due_at: datetime | None = account_of(app, ann).purge_at

    response = client.post(
        f"/api/profile/{ann.id}/purge/",
        headers=bearer(mailed),
        json={"password": NEW_PASSWORD},
    )

    assert (response.status_code, (response.json or {})["code"]) == (409, "recent_change")
    assert account_of(app, ann).purge_at == due_at
