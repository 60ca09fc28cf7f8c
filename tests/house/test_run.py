"""`make run` on a fresh checkout: prepare, serve, and the life of an account by HTTP alone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from gunicorn.util import parse_address

from accountsvc.start import listening
from tests.support.factories import PASSWORD, png
from tests.support.processes import ROOT, STOP, Running, environment, eventually, run
from tests.support.servers import free_port


def fresh(folder: Path, **changes: str) -> dict[str, str]:
    """The environment of somebody who has just cloned it: no key, no database, no server."""
    env = environment(folder)
    for name in ("SECRET_KEY", "VAULT_KEYS", "LEDGER_SIGNING_KEY", "DATABASE_URL"):
        del env[name]
    return {**env, **changes}


# Prepare ----------------------------------------------------------------------------------------


def test_prepare_makes_keys_folder_and_schema_and_can_be_repeated(tmp_path: Path) -> None:
    env = fresh(tmp_path)
    instance = tmp_path / "instance"

    first = run("python", "-m", "accountsvc", "prepare", env=env)
    keys = {path.name: path.read_bytes() for path in instance.glob("*key*")}
    second = run("python", "-m", "accountsvc", "prepare", env=env)
    listed = run("flask", "--app", "wsgi", "accounts", "list", "--json", env=env)

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert set(keys) == {"secret_key", "vault_keys", "ledger_signing_key"}
    for path in instance.glob("*key*"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes() == keys[path.name]
        assert keys[path.name].decode().strip() not in first.stdout + second.stdout
    assert "made SECRET_KEY" in first.stdout
    assert "made" not in second.stdout
    assert instance.stat().st_mode & 0o777 == 0o700
    assert listed.stdout == "[]\n"


def test_prepare_says_after_an_upgrade_that_the_ledger_waits_for_its_seals(tmp_path: Path) -> None:
    env = fresh(tmp_path)
    fresh_one = run("python", "-m", "accountsvc", "prepare", env=env)
    old = tmp_path / "instance" / "ledger" / "2026" / "10" / f"{uuid.uuid4()}.jsonl"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"public_id": str(uuid.uuid4())}) + "\n")

    upgraded = run("python", "-m", "accountsvc", "prepare", env=env)

    assert "seal" not in fresh_one.stdout
    assert upgraded.returncode == 0
    assert "1 object of the ledger has no seal" in upgraded.stdout
    assert "run `accountsvc ledger adopt`" in upgraded.stdout


def test_prepare_says_by_id_who_has_the_mailbox_of_another_account(tmp_path: Path) -> None:
    env = fresh(tmp_path)
    run("python", "-m", "accountsvc", "prepare", env=env)
    before = run("python", "-m", "accountsvc", "prepare", env=env)
    (path,) = (tmp_path / "instance").glob("*.db")
    with closing(sqlite3.connect(path)) as connection, connection:
        for number in (3, 8):
            connection.execute(
                "INSERT INTO accounts (id, public_id, username, username_key, email, email_key,"
                " first_name, last_name, number_phone, password_hash, joined_at) VALUES"
                " (:id, :id, :id, :id, 'ann@example.org', 'KEPT:' || :id, '', '', '', 'x',"
                " '2026-01-02 03:04:05.000006')",
                {"id": str(number)},
            )

    upgraded = run("python", "-m", "accountsvc", "prepare", env=env)

    assert "mailbox" not in before.stdout
    assert upgraded.returncode == 0, upgraded.stderr
    assert (
        "accountsvc: 2 accounts have the mailbox of another account in another spelling, and are "
        "found by their own: 3, 8\n"
    ) in upgraded.stdout
    assert "@" not in upgraded.stdout


def test_prepare_succeeds_beside_a_ledger_that_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    env = fresh(tmp_path, LEDGER_URL=f"file://{tmp_path}/file/ledger")

    result = run("python", "-m", "accountsvc", "prepare", env=env)

    assert (result.returncode, result.stderr) == (0, "")
    assert "seal" not in result.stdout


def test_a_process_that_finds_no_keys_says_what_to_do_and_makes_none(tmp_path: Path) -> None:
    result = run("flask", "--app", "wsgi", "accounts", "list", env=fresh(tmp_path))

    assert result.returncode != 0
    assert "run `python -m accountsvc prepare`" in result.stderr
    assert not (tmp_path / "instance" / "secret_key").exists()


def test_prepare_in_production_makes_no_keys(tmp_path: Path) -> None:
    result = run("python", "-m", "accountsvc", "prepare", env=fresh(tmp_path, APP_ENV="production"))

    assert result.returncode == 2
    assert "accountsvc: SECRET_KEY is not set" in result.stderr
    assert not (tmp_path / "instance").exists()


@pytest.mark.parametrize(
    ("changes", "code", "sentence"),
    [
        ({"INSTANCE_PATH": "/dev/null/instance"}, 1, "the instance folder cannot be written"),
        ({"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, 1, "the database refused"),
        ({"PORT": "0"}, 2, "PORT must be between 1 and 65535"),
    ],
)
def test_what_cannot_be_prepared_is_one_line(
    tmp_path: Path, changes: dict[str, str], code: int, sentence: str
) -> None:
    result = run("python", "-m", "accountsvc", "prepare", env=fresh(tmp_path, **changes))

    assert result.returncode == code, result.stderr
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [(), ("nonsense",), ("prepare", "more")])
def test_wrong_arguments_are_bad_usage(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = run("python", "-m", "accountsvc", *words, env=fresh(tmp_path))

    assert result.returncode == 2
    assert "usage: python -m accountsvc" in result.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_folder_that_the_terminal_cannot_write_is_escaped(tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / "žlut"
    env = fresh(tmp_path, INSTANCE_PATH=str(folder), PYTHONIOENCODING=encoding)

    prepared = run("python", "-m", "accountsvc", "prepare", env=env)
    listed = run("python", "-m", "accountsvc", "settings", env=env)

    assert (prepared.returncode, prepared.stderr) == (0, "")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "\\u017elut" in prepared.stdout


def test_the_service_runs_where_its_output_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "žlut"
    env = fresh(
        tmp_path, INSTANCE_PATH=str(folder), PYTHONIOENCODING="ascii", PORT=str(free_port())
    )
    assert run("python", "-m", "accountsvc", "prepare", env=env).returncode == 0

    with Running("python", "-m", "accountsvc", "run", env=env) as running:
        running.wait_for("everything runs")
        running.wait_for("\\u017elut/mail")
        running.stop()
        assert "Traceback" not in running.log


def test_prepare_needs_no_stdout(tmp_path: Path) -> None:
    words = ["sh", "-c", 'exec "$0" -m accountsvc prepare >&-', sys.executable]

    result = subprocess.run(
        words, env=fresh(tmp_path), cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stderr) == (0, "")


# Run --------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Running, httpx.Client]]:
    """All processes on a free port, with a grace period of three seconds."""
    port = free_port()
    env = fresh(tmp_path, GRACE_PERIOD="3s", SWEEP_INTERVAL="1s", PORT=str(port))
    # Nothing but the virtual environment is needed.
    env["PATH"] = "/usr/bin:/bin"
    prepared = run("python", "-m", "accountsvc", "prepare", env=env)
    assert prepared.returncode == 0, prepared.stderr
    url = f"http://localhost:{port}"
    with (
        Running("python", "-m", "accountsvc", "run", env=env) as running,
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        running.wait_for(f"serving {url}")
        eventually(lambda: is_served(client))
        yield running, client


def is_served(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


class Somebody:
    """A person who signs up, saves three passwords and uploads an avatar, by HTTP."""

    def __init__(self, client: httpx.Client, name: str) -> None:
        self.name, self.email = name, f"{name}@mail.example"
        answer = client.post(
            "/api/sign-up/",
            json={"username": name, "email": self.email, "password": PASSWORD}
            | {"first_name": "", "last_name": "", "number_phone": ""},
        )
        assert answer.status_code == 201, answer.text
        self.id: int = answer.json()["user"]["id"]
        self.auth = {"Authorization": f"Bearer {answer.json()['access']}"}
        for number in range(3):
            saved = client.post(
                "/api/save-passwords/",
                json={"name_pages": "site", "url": "", "password_saved": f"{name} {number}"},
                headers=self.auth,
            )
            assert saved.status_code == 201, saved.text
        updated = client.put(
            f"/api/profile/{self.id}/update/",
            files={"avatar": ("me.png", png(), "image/png")},
            headers=self.auth,
        )
        assert updated.status_code == 200, updated.text
        self.avatar: str = updated.json()["avatar"]

    def passwords(self, client: httpx.Client) -> list[str]:
        answer = client.get("/api/view-all-saved-passwords/", headers=self.auth)
        return sorted(one["password_saved"] for one in answer.json()["passwords"])


def test_a_deleted_account_is_gone_from_the_instance_folder_and_the_other_has_everything(
    served: tuple[Running, httpx.Client], tmp_path: Path
) -> None:
    # given
    running, client = served
    instance = tmp_path / "instance"
    gone, stays = Somebody(client, "zebulonia"), Somebody(client, "yvonnette")
    files = [path for path in (instance / "media").rglob("*") if path.is_file()]
    assert len(files) == 2

    # when
    answer = client.delete(f"/api/profile/{gone.id}/delete/", headers=gone.auth)

    # then: at once
    assert (answer.status_code, answer.content) == (204, b"")
    assert "Sunset" in answer.headers
    assert client.get("/api/profile/", headers=gone.auth).status_code == 401
    signed_in = client.post("/api/sign-in/", json={"email": gone.email, "password": PASSWORD})
    # Or it is purged already, where three seconds are not much.
    assert signed_in.status_code in {401, 403}
    assert client.get(gone.avatar).status_code == 404

    # then: after the grace period
    receipts = eventually(lambda: scrubbed_receipts(instance))
    assert len(receipts) == 1
    assert receipts[0][:2] == (3, 1)
    for path in instance.rglob("*"):
        if path.is_file() and "mail" not in path.relative_to(instance).parts:
            content = path.read_bytes()
            assert gone.name.encode() not in content, path
    left = [path for path in (instance / "media").rglob("*") if path.is_file()]
    assert len(left) == 1
    assert rows_left(instance) == {"accounts": 1, "saved_passwords": 3, "vault_keys": 1}
    lines = [
        json.loads(line)
        for path in (instance / "ledger").rglob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    receipt, seal = lines
    assert receipt["saved_passwords"] == 3
    assert list(seal) == ["seal"]
    assert stays.passwords(client) == [f"yvonnette {number}" for number in range(3)]
    assert client.get(stays.avatar).status_code == 200
    assert gone.name not in running.log
    assert "Traceback" not in running.log


def scrubbed_receipts(instance: Path) -> list[tuple[int, int]]:
    with sqlite3.connect(instance / "accountsvc.db", timeout=30) as database:
        return database.execute(
            "SELECT saved_passwords, files FROM receipts WHERE public_id IN"
            " (SELECT public_id FROM receipt_facts WHERE fact = 'scrubbed')"
        ).fetchall()


def rows_left(instance: Path) -> dict[str, int]:
    with sqlite3.connect(instance / "accountsvc.db", timeout=30) as database:
        return {
            table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("accounts", "saved_passwords", "vault_keys")
        }


@pytest.mark.parametrize(
    ("how", "group"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True)],
    ids=["Ctrl-C", "SIGTERM", "closed terminal"],
)
def test_a_signal_stops_everything_and_leaves_no_process(
    served: tuple[Running, httpx.Client], tmp_path: Path, how: signal.Signals, group: bool
) -> None:
    running, client = served
    running.wait_for("worker is ready")
    assert len(running.alive()) > 4

    running.stop(how, group=group)

    assert running.process.returncode == 0
    eventually(lambda: running.alive() == [])
    assert not is_served(client)
    assert "Traceback" not in running.log
    # All that was written lies in the instance folder.
    assert [path.name for path in tmp_path.iterdir()] == ["instance"]


def test_one_process_that_dies_stops_the_others(
    served: tuple[Running, httpx.Client],
) -> None:
    running, _ = served
    running.wait_for("worker is ready")
    worker = next(pid for pid in running.alive() if is_worker(pid))

    os.kill(worker, signal.SIGKILL)

    running.process.wait(STOP)
    assert running.process.returncode != 0
    eventually(lambda: running.alive() == [])


def is_worker(pid: int) -> bool:
    """Say whether this is the worker itself, which leads the session of all that it forks."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"celery" in words and os.getsid(pid) == pid


