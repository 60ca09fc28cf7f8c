"""The common ground of both web doorways: extensions, transactions, client and access log."""

from __future__ import annotations

import ipaddress
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import structlog
from flask import Flask, Response, current_app, g, has_request_context, request
from flask_cors import CORS
from flask_jwt_extended import JWTManager
from flask_migrate import Migrate  # type: ignore[import-untyped]
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from .db.engine import Database
from .db.models import Base
from .errors import Busy, Throttled
from .services import Services

T = TypeVar("T")
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

log = structlog.get_logger(__name__)
access = structlog.get_logger("accountsvc.access")

# ``app.create_app`` and the ``init_app`` of a doorway bind these extensions to an application.
#
# The models inherit from Base itself, so its metadata is all that Flask-SQLAlchemy needs. Given as
# ``model_class``, Base would be copied, which SQLAlchemy refuses for its type_annotation_map.
# Without ``expire_on_commit=False`` an answer that shows a row after the commit would be an error,
# since the session is closed by then and the row would have to be read again.
db = SQLAlchemy(metadata=Base.metadata, session_options={"expire_on_commit": False})
migrate = Migrate()
jwt = JWTManager()
cors = CORS()

_EXTENSION = "accountsvc"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# A client is asked to wait so many seconds while a part does not answer: about as long as a restart
# or a failover takes. Asked for longer, people would leave.
RETRY_AFTER = 5

# The page on which an account is kept by its e-mail and password. It is here because the API names
# it to people and the pages serve it, and neither doorway knows the other.
KEEP_PATH = "/keep-account/"
# The pages of receipts, each behind its number.
RECEIPTS_PATH = "/receipts/"

_TRANSACTION_ATTEMPTS = 3
_TRANSACTION_PAUSE_SECONDS = 0.05


def init_app(app: Flask, services: Services) -> None:
    """Bind *services* to *app* and log its requests.

    Call it before any other hook of a request is registered: the hook that is registered first
    starts first and ends last, so an earlier one would be missing in the measured time.
    """
    app.extensions[_EXTENSION] = services
    app.before_request(_start)
    app.after_request(_log_request)


# Services and transactions ---------------------------------------------------------------------


def services() -> Services:
    """Return the services of the application that handles the request or runs the command."""
    return cast(Services, current_app.extensions[_EXTENSION])


def database(engine: Engine) -> Database:
    """Return the database: its transactions run on a request's session, elsewhere on new ones."""
    new_session = sessionmaker(engine, expire_on_commit=False)
    return Database(engine, lambda: db.session() if has_request_context() else new_session())


def committed(work: Callable[[Session], T]) -> T:
    """Run *work* in a writing transaction, commit it and return what it returned.

    A serialization failure, a deadlock or a connection that died is tried again, three times in
    all, but only while no COMMIT was sent: after that nobody knows whether it happened. *work* must
    do nothing outside the session, since it may run more than once.
    """
    attempt = 1
    while True:
        commit_sent = False
        try:
            with services().writing() as session:
                result = work(session)
                session.flush()
                commit_sent = True
            return result
        except DBAPIError as exc:
            if commit_sent or attempt == _TRANSACTION_ATTEMPTS or not _may_pass_at_once(exc):
                raise
            log.warning("a transaction is tried again", attempt=attempt, error=type(exc).__name__)
        time.sleep(_TRANSACTION_PAUSE_SECONDS * attempt)
        attempt += 1


def _may_pass_at_once(exc: DBAPIError) -> bool:
    """Say whether a second try is worth it now; a lock that was waited for in vain is not."""
    state = getattr(exc.orig, "sqlstate", None) or ""
    return exc.connection_invalidated or state.startswith(("40", "57P0", "08"))


# The client whose tries are counted ------------------------------------------------------------


def client() -> str:
    """Return the address of the request whose tries are counted, as :func:`client_address` does."""
    return client_address(
        request.remote_addr,
        request.headers.get("X-Forwarded-For", ""),
        services().settings.trusted_proxies,
    )


