"""The story of a stolen session, over HTTP, mail and pages: the owner keeps the account throughout.

There are two mailboxes. Whoever has the session has the one, and does not know the password; the
owner has the other and knows it. Nothing is done to the account that the owner's does not hear of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from werkzeug.test import TestResponse

from accountsvc.db.models import Account
from tests.conftest import NewApp
from tests.support.addresses import CANCEL, CONFIRM, mailed_path, send_form
from tests.support.factories import (
    PASSWORD,
    Person,
    access_token,
    bearer,
    make_person,
    services_of,
)
from tests.support.post import Post
from tests.support.smtp import Inbox, smtp_server, text_of
from tests.support.state import belongings, events, everything, get_account

from .conftest import heading

THIEF = "thief@elsewhere.example"
ASKED = "Another email address was asked for your account"
BACK = "Your account is active again"
RESET = "Set a new password"
NEW_PASSWORD = "nine purple otters sing"
GUESSES = ("", "password", "ann@example.org", "another horse battery staple")


@dataclass
class Story:
    """The owner, whoever has got hold of a session of theirs, and what each mailbox was told."""

    post: Post
    ann: Person
    token: str
    told: list[str] = field(default_factory=list)
    thiefs: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def call(self, method: str, path: str, **options: object) -> TestResponse:
        """Call the API by the stolen session."""
        return self.post.app.test_client().open(
            f"/api/{path}", method=method, headers=bearer(self.token), **options
        )

    def ask(self, address: str = THIEF) -> TestResponse:
        return self.call("PATCH", f"profile/{self.ann.id}/update/", json={"email": address})

    def delete(self) -> TestResponse:
        return self.call("DELETE", f"profile/{self.ann.id}/delete/", data=b"null")

    def hear(self) -> list[str]:
        """Deliver what is owed; return the subjects that the owner's mailbox has got by it."""
        self.post.later(timedelta(seconds=10))
        heard = []
        for message in self.post.inbox.messages:
            if str(message["To"]) == self.ann.email:
                heard.append(str(message["Subject"]))
                self.texts.append(text_of(message))
            else:
                self.thiefs.append(text_of(message))
        self.post.inbox.messages.clear()
        self.told += heard
        return heard

    def open(self, text: str, page: str, **fields: str) -> TestResponse:
        """Open the link to *page* in a mail in a browser of its own, and send its form."""
        return send_form(self.post.app.test_client(), mailed_path(text, page), **fields)

    def sign_in(self, password: str = PASSWORD) -> TestResponse:
        body = {"email": self.ann.email, "password": password}
        return self.post.app.test_client().post("/api/sign-in/", json=body)

    @property
    def account(self) -> Account:
        return get_account(services_of(self.post.app), self.ann.id)

    def owner_keeps_it(self, *, away: bool = False) -> None:
        """The address is the owner's, the password is, and in grace both are the way back."""
        account = self.account
        assert (account.email, account.previous_email) == (self.ann.email, None)
        answer = self.sign_in()
        assert answer.status_code == (403 if away else 200)
        assert answer.json is not None
        assert ("recovery_token" in answer.json) is away
        assert len(belongings(services_of(self.post.app), self.ann)["passwords"]) == 3


@pytest.fixture
def post(new_app: NewApp) -> Iterator[Post]:
    inbox = Inbox()
    with smtp_server(inbox) as port:
        yield Post(new_app(MAIL_URL=f"smtp://127.0.0.1:{port}/?tls=none"), inbox)


@pytest.fixture
def bystander(post: Post) -> Iterator[Person]:
    bob = make_person(services_of(post.app), "bob")
    before = belongings(services_of(post.app), bob)
    yield bob
    assert belongings(services_of(post.app), bob) == before


@pytest.fixture
def story(post: Post, bystander: Person) -> Story:
    """With a session that came straight from the password."""
    ann = make_person(services_of(post.app), "ann")
    return Story(post, ann, ann.token)


def stale(story: Story) -> Story:
    """The same with an access token from a refresh."""
    services = services_of(story.post.app)
    account = get_account(services, story.ann.id)
    return Story(story.post, story.ann, access_token(services, account, fresh=False))


def test_a_session_that_is_not_fresh_changes_nothing_at_all(story: Story) -> None:
    thief = stale(story)
    before = everything(services_of(story.post.app))

    answers = [thief.ask(), thief.delete()]

    assert [one.status_code for one in answers] == [401, 401]
    assert [one.json and one.json["code"] for one in answers] == ["confirmation_required"] * 2
    assert everything(services_of(story.post.app)) == before
    assert thief.hear() == []
    assert story.call("POST", "password-reset/", json={"email": THIEF}).status_code == 202
    assert (thief.hear(), thief.thiefs) == ([], [])
    story.owner_keeps_it()


