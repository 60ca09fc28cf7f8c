"""The files for deployment agree with each other, with the settings and with what is served."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from accountsvc import bounds
from accountsvc.config import ConfigError, Settings, load_settings
from accountsvc.pages.links import LINKS, Link
from tests.support.deploy import (
    NGINX,
    ROOT,
    compose,
    compose_command,
    compose_environment,
    kubernetes,
    kubernetes_container,
    nginx_directives,
    nginx_location,
    nginx_refuses,
    procfile_command,
    systemd_command,
    systemd_environment,
    systemd_text,
    upgrade_values,
)
from tests.support.factories import SIGNING_KEY, dispose, make_app
from tests.support.production import PUBLIC_KEY, SECRET_KEY, VAULT_KEY

OURS = ("web", "worker", "beat")
# Read by gunicorn's configuration and by boto3.
OTHERS = {"HOST", "PORT"}


def known(name: str) -> bool:
    settings = {spec.metadata["name"] for spec in fields(Settings)}
    return name in settings | OTHERS or name.startswith("AWS_")


@pytest.mark.parametrize("process", OURS)
def test_every_way_to_deploy_starts_the_same_command(process: str) -> None:
    command = compose_command(process)

    assert systemd_command(process) == command
    assert kubernetes_container(process)["command"] == command


def test_the_procfile_starts_what_is_started_in_production() -> None:
    assert procfile_command("web") == compose_command("web")
    assert procfile_command("worker") == ["accountsvc", "worker", "--beat"]


def test_the_schema_is_brought_up_to_date_by_the_same_command() -> None:
    command = compose_command("migrate")

    assert kubernetes_container("migrate")["command"] == command
    assert " ".join(command) in (ROOT / "docs" / "operations.md").read_text()


def test_every_variable_that_is_set_is_a_setting() -> None:
    given = {
        name
        for service in compose()["services"].values()
        if service.get("image") == "accountsvc:latest"
        for name in service["environment"]
    }
    for document in kubernetes():
        if document["kind"] == "ConfigMap":
            given |= set(document["data"])

    assert len(given) > 10
    assert [name for name in given if not known(name)] == []


# What each example leaves to whoever uses it.
KEYS = {
    "SECRET_KEY": SECRET_KEY,
    "VAULT_KEYS": VAULT_KEY,
    "LEDGER_PUBLIC_KEYS": PUBLIC_KEY,
}
PASSWORDS = {"POSTGRES_PASSWORD": "one", "MINIO_ROOT_PASSWORD": "another"}
# What the Secret of the Kubernetes example holds.
SERVERS = {
    "DATABASE_URL": "postgresql://accountsvc:password@db.example.org/accountsvc?sslmode=verify-full",
    "REDIS_URL": "rediss://:password@redis.example.org/0",
    "MAIL_URL": "smtps://user:password@mail.example.org/",
}


@pytest.mark.parametrize("process", OURS)
def test_compose_starts_in_production_by_what_its_file_says(process: str) -> None:
    paste = upgrade_values()

    given = {**paste, **KEYS, **PASSWORDS, "LEDGER_SIGNING_KEY": SIGNING_KEY}
    settings = load_settings(compose_environment(process, given))

    assert settings.app_env == "production"
    # Whoever takes the web over could otherwise seal lines of people who were never purged.
    assert (settings.ledger_signing_key is not None) == (process == "worker")
    for name in (*KEYS, "PUBLIC_URL", "CORS_ORIGINS", "TRUSTED_PROXIES", *PASSWORDS):
        missing = {**given, name: ""}
        with pytest.raises((KeyError, ConfigError)):
            load_settings(compose_environment(process, missing))


def test_no_example_has_a_password_that_everybody_can_read() -> None:
    """ASVS 5.0, 13.2.3: each comes from whoever starts it, and an empty one stops the start."""
    given = {
        (service, name): value
        for service, what in compose()["services"].items()
        for name, value in what.get("environment", {}).items()
        if re.search("PASSWORD|SECRET|KEYS", name)
    }

    assert len(given) > 8
    assert {key: value for key, value in given.items() if not value.startswith("${")} == {}
    urls = {
        value
        for what in compose()["services"].values()
        for value in what.get("environment", {}).values()
        if "://" in value and "@" in value
    }
    assert urls
    assert [url for url in urls if not re.search(r"://[^:@/]+:\$\{\w+:\?[^}]*\}@", url)] == []


def test_systemd_and_kubernetes_start_in_production_by_what_their_files_say() -> None:
    (config,) = (one["data"] for one in kubernetes() if one["kind"] == "ConfigMap")

    for given in ({**systemd_environment(), **KEYS}, {**config, **SERVERS, **KEYS}):
        assert load_settings(given).app_env == "production"


def test_of_all_processes_the_worker_alone_is_given_the_key_that_seals() -> None:
    secrets = {
        name: [
            one["secretRef"]["name"]
            for one in kubernetes_container(name)["envFrom"]
            if "secretRef" in one
        ]
        for name in (*OURS, "migrate")
    }
    units = {
        name: "EnvironmentFile=/etc/accountsvc/signing\n" in systemd_text(name) for name in OURS
    }

    assert {name for name, given in secrets.items() if "accountsvc-signing" in given} == {"worker"}
    assert units == {"web": False, "worker": True, "beat": False}


def test_the_changelog_has_a_value_to_paste_for_whatever_production_asks_anew() -> None:
    paste = upgrade_values()
    without = {**SERVERS, **KEYS, "APP_ENV": "production", "MAIL_FROM": "a@example.org"}
    plain = {"REDIS_URL": "redis://redis/0", "DATABASE_URL": "postgresql://a@db/a"}

    with pytest.raises(ConfigError) as caught:
        load_settings({**without, "PUBLIC_URL": "http://accounts.example.org/x", **plain})

    asked = {line.split()[0] for line in caught.value.lines}
    assert asked == {"CORS_ORIGINS", "TRUSTED_PROXIES", "PUBLIC_URL", *plain}
    assert asked <= set(paste)
    assert load_settings({**without, **paste, **KEYS}).app_env == "production"


def test_every_example_gives_the_web_the_memory_that_it_may_take() -> None:
    given = [
        compose()["services"]["web"]["deploy"]["resources"]["limits"]["memory"],
        kubernetes_container("web")["resources"]["limits"]["memory"],
        *re.findall(r"^MemoryMax=(.*)$", systemd_text("web"), re.MULTILINE),
    ]

    assert len(given) == 3
    mebibytes = [int(re.sub("(Mi|M|m)$", "", one)) for one in given]
    assert all(one * 2**20 >= bounds.MEMORY_UNDER_UPLOADS for one in mebibytes)


def test_an_image_worker_that_is_ended_for_want_of_memory_stops_no_service() -> None:
    assert "\nOOMPolicy=continue\n" in systemd_text("web")


def test_every_probe_asks_for_what_is_served(sqlite_url: str, tmp_path: Path) -> None:
    web = kubernetes_container("web")
    asked = {web[name]["httpGet"]["path"] for name in ("readinessProbe", "livenessProbe")}
    asked |= set(re.findall(r"%s(/\w+)'", (ROOT / "Dockerfile").read_text()))

    assert asked == {"/healthz", "/readyz"}
    app = make_app(sqlite_url, tmp_path)
    assert asked <= {rule.rule for rule in app.url_map.iter_rules()}
    dispose(app)


@pytest.mark.parametrize("process", OURS)
def test_nobody_is_killed_before_the_work_ends(process: str) -> None:
    """Everything of ours ends within ten seconds of SIGTERM."""
    (spec,) = (
        one["spec"]["template"]["spec"]
        for one in kubernetes()
        if one["kind"] == "Deployment" and one["metadata"]["name"] == f"accountsvc-{process}"
    )

    assert spec["terminationGracePeriodSeconds"] > 10
    assert compose()["services"][process]["stop_grace_period"] == "15s"


# nginx in front ---------------------------------------------------------------------------------


def test_nginx_takes_its_example(tmp_path: Path) -> None:
    """By the table of directives, of their places and arguments, that nginx's makers publish."""
    assert nginx_refuses(NGINX.read_text(), tmp_path) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("client_body_timeout 30s;", "client_body_time 30s;"),
        ("    keepalive 32;", "    keepalive 32"),
        ("upstream accountsvc {", "client_max_body_size 6m {"),
        ("proxy_request_buffering on;", "proxy_request_buffering yes;"),
        ("listen 80;", "server 127.0.0.1;"),
        ("location / {", "location / "),
    ],
)
def test_what_nginx_would_refuse_is_found(tmp_path: Path, right: str, wrong: str) -> None:
    text = NGINX.read_text()
    assert right in text

    assert len(nginx_refuses(text.replace(right, wrong, 1), tmp_path)) >= 1


