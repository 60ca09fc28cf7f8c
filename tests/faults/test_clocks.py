"""Hosts whose clocks are half a minute apart: nobody is purged early, no token is refused, no work waits for ever.

Every process but the database's believes a clock that is wrong (libfaketime).
"""

from __future__ import annotations

import time
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import libfaketime
import psycopg
import pytest

from tests.support.deploy import compose_command
from tests.support.factories import PASSWORD
from tests.support.processes import Running, client_of, eventually, is_ready, production
from tests.support.s3 import start_moto
from tests.support.servers import ValkeyServer, free_port
from tests.support.smtp import Inbox, smtp_server

LIBRARY = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
EARLY, LATE = -15, 15


def believing(env: dict[str, str], offset: int) -> dict[str, str]:
    """Return *env* for a host whose clock is *offset* seconds from the right time."""
    return {
        **env,
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME": f"{offset:+d}s",
        # Only the time of day is wrong; and gunicorn dates a file by the monotonic clock.
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


@pytest.mark.parametrize(
    ("first", "second"), [(EARLY, LATE), (LATE, EARLY)], ids=["early-late", "late-early"]
)
def test_hosts_whose_clocks_differ_purge_nobody_early_and_refuse_no_token(
    postgresql_url: str, tmp_path: Path, first: int, second: int
) -> None:
    # given: one web process and beat on a host, the other web process and the worker on another
    inbox = Inbox()
    with ValkeyServer() as redis, smtp_server(inbox) as mail, start_moto() as s3:
        env = production(
            tmp_path,
            postgresql_url,
            redis=redis.url,
            bucket=s3.make_bucket(),
            mail=mail,
            **s3.env,
            GRACE_PERIOD="30s",
            SWEEP_INTERVAL="1s",
        )
        other_env = {**env, "PORT": str(free_port())}
        with (
            Running(*compose_command("web"), env=believing(env, first)) as web,
            Running(*compose_command("web"), env=believing(other_env, second)) as other_web,
            Running(*compose_command("worker"), env=believing(env, second)) as worker,
            Running(*compose_command("beat"), env=believing(env, first)) as beat,
            client_of(env) as here,
            client_of(other_env) as there,
            psycopg.connect(postgresql_url, autocommit=True) as database,
        ):
            eventually(lambda: is_ready(here) and is_ready(there))
            worker.wait_for("worker is ready")
            assert abs(skew(here) - first) < 10 > abs(skew(there) - second)

            # when: what one host issues, the other one reads, in both directions
            for made, used in ((here, there), (there, here)):
                name = f"somebody{made.base_url.port}"
                body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
                signed = made.post("/api/sign-up/", json=body)
                assert signed.status_code == 201, signed.text
                access, refresh = signed.json()["access"], signed.json()["refresh"]
                auth = {"Authorization": f"Bearer {access}"}
                assert used.get("/api/profile/", headers=auth).status_code == 200
                renewed = used.post("/api/token/refresh/", json={"refresh": refresh})
                assert renewed.status_code == 200, renewed.text
                path = f"/api/profile/{signed.json()['user']['id']}/delete/"
                deleted = used.delete(path, headers=auth)
                assert deleted.status_code == 204, deleted.text
                known = {"email": body["email"], "password": PASSWORD}
                told = made.post("/api/sign-in/", json=known)
                assert told.status_code == 403, told.text
                recovery = {"token": told.json()["recovery_token"]}
                back = used.post("/api/profile/reactivate/", json=recovery)
                assert back.status_code == 200, back.text
                again = {"Authorization": f"Bearer {back.json()['access']}"}
                assert made.delete(path, headers=again).status_code == 204

            # then: each goes, and by the database's clock not before the time
            purge_at = dict(database.execute("SELECT public_id, purge_at FROM accounts").fetchall())
            assert len(purge_at) == 2
            first_missed: dict[object, datetime] = {}

            def all_gone() -> bool:
                left = {one for (one,) in database.execute("SELECT public_id FROM accounts")}
                ((now,),) = database.execute("SELECT clock_timestamp()")
                for gone in purge_at.keys() - left:
                    first_missed.setdefault(gone, now)
                return not left

            eventually(all_gone)
            for public_id, due in purge_at.items():
                assert first_missed[public_id] >= due
            # And the mails, which have a tick of their own, are sent.
            eventually(lambda: len(inbox.messages) >= 4)
            for one in (web, other_web, worker, beat):
                assert "Traceback" not in one.log


def skew(client: httpx.Client) -> float:
    """Return by how many seconds the clock of a web process differs from this one's, roughly."""
    told = parsedate_to_datetime(client.get("/healthz").headers["Date"])
    return told.timestamp() - time.time()
