"""Settings: nonsense is refused at start with one line that says which, why, and what would do."""

from __future__ import annotations

import base64
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import pytest

from accountsvc.config import ConfigError, Settings, load_settings
from accountsvc.readers import duration
from accountsvc.services import build_services
from accountsvc.sources import make_keys
from tests.support.factories import SIGNING_KEY
from tests.support.production import PRODUCTION_ASKS

SECRET = "s3cret-0123456789-0123456789-0123456789"
KEY = base64.urlsafe_b64encode(b"k" * 32).decode()
OTHER_KEY = base64.urlsafe_b64encode(b"o" * 32).decode()
GIVEN = {"SECRET_KEY": SECRET, "VAULT_KEYS": KEY, "LEDGER_SIGNING_KEY": SIGNING_KEY}
PRODUCTION = PRODUCTION_ASKS | {
    "DATABASE_URL": "postgresql://accountsvc:pa55@db/accountsvc?sslmode=verify-full"
}

MADE = ["SECRET_KEY", "VAULT_KEYS", "LEDGER_SIGNING_KEY"]

WRONG: dict[str, list[str]] = {
    "APP_ENV": ["Development", "test", " "],
    "INSTANCE_PATH": ["~nobody-of-this-name/instance", "/a?b", "/a#b", "/a%41", "/a\nb"],
    "SECRET_KEY": ["short", "x" * 31, "ü" * 15],
    "VAULT_KEYS": ["short", KEY[:-4], f"{KEY},", f"{KEY},x", "ü" * 44, f"{KEY};{OTHER_KEY}"],
    "DATABASE_URL": [
        "mysql://db/accounts",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "/var/lib/accounts.db",
        "postgresql://db:port/accounts",
    ],
    "ALLOW_SQLITE": ["maybe", "2"],
    "REDIS_URL": ["http://redis", "redis:6379", "redis://", "redis://redis:port/0"],
    "CELERY_BROKER_URL": ["amqp://broker", "memory://", "redis://"],
    "STORAGE_URL": [
        "/media",
        "ftp://host/media",
        "file://media",
        "file:///",
        "s3://",
        "s3://B_d/x",
    ],
    "MAIL_URL": ["mail.example.org", "http://mail", "smtp://", "smtp://mail:port"],
    "MAIL_FROM": ["nobody", "Accounts <>", "a@b.example\nBcc: c@d.example"],
    "LEDGER_SIGNING_KEY": ["short", KEY[:-4], f"{KEY},{OTHER_KEY}", "ü" * 44],
    "LEDGER_PUBLIC_KEYS": ["short", f"{KEY},", f"{KEY},x", OTHER_KEY],
    "LEDGER_URL": ["ledger", "file://ledger", "file:///", "s3://", "s3://x"],
    "GRACE_PERIOD": ["14", "two weeks", "-1d", "1.5h", "1y", "٣d", "999999999w"],
    "MAX_GRACE": ["90", "0s", "101y"],
    "ACCESS_TOKEN_LIFETIME": ["24", "0s", "1d1h"],
    "REFRESH_TOKEN_LIFETIME": ["0d", "never"],
    "DELETION_CONFIRMATION": ["Fresh", "yes", "password,fresh"],
    "FRESH_TOKEN_MINUTES": ["0", "-1", "1.5", "15m", "525601", "1_000"],
    "STAFF_FRESH_MINUTES": ["0", "-1", "1.5", "15m", "1441", "1_000"],
    "HOLD_RELEASE_DELAY": ["24", "-1h"],
    "BACKUP_RETENTION": ["90", "0d", "-1d"],
    "AUDIT_RETENTION": ["6y", "0d", "90d", "30d"],
    "REMINDERS": ["7", "7d;1d", "0d", "7d,x"],
    "SWEEP_INTERVAL": ["0s", "60", "1ms"],
    "PURGE_BATCH_SIZE": ["0", "10001", "many", "5e2"],
    "PURGE_BRAKE": ["maybe", "100"],
    "CANARY": ["maybe", "daily"],
    "PURGE_MAX_ATTEMPTS": ["0", "1001", "x"],
    "CORS_ORIGINS": ["app.example.org", "ftp://app", "https://app/x", "https://a https://b"],
    "PUBLIC_URL": ["accounts.example.org", "ftp://accounts", "https://", "https://accounts:port"],
    "PRIVATE_NETWORK": ["https://db", "db:5432", "*.internal", "10.0.0.0/8"],
    "HSTS_SUBDOMAINS": ["maybe", "includeSubDomains"],
    "TRUSTED_PROXIES": ["proxy", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0 10.0.0.1"],
    "OPS_TOKEN": ["short", "x" * 15, "a token with spaces in it", "tökenökenökenöken", "a,b" * 9],
    "RATE_LIMITS": ["maybe", "none"],
    "WEB_CONCURRENCY": ["0", "-1", "two", "1.5", "1001"],
    "PORT": ["0", "65536", "http", "80 80"],
    "PASSWORD_HASH_COST": ["low", "1"],
    "LOG_LEVEL": ["info", "TRACE"],
}
WRONG["REDIS_URL"] += ["redis://redis/abc", "rediss://redis/0?ssl_cert_reqs=none"]
WRONG["PUBLIC_URL"] += ["https://accounts.example.org/ü", "https://u:p@accounts.example.org"]
SECRETS = {spec.metadata["name"] for spec in fields(Settings) if not spec.repr}
# Words in a setting's name which say that its value is a secret, or that it may hold one.
SECRET_WORDS = {"CREDENTIAL", "CREDENTIALS", "DSN", "KEY", "KEYS", "PASSPHRASE", "PASSWORD"}
SECRET_WORDS |= {"PASSWORDS", "PEPPER", "SALT", "SECRET", "SECRETS", "TOKEN", "URL", "URLS"}
# Settings that anybody may read although their name has one of those words, each with its reason.
NOT_SECRET = {
    "LEDGER_PUBLIC_KEYS": "whoever has them can check a seal, and make none",
    "PUBLIC_URL": "it stands in every mail",
    "PASSWORD_HASH_COST": "it is one of two words",
    "ACCESS_TOKEN_LIFETIME": "it is a duration",
    "REFRESH_TOKEN_LIFETIME": "it is a duration",
    "FRESH_TOKEN_MINUTES": "it is a duration",
}


def load(folder: Path, **given: str) -> Settings:
    return load_settings({"INSTANCE_PATH": str(folder), **GIVEN, **given})


def faults(environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    return str(caught.value).splitlines()


def fault(environ: dict[str, str]) -> str:
    (line,) = faults(environ)
    return line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAIL_URL", "smtp://mail/?tls=no"),
        ("MAIL_URL", "smtp://u:pa55@mail/?tls=none"),
        ("MAIL_URL", "smtps://mail/?tls=none"),
        ("MAIL_URL", "s3://bucket/mail"),
        ("MAIL_FROM", "a@b.example, c@d.example"),
    ],
)
def test_what_a_part_could_not_be_made_of_is_one_line_too(
    tmp_path: Path, name: str, value: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **{name: value})

    line = str(caught.value)
    assert line.startswith(f"{name} ")
    assert "; for example: " in line
    assert "\n" not in line
    assert "pa55" not in line


