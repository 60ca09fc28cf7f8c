"""Where the texts of settings come from, and the keys that development makes for itself."""

from __future__ import annotations

import base64
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values

from . import private, readers

INSTANCE_EXAMPLE = "/var/lib/accountsvc"
# Development makes these for itself, each in a file of its own in the instance folder.
MADE_KEYS = ("SECRET_KEY", "VAULT_KEYS", "LEDGER_SIGNING_KEY")


class ConfigError(Exception):
    """Settings are missing or wrong: a line for each, for whoever starts the process."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines

    @property
    def report(self) -> str:
        """The lines as a process prints them, each with the program's name in front."""
        return "".join(f"accountsvc: {line}\n" for line in self.lines)


def wrong_line(name: str, why: object, example: str) -> str:
    """Return the line that refuses the setting *name*; *why* must not repeat a secret."""
    return f"{name} {why}; for example: {example}"


class Faults:
    """The lines of all that is wrong, each once, in the order in which they were found."""

    def __init__(self, lines: Sequence[str] = ()) -> None:
        self._lines = dict.fromkeys(lines)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Keep what the block raises as ConfigError, and go on behind the block."""
        try:
            yield
        except ConfigError as exc:
            self.add(*exc.lines)

    def add(self, *lines: str) -> None:
        self._lines.update(dict.fromkeys(lines))

    def refuse(self) -> None:
        """Raise ConfigError with all lines, if there are any."""
        if self._lines:
            raise ConfigError(*self._lines)


@dataclass(frozen=True)
class SourcedText:
    """The text of a setting, ``None`` if there is none, and its source in words."""

    text: str | None
    source: str


class Sources:
    """The places from which the settings of a process come.

    *environ* wins over *dotenv*; an empty text counts as none. *unreadable* is the line about a
    ``.env`` file that cannot be read, whose settings nobody knows then.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        dotenv: Mapping[str, str | None],
        *,
        unreadable: str | None = None,
    ) -> None:
        self.environ = environ
        self.dotenv = dotenv
        self.unreadable = unreadable
        valued = {name: text for name, text in dotenv.items() if text is not None}
        self.given: Mapping[str, str] = {**valued, **environ}

    @classmethod
    def of_this_process(cls) -> Sources:
        """Return the process environment and the ``.env`` file of the working directory."""
        try:
            return cls(os.environ, dotenv_values(".env"))
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            line = f"the file .env cannot be read: {reason}"
            return cls(os.environ, {}, unreadable=line)

    @property
    def is_production(self) -> bool:
        return is_production(self.given)

    def is_given(self, name: str) -> bool:
        return bool(self.given.get(name))

    def find(self, name: str, default: str | None) -> SourcedText:
        """Return the text of the setting *name*; it is not checked.

        Raises ConfigError if the instance folder, where it would be, cannot be named or read.
        """
        if self.environ.get(name):
            return SourcedText(self.environ[name], "environment")
        if self.given.get(name):
            return SourcedText(self.given[name], ".env")
        if default is None:
            key = None if self.is_production else _read_key(_instance(self.given), name)
            return SourcedText(key, "instance folder" if key else "nowhere")
        if name == "CELERY_BROKER_URL" and self.given.get("REDIS_URL"):
            return SourcedText(self.given["REDIS_URL"], "derived")
        if "{" not in default:
            return SourcedText(default, "default")
        # Look for the folder only where it is needed: a wrong one must not hide the other settings.
        folder = _instance(self.given) if "{INSTANCE_PATH}" in default else None
        port = (self.given.get("PORT") or "8000").strip()
        return SourcedText(default.format(INSTANCE_PATH=folder, PORT=port), "derived")


def may_be_shown(text: str, *, secret: bool) -> bool:
    """Say whether a line may hold the *text* of a setting, which is a *secret* or is none.

    A URL with a login holds a password also where none belongs.
    """
    return not secret and re.search(r"://[^/]*@", text) is None


def is_production(given: Mapping[str, str]) -> bool:
    """Say whether *given* mean production; a wrong word for it does too, and is refused.

    Taken for development, ``Production`` would have keys made for it, and hear of all that
    production demands only at the next start.
    """
    return given.get("APP_ENV", "").strip().lower().startswith("prod")


def _instance(environ: Mapping[str, str]) -> Path:
    text = environ.get("INSTANCE_PATH") or "./instance"
    try:
        return readers.path(text)
    except ValueError as exc:
        line = wrong_line("INSTANCE_PATH", f"{exc} ({text!r})", INSTANCE_EXAMPLE)
        raise ConfigError(line) from None


def _key_file(instance: Path, name: str) -> Path:
    return instance / name.lower()


def _read_key(instance: Path, name: str) -> str | None:
    try:
        return _key_file(instance, name).read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigError(f"{name} cannot be read from the instance folder: {reason}") from None


def make_keys(environ: Mapping[str, str]) -> list[str]:
    """Make the keys that development needs and that neither the environment nor the folder has.

    Idempotent and safe beside itself: each file is created exclusively with mode 600, so that an
    existing key is never replaced. Returns the names of the keys that this call made; in production
    it makes none.
    """
    if is_production(environ):
        return []
    instance = _instance(environ)
    private.make_folder(instance)
    names = []
    for name in MADE_KEYS:
        if environ.get(name) or _read_key(instance, name):
            continue
        # Whoever names public keys has the signing one elsewhere: another one would not fit them.
        if name == "LEDGER_SIGNING_KEY" and environ.get("LEDGER_PUBLIC_KEYS"):
            continue
        key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
        # Write the key aside and link it into place, so that a process that dies here leaves no
        # half-written key behind, which every later start would refuse.
        draft = instance / f".{name.lower()}.{secrets.token_hex(8)}"
        descriptor = private.open_new(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(key + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, _key_file(instance, name))
            names.append(name)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return names
