"""Names that are nearly a setting's: refused in a .env file, one line of the log elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from accountsvc import spelling
from accountsvc.config import NAMES, ConfigError, load_settings
from tests.support.processes import Running, environment, run
from tests.support.servers import free_port

# Of programs that may share an environment or a .env file with us.
OTHERS = [
    "API_ENV",
    "APP_DEBUG",
    "APP_KEY",
    "APP_NAME",
    "APP_URL",
    "AWS_ENDPOINT_URL",
    "BASE_URL",
    "BROKER_URL",
    "CELERY_RESULT_BACKEND",
    "CORS_ENABLED",
    "DATABASE_HOST",
    "DATABASE_NAME",
    "DATABASE_PASSWORD",
    "DATABASE_PORT",
    "DATABASE_URL_2",
    "DATABASE_URL_RO",
    "DATABASE_URL_TEST",
    "DATABASE_URL_UNPOOLED",
    "DATABASE_USER",
    "DATABASE2_URL",
    "DB_URL",
    "DIRECT_URL",
    "EMAIL_FROM",
    "EMAIL_HOST",
    "EMAIL_URL",
    "FLASK_ENV",
    "FORWARDED_ALLOW_IPS",
    "HOME",
    "HOST",
    "HOSTNAME",
    "JWT_SECRET",
    "LANG",
    "LOG_FORMAT",
    "LOG_FILE",
    "LOGLEVEL",
    "MAIL_DRIVER",
    "MAIL_FROM_ADDRESS",
    "MAIL_FROM_NAME",
    "MAIL_HOST",
    "MAIL_PORT",
    "MAIL_USERNAME",
    "MAILER_URL",
    "NEXT_PUBLIC_URL",
    "NEXTAUTH_URL",
    "NODE_ENV",
    "PATH",
    "PGDATABASE",
    "PGHOST",
    "PGPASSWORD",
    "PGPORT",
    "PGUSER",
    "POSTGRES_DB",
    "POSTGRES_PASSWORD",
    "POSTGRES_URL",
    "POSTGRES_USER",
    "PUBLIC_HOST",
    "PUBLIC_PATH",
    "PWD",
    "RAILS_ENV",
    "RATE_LIMIT_MAX",
    "REDIS_HOST",
    "REDIS_PASSWORD",
    "REDIS_PORT",
    "REDIS_TLS_URL",
    "REDIS_URL_1",
    "S3_URL",
    "SECRET_KEY_BASE",
    "SENTRY_DSN",
    "SESSION_SECRET",
    "SITE_URL",
    "SMTP_URL",
    "STORAGE_PATH",
    "TEST_DATABASE_URL",
    "ALLOWED_HOSTS",
    "AWS_ENDPOINT",
    "HOSTS",
    "TRUST_PROXY",
    "VAULT_ADDR",
    "VAULT_TOKEN",
    "VIRTUAL_HOST",
    "WEB_CONCURRENCY",
]
NEARLY = {
    "GRACE_PEROID": "GRACE_PERIOD",
    "GRACE_PERIODS": "GRACE_PERIOD",
    "GRACEPERIOD": "GRACE_PERIOD",
    "SECRETKEY": "SECRET_KEY",
    "secret_key": "SECRET_KEY",
    "Secret-Key": "SECRET_KEY",
    "VAULT_KEY": "VAULT_KEYS",
    "REDIS_URI": "REDIS_URL",
    "redis_url": "REDIS_URL",
    "port": "PORT",
    "APP_EVN": "APP_ENV",
    "TRUSTED_PROXYS": "TRUSTED_PROXIES",
    "CORS_ORIGIN": "CORS_ORIGINS",
    "TRUSTED_PROXY": "TRUSTED_PROXIES",
    "trusted-proxy": "TRUSTED_PROXIES",
    "RATES_LIMIT": "RATE_LIMITS",
    "PRIVATE_NETWORKS": "PRIVATE_NETWORK",
    "HSTS_SUBDOMAIN": "HSTS_SUBDOMAINS",
    "PORTS": "PORT",
    "PURGE_MAX_PER_SWEEP": "PURGE_BRAKE",
    "MAIL_FR\u041eM": "MAIL_FROM",
}


@pytest.mark.parametrize(("name", "setting"), NEARLY.items())
def test_a_name_that_is_nearly_a_setting_is_refused_in_a_dotenv_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, setting: str
) -> None:
    (tmp_path / ".env").write_text(f"{name}=pa55\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError) as caught:
        load_settings()

    line = caught.value.lines[0]
    assert f"did you mean {setting}? For example: {setting}=" in line
    assert line.isascii()
    assert "pa55" not in line


def test_names_of_other_programs_and_our_own_are_left_alone() -> None:
    assert spelling.nearly([*OTHERS, *NAMES], NAMES) == {}


def test_settings_are_not_nearly_each_other() -> None:
    for name in NAMES:
        assert spelling.nearly([name], NAMES - {name}) == {}


def test_a_long_name_is_not_compared() -> None:
    assert spelling.nearly(["GRACE_PERIOD" + "_" * 40, "x" * 1_000_000], NAMES) == {}


def test_a_name_without_a_value_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("GRACE_PEROID\n")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match=r"^GRACE_PEROID stands in the file \.env"):
        load_settings()


# Processes ---------------------------------------------------------------------------------------

SAID = "the environment has names that are nearly a setting's"


@pytest.mark.parametrize("process", ["web", "worker", "beat"])
def test_in_the_environment_it_is_one_line_of_the_log_without_the_value(
    sqlite_url: str, tmp_path: Path, process: str
) -> None:
    env = environment(tmp_path, sqlite_url, PORT=str(free_port()))
    ready = {"web": "serving ", "worker": "worker is ready", "beat": SAID}
    with Running(
        "accountsvc", process, env={**env, "GRACE_PEROID": "pa55", "redis_uri": "x"}
    ) as it:
        it.wait_for(ready[process])
        it.wait_for(SAID)
        it.stop()

        assert it.log.count(SAID) == 1
        assert "GRACE_PEROID" in it.log
        assert "near GRACE_PERIOD" in it.log
        assert "redis_uri" in it.log
        assert "pa55" not in it.log


def test_a_command_prints_nothing_beside_its_document(sqlite_url: str, tmp_path: Path) -> None:
    env = environment(tmp_path, sqlite_url, GRACE_PEROID="3d")

    ours = run("accountsvc", "accounts", "list", "--json", env=env, folder=tmp_path)
    flask = run("flask", "--app", "wsgi", "accounts", "list", "--json", env=env)
    listed = run("accountsvc", "settings", env=env, folder=tmp_path)

    assert (ours.stdout, flask.stdout) == ("[]\n", "[]\n")
    assert listed.returncode == 0
    assert listed.stderr == (
        "accountsvc: GRACE_PEROID in the environment is no setting: did you mean GRACE_PERIOD?\n"
    )
