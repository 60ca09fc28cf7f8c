"""Counts of tries: all or none of them, in Redis and in a process, and what is left of them."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import uuid4

import pytest
import redis

from accountsvc.adapters import throttle
from accountsvc.adapters.counts import Count, ProcessCounts
from accountsvc.adapters.throttle import LIMITS, PASSWORD, Throttle
from accountsvc.errors import Throttled
from tests.support.loglines import lines_of
from tests.support.servers import ValkeyServer

HERE, ELSEWHERE = "203.0.113.7", "198.51.100.8"
CID, DAN = "cid@example.org", "dan@example.org"
QUARTER, MONTH = 900, 30 * 86_400

NewThrottle = Callable[[], Throttle]


@pytest.fixture
def empty_redis() -> Iterator[tuple[str, redis.Redis]]:
    """A Redis in which nobody else counts."""
    with ValkeyServer() as server, server.client() as client:
        yield server.url, client


@pytest.fixture(params=["memory", "redis"])
def new_throttle(request: pytest.FixtureRequest) -> NewThrottle:
    """Throttles that count together: one in memory, or any number in Redis."""
    if request.param == "memory":
        one = Throttle(uuid4().bytes)
        return lambda: one
    # Tests share the server; each has keys of its own, by its secret.
    url, secret = request.getfixturevalue("redis_url"), uuid4().bytes
    return lambda: Throttle(secret, redis_url=url)


@pytest.fixture
def made(new_throttle: NewThrottle) -> Throttle:
    return new_throttle()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stop the clock of this process, and move it: call it with the seconds."""
    # Whole seconds, of which sums are exact.
    start, moved = float(int(time.monotonic())), 0.0

    def move(seconds: float) -> None:
        nonlocal moved
        moved += seconds

    monkeypatch.setattr("time.monotonic", lambda: start + moved)
    return move


def passes(made: Throttle, account: str | None = None, address: str | None = None) -> bool:
    """Try a password; say whether it may be tried."""
    try:
        made.spend(PASSWORD, account=account, address=address)
    except Throttled:
        return False
    return True


def left(made: Throttle, account: str | None = None, address: str | None = None) -> int:
    """How many more tries pass; each of them is counted."""
    return next(number for number in range(1_000) if not passes(made, account, address))


def addresses(count: int) -> list[str]:
    return [f"192.0.2.{number}" for number in range(count)]


# What is refused is counted nowhere


def test_an_address_that_has_to_wait_uses_up_nobody(made: Throttle) -> None:
    assert left(made, address=HERE) == 100

    refused = [passes(made, account, HERE) for account in (CID, DAN) for _ in range(110)]

    assert not any(refused)
    for account in (CID, DAN):
        assert [left(made, account, one) for one in addresses(11)] == [10] * 10 + [0]


def test_a_pair_that_has_to_wait_uses_up_neither_address_nor_account(made: Throttle) -> None:
    assert left(made, CID, HERE) == 10

    assert not any(passes(made, CID, HERE) for _ in range(110))

    assert left(made, address=HERE) == 90
    assert left(made, CID) == 90


def test_an_account_that_has_to_wait_uses_up_no_address_and_no_pair(made: Throttle) -> None:
    assert left(made, CID) == 100

    assert not any(passes(made, CID, HERE) for _ in range(110))

    made.clear(PASSWORD, account=CID, address=ELSEWHERE)
    assert left(made, CID, HERE) == 10
    assert left(made, address=HERE) == 90


@pytest.mark.parametrize("kind", [throttle.EXPORT, throttle.UPLOAD])
def test_of_other_kinds_the_address_is_asked_first_too(made: Throttle, kind: str) -> None:
    of_account, of_address = LIMITS[kind].account, LIMITS[kind].address
    assert of_account is not None
    assert of_address is not None

    def tries(account: str | None, address: str | None) -> int:
        passed = 0
        with suppress(Throttled):
            while True:
                made.spend(kind, account=account, address=address)
                passed += 1
        return passed

    assert tries(None, HERE) == of_address.amount
    assert tries(CID, HERE) == 0
    assert tries(CID, ELSEWHERE) == of_account.amount
    assert tries(CID, ELSEWHERE) == 0
    assert tries(None, ELSEWHERE) == of_address.amount - of_account.amount


