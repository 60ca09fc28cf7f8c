"""What production demands of settings that are good values by themselves.

Nothing that it sends leaves the machine in clear: TLS to whatever is asked over a network, with a
certificate that is checked (ASVS 5.0, 12.3.1 and 12.3.2). Exempt are the hosts that PRIVATE_NETWORK
names, and what never leaves the machine: a unix socket, a loopback address, ``localhost``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from . import urls

# The name of a setting, what is wrong with it, and an example if the setting's own does not do.
Fault = tuple[str, str, str | None]

_DIFFERENT_BYTES = 16
# Under each of these defaults the service would run, and tell nobody anything, or the wrong thing.
_GIVEN = {
    "REDIS_URL": "or each process counts tries for itself",
    "MAIL_URL": "or people are told nothing",
    "MAIL_FROM": "or its mails are refused",
    "PUBLIC_URL": "since links in mails begin with it",
    "CORS_ORIGINS": "or no web app may call it; `none` if none shall",
    "TRUSTED_PROXIES": "or all clients count as one address; `none` if there is no proxy",
}
# boto3 takes the first of these that is set; without one it speaks TLS to Amazon.
_S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def faults(
    values: Mapping[str, Any], given: Mapping[str, str], environ: Mapping[str, str]
) -> Iterator[Fault]:
    """Say what production refuses of *values*, the settings by name that could be read.

    *given* are the texts that somebody has set; *environ* is what libraries read beside us. A
    setting has one fault, which says all that is wrong with it.
    """
    for name, why in _GIVEN.items():
        if name not in given:
            yield name, f"is not set, which production needs, {why}", None
    # A default that production refuses is one fault, and its value not another one.
    known = {name: value for name, value in values.items() if name in given or name not in _GIVEN}
    found: dict[str, Fault] = {}
    for name, why, example in (
        *_too_simple(known),
        *_open_to_others(known),
        *_believing_everybody(known),
        *_in_clear(known, given, environ),
    ):
        earlier = f"{found[name][1]}, and " if name in found else ""
        found[name] = (name, earlier + why, example)
    yield from found.values()


def is_private(host: str, private: Collection[str]) -> bool:
    """Say whether what is sent to *host* is seen by nobody else.

    A path, or a name that begins with ``@``, is a unix socket, as libpq has them.
    """
    if host.startswith(("/", "@")):
        return True
    try:
        name = urls.host(f"[{host}]" if ":" in host else host).removesuffix(".")
    except ValueError:
        return False
    if name == "localhost" or name in private:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or str(address) in private


def different_bytes(secret: str | bytes) -> int:
    """Count the different bytes of *secret*; of text in hexadecimal, those that it stands for.

    32 random bytes have 30 different ones, but as hexadecimal digits often fewer than 16.
    """
    if isinstance(secret, bytes):
        return len(set(secret))
    try:
        decoded = bytes.fromhex(secret)
    except ValueError:
        decoded = b""
    return max(len(set(secret.encode())), len(set(decoded)))


def _too_simple(values: Mapping[str, Any]) -> Iterator[Fault]:
    why = f"fewer than {_DIFFERENT_BYTES} different bytes, so that it can be guessed"
    if "SECRET_KEY" in values and different_bytes(values["SECRET_KEY"]) < _DIFFERENT_BYTES:
        yield "SECRET_KEY", f"has {why}", None
    if any(different_bytes(key) < _DIFFERENT_BYTES for key in values.get("VAULT_KEYS", ())):
        yield "VAULT_KEYS", f"holds a key with {why}", None
    signing = values.get("LEDGER_SIGNING_KEY")
    if signing is not None and different_bytes(signing) < _DIFFERENT_BYTES:
        yield "LEDGER_SIGNING_KEY", f"has {why}", None
    if values.get("OPS_TOKEN") and different_bytes(values["OPS_TOKEN"]) < _DIFFERENT_BYTES:
        yield "OPS_TOKEN", f"has {why}", None
    if not values.get("RATE_LIMITS", True):
        yield "RATE_LIMITS", "may not be off in production", "RATE_LIMITS=on"
    if not values.get("PURGE_BRAKE", True):
        yield "PURGE_BRAKE", "may not be off in production", "PURGE_BRAKE=on"
    if values.get("PASSWORD_HASH_COST", "normal") != "normal":
        yield "PASSWORD_HASH_COST", "may not be cheap in production", None


def _open_to_others(values: Mapping[str, Any]) -> Iterator[Fault]:
    origins = values.get("CORS_ORIGINS", ())
    if "*" in origins:
        yield "CORS_ORIGINS", "may not be * in production", None
    if any(origin != "*" and is_private(urlsplit(origin).hostname or "", ()) for origin in origins):
        # Whatever runs on that port of anybody's machine could call in the name of that person.
        yield "CORS_ORIGINS", "may not hold an origin on this machine in production", None
    public = urlsplit(values.get("PUBLIC_URL", "https://"))
    if public.scheme != "https":
        yield "PUBLIC_URL", "must begin with https:// in production", None
    if public.path:
        # Cookies named __Host- belong to a whole host, and so do the addresses of the pages.
        yield "PUBLIC_URL", "may have no path in production", None


def _believing_everybody(values: Mapping[str, Any]) -> Iterator[Fault]:
    """Refuse proxies that are everybody: a client would be one, and could name any address.

    Together the networks of the setting count, so that two halves are no way around.
    """
    trusted = values.get("TRUSTED_PROXIES", ())
    for version, bits in ((4, 32), (6, 128)):
        networks = [network for network in trusted if network.version == version]
        count = sum(network.num_addresses for network in ipaddress.collapse_addresses(networks))
        # Nobody's proxies have a sixteenth of all addresses; fc00::/7, which is private, has less.
        if count >= 2 ** (bits - 4):
            why = f"holds so many addresses of IPv{version} that a client could name its own"
            yield "TRUSTED_PROXIES", why, "10.0.0.0/8"


def _in_clear(
    values: Mapping[str, Any], given: Mapping[str, str], environ: Mapping[str, str]
) -> Iterator[Fault]:
    private = values.get("PRIVATE_NETWORK", frozenset())
    database = values.get("DATABASE_URL", "sqlite")
    if database.startswith("sqlite"):
        if "DATABASE_URL" in values and not values.get("ALLOW_SQLITE", True):
            why = "names SQLite, which production refuses without ALLOW_SQLITE=1"
            yield "DATABASE_URL", why, None
    elif not _is_safe(server := urls.database_server(database), private, environ):
        # ``require`` encrypts, but libpq checks no certificate then: whoever gets in between
        # answers in the server's place and reads along.
        remedy = _remedy(server.hosts, private)
        yield "DATABASE_URL", f"must have sslmode=verify-full (or verify-ca), {remedy}", None
    for name in ("REDIS_URL", "CELERY_BROKER_URL"):
        # A broker that nobody has named is REDIS_URL, which has a line of its own.
        url = values.get(name, "") if name in given else ""
        if url.startswith("redis:") and not is_private(urlsplit(url).hostname or "", private):
            remedy = _remedy([urlsplit(url).hostname or ""], private)
            yield name, f"must begin with rediss://, {remedy}", None
    mail = values.get("MAIL_URL", "file:")
    if not mail.startswith("file:"):
        relay = urls.mail_server(mail)
        if relay.tls == "none" and not is_private(relay.host, private):
            remedy = _remedy([relay.host], private)
            yield "MAIL_URL", f"must speak TLS, without tls=none, {remedy}", None
    yield from _s3_in_clear(given, private, environ)


def _remedy(hosts: Collection[str], private: Collection[str]) -> str:
    """Say how to exempt *hosts* from TLS, by the line to paste where they can be named there.

    The line holds what *private* has too, or whoever pastes it would lose that.
    """
    try:
        named = {_unmapped(name) for name in urls.hosts(",".join(hosts))}
    except ValueError:
        named = set()
    named = {name for name in named if not is_private(name, private)}
    if not named:
        return "or its host be named in PRIVATE_NETWORK"
    return f"or name its host: PRIVATE_NETWORK={','.join([*sorted(private), *sorted(named)])}"


def _unmapped(name: str) -> str:
    try:
        mapped = getattr(ipaddress.ip_address(name), "ipv4_mapped", None)
    except ValueError:
        mapped = None
    return str(mapped or name)


def _is_safe(
    server: urls.DatabaseServer, private: Collection[str], environ: Mapping[str, str]
) -> bool:
    # What the URL leaves open libpq takes from its own variables, or else a unix socket.
    if (server.sslmode or environ.get("PGSSLMODE")) in {"verify-ca", "verify-full"}:
        return True
    # The addresses of PGHOSTADDR are asked in place of the hosts that the URL names.
    hosts = [*server.hosts, *environ.get("PGHOSTADDR", "").split(",")]
    if not server.hosts:
        hosts += environ.get("PGHOST", "").split(",")
    is_known = bool(server.hosts) or not (server.service or environ.get("PGSERVICE"))
    return is_known and all(is_private(host, private) for host in hosts if host)


def _s3_in_clear(
    given: Mapping[str, str], private: Collection[str], environ: Mapping[str, str]
) -> Iterator[Fault]:
    # A URL of S3 that could not be read is meant all the same: its fault must not hide this one.
    if not any(given.get(name, "").startswith("s3:") for name in ("STORAGE_URL", "LEDGER_URL")):
        return
    for name in _S3_ENDPOINTS:
        endpoint = environ.get(name)
        if endpoint:
            try:
                parts = urlsplit(endpoint)
                host, is_https = parts.hostname or "", parts.scheme == "https"
            except ValueError:
                host, is_https = "", False
            if not is_https and not is_private(host, private):
                why = f"must begin with https://, {_remedy([host], private)}"
                yield name, why, "https://s3.example.org"
            return
