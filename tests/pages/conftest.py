from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import unescape

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from accountsvc.db.models import Account
from accountsvc.db.rows import find
from tests.support.factories import (
    Person,
    deactivate,
    make_person,
    services_of,
    witness,
)
from tests.support.moments import now
from tests.support.state import read_account


@pytest.fixture
def ann(app: APIFlask) -> Person:
    """Who has deleted her account."""
    person = make_person(services_of(app), "ann")
    deactivate(services_of(app), person.id)
    return person


@pytest.fixture
def bob(app: APIFlask) -> Person:
    """The bystander, who must keep everything."""
    return make_person(services_of(app), "bob")


def account_of(app: APIFlask, person: Person) -> Account:
    account = read_account(services_of(app), person.id)
    assert account is not None
    return account


def mailed_token(app: APIFlask, person: Person) -> str:
    """The token of the link that was mailed when *person*'s account was deactivated."""
    return services_of(app).tokens.mailed(account_of(app, person), now=now(services_of(app)))


def reset_token(app: APIFlask, person: Person, *, age: timedelta = timedelta()) -> str:
    made_at = now(services_of(app)) - age
    return services_of(app).tokens.password_reset(account_of(app, person), now=made_at)


def promise(app: APIFlask, person: Person, *, purge_in: timedelta) -> datetime:
    """Set, as if it had been promised so, how long from now the purge of a deactivated account is."""
    with services_of(app).writing() as session:
        account = find(session, person.id)
        assert account is not None
        purge_at = (now(services_of(app)) + purge_in).replace(microsecond=0)
        account.deactivated_at = purge_at - timedelta(days=14)
        account.purge_at = purge_at
    witness(services_of(app), person.id)
    return purge_at


def confirm_token(app: APIFlask, person: Person, *, age: timedelta = timedelta()) -> str:
    """The token of the link to the pending address of *person*."""
    made_at = now(services_of(app)) - age
    return services_of(app).tokens.confirm_email(account_of(app, person), now=made_at)


def cancel_token(app: APIFlask, person: Person) -> str:
    """The token of the link by which the address of today calls the change off."""
    made_at = now(services_of(app))
    return services_of(app).tokens.cancel_email(account_of(app, person), now=made_at)


@dataclass(frozen=True)
class Browser:
    """Somebody who opened a mailed link in a browser that sends no Sec-Fetch headers."""

    client: FlaskClient
    path: str
    token: str

    def open(self) -> TestResponse:
        return self.client.get(self.path)

    def form_key(self) -> str:
        found = re.search(r'name="form_key" value="([^"]+)"', self.open().text)
        assert found is not None
        return found[1]

    def send(self, headers: dict[str, str] | None = None, **fields: str) -> TestResponse:
        """Fill in a form of the page and send it."""
        return self.client.post(
            self.path, data={"form_key": self.form_key(), **fields}, headers=headers
        )


def follow(client: FlaskClient, path: str, token: str) -> Browser:
    response = client.get(path + token)
    assert (response.status_code, response.headers["Location"]) == (303, path)
    return Browser(client, path, token)


def follow_mailed(app: APIFlask, person: Person) -> Browser:
    """Open the mailed link of *person*'s deactivation in a new browser."""
    return follow(app.test_client(), "/recover/", mailed_token(app, person))


def heading(response: TestResponse) -> str:
    """The first heading of a page, which is its title too."""
    found = re.search(r"<h1>(.*?)</h1>", response.text)
    title = re.search(r"<title>(.*?)</title>", response.text)
    assert found is not None
    assert title is not None
    assert title[1].removeprefix("Error: ") == found[1]
    return unescape(found[1])


def words(response: TestResponse) -> str:
    """What a page says, without its marks."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", response.text)).split())