def test_when_the_runner_is_killed_its_processes_end(
    served: tuple[Running, httpx.Client],
) -> None:
    running, client = served
    running.wait_for("everything runs")
    assert any(is_worker(pid) for pid in running.alive())

    os.kill(running.process.pid, signal.SIGKILL)

    running.process.wait(STOP)
    eventually(lambda: running.alive() == [])
    assert not is_served(client)


def test_once_all_are_ready_the_last_lines_say_where_to_look(
    served: tuple[Running, httpx.Client], tmp_path: Path
) -> None:
    running, client = served

    running.wait_for("README.md")

    said = running.log.partition("accountsvc: everything runs")[2]
    for words in (f"{client.base_url}/api/docs/", str(tmp_path / "instance" / "mail"), "Ctrl-C"):
        assert words in said
    assert client.get("/api/docs/").status_code == 200


@pytest.mark.parametrize(
    ("called_by", "advice"),
    [({}, "python -m accountsvc run"), ({"MAKELEVEL": "1"}, "make run")],
    ids=["by itself", "by make"],
)
def test_a_taken_port_is_one_line_before_anything_is_started(
    tmp_path: Path, called_by: dict[str, str], advice: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        env = environment(tmp_path, PORT=str(port), **called_by)

        result = run("python", "-m", "accountsvc", "run", env=env)

    assert result.returncode == 1
    assert re.fullmatch(
        rf"accountsvc: port {port} is taken; for example: PORT=[0-9]+ {advice}\n", result.stderr
    )
    assert result.stdout == ""
    assert not (tmp_path / "instance").exists()


def has_ipv6() -> bool:
    """Say whether this machine can listen at ::1; in many containers there is no IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


# Where another service may listen already, and which HOST is then taken.
TAKEN = [("127.0.0.1", ""), ("127.0.0.1", "0.0.0.0"), ("127.0.0.1", "localhost")]
if has_ipv6():
    # The URL that is shown says localhost, which browsers look up as ::1 first.
    TAKEN += [("::1", ""), ("::1", "::1"), ("::1", "[::1]")]


@pytest.mark.parametrize(("taken", "host"), TAKEN)
def test_a_port_is_taken_at_whichever_address_its_url_leads_to(
    tmp_path: Path, taken: str, host: str
) -> None:
    family = socket.AF_INET6 if ":" in taken else socket.AF_INET
    with socket.create_server((taken, 0), family=family) as other:
        port = other.getsockname()[1]
        env = environment(tmp_path, PORT=str(port), HOST=host)

        result = run("python", "-m", "accountsvc", "run", env=env)

    assert result.returncode == 1
    assert result.stderr.startswith(f"accountsvc: port {port} is taken; for example: PORT=")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("", ("127.0.0.1", 8000)),
        ("0.0.0.0", ("0.0.0.0", 8000)),
        ("::1", ("::1", 8000)),
        ("[::]", ("::", 8000)),
    ],
)
def test_gunicorn_reads_the_address_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, host: str, address: tuple[str, int]
) -> None:
    monkeypatch.setenv("HOST", host)

    assert parse_address(listening.bind(8000)) == address


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b"])
def test_an_address_that_nothing_can_listen_at_is_one_line(tmp_path: Path, host: str) -> None:
    port = str(free_port())

    result = run(
        "python", "-m", "accountsvc", "run", env=environment(tmp_path, HOST=host, PORT=port)
    )

    assert result.returncode == 1
    assert result.stderr.startswith(f"accountsvc: nothing can listen at port {port} of '{host}': ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_every_process_knows_the_port_and_none_tells_its_version(
    served: tuple[Running, httpx.Client],
) -> None:
    running, client = served
    running.wait_for("worker is ready")

    ports = {
        words.split(b"=", 1)[1]
        for pid in running.alive()
        for words in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if words.startswith(b"PORT=")
    }

    # The worker mails links to it.
    assert ports == {str(client.base_url.port).encode()}
    assert client.get("/healthz").headers["Server"] == "accountsvc"


def test_make_run_prepares_and_runs_what_is_tested_here() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nrun: ")[2].partition("\n\n")[0]

    assert "python -m accountsvc run --prepare" in recipe


def test_a_taken_port_is_said_before_a_schema_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        result = run(
            "python", "-m", "accountsvc", "run", "--prepare", env=fresh(tmp_path, PORT=str(port))
        )

    assert result.returncode == 1
    assert f"accountsvc: port {port} is taken; for example: PORT=" in result.stderr
    assert not list(tmp_path.rglob("*.db"))


def test_run_prepares_first_if_asked(tmp_path: Path) -> None:
    with Running(
        "python", "-m", "accountsvc", "run", "--prepare", env=fresh(tmp_path, PORT=str(free_port()))
    ) as running:
        running.wait_for("the database has the current schema")
        running.wait_for("everything runs")
