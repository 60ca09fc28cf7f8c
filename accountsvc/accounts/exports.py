"""A person's data as a ZIP, streamed: what the data map says is exported, and nothing else.

The owner may go on writing meanwhile, so every page is read in a short transaction of its own,
which looks at the account again. If it has changed hands or is gone, the stream breaks off: a ZIP
without its end is refused by every program, one that silently lacks something is not.
"""

from __future__ import annotations

import csv
import io
import json
import textwrap
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

from sqlalchemy.orm import Session

from ..adapters.avatarstore import AvatarStore
from ..db import audit, rows
from ..db.audit import Actor
from ..db.datamap import PLACES
from ..db.engine import Database
from ..db.models import ACCOUNTS, OWNER, STAFF, Account, AuditEvent
from ..db.text import rfc3339
from ..errors import TokenNotValid
from ..outbox import recipients
from . import settling, vault
from .avatars import file_turns
from .vault import Keyring, StoredEntry

CONTENT_TYPE = "application/zip"
DISPOSITION = 'attachment; filename="account-data.zip"'

# One transaction reads, and memory holds, so many rows: a few megabytes, should all be of the
# longest. With more, a few exports at once would exhaust the memory of a small host.
PAGE_SIZE = 200

# These columns of the account's row are not in account.json, for the reasons that the README gives.
# A column that is not listed here is exported, also one that nobody has thought about.
WITHHELD: Mapping[str, str] = {
    "password_hash": "it proves nothing about you, and helps whoever wants to guess your password",
    "username_key": "your username once more, in the form in which we compare it",
    "email_key": "your email address once more, in the form in which we compare it",
    "epoch": "a number of ours that ends your sessions",
    "pending_epoch": "the same, of when you asked for another email address",
    "reason": "a note of the staff",
    "return_reason": "a note of the staff or the operator",
}
# Holds are hidden from their owner while proceedings last, so the events that tell of them are too.
HIDDEN_ACTIONS = frozenset({"hold.placed", "hold.released"})

# The columns are Chrome's, because every program reads these: Edge, Brave and Opera write the same,
# Firefox finds url, username and password by name, Bitwarden and 1Password import "Chrome (csv)"
# and would refuse a file that has others.
CSV_COLUMNS = ("name", "url", "username", "password", "note")


class ExportBroken(Exception):
    """The account was purged, deactivated or given back while its export was read."""


def export(
    database: Database,
    keyring: Keyring,
    store: AvatarStore,
    account_id: int,
    *,
    epoch: int,
    now: datetime,
) -> Iterator[bytes]:
    """Return a ZIP with all of the account's data, in pieces; *now* dates its files.

    Only for its owner, who has confirmed it; *epoch* is that of the confirmed token or row. The
    account may be deactivated. The export is audited, and the avatar read, before this returns; the
    rest is read while the pieces are taken, in transactions of milliseconds and in memory that does
    not grow with the number of rows. Outside the pieces no transaction is open.

    Raises TokenNotValid if the account is gone or its epoch has moved on, RecentChange soon after a
    mailed link has set its password in a grace period, StoreUnavailable, VaultKeyMissing.
    Taking a piece raises ExportBroken if that happens later, and whatever the database raises; what
    has been given out by then is no whole ZIP.
    """
    source = _Source(database, keyring, account_id, epoch, now)
    with database.writing() as session:
        account = rows.find(session, account_id)
        if account is None or account.epoch != epoch:
            raise TokenNotValid
        settling.refuse_export(session, account, now=now)
        # Open the key although nothing needs it yet: a key found missing later could be told of
        # only by breaking the stream off.
        vault.open_key(session, keyring, account)
        owner = Actor(OWNER, account.public_id)
        audit.record(session, "account.exported", subject=account.public_id, by=owner, now=now)
        source.avatar_key = account.avatar_key
    source.read_avatar(store)
    return _zipped(source)


