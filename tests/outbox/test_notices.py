"""Which mails leave, when, to whom and how often: over a real SMTP server, by a clock that can be moved."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.models import Account
from accountsvc.errors import StoreUnavailable
from accountsvc.outbox import delivery, letters, notices, owing, queue
from accountsvc.outbox.payloads import AddressedMail, FileDeletion
from accountsvc.purge import stops
from accountsvc.services import Services
from tests.support.factories import Person, make_person, services_of
from tests.support.moments import now
from tests.support.post import DAY, GRACE, REMINDERS, SOON, Post
from tests.support.smtp import text_of
from tests.support.state import belongings, effects, events, facts_of, read_account

SCHEDULED = "Your account will be deleted on "
REMINDER = "Reminder: your account is deleted on "
BACK = "Your account is active again"
PURGED = "Your account has been deleted"


def dated(words: str, account: Account) -> str:
    assert account.purge_at is not None
    return words + letters.in_words(account.purge_at)


# Reminders --------------------------------------------------------------------------------------


def test_each_reminder_comes_once_and_at_its_time(post: Post, ann: Person) -> None:
    account = post.leave(ann)
    reminder = (ann.email, dated(REMINDER, account))
    post.later()
    assert post.new() == [(ann.email, dated(SCHEDULED, account))]

    came = []
    for day in range(1, 14):
        post.later(DAY)
        came += [(day, one) for one in post.new()]

    assert came == [(7, reminder), (13, reminder)]
    assert effects(services_of(post.app), notices.REMINDER) == []


def test_after_a_long_outage_only_the_latest_reminder_comes(post: Post, ann: Person) -> None:
    account = post.leave(ann)
    post.later()
    post.new()

    post.later(13 * DAY + timedelta(hours=1))
    post.later()

    assert post.new() == [(ann.email, dated(REMINDER, account))]
    assert effects(services_of(post.app), notices.REMINDER) == []


def test_the_first_mail_says_what_overdue_reminders_would(post: Post, ann: Person) -> None:
    account = post.leave(ann)

    post.later(8 * DAY)
    assert post.new() == [(ann.email, dated(SCHEDULED, account))]
    post.later(5 * DAY + SOON)

    # The one before it was covered; the last is news again.
    assert post.new() == [(ann.email, dated(REMINDER, account))]


def test_the_first_mail_and_the_reminder_say_how_every_session_ends(
    post: Post, ann: Person
) -> None:
    account = post.leave(ann)
    subjects = []

    for pause in (SOON, 7 * DAY + SOON):
        post.later(pause)
        (mail,) = post.inbox.messages
        assert "signs out every device, also somebody else's" in " ".join(text_of(mail).split())
        subjects += post.new()

    assert subjects == [(ann.email, dated(kind, account)) for kind in (SCHEDULED, REMINDER)]


def test_while_the_mail_server_is_away_nothing_is_lost_and_nothing_doubled(
    post: Post, ann: Person
) -> None:
    account = post.leave(ann)
    post.inbox.answers["MAIL"] = "451 later"
    for _ in range(5):
        assert post.later(timedelta(hours=2)).failed == 1
    assert post.new() == []
    assert len(effects(services_of(post.app), notices.REMINDER)) == 2

    post.inbox.answers.clear()
    post.later(timedelta(hours=2))

    assert post.new() == [(ann.email, dated(SCHEDULED, account))]
    post.later(timedelta(hours=2))
    assert post.new() == []
    assert len(effects(services_of(post.app), notices.REMINDER)) == 2


def test_who_is_back_is_not_reminded(post: Post, ann: Person) -> None:
    post.leave(ann)
    post.later()
    post.new()

    post.come_back(ann)
    post.later()

    assert post.new() == [(ann.email, BACK)]
    post.later(GRACE)
    assert post.new() == []
    assert effects(services_of(post.app), notices.REMINDER) == []


def test_a_mail_that_waits_says_nothing_that_is_no_longer_so(post: Post, ann: Person) -> None:
    post.leave(ann)
    post.come_back(ann)
    again = post.leave(ann)

    post.later()

    assert post.new() == [(ann.email, dated(SCHEDULED, again))]


def test_a_moved_date_moves_the_reminders(post: Post, ann: Person) -> None:
    account = post.leave(ann)
    post.later()
    post.new()
    with services_of(post.app).writing() as session:
        row = session.get_one(Account, ann.id)
        assert account.purge_at is not None
        row.purge_at = account.purge_at + 10 * DAY
        notices.date_moved(session, row, now=post.clock(session), grace=GRACE, reminders=REMINDERS)
    moved = read_account(services_of(post.app), ann.id)
    assert moved is not None

    post.later()
    assert [to for to, _ in post.new()] == [ann.email]
    came = []
    for day in range(1, 24):
        post.later(DAY)
        came += [(day, subject) for _, subject in post.new()]

    assert came == [(17, dated(REMINDER, moved)), (23, dated(REMINDER, moved))]


def test_a_reminder_that_would_come_after_the_purge_is_never_sent(post: Post, ann: Person) -> None:
    post.leave(ann)
    post.later()
    post.new()

    # The purge is late: there is nothing to be done about it any more.
    post.later(GRACE + timedelta(hours=1))

    assert post.new() == []
    assert effects(services_of(post.app), notices.REMINDER) == []


# To whom ----------------------------------------------------------------------------------------


def test_an_address_that_was_given_up_lately_is_told_of_all_that_matters(
    post: Post, ann: Person
) -> None:
    post.change_address(ann, "new@example.org")
    account = post.leave(ann)
    scheduled = dated(SCHEDULED, account)

    post.later()
    assert sorted(post.new()) == [(ann.email, scheduled), ("new@example.org", scheduled)]
    post.come_back(ann)
    post.later()

    assert sorted(post.new()) == [(ann.email, BACK), ("new@example.org", BACK)]


def test_an_address_that_was_given_up_long_ago_is_left_alone(post: Post, ann: Person) -> None:
    post.change_address(ann, "new@example.org")
    post.ahead += GRACE + SOON
    account = post.leave(ann)

    post.later()

    assert post.new() == [("new@example.org", dated(SCHEDULED, account))]


def test_only_the_previous_address_is_told_that_the_account_was_signed_in_to(
    post: Post, ann: Person
) -> None:
    post.change_address(ann, "new@example.org")
    post.leave(ann)
    post.later()

    texts = {str(one["To"]): " ".join(text_of(one).split()) for one in post.inbox.messages}
    assert "Somebody who was signed in to your account" in texts[ann.email]
    assert "You asked for the deletion" in texts["new@example.org"]
    assert "new@example.org" not in texts[ann.email]


def test_a_mail_that_waited_does_not_go_to_an_address_that_came_later(
    post: Post, ann: Person
) -> None:
    post.leave(ann)
    post.come_back(ann)
    post.ahead += SOON
    post.change_address(ann, "thief@example.org")

    post.later()

    assert post.new() == [(ann.email, BACK)]


def test_who_changes_the_address_twice_does_not_shake_off_the_owner(
    post: Post, ann: Person
) -> None:
    post.change_address(ann, "thief1@example.org")
    post.ahead += DAY
    post.change_address(ann, "thief2@example.org")
    account = post.leave(ann)

    post.later()

    scheduled = dated(SCHEDULED, account)
    told = (ann.email, "thief1@example.org", "thief2@example.org")
    assert sorted(post.new()) == [(to, scheduled) for to in told]


def test_what_the_staff_does_opens_no_way_back_by_mail(post: Post, ann: Person) -> None:
    post.leave(ann, by="operator")

    post.later()

    assert "/recover/" not in post.text()
    assert "The staff of localhost:8000 has switched off your account" in post.text()


# What cannot be delivered -------------------------------------------------------------------------


def test_a_refused_address_is_given_up_after_three_tries_with_an_event_that_names_nobody(
    post: Post, ann: Person
) -> None:
    post.leave(ann)
    post.inbox.answers["RCPT"] = "550 no such user"
    tried = []
    for _ in range(48):
        post.later(timedelta(hours=1), kinds=(notices.SCHEDULED,))
        tried.append(len(post.inbox.tried))

    assert tried[-1] == 3
    assert effects(services_of(post.app), notices.SCHEDULED) == []
    (event,) = events(services_of(post.app), "mail.given_up")
    assert (event.subject, event.details) == (ann.public_id, {"kind": "mail.scheduled"})
    # The account's own time goes on.
    account = read_account(services_of(post.app), ann.id)
    assert account is not None
    assert not account.is_active


def test_an_outage_is_no_refusal_of_the_address(post: Post, ann: Person) -> None:
    post.leave(ann)
    post.inbox.answers["MAIL"] = "451 later"
    for _ in range(5):
        post.later(timedelta(hours=1), kinds=(notices.SCHEDULED,))
    del post.inbox.answers["MAIL"]
    post.inbox.answers["RCPT"] = "550 no such user"
    before = len(post.inbox.tried)
    post.later(timedelta(hours=1), kinds=(notices.SCHEDULED,))

    # when: whoever had set the server up wrongly has noticed
    del post.inbox.answers["RCPT"]
    assert len(post.inbox.tried) == before + 1
    post.later(timedelta(hours=1), kinds=(notices.SCHEDULED,))

    assert "/recover/" in post.text()
    assert effects(services_of(post.app), notices.SCHEDULED) == []
    assert events(services_of(post.app), "mail.given_up") == []


def test_a_mail_that_is_lost_after_data_comes_again_as_the_same_one(
    post: Post, ann: Person
) -> None:
    post.leave(ann)
    post.inbox.drop_after_data = True
    post.later()
    post.inbox.drop_after_data = False

    post.later(timedelta(hours=1))

    first, second = post.inbox.messages
    assert first["Message-ID"] == second["Message-ID"]
    assert effects(services_of(post.app), notices.SCHEDULED) == []


def test_the_purged_address_is_kept_until_it_is_told_and_no_longer_than_three_days(
    post: Post, ann: Person
) -> None:
    post.leave(ann)
    post.later()
    post.new()
    post.inbox.answers["MAIL"] = "451 later"
    post.ahead += GRACE + SOON
    assert post.sweep() == 1
    (owed,) = effects(services_of(post.app), notices.PURGED)
    assert owed.payload["address"] == ann.email

    post.later(timedelta(hours=71))
    assert len(effects(services_of(post.app), notices.PURGED)) == 1
    post.later(timedelta(hours=2))

    assert effects(services_of(post.app), notices.PURGED) == []
    post.inbox.answers.clear()
    post.later(DAY)
    assert post.new() == []


def test_who_is_purged_gets_one_mail_and_nothing_of_before(post: Post, ann: Person) -> None:
    # Nothing has left before: no worker was there.
    post.leave(ann)
    post.ahead += GRACE + SOON

    assert post.sweep() == 1
    (mail,) = effects(services_of(post.app), notices.PURGED)
    post.later()

    until = letters.in_words(mail.created_at + timedelta(days=90))
    assert f"our backups may still hold something of it until {until}." in post.text()
    assert post.new() == [(ann.email, PURGED)]
    assert effects(services_of(post.app), notices.SCHEDULED) == []


def test_a_mail_that_the_release_before_has_owed_says_nothing_of_backups(
    post: Post, ann: Person
) -> None:
    with services_of(post.app).writing() as session:
        queue.record(
            session,
            notices.PURGED,
            subject=ann.public_id,
            now=post.clock(session),
            payload=AddressedMail(ann.email),
        )

    post.later()

    assert "backups" not in post.text()
    assert str(ann.public_id) in post.text()


def test_a_kind_of_mail_without_a_decision_is_not_sent_by_the_rules_of_another(
    post: Post, ann: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    post.leave(ann)
    monkeypatch.delitem(delivery.DECISIONS, notices.SCHEDULED)  # type: ignore[arg-type]

    assert post.later().failed == 1

    assert post.new() == []
    (owed,) = effects(services_of(post.app), notices.SCHEDULED)
    assert owed.last_error == "LookupError"


# Nobody hears "gone" before it is gone


def purge_with(post: Post, ann: Person) -> None:
    """Purge *ann*, whose earlier mails have left."""
    post.leave(ann)
    post.later()
    post.new()
    post.ahead += GRACE + SOON
    assert post.sweep() == 1


def break_store(monkeypatch: pytest.MonkeyPatch, services: Services) -> None:
    monkeypatch.setattr(
        type(services.avatars), "delete_many", lambda _, keys: dict.fromkeys(keys, "OSError")
    )


def break_ledger(monkeypatch: pytest.MonkeyPatch, services: Services) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(type(services.ledger), "append", fail)


@pytest.mark.parametrize("fault", [break_store, break_ledger])
def test_nobody_is_told_that_all_is_gone_while_a_file_or_a_ledger_line_is_owed(
    post: Post,
    ann: Person,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch, Services], None],
) -> None:
    bob = make_person(services_of(post.app), "bob")
    others = belongings(services_of(post.app), bob)
    with monkeypatch.context() as broken:
        fault(broken, services_of(post.app))
        purge_with(post, ann)
        for wait in (timedelta(), timedelta(minutes=1), timedelta(hours=1), timedelta(hours=3)):
            post.later(wait)
            assert post.new() == []
            (mail,) = effects(services_of(post.app), notices.PURGED)
            assert (mail.attempts, mail.last_error) == (0, None)
            with services_of(post.app).reading() as session:
                # What it waits for is owed; it is not, and is not called failing either.
                owed = owing.read_owed(session, post.clock(session))
            assert [(one.count, one.failing) for one in owed.values()] == [(1, 1)]
            assert notices.PURGED not in owed

    # The fault is over: it is sent by the delivery behind that which does what it waited for, since
    # what has failed is tried behind everything else.
    post.later(timedelta(hours=1))
    post.later()

    assert post.new() == [(ann.email, PURGED)]
    kinds = [queue.DELETE_FILE, queue.LEDGER, notices.PURGED]
    assert effects(services_of(post.app), *kinds) == []
    moments = facts_of(services_of(post.app), ann.public_id)
    assert moments[:3] in (
        ["files_absent", "ledger_written", "told"],
        ["ledger_written", "files_absent", "told"],
    )
    assert belongings(services_of(post.app), bob) == others


def test_nobody_is_told_that_all_is_gone_while_purging_is_paused(post: Post, ann: Person) -> None:
    purge_with(post, ann)
    with services_of(post.app).writing() as session:
        stops.pause(session, by=OPERATOR_ACTOR)

    post.later()
    told = post.new()
    with services_of(post.app).writing() as session:
        stops.resume(session, by=OPERATOR_ACTOR)
    post.later()

    assert told == []
    assert post.new() == [(ann.email, PURGED)]


def test_the_file_of_an_earlier_picture_is_waited_for_too(post: Post, ann: Person) -> None:
    purge_with(post, ann)
    later = now(services_of(post.app)) + post.ahead + timedelta(hours=2)
    with services_of(post.app).writing() as session:
        queue.record(
            session,
            queue.DELETE_FILE,
            subject=ann.public_id,
            now=later,
            payload=FileDeletion(f"{'a' * 32}.webp"),
        )

    post.later()
    told = post.new()
    post.later(timedelta(hours=2))

    assert told == []
    assert post.new() == [(ann.email, PURGED)]
