"""What every command needs: words, exit codes, transactions, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, TypeVar

import click
from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .. import documents
from ..db import rows
from ..db.models import (
    Account,
)
from ..db.outages import is_passing_fault
from ..db.text import rfc3339, text_problem
from ..errors import (
    AccountError,
    InvalidInput,
)
from ..web import services

F = TypeVar("F", bound=Callable[..., Any])


def fail(sentence: str) -> NoReturn:
    """End with exit code 1 and one sentence on stderr."""
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(1)


def sentences(command: F) -> F:
    """Turn what the core raises, and a database that does not answer, into a sentence and exit code 1."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except InvalidInput as exc:
            fail(" ".join(f"{name}: {' '.join(texts)}" for name, texts in exc.fields.items()))
        except AccountError as exc:
            fail(str(exc))
        except Exception as exc:
            if not isinstance(exc, DBAPIError) and not is_passing_fault(exc):
                raise
            if _lacks_tables():
                fail("The database has no tables yet. Run `python -m accountsvc prepare`.")
            if not is_passing_fault(exc):
                raise
            fail("The database does not answer. Nothing is half-done; repeat the command later.")

    return guarded  # type: ignore[return-value]


def _lacks_tables() -> bool:
    try:
        return not inspect(services().database.engine).has_table(Account.__tablename__)
    except Exception:
        # It does not answer at all.
        return False


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@contextmanager
def logs_aside() -> Iterator[None]:
    """Send what the core logs meanwhile to stderr: stdout is for the answer."""
    with redirect_stdout(sys.stderr):
        yield


def show_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def stamp(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)


def find(names: Sequence[str]) -> list[int]:
    """Return the ids of the named accounts, each once; fail if any is unknown, before anything is done."""
    found: dict[int, None] = {}
    unknown = []
    with services().reading() as session:
        for name in names:
            # What the shell could not decode cannot be asked for either.
            account = None if text_problem(name) else rows.locate(session, name)
            if account is None:
                unknown.append(name)
            else:
                found[account.id] = None
    if unknown:
        shown = ", ".join(name.encode("ascii", "replace").decode() for name in unknown)
        fail(f"Not found: {shown}. Give ids or e-mails; nothing was changed.")
    return list(found)


def document(session: Session, account: Account, now: datetime) -> dict[str, Any]:
    max_attempts = services().settings.purge_max_attempts
    return documents.account_document(session, account, now=now, max_attempts=max_attempts)


def print_fields(shown: Mapping[str, Any]) -> None:
    for name, value in shown.items():
        if value not in (None, "", [], {}):
            click.echo(f"{name:15} {value}")


def ask(question: str, *, yes: bool) -> None:
    """Ask at the terminal unless *yes*; end the command at a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask at: repeat with --yes.")
    click.confirm(question, abort=True, err=True)


def paused(since: datetime | None) -> str:
    """Say since when purging is paused, and what ends it."""
    return f"Purging is paused since {stamp(since)}. `sweeps resume` ends that."