@pytest.mark.parametrize(
    "address",
    [
        THIEF,
        # Mailboxes that look like the owner's.
        "Ann@example.org",
        "ann@example.org.elsewhere.example",
        "ann@ex\u00e4mple.org",
    ],
)
def test_by_a_fresh_session_without_the_password_the_owner_loses_the_account_at_no_step(
    story: Story, address: str
) -> None:
    # Another address is asked for.
    asked = story.ask(address)
    assert asked.status_code == 200
    assert asked.json is not None
    assert (asked.json["email"], asked.json["pending_email"]) == (story.ann.email, address)
    assert story.hear() == [ASKED]
    story.owner_keeps_it()

    # Its mailbox has a link, which wants the password.
    (confirm,) = story.thiefs
    for guess in GUESSES:
        assert story.open(confirm, CONFIRM, password=guess).status_code in {400, 403}
    story.owner_keeps_it()

    # A new password is asked for there: that mailbox is nobody's, or the owner's by its key.
    story.thiefs.clear()
    story.call("POST", "password-reset/", json={"email": address})
    story.hear()
    assert story.thiefs == []
    assert story.sign_in(NEW_PASSWORD).status_code == 401
    story.owner_keeps_it()

    # The account is deleted: that calls the change off, and the owner is told where to keep it.
    assert story.delete().status_code == 204
    (scheduled,) = story.hear()
    assert scheduled.startswith("Your account will be deleted on ")
    story.owner_keeps_it(away=True)
    void = story.open(confirm, CONFIRM, password=PASSWORD)
    assert (void.status_code, heading(void)) == (410, "This link is out of date")
    assert story.thiefs == []

    # It cannot be deleted at once, by no link and no session that whoever has the other mailbox has.
    for token in (story.token, mailed_path(confirm, CONFIRM).removeprefix(CONFIRM)):
        purged = story.post.app.test_client().post(
            f"/api/profile/{story.ann.id}/purge/",
            headers=bearer(token),
            json={"password": NEW_PASSWORD, "confirm": "ann"},
        )
        assert purged.status_code == 401
    story.owner_keeps_it(away=True)

    # The owner comes back by the link in the own mailbox; the stolen session is dead.
    kept = story.open(story.texts[-1], "/recover/", action="keep")
    assert heading(kept) == "Your account is back"
    assert story.hear() == [BACK]
    assert [story.ask().status_code, story.delete().status_code] == [401, 401]
    story.owner_keeps_it()
    assert events(services_of(story.post.app), "account.email_changed") == []


def test_the_owner_calls_it_off_by_mail_and_ends_the_session_by_a_new_password(
    story: Story,
) -> None:
    story.ask()
    assert story.hear() == [ASKED]
    (confirm,) = story.thiefs

    off = story.open(story.texts[-1], CANCEL)
    assert heading(off) == "Your email address stays"
    assert story.open(confirm, CONFIRM, password=PASSWORD).status_code == 410
    story.owner_keeps_it()

    # It is asked for once more, and called off by a new password.
    story.ask("thief2@elsewhere.example")
    story.call("POST", "password-reset/", json={"email": story.ann.email})
    assert story.hear() == [RESET]
    reset = story.open(story.texts[-1], "/reset-password/", new_password=NEW_PASSWORD)
    assert heading(reset) == "Your password is changed"
    assert story.call("GET", "profile/").status_code == 401
    assert story.open(story.thiefs[-1], CONFIRM, password=NEW_PASSWORD).status_code == 410
    assert (story.account.email, story.account.pending_email) == (story.ann.email, None)

    # The second news of its kind comes in its turn, and has nothing left to call off.
    story.post.later(timedelta(minutes=10))
    assert {ASKED, "Your password was changed"} <= set(story.hear() + story.told)


def test_a_session_that_replaces_what_the_owner_asked_for_gets_no_further(story: Story) -> None:
    story.ask("ann@new.example")
    story.hear()
    (owners,) = story.thiefs

    story.ask()
    story.hear()

    assert story.open(owners, CONFIRM, password=PASSWORD).status_code == 410
    # The mail about the thief's own address waits for its turn: the link of the first one is enough.
    kept = story.open(story.texts[0], CANCEL)
    assert (kept.status_code, heading(kept)) == (200, "Your email address stays")
    assert story.account.pending_email is None
    assert story.open(story.thiefs[-1], CONFIRM, password=PASSWORD).status_code == 410
    story.owner_keeps_it()
    story.post.later(timedelta(minutes=10))
    story.hear()
    assert "Nothing has changed, and nothing will" in " ".join(story.texts[-1].split())
    story.owner_keeps_it()


def test_with_the_password_in_the_request_itself_it_waits_for_the_mailbox_too(
    story: Story,
) -> None:
    thief = stale(story)
    url = f"profile/{story.ann.id}/update/"

    asked = thief.call("PUT", url, json={"email": THIEF, "password": PASSWORD})

    assert asked.status_code == 200
    assert asked.json is not None
    assert asked.json["pending_email"] == THIEF
    assert story.hear() == [ASKED]
    story.owner_keeps_it()


def test_the_owner_moves_to_another_mailbox_and_is_told_in_both(story: Story) -> None:
    story.ask("ann@new.example")
    story.hear()
    (confirm,) = story.thiefs

    done = story.open(confirm, CONFIRM, password=PASSWORD)

    assert heading(done) == "Your email address is changed"
    assert story.hear() == ["The email address of your account was changed"]
    assert story.account.email == "ann@new.example"
    assert story.sign_in().status_code == 401
    assert story.call("GET", "profile/").status_code == 200
