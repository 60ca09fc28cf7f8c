"""The Celery app: every setting that is not Celery's default, with its reason, and the schedule.

A message says no more than "look what is due": the rows are the schedule. So a lost message, a
repeated one, a flushed broker or a second beat does no harm, and the next tick repeats whatever was
missed.
"""

from __future__ import annotations

import os
import signal
import ssl
import sys
import threading
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog

# Celery and kombu have no types: every ``type: ignore`` of this module is about a class, a
# decorator or a call of theirs.
from celery import Celery
from celery.apps import worker as celery_program
from celery.beat import Scheduler
from celery.exceptions import CPendingDeprecationWarning
from celery.platforms import SecurityWarning
from celery.signals import (
    beat_embedded_init,
    celeryd_after_setup,
    celeryd_init,
    setup_logging,
    worker_init,
    worker_process_init,
    worker_ready,
    worker_shutting_down,
)
from kombu.entity import Queue
from kombu.exceptions import OperationalError as BrokerUnavailable
from kombu.transport import TRANSPORT_ALIASES

from accountsvc import logs, private
from accountsvc.config import ConfigError, Settings, nearly_settings
from accountsvc.services import build_services
from accountsvc.tokens import LEEWAY_SECONDS

log = structlog.get_logger(__name__)

# A task has one of these names, and so has its queue: in one queue, a backlog of purges would
# keep the mails waiting.
SWEEP, DELIVER, SEAL = "accountsvc.sweep", "accountsvc.deliver", "accountsvc.seal"
TASKS = (SWEEP, DELIVER, SEAL)

# A task ends after this time and leaves the rest to its successor. Two slices, one running and one
# just begun, must fit into STOP_PATIENCE, or every stop in a backlog would be cut off.
SLICE = timedelta(seconds=4)
# A receipt waits for its seal no longer than about twice this.
SEAL_EVERY = timedelta(minutes=1)
# A mail that says "your account will be deleted" must not wait for a sweep interval of an hour.
DELIVER_AT_MOST_EVERY = timedelta(seconds=5)
# A task may take a slice, one batch beyond it, and every time-out of a hanging store or mail
# server. With less, a task that merely waits would be killed.
TIME_LIMIT = timedelta(seconds=120)
# The clocks of beat's host and the worker's host may differ by this much.
CLOCKS_APART = timedelta(seconds=LEEWAY_SECONDS)
# A stopped worker waits for its tasks no longer than this; with ten seconds or more a supervisor
# that kills after ten would be first, and nothing would say why.
STOP_PATIENCE = timedelta(seconds=8)


