"""The command that lets purging go on after something has stopped it by itself."""

from __future__ import annotations

import click

from ..db.audit import OPERATOR_ACTOR
from ..purge import clocks
from ..web import services
from .console import ask, json_option, sentences, show_json, yes_option
from .purging import refusals, sweeps_group
from .words import clock_moved


@sweeps_group.command()
@click.option("--clock", is_flag=True, help="The database's clock is right as it is.")
@yes_option
@json_option
@sentences
def allow(*, clock: bool, yes: bool, as_json: bool) -> None:
    """Let purging go on although the database's clock has moved.

    Whoever is due by that clock is purged then: make sure first that it shows the right time. If
    it does not, set it right instead, and purging goes on by itself.

    \b
    flask --app wsgi sweeps allow --clock

    \b
    Exit codes: 0 purging goes on, or was not stopped; 1 another clock shows
    another time; 2 bad usage.
    """
    if not clock:
        raise click.UsageError("Say what is right: --clock.")
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
