"""The web process on the wire: slow clients, broken requests, large bodies, and its stop."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from select import select as select_readable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from apiflask import APIFlask
from sqlalchemy import select
from waitress import wasyncore
from waitress.adjustments import Adjustments

from accountsvc import bounds
from accountsvc.db.models import Account
from accountsvc.start import webserver
from tests.support.factories import Person, make_person, new_name, services_of
from tests.support.processes import Running, client_of, environment, eventually, is_ready
from tests.support.servers import free_port
from tests.support.state import read_account

HEAD = b"POST /api/sign-in/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SLOW = {
    "a head": HEAD,
    "no byte": b"",
    "a body": HEAD + b"Content-Length: 1000\r\n\r\n{",
    "a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n{",
}


@contextmanager
def serving(app: APIFlask, folder: Path, **changes: str) -> Iterator[tuple[Running, int]]:
    """The web process on the database of *app*, ready, and its port."""
    env = environment(
        folder, services_of(app).settings.database_url, PORT=str(free_port()), **changes
    )
    with Running("gunicorn", "--config", "gunicorn.conf.py", env=env) as running:
        with client_of(env) as client:
            eventually(lambda: is_ready(client))
        yield running, int(env["PORT"])


@pytest.fixture(scope="module")
def server(
    shared_app: APIFlask, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, int]]:
    with serving(shared_app, tmp_path_factory.mktemp("web")) as served:
        yield served
        assert "Traceback" not in served[0].log


@pytest.fixture
def ann(shared_app: APIFlask) -> Person:
    return make_person(services_of(shared_app), new_name("ann"))


def connect(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=120)
    connection.sendall(data)
    return connection


class _Kept(io.BufferedReader):
    """What is read of a connection, which one answer after another is taken from."""

    def close(self) -> None:
        """Stay open: an HTTPResponse closes what it has read to its end."""

    def makefile(self, _mode: str) -> _Kept:
        return self


def answers(connection: socket.socket, count: int) -> list[int]:
    """Read *count* answers; their statuses."""
    statuses = []
    file = _Kept(socket.SocketIO(connection, "rb"))
    for _ in range(count):
        answer = HTTPResponse(file)  # type: ignore[arg-type]
        answer.begin()
        answer.read()
        statuses.append(answer.status)
    return statuses


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def drip(connections: Sequence[socket.socket]) -> None:
    for connection in connections:
        try:
            connection.sendall(b"x")
        except OSError:
            continue


# Slow clients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", SLOW)
def test_four_hundred_slow_clients_keep_nobody_out(
    server: tuple[Running, int], ann: Person, what: str
) -> None:
    """Many times more of them than there are threads, and each goes on sending."""
    port = server[1]
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(port, SLOW[what])) for _ in range(400)]

        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            statuses = []
            for _ in range(3):
                drip(slow if what != "no byte" else ())
                statuses += [
                    client.get("/healthz").status_code,
                    client.get("/api/profile/", headers=ann.auth).status_code,
                ]

    assert statuses == [200] * 6


@contextmanager
def listener() -> Iterator[tuple[webserver.TcpListener, dict[int, Any], Any]]:
    """A listener without its process, the connections that it has accepted, and its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        listening.setblocking(False)
        channels: dict[int, Any] = {}
        made = webserver.TcpListener(
            None,
            channels,
            _sock=listening,
            dispatcher=SimpleNamespace(),
            probes={},
            adj=Adjustments(connection_limit=1000),
            bind_socket=False,
            sockinfo=(listening.family, listening.type, 0, listening.getsockname()),
        )
        yield made, channels, listening.getsockname()
        wasyncore.close_all(channels)


def test_a_flood_of_connections_is_accepted_in_few_rounds_and_a_few_one_by_one() -> None:
    """A probe is behind those who connected before it; and two processes share a proxy's few."""
    with listener() as (made, channels, address), ExitStack() as stack:
        accepted = []
        for number in (8, 292):
            for _ in range(number):
                stack.enter_context(socket.create_connection(address))
            rounds = 0
            while len(made.active_channels) < sum(accepted, number):
                wasyncore.loop(timeout=1, use_poll=True, map=channels, count=1)
                rounds += 1
                assert rounds < 1000
            accepted.append(number)
            if number == 8:
                assert rounds == 8
        assert rounds < 30


