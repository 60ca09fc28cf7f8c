"""What one row can decide, and how names and times are kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from accountsvc.db.engine import reading, writing
from accountsvc.db.models import ACTIVE, DEACTIVATED, DUE, Account
from accountsvc.db.text import unique_key

NOW = datetime(2026, 11, 23, 9, 30, 15, 123456, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def account(name: str, joined_at: datetime) -> Account:
    return Account(
        username=name,
        username_key=name,
        email=f"{name}@example.org",
        email_key=f"{name}@example.org",
        password_hash="x",
        joined_at=joined_at,
    )


# The state of an account


def test_an_account_without_a_purge_time_is_active() -> None:
    anna = account("anna", NOW)

    assert anna.is_active
    assert anna.state(NOW) == ACTIVE


@pytest.mark.parametrize(
    ("offset", "state"),
    [(-MICROSECOND, DEACTIVATED), (timedelta(0), DUE), (MICROSECOND, DUE)],
    ids=["just before", "exactly", "just after"],
)
def test_an_account_is_due_from_its_purge_time_on(offset: timedelta, state: str) -> None:
    anna = account("anna", NOW)
    anna.deactivated_at, anna.purge_at, anna.deactivated_by = NOW, NOW + timedelta(days=14), "owner"

    assert not anna.is_active
    assert anna.state(anna.purge_at + offset) == state


# E-mails and usernames


@pytest.mark.parametrize(
    ("typed", "also"),
    [
        ("Anna@Example.ORG", "anna@example.org"),
        ("  anna@example.org\t", "anna@example.org"),
        ("STRASSE@example.org", "straße@example.org"),
        ("jose\N{COMBINING ACUTE ACCENT}", "jos\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("JOS\N{LATIN CAPITAL LETTER E WITH ACUTE}", "jose\N{COMBINING ACUTE ACCENT}"),
        ("\N{LATIN SMALL LIGATURE FI}nn", "FINN"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}nna", "anna"),
        ("\N{KELVIN SIGN}arl", "karl"),
        ("\N{GREEK CAPITAL LETTER SIGMA}", "\N{GREEK SMALL LETTER FINAL SIGMA}"),
    ],
)
def test_the_same_name_typed_differently_has_one_key(typed: str, also: str) -> None:
    assert unique_key(typed) == unique_key(also)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("anna@example.org", "anna@example.com"),
        ("jose", "jos\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("anna", "\N{CYRILLIC SMALL LETTER A}nna"),
        ("anna.b", "annab"),
    ],
)
def test_different_names_have_different_keys(one: str, other: str) -> None:
    assert unique_key(one) != unique_key(other)


@pytest.mark.parametrize(
    "character",
    ["a", "ß", "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}", "\N{GRINNING FACE}"],
)
@pytest.mark.parametrize("length", [0, 1, 33, 34, 150, 254])
def test_a_key_fits_its_column_and_its_index(character: str, length: int) -> None:
    assert len(unique_key(character * length).encode()) <= 600


def test_a_name_that_grows_when_folded_is_kept_and_found(engine: Engine) -> None:
    grows = "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 149
    with Session(engine) as session, writing(session):
        for name in (grows + "a", grows + "b"):
            person = account(name, NOW)
            person.username_key = person.email_key = unique_key(name)
            person.email = "anna@example.org"
            session.add(person)

    with Session(engine) as session, reading(session):
        query = select(Account.username).where(Account.email_key == unique_key(grows + "B"))
        assert session.scalars(query).all() == [grows + "b"]


@pytest.mark.parametrize("address", ["Anna@Example.org", "i.K+tag@s-s.ORG", "ZOË@example.org"])
def test_the_case_of_an_address_does_not_matter(address: str) -> None:
    assert unique_key(address.upper()) == unique_key(address.lower()) == unique_key(address)


# Times


@pytest.mark.parametrize(
    "moment",
    [
        NOW,
        NOW.replace(microsecond=0),
        NOW.replace(microsecond=1),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        NOW.astimezone(timezone(timedelta(hours=5, minutes=45))),
    ],
    ids=str,
)
def test_a_time_comes_back_to_the_microsecond_and_in_utc(engine: Engine, moment: datetime) -> None:
    with Session(engine) as session, writing(session):
        session.add(account("anna", moment))

    with Session(engine) as session, reading(session):
        kept = session.scalars(select(Account.joined_at)).one()
    assert kept == moment
    assert kept.utcoffset() == timedelta(0)


def test_a_naive_time_is_refused(engine: Engine) -> None:
    with Session(engine) as session:
        with pytest.raises(StatementError, match="without a time zone"), writing(session):
            session.add(account("anna", NOW.replace(tzinfo=None)))

        with reading(session):
            assert session.scalars(select(Account.id)).all() == []


def test_a_naive_time_is_refused_in_a_comparison(engine: Engine) -> None:
    with (
        Session(engine) as session,
        reading(session),
        pytest.raises(StatementError, match="without a time zone"),
    ):
        session.scalars(select(Account).where(Account.purge_at <= NOW.replace(tzinfo=None)))


def test_times_compare_as_times_inside_the_database(engine: Engine) -> None:
    moments = [
        NOW.replace(microsecond=0) - MICROSECOND,
        NOW.replace(microsecond=0),
        NOW.replace(microsecond=1),
        NOW.replace(microsecond=100_000),
        NOW.replace(second=59),
    ]
    with Session(engine) as session, writing(session):
        for number, moment in enumerate(reversed(moments)):
            zone = timezone(timedelta(hours=number))
            session.add(account(f"user{number}", moment.astimezone(zone)))

    with Session(engine) as session, reading(session):
        in_order = session.scalars(select(Account.joined_at).order_by(Account.joined_at)).all()
        up_to = session.scalar(
            select(text("count(*)")).select_from(Account).where(Account.joined_at <= moments[2])
        )
    assert in_order == moments
    assert up_to == 3
