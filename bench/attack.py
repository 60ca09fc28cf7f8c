"""Two web processes under attack: is everybody else served, and how much memory does it take?

``ATTACK_SECONDS``, by default 60, are spent twice: without throttles, so that the bounds of work
alone protect, and with them. Half of it is shared by the kinds of :mod:`bench.attacks`, one after
another, and in the other half all of them come at once. The attackers have a process of their own,
valid accounts with full vaults, and each an address. Meanwhile somebody asks for ``profile/`` and
somebody for ``/healthz``, by a connection of its own each time.

The processor's time is that of the web processes and all that they have started, without database
and Redis, divided by the answers. Linux alone has the memory (PSS).
"""

from __future__ import annotations

import http.client
import os
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path

from apiflask import APIFlask

from accountsvc import bounds
from accountsvc.accounts.credentials import PasswordHasher
from accountsvc.db.models import Account
from accountsvc.services import Services
from bench.attacks import ATTACKS, Attack, Attacker, everything, requests_of
from bench.memory import Peak, tree
from bench.timing import Result
from tests.support.factories import (
    access_token,
    fill_vault,
    make_account,
    new_name,
    services_of,
)
from tests.support.processes import Running, client_of, environment, eventually, is_ready
from tests.support.servers import ValkeyServer, free_port

SECONDS = float(os.environ.get("ATTACK_SECONDS", "60"))
TOGETHER = "all of these at once"
_ATTACKERS = 4
_HEALTH_SECONDS = 1.0
_PAUSE_SECONDS = 0.2
# Longer than any bound on the way: who gets no answer within it, gets none.
_PATIENCE_SECONDS = 30
_MIB = 2**20
_TICKS = os.sysconf("SC_CLK_TCK")


# The attackers, in a process of their own ---------------------------------------------------------


def assault(name: str, port: int, attackers: Sequence[Attacker], seconds: float) -> Counter[str]:
    """Have *attackers* do *name* for *seconds*; return how often each answer came."""
    made = {kind: [requests_of(kind, one) for one in attackers] for kind in ATTACKS}
    until = time.monotonic() + seconds
    works: list[Callable[[], Counter[str]]] = []
    for kind, attack in ATTACKS.items():
        if name not in {kind, TOGETHER}:
            continue
        if attack.slow:
            flat = [request for requests in made[kind] for request in requests]
            works.append(partial(_stand, port, until, flat, attack))
        elif name != TOGETHER or attack.connections > _ATTACKERS:
            turns = [cycle(made[kind][number % _ATTACKERS]) for number in range(attack.connections)]
            works += [partial(_ask, port, until, one) for one in turns]
    if name == TOGETHER:
        works += [partial(_ask, port, until, everything(one)) for one in attackers]
    with ThreadPoolExecutor(len(works)) as pool:
        return sum(pool.map(lambda work: work(), works), Counter[str]())


def _ask(port: int, until: float, requests: Iterable[bytes]) -> Counter[str]:
    """Send one of *requests* after another by one connection, as fast as answers come."""
    found: Counter[str] = Counter()
    connection: socket.socket | None = None
    for request in requests:
        if time.monotonic() > until:
            break
        try:
            connection = connection or _connect(port)
            connection.settimeout(max(0.1, until - time.monotonic()))
            with suppress(ConnectionError):
                # Refused before the end is known: the answer says why.
                connection.sendall(request)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            while answer.read(_MIB):
                pass
        except TimeoutError:
            found["under way in the end"] += 1
        except (OSError, http.client.HTTPException):
            found["closed"] += 1
        else:
            found[str(answer.status)] += 1
            if not answer.will_close:
                continue
        if connection is not None:
            connection.close()
            connection = None
    return found


