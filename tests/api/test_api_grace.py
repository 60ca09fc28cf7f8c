"""CONTRACT section 4 for the owner and the staff: coming back, moving the date, waiving the rest.

In every test of this file a bystander must keep everything (``bystander``).
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy import func, select
from werkzeug.test import TestResponse

from accountsvc.accounts import lifecycle
from accountsvc.db import audit
from accountsvc.db.audit import Actor
from accountsvc.db.models import Account, AuditEvent
from accountsvc.db.rows import find
from accountsvc.errors import AccountDeactivated, GraceOver
from tests.api.answers import (
    CONFIRM,
    NO_TOKEN,
    NOT_AUTHORIZED,
    NOT_FOUND,
    NOT_VALID,
    WRONG_CREDENTIALS,
    WRONG_PASSWORD,
)
from tests.conftest import NewApp
from tests.support import factories
from tests.support.addresses import confirm_address
from tests.support.factories import (
    PASSWORD,
    Person,
    bearer,
    deactivate,
    make_person,
    make_promise,
    run_sql,
    services_of,
    witness,
)
from tests.support.moments import at, now
from tests.support.state import belongings, effects, events, everything, read_account
from tests.support.sweeps import sweep

FORBIDDEN = (
    b'{"error": "This account was deactivated by the staff. Contact support to have it back.", '
    b'"code": "reactivation_forbidden"}'
)
NOT_DEACTIVATED = b'{"error": "This account is not deactivated.", "code": "not_deactivated"}'
GRACE_OVER = (
    b'{"error": "The grace period is over. This account can no longer be reactivated.", '
    b'"code": "grace_over"}'
)
STALE = (
    b'{"error": "The deletion has changed since it was read. Read it again and repeat.", '
    b'"code": "version_mismatch"}'
)
BAD_SCHEDULE = (
    b'{"error": "The purge time can only be moved later, within the longest grace period.", '
    b'"code": "invalid_schedule"}'
)
RECENT_CHANGE = (
    rb'{"error": "The email address or the password was changed within the last 24 hours\. '
    rb"You can delete the account at once from \d{1,2} [A-Z][a-z]+ \d{4} at \d\d:\d\d UTC on, "
    rb'or let the grace period run out\.", "code": "recent_change"}'
)
HELD = (
    b'{"error": "A legal hold suspends the purge of this account. Release it first.", '
    b'"code": "legal_hold"}'
)

UNEXPLAINED = (
    b'{"error": "Nobody has promised the purge of this account. '
    b'An operator has to accept it first.", "code": "unexplained"}'
)

SIGN_IN = "/api/sign-in/"
REACTIVATE = "/api/profile/reactivate/"
NEW_PASSWORD = "another horse, another battery"

Answer = tuple[int, bytes]


@pytest.fixture
def ann(app: APIFlask) -> Person:
    """Who has deleted her account; her access token is from before."""
    person = make_person(services_of(app), "ann")
    deactivate(services_of(app), person.id)
    return person


@pytest.fixture(autouse=True)
def bystander(app: APIFlask, bob: Person) -> Iterator[Person]:
    before = belongings(services_of(app), bob)
    yield bob
    assert belongings(services_of(app), bob) == before


def credentials(person: Person, password: str = PASSWORD) -> dict[str, str]:
    return {"email": person.email, "password": password}


def path(person: Person | Account, what: str) -> str:
    return f"/api/profile/{person.id}/{what}/"


def answer(response: TestResponse) -> Answer:
    return response.status_code, response.data


def account_of(app: APIFlask, person: Person) -> Account:
    account = read_account(services_of(app), person.id)
    assert account is not None
    return account


def purge_time(app: APIFlask, person: Person) -> datetime:
    found = account_of(app, person).purge_at
    assert found is not None
    return found


def recovery_token(app: APIFlask, person: Person, *, age: timedelta = timedelta()) -> str:
    return factories.recovery_token(services_of(app), account_of(app, person), age=age)


def mailed_token(app: APIFlask, person: Person) -> str:
    return services_of(app).tokens.mailed(account_of(app, person), now=now(services_of(app)))


PAST = datetime(2026, 1, 1, tzinfo=UTC)


def set_row(app: APIFlask, person: Person, **values: Any) -> None:
    """Change a row as only time or a bug could."""
    with services_of(app).writing() as session:
        account = find(session, person.id)
        assert account is not None
        for name, value in values.items():
            setattr(account, name, value)


def promise(app: APIFlask, person: Person, *, purge_in: timedelta) -> datetime:
    """Make it so that the purge was promised for *purge_in* from now."""
    purge_at = (now(services_of(app)) + purge_in).replace(microsecond=0)
    set_row(app, person, deactivated_at=purge_at - timedelta(days=14), purge_at=purge_at)
    witness(services_of(app), person.id)
    return purge_at


def erase(app: APIFlask, person: Person) -> None:
    promise(app, person, purge_in=-timedelta(days=1))
    assert services_of(app).sweep(only=[person.id]).purged == 1


def time_on_the_wire(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def owners_document(account: Account, **changes: object) -> dict[str, object]:
    assert account.deactivated_at is not None
    assert account.purge_at is not None
    return {
        "user_id": account.id,
        "state": "deactivated",
        "deactivated_at": time_on_the_wire(account.deactivated_at),
        "purge_at": time_on_the_wire(account.purge_at),
        "deactivated_by": "owner",
        "can_reactivate": True,
        **changes,
    }


def staffs_document(account: Account, **changes: object) -> dict[str, object]:
    more = {"reason": None, "holds": [], "blocked_by": None, "attempts": 0}
    return {**owners_document(account), **more, **changes}


def mark(app: APIFlask) -> int:
    """The last audit event so far."""
    with services_of(app).reading() as session:
        return session.scalar(select(func.max(AuditEvent.id))) or 0


Happened = tuple[str, uuid.UUID | None, uuid.UUID | None, str]


def trail(app: APIFlask, since: int) -> list[Happened]:
    """What was written since: action, subject, actor and its kind, and no word more."""
    with services_of(app).reading() as session:
        found = audit.events(session, after=since, limit=1000)
        assert [event.details for event in found] == [{}] * len(found)
        return [(event.action, event.subject, event.actor, event.actor_kind) for event in found]


def without_chance(response: TestResponse) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All of an answer but its own id."""
    kept = [(name, value) for name, value in response.headers if name != "X-Request-ID"]
    return response.status_code, response.data, kept


def reset_token(app: APIFlask, person: Person) -> str:
    return services_of(app).tokens.password_reset(
        account_of(app, person), now=now(services_of(app))
    )


def make_wrong_tokens(app: APIFlask, person: Person) -> dict[str, str]:
    """Tokens of a deactivated account that open nothing in its grace period."""
    account, moment = account_of(app, person), now(services_of(app))
    ours = services_of(app).tokens
    account.epoch += 1
    ahead = ours.recovery(account, now=moment)
    account.epoch -= 2
    behind = {"recovery": ours.recovery(account, now=moment)}
    behind["mailed"] = ours.mailed(account, now=moment)
    account.epoch += 1
    return {
        "access from before": person.token,
        "access": ours.access(account, now=moment, fresh=True),
        "refresh": ours.refresh(account, now=moment),
        "password reset": ours.password_reset(account, now=moment),
        "recovery of an epoch to come": ahead,
        "recovery of an epoch before": behind["recovery"],
        "mailed of an epoch before": behind["mailed"],
        "none": "null",
        "nonsense": "a.b.c",
    }


