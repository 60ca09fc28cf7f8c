"""Turns: so many work, so many wait, and the next is refused at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from accountsvc.adapters.objectstore import Bucket
from accountsvc.errors import Busy
from accountsvc.turns import Turns, before_waiting, call_before_waiting
from tests.support.processes import eventually


@pytest.mark.parametrize(("at_once", "waiting"), [(1, 0), (1, 3), (2, 0), (3, 5)])
def test_so_many_work_so_many_wait_and_the_next_is_refused(at_once: int, waiting: int) -> None:
    turns, released, inside, beyond = (
        Turns(at_once, waiting, limit="busy"),
        threading.Event(),
        [],
        4,
    )

    def work() -> bool:
        try:
            with turns.take():
                inside.append(1)
                released.wait(60)
        except Busy:
            return False
        return True

    with ThreadPoolExecutor(at_once + waiting + beyond) as pool:
        tries = [pool.submit(work) for _ in range(at_once + waiting + beyond)]
        try:
            # Whoever is refused does not wait for anything.
            eventually(lambda: sum(one.done() for one in tries) == beyond)
            eventually(lambda: len(inside) == at_once)
            refused = [one.result() for one in tries if one.done()]
        finally:
            released.set()

    assert refused == [False] * beyond
    assert sum(one.result() for one in tries) == at_once + waiting


def test_a_turn_comes_back_whatever_happens_in_it() -> None:
    turns = Turns(1, 0, limit="busy")
    for _ in range(3):
        with pytest.raises(KeyError), turns.take():
            raise KeyError

    with turns.take():
        pass


def test_who_waits_too_long_is_refused_and_leaves_the_place_to_others() -> None:
    turns = Turns(1, 1, limit="busy", refusal="Come again.")

    with turns.take():
        for _ in range(3):
            with pytest.raises(Busy, match="Come again"), turns.take(seconds=0.01):
                pass


def test_a_thread_says_that_it_is_about_to_wait_before_it_does() -> None:
    turns, said, seen = Turns(1, 0, limit="busy"), [0], []

    def relieve() -> None:
        said[0] += 1

    before_waiting()
    call_before_waiting(relieve)
    try:
        with turns.take():
            seen.append(said[0])
            with pytest.raises(Busy), turns.take():
                pass
            seen.append(said[0])
        bucket = Bucket("files", client_factory=lambda: seen.append(said[0]))  # type: ignore[arg-type,return-value]
        assert bucket.client is None
    finally:
        call_before_waiting(lambda: None)

    assert seen == [1, 2, 3]
