"""gunicorn's settings; each differs from its default for the reason beside it.

gunicorn reads them when it starts. A reload (SIGHUP) makes new workers, which read the settings of
the service anew; where it listens, and how many workers there are, stays as it was.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any


def share_metrics() -> None:
    """Give the processes a folder in which each counts, so that any of them can show the sum."""
    master, folder = os.getpid(), tempfile.mkdtemp(prefix="accountsvc-metrics-")
    os.environ[_METRICS] = folder

    @atexit.register
    def remove() -> None:
        # The workers inherit this function and end before; they would remove the folder under the
        # others.
        if os.getpid() == master:
            shutil.rmtree(folder, ignore_errors=True)


_METRICS = "PROMETHEUS_MULTIPROC_DIR"
# The folder must be there before prometheus_client is imported, which looks for it just once; a
# reload that made another folder would count into one that nobody sums up.
if _METRICS not in os.environ:
    share_metrics()

import accountsvc  # noqa: E402
from accountsvc import bounds  # noqa: E402
from accountsvc.config import ConfigError, load_settings  # noqa: E402
from accountsvc.logs import for_people  # noqa: E402
from accountsvc.start import listening  # noqa: E402

try:
    settings = load_settings().without_signing_key()
except ConfigError as exc:
    # The start ends here with these lines; in a worker gunicorn would print a traceback and fork
    # again.
    sys.stderr.write(exc.report)
    raise SystemExit(2) from None

wsgi_app = "accountsvc.start.wsgi:app"
_PAGES = Path(accountsvc.__file__).parent / "pages" / "templates"

bind = listening.bind(settings.port)

# By default gunicorn reads WEB_CONCURRENCY by itself: the processes share hashing by the settings.
workers = settings.web_processes
# gunicorn's own workers give a thread to each half-sent request, or serve one client at a time.
worker_class = "accountsvc.start.webserver.WebWorker"
# Threads for all who may wait for a hash, an image, a long list or a file, or have their turn, and
# eight for everybody else, who would otherwise wait behind them.
_TURNS = (os.cpu_count() or 1) + 1 + bounds.LISTS_AT_ONCE + bounds.FILES_AT_ONCE
_QUEUES = (
    bounds.HASHES_WAITING + bounds.IMAGES_WAITING + bounds.LISTS_WAITING + bounds.FILES_WAITING
)
threads = _QUEUES + _TURNS + 8
# Seconds: a worker that gives no sign of life for so long is replaced. No request takes so long;
# with less, a busy machine would lose healthy workers.
timeout = 30
# Seconds: after SIGTERM requests under way have so long to end. Supervisors kill after ten, which
# would cut requests off.
graceful_timeout = 8
# Engines, S3 clients and locks are made after the fork: two processes that share a connection
# would read each other's answers.
preload_app = False
# The heartbeat file lies in memory: on a busy disk the worker that writes it would be taken for
# dead.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - by mkstemp
# The application logs requests itself; gunicorn's access log would hold paths and addresses.
accesslog = None
# gunicorn's own lines go to stderr. A person on a terminal sees warnings and errors only: five
# lines about workers at each start would bury the URL.
errorlog = "-"
loglevel = "warning" if for_people(production=settings.app_env == "production") else "info"
# Nothing uses the control socket, and its default place, the home folder, may be read-only.
control_socket_disable = True
# The application reads the client's address by TRUSTED_PROXIES; gunicorn's own rule would count
# for it.
forwarded_allow_ips = ""
# `make dev` passes --reload, which watches modules only; a process reads a template once, so a
# changed page would not show.
reload_extra_files = [str(path) for path in _PAGES.glob("*.html")]


def on_starting(_server: Any) -> None:
    """Look for no garbage among imported modules: they stay, and the search delays a stop."""
    gc.freeze()


def when_ready(_server: Any) -> None:
    """Say where it is served, once the socket listens."""
    # In production a program reads stdout, where each line is a JSON object.
    stream = sys.stderr if settings.app_env == "production" else sys.stdout
    stream.write(f"accountsvc: serving {settings.public_url}\n")
    stream.flush()


def post_worker_init(worker: Any) -> None:
    """With ``--reload``, say that the changed code was read."""
    if worker.cfg.reload and worker.age > worker.cfg.workers:
        sys.stdout.write("accountsvc: the changed code was read\n")
        sys.stdout.flush()
