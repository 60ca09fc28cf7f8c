"""CONTRACT sections 1 and 2: ``DELETE /api/profile/{user_id}/delete/``, row by row, as bytes.

In every test of this file a bystander must keep everything (``bystander``).
"""

from __future__ import annotations

import base64
import json
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from http import HTTPStatus

import jwt
import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.http import http_date

from accountsvc import tokens
from accountsvc.api.http.bodies import SPARE_LIMIT
from accountsvc.db import engine
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
from tests.support.factories import (
    PASSWORD,
    SECRET_KEY,
    Person,
    access_token,
    bearer,
    deactivate,
    make_account,
    run_sql,
    services_of,
    witness,
)
from tests.support.moments import now
from tests.support.state import belongings, effects, events, everything, read_account

LAST_STAFF = (
    b'{"error": "This is the last active staff account. Make another staff account before you '
    b'delete it.", "code": "last_staff"}'
)
UNAVAILABLE = (
    b'{"error": "The service cannot do this at the moment. Try again in a few seconds.", '
    b'"code": "unavailable"}'
)
INTERNAL = b'{"error": "Internal server error"}'


@pytest.fixture(autouse=True)
def bystander(app: APIFlask, bob: Person) -> Iterator[Person]:
    before = belongings(services_of(app), bob)
    yield bob
    assert belongings(services_of(app), bob) == before


def url(account_id: object) -> str:
    return f"/api/profile/{account_id}/delete/"


def stale(app: APIFlask, person: Person, **changes: object) -> dict[str, str]:
    """The header with a good token that is not fresh."""
    account = read_account(services_of(app), person.id)
    assert account is not None
    return bearer(access_token(services_of(app), account, fresh=False))


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# No token