def test_nginx_passes_on_whole_requests_within_the_time_of_the_service() -> None:
    given = nginx_directives()

    assert ("proxy_request_buffering", "on") in given
    assert ("client_header_timeout", f"{bounds.HEAD_SECONDS}s") in given
    assert ("client_body_timeout", f"{bounds.BODY_SECONDS}s") in given
    # Room for the rest of the form.
    assert ("client_max_body_size", f"{bounds.IMAGE_BYTES // 2**20 + 1}m") in given


def test_nginx_passes_on_who_asks_and_for_which_request() -> None:
    passed = {one[1:] for one in nginx_directives() if one[0] == "proxy_set_header"}

    assert passed == {
        ("Connection", ""),
        ("Host", "$host"),
        ("X-Forwarded-For", "$proxy_add_x_forwarded_for"),
        ("X-Request-ID", "$request_id"),
    }


@pytest.mark.parametrize("link", LINKS)
def test_nginx_writes_no_mailed_token_into_a_log(link: Link) -> None:
    """The token is in the path; an error is logged with the path of its request."""
    block = nginx_location(f"{link.path}eyJhbGciOi.eyJzdWIi.c2ln")

    assert ("access_log", "off") in block
    assert ("error_log", "/dev/null", "crit") in block
    assert ("access_log", "off") not in nginx_location("/api/profile/")


def test_nginx_logs_neither_a_query_nor_where_somebody_came_from() -> None:
    (written,) = (" ".join(one[2:]) for one in nginx_directives() if one[0] == "log_format")

    assert "$uri" in written
    assert re.search(r"\$(request|request_uri|args|query_string|http_\w+)\b", written) is None


@pytest.mark.parametrize("path", ["/metrics", "/statusz", "/readyz"])
def test_nginx_shows_how_the_service_stands_to_its_own_network_only(path: str) -> None:
    assert ("deny", "all") in nginx_location(path)
    assert ("deny", "all") not in nginx_location("/api/profile/")
