"""However often somebody deletes, comes back or asks, a mailbox gets few mails, and the newest news."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from accountsvc import bounds, tokens
from accountsvc.accounts import credentials
from accountsvc.adapters.mail import MailRefused
from accountsvc.db.models import Account, MailPace
from accountsvc.outbox import letters, notices, pacing, payloads, queue
from accountsvc.outbox.pacing import DAY, Pace, next_turn
from accountsvc.outbox.queue import Handler, Outcome, Owed
from accountsvc.services import Services
from tests.outbox.conftest import NewPost
from tests.support.addresses import confirm_address
from tests.support.factories import (
    PASSWORD,
    Person,
    deactivate,
    insert_accounts,
    make_account,
    make_person,
    numbered,
    reactivate,
    run_sql,
    services_of,
)
from tests.support.moments import BOUNDARY, NOW, SECOND, at, now
from tests.support.post import GRACE, OF_THE_ADDRESS, Post
from tests.support.processes import eventually
from tests.support.smtp import text_of
from tests.support.state import effects, get_account, possessions, rows_of, waits_for_a_lock
from tests.support.sweeps import sweep

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
STRANGER = "stranger@example.org"

# How the subject of each kind begins.
SUBJECTS = {
    "Your account will be deleted on": notices.SCHEDULED,
    "Your account is active again": notices.REACTIVATED,
    "Your account has been deleted": notices.PURGED,
    "The email address of your account was changed": notices.ADDRESS_CHANGED,
    "Your password was changed": notices.PASSWORD_CHANGED,
    "Set a new password": notices.PASSWORD_RESET,
}

# The minutes at which a mailbox is mailed one kind, however many are owed all the time.
TURNS = [0, *(10 + 60 * number for number in range(19))]
# When a test looks at what comes within a day.
A_DAY = (*range(0, 190, 10), 720, 1440)


# The table ----------------------------------------------------------------------------------------


def ago(*minutes: float) -> list[datetime]:
    return [NOW - timedelta(minutes=count) for count in minutes]


@pytest.mark.parametrize(
    ("sent", "wait"),
    [
        ([], timedelta()),
        (ago(0), 10 * MINUTE),
        (ago(9), MINUTE),
        (ago(10), timedelta()),
        (ago(70, 60), timedelta()),
        (ago(70, 59), MINUTE),
        (ago(11, 1), 59 * MINUTE),
        # Twenty within a day: the first of them has to be a day old.
        (ago(1439, *range(1399, 319, -60), 100), MINUTE),
        (ago(1440, *range(1399, 319, -60), 100), timedelta()),
        # Of yesterday: nothing counts any more.
        (ago(1440), timedelta()),
        # Of a clock that was wrong: neither.
        ([NOW + 400 * DAY], timedelta()),
    ],
)
def test_when_the_next_mail_of_a_kind_may_be_sent(
    sent: Sequence[datetime], wait: timedelta
) -> None:
    assert next_turn(sent, now=NOW) == NOW + wait


@pytest.mark.parametrize("off", BOUNDARY)
@pytest.mark.parametrize(
    "sent",
    [ago(10), ago(120, 60), ago(1440, *range(1399, 319, -60), 100)],
    ids=["ten minutes", "an hour", "a day"],
)
def test_ten_minutes_an_hour_and_a_day_are_over_at_their_end(
    sent: Sequence[datetime], off: timedelta
) -> None:
    # A microsecond before, there is still one to wait.
    assert next_turn(sent, now=NOW + off) == max(NOW, NOW + off)


def test_a_mail_that_would_lose_its_turn_to_its_end_leaves_before_it() -> None:
    sent = ago(11, 1)

    # Its turn is in 59 minutes.
    in_time, just_late, at_once = (
        next_turn(sent, now=NOW, end=NOW + minutes * MINUTE) for minutes in (60, 59, 5)
    )

    assert in_time == NOW + 59 * MINUTE
    assert just_late == NOW + 49 * MINUTE
    assert at_once == NOW


def test_the_end_of_a_mail_does_not_break_the_limit_of_a_day() -> None:
    sent = ago(*range(1200, 0, -60))
    assert len(sent) == bounds.MAILS_A_DAY

    assert next_turn(sent, now=NOW, end=NOW + MINUTE) == NOW + DAY - 1200 * MINUTE


# Who is one recipient -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "ANN@büro.example",
        "ann@BÜRO.Example",
        "ann@xn--bro-hoa.example",
        "ann@XN--BRO-HOA.example",
        "ann@bu\u0308ro.example",
        "ann@bü\u00adro.example",
        "ann@\uff42üro.example",
    ],
)
def test_all_forms_of_an_address_are_one_recipient(form: str) -> None:
    pace = Pace(b"k")

    assert pace.recipient(form) == pace.recipient("ann@büro.example")


@pytest.mark.parametrize(
    "other",
    [
        "ann+1@example.org",
        "a.nn@example.org",
        "ann@example.net",
        "bob@example.org",
        "ａnn@example.org",
        "ann@exämple.org",
    ],
)
def test_other_mailboxes_are_other_recipients(other: str) -> None:
    pace = Pace(b"k")

    assert pace.recipient(other) != pace.recipient("ann@example.org")


def test_a_recipient_is_named_by_a_key_that_is_nobody_elses() -> None:
    name = Pace(b"k").recipient("ann@example.org")

    assert len(name) == 64
    assert name != Pace(b"l").recipient("ann@example.org")
    assert repr(Pace(b"k")) == "Pace()"


@pytest.mark.parametrize(
    ("days", "lanes"), [(0, [0, 0, 0]), (1, [0, 1, 1]), (30, [1, 2, 2]), (4000, [2, 2, 2])]
)
def test_a_lane_is_by_how_long_an_account_has_had_the_mailbox(days: int, lanes: list[int]) -> None:
    assert [pacing.lane(days * DAY + off) for off in BOUNDARY] == lanes


def test_each_lane_of_a_mailbox_is_counted_apart_and_the_first_as_before_there_were_any() -> None:
    pace = Pace(b"k")

    names = [
        pace.recipient(form, lane)
        for form in ("ann@x.example", "Ann@X.example")
        for lane in (0, 1, 2)
    ]

    assert names[:3] == names[3:]
    assert len({*names, pace.recipient("ann@x.example2"), pace.recipient("ann@x.example1")}) == 5
    assert names[0] == pace.recipient("ann@x.example")


def test_what_cannot_be_mailed_is_no_recipient() -> None:
    with pytest.raises(MailRefused):
        Pace(b"k").recipient("no address")


# Floods -------------------------------------------------------------------------------------------


def came(post: Post, *, to: str = STRANGER) -> list[str]:
    """Return the kinds of the mails that have come to *to* since the last call."""
    return [
        kind
        for recipient, subject in post.new()
        for beginning, kind in SUBJECTS.items()
        if recipient == to and subject.startswith(beginning)
    ]


def watch(
    post: Post,
    minutes: Iterable[int] = A_DAY,
    *,
    before: Callable[[int], object] = lambda _minute: None,
    to: str = STRANGER,
) -> dict[str, list[int]]:
    """Deliver at these *minutes* from now; return by kind those at which a mail came to *to*."""
    found: dict[str, list[int]] = {}
    begin = post.ahead
    for minute in minutes:
        post.ahead = max(post.ahead, begin + minute * MINUTE)
        before(minute)
        post.later(timedelta(), kinds=tuple(SUBJECTS.values()))
        for kind in came(post, to=to):
            found.setdefault(kind, []).append(minute)
    return found


def test_a_hundred_deletions_and_returns_in_a_minute_mail_a_stranger_a_few_times(
    new_post: NewPost,
) -> None:
    # given: three accounts that have, or have had, the stranger's address
    post = new_post(RATE_LIMITS="on")
    client = post.app.test_client()
    people = [
        sign_up(post, name, STRANGER, moves_to=moves_to)
        for name, moves_to in (("a", "a@example.org"), ("b", "b@example.org"), ("c", None))
    ]

    # when
    statuses = set()
    for number in range(101):
        person, email = people[number % 3]
        path = f"/api/profile/{person['user']['id']}/delete/"
        deleted = client.delete(path, headers=auth(person))
        if number % 10 == 0:
            post.later(5 * SECOND, kinds=(*OF_THE_FLOOD, *OF_THE_ADDRESS))
        body = {"email": email, "password": PASSWORD}
        back = client.post("/api/profile/reactivate/", json=body)
        if number % 10 == 5:
            post.later(5 * SECOND, kinds=OF_THE_FLOOD)
        statuses.add((deleted.status_code, back.status_code))
        assert back.json is not None
        people[number % 3] = (back.json, email)

    # then
    assert statuses == {(204, 200)}
    assert sorted(came(post)) == sorted(OF_THE_FLOOD)
    assert watch(post) == {
        notices.ADDRESS_CHANGED: [10],
        # Each account's newest.
        notices.REACTIVATED: [10, 70, 130],
    }
    assert {one.kind for one in effects(services_of(post.app))} == {queue.KEEP}


OF_THE_FLOOD = (notices.SCHEDULED, notices.REACTIVATED, notices.ADDRESS_CHANGED)


def sign_up(post: Post, name: str, email: str, *, moves_to: str | None) -> tuple[dict, str]:  # type: ignore[type-arg]
    client = post.app.test_client()
    body = {"username": name, "email": email, "password": PASSWORD}
    signed_up = client.post("/api/sign-up/", json=body).json
    assert signed_up is not None
    if moves_to is not None:
        update = f"/api/profile/{signed_up['user']['id']}/update/"
        changed = client.put(update, json={"email": moves_to}, headers=auth(signed_up))
        assert changed.status_code == 200
        services = services_of(post.app)
        confirmed = confirm_address(services, client, signed_up["user"]["id"])
        assert confirmed.status_code == 200
    return signed_up, moves_to or email


def auth(person: dict) -> dict[str, str]:  # type: ignore[type-arg]
    return {"Authorization": f"Bearer {person['access']}"}


def test_a_flood_that_goes_on_all_day_is_twenty_mails_of_a_kind_and_no_more(post: Post) -> None:
    # given: three accounts, whose address was the stranger's
    services = services_of(post.app)
    ids = insert_accounts(
        services,
        numbered("a", 3),
        previous_email=STRANGER,
        email_changed_at=now(services) - HOUR,
    )

    def toggle(minute: int) -> None:
        for account_id in ids:
            if minute % 60 == 0:
                deactivate(services, account_id, grace=GRACE, ahead=post.ahead)
            else:
                reactivate(services, account_id, now=now(services) + post.ahead)

    # when: they leave at each hour, and come back half an hour later
    found = watch(post, range(0, 1561, 30), before=toggle)

    # then: the first of a day before makes room for the first of the next
    twenty = range(0, 20 * 60, 60)
    assert found == {
        notices.SCHEDULED: [*twenty, 1440, 1500, 1560],
        notices.REACTIVATED: [*(30 + minute for minute in twenty), 1470, 1530],
    }


@pytest.mark.parametrize(
    ("held", "minute"),
    # Beside those that had it for a day there is one turn for each.
    [(40 * DAY, 0), (2 * DAY, 130)],
)
def test_the_way_back_of_whoever_has_had_a_mailbox_does_not_wait_for_many_who_had_it_shortly(
    post: Post, held: timedelta, minute: int
) -> None:
    # given: thirty accounts that have had the mailbox since its owner's was moved away from it
    services = services_of(post.app)
    then = now(services)
    left_at = then - 5 * DAY
    ann = insert_former_holder(services, "ann", left_at, held=held)
    decoys = [
        insert_former_holder(services, name, left_at + DAY * number, held=DAY)
        for number, name in enumerate(numbered("day", 3), 1)
    ]
    decoys += [
        insert_former_holder(services, name, then - HOUR * number, held=20 * MINUTE)
        for number, name in enumerate(numbered("hour", 27), 1)
    ]
    bystander = possessions(services, decoys[0])

    # when: they are all deleted, and then hers
    for account_id in [*decoys[1:], ann]:
        deactivate(services, account_id, grace=GRACE)

    # then
    public_id = get_account(services, ann).public_id
    found = []
    begin = post.ahead
    for number in (0, 10, 70, 130):
        post.ahead = max(post.ahead, begin + number * MINUTE)
        post.later(timedelta(), kinds=(notices.SCHEDULED,))
        mails = [mail for mail in post.inbox.messages if mail["To"] == STRANGER]
        post.inbox.messages.clear()
        found += [number for mail in mails if is_about(services, text_of(mail), public_id)]
        # Each of the lanes has the pace of one recipient.
        assert len(mails) <= 3
    assert len(found) == 1
    assert found[0] <= minute
    assert possessions(services, decoys[0]) == bystander


def insert_former_holder(
    services: Services, name: str, left_at: datetime, *, held: timedelta
) -> int:
    """Insert an account that had the stranger's address for so long, until *left_at*."""
    (account_id,) = insert_accounts(
        services,
        [name],
        previous_email=STRANGER,
        joined_at=left_at - held,
        email_changed_at=left_at,
    )
    return account_id


