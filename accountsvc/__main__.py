"""The command ``accountsvc``, also ``python -m accountsvc``: start the service, and look after it.

Its own commands need no application; those for the operator are ``flask``'s, made when asked for. A
command imports what it needs when it runs: ``web`` would otherwise import Flask before gunicorn
does so once more, and every start would take half a second longer.

Exit codes: 0 done, 1 it could not be done, 2 a setting or an argument is wrong.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from . import __version__, start
from .config import load_settings, nearly_settings
from .sources import ConfigError, Faults

if TYPE_CHECKING:
    from flask import Flask

    from .sources import Sources


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and exit with its code; return it if the command could not begin."""
    _write_whatever_comes()
    try:
        commands.main(args=arguments)
    except ConfigError as exc:
        click.echo(exc.report, err=True, nl=False)
        return 2
    except start.Failure as exc:
        _complain(exc)
        return 1


def _write_whatever_comes() -> None:
    """Escape what stdout's encoding lacks, and drop what is written where stdout is closed.

    Otherwise a folder's name in another script, or no stdout, would end a command half-way.
    """
    stdout: object = sys.stdout
    if stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    elif isinstance(stdout, TextIOWrapper) and stdout.errors == "strict":
        stdout.reconfigure(errors="backslashreplace")


def _complain(reason: object) -> None:
    click.echo(f"accountsvc: {reason}", err=True)


class _Command(click.Command):
    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        words = " ".join(self.collect_usage_pieces(ctx))
        formatter.write_usage(ctx.command_path, words, prefix="usage: ")


class _Commands(click.Group, _Command):
    """The program's own commands and, behind them, those of ``flask``, slow to import."""

    command_class = _Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *_commands_of_flask()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = self.commands.get(cmd_name)
        if command is None:
            from flask.cli import ScriptInfo

            ctx.obj = ScriptInfo(create_app=_create_app)
            command = _commands_of_flask().get(cmd_name)
        return command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """End the help with what is wrong with the settings, if anything is."""
        super().format_epilog(ctx, formatter)
        try:
            load_settings()
        except ConfigError as exc:
            click.echo(exc.report, err=True, nl=False)


@cache
def _commands_of_flask() -> dict[str, click.Command]:
    # A command lives for seconds; a third of that would go into looking for garbage among the
    # modules that are imported here.
    gc.disable()
    from flask import cli as flask

    from . import cli

    commands: dict[str, click.Command] = {
        "shell": flask.shell_command,
        "routes": flask.routes_command,
    }
    for plugin in entry_points(group="flask.commands"):
        commands[plugin.name] = plugin.load()
    for group in cli.groups():
        assert group.name is not None
        _name_this_program(group)
        commands[group.name] = group
    return commands


def _name_this_program(command: click.Command) -> None:
    """Name ``accountsvc`` in the examples: an installed service has no ``wsgi`` for ``flask``."""
    if command.help:
        command.help = command.help.replace("flask --app wsgi ", "accountsvc ")
    if isinstance(command, click.Group):
        for part in command.commands.values():
            _name_this_program(part)


def _create_app() -> Flask:
    from . import create_app

    app = create_app()
    gc.freeze()
    gc.enable()
    return app


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="accountsvc", message="%(prog)s %(version)s")
def commands() -> None:
    """Start accountsvc, and look after it.

    Settings come from the environment or a .env file; `settings` lists them.
    """


@commands.command()
def prepare() -> None:
    """Make what is missing: folder, keys, schema.

    It is safe to repeat. Keys are made for development only.
    """
    from .start.prepare import prepare

    prepare()


_file = click.argument("file", type=click.Path(path_type=Path))


@commands.command()
@_file
def backup(file: Path) -> None:
    """Write database and avatars into FILE.

    It is for the embedded database, and safe while everything runs. FILE is written whole or not at
    all, and may not be there yet. It holds no keys.
    """
    from .start.backup import backup

    backup(file)


@commands.command()
@_file
def restore(file: Path) -> None:
    """Put the backup in FILE in place.

    The service has to be stopped. What was there is kept beside it, and purging is paused.
    """
    from .start.restore import restore

    restore(file)


@commands.command()
@click.option("--prepare", "prepare_first", is_flag=True, help="First make what is missing.")
@click.pass_context
def run(ctx: click.Context, *, prepare_first: bool) -> None:
    """Serve: web, worker and beat together.

    Ctrl-C stops them all. In production each has a supervisor of its own.
    """
    from .start.runner import run

    ctx.exit(run(ctx.command_path, prepare_first=prepare_first))


