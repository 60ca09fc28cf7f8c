"""The calls of the core as a doorway makes them, and a hasher that lets others in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from accountsvc.accounts import credentials
from accountsvc.db.models import Account
from accountsvc.errors import (
    InvalidInput,
)
from accountsvc.services import Services
from tests.support.factories import (
    PASSWORD,
    make_promise,
)
from tests.support.moments import GRACE, NOW, at

NEW_PASSWORD = "another horse battery staple"


class WaitingHasher(credentials.PasswordHasher):
    """Lets something happen while a password is hashed or verified: outside any transaction."""

    def __init__(self, meanwhile: Callable[[], object], during: str) -> None:
        super().__init__("cheap")
        self.meanwhile = meanwhile
        self.during = during

    def _let(self, what: str) -> None:
        if self.during == what:
            self.during = ""
            self.meanwhile()

    def hash(self, password: str) -> str:
        self._let("hash")
        return super().hash(password)

    def judge(self, password_hash: str, password: str) -> credentials.Verdict:
        self._let("verify")
        return super().judge(password_hash, password)


def authenticate(
    services: Services,
    email: str = "ann@example.org",
    password: str = PASSWORD,
    hasher: credentials.PasswordHasher | None = None,
) -> Account:
    return credentials.authenticate(
        services.database, hasher or services.hasher, email=email, password=password
    )


def change_password(services: Services, account: Account, **options: Any) -> Account:
    given: dict[str, Any] = {
        "password": PASSWORD,
        "new_password": NEW_PASSWORD,
        "promise": make_promise(grace=GRACE),
        "clock": at(NOW),
        **options,
    }
    hasher = given.pop("hasher", services.hasher)
    token = services.tokens.access(account, now=NOW, fresh=True)
    claims = services.tokens.read(token, "access", now=NOW)
    claims = dataclasses.replace(claims, epoch=given.pop("epoch", account.epoch))
    return credentials.change_password(services.database, hasher, claims, **given)


def problems(call: Callable[[], object]) -> dict[str, list[str]]:
    with pytest.raises(InvalidInput) as caught:
        call()
    assert all(said and said[0].endswith(".") for said in caught.value.fields.values())
    return caught.value.fields
