"""A post office for each test of the outbox that looks at mails."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import NewApp
from tests.support.factories import Person, make_person, services_of
from tests.support.post import Post
from tests.support.smtp import Inbox, smtp_server

NewPost = Callable[..., Post]


@pytest.fixture
def new_post(new_app: NewApp) -> Iterator[NewPost]:
    """Make the service with a mail server, by environment variables of its own."""
    inbox = Inbox()
    with smtp_server(inbox) as port:
        url = f"smtp://127.0.0.1:{port}/?tls=none"
        yield lambda **changes: Post(new_app(MAIL_URL=url, **changes), inbox)


@pytest.fixture
def post(new_post: NewPost) -> Post:
    return new_post()


@pytest.fixture
def ann(post: Post) -> Person:
    return make_person(services_of(post.app), "ann")
