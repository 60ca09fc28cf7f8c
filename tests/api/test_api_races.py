"""What happens when two requests meet: promised in CONTRACT section 1, on both databases.

Each round has people of its own; the bystander lives through all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import BytesIO

import pytest
from apiflask import APIFlask
from sqlalchemy import func, select
from werkzeug.test import TestResponse

from accountsvc.db import rows
from accountsvc.db.engine import database_now
from accountsvc.db.models import Effect, SavedPassword
from tests.conftest import NewApp
from tests.support.factories import (
    Person,
    bearer,
    deactivate,
    make_account,
    make_person,
    png,
    run_sql,
    services_of,
)
from tests.support.moments import now
from tests.support.state import belongings, effects, events, read_account

ROUNDS = 8

Call = Callable[[], TestResponse]


@pytest.fixture(autouse=True)
def bystander(app: APIFlask, bob: Person) -> Iterator[Person]:
    before = belongings(services_of(app), bob)
    yield bob
    assert belongings(services_of(app), bob) == before


def at_once(*calls: Call) -> list[TestResponse]:
    """Make all *calls* from threads that start together; their answers in the same order."""
    barrier = threading.Barrier(len(calls))
    answers: dict[int, TestResponse] = {}

    def run(number: int, call: Call) -> None:
        barrier.wait(timeout=120)
        answers[number] = call()

    threads = [
        threading.Thread(target=run, args=(number, call)) for number, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(answers) == len(calls)
    return [answers[number] for number in range(len(calls))]


def deletion(app: APIFlask, account_id: int, token: str) -> Call:
    client = app.test_client()
    headers = bearer(token)
    return lambda: client.delete(f"/api/profile/{account_id}/delete/", headers=headers)


def test_two_deletions_by_the_owner_make_one_schedule(app: APIFlask) -> None:
    for number in range(ROUNDS):
        ann = make_person(services_of(app), f"ann{number}")

        answers = at_once(*[deletion(app, ann.id, ann.token) for _ in range(2)])

        statuses = sorted(answer.status_code for answer in answers)
        assert statuses in ([204, 204], [204, 401])
        sunsets = {one.headers["Sunset"] for one in answers if one.status_code == 204}
        assert len(sunsets) == 1
    assert len(events(services_of(app), "account.deactivated")) == ROUNDS
    assert len(effects(services_of(app), "mail.scheduled")) == ROUNDS


def test_owner_and_staff_at_once_make_one_schedule(app: APIFlask, sue: Person) -> None:
    for number in range(ROUNDS):
        ann = make_person(services_of(app), f"ann{number}")

        by_owner, by_staff = at_once(
            deletion(app, ann.id, ann.token), deletion(app, ann.id, sue.token)
        )

        assert by_owner.status_code in {204, 401}
        assert by_staff.status_code == 204
        account = read_account(services_of(app), ann.id)
        assert account is not None
        assert account.deactivated_by == ("owner" if by_owner.status_code == 204 else "staff")
    assert len(events(services_of(app), "account.deactivated")) == ROUNDS


def test_two_staff_deleting_each_other_leave_one(app: APIFlask) -> None:
    survivor = None
    for number in range(ROUNDS):
        pair = [
            make_account(services_of(app), f"{name}{number}", staff=True) for name in ("sam", "sue")
        ]
        if survivor is not None:
            deactivate(services_of(app), survivor, by="operator")
        one, other = (account.id for account in pair)
        made, moment = services_of(app), now(services_of(app))
        tokens = [made.tokens.access(account, now=moment, fresh=True) for account in pair]

        answers = at_once(deletion(app, other, tokens[0]), deletion(app, one, tokens[1]))

        # The later one finds the account of its own token deactivated, or itself the last.
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses in ([204, 401], [204, 409])
        left = [read_account(services_of(app), account_id) for account_id in (one, other)]
        active = [account.id for account in left if account is not None and account.is_active]
        assert len(active) == 1
        survivor = active[0]


def test_two_staff_deleting_themselves_leave_one(app: APIFlask) -> None:
    survivor = None
    for number in range(ROUNDS):
        pair = [
            make_person(services_of(app), f"{name}{number}", staff=True) for name in ("sam", "sue")
        ]
        if survivor is not None:
            deactivate(services_of(app), survivor, by="operator")

        answers = at_once(*[deletion(app, person.id, person.token) for person in pair])

        assert sorted(answer.status_code for answer in answers) == [204, 409]
        survivor = next(
            person.id
            for person, answer in zip(pair, answers, strict=True)
            if answer.status_code == 409
        )


def delete_while_writing(app: APIFlask, ann: Person) -> None:
    """A deletion against an upload, a saved password and a changed profile."""
    upload, save, update = (app.test_client() for _ in range(3))
    profile = f"/api/profile/{ann.id}/update/"
    image = {"avatar": (BytesIO(png(64)), "me.png")}
    entry = {"password_saved": "x"}

    deleted, *others = at_once(
        deletion(app, ann.id, ann.token),
        lambda: upload.put(profile, headers=ann.auth, data=image),
        lambda: save.post("/api/save-passwords/", headers=ann.auth, json=entry),
        lambda: update.patch(profile, headers=ann.auth, json={"first_name": "A"}),
    )

    assert deleted.status_code == 204
    assert {answer.status_code for answer in others} <= {200, 201, 401}
    account = read_account(services_of(app), ann.id)
    assert account is not None
    assert not account.is_active


def test_nothing_that_is_written_meanwhile_outlives_the_purge(
    new_app: NewApp, app: APIFlask, bystander: Person
) -> None:
    impatient = new_app(GRACE_PERIOD="0s")
    people = [make_person(services_of(app), f"ann{number}") for number in range(ROUNDS)]
    for ann in people:
        delete_while_writing(impatient, ann)
    time.sleep(1.1)
    made = services_of(impatient)

    assert made.sweep().purged == ROUNDS
    # What an upload that lost owes would be deleted an hour after it began.
    run_sql(
        services_of(app), "UPDATE outbox SET deliver_after = created_at WHERE kind = 'file.delete'"
    )
    made.deliver(seconds=30)

    assert all(read_account(services_of(app), ann.id) is None for ann in people)
    assert [key for key, _ in made.avatars.listing()] == [bystander.avatar]
    ids = [ann.id for ann in people]
    count = select(func.count()).where(SavedPassword.account_id.in_(ids))
    with made.reading() as session:
        assert session.scalar(count) == 0
        assert session.scalar(select(func.count()).where(Effect.kind == "file.delete")) == 0


def test_a_grace_period_of_zero_promises_no_earlier_than_now(
    new_app: NewApp, app: APIFlask, ann: Person
) -> None:
    deletion(new_app(GRACE_PERIOD="0s"), ann.id, ann.token)()

    account = read_account(services_of(app), ann.id)
    assert account is not None
    assert account.purge_at is not None
    assert account.deactivated_at is not None
    assert timedelta(0) <= account.purge_at - account.deactivated_at < timedelta(seconds=1)


def test_who_waits_for_the_row_until_the_grace_period_is_over_comes_too_late(
    app: APIFlask, ann: Person
) -> None:
    """The clock that counts is that under the lock."""
    services = services_of(app)
    account = deactivate(services, ann.id, grace=timedelta(seconds=1))
    assert account.purge_at is not None
    token = services.tokens.recovery(account, now=now(services))
    answers: list[TestResponse] = []

    def come_back() -> None:
        answers.append(app.test_client().post("/api/profile/reactivate/", json={"token": token}))

    thread = threading.Thread(target=come_back)
    with services.writing() as session:
        rows.lock(session, ann.id)
        thread.start()
        while database_now(session) <= account.purge_at:
            time.sleep(0.05)
    thread.join(timeout=120)

    assert [answer.status_code for answer in answers] == [409]
    assert answers[0].json is not None
    assert answers[0].json["code"] == "grace_over"
    assert services.sweep().purged_ids == [ann.id]
