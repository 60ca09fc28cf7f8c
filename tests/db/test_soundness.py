"""A SQLite file that is damaged, or beside a log of another, is told from one that is sound."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from accountsvc.db import soundness
from accountsvc.db.soundness import Unsound, log_of, refuse_unsound

PAGE = 4096


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    return connection


def fill(connection: sqlite3.Connection, words: str) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS people (id INTEGER PRIMARY KEY, name TEXT)")
    connection.execute("CREATE INDEX IF NOT EXISTS by_name ON people (name)")
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO people (name) VALUES (?)", [(f"{words} {n}" * 20,) for n in range(2000)]
    )
    connection.execute("COMMIT")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound file without a log."""
    path = tmp_path / "people.db"
    with closing(connect(path)) as connection:
        fill(connection, "ann")
    assert not log_of(path).exists()
    return path


def as_after_a_kill(path: Path, words: str = "bob") -> Path:
    """The same file, copied with its log while it was written to, as SIGKILL leaves one."""
    copy = path.with_name("killed.db")
    with closing(connect(path)) as connection:
        fill(connection, words)
        shutil.copy(path, copy)
        shutil.copy(log_of(path), log_of(copy))
    return copy


def cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def zero_a_page(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(20 * PAGE)
        file.write(bytes(PAGE))


def overwrite(path: Path) -> None:
    path.write_bytes(b"Dear diary, " * 1000)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def lose_rows_of_an_index(path: Path) -> None:
    """What only the comparison of indexes with rows finds, which is made where there is a log."""
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, '(name)', '(id)')")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "is damaged (database disk image is malformed)"),
        (zero_a_page, "is damaged (Page 21: "),
        (overwrite, "is damaged (file is not a database)"),
        (become_a_folder, "is a folder"),
        (become_a_loop, "cannot be read"),
    ],
)
def test_what_is_no_sound_database_is_said_in_a_line(
    path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(path)

    with pytest.raises(Unsound) as found:
        refuse_unsound(path)

    assert words in str(found.value)
    assert "\n" not in str(found.value)
    assert "ann 1" not in str(found.value)


def test_a_log_of_another_database_is_named_and_nothing_is_touched(
    path: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    with closing(connect(other)) as connection:
        fill(connection, "eve")
        connection.execute("CREATE TABLE more (name TEXT)")
    shutil.copy(log_of(as_after_a_kill(other, "kim")), log_of(path))
    before = path.read_bytes(), log_of(path).read_bytes()

    with pytest.raises(Unsound, match=f"{log_of(path)} is not of people.db, or is damaged: stop"):
        refuse_unsound(path)

    assert (path.read_bytes(), log_of(path).read_bytes()) == before
    log_of(path).unlink()
    path.with_name("people.db-shm").unlink()
    refuse_unsound(path, wholly=True)


def test_an_index_that_is_not_of_its_rows_is_found_where_there_is_a_log(path: Path) -> None:
    refuse_unsound(path)
    killed = as_after_a_kill(path)
    lose_rows_of_an_index(path)

    refuse_unsound(path)
    with pytest.raises(Unsound):
        refuse_unsound(path, wholly=True)
    refuse_unsound(killed)


def test_what_is_sound_is_passed_over(path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    killed = as_after_a_kill(path)
    half = tmp_path / "half.db"
    shutil.copy(killed, half)
    shutil.copy(log_of(killed), log_of(half))
    cut(log_of(half))

    for name in ("missing.db", "empty.db", "people.db", "killed.db", "half.db"):
        refuse_unsound(tmp_path / name)
    refuse_unsound(path, wholly=True)


def test_a_file_in_use_can_be_looked_at(path: Path) -> None:
    with closing(connect(path)) as connection:
        fill(connection, "bob")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM people WHERE id < 100")

        refuse_unsound(path, wholly=True)

        connection.execute("COMMIT")


def test_a_file_of_another_user_is_said_to_be_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root, as whom tests may run, may read and write everything.
    monkeypatch.setattr(soundness.os, "access", lambda *_: False)

    with pytest.raises(Unsound, match="belongs to another user"):
        refuse_unsound(path)
