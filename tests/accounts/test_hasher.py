"""The hasher: what an unknown e-mail costs is what a known one costs, and nothing before that.

So many hash at once, so many wait, and whoever comes then is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import argon2
import pytest

from accountsvc.accounts import credentials
from accountsvc.accounts.credentials import PasswordHasher
from accountsvc.bounds import HASHES_WAITING, PASSWORD_CHARACTERS
from accountsvc.errors import Busy
from accountsvc.services import build_services
from tests.support.factories import make_settings
from tests.support.processes import eventually
from tests.support.work import SlowArgon2

COSTS = ("normal", "cheap")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of argon2 that cost time, in order."""
    noted: list[str] = []

    def count(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **options: object) -> object:
            noted.append(name)
            return function(*args, **options)

        return counted

    for name in ("hash", "verify"):
        function = getattr(argon2.PasswordHasher, name)
        monkeypatch.setattr(argon2.PasswordHasher, name, count(name, function))
    return noted


@pytest.mark.parametrize("cost", COSTS)
def test_the_decoy_has_the_parameters_of_a_new_hash(cost: str) -> None:
    hashed = PasswordHasher(cost).hash("correct horse battery staple")
    decoy = credentials._DECOYS[cost]

    assert argon2.extract_parameters(decoy) == argon2.extract_parameters(hashed)
    assert not PasswordHasher(cost).is_outdated(decoy)


def test_a_hash_costs_what_is_recommended() -> None:
    """RFC 9106, section 4, and more than OWASP's least of 19 MiB (ASVS 5.0, 11.4.2)."""
    parameters = argon2.extract_parameters(PasswordHasher().hash("correct horse battery staple"))

    assert parameters.type is argon2.Type.ID
    assert parameters.memory_cost >= 64 * 1024
    assert parameters.time_cost >= 3
    assert (parameters.salt_len, parameters.hash_len) == (16, 32)


@pytest.mark.parametrize("cost", COSTS)
def test_the_decoy_is_verified_to_the_end(cost: str) -> None:
    """A decoy that cannot be read would be refused at once, and tell that the e-mail is unknown."""
    with pytest.raises(argon2.exceptions.VerifyMismatchError):
        argon2.PasswordHasher().verify(credentials._DECOYS[cost], "correct horse battery staple")


@pytest.mark.parametrize("cost", COSTS)
def test_burning_costs_one_verification(cost: str, calls: list[str]) -> None:
    PasswordHasher(cost).burn("correct horse battery staple")

    assert calls == ["verify"]


@pytest.mark.parametrize("cost", COSTS)
def test_a_start_costs_no_hash(cost: str, calls: list[str]) -> None:
    PasswordHasher(cost)

    assert calls == []


@pytest.mark.parametrize("method", ["hash", "verify", "burn"])
def test_as_many_are_hashed_at_once_as_there_are_cores_and_a_queue_waits(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    slow = SlowArgon2(monkeypatch)
    hasher = PasswordHasher("cheap", cores=3)
    decoy = credentials._DECOYS["cheap"]
    arguments = (decoy, "a password") if method == "verify" else ("a password",)
    beyond = 5

    with ThreadPoolExecutor(3 + HASHES_WAITING + beyond) as pool:
        tries = [
            pool.submit(getattr(hasher, method), *arguments)
            for _ in range(3 + HASHES_WAITING + beyond)
        ]
        eventually(lambda: sum(each.done() for each in tries) == beyond)
        eventually(lambda: slow.most == 3)
        refused = [each.exception() for each in tries if each.done()]
        slow.released.set()

    assert [type(error) for error in refused] == [Busy] * beyond
    assert sum(each.exception() is None for each in tries) == 3 + HASHES_WAITING
    assert slow.most == 3
    # Whoever is through leaves the place to the next.
    hasher.burn("a password")


def test_who_is_refused_by_argon2_leaves_the_place_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hasher = PasswordHasher("cheap", cores=1)

    for _ in range(2 * (1 + HASHES_WAITING)):
        assert not hasher.verify("no hash", "a password")
        assert not hasher.verify(credentials._DECOYS["cheap"], "a wrong password")
        assert not hasher.verify(credentials._DECOYS["cheap"], "\ud800")

    assert hasher.hash("a password").startswith("$argon2id$")


@pytest.mark.parametrize(
    ("processes", "cores", "at_once", "waiting"),
    [
        (1, 1, 1, 16),
        (1, 8, 8, 16),
        (2, 2, 1, 8),
        (2, 8, 4, 8),
        (3, 8, 2, 5),
        (4, 2, 1, 4),
        (16, 4, 1, 1),
        (40, 4, 1, 1),
    ],
)
def test_the_processes_of_a_host_share_its_cores_and_the_queue(
    processes: int, cores: int, at_once: int, waiting: int
) -> None:
    hasher = PasswordHasher("cheap", processes=processes, cores=cores)

    assert (hasher.at_once, hasher.waiting) == (at_once, waiting)


@pytest.mark.parametrize(
    ("changes", "processes"),
    [
        ({}, 1),
        # Without Redis there is one web process, whatever is asked for.
        ({"WEB_CONCURRENCY": "4"}, 1),
        ({"WEB_CONCURRENCY": "4", "REDIS_URL": "redis://127.0.0.1:1/0"}, 4),
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, 2),
    ],
)
def test_the_hasher_knows_how_many_web_processes_there_are(
    sqlite_url: str, tmp_path: Path, changes: dict[str, str], processes: int
) -> None:
    services = build_services(make_settings(sqlite_url, tmp_path, **changes))
    services.database.engine.dispose()

    assert services.hasher.waiting == HASHES_WAITING // processes
    assert services.hasher.at_once == max(1, len(os.sched_getaffinity(0)) // processes)


@pytest.mark.parametrize("spare", [0, 1, 62_000])
def test_a_password_is_hashed_to_its_longest_and_a_longer_one_is_wrong(
    calls: list[str], spare: int
) -> None:
    longest = "ä" * PASSWORD_CHARACTERS
    hasher = PasswordHasher("cheap")
    hashed = hasher.hash(longest)
    calls.clear()

    assert hasher.verify(hashed, longest + "x" * spare) is (spare == 0)
    assert calls == ["verify"]
