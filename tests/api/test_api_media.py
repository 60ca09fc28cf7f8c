"""CONTRACT section 3: ``GET /media/avatars/…``."""

from __future__ import annotations

from apiflask import APIFlask
from flask.testing import FlaskClient

from tests.support.factories import Person, deactivate, services_of


def test_an_avatar_is_served_without_a_token(client: FlaskClient, ann: Person) -> None:
    response = client.get(f"/media/avatars/{ann.avatar}")

    assert response.status_code == 200
    assert response.data[:4] == b"RIFF"
    assert response.headers["Content-Type"] == "image/webp"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "public, max-age=300"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_a_cache_is_told_that_nothing_changed(client: FlaskClient, ann: Person) -> None:
    path = f"/media/avatars/{ann.avatar}"
    etag = client.get(path).headers["ETag"]

    response = client.get(path, headers={"If-None-Match": etag})

    assert (response.status_code, response.data) == (304, b"")
    assert response.headers["ETag"] == etag
    assert client.get(path, headers={"If-None-Match": '"another"'}).status_code == 200


def test_head_has_the_headers_and_no_body(client: FlaskClient, ann: Person) -> None:
    path = f"/media/avatars/{ann.avatar}"

    response = client.head(path)

    assert (response.status_code, response.data) == (200, b"")
    assert response.headers["Content-Length"] == str(len(client.get(path).data))


def test_a_deactivated_accounts_avatar_is_gone_at_once_and_the_bystanders_stays(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person
) -> None:
    path = f"/media/avatars/{ann.avatar}"
    etag = client.get(path).headers["ETag"]

    deactivate(services_of(app), ann.id)

    for headers in ({}, {"If-None-Match": etag}):
        response = client.get(path, headers=headers)
        assert response.status_code == 404
        assert response.headers["Cache-Control"] == "no-store"
    assert client.get(f"/media/avatars/{bob.avatar}").status_code == 200


def test_a_key_that_no_account_shows_is_not_found(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    orphan = f"{'0' * 32}.webp"
    services_of(app).avatars.put(orphan, b"an orphan")

    for key in (
        orphan,
        "",
        "..",
        "%2e%2e%2fledger",
        "a%00b",
        ann.avatar.upper(),
        ann.avatar.removesuffix(".webp"),
        "x" * 3000,
    ):
        response = client.get(f"/media/avatars/{key}")

        assert response.status_code == 404
        assert response.headers["Content-Type"] == "application/json"


def test_a_row_whose_file_is_lost_is_not_found(
    app: APIFlask, client: FlaskClient, ann: Person
) -> None:
    services_of(app).avatars.delete_many([ann.avatar])

    assert client.get(f"/media/avatars/{ann.avatar}").status_code == 404
