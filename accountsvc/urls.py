"""Read what a setting says of servers and networks, or raise ValueError with a reason.

Each host and each URL has one form here, which is handed to every library that uses it: read by
each for itself, the same text leads two of them to two places. The reason completes the sentence
that begins with the setting's name, and never repeats a part of a URL, which may be a password.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

import idna
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# The word by which somebody says that a list is empty on purpose, and was not forgotten.
NONE = "none"


@dataclass(frozen=True)
class DatabaseServer:
    """Where a PostgreSQL URL leads: *hosts* as libpq gets them, *sslmode* None if it has none.

    *service* names an entry of libpq's own file, which says what the URL leaves open.
    A host is a name, an address, or the folder of a socket; no host is libpq's default.
    """

    hosts: tuple[str, ...]
    sslmode: str | None
    service: str | None


# What libpq takes for ``sslmode``, from no TLS at all to a verified chain and name.
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def database_url(text: str) -> str:
    """Read the URL of a PostgreSQL database or of a SQLite file."""
    if not re.match(r"(sqlite|postgresql(\+psycopg)?)://", text):
        raise ValueError("must begin with postgresql:// or sqlite:///")
    if not text.startswith("sqlite"):
        database_server(text)
        return text
    try:
        database = make_url(text).database or ""
    except (ArgumentError, ValueError):
        raise ValueError("cannot be read as a URL") from None
    if not database or ":memory:" in database:
        # Each process would see an empty database of its own: web, worker and CLI are three.
        raise ValueError("must name a file, since several processes share it")
    return text


def database_server(text: str) -> DatabaseServer:
    """Return where a PostgreSQL URL leads; raise ValueError for one that leads nowhere.

    SQLAlchemy is asked for what it would connect with: options, several hosts and what overrules
    what are read once, by whoever connects.
    """
    try:
        url = make_url(text)
        _, options = url.get_dialect()().create_connect_args(url)
    except (ArgumentError, ValueError):
        raise ValueError("cannot be read as a URL") from None
    if "%" in (url.host or ""):
        # SQLAlchemy does not decode a host: it would be looked up with the percent signs in it.
        raise ValueError("must name a socket's folder as ?host=/folder")
    given = options.get("hostaddr") or options.get("host") or ""
    hosts = given.split(",") if isinstance(given, str) else given
    mode = options.get("sslmode")
    if mode not in (None, *_SSL_MODES):
        raise ValueError("must have one sslmode of " + ", ".join(_SSL_MODES))
    if mode is None and options.get("sslrootcert") == "system":
        # So libpq does, since anybody can have a certificate of a public authority.
        mode = "verify-full"
    return DatabaseServer(tuple(name for name in hosts if name), mode, options.get("service"))


def host(text: str) -> str:
    """Return the one form of a host: lower case, A-labels, an IPv6 address without its brackets.

    Every comparison of hosts and every URL that is handed on uses it. Raises ValueError.
    """
    is_bracketed = text.startswith("[") and text.endswith("]")
    name = text[1:-1] if is_bracketed else text
    try:
        # A zone (``%eth0``) means another network on each machine, and no two libraries agree
        # how a URL carries it.
        return str(ipaddress.ip_address("" if "%" in name else name))
    except ValueError:
        pass
    try:
        # Python's own codec has the rules of 2003, which turn some hosts into others.
        name = name.lower() if name.isascii() else idna.encode(name, uts46=True).decode()
    except ValueError:
        raise ValueError("names a host that IDNA 2008 cannot write in ASCII") from None
    # Names of containers may have an underscore, which no domain has.
    label = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
    if is_bracketed or len(name) > 253 or not re.fullmatch(rf"{label}(\.{label})*\.?", name):
        raise ValueError("must name a host, and a port only if it is a number")
    return name


@dataclass(frozen=True)
class _Server:
    """The parts of a URL whose host and port can be; *login* is what stands before the ``@``."""

    scheme: str
    login: str = field(repr=False)
    host: str
    port: int | None
    path: str
    query: str
    fragment: str

    @property
    def netloc(self) -> str:
        """The host and, if there is one, the port, as a URL has them."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port is None else f"{name}:{self.port}"