def test_a_flood_is_accepted_up_to_the_connections_that_a_process_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webserver, "_CONNECTIONS", 100)
    with listener() as (_made, channels, address), ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(address))

        for _ in range(40):
            wasyncore.loop(timeout=0.01, use_poll=True, map=channels, count=1)

        assert len(channels) == 100


@pytest.mark.parametrize("count", [1, 24, 300])
def test_who_has_connected_before_the_end_is_accepted(count: int) -> None:
    """The kernel would reset them, with the requests that they have sent."""
    with listener() as (made, _channels, address), ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(address))

        made.stop_accepting()

        assert len(made.active_channels) == count
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


def test_who_drips_on_is_closed(server: tuple[Running, int]) -> None:
    """However it drips: a byte a second is sent all the time, and still each comes to its end."""
    port = server[1]
    with ExitStack() as stack:
        slow = {what: stack.enter_context(connect(port, SLOW[what])) for what in SLOW}
        still = stack.enter_context(connect(port, SLOW["a body"]))
        dripping = [slow[what] for what in slow if what != "no byte"]

        def all_closed() -> bool:
            drip(dripping)
            return all(map(is_closed, [*slow.values(), still]))

        eventually(all_closed, pause=1)


def test_an_idle_connection_is_kept_for_a_proxy(server: tuple[Running, int]) -> None:
    """Longer than a head may take: a proxy asks again after a while, on the same connection."""
    asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

    with connect(server[1], asked) as connection:
        first = answers(connection, 1)
        time.sleep(bounds.HEAD_SECONDS + 2)
        connection.sendall(asked)
        again = answers(connection, 1)

    assert (first, again) == ([200], [200])


class Waiting:
    """A connection whose client is the test, and whose seconds are counted by it."""

    def __init__(self) -> None:
        ours, self.client = socket.socketpair()
        self.tasks: list[object] = []
        server = SimpleNamespace(
            active_channels={}, add_task=self.tasks.append, pull_trigger=lambda: None
        )
        self.connection = webserver.Connection(server, ours, ("", 0), Adjustments(), map={})
        self.now = 1000.0
        assert not self.is_overdue()

    def __enter__(self) -> Waiting:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        self.connection.handle_close()

    def receive(self, data: bytes) -> None:
        self.client.sendall(data)
        self.connection.handle_read()

    def write(self, size: int) -> None:
        """Answer with *size* bytes, more than the kernel takes."""
        self.connection.requests = []
        self.connection.write_soon(b"x" * size)

    def answered(self) -> None:
        """The request that was whole is answered, and the answer read."""
        self.connection.connected = False
        self.connection.service()
        self.connection.connected, self.connection.requests = True, []
        self.connection.close_when_flushed = False

    def is_overdue(self, seconds: float = 0.0) -> bool:
        """Say whether the client takes too long, *seconds* later."""
        self.now += seconds
        return bool(self.connection.is_overdue(self.now, idle=75))


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    with Waiting() as made:
        yield made


@pytest.mark.parametrize("sent", [b"", b"G", HEAD])
def test_a_head_has_its_seconds_however_it_drips(waiting: Waiting, sent: bytes) -> None:
    if sent:
        waiting.receive(sent)
        assert not waiting.is_overdue()
    for _ in range(bounds.HEAD_SECONDS):
        if sent:
            waiting.receive(b"x")
        assert not waiting.is_overdue(1)

    assert waiting.is_overdue(0.01)


