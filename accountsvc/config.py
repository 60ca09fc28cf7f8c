"""Every setting and its default, with the reason where it is not plain.

Values come from the environment, and from a ``.env`` file in the working directory for what the
environment does not set. Wrong values raise :class:`ConfigError`, with one line for each: the
setting's name, what is wrong with it, and an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from . import production, readers, spelling, urls
from .sources import INSTANCE_EXAMPLE, ConfigError, Faults, Sources, may_be_shown, wrong_line

__all__ = ["ConfigError", "Settings", "load_settings", "nearly_settings"]


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
        INSTANCE_EXAMPLE,
        "The folder for keys, database, avatars, mails and ledger where no server is named.",
    )
    secret_key: str = _setting(
        "SECRET_KEY",
        None,
        readers.secret,
        "the output of `openssl rand -base64 32`",
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
        urls.database_url,
        "postgresql://accountsvc@db/accountsvc?sslmode=verify-full",
        "The database: PostgreSQL, or a SQLite file.",
        secret=True,
    )
    allow_sqlite: bool = _setting(
        "ALLOW_SQLITE", "off", readers.switch, "1", "Lets production run on SQLite."
    )
    redis_url: str = _setting(
        "REDIS_URL",
        "",
        urls.redis_url,
        "rediss://redis:6379/0",
        "Where throttles count, and the broker; without it each process counts for itself.",
        secret=True,
    )
    celery_broker_url: str = _setting(
        "CELERY_BROKER_URL",
        "filesystem://{INSTANCE_PATH}/broker",
        urls.broker_url,
        "rediss://redis:6379/0",
        "What carries the ticks from beat to the workers: REDIS_URL if that is set.",
        secret=True,
    )
    storage_url: str = _setting(
        "STORAGE_URL",
        "file://{INSTANCE_PATH}/media",
        urls.store_url,
        "s3://bucket/avatars",
        "Where avatar files lie.",
        secret=True,
    )
    mail_url: str = _setting(
        "MAIL_URL",
        "file://{INSTANCE_PATH}/mail",
        urls.mail_url,
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
        urls.store_url,
        "s3://bucket/ledger",
        "Where each purge leaves a line; keep it outside the database's backups.",
        secret=True,
    )
    # The worker and the operator's commands seal, and hold it; the web does not, so that whoever
    # takes the web over cannot make up that somebody was purged.
    ledger_signing_key: bytes | None = _setting(
        "LEDGER_SIGNING_KEY",
        None,
        readers.signing_key,
        "the output of `accountsvc signing-key`",
        "Seals the ledger: for workers and the operator's commands, not for the web.",
        secret=True,
    )
    ledger_public_keys: tuple[bytes, ...] = _setting(
        "LEDGER_PUBLIC_KEYS",
        "",
        readers.public_keys,
        "the output of `accountsvc signing-key`",
        "Whose seals in the ledger count, the newest first; that of LEDGER_SIGNING_KEY without it.",
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
    # Whoever has got hold of a token of the staff's reaches every account: it is short by default.
    staff_fresh_minutes: int = _setting(
        "STAFF_FRESH_MINUTES",
        "15",
        readers.whole(1, 1440),
        "15",
        "How long after the sign-in a token of the staff changes others' accounts.",
    )
    hold_release_delay: timedelta = _setting(
        "HOLD_RELEASE_DELAY",
        "24h",
        readers.duration,
        "24h",
        "How long an account stays at least after its last legal hold has ended.",
    )
    backup_retention: timedelta = _setting(
        "BACKUP_RETENTION",
        "90d",
        readers.positive_duration,
        "90d",
        "How long backups are kept: as long does the ledger have returns and holds.",
    )
    # Whoever was deleted can bring a claim for about as long; receipts prove what is older.
    audit_retention: timedelta = _setting(
        "AUDIT_RETENTION",
        "2192d",
        readers.positive_duration,
        "2192d",
        "How long events of the audit trail are kept; `accountsvc audit prune` takes older ones.",
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
    purge_brake: bool = _setting(
        "PURGE_BRAKE",
        "on",
        readers.switch,
        "on",
        "Whether the purges of an hour that nobody has asked for are bounded.",
    )
    # Off by default: it signs somebody up each day, which whoever counts accounts is to expect.
    canary: bool = _setting(
        "CANARY",
        "off",
        readers.switch,
        "on",
        "Whether a made-up person is purged each day, and searched for in every place.",
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
        urls.origins,
        "https://app.example.org",
        "The origins of the web apps that may call the API, separated by commas; none for no app.",
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
        urls.public_url,
        "https://accounts.example.org",
        "What links in mails begin with.",
    )
    trusted_proxies: tuple[urls.IPNetwork, ...] = _setting(
        "TRUSTED_PROXIES",
        "",
        urls.networks,
        "10.0.0.0/8",
        "The proxies whose word about the client's address counts; none for no proxy.",
    )
    # Whoever can read along in such a network reads everybody's passwords: it is empty by default.
    private_network: frozenset[str] = _setting(
        "PRIVATE_NETWORK",
        "",
        urls.hosts,
        "postgres,redis,mail,s3",
        "Hosts, separated by commas, to which production speaks without TLS.",
    )
    # Off by default: it would lock browsers out of a neighbour of the same domain that has no TLS.
    hsts_subdomains: bool = _setting(
        "HSTS_SUBDOMAINS",
        "off",
        readers.switch,
        "on",
        "Whether browsers want TLS of every subdomain too, where PUBLIC_URL is https.",
    )
    # Prometheus and dashboards give it. In production nothing is shown without one: how much is
    # owed, and how many wait, is for nobody else to know.
    ops_token: str = _setting(
        "OPS_TOKEN",
        "",
        readers.bearer_token,
        "the output of `openssl rand -hex 32`",
        "What /metrics and /statusz want as a bearer token; in production they are 404 without it.",
        secret=True,
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

    def without_signing_key(self) -> Settings:
        """Return these settings for a process that only reads the ledger."""
        return replace(self, ledger_signing_key=None)

    @property
    def is_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")

    @property
    def web_processes(self) -> int:
        # Without Redis throttles count in the process; with two processes a guesser would have
        # twice the tries.
        return self.web_concurrency if self.redis_url else 1

    @property
    def hides_operations(self) -> bool:
        """Whether the counts for operators are not served at all."""
        return not self.ops_token and self.app_env == "production"

    @property
    def shows_operations_to_all(self) -> bool:
        """Whether the counts for operators are served without a token."""
        return not self.ops_token and self.app_env != "production"


NAMES = frozenset(spec.metadata["name"] for spec in fields(Settings))


def wrong(name: str, why: object) -> ConfigError:
    """Make the line that refuses the setting *name*; *why* must not repeat a secret."""
    return ConfigError(wrong_line(name, why, _example(name)))


def _example(name: str) -> str:
    examples = {spec.metadata["name"]: spec.metadata["example"] for spec in fields(Settings)}
    return str(examples[name])


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check every setting; write nothing.

    *environ* replaces the process environment and the ``.env`` file, for tests. Keys that are not
    set are read from the instance folder, where ``accountsvc prepare`` puts them.

    Raises :class:`ConfigError` with one line for each setting that is missing or wrong.
    """
    sources = Sources.of_this_process() if environ is None else Sources(environ, {})
    faults = Faults([sources.unreadable] if sources.unreadable else [])
    for name, setting in spelling.nearly(sources.dotenv, NAMES).items():
        why = f"stands in the file .env and is no setting: did you mean {setting}?"
        example = f"{setting}={_example(setting)}"
        faults.add(f"{spelling.shown(name)} {why} For example: {example}")
    values = _read_all(sources, faults)
    with faults.caught():
        _complete_ledger_keys(values, is_production=sources.is_production)
    if values.get("GRACE_PERIOD", timedelta.min) > values.get("MAX_GRACE", timedelta.max):
        example = "GRACE_PERIOD=14d MAX_GRACE=90d"
        faults.add(wrong_line("GRACE_PERIOD", "is longer than MAX_GRACE", example))
    _check_audit_retention(values, faults)
    # What a file that cannot be read may hold is not said to be missing.
    if sources.is_production and not sources.unreadable:
        given = {name: sources.given[name] for name in NAMES if sources.is_given(name)}
        for name, why, other in production.faults(values, given, sources.environ):
            faults.add(wrong_line(name, why, other or _example(name)))
    faults.refuse()
    return Settings(**{spec.name: values[spec.metadata["name"]] for spec in fields(Settings)})


