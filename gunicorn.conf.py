"""gunicorn's settings; each differs from its default for the reason beside it."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import shutil
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import gunicorn.http.wsgi


def share_metrics() -> None:
    """Give the processes a folder in which each counts, so that any of them can show the sum."""
    master, folder = os.getpid(), tempfile.mkdtemp(prefix="accountsvc-metrics-")
    os.environ[_METRICS] = folder

    @atexit.register
    def remove() -> None:
        # The workers end too, and before.
        if os.getpid() == master:
            shutil.rmtree(folder, ignore_errors=True)


_METRICS = "PROMETHEUS_MULTIPROC_DIR"
# Not again at a reload, and before the library is imported, which looks for it just once.
if _METRICS not in os.environ:
    share_metrics()

from accountsvc.config import ConfigError, load_settings  # noqa: E402
from accountsvc.logs import describe  # noqa: E402

try:
    settings = load_settings()
except ConfigError as exc:
    # One line, and before a worker is forked: gunicorn would print a traceback.
    sys.stderr.write(f"accountsvc: {exc}\n")
    raise SystemExit(2) from None

wsgi_app = "wsgi:app"

# Only this machine, until somebody says otherwise: what is in front decides who may come.
bind = f"{os.environ.get('HOST') or '127.0.0.1'}:{settings.port}"

# Throttles count in Redis; without it they count in the process, and are true only if there is one.
workers = int(os.environ.get("WEB_CONCURRENCY") or 2) if settings.redis_url else 1
# A request mostly waits for the database. A thread a request; more than the pool's connections would wait.
worker_class = "gthread"
threads = 8
# A worker that cannot be heard for this long is replaced; no request of ours takes it.
timeout = 30
# SIGTERM: requests under way have so long to end; with it the whole ends within ten seconds.
graceful_timeout = 8
# Clients and proxies reuse connections; longer than the usual proxy's own patience is not needed.
keepalive = 5
# Engines, S3 clients and locks are made after the fork, in the process that uses them.
preload_app = False
# The heartbeat file on a real disk can block the worker that it watches.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder, made by mkstemp
# The application logs requests itself, without paths and addresses.
accesslog = None
# gunicorn's own lines go where ours go.
errorlog = "-"
# It is of no use here, and its default place is in the home folder.
control_socket_disable = True
# Whose word counts about the client's address is TRUSTED_PROXIES, decided in the application.
forwarded_allow_ips = ""
# Which server and version answers is nobody's business.
gunicorn.http.wsgi.SERVER = "accountsvc"


def on_starting(_server: Any) -> None:
    """Look for no garbage among what is imported by now: it stays, and the end comes sooner."""
    gc.freeze()


def when_ready(server: Any) -> None:
    """Say where it is served, once the socket listens; and let go of clients that stand still.

    A thread that reads a request waits for its client without end, so that a few half-sent requests would
    keep everybody out. Connections inherit what their listener has.
    """
    for listener in server.LISTENERS:
        for option, seconds in ((socket.SO_RCVTIMEO, 10), (socket.SO_SNDTIMEO, 30)):
            listener.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
    sys.stdout.write(f"accountsvc: serving {settings.public_url}\n")
    sys.stdout.flush()


def post_worker_init(worker: Any) -> None:
    """Keep out of the log who sends, and what, where a request is too broken for the application."""
    worker.log.error_log.addFilter(_without_the_client)


def _without_the_client(record: logging.LogRecord) -> bool:
    """Leave in a line no client's word: neither address nor path, header or body."""
    fault = record.exc_info[1] if record.exc_info else None
    if isinstance(fault, BlockingIOError):
        # A client stood still; that is no fault.
        return False
    if fault is not None:
        record.msg, record.args = "A connection failed: %s", (json.dumps(describe(fault)),)
        record.exc_info = record.exc_text = None
    elif str(record.msg).startswith("Invalid request from"):
        record.msg, record.args = "A request could not be read", ()
    return True
