"""The web process: gunicorn keeps the processes, waitress the connections and the threads.

A thread gets a request when it is whole. However slowly a client sends or reads, it costs the
memory of its own connection and nobody a thread; beyond its time it is closed.
``docs/decisions/0033-threads-get-whole-requests.md`` has what this was chosen over, and
``0041-the-reader-answers.md`` which thread answers.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import socket
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from io import BytesIO
from typing import Any

from gunicorn.workers.base import Worker
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.receiver import ChunkedReceiver, FixedStreamReceiver
from waitress.server import BaseWSGIServer, TcpWSGIServer, UnixWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.utilities import BadRequest

from .. import bounds, turns
from ..errors import UNREADABLE
from .crew import LOOK_SECONDS, Crew

# A body above the first is read and thrown away, since no call takes it, so that the client reads
# why; above the second the connection is closed behind the answer.
_KEPT_BODY = bounds.IMAGE_BYTES + 2**20
_READ_BODY = 64 * 2**20
# More of a body lies in a temporary file: in memory, many slow clients together would fill it.
_BODY_IN_MEMORY = 32 * 2**10
# More unfinished bodies of one process, in bytes, would fill the disk; the oldest is closed.
_UNFINISHED_BODIES = 512 * 2**20
_HEAD_BYTES = 32 * 2**10
# A line between chunks is looked through from its beginning whenever more of it comes: one of
# megabytes would keep the loop busy for seconds.
_CHUNK_LINE_BYTES = 4 * 2**10
# More of an answer is made only as fast as it is read; up to here an unread one costs no thread.
_UNREAD_ANSWER = 16 * 2**20
_ANSWER_IN_MEMORY = 256 * 2**10
# nginx uses a connection again within 60 seconds: closed sooner, a request would be on its way into
# a closed one.
_IDLE_SECONDS = 75
# More connections are not accepted until others end, and idle ones end at once.
_CONNECTIONS = 4_096
_SPARE_FILES = 256
# Beyond so many of a process, they are a flood.
_FEW_CONNECTIONS = 16
# Supervisors ask for these, and replace a process that does not answer: in the queue of a flood,
# a process that is only busy would be ended with all that it works on.
# /readyz waits for the database: who asks whether the process lives may not wait behind it.
_PROBES = {"/healthz": 1, "/readyz": 2}
# After SIGTERM an idle connection stays open so long, for a request that is on its way.
_LINGER_SECONDS = 1
# So much of gunicorn's graceful_timeout is left for the process to end by itself.
_END_SECONDS = 1


# The codings of a head; there may be several such headers, and each may go on in the next line.
_CODINGS = re.compile(rb"^transfer-encoding:(.*(?:\n[ \t].*)*)", re.IGNORECASE | re.MULTILINE)

_ORIGIN = re.compile(rb"^origin:[ \t]*(\S+)", re.IGNORECASE | re.MULTILINE)


class _Nothing:
    """A buffer that forgets, for bodies that no call takes."""

    def append(self, data: bytes) -> None:
        """Forget *data*."""

    def getfile(self) -> BytesIO:
        return BytesIO()

    def close(self) -> None:
        """Nothing is open."""

    def __len__(self) -> int:
        return 0


class _Request(HTTPRequestParser):
    """A request that is being read; what is too much of it is forgotten, or an error."""

    # waitress leaves these out of a request that it cannot read, and then fails at its refusal.
    error: Any = None
    completed = False
    command = "GET"
    path = "/"
    query = ""
    request_uri = ""
    url_scheme = "http"

    def received(self, data: bytes) -> int:
        head = self.header_plus + data
        consumed: int = super().received(data)
        if self.completed:
            # Nothing is to follow: waitress would ask for it, and never answer.
            self.expect_continue = False
        if self.error and (origin := _ORIGIN.search(head)):
            # waitress reads no line of a head that is too large: without its origin a browser
            # would not let its page know what was wrong.
            self.headers["ORIGIN"] = origin.group(1).decode("latin-1")
        body = self.body_rcv
        if isinstance(body, ChunkedReceiver):
            if max(len(body.control_line), len(body.trailer)) > _CHUNK_LINE_BYTES:
                self.error, self.completed = BadRequest(""), True
            elif self.body_bytes_received > _KEPT_BODY:
                body.buf = _Nothing()
                # The application refuses by this length what it cannot read any more.
                self.headers["CONTENT_LENGTH"] = str(self.body_bytes_received)
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError as exc:
            # A length of thousands of digits, which Python does not read.
            raise ParsingError("") from exc
        # RFC 9112, section 6.1: with both, or with chunks in HTTP/1.0, a proxy may see another end
        # of this request, and what follows as another client's.
        both = self.chunked and "CONTENT_LENGTH" in self.headers
        if both or "TRANSFER_ENCODING" in self.headers:
            raise ParsingError("")
        # Chunks come in chunks no more than once (the same section): waitress would take the first
        # end for the end of all, where a proxy may look for another.
        if b"," in b",".join(_CODINGS.findall(header_plus)):
            raise ParsingError("")
        # RFC 9112, section 3.2: of two hosts a proxy may have asked its cache or its rules for one,
        # and we would answer for the other. Two come as one value, with a comma.
        host = self.headers.get("HOST")
        if self.version not in {"1.0", "1.1"} or (self.version == "1.1" and host is None):
            raise ParsingError("")
        if host is not None and "," in host:
            raise ParsingError("")
        # A list, of which waitress reads a single word (RFC 9110, section 7.6.1).
        options = self.headers.get("CONNECTION", "").lower().split(",")
        if "close" in {option.strip() for option in options}:
            self.connection_close = True
        if self.content_length > _KEPT_BODY:
            self.body_rcv = FixedStreamReceiver(self.content_length, _Nothing())

    @property
    def kept(self) -> int:
        """The bytes of the body that are kept, in memory or in a file."""
        return 0 if self.body_rcv is None else len(self.body_rcv)


class _Answer(WSGITask):
    """A request that a thread works on, and its answer."""

    def start(self) -> None:
        super().start()
        if self._is_last:
            self.set_close_on_finish()

    def set_close_on_finish(self) -> None:
        # An answer without a length ends with its head (204, 304) or its last chunk: to close the
        # connection behind it, as waitress would, costs each DELETE a connection of its own.
        framed = self.version == "1.1" and (self.chunked_response or not self.has_body)
        if self._is_last or not framed:
            super().set_close_on_finish()

    def build_response_header(self) -> bytes:
        spelled = {name.lower(): name for name, _ in self.response_headers}
        # waitress writes X-Request-Id for X-Request-ID: a client that compares names by their
        # letters, as some do although they may not (RFC 9110, section 5.1), would miss it.
        head, *lines = super().build_response_header().decode("latin-1").split("\r\n")
        fields = [line.partition(":") for line in lines if line]
        if not self.close_on_finish and self.version == "1.1":
            fields.append(("Connection", ":", " keep-alive"))
        lines = [f"{spelled.get(name.lower(), name)}:{value}" for name, _, value in fields]
        return "\r\n".join([head, *lines, "", ""]).encode("latin-1")

    @property
    def _is_last(self) -> bool:
        request, server = self.request, self.channel.server
        return bool(request.error or request.connection_close or server.is_stopping)


class _Refusal(_Answer):
    """The answer to what is too large or no request: the application's, as to everything else."""

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        status = self.request.error.code
        # A body that is too large belongs to a request that was understood: the application sees
        # whose and what for, and answers a browser with the CORS headers that let it show why.
        if status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            known = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            environ[UNREADABLE] = known if status == known else HTTPStatus.BAD_REQUEST
            environ.update(REQUEST_METHOD="GET", PATH_INFO="/api/", QUERY_STRING="")
        return environ


