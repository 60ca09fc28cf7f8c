"""The wire as bytes on a socket, from the WSGI server that serves it in production.

What Flask's test client cannot show: what the server adds, and bodies that nobody reads.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection

import pytest
from apiflask import APIFlask

from tests.support.factories import Person, make_person, new_name, png, services_of
from tests.support.processes import Running, client_of, environment, eventually, is_ready
from tests.support.servers import free_port
from tests.support.state import belongings, read_account


@pytest.fixture(scope="module")
def app(shared_app: APIFlask) -> APIFlask:
    return shared_app


UNREADABLE = [
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization Bearer s3cret\r\n\r\n",
    b"GET /recover/eyJ s3cret HTTP/1.1\r\nHost: x\r\n\r\n",
    b"s3cret\r\n\r\n",
]


@pytest.fixture(scope="module")
def gunicorn(
    shared_app: APIFlask, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, int]]:
    """gunicorn as it serves in production, on a free port of the loopback, on the same database and files."""
    settings = services_of(shared_app).settings
    env = environment(
        tmp_path_factory.mktemp("gunicorn"),
        settings.database_url,
        STORAGE_URL=settings.storage_url,
        PORT=str(free_port()),
    )
    with Running("gunicorn", "--config", "gunicorn.conf.py", env=env) as running:
        with client_of(env) as client:
            eventually(lambda: is_ready(client))
        yield running, int(env["PORT"])
        assert "Traceback" not in running.log
        assert "A connection failed" not in running.log


@pytest.fixture(scope="module")
def server(gunicorn: tuple[Running, int]) -> tuple[str, int]:
    """Where it listens."""
    return "127.0.0.1", gunicorn[1]


@pytest.fixture
def ann(app: APIFlask) -> Person:
    return make_person(services_of(app), new_name("ann"))


@pytest.fixture
def bob(app: APIFlask) -> Person:
    return make_person(services_of(app), new_name("bob"))


class Wire:
    """One connection; answers as status, headers and body, read exactly as they are framed."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, timeout=120)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self, *, head: bool = False) -> tuple[int, list[tuple[str, str]], bytes]:
        status = int(self._file.readline().split()[1])
        headers = []
        while (line := self._file.readline().decode().rstrip("\r\n")) != "":
            name, _, value = line.partition(": ")
            headers.append((name.lower(), value))
        length = int(dict(headers).get("content-length", 0))
        return status, headers, b"" if head else self._file.read(length)


def request(method: str, path: str, person: Person, body: bytes | None = None, *more: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {person.token}",
        *more,
    ]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def test_the_204_has_no_byte_after_its_headers(
    app: APIFlask, server: tuple[str, int], ann: Person, bob: Person
) -> None:
    before = belongings(services_of(app), bob)

    with Wire(server) as wire:
        # The second answer must begin right after the first one's headers.
        wire.send(request("DELETE", f"/api/profile/{ann.id}/delete/", ann))
        wire.send(request("GET", "/api/profile/", bob))
        status, headers, _ = wire.answer()
        following, _, body = wire.answer()

    assert status == 204
    names = [name for name, _ in headers]
    assert not {"content-length", "content-type", "transfer-encoding"} & set(names)
    assert {"sunset", "link", "x-request-id"} <= set(names)
    assert len(names) == len(set(names))
    assert following == 200
    assert f'"id": {bob.id}'.encode() in body
    assert belongings(services_of(app), bob) == before


@pytest.mark.parametrize("size", [10, 30_000])
def test_a_body_that_is_not_read_does_not_disturb_the_next_request(
    server: tuple[str, int], size: int, ann: Person, bob: Person
) -> None:
    with Wire(server) as wire:
        wire.send(request("DELETE", f"/api/profile/{ann.id}/delete/", ann, b"x" * size))
        wire.send(request("GET", "/api/profile/", bob))
        first, following = wire.answer()[0], wire.answer()[0]

    assert (first, following) == (204, 200)


def test_a_chunked_body_is_read_like_any_other(server: tuple[str, int], ann: Person) -> None:
    chunks = b'5\r\n{"pas\r\n14\r\nsword_saved": "abc"}\r\n0\r\n\r\n'
    more = ("Transfer-Encoding: chunked", "Content-Type: application/json")

    with Wire(server) as wire:
        wire.send(request("POST", "/api/save-passwords/", ann, None, *more) + chunks)
        status, _, body = wire.answer()

    assert (status, b"password saved successfully" in body) == (201, True)


