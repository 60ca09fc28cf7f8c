"""``accountsvc settings``: the list of all settings, each with its value and its source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from sqlalchemy.engine import make_url

from ..config import Settings
from ..services import build_services
from ..sources import ConfigError, SourcedText, Sources, may_be_shown


@dataclass(frozen=True, kw_only=True)
class Row:
    """A setting as a person reads it; *value* never shows a secret."""

    name: str
    value: str
    source: str
    default: str
    meaning: str


# gunicorn's configuration reads it from the environment alone: a .env file cannot set it.
_OF_GUNICORN = (
    ("HOST", "127.0.0.1", "The address at which the web listens; 0.0.0.0 is every address."),
)


def rows(sources: Sources) -> Iterator[Row]:
    """Describe every setting, also where one is wrong; nothing is checked."""
    for spec in fields(Settings):
        name, default = spec.metadata["name"], spec.metadata["default"]
        try:
            setting = sources.find(name, default)
        except ConfigError:
            setting = SourcedText(None, "nowhere")
        yield Row(
            name=name,
            value=_shown(setting, secret=not spec.repr, sources=sources),
            source=setting.source,
            default=default or "none",
            meaning=spec.metadata["meaning"],
        )
    for name, default, meaning in _OF_GUNICORN:
        text = sources.environ.get(name)
        source = "environment" if text else "default"
        yield Row(name=name, value=text or default, source=source, default=default, meaning=meaning)


def table(described: Sequence[Row]) -> Iterator[str]:
    """Lay *described* out in aligned columns, each with its meaning on a line of its own."""
    columns = [("NAME", "VALUE", "FROM", "DEFAULT")]
    columns += [(row.name, row.value, row.source, row.default) for row in described]
    widths = [max(len(cells[column]) for cells in columns) for column in range(3)]
    meanings = ["", *(row.meaning for row in described)]
    for (name, value, source, default), meaning in zip(columns, meanings, strict=True):
        yield f"{name:{widths[0]}}  {value:{widths[1]}}  {source:{widths[2]}}  {default}"
        if meaning:
            yield f"  {meaning}"


def refuse_wrong_vault_keys(settings: Settings) -> None:
    """Raise ConfigError for ``VAULT_KEYS`` with which web and worker would not start.

    Nothing is written, and a database that does not answer refuses nothing.
    """
    # To connect to a SQLite file that is not there would make it.
    if settings.is_sqlite and not Path(make_url(settings.database_url).database or "").is_file():
        return
    services = build_services(settings)
    try:
        services.refuse_wrong_vault_keys()
    finally:
        services.database.engine.dispose()


def _shown(setting: SourcedText, *, secret: bool, sources: Sources) -> str:
    if not setting.text:
        return "not set"
    # A text derived from the instance folder holds no password; one that REDIS_URL gives may, and
    # would be printed.
    is_given = setting.source != "derived" or setting.text == sources.given.get("REDIS_URL")
    is_shown = may_be_shown(setting.text, secret=secret and is_given)
    return setting.text if is_shown else "secret, set"
