"""Whatever lies in a SQLite file beside what lives in it is found, in whichever place."""

from __future__ import annotations

import random
import shutil
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from accountsvc.db import pages, vacuum
from accountsvc.db.engine import make_engine
from accountsvc.services import Services
from tests.support.factories import insert_accounts, numbered, run_sql

PAGE = 4096
PERSONAL = b"ann@example.org"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with trees of several levels, long rows and deleted ones, rewritten."""
    path = tmp_path_factory.mktemp("pages") / "clean.db"
    letters = random.Random(1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("CREATE TABLE people (id integer PRIMARY KEY, name text UNIQUE, x blob)")
        connection.executemany(
            "INSERT INTO people (name, x) VALUES (?, ?)",
            (
                (letters.randbytes(letters.randint(8, 300)).hex(), letters.randbytes(size))
                for number in range(3000)
                for size in (8060 if number % 50 == 0 else 20,)
            ),
        )
        connection.commit()
        connection.execute("DELETE FROM people WHERE id % 3 = 0")
        connection.commit()
        connection.execute("VACUUM")
    return path


@pytest.fixture
def path(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(clean, tmp_path / "file.db"))


def found(path: Path) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as connection:
        roots = [root for (root,) in connection.execute("SELECT rootpage FROM sqlite_master")]
    return pages.look(str(path), [1, *roots]).found


def write(path: Path, at: int, text: bytes = PERSONAL) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(text)


def each_page(path: Path) -> Iterator[tuple[int, bytes]]:
    """The pages behind the first, each with where it begins."""
    content = path.read_bytes()
    for start in range(PAGE, len(content), PAGE):
        yield start, content[start : start + PAGE]


def gap_of(page: bytes) -> tuple[int, int]:
    cells, content = struct.unpack(">HH", page[3:7])
    return (12 if page[0] in (2, 5) else 8) + 2 * cells, content


def test_a_rewritten_file_holds_nothing_but_what_lives(path: Path) -> None:
    assert found(path) == {}


@pytest.mark.parametrize("kind", [13, 5, 10, 2])
def test_a_word_in_the_gap_of_a_page_is_found(path: Path, kind: int) -> None:
    start, page = next(
        (start, page)
        for start, page in each_page(path)
        if page[0] == kind and gap_of(page)[1] - gap_of(page)[0] > 40
    )

    write(path, start + gap_of(page)[0] + 9)

    assert found(path) == {"gap": 1}


def test_a_word_behind_the_end_of_a_long_row_is_found(path: Path) -> None:
    start = next(start for start, page in each_page(path) if page[0] == 0 and not any(page[-20:]))

    write(path, start + PAGE - len(PERSONAL))

    assert found(path) == {"overflow": 1}


def test_a_word_in_a_page_that_was_given_back_is_found(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("INSERT INTO people (id, x) VALUES (9999, ?)", (PERSONAL * 2000,))
        connection.commit()
        connection.execute("DELETE FROM people WHERE id = 9999")
        connection.commit()
    assert PERSONAL in path.read_bytes()

    assert found(path)["free page"] >= 7


def test_a_row_that_was_deleted_within_its_page_is_found(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("UPDATE people SET x = ? WHERE id IN (1000, 1001)", (PERSONAL,))
        connection.commit()
        connection.execute("DELETE FROM people WHERE id = 1000")
        connection.commit()

    assert found(path).keys() & {"between rows", "gap"}


def test_a_page_that_belongs_to_nothing_is_found(path: Path) -> None:
    count = len(path.read_bytes()) // PAGE
    write(path, count * PAGE, PERSONAL.ljust(PAGE, b"\0"))
    write(path, 28, struct.pack(">I", count + 1))

    assert pages.look(str(path), roots_of(path, count)).found == {"page of nothing": 1}


def roots_of(path: Path, count: int) -> list[int]:
    """The roots, read as long as the file was whole."""
    whole = path.with_name("whole.db")
    whole.write_bytes(path.read_bytes()[: count * PAGE])
    write(whole, 28, struct.pack(">I", count))
    with closing(sqlite3.connect(whole)) as connection:
        return [1, *(r for (r,) in connection.execute("SELECT rootpage FROM sqlite_master"))]


def test_a_journal_that_is_not_empty_is_found(path: Path) -> None:
    roots = roots_of(path, len(path.read_bytes()) // PAGE)
    path.with_name("file.db-journal").write_bytes(PERSONAL)

    assert pages.look(str(path), roots).found == {"journal": 1}


def test_what_lies_behind_the_last_page_is_found(path: Path) -> None:
    write(path, len(path.read_bytes()))

    assert found(path) == {"behind the last page": 1}


@pytest.mark.parametrize(
    ("at", "value", "form"),
    [(16, b"\x20\x00", "larger pages"), (52, b"\0\0\0\1", "auto_vacuum"), (56, b"\0\0\0\2", "enc")],
)
def test_a_file_of_another_form_is_not_taken_for_a_clean_one(
    path: Path, at: int, value: bytes, form: str
) -> None:
    write(path, at, value)

    with pytest.raises(pages.NotThisForm, match=form):
        pages.look(str(path), [1])


@pytest.mark.parametrize(
    "text", [b"anna", b"x\0bobo", "Жук".encode(), b"\0\0\0Li Wei\0\0", bytes(range(130, 162))]
)
@pytest.mark.parametrize("before", [b"", b"\x0f\xf8\x01\x16\0\0", b"\0\0\x05\xe7"])
def test_words_are_no_numbers(text: bytes, before: bytes) -> None:
    assert not pages.is_numbers(before + text + b"\0\0\0", inner_table=False)


@pytest.mark.parametrize(
    ("rest", "inner_table"),
    [
        (b"\0\0\0", False),
        (b"\x0f\xf8\x01\x16\0\0\x0e\xd5", False),
        # An offset that another has overwritten by half, and the head of a cell before a number.
        (b"\x01\x4b\x00\x62\x01\x16\x0f\xf8\x00\x01\x4b\x00\xe9", False),
        (b"*\x03\x0f\xc8\x00+", False),
        # Pages and rows of an inner page, of which the first is cut off.
        (b"\x56\xab\xc3\x0b\0\0\x56\xaa\xc3\x06\0\0\x56\xa7\xc3\x02", True),
        (b"\x05\xee\x9bm\x00\x00\x05\xec\x9bg", True),
    ],
)
def test_what_sqlite_leaves_of_its_own_lists_is_numbers(rest: bytes, *, inner_table: bool) -> None:
    assert pages.is_numbers(rest, inner_table=inner_table)


def test_the_file_of_the_service_is_clean_behind_a_rewrite(sqlite: Services) -> None:
    insert_accounts(sqlite, numbered("stays", 600), passwords=2)
    run_sql(sqlite, "DELETE FROM saved_passwords WHERE id % 3 = 0")

    assert vacuum.rewrite(sqlite.database.engine) == vacuum.Rewritten()


def test_what_is_written_right_behind_the_rewrite_is_rewritten_too(
    sqlite: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_accounts(sqlite, numbered("stays", 50), passwords=1)
    times = writes_behind(sqlite, monkeypatch, most=2)

    assert vacuum.rewrite(sqlite.database.engine) == vacuum.Rewritten()
    assert times() == 3


def test_who_writes_all_the_time_puts_the_rewrite_off(
    sqlite: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert_accounts(sqlite, numbered("stays", 50), passwords=1)
    writes_behind(sqlite, monkeypatch, most=99)

    assert vacuum.rewrite(sqlite.database.engine) is None


def test_who_writes_during_the_look_leaves_no_residue(sqlite: Services) -> None:
    insert_accounts(sqlite, numbered("stays", 50), passwords=1)
    other, is_over = make_engine(sqlite.settings.database_url), threading.Event()

    def write() -> None:
        number = 0
        while not is_over.wait(0.02):
            number += 1
            with other.connect() as connection:
                connection.exec_driver_sql("PRAGMA query_only = OFF")
                connection.exec_driver_sql(f"UPDATE accounts SET first_name = 'Ann {number}'")
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    looks = [vacuum.rewrite(sqlite.database.engine) for _ in range(4)]
    is_over.set()
    writer.join()
    other.dispose()

    assert [dict(one.found) for one in looks if one is not None and one.found] == []
    assert vacuum.rewrite(sqlite.database.engine) == vacuum.Rewritten()


def writes_behind(
    sqlite: Services, monkeypatch: pytest.MonkeyPatch, *, most: int
) -> Callable[[], int]:
    """Have somebody else delete a row behind each rewrite; return how many there were."""
    rewrites, original = [0], vacuum._vacuum
    other = make_engine(sqlite.settings.database_url)

    def vacuumed(*arguments: object) -> bool:
        done = original(*arguments)  # type: ignore[arg-type]
        rewrites[0] += 1
        if rewrites[0] <= most:
            with other.connect() as connection:
                connection.exec_driver_sql("PRAGMA query_only = OFF")
                connection.exec_driver_sql(f"DELETE FROM saved_passwords WHERE id = {rewrites[0]}")
                connection.commit()
        other.dispose()
        return done

    monkeypatch.setattr(vacuum, "_vacuum", vacuumed)
    return lambda: rewrites[0]


def test_a_file_that_takes_too_long_is_said_to_be_unseen(sqlite: Services) -> None:
    looked = vacuum.rewrite(sqlite.database.engine, seconds=0.001)

    assert looked == vacuum.Rewritten(unseen=vacuum.TOO_LARGE)
