"""The hasher: what an unknown e-mail costs is what a known one costs, and nothing before that.

So many hash at once, so many wait, and whoever comes then is refused.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import argon2
import pytest

from accountsvc.accounts import credentials
from accountsvc.accounts.credentials import PasswordHasher, Verdict
from accountsvc.bounds import HASHES_WAITING, PASSWORD_CHARACTERS, PASSWORD_PARTS
from accountsvc.errors import Busy
from accountsvc.services import build_services
from tests.support.factories import make_settings
from tests.support.processes import eventually
from tests.support.work import SlowArgon2, note_work

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


# One password, typed on two systems. The letter of the fifth line is another code point for the
# same letter; in the fourth, the marks come in another order.
TYPED = {
    "e with an accent": ("caf\u00e9 au lait, deux sucres", "cafe\u0301 au lait, deux sucres"),
    "Hangul": (
        "\ud55c\uae00 \uc554\ud638 \ub450 \uac1c",
        unicodedata.normalize("NFD", "\ud55c\uae00 \uc554\ud638 \ub450 \uac1c"),
    ),
    "Vietnamese": (
        "m\u1eadt kh\u1ea9u c\u1ee7a t\u00f4i",
        "ma\u0323\u0302t kha\u0302\u0309u cu\u0309a to\u0302i",
    ),
    "marks in another order": (
        "q\u0323\u0307 nine purple otters",
        "q\u0307\u0323 nine purple otters",
    ),
    "a letter that is another's twin": (
        "ten \u00c5ngstr\u00f6m long",
        "ten \u212bngstro\u0308m long",
    ),
    "Tamil": ("\u0b95\u0bca\u0b9f\u0bc1 nine otters", "\u0b95\u0bc6\u0bbe\u0b9f\u0bc1 nine otters"),
}


@pytest.mark.parametrize(("here", "there"), TYPED.values(), ids=TYPED)
def test_a_password_is_the_same_however_a_system_types_it(here: str, there: str) -> None:
    assert here != there
    hasher = PasswordHasher("cheap")

    hashes = [hasher.hash(here), hasher.hash(there)]

    right = Verdict(is_right=True)
    assert [hasher.judge(hashed, typed) for hashed in hashes for typed in (here, there)] == [
        right
    ] * 4


@pytest.mark.parametrize(("here", "there"), TYPED.values(), ids=TYPED)
def test_a_hash_of_before_is_right_as_it_was_typed_and_outdated(here: str, there: str) -> None:
    hasher = PasswordHasher("cheap")
    # As releases hashed that did not normalise.
    of_before = hasher._argon2.hash(there)

    assert hasher.judge(of_before, there) == Verdict(is_right=True, is_outdated=True)
    assert hasher.judge(of_before, here) == Verdict(is_right=False)
    assert hasher.judge(hasher._argon2.hash(here), there) == Verdict(is_right=True)


@pytest.mark.parametrize(
    ("hashed", "typed"),
    [
        ("nine purple otters", " nine purple otters"),
        ("nine purple otters", "nine purple otters "),
        ("nine purple otters", "nine  purple otters"),
        # What normalising for comparison (NFKC) would make one.
        ("nine purple otters", "nine\u00a0purple otters"),
        ("nine purple otters", "\uff4eine purple otters"),
        ("of\ufb01ce otters sing", "office otters sing"),
        ("nine purple otters", "Nine purple otters"),
        ("caf\u00e9 au lait, deux sucres", "cafe au lait, deux sucres"),
        ("nine purple otters\u200b", "nine purple otters"),
    ],
)
def test_whatever_else_differs_is_another_password(hashed: str, typed: str) -> None:
    hasher = PasswordHasher("cheap")

    assert not hasher.verify(hasher.hash(hashed), typed)
    assert hasher.verify(hasher.hash(hashed), hashed)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize(
    ("typed", "cost_in_hashes"),
    [("caf\u00e9", 1), ("cafe\u0301", 2), ("x" * 9, 1), ("e\u0301" * 300, 1)],
)
def test_a_wrong_password_costs_what_burning_it_costs_in_whatever_form(
    cost: str, typed: str, cost_in_hashes: int, calls: list[str]
) -> None:
    hasher = PasswordHasher(cost)
    hashed = hasher.hash("correct horse battery staple")
    calls.clear()

    assert not hasher.verify(hashed, typed)
    wrong = calls.copy()
    calls.clear()
    hasher.burn(typed)

    assert wrong == calls == ["verify"] * cost_in_hashes


@pytest.mark.parametrize(
    ("normal", "spare"),
    [("\u00e9", 0), ("\ud55c", 0), ("\u1f82", 0), ("\u00e9", 1), ("\ud55c", 1), ("\u1f82", 1)],
)
def test_the_longest_password_is_as_long_in_parts_on_another_system(
    normal: str, spare: int, calls: list[str]
) -> None:
    longest = normal * PASSWORD_CHARACTERS
    hasher = PasswordHasher("cheap")
    hashed = hasher.hash(longest)
    in_parts = unicodedata.normalize("NFD", longest + normal * spare)
    assert len(in_parts) > PASSWORD_CHARACTERS
    calls.clear()

    assert hasher.verify(hashed, in_parts) is (spare == 0)

    assert calls == ["verify"]


@pytest.mark.parametrize("parts", [PASSWORD_PARTS, PASSWORD_PARTS + 1])
def test_no_password_of_more_parts_than_its_longest_can_have_is_normalised(
    monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    work = note_work(monkeypatch)
    # A letter with as many marks: no number of them makes one character.
    typed = "a" + "\u0301" * (parts - 1)

    PasswordHasher("cheap").burn(typed)

    assert work.normalised == ([parts] if parts == PASSWORD_PARTS else [])
    assert max(work.hashed) == PASSWORD_CHARACTERS


def test_who_waits_for_a_turn_is_tried_in_both_forms_in_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Refused in between, a right password would have to be sent again, and again."""
    hasher = PasswordHasher("cheap", cores=1)
    of_before = hasher._argon2.hash("cafe\u0301 au lait")
    slow = SlowArgon2(monkeypatch)

    with ThreadPoolExecutor(1 + HASHES_WAITING) as pool:
        tries = [
            pool.submit(hasher.verify, of_before, "cafe\u0301 au lait")
            for _ in range(1 + HASHES_WAITING)
        ]
        slow.released.set()

    assert [each.result() for each in tries] == [True] * (1 + HASHES_WAITING)
