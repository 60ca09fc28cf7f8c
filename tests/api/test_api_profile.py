"""CONTRACT section 3: the profile, its update, the avatar, the password."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from PIL import Image

from accountsvc.adapters import images
from accountsvc.turns import Turns
from tests.api.answers import NO_TOKEN, NOT_AUTHORIZED, NOT_FOUND
from tests.conftest import NewApp
from tests.support.factories import (
    PASSWORD,
    Person,
    access_token,
    bearer,
    deactivate,
    png,
    services_of,
)
from tests.support.state import belongings, effects, events, everything, read_account

NEW_PASSWORD = "another horse, another battery"


@pytest.fixture(autouse=True)
def bystander(app: APIFlask, bob: Person) -> Iterator[Person]:
    before = belongings(services_of(app), bob)
    yield bob
    assert belongings(services_of(app), bob) == before


def update_url(account_id: object) -> str:
    return f"/api/profile/{account_id}/update/"


def upload(client: FlaskClient, person: Person, image: bytes, **fields: str) -> Any:
    """Upload *image*; the body is made by hand, since Flask's client would make temporary files."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = b'--x\r\nContent-Disposition: form-data; name="avatar"; filename="me.png"\r\n\r\n'
    return client.put(
        update_url(person.id),
        headers=person.auth,
        data=b"".join([*parts, head, image, b"\r\n--x--\r\n"]),
        content_type="multipart/form-data; boundary=x",
    )


