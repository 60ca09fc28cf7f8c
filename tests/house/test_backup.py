"""``accountsvc backup`` and ``restore``: by real processes, under load, killed, and with bad files."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import pytest

from accountsvc.db.soundness import log_of, refuse_unsound
from accountsvc.services import Services, build_services
from tests.support.factories import (
    PASSWORD,
    deactivate,
    make_account,
    make_due,
    make_person,
    make_settings,
    numbered,
)
from tests.support.processes import PYTHON, ROOT, START, Running, environment, run
from tests.support.servers import free_port
from tests.support.state import belongings, events, read_account


def make_place(folder: Path) -> Path:
    place = folder / "instance" / "accountsvc.db"
    place.parent.mkdir(mode=0o700)
    shutil.copy(os.environ["ACCOUNTSVC_TEST_SQLITE"], place)
    place.chmod(0o600)
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The database of an instance that `prepare` would make."""
    return make_place(tmp_path)


@pytest.fixture
def env(tmp_path: Path, place: Path) -> dict[str, str]:
    return environment(tmp_path, f"sqlite:///{place}", PORT=str(free_port()))


@pytest.fixture
def opened(tmp_path: Path, place: Path) -> Iterator[Callable[[], Services]]:
    """Open the database as it is at that moment; who restores it closes it before."""
    made: list[Services] = []

    def make() -> Services:
        made.append(build_services(make_settings(f"sqlite:///{place}", tmp_path)))
        return made[-1]

    yield make
    for services in made:
        services.database.engine.dispose()


def close(services: Services) -> None:
    services.database.engine.dispose()


def command(env: dict[str, str], *words: object) -> CompletedProcess[str]:
    return run("accountsvc", *map(str, words), env=env)


def names(place: Path) -> set[str]:
    """Everybody's name, and that the file is sound with whatever log lies beside it."""
    refuse_unsound(place, wholly=True)
    with closing(sqlite3.connect(place)) as database:
        return {name for (name,) in database.execute("SELECT username FROM accounts")}


# Under load --------------------------------------------------------------------------------------


def test_a_backup_under_load_brings_people_back_with_all_that_is_theirs(
    env: dict[str, str], place: Path, opened: Callable[[], Services], tmp_path: Path
) -> None:
    # given: the service runs, and somebody signs up all the time
    file = tmp_path / "backup.zip"
    services = opened()
    ann, bob = make_person(services, "ann"), make_person(services, "bob")
    deactivate(services, bob.id)
    before = {person.id: belongings(services, person) for person in (ann, bob)}
    done = threading.Event()
    signed_up = 0

    def load() -> None:
        nonlocal signed_up
        while not done.is_set():
            make_account(services, f"load{signed_up}")
            signed_up += 1

    with Running("accountsvc", "run", env=env) as running:
        running.wait_for("worker is ready")
        running.wait_for("serving http://")
        thread = threading.Thread(target=load)
        thread.start()

        # when
        made = command(env, "backup", file)
        done.set()
        thread.join()
        refused = command(env, "restore", file)
        running.stop()
    close(services)

    # then
    assert made.returncode == 0, made.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert refused.returncode == 1
    assert refused.stderr == (
        f"accountsvc: {place} is in use: stop web, worker, beat and every command first\n"
    )
    assert signed_up > 0
    # when: all is lost, and put back
    for path in place.parent.rglob("*"):
        if path.is_file():
            path.unlink()
    restored = command(env, "restore", file)
    assert restored.returncode == 0, restored.stderr
    with Running("accountsvc", "run", "--prepare", env=env) as running:
        running.wait_for("serving http://")
        with httpx.Client(base_url=f"http://127.0.0.1:{env['PORT']}", timeout=60) as client:
            login = {"email": ann.email, "password": PASSWORD}
            assert client.post("/api/sign-in/", json=login).status_code == 200
        running.stop()
    # then
    services = opened()
    for person in (ann, bob):
        found = belongings(services, person)
        assert found["row"] == before[person.id]["row"]
        assert found == before[person.id]
    assert names(place) - {"ann", "bob"} <= set(numbered("load", signed_up))