@pytest.mark.parametrize("kind", LIMITS)
def test_a_refusal_names_which_limit_was_met_and_nobody(made: Throttle, kind: str) -> None:
    """CID and HERE are somebody's; the words are a closed list."""
    limits = {"address": LIMITS[kind].address, "pair": LIMITS[kind].pair}
    limits["account"] = LIMITS[kind].account
    for whose, limit in limits.items():
        if limit is None:
            continue
        account = None if whose == "address" else f"{whose}-{CID}"
        address = None if whose == "account" else f"{whose}-{HERE}"
        for _ in range(limit.amount):
            made.spend(kind, account=account, address=address)

        with pytest.raises(Throttled) as refused:
            made.spend(kind, account=account, address=address)

        assert refused.value.limit == f"{kind} {whose}"


def test_address_pair_and_account_are_asked_in_this_order(
    later: Callable[[float], None],
) -> None:
    made, waits = Throttle(b"secret"), []

    def wait(account: str, address: str) -> None:
        with pytest.raises(Throttled) as refused:
            made.spend(PASSWORD, account=account, address=address)
        waits.append(refused.value.retry_after)

    # Each of the three counts begins, and so ends, at a time of its own.
    made.spend(PASSWORD, address=HERE)
    later(50)
    made.spend(PASSWORD, account=CID)
    later(50)
    left(made, CID, HERE)
    left(made, CID)
    wait(CID, HERE)
    left(made, address=HERE)
    wait(CID, HERE)
    wait(CID, ELSEWHERE)

    assert waits == [QUARTER, QUARTER - 100, QUARTER - 50]


@pytest.mark.parametrize("whose", [(CID, HERE), (CID, None), (None, HERE)])
def test_of_many_at_once_no_more_pass_than_one_after_another(
    new_throttle: NewThrottle, whose: tuple[str | None, str | None]
) -> None:
    throttles = [new_throttle() for _ in range(16)]
    together = threading.Barrier(len(throttles))

    def tries(one: Throttle) -> int:
        together.wait()
        return sum(passes(one, *whose) for _ in range(20))

    with ThreadPoolExecutor(len(throttles)) as pool:
        passed = sum(pool.map(tries, throttles))

    assert passed == (10 if None not in whose else 100)


# Who is known


def test_whoever_has_signed_in_from_an_address_is_not_kept_out_by_others(made: Throttle) -> None:
    made.spend(PASSWORD, account=CID, address=HERE)
    made.forgive(PASSWORD, account=CID, address=HERE)
    assert left(made, CID) == 100

    signed_in = []
    for _ in range(50):
        signed_in.append(passes(made, CID, HERE))
        made.forgive(PASSWORD, account=CID, address=HERE)

    assert signed_in == [True] * 50
    # It gave nothing back to those who guess, is the account's alone, and has a limit itself.
    assert not passes(made, CID, ELSEWHERE)
    assert left(made, DAN, HERE) == 10
    assert left(made, CID, HERE) == 10


def test_what_a_known_address_gets_wrong_uses_up_no_try_of_others(made: Throttle) -> None:
    made.spend(PASSWORD, account=CID, address=HERE)
    made.forgive(PASSWORD, account=CID, address=HERE)

    assert left(made, CID, HERE) == 10
    assert left(made, CID) == 100


def test_an_address_is_known_for_thirty_days_after_the_last_right_password(
    later: Callable[[float], None],
) -> None:
    made = Throttle(b"secret")

    def sign_in() -> bool:
        left(made, CID)
        passed = passes(made, CID, HERE)
        if passed:
            made.forgive(PASSWORD, account=CID, address=HERE)
        return passed

    made.forgive(PASSWORD, account=CID, address=HERE)
    signed_in = []
    for days in (29, 29, 30):
        later(days * 86_400)
        signed_in.append(sign_in())

    assert signed_in == [True, True, False]


def test_a_right_password_takes_back_one_try_of_address_and_account(made: Throttle) -> None:
    for _ in range(5):
        made.spend(PASSWORD, account=CID, address=HERE)
    made.forgive(PASSWORD, account=CID, address=HERE)

    assert left(made, CID, HERE) == 10
    assert left(made, address=HERE) == 86
    assert left(made, CID) == 96


def test_a_right_password_takes_back_nothing_that_was_not_counted(made: Throttle) -> None:
    for _ in range(5):
        made.forgive(PASSWORD, account=CID, address=HERE)

    assert left(made, address=HERE) == 100
    assert left(made, CID) == 100


