"""Revision 0008: each account is found by its address afterwards, also of two that become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from accountsvc.db import rows
from accountsvc.db.addresses import KEPT, address_key, kept_key
from accountsvc.db.engine import make_engine
from accountsvc.db.models import Account
from accountsvc.db.schema import downgrade, upgrade
from accountsvc.db.text import unique_key
from tests.db.test_migrations import EARLY, connected, text

NewDatabase = Callable[[], str]

LETTERS, ASCII = "ann@bücher.example", "ann@xn--bcher-kva.example"
PLAIN = ["bob@example.org", "Zoë@Example.org", "joß@example.org", "ﬁnn@ｅxample.org"]


def insert(url: str, emails: Sequence[str]) -> None:
    """Sign up people as the release before did, with ids from 1 on."""
    with connected(url) as connection:
        for number, email in enumerate(emails, 1):
            row: dict[str, Any] = {
                "id": number,
                "public_id": f"{number:032x}",
                "username": f"user{number}",
                "username_key": f"user{number}",
                "email": email,
                "email_key": unique_key(email),
                "first_name": "",
                "last_name": "",
                "number_phone": "",
                "password_hash": "x",
                "joined_at": EARLY,
            }
            names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO accounts ({names}) VALUES ({values})"), row)
        connection.commit()


def keys(url: str) -> dict[int, str]:
    with connected(url) as connection:
        return dict(connection.execute(text("SELECT id, email_key FROM accounts")).all())  # type: ignore[arg-type]


def look_up(url: str, email: str) -> int | None:
    engine = make_engine(url)
    with Session(engine) as session:
        account = rows.find_by_email(session, email)
    engine.dispose()
    return None if account is None else account.id


def at_0007(new_database: NewDatabase, emails: Sequence[str]) -> str:
    url = new_database()
    upgrade(url, "0007")
    insert(url, emails)
    return url


@pytest.mark.parametrize(
    ("emails", "kept"),
    [
        ([*PLAIN, LETTERS], set()),
        ([LETTERS, ASCII], {2}),
        ([ASCII, LETTERS], {2}),
        (["x@example.org", LETTERS, *PLAIN[1:], ASCII], {6}),
        # Three of one mailbox, of which none has its key before.
        (["é@faß.example", "É@xn--fa-hia.example", "e\u0301@FAß\u3002example"], {2, 3}),
        (["ann@xn--bcher-kva.example", "joß@bücher.example", "joß@xn--bcher-kva.example"], {3}),
        # The key of before of each is the key that the other one gets.
        (["ann@ab\u3002example", "ann@a\u00adb.example", "ann@ab.example"], {2, 3}),
    ],
)
def test_each_account_is_found_by_its_own_address_after_the_upgrade(
    new_database: NewDatabase, emails: list[str], kept: set[int]
) -> None:
    url = at_0007(new_database, emails)

    upgrade(url)

    assert [look_up(url, email) for email in emails] == list(range(1, len(emails) + 1))
    assert {number for number, key in keys(url).items() if key.startswith(KEPT)} == kept
    for number, email in enumerate(emails, 1):
        expected = kept_key(email) if number in kept else address_key(email)
        assert keys(url)[number] == expected


def test_a_second_run_and_the_way_back_and_forth_end_alike(new_database: NewDatabase) -> None:
    emails = [LETTERS, *PLAIN, ASCII]
    url = at_0007(new_database, emails)
    before = keys(url)

    upgrade(url)
    after = keys(url)
    downgrade(url, "0007")

    assert keys(url) == before
    upgrade(url)
    assert keys(url) == after


def test_the_way_back_leaves_the_key_of_who_would_be_taken_for_another(
    new_database: NewDatabase,
) -> None:
    url = at_0007(new_database, ["joss@example.org"])
    upgrade(url)
    with connected(url) as connection:
        connection.execute(text("UPDATE accounts SET id = 7, username_key = 'x'"))
        connection.execute(text(f"UPDATE accounts SET public_id = '{7:032x}'"))
        connection.commit()
    insert(url, ["bob@example.org"])
    with connected(url) as connection:
        connection.execute(
            text("UPDATE accounts SET email = :email, email_key = :email WHERE id = 1"),
            {"email": "joß@example.org"},
        )
        connection.commit()

    downgrade(url, "0007")

    assert keys(url) == {1: "joß@example.org", 7: "joss@example.org"}
    upgrade(url)
    assert [look_up(url, email) for email in ("joß@example.org", "joss@example.org")] == [1, 7]


def test_many_accounts_are_rekeyed_a_chunk_at_a_time(new_database: NewDatabase) -> None:
    emails = [f"u{number}@bücher.example" for number in range(1101)]
    url = at_0007(new_database, [*emails, ASCII.replace("ann", "u7")])

    upgrade(url)

    found = keys(url)
    assert found.pop(1102) == kept_key("u7@xn--bcher-kva.example")
    assert found == {n: f"u{n - 1}@xn--bcher-kva.example" for n in range(1, 1102)}


def test_a_run_that_was_broken_off_goes_on(new_database: NewDatabase) -> None:
    """On PostgreSQL each statement is committed by itself, so any of them may be the last."""
    emails = [LETTERS, ASCII, *PLAIN]
    url = at_0007(new_database, emails)
    with connected(url) as connection:
        for number in (1, 5):
            connection.execute(
                text("UPDATE accounts SET email_key = :key WHERE id = :id"),
                {"key": kept_key(emails[number - 1]), "id": number},
            )
        connection.commit()

    upgrade(url)

    assert [look_up(url, email) for email in emails] == list(range(1, 7))
    assert {number for number, key in keys(url).items() if key.startswith(KEPT)} == {2}


def test_the_accounts_that_kept_a_key_are_counted_and_named_by_id(
    new_database: NewDatabase,
) -> None:
    url = at_0007(new_database, [LETTERS, ASCII, *PLAIN])
    upgrade(url)
    engine = make_engine(url)

    with Session(engine) as session:
        assert rows.kept_keys(session, most=20) == (1, [2])
        assert rows.kept_keys(session, most=0) == (1, [])
        assert session.scalars(select(Account.id)).all()
    engine.dispose()
