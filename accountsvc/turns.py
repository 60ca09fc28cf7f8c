"""Turns at work that is dear: so many at once, so many wait, and whoever comes then is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import Busy


def _nothing() -> None:
    """Stand in where nobody has to know."""


# Called before work that takes long: the web process sets it, so that a thread which others depend
# on is relieved first.
before_waiting: Callable[[], None] = _nothing


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
