"""Turns at work that is dear: so many at once, so many wait, and whoever comes then is refused.

Here is also where a thread says that it is about to wait, for a turn or for what is outside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import Busy


def _nothing() -> None:
    """Stand in where no thread depends on another: in the worker and in commands."""


_before_waiting: Callable[[], None] = _nothing


def call_before_waiting(relieve: Callable[[], None]) -> None:
    """Have *relieve* called in each thread of this process that says it is about to wait.

    A process has one web server at most, and the rooms that wait know none: so it is one for all.
    """
    global _before_waiting  # noqa: PLW0603
    _before_waiting = relieve


def before_waiting() -> None:
    """Say that this thread is about to do what takes long, so that others depend on it no more.

    Nothing happens where nobody depends on it; call it from any thread, as often as you like.
    """
    _before_waiting()


class Turns:
    """Let *at_once* threads of this process work, and *waiting* more wait for them.

    Without a bound on those who wait, a flood would hold every thread, and everybody else's
    requests would wait behind it. Whoever is not let in has met *limit*, and reads *refusal*.
    """

    def __init__(
        self, at_once: int, waiting: int, *, limit: str, refusal: str | None = None
    ) -> None:
        self._places = threading.BoundedSemaphore(at_once + waiting)
        self._turns = threading.BoundedSemaphore(at_once)
        self._limit = limit
        self._refusal = refusal

    @contextmanager
    def take(self, *, seconds: float | None = None) -> Iterator[None]:
        """Wait for a turn and hold it inside.

        Raises Busy at once if too many wait already, and when none was had within *seconds*.
        """
        before_waiting()
        if not self._places.acquire(blocking=False):
            raise Busy(self._refusal, limit=self._limit)
        try:
            if not self._turns.acquire(timeout=seconds):
                raise Busy(self._refusal, limit=self._limit)
            try:
                yield
            finally:
                self._turns.release()
        finally:
            self._places.release()
