"""Check an uploaded image and encode it anew, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import suppress

import structlog

from ..bounds import (
    IMAGE_BYTES,
    IMAGE_CHUNKS,
    IMAGE_PIXELS,
    IMAGE_SCANS,
    IMAGE_SECONDS,
    IMAGE_SIDE,
    IMAGES_WAITING,
)
from ..errors import BUSY_IMAGES, NO_IMAGE_WORKER, Busy, ImageTooLarge, InvalidImage
from ..turns import Turns
from .imageworker import Refusal

log = structlog.get_logger(__name__)

# -I: neither the environment nor the current folder says which code runs. -B: it may write no file.
_COMMAND = (sys.executable, "-I", "-B", "-m", "accountsvc.adapters.imageworker")

# The pixels of the largest avatar, uncompressed, and as much again. The worker may be in somebody
# else's hands: without a limit, what it writes would fill the memory of this process.
_LARGEST_ANSWER = 2 * 512 * 512 * 4

_DAMAGED = "The image is damaged or incomplete. Open it, save it again and upload the new file."
_TOO_MUCH = (
    "The image takes too much work. Save it again as a plain JPEG or PNG, or make it smaller."
)
_SENTENCES = {
    Refusal.NO_IMAGE: InvalidImage.message,
    Refusal.DAMAGED: _DAMAGED,
    Refusal.TOO_MANY_PIXELS: (
        f"The image has too many pixels: at most {IMAGE_PIXELS // 1_000_000} million, and "
        f"{IMAGE_SIDE:,} on a side. Make it smaller and upload it again."
    ),
    Refusal.TOO_MANY_PARTS: (
        f"The image has too many parts: at most {IMAGE_SCANS} scans and {IMAGE_CHUNKS:,} chunks. "
        "Open it, save it again and upload the new file."
    ),
    Refusal.TOO_MUCH_MEMORY: _TOO_MUCH,
}

# Somebody ends all processes by these, or the terminal does, or the worker's own alarm: the image
# is not at fault.
_STOPPED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM})

# One image is decoded at a time: several big ones together would exhaust the memory of a small
# host. So many wait; more would keep all threads from everybody else.
_BUSY = "Too many images are being uploaded at this moment. Try again in a few seconds."
turns = Turns(1, IMAGES_WAITING, limit=BUSY_IMAGES, refusal=_BUSY)


def normalise(image: bytes) -> bytes:
    """Return the image as a WebP that fits 512 by 512, upright, in sRGB, without any metadata.

    PNG, JPEG, WebP and GIF are taken, by content; of an animation the first frame. Smaller images
    keep their size. Nothing of what was uploaded is kept, so neither metadata nor anything hidden
    behind the pixels survives. The result is WebP because every browser shows it, it keeps
    transparency, and a photo takes a tenth of a PNG. What has at most 256 colours in the end (or 64
    shades, if it is all grey), or fits 64 by 64, is stored losslessly: pixel art stays as it is, to
    the pixel.

    Nothing in *image* is trusted. Its bytes are counted here; all else happens in a process that
    knows no secret and has the limits of ``accountsvc/bounds.py``: its parts are counted before
    they are parsed, its pixels before they are decoded, and the processor's time and the memory
    meanwhile. It takes seconds, so never call this in a transaction. One image is decoded at a time
    in a process, and ``IMAGES_WAITING`` wait.

    Raises ImageTooLarge above ``IMAGE_BYTES``; InvalidImage for everything else that is not such an
    image: damaged, truncated, another format, or beyond a limit; Busy if too many wait already, if
    no process can be started, or if this one did not end within ``IMAGE_SECONDS``.
    """
    if len(image) > IMAGE_BYTES:
        raise ImageTooLarge
    # Those before take no longer than this in all, unless the machine is far too busy.
    with turns.take(seconds=IMAGE_SECONDS):
        return _decoded_elsewhere(image)


def _decoded_elsewhere(image: bytes) -> bytes:
    try:
        # No ``preexec_fn``, and so no fork of this process: a lock that another thread held would
        # stay held for ever in the child, before the exec.
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            close_fds=True,
        )
    except OSError as exc:
        log.warning("no image worker could be started", error=type(exc).__name__, errno=exc.errno)
        raise Busy(_BUSY, limit=NO_IMAGE_WORKER) from exc
    # A worker in somebody else's hands may let its alarm pass, and neither read nor write.
    watch = threading.Timer(IMAGE_SECONDS + 1, process.kill)
    with process:
        try:
            watch.start()
            answer = _exchange(process, image)
            process.wait()
        except RuntimeError as exc:
            # No thread could be started.
            process.kill()
            raise Busy(_BUSY, limit=NO_IMAGE_WORKER) from exc
        except BaseException:
            process.kill()
            raise
        finally:
            watch.cancel()
    return _judged(process.returncode, answer)


def _exchange(process: subprocess.Popen[bytes], image: bytes) -> bytes:
    """Write the whole image, then read the answer: all of it, or one byte too many."""
    assert process.stdin is not None
    assert process.stdout is not None
    # A worker that has ended takes nothing more; its status says why.
    with suppress(BrokenPipeError):
        process.stdin.write(image)
    with suppress(BrokenPipeError):
        process.stdin.close()
    answer = process.stdout.read(_LARGEST_ANSWER + 1)
    if len(answer) > _LARGEST_ANSWER:
        process.kill()
    return answer


def _judged(status: int, answer: bytes) -> bytes:
    """Return the worker's answer, or raise what its end means."""
    if status == 0 and _is_webp(answer):
        return answer
    if status in _SENTENCES:
        raise InvalidImage(_SENTENCES[Refusal(status)])
    if status < 0 and -status not in _STOPPED:
        # At the limit of the processor's time, of the memory, or by a fault in a codec.
        log.warning("an image worker was ended", reason=signal.Signals(-status).name)
        raise InvalidImage(_TOO_MUCH)
    log.error("an image worker failed", status=status)
    raise Busy(_BUSY, limit=NO_IMAGE_WORKER)


def _is_webp(answer: bytes) -> bool:
    length = int.from_bytes(answer[4:8], "little") + 8
    return answer[:4] == b"RIFF" and answer[8:12] == b"WEBP" and length == len(answer)
