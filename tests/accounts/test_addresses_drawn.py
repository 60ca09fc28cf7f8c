"""Addresses drawn from all of Unicode: which of them are one mailbox, and what the mailer takes.

``TEST_ADDRESS_EXAMPLES`` sets how many are drawn; ``make faults`` draws 100,000.
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from functools import partial
from random import Random

import idna
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from accountsvc import mailboxes
from accountsvc.accounts import pending, profiles
from accountsvc.adapters.mail import SmtpMailer, compose
from accountsvc.db.addresses import address_key, is_another
from accountsvc.db.models import Account, Effect
from accountsvc.outbox import notices
from accountsvc.services import Services
from tests.support.addresses import confirm_claims, is_email
from tests.support.factories import make_account, owner
from tests.support.moments import GRACE, NOW, at
from tests.support.smtp import Inbox, smtp_server
from tests.support.state import effects

ADDRESSES = int(os.environ.get("TEST_ADDRESS_EXAMPLES", "2000"))
# Hypothesis draws a seed for so many pairs: drawn by itself, each character would cost more than
# all that is asked of it.
PAIRS_OF_A_SEED = 25
# Each mail to a server is a connection: so many of the accepted addresses are sent to.
SENT = 50

drawn = settings(
    max_examples=max(1, ADDRESSES // (2 * PAIRS_OF_A_SEED)),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SEEDS = st.integers(0, 2**64 - 1)

EVERYTHING = list(map(chr, range(0x110000)))
LETTERS = list(filter(str.isalnum, EVERYTHING))
LOWER = [letter for letter in LETTERS if unicodedata.category(letter) in {"Ll", "Lo"}]
MARKS = [character for character in EVERYTHING if unicodedata.category(character)[0] == "M"]
# Pieces of words that are written with marks: Hindi, Thai, Tamil, Arabic, Hebrew, Adlam.
MARKED = [
    *["हि", "न्दी", "ร้", "ชั้", "ழ்", "மி", "مُ", "حَمّ", "שָׁ", "לוֹ", "\U0001e922\U0001e944"],
    *["J\u030c", "e\u0301", "u\u0308\u0304", "q\u0323\u0307", "١\u0653", "A\u0345", "Ω\u0345"],
]
# Letters at which two rules of comparing differ, and marks and signs that rules drop or map.
ODD = [
    *"aAkKsSiIjzZ0-_.ßẞſςσΣøØæİıKÅµǰĸﬁﬃａＡ①ªº\u0300\u0301\u0308\u030c\u0345\u00ad\u200b\u200c",
    *"\u200d\u202e\u3002\uff0e\uff61\u0e33ǆǅΐΰӀⒶⅨﷺ가각ก์नुمקΩ😀\ud800\0",
]
LATIN = list("abcdefghijklmnopqrstuvwxyzßäöüéABCÄÖ0123456789")
LABELS = [
    *["bücher", "xn--bcher-kva", "XN--BCHER-KVA", "faß", "fass", "xn--fa-hia", "σοφος", "σοφοσ"],
    *["xn--ls8h", "xn--", "ab--cd", "-a", "a-", "1", "x" * 63, "x" * 64, "straße", "STRASSE"],
    *["xn--0", "xn--n3h", "हिन्दी", "𠮷野家", "\U0001e922\U0001e944"],
]
ENDS = ["org", "example", "ORG", "ｏrg", "рф", "中国", "123", "c"]


def text_of(random: Random, most: int) -> str:
    """Return characters of one or several kinds, from a few letters to all of Unicode."""
    every_kind = [LATIN, LATIN, LOWER, LETTERS, MARKED, MARKED, MARKS, ODD, EVERYTHING]
    kinds = random.sample(every_kind, random.randint(1, 2))
    return "".join(random.choice(random.choice(kinds)) for _ in range(random.randint(1, most)))


def address_of(random: Random) -> str:
    labels = [
        random.choice(LABELS) if random.random() < 0.3 else text_of(random, 6)
        for _ in range(random.randint(1, 3))
    ]
    return f"{text_of(random, 12)}@{'.'.join([*labels, random.choice(ENDS)])}"


def in_a_label(text: str) -> str:
    """Write the domain of *text* as servers know it, or leave *text* as it is."""
    name, _, domain = text.rpartition("@")
    known = wire(domain)
    return text if known is None else f"{name}@{known}"


def in_unicode(text: str) -> str:
    """Write the domain of *text* in letters, or leave *text* as it is."""
    name, _, domain = text.rpartition("@")
    try:
        return f"{name}@{idna.decode(domain.lower())}"
    except (UnicodeError, IndexError):
        return text


# How the same person, or another one, might type it.
SPELLINGS: list[Callable[[str], str]] = [
    str,
    str.upper,
    str.lower,
    str.swapcase,
    str.casefold,
    in_a_label,
    in_unicode,
    *(partial(unicodedata.normalize, form) for form in ("NFC", "NFD", "NFKC", "NFKD")),
    lambda text: text.replace("ss", "ß"),
    lambda text: text.replace("a", "ａ"),
    lambda text: text[1:],
]


def pair_of(random: Random) -> tuple[str, str]:
    one = address_of(random)
    if random.random() < 0.1:
        return one, address_of(random)
    name, _, domain = one.rpartition("@")
    spell, part = random.choice(SPELLINGS), random.choice(["name", "domain", "both"])
    if part == "name":
        return one, f"{spell(name)}@{domain}"
    if part == "domain":
        return one, f"{name}@{spell('@' + domain).removeprefix('@')}"
    return one, spell(one)


def pairs_of(seed: int) -> list[tuple[str, str]]:
    random = Random(seed)
    return [pair_of(random) for _ in range(PAIRS_OF_A_SEED)]


def wire(domain: str) -> str | None:
    """Return *domain* as servers know it, by idna and RFC 1123; a label of ASCII is its own."""
    try:
        mapped = domain.lower() if domain.isascii() else idna.uts46_remap(domain, std3_rules=False)
        labels = [
            label if label.isascii() else idna.encode(label).decode() for label in mapped.split(".")
        ]
    except UnicodeError:
        return None
    is_host = all(re.fullmatch(r"(?!-)[a-z0-9-]{1,63}(?<!-)", label) for label in labels)
    if not is_host or len(labels) < 2 or labels[-1].isdigit() or len(".".join(labels)) > 253:
        return None
    return ".".join(labels)


def lowered(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).lower())


def mail_to(address: str) -> EmailMessage:
    return compose(
        to=address,
        subject="A subject",
        text="Hello.\n",
        html="<p>Hello.</p>\n",
        uid=uuid.UUID(int=1),
        sender="accounts@example.com",
        sent_at=datetime(2026, 12, 7, tzinfo=UTC),
    )


def header(message: EmailMessage) -> str:
    """Return the recipient as it stands in the bytes of *message*."""
    head = message.as_bytes().partition(b"\r\n\r\n")[0].replace(b"\r\n ", b" ")
    (to,) = re.findall(rb"^To:[ ]*(.*?)[ ]*\r$", head, re.MULTILINE)
    return str(to, "utf-8")


@drawn
@given(SEEDS)
def test_two_addresses_have_one_key_if_and_only_if_they_are_one_mailbox(seed: int) -> None:
    for one, other in pairs_of(seed):
        (name, _, domain), (other_name, _, other_domain) = (
            text.rpartition("@") for text in (one, other)
        )
        known, other_known = wire(domain), wire(other_domain)

        is_one_key = address_key(one) == address_key(other)

        if known is None or other_known is None:
            # What has no A-label signs up nowhere, and has no key of what has one.
            assert not is_email(one if known is None else other), (one, other)
            assert known is other_known or not is_one_key, (one, other)
        elif (one, other) == (one.strip(), other.strip()):
            is_one = (known, lowered(name)) == (other_known, lowered(other_name))
            assert is_one_key is is_one, (one, other)
            assert is_another(one, other) is not (is_one and name == other_name), (one, other)


@drawn
@given(SEEDS)
def test_whatever_may_sign_up_is_taken_by_the_mailer(seed: int) -> None:
    for address in filter(is_email, itertools.chain(*pairs_of(seed))):
        message = mail_to(address)

        name, _, domain = address.rpartition("@")
        (to,) = message["To"].addresses
        assert (to.username, to.domain.lower()) == (name, wire(domain))
        assert header(message) == f"{name}@{to.domain}"


def test_much_of_what_is_drawn_may_sign_up_and_is_another_address() -> None:
    pairs = [pair for seed in range(80) for pair in pairs_of(seed)]

    accepted = [pair for pair in pairs if all(map(is_email, pair))]

    assert len(accepted) > len(pairs) // 10
    for is_one in (True, False):
        found = [
            pair for pair in accepted if is_another(*pair) is not is_one and pair[0] != pair[1]
        ]
        assert len(found) > len(accepted) // 20
    marked = {name for name, _, _ in (one.rpartition("@") for one, _ in accepted)}
    assert sum(not name.isascii() and bool(set(name) & set(MARKS)) for name in marked) > 50


def test_a_server_takes_mail_for_whoever_may_sign_up() -> None:
    texts = {text for seed in range(80) for pair in pairs_of(seed) for text in pair}
    addresses = sorted(filter(is_email, texts), key=lambda text: (text.isascii(), text))[:SENT]
    inbox = Inbox()

    with smtp_server(inbox, enable_SMTPUTF8=True) as port:
        for address in addresses:
            SmtpMailer(f"smtp://127.0.0.1:{port}/?tls=none").send(mail_to(address))

    assert len(addresses) == SENT
    assert inbox.recipients == [[mailboxes.read(address).addr_spec] for address in addresses]


def account_now(session: Session, account: Account) -> Account:
    return session.get_one(Account, account.id, populate_existing=True)


def told(
    services: Services, session: Session, account: Account, pair: tuple[str, str]
) -> list[str]:
    """Give *account* the first address of *pair*, and change it to the second; return who is told.

    Told twice: when it is asked for, and when mailbox and password have agreed.
    """
    stored, typed = pair
    session.execute(
        update(Account)
        .where(Account.id == account.id)
        .values(email=stored, email_key=address_key(stored), previous_email=None)
    )
    profiles.update_profile(
        session,
        account.id,
        epoch=account.epoch,
        changes={"email": typed},
        by=owner(account),
        grace=GRACE,
        clock=at(NOW),
    )
    asking = account_now(session, account)
    asked = [asking.email] if owed(session, notices.ADDRESS_ASKED) else []
    if asking.pending(NOW) is not None:
        claims = confirm_claims(services, asking, now=NOW)
        pending.take_effect(session, claims, grace=GRACE, clock=at(NOW))
    assert account_now(session, account).email == (typed if is_another(*pair) else stored)
    changed = [row.payload["address"] for row in owed(session, notices.ADDRESS_CHANGED)]
    assert asked == changed
    session.execute(delete(Effect))
    return changed


def owed(session: Session, kind: str) -> Sequence[Effect]:
    return session.scalars(select(Effect).where(Effect.kind == kind)).all()


def test_whenever_the_address_is_another_one_the_old_one_is_told(sqlite: Services) -> None:
    account = make_account(sqlite, now=NOW)

    @drawn
    @given(SEEDS)
    def change(seed: int) -> None:
        with suppress(Undone), sqlite.writing() as session:
            for pair in pairs_of(seed):
                if all(map(is_email, pair)):
                    expected = [pair[0]] if is_another(*pair) else []
                    assert told(sqlite, session, account, pair) == expected
            raise Undone

    change()

    assert effects(sqlite) == []


class Undone(Exception):
    """Nothing of this is to stay."""
