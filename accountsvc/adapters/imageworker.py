"""The image worker: a process that decodes one image and ends (``python -I -m`` this module).

The image comes by standard input, and the WebP leaves by standard output; the exit status says why
there is none. :mod:`.images` starts it with an empty environment, in the root folder, and with no
other descriptor. So a hole in a codec is one in a process that knows no key and no password, can
open no file and no connection, and ends by itself.

It limits itself before Pillow is imported. Its modules are few, since each upload waits for them.
"""

from __future__ import annotations

import enum
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from ..bounds import IMAGE_ADDRESS_SPACE, IMAGE_CPU_SECONDS, IMAGE_MEMORY, IMAGE_SECONDS

# Python needs a few at once while it imports.
_OPEN_FILES = 16


class Refusal(enum.IntEnum):
    """The exit status, if the image is at fault. Python itself ends with 1 or 2 after a fault."""

    NO_IMAGE = 10
    DAMAGED = 11
    TOO_MANY_PIXELS = 12
    TOO_MANY_PARTS = 13
    TOO_MUCH_MEMORY = 14


def main() -> None:
    """Read an image, write its WebP, and end the process; at a limit, the system ends it."""
    _limit()
    from . import imagecodec

    # Everything is imported, and nothing is to be opened: so nothing can be any more, neither the
    # file with the keys nor a connection to elsewhere.
    _lower(resource.RLIMIT_NOFILE, 0)
    image = sys.stdin.buffer.read()
    try:
        encoded = imagecodec.reencode(image)
    except imagecodec.Refused as exc:
        _end(exc.why)
    except MemoryError:
        _end(Refusal.TOO_MUCH_MEMORY)
    # Catch any exception: Pillow's parsers answer hostile bytes with whatever they run into, such
    # as OSError, SyntaxError, struct.error or OverflowError.
    except Exception:
        _end(Refusal.DAMAGED)
    sys.stdout.buffer.write(encoded)
    sys.stdout.buffer.flush()
    _end(0)


def _limit() -> None:
    """Limit this process: its processor, memory, files and processes, and how long it may live."""
    # Where memory is short, the kernel is to end this process, and not a server beside it.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Whoever started it may be gone: then nobody else ends it.
    signal.alarm(IMAGE_SECONDS)
    # The first limit ends it by a signal that says why, the second for certain.
    _lower(resource.RLIMIT_CPU, IMAGE_CPU_SECONDS, IMAGE_CPU_SECONDS + 1)
    if sys.platform == "linux":
        # macOS refuses these, whatever the number is. The second counts what is written to alone:
        # of two such processes it bounds the memory, which the first, with room for libraries,
        # does not.
        _lower(resource.RLIMIT_AS, IMAGE_ADDRESS_SPACE)
        _lower(resource.RLIMIT_DATA, IMAGE_MEMORY)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _lower(resource.RLIMIT_FSIZE, 0)
    # A dump of its memory would be a person's photo on the disk.
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NPROC, 0)


def _lower(what: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, or a lower one that is in force already: nothing can raise it again."""
    most = resource.getrlimit(what)[1]
    hard = soft if hard is None else hard
    if most != resource.RLIM_INFINITY:
        hard = min(hard, most)
    resource.setrlimit(what, (min(soft, hard), hard))


def _end(status: int) -> NoReturn:
    # Leave without tidying up: freeing the pixels takes time, and nothing is to be written.
    os._exit(status)


if __name__ == "__main__":
    main()