def is_about(services: Services, text: str, public_id: uuid.UUID) -> bool:
    (link,) = re.findall(r"/recover/(\S+)", text)
    claims = services.tokens.was(link, tokens.MAILED)
    return claims is not None and claims.public_id == public_id


def test_each_lane_of_a_mailbox_gets_twenty_mails_of_a_kind_a_day_and_no_more(
    services: Services,
) -> None:
    pace = Pace(b"k")
    begin = now(services)
    sent = [0, 0, 0]

    for half_hours in range(48):
        moment = begin + half_hours * HOUR / 2
        for number in range(3):
            name = pace.recipient(STRANGER, number)
            with services.writing() as session:
                sent[number] += take_turn(session, name, moment) is None

    assert sent == [bounds.MAILS_A_DAY] * 3


def test_the_news_that_carry_an_address_carry_its_lane(services: Services) -> None:
    then = now(services)
    ages = {"young": HOUR, "older": 3 * DAY, "old": 300 * DAY}
    for name, age in ages.items():
        (account_id,) = insert_accounts(services, [name], joined_at=then - age)
        with services.writing() as session:
            account = session.get_one(Account, account_id)
            notices.address_changed(session, account, previous=account.email, now=then)
        insert_accounts(services, [f"{name}2"], joined_at=then - age, purge_at=then - SECOND)

    assert sweep(services, at(then)).purged == 3

    owed = effects(services, notices.ADDRESS_CHANGED, notices.PURGED)
    lanes = {(one.payload["address"], one.payload["lane"]) for one in owed}
    assert lanes == {
        (f"{name}{number}@example.org", lane)
        for lane, name in enumerate(ages)
        for number in ("", "2")
    }


