"""The whole service as ``compose.yaml`` starts it: PostgreSQL, Redis, S3, SMTP, two web processes, worker and beat."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.deploy import compose_command
from tests.support.factories import PASSWORD, SIGNING_KEY, png
from tests.support.processes import (
    OPS_TOKEN,
    Running,
    client_of,
    eventually,
    for_operations,
    is_ready,
    production,
)
from tests.support.s3 import S3Server, start_moto
from tests.support.servers import ValkeyServer
from tests.support.smtp import Inbox, smtp_server

# The engines are on this machine, to which production speaks without TLS; a mail server with a certificate is
# tested in test_mail, and what production demands of all others in test_demands.
NAMES = ("somebody.who.goes", "somebody.who.stays")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with start_moto() as server:
        yield server


class Person:
    """Somebody who uses the service over HTTP only."""

    def __init__(self, client: httpx.Client, name: str) -> None:
        self._client = client
        self.email = f"{name}@example.org"
        body = {"username": name, "email": self.email, "password": PASSWORD}
        made = client.post("/api/sign-up/", json=body)
        assert made.status_code == 201, made.text
        self.id = made.json()["user"]["id"]
        self.headers = {"Authorization": f"Bearer {made.json()['access']}"}
        for number in range(3):
            entry = {"name_pages": f"{name} {number}", "url": "", "password_saved": "zX7-mQ2_vB9!"}
            saved = client.post("/api/save-passwords/", json=entry, headers=self.headers)
            assert saved.status_code == 201, saved.text
        files = {"avatar": ("me.png", BytesIO(png()), "image/png")}
        shown = client.put(f"/api/profile/{self.id}/update/", files=files, headers=self.headers)
        assert shown.status_code == 200, shown.text
        self.avatar: str = shown.json()["avatar"]

    def has_everything(self) -> bool:
        listed = self._client.get("/api/view-all-saved-passwords/", headers=self.headers)
        avatar = self._client.get(self.avatar)
        return len(listed.json().get("passwords", ())) == 3 and avatar.status_code == 200


def statusz(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/statusz", headers=for_operations()).json()
    return found


def test_somebody_goes_and_somebody_stays_on_the_engines_of_production(
    postgresql_url: str, s3: S3Server, tmp_path: Path
) -> None:
    inbox, bucket = Inbox(), s3.make_bucket()
    with ValkeyServer() as redis, smtp_server(inbox) as mail_port:
        env = production(
            tmp_path,
            postgresql_url,
            redis=redis.url,
            bucket=bucket,
            mail=mail_port,
            **s3.env,
            GRACE_PERIOD="2s",
            SWEEP_INTERVAL="1s",
        )
        # What the web reads of the ledger needs no key to seal with.
        reader = {name: text for name, text in env.items() if name != "LEDGER_SIGNING_KEY"}
        with (
            Running(*compose_command("web"), env=reader) as web,
            Running(*compose_command("worker"), env=env) as worker,
            Running(*compose_command("beat"), env=env) as beat,
            client_of(env) as client,
        ):
            eventually(lambda: is_ready(client))
            goes, stays = (Person(client, name) for name in NAMES)

            # when
            deleted = client.delete(f"/api/profile/{goes.id}/delete/", headers=goes.headers)
            assert (deleted.status_code, deleted.content) == (204, b"")

            # then
            assert client.get(goes.avatar).status_code == 404
            eventually(lambda: [key for key in keys(s3, bucket) if key.startswith("ledger/")])
            # Redis, the store and the mail server are well, and nothing is owed any more.
            eventually(lambda: statusz(client)["backlog"]["owed"] == {})
            assert statusz(client)["status"] == "ok", statusz(client)
            assert set(statusz(client)["parts"].values()) == {"ok"}
            # What a worker is busy with is not counted as owed.
            eventually(lambda: avatars(s3, bucket) == [Path(stays.avatar).name])
            # The first may have been overtaken by the purge, and is then dropped.
            assert 1 <= len(inbox.messages) <= 2
            assert {one for told in inbox.recipients for one in told} == {goes.email}
            assert stays.has_everything()
            again = {"email": goes.email, "password": PASSWORD}
            assert client.post("/api/sign-in/", json=again).status_code == 401

            # Each web process shows what both have counted.
            seen = {answered(client, "/api/sign-up/") for _ in range(20)}
            assert seen == {2.0}

            # A stop ends everything, and nothing is left running.
            for process in (beat, worker, web):
                process.stop()
                assert process.ended_well(), process.log[-3000:]
                eventually(lambda process=process: process.alive() == [])
            logs = web.log + worker.log + beat.log
        assert "Traceback" not in logs
        for secret in (
            *NAMES,
            PASSWORD,
            OPS_TOKEN,
            env["SECRET_KEY"],
            env["VAULT_KEYS"],
            SIGNING_KEY,
        ):
            assert secret not in logs
            assert secret.encode() not in dump(redis)


def keys(s3: S3Server, bucket: str) -> list[str]:
    return [str(one["Key"]) for one in s3.client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def avatars(s3: S3Server, bucket: str) -> list[str]:
    return [Path(key).name for key in keys(s3, bucket) if key.startswith("avatars/")]


def answered(client: httpx.Client, route: str) -> float:
    """Return how many requests to *route* the web processes have counted."""
    wanted = f'accountsvc_http_requests_total{{method="POST",route="{route}",status="201"}}'
    shown = client.get("/metrics", headers=for_operations()).text
    (line,) = (line for line in shown.splitlines() if line.startswith(wanted))
    return float(line.rsplit(" ", 1)[1])


def dump(redis: ValkeyServer) -> bytes:
    with redis.client() as client:
        return b"".join(client.dump(key) or b"" for key in client.keys("*"))  # type: ignore[union-attr]
