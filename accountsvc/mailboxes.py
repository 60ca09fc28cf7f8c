"""What an e-mail address is: one rule for who may sign up and for what the mailer can reach.

An address that signed up and could never be mailed would be that of an account whose owner is told
of nothing: neither of the date of its purge nor of a way back.
"""

from __future__ import annotations

import re
import unicodedata
from email.headerregistry import Address

import idna

from . import bounds
from .readers import is_plain_address

# A dot-atom (RFC 5322, section 3.2.3) with the letters and digits of every script (RFC 6531), "@",
# and a host name: "localhost", or labels of at most 63 characters. Quoted local parts and address
# literals are refused: a mail header could be misread around their quotes, brackets and spaces.
# Marks of letters are read by ``_without_marks``.
_ATOM = r"[\w!#$%&'*+/=?^`{|}~-]+"
_LETTER = r"[A-Za-z0-9\u00a1-\U0010ffff]"
_LABEL = rf"{_LETTER}(?:(?:{_LETTER}|-){{0,61}}{_LETTER})?"
_TYPED = re.compile(
    rf"{_ATOM}(?:\.{_ATOM})*@(?:localhost|(?:{_LABEL}\.)+(?:{_LETTER}|-){{2,}})",
)

# The same host as it goes over the wire (RFC 5321, section 4.1.2). A last label of digits alone
# would be the end of an address of IPv4, to which servers send nothing without brackets.
_WIRE_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ON_THE_WIRE = re.compile(rf"localhost|(?:{_WIRE_LABEL}\.)+(?![0-9]+\Z){_WIRE_LABEL}")
# Of a path with its brackets a server takes 256 octets at least (RFC 5321, section 4.5.3.1.3).
_MAX_OCTETS = 254
_MAX_DOMAIN = 253
# Of what stands before the "@" every server takes so many octets (RFC 5321, section 4.5.3.1.1).
_MAX_NAME = 64

_NO_ADDRESS = "Enter a valid email address."


def read(text: str) -> Address:
    """Return the one address that *text* is, without spaces around it, its domain in ASCII.

    Raises ValueError for anything else: for what is no address, and for what no server could be
    given. The work is bounded by ``EMAIL_CHARACTERS``: a longer text is refused unread.
    """
    if len(text) > bounds.EMAIL_CHARACTERS:
        raise ValueError("is longer than any address")
    name, at, typed = text.rpartition("@")
    # The letters above hold the spaces of other scripts (U+2003, U+3000), at which a header would
    # fold.
    is_typed = _TYPED.fullmatch(_without_marks(name) + at + typed)
    if is_typed is None or re.search(r"\s", text):
        raise ValueError("is not an address")
    domain = a_label(typed)
    address = Address(username=name, domain=typed if typed.isascii() else domain)
    if not is_plain_address(address) or len(f"{name}@{domain}".encode()) > _MAX_OCTETS:
        raise ValueError("is not an address that can be mailed")
    return address


def problem(text: str) -> str | None:
    """Say what to change about *text* before an account can be given it; None: nothing.

    It is stricter than :func:`read`, by which an account that has such an address already goes on
    being mailed: servers may take names that are longer, and what resolves a domain decides what
    exists. Nobody can be sure of either at a sign-up.
    """
    try:
        name = read(text).username
    except ValueError:
        return _NO_ADDRESS
    if len(name.encode()) > _MAX_NAME:
        return f"Use at most {_MAX_NAME} bytes before the @: letters outside ASCII have 2 to 4."
    labels = a_label(text.rpartition("@")[2]).split(".")
    return None if all(map(_is_decoded, labels)) else _NO_ADDRESS


def a_label(domain: str) -> str:
    """Return the form of *domain* by which servers know it: ASCII, lower case, A-labels.

    They are made by UTS 46 without its transitional rules and by IDNA 2008. A label that is ASCII
    is its own form, whatever IDNA would say of it: the mail goes to whoever has that name. Raises
    ValueError for what has no such form.
    """
    try:
        # Python's own codec has the rules of 2003, which turn some domains into others: the mail
        # would go to somebody else.
        mapped = domain.lower() if domain.isascii() else idna.uts46_remap(domain, std3_rules=False)
        labels = [_a_label(label) for label in mapped.split(".")]
    except ValueError as exc:
        raise ValueError("names a domain that IDNA 2008 cannot write in ASCII") from exc
    name = ".".join(labels)
    if len(name) > _MAX_DOMAIN or _ON_THE_WIRE.fullmatch(name) is None:
        raise ValueError("is not the name of a domain")
    return name


def _a_label(label: str) -> str:
    return label if label.isascii() else idna.alabel(label).decode()


def _is_decoded(label: str) -> bool:
    """Say whether *label* is none of ``xn--``, or Punycode of a text that is not ASCII (RFC 3492).

    IDNA 2008 is not asked: names of IDNA 2003 that it refuses (``xn--n3h``) have owners.
    """
    if not label.startswith("xn--"):
        return True
    code = label.removeprefix("xn--")
    try:
        decoded = code.encode().decode("punycode")
        return not decoded.isascii() and decoded.encode("punycode").decode() == code
    except UnicodeError:
        return False


def _without_marks(name: str) -> str:
    """Return *name* with a letter for each mark that belongs to a letter or a digit before it.

    Hindi, Thai or vocalised Arabic is written with them. A mark that begins a word, or follows a
    sign, would be drawn over the "." or "@" beside it, and stays, to be refused.
    """
    read_so_far: list[str] = []
    for character in name:
        is_mark = unicodedata.category(character)[0] == "M"
        belongs = is_mark and bool(read_so_far) and read_so_far[-1].isalnum()
        read_so_far.append("a" if belongs else character)
    return "".join(read_so_far)