# What a client may keep us waiting for.
_QUESTION, _HEAD, _BODY, _READER = "a question", "a head", "a body", "a reader"


class Connection(HTTPChannel):
    """One client's connection, which knows for how long the client has kept us waiting."""

    parser_class = _Request
    task_class = _Answer
    error_task_class = _Refusal

    _served = 0
    _sent = 0
    _sent_before = 0

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        # Since when the client has kept us waiting, by what for, and how many it had asked then.
        self._since: dict[str, tuple[int, float]] = {}

    def service(self) -> None:
        self._served += 1
        super().service()

    def send(self, data: bytes, do_close: bool = True) -> int:
        sent: int = super().send(data, do_close)
        self._sent += sent
        return sent

    @property
    def is_idle(self) -> bool:
        return not (self.requests or self.request or self.total_outbufs_len)

    @property
    def unfinished(self) -> int:
        """The bytes that are kept of a body which is not whole."""
        return self.request.kept if self.request else 0

    @property
    def body_since(self) -> float:
        """When the body that is on its way was first seen."""
        return self._since.get(_BODY, (0, 0.0))[1]

    def is_overdue(self, now: float, *, idle: float) -> bool:
        """Say whether the client takes too long: to send, to read, or to ask again.

        Call it every second or so: a wait begins when it is first seen.
        """
        if self.total_outbufs_len:
            waited = self._waited(_READER, now)
            if not waited:
                self._sent_before = self._sent
            return waited > _body_seconds(self._sent - self._sent_before)
        if self.requests:
            return False
        if self.request and self.request.headers_finished:
            return self._waited(_BODY, now) > _body_seconds(self.request.body_bytes_received)
        if not self.request:
            self._since.pop(_HEAD, None)
        elif self._waited(_HEAD, now) > bounds.HEAD_SECONDS:
            return True
        # Blank lines begin one head after another: what counts then is that nothing was asked.
        longest = idle if self._served else 0
        if self.request or not self._served:
            longest += bounds.HEAD_SECONDS
        return self._waited(_QUESTION, now) > longest

    def _waited(self, what: str, now: float) -> float:
        """Return for how many seconds the client has kept us waiting for *what* since an answer."""
        served, since = self._since.get(what, (None, now))
        if served != self._served:
            self._since[what] = (self._served, now)
            return 0.0
        return now - since


