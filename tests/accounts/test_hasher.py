"""The hasher: what an unknown e-mail costs is what a known one costs, and nothing before that."""

from __future__ import annotations

from collections.abc import Callable

import argon2
import pytest

from accountsvc.accounts import credentials
from accountsvc.accounts.credentials import PasswordHasher

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