def _check_audit_retention(values: Mapping[str, Any], faults: Faults) -> None:
    """Refuse a trail that ends before a backup, or before a promise that it must explain."""
    kept = values.get("AUDIT_RETENTION", timedelta.max)
    for name in ("BACKUP_RETENTION", "MAX_GRACE"):
        if kept <= values.get(name, timedelta.min):
            example = f"AUDIT_RETENTION={_example('AUDIT_RETENTION')} {name}={_example(name)}"
            faults.add(wrong_line("AUDIT_RETENTION", f"is not longer than {name}", example))
            return


# A setting that nobody has given may be made of another one that stands above it in Settings, and
# that has a line of its own if it is wrong.
_MADE_OF = {"CELERY_BROKER_URL": "REDIS_URL", "PUBLIC_URL": "PORT"}


_LEDGER_KEYS = ("LEDGER_SIGNING_KEY", "LEDGER_PUBLIC_KEYS")


def _complete_ledger_keys(values: dict[str, Any], *, is_production: bool) -> None:
    """Derive the public key where only the signing one is set; refuse two that do not belong.

    What could not be read has a line of its own already.
    """
    if not values.keys() >= set(_LEDGER_KEYS):
        return
    signing, public = (values[name] for name in _LEDGER_KEYS)
    if signing is None:
        if not public:
            demanded = "LEDGER_PUBLIC_KEYS" if is_production else "LEDGER_SIGNING_KEY"
            raise _missing(demanded, is_production=is_production)
        return
    derived = readers.public_key_of(signing)
    if not public:
        values["LEDGER_PUBLIC_KEYS"] = (derived,)
    elif derived not in public:
        raise wrong("LEDGER_PUBLIC_KEYS", "does not hold the public key of LEDGER_SIGNING_KEY")


