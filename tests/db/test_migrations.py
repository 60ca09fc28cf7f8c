"""The migrations make exactly the models, lose no row on the way, and can be run by two at once."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkProcess
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, NullPool, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from accountsvc.db.engine import make_engine
from accountsvc.db.models import Base
from accountsvc.db.schema import alembic_config, downgrade, migrations_path, upgrade

NewDatabase = Callable[[], str]

ACCOUNT, HELD, NOBODY = (character * 32 for character in "abc")
EARLY, LATE = "2026-01-02 03:04:05.000006", "2026-01-16 03:04:05.000000"

# What a populated database holds, by the revision that makes it possible. Written as the revision
# would have taken it: the models may be newer. A revision that adds a table adds its rows here.
ROWS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "0001": {
        "accounts": [
            {
                "id": number,
                "public_id": public_id,
                "username": f"user{number}",
                "username_key": f"user{number}",
                "email": f"user{number}@example.org",
                "email_key": f"user{number}@example.org",
                "first_name": "",
                "last_name": "",
                "number_phone": "",
                "password_hash": "x",
                "joined_at": EARLY,
                **gone,
            }
            for number, public_id, gone in (
                (1, ACCOUNT, {}),
                (2, HELD, {"deactivated_at": EARLY, "purge_at": LATE, "deactivated_by": "owner"}),
            )
        ],
        "saved_passwords": [
            {
                "uid": f"{number:032x}",
                "account_id": 1 + number % 2,
                "ciphertext": b"\0\1",
                "created_at": EARLY,
                "updated_at": LATE,
            }
            for number in range(4)
        ],
        "vault_keys": [
            {"account_id": 1, "wrapped_key": b"\0", "wrapped_by": "k"},
            {"account_id": 2, "wrapped_key": b"\1", "wrapped_by": "k"},
        ],
        "legal_holds": [
            {"account_id": 2, "reason": "court", "placed_at": EARLY, "placed_by_kind": "staff"}
        ],
        "purge_failures": [
            {
                "account_id": 2,
                "attempts": 1,
                "failed_at": EARLY,
                "retry_at": LATE,
                "error": "IntegrityError",
            }
        ],
        "outbox": [
            {
                "uid": ACCOUNT,
                "kind": "delete_file",
                "payload": "{}",
                "created_at": EARLY,
                "deliver_after": LATE,
            }
        ],
        "receipts": [
            {
                "public_id": NOBODY,
                "deactivated_at": EARLY,
                "deactivated_by": "owner",
                "purge_at": LATE,
                "purged_at": LATE,
                "saved_passwords": 3,
                "files": 1,
            }
        ],
        "audit_events": [
            {"at": EARLY, "action": "purged", "actor_kind": "system", "details": '{"files": 1}'}
        ],
    },
    "0002": {"sweep_marks": [{"name": "swept", "at": EARLY}, {"name": "paused", "at": LATE}]},
}


# Looking at a database


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Connect as a stranger: without the pragmas of the service or of the migrations."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


def described(url: str) -> set[str]:
    """Return everything that the engine's catalogue says about the schema, a line each."""
    with connected(url) as connection:
        return described_on(connection)


def described_on(connection: Connection) -> set[str]:
    if connection.dialect.name == "sqlite":
        return described_by_sqlite(connection)
    return described_by_postgresql(connection)


def described_by_sqlite(connection: Connection) -> set[str]:
    lines = set()
    for kind, name, statement in connection.exec_driver_sql(
        "SELECT type, name, sql FROM sqlite_master"
        " WHERE sql IS NOT NULL AND tbl_name NOT IN ('alembic_version', 'sqlite_sequence')"
    ):
        line = " ".join(statement.split())
        if kind == "table":
            # A set, since a column that came by ALTER TABLE stands last.
            body, _, options = line.partition("(")[2].rpartition(")")
            lines |= {f"{name}: {clause}" for clause in clauses(body)}
            lines.add(f"{name}: table {options}")
        else:
            lines.add(line)
    return lines


def clauses(body: str) -> list[str]:
    """Split the inside of a CREATE TABLE at the commas that are in no parentheses."""
    found, depth = [""], 0
    for character in body:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [clause.strip() for clause in found]