class Schedule(Scheduler):  # type: ignore[misc]
    """A schedule in memory: Celery's default, a file, is torn by SIGKILL and shared by two beats.

    Such a file remembers when an entry last ran; an entry that runs every minute needs no memory.
    """

    def setup_schedule(self) -> None:
        self.merge_inplace(self.app.conf.beat_schedule)

    def tick(self, *arguments: Any, **options: Any) -> Any:
        """Send what is due and return the seconds to sleep, also after the host's clock went back.

        By Celery's own method an entry that ran at a time to come would wait until that time: after
        a clock that was ahead by ten days, nobody would sweep for ten days.
        """
        entries = self.schedule.values()
        if any(entry.last_run_at > entry.default_now() for entry in entries):
            for entry in entries:
                entry.last_run_at = entry.default_now()
            # This holds when each entry runs next, and is made anew where it is missing.
            self._heap = None
        return super().tick(*arguments, **options)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send what is due; a broker that does not answer is one line of the log.

        Never raises. Celery's own method logs a stack of thirty frames for each tick that is lost.
        """
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as exc:
            # Celery raises one class for every fault and keeps the fault itself as its context.
            if isinstance(exc.__context__, BrokerUnavailable):
                log.warning("the broker does not answer; the next tick goes on", task=entry.task)
            else:
                log.error("a tick was not sent; the next one is", task=entry.task, exc_info=exc)


def make_celery(settings: Settings) -> Celery:
    """Make the Celery app for *settings*; touch nothing but a serverless broker's folder.

    Raises ConfigError with one line if that folder cannot be made.
    """
    celery = Celery("accountsvc", include=[f"{__package__}.tasks"])
    celery.conf.update(
        **_broker(settings),
        # Workers may start before their broker, and outlive any outage of it: there is no last
        # attempt, after which a worker would stand still for ever.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Results are never asked for; without this, each would be stored in a backend that is
        # missing.
        task_ignore_result=True,
        # JSON only: a message can never carry code.
        task_serializer="json",
        accept_content=["json"],
        timezone="UTC",
        # A message leaves the queue when its task is done, and goes back if the process is killed.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # Whoever can write into Redis could otherwise shut the worker down, or have it grow, shrink
        # and listen elsewhere.
        worker_enable_remote_control=False,
        worker_consumer=f"{__package__}.consumer:Consumer",
        # A process takes one message at a time; with more, mails would wait behind its purges while
        # another process is idle.
        worker_prefetch_multiplier=1,
        # The last resort against a task that hangs. Only the hard limit is set: the soft one
        # raises in the midst of a batch, where it would be taken for an account's fault. A kill is
        # rolled back by the database.
        task_time_limit=TIME_LIMIT.total_seconds(),
        # worker_cancel_long_running_tasks_on_connection_loss stays off: a slice is over in seconds,
        # and killing it would leave its leases to run out, so that mails are five minutes late.
        #
        # Queues are served in turns, so each task has a queue of its own.
        task_queues=[Queue(name) for name in TASKS],  # type: ignore[no-untyped-call]
        task_routes={name: {"queue": name} for name in TASKS},
        # Sweeps wait for the database, not for processors, and SQLite has a single writer: more
        # processes would only wait for each other.
        worker_concurrency=2,
        # A forked process must say within this time that it is ready; on a busy machine the default
        # of 4 s kills it too early.
        worker_proc_alive_timeout=30.0,
        # Logs take the form of accountsvc.logs. Celery's own handlers would write every line once
        # more in a form of theirs, with the texts of exceptions, which may quote a row.
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        **_beat(settings),
    )
    _keep_output_in_the_log(settings)
    _refuse_wrong_keys(settings)
    _end_together()
    return celery


def expiry(interval: timedelta) -> float:
    """Return the seconds after which a tick expires: its successor has come, by any host's clock.

    A stopped worker or a long sweep finds a few ticks, not a thousand. Beat writes down a time of
    its own clock, so to a worker whose clock is ahead every tick would otherwise be expired.
    """
    return (interval + CLOCKS_APART).total_seconds()


def _beat(settings: Settings) -> dict[str, Any]:
    return {
        "beat_scheduler": f"{__name__}:Schedule",
        # When the host's clock goes back while beat reckons how long to sleep, that is until a time
        # to come. By default it would sleep for five minutes, in which nobody sweeps.
        "beat_max_loop_interval": DELIVER_AT_MOST_EVERY.total_seconds(),
        "beat_schedule": {
            "sweep": _every(SWEEP, settings.sweep_interval),
            "deliver": _every(DELIVER, min(settings.sweep_interval, DELIVER_AT_MOST_EVERY)),
            "seal": _every(SEAL, SEAL_EVERY),
        },
    }


def _every(task: str, interval: timedelta) -> dict[str, Any]:
    return {"task": task, "schedule": interval, "options": {"expires": expiry(interval)}}


def _broker(settings: Settings) -> dict[str, Any]:
    parts = urlsplit(settings.celery_broker_url)
    if parts.scheme == "filesystem":
        folder = Path(unquote(parts.path))
        try:
            private.make_folder(folder)
        except OSError as exc:
            raise ConfigError(
                f"CELERY_BROKER_URL names a folder that cannot be made ({exc.strerror}); "
                "for example: filesystem:///var/lib/accountsvc/broker"
            ) from None
        return {
            "broker_transport": f"{__package__}.filesystem:Transport",
            # Kombu polls once a second by default, which would be four tasks a second at most.
            "broker_transport_options": {"folder": str(folder), "polling_interval": 0.1},
        }
    # A URL names its transport by these words, and a setting beside it would not be read.
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__package__}.redis:Transport"
    return {
        "broker_url": settings.celery_broker_url,
        # Without this, Celery does not check the server's certificate.
        "broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        if parts.scheme == "rediss"
        else None,
        "broker_transport_options": {
            # A message that nobody acknowledged is given back after this time; below the time
            # limit a slow task would be started again while it runs, and again after that.
            "visibility_timeout": 2 * TIME_LIMIT.total_seconds(),
            # Every ten seconds such messages are looked for; by default they wait 100 s longer.
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            # A Redis that hangs is taken for one that is down; without time-outs the worker would
            # wait for ever and log nothing.
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
    }


# Signals are connected with ``weak=False``: nothing else refers to these functions, so they would
# be collected as garbage before their signal comes.
def _keep_output_in_the_log(settings: Settings) -> None:
    """Give the worker's lines the form of accountsvc.logs; leave out those that say nothing."""
    production = settings.app_env == "production"

    @setup_logging.connect(weak=False)  # type: ignore[untyped-decorator]
    def configure_logs(**_options: object) -> None:
        logs.configure(settings.log_level, production=production)
        logs.say_misspelled(nearly_settings(os.environ))

    @celeryd_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def print_nothing_beside_the_log(instance: Any, **_options: object) -> None:
        """Keep Celery from printing its banner, its page about root and its farewell.

        A program that reads the log line by line as JSON would fail on them. Errors, which Celery
        logs, stay.
        """
        instance.quiet = True
        warnings.filterwarnings("ignore", category=SecurityWarning)
        celery_program.safe_say = _say_nothing

    @celeryd_after_setup.connect(weak=False)  # type: ignore[untyped-decorator]
    def leave_out_advice(**_options: object) -> None:
        """Leave out the advice that Celery gives at each loss of its broker.

        It recommends worker_cancel_long_running_tasks_on_connection_loss, which stays off on
        purpose. Celery's set-up switches this warning on, so it is switched off after that.
        """
        warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)

    @worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def say_ready(**_options: object) -> None:
        if production and os.geteuid() == 0:
            log.warning("the worker runs as root: give it a user of its own")
        log.info("worker is ready")


