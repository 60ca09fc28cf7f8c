"""The command that makes a canary now."""

from __future__ import annotations

import click

from ..monitoring import canary as canaries
from ..web import services
from .accounts import accounts_group
from .console import fail, json_option, logs_aside, sentences, show_json
from .purging import refusals


@accounts_group.command()
@json_option
@sentences
def canary(*, as_json: bool) -> None:
    """Purge a made-up person now, and search for them in every place.

    They sign up, show an avatar, save a password, take their data along, leave and are purged, by
    the code that everybody's data goes through; their mails go nowhere. Then no word of theirs may
    be anywhere but in the receipt and the trail, by public id. Whoever else is due is not purged.
    It takes seconds. For after an upgrade; with CANARY=on the worker does it once a day.

    \b
    flask --app wsgi accounts canary

    \b
    Exit codes: 0 nothing is left, 1 a step failed or something is left (it
    says what, and where), 2 bad usage.
    """
    with refusals():
        services().purge_now.refuse_if_stopped()

    steps: list[str] = []
    with logs_aside():
        outcome = canaries.run(services(), say=steps.append)
    if outcome is None:
        fail("Another one is being made. Try again in a few minutes.")
    if as_json:
        show_json(
            {
                "public_id": str(outcome.public_id),
                "passed": outcome.passed,
                "step": outcome.step,
                "error": outcome.error,
                "places": list(outcome.places),
            }
        )
    else:
        for step in [*steps, *(["search"] if outcome.passed else [])]:
            click.echo(f"ok  {step}")
    if outcome.places:
        fail(f"Something of the canary is left in: {', '.join(outcome.places)}.")
    if not outcome.passed:
        fail(f"The canary failed at the step {outcome.step} ({outcome.error}).")
    if not as_json:
        click.echo(f"Nothing is left of the canary {outcome.public_id}.")
