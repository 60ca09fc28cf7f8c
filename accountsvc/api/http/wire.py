"""Small forms of the wire that several resources share: JSON, ids, preferences."""

from __future__ import annotations

import re
from typing import Any
from urllib.request import parse_http_list

from flask import Response, current_app, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.routing import BaseConverter

from ...db.models import MAX_ID


class Json(DefaultJSONProvider):
    """Writes members in the order and the spacing of the contract, and nothing after them."""

    sort_keys = False

    def response(self, *args: Any, **kwargs: Any) -> Response:
        return Response(
            self.dumps(self._prepare_response_obj(args, kwargs)), mimetype=self.mimetype
        )


def json_response(document: dict[str, Any]) -> Response:
    """Answer 200 with *document* as it is, unseen by any schema."""
    return Response(current_app.json.dumps(document), mimetype="application/json")


class Id(BaseConverter):
    """ASCII digits of any length; what no database can hold becomes an id that no account has."""

    regex = "[0-9]+"

    def to_python(self, value: str) -> int:
        digits = value.lstrip("0") or "0"
        # Look at the length first: Python raises for thousands of digits, which would be a 500.
        return int(digits) if len(digits) <= len(str(MAX_ID)) else MAX_ID + 1

    def to_url(self, value: int) -> str:
        return str(value)


def names_version() -> bool:
    """Say whether ``If-Match`` names a version at all, in a form that can be read."""
    return bool(request.if_match.to_header())


def names(etag: str) -> bool:
    """Say whether ``If-Match`` names *etag*, in a list of others too, or any version (``*``).

    ``W/"…"`` is taken for the strong tag that it was made from. We send no weak one: a proxy that
    compresses makes it of ours (nginx, for one), and by the comparison of RFC 9110 (section
    13.1.1) whoever reads through that proxy could change nothing.
    """
    return request.if_match.contains_weak(etag)


_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PREFERENCE = re.compile(rf'({_WORD})(?:[ \t]*=[ \t]*({_WORD}|"(?:[^"\\]|\\.)*"))?[ \t]*(?:;|$)')


def prefers_representation() -> bool:
    """Say whether the request has ``Prefer: return=representation`` (RFC 7240).

    The first ``return`` counts, its parameters do not; names and values are read in any case.
    """
    for item in parse_http_list(request.headers.get("Prefer", "")):
        preference = _PREFERENCE.match(item.strip())
        if preference and preference[1].lower() == "return":
            return (preference[2] or "").strip('"').lower() == "representation"
    return False