def _refuse_wrong_keys(settings: Settings) -> None:
    """End a worker at its start that could open no vault, or write no ledger."""

    @worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def look_at_the_keys(**_options: object) -> None:
        services = build_services(settings)
        try:
            services.refuse_without_signing_key()
            services.refuse_wrong_vault_keys()
        except ConfigError as exc:
            sys.stderr.write(exc.report)
            raise SystemExit(2) from None
        finally:
            # The worker forks after this: processes that share a connection would read each
            # other's answers.
            services.database.engine.dispose()


def _say_nothing(*_arguments: object) -> None:
    """Stand in for the function with which Celery prints from its signal handlers."""


def _end_together() -> None:
    """See to it that all processes of a worker end when it ends, and that it ends in time."""

    @worker_init.connect(weak=False)  # type: ignore[untyped-decorator]
    def remember_the_worker(**_options: object) -> None:
        # The worker's id is taken before it forks: in beat itself a worker that was killed at once
        # is no longer the parent, and beat would wait for the end of another process.
        worker = os.getpid()

        @beat_embedded_init.connect(weak=False)  # type: ignore[untyped-decorator]
        def end_with_the_worker(**_options: object) -> None:
            """End beat, which a worker with ``-B`` forks, when that worker was killed.

            After SIGKILL, or for want of memory, beat would go on for ever, and keep the worker's
            output open, by which whoever started the worker sees its end.
            """
            threading.Thread(target=_end_with, args=(worker,), daemon=True).start()

        @worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
        def end_if_the_worker_is_gone(**_options: object) -> None:
            """End a process of the pool whose worker was killed while it started.

            By this signal Celery has asked the kernel to end the process with its worker; a worker
            that was killed before that would leave it behind for ever.
            """
            if os.getppid() != worker:
                os._exit(1)

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def bound_shutdown(**_options: object) -> None:
        """End this process after STOP_PATIENCE, whatever it waits for, and the pool with it.

        A warm shutdown waits for running tasks without end, though a store may hang. What is cut
        off is rolled back by the database, and repeated from the rows.
        """
        timer = threading.Timer(STOP_PATIENCE.total_seconds(), _end_now)
        timer.daemon = True
        timer.start()
        # A thread writes the line: this is a signal handler, which may have interrupted another
        # line in the midst, and Python refuses to write into a stream that is being written to.
        threading.Thread(target=log.info, args=("worker stops",), daemon=True).start()


def _end_now() -> None:
    # SIGKILL ends with exit code 137: without this line an operator would look for want of memory.
    log.warning(
        "the stop takes too long: what is left is cut off", seconds=STOP_PATIENCE.total_seconds()
    )
    os.kill(os.getpid(), signal.SIGKILL)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
