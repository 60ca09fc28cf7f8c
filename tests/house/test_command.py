"""The command ``accountsvc``: what it says of the settings, and what it becomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.db.test_migrations import described
from tests.support.processes import environment, run
from tests.support.production import PRODUCTION_ASKS, PUBLIC_KEY
from tests.support.servers import free_port

SECRET = "s3cret-0123456789-0123456789-0123456789"
# Of the environment of production, what `environment` does not set.
PRODUCTION = PRODUCTION_ASKS | {
    "ALLOW_SQLITE": "1",
    "REDIS_URL": "redis://:pa55@127.0.0.1:1/0",
    "RATE_LIMITS": "on",
    "PASSWORD_HASH_COST": "normal",
}


# Settings ----------------------------------------------------------------------------------------


def settings_of(env: dict[str, str], folder: Path) -> tuple[int, dict[str, list[str]], str]:
    """Return the exit code, the cells of each setting's line, and what went to stderr."""
    result = run("accountsvc", "settings", env=env, folder=folder)
    lines = [line for line in result.stdout.splitlines() if not line.startswith("  ")]
    meanings = [line for line in result.stdout.splitlines() if line.startswith("  ")]
    assert len(meanings) == len(lines) - 1
    # Columns begin where the head's words do.
    starts = [lines[0].index(word) for word in ("VALUE", "FROM", "DEFAULT")]
    cells = {
        line.split()[0]: [
            line[begin:end].strip() for begin, end in zip(starts, [*starts[1:], None], strict=True)
        ]
        for line in lines[1:]
    }
    return result.returncode, cells, result.stderr


def test_settings_say_what_each_is_and_where_it_came_from(tmp_path: Path) -> None:
    # given
    env = environment(tmp_path, GRACE_PERIOD="3d", REDIS_URL="redis://:pa55@127.0.0.1:1/0")
    del env["VAULT_KEYS"]
    (tmp_path / ".env").write_text("MAX_GRACE=60d\nGRACE_PERIOD=9d\n")
    (tmp_path / "instance").mkdir()
    (tmp_path / "instance" / "vault_keys").write_text(
        "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
    )

    # when
    code, cells, said = settings_of(env, tmp_path)

    # then
    assert (code, said) == (0, "")
    assert cells["GRACE_PERIOD"] == ["3d", "environment", "14d"]
    assert cells["MAX_GRACE"] == ["60d", ".env", "90d"]
    assert cells["VAULT_KEYS"] == ["secret, set", "instance folder", "none"]
    assert cells["SECRET_KEY"] == ["secret, set", "environment", "none"]
    assert cells["SWEEP_INTERVAL"] == ["60s", "default", "60s"]
    assert cells["TRUSTED_PROXIES"] == ["not set", "default", "none"]
    assert cells["PUBLIC_URL"] == ["http://localhost:8000", "derived", "http://localhost:{PORT}"]
    # It is REDIS_URL, and would show its password.
    assert cells["CELERY_BROKER_URL"][:2] == ["secret, set", "derived"]
    media = f"file://{tmp_path}/instance/media"
    assert cells["STORAGE_URL"] == [media, "derived", "file://{INSTANCE_PATH}/media"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"GRACE_PERIOD": "soon"}, "GRACE_PERIOD is not a duration ('soon'); for example: 14d"),
        (
            {"INSTANCE_PATH": "~nobody-of-this-name/x"},
            "INSTANCE_PATH cannot be resolved to a folder",
        ),
        ({"VAULT_KEYS": ""}, "VAULT_KEYS is not set"),
    ],
    ids=["wrong", "no folder", "missing"],
)
def test_settings_are_listed_also_where_one_is_wrong_which_is_one_line(
    tmp_path: Path, changes: dict[str, str], sentence: str
) -> None:
    env = environment(tmp_path, **changes)

    code, cells, said = settings_of(env, tmp_path)

    assert code == 2
    assert {"APP_ENV", "LOG_LEVEL", "HOST", "WEB_CONCURRENCY"} <= set(cells)
    assert said.startswith(f"accountsvc: {sentence}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", ["web", "run"])
@pytest.mark.parametrize("count", ["two", "0", "-1", ""])
def test_a_wrong_number_of_web_processes_is_one_line(
    tmp_path: Path, command: str, count: str
) -> None:
    env = environment(tmp_path, WEB_CONCURRENCY=count, PORT=str(free_port()))

    result = run("accountsvc", command, env=env, folder=tmp_path)

    assert result.returncode == 2
    assert result.stderr.startswith("accountsvc: WEB_CONCURRENCY ")
    assert result.stderr.endswith(f"({count!r}); for example: 2\n")


