"""CONTRACT section 5: the one table of errors, and its two forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc import errors as tree
from accountsvc.api.http import errors
from accountsvc.api.http.errors import TABLE

PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def app(shared_app: APIFlask) -> APIFlask:
    return shared_app


def leaves(cls: type[tree.AccountError]) -> Iterator[type[tree.AccountError]]:
    below = [one for one in cls.__subclasses__() if one.__module__ == tree.__name__]
    if not below:
        yield cls
    for one in below:
        yield from leaves(one)


def sample(cls: type[tree.AccountError]) -> tree.AccountError:
    match cls:
        case tree.InvalidInput:
            return tree.InvalidInput({"email": ["Enter a valid email address."]})
        case tree.Throttled:
            return tree.Throttled(7, limit="password pair")
        case tree.ConfirmationRequired:
            return tree.ConfirmationRequired(900)
        case tree.AccountDeactivated:
            return tree.AccountDeactivated(
                account_id=1, purge_at=datetime(2026, 12, 7, 9, 30, tzinfo=UTC)
            )
    return cls()


# Status, body and the headers that matter, as the contract has them.
EXPECTED: dict[type[tree.AccountError], tuple[int, str, dict[str, str]]] = {
    tree.InvalidInput: (400, '{"email": ["Enter a valid email address."]}', {}),
    tree.InvalidImage: (400, '{"avatar": ["Upload a PNG, JPEG, WebP or GIF image."]}', {}),
    tree.ImageTooLarge: (
        413,
        '{"error": "The image is too large: at most 5 MiB.", "code": "image_too_large"}',
        {},
    ),
    tree.NotAuthenticated: (
        401,
        '{"detail": "Authentication credentials were not provided."}',
        {"WWW-Authenticate": "Bearer"},
    ),
    tree.TokenNotValid: (
        401,
        '{"detail": "Given token not valid for any token type. Sign in again.", '
        '"code": "token_not_valid"}',
        {"WWW-Authenticate": 'Bearer error="invalid_token"'},
    ),
    tree.InvalidCredentials: (401, '{"error": "Invalid email or password"}', {}),
    tree.WrongPassword: (403, '{"error": "Invalid password", "code": "invalid_password"}', {}),
    tree.ConfirmationRequired: (
        401,
        '{"detail": "Password confirmation required.", "code": "confirmation_required"}',
        {"WWW-Authenticate": 'Bearer error="insufficient_user_authentication", max_age=900'},
    ),
    tree.NotAuthorized: (403, '{"error": "Not authorized"}', {}),
    tree.AccountNotFound: (404, '{"detail": "Not found."}', {}),
    tree.PasswordNotFound: (404, '{"error": "Password not found."}', {}),
    tree.AccountDeactivated: (
        403,
        '{"error": "This account is scheduled for deletion on 7 December 2026 at 09:30 UTC. '
        'To keep it, open the link in our newest mail.", "code": "account_deactivated", '
        '"purge_at": "2026-12-07T09:30:00Z"}',
        {},
    ),
    tree.Throttled: (
        429,
        '{"error": "Too many requests of this kind. Try again in 7 seconds.", "code": "throttled"}',
        {"Retry-After": "7"},
    ),
    tree.Busy: (
        503,
        '{"error": "Too many passwords are being checked at this moment. Try again in a few '
        'seconds.", "code": "busy"}',
        {"Retry-After": "5"},
    ),
    tree.VaultKeyMissing: (
        503,
        '{"error": "Your saved passwords cannot be opened until the operator of this service has '
        'mended its settings. None is lost. Tell the operator if this lasts.", '
        '"code": "unavailable"}',
        {"Retry-After": "5"},
    ),
    **dict.fromkeys(
        (
            tree.DatabaseUnavailable,
            tree.StoreUnavailable,
            tree.MailUnavailable,
        ),
        (
            503,
            '{"error": "The service cannot do this at the moment. Try again in a few seconds.", '
            '"code": "unavailable"}',
            {"Retry-After": "5"},
        ),
    ),
}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "a minute"),
        (61, "2 minutes"),
        (900, "15 minutes"),
        (3_300, "55 minutes"),
        (3_301, "about an hour"),
        (3_600, "about an hour"),
        (3_601, "about 2 hours"),
        (86_400, "about 24 hours"),
    ],
)
def test_a_wait_is_said_in_a_unit_that_a_person_reads(seconds: int, words: str) -> None:
    refusal = tree.Throttled(seconds, limit="upload account")

    assert str(refusal) == f"Too many requests of this kind. Try again in {words}."


# Those that have no literal line: status and code.
CODES: dict[type[tree.AccountError], tuple[int, str]] = {
    tree.HoldNotFound: (404, "hold_not_found"),
    tree.ReceiptNotFound: (404, "receipt_not_found"),
    tree.VaultFull: (409, "vault_full"),
    tree.ReactivationForbidden: (403, "reactivation_forbidden"),
    tree.LastStaff: (409, "last_staff"),
    tree.NotDeactivated: (409, "not_deactivated"),
    tree.GraceOver: (409, "grace_over"),
    tree.LegalHold: (409, "legal_hold"),
    tree.Unexplained: (409, "unexplained"),
    tree.RecentChange: (409, "recent_change"),
    tree.VersionMismatch: (412, "version_mismatch"),
    tree.VersionRequired: (428, "version_required"),
    tree.InvalidSchedule: (422, "invalid_schedule"),
}


def test_the_table_has_exactly_the_leaves_of_the_tree() -> None:
    assert set(TABLE) == set(leaves(tree.AccountError)), (
        "give each leaf of accountsvc/errors.py a row in TABLE of accountsvc/api/http/errors.py, "
        'and nothing else one; see "An error" in CONTRIBUTING.md'
    )


def test_every_line_of_the_table_is_asserted_here() -> None:
    assert set(EXPECTED) | set(CODES) == set(TABLE), (
        "write the literal answer of each error in EXPECTED of this file, or status and code in CODES"
    )


@pytest.mark.parametrize("error", TABLE, ids=lambda error: error.__name__)
def test_each_error_has_its_status_body_and_headers(
    app: APIFlask, error: type[tree.AccountError]
) -> None:
    exc = sample(error)

    with app.test_request_context():
        response = errors.answer(exc)

    if error in EXPECTED:
        status, body, headers = EXPECTED[error]
    else:
        status, code = CODES[error]
        body, headers = json.dumps({"error": str(exc), "code": code}), {}
    assert response.status_code == status
    assert response.data.decode() == body
    assert headers.items() <= dict(response.headers).items()
    assert response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("error", TABLE, ids=lambda error: error.__name__)
def test_each_error_is_a_problem_for_who_asks_for_one(
    app: APIFlask, error: type[tree.AccountError]
) -> None:
    exc = sample(error)

    with app.test_request_context(headers={"Accept": PROBLEM}):
        response = errors.answer(exc)

    document: Any = response.json
    assert response.headers["Content-Type"] == PROBLEM
    assert document["status"] == response.status_code == TABLE[error].status
    assert document["type"] == f"urn:problem-type:accountsvc:{TABLE[error].code}"
    assert document["code"] == TABLE[error].code
    assert document["title"]
    assert isinstance(document["detail"], str)
    assert document["detail"]


def test_fields_are_the_errors_of_a_problem(client: FlaskClient) -> None:
    response = client.post("/api/sign-in/", json={"email": 5}, headers={"Accept": PROBLEM})

    assert response.status_code == 400
    assert response.json == {
        "type": "urn:problem-type:accountsvc:invalid_input",
        "title": "Invalid input",
        "status": 400,
        "detail": "Some fields are not valid.",
        "code": "invalid_input",
        "errors": {"email": ["Send text."], "password": ["This field is required."]},
    }


@pytest.mark.parametrize(
    ("accept", "problem"),
    [
        ("application/problem+json", True),
        ("Application/Problem+JSON", True),
        ("application/json, application/problem+json", True),
        ("application/problem+json;q=0.5, */*;q=0.1", True),
        ("application/json, application/problem+json;q=0.5", False),
        ("application/problem+json;q=0", False),
        ("application/json", False),
        ("*/*", False),
        ("text/html, application/*;q=0.9", False),
        ("", False),
        (";;;,q=", False),
    ],
)
def test_a_problem_is_for_who_names_it(client: FlaskClient, accept: str, problem: bool) -> None:
    response = client.get("/api/nothing/", headers={"Accept": accept})

    assert response.status_code == 404
    assert (response.headers["Content-Type"] == PROBLEM) is problem
    assert "Accept" in response.headers["Vary"]


def test_the_framework_answers_in_the_same_shape(client: FlaskClient) -> None:
    answers = [
        client.get("/api/nothing/"),
        client.get("/nothing"),
        client.put("/api/sign-in/"),
        client.post("/api/sign-in/", data=b"x" * 65_537, content_type="application/json"),
        client.post("/api/sign-in/", data=b"email=a", content_type="text/plain"),
        client.post("/api/sign-in/", data=b"[]", content_type="application/json"),
    ]

    assert [(got.status_code, (got.json or {})["code"]) for got in answers] == [
        (404, "not_found"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (413, "too_large"),
        (415, "unsupported_media_type"),
        (400, "bad_request"),
    ]
    for response in answers:
        assert list(response.json or {}) == ["error", "code"]
        assert response.headers["Cache-Control"] == "no-store"
    assert sorted(answers[2].headers["Allow"].split(", ")) == ["OPTIONS", "POST"]


def test_a_client_names_no_error_of_ours(client: FlaskClient) -> None:
    """A field that a client makes up may be called like a member of ours."""
    twice = b'{"error": 1, "error": 2, "detail": 1, "detail": 2, "code": 1, "code": 2}'

    for accept in ("application/json", PROBLEM):
        response = client.post(
            "/api/sign-in/", data=twice, content_type="application/json", headers={"Accept": accept}
        )

        fields = {name: ["Send this field once."] for name in ("code", "detail", "error")}
        assert response.status_code == 400
        assert response.json is not None
        assert fields in (response.json, response.json.get("errors"))