def _body_seconds(size: int) -> float:
    """Return for how long a body, or an answer, of *size* bytes until now may be on its way."""
    return bounds.BODY_SECONDS + size / bounds.BODY_BYTES_A_SECOND


class _Listener(BaseWSGIServer):
    """What both kinds of listening sockets do; mixed into waitress's server."""

    channel_class = Connection
    is_stopping = False
    _at_once = 1

    def __init__(
        self, *words: Any, probes: Mapping[str, ThreadedTaskDispatcher], **named: Any
    ) -> None:
        self._unread: set[Connection] = set()
        self._probes = probes
        super().__init__(*words, **named)

    def add_task(self, task: Connection) -> None:
        """Have a thread answer the next request of *task*, once its last answer has been read.

        Requests may come one behind another in one piece: whoever sends twenty, and reads no
        answer, would have all of them made, and kept.
        """
        if task.total_outbufs_len > _ANSWER_IN_MEMORY:
            self._unread.add(task)
        else:
            self._begin(task)

    def handle_accept(self) -> None:
        """Accept few one at a time, and of a flood twice as many in each round of the loop.

        One at a time, as waitress does, a probe waits behind a flood for as many rounds as others
        have connected. All at once, one process would take a proxy's few connections, and another
        would have none.
        """
        room = _CONNECTIONS - len(self._map)
        for _ in range(min(self._at_once, room)):
            before = len(self._map)
            super().handle_accept()
            if len(self._map) == before:
                self._at_once = 1
                return
        if len(self._map) > _FEW_CONNECTIONS:
            self._at_once *= 2

    def readable(self) -> bool:
        self.go_on()
        return bool(super().readable())

    def go_on(self) -> None:
        """Have a thread work for whoever has read what was answered."""
        # A thread may add another meanwhile, and the set may not change while it is looked through.
        for one in list(self._unread):
            if not one.total_outbufs_len:
                self._unread.discard(one)
                if one.connected:
                    self._begin(one)

    def _begin(self, task: Connection) -> None:
        self._probes.get(task.requests[0].path, self.task_dispatcher).add_task(task)

    def maintenance(self, now: float) -> None:
        """Do nothing: waitress asks by the time of day, with which the clock may jump."""

    def pull_trigger(self) -> None:
        """Wake the thread at the helm; one that has answered a request itself is awake."""
        if not self.task_dispatcher.has_helm():
            super().pull_trigger()

    def stop_accepting(self) -> None:
        """Let another process of ours, or nobody, accept who connects now.

        Who has connected is accepted before: the last process to close the socket would reset
        them, and the requests that they have sent.
        """
        before = -1
        while before < len(self._map) < _CONNECTIONS:
            before = len(self._map)
            self.handle_accept()
        self.is_stopping, self.accepting = True, False
        self.del_channel()
        self.socket.close()


class TcpListener(_Listener, TcpWSGIServer):
    pass


class _UnixListener(_Listener, UnixWSGIServer):
    pass