@pytest.mark.parametrize(
    "owe",
    [
        lambda session, account, moment: notices.address_changed(
            session, account, previous=STRANGER, now=moment
        ),
        lambda session, account, moment: notices.password_changed(
            session, account, now=moment, grace=GRACE
        ),
    ],
    ids=[notices.ADDRESS_CHANGED, notices.PASSWORD_CHANGED],
)
def test_the_news_of_many_accounts_come_to_one_mailbox_one_by_one_and_none_is_lost(
    post: Post, owe: Callable[[Session, Account, datetime], None]
) -> None:
    services = services_of(post.app)
    then = now(services)
    ids = insert_accounts(
        services, numbered("a", 23), previous_email=STRANGER, email_changed_at=then - HOUR
    )
    with services.writing() as session:
        for account_id in ids:
            owe(session, session.get_one(Account, account_id), then)

    # Between the turns, too, nothing comes.
    turns = [*TURNS, 1440, 1500, 1560]
    found = watch(post, sorted({*turns, 5, 60, 600, 1150, 1435, 1490}))

    assert list(found.values()) == [turns]
    assert effects(services) == []


def test_a_hundred_resets_in_a_minute_are_two_mails_whose_links_live_from_when_they_left(
    post: Post,
) -> None:
    services = services_of(post.app)
    make_account(services, "stranger")
    for number in range(101):
        with services.writing() as session:
            credentials.request_password_reset(
                session, STRANGER, decoy_key=b"k", now=post.clock(session)
            )
        if number % 10 == 0:
            post.later(5 * SECOND)
    asked_at = now(services) + post.ahead
    assert came(post) == [notices.PASSWORD_RESET]

    post.later(5 * MINUTE)
    assert came(post) == []
    post.later(5 * MINUTE)
    (mail,) = post.inbox.messages
    assert watch(post) == {notices.PASSWORD_RESET: [0]}

    (link,) = re.findall(r"/reset-password/(\S+)", text_of(mail))
    claims = services.tokens.was(link, tokens.PASSWORD_RESET)
    assert claims is not None
    assert claims.issued_at > asked_at + 9 * MINUTE
    assert claims.expires_at - claims.issued_at == tokens.PASSWORD_RESET_LIFETIME


