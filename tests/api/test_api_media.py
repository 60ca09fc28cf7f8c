"""CONTRACT section 3: ``GET /media/avatars/…``."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import BinaryIO

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient

from accountsvc import bounds
from accountsvc.adapters.avatarstore import FileStore
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


def test_a_store_that_hangs_takes_some_threads_and_the_next_is_asked_to_come_again(
    app: APIFlask, client: FlaskClient, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_again, read, opened = threading.Event(), FileStore.open, []

    def hang(store: FileStore, key: str) -> BinaryIO | None:
        opened.append(key)
        assert answers_again.wait(300)
        return read(store, key)

    monkeypatch.setattr(FileStore, "open", hang)
    path, most = f"/media/avatars/{ann.avatar}", bounds.FILES_AT_ONCE + bounds.FILES_WAITING
    with ThreadPoolExecutor(most + 1) as people:
        asked = {people.submit(lambda: app.test_client().get(path)) for _ in range(most + 1)}
        refused, waiting = wait(asked, 300, FIRST_COMPLETED)
        begun = len(opened)
        other = client.get("/api/profile/", headers=ann.auth)
        answers_again.set()
        answered = [one.result(300) for one in waiting]
    (response,) = [one.result() for one in refused]

    assert (response.status_code, response.json["code"]) == (503, "busy")
    assert int(response.headers["Retry-After"]) > 0
    assert begun <= bounds.FILES_AT_ONCE
    assert other.status_code == 200
    assert [one.status_code for one in answered] == [200] * most
