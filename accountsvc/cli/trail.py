"""The command that lists the audit trail."""

from __future__ import annotations

import difflib
import json
import uuid
from datetime import datetime
from typing import Any

import click

from .. import documents
from ..db import audit, rows
from ..db.models import MAX_ID
from ..db.text import text_problem
from ..web import services
from .auditing import audit_group
from .console import fail, json_option, moment_option, sentences, show_json, show_lines
from .words import printable, table


def _check_action(
    _context: click.Context, option: click.Parameter, action: str | None
) -> str | None:
    if action is None or action in audit.ACTIONS:
        return action
    near = difflib.get_close_matches(action, sorted(audit.ACTIONS), n=3)
    # Whoever knows one half of a name alone is helped by those that have it.
    halves = sorted(one for one in audit.ACTIONS if action in one.split("."))
    near = halves or near
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    known = "" if near else f" It is one of: {', '.join(sorted(audit.ACTIONS))}."
    raise click.BadParameter(f"nothing is called {printable(action)}.{meant}{known}", param=option)


@audit_group.command("list")
@click.option("--subject", metavar="ID|NUMBER|EMAIL", help="Only what happened to this account.")
@click.option("--action", metavar="ACTION", callback=_check_action, help="Only this.")
@moment_option("--since", metavar="TIME", help_="Only from this moment on.")
@moment_option("--until", metavar="TIME", help_="Only before this moment.")
@click.option(
    "--after",
    type=click.IntRange(0, MAX_ID),
    default=0,
    metavar="ID",
    help="Only events with ids above this one.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@json_option
@sentences
def list_command(
    *,
    subject: str | None,
    action: str | None,
    since: datetime | None,
    until: datetime | None,
    after: int,
    limit: int,
    as_json: bool,
) -> None:
    """List what happened, oldest first, a page at a time.

    A TIME is RFC 3339, or a date, which is its midnight in UTC. Somebody who is purged is named by
    number. The staff reads the same at /api/admin/audit/.

    \b
    flask --app wsgi audit list --subject 0f8c6e0a-5a55-4a3e-9d0e-3a8f2b7c1d64
    flask --app wsgi audit list --action account.purged --since 2026-12-07 --json

    \b
    Exit codes: 0 listed, also if there is nothing; 1 there is no such account;
    2 bad usage.
    """
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--since is not before --until.")
    number = None if subject is None else _number(subject)
    with services().reading() as session:
        found = audit.events(
            session,
            subject=number,
            action=action,
            since=since,
            until=until,
            after=after,
            limit=limit + 1,
        )
        page = [documents.event_document(event) for event in found[:limit]]
    if as_json:
        show_json(page)
    elif page:
        titles = ["ID", "AT", "ACTION", "SUBJECT", "BY", "ACTOR", "DETAILS"]
        show_lines(table(titles, map(_cells, page)))
    else:
        click.echo("No events.")
    if len(found) > limit:
        click.echo(f"More: repeat with --after {page[-1]['id']}.", err=True)


def _number(subject: str) -> uuid.UUID:
    """Return the public id of whoever is named so; a number need not have an account any more."""
    number = rows.read_number(subject)
    if number is not None:
        return number
    with services().reading() as session:
        account = None if text_problem(subject) else rows.locate(session, subject)
        number = None if account is None else account.public_id
    if number is None:
        fail(
            f"Not found: {printable(subject) or 'an empty name'}. Give an id, a number or an "
            "e-mail; who is purged has the number alone."
        )
    return number


def _cells(event: dict[str, Any]) -> list[object]:
    details = " ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in event["details"].items()
    )
    names = ("id", "at", "action", "subject", "actor_kind", "actor")
    return [*(event[name] for name in names), details]
