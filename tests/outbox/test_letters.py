"""A mail's text and its page, as they are filled."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from accountsvc.adapters.mail import compose
from accountsvc.outbox.letters import render
from accountsvc.outbox.notices import KINDS, OF_THE_DATE
from tests.support.moments import NOW

# No date is longer in words.
LONGEST = datetime(2026, 9, 27, 0, 30, tzinfo=UTC)
DAYS = re.compile(r"\b\d{1,2} (?:January|September|December|November|October) \d{4}\b")


def values(**others: Any) -> dict[str, Any]:
    """What a template may be given: every date is the longest, and every link is there."""
    return {
        "site": "accounts.example.org",
        "happened_at": LONGEST,
        "purge_at": LONGEST,
        "moved_at": None,
        "until": LONGEST,
        "by_owner": True,
        "was_off": False,
        "link": "https://accounts.example.org/recover/a.b.c",
        "keep_page": "https://accounts.example.org/keep-account/",
        "receipt": uuid.UUID(int=1),
        "receipt_page": f"https://accounts.example.org/receipts/{uuid.UUID(int=1)}/",
        **others,
    }


STATES: dict[str, dict[str, Any]] = {
    "by the owner": {},
    "by the staff": {"by_owner": False, "was_off": True, "link": None},
    "to the previous address": {"moved_at": LONGEST},
    "to the previous address, by the staff": {
        "moved_at": LONGEST,
        "by_owner": False,
        "link": None,
    },
    "active": {"purge_at": None, "link": None},
}


def letters() -> list[tuple[str, str, str]]:
    """Kind, subject and text of each mail in each state in which it can be sent."""
    found = []
    for kind in KINDS:
        for state, others in STATES.items():
            if state == "active" and kind in OF_THE_DATE:
                continue
            subject, text, _html = render(kind, values(**others))
            found.append((kind, subject, " ".join(text.split())))
    return found


def test_no_mail_says_a_day_without_its_time_and_zone() -> None:
    dated = [
        text for _, subject, body in letters() for text in (subject, body) if DAYS.search(text)
    ]

    assert len(dated) > 20
    for text in dated:
        without_time = [m[0] for m in DAYS.finditer(text) if not _has_time(text, m.end())]
        assert without_time == [], text


def _has_time(text: str, end: int) -> bool:
    return re.match(r" at \d\d:\d\d UTC", text[end:]) is not None


def test_no_subject_is_longer_than_a_line() -> None:
    """A longer one is folded at its beginning, and read with a space before it (RFC 5322, 2.1.1)."""
    for kind, subject, text in letters():
        mail = compose(
            to="ann@example.org",
            subject=subject,
            text=text,
            html="<p>x</p>",
            uid=uuid.UUID(int=1),
            sender="noreply@example.org",
            sent_at=NOW,
        )

        assert f"\r\nSubject: {subject}\r\n".encode() in b"\r\n" + mail.as_bytes(), kind


# These do not say that an account is switched off: it is gone or back, or they are about its address.
ELSEWISE = {
    "mail.purged",
    "mail.reactivated",
    "mail.address_changed",
    "mail.address_asked",
    "mail.confirm_address",
}


def test_whom_the_staff_has_switched_off_is_sent_to_the_support_by_every_mail() -> None:
    by_staff = [
        render(kind, values(**others))[1]
        for kind in KINDS
        for others in (STATES["by the staff"], STATES["to the previous address, by the staff"])
        if kind not in ELSEWISE
    ]

    assert len(by_staff) == 10
    for text in (" ".join(one.split()) for one in by_staff):
        assert "support" in text
        for wrong in ("/recover/", "/keep-account/", "To keep it", "Keep my account"):
            assert wrong not in text


@pytest.mark.parametrize(
    "site", ["<b>site</b>", "</title><script>x</script>", '"><img src=x>', "a&b"]
)
def test_what_fills_a_mail_is_escaped_in_its_page(site: str) -> None:
    """Whatever stands there one day: in the text it is as it was, in the page it is no mark."""
    _subject, text, html = render(
        "mail.address_changed", {"site": site, "happened_at": NOW, "purge_at": None}
    )

    assert site in " ".join(text.split())
    assert site not in html
    assert not any(mark in html for mark in ("<b>", "<script", "<img"))


def test_each_address_in_the_text_of_a_mail_is_a_link_in_its_page() -> None:
    """A paragraph of more than a label and an address shows the label's brackets, and no link."""
    for kind in KINDS:
        for state, given in STATES.items():
            others = given
            if state == "active" and kind in OF_THE_DATE:
                continue
            # These are nothing but their link, and have it in every state.
            if kind in {"mail.confirm_address", "mail.password_reset"}:
                others = {**others, "link": "https://accounts.example.org/link/a.b.c"}
            _subject, text, html = render(kind, values(**others))

            for url in re.findall(r"https?://\S+", text):
                assert f'href="{url}"' in html, (kind, state)
            assert "[" not in text, (kind, state)