def test_every_example_is_a_good_value(tmp_path: Path) -> None:
    for spec in fields(Settings):
        name, example = spec.metadata["name"], spec.metadata["example"]
        if not example.startswith("the output of"):
            # At full cost each start of the hasher takes a quarter of a second of arithmetic.
            given = PRODUCTION if name == "APP_ENV" else {"PASSWORD_HASH_COST": "cheap"}
            build_services(load(tmp_path, **{**given, name: example})).database.engine.dispose()


def test_every_setting_whose_name_says_so_is_secret() -> None:
    names = {spec.metadata["name"] for spec in fields(Settings)}
    telling = {name for name in names if SECRET_WORDS & set(name.split("_"))}

    shown = telling - SECRETS - set(NOT_SECRET)

    assert shown == set(), (
        "give these settings secret=True in accountsvc/config.py, or a traceback shows their "
        "values; if anybody may read one, name it in NOT_SECRET with the reason"
    )
    assert set(NOT_SECRET) <= telling - SECRETS, "NOT_SECRET names what needs no exception"


def test_every_setting_has_a_wrong_value_here() -> None:
    assert set(WRONG) == {spec.metadata["name"] for spec in fields(Settings)}, (
        "give each setting wrong values in WRONG of this file"
    )


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_one_line_with_name_fault_and_example(
    tmp_path: Path, name: str, value: str
) -> None:
    line = fault({"INSTANCE_PATH": str(tmp_path), **GIVEN, name: value})

    example = next(s.metadata["example"] for s in fields(Settings) if s.metadata["name"] == name)
    assert line.startswith(f"{name} ")
    assert example in line
    said = line.removeprefix(name).split("; for example: ")[0].strip()
    assert len(said.split()) >= 3, "the fault is not said"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY", "pa55word-short"),
        ("SECRET_KEY", "pa55word\udcff" + "x" * 40),
        ("VAULT_KEYS", "pa55word"),
        ("LEDGER_SIGNING_KEY", "pa55word"),
        ("DATABASE_URL", "mysql://u:pa55word@db/x"),
        ("DATABASE_URL", "postgresql://u:pa55word@db:pa55word/x"),
        ("REDIS_URL", "http://:pa55word@redis"),
        ("REDIS_URL", "redis://:pa55word/x@redis:6379"),
        ("CELERY_BROKER_URL", "amqp://u:pa55word@broker"),
        ("STORAGE_URL", "ftp://u:pa55word@host/x"),
        ("MAIL_URL", "http://u:pa55word@mail"),
        ("MAIL_URL", "smtp://u:pa55word/x@mail"),
        ("MAIL_URL", "smtp://u:pa55word\u2100@mail:587"),
        ("LEDGER_URL", "ftp://u:pa55word@host/x"),
        ("PUBLIC_URL", "https://u:pa55word@accounts.example.org"),
        ("CORS_ORIGINS", "https://app.example.org,https://u:pa55word@app.example.org"),
    ],
)
def test_no_secret_is_in_the_line(tmp_path: Path, name: str, value: str) -> None:
    line = fault({"INSTANCE_PATH": str(tmp_path), **GIVEN, name: value})

    assert line.startswith(f"{name} ")
    assert "pa55" not in line