def test_a_reset_lets_the_owner_in_whoever_goes_on_guessing(made: Throttle) -> None:
    left(made, CID, HERE)
    left(made, CID)
    assert not passes(made, CID, HERE)

    made.clear(PASSWORD, account=CID, address=HERE)
    assert left(made, CID) == 100

    assert passes(made, CID, HERE)
    assert not passes(made, CID, ELSEWHERE)


def test_without_a_pair_a_right_try_clears_the_account(made: Throttle) -> None:
    for _ in range(9):
        made.spend(throttle.EXPORT, account=CID, address=HERE)
    made.forgive(throttle.EXPORT, account=CID, address=HERE)
    for _ in range(10):
        made.spend(throttle.EXPORT, account=CID, address=HERE)
    with pytest.raises(Throttled):
        made.spend(throttle.EXPORT, account=CID, address=HERE)
    for _ in range(12):
        made.spend(throttle.EXPORT, address=HERE)
    with pytest.raises(Throttled):
        made.spend(throttle.EXPORT, address=HERE)


def test_what_is_taken_back_is_as_never_tried(made: Throttle) -> None:
    for _ in range(200):
        made.spend(PASSWORD, account=CID, address=HERE)
        made.take_back(PASSWORD, account=CID, address=HERE)

    assert left(made, CID, HERE) == 10
    assert left(made, address=HERE) == 90
    assert left(made, CID) == 90


# Memory


def test_a_process_keeps_a_bounded_number_of_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessCounts, "MOST_IN_A_TABLE", 50)
    made = Throttle(b"secret")
    for number in range(1_000):
        made.spend(PASSWORD, account=f"{number}@example.org", address=f"2001:db8:{number:x}::/64")
        made.forgive(PASSWORD, account=f"{number}@example.org", address=ELSEWHERE)
        made.spend(throttle.SIGN_UP, address=f"2001:db8:{number:x}::/64")

    # Accounts, addresses, pairs and known pairs of passwords, and addresses of sign-ups.
    assert len(made._own) <= 5 * 50
    assert left(made, CID, HERE) == 10


def test_what_has_ended_leaves_the_memory(later: Callable[[float], None]) -> None:
    made = Throttle(b"secret")
    for number in range(500):
        made.spend(PASSWORD, account=f"{number}@example.org", address=f"2001:db8:{number:x}::/64")
    assert len(made._own) == 1_500
    later(QUARTER)

    made.spend(PASSWORD, account=CID, address=HERE)

    assert len(made._own) == 3


def test_a_full_table_loses_what_ends_first(
    monkeypatch: pytest.MonkeyPatch, later: Callable[[float], None]
) -> None:
    monkeypatch.setattr(ProcessCounts, "MOST_IN_A_TABLE", 3)
    counts = ProcessCounts()
    old, begun_again, young, last = (
        Count("table", key, 1, 100) for key in ("old", "begun again", "young", "last")
    )
    counts.add([begun_again], None)
    later(100)
    counts.add([old], None)
    later(10)
    counts.add([begun_again], None)
    counts.add([young], None)

    counts.add([last], None)

    assert [counts.add([one], None) is None for one in (last, young, begun_again)] == [False] * 3
    assert counts.add([old], None) is None


# Redis


def test_every_key_in_redis_is_an_hmac_and_ends(empty_redis: tuple[str, redis.Redis]) -> None:
    url, server = empty_redis
    secret, other = uuid4().bytes, uuid4().bytes
    for made in (Throttle(secret, redis_url=url), Throttle(other, redis_url=url)):
        for kind in LIMITS:
            for _ in range(3):
                made.spend(kind, account=CID, address=HERE)
            made.forgive(kind, account=CID, address=HERE)
            made.spend(kind, account=CID, address=HERE)
            made.take_back(kind, account=CID, address=HERE)
            made.spend(kind, account=CID, address=HERE)
        made.clear(PASSWORD, account=DAN, address=HERE)
        left(made, CID, ELSEWHERE)

    keys = set(server.scan_iter())

    longest = max(
        item.get_expiry()
        for limit in LIMITS.values()
        for item in (limit.account, limit.address, limit.pair)
        if item is not None
    )
    marks = 0
    for key in keys:
        assert re.fullmatch(rb"accountsvc-throttle:[0-9a-f]{32}", key)
        assert re.fullmatch(rb"[0-9]+", server.get(key) or b"")
        ends = server.ttl(key)
        marks += ends > longest
        assert 0 < ends <= MONTH
    # No two secrets share a key: the known pairs of both throttles are there.
    assert marks == 2 * 2
    assert len(keys) > 2 * len(LIMITS)