def test_settings_are_listed_to_the_end_and_then_each_that_is_wrong(tmp_path: Path) -> None:
    env = environment(tmp_path, GRACE_PERIOD="soon", REDIS_URL="redis://:pa55@redis/abc")
    (tmp_path / ".env").write_text("SWEEP_INTERVALL=1s\nPORT=http\n")

    code, cells, said = settings_of(env, tmp_path)

    assert code == 2
    assert cells["PORT"] == ["http", ".env", "8000"]
    assert {"APP_ENV", "LOG_LEVEL", "HOST", "WEB_CONCURRENCY"} <= set(cells)
    assert [line.split()[1] for line in said.splitlines()] == [
        "SWEEP_INTERVALL", "REDIS_URL", "GRACE_PERIOD", "PORT",
    ]  # fmt: skip
    assert "pa55" not in said


def test_settings_are_listed_where_the_dotenv_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe")

    code, cells, said = settings_of(environment(tmp_path), tmp_path)

    assert code == 2
    assert {"APP_ENV", "LOG_LEVEL", "HOST", "WEB_CONCURRENCY"} <= set(cells)
    assert said == "accountsvc: the file .env cannot be read: it is not UTF-8\n"


def test_no_secret_is_shown(tmp_path: Path) -> None:
    env = environment(
        tmp_path,
        SECRET_KEY=SECRET,
        DATABASE_URL="postgresql://a:pa55@db/x",
        PUBLIC_URL="https://a:pa55@accounts.example.org",
    )

    result = run("accountsvc", "settings", env=env, folder=tmp_path)

    assert result.returncode == 2
    assert "DATABASE_URL" in result.stdout
    for secret in (SECRET, "pa55", env["VAULT_KEYS"]):
        assert secret not in result.stdout + result.stderr


def test_the_help_says_what_is_wrong_with_the_settings_in_one_line(tmp_path: Path) -> None:
    env = environment(tmp_path, GRACE_PERIOD="soon")

    result = run("accountsvc", "--help", env=env, folder=tmp_path)

    assert result.returncode == 0
    assert "\n  accounts " in result.stdout
    assert "\n  prepare " in result.stdout
    assert result.stderr.startswith("accountsvc: GRACE_PERIOD is not a duration")
    assert result.stderr.count("\n") == 1


# Processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("web", "--version"), "gunicorn (version "),
        (("worker", "--loglevel", "nonsense"), "Invalid value for '-l' / '--loglevel'"),
        (("beat", "--max-interval", "nonsense"), "Invalid value for '--max-interval'"),
    ],
    ids=["web", "worker", "beat"],
)
def test_what_follows_a_process_is_passed_on(
    tmp_path: Path, words: tuple[str, ...], answer: str
) -> None:
    result = run("accountsvc", *words, env=environment(tmp_path), folder=tmp_path)

    assert answer in result.stdout + result.stderr


@pytest.mark.parametrize("process", ["web", "worker", "beat", "run"])
def test_a_wrong_setting_keeps_a_process_from_starting(tmp_path: Path, process: str) -> None:
    env = environment(tmp_path, GRACE_PERIOD="soon")

    result = run("accountsvc", process, env=env, folder=tmp_path)

    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("accountsvc: GRACE_PERIOD is not a duration")
    assert result.stderr.count("\n") == 1


# Whatever starts, by its words. Those of the libraries have codes of their own.
DOORWAYS = {
    "web": ("accountsvc", "web"),
    "worker": ("accountsvc", "worker"),
    "beat": ("accountsvc", "beat"),
    "run": ("accountsvc", "run"),
    "prepare": ("accountsvc", "prepare"),
    "settings": ("accountsvc", "settings"),
    "command": ("accountsvc", "accounts", "list"),
    "gunicorn": ("gunicorn", "--config", "python:accountsvc.start.gunicorn_conf"),
    "celery": ("celery", "-A", "worker", "worker"),
    "flask": ("flask", "--app", "wsgi", "accounts", "list"),
}