@pytest.mark.parametrize("name", sorted(set(WRONG) - SECRETS - {"INSTANCE_PATH"}))
def test_a_value_that_is_no_secret_is_repeated(tmp_path: Path, name: str) -> None:
    assert repr(WRONG[name][0]) in fault(
        {"INSTANCE_PATH": str(tmp_path), **GIVEN, name: WRONG[name][0]}
    )


def test_the_defaults_need_nothing_but_a_folder(tmp_path: Path) -> None:
    made = load(tmp_path)

    assert made.database_url == f"sqlite:///{tmp_path}/accountsvc.db"
    assert made.storage_url == f"file://{tmp_path}/media"
    assert made.ledger_url == f"file://{tmp_path}/ledger"
    assert made.mail_url == f"file://{tmp_path}/mail"
    assert made.celery_broker_url == f"filesystem://{tmp_path}/broker"
    assert made.public_url == "http://localhost:8000"
    assert (made.grace_period, made.max_grace) == (timedelta(days=14), timedelta(days=90))
    assert made.access_token_lifetime == timedelta(hours=24)
    assert made.refresh_token_lifetime == timedelta(days=30)
    assert (made.deletion_confirmation, made.fresh_token_minutes) == ("fresh", 1440)
    assert made.hold_release_delay == timedelta(hours=24)
    assert made.reminders == (timedelta(days=7), timedelta(days=1))
    assert made.sweep_interval == timedelta(seconds=60)
    assert (made.purge_brake, made.purge_max_attempts) == (True, 8)
    assert made.cors_origins == ("http://localhost:3000",)
    assert (made.trusted_proxies, made.rate_limits, made.redis_url) == ((), True, "")
    assert (made.private_network, made.hsts_subdomains) == (frozenset(), False)


def test_an_empty_value_is_as_good_as_none(tmp_path: Path) -> None:
    assert load(tmp_path, GRACE_PERIOD="", PORT="", REDIS_URL="") == load(tmp_path)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("0s", timedelta(0)),
        ("90s", timedelta(seconds=90)),
        ("5m", timedelta(minutes=5)),
        ("36h", timedelta(hours=36)),
        ("14d", timedelta(days=14)),
        ("2W", timedelta(weeks=2)),
        (" 1d ", timedelta(days=1)),
    ],
)
def test_durations_are_a_number_and_a_unit(text: str, span: timedelta) -> None:
    assert duration(text) == span