def _stand(port: int, until: float, requests: Sequence[bytes], attack: Attack) -> Counter[str]:
    """Keep the connections of *attack* open, send each a request, read nothing; count their ends."""
    found: Counter[str] = Counter()
    standing: list[tuple[socket.socket, memoryview] | None] = [None] * attack.connections
    while time.monotonic() < until:
        for number, begun in enumerate(standing):
            one = begun
            try:
                if one is None:
                    one = _connect(port), memoryview(requests[number % len(requests)])
                    one[0].setblocking(False)
                standing[number] = one[0], _sent_on(*one, drips=attack.drips)
            except OSError:
                found["closed"] += 1
                if one is not None:
                    one[0].close()
                standing[number] = None
        time.sleep(min(1, max(0, until - time.monotonic())))
    for one in standing:
        if one is not None:
            found["open in the end"] += 1
            one[0].close()
    return found


def _sent_on(connection: socket.socket, rest: memoryview, *, drips: bool) -> memoryview:
    """Send what can be sent of *rest*; a byte, if there is none. Raises OSError when it is over."""
    with suppress(BlockingIOError):
        while rest:
            rest = rest[connection.send(rest) :]
        if drips:
            connection.send(b"x")
    with suppress(BlockingIOError):
        if not connection.recv(1, socket.MSG_PEEK):
            raise ConnectionResetError
    return rest


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS)


# Everybody else -----------------------------------------------------------------------------------


class Victim:
    """Somebody who asks for *path* again and again while this is entered, and notes each answer."""

    def __init__(self, port: int, path: str, **headers: str) -> None:
        self.seconds: list[float] = []
        self.refused: Counter[str] = Counter()
        self._port, self._path, self._headers = port, path, headers
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on)

    def __enter__(self) -> Victim:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            answer = self._answer()
            self.seconds.append(time.monotonic() - began)
            if answer != "200":
                self.refused[answer] += 1
            self._ended.wait(max(0, _PAUSE_SECONDS - self.seconds[-1]))

    def _answer(self) -> str:
        asking = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_SECONDS)
        try:
            asking.request("GET", self._path, headers=self._headers)
            answer = asking.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as exc:
            return type(exc).__name__
        finally:
            asking.close()
        return str(answer.status)

    def __str__(self) -> str:
        asked = len(self.seconds)
        answered = asked - self.refused.total()
        median, worst = statistics.median(self.seconds), max(self.seconds)
        return f"{answered:4}/{asked:<4} {median:6.3f} {worst:6.3f}"


@dataclass(frozen=True)
class Endured:
    """What one attack did to the web processes, and to everybody else."""

    name: str
    answers: Counter[str]
    cpu_seconds: float
    peak_bytes: int
    profile: Victim
    health: Victim

    @property
    def faults(self) -> list[str]:
        found = [
            f"{path} was answered {dict(one.refused)}"
            for path, one in (("profile/", self.profile), ("/healthz", self.health))
            if one.refused
        ]
        if max(self.health.seconds) >= _HEALTH_SECONDS:
            found.append(f"/healthz took {max(self.health.seconds):.2f} s")
        if self.peak_bytes > bounds.MEMORY_UNDER_UPLOADS:
            found.append(f"the memory was {self.peak_bytes // _MIB} MiB")
        return [f"{self.name}: {one}" for one in found]

    def __str__(self) -> str:
        each = 1000 * self.cpu_seconds / max(1, self.answers.total())
        answers = " ".join(f"{word}:{self.answers[word]}" for word in sorted(self.answers))
        return (
            f"  {self.name:36} {each:8.1f} {self.peak_bytes // _MIB:6} "
            f"  {self.profile}   {self.health}   {answers}"
        )


@dataclass(frozen=True)
class Report(Result):
    """All that was endured with the same settings."""

    title: str
    endured: Sequence[Endured]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        columns = f"{'CPU ms':>8} {'MiB':>6}   {'profile/: median, worst':25}{'/healthz':26}answers"
        faults = [f"  FAULT {fault}" for fault in self.faults]
        return "\n".join([self.title, f"  {'':36} {columns}", *map(str, self.endured), *faults])


# The run ------------------------------------------------------------------------------------------


