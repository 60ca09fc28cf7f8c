"""The command that lets purging go on after something has stopped it by itself."""

from __future__ import annotations

import click

from ..db.audit import OPERATOR_ACTOR
from ..db.engine import database_now
from ..monitoring.status import count_braked
from ..purge import brake, clocks
from ..web import services
from .console import ask, fail, json_option, sentences, show_json, yes_option
from .purging import refusals, sweeps_group
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

    --up-to lets so many more accounts be purged than the brake does, once; look first who they are.
    The next sweeps purge them, oldest first; what is left lapses after 24 hours, or when nobody
    waits any more. A second command takes the place of the first.

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
    if (up_to is not None) == clock:
        raise click.UsageError("Say what is right: --up-to N, or --clock.")
    if (reason is not None) == clock:
        raise click.UsageError("--up-to wants a --reason, and --clock wants none.")
    if up_to is not None and reason is not None:
        _allow_more(up_to, reason, as_json=as_json)
    else:
        _allow_clock(yes=yes, as_json=as_json)


def _allow_more(up_to: int, reason: str, *, as_json: bool) -> None:
    with services().writing() as session:
        until = brake.allow(session, up_to, reason=reason, by=OPERATOR_ACTOR)
        waiting = count_braked(
            session,
            now=database_now(session),
            max_attempts=services().settings.purge_max_attempts,
        )
    if until is None:
        fail("The brake does not hold, so nobody waits for it. Nothing was changed.")
    if as_json:
        show_json({"allowed": up_to, "until": stamp(until), "braked": waiting})
    else:
        accounts = count(up_to, "more account", "more accounts")
        now_waits = count(waiting, "waits", "wait")
        click.echo(f"Up to {accounts} may be purged until {stamp(until)}; {now_waits} now.")


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