def test_the_grace_period_may_be_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, GRACE_PERIOD="0s").grace_period == timedelta(0)


def test_the_grace_period_is_at_most_the_longest(tmp_path: Path) -> None:
    assert load(tmp_path, GRACE_PERIOD="90d").grace_period == timedelta(days=90)

    line = fault({"INSTANCE_PATH": str(tmp_path), **GIVEN, "GRACE_PERIOD": "91d"})

    assert "GRACE_PERIOD" in line
    assert "MAX_GRACE" in line


def test_reminders_come_longest_first_and_once(tmp_path: Path) -> None:
    made = load(tmp_path, REMINDERS="1d, 7d,24h")

    assert made.reminders == (timedelta(days=7), timedelta(days=1))


def test_wrapping_keys_keep_their_order(tmp_path: Path) -> None:
    made = load(tmp_path, VAULT_KEYS=f"{OTHER_KEY}, {KEY}")

    assert made.vault_keys == (b"o" * 32, b"k" * 32)


def test_the_broker_is_redis_where_there_is_one(tmp_path: Path) -> None:
    made = load(tmp_path, REDIS_URL="redis://redis:6379/3")

    assert made.celery_broker_url == "redis://redis:6379/3"


def test_the_public_url_follows_the_port(tmp_path: Path) -> None:
    assert load(tmp_path, PORT="8123").public_url == "http://localhost:8123"


def test_a_port_with_spaces_around_it_is_that_port_in_the_public_url_too(tmp_path: Path) -> None:
    settings = load(tmp_path, PORT=" 8742 ", PUBLIC_URL="")

    assert (settings.port, settings.public_url) == (8742, "http://localhost:8742")


def test_no_secret_is_in_the_repr(tmp_path: Path) -> None:
    made = load_settings(
        {
            **PRODUCTION,
            "INSTANCE_PATH": str(tmp_path),
            "REDIS_URL": "rediss://:pa55@redis",
            "MAIL_URL": "smtp://u:pa55@mail",
            "STORAGE_URL": "s3://pa55",
            "LEDGER_URL": "s3://pa55",
        }
    )

    shown = repr(made) + str(made)

    assert not [text for text in (SECRET, "kkkk", "pa55", KEY) if text in shown]


def test_no_keys_are_made_for_production(tmp_path: Path) -> None:
    assert make_keys({"INSTANCE_PATH": str(tmp_path / "i"), "APP_ENV": "production"}) == []
    assert not (tmp_path / "i").exists()


def test_a_process_that_finds_no_keys_fails_and_makes_none(tmp_path: Path) -> None:
    lines = faults({"INSTANCE_PATH": str(tmp_path / "instance")})

    assert [line.split()[0] for line in lines] == MADE
    assert all("python -m accountsvc prepare" in line for line in lines)
    assert not (tmp_path / "instance").exists()


def test_keys_are_made_once_and_for_their_owner_only(tmp_path: Path) -> None:
    instance = tmp_path / "instance"
    environ = {"INSTANCE_PATH": str(instance)}

    assert make_keys(environ) == MADE

    made = load_settings(environ)
    assert {path.name for path in instance.iterdir()} == {name.lower() for name in MADE}
    assert {stat.S_IMODE(path.stat().st_mode) for path in instance.iterdir()} == {0o600}
    assert stat.S_IMODE(instance.stat().st_mode) == 0o700
    assert make_keys(environ) == []
    assert load_settings(environ) == made


def test_an_existing_key_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "vault_keys").write_text(KEY + "\n")

    assert make_keys({"INSTANCE_PATH": str(tmp_path)}) == ["SECRET_KEY", "LEDGER_SIGNING_KEY"]

    assert load_settings({"INSTANCE_PATH": str(tmp_path)}).vault_keys == (b"k" * 32,)


def test_what_the_environment_gives_is_not_made(tmp_path: Path) -> None:
    assert make_keys({"INSTANCE_PATH": str(tmp_path), **GIVEN}) == []
    assert list(tmp_path.iterdir()) == []