@dataclass
class _Source:
    """The places that one export reads from; each read is a transaction of its own."""

    database: Database
    keyring: Keyring
    account_id: int
    epoch: int
    now: datetime
    avatar_key: str | None = None
    avatar: bytes | None = None

    def account(self, session: Session) -> Account:
        """Return the account; raise ExportBroken if it has changed hands or is gone."""
        account = rows.find(session, self.account_id)
        if account is None or account.epoch != self.epoch:
            raise ExportBroken
        return account

    def read_avatar(self, store: AvatarStore) -> None:
        """Read the picture into memory: as it is stored, it fits 512 by 512 pixels.

        Raises StoreUnavailable, Busy.
        """
        if self.avatar_key is not None:
            with file_turns.take():
                self._read_avatar(store, self.avatar_key)

    def _read_avatar(self, store: AvatarStore, key: str) -> None:
        file = store.open(key)
        if file is None:
            # The picture may have been replaced since its key was read: without a second look the
            # export would lack it.
            with self.database.reading() as session:
                self.avatar_key = self.account(session).avatar_key
            file = None if self.avatar_key is None else store.open(self.avatar_key)
        if file is not None:
            with file:
                self.avatar = file.read()

    def entries(self) -> Iterator[list[StoredEntry]]:
        """Yield the saved passwords page by page."""
        after = 0
        while True:
            with self.database.reading() as session:
                account = self.account(session)
                try:
                    page = list(
                        vault.entries(session, self.keyring, account, after=after, limit=PAGE_SIZE)
                    )
                except TokenNotValid:
                    raise ExportBroken from None
            if not page:
                return
            yield page
            after = page[-1].id

    def events(self) -> Iterator[tuple[uuid.UUID, list[AuditEvent]]]:
        """Yield what happened to the account page by page, with its public id."""
        after = 0
        while True:
            with self.database.reading() as session:
                subject = self.account(session).public_id
                page = list(audit.events(session, subject=subject, after=after, limit=PAGE_SIZE))
            if not page:
                return
            yield subject, page
            after = page[-1].id


# A file of the ZIP is its name and its content, in pieces: whole, a large vault would fill the
# memory.
_File = tuple[str, Iterable[bytes]]


def _account(source: _Source) -> Iterator[_File]:
    with source.database.reading() as session:
        account = source.account(session)
        document = {
            column.name: getattr(account, column.name)
            for column in ACCOUNTS.columns
            if column.name not in WITHHELD
        }
    if account.pending(source.now) is None:
        document |= {"pending_email": None, "pending_email_at": None}
    yield "account.json", [_json(document, indent=2) + b"\n"]


def _saved_passwords(source: _Source) -> Iterator[_File]:
    yield "saved_passwords.csv", _csv(source)
    yield (
        "saved_passwords.json",
        _json_list(
            {
                "id": stored.id,
                "name_pages": stored.entry.name_pages,
                "url": stored.entry.url,
                "password_saved": stored.entry.password_saved,
                "created_at": stored.created_at,
                "updated_at": stored.updated_at,
                **({} if stored.is_readable else {"unreadable": True}),
            }
            for page in source.entries()
            for stored in page
        ),
    )