def client_address(peer: str | None, forwarded_for: str, trusted: Sequence[IPNetwork]) -> str:
    """Return the nearest address that is not a *trusted* proxy of ours; "unknown" if there is none.

    *forwarded_for* is the value of X-Forwarded-For; Forwarded (RFC 7239) is not read. It is read
    from the right and only as far as trusted proxies wrote it, so that nobody can name an address
    that is not theirs. From one that cannot be read on, which is logged once, nothing is read, and
    the one before it counts. An IPv6 address counts by its /64, which one person holds whole.
    """
    hops = [part.strip() for part in forwarded_for.split(",") if part.strip()]
    address = _address(peer or "")
    if address is None:
        _unreadable.say("peer", "no address")
    while address is not None and hops and any(address in network for network in trusted):
        hop = hops.pop()
        nearer = _address(hop)
        if nearer is None:
            _unreadable.say("X-Forwarded-For", _kind_of(hop))
            break
        address = nearer
    if address is None:
        return "unknown"
    if address.version == 6:
        return str(ipaddress.ip_network(f"{address}/64", strict=False))
    return str(address)


# An address as proxies write it, with or without a port: Azure's Application Gateway and AWS's load
# balancer add one, and RFC 7239 (section 6) has the quotes and brackets that some put around IPv6.
# Without brackets a port is certain behind four numbers with dots, and behind eight groups.
_QUOTED = re.compile(r'"(.*)"')
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::[0-9]{0,5})?")
_WITH_PORT = re.compile(
    r"((?:[0-9A-Fa-f:]*:)?[0-9]+(?:\.[0-9]+){3}|(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4})"
    r":[0-9]{0,5}"
)


def _address(text: str) -> IPAddress | None:
    """Return the address in *text*, without quotes, brackets, port and zone; None: there is none.

    One of IPv4 within IPv6 is that of IPv4.
    """
    for form in (_QUOTED, _BRACKETED, _WITH_PORT):
        match = form.fullmatch(text)
        if match is not None:
            text = match[1]
    try:
        address = ipaddress.ip_address(text.split("%", maxsplit=1)[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _kind_of(text: str) -> str:
    """Say what stands where an address should, in a word of ours: it may be personal."""
    if text.strip('"').lower() == "unknown":
        return "unknown"
    return "obfuscated" if text.strip('"').startswith("_") else "something else"


class _Unreadable:
    """Says once in a process of each kind that where an address should be something else is."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def say(self, where: str, kind: str) -> None:
        with self._lock:
            if (where, kind) in self._said:
                return
            self._said.add((where, kind))
        log.warning("a client's address cannot be read", where=where, kind=kind)


_unreadable = _Unreadable()


# The access log --------------------------------------------------------------------------------


def method() -> str:
    """Return the request's method; a client may send any word as one, also somebody's name."""
    return request.method if request.method in _METHODS else "other"


def seconds() -> float:
    """Return for how long the request has been worked on."""
    return time.perf_counter() - float(g.started_at)


def sent_by(public_id: uuid.UUID) -> None:
    """Say whose token authenticated the request, for its line in the log."""
    g.sender = public_id


def about(public_id: uuid.UUID) -> None:
    """Say whose account the request is about, if not its sender's, for its line in the log."""
    g.subject = public_id


def refused(exc: Throttled | Busy) -> None:
    """Say which limit the request met, for its line in the log and for the count of refusals."""
    g.limit = exc.limit


def met_limit() -> str | None:
    """Return the limit that :func:`refused` was told of; None: the request met none."""
    limit: str | None = g.get("limit")
    return limit


def _start() -> None:
    g.started_at = time.perf_counter()


def _log_request(response: Response) -> Response:
    """Log one line: who, about whom (by public id), what (the route's rule), and how it ended.

    The line of a request that was refused for the number of its kind names the limit.
    """
    sender, subject, limit = g.get("sender"), g.get("subject"), met_limit()
    access.info(
        "request",
        method=method(),
        route=None if request.url_rule is None else request.url_rule.rule,
        status=response.status_code,
        duration_ms=round(1000 * seconds(), 1),
        caller=None if sender is None else str(sender),
        subject=None if subject is None else str(subject),
        **({} if limit is None else {"limit": limit}),
    )
    return response
