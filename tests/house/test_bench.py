"""What the measurements of servers rest on: answers are read whole, whatever their framing."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.candidates import CANDIDATES, nginx_config
from bench.timing import Table
from bench.wire import Load, Probe, drip, load, request, whole
from tests.support.processes import PYTHON

HEAD = b"HTTP/1.1 200 OK\r\n"
WHOLE = {
    "a length": HEAD + b"Content-Length: 3\r\n\r\nabc",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "no body": b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n",
}


@contextmanager
def answering(serve: Callable[[socket.socket], object]) -> Iterator[int]:
    """A server that hands each connection to *serve*; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("framing", WHOLE)
def test_an_answer_is_whole_with_its_last_byte(framing: str) -> None:
    data = WHOLE[framing]

    assert [whole(data[:size]) for size in range(len(data))] == [None] * len(data)
    answer = whole(data)
    assert answer is not None
    assert answer.status in {200, 204}


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    data = HEAD + b"Connection: close\r\n\r\nabc"

    assert whole(data) is None
    answer = whole(data, ended=True)
    assert answer is not None
    assert (answer.body, answer.closes) == (b"abc", True)


def test_every_request_is_counted_with_or_without_an_answer() -> None:
    served: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        # The third one is not answered, and the others each on a connection of their own.
        served.append(connection.recv(10_000))
        if len(served) != 3:
            connection.sendall(HEAD + b"Content-Length: 0\r\nConnection: close\r\n\r\n")

    with answering(serve) as port:
        done = load(port, [request("GET", f"/{number}") for number in range(5)], connections=1)

    assert [line.split()[1] for line in served] == [f"/{number}".encode() for number in range(5)]
    assert done.statuses == {200: 4, 0: 1}
    assert (len(done.times), done.good) == (4, 4)


def test_a_probe_without_an_answer_is_infinitely_late() -> None:
    asked = threading.Event()
    with answering(lambda _connection: asked.set()) as port, Probe(port) as probe:
        assert asked.wait(60)

    assert probe.worst == math.inf


def test_who_is_closed_while_dripping_is_counted() -> None:
    with answering(lambda connection: connection.recv(10)) as port:
        assert drip(port, b"GET / HTTP", count=3, seconds=60) == 3


def test_the_slowest_of_a_hundred_is_not_the_p99() -> None:
    times = [number / 1000 for number in range(1, 201)]

    assert Load(times=times).p99 == 0.199


def test_a_table_has_a_cell_for_each_row_and_column() -> None:
    table = Table("servers", {"one": {"a": "1", "b": "2"}, "two": {"b": "3"}})

    assert str(table).splitlines()[2:] == [
        "|  | a | b |",
        "| --- | --- | --- |",
        "| one | 1 | 2 |",
        "| two | – | 3 |",
    ]


def test_every_candidate_is_installed() -> None:
    programs = {one.command("8000")[0] for one in CANDIDATES}

    assert {one for one in programs if not (Path(PYTHON).parent / one).exists()} == set()


def test_the_nginx_that_is_measured_is_the_example(tmp_path: Path) -> None:
    made = nginx_config(tmp_path, upstream=4711, port=4712)

    assert "server 127.0.0.1:4711;" in made
    assert "listen 127.0.0.1:4712;" in made
    assert "proxy_request_buffering on;" in made
    assert "443" not in made
    assert "ssl_" not in made
