"""The command that promises a purge which nobody has promised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from sqlalchemy.orm import Session

from ..accounts import lifecycle
from ..db import audit, rows
from ..db.audit import OPERATOR_ACTOR
from ..db.models import Account
from ..errors import NotDeactivated
from ..web import services
from .accounts import accounts_group
from .console import (
    account_document,
    ask,
    change_each,
    fail,
    find,
    json_option,
    reason_option,
    sentences,
    show_lines,
    yes_option,
)
from .purging import MOST_SHOWN
from .words import Column, count, stamp, table


@accounts_group.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|NUMBER|EMAIL…")
@reason_option("Stored on the account until its purge.", required=True)
@yes_option
@json_option
@sentences
def accept(names: tuple[str, ...], *, reason: str, yes: bool, as_json: bool) -> None:
    """Promise the purge of unexplained accounts.

    Nobody has promised it, so they are not purged: SQL, a script or an older version has set their
    dates. Each gets a full grace period from now, and the mail that says so. Of several accounts
    all are accepted or none. Whoever should not go is given back instead: `accounts reactivate`,
    after this where the date has passed.

    \b
    flask --app wsgi accounts list --state unexplained
    flask --app wsgi accounts accept 42 --reason "left during the upgrade"

    \b
    Exit codes: 0 all are promised, 1 none is (it says why), 2 bad usage.
    """
    ids = sorted(find(names, exactly=True))
    with services().reading() as session:
        shown = [_asked_about(session, account_id) for account_id in ids]
    show_lines(_lines(shown), err=as_json)
    ask("Promise that these are purged, after a full grace period?", yes=yes)

    def change(session: Session, account_id: int) -> bool:
        _refuse(session, rows.lock(session, account_id))
        lifecycle.accept(
            session, account_id, reason=reason, promise=services().promise, by=OPERATOR_ACTOR
        )
        return True

    change_each(
        list(map(str, ids)),
        change,
        done="Account {id} will be purged at {purge_at}.",
        already="Account {id} will be purged at {purge_at}.",
        as_json=as_json,
    )


def _asked_about(session: Session, account_id: int) -> dict[str, Any]:
    account = rows.find(session, account_id)
    if account is None:
        fail(f"Account {account_id} is gone: it was purged meanwhile. Nothing was changed.")
    _refuse(session, account)
    return account_document(session, account)


def _refuse(session: Session, account: Account) -> None:
    """End the command if there is nothing to accept about *account*."""
    if account.is_active:
        fail(f"Account {account.id}: {NotDeactivated.message} Nothing was changed.")
    if audit.is_explained(session, account):
        fail(
            f"Account {account.id}: Its purge at {stamp(account.purge_at)} is promised already. "
            "Nothing was changed."
        )


def _lines(shown: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = ("id", "state", "purge_at", "username", "email")
    titles = ("ID", "STATE", "PURGE AT", Column("USERNAME", most=32), "E-MAIL")
    yield from table(titles, ([one[name] for name in names] for one in shown[:MOST_SHOWN]))
    if len(shown) > MOST_SHOWN:
        yield f"… and {len(shown) - MOST_SHOWN} more"
    yield count(len(shown), "account")
