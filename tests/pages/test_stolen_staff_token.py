"""The story of the stolen staff token, as the people whom the thief drives out meet it.

By the mails as they arrive and on the pages; what the endpoints answer to the thief is in
``tests/api/test_api_staff_fresh.py``.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from werkzeug.test import TestResponse

from tests.support import sweeps
from tests.support.factories import (
    PASSWORD,
    Person,
    bearer,
    make_person,
    place_hold,
    services_of,
)
from tests.support.moments import now
from tests.support.state import belongings

from .conftest import Browser, account_of, heading, words
from .test_pages_lost_mailbox import NEW_PASSWORD, SECRET, World, bob, world

# The fixtures of the story of the lost mailbox, whose world this one is.
__all__ = ["bob", "world"]

HOUR = timedelta(hours=1)


@pytest.fixture
def sue(world: World) -> Person:
    """A member of the staff, whose fresh token somebody has."""
    return make_person(services_of(world.app), "sue", staff=True)


def assert_leads_to_the_support(page: TestResponse, status: int) -> None:
    assert (page.status_code, heading(page)) == (status, "Contact the support")
    assert "Your account was switched off by our staff" in words(page)


def keep(world: World, password: str) -> TestResponse:
    page = Browser(world.client, "/keep-account/", "")
    return page.send(email=world.ann.email, password=password)


def test_whom_a_thief_with_a_staff_token_drives_out_is_told_at_each_step_and_loses_nothing(
    world: World, sue: Person, bob: Person
) -> None:
    services, base = services_of(world.app), f"/api/profile/{world.ann.id}"
    others = belongings(services, bob)

    # The thief switches the account off, and asks for its purge at once.
    assert world.client.delete(f"{base}/delete/", headers=sue.auth).status_code == 204
    refused = world.client.post(f"{base}/purge/", headers=sue.auth, json={"confirm": "ann"})
    assert refused.status_code == 409
    (told,) = world.read(world.ann.email)
    assert told.startswith("Hello, The staff of localhost:8000 has switched off your account.")
    assert "contact the support of localhost:8000 before then" in told
    assert "/recover/" not in told

    # No page takes back what the staff has done, and each names the support and the way to it.
    assert_leads_to_the_support(keep(world, PASSWORD), 403)
    reset = world.reset(world.ann.email)
    assert (reset.status_code, heading(reset)) == (200, "Your password is changed")
    assert "contact the support before it is deleted" in words(reset)
    (changed,) = world.read(world.ann.email)
    assert "contact the support of localhost:8000 before then" in changed
    assert "/recover/" not in changed
    assert_leads_to_the_support(keep(world, NEW_PASSWORD), 403)
    signed_in = world.sign_in(NEW_PASSWORD)
    assert signed_in.json is not None
    assert signed_in.status_code == 403
    assert "The staff deactivated it. To keep it, contact support" in signed_in.json["error"]
    assert sweeps.sweep(services, now(services) + 23 * HOUR).purged_ids == []

    # Sue ends her sessions, and gives the account back.
    assert world.client.post("/api/sign-out/", headers=sue.auth).status_code == 204
    again = world.sign_in(PASSWORD, sue.email)
    assert again.json is not None
    back = world.client.post(
        f"{base}/reactivate/", headers=bearer(again.json["access"]), json={"reason": "stolen"}
    )
    assert back.status_code == 200
    (returned,) = world.read(world.ann.email)
    assert "is active again" in returned
    assert "nothing in it was lost" in returned
    # Nobody else can have given it back than the support: her mailbox is not what was stolen.
    assert "Our staff had switched it off, and has given it back." in returned
    assert "change the password of your mailbox" not in returned
    mine = world.sign_in(NEW_PASSWORD)
    assert mine.json is not None
    assert SECRET in world.vault(mine.json["access"])
    # With her old token the thief does nothing any more.
    assert world.client.delete(f"{base}/delete/", headers=sue.auth).status_code == 401
    assert account_of(world.app, world.ann).is_active
    assert belongings(services, bob) == others


def test_whose_hold_a_thief_releases_is_told_of_nothing_and_goes_when_it_was_promised(
    world: World, sue: Person, bob: Person
) -> None:
    services, others = services_of(world.app), belongings(services_of(world.app), bob)
    world.delete()
    link = world.page(world.ann.email)
    hold, promised = place_hold(services, world.ann.id), account_of(world.app, world.ann).purge_at

    path = f"/api/profile/{world.ann.id}"
    released = world.client.delete(f"{path}/holds/{hold}/", headers=sue.auth)
    refused = world.client.post(f"{path}/purge/", headers=sue.auth, json={"confirm": "ann"})

    # A hold is hidden from its owner; the date is what it was, and the way back still opens.
    assert (released.status_code, refused.status_code) == (204, 409)
    assert world.read(world.ann.email) == []
    assert account_of(world.app, world.ann).purge_at == promised
    assert sweeps.sweep(services, now(services) + 23 * HOUR).purged_ids == []
    assert heading(link.send(action="keep")) == "Your account is back"
    assert belongings(services, bob) == others