def _csv(source: _Source) -> Iterator[bytes]:
    """Write RFC 4180 in UTF-8, without a byte order mark: importers read one as part of "name".

    Nothing is changed against spreadsheets: a password must come out as it went in.
    """
    text = io.StringIO(newline="")
    # Quote every field: a lax reader would strip a space at the end of a password, or take a lone
    # carriage return in it for the end of the line.
    table = csv.writer(text, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    table.writerow(CSV_COLUMNS)
    for page in source.entries():
        for stored in page:
            entry = stored.entry
            # What cannot be read is named in the JSON file: an importer would make an empty
            # password of it.
            if not stored.is_readable:
                continue
            table.writerow((entry.name_pages, entry.url, "", entry.password_saved, ""))
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()
    yield text.getvalue().encode()


def _former_addresses(source: _Source) -> Iterator[_File]:
    with source.database.reading() as session:
        found = recipients.remembered(session, source.account(session))
    yield (
        "former_addresses.json",
        _json_list(
            {"email": former.email, "held_since": former.held_since, "left_at": former.left_at}
            for former in found
        ),
    )


def _avatar(source: _Source) -> Iterator[_File]:
    if source.avatar_key is not None and source.avatar is not None:
        yield f"avatar.{source.avatar_key.rpartition('.')[2]}", [source.avatar]


def _activity(source: _Source) -> Iterator[_File]:
    yield (
        "activity.json",
        _json_list(
            {"at": event.at, "action": event.action, "by": _by(event, subject)}
            for subject, page in source.events()
            for event in page
            if event.action not in HIDDEN_ACTIONS
        ),
    )


def _by(event: AuditEvent, subject: uuid.UUID) -> str:
    """Say who acted, in the owner's view: "you", or in general who else, whom it never names."""
    if event.actor == subject:
        return "you"
    if event.actor is not None and event.actor_kind != STAFF:
        return "another account"
    return event.actor_kind


# The data map names these writers as `exported`. A name without one breaks every export in the
# middle of its stream; `gaps` tells of it.
_WRITERS: Mapping[str, Callable[[_Source], Iterator[_File]]] = {
    "account.json": _account,
    "saved_passwords.json": _saved_passwords,
    "former_addresses.json": _former_addresses,
    "avatar": _avatar,
    "activity.json": _activity,
}

# The README has a line about each of these files. A file without one breaks every export, as a
# missing writer does.
_ABOUT = {
    "account.json": "your account: names, email address, telephone number, "
    "and the times that matter",
    "saved_passwords.json": "your saved passwords, with when you saved and last changed each; "
    'saved_passwords.csv is the same for other programs. One with "unreadable": true is damaged: '
    "we can no longer read it, and saved_passwords.csv leaves it out",
    "former_addresses.json": "the email addresses that your account has had lately, from when "
    "until when",
    "avatar": "your picture as we show it, as avatar.webp; no such file, no picture",
    "activity.json": "what was done with your account, when, and by whom",
}


def gaps() -> list[str]:
    """Name what the data map exports and nothing here can, one sentence each; empty when complete.

    An export of such a map would break in the middle of its stream, for everybody.
    """
    return [
        f"{place.name} is exported as {place.exported}, which has no writer: add one by that name "
        "to _WRITERS in accountsvc/accounts/exports.py, and a line about it to _ABOUT"
        for place in PLACES
        if place.exported is not None
        and not (place.exported in _WRITERS and place.exported in _ABOUT)
    ]


def _readme(source: _Source) -> str:
    def listed(name: str, text: str) -> str:
        return textwrap.fill(f"{name}: {text}.", 76, initial_indent="- ", subsequent_indent="  ")

    exported = [place for place in PLACES if place.exported is not None]
    not_exported = [place for place in PLACES if place.exported is None]
    parts = [
        f"Your data, as we had it on {source.now:%-d %B %Y at %H:%M} UTC.",
        "KEEP THIS SAFE: whoever has these files can read your passwords. They are not encrypted "
        "any more. Delete them when you no longer need them, and empty the trash.",
        "What is in it",
        *(
            listed(place.exported or "", f"{_ABOUT[place.exported or '']}. Kept {place.kept_for}")
            for place in exported
        ),
        *(
            ["Your picture is missing in it: its file cannot be found."]
            if source.avatar_key is not None and source.avatar is None
            else []
        ),
        "Taking your passwords to another program",
        "saved_passwords.csv has the columns of Chrome's own export (name, url, username, "
        "password, note). Chrome, Edge, Brave, Opera and Firefox import it as a CSV file; in "
        'Bitwarden choose "Chrome (csv)", in 1Password "Chrome". username and note are empty, '
        "because we store none. The file is UTF-8, with comma, double quotes and CRLF (RFC 4180).",
        "Do not open saved_passwords.csv in Excel or another spreadsheet. A password that begins "
        "with = + - or @ would be taken for a formula: it is changed when you save the file, and "
        "one that somebody gave you could even run a command. Import the file, or look at it with "
        "a text editor.",
        "What is not in it",
        *(
            listed(place.name, f"{place.not_exported_because}. Kept {place.kept_for}")
            for place in not_exported
        ),
        *(listed(f"{name} of your account", reason) for name, reason in WITHHELD.items()),
    ]
    return "\n\n".join(part if part.startswith("- ") else textwrap.fill(part, 76) for part in parts)


def _files(source: _Source) -> Iterator[_File]:
    yield "README.txt", [_readme(source).encode() + b"\n"]
    for place in PLACES:
        if place.exported is not None:
            yield from _WRITERS[place.exported](source)


class _Pipe(io.RawIOBase):
    """A buffer between the ZIP's writer and the reader of its pieces.

    It cannot seek, so the writer never goes back to a piece that has been given out.
    """

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return the bytes that were written since the last call."""
        taken = b"".join(self._written)
        self._written.clear()
        return taken


def _zipped(source: _Source) -> Iterator[bytes]:
    pipe = _Pipe()
    # Do not use ``with``: its end writes the directory also after an error, so that a broken ZIP
    # would look whole.
    archive = zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED)
    for name, pieces in _files(source):
        with _entry(archive, name, source.now) as file:
            for piece in pieces:
                file.write(piece)
                if taken := pipe.take():
                    yield taken
    archive.close()
    yield pipe.take()


def _entry(archive: zipfile.ZipFile, name: str, now: datetime) -> IO[bytes]:
    info = zipfile.ZipInfo(name, date_time=now.timetuple()[:6])
    info.compress_type = zipfile.ZIP_DEFLATED
    # Let only the owner read the file when it is unpacked: others on the machine could read
    # passwords.
    info.external_attr = 0o600 << 16
    return archive.open(info, "w")


def _json_list(documents: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    opening = b"[\n"
    for document in documents:
        yield opening + _json(document)
        opening = b",\n"
    yield b"[]\n" if opening == b"[\n" else b"\n]\n"


def _json(document: Mapping[str, Any], indent: int | None = None) -> bytes:
    return json.dumps(document, ensure_ascii=False, indent=indent, default=_plain).encode()


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return rfc3339(value, timespec="auto")
    if isinstance(value, uuid.UUID):
        return str(value)
    raise TypeError(type(value).__name__)