def test_a_key_without_an_end_gets_one(empty_redis: tuple[str, redis.Redis]) -> None:
    url, server = empty_redis
    made = Throttle(uuid4().bytes, redis_url=url)
    left(made, CID, HERE)
    keys = set(server.scan_iter())
    for key in keys:
        server.persist(key)

    assert not passes(made, CID, HERE)
    assert passes(made, DAN, HERE)
    assert passes(made, CID, ELSEWHERE)

    assert [server.ttl(key) > 0 for key in keys] == [True] * 3


def test_one_call_is_one_round_trip(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Throttle(uuid4().bytes, redis_url=redis_url)
    made.spend(PASSWORD, account=DAN, address=HERE)
    made.forgive(PASSWORD, account=DAN, address=HERE)
    sent = []
    send = redis.Connection.send_packed_command

    def counted(self: redis.Connection, command: object, *args: object, **named: object) -> None:
        sent.append(command)
        send(self, command, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(redis.Connection, "send_packed_command", counted)
    trips = []
    for call in (
        lambda: made.spend(PASSWORD, account=CID, address=HERE),
        lambda: made.forgive(PASSWORD, account=CID, address=HERE),
        lambda: left(made, CID, HERE),
        lambda: passes(made, CID, HERE),
        lambda: made.clear(PASSWORD, account=CID, address=HERE),
    ):
        before = len(sent)
        call()
        trips.append(len(sent) - before)

    assert trips == [1, 1, 11, 1, 1]


def test_a_redis_that_fails_between_two_calls_loses_neither_try_nor_owner() -> None:
    with ValkeyServer() as server:
        made = Throttle(b"secret", redis_url=server.url)
        made.spend(PASSWORD, account=CID, address=HERE)
        made.forgive(PASSWORD, account=CID, address=HERE)
        made.spend(PASSWORD, account=DAN, address=HERE)
        server.stop("kill")

        made.forgive(PASSWORD, account=DAN, address=HERE)

        # This process counts by itself from here on, and knows whom it has let in.
        assert left(made, CID) == left(made, DAN) == 100
        assert passes(made, CID, HERE)
        assert passes(made, DAN, HERE)
        assert not passes(made, CID, ELSEWHERE)


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), "ReadOnlyError"),
        (("CONFIG", "SET", "maxmemory", "1"), "OutOfMemoryError"),
        (("CONFIG", "SET", "requirepass", "s3cret"), "AuthenticationError"),
    ],
)
def test_a_redis_that_refuses_is_left_alone_and_asked_again(
    trouble: tuple[str, ...], error: str, later: Callable[[float], None]
) -> None:
    with ValkeyServer() as server, server.client() as admin:
        made = Throttle(b"secret", redis_url=server.url)
        assert left(made, CID, HERE) == 10
        admin.execute_command(*trouble)
        with suppress(redis.RedisError):
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        with lines_of(throttle) as logged:
            alone = [passes(made, DAN, HERE) for _ in range(12)]
        for undo in (
            ("REPLICAOF", "NO", "ONE"),
            ("CONFIG", "SET", "maxmemory", "0"),
            ("CONFIG", "SET", "requirepass", ""),
        ):
            admin.execute_command(*undo)
        later(throttle._COOLDOWN_SECONDS)

        assert alone == [True] * 10 + [False] * 2
        assert [(one["event"], one["error"]) for one in logged] == [
            ("throttles are counted in this process only", error)
        ]
        assert not passes(made, CID, HERE)
        assert left(made, DAN, HERE) == 10


def test_a_redis_that_hangs_is_asked_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung:
        made = Throttle(b"secret", redis_url=f"redis://127.0.0.1:{hung.getsockname()[1]}/0")

        assert left(made, CID, HERE) == 10

        hung.setblocking(False)
        connections = 0
        with suppress(BlockingIOError):
            while True:
                hung.accept()[0].close()
                connections += 1
        assert connections == 1