POSTGRESQL_CATALOGUE = (
    """
    SELECT format('%s %s %s', relkind, relname, reloptions) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace
    """,
    """
    SELECT format('%s.%s %s null=%s identity=%s generated=%s collation=%s default=%s',
      relname, attname, format_type(atttypid, atttypmod), NOT attnotnull, attidentity, attgenerated,
      attcollation::regcollation, pg_get_expr(adbin, adrelid))
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
      AND attnum > 0 AND NOT attisdropped
    """,
    # Without NOT NULL, which only newer servers list here, and which the columns above show.
    """
    SELECT format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
    """,
    """
    SELECT format('%s valid=%s', pg_get_indexdef(indexrelid), indisvalid)
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE relnamespace = 'public'::regnamespace
    """,
    """
    SELECT format('%s enabled=%s', pg_get_triggerdef(pg_trigger.oid), tgenabled)
    FROM pg_trigger WHERE NOT tgisinternal
    """,
    """
    SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    """,
)


def described_by_postgresql(connection: Connection) -> set[str]:
    lines = {
        " ".join(line.split())
        for query in POSTGRESQL_CATALOGUE
        for line in connection.exec_driver_sql(query.replace("%", "%%")).scalars()
    }
    return {line for line in lines if "alembic_version" not in line}


def counted(url: str) -> dict[str, int]:
    with connected(url) as connection:
        return {
            name: connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one()
            for name in inspect(connection).get_table_names()
            if name != "alembic_version"
        }


def revision_of(url: str) -> str | None:
    with connected(url) as connection:
        return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def populate(url: str, revision: str) -> None:
    with connected(url) as connection:
        for table, rows in ROWS.get(revision, {}).items():
            for row in rows:
                names = ", ".join(row)
                values = ", ".join(f":{name}" for name in row)
                connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)
        connection.commit()


def run(url: str, *statements: str) -> None:
    with connected(url) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
        connection.commit()


def create_all(url: str) -> None:
    engine = make_engine(url)
    with engine.connect().execution_options(writes=True) as connection:
        Base.metadata.create_all(connection)
        connection.commit()
    engine.dispose()


def revisions() -> list[str]:
    """Return the history, oldest first."""
    scripts = ScriptDirectory(str(migrations_path()))
    return [script.revision for script in reversed(list(scripts.walk_revisions()))]


@pytest.fixture
def populated(new_database: NewDatabase) -> str:
    """A database at head with rows in every table."""
    url = new_database()
    for revision in revisions():
        upgrade(url, revision)
        populate(url, revision)
    return url


# Models and migrations


def test_the_migrations_make_exactly_what_the_models_say(new_database: NewDatabase) -> None:
    modelled, migrated = new_database(), new_database()

    create_all(modelled)
    upgrade(migrated)

    assert described(migrated) == described(modelled)
    assert len(described(migrated)) > 100


SQLITE_DRIFTS = {
    "a trigger": ["DROP TRIGGER accounts_refuse_active_delete"],
    "a trigger's text": [
        "DROP TRIGGER receipts_refuse_delete",
        "CREATE TRIGGER receipts_refuse_delete BEFORE DELETE ON receipts BEGIN SELECT 1; END",
    ],
    "an index": ["DROP INDEX ix_audit_events_at"],
    "an index's predicate": [
        "DROP INDEX ix_accounts_purge_at",
        "CREATE INDEX ix_accounts_purge_at ON accounts (purge_at, id)",
    ],
    "a check": [
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'attempts >= 1', 'attempts >= 0')",
    ],
    "AUTOINCREMENT": [
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, ' AUTOINCREMENT', '') WHERE name = 'outbox'",
    ],
    "a cascade": [
        "PRAGMA writable_schema = ON",
        (
            "UPDATE sqlite_master SET sql = replace(sql, ' ON DELETE CASCADE', '')"
            " WHERE name = 'vault_keys'"
        ),
    ],
    "a column": ["ALTER TABLE receipts ADD COLUMN extra INTEGER"],
}
POSTGRESQL_DRIFTS = {
    "a trigger": ["DROP TRIGGER audit_events_refuse_truncate ON audit_events"],
    "a trigger switched off": ["ALTER TABLE accounts DISABLE TRIGGER accounts_refuse_truncate"],
    "a function's text": [
        (
            "CREATE OR REPLACE FUNCTION accountsvc_refuse() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN RETURN OLD; END $$"
        ),
    ],
    "an index": ["DROP INDEX ix_audit_events_at"],
    "an index's predicate": [
        "DROP INDEX ix_accounts_purge_at",
        "CREATE INDEX ix_accounts_purge_at ON accounts (purge_at, id)",
    ],
    "a check": ["ALTER TABLE accounts DROP CONSTRAINT ck_accounts_deactivation_whole"],
    "a cascade": [
        "ALTER TABLE vault_keys DROP CONSTRAINT fk_vault_keys_account_id",
        (
            "ALTER TABLE vault_keys ADD CONSTRAINT fk_vault_keys_account_id"
            " FOREIGN KEY (account_id) REFERENCES accounts (id)"
        ),
    ],
    "a default": ["ALTER TABLE accounts ALTER epoch SET DEFAULT 1"],
    "a null": ["ALTER TABLE accounts ALTER email DROP NOT NULL"],
    "a type": ["ALTER TABLE accounts ALTER email TYPE varchar(255)"],
    "an identity": ["ALTER TABLE accounts ALTER id DROP IDENTITY"],
    "a column": ["ALTER TABLE receipts ADD COLUMN extra integer"],
}