def test_the_mails_of_accounts_that_are_purged_one_after_another_come_one_by_one(
    post: Post,
) -> None:
    services = services_of(post.app)
    for name in ("a", "b"):
        insert_accounts(
            services,
            [name],
            email=STRANGER,
            email_key=STRANGER,
            purge_at=now(services) - MINUTE,
        )
        assert post.sweep() == 1
        post.later(timedelta())

    assert came(post) == [notices.PURGED]
    # The address that waits is the last personal thing in the database.
    scrubbed = services.settings.is_sqlite
    assert services.scrub(at_most_every=None) is not scrubbed
    assert watch(post) == {notices.PURGED: [10]}
    assert services.scrub(at_most_every=None)


# What waits ---------------------------------------------------------------------------------------


def test_what_waits_is_the_newest_news_of_an_account_and_of_every_account(
    post: Post, ann: Person
) -> None:
    services = services_of(post.app)
    post.change_address(ann, "new@example.org")
    # Both have had it for as little.
    then = now(services)
    (bob,) = insert_accounts(
        services, ["bob"], previous_email=ann.email, joined_at=then, email_changed_at=then
    )
    moments = [now(services) + MINUTE * number for number in range(4)]
    for number, moment in enumerate(moments):
        with services.writing() as session:
            account = session.get_one(Account, ann.id)
            notices.password_changed(session, account, now=moment, grace=GRACE)
            if number == 1:
                other = session.get_one(Account, bob)
                notices.password_changed(session, other, now=moment, grace=GRACE)
        post.ahead = moment - now(services)
        post.later(timedelta(), kinds=(notices.PASSWORD_CHANGED,))
    post.new()

    # Both addresses of ann's, and those of bob, who has the same previous one.
    waiting = effects(services, notices.PASSWORD_CHANGED)
    assert sorted((row.subject == ann.public_id, row.payload["to"]) for row in waiting) == [
        (False, "previous"),
        (True, "current"),
        (True, "previous"),
    ]

    # A minute more than the ten after the first mail, which left a little after the first change.
    post.later(8 * MINUTE)
    texts = sorted((str(mail["To"]), text_of(mail)) for mail in post.inbox.messages)
    assert [to for to, _ in texts] == [ann.email, "new@example.org"]
    assert letters.in_words(moments[1]) in " ".join(texts[0][1].split())
    assert letters.in_words(moments[3]) in " ".join(texts[1][1].split())
    post.later(HOUR)
    assert letters.in_words(moments[3]) in post.text()


