"""gunicorn's settings; each differs from its default for the reason beside it.

gunicorn reads them when it starts. A reload (SIGHUP) makes new workers, which read the settings of
the service anew; where it listens, and how many workers there are, stays as it was.
"""

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

import gunicorn.http.wsgi  # type: ignore[import-untyped]


def share_metrics() -> None:
    """Give the processes a folder in which each counts, so that any of them can show the sum."""
    master, folder = os.getpid(), tempfile.mkdtemp(prefix="accountsvc-metrics-")
    os.environ[_METRICS] = folder

    @atexit.register
    def remove() -> None:
        # Workers inherit this hook and end first: one of them would take the folder away from all.
        if os.getpid() == master:
            shutil.rmtree(folder, ignore_errors=True)


_METRICS = "PROMETHEUS_MULTIPROC_DIR"
# The folder is made once, before the library of metrics is imported: the library looks for it just
# once, and a second folder after a reload would forget what was counted.
if _METRICS not in os.environ:
    share_metrics()

from accountsvc.config import ConfigError, load_settings  # noqa: E402
from accountsvc.logs import describe  # noqa: E402

try:
    settings = load_settings()
except ConfigError as exc:
    # Say it here, before a worker is forked: gunicorn would bury the one line in a traceback.
    sys.stderr.write(f"accountsvc: {exc}\n")
    raise SystemExit(2) from None

wsgi_app = "accountsvc.start.wsgi:app"

# Only this machine is served until HOST says otherwise: a proxy in front decides who may come.
bind = f"{os.environ.get('HOST') or '127.0.0.1'}:{settings.port}"

# Throttles count in Redis. Without it each process counts for itself, and two processes would allow
# twice as many guesses.
workers = int(os.environ.get("WEB_CONCURRENCY") or 2) if settings.redis_url else 1
# A request mostly waits for the database, so each has a thread; more threads than the pool has
# connections would only wait for one.
worker_class = "gthread"
threads = 8
# A worker that has not been heard of for so many seconds is replaced; no request takes that long.
timeout = 30
# Requests under way at SIGTERM have so many seconds to end, so that the whole ends within ten.
graceful_timeout = 8
# Clients and proxies reuse connections; proxies usually let go of an idle one sooner than this.
keepalive = 5
# Engines, S3 clients and locks are made after the fork, in the process that uses them.
preload_app = False
# The heartbeat file on a real disk can block the worker that it watches.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - mkstemp's folder
# The application logs requests itself, without paths and addresses.
accesslog = None
# gunicorn's own lines go where ours go.
errorlog = "-"
# The control socket is of no use here, and would lie in the home folder, which may be read-only.
control_socket_disable = True
# Whose word counts about the client's address is TRUSTED_PROXIES, decided in the application.
forwarded_allow_ips = ""
# Which server and version answers is nobody's business.
gunicorn.http.wsgi.SERVER = "accountsvc"


def on_starting(_server: Any) -> None:
    """Look for no garbage among what is imported by now: it stays, and the process ends sooner."""
    gc.freeze()


def when_ready(server: Any) -> None:
    """Say where the service is, once the socket listens; and let go of clients that stand still.

    A thread that reads a request waits for its client without end, so that a few half-sent requests
    would keep everybody out. Connections inherit what their listener has.
    """
    for listener in server.LISTENERS:
        for option, seconds in ((socket.SO_RCVTIMEO, 10), (socket.SO_SNDTIMEO, 30)):
            listener.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
    sys.stdout.write(f"accountsvc: serving {settings.public_url}\n")
    sys.stdout.flush()


def post_worker_init(worker: Any) -> None:
    """Keep out of the log who sent a request that is too broken for the application, and what."""
    worker.log.error_log.addFilter(_without_the_client)


def _without_the_client(record: logging.LogRecord) -> bool:
    """Leave in a line no client's word: neither address nor path, header or body."""
    fault = record.exc_info[1] if record.exc_info else None
    if isinstance(fault, BlockingIOError):
        # A client stood still: logged as a fault, it would let anybody fill the log.
        return False
    if fault is not None:
        record.msg, record.args = "A connection failed: %s", (json.dumps(describe(fault)),)
        record.exc_info = record.exc_text = None
    elif str(record.msg).startswith("Invalid request from"):
        record.msg, record.args = "A request could not be read", ()
    return True
