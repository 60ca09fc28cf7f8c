"""What an attacker sends: whole requests as bytes, by kind. They are made once and sent as they are.

Each kind is the worst that fits behind one of the bounds of ``accountsvc/bounds.py``, or far beyond
it. A request is addressed by ``X-Forwarded-For``, so that each attacker has an address of its own.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle

from PIL import Image

from accountsvc import bounds
from tests.support.factories import PASSWORD
from tests.support.images import chunk, encoded, jpeg_of_scans, png

_BOUNDARY = "a-boundary-of-an-attacker"
_FORM = f"multipart/form-data; boundary={_BOUNDARY}"
_URLENCODED = "application/x-www-form-urlencoded"
# The largest JSON that is read at all.
_JSON_BYTES = 62 * 1024
# Two combining marks in the wrong order: normalising sorts them, however many there are.
_MARKS = "\u0323\u0301" * (_JSON_BYTES // 4)


@dataclass(frozen=True)
class Attacker:
    """Somebody with a valid account and an address of their own, and who has a full vault.

    ``old_token`` is not fresh: it opens everything, but deletes nothing without the password.
    """

    id: int
    email: str
    token: str
    old_token: str
    address: str
    hoarder_id: int
    hoarder_token: str


@dataclass(frozen=True)
class Attack:
    """A kind of request, sent in turns from so many *connections* at once.

    A *slow* one is sent in part or is not read: its connections stay open, and a byte follows each
    second where ``drips``.
    """

    requests: Callable[[Attacker], Sequence[bytes]]
    connections: int = 4
    slow: bool = False
    drips: bool = field(default=False, kw_only=True)


def _request(who: Attacker, call: str, body: bytes = b"", **headers: str) -> bytes:
    """Return the request *call* (method and path) of *who*; ``_`` in a header's name is ``-``."""
    given = {
        "Host": "127.0.0.1",
        "X-Forwarded-For": who.address,
        "Authorization": f"Bearer {who.token}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{call} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _json(who: Attacker, call: str, **members: object) -> bytes:
    return _request(who, call, json.dumps(members, ensure_ascii=False).encode())


def _part(name: str, content: bytes, filename: str = "") -> bytes:
    shown = f'; filename="{filename}"\r\nContent-Type: image/png' if filename else ""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def _form(who: Attacker, *parts: bytes) -> bytes:
    body = b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()
    return _request(who, f"PUT /api/profile/{who.id}/update/", body, Content_Type=_FORM)


def _uploads(*images: Callable[[], bytes]) -> Callable[[Attacker], Sequence[bytes]]:
    once = [cache(image) for image in images]

    def requests(who: Attacker) -> Sequence[bytes]:
        return [_form(who, _part("avatar", image(), "me.png")) for image in once]

    return requests


# Names, passwords, links --------------------------------------------------------------------------


def _long_sign_ins(who: Attacker) -> Sequence[bytes]:
    email, call = f"a{_MARKS}@example.org", "POST /api/sign-in/"
    return [
        _json(who, call, email=email, password=PASSWORD),
        _json(who, call, email="nobody@example.org", password=_MARKS),
        _json(who, "POST /api/profile/reactivate/", email=email, password="x"),
        _json(who, "POST /api/password-reset/", email=email),
    ]


def _long_sign_ups(who: Attacker) -> Sequence[bytes]:
    call = "POST /api/sign-up/"
    good = {"username": "somebody", "email": "somebody@example.org", "password": PASSWORD}
    return [
        _json(who, call, **{**good, "username": _MARKS}),
        _json(who, call, **{**good, "email": f"a{_MARKS}@example.org"}),
        _json(who, call, **{**good, "password": "aB3$" * (_JSON_BYTES // 4)}),
        _json(who, call, **{**good, "first_name": _MARKS}),
        _json(who, f"PATCH /api/profile/{who.id}/update/", username=_MARKS),
    ]


def _guessable_passwords(who: Attacker) -> Sequence[bytes]:
    """Those that zxcvbn looks at longest: each character stands for several letters."""
    leet, words = "4@8({[<369&#!1|0$5+7%2", "p4ssw0rd1!|$5+7"
    tried = [(text * 64)[: bounds.PASSWORD_CHARACTERS] for text in (leet, words, "ab1ba", "1")]
    return [
        _json(who, "POST /api/sign-up/", username="a", email="a@example.org", password=one)
        for one in tried
    ]


def _right_and_wrong(who: Attacker) -> Sequence[bytes]:
    call, wrong = "POST /api/sign-in/", "wrong horse battery"
    return [
        _json(who, call, email=who.email, password=PASSWORD),
        _json(who, call, email=who.email, password=wrong),
        _json(who, call, email="nobody@example.org", password=wrong),
    ]


# Images -------------------------------------------------------------------------------------------


def _pixels() -> Image.Image:
    return Image.new("RGBA", (4_999, 4_999), (200, 30, 30, 128))


def _ztxt() -> bytes:
    return chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 2**20, 9))


def _iccp() -> bytes:
    return chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * (64 * 2**20), 9))