def test_the_commands_of_the_runbook_purge_again_who_was_purged_and_nobody_else(
    env: dict[str, str], place: Path, opened: Callable[[], Services], tmp_path: Path
) -> None:
    # given: somebody was purged before the backup, and somebody after it
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.partition("## Backup and restore of the embedded database")[2]
    section = section.partition("\n## ")[0].replace("/srv/backups", str(tmp_path))
    lines = re.findall(r"^ {4}accountsvc (.*)$", section, re.MULTILINE)
    assert [line.split()[0] for line in lines] == [
        "backup",
        "restore",
        "ledger",
        "ledger",
        "accounts",
        "sweeps",
        "avatars",
    ]
    services = opened()
    people = {name: make_person(services, name) for name in ("old", "kim", "ann", "due")}
    for name in ("old", "due"):
        make_due(services, people[name])
    services.sweep(only=[people["old"].id])
    stand = services.ledger.newest(objects=1).objects[0].link.name
    assert command(env, *lines[0].split()).returncode == 0
    make_due(services, people["kim"])
    services.sweep(only=[people["kim"].id])
    close(services)

    # when
    said = [command(env, *lines[1].split())]
    before = command(env, "ledger", "verify")
    said += [command(env, *line.split()) for line in lines[2:]]
    after = command(env, "ledger", "verify")

    # then
    assert [one.returncode for one in said] == [0] * 6, said
    assert (before.returncode, after.returncode) == (1, 0)
    # No worker has deleted kim's yet; said as "0 put back" alone, that would read as a loss.
    assert "; 3 avatar files: 0 put back, 3 there already\n" in said[0].stdout
    assert "purging is paused" in said[0].stdout
    stood = rf"the ledger then stood at \d{{4}}-\S+Z \({re.escape(stand)}\)"
    assert re.search(stood, said[0].stdout)
    assert "1 purged account is back" in before.stderr
    assert said[2].stdout.endswith("\nPurged: 1 account, 3 saved passwords and 1 file.\n")
    assert "due@example.org" in said[3].stdout
    services = opened()
    assert read_account(services, people["kim"].id) is None
    assert len(belongings(services, people["ann"])["passwords"]) == 3
    assert [event.actor_kind for event in events(services, "purge.paused")] == ["operator"]
    # What it printed is what comes next in the runbook.
    assert re.findall(r"^  accountsvc (.*)$", said[0].stdout, re.MULTILINE) == lines[2:]


# Killed ------------------------------------------------------------------------------------------

# The child kills itself with the system's own signal, before or after one step.
KILL = """
import os, signal, sys
from pathlib import Path
from accountsvc.start import backup, restore
words, module, name, when, file = sys.argv[1:]
held = {"backup": backup, "restore": restore, "os": os}[module]
real = getattr(held, name)
def step(*arguments, **options):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(held, name, step)
{"backup": backup.backup, "restore": restore.restore}[words](Path(file))
"""