def test_without_a_token_nobody_is_told_anything(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = everything(services_of(app))
    headers: list[dict[str, str]] = [
        {},
        {"Authorization": ""},
        {"Authorization": "Basic YW5uOnNlY3JldA=="},
        {"Authorization": "Token abc"},
        {"Authorization": "null"},
        {"Authorization": "Bearer:abc"},
        {"Authorization": "B\xe9arer abc"},
    ]

    answers = [client.delete(url(ann.id), headers=one) for one in headers]

    for response in answers:
        assert response.status_code == 401
        assert response.data == NO_TOKEN
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
    assert everything(services_of(app)) == before


def test_an_unknown_id_does_not_change_the_answer_without_a_token(client: FlaskClient) -> None:
    response = client.delete(url("9" * 30))

    assert (response.status_code, response.data) == (401, NO_TOKEN)


# A token that is not valid


MALFORMED = [
    "Bearer",
    "Bearer ",
    "Bearer null",
    "bearer undefined",
    "BEARER a.b.c",
    "Bearer a b",
    "Bearer ,",
    "Bearer \xfc.\xfc.\xfc",
    f"Bearer {segment(b'[' * 5000)}.{segment(b'{}')}.x",
    f"Bearer {segment(b'{')}.{segment(b'{}')}.x",
    f"Bearer {segment(b'5')}.{segment(b'{}')}.x",
    "Bearer " + "x" * 8000,
]


def test_a_malformed_token_is_refused(app: APIFlask, client: FlaskClient, ann: Person) -> None:
    before = everything(services_of(app))

    answers = [client.delete(url(ann.id), headers={"Authorization": one}) for one in MALFORMED]

    for response in answers:
        assert response.status_code == 401
        assert response.data == NOT_VALID
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert everything(services_of(app)) == before


def test_two_authorization_headers_are_one_malformed_token(
    client: FlaskClient, ann: Person, bystander: Person
) -> None:
    headers = [
        ("Authorization", f"Bearer {ann.token}"),
        ("Authorization", f"Bearer {bystander.token}"),
    ]

    response = client.delete(url(ann.id), headers=headers)

    assert (response.status_code, response.data) == (401, NOT_VALID)


def test_the_scheme_is_read_in_any_case(client: FlaskClient, ann: Person) -> None:
    response = client.delete(url(ann.id), headers={"Authorization": f"bEaReR  {ann.token} "})

    assert response.status_code == 204


def make_wrong_tokens(app: APIFlask, person: Person) -> dict[str, str]:
    """Tokens that look right and are not."""
    account = read_account(services_of(app), person.id)
    assert account is not None
    ours, moment = services_of(app).tokens, now(services_of(app))
    day, month = timedelta(days=1), timedelta(days=30)
    foreign = tokens.Tokens("x" * 40, access=day, refresh=month)
    claims = jwt.decode(person.token, options={"verify_signature": False})
    unsigned = jwt.encode(claims, None, algorithm="none")
    plain = jwt.encode(claims, SECRET_KEY, algorithm="HS256")
    key = ours.key(tokens.ACCESS)
    account.epoch += 1
    ahead = ours.access(account, now=moment, fresh=True)
    account.epoch -= 1
    return {
        "refresh": ours.refresh(account, now=moment),
        "recovery": ours.recovery(account, now=moment),
        "password reset": ours.password_reset(account, now=moment),
        "expired": ours.access(account, now=moment - day - timedelta(minutes=2), fresh=True),
        "from the future": ours.access(account, now=moment + timedelta(minutes=5), fresh=True),
        "another secret": foreign.access(account, now=moment, fresh=True),
        "the secret itself": plain,
        "unsigned": unsigned,
        "an epoch to come": ahead,
        "another type": jwt.encode({**claims, "type": "refresh"}, key),
        "no type": jwt.encode({k: v for k, v in claims.items() if k != "type"}, key),
        "another audience": jwt.encode({**claims, "aud": "accountsvc:refresh"}, key),
        "no epoch": jwt.encode({k: v for k, v in claims.items() if k != "epoch"}, key),
        "no expiry": jwt.encode({k: v for k, v in claims.items() if k != "exp"}, key),
        "nobody": jwt.encode({**claims, "sub": "0" * 32}, key),
        "an id for a subject": jwt.encode({**claims, "sub": str(person.id)}, key),
    }


def test_a_token_that_only_looks_right_is_refused(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    wrong = make_wrong_tokens(app, ann)
    before = everything(services_of(app))

    answers = {name: client.delete(url(ann.id), headers=bearer(wrong[name])) for name in wrong}

    assert {name: (got.status_code, got.data) for name, got in answers.items()} == dict.fromkeys(
        wrong, (401, NOT_VALID)
    )
    assert everything(services_of(app)) == before


def test_the_token_of_a_purged_account_opens_nothing(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    purge(app, ann)

    answers = [client.delete(url(one.id), headers=ann.auth) for one in (ann, bystander)]

    assert [(got.status_code, got.data) for got in answers] == [(401, NOT_VALID)] * 2


def purge(app: APIFlask, person: Person) -> None:
    deactivate(services_of(app), person.id, grace=timedelta())
    run_sql(
        services_of(app),
        "UPDATE accounts SET purge_at = deactivated_at WHERE id = :id",
        id=person.id,
    )
    witness(services_of(app), person.id)
    assert services_of(app).sweep().purged == 1


# No such account


def test_an_account_that_never_was_is_not_found(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = everything(services_of(app))
    ids = ["0", "4711", str(2**63 - 1), str(2**63), str(2**64 + 1), "9" * 6000]

    answers = [client.delete(url(account_id), headers=ann.auth) for account_id in ids]

    assert [(got.status_code, got.data) for got in answers] == [(404, NOT_FOUND)] * len(ids)
    assert everything(services_of(app)) == before


def test_a_purged_account_is_not_found_by_staff_either(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    purge(app, ann)

    response = client.delete(url(ann.id), headers=sue.auth)

    assert (response.status_code, response.data) == (404, NOT_FOUND)


def test_a_deactivated_account_does_not_exist_for_others(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    deactivate(services_of(app), ann.id)
    before = everything(services_of(app))

    response = client.delete(url(ann.id), headers=bystander.auth)

    assert (response.status_code, response.data) == (404, NOT_FOUND)
    assert everything(services_of(app)) == before


def test_what_is_no_id_is_no_address(client: FlaskClient, ann: Person) -> None:
    texts = ["-1", "1.0", "abc", "undefined", "%D9%A1", "1%0A", ""]

    answers = [client.delete(url(text), headers=ann.auth) for text in texts]

    codes = [(got.status_code, got.json and got.json["code"]) for got in answers]
    assert codes == [(404, "not_found")] * len(texts)


def test_a_missing_or_doubled_slash_is_no_redirect(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = everything(services_of(app))

    for path in (f"/api/profile/{ann.id}/delete", f"/api//profile/{ann.id}/delete/"):
        response = client.delete(path, headers=ann.auth)

        assert response.status_code == 404
        assert "Location" not in response.headers
    assert everything(services_of(app)) == before


# Somebody else's


def test_somebody_elses_active_account_is_forbidden(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    before = everything(services_of(app))

    response = client.delete(url(ann.id), headers=bystander.auth)

    assert response.status_code == 403
    assert response.data == NOT_AUTHORIZED
    assert everything(services_of(app)) == before


def test_a_body_does_not_say_whose_account_it_is(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    response = client.delete(url(ann.id), headers=ann.auth, json=bystander.id)

    assert response.status_code == 204
    assert state(app, ann) == "deactivated"


def state(app: APIFlask, person: Person) -> str:
    account = read_account(services_of(app), person.id)
    assert account is not None
    return account.state(now(services_of(app)))


# Confirmation


def test_a_token_from_a_refresh_needs_the_password(
    new_app: NewApp, app: APIFlask, ann: Person
) -> None:
    client = new_app(FRESH_TOKEN_MINUTES="15").test_client()
    before = everything(services_of(app))

    response = client.delete(url(ann.id), headers=stale(app, ann))

    assert response.status_code == 401
    assert response.data == CONFIRM
    assert (
        response.headers["WWW-Authenticate"]
        == 'Bearer error="insufficient_user_authentication", max_age=900'
    )
    assert everything(services_of(app)) == before


@pytest.mark.parametrize(
    ("minutes", "status"), [(14, HTTPStatus.NO_CONTENT), (16, HTTPStatus.UNAUTHORIZED)]
)
def test_a_fresh_token_is_enough_while_it_is_young(
    new_app: NewApp, app: APIFlask, ann: Person, minutes: int, status: HTTPStatus
) -> None:
    client = new_app(FRESH_TOKEN_MINUTES="15").test_client()
    account = read_account(services_of(app), ann.id)
    assert account is not None
    token = access_token(services_of(app), account, age=timedelta(minutes=minutes))

    response = client.delete(url(ann.id), headers=bearer(token))

    assert response.status_code == status


@pytest.mark.parametrize("mode", ["fresh", "password"])
def test_the_callers_password_confirms(
    new_app: NewApp, app: APIFlask, ann: Person, mode: str
) -> None:
    client = new_app(DELETION_CONFIRMATION=mode).test_client()

    response = client.delete(url(ann.id), headers=stale(app, ann), json={"password": PASSWORD})

    assert response.status_code == 204
    assert state(app, ann) == "deactivated"


def test_with_password_confirmation_no_token_is_fresh_enough(
    new_app: NewApp, app: APIFlask, ann: Person
) -> None:
    client = new_app(DELETION_CONFIRMATION="password").test_client()
    before = everything(services_of(app))

    response = client.delete(url(ann.id), headers=ann.auth)

    assert (response.status_code, response.data) == (401, CONFIRM)
    assert response.headers["WWW-Authenticate"] == 'Bearer error="insufficient_user_authentication"'
    assert everything(services_of(app)) == before


def test_without_confirmation_any_good_token_is_enough(
    new_app: NewApp, app: APIFlask, ann: Person
) -> None:
    client = new_app(DELETION_CONFIRMATION="none").test_client()

    response = client.delete(url(ann.id), headers=stale(app, ann))

    assert response.status_code == 204


def test_a_wrong_password_changes_nothing(app: APIFlask, client: FlaskClient, ann: Person) -> None:
    before = everything(services_of(app))
    headers = stale(app, ann)
    passwords = ["wrong", "", PASSWORD.upper(), "\0", "\ud800", "x" * 9000]

    answers = [
        client.delete(url(ann.id), headers=headers, json={"password": one}) for one in passwords
    ]

    assert [(got.status_code, got.data) for got in answers] == [(403, WRONG_PASSWORD)] * 6
    assert everything(services_of(app)) == before


def test_staff_confirm_with_their_own_password(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    services = services_of(app)
    staff = make_account(services, "sam", staff=True, password="another horse, another battery")
    token = bearer(services.tokens.access(staff, now=now(services), fresh=False))

    wrong = client.delete(url(ann.id), headers=token, json={"password": PASSWORD})
    right = client.delete(
        url(ann.id), headers=token, json={"password": "another horse, another battery"}
    )

    assert (wrong.status_code, wrong.data) == (403, WRONG_PASSWORD)
    assert right.status_code == 204


def test_others_learn_nothing_from_a_confirmation(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    headers = stale(app, bystander)

    response = client.delete(url(ann.id), headers=headers, json={"password": "wrong"})

    assert (response.status_code, response.data) == (403, NOT_AUTHORIZED)


def test_too_many_wrong_passwords_are_throttled_together_with_sign_in(
    new_app: NewApp, app: APIFlask, ann: Person
) -> None:
    client = new_app(RATE_LIMITS="on").test_client()
    headers = stale(app, ann)
    tries = [
        client.delete(url(ann.id), headers=headers, json={"password": "wrong"}).status_code
        for _ in range(5)
    ] + [
        client.post("/api/sign-in/", json={"email": ann.email, "password": "no"}).status_code
        for _ in range(5)
    ]
    before = everything(services_of(app))

    response = client.delete(url(ann.id), headers=headers, json={"password": PASSWORD})

    assert tries == [403] * 5 + [401] * 5
    assert response.status_code == 429
    seconds = response.headers["Retry-After"]
    assert 0 < int(seconds) <= 900
    assert (
        response.data
        == f'{{"error": "Too many requests of this kind. Try again in {in_words(int(seconds))}.", '
        f'"code": "throttled"}}'.encode()
    )
    assert everything(services_of(app)) == before


# The last staff account


def test_the_last_active_staff_account_stays(
    app: APIFlask, client: FlaskClient, sue: Person
) -> None:
    before = everything(services_of(app))

    response = client.delete(url(sue.id), headers=sue.auth)

    assert response.status_code == 409
    assert response.data == LAST_STAFF
    assert everything(services_of(app)) == before


def test_a_deactivated_staff_account_does_not_count_as_another(
    app: APIFlask, client: FlaskClient, sue: Person
) -> None:
    other = make_account(services_of(app), "sam", staff=True)
    deactivate(services_of(app), other.id)

    response = client.delete(url(sue.id), headers=sue.auth)

    assert (response.status_code, response.data) == (409, LAST_STAFF)


def test_a_staff_account_goes_while_another_is_left(
    app: APIFlask, client: FlaskClient, sue: Person
) -> None:
    make_account(services_of(app), "sam", staff=True)

    response = client.delete(url(sue.id), headers=sue.auth)

    assert response.status_code == 204


# Done


def test_the_account_is_deactivated_and_its_purge_scheduled(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    response = client.delete(url(ann.id), headers=ann.auth)

    account = read_account(services_of(app), ann.id)
    assert account is not None
    assert account.purge_at is not None
    assert account.deactivated_at is not None
    assert response.status_code == 204
    assert response.data == b""
    assert "Content-Length" not in response.headers
    assert "Content-Type" not in response.headers
    assert response.headers["Sunset"] == http_date(account.purge_at)
    assert response.headers["Link"] == f'</api/profile/{ann.id}/deletion/>; rel="status"'
    assert response.headers["Cache-Control"] == "no-store"
    assert "Preference-Applied" not in response.headers
    assert account.deactivated_by == "owner"
    kept = account.purge_at - account.deactivated_at
    assert timedelta(days=14) <= kept < timedelta(days=14, seconds=1)
    assert account.purge_at.microsecond == 0
    assert [
        (one.subject, one.actor) for one in events(services_of(app), "account.deactivated")
    ] == [(ann.public_id, ann.public_id)]
    assert len(effects(services_of(app), "mail.scheduled")) == 1


def test_the_data_is_kept_until_the_purge(app: APIFlask, client: FlaskClient, ann: Person) -> None:
    before = belongings(services_of(app), ann)

    client.delete(url(ann.id), headers=ann.auth)

    after = belongings(services_of(app), ann)
    assert after["passwords"] == before["passwords"]
    assert after["avatar"] == before["avatar"]


def test_every_session_of_the_owner_ends_at_once(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    account = read_account(services_of(app), ann.id)
    assert account is not None
    refresh = services_of(app).tokens.refresh(account, now=now(services_of(app)))
    client.delete(url(ann.id), headers=ann.auth)

    profile = client.get("/api/profile/", headers=ann.auth)
    renewed = client.post("/api/token/refresh/", json={"refresh": refresh})
    save = client.post("/api/save-passwords/", headers=ann.auth, json={"password_saved": "x"})

    for response in (profile, renewed, save):
        assert (response.status_code, response.data) == (401, NOT_VALID)


def test_staff_delete_somebody_elses_account(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    response = client.delete(url(ann.id), headers=sue.auth)

    account = read_account(services_of(app), ann.id)
    assert account is not None
    assert (response.status_code, response.data) == (204, b"")
    assert account.deactivated_by == "staff"
    assert [
        (one.subject, one.actor) for one in events(services_of(app), "account.deactivated")
    ] == [(ann.public_id, sue.public_id)]


def test_staff_deleting_themselves_are_owners(
    app: APIFlask, client: FlaskClient, sue: Person
) -> None:
    make_account(services_of(app), "sam", staff=True)

    client.delete(url(sue.id), headers=sue.auth)

    account = read_account(services_of(app), sue.id)
    assert account is not None
    assert account.deactivated_by == "owner"


def test_an_id_with_leading_zeros_is_the_same_account(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    response = client.delete(url(f"000{ann.id}"), headers=ann.auth)

    assert response.status_code == 204
    assert response.headers["Link"] == f'</api/profile/{ann.id}/deletion/>; rel="status"'


# Repeats


def test_a_repeat_by_the_owner_finds_the_token_dead(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    client.delete(url(ann.id), headers=ann.auth)
    before = everything(services_of(app))

    response = client.delete(url(ann.id), headers=ann.auth)

    assert (response.status_code, response.data) == (401, NOT_VALID)
    assert everything(services_of(app)) == before


def test_a_repeat_by_staff_never_moves_the_promised_time(
    new_app: NewApp, app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    first = client.delete(url(ann.id), headers=ann.auth)
    before = everything(services_of(app))
    another_setting = new_app(GRACE_PERIOD="1d").test_client()

    repeats = [one.delete(url(ann.id), headers=sue.auth) for one in (client, another_setting)]

    assert [(got.status_code, got.data) for got in repeats] == [(204, b"")] * 2
    assert {got.headers["Sunset"] for got in repeats} == {first.headers["Sunset"]}
    assert everything(services_of(app)) == before


# The body that is preferred


def test_a_representation_comes_only_when_it_is_preferred(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    headers = {**ann.auth, "Prefer": "return=representation"}

    response = client.delete(url(ann.id), headers=headers)

    account = read_account(services_of(app), ann.id)
    assert account is not None
    assert account.purge_at is not None
    assert account.deactivated_at is not None
    assert response.json is not None
    token = response.json["recovery_token"]
    assert response.status_code == 200
    assert (
        response.data.decode() == f'{{"message": "User deleted successfully", "user_id": {ann.id}, '
        f'"state": "deactivated", '
        f'"deactivated_at": "{account.deactivated_at:%Y-%m-%dT%H:%M:%SZ}", '
        f'"purge_at": "{account.purge_at:%Y-%m-%dT%H:%M:%SZ}", "deactivated_by": "owner", '
        f'"can_reactivate": true, "recovery_token": "{token}"}}'
    )
    assert response.headers["Preference-Applied"] == "return=representation"
    assert "Prefer" in response.headers["Vary"]
    assert response.headers["Sunset"] == http_date(account.purge_at)
    assert response.headers["Link"] == f'</api/profile/{ann.id}/deletion/>; rel="status"'
    assert response.headers["Cache-Control"] == "no-store"
    claims = services_of(app).tokens.read(token, tokens.RECOVERY, now=now(services_of(app)))
    assert (claims.public_id, claims.epoch) == (ann.public_id, account.epoch)


def test_staff_get_the_document_but_no_token(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    headers = {**sue.auth, "Prefer": "return=representation"}

    response = client.delete(url(ann.id), headers=headers)

    assert response.status_code == 200
    assert response.json is not None
    assert "recovery_token" not in response.json
    assert response.json["deactivated_by"] == "staff"
    assert {
        name: response.json[name] for name in ("reason", "holds", "blocked_by", "attempts")
    } == {"reason": None, "holds": [], "blocked_by": None, "attempts": 0}


PREFERENCES = [
    (["return=representation"], 200),
    (["Return=Representation"], 200),
    (['return="representation"'], 200),
    (["return = representation; foo=bar"], 200),
    (["respond-async, wait=10, return=representation"], 200),
    (["respond-async", "return=representation"], 200),
    (['foo="a, return=minimal", return=representation'], 200),
    (["return=minimal"], 204),
    (["return=minimal, return=representation"], 204),
    (["return=representation, return=minimal"], 200),
    (['foo="return=representation"'], 204),
    (["foo; return=representation"], 204),
    (["return"], 204),
    (["representation"], 204),
    (["return=representationx"], 204),
    (["return=", "=", ",,;;", '"'], 204),
]


def test_prefer_is_read_as_rfc_7240_says(app: APIFlask, client: FlaskClient) -> None:
    for number, (prefer, status) in enumerate(PREFERENCES):
        person = make_account(services_of(app), f"person{number}")
        headers = [
            ("Authorization", f"Bearer {access_token(services_of(app), person)}"),
            *(("Prefer", value) for value in prefer),
        ]

        response = client.delete(url(person.id), headers=headers)

        assert (prefer, response.status_code) == (prefer, status)


# The body that may be anything

BODIES = {
    "null": b"null",
    "an integer": b"5",
    "a text": b'"password"',
    "an array": b'["password"]',
    "an empty object": b"{}",
    "no JSON": b"password=x",
    "half a JSON": b'{"password": "',
    "no UTF-8": b'{"password": "\xff"}',
    "UTF-16": '{"password": "x"}'.encode("utf-16"),
    "no text": b'{"password": 5}',
    "null as the password": b'{"password": null}',
    "a list as the password": b'{"password": ["x"]}',
    "a huge number": b"9" * 5000,
    "too deep": b"[" * 16_000,
    "too deep an object": b'{"a":' * 3000,
    "17 KiB": b" " * 17 * 1024 + b'{"password": "x"}',
    "a megabyte": b"x" * 1024 * 1024,
}


@pytest.mark.parametrize("content_type", ["application/json", None, "multipart/form-data"])
def test_with_a_fresh_token_any_body_will_do(
    app: APIFlask, client: FlaskClient, content_type: str | None
) -> None:
    for number, (name, body) in enumerate(BODIES.items()):
        person = make_account(services_of(app), f"person{number}")
        headers = bearer(access_token(services_of(app), person))

        response = client.delete(
            url(person.id), headers=headers, data=body, content_type=content_type
        )

        assert (name, response.status_code, response.data) == (name, 204, b"")


def test_where_the_password_is_wanted_such_a_body_is_none(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = everything(services_of(app))
    headers = stale(app, ann)

    answers = {
        name: client.delete(
            url(ann.id), headers=headers, data=body, content_type="application/json"
        )
        for name, body in BODIES.items()
    }

    assert {name: (got.status_code, got.data) for name, got in answers.items()} == dict.fromkeys(
        BODIES, (401, CONFIRM)
    )
    assert everything(services_of(app)) == before


@pytest.mark.parametrize(("more", "status"), [(0, 204), (1, 401)])
def test_sixteen_kibibytes_of_a_body_are_read(
    app: APIFlask, client: FlaskClient, ann: Person, more: int, status: int
) -> None:
    document = json.dumps({"password": PASSWORD}).encode()
    body = document + b" " * (SPARE_LIMIT - len(document) + more)

    response = client.delete(url(ann.id), headers=stale(app, ann), data=body)

    assert response.status_code == status


# Faults


def closed_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_database_that_is_down_is_unavailable(new_app: NewApp, ann: Person) -> None:
    nowhere = new_app(DATABASE_URL=f"postgresql://nobody@127.0.0.1:{closed_port()}/nothing")

    response = nowhere.test_client().delete(url(ann.id), headers=ann.auth)

    assert response.status_code == 503
    assert response.data == UNAVAILABLE
    assert response.headers["Retry-After"] == "5"


def test_a_database_that_is_locked_by_somebody_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
    new_app: NewApp,
    app: APIFlask,
    ann: Person,
    database_url: str,
) -> None:
    if database_url.startswith("sqlite"):
        monkeypatch.setattr(engine, "BUSY_TIMEOUT_MS", 100)
    else:
        options = "-c timezone=UTC -c lock_timeout=100"
        monkeypatch.setattr(engine, "_POSTGRESQL_OPTIONS", options)
    client = new_app().test_client()
    before = everything(services_of(app))

    with locked(app, ann, database_url):
        response = client.delete(url(ann.id), headers=ann.auth)

    assert (response.status_code, response.data) == (503, UNAVAILABLE)
    assert response.headers["Retry-After"] == "5"
    assert everything(services_of(app)) == before
    assert client.delete(url(ann.id), headers=ann.auth).status_code == 204


class locked:
    """Hold the lock that a deactivation of *person* needs, from outside the service."""

    def __init__(self, app: APIFlask, person: Person, database_url: str) -> None:
        if database_url.startswith("sqlite"):
            path = database_url.removeprefix("sqlite:///")
            self._held = closing(sqlite3.connect(path, isolation_level=None))
            self._statement = "BEGIN IMMEDIATE"
        else:
            self._held = closing(services_of(app).database.engine.raw_connection())  # type: ignore[arg-type]
            self._statement = f"SELECT id FROM accounts WHERE id = {person.id} FOR UPDATE"

    def __enter__(self) -> None:
        self._held.__enter__().cursor().execute(self._statement)

    def __exit__(self, *exc: object) -> None:
        self._held.__exit__(*exc)


def test_any_other_fault_says_nothing_and_changes_nothing(
    app: APIFlask, client: FlaskClient, ann: Person, database_url: str
) -> None:
    secret = "ann@example.org is the text of the exception"
    if database_url.startswith("sqlite"):
        statements = [
            "CREATE TRIGGER fault BEFORE INSERT ON audit_events "
            f"BEGIN SELECT RAISE(ABORT, '{secret}'); END"
        ]
    else:
        statements = [
            "CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{secret}'; END $$",
            "CREATE TRIGGER fault BEFORE INSERT ON audit_events "
            "FOR EACH ROW EXECUTE FUNCTION fault()",
        ]
    for statement in statements:
        run_sql(services_of(app), statement)
    before = everything(services_of(app))

    response = client.delete(url(ann.id), headers=ann.auth)

    assert response.status_code == 500
    assert response.data == INTERNAL
    assert everything(services_of(app)) == before


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_lost_connection_is_tried_again_before_the_commit(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    """The first try loses its connection in the middle of the transaction, the second one does it."""
    run_sql(services_of(app), "CREATE SEQUENCE tries")
    run_sql(
        services_of(app),
        "CREATE FUNCTION kill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('tries') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); "
        "END IF; RETURN NEW; END $$",
    )
    run_sql(
        services_of(app),
        "CREATE TRIGGER kill BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION kill()",
    )

    response = client.delete(url(ann.id), headers=ann.auth)

    assert response.status_code == 204
    assert len(events(services_of(app), "account.deactivated")) == 1
    assert len(effects(services_of(app), "mail.scheduled")) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_commit_that_may_have_happened_is_not_tried_again(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    """A deferred trigger runs inside COMMIT: when that fails, nobody can know from outside."""
    run_sql(services_of(app), "CREATE SEQUENCE tries")
    run_sql(
        services_of(app),
        "CREATE FUNCTION kill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM nextval('tries'); PERFORM pg_terminate_backend(pg_backend_pid()); "
        "RETURN NEW; END $$",
    )
    run_sql(
        services_of(app),
        "CREATE CONSTRAINT TRIGGER kill AFTER INSERT ON audit_events "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION kill()",
    )

    response = client.delete(url(ann.id), headers=ann.auth)

    assert (response.status_code, response.data) == (503, UNAVAILABLE)
    with services_of(app).reading() as session:
        assert session.execute(text("SELECT last_value FROM tries")).scalar() == 1
    assert state(app, ann) == "active"
