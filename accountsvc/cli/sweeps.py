"""The command that lets purging go on after something has stopped it by itself."""

from __future__ import annotations

from itertools import islice
from typing import NoReturn

import click

from ..db.audit import OPERATOR_ACTOR
from ..db.engine import database_now
from ..errors import InvalidInput
from ..monitoring.status import count_braked
from ..purge import brake, claim, clocks
from ..web import services
from .console import ask, fail, json_option, sentences, show_json, show_lines, yes_option
from .purging import plan_lines, refusals, sweeps_group
from .words import clock_moved, count, stamp


@sweeps_group.command()
@click.option(
    "--up-to",
    type=click.IntRange(1, 999_999_999),
    metavar="N",
    help="So many more are purged than the brake lets go.",
)
@click.option("--reason", help="With --up-to: shown by `accounts status` until it is over.")
@click.option("--clock", is_flag=True, help="The database's clock is right as it is.")
@yes_option
@json_option
@sentences
def allow(*, up_to: int | None, reason: str | None, clock: bool, yes: bool, as_json: bool) -> None:
    """Let go what the brake holds, or go on by the clock as it is.

    --up-to lets so many more accounts be purged than the brake does, once. It shows the first of
    them on stderr, and asks. The next sweeps purge them, oldest first; what is left lapses after 24
    hours, or when nobody waits any more. A second command takes the place of the first.

    --clock: whoever is due by the database's clock is purged then: make sure first that it shows
    the right time. If it does not, set it right instead, and purging goes on by itself.

    \b
    flask --app wsgi accounts list --state due
    flask --app wsgi sweeps allow --up-to 3000 --reason "500 schools closed in July"
    flask --app wsgi sweeps allow --clock

    \b
    Exit codes: 0 it may go on, or no clock has stopped it; 1 another clock
    shows another time, or the brake does not hold; 2 bad usage.
    """
    if up_to is not None and clock:
        raise click.UsageError("Give --up-to N or --clock, not both: each is a command of its own.")
    if up_to is None and not clock:
        raise click.UsageError("Say what is right: --up-to N, or --clock.")
    if (reason is not None) == clock:
        raise click.UsageError("--up-to wants a --reason, and --clock wants none.")
    if up_to is not None and reason is not None:
        _allow_more(up_to, reason, yes=yes, as_json=as_json)
    else:
        _allow_clock(yes=yes, as_json=as_json)


def _allow_more(up_to: int, reason: str, *, yes: bool, as_json: bool) -> None:
    try:
        brake.check_reason(reason)
    except InvalidInput as exc:
        if not reason.strip():
            raise click.UsageError("--reason may not be blank: say why so many may go.") from exc
        raise click.UsageError(f"--reason: {' '.join(exc.fields['reason'])}") from exc
    max_attempts = services().settings.purge_max_attempts
    with services().reading() as session:
        if brake.standing(session).held_at is None:
            _say_that_nobody_waits()
        due = claim.plan(session, now=database_now(session), max_attempts=max_attempts)
        planned = list(islice(due, up_to))
    show_lines(plan_lines(planned), err=True)
    ask("Let these go beyond the brake? They are destroyed for good.", yes=yes)
    with services().writing() as session:
        until = brake.allow(session, up_to, reason=reason, by=OPERATOR_ACTOR)
        waiting = count_braked(session, now=database_now(session), max_attempts=max_attempts)
    if until is None:
        _say_that_nobody_waits()
    if as_json:
        show_json({"allowed": up_to, "until": stamp(until), "braked": waiting})
    else:
        accounts = count(up_to, "more account", "more accounts")
        now_waits = count(waiting, "waits", "wait")
        click.echo(f"Up to {accounts} may be purged until {stamp(until)}; {now_waits} now.")


def _say_that_nobody_waits() -> NoReturn:
    fail("The brake does not hold, so nobody waits for it. Nothing was changed.")


def _allow_clock(*, yes: bool, as_json: bool) -> None:
    with services().reading() as session:
        stopped_at = clocks.stopped_at(session)
        now = services().clocks.clock(session)
    changed = False
    with refusals():
        if stopped_at is not None:
            click.echo(clock_moved(stopped_at), err=True)
            ask(f"The database's clock shows {now:%Y-%m-%d %H:%M:%S} UTC. Is that right?", yes=yes)
            changed = services().clocks.allow(by=OPERATOR_ACTOR)
    if as_json:
        show_json({"changed": changed})
    else:
        click.echo("Purging goes on." if changed else "No clock has stopped purging.")
