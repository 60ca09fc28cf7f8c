"""Images that cost more than they look like: each is a valid file of its format, or nearly."""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO

from PIL import Image

_SCAN = b"\xff\xda"
_END = b"\xff\xd9"


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(
    width: int,
    height: int,
    *more: bytes,
    depth: int = 8,
    colour_type: int = 2,
    pixels: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """A PNG of just these *pixels*, each row with its filter byte; *more* are chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(pixels))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def jpeg_of_scans(scans: int, size: tuple[int, int] = (16, 16), mode: str = "L") -> bytes:
    """A progressive JPEG with so many scans, each of which passes over all its pixels.

    The last scan is repeated, which a decoder follows with a warning.
    """
    whole = encoded(Image.new(mode, size, "grey"), "JPEG", progressive=True)
    begins = [found.start() for found in re.finditer(re.escape(_SCAN), whole)]
    head, last = whole[: begins[-1]], whole[begins[-1] : -len(_END)]
    return head + last * (scans - len(begins) + 1) + _END
