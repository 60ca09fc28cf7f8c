"""Every setting and its default, with its reason where that is not plain; nonsense is refused.

Values come from the environment, and from a ``.env`` file in the working directory for what the
environment does not set. A wrong value raises :class:`ConfigError`, whose text is one line: the
setting's name, what is wrong with it, and an example.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from email.headerregistry import Address
from email.policy import SMTP
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# A century: far beyond any grace period, and far from the largest date that Python can hold.
_LONGEST = timedelta(days=36525)


class ConfigError(Exception):
    """A setting is missing or wrong; the message is one line for whoever starts the process."""


def duration(text: str) -> timedelta:
    """Read ``90s``, ``36h``, ``14d`` (also ``m``, ``w``); raise ValueError with the reason."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text.strip().lower())
    if match is None:
        raise ValueError("is not a duration")
    unit, number = timedelta(**{_UNITS[match[2]]: 1}), int(match[1])
    # The limit is divided by the unit, since the product may be more than a timedelta can hold.
    if number > _LONGEST // unit:
        raise ValueError("is longer than a century")
    return number * unit


def _positive_duration(text: str) -> timedelta:
    span = duration(text)
    if not span:
        raise ValueError("must be longer than zero")
    return span


def _durations(text: str) -> tuple[timedelta, ...]:
    spans = {_positive_duration(part) for part in text.split(",") if part.strip()}
    return tuple(sorted(spans, reverse=True))


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
            raise ValueError("is not a whole number")
        number = int(text)
        if not least <= number <= most:
            raise ValueError(f"must be between {least} and {most}")
        return number

    return read


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return text

    return read


