"""A mail's text and its page, as they are filled."""

from __future__ import annotations

import pytest

from accountsvc.outbox.letters import render
from tests.support.moments import NOW


@pytest.mark.parametrize(
    "site", ["<b>site</b>", "</title><script>x</script>", '"><img src=x>', "a&b"]
)
def test_what_fills_a_mail_is_escaped_in_its_page(site: str) -> None:
    """Whatever stands there one day: in the text it is as it was, in the page it is no mark."""
    _subject, text, html = render("mail.address_changed", {"site": site, "happened_at": NOW})

    assert site in " ".join(text.split())
    assert site not in html
    assert not any(mark in html for mark in ("<b>", "<script", "<img"))
