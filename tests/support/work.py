"""What a call costs, counted: characters normalised and judged, passwords hashed, statements."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import argon2
import pytest
from sqlalchemy import Engine, event

from accountsvc.accounts import fields


class Folded(str):
    """A text that notes how long it is when it is folded."""

    noted: list[int]

    def casefold(self) -> str:
        self.noted.append(len(self))
        return super().casefold()


@dataclass
class Work:
    """The lengths of all that was given to what takes time that grows with it, in order."""

    normalised: list[int] = field(default_factory=list)
    folded: list[int] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)
    hashed: list[int] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)

    @contextmanager
    def of(self, engine: Engine) -> Iterator[None]:
        """Note also the statements that *engine* gets meanwhile."""

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            self.statements.append(statement)

        event.listen(engine, "before_cursor_execute", note)
        try:
            yield
        finally:
            event.remove(engine, "before_cursor_execute", note)

    def clear(self) -> None:
        for noted in (self.normalised, self.folded, self.judged, self.hashed, self.statements):
            noted.clear()


def note_work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Count from now on, in this process, what the libraries are given; they do what they did."""
    work = Work()
    normalise, judge = unicodedata.normalize, fields.zxcvbn

    def normalised(form: Any, text: str) -> str:
        work.normalised.append(len(text))
        result = Folded(normalise(form, text))
        result.noted = work.folded
        return result

    def judged(password: str, known: list[str]) -> Any:
        work.judged.extend(map(len, [password, *known]))
        return judge(password, known)

    monkeypatch.setattr(unicodedata, "normalize", normalised)
    monkeypatch.setattr(fields, "zxcvbn", judged)
    for name in ("hash", "verify"):
        monkeypatch.setattr(argon2.PasswordHasher, name, _noting(name, work.hashed))
    return work


def _noting(name: str, noted: list[int]) -> Any:
    compute = getattr(argon2.PasswordHasher, name)

    def hashed(hasher: argon2.PasswordHasher, *arguments: str) -> Any:
        noted.append(len(arguments[-1]))
        return compute(hasher, *arguments)

    return hashed


class SlowArgon2:
    """argon2 that computes until it is released, and then does what it did.

    ``most`` is how many were at it at once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.released = threading.Event()
        self.most = 0
        self._computing = 0
        self._lock = threading.Lock()
        for name in ("hash", "verify"):
            monkeypatch.setattr(argon2.PasswordHasher, name, self._slow(name))

    def _slow(self, name: str) -> Any:
        compute = getattr(argon2.PasswordHasher, name)

        def slow(hasher: argon2.PasswordHasher, *arguments: str) -> Any:
            with self._lock:
                self._computing += 1
                self.most = max(self.most, self._computing)
            assert self.released.wait(60)
            with self._lock:
                self._computing -= 1
            return compute(hasher, *arguments)

        return slow