@pytest.mark.parametrize("sent", [b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\nG"])
def test_blank_lines_gain_no_time(waiting: Waiting, sent: bytes) -> None:
    for _ in range(2 * bounds.HEAD_SECONDS):
        waiting.receive(sent)
        if waiting.is_overdue(0.6):
            break

    assert waiting.now - 1000 < bounds.HEAD_SECONDS + 1


def test_blank_lines_gain_no_time_after_an_answer(waiting: Waiting) -> None:
    waiting.receive(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    waiting.answered()
    for _ in range(1000):
        waiting.receive(b"\r\n")
        if waiting.is_overdue(0.6):
            break

    assert 75 < waiting.now - 1000 <= 75 + bounds.HEAD_SECONDS + 1


@pytest.mark.parametrize("body", ["length", "chunks"])
def test_a_body_has_its_seconds_however_it_drips(waiting: Waiting, body: str) -> None:
    framing = {"length": b"Content-Length: 9999999\r\n\r\n", "chunks": SLOW["a chunk"][len(HEAD) :]}
    waiting.receive(HEAD + framing[body])
    assert not waiting.is_overdue()
    for _ in range(bounds.BODY_SECONDS):
        waiting.receive(b"x")
        assert not waiting.is_overdue(1)

    # The bytes that came are worth less than a thousandth of a second.
    assert waiting.is_overdue(0.01)


def test_a_body_that_comes_fast_enough_may_take_longer(waiting: Waiting) -> None:
    waiting.receive(HEAD + b"Content-Length: 9999999\r\n\r\n")
    assert not waiting.is_overdue()
    for _ in range(3 * bounds.BODY_SECONDS):
        for _ in range(8):
            waiting.receive(b"x" * (bounds.BODY_BYTES_A_SECOND // 8))
        assert not waiting.is_overdue(1)

    assert not waiting.is_overdue(bounds.BODY_SECONDS)
    assert waiting.is_overdue(0.01)


def test_each_request_has_its_own_seconds(waiting: Waiting) -> None:
    for _ in range(3):
        waiting.receive(b"GET / HTTP/1.1\r\n")
        assert not waiting.is_overdue()
        assert not waiting.is_overdue(bounds.HEAD_SECONDS - 1)
        waiting.receive(b"Host: x\r\n\r\n")
        # It is worked on, for as long as that takes.
        assert not waiting.is_overdue(1000)
        waiting.answered()

    assert len(waiting.tasks) == 3
    assert not waiting.is_overdue()
    assert not waiting.is_overdue(75)
    assert waiting.is_overdue(0.01)


def test_who_does_not_read_an_answer_is_closed(waiting: Waiting) -> None:
    waiting.write(4_000_000)
    assert not waiting.is_overdue()
    for _ in range(bounds.BODY_SECONDS):
        # Some bytes are read, and the kernel takes as many more.
        waiting.client.recv(1000)
        waiting.connection.handle_write()
        assert not waiting.is_overdue(1)

    assert waiting.is_overdue(1)


def test_who_reads_fast_enough_is_not_closed(waiting: Waiting) -> None:
    waiting.write(12_000_000)
    assert not waiting.is_overdue()
    for _ in range(2 * bounds.BODY_SECONDS):
        left = 2 * bounds.BODY_BYTES_A_SECOND
        while left > 0:
            left -= len(waiting.client.recv(left))
            waiting.connection.handle_write()
        assert not waiting.is_overdue(1)


# What is no request ------------------------------------------------------------------------------

UNREADABLE = {
    "a length and chunks": b"POST /api/sign-in/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /api/sign-in/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "a negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a list of lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4\r\n\r\nabcd",
    "a signed length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd",
    "chunks in chunks": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunks in the next line": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    b" , chunked\r\n\r\n0\r\n\r\n",
    "chunks twice": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a bare line feed": b"GET /healthz HTTP/1.1\r\nHost: x\nX-Other: y\r\n\r\n",
    "a space before the colon": b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\nX-Other: y\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "a later version": b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n",
    "a length of five thousand digits": HEAD + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\n",
    "a length in other digits": HEAD + "Content-Length: ١".encode() + b"\r\n\r\n",
    "no method": b" / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a line between chunks without end": SLOW["a chunk"][: -len(b"3e8\r\n{")]
    + b"1;"
    + b"x" * 200_000,
    "a trailer without end": SLOW["a chunk"][: -len(b"3e8\r\n{")] + b"0\r\n" + b"X: y" * 50_000,
}
SMUGGLED = b"DELETE /api/profile/{}/delete/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n"


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_is_no_request_is_400_and_nothing_behind_it_is_done(
    shared_app: APIFlask, server: tuple[Running, int], ann: Person, what: str
) -> None:
    smuggled = SMUGGLED.decode().format(ann.id, ann.token).encode()

    with connect(server[1], UNREADABLE[what] + smuggled) as connection:
        answer = HTTPResponse(connection)
        answer.begin()
        body = json.loads(answer.read())

        assert answer.status == 400
        assert body["code"] == "bad_request"
        assert answer.headers["Connection"] == "close"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Request-ID"]
    account = read_account(services_of(shared_app), ann.id)
    assert account is not None
    assert account.is_active


def test_a_head_that_is_too_large_is_431_and_a_browser_may_read_why(
    server: tuple[Running, int],
) -> None:
    lines = b"".join(b"X-Filler-%d: %s\r\n" % (number, b"x" * 1000) for number in range(40))
    head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nOrigin: http://localhost:3000\r\n"

    with connect(server[1], head + lines + b"\r\n") as connection:
        answer = HTTPResponse(connection)
        answer.begin()

        assert answer.status == 431
        assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


# Bodies and answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7_000_000, 40_000_000])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_browser_may_read_why_its_file_is_too_large(
    server: tuple[Running, int], ann: Person, size: int, framing: str
) -> None:
    pieces = [b"x" * 1_000_000] * (size // 1_000_000)
    headers = {
        **ann.auth,
        "Origin": "http://localhost:3000",
        "Content-Type": "multipart/form-data; boundary=x",
    }

    answer = httpx.put(
        f"http://127.0.0.1:{server[1]}/api/profile/{ann.id}/update/",
        content=iter(pieces) if framing == "chunks" else b"".join(pieces),
        headers=headers,
        timeout=120,
    )

    assert answer.status_code == 413
    assert "5 MiB" in answer.json()["error"]
    assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


def test_a_body_that_is_too_large_for_anything_leaves_no_trace_on_the_disk(
    shared_app: APIFlask, tmp_path: Path, ann: Person
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    with serving(shared_app, tmp_path, TMPDIR=str(files)) as (running, port):
        head = f"DELETE /api/profile/{ann.id}/delete/ HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n"
        with connect(port, head.encode() + b"x" * 50_000_000):
            open_files = [
                os.readlink(link)
                for pid in running.alive()
                for link in Path(f"/proc/{pid}/fd").iterdir()
            ]

    assert [name for name in open_files if str(files) in name and "metrics" not in name] == []


def test_who_reads_no_answer_gets_no_further_ones_made(
    shared_app: APIFlask, tmp_path: Path
) -> None:
    """A hundred requests in one piece: with the first answers unread, the rest is not worked on."""
    asked = b"GET /api/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with (
        serving(shared_app, tmp_path) as (running, port),
        connect(port, asked * 100) as connection,
    ):
        eventually(lambda: running.log.count("/api/openapi.json") > 0)
        time.sleep(3)
        made = running.log.count("/api/openapi.json")
        statuses = answers(connection, 100)

    assert made < 100
    assert statuses == [200] * 100


def test_answers_without_a_length_keep_their_connection(
    server: tuple[Running, int], ann: Person
) -> None:
    asked = f"GET /api/profile/{ann.id}/export/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ann.token}\r\n\r\n"

    with connect(server[1], asked.encode() * 2) as connection:
        assert answers(connection, 2) == [200, 200]


@pytest.mark.parametrize("words", [b"close", b"Close", b"upgrade, close", b"close,keep-alive"])
def test_who_asks_for_the_end_of_the_connection_gets_it(
    server: tuple[Running, int], words: bytes
) -> None:
    asked = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: " + words + b"\r\n\r\n"
    with connect(server[1], asked) as connection:
        assert answers(connection, 1) == [200]
        eventually(lambda: is_closed(connection))


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n", 200),
        (b"DELETE /api/profile/1/delete/ HTTP/1.1\r\nHost: x\r\n", 401),
        (b"POST /api/sign-in/ HTTP/1.1\r\nContent-Length: 2\r\n", 400),
        (b"POST /api/sign-in/ HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n", 400),
    ],
)
def test_who_expects_to_be_asked_for_a_body_that_nobody_waits_for_is_answered(
    server: tuple[Running, int], asked: bytes, status: int
) -> None:
    with connect(server[1], asked + b"Expect: 100-continue\r\n\r\n") as connection:
        head = connection.recv(12)

    assert head == f"HTTP/1.1 {status}".encode()


def test_who_expects_to_be_asked_for_a_body_is_asked_and_answered(
    server: tuple[Running, int],
) -> None:
    with connect(server[1], HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n") as asking:
        assert asking.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        asking.sendall(b"{}")
        assert answers(asking, 1) == [400]


def test_it_listens_at_a_socket_in_a_folder(shared_app: APIFlask, tmp_path: Path) -> None:
    env = environment(tmp_path, services_of(shared_app).settings.database_url)
    # The path of a socket has at most 107 bytes, and that of a test's folder may have more.
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "web.sock"
        words = ("--config", "gunicorn.conf.py", "--bind", f"unix:{path}")
        running = stack.enter_context(Running("gunicorn", *words, env=env))
        running.wait_for("accountsvc: serving")
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://x", timeout=120) as client:
            assert client.get("/readyz").status_code == 200


def test_probes_are_answered_while_every_thread_waits(
    shared_app: APIFlask, server: tuple[Running, int], ann: Person
) -> None:
    """A supervisor that gets no answer would replace a process which is only busy."""
    asked = f"DELETE /api/profile/{ann.id}/delete/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ann.token}\r\n\r\n"
    with services_of(shared_app).writing() as session, ExitStack() as stack:
        session.execute(select(Account).where(Account.id == ann.id).with_for_update())
        waiting = [stack.enter_context(connect(server[1], asked.encode())) for _ in range(100)]
        with connect(server[1], b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as probe:
            statuses = answers(probe, 1)
        answered, _, _ = select_readable(waiting, [], [], 0)

    assert statuses == [200]
    # All wait for the row until they are refused, five seconds later.
    assert answered == []


# Slow requests -----------------------------------------------------------------------------------

# The service, with one more path: it answers when the test lets it, and is as slow as a lock that
# is held or a store that does not answer, without the time at which these are given up.
KEPT_APP = """
import os, time
from accountsvc.start.wsgi import app as service

def app(environ, start_response):
    kept_probe = environ["PATH_INFO"] == "/readyz" and os.path.exists(os.environ["KEPT"] + ".begun")
    if environ["PATH_INFO"] != "/kept" and not kept_probe:
        return service(environ, start_response)
    open(os.environ["KEPT"] + ".begun", "a").write("x")
    while not os.path.exists(os.environ["KEPT"]):
        time.sleep(0.01)
    start_response("200 OK", [("Content-Length", "4")])
    return [b"kept"]
"""
KEPT_THREADS = 8
KEPT = b"GET /kept HTTP/1.1\r\nHost: x\r\n\r\n"


class KeptServer:
    """One web process, whose requests for /kept are answered from the moment of ``release``."""

    def __init__(self, running: Running, port: int, folder: Path) -> None:
        self.running, self.port, self._kept = running, port, folder / "kept"

    def release(self) -> None:
        self._kept.touch()

    @property
    def begun(self) -> int:
        """How many requests for /kept a thread has begun with."""
        path = self._kept.with_suffix(".begun")
        return path.stat().st_size if path.exists() else 0


@pytest.fixture
def kept_server(shared_app: APIFlask, tmp_path: Path) -> Iterator[KeptServer]:
    (tmp_path / "kept_app.py").write_text(KEPT_APP)
    env = environment(
        tmp_path,
        services_of(shared_app).settings.database_url,
        PORT=str(free_port()),
        WEB_CONCURRENCY="1",
        PYTHONPATH=str(tmp_path),
        KEPT=str(tmp_path / "kept"),
    )
    words = ("--config", "gunicorn.conf.py", "--threads", str(KEPT_THREADS), "kept_app:app")
    with Running("gunicorn", *words, env=env) as running:
        with client_of(env) as client:
            eventually(lambda: is_ready(client))
        server = KeptServer(running, int(env["PORT"]), tmp_path)
        yield server
        server.release()
        assert "Traceback" not in running.log


def test_whether_the_process_lives_is_said_while_everybody_asks_whether_it_is_ready(
    kept_server: KeptServer,
) -> None:
    """A database that hangs holds up /readyz: the process would be ended for it, and all others."""
    ready = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        stack.enter_context(connect(kept_server.port, KEPT))
        eventually(lambda: kept_server.begun == 1)
        for _ in range(20):
            stack.enter_context(connect(kept_server.port, ready))
        eventually(lambda: kept_server.begun == 3)

        with connect(kept_server.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as probe:
            assert answers(probe, 1) == [200]
        assert kept_server.begun == 3
        kept_server.release()


def test_a_slow_request_keeps_no_other_from_being_answered(
    kept_server: KeptServer, ann: Person
) -> None:
    """The thread that has read it answers it, and another one reads on."""
    asked = f"GET /api/profile/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ann.token}\r\n\r\n"
    with ExitStack() as stack:
        # The one before it answers, and the one behind it waits on the same connection.
        early = stack.enter_context(connect(kept_server.port, asked.encode()))
        assert answers(early, 1) == [200]
        kept = stack.enter_context(connect(kept_server.port, KEPT + asked.encode()))
        eventually(lambda: kept_server.begun == 1)

        for _ in range(3):
            early.sendall(asked.encode())
            assert answers(early, 1) == [200]
            late = stack.enter_context(connect(kept_server.port, asked.encode() * 3))
            assert answers(late, 3) == [200] * 3
        assert select_readable([kept], [], [], 0)[0] == []
        kept_server.release()

        assert answers(kept, 2) == [200, 200]


def test_more_slow_requests_than_threads_are_read_and_all_answered_in_the_end(
    kept_server: KeptServer, ann: Person
) -> None:
    with ExitStack() as stack:
        kept = [stack.enter_context(connect(kept_server.port, KEPT)) for _ in range(60)]
        eventually(lambda: kept_server.begun == KEPT_THREADS)
        asked = (
            f"GET /api/profile/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ann.token}\r\n\r\n"
        )
        waiting = stack.enter_context(connect(kept_server.port, asked.encode()))

        # More than the kernel keeps for both ends: it is sent because it is read.
        head = HEAD + b"Content-Length: 60000000\r\n\r\n"
        stack.enter_context(connect(kept_server.port, head + b"x" * 50_000_000))
        probe = stack.enter_context(
            connect(kept_server.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        )
        assert answers(probe, 1) == [200]
        assert select_readable([*kept, waiting], [], [], 0)[0] == []
        assert kept_server.begun == KEPT_THREADS
        kept_server.release()

        assert [answers(one, 1) for one in kept] == [[200]] * 60
        assert answers(waiting, 1) == [200]


def test_hundreds_of_short_requests_in_one_piece_keep_nobody_from_being_read(
    kept_server: KeptServer, ann: Person
) -> None:
    """They are answered, and between them whoever else has asked."""
    piece = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n" * 250
    with ExitStack() as stack:
        many = [stack.enter_context(connect(kept_server.port, piece)) for _ in range(20)]
        with httpx.Client(base_url=f"http://127.0.0.1:{kept_server.port}", timeout=120) as client:
            statuses = [
                client.get("/healthz").status_code,
                client.get("/api/profile/", headers=ann.auth).status_code,
            ]
        made = kept_server.running.log.count('"status": 404')
        assert [answers(one, 250) for one in many] == [[404] * 250] * 20
    assert statuses == [200, 200]
    assert made < 250 * 20
    eventually(lambda: kept_server.running.log.count('"status": 404') == 250 * 20)


# The end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["a head", "a body"])
def test_a_request_under_way_is_answered_after_sigterm(
    shared_app: APIFlask, tmp_path: Path, ann: Person, what: str
) -> None:
    whole = (
        f"DELETE /api/profile/{ann.id}/delete/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ann.token}\r\n"
        "Content-Length: 2\r\n\r\n{}"
    ).encode()
    sent = len(whole) - (2 if what == "a body" else 20)
    with serving(shared_app, tmp_path) as (running, port):
        with connect(port, whole[:sent]) as connection, connect(port) as idle:
            time.sleep(0.5)
            running.process.send_signal(signal.SIGTERM)
            eventually(lambda: is_closed(idle))
            connection.sendall(whole[sent:])
            answer = HTTPResponse(connection)
            answer.begin()

            assert (answer.status, answer.headers["Connection"]) == (204, "close")
        running.process.wait(120)

        assert running.process.returncode == 0
        assert "Traceback" not in running.log


def test_clients_that_drip_do_not_hold_up_the_end(shared_app: APIFlask, tmp_path: Path) -> None:
    with serving(shared_app, tmp_path) as (running, port), ExitStack() as stack:
        for data in SLOW.values():
            stack.enter_context(connect(port, data))
        running.stop()

        # gunicorn would have killed what was not over by its graceful_timeout, and said so.
        assert running.process.returncode == 0
        assert not re.search("SIGKILL|WORKER TIMEOUT", running.log)
