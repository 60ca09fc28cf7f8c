"""When two e-mail addresses are one: the key of an address, and the form in which it is found.

The key of a mailbox is its name in NFC and lower case, ``@``, and its domain as servers know it
(UTS 46 without transitional rules, IDNA 2008). So ``bücher`` and ``xn--bcher-kva`` are one domain,
while ``faß`` and ``fass`` are two, and so are the names ``joß`` and ``joss``.

Before revision 0008 addresses were compared as usernames are, by :func:`.text.unique_key`. Two
accounts that it made one keep both: the younger's key is :func:`kept_key`, which has room for the
form of before, and is of no other account and no sign-up. Processes of the release before write
keys of that form while they are replaced.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Protocol, TypeVar

from .. import bounds
from ..mailboxes import a_label
from .text import MAX_KEY_BYTES, unique_key

# No key of an address begins so, since lowering leaves no capitals of ASCII.
KEPT = "KEPT:"


class Keyed(Protocol):
    """An account, or those columns of one by which it is found."""

    @property
    def email(self) -> str: ...

    @property
    def email_key(self) -> str: ...


K = TypeVar("K", bound=Keyed)


def address_key(typed: str) -> str:
    """Return the key of the address *typed*: at most ``MAX_KEY_BYTES`` long, and of each text.

    Two addresses have one key exactly if they are one mailbox. What is no address gets a key that
    no account has. A text of more than ``EMAIL_CHARACTERS`` without the spaces around it is not
    normalised, which takes time that grows with its square.
    """
    text = typed.strip()
    if len(text) > bounds.EMAIL_CHARACTERS:
        return f"TOO-LONG:{_digest(text)}"
    name, at, domain = text.rpartition("@")
    try:
        domain = a_label(domain)
    except ValueError:
        domain = _lowered(domain)
    key = f"{_lowered(name)}{at}{domain}"
    # Normalisation can make three characters of one, and an index entry of PostgreSQL has an end.
    if len(key.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
        return f"SHA-256:{_digest(key)}"
    return key


def is_another(stored: str, typed: str) -> bool:
    """Say whether *typed* is another address than *stored*: the key or the exact name differs.

    A name in other capitals is another one to its own server, if that likes (RFC 5321, section
    2.4); a domain in another spelling is the same to everybody.
    """
    return exactly(stored) != exactly(typed)


def exactly(address: str) -> str:
    """Return the form that two addresses share unless one is another by :func:`is_another`."""
    return f"{_name(address)}@{address_key(address)}"


def kept_key(email: str) -> str:
    """Return the key of an account that was one of two when their keys became the same.

    It is made of both forms: only who types an address that is *email* in either finds it.
    """
    return f"{KEPT}{_digest(address_key(email) + chr(0) + unique_key(email))}"


def possible_keys(typed: str) -> tuple[str, str, str]:
    """Return the keys that an account of the address *typed* may have; always three."""
    return address_key(typed), kept_key(typed), unique_key(typed)


def choose(keys: tuple[str, str, str], found: Iterable[K]) -> K | None:
    """Return which of *found*, who have one of *keys*, is the account meant.

    *keys* are :func:`possible_keys` of what was typed, in their order.

    Of two accounts of one mailbox it is the one that was found by the same text before; the other
    is found by its own. A key of the form of before counts only if its account's address is the
    same mailbox: otherwise ``joß`` would find ``joss``.
    """
    new_key, kept, before = keys
    matching = {
        account.email_key: account
        for account in found
        if account.email_key == kept or address_key(account.email) == new_key
    }
    return next((matching[key] for key in (kept, before, new_key) if key in matching), None)


def key_after_change(account: Keyed, email: str) -> str:
    """Return the key of *account* with *email* for its address: its own, where that still fits.

    It is the one of before only if *email* is a spelling of the address by which the account was
    found already; any other address gets its new key.
    """
    kept = kept_key(email)
    return kept if account.email_key == kept else address_key(email)


def _lowered(text: str) -> str:
    """Return *text* in NFC and lower case; done again, it changes nothing."""
    # The second time, since lowering can leave two characters that are one in lower case only, as
    # J with a caron does.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())


def _name(address: str) -> str:
    return address.strip().rpartition("@")[0]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
