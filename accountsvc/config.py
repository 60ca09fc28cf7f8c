"""Every setting and its default, with the reason where it is not plain.

Values come from the environment, and from a ``.env`` file in the working directory for what the
environment does not set. A wrong value raises :class:`ConfigError`, whose text is one line: the
setting's name, what is wrong with it, and an example.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from . import readers


class ConfigError(Exception):
    """A setting is missing or wrong; the message is one line for whoever starts the process."""


def _setting(
    name: str,
    default: str | None,
    read: Callable[[str], object],
    example: str,
    meaning: str,
    *,
    secret: bool = False,
) -> Any:
    # Leave secrets out of ``repr``, which may end up in a traceback or a log line.
    return field(
        repr=not secret,
        metadata={
            "name": name,
            "default": default,
            "read": read,
            "example": example,
            "meaning": meaning,
        },
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one process, validated; durations are ``timedelta``, secrets not in ``repr``.

    A default with a name in braces is derived from that setting.
    """

    app_env: str = _setting(
        "APP_ENV",
        "development",
        readers.one_of("development", "production"),
        "production",
        "Production makes no keys, and refuses defaults with which it would only seem to work.",
    )
    instance_path: Path = _setting(
        "INSTANCE_PATH",
        "./instance",
        readers.path,
        "/var/lib/accountsvc",
        "The folder for keys, database, avatars, mails and ledger where no server is named.",
    )
    secret_key: str = _setting(
        "SECRET_KEY",
        None,
        readers.secret,
        "the output of `openssl rand -hex 32`",
        "Signs tokens and mailed links; a new one ends every session.",
        secret=True,
    )
    vault_keys: tuple[bytes, ...] = _setting(
        "VAULT_KEYS",
        None,
        readers.wrapping_keys,
        "the output of `openssl rand -base64 32 | tr +/ -_`",
        "Wrap the keys of the saved passwords: the first wraps, each opens.",
        secret=True,
    )
    database_url: str = _setting(
        "DATABASE_URL",
        "sqlite:///{INSTANCE_PATH}/accountsvc.db",
        readers.database_url,
        "postgresql://accountsvc@db/accountsvc",
        "The database: PostgreSQL, or a SQLite file.",
        secret=True,
    )
    allow_sqlite: bool = _setting(
        "ALLOW_SQLITE", "off", readers.switch, "1", "Lets production run on SQLite."
    )
    redis_url: str = _setting(
        "REDIS_URL",
        "",
        readers.url("redis", "rediss"),
        "redis://redis:6379/0",
        "Where throttles count, and the broker; without it each process counts for itself.",
        secret=True,
    )
    celery_broker_url: str = _setting(
        "CELERY_BROKER_URL",
        "filesystem://{INSTANCE_PATH}/broker",
        readers.url("redis", "rediss", "filesystem"),
        "redis://redis:6379/0",
        "What carries the ticks from beat to the workers: REDIS_URL if that is set.",
        secret=True,
    )
    storage_url: str = _setting(
        "STORAGE_URL",
        "file://{INSTANCE_PATH}/media",
        readers.url("file", "s3"),
        "s3://bucket/avatars",
        "Where avatar files lie.",
        secret=True,
    )
    mail_url: str = _setting(
        "MAIL_URL",
        "file://{INSTANCE_PATH}/mail",
        readers.url("file", "smtp", "smtps"),
        "smtp://user:pass@mail:587/?tls=starttls",
        "The mail server, or a folder into which mails are written.",
        secret=True,
    )
    mail_from: str = _setting(
        "MAIL_FROM",
        "Accounts <accounts@localhost>",
        readers.sender,
        "Accounts <accounts@example.org>",
        "The sender of every mail.",
    )
    ledger_url: str = _setting(
        "LEDGER_URL",
        "file://{INSTANCE_PATH}/ledger",
        readers.url("file", "s3"),
        "s3://bucket/ledger",
        "Where each purge leaves a line; keep it outside the database's backups.",
        secret=True,
    )
    # A month is the legal limit (GDPR art. 12(3)); a grace period of 30 days would leave no slack
    # for an outage.
    grace_period: timedelta = _setting(
        "GRACE_PERIOD",
        "14d",
        readers.duration,
        "14d",
        "How long a person can come back before the purge.",
    )
    max_grace: timedelta = _setting(
        "MAX_GRACE",
        "90d",
        readers.positive_duration,
        "90d",
        "The longest grace period that staff may give.",
    )
    # An access token lives for a day, because the existing web app never refreshes one: with 15
    # minutes its users would be signed out while they type.
    access_token_lifetime: timedelta = _setting(
        "ACCESS_TOKEN_LIFETIME",
        "24h",
        readers.positive_duration,
        "15m",
        "How long an access token opens.",
    )
    refresh_token_lifetime: timedelta = _setting(
        "REFRESH_TOKEN_LIFETIME",
        "30d",
        readers.positive_duration,
        "30d",
        "How long a session can go on.",
    )
    deletion_confirmation: str = _setting(
        "DELETION_CONFIRMATION",
        "fresh",
        readers.one_of("fresh", "password", "none"),
        "fresh",
        "What confirms a DELETE: a fresh token or the password, the password, or nothing.",
    )
    fresh_token_minutes: int = _setting(
        "FRESH_TOKEN_MINUTES",
        "1440",
        readers.whole(1, 525_600),
        "15",
        "How long after the sign-in a token is fresh.",
    )
    hold_release_delay: timedelta = _setting(
        "HOLD_RELEASE_DELAY",
        "24h",
        readers.duration,
        "24h",
        "How long an account stays at least after its last legal hold has ended.",
    )
    reminders: tuple[timedelta, ...] = _setting(
        "REMINDERS",
        "7d,1d",
        readers.durations,
        "7d,1d",
        "How long before the purge people are reminded.",
    )
    sweep_interval: timedelta = _setting(
        "SWEEP_INTERVAL",
        "60s",
        readers.positive_duration,
        "60s",
        "How often is looked for what is due.",
    )
    purge_batch_size: int = _setting(
        "PURGE_BATCH_SIZE",
        "500",
        readers.whole(1, 10_000),
        "500",
        "How many accounts one transaction purges at most.",
    )
    purge_max_per_sweep: int = _setting(
        "PURGE_MAX_PER_SWEEP",
        "0",
        readers.whole(0, 999_999_999),
        "100000",
        "How many accounts one sweep purges at most; 0 is no limit.",
    )
    purge_max_attempts: int = _setting(
        "PURGE_MAX_ATTEMPTS",
        "8",
        readers.whole(1, 1000),
        "8",
        "After how many failures an account is stuck.",
    )
    cors_origins: tuple[str, ...] = _setting(
        "CORS_ORIGINS",
        "http://localhost:3000",
        readers.origins,
        "https://app.example.org",
        "The origins of the web apps that may call the API, separated by commas.",
    )
    # PORT stands before PUBLIC_URL, which is derived from it: with a wrong port, the line that
    # refuses would otherwise name a setting that nobody has set.
    port: int = _setting("PORT", "8000", readers.whole(1, 65_535), "8000", "Where the web listens.")
    web_concurrency: int = _setting(
        "WEB_CONCURRENCY",
        "2",
        readers.whole(1, 1000),
        "2",
        "How many web processes there are, which share the cores; without Redis always one.",
    )
    public_url: str = _setting(
        "PUBLIC_URL",
        "http://localhost:{PORT}",
        readers.url("http", "https"),
        "https://accounts.example.org",
        "What links in mails begin with.",
    )
    trusted_proxies: tuple[readers.IPNetwork, ...] = _setting(
        "TRUSTED_PROXIES",
        "",
        readers.networks,
        "10.0.0.0/8",
        "The proxies whose word about the client's address counts.",
    )
    rate_limits: bool = _setting(
        "RATE_LIMITS", "on", readers.switch, "on", "Whether guesses are throttled."
    )
    # ``normal`` is argon2id's recommended choice for constrained memory (RFC 9106, section 4);
    # ``cheap`` is for tests, which would otherwise spend most of their time on hashes.
    password_hash_cost: str = _setting(
        "PASSWORD_HASH_COST",
        "normal",
        readers.one_of("normal", "cheap"),
        "normal",
        "What a guess at a password costs; cheap is for tests.",
    )
    log_level: str = _setting(
        "LOG_LEVEL",
        "INFO",
        readers.one_of("DEBUG", "INFO", "WARNING", "ERROR"),
        "INFO",
        "From which level on lines are logged.",
    )

    @property
    def is_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")

    @property
    def web_processes(self) -> int:
        # Without Redis throttles count in the process; with two processes a guesser would have
        # twice the tries.
        return self.web_concurrency if self.redis_url else 1


