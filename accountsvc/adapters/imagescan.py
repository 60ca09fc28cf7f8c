"""Count the parts of an image before anything decodes it, in time that grows with its bytes alone.

A decoder's work grows with pixels, which the header says, and with the parts that it reads for
them, which nothing says: a JPEG of 133 KB has room for thousands of scans, each of which is a pass
over all its pixels. The parts are counted as the decoder meets them, and no further than it reads.
"""

from __future__ import annotations

import re

from ..bounds import IMAGE_CHUNKS, IMAGE_SCANS

# The next marker that ends or begins something (ISO 10918-1, B.1.1): neither a stuffed byte nor a
# restart. A run of fill bytes is met one byte at a time, or a file of nothing else would be read
# again from each of its bytes.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
# These have no length after them.
_ALONE = frozenset({0x01, 0xD8})

_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B


class TooManyParts(Exception):
    """The image has more scans or chunks than any that a camera or a program has saved."""


def check_parts(image: bytes) -> None:
    """Raise TooManyParts if *image* has more scans or chunks than ``accountsvc/bounds.py`` allows.

    Counted are the segments and scans of a JPEG, all chunks of a PNG or a WebP, and the blocks of a
    GIF up to its first picture: Pillow reads no further. What is none of the four, or breaks off,
    passes: its decoder refuses it.
    """
    if image.startswith(b"\xff\xd8\xff"):
        _check_jpeg(image)
    elif image.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(image)
    elif image.startswith(b"RIFF"):
        _check_webp(image)
    elif image.startswith(b"GIF8"):
        _check_gif(image)


class _Count:
    def __init__(self, most: int) -> None:
        self._left = most

    def add(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooManyParts


def _check_jpeg(image: bytes) -> None:
    segments, scans = _Count(IMAGE_CHUNKS), _Count(IMAGE_SCANS)
    at = 2
    while (found := _JPEG_MARKER.search(image, at)) is not None:
        at, marker = found.end(), found[1][0]
        if marker == _END_OF_IMAGE:
            return
        segments.add()
        if marker == _START_OF_SCAN:
            scans.add()
        if marker not in _ALONE:
            at += int.from_bytes(image[at : at + 2], "big")


def _check_png(image: bytes) -> None:
    chunks = _Count(IMAGE_CHUNKS)
    at = 8
    while at + 8 <= len(image):
        chunks.add()
        if image[at + 4 : at + 8] == b"IEND":
            return
        # Around its content a chunk has a length, a name and a checksum, of four bytes each.
        at += 12 + int.from_bytes(image[at : at + 4], "big")


def _check_webp(image: bytes) -> None:
    chunks = _Count(IMAGE_CHUNKS)
    at = 12
    while at + 8 <= len(image):
        chunks.add()
        length = int.from_bytes(image[at + 4 : at + 8], "little")
        at += 8 + length + length % 2


def _check_gif(image: bytes) -> None:
    blocks = _Count(IMAGE_CHUNKS)
    at = 13
    if len(image) > 10 and image[10] & 0x80:
        # The table of colours for all pictures.
        at += 3 << (image[10] & 7) + 1
    while at < len(image):
        kind = image[at]
        if kind in {_GIF_IMAGE, _GIF_END}:
            return
        # What is neither counts, too: Pillow looks for the next block byte by byte.
        blocks.add()
        at += 1
        if kind == _GIF_EXTENSION:
            at += 1
            while at < len(image) and image[at]:
                at += 1 + image[at]
            at += 1