def test_of_several_that_nobody_has_sent_only_the_newest_is(post: Post, ann: Person) -> None:
    services = services_of(post.app)
    for number in range(3):
        with services.writing() as session:
            account = session.get_one(Account, ann.id)
            moment = now(services) + number * MINUTE
            notices.password_changed(session, account, now=moment, grace=GRACE)

    post.later(3 * MINUTE)

    assert len(post.inbox.messages) == 1
    assert letters.in_words(moment) in post.text()
    assert effects(services) == []


def test_who_came_back_meanwhile_gets_no_mail_that_waited(post: Post, ann: Person) -> None:
    for _ in range(2):
        post.leave(ann)
        post.later()
        post.come_back(ann)
        post.later()
    assert sorted(came(post, to=ann.email)) == [notices.REACTIVATED, notices.SCHEDULED]

    assert watch(post, to=ann.email) == {notices.REACTIVATED: [10]}


def test_who_left_again_gets_the_new_date_when_its_turn_has_come(post: Post, ann: Person) -> None:
    post.leave(ann)
    post.later()
    post.come_back(ann)
    post.ahead += MINUTE
    account = post.leave(ann)
    post.later()
    post.new()

    post.later(10 * MINUTE)

    assert account.purge_at is not None
    assert letters.in_words(account.purge_at) in post.text()
    # The mail that the account is back was overtaken.
    assert came(post, to=ann.email) == [notices.SCHEDULED]
    assert effects(services_of(post.app), notices.REACTIVATED) == []