def test_no_difference_escapes_the_comparison(new_database: NewDatabase) -> None:
    url = new_database()
    upgrade(url)
    before = described(url)
    drifts = SQLITE_DRIFTS if url.startswith("sqlite") else POSTGRESQL_DRIFTS

    missed = []
    for name, statements in drifts.items():
        with connected(url) as connection:
            if connection.dialect.name == "sqlite":
                # The driver would commit DDL at once.
                connection.exec_driver_sql("BEGIN")
            for statement in statements:
                connection.exec_driver_sql(statement)
            if described_on(connection) == before:
                missed.append(name)
            connection.rollback()

    assert missed == []
    assert described(url) == before


def test_autogenerate_finds_nothing_to_do(new_database: NewDatabase) -> None:
    url = new_database()

    upgrade(url)

    command.check(alembic_config(url))


def test_every_revision_says_which_locks_it_takes() -> None:
    scripts = ScriptDirectory(str(migrations_path()))

    silent = [
        script.path for script in scripts.walk_revisions() if "\nLocks:" not in script.longdoc
    ]

    assert silent == []


# Up and down


def test_up_down_and_up_again_ends_where_it_began(new_database: NewDatabase) -> None:
    url = new_database()

    upgrade(url)
    first = described(url)
    downgrade(url, "base")
    between = described(url)
    upgrade(url)

    assert between == set()
    assert described(url) == first
    assert revision_of(url) == revisions()[-1]


def test_an_upgrade_at_head_changes_nothing(populated: str) -> None:
    before = described(populated), counted(populated)

    upgrade(populated)

    assert (described(populated), counted(populated)) == before


def test_no_row_is_lost_on_the_way_through_every_revision(new_database: NewDatabase) -> None:
    url = new_database()
    history = revisions()
    for revision in history:
        before = counted(url)
        upgrade(url, revision)
        after = counted(url)
        assert {name: after.get(name) for name in before} == before, f"up to {revision}"
        populate(url, revision)
    full = counted(url)
    assert sorted(full) == sorted(Base.metadata.tables)
    assert 0 not in full.values(), "add rows of the new table to ROWS"

    for revision in reversed(history[:-1]):
        before = counted(url)
        downgrade(url, revision)
        after = counted(url)
        assert {name: before[name] for name in after} == after, f"down to {revision}"
    for revision in history[1:]:
        before = counted(url)
        upgrade(url, revision)
        after = counted(url)
        assert {name: after.get(name) for name in before} == before, f"up again to {revision}"


def test_the_code_before_goes_on_reading_and_writing_during_a_rolling_upgrade(
    new_database: NewDatabase,
) -> None:
    url = new_database()
    *before, newest = revisions()
    upgrade(url, before[-1])
    known = columns(url)
    upgrade(url, newest)

    # It selects by name what it knew, and inserts no more than that.
    assert known <= columns(url)
    for revision in before:
        populate(url, revision)


def columns(url: str) -> set[tuple[str, str]]:
    with connected(url) as connection:
        found = inspect(connection)
        return {
            (table, column["name"])
            for table in found.get_table_names()
            for column in found.get_columns(table)
        }