def test_many_processes_at_once_agree_on_the_keys(tmp_path: Path) -> None:
    environ = {"INSTANCE_PATH": str(tmp_path)}

    def start(_: int) -> Settings:
        make_keys(environ)
        return load_settings(environ)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(start, range(8)))

    assert all(one == found[0] for one in found)
    assert {path.name for path in tmp_path.iterdir()} == {name.lower() for name in MADE}


@pytest.mark.parametrize("content", [b"", b"\n", b"short\n", b"\xff\xfe\x00\n", b"a\nb"])
def test_a_damaged_key_file_is_one_line_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    make_keys({"INSTANCE_PATH": str(tmp_path)})
    (tmp_path / "vault_keys").write_bytes(content)

    line = fault({"INSTANCE_PATH": str(tmp_path)})

    assert line.startswith("VAULT_KEYS ")
    assert (tmp_path / "vault_keys").read_bytes() == content


def test_an_unreadable_key_file_is_one_line(tmp_path: Path) -> None:
    make_keys({"INSTANCE_PATH": str(tmp_path)})
    (tmp_path / "secret_key").unlink()
    (tmp_path / "secret_key").mkdir()

    assert fault({"INSTANCE_PATH": str(tmp_path)}).startswith("SECRET_KEY ")


def test_a_dotenv_file_is_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text(
        f"SECRET_KEY={SECRET}\nVAULT_KEYS={KEY}\nLEDGER_SIGNING_KEY={KEY}\nGRACE_PERIOD=3d\nPORT=8111 # of two\nREDIS_URL\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in WRONG:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRACE_PERIOD", "4d")

    made = load_settings()

    assert (made.grace_period, made.port) == (timedelta(days=4), 8111)
    assert made.instance_path == tmp_path / "instance"
    assert "SECRET_KEY" not in os.environ


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("GRACE_PERIOD=3d\n".encode("utf-16"), id="as PowerShell redirects"),
        pytest.param("MAIL_FROM=Käthe <k@example.org>\n".encode("latin-1"), id="an old editor"),
    ],
)
def test_a_dotenv_file_that_is_not_utf_8_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    (tmp_path / ".env").write_bytes(content)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError) as caught:
        load_settings()

    assert str(caught.value) == "the file .env cannot be read: it is not UTF-8"


def test_loading_writes_nothing(tmp_path: Path) -> None:
    load(tmp_path / "instance")

    assert list(tmp_path.iterdir()) == []


# All in one start --------------------------------------------------------------------------------


def test_all_that_is_wrong_or_missing_is_said_in_one_start_a_line_each(tmp_path: Path) -> None:
    lines = faults(
        {
            "INSTANCE_PATH": str(tmp_path),
            "SECRET_KEY": "pa55",
            "GRACE_PERIOD": "soon",
            "PORT": "http",
            "REDIS_URL": "redis://:pa55@redis/abc",
            "LOG_LEVEL": "loud",
            "MAIL_URL": "smtp://u:pa55@mail/?tls=none",
        }
    )

    # What is made of PORT and of REDIS_URL is not wrong a second time.
    names = [
        "SECRET_KEY",
        "VAULT_KEYS",
        "REDIS_URL",
        "MAIL_URL",
        "GRACE_PERIOD",
        "PORT",
        "LOG_LEVEL",
        "LEDGER_SIGNING_KEY",
    ]
    assert [line.split()[0] for line in lines] == names
    assert all("; for example: " in line for line in lines)
    assert not [line for line in lines if "pa55" in line]


def test_a_folder_that_cannot_be_named_is_one_line_and_hides_no_other() -> None:
    lines = faults({"INSTANCE_PATH": "/a?b", "GRACE_PERIOD": "soon"})

    assert [line.split()[0] for line in lines] == ["INSTANCE_PATH", "GRACE_PERIOD"]


def test_what_an_unreadable_dotenv_file_may_hold_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRACE_PERIOD", "soon")

    with pytest.raises(ConfigError) as caught:
        load_settings()

    first, second = caught.value.lines
    assert first == "the file .env cannot be read: it is not UTF-8"
    assert second.startswith("GRACE_PERIOD ")


def test_two_lines_of_the_report_have_the_program_s_name_each() -> None:
    assert ConfigError("A is wrong", "B too").report == (
        "accountsvc: A is wrong\naccountsvc: B too\n"
    )
