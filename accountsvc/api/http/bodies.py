"""Bodies and queries: how much of them is read, and what they must be before a schema sees them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import IO, Any

from apiflask import APIFlask, HTTPError
from flask import Request as FlaskRequest
from flask import Response, request
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from ...bounds import IMAGE_BYTES
from ...errors import InvalidInput
from .apiflask_patches import parser

# Limits are in bytes. With a larger one for JSON, many requests at once would exhaust the memory.
JSON_LIMIT = 64 * 1024
# A form with an image has boundary lines and other fields around it: without room for them, an
# image of just the size that is allowed would be refused.
UPLOAD_LIMIT = IMAGE_BYTES + JSON_LIMIT
SPARE_LIMIT = 16 * 1024
_DISCARD_LIMIT = 16 * 1024 * 1024
_MAX_FORM_PARTS = 32

_NOT_JSON = "The body is not valid JSON in UTF-8."
_NOT_AN_OBJECT = "Send a JSON object."
_WANT_JSON = "Send the body as JSON, with Content-Type: application/json."
_WANT_JSON_OR_FORM = "Send the body as JSON or, with an avatar, as multipart/form-data."
_UNREADABLE = "The body could not be read. Check its length and its encoding, and send it again."
_TWICE = "Send this field once."
NOT_TEXT = "Remove NUL bytes; send valid Unicode text."


class Request(FlaskRequest):
    """Keeps uploads in memory: a temporary file would leave a person's photo on the disk."""

    def _get_file_stream(self, *_args: object, **_kwargs: object) -> IO[bytes]:
        return BytesIO()


def init_app(app: APIFlask) -> None:
    """Limit how much *app* reads of a body: 64 KiB, where a view does not take more or less."""
    app.request_class = Request
    # Let Werkzeug read one byte more than we take: it silently cuts off a chunked body at its
    # limit, and what is left could be valid JSON.
    app.config["MAX_CONTENT_LENGTH"] = JSON_LIMIT + 1
    # Let a form take twice the memory, because Werkzeug also counts the piece of 64 KiB that it has
    # just read, even if it is of a file: a form with fields of the full size would be refused.
    app.config["MAX_FORM_MEMORY_SIZE"] = 2 * JSON_LIMIT
    app.config["MAX_FORM_PARTS"] = _MAX_FORM_PARTS
    app.after_request(_discard_rest)


def spare_password() -> str | None:
    """Return the ``password`` of a body that is optional and may be anything.

    None if there is no body, if it is longer than 16 KiB (the rest stays unread), or is not a JSON
    object in UTF-8 with a text as its ``password``. The Content-Type is not looked at.
    """
    # Without this, Werkzeug would answer 413 for a body that is too long, which counts as none
    # here.
    request.max_content_length = sys.maxsize
    data = b""
    with _readable():
        while len(data) <= SPARE_LIMIT:
            part = request.stream.read(SPARE_LIMIT + 1 - len(data))
            if not part:
                break
            data += part
    if len(data) > SPARE_LIMIT:
        return None
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError):
        return None
    password = document.get("password") if isinstance(document, dict) else None
    return password if isinstance(password, str) else None


@parser.location_loader("json")
def load_json(_request: Request, _schema: object) -> dict[str, Any]:
    """Read a JSON object for ``@input(…, location="json")``; an empty body is an empty object.

    Raises 415 for another Content-Type, 400 for what is not a JSON object, 413 above 64 KiB, and
    InvalidInput for a member that is there twice: readers disagree which of them counts.
    """
    with _readable():
        data = request.get_data()
    if len(data) > JSON_LIMIT:
        raise RequestEntityTooLarge
    if not data:
        return {}
    if not request.is_json:
        raise HTTPError(415, _WANT_JSON)
    try:
        document = json.loads(
            data.decode(), object_pairs_hook=_members, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise HTTPError(400, _NOT_JSON) from None
    if not isinstance(document, _Members):
        raise HTTPError(400, _NOT_AN_OBJECT)
    if document.twice:
        raise InvalidInput({name: [_TWICE] for name in sorted(document.twice)})
    return document


@parser.location_loader("json_or_form")
def load_json_or_form(request_: Request, schema: object) -> dict[str, Any]:
    """Read a JSON object, or the text fields of a multipart form, as :func:`load_json` does."""
    if request.mimetype != "multipart/form-data":
        if request.mimetype and not request.is_json:
            raise HTTPError(415, _WANT_JSON_OR_FORM)
        return load_json(request_, schema)
    request.max_content_length = UPLOAD_LIMIT
    with _readable():
        form = request.form
    if not form and not request.files:
        # Werkzeug takes a form without its boundary, or one that was cut off, for an empty one: the
        # answer would be a 200 although nothing was changed.
        raise HTTPError(400, _UNREADABLE)
    _refuse_twice(form)
    # Werkzeug puts this character for bytes that are not UTF-8: a name would be stored with it.
    broken = {name for name, value in form.items() if "\ufffd" in value}
    if broken:
        raise InvalidInput({name: [NOT_TEXT] for name in sorted(broken)})
    return form.to_dict()


@parser.location_loader("query")
def load_query(request_: Request, _schema: object) -> dict[str, str]:
    """Read the parameters of the address for ``@input(…, location="query")``.

    Raises InvalidInput for one that is there twice: a proxy in front may have looked at the other.
    """
    _refuse_twice(request_.args)
    return request_.args.to_dict()


def uploaded(name: str) -> bytes | None:
    """Return the file that came as part *name* of a form, or None.

    A file input that was left empty sends a part without name and content; a client that has no
    file may send the old URL or ``null`` as text. Neither is an upload.
    """
    if request.mimetype != "multipart/form-data":
        return None
    files: list[FileStorage] = request.files.getlist(name)
    if len(files) > 1:
        raise InvalidInput({name: [_TWICE]})
    data = files[0].read() if files else b""
    return data if files and (files[0].filename or data) else None


def _refuse_twice(given: MultiDict[str, str]) -> None:
    twice = {name for name, values in given.lists() if len(values) > 1}
    if twice:
        raise InvalidInput({name: [_TWICE] for name in sorted(twice)})


class _Members(dict[str, Any]):
    """An object of a JSON document, and which of its members came twice."""

    twice: frozenset[str] = frozenset()


def _members(pairs: list[tuple[str, Any]]) -> _Members:
    members = _Members(pairs)
    if len(members) < len(pairs):
        times = Counter(name for name, _ in pairs)
        members.twice = frozenset(name for name, count in times.items() if count > 1)
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except HTTPException:
        raise
    # A WSGI server raises an exception of its own for a malformed chunk or a client that is gone,
    # which would otherwise be a 500 and a fault in the log.
    except Exception as exc:
        raise HTTPError(400, _UNREADABLE) from exc


def _discard_rest(response: Response) -> Response:
    """Read on, in vain, what the client of a refused upload is still sending, up to 16 MiB.

    A server that closes with unread data resets the connection, and the client may never see the
    answer. Other bodies are small, or may never come, and are left to the server.
    """
    sent_much = response.status_code == 413 or request.mimetype == "multipart/form-data"
    if sent_much and request.environ.get("wsgi.input_terminated"):
        discarded = 0
        with suppress(Exception):
            while discarded < _DISCARD_LIMIT:
                part = request.environ["wsgi.input"].read(JSON_LIMIT)
                if not part:
                    break
                discarded += len(part)
    return response
