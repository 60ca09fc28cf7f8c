"""CONTRACT section 4: holds, and the lists of deletions and of what happened, which are for the staff."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from apiflask import APIFlask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from accountsvc.db.models import LegalHold, PurgeFailure
from accountsvc.db.rows import find
from accountsvc.web import committed
from tests.api.answers import NO_TOKEN, NOT_AUTHORIZED, NOT_FOUND, NOT_VALID
from tests.conftest import NewApp
from tests.support import sweeps
from tests.support.addresses import confirm_address
from tests.support.factories import (
    PASSWORD,
    Person,
    access_token,
    bearer,
    deactivate,
    make_account,
    make_person,
    new_name,
    run_sql,
    services_of,
    witness,
)
from tests.support.moments import now
from tests.support.state import belongings, events, everything, read_account

NO_HOLD = b'{"error": "No open hold with this id on this account.", "code": "hold_not_found"}'
DELETIONS, AUDIT = "/api/admin/deletions/", "/api/admin/audit/"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def url(account_id: object, hold_id: object = None) -> str:
    holds = f"/api/profile/{account_id}/holds/"
    return holds if hold_id is None else f"{holds}{hold_id}/"


def place(client: FlaskClient, sue: Person, account_id: int, reason: str = "case 12") -> int:
    response = client.post(url(account_id), headers=sue.auth, json={"reason": reason})
    assert response.json is not None
    number: int = response.json["id"]
    return number


def results(response: TestResponse) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.json is not None
    assert list(response.json) == ["results"]
    assert response.headers["Cache-Control"] == "no-store"
    found: list[Any] = response.json["results"]
    return found


def staff_document(client: FlaskClient, sue: Person, account_id: int) -> Any:
    response = client.get(f"/api/profile/{account_id}/deletion/", headers=sue.auth)
    assert response.status_code == 200
    return response.json


def promise(app: APIFlask, account_id: int, purge_at: datetime) -> datetime:
    """Set *purge_at*, in whole seconds, as if it had been promised so."""
    purge_at = purge_at.replace(microsecond=0)
    with services_of(app).writing() as session:
        account = find(session, account_id)
        assert account is not None
        account.deactivated_at = min(purge_at, account.deactivated_at or purge_at) - 14 * DAY
        account.purge_at = purge_at
        account.deactivated_by = account.deactivated_by or "owner"
    witness(services_of(app), account_id)
    return purge_at


def promised(app: APIFlask, account_id: int) -> datetime | None:
    account = read_account(services_of(app), account_id)
    assert account is not None
    return account.purge_at


def make_deactivated(app: APIFlask, name: str, purge_at: datetime) -> int:
    account_id = make_account(services_of(app), name).id
    promise(app, account_id, purge_at)
    return account_id


def sweep(app: APIFlask, moment: datetime) -> list[int]:
    """Sweep as if it were *moment*; return who was purged."""
    return sweeps.sweep(services_of(app), moment).purged_ids


def walk(client: FlaskClient, sue: Person, path: str, query: str) -> list[TestResponse]:
    """Follow the links of a list from its first page to its last."""
    pages, following = [], f"{path}?{query}"
    while following:
        assert len(pages) < 50, "the links do not end"
        pages.append(client.get(following, headers=sue.auth))
        following = next_page(pages[-1])
    return pages


def next_page(response: TestResponse) -> str:
    link = response.headers.get("Link", "")
    assert link == "" or link.endswith('>; rel="next"')
    return link.partition(">")[0].removeprefix("<")


def z(moment: datetime | None) -> str:
    assert moment is not None
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


# Placing and releasing a hold


def test_a_hold_is_placed(app: APIFlask, client: FlaskClient, ann: Person, sue: Person) -> None:
    deactivate(services_of(app), ann.id)
    due_at = promised(app, ann.id)
    before = now(services_of(app)).replace(microsecond=0)

    response = client.post(
        url(ann.id), headers=sue.auth, json={"reason": "Fall 12, Straße", "id": 5, "user": sue.id}
    )

    assert response.json is not None
    number, placed_at = response.json["id"], response.json["placed_at"]
    assert response.status_code == 201
    assert (
        response.data.decode() == f'{{"id": {number}, "reason": "Fall 12, Stra\\u00dfe", '
        f'"placed_at": "{placed_at}", "released_at": null}}'
    )
    assert z(before) <= placed_at <= z(now(services_of(app)))
    assert response.headers["Location"] == f"/api/profile/{ann.id}/holds/{number}/"
    assert response.headers["Cache-Control"] == "no-store"
    (event,) = events(services_of(app), "hold.placed")
    assert (event.subject, event.actor, event.actor_kind) == (ann.public_id, sue.public_id, "staff")
    assert event.details == {"hold": number}
    assert promised(app, ann.id) == due_at


def test_holds_are_listed_oldest_first_released_ones_too(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person, sue: Person
) -> None:
    first = place(client, sue, ann.id, "first")
    elsewhere = place(client, sue, bob.id, "elsewhere")
    second = place(client, sue, ann.id, "second")
    third = place(client, sue, ann.id, "third")
    client.delete(url(ann.id, second), headers=sue.auth)

    shown = results(client.get(url(ann.id), headers=sue.auth))

    assert [(one["id"], one["reason"]) for one in shown] == [
        (first, "first"),
        (second, "second"),
        (third, "third"),
    ]
    assert first < elsewhere < second < third
    for one in shown:
        assert list(one) == ["id", "reason", "placed_at", "released_at"]
        assert (one["released_at"] is not None) is (one["id"] == second)
    assert shown[1]["released_at"] >= shown[1]["placed_at"]
    assert [one["id"] for one in results(client.get(url(bob.id), headers=sue.auth))] == [elsewhere]
    assert results(client.get(url(sue.id), headers=sue.auth)) == []


def test_a_hold_is_released_once(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    number = place(client, sue, ann.id)

    response = client.delete(url(ann.id, number), headers=sue.auth)

    assert (response.status_code, response.data) == (204, b"")
    assert "Content-Type" not in response.headers
    assert "Content-Length" not in response.headers
    (event,) = events(services_of(app), "hold.released")
    assert (event.subject, event.actor, event.actor_kind) == (ann.public_id, sue.public_id, "staff")
    assert event.details == {"hold": number}
    with services_of(app).reading() as session:
        assert session.get_one(LegalHold, number).released_by == sue.public_id
    before = everything(services_of(app))
    again = client.delete(url(ann.id, number), headers=sue.auth)
    assert (again.status_code, again.data) == (404, NO_HOLD)
    assert everything(services_of(app)) == before


def test_a_hold_that_is_not_there_is_not_released(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person, sue: Person
) -> None:
    deactivate(services_of(app), ann.id)
    elsewhere = place(client, sue, bob.id)
    place(client, sue, ann.id)
    before = everything(services_of(app))
    ids = [0, 4711, 2**63 - 1, 2**63, "9" * 40, elsewhere]

    answers = [client.delete(url(ann.id, number), headers=sue.auth) for number in ids]

    assert [(got.status_code, got.data) for got in answers] == [(404, NO_HOLD)] * len(ids)
    assert everything(services_of(app)) == before


@pytest.mark.parametrize("away", [-HOUR, HOUR, 30 * HOUR], ids=["due", "soon", "later"])
def test_releasing_the_last_hold_leaves_time_to_notice_a_mistake(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person, away: timedelta
) -> None:
    deactivate(services_of(app), ann.id)
    due_at = promise(app, ann.id, now(services_of(app)) + away)
    number = place(client, sue, ann.id)
    before = now(services_of(app))

    client.delete(url(ann.id, number), headers=sue.auth)

    moved = promised(app, ann.id)
    assert moved is not None
    if away > DAY:
        assert moved == due_at
    else:
        assert before + DAY <= moved <= now(services_of(app)) + DAY + timedelta(seconds=1)
        assert moved.microsecond == 0


def test_only_the_last_release_moves_the_purge_and_by_the_setting(
    new_app: NewApp, ann: Person, sue: Person
) -> None:
    app = new_app(HOLD_RELEASE_DELAY="3h")
    client = app.test_client()
    deactivate(services_of(app), ann.id)
    due_at = promise(app, ann.id, now(services_of(app)) + HOUR)
    first, second = place(client, sue, ann.id), place(client, sue, ann.id)

    client.delete(url(ann.id, second), headers=sue.auth)
    after_one = promised(app, ann.id)
    before = now(services_of(app))
    client.delete(url(ann.id, first), headers=sue.auth)
    after_both = promised(app, ann.id)

    assert after_one == due_at
    assert after_both is not None
    assert (
        before + 3 * HOUR <= after_both <= now(services_of(app)) + 3 * HOUR + timedelta(seconds=1)
    )
    # Placed again and released again: it is never moved back.
    promise(app, ann.id, now(services_of(app)) + 5 * HOUR)
    again = promised(app, ann.id)
    client.delete(url(ann.id, place(client, sue, ann.id)), headers=sue.auth)
    assert promised(app, ann.id) == again


def test_a_hold_on_an_active_account_changes_nothing_for_its_owner(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    released = place(client, sue, ann.id)
    client.delete(url(ann.id, released), headers=sue.auth)
    after_release = promised(app, ann.id)
    place(client, sue, ann.id, "quiet")

    profile = client.get("/api/profile/", headers=ann.auth)
    deleted = client.delete(
        f"/api/profile/{ann.id}/delete/",
        headers=ann.auth | {"Prefer": "return=representation"},
    )

    assert after_release is None
    assert profile.status_code == 200
    assert deleted.status_code == 200
    assert deleted.json is not None
    own = client.get(
        f"/api/profile/{ann.id}/deletion/", headers=bearer(deleted.json["recovery_token"])
    )
    assert own.json is not None
    assert list(own.json) == [
        "user_id", "state", "deactivated_at", "purge_at", "deactivated_by", "can_reactivate",
    ]  # fmt: skip
    for response in (profile, deleted, own):
        assert "hold" not in response.text
        assert "quiet" not in response.text


def test_staff_hold_their_own_account_too(app: APIFlask, client: FlaskClient, sue: Person) -> None:
    number = place(client, sue, sue.id)

    shown = results(client.get(url(sue.id), headers=sue.auth))
    released = client.delete(url(sue.id, number), headers=sue.auth)

    assert [one["id"] for one in shown] == [number]
    assert released.status_code == 204
    assert [one.actor_kind for one in events(services_of(app), "hold.placed")] == ["staff"]


def test_a_held_account_waits_past_its_date_and_nobody_brings_it_back_or_ends_it(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    deactivate(services_of(app), ann.id)
    due_at = promise(app, ann.id, now(services_of(app)) - HOUR)
    place(client, sue, ann.id)
    before = everything(services_of(app))

    owner = client.post("/api/profile/reactivate/", json={"email": ann.email, "password": PASSWORD})
    staff = client.post(f"/api/profile/{ann.id}/reactivate/", headers=sue.auth)
    at_once = client.post(
        f"/api/profile/{ann.id}/purge/", headers=sue.auth, json={"confirm": "ann"}
    )

    answers = [(got.status_code, (got.json or {})["code"]) for got in (owner, staff, at_once)]
    assert answers == [(409, "grace_over"), (409, "grace_over"), (409, "legal_hold")]
    assert "hold" not in owner.text
    assert everything(services_of(app)) == before
    shown = staff_document(client, sue, ann.id)
    assert (shown["state"], shown["purge_at"]) == ("due", z(due_at))
    assert (shown["blocked_by"], shown["can_reactivate"]) == ("hold", False)


def test_the_sweep_never_purges_a_held_account_and_does_so_when_the_delay_is_over(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person, sue: Person
) -> None:
    deactivate(services_of(app), ann.id)
    due_at = promise(app, ann.id, now(services_of(app)) - HOUR)
    other = make_deactivated(app, "cid", due_at)
    number = place(client, sue, ann.id)
    hers, others = belongings(services_of(app), ann), belongings(services_of(app), bob)

    assert sweep(app, due_at + 1000 * DAY) == [other]
    assert belongings(services_of(app), ann) == hers
    client.delete(url(ann.id, number), headers=sue.auth)
    released_until = promised(app, ann.id)
    assert released_until is not None
    assert sweep(app, released_until - timedelta(microseconds=1)) == []
    assert belongings(services_of(app), ann)["passwords"] == hers["passwords"]
    assert sweep(app, released_until) == [ann.id]
    assert read_account(services_of(app), ann.id) is None
    assert belongings(services_of(app), bob) == others
    for response in every_call_on_holds(client, ann.id, number, sue.auth):
        assert (response.status_code, response.data) == (404, NOT_FOUND)


def test_a_reason_that_cannot_be_kept_is_named_and_nothing_is_held(
    shared_app: APIFlask,
) -> None:
    client, ann, sue = make_three(shared_app)
    before = everything(services_of(shared_app))
    bad: list[tuple[Any, str]] = [
        ({}, "This field is required."),
        ({"reason": None}, "This field may not be null."),
        ({"reason": ""}, "This field may not be blank."),
        ({"reason": 5}, "Send text."),
        ({"reason": ["case"]}, "Send text."),
        ({"reason": "x" * 1001}, "Use at most 1000 characters."),
        ({"reason": "a\0"}, "Remove NUL bytes; send valid Unicode text."),
        ({"reason": "\ud800"}, "Remove NUL bytes; send valid Unicode text."),
    ]

    answers = [client.post(url(ann.id), headers=sue.auth, json=body) for body, _ in bad]
    no_object = client.post(url(ann.id), headers=sue.auth, json=["case"])
    no_json = client.post(url(ann.id), headers=sue.auth, data=b"reason=case")

    for (body, sentence), response in zip(bad, answers, strict=True):
        assert (body, response.status_code) == (body, 400)
        assert response.json == {"reason": [sentence]}
    assert (no_object.status_code, no_json.status_code) == (400, 415)
    assert everything(services_of(shared_app)) == before
    longest = client.post(url(ann.id), headers=sue.auth, json={"reason": "x" * 1000})
    assert longest.status_code == 201


def make_three(app: APIFlask) -> tuple[FlaskClient, Person, Person]:
    """A client, somebody, and one of the staff, in an application that others use too."""
    staff = make_account(services_of(app), new_name("sue"), staff=True)
    sue = Person(
        staff.id, staff.email, staff.public_id, access_token(services_of(app), staff), "", ()
    )
    return app.test_client(), make_person(services_of(app), new_name("ann")), sue


def every_call_on_holds(
    client: FlaskClient, account_id: object, hold_id: int, headers: Mapping[str, str]
) -> list[TestResponse]:
    return [
        client.post(url(account_id), headers=headers, json={"reason": "case 12"}),
        client.get(url(account_id), headers=headers),
        client.delete(url(account_id, hold_id), headers=headers),
    ]


def test_holds_are_for_the_staff_alone(shared_app: APIFlask) -> None:
    client, ann, sue = make_three(shared_app)
    bob = make_person(services_of(shared_app), new_name("bob"))
    away, former, gone = (
        make_account(services_of(shared_app), new_name("cid"), staff=True) for _ in range(3)
    )
    former_auth = bearer(access_token(services_of(shared_app), former))
    gone_auth = bearer(access_token(services_of(shared_app), gone))
    refresh = services_of(shared_app).tokens.refresh(away, now=now(services_of(shared_app)))
    deactivate(services_of(shared_app), away.id)
    deactivate(services_of(shared_app), gone.id)
    run_sql(
        services_of(shared_app), "UPDATE accounts SET is_staff = false WHERE id = :id", id=former.id
    )
    number, hidden = place(client, sue, ann.id), place(client, sue, away.id)
    before = everything(services_of(shared_app))

    def ask(
        account_id: object, hold_id: int, headers: Mapping[str, str]
    ) -> list[tuple[int, bytes]]:
        answers = every_call_on_holds(client, account_id, hold_id, headers)
        return [(got.status_code, got.data) for got in answers]

    assert ask(ann.id, number, {}) == [(401, NO_TOKEN)] * 3
    assert ask("9" * 40, number, {}) == [(401, NO_TOKEN)] * 3
    for wrong in (bearer("null"), bearer(refresh), gone_auth):
        assert ask(ann.id, number, wrong) == [(401, NOT_VALID)] * 3
    # The owner must not learn of it.
    for who in (ann.auth, bob.auth, former_auth):
        assert ask(ann.id, number, who) == [(403, NOT_AUTHORIZED)] * 3
    assert ask(away.id, hidden, bob.auth) == [(404, NOT_FOUND)] * 3
    for nobody in (0, 2**63, "9" * 40):
        assert ask(nobody, number, bob.auth) == [(404, NOT_FOUND)] * 3
        assert ask(nobody, number, sue.auth) == [(404, NOT_FOUND)] * 3
    assert everything(services_of(shared_app)) == before


# What the staff see of a deletion


def fail(app: APIFlask, account_id: int, attempts: int) -> None:
    """Write down that the purge of an account has failed so often."""
    with services_of(app).writing() as session:
        failure = session.get(PurgeFailure, account_id)
        if failure is None:
            moment = now(services_of(app))
            failure = PurgeFailure(
                account_id=account_id, failed_at=moment, retry_at=moment + HOUR, error="Fault"
            )
            session.add(failure)
        failure.attempts = attempts


def test_the_staff_see_why_an_account_has_not_been_purged(
    new_app: NewApp, ann: Person, sue: Person
) -> None:
    app = new_app(PURGE_MAX_ATTEMPTS="3")
    client = app.test_client()
    deactivate(services_of(app), ann.id)
    seen = []

    def look() -> None:
        shown = staff_document(client, sue, ann.id)
        seen.append((shown["blocked_by"], shown["attempts"], len(shown["holds"])))

    look()
    fail(app, ann.id, 2)
    look()
    fail(app, ann.id, 3)
    look()
    number = place(client, sue, ann.id)
    look()
    client.delete(url(ann.id, number), headers=sue.auth)
    look()

    assert seen == [
        (None, 0, 0),
        ("retry", 2, 0),
        ("stuck", 3, 0),
        ("hold", 3, 1),
        ("stuck", 3, 1),
    ]


def test_deletions_are_listed_by_the_time_of_their_purge(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person, sue: Person
) -> None:
    moment = now(services_of(app))
    deactivate(services_of(app), ann.id, by="staff")
    promise(app, ann.id, moment + 3 * DAY)
    first = make_deactivated(app, "cid", moment - DAY)
    tied = [make_deactivated(app, name, moment + DAY) for name in ("dan", "eve")]
    place(client, sue, ann.id, "case 12")

    response = client.get(DELETIONS, headers=sue.auth)

    shown = results(response)
    assert [one["user_id"] for one in shown] == [first, *tied, ann.id]
    assert "Link" not in response.headers
    assert [one["state"] for one in shown] == ["due"] + ["deactivated"] * 3
    for one in shown:
        assert list(one) == [
            "user_id", "state", "deactivated_at", "purge_at", "deactivated_by", "can_reactivate",
            "reason", "holds", "blocked_by", "attempts",
        ]  # fmt: skip
        assert one == staff_document(client, sue, one["user_id"])
    assert [hold["reason"] for hold in shown[-1]["holds"]] == ["case 12"]
    assert (shown[-1]["deactivated_by"], shown[-1]["can_reactivate"]) == ("staff", True)


def test_the_list_of_deletions_is_filtered(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    moment = now(services_of(app)).replace(microsecond=0)
    overdue = make_deactivated(app, "cid", moment - DAY)
    overdue_held = make_deactivated(app, "dan", moment - HOUR)
    soon = make_deactivated(app, "eve", moment + DAY)
    later_held = make_deactivated(app, "fay", moment + 2 * DAY)
    released = make_deactivated(app, "gil", moment + 3 * DAY)
    for account_id in (overdue_held, later_held):
        place(client, sue, account_id)
    client.delete(url(released, place(client, sue, released)), headers=sue.auth)
    tomorrow = quote((moment + DAY).isoformat())
    elsewhere = quote(f"{moment + DAY + HOUR:%Y-%m-%dT%H:%M:%S}+01:00")
    expected = {
        "": [overdue, overdue_held, soon, later_held, released],
        "state=due": [overdue, overdue_held],
        "state=deactivated": [soon, later_held, released],
        "held=true": [overdue_held, later_held],
        "held=false": [overdue, soon, released],
        f"due_before={z(moment + DAY)}": [overdue, overdue_held],
        f"due_before={z(moment + DAY + timedelta(seconds=1))}": [overdue, overdue_held, soon],
        f"due_before={tomorrow}": [overdue, overdue_held],
        f"due_before={elsewhere}": [overdue, overdue_held],
        "state=due&held=true": [overdue_held],
        f"state=deactivated&held=false&due_before={z(moment + 2 * DAY)}": [soon],
        f"state=due&due_before={z(moment - 2 * DAY)}": [],
        "limit=5": [overdue, overdue_held, soon, later_held, released],
        "unknown=1": [overdue, overdue_held, soon, later_held, released],
    }

    found = {
        query: [
            one["user_id"] for one in results(client.get(f"{DELETIONS}?{query}", headers=sue.auth))
        ]
        for query in expected
    }

    assert found == expected


def test_the_links_lead_to_every_deletion_once(
    app: APIFlask, client: FlaskClient, sue: Person
) -> None:
    moment = now(services_of(app))
    away = [*[DAY] * 3, 2 * DAY, *[3 * DAY] * 3]
    made = [
        make_deactivated(app, f"person{number}", moment + one) for number, one in enumerate(away)
    ]
    place(client, sue, make_deactivated(app, "held", moment + DAY))
    query = f"held=false&state=deactivated&due_before={quote((moment + 9 * DAY).isoformat())}"

    for limit, sizes in ((2, [2, 2, 2, 1]), (7, [7]), (1, [1] * 7)):
        pages = walk(client, sue, DELETIONS, f"{query}&limit={limit}")

        assert [len(results(page)) for page in pages] == sizes
        assert [one["user_id"] for page in pages for one in results(page)] == made
        for page in pages[:-1]:
            link = urlsplit(next_page(page))
            kept = parse_qs(link.query)
            kept.pop("cursor")
            assert link.path == DELETIONS
            assert kept == {**parse_qs(query), "limit": [str(limit)]}


def test_what_comes_and_goes_between_two_pages_hides_and_repeats_nobody(
    app: APIFlask, client: FlaskClient, sue: Person
) -> None:
    moment = now(services_of(app))
    made = [
        make_deactivated(app, f"person{number}", moment + number * HOUR - 3 * HOUR)
        for number in range(6)
    ]

    first = client.get(f"{DELETIONS}?limit=2", headers=sue.auth)
    # Those that were seen are purged, also the one that the cursor names.
    assert sweep(app, moment - HOUR - timedelta(minutes=1)) == made[:2]
    earlier = make_deactivated(app, "earlier", moment - DAY)
    between = make_deactivated(app, "between", moment + timedelta(minutes=30))
    later = make_deactivated(app, "later", moment + DAY)
    following = walk(client, sue, *next_page(first).split("?"))

    seen = [one["user_id"] for page in (first, *following) for one in results(page)]
    assert seen == [*made[:4], between, *made[4:], later]
    assert earlier not in seen


BAD_CURSORS = [
    "",
    "1",
    "null",
    "....",
    "MjAyNi0xMi0wNyAx",
    "MjAyNi0xMi0wN1QwOTozMDowMCAx",
    "2026-12-07T09:30:00+00:00 1",
    "MjAyNi0xMi0wN1QwOTozMDowMCswMDowMCAtMQ==",
    "MjAyNi0xMi0wN1QwOTozMDowMCswMDowMCAx%0A",
    "%00",
    "%C3%A4%C3%B6",
    "/////w==",
]
BAD_TIMES = ["", "soon", "2026-12-07", "2026-12-07T09:30:00", "1765100000", "2026-13-01T00:00:00Z"]
BAD_LIMITS = ["0", "-1", "1001", "many", "", "1e2", "9" * 5000, "٣", "1_0"]


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        (
            DELETIONS,
            {
                "cursor": BAD_CURSORS,
                "limit": BAD_LIMITS,
                "due_before": BAD_TIMES,
                "state": ["", "active", "DUE", "purged"],
                "held": ["", "maybe", "2"],
            },
        ),
        (
            AUDIT,
            {
                "cursor": ["-1", "x", "", str(2**63), "9" * 5000],
                "limit": BAD_LIMITS,
                "since": BAD_TIMES,
                "subject": [
                    *("", "ann", "-1", "%D9%A1", "ann@example.org", "x" * 65, "%00"),
                    *(
                        "{00000000-0000-0000-0000-000000000000}",
                        "urn:uuid:00000000-0000-0000-0000-000000000000",
                    ),
                ],
                "action": ["x" * 41, "a%00"],
            },
        ),
    ],
    ids=["deletions", "audit"],
)
def test_a_bad_wish_is_named_with_a_sentence(
    shared_app: APIFlask, path: str, bad: dict[str, list[str]]
) -> None:
    client, _, sue = make_three(shared_app)

    for name, values in bad.items():
        for value in values:
            response = client.get(f"{path}?{name}={value}", headers=sue.auth)

            assert (name, value, response.status_code) == (name, value, 400)
            assert response.json is not None
            assert list(response.json) == [name]
            (sentence,) = response.json[name]
            assert sentence.endswith(".")


@pytest.mark.parametrize(
    "query",
    [
        f"{DELETIONS}?due_before=0001-01-01T00:00:00%2B23:59",
        f"{DELETIONS}?due_before=9999-12-31T23:59:59-23:59",
        # 0001-01-01T00:00:00+23:59 and an id.
        f"{DELETIONS}?cursor=MDAwMS0wMS0wMVQwMDowMDowMCsyMzo1OSAx",
        f"{AUDIT}?since=0001-01-01T00:00:00%2B23:59",
        f"{AUDIT}?since=9999-12-31T23:59:59-23:59",
    ],
)
def test_a_time_outside_the_calendar_of_utc_is_no_fault_of_ours(
    shared_app: APIFlask, query: str
) -> None:
    client, _, sue = make_three(shared_app)

    response = client.get(query, headers=sue.auth)

    assert response.status_code in {200, 400}


def test_the_ends_of_the_calendar_and_of_the_ids_are_only_far_away(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    deactivate(services_of(app), ann.id)
    expected = {
        f"{DELETIONS}?due_before=9999-12-31T23:59:59Z": 1,
        f"{DELETIONS}?due_before=0001-01-01T00:00:00Z": 0,
        # 2026-01-01T00:00:00+00:00 and 0001-01-01T00:00:00+00:00, with ids above what there can be.
        f"{DELETIONS}?cursor=MjAyNi0wMS0wMVQwMDowMDowMCswMDowMCA5OTk5OTk5OTk5OTk5OTk5OTk5": 1,
        f"{DELETIONS}?cursor=MDAwMS0wMS0wMVQwMDowMDowMCswMDowMCAx": 1,
        f"{AUDIT}?since=9999-12-31T23:59:59Z": 0,
        f"{AUDIT}?since=0001-01-01T00:00:00Z&action=account.deactivated": 1,
        f"{AUDIT}?cursor={2**63 - 1}": 0,
        f"{AUDIT}?subject={2**63 - 1}": 0,
        f"{AUDIT}?subject={'9' * 19}": 0,
        f"{AUDIT}?subject=00000000-0000-0000-0000-000000000000": 0,
        f"{AUDIT}?subject=00000000000000000000000000000000": 0,
        f"{AUDIT}?action=account.eaten": 0,
    }

    found = {query: len(results(client.get(query, headers=sue.auth))) for query in expected}

    assert found == expected


@pytest.mark.parametrize("path", [DELETIONS, AUDIT])
def test_the_lists_are_for_the_staff_alone(shared_app: APIFlask, path: str) -> None:
    client, ann, _ = make_three(shared_app)
    former = make_account(services_of(shared_app), new_name("cid"), staff=True)
    former_auth = bearer(access_token(services_of(shared_app), former))
    run_sql(
        services_of(shared_app), "UPDATE accounts SET is_staff = false WHERE id = :id", id=former.id
    )

    # Who may not ask is told so before the question is looked at.
    for query in ("", "?limit=0", f"?subject={ann.public_id}"):
        nobody = client.get(path + query)
        wrong = client.get(path + query, headers=bearer("null"))
        owner = client.get(path + query, headers=ann.auth)
        demoted = client.get(path + query, headers=former_auth)

        assert (nobody.status_code, nobody.data) == (401, NO_TOKEN)
        assert (wrong.status_code, wrong.data) == (401, NOT_VALID)
        assert (owner.status_code, owner.data) == (403, NOT_AUTHORIZED)
        assert (demoted.status_code, demoted.data) == (403, NOT_AUTHORIZED)


# What happened


def actions(response: TestResponse) -> list[str]:
    return [one["action"] for one in results(response)]


def test_what_happened_to_somebody_is_listed_in_order(
    app: APIFlask, client: FlaskClient, ann: Person, bob: Person, sue: Person
) -> None:
    number = place(client, sue, ann.id)
    client.delete(f"/api/profile/{ann.id}/delete/", headers=ann.auth)
    client.post("/api/sign-in/", json={"email": ann.email, "password": "wrong"})
    client.post("/api/sign-in/", json={"email": "nobody@example.org", "password": "wrong"})

    by_id = client.get(f"{AUDIT}?subject={ann.id}", headers=sue.auth)
    by_public_id = client.get(f"{AUDIT}?subject={ann.public_id}", headers=sue.auth)
    everybody = results(client.get(AUDIT, headers=sue.auth))

    assert by_id.data == by_public_id.data
    shown = results(by_id)
    created, avatar, placed, deactivated, failed = shown
    assert actions(by_id) == [
        "account.created", "avatar.replaced", "hold.placed", "account.deactivated",
        "sign_in.failed",
    ]  # fmt: skip
    assert placed == {
        "id": placed["id"],
        "at": placed["at"],
        "action": "hold.placed",
        "subject": str(ann.public_id),
        "actor": str(sue.public_id),
        "actor_kind": "staff",
        "details": {"hold": number},
    }
    for one in everybody:
        assert list(one) == ["id", "at", "action", "subject", "actor", "actor_kind", "details"]
    assert [(one["actor"], one["actor_kind"]) for one in (created, avatar, deactivated)] == [
        (str(ann.public_id), "owner")
    ] * 3
    assert (failed["actor"], failed["actor_kind"]) == (None, "anybody")
    # A try for an e-mail without an account is counted in a metric only.
    assert all(one["subject"] for one in everybody)
    ids = [one["id"] for one in everybody]
    assert ids == sorted(ids)
    assert [one for one in everybody if one["subject"] == str(ann.public_id)] == shown
    assert {str(bob.public_id), str(sue.public_id)} <= {one["subject"] for one in everybody}


def test_a_purged_account_is_found_by_its_public_id_only(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person
) -> None:
    deactivate(services_of(app), ann.id)
    purge_at = promise(app, ann.id, now(services_of(app)) - HOUR)
    assert sweep(app, purge_at) == [ann.id]

    by_public_id = client.get(f"{AUDIT}?subject={ann.public_id}", headers=sue.auth)
    by_id = client.get(f"{AUDIT}?subject={ann.id}", headers=sue.auth)

    assert actions(by_public_id) == [
        "account.created", "avatar.replaced", "account.deactivated", "deletion.witnessed", "account.purged",
    ]  # fmt: skip
    assert results(by_public_id)[-1]["actor_kind"] == "system"
    assert results(by_id) == []
    assert ann.id not in [
        one["user_id"] for one in results(client.get(DELETIONS, headers=sue.auth))
    ]


def test_events_are_filtered(app: APIFlask, client: FlaskClient, ann: Person, sue: Person) -> None:
    for name in ("bob", "cid"):
        place(client, sue, make_account(services_of(app), name).id)
    place(client, sue, ann.id)
    placed = events(services_of(app), "hold.placed")
    last = quote(placed[-1].at.isoformat())
    after = quote((placed[-1].at + timedelta(microseconds=1)).isoformat())

    def ask(query: str) -> list[int]:
        return [one["id"] for one in results(client.get(f"{AUDIT}?{query}", headers=sue.auth))]

    assert ask("action=hold.placed") == [one.id for one in placed]
    assert ask(f"action=hold.placed&subject={ann.id}") == [placed[-1].id]
    assert ask(f"action=hold.placed&subject={sue.public_id}") == []
    assert ask(f"since={last}&action=hold.placed") == [placed[-1].id]
    assert ask(f"since={after}") == []
    assert ask(f"action=hold.placed&cursor={placed[0].id}") == [one.id for one in placed[1:]]


def test_the_links_lead_to_every_event_once_while_more_are_written(
    app: APIFlask, client: FlaskClient, sue: Person
) -> None:
    for number in range(5):
        make_account(services_of(app), f"person{number}")
    since = quote((now(services_of(app)) - DAY).isoformat())
    query = f"action=account.created&since={since}&limit=2"

    first = client.get(f"{AUDIT}?{query}", headers=sue.auth)
    make_account(services_of(app), "another")
    pages = [first, *walk(client, sue, *next_page(first).split("?"))]

    assert [len(results(page)) for page in pages] == [2, 2, 2, 1]
    seen = [one["id"] for page in pages for one in results(page)]
    assert seen == [one.id for one in events(services_of(app), "account.created")]
    for page in pages[:-1]:
        link = urlsplit(next_page(page))
        kept = parse_qs(link.query)
        assert kept.pop("cursor") == [str(results(page)[-1]["id"])]
        assert link.path == AUDIT
        assert kept == parse_qs(query)


def test_nothing_that_the_staff_list_holds_personal_data(
    app: APIFlask, client: FlaskClient, sue: Person
) -> None:
    zelda = make_person(services_of(app), "zelda")
    client.patch(
        f"/api/profile/{zelda.id}/update/",
        headers=zelda.auth,
        json={"email": "zoe@example.net", "first_name": "Zorro", "number_phone": "0700 900"},
    )
    confirm_address(services_of(app), app.test_client(), zelda.id)
    client.post("/api/sign-in/", json={"email": "zoe@example.net", "password": "wr0ng-guess"})
    client.post("/api/password-reset/", json={"email": "zoe@example.net"})
    services_of(app).deliver()
    number = place(client, sue, zelda.id, "because of Zacharias")
    client.delete(f"/api/profile/{sue.id}/delete/", headers=zelda.auth)
    client.delete(f"/api/profile/{zelda.id}/delete/", headers=zelda.auth)
    shown = client.get(f"/api/profile/{zelda.id}/deletion/", headers=sue.auth)
    client.patch(
        f"/api/profile/{zelda.id}/deletion/",
        headers=sue.auth | {"If-Match": shown.headers["ETag"]},
        json={"reason": "because of Zuleika"},
    )
    client.delete(url(zelda.id, number), headers=sue.auth)

    trail = client.get(f"{AUDIT}?limit=1000", headers=sue.auth)
    deletions = client.get(DELETIONS, headers=sue.auth)

    assert {
        "account.email_asked", "account.email_changed", "sign_in.failed", "account.password_reset_requested",
        "hold.placed", "hold.released", "access.denied", "account.deactivated",
        "deletion.reason_changed",
    } <= set(actions(trail))  # fmt: skip
    personal = (
        "zelda", "zoe", "zorro", "example", "@", "0700 900", "wr0ng", PASSWORD, zelda.avatar, "site 0",
    )  # fmt: skip
    for secret in (*personal, "because", "zacharias", "zuleika", "127.0.0.1"):
        assert secret not in trail.text.lower()
    for secret in personal:
        assert secret not in deletions.text.lower()
    assert "because of Zuleika" in deletions.text


# What is not the staff's


@pytest.mark.parametrize("state", ["active", "deactivated"])
def test_the_staff_neither_open_a_vault_nor_write_a_profile(
    app: APIFlask, client: FlaskClient, ann: Person, sue: Person, state: str
) -> None:
    if state == "deactivated":
        deactivate(services_of(app), ann.id)
    hers, before = belongings(services_of(app), ann), everything(services_of(app))
    vault, profile = "/api/view-all-saved-passwords/", f"/api/profile/{ann.id}/"
    body = {
        "password": PASSWORD,
        "new_password": "another horse, another battery",
        "email": "sue2@example.org",
        "first_name": "Sue",
        "password_saved": "x",
        "user": ann.id,
        "confirm": "ann",
    }

    def call(method: str, path: str) -> TestResponse:
        return client.open(path, method=method, headers=sue.auth, json=body)

    own = client.get(vault, headers=sue.auth)
    entries = [
        call(method, f"{vault}{number}/{what}/")
        for number in ann.passwords
        for method, what in (("PUT", "update"), ("DELETE", "delete"))
    ]
    theirs = [
        call(method, profile + what)
        for method, what in (
            ("PUT", "update/"),
            ("PATCH", "update/"),
            ("POST", "password/"),
            ("GET", "export/"),
            ("POST", "export/"),
        )
    ]
    nowhere = [
        call("GET", path)
        for path in (profile, f"{vault}{ann.passwords[0]}/", f"{vault}?user={ann.id}")
    ]

    assert own.json is not None
    assert [one["id"] for one in own.json["passwords"]] == list(sue.passwords)
    for response in entries:
        assert (response.status_code, response.data) == (404, b'{"error": "Password not found."}')
    for response in theirs:
        assert (response.status_code, response.data) == (403, NOT_AUTHORIZED)
    assert [got.status_code for got in nowhere] == [404, 404, 200]
    assert nowhere[2].data == own.data
    for secret in ("ann@example.org", "ann 0", "+1 (2) 3", ann.avatar):
        for response in (own, *entries, *theirs, *nowhere):
            assert secret not in response.text
    assert belongings(services_of(app), ann) == hers
    assert everything(services_of(app)) == before
    denied = events(services_of(app), "access.denied")
    assert {(one.subject, one.actor) for one in denied} == {(ann.public_id, sue.public_id)}
    assert len(denied) == len(theirs)


# Somebody who is staff no longer -----------------------------------------------------------------

Asked = Callable[[FlaskClient, Mapping[str, str], int, int], TestResponse]
ASKED: dict[str, Asked] = {
    "place": lambda client, auth, who, hold: client.post(
        url(who), headers=auth, json={"reason": "case 13"}
    ),
    "release": lambda client, auth, who, hold: client.delete(url(who, hold), headers=auth),
    "give back": lambda client, auth, who, hold: client.post(
        f"/api/profile/{who}/reactivate/", headers=auth
    ),
    "give a reason": lambda client, auth, who, hold: client.patch(
        f"/api/profile/{who}/deletion/", headers=auth | {"If-Match": "*"}, json={"reason": "new"}
    ),
    "purge": lambda client, auth, who, hold: client.post(
        f"/api/profile/{who}/purge/", headers=auth, json={"confirm": "eve"}
    ),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_token_that_dies_before_the_lock_is_had_does_nothing(
    app: APIFlask, client: FlaskClient, sue: Person, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Whoever takes a staff member's access away must not wait for what they have sent already."""
    eve = make_person(services_of(app), "eve")
    hold = place(client, sue, eve.id)
    if what == "purge":
        client.delete(url(eve.id, hold), headers=sue.auth)
    deactivate(services_of(app), eve.id)
    before = staff_document(client, sue, eve.id), len(everything(services_of(app))["audit_events"])

    def late(work: Callable[[Session], Any]) -> Any:
        run_sql(services_of(app), "UPDATE accounts SET epoch = epoch + 1 WHERE id = :id", id=sue.id)
        return committed(work)

    for name in ("staff", "grace"):
        monkeypatch.setattr(import_module(f"accountsvc.api.{name}"), "committed", late)
    response = ASKED[what](client, sue.auth, eve.id, hold)

    assert (response.status_code, response.data) == (401, NOT_VALID)
    account = read_account(services_of(app), sue.id)
    assert account is not None
    auth = bearer(access_token(services_of(app), account))
    after = client.get(f"/api/profile/{eve.id}/deletion/", headers=auth).json
    assert (after, len(everything(services_of(app))["audit_events"])) == before
