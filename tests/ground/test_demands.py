"""What production demands, and how hosts and URLs are read: the same by whoever uses them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from limits.storage import RedisStorage, storage_from_string

from accountsvc import readers, urls
from accountsvc.config import ConfigError, load_settings
from accountsvc.production import different_bytes
from accountsvc.sources import make_keys
from tests.support.production import (
    OTHER_VAULT_KEY,
    PRODUCTION_ASKS,
    PUBLIC_KEY,
    SIGNING_KEY,
    VAULT_KEY,
)

PRODUCTION = PRODUCTION_ASKS | {
    "DATABASE_URL": "postgresql://accountsvc:pa55@db/accountsvc?sslmode=verify-full"
}
DATABASE = "postgresql://accountsvc:pa55@"


def refused(folder: Path, **changes: str | None) -> list[str]:
    """Return the lines with which production refuses *changes* of its settings; None: not set."""
    environ: dict[str, Any] = {**PRODUCTION, "INSTANCE_PATH": str(folder), **changes}
    try:
        load_settings({name: text for name, text in environ.items() if text is not None})
    except ConfigError as exc:
        lines = list(exc.lines)
    else:
        lines = []
    assert not [line for line in lines if "pa55" in line]
    return lines


def test_production_needs_its_settings_and_no_more(tmp_path: Path) -> None:
    assert refused(tmp_path) == []


def test_production_says_all_that_it_needs_in_one_start(tmp_path: Path) -> None:
    nothing: dict[str, str | None] = dict.fromkeys(PRODUCTION)

    lines = refused(tmp_path, **{**nothing, "APP_ENV": "production"})

    assert {line.split()[0] for line in lines} == set(PRODUCTION) - {"APP_ENV"}
    assert len(lines) == len(PRODUCTION) - 1
    assert all("; for example: " in line for line in lines)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY", None),
        ("VAULT_KEYS", None),
        ("LEDGER_PUBLIC_KEYS", None),
        ("LEDGER_PUBLIC_KEYS", ""),
        ("DATABASE_URL", None),
        ("DATABASE_URL", "sqlite:////var/lib/accounts.db"),
        ("REDIS_URL", None),
        ("MAIL_URL", None),
        ("MAIL_FROM", None),
        ("PUBLIC_URL", None),
        ("PUBLIC_URL", "http://accounts.example.org"),
        ("PUBLIC_URL", "https://example.org/accounts"),
        ("TRUSTED_PROXIES", None),
        ("CORS_ORIGINS", None),
        ("CORS_ORIGINS", "http://localhost:3000"),
        ("CORS_ORIGINS", "https://app.example.org,http://127.0.0.1:5173"),
        ("CORS_ORIGINS", "http://[::1]:3000"),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "https://app.example.org,*"),
        ("RATE_LIMITS", "off"),
        ("PURGE_BRAKE", "off"),
        ("PASSWORD_HASH_COST", "cheap"),
    ],
)
def test_production_refuses_what_is_good_enough_only_for_one_person(
    tmp_path: Path, name: str, value: str | None
) -> None:
    # Keys that a developer's machine has made are there, and must not be taken.
    make_keys({"INSTANCE_PATH": str(tmp_path)})

    (line,) = refused(tmp_path, **{name: value})

    assert line.startswith(f"{name} ")
    assert "for example" in line


def test_production_takes_sqlite_from_who_asks_for_it(tmp_path: Path) -> None:
    environ = {**PRODUCTION, "INSTANCE_PATH": str(tmp_path), "ALLOW_SQLITE": "1"}
    del environ["DATABASE_URL"]

    assert load_settings(environ).is_sqlite


@pytest.mark.parametrize("word", ["Production", "PRODUCTION", "prod", " production"])
def test_a_wrong_word_for_production_makes_no_keys_and_hides_no_demand(
    tmp_path: Path, word: str
) -> None:
    lines = refused(tmp_path, APP_ENV=word, TRUSTED_PROXIES=None)

    assert [line.split()[0] for line in lines] == ["APP_ENV", "TRUSTED_PROXIES"]
    assert make_keys({"INSTANCE_PATH": str(tmp_path / "i"), "APP_ENV": word}) == []


def test_who_has_no_proxy_and_no_app_says_so(tmp_path: Path) -> None:
    given = {**PRODUCTION, "INSTANCE_PATH": str(tmp_path)}

    made = load_settings({**given, "TRUSTED_PROXIES": "none", "CORS_ORIGINS": " none "})

    assert (made.trusted_proxies, made.cors_origins) == ((), ())
    for name in ("TRUSTED_PROXIES", "CORS_ORIGINS"):
        (line,) = refused(tmp_path, **{name: " , "})
        assert line.startswith(f"{name} names nothing")


# Secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY", "x" * 64),
        ("OPS_TOKEN", "x" * 64),
        ("OPS_TOKEN", "0123456789abcde" * 3),
        ("SECRET_KEY", "changeme" * 8),
        ("SECRET_KEY", "deadbeef" * 8),
        ("SECRET_KEY", "0123456789" * 4),
        ("VAULT_KEYS", "A" * 43 + "="),
        ("VAULT_KEYS", f"{VAULT_KEY},{'a2tr' * 10}a2s="),
        ("VAULT_KEYS", f"{'AAEC' * 10}AAE=,{OTHER_VAULT_KEY}"),
    ],
)
def test_a_secret_that_can_be_guessed_is_refused_and_not_shown(
    tmp_path: Path, name: str, value: str
) -> None:
    (line,) = refused(tmp_path, **{name: value})

    assert line.startswith(f"{name} ")
    assert "16 different bytes" in line
    assert value[:8] not in line


def test_a_signing_key_that_can_be_guessed_is_refused(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, LEDGER_PUBLIC_KEYS=None, LEDGER_SIGNING_KEY="a2tr" * 10 + "a2s=")

    assert line.startswith("LEDGER_SIGNING_KEY has fewer than 16 different bytes")


def test_the_public_key_comes_from_the_signing_one_where_it_is_not_set(tmp_path: Path) -> None:
    environ = {**PRODUCTION, "INSTANCE_PATH": str(tmp_path), "LEDGER_SIGNING_KEY": SIGNING_KEY}
    del environ["LEDGER_PUBLIC_KEYS"]

    made = load_settings(environ)

    assert [readers.key_text(key) for key in made.ledger_public_keys] == [PUBLIC_KEY]
    assert made.without_signing_key().ledger_signing_key is None
    assert made.without_signing_key().ledger_public_keys == made.ledger_public_keys


def test_a_signing_key_whose_public_key_is_not_listed_is_refused(tmp_path: Path) -> None:
    """Its own seals would count for nothing."""
    (line,) = refused(tmp_path, LEDGER_SIGNING_KEY=OTHER_VAULT_KEY)

    assert line.startswith("LEDGER_PUBLIC_KEYS does not hold the public key of LEDGER_SIGNING_KEY")


def test_sixteen_different_bytes_are_enough_and_fifteen_are_not(tmp_path: Path) -> None:
    assert refused(tmp_path, SECRET_KEY="ghijklmnopqrstuv" * 2) == []
    assert len(refused(tmp_path, SECRET_KEY="ghijklmnopqrstuu" * 2)) == 1
    assert refused(tmp_path, VAULT_KEYS=f"{VAULT_KEY},{OTHER_VAULT_KEY}") == []


def test_hexadecimal_counts_by_what_it_stands_for() -> None:
    """As text, each fourth secret of `openssl rand -hex 32` has fewer than 16 different digits."""
    assert different_bytes("00112233445566778899aabbccdd" * 2) == 14
    assert different_bytes("000102030405060708101112131415161718") == 18
    for _ in range(1000):
        assert different_bytes(secrets.token_hex(32)) >= 16


# TLS ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest",
    [
        "db/x",
        "db/x?sslmode=prefer",
        "db/x?sslmode=require",
        "db,other/x?sslmode=disable",
        "DB.Example.org/x",
        "/x?host=db",
        "/x?host=/run/postgresql&host=db",
        "/x?host=db:5432&host=127.0.0.1:5432",
        "localhost/x?host=db",
        "localhost/x?hostaddr=192.0.2.1",
        "[2001:db8::1]/x",
        "[::ffff:192.0.2.1]/x",
        "192.0.2.1/x",
        "127.1.example/x",
        "/x?service=db",
    ],
)
def test_a_database_over_a_network_wants_tls_that_is_checked(tmp_path: Path, rest: str) -> None:
    (line,) = refused(tmp_path, DATABASE_URL=DATABASE + rest)

    assert line.startswith("DATABASE_URL must have sslmode=verify-full")
    assert "PRIVATE_NETWORK" in line


@pytest.mark.parametrize(
    "rest",
    [
        "db/x?sslmode=verify-full",
        "db/x?sslmode=verify-ca&sslrootcert=%2Fetc%2Fca.pem",
        "db/x?sslrootcert=system",
        "/x",
        "/x?host=/run/postgresql",
        "/x?host=%2Frun%2Fpostgresql",
        "/x?host=@abstract",
        "localhost/x",
        "127.0.0.2/x",
        "[::1]/x",
        "[::ffff:127.0.0.1]/x",
        "Postgres/x",
        "postgres,b\u00fccher.example/x",
        "192.0.2.7/x",
        "[2001:DB8:0::7]/x",
    ],
)
def test_a_database_that_is_private_or_checks_is_taken(tmp_path: Path, rest: str) -> None:
    private = "postgres, B\u00dcCHER.example., 192.0.2.7, 2001:db8::7"

    assert refused(tmp_path, DATABASE_URL=DATABASE + rest, PRIVATE_NETWORK=private) == []


@pytest.mark.parametrize(
    ("name", "value"), [("PGHOST", "db"), ("PGHOSTADDR", "192.0.2.1"), ("PGSERVICE", "main")]
)
def test_what_libpq_reads_for_itself_opens_no_way_around(
    tmp_path: Path, name: str, value: str
) -> None:
    assert refused(tmp_path, DATABASE_URL=DATABASE + "/x") == []

    (line,) = refused(tmp_path, DATABASE_URL=DATABASE + "/x", **{name: value})

    assert line.startswith("DATABASE_URL ")


def test_libpq_s_own_sslmode_counts_where_the_url_has_none(tmp_path: Path) -> None:
    bare, switched_off = DATABASE + "db/x", DATABASE + "db/x?sslmode=disable"

    assert refused(tmp_path, DATABASE_URL=bare, PGSSLMODE="verify-full") == []
    for url, mode in ((bare, "require"), (switched_off, "verify-full")):
        assert len(refused(tmp_path, DATABASE_URL=url, PGSSLMODE=mode)) == 1


@pytest.mark.parametrize(
    ("name", "open_", "closed", "host"),
    [
        ("REDIS_URL", "redis://:pa55@Cache:6379/0", "rediss://:pa55@cache:6379/0", "cache"),
        ("REDIS_URL", "redis://[2001:db8::1]/0", "rediss://[2001:db8::1]/0", "2001:DB8::1"),
        ("CELERY_BROKER_URL", "redis://broker/1", "rediss://broker/1", "broker"),
        ("MAIL_URL", "smtp://relay/?tls=none", "smtp://relay/", "relay"),
        ("MAIL_URL", "smtp://RELAY:25/?tls=none", "smtps://relay", "relay"),
    ],
)
def test_what_is_asked_over_a_network_wants_tls_unless_it_is_private(
    tmp_path: Path, name: str, open_: str, closed: str, host: str
) -> None:
    (line,) = refused(tmp_path, **{name: open_})

    assert line.startswith(f"{name} must ")
    assert "PRIVATE_NETWORK" in line
    assert refused(tmp_path, **{name: open_}, PRIVATE_NETWORK=f"other,{host}") == []
    assert refused(tmp_path, **{name: open_}, PRIVATE_NETWORK=f"x{host}" if host.isalpha() else "x")
    assert refused(tmp_path, **{name: closed}) == []


@pytest.mark.parametrize("store", ["STORAGE_URL", "LEDGER_URL"])
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_store_wants_tls_unless_it_is_private(tmp_path: Path, store: str, name: str) -> None:
    stores = {store: "s3://bucket/x"}

    for endpoint in ("http://S3.example.org:9000", "http://[2001:db8::1]", "s3.example.org", "//["):
        (line,) = refused(tmp_path, **stores, **{name: endpoint})
        assert line.startswith(f"{name} must begin with https://")
    for endpoint in ("https://s3.example.org", "http://127.0.0.1:9000", "http://minio:9000"):
        assert refused(tmp_path, **stores, **{name: endpoint}, PRIVATE_NETWORK="MinIO") == []
    assert refused(tmp_path, **{name: "http://s3.example.org"}) == [], "no store is at S3"


@pytest.mark.parametrize(
    ("name", "open_", "host"),
    [
        ("DATABASE_URL", DATABASE + "DB.Example.org:5433/x", "db.example.org"),
        ("DATABASE_URL", DATABASE + "db,other/x?sslmode=disable", "db,other"),
        ("DATABASE_URL", DATABASE + "[2001:DB8::1]/x", "2001:db8::1"),
        ("DATABASE_URL", DATABASE + "[::ffff:192.0.2.1]/x", "192.0.2.1"),
        ("REDIS_URL", "redis://:pa55@B\u00fccher.example/0", "xn--bcher-kva.example"),
        ("CELERY_BROKER_URL", "redis://broker/1", "broker"),
        ("MAIL_URL", "smtp://relay/?tls=none", "relay"),
        ("AWS_ENDPOINT_URL", "http://minio:9000", "minio"),
    ],
)
def test_the_line_to_paste_exempts_the_host_and_keeps_those_that_are_exempt(
    tmp_path: Path, name: str, open_: str, host: str
) -> None:
    changes = {name: open_, "STORAGE_URL": "s3://bucket/x", "PRIVATE_NETWORK": "cache"}

    (line,) = refused(tmp_path, **changes)

    paste = line.partition("or name its host: PRIVATE_NETWORK=")[2].partition(";")[0]
    paste = paste.partition(" (")[0]
    assert paste == f"cache,{host}"
    assert refused(tmp_path, **{**changes, "PRIVATE_NETWORK": paste}) == []


def test_a_bucket_that_cannot_be_does_not_hide_the_fault_of_the_endpoint(tmp_path: Path) -> None:
    for store, why in (
        ("s3://b", "names a bucket with too short a name"),
        ("s3://bb/x", "names a bucket with too short a name"),
        ("s3://" + "b" * 64, "names a bucket with too long a name"),
        ("s3://Bucket", "does not name a bucket"),
    ):
        for name in ("STORAGE_URL", "LEDGER_URL"):
            of_store, of_endpoint = refused(
                tmp_path, **{name: store}, AWS_ENDPOINT_URL="http://minio:9000"
            )

            assert of_store.startswith(f"{name} {why}")
            assert of_endpoint.startswith("AWS_ENDPOINT_URL must begin with https://")


# Proxies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "everybody",
    [
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8, ::/0",
        "0.0.0.0/1,128.0.0.0/1",
        "2000::/3",
        "32.0.0.0/5,40.0.0.0/5",
    ],
)
def test_proxies_that_are_everybody_are_refused(tmp_path: Path, everybody: str) -> None:
    """A client would be a proxy, and could name any address as the one whose tries are counted."""
    (line,) = refused(tmp_path, TRUSTED_PROXIES=everybody)

    assert line.startswith("TRUSTED_PROXIES holds so many addresses of IPv")


def test_private_networks_may_be_proxies(tmp_path: Path) -> None:
    ours = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,fc00::/7,fe80::/10,127.0.0.1,::1"

    assert refused(tmp_path, TRUSTED_PROXIES=ours) == []


# URLs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("redis://redis", "redis://redis/0"),
        ("redis://Redis:6380/", "redis://redis:6380/0"),
        (" rediss://u:p%40ss%2F@redis/007 ", "rediss://u:p%40ss%2F@redis/7"),
        ("redis://:@[::1]:6379/2", "redis://:@[::1]:6379/2"),
        ("redis://b\u00fccher.example/1", "redis://xn--bcher-kva.example/1"),
        ("redis://fa\u00df.example/1", "redis://xn--fa-hia.example/1"),
    ],
)
def test_a_redis_url_means_the_same_to_throttle_and_broker(text: str, whole: str) -> None:
    url = urls.redis_url(text)

    assert url == urls.broker_url(text) == whole
    storage = storage_from_string(url)
    assert isinstance(storage, RedisStorage)
    throttle = storage.storage.connection_pool.connection_kwargs
    own = redis.Redis.from_url(url).connection_pool.connection_kwargs
    with Celery(broker=url).connection() as connection:
        broker = (
            connection.hostname,
            connection.port or 6379,
            connection.userid or "",
            connection.password or "",
            int(connection.virtual_host),
        )
    for read in (throttle, own):
        assert broker == (
            read["host"],
            read.get("port", 6379),
            read.get("username", ""),
            read.get("password", ""),
            read["db"],
        )


@pytest.mark.parametrize(
    "text",
    [
        "redis://redis/0?ssl_cert_reqs=none",
        "redis://redis/?db=3",
        "redis://redis/0?socket_timeout=1",
        "redis://redis/0#part",
        "redis://redis/abc",
        "redis://redis/-1",
        "redis://redis/1/2",
        "redis://redis/%31",
        "redis://redis/\u0663",
        "redis://one/0;redis://two/0",
        "redis://%2Frun%2Fredis.sock/0",
        "redis://redis /0",
        "redis://re\tdis/0",
        "redis://[fe80::1%25eth0]/0",
        "redis://\U0001f600.example/0",
        "REDIS://redis/0",
    ],
)
@pytest.mark.parametrize("name", ["REDIS_URL", "CELERY_BROKER_URL"])
def test_a_redis_url_that_only_some_would_understand_is_refused(
    tmp_path: Path, name: str, text: str
) -> None:
    lines = refused(tmp_path, PRIVATE_NETWORK="redis,one,two", **{name: text})

    assert [line.split()[0] for line in lines] == [name]


@pytest.mark.parametrize(
    ("text", "browsers"),
    [
        ("https://B\u00fccher.example/", "https://xn--bcher-kva.example"),
        ("https://fa\u00df.example", "https://xn--fa-hia.example"),
        ("https://\u65e5\u672c\u8a9e.example:8443", "https://xn--wgv71a119e.example:8443"),
        ("https://APP.example.org:443", "https://app.example.org"),
        ("http://app.example.org:80", "http://app.example.org"),
        ("http://app.example.org:443", "http://app.example.org:443"),
        ("https://[2001:DB8::1]:443", "https://[2001:db8::1]"),
    ],
)
def test_origins_and_the_public_url_are_what_a_browser_sends(text: str, browsers: str) -> None:
    assert urls.public_url(text) == browsers
    assert urls.origins(f"{text}, *") == (browsers, "*")


@pytest.mark.parametrize(
    "text",
    [
        "https://app.example.org/\u00fc",
        "https://u@app.example.org",
        "https://app.example.org?x=\u00fc",
        "https://app.example.org#x",
        "https://*.example.org",
        "https://-app.example.org",
        "https://app..example.org",
        "https://\u2100.example.org",
        "https://" + "a" * 64 + ".example",
    ],
)
def test_what_no_browser_sends_is_refused_in_both(text: str) -> None:
    for read in (urls.public_url, urls.origins):
        with pytest.raises(ValueError, match=r"\w+ \w+"):
            read(text)