def wrong(name: str, why: object) -> ConfigError:
    """Make the line that refuses the setting *name*; *why* must not repeat a secret."""
    example = next(
        spec.metadata["example"] for spec in fields(Settings) if spec.metadata["name"] == name
    )
    return ConfigError(f"{name} {why}; for example: {example}")


@dataclass(frozen=True)
class SourcedText:
    """The text of a setting, ``None`` if there is none, and its source in words."""

    text: str | None
    source: str


class Sources:
    """The places from which the settings of a process come.

    *environ* wins over *dotenv*; an empty text counts as none.
    """

    def __init__(self, environ: Mapping[str, str], dotenv: Mapping[str, str]) -> None:
        self.environ = environ
        self.dotenv = dotenv
        self.given: Mapping[str, str] = {**dotenv, **environ}

    @classmethod
    def of_this_process(cls) -> Sources:
        """Return the process environment and the ``.env`` file of the working directory.

        Raises ConfigError if that file cannot be read.
        """
        try:
            values = dotenv_values(".env")
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            raise ConfigError(f"the file .env cannot be read: {reason}") from None
        return cls(os.environ, {name: text for name, text in values.items() if text is not None})

    @property
    def is_production(self) -> bool:
        return self.given.get("APP_ENV") == "production"

    def find(self, name: str, default: str | None) -> SourcedText:
        """Return the text of the setting *name*; it is not checked.

        Raises ConfigError if the instance folder, where it would be, cannot be named or read.
        """
        if self.environ.get(name):
            return SourcedText(self.environ[name], "environment")
        if self.given.get(name):
            return SourcedText(self.given[name], ".env")
        if default is None:
            key = None if self.is_production else _read_key(_instance(self.given), name)
            return SourcedText(key, "instance folder" if key else "nowhere")
        if name == "CELERY_BROKER_URL" and self.given.get("REDIS_URL"):
            return SourcedText(self.given["REDIS_URL"], "derived")
        if "{" not in default:
            return SourcedText(default, "default")
        # Look for the folder only where it is needed: a wrong one must not hide the other settings.
        folder = _instance(self.given) if "{INSTANCE_PATH}" in default else None
        port = (self.given.get("PORT") or "8000").strip()
        return SourcedText(default.format(INSTANCE_PATH=folder, PORT=port), "derived")


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check every setting; write nothing.

    *environ* replaces the process environment and the ``.env`` file, for tests. Keys that are not
    set are read from the instance folder, where ``accountsvc prepare`` puts them.

    Raises :class:`ConfigError` with one line for the first wrong setting.
    """
    sources = Sources.of_this_process() if environ is None else Sources(environ, {})
    values = {spec.name: _read(spec, sources) for spec in fields(Settings)}
    settings = Settings(**values)  # type: ignore[arg-type]
    _check_together(settings)
    if sources.is_production:
        _check_given(sources.given)
    return settings


def _read(spec: Field[Any], sources: Sources) -> object:
    name, example = spec.metadata["name"], spec.metadata["example"]
    text = sources.find(name, spec.metadata["default"]).text
    if text is None:
        remedy = "run `python -m accountsvc prepare`"
        if sources.is_production:
            remedy = f"for example {example}"
        raise ConfigError(f"{name} is not set: {remedy}")
    if text == "" and name == "REDIS_URL":
        return ""
    try:
        return spec.metadata["read"](text)
    except ValueError as exc:
        # The value of a secret is left out of the line, which ends up in logs.
        shown = f" ({text!r})" if spec.repr else ""
        raise wrong(name, f"{exc}{shown}") from None


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
        return readers.path(text)
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

    Idempotent and safe beside itself: each file is created exclusively with mode 600, so that an
    existing key is never replaced. Returns the names of the keys that this call made; in production
    it makes none.
    """
    if environ.get("APP_ENV") == "production":
        return []
    instance = _instance(environ)
    instance.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = []
    for name in ("SECRET_KEY", "VAULT_KEYS"):
        if environ.get(name) or _read_key(instance, name):
            continue
        key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        # Write the key aside and link it into place, so that a process that dies here leaves no
        # half-written key behind, which every later start would refuse.
        draft = instance / f".{name.lower()}.{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(key + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, _key_file(instance, name))
            names.append(name)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return names
