"""Commands on accounts: ``flask --app wsgi accounts …``.

Exit codes: 0 when all that was asked is done (or was so already), 1 with a sentence when something
is not, 2 for bad usage. With ``--json`` one document goes to stdout; sentences and logs go to
stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click
from flask.cli import AppGroup
from sqlalchemy.orm import Session

from .. import documents
from ..accounts import giveback, lifecycle, profiles
from ..db import audit, rows
from ..db.audit import OPERATOR_ACTOR
from ..db.engine import database_now
from ..db.models import ACTIVE, DEACTIVATED, DUE, MAX_ID, UNEXPLAINED
from ..errors import AccountNotFound, GraceOver, HoldNotFound
from ..outbox import recipients
from ..purge import failures, stops, story
from ..web import services
from . import stories
from .console import (
    account_document,
    change_each,
    fail,
    find,
    is_behind_its_ledger,
    json_option,
    reason_option,
    sentences,
    show_json,
    show_lines,
)
from .words import Column, fields, stamp, table

accounts_group = AppGroup(
    "accounts",
    help="""List, deactivate, reactivate and purge accounts.

    \b
    Accounts are named by id, by e-mail, or by number: the public id, which
    the mail that all is gone has, and the receipt.
      flask --app wsgi accounts list --state due
      flask --app wsgi accounts show ann@example.org
      flask --app wsgi accounts purge 42 --dry-run

    \b
    Exit codes: 0 done, or so already; 1 not done, with a sentence that says
    why; 2 bad usage.
    """,
)


@accounts_group.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|NUMBER|EMAIL…")
@reason_option("Stored on the account until its purge.")
@json_option
@sentences
def deactivate(names: tuple[str, ...], *, reason: str | None, as_json: bool) -> None:
    """End all access at once; the purge comes later.

    It follows after the grace period. Of several accounts all are deactivated or none. An account
    that is deactivated already keeps its purge time, and gets the reason if one is given.

    \b
    flask --app wsgi accounts deactivate 42
    flask --app wsgi accounts deactivate ann@example.org --reason "asked by letter"

    \b
    Exit codes: 0 all are deactivated, 1 none was (it says why), 2 bad usage.
    """
    promise = services().promise

    def change(session: Session, account_id: int) -> bool:
        was_active = rows.lock(session, account_id).is_active
        account = lifecycle.deactivate(
            session, account_id, promise=promise, by=OPERATOR_ACTOR, reason=reason
        )
        if reason is None or account.reason == reason:
            return was_active
        lifecycle.set_reason(session, account_id, reason=reason, by=OPERATOR_ACTOR)
        return True

    change_each(
        names,
        change,
        done="Account {id} is deactivated; purge at {purge_at}.",
        already="Account {id} was deactivated already; purge at {purge_at}.",
        as_json=as_json,
        ends=True,
    )


_NEEDS_A_REASON = (
    "The grace period is over. While purging is paused (`sweeps pause`), --reason gives it back "
    "all the same."
)
_COULD_BE_PURGED = (
    "It is due, and a worker could purge it at this moment. Run `sweeps pause`, then this again."
)
_NOBODY_PROMISED = (
    "Its date has passed, but nobody has promised its purge. `accounts accept` promises a full "
    "grace period, in which it can be given back; while purging is paused (`sweeps pause`), "
    "--reason gives it back at once."
)


@accounts_group.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|NUMBER|EMAIL…")
@reason_option("Needed for who is due; stored on the account until its purge.")
@json_option
@sentences
def reactivate(names: tuple[str, ...], *, reason: str | None, as_json: bool) -> None:
    """Give accounts back in their grace period.

    Whoever deactivated them. Of several accounts all are given back or none. With --reason also
    accounts that are due, while purging is paused or is refused after a restore: somebody may have
    come back since the backup, or asked in time.

    \b
    flask --app wsgi accounts reactivate 42
    flask --app wsgi accounts reactivate 42 --reason "came back on 5 December"

    \b
    Exit codes: 0 all are active, 1 none was given back (it says why), 2 bad usage.
    """

    # Asked before the transaction, whose lock would otherwise wait for the ledger's store.
    is_behind = reason is not None and is_behind_its_ledger()

    def change(session: Session, account_id: int) -> bool:
        account = rows.lock(session, account_id)
        if account.is_active:
            return False
        promise = services().promise
        is_due = account.state(database_now(session)) == DUE
        is_explained = audit.is_explained(session, account)
        if reason is None:
            if is_due:
                raise GraceOver(_NEEDS_A_REASON if is_explained else _NOBODY_PROMISED)
            lifecycle.reactivate(session, account_id, promise=promise, by=OPERATOR_ACTOR)
            return True
        if is_due and not (is_behind or stops.paused_at(session) is not None):
            raise GraceOver(_COULD_BE_PURGED if is_explained else _NOBODY_PROMISED)
        giveback.give_back_due(session, account_id, reason=reason, promise=promise)
        return True

    change_each(
        names,
        change,
        done="Account {id} is active again.",
        already="Account {id} was active already."
        + ("" if reason is None else " The reason was not stored."),
        as_json=as_json,
    )


@accounts_group.command()
@click.argument("name", metavar="ID|NUMBER|EMAIL")
@json_option
@sentences
def show(name: str, *, as_json: bool) -> None:
    """Show one account: state, dates, and why it is not purged.

    Of somebody who is purged, who has no name but the number: their story, out of audit events,
    receipt and what became true of it. Nothing in it is personal.

    \b
    flask --app wsgi accounts show ann@example.org
    flask --app wsgi accounts show 0f8c6e0a-5a55-4a3e-9d0e-3a8f2b7c1d64

    \b
    Exit codes: 0 shown, 1 not found, 2 bad usage.
    """
    if _show_who_is_gone(name, as_json=as_json):
        return
    (account_id,) = find([name])
    with services().reading() as session:
        account = rows.find(session, account_id)
        if account is None:
            raise AccountNotFound
        shown = account_document(session, account)
        shown["former_emails"] = [
            {"email": former.email, "left_at": stamp(former.left_at)}
            for former in recipients.remembered(session, account)
        ]
    if as_json:
        show_json(shown)
    else:
        show_lines(_account_lines(shown))


def _show_who_is_gone(name: str, *, as_json: bool) -> bool:
    """Tell the story of the number *name*; False if it is none of somebody who is gone."""
    number = rows.read_number(name)
    if number is None:
        return False
    with services().reading() as session:
        if rows.find_by_public_id(session, number) is not None:
            return False
        told = story.tell(session, number)
    if told is None:
        return False
    if as_json:
        show_json(stories.document(told))
    else:
        show_lines(stories.lines(told))
    return True


def _account_lines(shown: Mapping[str, Any]) -> Iterator[str]:
    yield from fields(
        {
            "id": shown["id"],
            "public id": shown["public_id"],
            "username": shown["username"],
            "e-mail": shown["email"],
            "pending e-mail": shown["pending_email"],
            "former e-mails": ", ".join(
                f"{former['email']} until {former['left_at']}" for former in shown["former_emails"]
            )
            or None,
            "first name": shown["first_name"],
            "last name": shown["last_name"],
            "phone": shown["number_phone"],
            "avatar": shown["avatar"],
            "staff": shown["is_staff"],
            "joined at": shown["date_joined"],
            "state": shown["state"],
            "saved passwords": shown["saved_passwords"],
            "deactivated at": shown["deactivated_at"],
            "deactivated by": shown["deactivated_by"],
            "purge at": shown["purge_at"],
            "reason": shown["reason"],
            "given back because": shown["return_reason"],
            "blocked by": _BLOCKS.get(shown["blocked_by"]),
            "unexplained": shown["unexplained"] or None,
            "failed tries": shown["attempts"] or None,
            "error": shown["error"],
            "constraint": shown["constraint"],
        }
    )
    if shown["holds"]:
        yield ""
        holds = ((hold["id"], hold["placed_at"], hold["reason"]) for hold in shown["holds"])
        yield from table(["HOLD", "PLACED AT", "REASON"], holds)


_BLOCKS = {
    failures.HELD: "an open hold: `accounts release` ends it",
    UNEXPLAINED: "nobody has promised the purge: `accounts accept` does",
    failures.BRAKED: "the brake: a later sweep takes it, or `sweeps allow` lets it go",
    failures.WAITING: "a failure: it is tried again by itself",
    failures.STUCK: "a failure, too often: mend the cause, then `accounts retry`",
}


@accounts_group.command("list")
@click.option(
    "--state", type=click.Choice([ACTIVE, DEACTIVATED, DUE, UNEXPLAINED]), help="Only these."
)
@click.option(
    "--after",
    type=click.IntRange(0, MAX_ID),
    default=0,
    metavar="ID",
    help="Only ids above this one.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@json_option
@sentences
def list_command(state: str | None, after: int, limit: int, *, as_json: bool) -> None:
    """List accounts by id, a page at a time.

    A long username is cut; --json has all of it. The unexplained are those whose purge nobody has
    promised; they are deactivated or due as well, and `accounts accept` ends it.

    \b
    flask --app wsgi accounts list --state deactivated --limit 20

    \b
    Exit codes: 0 listed, also if there is none; 1 it cannot be read; 2 bad usage.
    """
    with services().reading() as session:
        now = database_now(session)
        accounts = profiles.list_accounts(
            session, now=now, state=state, after=after, limit=limit + 1
        )
        page = [
            {
                "id": account.id,
                "username": account.username,
                "email": account.email,
                "is_staff": account.is_staff,
                "state": account.state(now),
                "purge_at": stamp(account.purge_at),
            }
            for account in accounts[:limit]
        ]
    if as_json:
        show_json(page)
    elif page:
        names = ("id", "state", "purge_at", "is_staff", "username", "email")
        titles = ("ID", "STATE", "PURGE AT", "STAFF", Column("USERNAME", most=32), "E-MAIL")
        show_lines(table(titles, ([account[name] for name in names] for account in page)))
    else:
        click.echo("No accounts.")
    if len(accounts) > limit:
        click.echo(f"More: repeat with --after {page[-1]['id']}.", err=True)


@accounts_group.command()
@click.option("--username", required=True)
@click.option("--email", required=True)
@click.option("--staff", is_flag=True, help="The account may act on others.")
@json_option
@sentences
def create(username: str, email: str, *, staff: bool, as_json: bool) -> None:
    """Create an account, for staff too.

    The password is asked for at a terminal, or read from standard input. It is never given on the
    command line, where others could read it.

    \b
    flask --app wsgi accounts create --username ann --email ann@example.org --staff
    pwgen 20 1 | flask --app wsgi accounts create --username bob --email bob@example.org

    \b
    Exit codes: 0 created, 1 refused (it says which field, and why), 2 bad usage.
    """
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        # Bytes that are not UTF-8 come through as surrogates, which no password may hold.
        line = sys.stdin.buffer.readline()
        password = line.decode(errors="surrogateescape").rstrip("\r\n")
    account = profiles.sign_up(
        services().database,
        services().hasher,
        services().keyring,
        {"username": username, "email": email, "password": password},
        is_staff=staff,
        by=OPERATOR_ACTOR,
    )
    if as_json:
        shown = documents.user_document(account, now=account.joined_at)
        show_json({**shown, "public_id": str(account.public_id)})
    else:
        click.echo(f"Account {account.id} created{' for staff' if staff else ''}.")


@accounts_group.command()
@click.argument("name", metavar="ID|NUMBER|EMAIL")
@reason_option("Stored on the account until its purge.", required=True)
@json_option
@sentences
def hold(name: str, *, reason: str, as_json: bool) -> None:
    """Place a legal hold: no purge until it is released.

    Works in every state of the account; an account may have several holds.

    \b
    flask --app wsgi accounts hold 42 --reason "court order 12/3"

    \b
    Exit codes: 0 placed, 1 not (it says why), 2 bad usage.
    """
    (account_id,) = find([name])
    with services().writing() as session:
        placed = lifecycle.place_hold(session, account_id, reason=reason, by=OPERATOR_ACTOR)
        shown = {"account": account_id, "hold": placed.id, "placed_at": stamp(placed.placed_at)}
    if as_json:
        show_json(shown)
    else:
        click.echo(f"Hold {shown['hold']} placed on account {account_id}.")


@accounts_group.command()
@click.argument("name", metavar="ID|NUMBER|EMAIL")
@click.argument("hold_id", type=click.IntRange(min=1), metavar="HOLD")
@json_option
@sentences
def release(name: str, hold_id: int, *, as_json: bool) -> None:
    """Release a legal hold.

    After the last one the purge waits at least HOLD_RELEASE_DELAY, so that a mistake is not final.
    `accounts show` lists the open holds of an account.

    \b
    flask --app wsgi accounts release 42 7

    \b
    Exit codes: 0 released, 1 no such open hold, 2 bad usage.
    """
    (account_id,) = find([name])
    with services().writing() as session:
        try:
            lifecycle.release_hold(
                session, account_id, hold_id, promise=services().promise, by=OPERATOR_ACTOR
            )
        except HoldNotFound:
            fail(
                f"No open hold {hold_id} on account {account_id}. "
                f"`accounts show {account_id}` lists those that are open."
            )
        shown = account_document(session, rows.lock(session, account_id))
    if as_json:
        show_json(shown)
    else:
        until = f", purge at {shown['purge_at']}" if shown["purge_at"] else ""
        click.echo(f"Hold {hold_id} released; account {account_id} is {shown['state']}{until}.")


@accounts_group.command()
@click.argument("names", nargs=-1, required=True, metavar="ID|NUMBER|EMAIL…")
@json_option
@sentences
def retry(names: tuple[str, ...], *, as_json: bool) -> None:
    """Let the next sweep try failing or stuck accounts again.

    Mend the cause first: `accounts show` names the error and the constraint.

    \b
    flask --app wsgi accounts retry 42

    \b
    Exit codes: 0 all will be tried, 1 an account is not found, 2 bad usage.
    """

    def change(session: Session, account_id: int) -> bool:
        return failures.retry(session, account_id, by=OPERATOR_ACTOR)

    change_each(
        names,
        change,
        done="Account {id} will be tried again.",
        already="Account {id} had not failed.",
        as_json=as_json,
    )
