"""An image is decoded in a process of its own, which has limits and nothing worth stealing."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

from accountsvc import bounds
from accountsvc.adapters import images
from accountsvc.adapters.images import normalise
from accountsvc.adapters.imagescan import TooManyParts, check_parts
from accountsvc.errors import Busy, InvalidImage
from tests.support.images import chunk, encoded, jpeg_of_scans, png
from tests.support.processes import eventually, image_workers

SMALL = encoded(Image.new("RGB", (9, 9), "red"), "PNG")
PNG_HEAD = b"\x89PNG\r\n\x1a\n"
# Within every count, and seconds of work.
LONG = jpeg_of_scans(bounds.IMAGE_SCANS, (5_000, 5_000))


@contextmanager
def decoding(image: bytes = LONG) -> Iterator[tuple[int, Future[bytes]]]:
    """Have *image* decoded, and stop the process once it has limited itself: its pid, the answer."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(normalise, image)
        (pid,) = eventually(lambda: image_workers(os.getpid()) or (answer.done() and [0]))
        try:
            eventually(lambda: limits(pid)["Max open files"] == ("0", "0"))
            os.kill(pid, signal.SIGSTOP)
            yield pid, answer
        finally:
            with_pid_gone(pid, signal.SIGKILL)


def with_pid_gone(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return


def limits(pid: int) -> dict[str, tuple[str, str]]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): (line[26:47].strip(), line[47:68].strip()) for line in lines}


# What the process is


def test_the_process_has_limits_for_all_that_a_hostile_image_could_take() -> None:
    with decoding() as (pid, _):
        found = limits(pid)
        ended_first = Path(f"/proc/{pid}/oom_score_adj").read_text()

    # Where the kernel is out of memory, it ends this process and no other.
    assert ended_first == "1000\n"
    assert found["Max cpu time"] == (
        str(bounds.IMAGE_CPU_SECONDS),
        str(bounds.IMAGE_CPU_SECONDS + 1),
    )
    assert found["Max address space"] == (str(bounds.IMAGE_ADDRESS_SPACE),) * 2
    assert found["Max data size"] == (str(bounds.IMAGE_MEMORY),) * 2
    for name in ("Max file size", "Max core file size", "Max processes", "Max open files"):
        assert found[name] == ("0", "0"), name


def test_the_process_knows_no_secret_and_holds_no_file_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    with (tmp_path / "keys").open("wb") as keys:
        # A library may leave a descriptor open to children by mistake.
        os.set_inheritable(keys.fileno(), True)

        with decoding() as (pid, _):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            files = {
                link.name: os.readlink(link).split(":")[0]
                for link in Path(f"/proc/{pid}/fd").iterdir()
            }
            folder = os.readlink(f"/proc/{pid}/cwd")
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")

    assert environment == b""
    assert files == {"0": "pipe", "1": "pipe", "2": "/dev/null"}
    assert folder == "/"
    assert b"-I" in command


def test_it_limits_itself_before_it_imports_pillow_or_anything_of_ours_but_numbers() -> None:
    code = "import sys; before = set(sys.modules); import accountsvc.adapters.imageworker; "
    code += "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('accountsvc', 'PIL')))"

    shown = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )

    assert shown.stdout.split() == [
        "accountsvc",
        "accountsvc.adapters",
        "accountsvc.adapters.imageworker",
        "accountsvc.bounds",
    ]


def test_it_is_started_without_a_fork_of_this_process() -> None:
    # The functions that are registered run before each fork of the interpreter, and before an
    # exec only where something is to run in between.
    forks: list[int] = []
    os.register_at_fork(before=lambda: forks.append(1))

    normalise(SMALL)

    assert forks == []


# How it ends


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGXCPU], ids=lambda how: how.name
)
def test_whoever_sent_an_image_at_which_the_process_dies_is_told_what_to_do(
    how: signal.Signals,
) -> None:
    with decoding() as (pid, answer):
        os.kill(pid, how)
        os.kill(pid, signal.SIGCONT)

        with pytest.raises(InvalidImage, match="Save it again as a plain JPEG or PNG"):
            answer.result()

    assert normalise(SMALL)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGALRM], ids=lambda how: how.name)
def test_the_image_is_not_at_fault_when_somebody_ends_the_process(how: signal.Signals) -> None:
    with decoding() as (pid, answer):
        os.kill(pid, how)
        os.kill(pid, signal.SIGCONT)

        with pytest.raises(Busy, match="Too many images"):
            answer.result()


def test_it_ends_when_its_time_on_the_processor_is_used_up() -> None:
    with decoding() as (pid, answer):
        # A shorter time than its own, which would make the test wait.
        resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))
        os.kill(pid, signal.SIGCONT)

        with pytest.raises(InvalidImage, match="too much work"):
            answer.result()


def test_an_image_that_takes_too_much_memory_is_refused() -> None:
    webp = encoded(Image.new("RGB", (5_000, 5_000)), "WEBP", lossless=True)
    assert len(webp) < 2_000

    with decoding(webp) as (pid, answer):
        resource.prlimit(pid, resource.RLIMIT_DATA, (150 * 2**20,) * 2)
        os.kill(pid, signal.SIGCONT)

        with pytest.raises(InvalidImage, match=r"too much work|damaged"):
            answer.result()