def _missing(name: str, *, is_production: bool) -> ConfigError:
    remedy = "is not set: run `python -m accountsvc prepare`, or set it"
    return wrong(name, "is not set, which production needs" if is_production else remedy)


def _read_all(sources: Sources, faults: Faults) -> dict[str, Any]:
    """Return the settings that can be read, by their names; add a line for each other one."""
    values: dict[str, Any] = {}
    for spec in fields(Settings):
        name = spec.metadata["name"]
        with faults.caught():
            setting = sources.find(name, spec.metadata["default"])
            if setting.text is None and sources.unreadable:
                continue
            if setting.source == "derived" and _MADE_OF.get(name, name) not in {*values, name}:
                continue
            values[name] = _read(spec, setting.text, is_production=sources.is_production)
    return values


def _read(spec: Field[Any], text: str | None, *, is_production: bool) -> object:
    name = spec.metadata["name"]
    if text is None and name == "LEDGER_SIGNING_KEY":
        return None
    if text is None:
        raise _missing(name, is_production=is_production)
    if text == "" and name == "REDIS_URL":
        return ""
    try:
        return spec.metadata["read"](text)
    except ValueError as exc:
        # The value of a secret is left out of the line, which ends up in logs.
        shown = f" ({text!r})" if may_be_shown(text, secret=not spec.repr) else ""
        raise wrong(name, f"{exc}{shown}") from None


def nearly_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the names in *environ* that are nearly a setting's, each with that setting.

    They are as a line may hold them.
    """
    found = spelling.nearly(environ, NAMES)
    return {spelling.shown(name): found[name] for name in sorted(found)}
