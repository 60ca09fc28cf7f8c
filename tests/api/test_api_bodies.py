"""What a body must be where one is wanted: a 4xx with a sentence, and nothing changed."""

from __future__ import annotations

import json

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from tests.support.factories import Person, make_person, new_name, services_of
from tests.support.state import everything


@pytest.fixture(scope="module")
def app(shared_app: APIFlask) -> APIFlask:
    return shared_app


@pytest.fixture
def ann(app: APIFlask) -> Person:
    return make_person(services_of(app), new_name("ann"))


BAD = {
    "nothing": (b"", "application/json", 400),
    "null": (b"null", "application/json", 400),
    "a number": (b"5", "application/json", 400),
    "an array": (b"[{}]", "application/json", 400),
    "a text": (b'"x"', "application/json", 400),
    "half of it": (b'{"password_saved": "x"', "application/json", 400),
    "two of it": (b"{} {}", "application/json", 400),
    "a comma too much": (b'{"password_saved": "x",}', "application/json", 400),
    "NaN": (b'{"password_saved": NaN}', "application/json", 400),
    "no UTF-8": (b'{"password_saved": "\xff"}', "application/json", 400),
    "UTF-16": (json.dumps({"password_saved": "x"}).encode("utf-16"), "application/json", 400),
    "too deep": (b'{"a":' + b"[" * 60_000, "application/json", 400),
    "a huge number": (b'{"password_saved": ' + b"9" * 5000 + b"}", "application/json", 400),
    "a member twice": (b'{"password_saved": "a", "password_saved": "b"}', "application/json", 400),
    "a NUL byte": (b'{"password_saved": "a\\u0000"}', "application/json", 400),
    "a lone surrogate": (b'{"password_saved": "\\ud83d"}', "application/json", 400),
    "too big": (b'{"password_saved": "' + b"x" * 65_536 + b'"}', "application/json", 413),
    "too big and empty": (b" " * 70_000, "application/json", 413),
    "a form": (b"password_saved=x", "application/x-www-form-urlencoded", 415),
    "plain text": (b'{"password_saved": "x"}', "text/plain", 415),
    "no type": (b'{"password_saved": "x"}', None, 415),
}


def test_a_bad_body_is_refused_with_a_sentence(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = everything(services_of(app))

    answers = {
        name: client.post("/api/save-passwords/", headers=ann.auth, data=body, content_type=kind)
        for name, (body, kind, _) in BAD.items()
    }

    assert {name: got.status_code for name, got in answers.items()} == {
        name: status for name, (_, _, status) in BAD.items()
    }
    for response in answers.values():
        assert response.json
        assert all(response.json.values())
    assert everything(services_of(app)) == before


def test_json_by_any_of_its_types_is_read(client: FlaskClient, ann: Person) -> None:
    for kind in ("application/json; charset=utf-8", "application/vnd.api+json", "Application/JSON"):
        response = client.post(
            "/api/save-passwords/",
            headers=ann.auth,
            data=b'{"password_saved": "x"}',
            content_type=kind,
        )

        assert response.status_code == 201


def test_many_members_twice_are_told_in_time(client: FlaskClient) -> None:
    """Within the 64 KiB there is room for thousands of them."""
    members = ",".join(f'"{number}":1,"{number}":1' for number in range(4000))

    response = client.post(
        "/api/sign-in/", data=f"{{{members}}}"[:65_536], content_type="application/json"
    )

    assert response.status_code in {400, 413}


BAD_FORMS = {
    "no boundary": (b"--x\r\n", "multipart/form-data", 400),
    "another boundary": (b"--y\r\n\r\n--y--\r\n", "multipart/form-data; boundary=x", 400),
    "cut off": (
        b'--x\r\nContent-Disposition: form-data; name="first_name"\r\n\r\nA',
        "multipart/form-data; boundary=x",
        400,
    ),
    "a field twice": (
        b'--x\r\nContent-Disposition: form-data; name="first_name"\r\n\r\nA\r\n'
        b'--x\r\nContent-Disposition: form-data; name="first_name"\r\n\r\nB\r\n--x--\r\n',
        "multipart/form-data; boundary=x",
        400,
    ),
    "no UTF-8": (
        b'--x\r\nContent-Disposition: form-data; name="first_name"\r\n\r\n\xff\r\n--x--\r\n',
        "multipart/form-data; boundary=x",
        400,
    ),
    "a NUL byte": (
        b'--x\r\nContent-Disposition: form-data; name="first_name"\r\n\r\na\0\r\n--x--\r\n',
        "multipart/form-data; boundary=x",
        400,
    ),
    "a huge field": (
        b'--x\r\nContent-Disposition: form-data; name="first_name"\r\n\r\n'
        + b"x" * 200_000
        + b"\r\n--x--\r\n",
        "multipart/form-data; boundary=x",
        413,
    ),
    "too many fields": (
        b"".join(
            b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nA\r\n' % number
            for number in range(40)
        )
        + b"--x--\r\n",
        "multipart/form-data; boundary=x",
        413,
    ),
    "a URL-encoded form": (b"first_name=A", "application/x-www-form-urlencoded", 415),
}


def test_a_bad_form_is_refused_with_a_sentence(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = everything(services_of(app))

    answers = {
        name: client.put(
            f"/api/profile/{ann.id}/update/", headers=ann.auth, data=body, content_type=kind
        )
        for name, (body, kind, _) in BAD_FORMS.items()
    }

    assert {name: got.status_code for name, got in answers.items()} == {
        name: status for name, (_, _, status) in BAD_FORMS.items()
    }
    for response in answers.values():
        assert response.json
    assert everything(services_of(app)) == before


@pytest.mark.parametrize("what", ["purge", "export"])
@pytest.mark.parametrize("authorization", ["", "Bearer null", "Bearer a.b.c"])
def test_who_somebody_is_comes_before_what_they_send(
    client: FlaskClient, what: str, authorization: str
) -> None:
    headers = {"Authorization": authorization} if authorization else {}

    response = client.post(
        f"/api/profile/1/{what}/", data="{", content_type="application/json", headers=headers
    )

    assert response.status_code == 401
