"""The threads of a web process: one reads, answers and writes; the others are there to relieve it.

A thread that hands each request to another one, and gets the interpreter back for the next, spends
more on handing over than most requests cost. So the thread at the helm, which reads and writes for
all connections, answers a whole request itself. Whatever keeps it (a hash, a lock, a store) keeps
nobody else: it is relieved of the helm, and answers to the end as a thread like any other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)

# A request that is found unanswered at two looks, so far apart, has its thread relieved. Sooner,
# and a slice of another process would hand the helm over; later, and everybody would feel it.
LOOK_SECONDS = 0.02
# Requests that are each short are answered for so long between two looks at the connections: a few
# clients that send hundreds in one piece would keep all others, and probes, from being read.
_ANSWER_SECONDS = 0.02
# A thread that finds nothing to read waits so long for something.
_WAIT_SECONDS = 1.0


class Task(Protocol):
    """A whole request, to be answered once."""

    def service(self) -> None:
        """Answer it."""


class Crew:
    """Threads that take turns at the helm and answer requests.

    *read_and_write* waits at most the seconds that it is given, is called by the thread at the helm
    alone, and adds what it has read whole by :meth:`add_task`. While all other threads are busy the
    one at the helm answers nothing, so that reading goes on whatever happens; requests then wait
    for a thread in the order in which they came.
    """

    def __init__(self, read_and_write: Callable[[float], None], threads: int) -> None:
        self._read_and_write = read_and_write
        self._threads = threads
        # Guards what follows.
        self._changed = threading.Condition()
        self._waiting: deque[Task] = deque()
        # The identity of the thread at the helm; None: the next one that is free takes it.
        self._helm: int | None = None
        self._idle = 0
        # The number of the request that the thread at the helm answers; None: it reads.
        self._answering: int | None = None
        self._answered = 0
        self._seen: int | None = None
        self._rounds = 0
        self._is_ending = False
        self._fault: BaseException | None = None

    def start(self) -> None:
        """Start the threads; they are daemons, and one that hangs ends with the process."""
        for number in range(self._threads + 1):
            threading.Thread(target=self._serve, name=f"crew-{number}", daemon=True).start()

    def add_task(self, task: Task) -> None:
        """Have *task* answered, by whichever thread; call it from any of them."""
        with self._changed:
            self._waiting.append(task)
            if self._is_ending:
                self._changed.notify()

    def has_helm(self) -> bool:
        """Say whether the calling thread is at the helm, and will look at all connections next."""
        return self._helm == threading.get_ident()

    def give_up_helm(self) -> None:
        """Have another thread take the helm, if this one has it: what it does now takes long."""
        with self._changed:
            if self.has_helm() and self._answering is not None:
                self._let_go()

    def look(self) -> bool:
        """Relieve a thread that is kept by its request; say whether anybody has read since last.

        Call it every ``LOOK_SECONDS``. Raises what has ended a thread: nobody may read any more.
        """
        with self._changed:
            if self._fault is not None:
                raise self._fault
            if self._answering is not None and self._answering == self._seen:
                self._let_go()
            self._seen = self._answering
            rounds, self._rounds = self._rounds, 0
            return rounds > 0

    def take_helm(self, wake: Callable[[], None]) -> None:
        """Take the helm for good, from a thread that answers nothing: the others answer.

        *wake* ends the round that is under way. Raises what has ended a thread.
        """
        with self._changed:
            self._is_ending = True
            while self._helm is not None and self._answering is None:
                # A thread that has ended in its round would never let go of the helm.
                if self._fault is not None:
                    raise self._fault
                wake()
                self._changed.wait(LOOK_SECONDS)
            self._helm, self._answering = threading.get_ident(), None
            self._changed.notify_all()

    def _let_go(self) -> None:
        self._helm = self._answering = None
        self._changed.notify()

    def _serve(self) -> None:
        try:
            while True:
                if (task := self._next()) is not None:
                    _answer(task)
                else:
                    self._steer()
        except BaseException as exc:
            with self._changed:
                self._fault = exc
            raise

    def _next(self) -> Task | None:
        """Wait for a request that the helm leaves to others, or for the helm: None."""
        with self._changed:
            # All others were busy: what came meanwhile was left to the first that is free.
            if self._waiting and self._helm is not None and not self._idle:
                return self._waiting.popleft()
            self._idle += 1
            try:
                while True:
                    if self._helm is None and not self._is_ending:
                        self._helm = threading.get_ident()
                        return None
                    if self._waiting and self._is_ending:
                        return self._waiting.popleft()
                    self._changed.wait()
            finally:
                self._idle -= 1

    def _steer(self) -> None:
        """Read, answer and write until relieved."""
        me, read_by = threading.get_ident(), 0.0
        while True:
            with self._changed:
                if self._helm != me:
                    return
                self._answering = None
                if self._is_ending:
                    self._helm = None
                    self._changed.notify_all()
                    return
                may_answer = bool(self._waiting and self._idle)
                task = None
                if may_answer and time.monotonic() < read_by:
                    task = self._waiting.popleft()
                    self._answered += 1
                    self._answering = self._answered
                else:
                    self._rounds += 1
            if task is None:
                self._read_and_write(0.0 if may_answer else _WAIT_SECONDS)
                read_by = time.monotonic() + _ANSWER_SECONDS
            else:
                _answer(task)


def _answer(task: Task) -> None:
    try:
        task.service()
    except BaseException:
        # The thread would end, and with it the process, for one request: a SystemExit of some
        # library, too.
        log.exception("A request failed")