def test_the_profile_is_the_tokens_whatever_the_body(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    account = read_account(services_of(app), ann.id)
    assert account is not None
    bodies = [b"", b"null", b"5", b"{", b"\xff", b'{"id": 1}', b"x" * 100_000]

    answers = [
        client.open(
            "/api/profile/",
            method=method,
            headers=ann.auth,
            data=body,
            content_type="application/json",
        )
        for method in ("GET", "POST")
        for body in bodies
    ]

    for response in answers:
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "no-store"
        assert (
            response.data.decode()
            == f'{{"id": {ann.id}, "username": "ann", "email": "ann@example.org", '
            f'"pending_email": null, "first_name": "Ann", "last_name": "", "number_phone": "+1 (2) 3", '
            f'"avatar": "/media/avatars/{ann.avatar}", "is_staff": false, '
            f'"date_joined": "{account.joined_at:%Y-%m-%dT%H:%M:%SZ}"}}'
        )


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_the_given_fields_change_and_the_others_stay(
    client: FlaskClient, ann: Person, method: str
) -> None:
    before = client.get("/api/profile/", headers=ann.auth).json
    assert before is not None
    changes = {"last_name": " Øther ", "number_phone": ""}

    response = client.open(update_url(ann.id), method=method, headers=ann.auth, json=changes)

    assert response.status_code == 200
    assert response.json == {**before, "last_name": "Øther", "number_phone": ""}
    assert client.get("/api/profile/", headers=ann.auth).json == response.json


def test_nobody_promotes_themselves(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    before = read_account(services_of(app), ann.id)
    body = {"is_staff": True, "id": bystander.id, "user": bystander.id, "avatar": "/etc/passwd"}

    response = client.patch(update_url(ann.id), headers=ann.auth, json=body)

    after = read_account(services_of(app), ann.id)
    assert response.status_code == 200
    assert before is not None
    assert after is not None
    assert (after.is_staff, after.avatar_key) == (False, before.avatar_key)


def test_a_bad_field_changes_nothing(app: APIFlask, client: FlaskClient, ann: Person) -> None:
    before = everything(services_of(app))
    bad: list[dict[str, Any]] = [
        {"email": "bob@EXAMPLE.org"},
        {"username": "BOB"},
        {"username": " "},
        {"first_name": "x" * 151},
        {"first_name": None},
        {"first_name": 5},
        {"first_name": "a\0"},
        {"first_name": "\udc00"},
        {"number_phone": "1;2"},
        {"first_name": "ok", "email": "broken"},
    ]

    for changes in bad:
        response = client.patch(update_url(ann.id), headers=ann.auth, json=changes)

        assert (changes, response.status_code) == (changes, 400)
        assert response.json is not None
        (sentences,) = response.json.values()
        assert set(response.json) <= set(changes)
        assert all(sentences)
    assert everything(services_of(app)) == before


@pytest.mark.parametrize("call", ["update", "password"])
def test_who_may_not_write_is_told_before_the_body_is_read(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person, bystander: Person, call: str
) -> None:
    method = "PUT" if call == "update" else "POST"

    def answer(account_id: object, headers: dict[str, str]) -> tuple[int, bytes]:
        response = client.open(
            f"/api/profile/{account_id}/{call}/", method=method, headers=headers, data=b"\xff{"
        )
        return response.status_code, response.data

    assert answer(ann.id, {}) == (401, NO_TOKEN)
    assert answer("9" * 40, ann.auth) == (404, NOT_FOUND)
    assert answer(ann.id, bystander.auth) == (403, NOT_AUTHORIZED)
    # Staff could else take an account over by its e-mail address, and so open the vault.
    assert answer(ann.id, sue.auth) == (403, NOT_AUTHORIZED)
    deactivate(services_of(app), ann.id)
    assert answer(ann.id, bystander.auth) == (404, NOT_FOUND)
    assert answer(ann.id, sue.auth) == (403, NOT_AUTHORIZED)
    assert answer(ann.id, ann.auth)[0] == 401


# The e-mail address


def not_fresh(app: APIFlask, person: Person) -> dict[str, str]:
    account = read_account(services_of(app), person.id)
    assert account is not None
    return bearer(access_token(services_of(app), account, fresh=False))


@pytest.mark.parametrize("mode", ["fresh", "password", "none"])
def test_another_e_mail_needs_a_fresh_token_or_the_password_whatever_the_setting(
    new_app: NewApp, app: APIFlask, ann: Person, mode: str
) -> None:
    client = new_app(DELETION_CONFIRMATION=mode).test_client()
    headers = not_fresh(app, ann)
    url, email = update_url(ann.id), "new@example.org"
    before = everything(services_of(app))

    without = client.patch(url, headers=headers, json={"email": email})
    wrong = client.patch(url, headers=headers, json={"email": email, "password": "wrong"})
    unchanged = everything(services_of(app)) == before
    right = client.patch(url, headers=headers, json={"email": email, "password": PASSWORD})

    assert without.status_code == 401
    assert without.json is not None
    assert without.json["code"] == "confirmation_required"
    assert "max_age=86400" in without.headers["WWW-Authenticate"]
    assert wrong.status_code == 403
    assert wrong.data == b'{"error": "Invalid password", "code": "invalid_password"}'
    assert unchanged
    assert right.status_code == 200
    assert right.json is not None
    assert (right.json["email"], right.json["pending_email"]) == (ann.email, email)


@pytest.mark.parametrize("domain", ["example.org", "EXAMPLE.org", "exam\u200bple.org"])
def test_an_old_session_does_not_call_off_that_another_e_mail_was_asked_for(
    app: APIFlask, client: FlaskClient, ann: Person, domain: str
) -> None:
    url, email = update_url(ann.id), "new@example.org"
    client.patch(url, headers=ann.auth, json={"email": email})
    today = f"{ann.email.partition('@')[0]}@{domain}"

    by_an_old_one = client.patch(url, headers=not_fresh(app, ann), json={"email": today})
    pending = client.get("/api/profile/", headers=ann.auth).json
    by_the_owner = client.patch(url, headers=ann.auth, json={"email": ann.email})

    assert by_an_old_one.status_code == (401 if today == ann.email else 200)
    assert pending is not None
    assert pending["pending_email"] == email
    if today == ann.email:
        assert by_the_owner.json is not None
        assert by_the_owner.json["pending_email"] is None


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_fresh_token_makes_another_e_mail_pending_and_changes_the_other_fields_at_once(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person, method: str
) -> None:
    before = client.get("/api/profile/", headers=ann.auth).json
    theirs = belongings(services_of(app), bystander)
    body = {"email": " new@example.org ", "first_name": "Anna"}

    response = client.open(update_url(ann.id), method=method, headers=ann.auth, json=body)

    assert response.status_code == 200
    assert before is not None
    wanted = {**before, "first_name": "Anna", "pending_email": "new@example.org"}
    assert response.json == wanted
    assert client.get("/api/profile/", headers=ann.auth).json == wanted
    assert events(services_of(app), "account.email_changed") == []
    (event,) = events(services_of(app), "account.email_asked")
    assert (event.subject, event.actor_kind, event.details) == (ann.public_id, "owner", {})
    owed = effects(services_of(app), "mail.address_asked", "mail.confirm_address")
    assert len(owed) == 2
    assert "@" not in str([one.payload for one in owed])
    assert belongings(services_of(app), bystander) == theirs


def test_the_same_e_mail_needs_nothing(app: APIFlask, client: FlaskClient, ann: Person) -> None:
    """The existing app sends the whole profile back."""
    profile = client.get("/api/profile/", headers=ann.auth).json

    response = client.put(update_url(ann.id), headers=not_fresh(app, ann), json=profile)

    assert response.status_code == 200
    assert response.json == profile


# The avatar


def test_an_uploaded_avatar_is_encoded_anew_and_served(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    image = png(600, "blue") + b"GPS: at home"

    response = upload(client, ann, image, first_name="Zoë")

    assert response.status_code == 200
    assert response.json["first_name"] == "Zoë"
    assert response.json["avatar"].startswith("/media/avatars/")
    assert ann.avatar not in response.json["avatar"]
    served = client.get(response.json["avatar"])
    assert b"GPS" not in served.data
    with Image.open(BytesIO(served.data)) as shown:
        assert (shown.format, shown.size) == ("WEBP", (512, 512))
    assert [one.payload["key"] for one in effects(services_of(app), "file.delete")] == [ann.avatar]


@pytest.mark.parametrize(
    "image",
    [b"", b"GIF89a", b"<svg/>", b"\x89PNG\r\n\x1a\n", png(200)[: len(png(200)) // 2], b"\0" * 1000],
    ids=["empty", "GIF", "SVG", "PNG", "cut off", "zeros"],
)
def test_what_is_no_image_changes_nothing(
    app: APIFlask, client: FlaskClient, ann: Person, image: bytes
) -> None:
    before = everything(services_of(app))

    response = upload(client, ann, image, first_name="Changed")

    assert response.status_code == 400
    assert list(response.json) == ["avatar"]
    assert everything(services_of(app)) == before


def test_a_bad_field_beside_a_good_image_changes_nothing(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = everything(services_of(app))

    response = upload(client, ann, png(), number_phone="call me")

    assert response.status_code == 400
    assert list(response.json) == ["number_phone"]
    assert everything(services_of(app)) == before


@pytest.mark.parametrize("size", [5 * 1024 * 1024 + 1, 6_000_000, 60_000_000])
def test_too_big_an_avatar_is_413(
    app: APIFlask, client: FlaskClient, ann: Person, size: int
) -> None:
    before = everything(services_of(app))

    response = upload(client, ann, png() + bytes(size))

    assert response.status_code == 413
    assert response.json["code"] in {"image_too_large", "too_large"}
    assert "5 MiB" in response.json["error"]
    assert everything(services_of(app)) == before


def test_an_avatar_of_just_5_mebibytes_is_taken(client: FlaskClient, ann: Person) -> None:
    image = png()

    response = upload(client, ann, image + os.urandom(5 * 1024 * 1024 - len(image)))

    assert response.status_code == 200


@pytest.mark.parametrize("avatar", ["", "null", "undefined", "/media/avatars/x.webp"])
def test_a_form_without_a_file_keeps_the_avatar(
    app: APIFlask, client: FlaskClient, ann: Person, avatar: str
) -> None:
    response = client.put(
        update_url(ann.id),
        headers=ann.auth,
        data={"avatar": avatar, "first_name": "Zoe"},
        content_type="multipart/form-data",
    )

    assert response.status_code == 200
    assert response.json is not None
    assert response.json["avatar"] == f"/media/avatars/{ann.avatar}"
    assert response.json["first_name"] == "Zoe"


def test_a_file_input_that_was_left_empty_keeps_the_avatar(
    client: FlaskClient, ann: Person
) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="avatar"; filename=""\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\r\n--x--\r\n"
    )

    response = client.put(
        update_url(ann.id),
        headers=ann.auth,
        data=body,
        content_type="multipart/form-data; boundary=x",
    )

    assert response.status_code == 200
    assert response.json is not None
    assert response.json["avatar"] == f"/media/avatars/{ann.avatar}"


def test_two_avatars_at_once_are_one_too_many(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    before = everything(services_of(app))

    response = client.put(
        update_url(ann.id),
        headers=ann.auth,
        data={"avatar": [(BytesIO(png()), "a.png"), (BytesIO(png()), "b.png")]},
    )

    assert response.status_code == 400
    assert response.json == {"avatar": ["Send this field once."]}
    assert everything(services_of(app)) == before


def test_an_upload_leaves_no_temporary_file(
    client: FlaskClient, ann: Person, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A photo that was spooled to the disk could be found there after the purge."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))

    response = upload(client, ann, png() + bytes(2_000_000))

    assert response.status_code == 200


def test_an_image_that_finds_too_many_waiting_changes_nothing_and_may_come_again(
    app: APIFlask, client: FlaskClient, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "turns", Turns(1, 0, limit="busy images", refusal=images._BUSY))
    before = everything(services_of(app))

    with images.turns.take():
        response = upload(client, ann, png(), first_name="Changed")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert response.json == {
        "error": "Too many images are being uploaded at this moment. Try again in a few seconds.",
        "code": "busy",
    }
    assert everything(services_of(app)) == before
    assert upload(client, ann, png()).status_code == 200


def test_a_store_that_is_down_is_unavailable_and_the_avatar_stays(
    app: APIFlask, client: FlaskClient, ann: Person, new_app: NewApp, tmp_path: Any
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder")
    broken = new_app(STORAGE_URL=f"file://{blocked}").test_client()

    response = upload(broken, ann, png())

    assert response.status_code == 503
    assert response.json["code"] == "unavailable"
    assert response.headers["Retry-After"] == "5"
    account = read_account(services_of(app), ann.id)
    assert account is not None
    assert account.avatar_key == ann.avatar


# The password


def test_a_changed_password_ends_every_other_session(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    body = {"password": PASSWORD, "new_password": NEW_PASSWORD}

    response = client.post(f"/api/profile/{ann.id}/password/", headers=ann.auth, json=body)

    assert response.status_code == 200
    assert response.json is not None
    assert list(response.json) == ["access", "refresh", "user"]
    assert client.get("/api/profile/", headers=ann.auth).status_code == 401
    fresh = bearer(response.json["access"])
    assert client.get("/api/profile/", headers=fresh).status_code == 200
    old = client.post("/api/sign-in/", json={"email": ann.email, "password": PASSWORD})
    new = client.post("/api/sign-in/", json={"email": ann.email, "password": NEW_PASSWORD})
    assert (old.status_code, new.status_code) == (401, 200)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"password": "wrong", "new_password": NEW_PASSWORD}, 403),
        ({"password": PASSWORD, "new_password": "short"}, 400),
        ({"password": PASSWORD, "new_password": ""}, 400),
        ({"password": PASSWORD}, 400),
        ({"new_password": NEW_PASSWORD}, 400),
        ({"password": PASSWORD, "new_password": "\ud800" * 9}, 400),
    ],
)
def test_a_refused_change_of_the_password_changes_nothing(
    app: APIFlask, client: FlaskClient, ann: Person, body: dict[str, str], status: int
) -> None:
    before = everything(services_of(app))

    response = client.post(f"/api/profile/{ann.id}/password/", headers=ann.auth, json=body)

    assert response.status_code == status
    assert everything(services_of(app)) == before


def test_the_old_avatars_file_goes_with_the_outbox(
    app: APIFlask, client: FlaskClient, ann: Person, bystander: Person
) -> None:
    response = upload(client, ann, png(32, "green"))

    services_of(app).deliver(seconds=10)

    new = response.json["avatar"].removeprefix("/media/avatars/")
    keys = {key for key, _ in services_of(app).avatars.listing()}
    assert keys == {new, bystander.avatar}