def _scheme(text: str, schemes: Sequence[str]) -> str:
    scheme, _, rest = text.partition("://")
    if scheme not in schemes or not rest.strip("/"):
        raise ValueError("must begin with " + " or ".join(f"{name}://" for name in schemes))
    return scheme


def _server(text: str, *schemes: str) -> _Server:
    """Split the URL of a server; raise ValueError without quoting it: it may hold a password."""
    scheme = _scheme(text, schemes)
    if any(sign.isspace() or not sign.isprintable() for sign in text):
        # Some libraries drop these signs, and others do not.
        raise ValueError("holds a space or an unprintable character")
    try:
        parts = urlsplit(text)
        name, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("cannot be read as a URL") from None
    if port == 0:
        name = ""
    login, at, _ = parts.netloc.rpartition("@")
    # ``hostname`` has lost the brackets of an IPv6 address.
    bracketed = f"[{name}]" if ":" in name else name
    return _Server(
        scheme, login + at, host(bracketed), port, parts.path, parts.query, parts.fragment
    )


def redis_url(text: str) -> str:
    """Read ``redis://[user:password@]host[:port][/number]`` or ``rediss://…``; return it whole.

    The throttle (limits, redis-py) and the broker (Celery, kombu) each read the URL by rules of
    their own: an option that one honours, another drops, and a database that is no number is an
    error to one and database 0 to another. What is returned means the same to all of them.
    """
    server = _server(text.strip(), "redis", "rediss")
    if server.query or server.fragment:
        raise ValueError("may not have options; SSL_CERT_FILE names an authority of your own")
    if not re.fullmatch(r"/?|/[0-9]{1,6}", server.path):
        raise ValueError("must end with the number of a database, as in /0")
    number = int(server.path.strip("/") or "0")
    return f"{server.scheme}://{server.login}{server.netloc}/{number}"


def broker_url(text: str) -> str:
    """Read the URL of a broker: Redis as :func:`redis_url` does, or a folder of the machine."""
    schemes = ("redis", "rediss", "filesystem")
    if _scheme(text.strip(), schemes) != "filesystem":
        return redis_url(text)
    if not text.startswith("filesystem:///"):
        raise ValueError("must name an absolute path, as in filesystem:///path")
    return text


def store_url(text: str) -> str:
    """Read ``file:///folder`` or ``s3://bucket/prefix``."""
    return _folder_or_bucket(text, "file", "s3")


def _folder_or_bucket(text: str, *schemes: str) -> str:
    scheme = _scheme(text, schemes)
    rest = text.partition("://")[2]
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError("must name an absolute path, as in file:///path")
    bucket = rest.partition("/")[0]
    if scheme == "s3" and not is_bucket_name(bucket):
        if not 3 <= len(bucket) <= 63:
            length = "short" if len(bucket) < 3 else "long"
            raise ValueError(f"names a bucket with too {length} a name: 3 to 63 characters")
        raise ValueError("does not name a bucket: lower-case letters, digits, dots and hyphens")
    return text


@dataclass(frozen=True)
class MailServer:
    """An SMTP server; *tls* is ``none``, ``starttls`` or ``implicit``."""

    host: str
    port: int
    tls: str
    user: str = field(repr=False)
    password: str = field(repr=False)


def mail_url(text: str) -> str:
    """Read the URL of an SMTP server, as :func:`mail_server` does, or of a folder."""
    if _scheme(text, ("file", "smtp", "smtps")) == "file":
        return _folder_or_bucket(text, "file")
    mail_server(text)
    return text