def test_a_mail_about_a_purge_that_is_near_does_not_wait_until_it_is_too_late(post: Post) -> None:
    services = services_of(post.app)
    (account_id,) = insert_accounts(services, ["ann"])
    for _ in range(2):
        deactivate(services, account_id, grace=5 * MINUTE, ahead=post.ahead)
        post.later()
        assert came(post, to="ann@example.org")[:1] == [notices.SCHEDULED]
        reactivate(services, account_id, now=now(services) + post.ahead)


def test_a_mail_that_waits_holds_up_nobody_and_no_purge(post: Post, ann: Person) -> None:
    services = services_of(post.app)
    bob = make_person(services, "bob")
    for _ in range(2):
        post.leave(ann)
        post.later()
        post.come_back(ann)
    post.leave(ann)
    post.later()
    post.new()
    assert pacing_counts(post) == {notices.SCHEDULED: 1}

    post.leave(bob)
    result = post.later()
    assert (result.failed, result.more) == (0, False)
    assert [to for to, _ in post.new()] == [bob.email]

    post.ahead += GRACE + HOUR
    assert post.sweep() == 2


def pacing_counts(post: Post) -> dict[str, int]:
    with services_of(post.app).reading() as session:
        return pacing.count_delayed(session, post.clock(session))


# What is remembered -------------------------------------------------------------------------------


@pytest.mark.parametrize("off", BOUNDARY)
def test_who_was_mailed_is_forgotten_after_a_day(post: Post, off: timedelta) -> None:
    services = services_of(post.app)
    pace = Pace(b"k")
    with services.writing() as session:
        for name, moment in (("ann", NOW), ("bob", NOW + HOUR)):
            assert take_turn(session, pace.recipient(f"{name}@example.org"), moment) is None

    pacing.prune(services.database, at(NOW + DAY + off))

    left = {pace.recipient("bob@example.org")}
    if off < timedelta():
        left.add(pace.recipient("ann@example.org"))
    assert {row.recipient for row in rows_of(services, MailPace)} == left


def take_turn(session: Session, recipient: str, moment: datetime) -> datetime | None:
    """Take the turn of another mail."""
    return Pace(b"k").take_turn(
        session, uuid.uuid4(), kind=notices.SCHEDULED, recipient=recipient, now=moment, end=None
    )


def test_the_worker_forgets_though_nobody_is_mailed(post: Post, ann: Person) -> None:
    services = services_of(post.app)
    post.leave(ann)
    post.later()
    assert len(rows_of(services, MailPace)) == 1

    services.deliver()
    assert len(rows_of(services, MailPace)) == 1
    run_sql(services, "UPDATE mail_paces SET last_at = :then", then=NOW - 1000 * DAY)
    services.deliver()

    assert rows_of(services, MailPace) == []


def test_what_is_remembered_names_neither_the_address_nor_the_account(
    post: Post, ann: Person
) -> None:
    post.leave(ann)
    post.later()

    (row,) = rows_of(services_of(post.app), MailPace)

    assert re.fullmatch(r"[0-9a-f]{64}", row.recipient)
    assert str(ann.public_id) not in str(vars(row))
    assert set(MailPace.__table__.c.keys()) == {"recipient", "kind", "sent", "last_at"}


# Two at once, and crashes -------------------------------------------------------------------------


def owe_two(post: Post) -> None:
    """Owe the stranger a mail of one kind about each of two accounts."""
    services = services_of(post.app)
    then = now(services)
    ids = insert_accounts(services, numbered("a", 2))
    with services.writing() as session:
        for account_id in ids:
            account = session.get_one(Account, account_id)
            notices.address_changed(session, account, previous=STRANGER, now=then)


def deliver(post: Post, handler: Handler) -> None:
    queue.deliver(
        services_of(post.app).database,
        post.clock,
        {notices.ADDRESS_CHANGED: handler},
        seconds=60,
    )