def _switch(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in {"1", "on", "true", "yes"}:
        return True
    if lowered in {"0", "off", "false", "no", ""}:
        return False
    raise ValueError("must be on or off")


def _secret(text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8") from None
    if size < 32:
        raise ValueError("must be at least 32 bytes long")
    return text


def _wrapping_keys(text: str) -> tuple[bytes, ...]:
    keys = []
    for part in text.split(","):
        try:
            key = base64.b64decode(part.strip(), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("holds a key that is not url-safe base64") from None
        if len(key) != 32:
            raise ValueError("holds a key that is not 32 bytes long")
        keys.append(key)
    return tuple(keys)


def _database_url(text: str) -> str:
    if not re.match(r"(sqlite|postgresql(\+psycopg)?)://", text):
        raise ValueError("must begin with postgresql:// or sqlite:///")
    try:
        database = make_url(text).database or ""
    except (ArgumentError, ValueError):
        raise ValueError("cannot be read as a URL") from None
    if text.startswith("sqlite") and (not database or ":memory:" in database):
        # Each process would see an empty database of its own: web, worker and CLI are three.
        raise ValueError("must name a file, since several processes share it")
    return text


def _url(*schemes: str) -> Callable[[str], str]:
    """Make a reader of URLs: ``file:`` ones name an absolute path, all others a host."""

    def read(text: str) -> str:
        scheme, _, rest = text.partition("://")
        if scheme not in schemes or not rest.strip("/"):
            raise ValueError("must begin with " + " or ".join(f"{name}://" for name in schemes))
        if scheme in {"file", "filesystem"}:
            if not rest.startswith("/"):
                raise ValueError(f"must name an absolute path, as in {scheme}:///path")
            return text
        try:
            parts = urlsplit(text)
            host = parts.hostname if parts.port != 0 else None
        except ValueError:
            # urlsplit's own reason would quote a part of the URL, which may be a password.
            raise ValueError("cannot be read as a URL") from None
        if not host:
            raise ValueError("must name a host, and a port only if it is a number")
        if scheme == "s3" and not is_bucket_name(parts.netloc):
            raise ValueError("does not name a bucket")
        return text

    return read


def is_bucket_name(text: str) -> bool:
    """Say whether *text* can be the name of an S3 bucket."""
    return re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", text) is not None


def read_sender(text: str) -> Address:
    """Read ``Name <mailbox@domain>`` or ``mailbox@domain``; raise ValueError for anything else."""
    if not text.isascii() or not text.isprintable():
        raise ValueError("must be one line of ASCII")
    try:
        header: Any = SMTP.header_factory("From", text)
        (address,) = header.addresses
    except (ValueError, LookupError):
        address = None
    if not isinstance(address, Address) or header.defects or not is_plain_address(address):
        raise ValueError("must be one mail address such as Accounts <accounts@example.org>")
    return address


def is_plain_address(address: Address) -> bool:
    """Say whether *address* needs no quoting.

    Then nothing in it means anything to a header or to a command of SMTP.
    """
    return (
        re.fullmatch(r"""[^\s<>()\[\]\\,;:"@]+""", address.username) is not None
        and re.fullmatch(r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", address.domain) is not None
        and address.username.isprintable()
        # Refuse encoded words (RFC 2047): one is decoded on its way into a header, and the line
        # breaks in it would add headers of a stranger's choice.
        and "=?" not in address.username
        and address.addr_spec == f"{address.username}@{address.domain}"
    )


def _sender(text: str) -> str:
    try:
        read_sender(text)
    except ValueError:
        raise ValueError("is not one mail address in ASCII") from None
    return text


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise ValueError("holds an origin that is not scheme://host[:port]")
    return origins


def _networks(
    text: str,
) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("holds something that is not an address or a network") from None


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().resolve()
    except (RuntimeError, OSError):
        raise ValueError("cannot be resolved to a folder") from None


def _setting(
    name: str,
    default: str | None,
    read: Callable[[str], object],
    example: str,
    *,
    secret: bool = False,
) -> Any:
    # Secrets are left out of ``repr``, which may end up in a traceback or a log line.
    return field(
        repr=not secret,
        metadata={"name": name, "default": default, "read": read, "example": example},
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one process, validated. Secrets stay out of ``repr``."""

    app_env: str = _setting(
        "APP_ENV", "development", _one_of("development", "production"), "production"
    )
    instance_path: Path = _setting("INSTANCE_PATH", "./instance", _path, "/var/lib/accountsvc")
    secret_key: str = _setting(
        "SECRET_KEY", None, _secret, "the output of `openssl rand -hex 32`", secret=True
    )
    vault_keys: tuple[bytes, ...] = _setting(
        "VAULT_KEYS",
        None,
        _wrapping_keys,
        "the output of `openssl rand -base64 32 | tr +/ -_`",
        secret=True,
    )
    database_url: str = _setting(
        "DATABASE_URL",
        "",
        _database_url,
        "postgresql://accountsvc@db/accountsvc",
        secret=True,
    )
    allow_sqlite: bool = _setting("ALLOW_SQLITE", "off", _switch, "1")
    redis_url: str = _setting(
        "REDIS_URL", "", _url("redis", "rediss"), "redis://redis:6379/0", secret=True
    )
    celery_broker_url: str = _setting(
        "CELERY_BROKER_URL",
        "",
        _url("redis", "rediss", "filesystem"),
        "redis://redis:6379/0",
        secret=True,
    )
    storage_url: str = _setting(
        "STORAGE_URL", "", _url("file", "s3"), "s3://bucket/avatars", secret=True
    )
    mail_url: str = _setting(
        "MAIL_URL",
        "",
        _url("file", "smtp", "smtps"),
        "smtp://user:pass@mail:587/?tls=starttls",
        secret=True,
    )
    mail_from: str = _setting(
        "MAIL_FROM",
        "Accounts <accounts@localhost>",
        _sender,
        "Accounts <accounts@example.org>",
    )
    ledger_url: str = _setting(
        "LEDGER_URL", "", _url("file", "s3"), "s3://bucket/ledger", secret=True
    )
    # A month is the legal limit (GDPR art. 12(3)); 30 days of grace would leave no slack for an
    # outage.
    grace_period: timedelta = _setting("GRACE_PERIOD", "14d", duration, "14d")
    max_grace: timedelta = _setting("MAX_GRACE", "90d", _positive_duration, "90d")
    # An access token lives for a day, because the existing web app never refreshes one: with 15
    # minutes its users would be signed out while they type.
    access_token_lifetime: timedelta = _setting(
        "ACCESS_TOKEN_LIFETIME", "24h", _positive_duration, "15m"
    )
    refresh_token_lifetime: timedelta = _setting(
        "REFRESH_TOKEN_LIFETIME", "30d", _positive_duration, "30d"
    )
    deletion_confirmation: str = _setting(
        "DELETION_CONFIRMATION", "fresh", _one_of("fresh", "password", "none"), "fresh"
    )
    fresh_token_minutes: int = _setting("FRESH_TOKEN_MINUTES", "1440", _whole(1, 525_600), "15")
    hold_release_delay: timedelta = _setting("HOLD_RELEASE_DELAY", "24h", duration, "24h")
    reminders: tuple[timedelta, ...] = _setting("REMINDERS", "7d,1d", _durations, "7d,1d")
    sweep_interval: timedelta = _setting("SWEEP_INTERVAL", "60s", _positive_duration, "60s")
    purge_batch_size: int = _setting("PURGE_BATCH_SIZE", "500", _whole(1, 10_000), "500")
    purge_max_per_sweep: int = _setting(
        "PURGE_MAX_PER_SWEEP", "0", _whole(0, 999_999_999), "100000"
    )
    purge_max_attempts: int = _setting("PURGE_MAX_ATTEMPTS", "8", _whole(1, 1000), "8")
    cors_origins: tuple[str, ...] = _setting(
        "CORS_ORIGINS", "http://localhost:3000", _origins, "https://app.example.org"
    )
    # PORT stands before PUBLIC_URL, which is derived from it: with a wrong port, the line that
    # refuses would otherwise name a setting that nobody has set.
    port: int = _setting("PORT", "8000", _whole(1, 65_535), "8000")
    public_url: str = _setting(
        "PUBLIC_URL", "", _url("http", "https"), "https://accounts.example.org"
    )
    trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = _setting(
        "TRUSTED_PROXIES", "", _networks, "10.0.0.0/8"
    )
    rate_limits: bool = _setting("RATE_LIMITS", "on", _switch, "on")
    # ``normal`` is argon2id's recommended choice for constrained memory (RFC 9106, section 4);
    # ``cheap`` is for tests, which would otherwise spend most of their time in it.
    password_hash_cost: str = _setting(
        "PASSWORD_HASH_COST", "normal", _one_of("normal", "cheap"), "normal"
    )
    log_level: str = _setting(
        "LOG_LEVEL", "INFO", _one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO"
    )

    @property
    def is_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")


def wrong(name: str, why: object) -> ConfigError:
    """Make the line that refuses the setting *name*; *why* must not repeat a secret."""
    example = next(
        spec.metadata["example"] for spec in fields(Settings) if spec.metadata["name"] == name
    )
    return ConfigError(f"{name} {why}; for example: {example}")


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check every setting; write nothing.

    *environ* replaces the process environment and the ``.env`` file, for tests. Keys that are not
    set are read from the instance folder, where ``python -m accountsvc prepare`` puts them.

    Raises :class:`ConfigError` with one line for the first wrong setting.
    """
    if environ is None:
        given = {name: value for name, value in dotenv_values(".env").items() if value is not None}
        environ = {**given, **os.environ}
    instance = _instance(environ)
    production = environ.get("APP_ENV") == "production"
    derived = {
        "DATABASE_URL": f"sqlite:///{instance}/accountsvc.db",
        "STORAGE_URL": f"file://{instance}/media",
        "MAIL_URL": f"file://{instance}/mail",
        "LEDGER_URL": f"file://{instance}/ledger",
        "CELERY_BROKER_URL": environ.get("REDIS_URL") or f"filesystem://{instance}/broker",
        "PUBLIC_URL": f"http://localhost:{environ.get('PORT') or '8000'}",
    }
    values: dict[str, object] = {}
    for spec in fields(Settings):
        name, example = spec.metadata["name"], spec.metadata["example"]
        text = environ.get(name)
        if not text:
            text = derived.get(name, spec.metadata["default"])
        if text is None:
            text = None if production else _read_key(instance, name)
            if text is None:
                fix = (
                    f"for example {example}" if production else "run `python -m accountsvc prepare`"
                )
                raise ConfigError(f"{name} is not set: {fix}")
        if text == "" and name == "REDIS_URL":
            values[spec.name] = ""
            continue
        try:
            values[spec.name] = spec.metadata["read"](text)
        except ValueError as exc:
            # The value of a secret is left out of the line, which ends up in logs.
            shown = f" ({text!r})" if spec.repr else ""
            raise wrong(name, f"{exc}{shown}") from None
    settings = Settings(**values)  # type: ignore[arg-type]
    _check_together(settings)
    if production:
        _check_given(environ)
    return settings


def _check_together(settings: Settings) -> None:
    if settings.grace_period > settings.max_grace:
        raise ConfigError(
            "GRACE_PERIOD is longer than MAX_GRACE; for example: GRACE_PERIOD=14d MAX_GRACE=90d"
        )
    if settings.app_env != "production":
        return
    if settings.is_sqlite and not settings.allow_sqlite:
        raise ConfigError(
            "DATABASE_URL names SQLite, which production refuses without ALLOW_SQLITE=1; "
            "for example: postgresql://accountsvc@db/accountsvc"
        )
    if not settings.redis_url:
        raise ConfigError(
            "REDIS_URL is not set, which production needs; for example: redis://redis:6379/0"
        )
    if "*" in settings.cors_origins:
        raise ConfigError(
            "CORS_ORIGINS may not be * in production; for example: https://app.example.org"
        )
    if not settings.rate_limits:
        raise ConfigError("RATE_LIMITS may not be off in production; for example: RATE_LIMITS=on")
    if settings.password_hash_cost != "normal":
        raise ConfigError("PASSWORD_HASH_COST may not be cheap in production; for example: normal")


def _check_given(environ: Mapping[str, str]) -> None:
    """Refuse, in production, defaults with which the service would run and tell nobody anything."""
    for name, why, example in (
        ("MAIL_FROM", "or its mails are refused", "Accounts <accounts@example.org>"),
        ("MAIL_URL", "or people are told nothing", "smtp://user:pass@mail:587/?tls=starttls"),
        ("PUBLIC_URL", "since links in mails begin with it", "https://accounts.example.org"),
    ):
        if not environ.get(name):
            raise ConfigError(
                f"{name} is not set, which production needs, {why}; for example: {example}"
            )


def _instance(environ: Mapping[str, str]) -> Path:
    text = environ.get("INSTANCE_PATH") or "./instance"
    try:
        return _path(text)
    except ValueError as exc:
        raise wrong("INSTANCE_PATH", f"{exc} ({text!r})") from None


def _key_file(instance: Path, name: str) -> Path:
    return instance / name.lower()


def _read_key(instance: Path, name: str) -> str | None:
    try:
        return _key_file(instance, name).read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigError(f"{name} cannot be read from the instance folder: {reason}") from None


def make_keys(environ: Mapping[str, str]) -> list[str]:
    """Make the keys that development needs and that neither the environment nor the folder has.

    Idempotent and safe beside itself: each file is created exclusively with mode 600, so an
    existing key is never replaced. Returns the names that were made. In production nothing is made.
    """
    if environ.get("APP_ENV") == "production":
        return []
    instance = _instance(environ)
    instance.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = []
    for name in ("SECRET_KEY", "VAULT_KEYS"):
        if environ.get(name) or _read_key(instance, name):
            continue
        key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        # The key is written aside and linked into place, so that a process that dies here leaves no
        # half-written key behind, which every later start would refuse.
        draft = instance / f".{name.lower()}.{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(key + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, _key_file(instance, name))
            made.append(name)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return made