# Signing in


def test_the_right_password_tells_the_date_in_words_and_gives_a_way_back(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    set_row(app, ann, purge_at=datetime(2099, 2, 3, 4, 5, 6, tzinfo=UTC))
    before = everything(services_of(app))

    response = client.post(SIGN_IN, json=credentials(ann))

    assert response.status_code == 403
    assert response.json is not None
    token = response.json["recovery_token"]
    assert response.text == (
        '{"error": "This account is scheduled for deletion on 3 February 2099 at 04:05 UTC. '
        "To keep it, sign in on the page http://localhost:8000/keep-account/ or open the link in "
        'our newest mail.", "code": "account_deactivated", '
        f'"purge_at": "2099-02-03T04:05:06Z", "recovery_token": "{token}"}}'
    )
    assert response.headers["Cache-Control"] == "no-store"
    assert client.get(path(ann, "deletion"), headers=bearer(token)).status_code == 200
    assert everything(services_of(app)) == before


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"purge_at": PAST, "deactivated_at": PAST}, AccountDeactivated.OVER),
        ({"deactivated_by": "staff"}, AccountDeactivated.BY_STAFF),
    ],
    ids=["due", "by the staff"],
)
def test_nobody_is_told_to_reactivate_who_cannot(
    app: APIFlask, client: FlaskClient, ann: Person, row: dict[str, Any], sentence: str
) -> None:
    set_row(app, ann, **row)

    response = client.post(SIGN_IN, json=credentials(ann))

    assert response.status_code == 403
    assert response.json is not None
    assert response.json["error"].endswith(f". {sentence}")
    assert response.json["recovery_token"]