def mail_server(text: str) -> MailServer:
    """Read ``smtp://[user:password@]host[:port]/`` (``?tls=none``) or ``smtps://…``.

    Raises ValueError, which does not repeat it.
    """
    try:
        server = _server(text, "smtp", "smtps")
    except ValueError as exc:
        raise ValueError(f"{exc}; is the password percent-encoded?") from None
    tls = _tls_of(server.scheme, server.query)
    if server.path.strip("/") or server.fragment:
        raise ValueError("must be smtp://user:password@host:port/ or smtps://…")
    user, _, password = server.login.removesuffix("@").partition(":")
    user, password = unquote(user), unquote(password)
    if not (user + password).isascii():
        raise ValueError("must have user and password in ASCII")
    if user and tls == "none":
        raise ValueError("must not send a password without TLS: remove tls=none")
    port = server.port or {"none": 25, "starttls": 587, "implicit": 465}[tls]
    return MailServer(server.host, port, tls, user, password)


def _tls_of(scheme: str, query: str) -> str:
    """Return how TLS begins: ``none``, ``starttls`` or ``implicit``. Raises ValueError."""
    options = parse_qs(query, keep_blank_values=True)
    chosen = options.pop("tls", [])
    if options:
        raise ValueError("has an option that is not tls")
    if scheme == "smtps" and not chosen:
        return "implicit"
    if scheme == "smtp" and chosen in ([], ["starttls"], ["none"]):
        return chosen[0] if chosen else "starttls"
    raise ValueError("must be smtp:// with tls=starttls or tls=none, or smtps:// without")


def public_url(text: str) -> str:
    """Read what links begin with, and return it as browsers write it, without a slash at its end.

    A browser sends A-labels, lower case, and no port that its scheme has anyway: an origin that is
    compared with any other form is refused.
    """
    server = _server(text.strip(), "http", "https")
    if server.login or server.query or server.fragment:
        raise ValueError("may have no user, query or fragment")
    if not server.path.isascii():
        raise ValueError("may have characters outside ASCII in its host only")
    return _origin(server) + server.path.rstrip("/")


def _origin(server: _Server) -> str:
    netloc = server.netloc
    if server.port == {"http": 80, "https": 443}[server.scheme]:
        netloc = netloc.rpartition(":")[0]
    return f"{server.scheme}://{netloc}"


def is_bucket_name(text: str) -> bool:
    """Say whether *text* can be the name of an S3 bucket."""
    return re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", text) is not None


def origins(text: str) -> tuple[str, ...]:
    """Read origins, separated by commas: ``https://app.example.org``, ``*`` for any, or ``none``.

    They are returned as browsers send them (RFC 6454, section 6.2): A-labels, lower case, and no
    port that their scheme has anyway.
    """
    return tuple("*" if part == "*" else _read_origin(part.rstrip("/")) for part in _parts(text))


def _read_origin(text: str) -> str:
    try:
        server = _server(text, "http", "https")
    except ValueError:
        server = None
    if server is None or server.login or server.path or server.query or server.fragment:
        raise ValueError("holds an origin that is not scheme://host[:port]")
    return _origin(server)


def networks(text: str) -> tuple[IPNetwork, ...]:
    """Read networks and single addresses, separated by commas, or ``none``."""
    parts = _parts(text)
    try:
        return tuple(ipaddress.ip_network(part) for part in parts)
    except ValueError:
        raise ValueError("holds something that is not an address or a network") from None


def hosts(text: str) -> frozenset[str]:
    """Read names and addresses of hosts, separated by commas, or ``none``.

    Each is returned in the form of :func:`host`, without a dot at its end.
    """
    try:
        names = [host(part) for part in _parts(text)]
    except ValueError:
        raise ValueError("holds something that is not a host's name or address") from None
    return frozenset(name.removesuffix(".") for name in names)


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if text and not parts:
        raise ValueError(f"names nothing: say {NONE} if that is meant")
    return [] if parts == [NONE] else parts