# All words after one of these commands are for the program that it becomes: read as ours, most of
# them would be refused.
_passing_on: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True}
_arguments = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)


@commands.command(context_settings=_passing_on)
@_arguments
def web(arguments: Sequence[str]) -> None:
    """Serve HTTP, with gunicorn.

    ARGUMENTS are passed on to gunicorn.
    """
    _become("web", arguments)


@commands.command(context_settings=_passing_on)
@click.option("--beat", is_flag=True, help="Also say when to sweep and to deliver.")
@_arguments
def worker(arguments: Sequence[str], beat: bool) -> None:
    """Sweep and deliver, with Celery.

    ARGUMENTS are passed on to Celery's worker.
    """
    _become("worker", arguments, beat=beat)


@commands.command(context_settings=_passing_on)
@_arguments
def beat(arguments: Sequence[str]) -> None:
    """Say when to sweep and to deliver.

    ARGUMENTS are passed on to Celery's beat.
    """
    _become("beat", arguments)


def _become(process: str, arguments: Sequence[str], **options: bool) -> None:
    from .start import processes

    faults, command = Faults(), list[str]()
    with faults.caught():
        load_settings()
    with faults.caught():
        command = getattr(processes, process)(arguments, **options)
    faults.refuse()
    processes.become(command)


@commands.command()
def settings() -> None:
    """List every setting, with its value and meaning.

    Secrets are not shown. The exit code is 2 if settings are wrong or missing, which are named
    behind the list.
    """
    from .sources import Sources
    from .start.settings import refuse_wrong_vault_keys, rows, table

    sources = Sources.of_this_process()
    for line in table(list(rows(sources))):
        click.echo(line)
    for name, setting in nearly_settings(sources.environ).items():
        line = f"{name} in the environment is no setting: did you mean {setting}?"
        click.echo(f"accountsvc: {line}", err=True)
    # The exit code says whether a process would start with them.
    refuse_wrong_vault_keys(load_settings())


@commands.command("signing-key")
def signing_key() -> None:
    """Make a pair of keys for the ledger, as two lines to paste.

    The first is for workers and for the operator's commands, the second for every process. Public
    keys that are set already stay in the list: their seals count on.
    """
    import secrets

    from . import readers
    from .sources import Sources

    key = secrets.token_bytes(32)
    public = [readers.public_key_of(key), *_public_keys(Sources.of_this_process())]
    click.echo(f"LEDGER_SIGNING_KEY={readers.key_text(key)}")
    click.echo(f"LEDGER_PUBLIC_KEYS={','.join(map(readers.key_text, public))}")


@commands.command("verify-receipt")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--keys",
    type=click.File("rb"),
    help="The public keys, as /.well-known/accountsvc-keys.json has them.",
)
@click.pass_context
def verify_receipt(ctx: click.Context, file: BinaryIO, keys: BinaryIO | None) -> None:
    """Say what the signed receipt in FILE proves.

    FILE is as `accounts receipt NUMBER --json` or /api/receipts/NUMBER/ gives it; - is stdin. It
    needs neither a network nor a database. Without --keys those of LEDGER_PUBLIC_KEYS count. The
    exit code is 0 if all of it is proved, and 1 if something is not, which is named.
    """
    from .sources import Sources
    from .start.receipts import report

    known = _public_keys(Sources.of_this_process()) if keys is None else _keys_in(keys)
    if not known:
        raise click.UsageError("No key is known. Give --keys, or set LEDGER_PUBLIC_KEYS.")
    lines, is_proved = report(file, known)
    for line in lines:
        click.echo(line)
    ctx.exit(0 if is_proved else 1)


def _keys_in(file: BinaryIO) -> Sequence[bytes]:
    from .adapters import signedreceipts

    try:
        return signedreceipts.keys_in(file.read(signedreceipts.MOST_BYTES + 1))
    except ValueError as exc:
        raise click.BadParameter(f"the file {exc}", param_hint="--keys") from None


def _public_keys(sources: Sources) -> Sequence[bytes]:
    """Return the public keys that are in use; raise ConfigError for wrong ones."""
    from . import readers
    from .sources import wrong_line

    try:
        listed = readers.public_keys(sources.find("LEDGER_PUBLIC_KEYS", "").text or "")
        signing = sources.find("LEDGER_SIGNING_KEY", None).text
        if not listed and signing:
            listed = (readers.public_key_of(readers.signing_key(signing)),)
    except ValueError as exc:
        example = "the output of `accountsvc signing-key`"
        raise ConfigError(wrong_line("LEDGER_PUBLIC_KEYS", exc, example)) from None
    return listed


if __name__ == "__main__":
    sys.exit(main())
