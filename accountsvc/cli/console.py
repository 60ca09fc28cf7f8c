"""The tools of every command: accounts by their names, exit codes, questions, JSON."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from functools import wraps
from typing import Any, NoReturn, TypeVar, cast

import click
from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .. import documents
from ..accounts.reasons import check_reason
from ..db import rows
from ..db.engine import database_now
from ..db.models import Account
from ..db.outages import is_passing_fault
from ..db.text import text_problem
from ..errors import AccountError, AccountNotFound, InvalidInput, StoreUnavailable
from ..outbox import recipients
from ..purge import story
from ..web import services
from .words import count, escaped, printable, stamp

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
    r"(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def moment_option(*names: str, metavar: str, help_: str, required: bool = False) -> Decorator:
    """Return an option of a moment: RFC 3339, or a date, which is its midnight in UTC."""

    def read(_context: click.Context, option: click.Parameter, text: str | None) -> datetime | None:
        try:
            return None if text is None else _moment(text)
        except (ValueError, OverflowError):
            raise click.BadParameter(
                f"{printable(text or '')} is no time: give a date such as 2026-12-07, or a time "
                "with its zone such as 2026-12-07T09:30:00Z.",
                param=option,
            ) from None

    return click.option(*names, metavar=metavar, required=required, callback=read, help=help_)


def _moment(text: str) -> datetime:
    if _DATE.fullmatch(text):
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    if _MOMENT.fullmatch(text):
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    raise ValueError


def reason_option(help_: str, *, required: bool = False) -> Decorator:
    """Return the option --reason; one that would not be taken ends the command as bad usage.

    So it is refused before anybody is asked anything, and by the name of the option.
    """

    def check(_context: click.Context, _option: click.Parameter, reason: str | None) -> str | None:
        if reason is not None:
            try:
                check_reason(reason, may_be_blank=False)
            except InvalidInput as exc:
                raise click.UsageError(f"--reason: {' '.join(exc.fields['reason'])}") from exc
        return reason

    return click.option("--reason", required=required, callback=check, help=help_)


def fail(sentence: str) -> NoReturn:
    """End with exit code 1 and one sentence on stderr."""
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(1)


def sentences(command: F) -> F:
    """End *command* with a sentence and exit code 1 for what the core raises on purpose.

    So too if the database does not answer or has no tables; any other exception is a bug and
    passes.
    """

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except InvalidInput as exc:
            fail(" ".join(f"{name}: {' '.join(texts)}" for name, texts in exc.fields.items()))
        except AccountNotFound:
            fail("The account is gone: it was purged meanwhile.")
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

    return cast(F, guarded)


def _lacks_tables() -> bool:
    try:
        return not inspect(services().database.engine).has_table(Account.__tablename__)
    except Exception:
        # A database that does not answer says nothing about its tables; `prepare` would not help.
        return False


@contextmanager
def logs_aside() -> Iterator[None]:
    """Send to stderr what the core logs meanwhile, since stdout is for the answer."""
    with redirect_stdout(sys.stderr):
        yield


def show_json(document: object) -> None:
    """Print one JSON document, with escapes where stdout's encoding needs them.

    And for what would act on a terminal, which shows the document: a name may turn a line around.
    """
    text = escaped(json.dumps(document, indent=2, ensure_ascii=False))
    try:
        text.encode(_encoding())
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2)
    click.echo(text)


def show_lines(lines: Iterator[str], *, err: bool = False) -> None:
    """Print *lines*, with escapes for what stdout's encoding lacks.

    Without these a name in another script would end the command in the midst of a table.
    """
    encoding = _encoding()
    for line in lines:
        click.echo(line.encode(encoding, "backslashreplace").decode(encoding), err=err)


def _encoding() -> str:
    """Return the encoding of stdout; Click writes UTF-8 where Python has fallen back to ASCII."""
    encoding = sys.stdout.encoding or "utf-8"
    return "utf-8" if codecs.lookup(encoding).name == "ascii" else encoding


def find(names: Sequence[str], *, exactly: bool = False) -> list[int]:
    """Return the ids of the named accounts, each once; fail if any is unknown.

    A name is an id, a number (the public id) or an e-mail.

    *exactly*: fail too if an e-mail is not letter by letter that of the account that it finds. What
    ends an account asks for that, since ``straße@…`` finds ``strasse@…``, who may be somebody else
    than the operator means.
    """
    ids: dict[int, None] = {}
    unknown = []
    inexact = []
    with services().reading() as session:
        for name in names:
            # Do not ask for a text that the shell could not decode: a database refuses it with an
            # error.
            account = None if text_problem(name) else rows.locate(session, name)
            if account is None:
                unknown.append(printable(name) or "an empty name")
            else:
                ids[account.id] = None
                if exactly and "@" in name and name != account.email:
                    inexact.append((name, account.id, account.email))
    if unknown:
        known = "".join(f"{sentence} " for name in unknown if (sentence := _known(name)))
        fail(
            f"Not found: {', '.join(unknown)}. {known}Give ids, numbers or e-mails; nothing was "
            "changed."
        )
    if inexact:
        fail(f"{' '.join(_meant(*found) for found in inexact)} Nothing was changed.")
    return list(ids)


def _known(name: str) -> str:
    """Say what is known of a *name* that no account has: whose address it was, or who is gone."""
    if "@" in name:
        return _left(name)
    number = rows.read_number(name)
    if number is None:
        return ""
    with services().reading() as session:
        purged_at = story.purged_at(session, number)
    if purged_at is None:
        return ""
    return (
        f"The account of {number} was purged at {stamp(purged_at)}: "
        f"`accounts show {number}` tells its story, `accounts receipt {number}` proves it."
    )


def _left(name: str) -> str:
    """Say whose former address *name* is: somebody who was moved away from it has no other name."""
    with services().reading() as session:
        found = recipients.who_left(session, name)
    return " ".join(
        f"{name} was the address of account {account_id} until {stamp(left_at)}."
        for account_id, left_at in found
    )


def _meant(name: str, account_id: int, email: str) -> str:
    """Say which account an inexact e-mail finds, and the command that names it by its id."""
    command = click.get_current_context()
    group = command.parent.info_name if command.parent is not None else ""
    return (
        f"{printable(name)} is not the exact address of account {account_id}, "
        f"which has {printable(email)}. If that is meant, name the account by its id: "
        f"`{group} {command.info_name} {account_id}`."
    )


def account_document(session: Session, account: Account) -> dict[str, Any]:
    """Return everything that an operator may see of *account*, as JSON has it."""
    return documents.account_document(
        session,
        account,
        now=database_now(session),
        max_attempts=services().settings.purge_max_attempts,
    )


def change_each(
    names: Sequence[str],
    change: Callable[[Session, int], bool],
    *,
    done: str,
    already: str,
    as_json: bool,
    ends: bool = False,
) -> None:
    """Change all the named accounts or, if one of them refuses, none, and say so of each.

    *change* says whether it changed anything; *done* and *already* are the sentences for that, with
    names of :func:`account_document` in braces. All that *change* will lock is locked in id order
    before the first account is changed. *ends* says that *change* deactivates: staff are locked
    too, and an e-mail has to be exact.
    """
    results = []
    ids = sorted(find(names, exactly=ends))
    lock = rows.lock_for_deactivation if ends else rows.lock_many
    with services().writing() as session:
        lock(session, ids)
        for account_id in ids:
            try:
                changed = change(session, account_id)
                shown = account_document(session, rows.lock(session, account_id))
            except AccountError as exc:
                fail(f"Account {account_id}: {exc} Nothing was changed.")
            results.append({"changed": changed, **shown})
    if as_json:
        show_json(results)
        return
    for result in results:
        click.echo((done if result["changed"] else already).format(**result))


@contextmanager
def store_of(setting: str) -> Iterator[None]:
    """Name the *setting* of a store that does not answer, since each has a store of its own."""
    try:
        yield
    except StoreUnavailable as exc:
        fail(f"{setting}: {exc}")


def refuse_without_signing_key() -> None:
    """Fail before anything is changed where this process could not write the ledger's line."""
    if not services().ledger.keys.can_sign:
        fail(
            "LEDGER_SIGNING_KEY is not set here, so the ledger could not be written. Set it for "
            "this command, as the worker has it. Nothing was changed."
        )


def is_behind_its_ledger() -> bool:
    """Say whether the database is known to be older than its ledger.

    A ledger that does not answer says nothing: nobody is purged meanwhile, but that may end at any
    moment.
    """
    try:
        return services().restore.is_behind()
    except StoreUnavailable:
        return False


def say_what_has_no_seal() -> None:
    """Say on stderr how many objects of the ledger wait for `ledger adopt`, if any do.

    A ledger that does not answer is `ledger verify`'s matter, and `/statusz`'s.
    """
    try:
        unsealed = services().ledger.unsealed()
    except StoreUnavailable:
        return
    if unsealed:
        objects = count(unsealed, "object of the ledger has", "objects of the ledger have")
        click.echo(f"{objects} no seal: run `ledger adopt`.", err=True)


def ask(question: str, *, yes: bool) -> None:
    """Ask at the terminal unless *yes*; end the command at a no.

    Raises UsageError, for exit code 2, where nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask at: repeat with --yes.")
    click.confirm(question, abort=True, err=True)
