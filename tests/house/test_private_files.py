"""Whatever the umask and the folder around it: what the service writes is for its own user alone."""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from accountsvc import private
from tests.support.factories import deactivate, dispose, make_app, make_person, services_of
from tests.support.processes import (
    Running,
    client_of,
    environment,
    eventually,
    is_ready,
    run,
    worker,
)
from tests.support.servers import free_port
from tests.support.state import effects, read_account

KEYS = ("SECRET_KEY", "VAULT_KEYS", "LEDGER_SIGNING_KEY")
# What a purge and a deactivation owe, except for reminders, which are for later.
DONE = ("ledger.append", "mail.purged", "mail.scheduled")


def rights(folder: Path) -> dict[str, int]:
    """What is in *folder*, below it too, by path: its rights."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode)
        for path in folder.rglob("*")
    }


def too_wide(folder: Path) -> dict[str, str]:
    """What is in *folder* and is neither a file of 0600 nor a folder of 0700."""
    wanted = {True: private.FOLDER_MODE, False: private.FILE_MODE}
    return {
        name: oct(mode)
        for name, mode in rights(folder).items()
        if mode != wanted[(folder / name).is_dir()]
    }


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_after_a_whole_life_everything_in_a_wide_folder_is_for_the_owner_alone(
    tmp_path: Path, umask: int
) -> None:
    instance = tmp_path / "instance"
    instance.mkdir()
    instance.chmod(0o755)
    url = f"sqlite:///{instance}/accountsvc.db"
    env = {
        name: value
        for name, value in environment(tmp_path, SWEEP_INTERVAL="1s").items()
        if name not in {*KEYS, "DATABASE_URL"}
    }
    before = os.umask(umask)
    try:
        # given
        prepared = run("python", "-m", "accountsvc", "prepare", env=env)
        assert prepared.returncode == 0, prepared.stderr
        keys = {name: (instance / name.lower()).read_text().strip() for name in KEYS}
        app = make_app(url, tmp_path, **keys)
        gone, stays = (make_person(services_of(app), name) for name in ("ann", "bob"))
        with worker({**env, **keys}) as running:
            # when
            deactivate(services_of(app), gone.id, by="owner", grace=timedelta())
            deactivate(services_of(app), stays.id, by="owner")
            eventually(lambda: read_account(services_of(app), gone.id) is None)
            eventually(lambda: not effects(services_of(app), *DONE))

            # then: also while everything is open and journals and messages lie there
            while_it_runs = too_wide(instance)
            running.stop()
        dispose(app)
    finally:
        os.umask(before)

    assert while_it_runs == {}
    assert too_wide(instance) == {}
    assert {name.partition("/")[0].partition("-")[0] for name in rights(instance)} >= {
        "accountsvc.db", "broker", "ledger", "mail", "media", "secret_key", "vault_keys",
        "ledger_signing_key",
    }  # fmt: skip
    assert any(name.endswith(".webp") for name in rights(instance))
    assert any(name.endswith(".eml") for name in rights(instance))
    assert any(name.endswith(".jsonl") for name in rights(instance))
    # The folder itself is the operator's.
    assert stat.S_IMODE(instance.stat().st_mode) == 0o755


def test_what_the_web_processes_count_is_for_their_owner_alone(
    sqlite_url: str, tmp_path: Path
) -> None:
    counts = tmp_path / "counts"
    counts.mkdir(mode=0o755)
    port = str(free_port())
    env = environment(tmp_path, sqlite_url, PORT=port, PROMETHEUS_MULTIPROC_DIR=str(counts))
    before = os.umask(0)
    try:
        with Running("python", "-m", "accountsvc", "web", env=env), client_of(env) as client:
            eventually(lambda: is_ready(client))

            assert rights(counts) != {}
            assert too_wide(counts) == {}
    finally:
        os.umask(before)


def test_what_was_wider_is_tightened_by_prepare_and_said_in_a_line(tmp_path: Path) -> None:
    env = environment(tmp_path, f"sqlite:///{tmp_path}/instance/accountsvc.db")
    instance, outside = tmp_path / "instance", tmp_path / "outside"
    assert run("python", "-m", "accountsvc", "prepare", env=env).returncode == 0
    (instance / "media" / "ab").mkdir(parents=True)
    (instance / "media" / "ab" / "old.webp").touch()
    (instance / "operators-own").touch(mode=0o644)
    outside.touch()
    (instance / "media" / "link").symlink_to(outside)
    for path in (instance / "media", instance / "media" / "ab"):
        path.chmod(0o750)
    for path in (instance / "accountsvc.db", instance / "media" / "ab" / "old.webp", outside):
        path.chmod(0o644)

    first, second = (run("python", "-m", "accountsvc", "prepare", env=env) for _ in range(2))

    said = "accountsvc: 4 files and folders could be read by others, and no longer can"
    assert (said in first.stdout, said in second.stdout) == (True, False)
    assert set(too_wide(instance)) == {"operators-own", "media/link"}
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644
    assert "may look into" not in first.stdout


def test_prepare_says_that_others_may_look_into_the_folder_and_leaves_it(tmp_path: Path) -> None:
    instance = tmp_path / "instance"
    instance.mkdir()
    instance.chmod(0o751)

    result = run("python", "-m", "accountsvc", "prepare", env=environment(tmp_path))

    assert f"accountsvc: others may look into {instance} (0751)" in result.stdout
    assert stat.S_IMODE(instance.stat().st_mode) == 0o751


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277], ids=oct)
def test_a_folder_is_made_with_all_above_it_and_one_that_is_there_is_left(
    tmp_path: Path, umask: int
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o755)
    before = os.umask(umask)
    try:
        made = private.make_folder(tmp_path / "there" / "a" / "b")
        private.touch(tmp_path / "there" / "a" / "file")
    finally:
        os.umask(before)

    assert made == [tmp_path / "there" / "a", tmp_path / "there" / "a" / "b"]
    assert too_wide(tmp_path / "there") == {}
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o755
    assert private.make_folder(tmp_path / "there") == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="exists"):
        private.make_folder(tmp_path / "file")
