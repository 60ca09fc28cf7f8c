"""HTTP as bytes: many requests by one thread, slow clients, and a probe meanwhile.

One thread and ``epoll``: whatever asks takes the processor from what is measured.
"""

from __future__ import annotations

import math
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

_PIECE = 256 * 1024
# Longer than any server takes that still serves: a bound against hanging.
_PATIENCE = 120.0
PROBE_SECONDS = 10.0


def request(method: str, path: str, *, token: str = "", body: bytes = b"", **headers: str) -> bytes:
    """Return a request as bytes; ``content_type`` becomes ``Content-Type``."""
    given = {"Host": "localhost", "Content-Length": str(len(body))}
    if token:
        given["Authorization"] = f"Bearer {token}"
    given |= {name.replace("_", "-").title(): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(frozen=True)
class Answer:
    """A whole answer: its status, its head in lower case, and what is behind the head."""

    status: int
    head: bytes
    body: bytes

    @property
    def closes(self) -> bool:
        return b"\r\nconnection: close" in self.head


def whole(received: bytes, *, ended: bool = False) -> Answer | None:
    """Return the answer that *received* is, None until it is whole; *ended*: nothing follows."""
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return None
    head = head.lower()
    status = int(head[9:12])
    if b"\r\ncontent-length:" in head:
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        is_whole = len(body) >= length
    elif b"\r\ntransfer-encoding: chunked" in head:
        is_whole = body.endswith(b"0\r\n\r\n")
    else:
        is_whole = ended or status in {204, 304}
    return Answer(status, head, body) if is_whole else None


def connect(port: int, data: bytes = b"", *, seconds: float = _PATIENCE) -> socket.socket:
    """Connect to this machine and send *data*; what is asked of the socket takes *seconds*."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.sendall(data)
    except OSError:
        sock.close()
        raise
    return sock


def answer_to(sock: socket.socket, data: bytes = b"") -> Answer | None:
    """Send *data* and return the answer; None if the connection ends or is silent before it."""
    received = b""
    try:
        sock.sendall(data)
        while (answer := whole(received)) is None:
            piece = sock.recv(_PIECE)
            received += piece
            if not piece:
                return whole(received, ended=True)
    except OSError:
        return None
    return answer


def ask(port: int, data: bytes, *, seconds: float = _PATIENCE) -> Answer | None:
    """Return the answer on a connection of its own; None if there is none."""
    try:
        with connect(port, seconds=seconds) as sock:
            return answer_to(sock, data)
    except OSError:
        return None


@dataclass
class Load:
    """What became of many requests: the time of each that was answered, and all statuses.

    The status 0 is a request without an answer.
    """

    times: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.times) / self.seconds

    @property
    def p99(self) -> float:
        """The time within which 99 of 100 were answered, in seconds."""
        return sorted(self.times)[int(len(self.times) * 0.99)] if self.times else math.inf

    @property
    def good(self) -> int:
        return sum(count for status, count in self.statuses.items() if 200 <= status < 300)


class _Line:
    """A connection that asks one request after the other."""

    def __init__(self, port: int, selector: selectors.BaseSelector, load: Load) -> None:
        self._port, self._selector, self._load = port, selector, load
        self._sock: socket.socket | None = None

    def ask_next(self, waiting: Iterator[bytes]) -> None:
        """Begin the next of *waiting*; without one, close."""
        data = next(waiting, None)
        if data is None:
            self.close()
            return
        self._began, self._received, self._left = time.perf_counter(), b"", memoryview(data)
        try:
            if self._sock is None:
                self._sock = connect(self._port)
                self._sock.setblocking(False)
                self._selector.register(self._sock, selectors.EVENT_READ, self)
            self._send()
        except OSError:
            self._end(0)
            self.close()

    def handle(self, events: int) -> bool:
        """Go on; return whether the answer is there, or will never be."""
        assert self._sock is not None
        try:
            if events & selectors.EVENT_WRITE:
                self._send()
            piece = self._sock.recv(_PIECE) if events & selectors.EVENT_READ else None
        except OSError:
            piece = b""
        if piece is None:
            return False
        self._received += piece
        answer = whole(self._received, ended=not piece)
        if answer is None and piece:
            return False
        self._end(0 if answer is None else answer.status)
        if answer is None or answer.closes or not piece:
            self.close()
        return True

    def close(self) -> None:
        if self._sock is not None:
            self._selector.unregister(self._sock)
            self._sock.close()
            self._sock = None

    def _send(self) -> None:
        assert self._sock is not None
        with suppress(BlockingIOError):
            self._left = self._left[self._sock.send(self._left) :]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._left else 0)
        if self._selector.get_key(self._sock).events != wanted:
            self._selector.modify(self._sock, wanted, self)

    def _end(self, status: int) -> None:
        self._load.statuses[status] += 1
        if status:
            self._load.times.append(time.perf_counter() - self._began)


def load(
    port: int, requests: Iterable[bytes], *, connections: int = 8, seconds: float = _PATIENCE
) -> Load:
    """Ask *requests*, one after the other on each connection, for *seconds* at most."""
    waiting, done = iter(requests), Load()
    began = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        lines = [_Line(port, selector, done) for _ in range(connections)]
        for line in lines:
            line.ask_next(waiting)
        while selector.get_map() and time.perf_counter() - began < seconds:
            for key, events in selector.select(1):
                if key.data.handle(events):
                    key.data.ask_next(waiting)
        done.seconds = time.perf_counter() - began
        done.statuses[0] += len(selector.get_map())
        for line in lines:
            line.close()
    done.statuses[0] += sum(1 for _ in waiting)
    return done


class Probe:
    """Asks /healthz again and again, each time on a connection of its own, until it is left."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.times: list[float] = []

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    @property
    def worst(self) -> float:
        """The longest time of an answer in seconds, infinite if there was none to one of them."""
        return max(self.times, default=math.inf)

    def _run(self) -> None:
        asked = request("GET", "/healthz", connection="close")
        while not self._end.is_set():
            began = time.perf_counter()
            answer = ask(self._port, asked, seconds=PROBE_SECONDS)
            is_well = answer is not None and answer.status == 200
            self.times.append(time.perf_counter() - began if is_well else math.inf)
            self._end.wait(0.1)


def drip(port: int, begun: bytes, *, count: int, seconds: float) -> int:
    """Begin *count* requests and send a byte of each a second; return how many were closed."""
    slow: list[socket.socket] = []
    until = time.monotonic() + seconds
    try:
        while len(slow) < count and time.monotonic() < until:
            try:
                slow.append(connect(port, begun, seconds=1))
            except OSError:
                # Nobody accepts them any more: so many are as good as more.
                break
        for sock in slow:
            sock.setblocking(False)
        left = list(slow)
        while left and time.monotonic() < until:
            time.sleep(min(1.0, max(0.0, until - time.monotonic())))
            left = [sock for sock in left if _goes_on(sock)]
        return len(slow) - len(left)
    finally:
        for sock in slow:
            sock.close()


def _goes_on(sock: socket.socket) -> bool:
    """Send a byte; return whether the other side still waits for more."""
    try:
        sock.sendall(b"x")
        return not _is_closed(sock)
    except OSError:
        return False


def _is_closed(sock: socket.socket) -> bool:
    try:
        # An answer may lie before the end.
        while sock.recv(_PIECE):
            pass
    except BlockingIOError:
        return False
    return True
