"""Read the text of a setting, or raise ValueError with a reason.

The reason completes the sentence that begins with the setting's name, and never repeats a secret.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from datetime import timedelta
from email.headerregistry import Address
from email.policy import SMTP
from pathlib import Path
from typing import Any

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# No duration is longer than a century, far beyond any grace period: added to today, a longer one
# might pass the largest date that Python can hold.
_LONGEST = timedelta(days=36525)


def duration(text: str) -> timedelta:
    """Read ``90s``, ``36h``, ``14d`` (also ``m``, ``w``); raise ValueError with the reason."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text.strip().lower())
    if match is None:
        raise ValueError("is not a duration")
    unit, number = timedelta(**{_UNITS[match[2]]: 1}), int(match[1])
    # Divide the limit by the unit: the product may be more than a timedelta can hold.
    if number > _LONGEST // unit:
        raise ValueError("is longer than a century")
    return number * unit


def positive_duration(text: str) -> timedelta:
    """Read a duration, but not zero."""
    span = duration(text)
    if not span:
        raise ValueError("must be longer than zero")
    return span


def durations(text: str) -> tuple[timedelta, ...]:
    """Read durations, separated by commas; return each once, the longest first."""
    spans = {positive_duration(part) for part in text.split(",") if part.strip()}
    return tuple(sorted(spans, reverse=True))


def whole(least: int, most: int) -> Callable[[str], int]:
    """Make a reader of whole numbers from *least* to *most*."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
            raise ValueError("is not a whole number")
        number = int(text)
        if not least <= number <= most:
            raise ValueError(f"must be between {least} and {most}")
        return number

    return read


def one_of(*words: str) -> Callable[[str], str]:
    """Make a reader that takes one of *words*, exactly as it is written."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return text

    return read


def switch(text: str) -> bool:
    """Read ``on`` or ``off`` (also ``1``, ``true``, ``yes``, ``0``, ``false``, ``no``, nothing)."""
    lowered = text.strip().lower()
    if lowered in {"1", "on", "true", "yes"}:
        return True
    if lowered in {"0", "off", "false", "no", ""}:
        return False
    raise ValueError("must be on or off")


def secret(text: str) -> str:
    """Read a secret of at least 32 bytes, which a guesser cannot try through."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8") from None
    if size < 32:
        raise ValueError("must be at least 32 bytes long")
    return text


def bearer_token(text: str) -> str:
    """Read a token that fits into ``Authorization: Bearer …`` (RFC 6750, section 2.1), or nothing.

    At least 16 characters, which a guesser cannot try through.
    """
    if text and not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", text):
        raise ValueError("may have letters, digits and -._~+/ only")
    if text and len(text) < 16:
        raise ValueError("must be at least 16 characters long")
    return text


def wrapping_keys(text: str) -> tuple[bytes, ...]:
    """Read keys of 32 bytes each in url-safe base64, separated by commas, in their order."""
    return tuple(_key(part) for part in text.split(","))


def public_keys(text: str) -> tuple[bytes, ...]:
    """Read keys as :func:`wrapping_keys` does, or none."""
    return wrapping_keys(text) if text.strip() else ()


def signing_key(text: str) -> bytes:
    """Read one key of 32 bytes in url-safe base64."""
    return _key(text)


def public_key_of(signing: bytes) -> bytes:
    """Return the public key of the Ed25519 key *signing*, both of 32 bytes."""
    # Imported here: most processes are given both keys, and wait for it in vain.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(signing).public_key().public_bytes_raw()


def key_text(key: bytes) -> str:
    """Return *key* as the readers of keys read it."""
    return base64.urlsafe_b64encode(key).decode()


def _key(text: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("holds a key that is not url-safe base64") from None
    if len(key) != 32:
        raise ValueError("holds a key that is not 32 bytes long")
    return key


def read_sender(text: str) -> Address:
    """Read ``Name <mailbox@domain>`` or ``mailbox@domain``; raise ValueError for anything else."""
    if not text.isascii() or not text.isprintable():
        raise ValueError("must be one line of ASCII")
    try:
        header: Any = SMTP.header_factory("From", text)
        (address,) = header.addresses
    except (ValueError, LookupError):
        address = None
    if not isinstance(address, Address) or header.defects or not is_plain_address(address):
        raise ValueError("must be one mail address such as Accounts <accounts@example.org>")
    return address


def is_plain_address(address: Address) -> bool:
    """Say whether *address* needs no quoting.

    Then nothing in it means anything to a header or to a command of SMTP.
    """
    return (
        re.fullmatch(r"""[^\s<>()\[\]\\,;:"@]+""", address.username) is not None
        and re.fullmatch(r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", address.domain) is not None
        and address.username.isprintable()
        # Refuse encoded words (RFC 2047): one is decoded on its way into a header, and the line
        # breaks in it would add headers of a stranger's choice.
        and "=?" not in address.username
        and address.addr_spec == f"{address.username}@{address.domain}"
    )


def sender(text: str) -> str:
    """Check a sender as :func:`read_sender` does, and return the text as it is."""
    try:
        read_sender(text)
    except ValueError:
        raise ValueError("is not one mail address in ASCII") from None
    return text


def path(text: str) -> Path:
    """Read a path and make it absolute; ``~`` is the home folder."""
    try:
        folder = Path(text).expanduser().resolve()
    except (RuntimeError, OSError):
        raise ValueError("cannot be resolved to a folder") from None
    # The URLs of database, mails and broker are derived from it; there a question mark would begin
    # the options, and all data would lie beside the folder.
    if set(str(folder)) & set("?#%") or not str(folder).isprintable():
        raise ValueError("names a folder with ?, #, % or an unprintable character in its path")
    return folder
