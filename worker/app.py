"""The Celery app: every setting that is not Celery's default, with its reason, and the schedule.

A message says no more than "look what is due": the rows are the schedule. So a lost message, a repeated
one, a flushed broker or a second beat does no harm, and the next tick repeats whatever was missed.
"""

from __future__ import annotations

import os
import signal
import ssl
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from celery import Celery
from celery.beat import Scheduler
from celery.signals import (
    beat_embedded_init,
    setup_logging,
    worker_init,
    worker_process_init,
    worker_ready,
    worker_shutting_down,
)
from kombu.entity import Queue

from accountsvc import logs
from accountsvc.config import ConfigError, Settings
from accountsvc.tokens import LEEWAY_SECONDS

log = structlog.get_logger(__name__)

# Each also names its queue.
SWEEP, DELIVER = "accountsvc.sweep", "accountsvc.deliver"

# How long one task goes on; the rest is for its successor. Two slices fit into a shutdown's patience.
SLICE = timedelta(seconds=4)
# Mails are to leave soon after what they tell of.
DELIVER_AT_MOST_EVERY = timedelta(seconds=5)
# A slice, one batch longer than it, and every time-out of a hanging store or mail server.
TIME_LIMIT = timedelta(seconds=120)
# Clocks of two hosts may differ by this much.
CLOCKS_APART = timedelta(seconds=LEEWAY_SECONDS)
# When a stopped worker no longer waits for its tasks: the promise is ten seconds.
PATIENCE = timedelta(seconds=8)


class Schedule(Scheduler):  # type: ignore[misc]
    """A schedule in memory. Its default, a file, is torn by SIGKILL and fought over by two beats.

    What such a file remembers is when an entry last ran; ours run every minute anyway.
    """

    def setup_schedule(self) -> None:
        self.merge_inplace(self.app.conf.beat_schedule)


def make_celery(settings: Settings) -> Celery:
    """Make the Celery app for *settings*; touches nothing but the folder of a broker without a server.

    Raises ConfigError with one line if that folder cannot be made.
    """
    celery = Celery("accountsvc", include=[f"{__package__}.tasks"])
    celery.conf.update(
        **_broker(settings),
        # Workers may start before their broker, and outlive any outage of it: no last attempt.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Nobody asks for a result, so no result backend is needed and nothing is stored.
        task_ignore_result=True,
        # JSON only: a message can never carry code.
        task_serializer="json",
        accept_content=["json"],
        timezone="UTC",
        # A message leaves the queue when its task is done, and goes back if the process is killed.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # No process holds messages that another could take now.
        worker_prefetch_multiplier=1,
        # Last resort against a task that hangs. Only the hard limit: the soft one raises in the midst of
        # a batch, where it would be taken for an account's fault. A kill is rolled back by the database.
        task_time_limit=TIME_LIMIT.total_seconds(),
        # worker_cancel_long_running_tasks_on_connection_loss stays off: a slice is over in seconds, and
        # killing it would only leave its leases to run out.
        #
        # A queue each, served in turns: a backlog of purges never keeps the mails waiting.
        task_queues=[Queue(name) for name in (SWEEP, DELIVER)],  # type: ignore[no-untyped-call]
        task_routes={name: {"queue": name} for name in (SWEEP, DELIVER)},
        # Sweeps wait for the database, not for processors, and the embedded one has a single writer.
        worker_concurrency=2,
        # A forked process says that it is ready; on a busy machine the default of 4 s kills it too early.
        worker_proc_alive_timeout=30.0,
        # Logs are ours: one JSON object a line, ids only. Celery's own lines quote exceptions.
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        beat_scheduler=f"{__name__}:Schedule",
        beat_schedule={
            "sweep": _every(SWEEP, settings.sweep_interval),
            "deliver": _every(DELIVER, min(settings.sweep_interval, DELIVER_AT_MOST_EVERY)),
        },
    )
    _connect_signals(settings)
    return celery


def expiry(interval: timedelta) -> float:
    """Return after how many seconds a tick expires: when its successor comes, by any host's clock.

    So a stopped worker or a long sweep finds a few ticks, not a thousand. Beat writes down a time of its
    own clock, and a worker whose clock is ahead would otherwise find that none is left.
    """
    return (interval + CLOCKS_APART).total_seconds()


def _every(task: str, interval: timedelta) -> dict[str, Any]:
    return {"task": task, "schedule": interval, "options": {"expires": expiry(interval)}}


def _broker(settings: Settings) -> dict[str, Any]:
    parts = urlsplit(settings.celery_broker_url)
    if parts.scheme == "filesystem":
        folder = Path(unquote(parts.path))
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(
                f"CELERY_BROKER_URL names a folder that cannot be made ({exc.strerror}); "
                "for example: filesystem:///var/lib/accountsvc/broker"
            ) from None
        return {
            "broker_transport": f"{__package__}.filesystem:Transport",
            # Kombu's default of 1 s would be four tasks a second at most.
            "broker_transport_options": {"folder": str(folder), "polling_interval": 0.1},
            # Remote control needs a broker that can tell everybody at once.
            "worker_enable_remote_control": False,
        }
    return {
        "broker_url": settings.celery_broker_url,
        # Without this, Celery does not check the server's certificate.
        "broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        if parts.scheme == "rediss"
        else None,
        "broker_transport_options": {
            # When a message that nobody acknowledged is given back; below the time limit a slow task
            # would be started again while it runs, and again after that.
            "visibility_timeout": 2 * TIME_LIMIT.total_seconds(),
            # How often is looked for such messages: by default it takes 100 s longer.
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            # A Redis that hangs is a Redis that is down: say so instead of waiting for ever.
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
    }


def _connect_signals(settings: Settings) -> None:
    # ``weak=False``: nothing else refers to these functions.
    @setup_logging.connect(weak=False)  # type: ignore[untyped-decorator]
    def configure_logs(**_options: object) -> None:
        logs.configure(settings.log_level)

    @worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def say_ready(**_options: object) -> None:
        log.info("worker is ready")

    @worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def remember_the_worker(**_options: object) -> None:
        # Here, and not in beat: a worker that is killed at once is no longer its parent there.
        worker = os.getpid()

        @beat_embedded_init.connect(weak=False)  # type: ignore[untyped-decorator]
        def end_with_the_worker(**_options: object) -> None:
            """End beat, which a worker with ``-B`` forks, when that worker is gone without stopping it.

            After SIGKILL, or for want of memory, it would go on for ever, and keep the worker's output
            open, by which whoever started the worker sees its end.
            """
            threading.Thread(target=_end_with, args=(worker,), daemon=True).start()

        @worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
        def end_if_the_worker_is_gone(**_options: object) -> None:
            """End a process of the pool whose worker was killed before that asked the kernel to be told.

            Celery has asked by now, so whatever happens to the worker from here on ends this too.
            """
            if os.getppid() != worker:
                os._exit(1)

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def bound_shutdown(**_options: object) -> None:
        """End this process after PATIENCE, whatever it waits for; the pool's processes die with it.

        A warm shutdown waits for running tasks without end, though a store may hang. What is cut off is
        rolled back by the database, and repeated from the rows.
        """
        timer = threading.Timer(PATIENCE.total_seconds(), _end_now)
        timer.daemon = True
        timer.start()


def _end_now() -> None:
    # Whoever finds exit code 137 is to know why.
    log.warning(
        "the stop takes too long: what is left is cut off", seconds=PATIENCE.total_seconds()
    )
    os.kill(os.getpid(), signal.SIGKILL)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