def _text_chunks() -> bytes:
    row = b"\0" + b"\0\0\0"
    return png(1, 1, *([_ztxt()] * 900), pixels=row)


def _many_chunks() -> bytes:
    return png(1, 1, *([chunk(b"tEXt", b"a\0b")] * 200_000), pixels=b"\0\0\0\0")


def _gif_frames() -> bytes:
    one = Image.new("P", (2_000, 2_000))
    return encoded(one, "GIF", save_all=True, append_images=[one.rotate(90)] * 200)


# Bodies and heads ---------------------------------------------------------------------------------


def _chunked(who: Attacker, call: str, *pieces: bytes) -> bytes:
    head = _request(who, call, Content_Length="", Transfer_Encoding="chunked")
    return head + b"".join(pieces)


def _chunks(who: Attacker) -> Sequence[bytes]:
    call, end = "POST /api/sign-in/", b"0\r\n\r\n"
    return [
        _chunked(who, call, b"1;", b"x" * 2**20, b"\r\nx\r\n", end),
        _chunked(who, call, b"1;a=b\r\nx\r\n" * 100_000, end),
        _chunked(who, call, b"1\r\nx\r\n" * 300_000, end),
        _chunked(who, call, b"0\r\n", b"a: b\r\n" * 200_000, b"\r\n"),
    ]


