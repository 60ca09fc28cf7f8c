"""The text of the mails: a template a kind, rendered as plain text and as HTML."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def in_words(moment: datetime) -> str:
    """Return *moment* (aware, UTC) as ``7 December 2026 at 14:05 UTC``, rounded down."""
    return f"{moment:%-d %B %Y} at {moment:%H:%M} UTC"


_templates = Environment(
    loader=PackageLoader("accountsvc", "templates/mail"),
    # Only .html templates escape. A template of text that did would show people ``&amp;`` in their
    # plain mail; its paragraphs are escaped when layout.html takes them.
    autoescape=select_autoescape(["html"], default_for_string=False, default=False),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

# There is no filter for a day alone: one that ends by UTC is over, or has not begun, elsewhere.
_templates.filters.update(words=in_words)

# A plain text has lines of this many columns at most: mail programs would break those of 78 and
# more once again (RFC 3676, section 4.2).
_WIDTH = 72


@dataclass(frozen=True)
class Paragraph:
    """A paragraph on one line, or with *url* a link of that label."""

    text: str
    url: str | None = None


def render(kind: str, values: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return subject, text and HTML of a mail of *kind*, whose template is filled with *values*.

    Both bodies are made of the same paragraphs. Raises Jinja's errors if the template is missing or
    wants a value that is not there.
    """
    template = _templates.get_template(f"{kind.removeprefix('mail.')}.txt")
    context = template.new_context(dict(values))
    subject = " ".join("".join(template.blocks["subject"](context)).split())
    parts = re.split(r"\n\s*\n", template.render(values).strip())
    paragraphs = [_paragraph(part) for part in parts]
    text = "\n\n".join(_plain(paragraph) for paragraph in paragraphs) + "\n"
    html = _templates.get_template("layout.html").render(subject=subject, paragraphs=paragraphs)
    return subject, text, html


def _paragraph(part: str) -> Paragraph:
    line = " ".join(part.split())
    link = re.fullmatch(r"\[(.+)\] (https?://\S+)", line)
    return Paragraph(line) if link is None else Paragraph(link[1], link[2])


def _plain(paragraph: Paragraph) -> str:
    if paragraph.url is not None:
        return f"{paragraph.text}:\n{paragraph.url}"
    return textwrap.fill(paragraph.text, _WIDTH, break_long_words=False, break_on_hyphens=False)