def test_a_wrong_password_is_answered_as_for_an_active_or_an_unknown_account(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    before, since = everything(services_of(app)), mark(app)
    tries = [credentials(ann, "wrong"), credentials(bystander, "wrong")]
    tries.append({"email": "nobody@example.org", "password": PASSWORD})

    for url, action in ((SIGN_IN, "sign_in.failed"), (REACTIVATE, "reactivation.failed")):
        answers = [client.post(url, json=body) for body in tries]

        assert {answer(response) for response in answers} == {(401, WRONG_CREDENTIALS)}
        assert answers[0].headers["WWW-Authenticate"] == "Bearer"
        assert without_chance(answers[0]) == without_chance(answers[1])
        assert without_chance(answers[0]) == without_chance(answers[2])
        # A try for an unknown e-mail is counted in a metric: rows would grow without an end.
        subjects = [ann.public_id, bystander.public_id]
        assert trail(app, since) == [(action, one, None, "anybody") for one in subjects]
        since = mark(app)
    assert everything(services_of(app)) == before


# While it is deactivated


def test_while_deactivated_an_account_is_out_of_sight_and_its_names_stay_taken(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = belongings(services_of(app), ann)
    entry = {"password_saved": "x"}
    somebody = {"username": "ANN", "email": "Ann@Example.org", "password": NEW_PASSWORD}

    refused = [
        client.get("/api/profile/", headers=ann.auth),
        client.get("/api/view-all-saved-passwords/", headers=ann.auth),
        client.post("/api/save-passwords/", headers=ann.auth, json=entry),
        client.patch(path(ann, "update"), headers=ann.auth, json={"first_name": "X"}),
    ]
    signed_up = client.post("/api/sign-up/", json=somebody)

    assert {answer(response) for response in refused} == {(401, NOT_VALID)}
    assert client.get(f"/media/avatars/{ann.avatar}").status_code == 404
    assert signed_up.status_code == 400
    assert signed_up.json == {
        "email": ["An account with this email is already taken."],
        "username": ["This username is already taken."],
    }
    assert belongings(services_of(app), ann) == before


# Coming back


def test_the_password_brings_everything_back(app: APIFlask, client: FlaskClient) -> None:
    ann = make_person(services_of(app), "ann")
    before, account = belongings(services_of(app), ann), account_of(app, ann)
    refresh = services_of(app).tokens.refresh(account, now=now(services_of(app)))
    deactivate(services_of(app), ann.id)
    since = mark(app)

    response = client.post(REACTIVATE, json=credentials(ann))

    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json is not None
    assert list(response.json) == ["access", "refresh", "user"]
    me = client.get("/api/profile/", headers=bearer(response.json["access"]))
    assert (me.status_code, me.json) == (200, response.json["user"])
    assert me.json["id"] == ann.id
    for token, status in ((response.json["refresh"], 200), (refresh, 401)):
        renewed = client.post("/api/token/refresh/", json={"refresh": token})
        assert renewed.status_code == status
    assert answer(client.get("/api/profile/", headers=ann.auth)) == (401, NOT_VALID)
    assert client.get(f"/media/avatars/{ann.avatar}").status_code == 200
    after = belongings(services_of(app), ann)
    assert after["row"] == {**before["row"], "epoch": account.epoch + 2}
    assert (after["passwords"], after["avatar"]) == (before["passwords"], before["avatar"])
    assert trail(app, since) == [("account.reactivated", ann.public_id, ann.public_id, "owner")]
    assert [one.subject for one in effects(services_of(app), "mail.reactivated")] == [ann.public_id]
    assert effects(services_of(app), "mail.scheduled") == []


def test_a_recovery_token_works_once(app: APIFlask, client: FlaskClient, ann: Person) -> None:
    refused = client.post(SIGN_IN, json=credentials(ann))
    assert refused.json is not None
    body = {"token": refused.json["recovery_token"]}
    since = mark(app)

    first = client.post(REACTIVATE, json=body)
    second = client.post(REACTIVATE, json=body)

    assert first.status_code == 200
    assert first.json is not None
    assert list(first.json) == ["access", "refresh", "user"]
    me = client.get("/api/profile/", headers=bearer(first.json["access"]))
    assert (me.status_code, me.json) == (200, first.json["user"])
    assert answer(client.get("/api/profile/", headers=ann.auth)) == (401, NOT_VALID)
    assert answer(second) == (401, NOT_VALID)
    assert second.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    status = client.get(path(ann, "deletion"), headers=bearer(body["token"]))
    assert answer(status) == (401, NOT_VALID)
    assert trail(app, since) == [("account.reactivated", ann.public_id, ann.public_id, "owner")]


def test_the_recovery_token_of_a_deletion_undoes_it(app: APIFlask, client: FlaskClient) -> None:
    ann = make_person(services_of(app), "ann")
    headers = {**ann.auth, "Prefer": "return=representation"}
    deleted = client.delete(path(ann, "delete"), headers=headers)
    assert deleted.json is not None

    response = client.post(REACTIVATE, json={"token": deleted.json["recovery_token"]})

    assert response.status_code == 200
    assert account_of(app, ann).is_active


def test_a_mailed_token_works_once_and_signs_nobody_in(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    body, since = {"token": mailed_token(app, ann)}, mark(app)

    first = client.post(REACTIVATE, json=body)
    second = client.post(REACTIVATE, json=body)

    assert first.status_code == 200
    assert first.json == {
        "user_id": ann.id,
        "state": "active",
        "deactivated_at": None,
        "purge_at": None,
        "deactivated_by": None,
        "can_reactivate": False,
    }
    assert answer(second) == (401, NOT_VALID)
    assert client.post(SIGN_IN, json=credentials(ann)).status_code == 200
    assert answer(client.get("/api/profile/", headers=ann.auth)) == (401, NOT_VALID)
    assert trail(app, since) == [("account.reactivated", ann.public_id, ann.public_id, "owner")]


def test_a_token_is_dead_after_a_return_and_another_deactivation(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    old = [recovery_token(app, ann), mailed_token(app, ann)]
    client.post(REACTIVATE, json=credentials(ann))
    deactivate(services_of(app), ann.id)
    before = everything(services_of(app))

    answers = [client.post(REACTIVATE, json={"token": token}) for token in old]
    answers += [client.get(path(ann, "deletion"), headers=bearer(token)) for token in old]

    assert [answer(response) for response in answers] == [(401, NOT_VALID)] * 4
    assert everything(services_of(app)) == before


def test_no_other_token_brings_an_account_back(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    cat = make_person(services_of(app), "cat")
    deactivate(services_of(app), cat.id)
    wrong = make_wrong_tokens(app, ann)
    wrong |= {"empty": "", "of a purged account": recovery_token(app, cat)}
    erase(app, cat)
    before, since = everything(services_of(app)), mark(app)

    answers = {name: client.post(REACTIVATE, json={"token": wrong[name]}) for name in wrong}

    found = {name: answer(response) for name, response in answers.items()}
    assert found == dict.fromkeys(wrong, (401, NOT_VALID))
    assert everything(services_of(app)) == before
    assert trail(app, since) == []


def test_a_recovery_token_lives_for_fifteen_minutes_and_the_leeway_of_clocks(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    life = timedelta(minutes=15)
    old = recovery_token(app, ann, age=life + timedelta(seconds=61))
    younger = recovery_token(app, ann, age=life + timedelta(seconds=2))

    expired = [
        client.post(REACTIVATE, json={"token": old}),
        client.get(path(ann, "deletion"), headers=bearer(old)),
    ]
    late = client.post(REACTIVATE, json={"token": younger})

    assert [answer(response) for response in expired] == [(401, NOT_VALID)] * 2
    assert late.status_code == 200


REQUIRED = ["This field is required."]
BAD_RETURNS: list[tuple[object, dict[str, object]]] = [
    ({}, {"email": REQUIRED, "password": REQUIRED}),
    ({"email": "ann@example.org"}, {"password": REQUIRED}),
    ({"email": "", "password": PASSWORD}, {"email": REQUIRED}),
    ({"email": 5, "password": PASSWORD}, {"email": ["Send text."]}),
    ({"token": None}, {"token": ["This field may not be null."]}),
    ({"token": 5}, {"token": ["Send text."]}),
    ({"token": "\0"}, {"token": ["Remove NUL bytes; send valid Unicode text."]}),
    ([], {"error": "Send a JSON object.", "code": "bad_request"}),
    (5, {"error": "Send a JSON object.", "code": "bad_request"}),
]


def test_a_return_of_another_shape_says_what_to_send(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before, since = everything(services_of(app)), mark(app)

    answers = [client.post(REACTIVATE, json=body) for body, _ in BAD_RETURNS]

    found = [(response.status_code, response.json) for response in answers]
    assert found == [(400, wanted) for _, wanted in BAD_RETURNS]
    assert everything(services_of(app)) == before
    assert trail(app, since) == []


@pytest.mark.parametrize("by", ["staff", "operator"])
def test_what_others_deactivated_does_not_come_back_by_its_owner(
    app: APIFlask, client: FlaskClient, by: str
) -> None:
    ann = make_person(services_of(app), "ann")
    deactivate(services_of(app), ann.id, by=by)
    refused = client.post(SIGN_IN, json=credentials(ann))
    assert refused.json is not None
    assert refused.json["code"] == "account_deactivated"
    token = refused.json["recovery_token"]
    before, since = everything(services_of(app)), mark(app)

    answers = [
        client.post(REACTIVATE, json=credentials(ann)),
        client.post(REACTIVATE, json={"token": token}),
        client.post(REACTIVATE, json={"token": mailed_token(app, ann)}),
    ]

    assert [answer(response) for response in answers] == [(403, FORBIDDEN)] * 3
    status = client.get(path(ann, "deletion"), headers=bearer(token))
    expected = owners_document(account_of(app, ann), deactivated_by=by, can_reactivate=False)
    assert status.json == expected
    assert everything(services_of(app)) == before
    assert trail(app, since) == []


def test_an_active_account_has_nothing_to_come_back_from(
    app: APIFlask, client: FlaskClient, bystander: Person
) -> None:
    before = everything(services_of(app))
    tokens = [recovery_token(app, bystander), bystander.token]

    by_password = client.post(REACTIVATE, json=credentials(bystander))
    by_token = [client.post(REACTIVATE, json={"token": token}) for token in tokens]

    assert answer(by_password) == (409, NOT_DEACTIVATED)
    assert [answer(response) for response in by_token] == [(401, NOT_VALID)] * 2
    assert everything(services_of(app)) == before


def test_a_due_account_does_not_come_back(app: APIFlask, client: FlaskClient, ann: Person) -> None:
    promise(app, ann, purge_in=timedelta())
    before, since = everything(services_of(app)), mark(app)

    answers = [
        client.post(REACTIVATE, json=credentials(ann)),
        client.post(REACTIVATE, json={"token": recovery_token(app, ann)}),
        client.post(REACTIVATE, json={"token": mailed_token(app, ann)}),
    ]

    assert [answer(response) for response in answers] == [(409, GRACE_OVER)] * 3
    assert everything(services_of(app)) == before
    assert trail(app, since) == []


def test_a_mailed_token_ends_with_the_promise_it_was_made_for(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    promise(app, ann, purge_in=-timedelta(seconds=61))
    token = mailed_token(app, ann)
    promise(app, ann, purge_in=timedelta(days=1))

    response = client.post(REACTIVATE, json={"token": token})

    assert answer(response) == (401, NOT_VALID)
    assert not account_of(app, ann).is_active


def test_wrong_passwords_do_not_lock_out_who_has_a_token(
    app: APIFlask, new_app: NewApp, ann: Person
) -> None:
    client = new_app(RATE_LIMITS="on").test_client()
    wrong = [client.post(REACTIVATE, json=credentials(ann, "wrong")) for _ in range(10)]

    throttled = client.post(REACTIVATE, json=credentials(ann))
    by_token = client.post(REACTIVATE, json={"token": mailed_token(app, ann)})

    assert {response.status_code for response in wrong} == {401}
    assert throttled.status_code == 429
    assert throttled.json is not None
    assert throttled.json["code"] == "throttled"
    assert 0 < int(throttled.headers["Retry-After"]) <= 15 * 60
    assert by_token.status_code == 200


def test_wrong_tokens_are_counted_by_address_only(
    app: APIFlask, new_app: NewApp, ann: Person
) -> None:
    made = new_app(RATE_LIMITS="on")
    stranger, owner = made.test_client(), made.test_client()
    stranger.environ_base["REMOTE_ADDR"] = "192.0.2.1"
    owner.environ_base["REMOTE_ADDR"] = "192.0.2.2"
    wrong = make_wrong_tokens(app, ann)["mailed of an epoch before"]

    statuses = [stranger.post(REACTIVATE, json={"token": wrong}).status_code for _ in range(60)]
    throttled = stranger.post(REACTIVATE, json={"token": wrong})
    returned = owner.post(REACTIVATE, json={"token": mailed_token(app, ann)})

    assert statuses == [401] * 60
    assert throttled.status_code == 429
    assert int(throttled.headers["Retry-After"]) > 0
    assert returned.status_code == 200


def test_the_right_password_of_an_active_account_is_forgiven(
    new_app: NewApp, bystander: Person
) -> None:
    client = new_app(RATE_LIMITS="on").test_client()

    answers = [client.post(REACTIVATE, json=credentials(bystander)) for _ in range(11)]

    assert [answer(response) for response in answers] == [(409, NOT_DEACTIVATED)] * 11
    assert client.post(SIGN_IN, json=credentials(bystander)).status_code == 200


# Staff give an account back


def test_staff_give_back_whoever_deactivated_it(
    app: APIFlask, client: FlaskClient, sue: Person
) -> None:
    for by in ("owner", "staff", "operator"):
        person = make_person(services_of(app), f"ann-{by}")
        kept = belongings(services_of(app), person)
        deactivate(services_of(app), person.id, by=by)
        since = mark(app)

        response = client.post(path(person, "reactivate"), headers=sue.auth)

        assert response.status_code == 200
        assert response.json == {
            "user_id": person.id,
            "state": "active",
            "deactivated_at": None,
            "purge_at": None,
            "deactivated_by": None,
            "can_reactivate": False,
            "reason": None,
            "holds": [],
            "blocked_by": None,
            "attempts": 0,
        }
        assert response.headers["Cache-Control"] == "no-store"
        assert trail(app, since) == [
            ("account.reactivated", person.public_id, sue.public_id, "staff")
        ]
        assert [one.subject for one in effects(services_of(app), "mail.reactivated")][
            -1
        ] == person.public_id
        assert client.post(SIGN_IN, json=credentials(person)).status_code == 200
        assert answer(client.get("/api/profile/", headers=person.auth)) == (401, NOT_VALID)
        assert belongings(services_of(app), person)["passwords"] == kept["passwords"]


def test_staff_give_back_only_what_is_in_its_grace_period(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person, sue: Person
) -> None:
    promise(app, ann, purge_in=timedelta())
    before, since = everything(services_of(app)), mark(app)
    urls = {
        path(ann, "reactivate"): (409, GRACE_OVER),
        path(bystander, "reactivate"): (409, NOT_DEACTIVATED),
        path(sue, "reactivate"): (409, NOT_DEACTIVATED),
        "/api/profile/4711/reactivate/": (404, NOT_FOUND),
        f"/api/profile/{2**63}/reactivate/": (404, NOT_FOUND),
    }

    answers = {url: answer(client.post(url, headers=sue.auth)) for url in urls}

    assert answers == urls
    assert everything(services_of(app)) == before
    assert trail(app, since) == []


STAFF_CALLS: list[tuple[str, str, dict[str, str], dict[str, str]]] = [
    ("POST", "reactivate", {}, {}),
    ("PATCH", "deletion", {"reason": "x"}, {"If-Match": "*"}),
]


@pytest.mark.parametrize(("method", "what", "body", "headers"), STAFF_CALLS)
def test_nobody_but_staff_does_what_is_for_staff(
    app: APIFlask,
    client: FlaskClient,
    ann: Person,
    bystander: Person,
    method: str,
    what: str,
    body: dict[str, str],
    headers: dict[str, str],
) -> None:
    cat = make_person(services_of(app), "cat")
    before, since = everything(services_of(app)), mark(app)

    def call(person: Person, authorization: dict[str, str]) -> Answer:
        response = client.open(
            path(person, what), method=method, json=body, headers={**headers, **authorization}
        )
        return answer(response)

    assert call(ann, {}) == (401, NO_TOKEN)
    for token in (ann.token, recovery_token(app, ann), mailed_token(app, ann), "null"):
        assert call(ann, bearer(token)) == (401, NOT_VALID)
    assert call(ann, bystander.auth) == (404, NOT_FOUND)
    assert call(bystander, bystander.auth) == (403, NOT_AUTHORIZED)
    by_bystander = (bystander.public_id, bystander.public_id, "owner")
    own = ("access.denied", *by_bystander)
    assert trail(app, since) == [own]
    assert call(cat, bystander.auth) == (403, NOT_AUTHORIZED)
    assert trail(app, since) == [
        own,
        ("access.denied", cat.public_id, bystander.public_id, "owner"),
    ]
    assert everything(services_of(app)) == before


# What is promised


def test_the_owner_sees_what_is_promised_by_either_token(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before, since = everything(services_of(app)), mark(app)
    url, account = path(ann, "deletion"), account_of(app, ann)

    answers = [
        client.get(url, headers=bearer(token))
        for token in (recovery_token(app, ann), mailed_token(app, ann))
    ]

    for response in answers:
        assert response.status_code == 200
        assert response.text == (
            f'{{"user_id": {ann.id}, "state": "deactivated", '
            f'"deactivated_at": "{account.deactivated_at:%Y-%m-%dT%H:%M:%SZ}", '
            f'"purge_at": "{account.purge_at:%Y-%m-%dT%H:%M:%SZ}", '
            '"deactivated_by": "owner", "can_reactivate": true}'
        )
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["ETag"] == answers[0].headers["ETag"]
    assert everything(services_of(app)) == before
    assert trail(app, since) == []


def test_staff_see_more_and_the_owner_nothing_of_it(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    url, owner = path(ann, "deletion"), bearer(recovery_token(app, ann))
    told = client.get(url, headers=owner)
    plain = client.get(url, headers=sue.auth)
    assert plain.json == staffs_document(account_of(app, ann))
    placed = client.post(path(ann, "holds"), headers=sue.auth, json={"reason": "a court"})
    changed = {**sue.auth, "If-Match": "*"}
    client.patch(url, headers=changed, json={"reason": "asked on the phone"})
    run_sql(
        services_of(app),
        "INSERT INTO purge_failures (account_id, attempts, failed_at, retry_at, error)"
        " SELECT id, 3, deactivated_at, purge_at, 'IntegrityError' FROM accounts WHERE id = :id",
        id=ann.id,
    )

    seen = client.get(url, headers=sue.auth)
    told_later = client.get(url, headers=owner)

    assert seen.json == staffs_document(
        account_of(app, ann),
        reason="asked on the phone",
        holds=[placed.json],
        blocked_by="hold",
        attempts=3,
    )
    assert placed.json is not None
    assert list(placed.json) == ["id", "reason", "placed_at", "released_at"]
    assert seen.headers["ETag"] != plain.headers["ETag"]
    assert without_chance(told_later) == without_chance(told)


def test_a_due_account_says_so_and_staff_see_why_it_is_still_there(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    url, owner = path(ann, "deletion"), bearer(recovery_token(app, ann))
    in_grace = client.get(url, headers=owner)
    promise(app, ann, purge_in=timedelta())
    account = account_of(app, ann)
    run_sql(
        services_of(app),
        "INSERT INTO purge_failures (account_id, attempts, failed_at, retry_at, error)"
        " SELECT id, 1, purge_at, purge_at, 'IntegrityError' FROM accounts WHERE id = :id",
        id=ann.id,
    )

    told = client.get(url, headers=owner)
    failing = client.get(url, headers=sue.auth)
    run_sql(services_of(app), "UPDATE purge_failures SET attempts = 8")
    stuck = client.get(url, headers=sue.auth)

    due = {"state": "due", "can_reactivate": False}
    assert told.json == owners_document(account, **due)
    assert told.headers["ETag"] != in_grace.headers["ETag"]
    assert failing.json == staffs_document(account, **due, attempts=1, blocked_by="retry")
    assert stuck.json == staffs_document(account, **due, attempts=8, blocked_by="stuck")


def test_a_status_is_not_shown_to_a_token_of_another_kind_or_account(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person, sue: Person
) -> None:
    cat = make_person(services_of(app), "cat")
    deactivate(services_of(app), cat.id)
    url, wrong = path(ann, "deletion"), make_wrong_tokens(app, ann)
    before, since = everything(services_of(app)), mark(app)

    refused = {name: answer(client.get(url, headers=bearer(wrong[name]))) for name in wrong}
    unseen = [
        client.get(url, headers=bearer(recovery_token(app, cat))),
        client.get(url, headers=bearer(mailed_token(app, cat))),
        client.get(url, headers=bystander.auth),
        client.get("/api/profile/4711/deletion/", headers=bearer(recovery_token(app, ann))),
        client.get("/api/profile/4711/deletion/", headers=sue.auth),
        client.get(path(bystander, "deletion"), headers=bystander.auth),
        client.get(path(bystander, "deletion"), headers=sue.auth),
        client.get(path(sue, "deletion"), headers=sue.auth),
    ]

    assert answer(client.get(url)) == (401, NO_TOKEN)
    assert refused == dict.fromkeys(wrong, (401, NOT_VALID))
    assert [answer(response) for response in unseen] == [(404, NOT_FOUND)] * len(unseen)
    assert answer(client.get(path(sue, "deletion"), headers=bystander.auth)) == (
        403,
        NOT_AUTHORIZED,
    )
    assert everything(services_of(app)) == before
    assert trail(app, since) == [("access.denied", sue.public_id, bystander.public_id, "owner")]


# Moving the date, and the reason


def etag_of(client: FlaskClient, person: Person, staff: Person) -> str:
    response = client.get(path(person, "deletion"), headers=staff.auth)
    assert response.status_code == 200
    return response.headers["ETag"]


def patch(
    client: FlaskClient, person: Person, staff: Person, etag: str | None, body: object
) -> TestResponse:
    headers = dict(staff.auth) if etag is None else {**staff.auth, "If-Match": etag}
    return client.patch(path(person, "deletion"), headers=headers, json=body)


def test_staff_move_the_purge_later_and_the_owner_is_told(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    etag, since = etag_of(client, ann, sue), mark(app)
    later = purge_time(app, ann) + timedelta(days=10)
    two_hours_east = f"{later + timedelta(hours=2):%Y-%m-%dT%H:%M:%S}+02:00"

    response = patch(client, ann, sue, etag, {"purge_at": two_hours_east})

    assert response.status_code == 200
    assert purge_time(app, ann) == later
    assert response.json == staffs_document(account_of(app, ann))
    assert response.json["purge_at"] == time_on_the_wire(later)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["ETag"] != etag
    assert response.headers["ETag"] == etag_of(client, ann, sue)
    assert trail(app, since) == [("deletion.rescheduled", ann.public_id, sue.public_id, "staff")]
    assert [one.subject for one in effects(services_of(app), "mail.date_moved")] == [ann.public_id]
    reminders = [one.deliver_after for one in effects(services_of(app), "mail.reminder")]
    assert sorted(reminders) == [later - timedelta(days=7), later - timedelta(days=1)]
    # A mailed link from before still opens the way back.
    assert client.post(REACTIVATE, json=credentials(ann)).status_code == 200


def test_a_reason_may_have_lines_of_any_system(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    reason = "by letter\r\n\tof today\n"

    response = patch(client, ann, sue, "*", {"reason": reason})

    assert response.status_code == 200
    assert account_of(app, ann).reason == reason


def test_a_moved_promise_is_a_whole_second_and_never_earlier_than_was_asked(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    later = purge_time(app, ann) + timedelta(days=1)

    response = patch(client, ann, sue, "*", {"purge_at": f"{later:%Y-%m-%dT%H:%M:%S}.001Z"})

    assert response.status_code == 200
    assert purge_time(app, ann) == later + timedelta(seconds=1)


def test_a_change_names_the_state_it_rests_on(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    etag = etag_of(client, ann, sue)
    owner = client.get(path(ann, "deletion"), headers=bearer(recovery_token(app, ann)))
    later = {"purge_at": time_on_the_wire(purge_time(app, ann) + timedelta(days=1))}
    reason = patch(client, ann, sue, etag, {"reason": "first"})
    before, since = everything(services_of(app)), mark(app)

    missing = [patch(client, ann, sue, given, later) for given in (None, "")]
    stale = [etag, '"0"', f"W/{etag}", 'W/"0"', owner.headers["ETag"], f"W/{owner.headers['ETag']}"]
    mismatched = [patch(client, ann, sue, given, later) for given in stale]

    assert reason.status_code == 200
    for response in missing:
        assert answer(response) == (
            428,
            b'{"error": "Send If-Match with the ETag of the deletion document.", '
            b'"code": "version_required"}',
        )
    assert [answer(response) for response in mismatched] == [(412, STALE)] * len(stale)
    assert everything(services_of(app)) == before
    assert trail(app, since) == []
    several = patch(client, ann, sue, f'"0", {reason.headers["ETag"]}', later)
    assert several.status_code == 200


@pytest.mark.parametrize(
    "form",
    [
        "{tag}",
        "W/{tag}",
        "w/{tag}",
        ' W/{tag}\t, "0"',
        '"0", W/{tag}',
        'W/"0",{tag}',
        'W/"0", "1", W/{tag}, *',
        '"0",,W/{tag}',
    ],
)
def test_a_weak_etag_is_taken_for_the_strong_one_that_a_proxy_made_it_from(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person, sue: Person, form: str
) -> None:
    spared = belongings(services_of(app), bystander)
    etag = etag_of(client, ann, sue)

    changed = patch(client, ann, sue, form.format(tag=etag), {"reason": "by letter"})
    again = patch(client, ann, sue, form.format(tag=etag).replace(", *", ""), {"reason": "late"})

    assert changed.status_code == 200
    assert account_of(app, ann).reason == "by letter"
    assert answer(again) == (412, STALE)
    assert belongings(services_of(app), bystander) == spared


@pytest.mark.parametrize(
    ("given", "status"),
    [
        # None of these names a version.
        *[("", 428), (",", 428), ('"', 428), ('W/ "0"', 428), ('"0" "1"', 428), ('W/W/"0"', 428)],
        # These do, and none of them is this one; an asterisk is one only by itself.
        *[("W/*", 412), ('"*"', 412), ('"0", *', 412), ('W/""', 412), ("0", 412)],
    ],
)
def test_an_if_match_that_names_nothing_or_another_version_changes_nothing(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person, given: str, status: int
) -> None:
    before = everything(services_of(app))

    response = patch(client, ann, sue, given, {"reason": "x"})

    assert response.status_code == status
    assert everything(services_of(app)) == before


def test_if_match_with_an_asterisk_takes_any_state_but_no_active_account(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person, sue: Person
) -> None:
    missing = [
        patch(client, bystander, sue, "*", {"reason": "x"}),
        client.patch(
            "/api/profile/4711/deletion/",
            headers={**sue.auth, "If-Match": "*"},
            json={"reason": "x"},
        ),
    ]
    response = patch(client, ann, sue, "*", {"reason": "x"})

    assert [answer(one) for one in missing] == [(404, NOT_FOUND)] * 2
    assert response.status_code == 200
    assert account_of(app, ann).reason == "x"


def test_a_purge_is_not_moved_earlier_nor_beyond_the_longest_grace_period(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    etag, account = etag_of(client, ann, sue), account_of(app, ann)
    assert account.deactivated_at is not None
    assert account.purge_at is not None
    longest = lifecycle.whole_second(account.deactivated_at + timedelta(days=90))
    before, since = everything(services_of(app)), mark(app)
    wrong = [
        time_on_the_wire(account.purge_at - timedelta(seconds=1)),
        time_on_the_wire(now(services_of(app))),
        "0001-01-01T00:00:00Z",
        time_on_the_wire(longest + timedelta(seconds=1)),
        "9999-12-31T23:59:59.999999Z",
    ]

    refused = [
        patch(client, ann, sue, etag, {"purge_at": text, "reason": "both or neither"})
        for text in wrong
    ]

    assert [answer(response) for response in refused] == [(422, BAD_SCHEDULE)] * len(wrong)
    assert everything(services_of(app)) == before
    assert trail(app, since) == []
    last = patch(client, ann, sue, etag, {"purge_at": time_on_the_wire(longest)})
    assert last.status_code == 200
    assert purge_time(app, ann) == longest


def test_a_due_purge_is_not_moved_but_its_reason_is_noted(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    purge_at = promise(app, ann, purge_in=timedelta())
    etag, before = etag_of(client, ann, sue), everything(services_of(app))
    later = time_on_the_wire(purge_at + timedelta(days=1))

    refused = patch(client, ann, sue, etag, {"purge_at": later, "reason": "x"})

    assert answer(refused) == (
        409,
        b'{"error": "The account is due. Place a hold to suspend its purge.", '
        b'"code": "grace_over"}',
    )
    assert everything(services_of(app)) == before
    assert patch(client, ann, sue, etag, {"reason": "x"}).status_code == 200
    assert purge_time(app, ann) == purge_at


def test_a_reason_is_stored_without_a_mail_and_without_its_words_in_the_trail(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    etag, since = etag_of(client, ann, sue), mark(app)

    response = patch(client, ann, sue, etag, {"reason": "asked on the phone"})
    again = patch(client, ann, sue, response.headers["ETag"], {"reason": "asked on the phone"})

    assert response.status_code == 200
    assert response.json == staffs_document(account_of(app, ann), reason="asked on the phone")
    assert response.headers["ETag"] != etag
    assert (again.status_code, again.json) == (200, response.json)
    assert trail(app, since) == [("deletion.reason_changed", ann.public_id, sue.public_id, "staff")]
    assert effects(services_of(app), "mail.date_moved") == []
    client.post(path(ann, "reactivate"), headers=sue.auth)
    assert account_of(app, ann).reason is None


A_TIME = "Send a time such as 2026-12-07T09:30:00Z."
BAD_CHANGES: list[tuple[object, dict[str, object]]] = [
    ({}, {"purge_at": ["Send purge_at, reason or both."]}),
    ({"state": "active"}, {"purge_at": ["Send purge_at, reason or both."]}),
    ({"purge_at": "soon"}, {"purge_at": [A_TIME]}),
    ({"purge_at": ""}, {"purge_at": [A_TIME]}),
    ({"purge_at": 1.5}, {"purge_at": [A_TIME]}),
    ({"purge_at": True}, {"purge_at": [A_TIME]}),
    ({"purge_at": []}, {"purge_at": [A_TIME]}),
    ({"purge_at": "0001-01-01T00:00:00+14:00"}, {"purge_at": [A_TIME]}),
    ({"purge_at": "9999-12-31T23:59:59.999999-14:00"}, {"purge_at": [A_TIME]}),
    (
        {"purge_at": "2099-12-07T09:30:00"},
        {"purge_at": ["Send a time with a time zone, such as 2026-12-07T09:30:00Z."]},
    ),
    ({"purge_at": None}, {"purge_at": ["This field may not be null."]}),
    ({"reason": None}, {"reason": ["This field may not be null."]}),
    ({"reason": 5}, {"reason": ["Send text."]}),
    ({"reason": "\0"}, {"reason": ["Remove NUL bytes; send valid Unicode text."]}),
    ({"reason": "x" * 1001}, {"reason": ["Use at most 1000 characters."]}),
    ([], {"error": "Send a JSON object.", "code": "bad_request"}),
]


def test_a_change_of_another_shape_says_what_to_send(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    before, since = everything(services_of(app)), mark(app)

    answers = [patch(client, ann, sue, "*", body) for body, _ in BAD_CHANGES]

    found = [(response.status_code, response.json) for response in answers]
    assert found == [(400, wanted) for _, wanted in BAD_CHANGES]
    assert everything(services_of(app)) == before
    assert trail(app, since) == []


# Waiving the rest


def test_the_owner_purges_at_once_with_mail_and_password(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    headers, since = bearer(mailed_token(app, ann)), mark(app)
    url = path(ann, "purge")

    response = client.post(url, headers=headers, json={"password": PASSWORD})
    promised = purge_time(app, ann)
    again = client.post(url, headers=headers, json={"password": PASSWORD})

    assert response.status_code == 202
    account = account_of(app, ann)
    assert response.json == owners_document(account, state="due", can_reactivate=False)
    assert response.headers["Cache-Control"] == "no-store"
    assert promised <= now(services_of(app))
    assert (again.status_code, again.json) == (202, response.json)
    assert purge_time(app, ann) == promised
    assert trail(app, since) == [
        ("deletion.purge_requested", ann.public_id, ann.public_id, "owner")
    ]
    returns = [credentials(ann), {"token": recovery_token(app, ann)}]
    assert [answer(client.post(REACTIVATE, json=body)) for body in returns] == [
        (409, GRACE_OVER)
    ] * 2
    assert services_of(app).sweep().purged_ids == [ann.id]
    assert read_account(services_of(app), ann.id) is None
    gone = client.get(path(ann, "deletion"), headers=sue.auth)
    assert answer(gone) == (404, NOT_FOUND)


def test_the_owner_purges_only_with_both_mail_and_password(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    cat = make_person(services_of(app), "cat")
    deactivate(services_of(app), cat.id)
    url, mailed = path(ann, "purge"), bearer(mailed_token(app, ann))
    wrong = make_wrong_tokens(app, ann) | {"recovery": recovery_token(app, ann)}
    before, since = everything(services_of(app)), mark(app)
    password = {"password": PASSWORD}

    assert answer(client.post(url, json=password)) == (401, NO_TOKEN)
    for token in wrong.values():
        refused = client.post(url, headers=bearer(token), json=password)
        assert answer(refused) == (401, NOT_VALID)
    for body in ({}, {"confirm": "ann"}):
        unconfirmed = client.post(url, headers=mailed, json=body)
        assert answer(unconfirmed) == (401, CONFIRM)
        challenge = 'Bearer error="insufficient_user_authentication"'
        assert unconfirmed.headers["WWW-Authenticate"] == challenge
    blank = client.post(url, headers=mailed, json={"password": ""})
    assert (blank.status_code, blank.json) == (400, {"password": ["This field may not be blank."]})
    others = [bearer(mailed_token(app, cat)), bystander.auth]
    for headers in others:
        unseen = client.post(url, headers=headers, json=password)
        assert answer(unseen) == (404, NOT_FOUND)
    assert trail(app, since) == []
    mistyped = client.post(url, headers=mailed, json={"password": "wrong"})
    assert answer(mistyped) == (403, WRONG_PASSWORD)
    assert trail(app, since) == [("confirmation.failed", ann.public_id, None, "anybody")]
    assert everything(services_of(app)) == before


def change_password(app: APIFlask, client: FlaskClient, person: Person) -> str:
    body = {"password": PASSWORD, "new_password": NEW_PASSWORD}
    response = client.post(path(person, "password"), headers=person.auth, json=body)
    assert response.status_code == 200
    deactivate(services_of(app), person.id)
    return NEW_PASSWORD


def change_email(app: APIFlask, client: FlaskClient, person: Person) -> str:
    body = {"email": "new@example.org"}
    response = client.patch(path(person, "update"), headers=person.auth, json=body)
    assert response.status_code == 200
    assert confirm_address(services_of(app), app.test_client(), person.id).status_code == 200
    deactivate(services_of(app), person.id)
    return PASSWORD


def reset_password(app: APIFlask, client: FlaskClient, person: Person) -> str:
    deactivate(services_of(app), person.id)
    before = mailed_token(app, person)
    body = {"token": reset_token(app, person), "new_password": NEW_PASSWORD}
    response = client.post("/api/password-reset/confirm/", json=body)
    assert response.status_code == 200
    stale = client.post(
        path(person, "purge"), headers=bearer(before), json={"password": NEW_PASSWORD}
    )
    assert answer(stale) == (401, NOT_VALID)
    return NEW_PASSWORD


@pytest.mark.parametrize(
    ("change", "changed_at"),
    [
        (change_password, "password_changed_at"),
        (change_email, "email_changed_at"),
        (reset_password, "password_changed_at"),
    ],
)
def test_the_owner_does_not_purge_within_a_day_of_a_change(
    app: APIFlask,
    client: FlaskClient,
    sue: Person,
    change: Callable[[APIFlask, FlaskClient, Person], str],
    changed_at: str,
) -> None:
    ann = make_person(services_of(app), "ann")
    body = {"password": change(app, client, ann)}
    url, headers = path(ann, "purge"), bearer(mailed_token(app, ann))
    before, since = everything(services_of(app)), mark(app)

    at_once = client.post(url, headers=headers, json=body)
    assert everything(services_of(app)) == before
    assert trail(app, since) == []
    day = timedelta(hours=24)
    set_row(app, ann, **{changed_at: now(services_of(app)) - day + timedelta(minutes=10)})
    almost = client.post(url, headers=headers, json=body)
    set_row(app, ann, **{changed_at: now(services_of(app)) - day})
    later = client.post(url, headers=headers, json=body)

    for refused in (at_once, almost):
        assert refused.status_code == 409
        assert re.fullmatch(RECENT_CHANGE, refused.data)
    assert later.status_code == 202
    cat = make_person(services_of(app), "cat")
    change_password(app, client, cat)
    by_staff = client.post(path(cat, "purge"), headers=sue.auth, json={"confirm": "cat"})
    assert by_staff.status_code == 202


@pytest.mark.parametrize("typed", ["ann", "ANN", " Ann", "\uff41nn"])
def test_staff_purge_at_once_by_repeating_the_username(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person, typed: str
) -> None:
    url, since = path(ann, "purge"), mark(app)
    before = everything(services_of(app))

    for body in ({}, {"confirm": "an\u0144"}, {"confirm": "sue"}, {"password": PASSWORD}):
        wrong = client.post(url, headers=sue.auth, json=body)
        assert wrong.status_code == 400
        assert wrong.json == {"confirm": ["Repeat the username of the account."]}
    blank = client.post(url, headers=sue.auth, json={"confirm": ""})
    assert (blank.status_code, blank.json) == (400, {"confirm": ["This field may not be blank."]})
    assert everything(services_of(app)) == before
    assert trail(app, since) == []
    right = client.post(url, headers=sue.auth, json={"confirm": typed})

    assert right.status_code == 202
    expected = staffs_document(account_of(app, ann), state="due", can_reactivate=False)
    assert right.json == expected
    assert trail(app, since) == [
        ("deletion.purge_requested", ann.public_id, sue.public_id, "staff")
    ]
    assert services_of(app).sweep().purged_ids == [ann.id]


def test_nobody_purges_at_once_what_is_active_or_not_theirs(
    app: APIFlask, client: FlaskClient, bystander: Person, sue: Person
) -> None:
    body = {"confirm": "bob", "password": PASSWORD}
    before, since = everything(services_of(app)), mark(app)

    by_staff = client.post(path(bystander, "purge"), headers=sue.auth, json=body)
    by_owner = client.post(path(bystander, "purge"), headers=bystander.auth, json=body)
    by_other = client.post(path(sue, "purge"), headers=bystander.auth, json={"confirm": "sue"})
    nowhere = client.post("/api/profile/4711/purge/", headers=sue.auth, json=body)

    assert answer(by_staff) == (409, NOT_DEACTIVATED)
    assert answer(by_owner) == (404, NOT_FOUND)
    assert answer(by_other) == (403, NOT_AUTHORIZED)
    assert answer(nowhere) == (404, NOT_FOUND)
    assert everything(services_of(app)) == before
    assert trail(app, since) == [("access.denied", sue.public_id, bystander.public_id, "owner")]


def test_a_hold_stops_the_staff_and_is_hidden_from_the_owner(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    hold = client.post(path(ann, "holds"), headers=sue.auth, json={"reason": "a court"})
    assert hold.status_code == 201
    before, since = everything(services_of(app)), mark(app)
    mailed = bearer(mailed_token(app, ann))

    by_staff = client.post(path(ann, "purge"), headers=sue.auth, json={"confirm": "ann"})
    assert everything(services_of(app)) == before
    assert trail(app, since) == []
    by_owner = client.post(path(ann, "purge"), headers=mailed, json={"password": PASSWORD})

    assert answer(by_staff) == (409, HELD)
    assert by_owner.status_code == 202
    account = account_of(app, ann)
    assert by_owner.json == owners_document(account, state="due", can_reactivate=False)
    assert services_of(app).sweep().purged == 0
    assert answer(client.post(REACTIVATE, json=credentials(ann))) == (409, GRACE_OVER)
    seen = client.get(path(ann, "deletion"), headers=sue.auth)
    assert seen.json is not None
    assert (seen.json["state"], seen.json["blocked_by"]) == ("due", "hold")


def test_the_staff_see_who_is_unexplained_and_cannot_purge_them(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    """A script has set the dates of somebody active."""
    set_row(app, ann, deactivated_at=PAST, purge_at=PAST, deactivated_by="owner")
    before = everything(services_of(app))

    shown = client.get(path(ann, "deletion"), headers=sue.auth)
    refused = client.post(path(ann, "purge"), headers=sue.auth, json={"confirm": "ann"})

    assert shown.json is not None
    assert (shown.json["state"], shown.json["blocked_by"]) == ("due", "unexplained")
    assert answer(refused) == (409, UNEXPLAINED)
    assert everything(services_of(app)) == before


# The boundary


def test_there_is_no_moment_in_which_both_return_and_purge_are_allowed(
    app: APIFlask, ann: Person
) -> None:
    made, purge_at = services_of(app), promise(app, ann, purge_in=timedelta(days=1))
    tick, owner = timedelta(microseconds=1), Actor("owner", ann.public_id)

    def returns(moment: datetime) -> bool:
        try:
            with made.writing() as session:
                lifecycle.reactivate(
                    session,
                    ann.id,
                    clock=at(moment),
                    promise=make_promise(),
                    by=owner,
                )
                session.rollback()
        except GraceOver:
            return False
        return True

    def purges(moment: datetime) -> bool:
        return sweep(made, moment).purged == 1

    assert [returns(purge_at + n * tick) for n in (-1, 0, 1)] == [True, False, False]
    assert purges(purge_at - tick) is False
    assert account_of(app, ann).purge_at == purge_at
    assert purges(purge_at) is True
    assert read_account(services_of(app), ann.id) is None


def test_a_purge_a_microsecond_later_is_allowed_too(app: APIFlask, ann: Person) -> None:
    made, purge_at = services_of(app), promise(app, ann, purge_in=timedelta(days=1))

    result = sweep(made, purge_at + timedelta(microseconds=1))

    assert result.purged_ids == [ann.id]


# Two at once

Call = Callable[[], TestResponse]


def at_once(*calls: Call) -> list[TestResponse]:
    """Make all *calls* from threads that start together; their answers in the same order."""
    barrier = threading.Barrier(len(calls))

    def run(call: Call) -> TestResponse:
        barrier.wait(timeout=120)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def coming_back(app: APIFlask, token: str) -> Call:
    client = app.test_client()
    return lambda: client.post(REACTIVATE, json={"token": token})


def waiving(app: APIFlask, person: Person) -> Call:
    client, headers = app.test_client(), bearer(mailed_token(app, person))
    return lambda: client.post(path(person, "purge"), headers=headers, json={"password": PASSWORD})


def test_one_token_used_twice_at_once_works_once(app: APIFlask) -> None:
    for number in range(4):
        ann = make_person(services_of(app), f"ann{number}")
        deactivate(services_of(app), ann.id)
        token = recovery_token(app, ann)

        answers = at_once(coming_back(app, token), coming_back(app, token))

        assert sorted(response.status_code for response in answers) == [200, 401]
        assert account_of(app, ann).is_active
    assert len(events(services_of(app), "account.reactivated")) == 4


def test_a_return_and_a_purge_at_once_do_not_both_happen(app: APIFlask) -> None:
    for number in range(4):
        ann = make_person(services_of(app), f"ann{number}")
        deactivate(services_of(app), ann.id)
        token = recovery_token(app, ann)

        returned, purged = at_once(coming_back(app, token), waiving(app, ann))

        statuses = (returned.status_code, purged.status_code)
        assert statuses in ((200, 401), (409, 202))
        assert account_of(app, ann).is_active is (returned.status_code == 200)
    done = len(events(services_of(app), "account.reactivated")) + len(
        events(services_of(app), "deletion.purge_requested")
    )
    assert done == 4


# How errors look


def test_every_error_is_a_problem_document_for_who_asks_for_one(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    promise(app, ann, purge_in=timedelta())
    accept = {"Accept": "application/problem+json"}

    over = client.post(REACTIVATE, json=credentials(ann), headers=accept)
    dead = client.get(path(ann, "deletion"), headers={**ann.auth, **accept})
    fields = client.post(REACTIVATE, json={}, headers=accept)
    missing = client.patch(
        path(ann, "deletion"), headers={**sue.auth, **accept}, json={"reason": "x"}
    )
    told = client.post(SIGN_IN, json=credentials(ann), headers=accept)

    assert over.json == {
        "type": "urn:problem-type:accountsvc:grace_over",
        "title": "Grace over",
        "status": 409,
        "detail": "The grace period is over. This account can no longer be reactivated.",
        "code": "grace_over",
    }
    assert dead.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert fields.json == {
        "type": "urn:problem-type:accountsvc:invalid_input",
        "title": "Invalid input",
        "status": 400,
        "detail": "Some fields are not valid.",
        "code": "invalid_input",
        "errors": {"email": REQUIRED, "password": REQUIRED},
    }
    assert told.json is not None
    assert {"purge_at", "recovery_token"} < set(told.json)
    answers = [over, dead, fields, missing, told]
    assert [response.status_code for response in answers] == [409, 401, 400, 428, 403]
    for response in answers:
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.json is not None
        assert response.json["status"] == response.status_code
    ids = {response.headers["X-Request-ID"] for response in answers}
    assert len(ids) == len(answers)


def test_a_request_id_of_the_client_is_given_back_on_errors_too(
    client: FlaskClient, ann: Person
) -> None:
    response = client.get(path(ann, "deletion"), headers={"X-Request-ID": "from-the-client.1"})

    assert answer(response) == (401, NO_TOKEN)
    assert response.headers["X-Request-ID"] == "from-the-client.1"
    assert response.headers["Cache-Control"] == "no-store"