@pytest.mark.parametrize("chunks", [b"zz\r\nx\r\n0\r\n\r\n", b"5\r\nabcdefgh\r\n0\r\n\r\n"])
@pytest.mark.parametrize("path", ["/api/save-passwords/", "/api/profile/{}/update/"])
def test_a_malformed_chunk_is_the_clients_fault(
    server: tuple[str, int], chunks: bytes, path: str, ann: Person
) -> None:
    method = "POST" if "save" in path else "PUT"
    more = ("Transfer-Encoding: chunked", "Content-Type: application/json")

    with Wire(server) as wire:
        wire.send(request(method, path.format(ann.id), ann, None, *more) + chunks)
        status, _, _ = wire.answer()

    assert status == 400


def test_a_chunked_flood_is_413(server: tuple[str, int], ann: Person) -> None:
    chunks = (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 6 + b"0\r\n\r\n"
    more = ("Transfer-Encoding: chunked", "Content-Type: application/json")

    with Wire(server) as wire:
        wire.send(request("POST", "/api/save-passwords/", ann, None, *more) + chunks)
        status, _, _ = wire.answer()

    assert status == 413


def avatar_request(person: Person, size: int, *, token: bool = True) -> bytes:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="avatar"; filename="a.png"\r\n\r\n'
        + png()
        + bytes(size)
        + b"\r\n--x--\r\n"
    )
    kind = "Content-Type: multipart/form-data; boundary=x"
    sent = request("PUT", f"/api/profile/{person.id}/update/", person, body, kind)
    return sent if token else sent.replace(b"Authorization: Bearer ", b"X-Nothing: ")


def test_a_client_that_sends_6_megabytes_reads_its_413(
    app: APIFlask, server: tuple[str, int], ann: Person
) -> None:
    with Wire(server) as wire:
        wire.send(avatar_request(ann, 6_000_000))
        status, _, answer = wire.answer()

    assert status == 413
    assert b"5 MiB" in answer
    account = read_account(services_of(app), ann.id)
    assert account is not None
    assert account.avatar_key == ann.avatar


def test_a_client_whose_token_has_expired_reads_its_401_after_an_upload(
    server: tuple[str, int], ann: Person
) -> None:
    with Wire(server) as wire:
        wire.send(avatar_request(ann, 4_000_000, token=False))
        status, _, _ = wire.answer()

    assert status == 401


@pytest.mark.parametrize("sent", UNREADABLE)
def test_what_is_no_request_is_400_and_the_log_says_neither_whose_nor_what(
    gunicorn: tuple[Running, int], server: tuple[str, int], sent: bytes
) -> None:
    running, port = gunicorn
    refused = re.compile(r'"route": null, "status": 400')
    before = len(refused.findall(running.log))

    with Wire(server) as wire:
        wire.send(sent)
        status, _, _ = wire.answer()

    assert status == 400
    eventually(lambda: len(refused.findall(running.log)) == before + 1)
    for secret in ("127.0.0.1:", "ip=127", "s3cret"):
        assert secret not in running.log.replace(f"127.0.0.1:{port}", "")


def test_no_header_comes_twice(server: tuple[str, int], ann: Person) -> None:
    answers = []

    with Wire(server) as wire:
        for method, path in (
            ("GET", f"/media/avatars/{ann.avatar}"),
            ("HEAD", f"/media/avatars/{ann.avatar}"),
            ("GET", "/api/profile/"),
            ("GET", "/api/nothing/"),
            ("OPTIONS", "/api/profile/"),
        ):
            wire.send(request(method, path, ann))
            answers.append(wire.answer(head=method == "HEAD"))

    assert [status for status, _, _ in answers] == [200, 200, 200, 404, 204]
    for _, headers, _ in answers:
        names = [name for name, _ in headers]
        assert len(names) == len(set(names)), sorted(names)


@pytest.mark.parametrize("what", ["headers", "a body"])
def test_clients_that_stand_still_keep_nobody_out(server: tuple[str, int], what: str) -> None:
    """More of them than there are threads."""
    half = {
        "headers": b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
        "a body": b"POST /api/sign-in/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{",
    }[what]
    with ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(socket.create_connection(server)).sendall(half)
        # Until all of them are in a thread's hands.
        time.sleep(0.5)

        asked = HTTPConnection(*server, timeout=120)
        asked.request("GET", "/healthz")

        assert asked.getresponse().status == 200
        asked.close()