def test_two_workers_at_once_send_one_of_two_mails(post: Post) -> None:
    owe_two(post)
    both = threading.Barrier(2)
    send = services_of(post.app).handlers[notices.ADDRESS_CHANGED]

    def send_together(owed: Sequence[Owed], moment: datetime) -> Outcome:
        both.wait(timeout=60)
        return send(owed, moment)

    workers = [threading.Thread(target=deliver, args=(post, send_together)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert came(post) == [notices.ADDRESS_CHANGED]
    assert pacing_counts(post) == {notices.ADDRESS_CHANGED: 1}
    assert watch(post) == {notices.ADDRESS_CHANGED: [10]}


def test_who_takes_a_turn_waits_for_who_is_taking_it(postgresql: Services) -> None:
    turns: list[datetime | None] = []

    def second() -> None:
        with postgresql.writing() as session:
            turns.append(take_turn(session, "r", NOW))

    worker = threading.Thread(target=second)
    with postgresql.writing() as session:
        turns.append(take_turn(session, "r", NOW))
        worker.start()
        eventually(lambda: waits_for_a_lock(postgresql.database.engine))
        assert turns == [None]
    worker.join()

    assert turns == [None, NOW + 10 * MINUTE]


def test_a_mail_whose_worker_dies_after_it_was_sent_comes_again_and_counts_once(
    post: Post,
) -> None:
    owe_two(post)
    send = services_of(post.app).handlers[notices.ADDRESS_CHANGED]

    def send_and_die(owed: Sequence[Owed], moment: datetime) -> Outcome:
        send(owed, moment)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver(post, send_and_die)
    (first,) = post.inbox.messages
    post.later(timedelta())
    assert len(post.inbox.messages) == 1

    # Its lease has run out: it comes at once, and the other's ten minutes begin again.
    post.later(queue.LEASE)
    assert [mail["Message-ID"] for mail in post.inbox.messages] == [first["Message-ID"]] * 2
    came(post)
    post.later(6 * MINUTE)
    assert came(post) == []
    post.later(4 * MINUTE)
    assert came(post) == [notices.ADDRESS_CHANGED]


def test_a_mail_that_failed_does_not_wait_for_itself(post: Post, ann: Person) -> None:
    post.leave(ann)
    post.inbox.answers["MAIL"] = "451 later"
    assert post.later().failed == 1
    post.inbox.answers.clear()

    post.later(queue.retry_pause(1))

    assert came(post, to=ann.email) == [notices.SCHEDULED]


def test_a_mail_that_the_server_may_have_taken_counts(post: Post, ann: Person) -> None:
    post.leave(ann)
    post.inbox.drop_after_data = True
    post.later()
    post.inbox.drop_after_data = False
    post.come_back(ann)
    post.leave(ann)

    post.later(MINUTE)

    assert came(post, to=ann.email) == [notices.SCHEDULED]
    assert watch(post, to=ann.email) == {notices.SCHEDULED: [10]}


def test_an_address_that_cannot_be_mailed_is_refused_and_remembered_by_nobody(post: Post) -> None:
    services = services_of(post.app)
    (account_id,) = insert_accounts(services, ["ann"], email="no address")

    deactivate(services, account_id, grace=GRACE)
    post.later()

    (owed,) = effects(services, notices.SCHEDULED)
    assert payloads.refusals(owed.payload) == 1
    assert rows_of(services, MailPace) == []


# What an operator sees ----------------------------------------------------------------------------


def test_a_mail_that_waits_for_its_turn_is_counted_as_that_and_not_as_owed(
    post: Post, ann: Person
) -> None:
    for _ in range(2):
        with services_of(post.app).writing() as session:
            account = session.get_one(Account, ann.id)
            notices.password_changed(session, account, now=post.clock(session), grace=GRACE)
        post.later(timedelta())

    client = post.app.test_client()
    shown = client.get("/statusz").json
    assert shown is not None
    assert shown["backlog"]["delayed"] == {notices.PASSWORD_CHANGED: 1}
    assert shown["backlog"]["owed"] == {}
    assert (
        'accountsvc_mails_delayed{kind="mail.password_changed"} 1.0' in client.get("/metrics").text
    )

    # One that is refused waits for the server.
    post.inbox.answers["RCPT"] = "550 no"
    post.later(10 * MINUTE)
    assert pacing_counts(post) == {}
    (owed,) = effects(services_of(post.app))
    assert payloads.refusals(owed.payload) == 1


def test_the_log_says_that_a_mail_waits_and_not_whose(
    post: Post, ann: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        post.leave(ann)
        post.later()
        post.come_back(ann)
    post.later()

    out = capsys.readouterr().out
    assert "a mail waits for its turn" in out
    assert notices.SCHEDULED in out
    assert ann.email not in out
    assert all(row.recipient not in out for row in rows_of(services_of(post.app), MailPace))
