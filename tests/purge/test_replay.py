"""A backup is put back, and the ledger replayed: everybody is what they should be."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from accountsvc.accounts import credentials, giveback, lifecycle
from accountsvc.accounts.reasons import Return
from accountsvc.adapters.ledger import MOST_PASSED_OVER, Batch, Ledger, kept_name
from accountsvc.db import facts, generations
from accountsvc.db.audit import OPERATOR_ACTOR
from accountsvc.db.entries import RECEIPT
from accountsvc.db.models import Generation, KeptLine, LegalHold, Receipt
from accountsvc.db.proofs import BY_REPLAY, COMPLETED, LEDGER_WRITTEN
from accountsvc.errors import GraceOver, TokenNotValid
from accountsvc.outbox import kept, queue
from accountsvc.outbox.marks import LedgerAhead, take_marks
from accountsvc.purge import seals
from accountsvc.purge.at_once import Obstacle
from accountsvc.purge.auditing import Why
from accountsvc.purge.restore import Restore
from accountsvc.purge.stops import DatabaseBehind, LedgerGone
from accountsvc.purge.sweep import Sweep
from accountsvc.services import Services
from accountsvc.tokens import ACCESS, MAILED
from tests.support.backups import Backup
from tests.support.factories import (
    deactivate,
    deliver_after,
    make_due,
    make_person,
    place_hold,
    reactivate,
    release_hold,
    run_sql,
)
from tests.support.ledgers import ELSEWHERE, OTHER_KEY, keys
from tests.support.moments import now
from tests.support.processes import eventually
from tests.support.state import effects, events, get_account, ids_left, read_account, rows_of
from tests.support.story import Story


@pytest.fixture
def story(services: Services, tmp_path: Path) -> Story:
    return Story(services, tmp_path)


@pytest.fixture
def restored(story: Story) -> Story:
    """The story after its backup was put back, of which nothing was replayed."""
    backup = story.begin()
    story.go_on()
    backup.put_back()
    return story


def replay(services: Services) -> None:
    report = services.replay.run(services.replay.plan())
    assert report.kept == {}


def test_everybody_is_what_they_should_be_after_a_replay(restored: Story) -> None:
    services = restored.services

    plan = services.replay.plan()
    report = services.replay.run(plan)

    assert [one.account_id for one in plan.returns] == [restored.id("returner")]
    assert [one.account_id for one in plan.holds] == [restored.id("held")]
    assert [one.account_id for one in report.purged] == [restored.id("purged")]
    assert report.kept == {}
    assert get_account(services, restored.id("returner")).is_active
    assert get_account(services, restored.id("bystander")).is_active
    assert not get_account(services, restored.id("leaver")).is_active
    with services.reading() as session:
        for name in ("held", "released"):
            assert lifecycle.open_holds(session, restored.id(name)), name
        receipts = dict(iter(session.execute(select(Receipt.public_id, Receipt.purged_at))))
    names = ("early", "purged", "late")
    assert receipts.keys() == {restored.people[name].public_id for name in names}
    lines = {line["public_id"]: line for line in services.ledger.read()}
    assert {str(one): at.isoformat() for one, at in receipts.items()} == {
        one: line["purged_at"] for one, line in lines.items()
    }
    assert not services.restore.is_behind()
    assert services.restore.verify().agrees


def test_a_receipt_that_a_replay_has_put_back_is_completed_sealed_and_proved(
    story: Story,
) -> None:
    # given: one who joined after the backup, and is gone with a sealed receipt; all of it is lost
    services = story.services
    make_due(services, story.new("first"))
    assert services.sweep().purged == 1
    services.seal(seconds=30, at_once=True)
    backup = story.begin()
    story.go_on()
    services.seal(seconds=30, at_once=True)
    backup.put_back()
    late = story.people["late"].public_id

    # when
    replay(services)
    unsealed = services.auditing.verify()
    services.seal(seconds=30, at_once=True)
    put_back = services.auditing.verify()
    finish(services)
    services.seal(seconds=30, at_once=True)
    sealed = services.auditing.verify()

    # then
    # Until a seal says that those after the backup are lost, they are called cut.
    assert {one.why for one in unsealed.findings} == {Why.CUT}
    assert put_back.is_whole
    assert sealed.is_whole
    assert late not in {effect.subject for effect in effects(services)}
    with services.reading() as session:
        known = facts.of(session, [late])[late]
        assert known[LEDGER_WRITTEN].details == BY_REPLAY
        assert COMPLETED in known
        assert seals.proofs(session, [(RECEIPT, str(late))])
        assert lifecycle.open_holds(session, story.id("held"))
    assert read_account(services, story.id("bystander")) is not None


def finish(services: Services) -> None:
    """Do what is owed, and what that owes, until the file is scrubbed and looked into."""
    deliver_after(services, timedelta(hours=1))
    services.scrub(at_most_every=None)
    deliver_after(services, timedelta(hours=2))


def test_a_receipt_without_event_that_somebody_inserts_after_a_replay_is_named(
    restored: Story,
) -> None:
    services = restored.services
    replay(services)
    services.seal(seconds=30, at_once=True)
    number = uuid.uuid4()

    moment = now(services)
    row = {"deactivated_at": moment, "purge_at": moment, "purged_at": moment}
    counts = {"deactivated_by": "owner", "saved_passwords": 0, "files": 0}
    with services.writing() as session:
        session.execute(insert(Receipt), [{"public_id": number, **row, **counts}])
        facts.add(session, LEDGER_WRITTEN, [number], now=moment)
    services.seal(seconds=30, at_once=True)

    findings = services.auditing.verify().findings
    assert [(one.why, one.key) for one in findings] == [(Why.INSERTED, str(number))]


def test_nobody_is_purged_before_the_replay_and_everybody_due_after_it(restored: Story) -> None:
    services = restored.services
    due = make_person(services, "due")
    make_due(services, due)
    before = ids_left(services)

    for _ in range(2):
        with pytest.raises(DatabaseBehind):
            services.sweep()
    assert ids_left(services) == before
    replay(services)

    assert services.sweep().purged == 1
    assert read_account(services, due.id) is None


def test_a_return_alone_is_noticed(story: Story) -> None:
    """Nobody is purged after the backup: only the return tells that the database is older."""
    backup = story.begin()
    reactivate(story.services, story.id("returner"))
    story.settle()
    assert not story.services.restore.is_behind()

    backup.put_back()

    assert story.services.restore.is_behind()
    assert story.services.restore.has_gone_back()


def test_purges_of_people_younger_than_the_backup_are_noticed(story: Story) -> None:
    backup = story.begin()
    for number in range(6):
        make_due(story.services, story.new(f"young{number}"))
        assert story.services.sweep().purged == 1

    backup.put_back()

    assert story.services.restore.is_behind()


def test_a_restore_from_before_any_purge_is_noticed(services: Services, tmp_path: Path) -> None:
    backup = Backup(services.settings.database_url, tmp_path)
    make_due(services, make_person(services))
    services.sweep()

    backup.put_back()

    assert services.restore.is_behind()


def test_a_new_database_beside_an_old_ledger_is_noticed(restored: Story) -> None:
    services = restored.services
    with services.writing() as session:
        generation = generations.current(session)
        assert generation is not None
        session.delete(generation)
        session.add(Generation(number=1, id=uuid.uuid4(), began_at=now(services), mark=10**6))

    assert services.restore.is_behind()


def test_a_restored_database_writes_no_ledger_before_the_replay(restored: Story) -> None:
    services = restored.services
    reactivate(services, restored.id("leaver"))

    services.deliver(seconds=60)
    with pytest.raises(LedgerAhead):
        take_marks(services.database, services.ledger, 1)
    (owed,) = effects(services, queue.KEEP)
    assert owed.last_error == "LedgerAhead"
    replay(services)

    deliver_after(services, timedelta(minutes=2))
    assert effects(services, queue.KEEP) == []


def test_a_backup_that_is_put_back_under_a_sweep_stops_it(story: Story) -> None:
    """The sweep has looked at the ledger already, and would purge who has come back since."""
    services = story.services
    backup = story.begin()
    story.go_on()
    make_due(services, story.new("due"))

    class Restoring(Restore):
        def refuse_after_restore(self) -> None:
            super().refuse_after_restore()
            backup.put_back()
            make_due(services, story.people["returner"])

    sweep = Sweep(
        services.database,
        services.sweep_rules,
        lambda: True,
        restore=Restoring(services.database, services.ledger),
    )
    with pytest.raises(DatabaseBehind):
        sweep.run()

    assert read_account(services, story.id("returner")) is not None


def test_a_backup_that_is_put_back_under_a_sweep_with_nobody_due_purges_nobody(
    story: Story,
) -> None:
    """Such a sweep has not looked at the ledger, and somebody falls due before its first batch."""
    services = story.services
    backup = story.begin()
    reactivate(services, story.id("returner"))
    story.settle()

    def put_back() -> bool:
        backup.put_back()
        make_due(services, story.people["returner"])
        return True

    Sweep(services.database, services.sweep_rules, put_back, restore=services.restore).run()

    assert read_account(services, story.id("returner")) is not None


def test_a_token_that_was_ended_after_the_backup_stays_dead(story: Story) -> None:
    """By the replay all tokens end: those of before, and those of after the backup."""
    services = story.services
    backup = story.begin()
    bystander, returner = story.people["bystander"], story.people["returner"]
    with services.reading() as session:
        mailed = services.tokens.mailed(get_account(services, returner.id), now=now(services))
    story.go_on()
    later = services.tokens.access(
        get_account(services, returner.id), now=now(services), fresh=True
    )
    backup.put_back()

    replay(services)

    for token in (bystander.token, later):
        claims = services.tokens.was(token, ACCESS)
        assert claims is not None
        with services.reading() as session, pytest.raises(TokenNotValid):
            credentials.by_claims(session, claims)
    claims = services.tokens.was(mailed, MAILED)
    assert claims is not None
    assert claims.epoch != get_account(services, returner.id).epoch


def test_a_promise_holds_under_the_next_generation(restored: Story) -> None:
    """Who waits for the purge is explained after the replay, and goes in their time."""
    services = restored.services
    replay(services)

    with services.writing() as session:
        lifecycle.due_now(session, restored.id("leaver"), by=OPERATOR_ACTOR)

    assert services.sweep().purged == 1
    assert read_account(services, restored.id("leaver")) is None


def test_a_replay_mails_nobody(story: Story) -> None:
    """What was owed at the backup was sent after it; what falls due later is still owed."""
    services = story.services
    deactivate(services, story.new("soon").id, reminders=[timedelta(days=1)])
    backup = Backup(services.settings.database_url, story.folder)
    make_due(services, story.new("purged"))
    assert services.sweep().purged == 1
    backup.put_back()
    owed = [one for one in effects(services) if one.kind.startswith(queue.MAIL_PREFIX)]
    assert len(owed) == 2

    replay(services)

    (left,) = (one for one in effects(services) if one.kind.startswith(queue.MAIL_PREFIX))
    assert left.deliver_after > now(services)


def test_who_joined_since_is_never_hit(restored: Story) -> None:
    """Somebody has got the number, and by a fault even the public id, of a purged person."""
    services = restored.services
    since = make_person(services, "since")
    late = restored.people["late"].public_id
    run_sql(
        services,
        "UPDATE accounts SET public_id = :id WHERE id = :since",
        id=late.hex if services.settings.is_sqlite else str(late),
        since=since.id,
    )

    plan = services.replay.plan()

    assert since.id not in [planned.account_id for planned in plan.purges]


def test_a_replay_that_is_broken_off_refuses_until_it_is_repeated(
    restored: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = restored.services

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(giveback, "end_sessions", die)
        with pytest.raises(KeyboardInterrupt):
            services.replay.run(services.replay.plan())
    make_due(services, make_person(services, "due"))
    with pytest.raises(DatabaseBehind):
        services.sweep()
    replay(services)

    assert services.sweep().purged == 1
    assert len(rows_of(services, Generation)) == 2
    assert len(events(services, "ledger.replayed")) == 1


def test_a_hold_keeps_one_who_was_purged_and_nobody_else(restored: Story) -> None:
    """The replay is done all the same; who is held is due, and goes when the hold is released."""
    services = restored.services
    hold = place_hold(services, restored.id("purged"))

    report = services.replay.run(services.replay.plan())

    assert [kept.obstacle for kept in report.kept.values()] == [Obstacle.HELD]
    assert not services.restore.is_behind()
    assert services.restore.verify().agrees
    make_due(services, make_person(services, "due"))
    assert services.sweep().purged == 1
    with pytest.raises(GraceOver):
        reactivate(services, restored.id("purged"))
    release_hold(services, restored.id("purged"), hold, delay=timedelta())
    assert not services.restore.is_behind()
    eventually(lambda: services.sweep().purged == 1)


def test_a_replay_that_cannot_purge_somebody_is_not_done(
    restored: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = restored.services
    run_sql(
        services,
        "UPDATE accounts SET is_staff = true, deactivated_at = NULL, "
        "purge_at = NULL, deactivated_by = NULL WHERE id = :id",
        id=restored.id("purged"),
    )

    report = services.replay.run(services.replay.plan())

    assert [kept.obstacle for kept in report.kept.values()] == [Obstacle.LAST_STAFF]
    assert services.restore.is_behind()
    make_person(services, "boss", staff=True)
    replay(services)
    assert not services.restore.is_behind()


def test_twice_restored_is_twice_noticed(restored: Story) -> None:
    """A backup from before a replay is older than what that has begun."""
    services = restored.services
    second = Backup(services.settings.database_url, restored.folder)
    replay(services)
    make_due(services, make_person(services, "due"))
    services.sweep()
    second.put_back()

    assert services.restore.is_behind()
    replay(services)

    assert not services.restore.is_behind()
    assert services.restore.verify().agrees


def test_what_is_given_back_is_in_the_trail_and_told_to_nobody(restored: Story) -> None:
    services = restored.services
    replay(services)

    (returned,) = events(services, "account.reactivated")
    held = [one for one in events(services, "hold.placed") if one.details.get("replayed")]
    assert returned.details == {"replayed": True}
    assert [one.subject for one in held] == [restored.people["held"].public_id]
    (hold,) = rows_of(services, LegalHold, LegalHold.account_id == restored.id("held"))
    assert hold.reason == giveback.HELD_AGAIN
    assert [one for one in effects(services) if one.kind.startswith(queue.MAIL_PREFIX)] == []


# Lines of returns and holds, while they matter


def kept_names(services: Services) -> list[str]:
    return list(services.ledger.store.names("kept/"))


def test_returns_and_holds_are_in_the_ledger_without_personal_data(story: Story) -> None:
    services = story.services
    story.begin()
    story.go_on()

    lines = [line for one in services.ledger.kept() for line in getattr(one, "lines", [None])]

    returner = story.people["returner"].public_id
    assert [line["kind"] for line in lines if line["public_id"] == str(returner)] == ["returned"]
    assert {key for line in lines for key in line} == {
        "kind",
        "public_id",
        "at",
        "deactivated_at",
    }


def test_a_line_goes_with_the_release_the_purge_and_the_last_backup(story: Story) -> None:
    services = story.services
    story.begin()
    place_hold(services, story.id("held"))
    reactivate(services, story.id("returner"))
    reactivate(services, story.id("leaver"))
    story.settle()
    (first,) = rows_of(services, LegalHold, LegalHold.account_id == story.id("released"))
    assert len(kept_names(services)) == 4

    release_hold(services, story.id("released"), first.id)
    make_due(services, story.people["leaver"])
    assert services.sweep().purged == 1
    assert len(rows_of(services, KeptLine)) == 2
    later = timedelta(minutes=10)
    deliver_after(services, later)
    assert len(kept_names(services)) == 2

    kept.prune(services.database, lambda _: now(services) + timedelta(days=91), timedelta(days=90))
    assert rows_of(services, KeptLine) == []
    deliver_after(services, timedelta(days=92))
    assert kept_names(services) == []


def test_a_line_that_is_taken_back_before_it_was_written_never_is(story: Story) -> None:
    services = story.services
    hold = place_hold(services, story.new("held").id)
    release_hold(services, story.id("held"), hold)

    story.settle()

    assert kept_names(services) == []
    assert effects(services, queue.KEEP, queue.REMOVE) == []


def test_lines_that_are_owed_for_a_minute_are_counted(story: Story) -> None:
    services = story.services
    place_hold(services, story.new("held").id)

    with services.reading() as session:
        counts = [
            kept.count_overdue(session, now(services) + timedelta(seconds=seconds))
            for seconds in (50, 70)
        ]

    assert counts == [0, 1]


def test_a_forged_return_gives_nobody_back(story: Story) -> None:
    """Whoever can write into the store, and has no key, can neither give back nor hold."""
    services = story.services
    backup = story.begin()
    story.go_on()
    backup.put_back()
    leaver = get_account(services, story.id("leaver"))
    stranger = Ledger(services.ledger.store, keys(OTHER_KEY))
    line = KeptLine(
        uid=uuid.uuid4(),
        subject=leaver.public_id,
        kind="returned",
        at=now(services),
        deactivated_at=leaver.deactivated_at,
    )
    stranger.keep(kept_name(line.uid, ELSEWHERE), kept.document(line))

    replay(services)

    assert not get_account(services, leaver.id).is_active


def damage(services: Services, how: str) -> None:
    folder = services.settings.instance_path / "ledger" / "kept"
    for path in list(folder.glob("*.jsonl")):
        if how == "emptied":
            path.write_bytes(b"")
        elif how == "cut":
            path.write_bytes(path.read_bytes()[:-9])
        elif how == "renamed":
            path.rename(path.with_name(f"0{path.name[1:-20]}{uuid.uuid4().hex[:14]}.jsonl"))
        else:
            path.unlink()


@pytest.mark.parametrize("how", ["emptied", "cut", "renamed", "removed"])
def test_returns_and_holds_that_are_lost_are_noticed_and_written_again(
    story: Story, how: str
) -> None:
    services = story.services
    backup = story.begin()
    reactivate(services, story.id("returner"))
    place_hold(services, story.id("held"))
    make_due(services, story.new("late"))
    services.sweep()
    story.settle()
    assert services.restore.look().lost == 0

    damage(services, how)

    assert services.restore.look().lost == 3
    assert len(services.restore.verify().lost) == 3
    assert len(services.mending.lost_lines()) == 3
    services.mending.write_lines(services.mending.lost_lines())
    assert services.restore.look().lost == 0
    backup.put_back()
    replay(services)
    assert get_account(services, story.id("returner")).is_active
    with services.reading() as session:
        assert lifecycle.open_holds(session, story.id("held"))


def test_what_is_no_line_beside_them_is_named(story: Story) -> None:
    services = story.services
    story.begin()
    folder = services.settings.instance_path / "ledger" / "kept"
    (folder / "._x.jsonl").write_bytes(b"x")

    named = [one.name for one in services.restore.look().untrusted]

    assert named == ["kept/._x.jsonl"]
    assert [one.name for one in services.restore.verify().untrusted] == named
    assert [one.name for one in services.replay.plan().untrusted] == named


def test_another_key_seals_returns_and_holds_too(story: Story, tmp_path: Path) -> None:
    services = story.services
    backup = story.begin()
    story.go_on()
    database, store = services.database, services.ledger.store
    renewed = replace(services, ledger=Ledger(store, keys(OTHER_KEY)))
    assert len(renewed.mending.lost_lines(by_unknown_key=True)) == 2

    renewed.mending.adopt(renewed.mending.plan_adoption(), by=OPERATOR_ACTOR)
    renewed.mending.write_lines(renewed.mending.lost_lines(by_unknown_key=True))

    assert Restore(database, renewed.ledger).verify().agrees
    backup.put_back()
    assert len(renewed.replay.plan().returns) == 1


# The operator gives back by hand


def test_an_operator_gives_back_who_is_due(services: Services) -> None:
    person = make_person(services)
    make_due(services, person)

    with pytest.raises(GraceOver):
        reactivate(services, person.id, by=OPERATOR_ACTOR)
    reactivate(services, person.id, by=OPERATOR_ACTOR, how=Return(although_due=True))

    assert get_account(services, person.id).is_active


def test_every_epoch_moves_by_the_same_number_that_no_token_can_have(story: Story) -> None:
    services = story.services
    ids = [story.new(name).id for name in ("one", "two")]
    before = [get_account(services, account_id).epoch for account_id in ids]

    replay(services)

    moved = {get_account(services, one).epoch - then for one, then in zip(ids, before, strict=True)}
    (jump,) = moved
    assert jump >= 1000


# A ledger in which nothing counts


def test_a_ledger_of_returns_alone_that_is_gone_purges_nobody(story: Story) -> None:
    """Nobody was purged yet, and a backup is put back while its store is not mounted."""
    services = story.services
    for name in ("first", "returner"):
        deactivate(services, story.new(name).id)
    reactivate(services, story.id("first"))
    story.settle()
    backup = Backup(services.settings.database_url, story.folder)
    reactivate(services, story.id("returner"))
    story.settle()
    folder = services.settings.instance_path / "ledger"
    folder.rename(folder.with_name("elsewhere"))
    backup.put_back()
    make_due(services, story.people["returner"])

    with pytest.raises(LedgerGone):
        services.sweep()

    assert read_account(services, story.id("returner")) is not None


def test_another_key_without_adoption_purges_nobody(story: Story) -> None:
    """Nothing in there counts, so nobody could notice a backup that is put back."""
    services = story.services
    story.begin()
    make_due(services, story.new("due"))
    renewed = Restore(services.database, Ledger(services.ledger.store, keys(OTHER_KEY)))

    with pytest.raises(LedgerGone):
        renewed.refuse_after_restore()
    assert renewed.look().is_gone

    services.restore.refuse_after_restore()


def test_forged_objects_in_front_of_the_others_stop_nothing(story: Story) -> None:
    services = story.services
    story.begin()
    stranger = Ledger(services.ledger.store, keys(OTHER_KEY))
    for second in range(MOST_PASSED_OVER + 1):
        at = now(services) + timedelta(days=1, seconds=second)
        batch = Batch(uuid.uuid4(), [{"public_id": str(uuid.uuid4())}], at)
        (seal,), _ = stranger.seal_all([batch], [ELSEWHERE], again=True)
        stranger.append(batch, seal)
    assert services.ledger.newest().objects == []

    services.restore.refuse_after_restore()