def killed(env: dict[str, str], command: str, where: str, when: str, file: Path) -> None:
    module, _, name = where.partition(".")
    ended = subprocess.run(
        [PYTHON, "-c", KILL, command, module, name, when, str(file)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        timeout=START,
        check=False,
    )
    assert ended.returncode == -9, ended.stderr


@pytest.fixture(scope="module")
def left_by_kill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instance as SIGKILL left it, and `past.zip` from when only ann was there.

    Bob came since, and is in the log alone. It is made once, and each test has a copy.
    """
    folder = tmp_path_factory.mktemp("past")
    place = make_place(folder)
    services = build_services(make_settings(f"sqlite:///{place}", folder))
    make_person(services, "ann")
    made = command(environment(folder, f"sqlite:///{place}"), "backup", folder / "past.zip")
    assert made.returncode == 0, made.stderr
    make_person(services, "bob")
    # As SIGKILL leaves it: the log has been taken in by nobody.
    for path in (place, log_of(place)):
        shutil.copy(path, folder / path.name)
    close(services)
    for path in (place, log_of(place)):
        shutil.move(folder / path.name, path)
    return folder


@pytest.fixture
def past(left_by_kill: Path, place: Path, tmp_path: Path) -> Path:
    """A backup from when only ann was there; bob came since, and is in the log alone."""
    shutil.copytree(left_by_kill, tmp_path, dirs_exist_ok=True)
    assert log_of(place).stat().st_size > 0
    return tmp_path / "past.zip"


@pytest.mark.parametrize("where", ["backup.copy_database", "backup._pack", "os.replace"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_backup_that_is_killed_is_whole_or_not_there(
    env: dict[str, str], past: Path, place: Path, tmp_path: Path, where: str, when: str
) -> None:
    file = tmp_path / "killed.zip"

    killed(env, "backup", where, when, file)

    whole = (where, when) == ("os.replace", "after")
    assert file.exists() == whole
    if whole:
        with zipfile.ZipFile(file) as packed:
            assert packed.testzip() is None
            assert json.loads(packed.read("backup.json"))["accounts"] == 2
    else:
        # What it has left is in nobody's way.
        again = command(env, "backup", file)
        assert again.returncode == 0, again.stderr
    assert names(place) == {"ann", "bob"}
    assert [path.name for path in tmp_path.glob("*.part")] == (["killed.zip.part"] * whole)


@pytest.mark.parametrize(
    "where",
    [
        "restore._stage",
        "restore._add_avatars",
        "restore._settle",
        "os.link",
        "os.replace",
        "restore._outwait",
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_restore_that_is_killed_leaves_the_old_people_or_the_new(
    env: dict[str, str], past: Path, place: Path, where: str, when: str
) -> None:
    killed(env, "restore", where, when, past)

    is_new = where == "restore._outwait" or (where, when) == ("os.replace", "after")
    assert names(place) == ({"ann"} if is_new else {"ann", "bob"})


def test_a_restore_after_a_killed_one_works_and_keeps_what_was_there(
    env: dict[str, str], past: Path, place: Path
) -> None:
    killed(env, "restore", "os.link", "after", past)

    restored = command(env, "restore", past)

    assert restored.returncode == 0, restored.stderr
    assert names(place) == {"ann"}
    kept = re.findall(r"kept of before, to be deleted in the end: (.*)", restored.stdout)
    assert [names(Path(path)) for path in kept] == [{"ann", "bob"}]
    assert not list(place.parent.glob("*.part"))


# What is unfit -----------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    with open(file, "r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def change_a_byte(file: Path) -> None:
    """Change a byte of what is packed: of those between, a ZIP has some that mean nothing."""
    with zipfile.ZipFile(file) as packed:
        longest = max(packed.infolist(), key=lambda one: one.compress_size)
    position = longest.header_offset + longest.compress_size // 2
    with open(file, "r+b") as opened:
        opened.seek(position)
        byte = opened.read(1)
        opened.seek(position)
        opened.write(bytes([byte[0] ^ 1]))


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def write_anew(file: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(file) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)


def lead_out(file: Path) -> None:
    write_anew(file, lambda members: members.update({"media/../../../evil.webp": b""}))


def lack_the_database(file: Path) -> None:
    write_anew(file, lambda members: members.pop("accountsvc.db"))


def be_of_a_later_format(file: Path) -> None:
    write_anew(
        file, lambda members: members.update({"backup.json": b'{"format": 2, "ledger": null}'})
    )


def hold_a_damaged_database(file: Path) -> None:
    def damage(members: dict[str, bytes]) -> None:
        data = bytearray(members["accountsvc.db"])
        data[4096 * 3 : 4096 * 4] = bytes(4096)
        members["accountsvc.db"] = bytes(data)

    write_anew(file, damage)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, "is no backup, or is not whole"),
        (change_a_byte, "damaged"),
        (lambda file: file.write_bytes(b""), "is no backup, or is not whole"),
        (Path.unlink, "cannot be read: No such file or directory"),
        (become_a_folder, "cannot be read: Is a directory"),
        (lead_out, "is no backup of accountsvc, or is damaged"),
        (lack_the_database, "is no backup of accountsvc, or is damaged"),
        (be_of_a_later_format, "was made by a later release"),
        (hold_a_damaged_database, "is damaged ("),
    ],
)
def test_an_unfit_file_is_refused_in_a_line_and_nothing_is_changed(
    env: dict[str, str], past: Path, place: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(past)
    before = {path.name for path in place.parent.rglob("*")}

    refused = command(env, "restore", past)

    assert refused.returncode == 1
    assert refused.stderr.startswith("accountsvc: ")
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert names(place) == {"ann", "bob"}
    assert {path.name for path in place.parent.rglob("*")} - before <= {"accountsvc.db-shm"}


def test_the_backup_of_other_keys_is_refused(env: dict[str, str], past: Path, place: Path) -> None:
    other = {**env, "VAULT_KEYS": "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="}

    refused = command(other, "restore", past)

    assert refused.returncode == 2
    assert "VAULT_KEYS opens none of this database's newest vault keys" in refused.stderr
    assert names(place) == {"ann", "bob"}


@pytest.mark.parametrize("is_empty", [False, True], ids=["with people", "without"])
def test_a_foreign_log_is_noticed_by_prepare_and_kept_aside_by_restore(
    env: dict[str, str], past: Path, place: Path, tmp_path: Path, is_empty: bool
) -> None:
    # given: the log of another database beside this one; it holds all of that, and so hides this
    if is_empty:
        log_of(place).unlink()
    else:
        assert names(place) == {"ann", "bob"}
        assert not log_of(place).exists()
    with closing(sqlite3.connect(tmp_path / "other.db", isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE other (words TEXT)")
        other.executemany("INSERT INTO other VALUES (?)", [("word" * 100,)] * 500)
        shutil.copy(tmp_path / "other.db-wal", log_of(place))
    log = log_of(place).read_bytes()
    found = place.read_bytes()

    # when
    refused = [command(env, "prepare"), command(env, "run", "--prepare")]
    backed_up = command(env, "backup", tmp_path / "of-nothing.zip")
    restored = command(env, "restore", past)

    # then
    for result in (*refused, backed_up):
        assert result.returncode == 1
        assert result.stderr.startswith(f"accountsvc: {log_of(place)} is not of accountsvc.db")
        assert "has the current schema" not in result.stdout
    assert not (tmp_path / "of-nothing.zip").exists()
    assert restored.returncode == 0, restored.stderr
    (aside,) = place.parent.glob("accountsvc.db.before-*Z")
    assert aside.read_bytes() == found
    assert log_of(aside).read_bytes() == log
    assert names(place) == {"ann"}
    assert command(env, "prepare").returncode == 0


def test_an_avatar_that_was_damaged_is_put_back_and_kept_aside(
    env: dict[str, str], past: Path, place: Path
) -> None:
    (path,) = [
        path
        for path in (place.parent / "media").rglob("*.webp")
        if f"media/{path.name}" in zipfile.ZipFile(past).namelist()
    ]
    image = path.read_bytes()
    path.write_bytes(b"damaged")

    restored = command(env, "restore", past)

    assert restored.returncode == 0, restored.stderr
    assert "1 avatar file: 1 put back, 0 there already" in restored.stdout
    assert path.read_bytes() == image
    (kept,) = place.parent.glob("accountsvc.db.before-*.media/*")
    assert kept.read_bytes() == b"damaged"


def test_a_backup_overwrites_nothing(env: dict[str, str], past: Path, place: Path) -> None:
    before = past.read_bytes()

    refused = [command(env, "backup", file) for file in (past, place, past / "x", "/nowhere/x")]

    assert [result.returncode for result in refused] == [1, 1, 1, 1]
    assert all(result.stderr.count("\n") == 1 for result in refused), refused
    assert past.read_bytes() == before


def test_postgresql_has_its_own_backup(postgresql_url: str, tmp_path: Path) -> None:
    env = environment(tmp_path, postgresql_url)

    made, restored = [command(env, word, tmp_path / "x") for word in ("backup", "restore")]

    assert made.returncode == restored.returncode == 1
    assert "pg_dump" in made.stderr
    assert "pg_restore" in restored.stderr
    assert "docs/operations.md" in made.stderr
