"""Tokens: none stands in for another, and nothing but TokenNotValid ever comes out of a bad one."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accountsvc import tokens
from accountsvc.db.models import PENDING_FOR, Account
from accountsvc.errors import TokenNotValid
from accountsvc.tokens import (
    ACCESS,
    CANCEL_EMAIL,
    CONFIRM_EMAIL,
    KINDS,
    MAILED,
    PASSWORD_RESET,
    RECOVERY,
    REFRESH,
    Tokens,
)
from tests.support.moments import MICROSECOND, NOW, SECOND

SECRET = "a secret of the tests, which is long enough"
PURGE_AT = NOW + timedelta(days=14)
LEEWAY = timedelta(seconds=60)
LIFETIMES = {
    ACCESS: timedelta(hours=24),
    REFRESH: timedelta(days=30),
    RECOVERY: timedelta(minutes=15),
    MAILED: PURGE_AT - NOW,
    PASSWORD_RESET: timedelta(hours=1),
    CONFIRM_EMAIL: PENDING_FOR,
    CANCEL_EMAIL: PENDING_FOR,
}
ACCOUNT = Account(
    id=1,
    public_id=uuid.UUID(int=7),
    epoch=3,
    deactivated_at=NOW,
    purge_at=PURGE_AT,
    deactivated_by="owner",
    pending_email_at=NOW,
)
MAKERS: dict[str, Callable[[Tokens], str]] = {
    ACCESS: lambda made: made.access(ACCOUNT, now=NOW, fresh=True),
    REFRESH: lambda made: made.refresh(ACCOUNT, now=NOW),
    RECOVERY: lambda made: made.recovery(ACCOUNT, now=NOW),
    MAILED: lambda made: made.mailed(ACCOUNT, now=NOW),
    PASSWORD_RESET: lambda made: made.password_reset(ACCOUNT, now=NOW),
    CONFIRM_EMAIL: lambda made: made.confirm_email(ACCOUNT, now=NOW),
    CANCEL_EMAIL: lambda made: made.cancel_email(ACCOUNT, now=NOW),
}


def make(secret: str = SECRET) -> Tokens:
    return Tokens(secret, access=LIFETIMES[ACCESS], refresh=LIFETIMES[REFRESH])


def claims_of(kind: str, **changes: Any) -> dict[str, Any]:
    """The claims of a good token of *kind*, with *changes*; None removes one."""
    claims = {
        "sub": str(ACCOUNT.public_id),
        "type": kind,
        "aud": f"accountsvc:{kind}",
        "iat": int(NOW.timestamp()),
        "exp": int((NOW + SECOND).timestamp()),
        "epoch": 3,
        "fresh": False,
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


def forge(
    claims: dict[str, Any], *, kind: str, secret: str = SECRET, algorithm: str = "HS256"
) -> str:
    return jwt.encode(claims, make(secret).key(kind), algorithm=algorithm)


def part(value: object) -> str:
    return part_of(json.dumps(value).encode())


def part_of(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def refused(token: Any, *kinds: str, now: datetime = NOW) -> None:
    with pytest.raises(TokenNotValid):
        make().read(token, *(kinds or KINDS), now=now)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_says_whose_it_is_and_which_epoch(kind: str) -> None:
    found = make().read(MAKERS[kind](make()), kind, now=NOW)

    assert (found.kind, found.public_id, found.epoch) == (kind, ACCOUNT.public_id, 3)
    assert (found.issued_at, found.expires_at) == (NOW, NOW + LIFETIMES[kind])
    assert found.fresh is (kind == ACCESS)


@pytest.mark.parametrize("make_token", [Tokens.confirm_email, Tokens.cancel_email])
def test_a_link_about_an_address_names_the_change_to_the_microsecond(
    make_token: Callable[..., str],
) -> None:
    account = Account(public_id=uuid.UUID(int=7), epoch=3, pending_email_at=NOW + MICROSECOND)
    kind = make_token.__name__

    found = make().read(make_token(make(), account, now=NOW), kind, now=NOW)

    assert found.asked_at == tokens.asked_at(account) == "2026-12-07T09:30:15.000001Z"
    account.pending_email_at = None
    assert tokens.asked_at(account) == ""
    with pytest.raises(ValueError, match="no pending address"):
        make_token(make(), account, now=NOW)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", KINDS)
def test_no_kind_is_taken_for_another(kind: str, asked: str) -> None:
    token = MAKERS[kind](make())

    if kind == asked:
        assert make().read(token, asked, now=NOW).kind == kind
    else:
        refused(token, asked)
        assert make().was(token, asked) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_signed_with_another_kinds_key_is_refused(kind: str) -> None:
    for other in KINDS:
        if other != kind:
            refused(forge(claims_of(kind), kind=other), *KINDS)


def test_one_of_several_kinds_is_enough() -> None:
    token = MAKERS[MAILED](make())

    assert make().read(token, RECOVERY, MAILED, now=NOW).kind == MAILED


def test_no_kind_at_all_opens_nothing() -> None:
    with pytest.raises(TokenNotValid):
        make().read(MAKERS[ACCESS](make()), now=NOW)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_lives_to_its_end_and_a_minute_for_the_clocks(kind: str) -> None:
    token = MAKERS[kind](make())
    end = NOW + LIFETIMES[kind] + LEEWAY

    assert make().read(token, kind, now=end - MICROSECOND)
    refused(token, kind, now=end)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_does_not_live_before_it_was_made_but_for_a_minute(kind: str) -> None:
    token = MAKERS[kind](make())

    assert make().read(token, kind, now=NOW - LEEWAY)
    refused(token, kind, now=NOW - LEEWAY - MICROSECOND)


def test_an_expired_token_can_be_told_from_a_forged_one() -> None:
    token = MAKERS[MAILED](make())
    refused(token, MAILED, now=NOW + timedelta(days=400))

    found = make().was(token, MAILED)

    assert found is not None
    assert (found.public_id, found.expires_at) == (ACCOUNT.public_id, PURGE_AT)
    assert make().was(MAKERS[MAILED](make(SECRET + "x")), MAILED) is None
    assert make().was("x", MAILED) is None


def test_two_tokens_of_the_same_moment_differ() -> None:
    assert MAKERS[ACCESS](make()) != MAKERS[ACCESS](make())


def test_an_active_account_has_no_mailed_token() -> None:
    active = Account(public_id=uuid.UUID(int=8), epoch=0)

    with pytest.raises(ValueError, match="deactivated"):
        make().mailed(active, now=NOW)


@pytest.mark.parametrize(("age", "fresh"), [(0, True), (600, True), (601, False)])
def test_a_token_is_fresh_for_so_long_after_the_password(age: int, fresh: bool) -> None:
    claims = make().read(MAKERS[ACCESS](make()), ACCESS, now=NOW)

    found = claims.is_fresh(now=NOW + age * SECOND, max_age=timedelta(minutes=10))

    assert found is fresh


@pytest.mark.parametrize(("age", "fresh"), [(599, True), (600, True), (601, False)])
def test_a_token_is_no_fresher_than_the_password_behind_it(age: int, fresh: bool) -> None:
    proved_at = NOW - age * SECOND
    token = make().access(ACCOUNT, now=NOW, fresh=True, password_at=proved_at)

    claims = make().read(token, ACCESS, now=NOW)

    assert (claims.issued_at, claims.password_at) == (NOW, proved_at)
    assert claims.is_fresh(now=NOW, max_age=timedelta(minutes=10)) is fresh


@pytest.mark.parametrize(
    "token",
    [
        make().access(ACCOUNT, now=NOW, fresh=False, password_at=NOW - 5 * SECOND),
        make().refresh(ACCOUNT, now=NOW, password_at=NOW - 5 * SECOND),
        make().recovery(ACCOUNT, now=NOW, fresh=False, password_at=NOW - 5 * SECOND),
        make().recovery(ACCOUNT, now=NOW, fresh=True, password_at=NOW - 5 * SECOND),
    ],
)
def test_every_token_of_a_session_says_when_the_password_was_proved(token: str) -> None:
    found = make().read(token, *KINDS, now=NOW)

    assert found.password_at == NOW - 5 * SECOND


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fresh", [True, False])
def test_in_a_token_without_the_claim_it_is_the_issue_of_a_fresh_access_token_or_unknown(
    kind: str, fresh: bool
) -> None:
    token = forge(claims_of(kind, fresh=fresh), kind=kind)

    found = make().read(token, kind, now=NOW)

    assert found.password_at == (NOW if fresh and kind == ACCESS else None)
    assert found.fresh is (fresh and kind == ACCESS)


def test_no_mailed_token_says_that_a_password_was_proved() -> None:
    for kind in (MAILED, PASSWORD_RESET):
        assert make().read(MAKERS[kind](make()), kind, now=NOW).password_at is None


def test_a_time_of_a_password_makes_no_token_fresh_by_itself() -> None:
    token = make().access(ACCOUNT, now=NOW, fresh=False, password_at=NOW)

    claims = make().read(token, ACCESS, now=NOW)

    assert not claims.is_fresh(now=NOW, max_age=timedelta(days=365))


def test_a_token_from_a_refresh_is_never_fresh() -> None:
    token = make().access(ACCOUNT, now=NOW, fresh=False)

    claims = make().read(token, ACCESS, now=NOW)

    assert not claims.is_fresh(now=NOW, max_age=timedelta(days=365))


@pytest.mark.parametrize("fresh", ["true", 1, "yes", [True], None])
def test_only_true_is_fresh(fresh: object) -> None:
    token = forge(claims_of(ACCESS, fresh=fresh), kind=ACCESS)

    assert make().read(token, ACCESS, now=NOW).fresh is False


@pytest.mark.parametrize(
    "header", [{"alg": "none", "typ": "JWT"}, {"alg": "None"}, {"alg": "HS256"}, {}]
)
def test_a_token_without_a_signature_is_refused(header: dict[str, str]) -> None:
    refused(f"{part(header)}.{part(claims_of(ACCESS))}.")
    refused(f"{part(header)}.{part(claims_of(ACCESS))}")


# PyJWT finds a key of 32 bytes too short for them, as a forger would.
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_another_algorithm_is_refused_even_with_the_right_key(algorithm: str) -> None:
    refused(forge(claims_of(ACCESS), kind=ACCESS, algorithm=algorithm))


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": {"kty": "oct", "k": part_of(b"k" * 32)}},
        {"jku": "https://evil.example/keys.json"},
        {"x5u": "https://evil.example/key.pem"},
        {"x5c": [part_of(b"k" * 32)]},
        {"kid": "../../../../dev/null"},
    ],
)
def test_a_key_that_a_token_brings_along_is_not_used(header: dict[str, Any]) -> None:
    """ASVS 5.0, 9.1.3: the keys are ours alone, whatever a header names."""
    token = jwt.encode(claims_of(ACCESS), b"k" * 32, algorithm="HS256", headers=header)

    refused(token)


def test_a_token_of_another_installation_is_refused() -> None:
    refused(MAKERS[ACCESS](make(SECRET + "x")))


def test_a_changed_token_is_refused() -> None:
    header, payload, signature = MAKERS[ACCESS](make()).split(".")
    promoted = part(claims_of(ACCESS, sub=str(uuid.UUID(int=99))))

    refused(f"{header}.{promoted}.{signature}")
    refused(f"{header}.{payload}.{signature[::-1]}")
    refused(f"{part({'alg': 'none'})}.{payload}.{signature}")


# Signed with the right key, so that only the claims themselves are at fault.
WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    "no type": {"type": None},
    "another type": {"type": REFRESH},
    "no audience": {"aud": None},
    "another audience": {"aud": "accountsvc:refresh"},
    "no subject": {"sub": None},
    "a number as subject": {"sub": 1},
    "no uuid as subject": {"sub": "1"},
    "no epoch": {"epoch": None},
    "a word as epoch": {"epoch": "x"},
    "a list as epoch": {"epoch": [3]},
    "an endless epoch": {"epoch": float("inf")},
    "no expiry": {"exp": None},
    "a word as expiry": {"exp": "soon"},
    "an expiry beyond all calendars": {"exp": 10**30},
    "an endless expiry": {"exp": float("inf")},
    "the last second of all calendars": {"exp": 253402300799},
    "a word as time of the password": {"password_at": "soon"},
    "a list as time of the password": {"password_at": [1]},
    "a time of the password beyond all calendars": {"password_at": 10**30},
    "an endless time of the password": {"password_at": float("inf")},
    "no issue": {"iat": None},
    "an issue before all calendars": {"iat": -(10**30)},
    "the first second of all calendars": {"iat": -62135596800},
}


@pytest.mark.parametrize("fault", WRONG_CLAIMS)
def test_a_good_signature_does_not_make_up_for_wrong_claims(fault: str) -> None:
    token = forge(claims_of(ACCESS, **WRONG_CLAIMS[fault]), kind=ACCESS)

    if "all calendars" in fault and "second" in fault:
        # A time that exists: it is compared, and never with an error.
        assert make().read(token, ACCESS, now=NOW).public_id == ACCOUNT.public_id
    else:
        refused(token)


GARBAGE: dict[str, Any] = {
    "nothing": "",
    "null": "null",
    "dots": "..",
    "many dots": "." * 10_000,
    "spaces": " . . ",
    "a megabyte": "a" * 1_000_000,
    "three megabytes": ".".join(["a" * 1_000_000] * 3),
    "not ASCII": "é.ü.ñ",
    "a lone surrogate": "\udcff.\udcff.\udcff",
    "NUL": "\0.\0.\0",
    "a header that is a list": f"{part([])}.{part({})}.x",
    "a header that is a number": f"{part(1)}.{part({})}.x",
    "a header in a deep nest": (
        base64.urlsafe_b64encode(b"[" * 100_000).decode().rstrip("=") + f".{part({})}.x"
    ),
    "an algorithm that is a list": f"{part({'alg': ['HS256']})}.{part({})}.x",
    "an algorithm that is an object": f"{part({'alg': {}})}.{part({})}.x",
    "an unknown critical header": f"{part({'alg': 'HS256', 'crit': ['x']})}.{part({})}.x",
    "an unencoded payload": f"{part({'alg': 'HS256', 'b64': False})}.{part({})}.x",
    "a key id that is a list": f"{part({'alg': 'HS256', 'kid': [1]})}.{part({})}.x",
    "a number of 10,000 digits": (
        base64.urlsafe_b64encode(b'{"alg":"HS256","x":' + b"1" * 10_000 + b"}").decode().rstrip("=")
        + f".{part({})}.x"
    ),
    "None": None,
    "a number": 1,
    "bytes": b"\xff.\xff.\xff",
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_not_valid_and_nothing_worse(garbage: str) -> None:
    refused(GARBAGE[garbage])
    assert make().was(GARBAGE[garbage], ACCESS) is None


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(st.binary(max_size=60), max_size=5).map(
            lambda parts: ".".join(base64.urlsafe_b64encode(one).decode() for one in parts)
        ),
    )
)
def test_whatever_comes_is_not_valid_and_nothing_worse(token: str) -> None:
    refused(token)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["sub", "type", "aud", "iat", "exp", "nbf", "jti", "epoch", "fresh", "password_at"]
        ),
        _JSON,
        min_size=1,
    )
)
def test_whatever_is_signed_is_read_or_not_valid(changes: dict[str, Any]) -> None:
    claims = {**claims_of(ACCESS), **changes}
    signing = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}"
    signature = jwt.get_algorithm_by_name("HS256").sign(signing.encode(), make().key(ACCESS))
    token = f"{signing}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"

    try:
        found = make().read(token, ACCESS, now=NOW)
    except TokenNotValid:
        return
    assert found.kind == ACCESS


def test_the_keys_differ_by_kind_and_by_purpose() -> None:
    keys = {make().key(kind) for kind in KINDS} | {tokens.derive_key(SECRET, "throttle")}

    assert len(keys) == len(KINDS) + 1
    assert all(len(key) == 32 for key in keys)


def test_nothing_secret_is_printed() -> None:
    assert repr(make()) == "Tokens()"


def test_times_are_whole_seconds_in_utc() -> None:
    token = make().access(ACCOUNT, now=NOW + 900_000 * MICROSECOND, fresh=False)

    found = make().read(token, ACCESS, now=NOW + SECOND)

    assert (found.issued_at, found.issued_at.tzinfo) == (NOW, UTC)