@pytest.mark.parametrize("doorway", DOORWAYS)
def test_every_process_refuses_with_the_same_lines(tmp_path: Path, doorway: str) -> None:
    """Without a setting that production wants, with a wrong one, and with a wrong part."""
    changes = PRODUCTION | {
        "TRUSTED_PROXIES": "",
        "GRACE_PERIOD": "soon",
        "REDIS_URL": "redis://:pa55@cache/0",
        "MAIL_URL": "smtp://u:pa55@mail/?tls=none",
        "VAULT_KEYS": "pa55",
    }
    env = environment(tmp_path, **changes)

    result = run(*DOORWAYS[doorway], env=env)

    names = [
        line.removeprefix("accountsvc: ").split()[0]
        for line in result.stderr.splitlines()
        if line.startswith("accountsvc: ")
    ]
    wrong = ["VAULT_KEYS", "MAIL_URL", "GRACE_PERIOD", "TRUSTED_PROXIES", "REDIS_URL"]
    assert names == wrong, result.stderr
    assert "pa55" not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    if DOORWAYS[doorway][0] == "accountsvc":
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == len(wrong)
    else:
        assert result.returncode != 0


@pytest.mark.parametrize("command", ["web", "run"])
def test_a_wrong_number_of_processes_is_said_with_the_settings(
    tmp_path: Path, command: str
) -> None:
    env = environment(tmp_path, GRACE_PERIOD="soon", WEB_CONCURRENCY="two")

    result = run("accountsvc", command, env=env, folder=tmp_path)

    assert result.returncode == 2
    assert [line.split()[1] for line in result.stderr.splitlines()] == [
        "GRACE_PERIOD",
        "WEB_CONCURRENCY",
    ]


# Going back --------------------------------------------------------------------------------------


def test_production_says_what_a_downgrade_would_lose_and_which_flag_allows_it(
    sqlite_url: str, tmp_path: Path
) -> None:
    # given
    env = environment(tmp_path, sqlite_url, **PRODUCTION)
    before = described(sqlite_url)

    # when
    refused = run("accountsvc", "db", "downgrade", "base", env=env, folder=tmp_path)

    # then
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Error: This would lose every account")
    assert refused.stderr.endswith("Nothing was changed; --lose-data allows it.\n")
    assert refused.stderr.count("\n") == 1
    assert described(sqlite_url) == before

    # when
    allowed = run("accountsvc", "db", "downgrade", "base", "--lose-data", env=env, folder=tmp_path)

    # then
    assert allowed.returncode == 0, allowed.stderr
    assert described(sqlite_url) == set()


def test_a_downgrade_that_cannot_be_is_one_sentence(sqlite_url: str, tmp_path: Path) -> None:
    env = environment(tmp_path, sqlite_url, **PRODUCTION)

    result = run("accountsvc", "db", "downgrade", "nonsense", env=env, folder=tmp_path)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Error: Can't locate revision identified by 'nonsense'\n"


def test_a_pair_of_keys_is_made_that_starts_a_process_and_keeps_the_old_one(
    tmp_path: Path,
) -> None:
    env = environment(tmp_path)

    made = run("accountsvc", "signing-key", env=env, folder=tmp_path)
    lines = dict(line.split("=", 1) for line in made.stdout.splitlines())
    code, cells, said = settings_of({**env, **lines}, tmp_path)

    assert made.returncode == 0, made.stderr
    assert list(lines) == ["LEDGER_SIGNING_KEY", "LEDGER_PUBLIC_KEYS"]
    assert lines["LEDGER_PUBLIC_KEYS"].split(",")[1:] == [PUBLIC_KEY]
    assert (code, said) == (0, "")
    assert cells["LEDGER_SIGNING_KEY"] == ["secret, set", "environment", "none"]


def test_a_worker_without_the_key_that_seals_does_not_start(tmp_path: Path) -> None:
    env = environment(tmp_path, LEDGER_SIGNING_KEY="", LEDGER_PUBLIC_KEYS=PUBLIC_KEY)

    result = run("accountsvc", "worker", env=env, folder=tmp_path)

    assert result.returncode == 2, result.stderr
    assert "accountsvc: LEDGER_SIGNING_KEY is not set, which the worker needs" in result.stderr


@pytest.mark.parametrize(("started_by", "seals"), [("gunicorn", False), ("flask", True)])
def test_the_web_holds_no_key_that_seals_and_the_operator_s_commands_do(
    tmp_path: Path, started_by: str, seals: bool
) -> None:
    env = environment(tmp_path, FLASK_RUN_FROM_CLI="true" if started_by == "flask" else "")
    look = (
        "from accountsvc.start.wsgi import app; services = app.extensions['accountsvc']; "
        "print(services.ledger.keys.can_sign, services.settings.ledger_signing_key is not None)"
    )

    result = run("python", "-c", look, env=env)

    assert result.stdout.splitlines()[-1] == f"{seals} {seals}", result.stderr