def test_where_no_process_can_be_started_the_image_may_be_sent_again() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(Busy):
            normalise(SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert normalise(SMALL)


HOSTILE = {
    "too much": ("while True: sys.stdout.buffer.write(bytes(2**20))", InvalidImage),
    "a page": ("sys.stdout.write('<script>'); sys.stdout.flush()", Busy),
    "a cut WebP": ("sys.stdout.buffer.write(b'RIFF\\xff\\0\\0\\0WEBPVP8 ')", Busy),
    "nothing": ("pass", Busy),
    "an end of its own": ("sys.exit(77)", Busy),
    "no end": ("sys.stdout.close(); os.close(1); time.sleep(1000)", InvalidImage),
}


@pytest.mark.parametrize(("code", "error"), HOSTILE.values(), ids=HOSTILE)
def test_nothing_is_taken_from_a_process_in_somebody_elses_hands(
    monkeypatch: pytest.MonkeyPatch, code: str, error: type[Exception]
) -> None:
    program = f"import os, sys, time\n{code}"
    monkeypatch.setattr(images, "_COMMAND", (sys.executable, "-I", "-c", program))
    monkeypatch.setattr(images, "IMAGE_SECONDS", 1)

    with pytest.raises(error):
        normalise(SMALL)

    assert image_workers(os.getpid()) == []


# How many at once


def test_one_image_is_decoded_at_once_four_wait_and_the_next_is_asked_to_come_again() -> None:
    waiting = bounds.IMAGES_WAITING
    with decoding() as (pid, first), ThreadPoolExecutor(waiting) as pool:
        others = [pool.submit(normalise, SMALL) for _ in range(waiting)]
        eventually(lambda: images.turns._places._value == 0)

        with pytest.raises(Busy, match="Try again in a few seconds"):
            normalise(SMALL)

        assert image_workers(os.getpid()) == [pid]
        assert [one.done() for one in (first, *others)] == [False] * (1 + waiting)
        os.kill(pid, signal.SIGKILL)
        assert all(one.result() for one in others)
    assert isinstance(first.exception(), InvalidImage)


# Parts


def jpeg_of_segments(count: int) -> bytes:
    """A JPEG with so many segments, most of them tables of a code that is the same each time."""
    whole = encoded(Image.new("L", (9, 9)), "JPEG")
    table = whole[whole.index(b"\xff\xc4") :]
    table = table[: 2 + struct.unpack(">H", table[2:4])[0]]
    have = sum(1 for _ in segments(whole))
    return whole[:2] + table * (count - have) + whole[2:]


def segments(jpeg: bytes) -> Iterator[int]:
    at = 2
    while jpeg[at + 1] != 0xDA:
        yield at
        at += 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
    yield at


def png_of_chunks(count: int) -> bytes:
    # Beside these there are IHDR, IDAT and IEND.
    texts = chunk(b"tEXt", b"Comment\0a") * (count - 3)
    return png(9, 9, texts, pixels=(b"\0" + bytes(27)) * 9)


def png_of_pieces(count: int) -> bytes:
    """A PNG whose pixels come in so many pieces that it has so many chunks."""
    whole = png(9, 9, pixels=(b"\0" + bytes(27)) * 9)
    begin = whole.index(b"IDAT") - 4
    return whole[:begin] + chunk(b"IDAT", b"") * (count - 3) + whole[begin:]


def webp_of_chunks(count: int) -> bytes:
    whole = encoded(Image.new("RGB", (9, 9)), "WEBP")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + (8).to_bytes(3, "little") * 2
    body += whole[12:] + (b"note" + struct.pack("<I", 1) + b"a\0") * (count - 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_of_blocks(count: int) -> bytes:
    whole = encoded(Image.new("P", (9, 9)), "GIF")
    begin = 13 + (3 << (whole[10] & 7) + 1 if whole[10] & 0x80 else 0)
    assert whole[begin : begin + 1] == b","
    return whole[:begin] + b"!\xfe\1a\0" * count + whole[begin:]


PARTS: dict[str, tuple[Callable[[int], bytes], int]] = {
    "scans of a JPEG": (jpeg_of_scans, bounds.IMAGE_SCANS),
    "scans of a JPEG in colour": (lambda n: jpeg_of_scans(n, mode="RGB"), bounds.IMAGE_SCANS),
    "segments of a JPEG": (jpeg_of_segments, bounds.IMAGE_CHUNKS),
    "texts in a PNG": (png_of_chunks, bounds.IMAGE_CHUNKS),
    "pieces of a PNG's pixels": (png_of_pieces, bounds.IMAGE_CHUNKS),
    "chunks of a WebP": (webp_of_chunks, bounds.IMAGE_CHUNKS),
    "comments in a GIF": (gif_of_blocks, bounds.IMAGE_CHUNKS),
}


@pytest.mark.parametrize(("make", "most"), PARTS.values(), ids=PARTS)
def test_an_image_has_at_most_so_many_parts(make: Callable[[int], bytes], most: int) -> None:
    assert normalise(make(most - 1))
    assert normalise(make(most))
    with pytest.raises(InvalidImage, match="too many parts: at most 100 scans and 1,000 chunks"):
        normalise(make(most + 1))


def test_parts_behind_the_first_picture_of_a_gif_do_not_count() -> None:
    whole = encoded(Image.new("P", (9, 9)), "GIF")
    picture = whole[whole.index(b",") : -1]

    assert normalise(whole[:-1] + picture * (bounds.IMAGE_CHUNKS + 1) + b";")


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\0", b"\xff\xd0", b"\xff\xd8", b"\0"])
def test_parts_are_counted_in_one_pass_over_the_bytes(filling: bytes) -> None:
    # If each byte were looked at again from the next one, the test would not end.
    filled = filling * (bounds.IMAGE_BYTES // len(filling))

    for head in (b"\xff\xd8\xff\xe0\0\2", PNG_HEAD, b"RIFF\0\0\0\0WEBP", b"GIF89a" + bytes(7)):
        with suppress(TooManyParts):
            check_parts(head + filled)