def attack(app: APIFlask, folder: Path) -> list[Report]:
    """Long names, bombs, floods and drips: everybody else is served, in bounded memory."""
    services = replace(services_of(app), hasher=PasswordHasher())
    hoarder = _hoarder(services)
    attackers = [_attacker(services, number, hoarder) for number in range(_ATTACKERS)]
    victim = access_token(services, make_account(services, new_name("victim")))
    changes = {"LOG_LEVEL": "ERROR", "TRUSTED_PROXIES": "127.0.0.1/32", "WEB_CONCURRENCY": "2"}
    reports = []
    for title, limits in (("bounds alone", "off"), ("bounds and throttles", "on")):
        with ValkeyServer() as redis:
            url = services.settings.database_url
            env = environment(folder, url, REDIS_URL=redis.url, PORT=str(free_port()), **changes)
            env |= {"RATE_LIMITS": limits, "PASSWORD_HASH_COST": "normal"}
            with Running("accountsvc", "web", env=env) as web, client_of(env) as client:
                eventually(partial(is_ready, client))
                endured = _endure_all(web, int(env["PORT"]), attackers, victim)
        faults = tuple(fault for one in endured for fault in one.faults)
        reports.append(Report(f"under attack, {title}", endured, faults))
    return reports


def _hoarder(services: Services) -> Account:
    """Make an account whose vault holds as many and as much as any may."""
    account = make_account(services, new_name("hoarder"))
    # Around the password there are a name, an address, and signs that take room.
    size = bounds.VAULT_BYTES // bounds.VAULT_ENTRIES - 60
    fill_vault(services, account, bounds.VAULT_ENTRIES, "x" * size)
    return account


def _attacker(services: Services, number: int, hoarder: Account) -> Attacker:
    account = make_account(services, new_name("attacker"))
    return Attacker(
        id=account.id,
        email=account.email,
        token=access_token(services, account),
        old_token=access_token(services, account, fresh=False),
        address=f"198.51.100.{number}",
        hoarder_id=hoarder.id,
        hoarder_token=access_token(services, hoarder),
    )


def _endure_all(
    web: Running, port: int, attackers: Sequence[Attacker], victim: str
) -> list[Endured]:
    endured, processes = [], len(tree(web.process.pid))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        # The process of the attackers has its images ready, and no time is lost by its start.
        pool.submit(_prepare, attackers).result()
        for name in (*ATTACKS, TOGETHER):
            share = SECONDS / 2 / (1 if name == TOGETHER else len(ATTACKS))
            auth = {"Authorization": f"Bearer {victim}", "X-Forwarded-For": "203.0.113.1"}
            before = _cpu_seconds(web.process.pid)
            with (
                Peak(web.process.pid, pause=0.1) as peak,
                Victim(port, "/api/profile/", **auth) as profile,
                Victim(port, "/healthz") as health,
            ):
                answers = pool.submit(assault, name, port, attackers, share).result()
                _let_go(web.process.pid, processes)
            spent = _cpu_seconds(web.process.pid) - before
            endured.append(Endured(name, answers, spent, peak.bytes, profile, health))
    return endured


def _prepare(attackers: Sequence[Attacker]) -> None:
    for name in ATTACKS:
        for who in attackers:
            requests_of(name, who)


def _let_go(pid: int, processes: int) -> None:
    """Wait until what the last attack has begun is over: the next has figures of its own."""

    def rests() -> bool:
        before = _cpu_seconds(pid)
        time.sleep(0.5)
        return len(tree(pid)) == processes and _cpu_seconds(pid) - before < 0.06

    eventually(rests)


def _cpu_seconds(pid: int) -> float:
    """Return the processor's time of *pid* and of all that it has started, ended ones too."""
    ticks = 0
    for one in tree(pid):
        with suppress(OSError):
            # What follows the command's name, from the state on; user and system time, and those of
            # the children that have ended.
            words = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, words[11:15]))
    return ticks / _TICKS
