"""The story of the lost mailbox: what a mailbox alone opens, and what it does not.

Walked over HTTP, by the mails as they arrive, and on the pages behind their links. In the first
half somebody else reads the owner's mailbox; in the second the owner does not read it any more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from accountsvc.db.engine import database_now
from accountsvc.db.models import Account
from tests.conftest import NewApp
from tests.support.factories import PASSWORD, Person, bearer, make_person, services_of
from tests.support.smtp import Inbox, smtp_server, text_of
from tests.support.state import belongings

from .conftest import Browser, account_of, follow, heading, words

NEW_PASSWORD = "nine purple otters sing"
THIEFS = "thief@example.org"
# What is in the vault of everybody that ``make_person`` makes.
SECRET = "ann 2"


@dataclass
class World:
    """The service with a mail server; ann, and everybody who can read a mailbox."""

    app: APIFlask
    inbox: Inbox
    ann: Person

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    def post(self, path: str, headers: dict[str, str] | None = None, **body: str) -> TestResponse:
        return self.client.post(f"/api/{path}", json=body, headers=headers)

    def sign_in(self, password: str, email: str | None = None) -> TestResponse:
        return self.post("sign-in/", email=email or self.ann.email, password=password)

    def delete(self, password: str = PASSWORD) -> None:
        """Delete the account as its owner does; the mail has left."""
        signed_in = self.sign_in(password)
        assert signed_in.json is not None
        gone = self.client.delete(
            f"/api/profile/{self.ann.id}/delete/", headers=bearer(signed_in.json["access"])
        )
        assert gone.status_code == 204

    def read(self, address: str) -> list[str]:
        """Read the mails that have come to *address* since it was read last."""
        services_of(self.app).deliver(seconds=60)
        mine = [one for one in self.inbox.messages if str(one["To"]) == address]
        self.inbox.messages = [one for one in self.inbox.messages if one not in mine]
        return [" ".join(text_of(one).split()) for one in mine]

    def link(self, address: str, path: str) -> str:
        """Return the token of the newest link to *path* that has come to *address*."""
        tokens = re.findall(rf"{path}(\S+)", " ".join(self.read(address)))
        assert tokens, f"no link to {path} has come to {address}"
        return str(tokens[-1])

    def reset(self, mailbox: str, password: str = NEW_PASSWORD) -> TestResponse:
        """Set a new password by the mailbox, on the page."""
        assert self.post("password-reset/", email=mailbox).status_code == 202
        page = follow(self.client, "/reset-password/", self.link(mailbox, "/reset-password/"))
        return page.send(new_password=password)

    def page(self, mailbox: str) -> Browser:
        return follow(self.client, "/recover/", self.link(mailbox, "/recover/"))

    def move(self, *, since: timedelta) -> None:
        """Put the account at another address, as somebody has done who was signed in."""
        with services_of(self.app).writing() as session:
            account = session.get_one(Account, self.ann.id)
            account.previous_email = account.email
            account.email = account.email_key = THIEFS
            account.email_changed_at = database_now(session) - since

    def vault(self, token: str) -> str:
        return self.client.get("/api/view-all-saved-passwords/", headers=bearer(token)).text


@pytest.fixture
def world(new_app: NewApp) -> Iterator[World]:
    inbox = Inbox()
    with smtp_server(inbox) as port:
        app = new_app(MAIL_URL=f"smtp://127.0.0.1:{port}/?tls=none")
        yield World(app, inbox, make_person(services_of(app), "ann"))


@pytest.fixture
def bob(world: World) -> Person:
    """The bystander, who must keep everything."""
    return make_person(services_of(world.app), "bob")


# Somebody else reads the mailbox


def test_the_mailed_link_gives_the_account_back_and_opens_nothing_else(
    world: World, bob: Person
) -> None:
    others = belongings(services_of(world.app), bob)
    world.delete()
    page = world.page(world.ann.email)
    mailed, base = bearer(page.token), f"profile/{world.ann.id}/"

    shown = page.open()
    status = world.client.get(f"/api/{base}deletion/", headers=mailed)
    shut = {
        "the profile": world.client.get("/api/profile/", headers=mailed),
        "the vault": world.client.get("/api/view-all-saved-passwords/", headers=mailed),
        "the export": world.client.get(f"/api/{base}export/", headers=mailed),
        "the export, guessed": world.post(f"{base}export/", mailed, password="guessed"),
        "another e-mail": world.client.patch(
            f"/api/{base}update/", headers=mailed, json={"email": THIEFS}
        ),
        "another password": world.post(
            f"{base}password/", mailed, password="guessed", new_password=NEW_PASSWORD
        ),
        "now": world.post(f"{base}purge/", mailed),
        "now, guessed": world.post(f"{base}purge/", mailed, password="guessed"),
        "a new token": world.post("token/refresh/", refresh=page.token),
        "download": page.send(action="download"),
        "download, guessed": page.send(action="download", password="guessed"),
        "delete now": page.send(action="delete", password="guessed", sure="yes"),
        "keep by a guess": Browser(world.client, "/keep-account/", "").send(
            email=world.ann.email, password="guessed"
        ),
    }

    assert (shown.status_code, status.status_code) == (200, 200)
    assert {name for name, got in shut.items() if got.status_code < 400} == set()
    for text in (shown.text, status.text, *(got.text for got in shut.values())):
        assert SECRET not in text
        assert world.ann.avatar not in text
    assert account_of(world.app, world.ann).purge_at is not None
    assert belongings(services_of(world.app), bob) == others


def test_who_gives_the_account_back_by_the_mailbox_is_not_signed_in_and_the_owner_is(
    world: World, bob: Person
) -> None:
    others = belongings(services_of(world.app), bob)
    world.delete()
    token = world.link(world.ann.email, "/recover/")

    back = world.post("profile/reactivate/", token=token)
    again = world.post("profile/reactivate/", token=token)
    owner = world.sign_in(PASSWORD)

    assert back.status_code == 200
    assert back.json is not None
    assert not {"access", "refresh", "recovery_token"} & set(back.json)
    assert again.status_code == 401
    assert owner.json is not None
    assert SECRET in world.vault(owner.json["access"])
    (told,) = world.read(world.ann.email)
    assert "is active again" in told
    assert "read your mail" in told
    assert belongings(services_of(world.app), bob) == others


def test_a_new_password_by_the_mailbox_is_the_account_and_every_known_address_is_told(
    world: World, bob: Person
) -> None:
    """What is said of mailboxes is true: by this, one mailbox is enough."""
    others = belongings(services_of(world.app), bob)
    world.move(since=timedelta(days=1))
    session = world.sign_in(PASSWORD, THIEFS)
    assert session.json is not None

    done = world.reset(THIEFS)

    thief = world.sign_in(NEW_PASSWORD, THIEFS)
    assert (done.status_code, heading(done)) == (200, "Your password is changed")
    assert thief.json is not None
    assert SECRET in world.vault(thief.json["access"])
    ended = world.client.get("/api/profile/", headers=bearer(session.json["access"]))
    assert ended.status_code == 401
    assert world.sign_in(PASSWORD, THIEFS).status_code == 401
    for mailbox in (world.ann.email, THIEFS):
        (told,) = world.read(mailbox)
        assert "password of your account at localhost:8000 was changed on" in told
        assert "contact the support" in told
    assert belongings(services_of(world.app), bob) == others


def test_a_new_password_by_the_mailbox_makes_no_grace_period_shorter(
    world: World, bob: Person
) -> None:
    others = belongings(services_of(world.app), bob)
    world.delete()
    before = account_of(world.app, world.ann)

    done = world.reset(world.ann.email)
    page = world.page(world.ann.email)
    now = page.send(action="delete", password=NEW_PASSWORD, sure="yes")
    by_api = world.post(f"profile/{world.ann.id}/purge/", bearer(page.token), password=NEW_PASSWORD)

    assert "still going to be deleted" in words(done)
    assert (now.status_code, by_api.status_code) == (409, 409)
    after = account_of(world.app, world.ann)
    assert (after.purge_at, after.deactivated_by) == (before.purge_at, "owner")
    assert services_of(world.app).sweep().purged == 0
    assert belongings(services_of(world.app), bob) == others


def test_a_mailbox_that_was_given_up_sets_no_password(world: World, bob: Person) -> None:
    others = belongings(services_of(world.app), bob)
    assert world.post("password-reset/", email=world.ann.email).status_code == 202
    token = world.link(world.ann.email, "/reset-password/")
    # The link was made in this second: the change comes after it.
    world.move(since=timedelta(seconds=-1))

    page = follow(world.client, "/reset-password/", token).open()
    by_api = world.post("password-reset/confirm/", token=token, new_password=NEW_PASSWORD)
    asked = world.post("password-reset/", email=world.ann.email)

    assert (page.status_code, heading(page)) == (410, "This link is out of date")
    assert "has got another email address" in words(page)
    assert (by_api.status_code, asked.status_code) == (401, 202)
    assert world.read(world.ann.email) == []
    assert world.sign_in(PASSWORD, THIEFS).status_code == 200
    assert belongings(services_of(world.app), bob) == others


def test_the_previous_mailbox_has_a_way_back_whatever_the_thief_does_with_the_present_one(
    world: World, bob: Person
) -> None:
    others = belongings(services_of(world.app), bob)
    world.move(since=timedelta(days=1))
    world.ann = replace(world.ann, email=THIEFS)
    world.delete()
    mine = account_of(world.app, world.ann).previous_email
    assert mine is not None
    first = world.link(mine, "/recover/")

    # The thief voids the link by a new password, and again by another one.
    world.reset(THIEFS)
    second = world.link(mine, "/recover/")
    dead = follow(world.client, "/recover/", first).open()
    kept = follow(world.client, "/recover/", second).send(action="keep")

    assert (dead.status_code, heading(dead)) == (410, "This link is out of date")
    assert "newest mail" in words(dead)
    assert (kept.status_code, heading(kept)) == (200, "Your account is back")
    assert account_of(world.app, world.ann).is_active
    assert belongings(services_of(world.app), bob) == others


# The owner does not read the mailbox any more


def test_who_knows_the_password_needs_no_mailbox_to_come_back(world: World, bob: Person) -> None:
    others = belongings(services_of(world.app), bob)
    world.delete()

    refused = world.sign_in(PASSWORD)
    assert refused.json is not None
    page = re.search(r"on the page http://localhost:8000(\S+) or", refused.json["error"])
    assert page is not None
    kept = Browser(world.client, page[1], "").send(email=world.ann.email, password=PASSWORD)
    signed_in = world.sign_in(PASSWORD)

    assert (refused.status_code, kept.status_code, signed_in.status_code) == (403, 200, 200)
    assert signed_in.json is not None
    assert SECRET in world.vault(signed_in.json["access"])
    assert belongings(services_of(world.app), bob) == others


def test_who_has_neither_mailbox_nor_password_comes_back_by_the_support(
    world: World, bob: Person
) -> None:
    others = belongings(services_of(world.app), bob)
    sue = make_person(services_of(world.app), "sue", staff=True)
    world.delete()

    guessed = [
        world.sign_in("guessed"),
        Browser(world.client, "/keep-account/", "").send(email=world.ann.email, password="guessed"),
    ]
    back = world.post(f"profile/{world.ann.id}/reactivate/", sue.auth)

    assert [got.status_code for got in guessed] == [401, 403]
    assert back.status_code == 200
    assert account_of(world.app, world.ann).is_active
    assert belongings(services_of(world.app), bob) == others


def test_a_mailbox_is_no_way_back_to_what_the_staff_has_switched_off(world: World) -> None:
    sue = make_person(services_of(world.app), "sue", staff=True)
    gone = world.client.delete(f"/api/profile/{world.ann.id}/delete/", headers=sue.auth)
    (told,) = world.read(world.ann.email)

    done = world.reset(world.ann.email)
    signed_in = world.sign_in(NEW_PASSWORD)
    (news,) = world.read(world.ann.email)

    assert gone.status_code == 204
    assert signed_in.status_code == 403
    assert signed_in.json is not None
    assert signed_in.json["error"].endswith("contact support before that time.")
    for text in (told, news, words(done)):
        assert "contact the support" in text
        assert "/recover/" not in text
        assert "/keep-account/" not in text
    assert not account_of(world.app, world.ann).is_active