class WebWorker(Worker):
    """One web process: a crew that reads, answers and writes, and a thread that looks after it.

    gunicorn's settings ``threads`` and ``graceful_timeout`` count; those of its own parser do not.
    """

    _listeners: Sequence[Any] = ()

    def init_process(self) -> None:
        _allow_open_files(_CONNECTIONS + _SPARE_FILES)
        for name in ("waitress", "waitress.queue"):
            logging.getLogger(name).addFilter(_without_the_client)
        # A queue is no fault: a line for each request that waits for a thread would bury faults.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        super().init_process()

    def run(self) -> None:
        """Serve until SIGTERM, then end what is under way, within gunicorn's graceful_timeout."""
        self._map: dict[int, Any] = {}
        self._next_check = 0.0
        self._crew = Crew(self._read_and_write, self.cfg.threads)
        self._probes = {path: ThreadedTaskDispatcher() for path in _PROBES}
        for path, threads in _PROBES.items():
            self._probes[path].set_thread_count(threads)
        self._listeners = [self._listen(listener.sock) for listener in self.sockets]
        turns.call_before_waiting(self._crew.give_up_helm)
        self._crew.start()
        while self.alive and self.ppid == os.getppid():
            if self._crew.look():
                self.notify()
            time.sleep(LOOK_SECONDS)
        self._crew.take_helm(self._wake)
        self._end()

    def _wake(self) -> None:
        for listener in self._listeners:
            listener.trigger.pull_trigger()

    def _listen(self, sock: socket.socket) -> Any:
        sock.setblocking(False)
        kind = _UnixListener if sock.family == socket.AF_UNIX else TcpListener
        return kind(
            self.wsgi,
            self._map,
            _sock=sock,
            dispatcher=self._crew,
            probes=self._probes,
            adj=_adjustments(self.cfg.threads, self.cfg.backlog),
            bind_socket=False,
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
        )

    def _read_and_write(self, seconds: float) -> None:
        """Handle events, or wait *seconds* for one; each second, let go of who takes too long."""
        wasyncore.loop(timeout=seconds, use_poll=True, map=self._map, count=1)
        if (now := time.monotonic()) >= self._next_check:
            self._next_check = now + 1
            self._let_go_of_slow_clients(now)

    def _let_go_of_slow_clients(self, now: float) -> None:
        crowded = len(self._map) >= _CONNECTIONS - _SPARE_FILES
        connections = self._connections()
        for one in connections:
            if one.is_overdue(now, idle=1 if crowded else _IDLE_SECONDS):
                one.will_close = True
        unfinished = sum(one.unfinished for one in connections)
        for one in sorted(connections, key=lambda one: one.body_since):
            if unfinished > _UNFINISHED_BODIES and one.unfinished:
                unfinished -= one.unfinished
                one.will_close = True

    def _end(self) -> None:
        """End what is under way; a thread that works on is a daemon, and ends with the process."""
        began = time.monotonic()
        for listener in self._listeners:
            listener.stop_accepting()
        while connections := self._connections():
            stopped_for = time.monotonic() - began
            if stopped_for > self.cfg.graceful_timeout - _END_SECONDS:
                break
            for one in connections:
                if one.is_idle and stopped_for > _LINGER_SECONDS:
                    one.will_close = True
            for listener in self._listeners:
                listener.go_on()
            self.notify()
            wasyncore.loop(timeout=0.1, use_poll=True, map=self._map, count=1)

    def _connections(self) -> list[Connection]:
        return [one for one in self._map.values() if isinstance(one, Connection)]


def _adjustments(threads: int, backlog: int) -> Adjustments:
    return Adjustments(
        threads=threads,
        backlog=backlog,
        # The Server header names no program and no version, by which known flaws are looked up.
        ident="accountsvc",
        connection_limit=_CONNECTIONS,
        max_request_header_size=_HEAD_BYTES,
        max_request_body_size=_READ_BODY,
        inbuf_overflow=_BODY_IN_MEMORY,
        outbuf_overflow=_ANSWER_IN_MEMORY,
        outbuf_high_watermark=_UNREAD_ANSWER,
        # A client that is gone is no fault.
        log_socket_errors=False,
        # The application reads the client's address by TRUSTED_PROXIES; waitress would remove it.
        clear_untrusted_proxy_headers=False,
    )


def _allow_open_files(wanted: int) -> None:
    """Raise the limit of open files, as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _without_the_client(record: logging.LogRecord) -> bool:
    """Leave in a line no client's word: waitress writes paths, which may hold a token."""
    record.msg, record.args = "A connection failed", ()
    return True