def _documents(who: Attacker) -> Sequence[bytes]:
    bodies = [
        b"[" * _JSON_BYTES,
        b'{"a":' * (_JSON_BYTES // 5),
        b'{"email":' + b"9" * (_JSON_BYTES - 16) + b"}",
        b'{"email":' + b"1" * 4_000 + b"e" + b"9" * 4_000 + b"}",
        b"{" + b",".join(b'"%d":1' % number for number in range(7_000)) + b"}",
        b"{" + b",".join([b'"a":1'] * 10_000) + b"}",
        b'{"email":"' + b"\\ud800" * 10_000 + b'"}',
    ]
    # This takes any body, and reads as a password what it can.
    delete, old = f"DELETE /api/profile/{who.id}/delete/", f"Bearer {who.old_token}"
    return [
        *(_request(who, "POST /api/sign-in/", body) for body in bodies),
        *(_request(who, delete, body[: 16 * 1024], Authorization=old) for body in bodies),
    ]


def _parts(who: Attacker) -> Sequence[bytes]:
    disposition = b"Content-Disposition: form-data; name=" + b'"a\\"' * 10_000
    dashes = f"--{_BOUNDARY}".encode()
    return [
        _form(who, *([_part("a", b"")] * 50_000)),
        _form(who, *(_part(f"a{number}", b"x" * 2_000) for number in range(30))),
        _form(who, dashes, b"\r\n", b"A: b\r\n" * 500_000, b"\r\n\r\n"),
        _form(who, dashes, b"\r\n", disposition, b"\r\n\r\nx\r\n"),
        _form(who, dashes, b"\r" * (5 * 2**20)),
        _form(who, _part("avatar", b"\r\n--" * (5 * 2**18 - 300), "a")),
    ]


def _unwanted(who: Attacker) -> Sequence[bytes]:
    body = b"x" * bounds.IMAGE_BYTES
    calls = ["POST /api/profile/", "GET /healthz", "POST /api/sign-in/", "GET /api/profile/"]
    calls += ["DELETE /api/view-all-saved-passwords/1/delete/", "POST /nowhere", "GET /recover/"]
    return [_request(who, call, body) for call in calls]


def _headers(who: Attacker) -> Sequence[bytes]:
    """What is matched by expressions, split, parsed or normalised, as long as a head may be."""
    much = 28_000
    get = "GET /api/profile/"
    headers: list[dict[str, str]] = [
        {"Prefer": 'return="' + "\\a" * (much // 2)},
        {"Prefer": "return" + " " * much},
        {"Prefer": "a=b," * (much // 4)},
        {"X_Forwarded_For": "127.0.0.1," * (much // 10)},
        {"X_Forwarded_For": "1:" * (much // 2)},
        {"X_Forwarded_For": '"' * much},
        {"Authorization": "Bearer " + "." * much},
        {"Authorization": "Bearer " + "a" * much + ".a.a"},
        {"Cookie": 'recover="' + "\\1" * (much // 2)},
        {"Cookie": "a=b;" * (much // 4)},
        {"Content_Type": "application/json" + ";a=b" * (much // 4)},
        {"Content_Type": 'multipart/form-data; boundary="' + "\\" * much},
        {"Accept": "a/b;q=0." + "1" * much, "Origin": "https://" + "a." * 100},
        {"If_None_Match": '"a",' * (much // 4), "Range": "bytes=" + "0-1," * 10},
    ]
    queries = ["a=b&" * (much // 4), "%" * much, "cursor=" + "9" * much, "limit=" + "1" * 4_000]
    listing = "GET /api/view-all-saved-passwords/"
    update = "PATCH /api/profile/"
    return [
        *(
            _request(who, get if one.get("Content_Type") is None else update, b"", **one)
            for one in headers
        ),
        *(_request(who, f"{listing}?{query}") for query in queries),
        _request(who, "GET /api/profile/" + "9" * much + "/deletion/"),
        _request(who, "GET /" + "../" * (much // 3)),
        _request(who, "GET " + "/" * much),
    ]


def _pages(who: Attacker) -> Sequence[bytes]:
    """Links and forms of the pages: long tokens, many fields, long values."""
    cookie = f"recover={who.token}"
    bodies = [b"a=b&" * 15_000, b"%" * 60_000, b"password=" + b"%cc%81" * 10_000]
    calls = ("POST /recover/", "POST /reset-password/")
    return [
        *(
            _request(who, call, body, Content_Type=_URLENCODED, Cookie=cookie)
            for call in calls
            for body in bodies
        ),
        _request(who, f"GET /recover/?token={'a.' * 14_000}"),
        _json(who, "POST /api/token/refresh/", refresh="." * _JSON_BYTES),
        _json(who, "POST /api/password-reset/confirm/", token="a." * 30_000, new_password="x"),
    ]


def _vault(who: Attacker) -> Sequence[bytes]:
    token = f"Bearer {who.hoarder_token}"
    return [_request(who, "GET /api/view-all-saved-passwords/", Authorization=token)]


def _export(who: Attacker) -> Sequence[bytes]:
    token = f"Bearer {who.hoarder_token}"
    return [_request(who, f"GET /api/profile/{who.hoarder_id}/export/", Authorization=token)]


def _pipelined(who: Attacker) -> Sequence[bytes]:
    """Many requests at once, whose answers but the first are left unread."""
    return [_request(who, "GET /api/profile/") * 2_000]


# Slow ones ----------------------------------------------------------------------------------------


def _half(who: Attacker) -> Sequence[bytes]:
    whole = _request(who, "POST /api/sign-in/", b"{" * 10_000)
    return [whole[:200], whole[:-5_000]]


def _half_uploads(who: Attacker) -> Sequence[bytes]:
    return [_form(who, _part("avatar", b"x" * (bounds.IMAGE_BYTES - 1_000), "a"))[:-100]]


ATTACKS = {
    "sign-ins with 62 KB of marks": Attack(_long_sign_ins),
    "sign-ups with 62 KB of marks": Attack(_long_sign_ups),
    "passwords that are dear to judge": Attack(_guessable_passwords),
    "right and wrong sign-ins, 64 at once": Attack(_right_and_wrong, 64),
    "JPEG of 10,000 scans": Attack(_uploads(lambda: jpeg_of_scans(10_000))),
    "JPEG of 100 scans, 25 megapixels": Attack(
        _uploads(lambda: jpeg_of_scans(bounds.IMAGE_SCANS, (4_999, 4_999), "RGB"))
    ),
    "WebP and PNG of 25 megapixels": Attack(
        _uploads(
            lambda: encoded(_pixels(), "WEBP", method=0, lossless=True),
            lambda: encoded(_pixels(), "PNG"),
        )
    ),
    "PNG of 400 megapixels": Attack(_uploads(lambda: png(20_000, 20_000, pixels=b"\0" * 10**6))),
    "GIF of 201 frames": Attack(_uploads(_gif_frames)),
    "PNG chunks: zTXt, iCCP, 200,000": Attack(
        _uploads(_text_chunks, lambda: png(1, 1, _iccp(), pixels=b"\0\0\0\0"), _many_chunks)
    ),
    "chunks: extensions, tiny, trailers": Attack(_chunks),
    "JSON: deep, long numbers, members": Attack(_documents),
    "multipart: parts, headers, dashes": Attack(_parts),
    "5 MiB where no body is taken": Attack(_unwanted),
    "heads of 28 KB": Attack(_headers),
    "links and forms of the pages": Attack(_pages),
    "lists of a full vault": Attack(_vault),
    "exports of a full vault": Attack(_export),
    "2,000 requests at once, unread": Attack(_pipelined, slow=True),
    "half heads and bodies, dripping": Attack(_half, 400, slow=True, drips=True),
    "uploads that stop before the end": Attack(_half_uploads, 40, slow=True, drips=True),
    "lists that nobody reads": Attack(_vault, 16, slow=True),
}


@cache
def requests_of(name: str, who: Attacker) -> Sequence[bytes]:
    """Return the requests of an attack, which are made once in a process."""
    return ATTACKS[name].requests(who)


def everything(who: Attacker) -> Iterator[bytes]:
    """One request of each quick attack in turn, and so on: each kind comes as often as others."""
    turns = [cycle(requests_of(name, who)) for name, one in ATTACKS.items() if not one.slow]
    while True:
        yield from map(next, turns)