# Revisions that do not exist yet: what the next ones may rely on


def with_revision(folder: Path, up: str, down: str = "pass") -> Path:
    """Return a copy of the migrations with one more revision, ``probe``, at its head."""
    scripts = folder / "probed"
    shutil.copytree(migrations_path(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "probe.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        "from accountsvc.db import migration\n"
        f"revision, down_revision = 'probe', {revisions()[-1]!r}\n"
        f"def upgrade():\n{indent(dedent(up).strip(), '    ')}\n"
        f"def downgrade():\n{indent(dedent(down).strip(), '    ')}\n"
    )
    return scripts


def config_of(url: str, scripts: Path) -> Config:
    config: Config = alembic_config(url)
    config.set_main_option("script_location", str(scripts))
    return config


REBUILD = """
    with migration.altered("accounts") as batch:
        batch.add_column(sa.Column("nickname", sa.String(20), server_default="x"))
        batch.alter_column("number_phone", type_=sa.String(30))
    with migration.altered("legal_holds") as batch:
        batch.drop_constraint(op.f("ck_legal_holds_release_whole"), type_="check")
    with migration.altered("audit_events") as batch:
        batch.alter_column("action", type_=sa.String(50))
"""
REBUILD_BACK = """
    with migration.altered("audit_events") as batch:
        batch.alter_column("action", type_=sa.String(40))
    with migration.altered("legal_holds") as batch:
        batch.create_check_constraint(
            op.f("ck_legal_holds_release_whole"),
            "released_at IS NOT NULL OR released_by IS NULL",
        )
    with migration.altered("accounts") as batch:
        batch.alter_column("number_phone", type_=sa.String(20))
        batch.drop_column("nickname")
"""


def test_changing_tables_keeps_their_rows_and_everything_else(
    populated: str, tmp_path: Path
) -> None:
    config = config_of(populated, with_revision(tmp_path, REBUILD, REBUILD_BACK))
    schema, rows = described(populated), counted(populated)

    command.upgrade(config, "head")
    changed, rows_between = described(populated), counted(populated)
    command.downgrade(config, "-1")

    assert rows_between == counted(populated) == rows
    assert any("nickname" in line for line in changed)
    assert not any("ck_legal_holds_release_whole" in line for line in changed)
    kept = {line for line in schema if "TRIGGER" in line or "INDEX" in line}
    assert kept <= changed
    assert described(populated) == schema


def test_changing_a_table_does_not_make_an_id_come_again(populated: str, tmp_path: Path) -> None:
    insert = (
        "INSERT INTO legal_holds (account_id, reason, placed_at, placed_by_kind)"
        f" VALUES (2, 'court', '{EARLY}', 'staff')"
    )
    run(populated, insert)
    with connected(populated) as connection:
        gone = connection.exec_driver_sql("SELECT max(id) FROM legal_holds").scalar_one()
    run(populated, f"DELETE FROM legal_holds WHERE id = {gone}")

    command.upgrade(config_of(populated, with_revision(tmp_path, REBUILD)), "head")

    run(populated, insert)
    with connected(populated) as connection:
        newest = connection.exec_driver_sql("SELECT max(id) FROM legal_holds").scalar_one()
    assert newest > gone


def test_a_revision_that_leaves_a_dangling_row_is_taken_back(
    populated: str, tmp_path: Path
) -> None:
    scripts = with_revision(
        tmp_path,
        """
        op.add_column("receipts", sa.Column("extra", sa.Integer()))
        op.execute("UPDATE vault_keys SET account_id = 99 WHERE account_id = 1")
        """,
    )
    before = described(populated), revision_of(populated)

    with pytest.raises((CommandError, DBAPIError)) as refused:
        command.upgrade(config_of(populated, scripts), "head")

    assert "vault_keys" in str(refused.value)
    assert (described(populated), revision_of(populated)) == before
    with connected(populated) as connection:
        accounts = connection.exec_driver_sql("SELECT account_id FROM vault_keys ORDER BY 1")
        assert list(accounts.scalars()) == [1, 2]


def test_a_revision_that_fails_half_way_leaves_nothing_behind(
    populated: str, tmp_path: Path
) -> None:
    scripts = with_revision(
        tmp_path,
        """
        op.create_table("extra", sa.Column("id", sa.Integer()))
        with migration.altered("accounts") as batch:
            batch.add_column(sa.Column("nickname", sa.String(20)))
        op.execute("DELETE FROM outbox")
        raise RuntimeError("half way")
        """,
    )
    before = described(populated), counted(populated), revision_of(populated)

    with pytest.raises(RuntimeError, match="half way"):
        command.upgrade(config_of(populated, scripts), "head")

    assert (described(populated), counted(populated), revision_of(populated)) == before


# Two at once


@contextmanager
def deploys(url: str, scripts: Path) -> Iterator[list[ForkProcess]]:
    """Run ``upgrade head`` in two processes at once; end them with the block.

    Alembic's context is global, so threads would not do. Forked, because importing everything anew
    takes far longer than migrating.
    """
    processes = [
        multiprocessing.get_context("fork").Process(
            target=command.upgrade, args=(config_of(url, scripts), "head")
        )
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def outcome(processes: list[ForkProcess]) -> list[int | None]:
    for process in processes:
        process.join(timeout=60)
    return [process.exitcode for process in processes]


forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@forks
def test_two_deploys_at_once_are_both_well(new_database: NewDatabase, tmp_path: Path) -> None:
    url, expected = new_database(), new_database()
    scripts = with_revision(tmp_path, "import time; time.sleep(1)")
    upgrade(expected)

    with deploys(url, scripts) as both:
        assert outcome(both) == [0, 0]

    assert revision_of(url) == "probe"
    assert described(url) == described(expected)


INDEX = 'migration.create_index("ix_accounts_joined_at", "accounts", ["joined_at"])'
INDEX_BACK = 'migration.drop_index("ix_accounts_joined_at", "accounts")'


def test_an_index_on_a_full_table_comes_and_goes(populated: str, tmp_path: Path) -> None:
    config = config_of(populated, with_revision(tmp_path, INDEX, INDEX_BACK))
    before = described(populated)

    command.upgrade(config, "head")
    changed = described(populated)
    command.downgrade(config, "-1")

    assert before < changed
    assert all("ix_accounts_joined_at" in line for line in changed - before)
    assert described(populated) == before


def test_an_index_left_invalid_is_made_again(new_postgresql: NewDatabase, tmp_path: Path) -> None:
    url = new_postgresql()
    upgrade(url)
    run(
        url,
        "CREATE INDEX ix_accounts_joined_at ON accounts (joined_at)",
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'ix_accounts_joined_at'::regclass",
    )

    command.upgrade(config_of(url, with_revision(tmp_path, INDEX)), "head")

    (line,) = (line for line in described(url) if "ix_accounts_joined_at ON" in line)
    assert line.endswith("valid=t")


# A session that asks for the lock in vain commits and asks again (or blocks, should that change).
WAITING = """
    SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database()
    AND pid <> pg_backend_pid() AND (query = 'COMMIT' OR wait_event = 'advisory')
"""


def wait_for(url: str, query: str) -> None:
    """Ask until *query* answers true."""
    deadline = time.monotonic() + 60
    with connected(url) as connection:
        while not connection.exec_driver_sql(query).scalar_one():
            connection.rollback()
            assert time.monotonic() < deadline, query
            time.sleep(0.05)


@forks
def test_an_index_is_made_while_people_write_and_another_deploy_waits(
    new_postgresql: NewDatabase, tmp_path: Path
) -> None:
    url = new_postgresql()
    upgrade(url)
    populate(url, "0001")
    scripts = with_revision(tmp_path, INDEX)
    with connected(url) as writer:
        writer.exec_driver_sql("UPDATE accounts SET epoch = epoch + 1 WHERE id = 1")

        # One deploy's index waits for this writer's transaction, the other deploy for the first.
        with deploys(url, scripts) as both:
            wait_for(url, "SELECT count(*) = 1 FROM pg_stat_progress_create_index")
            wait_for(url, WAITING)
            run(url, "SET lock_timeout = '1s'", "UPDATE accounts SET epoch = 9 WHERE id = 2")
            assert [process.exitcode for process in both] == [None, None]
            writer.commit()
            assert outcome(both) == [0, 0]

    (line,) = (line for line in described(url) if "ix_accounts_joined_at ON" in line)
    assert line.endswith("valid=t")
