"""The crew of a web process: who reads, who answers, and that nothing is lost when that changes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import pytest

from accountsvc.start.crew import Crew, Task
from tests.support.processes import eventually

GUARD = 300


class Asked:
    """A request that says who answered it, how often, and whether that thread kept the helm."""

    def __init__(self, crew: Crew, what: Callable[[], object] = lambda: None) -> None:
        self._crew, self._what = crew, what
        self.times, self.by, self.kept_helm = 0, 0, False
        self.begun, self.answered = threading.Event(), threading.Event()
        self.released = threading.Event()

    def service(self) -> None:
        self.times += 1
        self.by = threading.get_ident()
        self.begun.set()
        try:
            self._what()
            self.kept_helm = self._crew.has_helm()
        finally:
            self.answered.set()

    def wait(self) -> None:
        assert self.answered.wait(GUARD)


class Harbour:
    """A crew, and the connections that it reads: whatever the test puts there."""

    def __init__(self, threads: int) -> None:
        self.crew = Crew(self.read, threads)
        self.arrived: queue.SimpleQueue[Task | BaseException | None] = queue.SimpleQueue()
        self.rounds = 0
        self.readers: set[int] = set()
        self.in_round: Callable[[], object] = lambda: None

    def read(self, seconds: float) -> None:
        self.rounds += 1
        self.readers.add(threading.get_ident())
        self.in_round()
        try:
            found = self.arrived.get(timeout=seconds) if seconds else self.arrived.get_nowait()
            while True:
                if isinstance(found, BaseException):
                    raise found
                if found is not None:
                    self.crew.add_task(found)
                found = self.arrived.get_nowait()
        except queue.Empty:
            return

    def wake(self) -> None:
        self.arrived.put(None)

    def ask(self, what: Callable[[], object] = lambda: None) -> Asked:
        asked = Asked(self.crew, what)
        self.arrived.put(asked)
        return asked

    def keep_a_thread(self, *, after: Callable[[], object] = lambda: None) -> Asked:
        """A request that has begun, does *after*, and is answered when it is released."""

        def work() -> None:
            after()
            assert asked.released.wait(GUARD)

        asked = self.ask(work)
        assert asked.begun.wait(GUARD)
        return asked

    def more_rounds(self, number: int) -> None:
        """Wait until the connections have been looked at *number* times more."""
        until = self.rounds + number

        def looked() -> bool:
            self.wake()
            return self.rounds >= until

        eventually(looked)


def harbour(threads: int) -> Harbour:
    made = Harbour(threads)
    made.crew.start()
    return made


# Who answers -------------------------------------------------------------------------------------


def test_what_is_answered_at_once_is_answered_by_the_thread_that_has_read_it() -> None:
    at = harbour(4)
    asked = [at.ask() for _ in range(100)]
    for one in asked:
        one.wait()

    assert len(at.readers) == 1
    assert {one.by for one in asked} == at.readers
    assert all(one.kept_helm for one in asked)


def test_who_is_found_with_the_same_request_twice_is_relieved() -> None:
    at = harbour(2)
    kept = at.keep_a_thread()

    at.crew.look()
    at.crew.look()
    other = at.ask()
    other.wait()
    kept.released.set()
    kept.wait()

    assert not kept.kept_helm
    assert other.kept_helm
    assert other.by != kept.by


def test_who_is_found_with_a_request_once_or_with_another_one_keeps_the_helm() -> None:
    at = harbour(2)
    first = at.keep_a_thread()
    at.crew.look()
    first.released.set()
    first.wait()
    second = at.keep_a_thread()
    at.crew.look()
    second.released.set()
    second.wait()

    assert first.kept_helm
    assert second.kept_helm
    assert first.by == second.by


def test_who_says_that_it_will_take_long_is_relieved_at_once() -> None:
    at = harbour(2)
    kept = at.keep_a_thread(after=at.crew.give_up_helm)

    other = at.ask()
    other.wait()
    kept.released.set()
    kept.wait()

    assert not kept.kept_helm
    assert other.by != kept.by


def test_nobody_gives_up_a_helm_that_another_has_or_while_reading() -> None:
    at = harbour(2)
    steered = []

    def in_round() -> None:
        at.crew.give_up_helm()
        steered.append(at.crew.has_helm())

    at.in_round = in_round
    kept = at.keep_a_thread()
    at.crew.give_up_helm()
    assert not at.crew.has_helm()
    kept.released.set()
    kept.wait()

    assert kept.kept_helm
    assert steered
    assert all(steered)


def test_while_all_others_are_busy_the_last_one_reads_and_answers_nothing() -> None:
    at = harbour(2)
    busy = [at.keep_a_thread(after=at.crew.give_up_helm) for _ in range(2)]
    order: list[int] = []
    waiting = [at.ask(lambda number=number: order.append(number)) for number in range(5)]  # type: ignore[misc]

    at.more_rounds(20)
    assert [one.times for one in waiting] == [0] * 5
    assert at.crew.look()

    busy[1].released.set()
    for one in waiting:
        one.wait()

    assert order == [0, 1, 2, 3, 4]
    assert {one.by for one in waiting} == {busy[1].by}
    busy[0].released.set()


def test_short_requests_without_end_do_not_keep_the_connections_from_being_read() -> None:
    """A client that sends hundreds of requests in one piece is answered beside everybody else."""
    at = harbour(2)
    is_over = threading.Event()

    class Again:
        def service(self) -> None:
            if not is_over.is_set():
                at.crew.add_task(self)

    for _ in range(50):
        at.arrived.put(Again())
    try:
        at.more_rounds(20)
        at.ask().wait()
    finally:
        is_over.set()


# Faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_a_request_raises_ends_no_thread(
    fault: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    at = harbour(1)

    def fail() -> None:
        raise fault

    failed = [at.ask(fail) for _ in range(10)]
    good = at.ask()
    good.wait()

    assert [one.times for one in failed] == [1] * 10
    assert {one.by for one in failed} == {good.by}
    assert caplog.text.count("A request failed") == 10
    at.crew.look()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_reading_is_raised_to_who_looks_and_who_takes_the_helm() -> None:
    """Nobody reads then: the process has to end, and another one begins."""
    at = harbour(2)
    at.arrived.put(OSError("no connection can be read"))

    def is_raised() -> bool:
        try:
            at.crew.look()
        except OSError:
            return True
        return False

    eventually(is_raised)
    with pytest.raises(OSError, match="no connection can be read"):
        at.crew.take_helm(at.wake)


# The end -----------------------------------------------------------------------------------------


def test_who_takes_the_helm_for_good_reads_alone_and_the_others_answer() -> None:
    at = harbour(2)
    at.ask().wait()

    at.crew.take_helm(at.wake)
    rounds = at.rounds
    assert at.crew.has_helm()
    asked = [at.ask() for _ in range(100)]
    at.read(0)
    for one in asked:
        one.wait()

    assert at.rounds == rounds + 1
    assert threading.get_ident() not in {one.by for one in asked}
    assert not any(one.kept_helm for one in asked)


def test_the_helm_is_taken_at_once_from_who_is_answering() -> None:
    at = harbour(2)
    kept = at.keep_a_thread()

    at.crew.take_helm(at.wake)
    rounds = at.rounds
    other = at.ask()
    at.read(0)
    other.wait()
    kept.released.set()
    kept.wait()
    last = [at.ask() for _ in range(10)]
    at.read(0)
    for one in last:
        one.wait()

    assert not kept.kept_helm
    assert at.rounds == rounds + 2


def test_what_waited_for_a_thread_is_answered_after_the_helm_was_taken() -> None:
    at = harbour(2)
    busy = [at.keep_a_thread(after=at.crew.give_up_helm) for _ in range(2)]
    waiting = [at.ask() for _ in range(20)]
    at.more_rounds(2)

    at.crew.take_helm(at.wake)
    for one in (*busy, *waiting):
        one.released.set()
    for one in waiting:
        one.wait()

    assert [one.times for one in waiting] == [1] * 20


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_none_of_many_requests_is_lost_or_answered_twice(threads: int) -> None:
    """From several threads, some of them kept until the next look, some with another behind them.

    The helm is taken when a part of them has been answered.
    """
    at = harbour(threads)
    number = 1500
    asked: list[Asked] = []
    kept: queue.SimpleQueue[Asked] = queue.SimpleQueue()

    def make(place: int) -> Asked:
        def work() -> None:
            if place % 50 == 7:
                at.crew.give_up_helm()
            if place % 25 == 7:
                kept.put(one)
                assert one.released.wait(GUARD)
            if place % 3 == 0:
                at.crew.add_task(behind)
                # As a connection does behind each answer, so that it is looked at again.
                if not at.crew.has_helm():
                    at.wake()

        one, behind = Asked(at.crew, work), Asked(at.crew)
        asked.extend([one, behind] if place % 3 == 0 else [one])
        return one

    made = [[make(place) for place in range(number)] for _ in range(4)]

    def arrive(tasks: list[Asked]) -> None:
        for task in tasks:
            at.arrived.put(task)

    arriving = [threading.Thread(target=arrive, args=(tasks,)) for tasks in made]
    for thread in arriving:
        thread.start()

    def are_answered(share: float) -> bool:
        at.crew.look()
        while not kept.empty():
            kept.get().released.set()
        return sum(one.answered.is_set() for one in asked) >= share * len(asked)

    eventually(lambda: are_answered(0.5), pause=0.001)
    at.crew.take_helm(at.wake)

    def read_and_see() -> bool:
        at.read(0)
        return are_answered(1)

    eventually(read_and_see, pause=0.001)
    for thread in arriving:
        thread.join(GUARD)

    assert len(asked) == 4 * (number + number // 3)
    assert {one.times for one in asked} == {1}
