"""The end of the broker's line: a worker hears nothing but ticks, and nobody commands it.

Whoever can write into Redis could otherwise stop the worker (remote control), have it publish tasks
(an election of its gossip), or choose what it runs and for how long: each message names a task,
arguments, what comes after it, and its own time limit.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import structlog

# Celery and kombu have no types: every ``type: ignore`` of this module is about a class or a call
# of theirs.
from celery.utils.log import get_logger
from celery.worker.consumer import Consumer as CeleryConsumer

from .app import TASKS, TIME_LIMIT

log = structlog.get_logger(__name__)
_celery_log = get_logger(__name__)

# A worker needs to know of no other: the rows are locked by the database. Mingle asks all others at
# the start, gossip holds elections among them, and heartbeats are for these two and for monitors.
# Each of the three reads, or makes others read, what anybody may write into Redis.
_ALONE = {"without_mingle": True, "without_gossip": True, "without_heartbeat": True}

# A tick of ours gives no value to these headers. By them a message could be kept in memory for
# years (eta), or put its own words into the log (shadow).
_WITHOUT_A_VALUE = ("eta", "shadow", "group", "retries")
# Nor has it another limit of time than ours, with which it would run for as long as it says.
_TIME_LIMITS = (None, [None, None], [TIME_LIMIT.total_seconds(), None])


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Celery's consumer, deaf to other workers, and to every message that is no tick."""

    def __init__(self, *args: Any, worker_options: Any = None, **options: Any) -> None:
        super().__init__(*args, worker_options={**(worker_options or {}), **_ALONE}, **options)

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """Return what is called with each message: it drops what is no tick, and says so once.

        Celery's own lines about such a message would repeat all of it, whoever wrote it.
        """
        handle = super().create_task_handler(*args, **options)

        def receive(message: Any) -> None:
            if is_tick(message):
                handle(message)
                return
            log.warning("a message that is no tick was refused", task=_name_of(message))
            message.reject_log_error(_celery_log, self.connection_errors)

        return receive


def is_tick(message: Any) -> bool:
    """Say whether *message* asks for a task of ours, now, and for nothing else."""
    headers = message.headers
    if not isinstance(headers, dict) or _name_of(message) not in TASKS:
        return False
    try:
        body = message.decode()
    except Exception:
        # Anything can be wrong with the bytes of a stranger, and each kind has an exception of its
        # own; raised further, one would end the worker.
        return False
    return (
        isinstance(headers.get("id"), str)
        and not any(headers.get(name) for name in _WITHOUT_A_VALUE)
        and headers.get("timelimit") in _TIME_LIMITS
        and _is_time_or_none(headers.get("expires"))
        and isinstance(body, list)
        and len(body) == 3
        and body[:2] == [[], {}]
        and isinstance(body[2], dict)
        and not any(body[2].values())
    )


def _name_of(message: Any) -> str | None:
    """Return the task that *message* names, or None; no task of anybody's has a longer name."""
    name = message.headers.get("task") if isinstance(message.headers, dict) else None
    return name[:100] if isinstance(name, str) else None


def _is_time_or_none(header: Any) -> bool:
    if header is None:
        return True
    try:
        return isinstance(header, str) and datetime.fromisoformat(header) is not None
    except ValueError:
        return False
