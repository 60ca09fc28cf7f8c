"""Whoever asks for a reset learns neither by the work nor by a count who has an account."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from accountsvc.accounts import credentials
from accountsvc.outbox import delivery, notices, pacing, queue
from accountsvc.services import Services, build_services
from tests.support.factories import deactivate, make_account, make_settings
from tests.support.moments import GRACE, MICROSECOND, NOW, at
from tests.support.servers import free_port
from tests.support.state import effects, events, everything

# Nobody has the first four; the account of the last is due.
WITHOUT_A_MAIL = ["nobody@example.org", "no address", "ann", "x" * 254, "dan@example.org"]


def request_reset(services: Services, email: str, *, now: datetime = NOW) -> None:
    with services.writing() as session:
        credentials.request_password_reset(session, email, decoy_key=services.decoy_key, now=now)


def deliver(services: Services, now: datetime = NOW) -> queue.DeliveryResult:
    return queue.deliver(
        services.database,
        at(now),
        services.handlers,
        seconds=60,
        on_dropped=delivery.on_dropped,
        kinds=[notices.PASSWORD_RESET],
    )


def sent(services: Services) -> int:
    return len(list((services.settings.instance_path / "mail").glob("*.eml")))


def all_but_paces(services: Services) -> dict[str, Any]:
    """Everything but the times of mails, which are kept for a day under an HMAC."""
    found = everything(services, attempts=True)
    del found["mail_paces"]
    return found


def due_account(services: Services) -> None:
    deactivate(services, make_account(services, "dan", now=NOW).id, now=NOW - GRACE)


@pytest.mark.parametrize("email", [*WITHOUT_A_MAIL, "", "a\0@example.org", "a\udcff@example.org"])
def test_a_reset_for_an_unknown_address_sends_and_keeps_nothing(
    services: Services, email: str
) -> None:
    make_account(services, now=NOW)
    due_account(services)
    before = all_but_paces(services)

    request_reset(services, email)
    (decoy,) = effects(services, notices.PASSWORD_RESET)
    result = deliver(services)

    assert decoy.subject is not None
    assert set(decoy.payload) == {"epoch"}
    (pace,) = everything(services)["mail_paces"]
    assert pace[:2] == (decoy.subject.hex, notices.PASSWORD_RESET)
    assert (result.delivered, sent(services)) == (1, 0)
    assert all_but_paces(services) == before


def test_a_reset_is_mailed_once_until_the_account_is_due(services: Services) -> None:
    account = make_account(services, now=NOW)

    for _ in range(2):
        request_reset(services, "ANN@example.org")
    (mail,) = effects(services, notices.PASSWORD_RESET)
    deliver(services)
    deactivate(services, account.id, now=NOW)
    at_the_end = NOW + GRACE - MICROSECOND
    request_reset(services, "ANN@example.org", now=at_the_end)
    deliver(services, at_the_end)

    assert mail.subject == account.public_id
    assert sent(services) == 2
    before = all_but_paces(services)
    request_reset(services, "ANN@example.org", now=NOW + GRACE)
    deliver(services, NOW + GRACE)
    assert sent(services) == 2
    assert all_but_paces(services) == before


def test_a_request_is_audited_with_the_mail_that_it_sends_and_once(services: Services) -> None:
    account = make_account(services, now=NOW)

    for email in ("ann@example.org", "nobody@example.org"):
        request_reset(services, email)
    assert events(services, "account.password_reset_requested") == []
    for _ in range(2):
        deliver(services)

    (asked,) = events(services, "account.password_reset_requested")
    assert (asked.subject, asked.actor_kind, asked.actor) == (account.public_id, "anybody", None)
    assert (asked.at, asked.details) == (NOW, {})


@pytest.mark.parametrize("email", WITHOUT_A_MAIL)
def test_a_reset_runs_the_same_statements_for_everybody(services: Services, email: str) -> None:
    make_account(services, now=NOW)
    due_account(services)

    known, unknown = statements_of(services, "ann@example.org"), statements_of(services, email)

    verbs = [statement.split()[0] for statement, _ in known]
    assert [verb for verb in verbs if verb not in {"PRAGMA", "BEGIN"}] == [
        "SELECT",
        "DELETE",
        "INSERT",
    ]
    assert unknown == known


def statements_of(services: Services, email: str) -> list[tuple[str, int]]:
    """Ask for a reset; return each statement that this runs, and how many values it has."""
    statements: list[tuple[str, int]] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_more: Any) -> None:
        statements.append((statement, len(values)))

    event.listen(services.database.engine, "before_cursor_execute", note)
    request_reset(services, email)
    event.remove(services.database.engine, "before_cursor_execute", note)
    return statements


@pytest.mark.parametrize("times", [1, 3])
def test_a_reset_leaves_the_same_row_for_everybody(services: Services, times: int) -> None:
    account = make_account(services, now=NOW)

    for email in ("nobody@example.org", "ann@example.org", "somebody@else.example") * times:
        request_reset(services, email)

    rows = effects(services, notices.PASSWORD_RESET)
    of_one = {"id", "uid", "subject"}
    shown = [
        {name: value for name, value in vars(row).items() if name[0] != "_" and name not in of_one}
        for row in rows
    ]
    assert shown == [shown[0]] * 3
    assert [row.subject for row in rows].count(account.public_id) == 1
    assert len({row.subject for row in rows}) == 3
    assert {row.subject.version for row in rows if row.subject is not None} == {4}


def test_only_who_has_the_key_of_this_service_finds_the_subject_of_an_address(
    services: Services, tmp_path: Path
) -> None:
    other = build_services(
        make_settings(services.settings.database_url, tmp_path, SECRET_KEY="another " * 8),
        services.database,
    )

    for one in (services, other, services):
        request_reset(one, "nobody@example.org")

    assert len({row.subject for row in effects(services, notices.PASSWORD_RESET)}) == 2


@pytest.mark.parametrize("pause", [timedelta(seconds=1), timedelta(minutes=9)])
def test_a_decoy_waits_for_its_turn_as_a_mail_does(services: Services, pause: timedelta) -> None:
    make_account(services, now=NOW)
    again = NOW + pause

    for now in (NOW, again):
        for email in ("nobody@example.org", "ann@example.org"):
            request_reset(services, email, now=now)
        deliver(services, now)

    first, second = effects(services, notices.PASSWORD_RESET)
    assert first.deliver_after == second.deliver_after > again
    assert first.payload == second.payload | {"epoch": first.payload["epoch"]}
    with services.reading() as session:
        assert pacing.count_delayed(session, again) == {notices.PASSWORD_RESET: 2}
    deliver(services, first.deliver_after)
    assert effects(services, notices.PASSWORD_RESET) == []
    assert sent(services) == 2


def test_in_an_outage_of_the_mail_server_a_decoy_waits_as_a_mail_does(
    services: Services, tmp_path: Path
) -> None:
    make_account(services, now=NOW)
    nobody = f"smtp://127.0.0.1:{free_port()}/?tls=none"
    settings = make_settings(services.settings.database_url, tmp_path, MAIL_URL=nobody)
    for email in ("nobody@example.org", "ann@example.org"):
        request_reset(services, email)

    result = deliver(build_services(settings, services.database))

    assert (result.failed, result.delivered) == (2, 0)
    first, second = effects(services, notices.PASSWORD_RESET)
    assert first.last_error == second.last_error == "ConnectionRefusedError"
    assert first.attempts == second.attempts == 1
    assert first.deliver_after == second.deliver_after > NOW
    assert first.expires_at == second.expires_at == NOW + notices.RESET_KEPT
    # After its expiry neither is there any more.
    deliver(services, NOW + notices.RESET_KEPT)
    assert effects(services, notices.PASSWORD_RESET) == []
