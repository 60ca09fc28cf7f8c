"""The table of servers: what each candidate does with the load, and with those who mean no good.

Each serves the same application on the same PostgreSQL and Redis, alone and behind the nginx of
``docs/deploy/nginx/``, on an ordinary machine of two cores. Rates and times are taken in turns, and
shown beside gunicorn's threads, the reference, in the same run.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

from apiflask import APIFlask
from PIL import Image

from accountsvc.accounts.credentials import PasswordHasher
from accountsvc.db.models import Account
from accountsvc.services import Services
from bench.candidates import CANDIDATES, Candidate, Served, nginx_program, serving
from bench.memory import Peak
from bench.timing import Table
from bench.wire import (
    Answer,
    Load,
    Probe,
    answer_to,
    ask,
    connect,
    drip,
    load,
    request,
)
from tests.support.factories import (
    PASSWORD,
    Person,
    access_token,
    insert_accounts,
    make_person,
    new_name,
    numbered,
    save_password,
    services_of,
)
from tests.support.processes import environment
from tests.support.servers import ValkeyServer
from tests.support.state import read_account

# To look at a process's memory takes a lock of it: more often, that would slow what is measured.
_LOOK_SECONDS = 0.1
ROUNDS = int(os.environ.get("BENCH_TIMES", "5"))
DRIP_SECONDS = float(os.environ.get("BENCH_SECONDS", "10"))
WANTED = os.environ.get("BENCH_SERVERS", "").split(",")

PEOPLE, SLOW, SIGN_INS, UPLOADS = 16, 400, 64, 16
ENTRIES = 10
PROFILES, LISTS, DELETES, WARM_UP = 800, 400, 240, 160
# Sign-ins under way: so few that also one process alone lets all of them wait for a hash.
UNDER_WAY, HALF_BODIES, STOP_SECONDS = 8, 4, 15.0
GUESSES = 120
_KEPT_ALIVE = request("GET", "/healthz")
_HALF_HEAD = (
    b"POST /api/sign-in/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX: "
)
_HALF_BODY = request("POST", "/api/sign-in/", content_type="application/json", content_length="999")


@dataclass(frozen=True)
class World:
    """What all candidates serve: a database, and people in it with a password of the full cost."""

    services: Services
    environ: Mapping[str, str]
    people: Sequence[Person]
    photo: bytes

    def token(self, account_id: int) -> str:
        with self.services.reading() as session:
            return access_token(self.services, session.get_one(Account, account_id))

    def tokens(self) -> list[str]:
        """Return a fresh token of each of the people, since a run takes longer than one lasts."""
        return [self.token(person.id) for person in self.people]


@dataclass(frozen=True)
class Entrant:
    """A candidate in one of its two places."""

    candidate: Candidate
    behind_nginx: bool

    @property
    def name(self) -> str:
        return self.candidate.name + (", nginx" if self.behind_nginx else "")


@dataclass
class Result:
    """What was measured of one entrant: loads by their names, and finished cells."""

    loads: dict[str, list[Load]] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)


# How things are written -------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    return "no answer" if math.isinf(seconds) else f"{1000 * seconds:.0f} ms"


def mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def counted(done: Load) -> str:
    """Return the statuses with their numbers; 0 is no answer."""
    return ", ".join(
        f"{count} × {status}" for status, count in sorted(done.statuses.items()) if count
    )


# Load -------------------------------------------------------------------------------------------


def _loads(world: World) -> Iterator[tuple[str, list[bytes]]]:
    tokens = world.tokens()
    profiles = [request("GET", "/api/profile/", token=token) for token in tokens]
    lists = [request("GET", "/api/view-all-saved-passwords/", token=token) for token in tokens]
    yield "", profiles * (WARM_UP // len(tokens))
    yield "profile/", profiles * (PROFILES // len(tokens))
    yield "list", lists * (LISTS // len(tokens))
    ids = insert_accounts(world.services, numbered(f"{new_name('gone')}-", DELETES), passwords=1)
    # They have no vault keys that open; where no new one does, a server refuses to start.
    make_person(world.services, new_name("newest"))
    yield (
        "DELETE",
        [request("DELETE", f"/api/profile/{one}/delete/", token=world.token(one)) for one in ids],
    )


def measure_load(world: World, entrant: Entrant) -> dict[str, Load]:
    """Return rate and times of reading, of listing and of writing, by eight connections."""
    works = list(_loads(world))
    with serving(entrant.candidate, world.environ, behind_nginx=entrant.behind_nginx) as served:
        done = {name: load(served.port, asked) for name, asked in works}
    del done[""]
    return done


# Criteria: each returns a cell ------------------------------------------------------------------


def idle_memory(_world: World, served: Served) -> str:
    each = served.memory_each()
    return f"{mib(sum(each))}, the largest process {mib(max(each))}"


def answer_without_body(world: World, served: Served) -> str:
    """RFC 9110, section 8.6: a 204 has no Content-Length; its connection can be used again."""
    person = world.people[0]
    with world.services.reading() as session:
        account = session.get_one(Account, person.id)
        session.expunge(account)
    number = save_password(world.services, account)
    path = f"/api/view-all-saved-passwords/{number}/delete/"
    with connect(served.port, seconds=10) as sock:
        answer = answer_to(sock, request("DELETE", path, token=world.token(person.id)))
        again = None if answer is None or answer.closes else answer_to(sock, _KEPT_ALIVE)
    if answer is None or answer.status != 204:
        return f"no: {answer}"
    framing = [name for name in (b"content-length", b"transfer-encoding") if name in answer.head]
    bare = f"no: {framing[0].decode()}" if framing else "bare"
    return f"{bare}, {'closed' if again is None else 'kept'}"


def two_framings(world: World, served: Served) -> str:
    """RFC 9112, section 6.1: a length and chunks; what follows must not be taken for a request."""
    (victim,) = insert_accounts(world.services, [new_name("victim")])
    # A request whose body nobody reads: a 400 is the server's, not the application's.
    token = world.token(world.people[0].id)
    head = f"POST /api/profile/ HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
    both = "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    smuggled = request("DELETE", f"/api/profile/{victim}/delete/", token=world.token(victim))
    with connect(served.port, (head + both).encode() + smuggled, seconds=5) as sock:
        first = answer_to(sock)
        # What is executed is so within this time, or when the connection is closed.
        answer_to(sock)
    account = read_account(world.services, victim)
    done = account is None or not account.is_active
    return f"{first.status if first else 'closed'}, {'DONE' if done else 'not done'}"


def metrics(world: World, served: Served) -> str:
    """Return how many requests each scrape counts, of those that were made."""

    def count() -> float:
        answer = ask(served.port, request("GET", "/metrics", connection="close"))
        assert answer is not None
        pattern = rb'accountsvc_http_requests_total\{.*?route="/api/profile/".*?\} (\S+)'
        return sum(float(number) for number in re.findall(pattern, answer.body))

    before = count()
    asked = [request("GET", "/api/profile/", token=token) for token in world.tokens()] * 10
    load(served.port, asked)
    scrapes = sorted({count() - before for _ in range(6)})
    return f"{' or '.join(f'{one:.0f}' for one in scrapes)} of {len(asked)}"


def slow_clients(begun: bytes) -> Callable[[World, Served], str]:
    """Return a criterion: many requests that are begun as *begun*, and never end."""

    def cell(_world: World, served: Served) -> str:
        with Probe(served.port) as probe:
            closed = drip(served.port, begun, count=SLOW, seconds=DRIP_SECONDS)
        _let_go(served)
        return f"{milliseconds(probe.worst)}, {closed} closed"

    return cell


def _let_go(served: Served) -> None:
    """Wait until a server is free again, as far as it ever is: each criterion begins alike."""
    ask(served.port, request("GET", "/healthz", connection="close"), seconds=30)


def _sign_in(person: Person) -> bytes:
    body = json.dumps({"email": person.email, "password": PASSWORD}).encode()
    return request("POST", "/api/sign-in/", body=body, content_type="application/json")


def sign_ins(world: World, served: Served) -> str:
    asked = [_sign_in(person) for person in world.people] * (SIGN_INS // len(world.people))
    with Probe(served.port) as probe:
        done = load(served.port, asked, connections=SIGN_INS)
    return f"{milliseconds(probe.worst)}; {counted(done)}"


def uploads(world: World, served: Served) -> str:
    boundary = "0123456789abcdef"
    part = 'Content-Disposition: form-data; name="avatar"; filename="a.jpg"'
    kind = "Content-Type: image/jpeg"
    body = f"--{boundary}\r\n{part}\r\n{kind}\r\n\r\n".encode() + world.photo
    body += f"\r\n--{boundary}--\r\n".encode()
    asked = [
        request(
            "PUT",
            f"/api/profile/{person.id}/update/",
            token=token,
            body=body,
            content_type=f"multipart/form-data; boundary={boundary}",
        )
        for person, token in zip(world.people, world.tokens(), strict=True)
    ]
    with Probe(served.port) as probe, Peak(served.pid, pause=_LOOK_SECONDS) as peak:
        done = load(served.port, asked, connections=UPLOADS)
    return f"{milliseconds(probe.worst)}, {mib(peak.bytes)}; {counted(done)}"


def stop(world: World, served: Served) -> str:
    """SIGTERM with sign-ins under way, beside half-sent bodies, which must not hold it up."""
    process = served.running.process
    waiting = [connect(served.port, _sign_in(one)) for one in world.people[:UNDER_WAY]]
    slow = [connect(served.port, _HALF_BODY + b"{") for _ in range(HALF_BODIES)]
    time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
        took = f"{time.monotonic() - began:.1f} s"
    except subprocess.TimeoutExpired:
        took = f"over {STOP_SECONDS:.0f} s"
        # Answers come now, or the connection ends.
        served.running.kill()
    answers: list[Answer | None] = []
    for sock in waiting:
        sock.settimeout(5)
        answers.append(answer_to(sock))
    for sock in (*waiting, *slow):
        sock.close()
    answered = sum(1 for one in answers if one is not None and one.status == 200)
    return f"{took}, {answered} of {UNDER_WAY}"


# In this order: the last one ends the server.
CRITERIA: Mapping[str, Callable[[World, Served], str]] = {
    "memory, idle": idle_memory,
    "204": answer_without_body,
    "length and chunks": two_framings,
    "/metrics counts": metrics,
    f"{SLOW} half heads: /healthz": slow_clients(_HALF_HEAD),
    f"{SLOW} half bodies: /healthz": slow_clients(_HALF_BODY),
    f"{SIGN_INS} sign-ins: /healthz": sign_ins,
    f"{UPLOADS} uploads: /healthz, memory": uploads,
    "SIGTERM: end, answered": stop,
}


def guesses(world: World, candidate: Candidate) -> str:
    """Without Redis throttles count in a process: how many wrong passwords are looked at.

    Ten are right; with two processes it is up to twice as many.
    """
    environ = {**world.environ, "RATE_LIMITS": "on", "PASSWORD_HASH_COST": "cheap"}
    del environ["REDIS_URL"]
    body = json.dumps({"email": world.people[0].email, "password": "wrong horse"}).encode()
    # Each on a connection of its own: an idle process would otherwise get all of a few that stay.
    kind = "application/json"
    guess = request("POST", "/api/sign-in/", body=body, content_type=kind, connection="close")
    with serving(candidate, environ, behind_nginx=False) as served:
        done = load(served.port, [guess] * GUESSES, connections=PEOPLE)
    return counted(done)


# The run ----------------------------------------------------------------------------------------


def _photo() -> bytes:
    """A JPEG of some MiB, as a telephone takes it."""
    file = BytesIO()
    Image.effect_noise((2400, 1800), 60).convert("RGB").save(file, "JPEG", quality=88)
    return file.getvalue()


def _entrants() -> list[Entrant]:
    wanted = [one for one in CANDIDATES if any(word in one.name for word in WANTED)]
    places = (False, True) if nginx_program() else (False,)
    return [Entrant(one, behind) for one in wanted for behind in places]


def _world(app: APIFlask, folder: Path, redis_url: str) -> World:
    services = services_of(app)
    dear = replace(services, hasher=PasswordHasher())
    people = [make_person(dear, new_name("person")) for _ in range(PEOPLE)]
    for person in people:
        with services.reading() as session:
            account = session.get_one(Account, person.id)
            session.expunge(account)
        for number in range(ENTRIES - len(person.passwords)):
            save_password(services, account, f"secret {number}")
    url = services.database.engine.url.render_as_string(hide_password=False)
    changes = {"LOG_LEVEL": "ERROR", "PASSWORD_HASH_COST": "normal", "REDIS_URL": redis_url}
    return World(services, environment(folder, url, **changes), people, _photo())


def _measure(world: World, entrants: Sequence[Entrant]) -> dict[str, Result]:
    results = {one.name: Result() for one in entrants}
    for number in range(ROUNDS):
        for one in entrants:
            say(f"load {number + 1}/{ROUNDS}: {one.name}")
            for name, done in measure_load(world, one).items():
                results[one.name].loads.setdefault(name, []).append(done)
                say(f"  {name}: {done.rate:.0f} a second, p99 {milliseconds(done.p99)}")
    for one in entrants:
        cells = results[one.name].cells
        with serving(one.candidate, world.environ, behind_nginx=one.behind_nginx) as served:
            for title, criterion in CRITERIA.items():
                cells[title] = _cell(criterion, world, served)
                say(f"{one.name}: {title}: {cells[title]}")
        if not one.behind_nginx:
            cells[f"{GUESSES} guesses without Redis"] = guesses(world, one.candidate)
    return results


def _cell(criterion: Callable[[World, Served], str], world: World, served: Served) -> str:
    # A server that refuses or cuts connections is a result, and the others are still to be asked.
    try:
        return criterion(world, served)
    except (OSError, AssertionError) as exc:
        return f"failed: {exc!r}"


def say(line: str) -> None:
    """Show where a long run is, beside its table."""
    print(line, file=sys.stderr, flush=True)


def _rates(result: Result, reference: Result) -> Iterator[tuple[str, str]]:
    for name, done in result.loads.items():
        rate, p99, against_rate, against_p99 = (
            statistics.median(getattr(one, what) for one in loads)
            for loads in (done, reference.loads[name])
            for what in ("rate", "p99")
        )
        failed = sum(sum(one.statuses.values()) - one.good for one in done)
        yield (
            f"{name}: a second, p99",
            f"{rate:.0f} ({rate / against_rate:.2f} ×), "
            f"{milliseconds(p99)} ({p99 / against_p99:.2f} ×)"
            + (f", {failed} FAILED" if failed else ""),
        )


def servers(app: APIFlask, folder: Path) -> list[Table]:
    """Every candidate by every criterion; the first is the reference."""
    entrants = _entrants()
    with ValkeyServer() as redis:
        results = _measure(_world(app, folder, redis.url), entrants)
    reference = results[entrants[0].name]
    title = (
        f"servers: {ROUNDS} rounds, {DRIP_SECONDS:.0f} s of dripping, "
        f"load of the machine {os.getloadavg()[0]:.1f}"
    )
    if nginx_program() is None:
        title += "; there is no nginx here, so none of them was measured behind one"
    rows = {
        name: {**dict(_rates(result, reference)), **result.cells}
        for name, result in results.items()
    }
    return [Table(title, rows)]
