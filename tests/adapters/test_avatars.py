"""What is taken as an avatar, what is stored of it, and that it goes for good."""

from __future__ import annotations

import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest
from botocore.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from accountsvc.adapters import avatarstore
from accountsvc.adapters.avatarstore import (
    AvatarStore,
    FileStore,
    S3Store,
    is_key,
    new_key,
    store_from_url,
)
from accountsvc.adapters.imagecodec import reencode
from accountsvc.adapters.images import normalise
from accountsvc.adapters.objectstore import Bucket
from accountsvc.bounds import IMAGE_BYTES, IMAGE_PIXELS, IMAGE_SIDE
from accountsvc.errors import ImageTooLarge, InvalidImage, StoreUnavailable
from tests.support.images import chunk, encoded, png
from tests.support.s3 import S3Server, error, on_request, start_moto

RED, GREEN, BLUE, GREY = (220, 30, 30), (30, 180, 30), (30, 30, 220), (128, 128, 128)
Colour = tuple[int, ...]

FORMATS = ["PNG", "JPEG", "WEBP", "GIF"]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# Images


@pytest.mark.parametrize("format", FORMATS)
def test_each_accepted_format_becomes_a_webp_of_the_same_picture(format: str) -> None:
    out = decoded(normalise(encoded(Image.new("RGB", (40, 30), RED), format)))

    assert (out.format, out.size) == ("WEBP", (40, 30))
    assert near(out.getpixel((20, 15)), RED)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((512, 512), (512, 512)),
        ((513, 512), (512, 511)),
        ((2048, 1024), (512, 256)),
        ((600, 3000), (102, 512)),
        ((IMAGE_SIDE, 1), (512, 1)),
        ((1, 1), (1, 1)),
    ],
)
def test_a_picture_is_scaled_down_to_fit_and_never_up(
    size: tuple[int, int], fitted: tuple[int, int]
) -> None:
    out = decoded(normalise(encoded(Image.new("RGB", size, BLUE), "PNG")))

    assert out.size == fitted


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_of_the_camera_is_applied(format: str, orientation: int) -> None:
    upright = Image.new("RGB", (64, 32), RED)
    upright.paste(GREEN, (32, 0, 64, 16))
    upright.paste(BLUE, (0, 16, 32, 32))
    upright.paste(GREY, (32, 16, 64, 32))
    # How a camera held that way stores it (EXIF 2.32, tag 0x0112).
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    camera = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation

    out = decoded(normalise(encoded(camera, format, exif=exif)))

    assert out.size == (64, 32)
    for place, colour in {(8, 4): RED, (56, 4): GREEN, (8, 28): BLUE, (56, 28): GREY}.items():
        assert near(out.getpixel(place), colour)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_where_and_with_what_a_photo_was_taken_is_gone(format: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "SECRET camera"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    more: dict[str, object] = {"exif": exif, "icc_profile": SRGB}
    if format == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Author", "SECRET name")
        more["pnginfo"] = text
    else:
        more["xmp"] = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>SECRET place</x:xmpmeta>"
    if format == "JPEG":
        more["comment"] = b"SECRET comment"
    photo = encoded(Image.new("RGB", (900, 600), GREEN), format, **more) + b"SECRET tail"
    assert dict(decoded(photo).getexif().get_ifd(0x8825))

    out = normalise(photo)

    assert not dict(decoded(out).getexif())
    assert b"SECRET" in photo
    assert b"SECRET" not in out
    assert webp_chunks(out) <= {b"VP8 ", b"VP8L"}


def test_a_colour_profile_is_applied_before_it_goes() -> None:
    # A profile whose red is our blue.
    swapped = SRGB.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    opaque = encoded(Image.new("RGB", (9, 9), (255, 0, 0)), "PNG", icc_profile=swapped)
    clear = encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 90)), "PNG", icc_profile=swapped)

    assert near(decoded(normalise(opaque)).getpixel((4, 4)), (0, 0, 255))
    assert near(decoded(normalise(clear)).getpixel((4, 4)), (0, 0, 255, 90))


@pytest.mark.parametrize("profile", [b"no profile", SRGB[:200]])
def test_a_broken_colour_profile_does_not_matter(profile: bytes) -> None:
    out = normalise(encoded(Image.new("RGB", (9, 9), RED), "JPEG", icc_profile=profile))

    assert near(decoded(out).getpixel((4, 4)), RED)


def test_broken_exif_does_not_matter() -> None:
    broken = b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 40

    out = decoded(normalise(encoded(Image.new("RGB", (40, 20), RED), "PNG", exif=broken)))

    assert out.size == (40, 20)
    assert near(out.getpixel((4, 4)), RED)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_stays(format: str) -> None:
    frames = [Image.new("RGB", (30, 30), colour) for colour in (RED, GREEN, BLUE)]
    moving = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
    assert getattr(decoded(moving), "n_frames") == 3  # noqa: B009 - not an attribute of every image

    out = decoded(normalise(moving))

    assert getattr(out, "n_frames", 1) == 1
    assert near(out.getpixel((15, 15)), RED)


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Image.new("RGBA", (9, 9), (*BLUE, 100)), "PNG", (*BLUE, 100)),
        (Image.new("RGBA", (9, 9), (*BLUE, 100)), "WEBP", (*BLUE, 100)),
        (Image.new("LA", (9, 9), (90, 50)), "PNG", (90, 90, 90, 50)),
        (Image.new("RGB", (9, 9), GREEN).quantize(4), "PNG", GREEN),
        (Image.new("RGB", (9, 9), GREEN).convert("CMYK"), "JPEG", GREEN),
        (Image.new("I;16", (9, 9), 40000), "PNG", (156, 156, 156)),
        (Image.new("L", (9, 9), 77), "JPEG", (77, 77, 77)),
        (Image.new("1", (9, 9), 1), "PNG", (255, 255, 255)),
        (Image.new("YCbCr", (9, 9), (100, 128, 128)), "JPEG", (100, 100, 100)),
    ],
    ids=["rgba", "rgba-webp", "grey-alpha", "palette", "cmyk", "16-bit", "grey", "1-bit", "ycbcr"],
)
def test_every_kind_of_pixel_keeps_its_colour_and_transparency(
    image: Image.Image, format: str, expected: Colour
) -> None:
    out = decoded(normalise(encoded(image, format)))

    assert near(out.getpixel((4, 4)), expected)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_colour_stays_transparent(format: str) -> None:
    image = Image.new("P", (9, 9), 1)
    image.putpalette([*RED, *BLUE])
    image.paste(0, (0, 0, 4, 9))

    out = decoded(normalise(encoded(image, format, transparency=0)))

    assert out.getpixel((1, 4))[3] == 0  # type: ignore[index]
    assert near(out.getpixel((7, 4)), (*BLUE, 255))


def test_a_colour_png_of_16_bits_is_taken() -> None:
    pixels = b"".join(b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0) * 4 for _ in range(4))

    out = decoded(normalise(png(4, 4, depth=16, colour_type=2, pixels=pixels)))

    assert near(out.getpixel((1, 1)), (255, 128, 0))


# Colour type and depth of a PNG, two pixels, and which of them its tRNS chunk names: the first.
CLEAR = {
    "grey of 16 bits": (0, 16, struct.pack(">HH", 40_001, 40_000), struct.pack(">H", 40_001)),
    "grey of 4 bits": (0, 4, b"\x73", struct.pack(">H", 7)),
    "grey of 2 bits": (0, 2, b"\x60", struct.pack(">H", 1)),
    "grey of 8 bits": (0, 8, b"\x73\x74", struct.pack(">H", 0x73)),
    "colour of 16 bits": (
        2,
        16,
        struct.pack(">6H", 40_001, 300, 7, 300, 40_001, 7),
        struct.pack(">HHH", 40_001, 300, 7),
    ),
    "colour of 8 bits": (2, 8, b"\x10\x20\x30\x20\x10\x30", struct.pack(">HHH", 16, 32, 48)),
}


@pytest.mark.parametrize(("colour_type", "depth", "row", "clear"), CLEAR.values(), ids=CLEAR)
def test_a_transparent_colour_stays_transparent_in_every_depth(
    colour_type: int, depth: int, row: bytes, clear: bytes
) -> None:
    image = png(
        2, 1, chunk(b"tRNS", clear), depth=depth, colour_type=colour_type, pixels=b"\0" + row
    )

    out = decoded(normalise(image)).convert("RGBA")

    assert [out.getpixel((x, 0))[3] for x in (0, 1)] == [0, 255]  # type: ignore[index]


def test_grey_of_16_bits_keeps_its_grey_beside_what_is_transparent() -> None:
    row = b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0x0100)
    image = png(3, 1, chunk(b"tRNS", b"\xff\xff"), depth=16, colour_type=0, pixels=row)

    out = decoded(normalise(image)).convert("RGBA")

    assert [out.getpixel((x, 0)) for x in (1, 2)] == [(128, 128, 128, 255), (1, 1, 1, 255)]


def drawing(side: int, colours: int) -> Image.Image:
    """Every pixel beside one of another colour, as pixel art has it and a lossy encoder not."""
    image = Image.new("RGB", (side, side))
    image.putdata([(n % colours, n * 7 % colours, 255 - n % colours) for n in range(side * side)])
    return image


@pytest.mark.parametrize(
    ("art", "format"),
    [
        (drawing(64, 251), "PNG"),
        (drawing(512, 16), "PNG"),
        (drawing(200, 256).quantize(256), "GIF"),
        (drawing(100, 5), "WEBP"),
        (drawing(100, 60).convert("L"), "PNG"),
    ],
    ids=["icon", "large", "gif", "webp", "grey"],
)
def test_pixel_art_is_stored_to_the_pixel(art: Image.Image, format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}

    out = normalise(encoded(art, format, **options))

    assert b"VP8L" in webp_chunks(out)
    assert decoded(out).convert("RGB").tobytes() == art.convert("RGB").tobytes()


def test_an_icon_is_stored_to_the_pixel_however_many_colours_it_has() -> None:
    icon = noise(64)

    out = decoded(normalise(encoded(icon, "PNG")))

    assert out.convert("RGB").tobytes() == icon.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_photo_is_stored_small(mode: str) -> None:
    photo = noise(65).resize((512, 512), Image.Resampling.BICUBIC).convert(mode)
    lossless = encoded(photo, "WEBP", lossless=True)

    out = normalise(encoded(photo, "PNG"))

    assert webp_chunks(out) == {b"VP8 "}
    assert len(out) < len(lossless) / 3


def test_a_photo_of_two_images_as_phones_make_it_is_taken() -> None:
    main, preview = Image.new("RGB", (40, 30), RED), Image.new("RGB", (20, 15), BLUE)

    out = decoded(normalise(encoded(main, "MPO", save_all=True, append_images=[preview])))

    assert near(out.getpixel((20, 15)), RED)


# Refused images


def test_a_text_named_png_is_refused() -> None:
    with pytest.raises(InvalidImage, match="Upload a PNG, JPEG, WebP or GIF image"):
        normalise(b"This is not an image, whatever its name says.\n" * 100)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize("prefix", [b"", b"<?xml version='1.0'?>", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_an_svg_is_refused(prefix: bytes) -> None:
    with pytest.raises(InvalidImage):
        normalise(prefix + SVG)


@pytest.mark.parametrize("format", ["BMP", "TIFF", "ICO", "PDF", "PPM", "TGA", "EPS", "JPEG2000"])
def test_another_format_is_refused_even_if_it_could_be_read(format: str) -> None:
    with pytest.raises(InvalidImage, match="Upload a PNG"):
        normalise(encoded(Image.new("RGB", (16, 16), RED), format))


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"]
)
def test_next_to_nothing_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        normalise(data)


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_image_is_refused(format: str) -> None:
    whole = encoded(noise(64), format)

    with pytest.raises(InvalidImage, match=r"damaged|Upload"):
        normalise(whole[: len(whole) * 2 // 3])


@pytest.mark.parametrize("side", [6_000, 12_000, 50_000, 2**31 - 1])
def test_a_tiny_png_of_huge_dimensions_is_refused(side: int) -> None:
    bomb = png(side, side)
    assert len(bomb) < 200

    with pytest.raises(InvalidImage, match="too many pixels: at most 25 million"):
        normalise(bomb)


def test_a_bomb_is_refused_where_warnings_are_ignored() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        with pytest.raises(InvalidImage, match="too many pixels"):
            normalise(png(12_000, 12_000))


def test_a_webp_and_a_gif_of_huge_dimensions_are_refused() -> None:
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (16_382).to_bytes(3, "little") * 2
    body += b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    webp = b"RIFF" + struct.pack("<I", len(body)) + body
    # The screen is one pixel; the frame is not.
    gif = b"GIF89a" + struct.pack("<HH", 1, 1) + b"\0\0\0,"
    gif += struct.pack("<HHHH", 0, 0, 9_000, 9_000) + b"\0\x02\x02\x4c\x01\0;"

    for bomb in (webp, gif):
        with pytest.raises(InvalidImage, match="too many pixels"):
            normalise(bomb)


def test_exactly_the_most_pixels_are_taken_and_one_row_more_is_not() -> None:
    side = 5_000
    assert side * side == IMAGE_PIXELS

    assert decoded(normalise(encoded(Image.new("1", (side, side)), "PNG"))).size == (512, 512)
    with pytest.raises(InvalidImage, match="too many pixels"):
        normalise(encoded(Image.new("1", (side, side + 1)), "PNG"))


def test_a_side_one_pixel_too_long_is_refused() -> None:
    with pytest.raises(InvalidImage, match="16,384 on a side"):
        normalise(encoded(Image.new("1", (IMAGE_SIDE + 1, 1)), "PNG"))


def test_exactly_the_most_bytes_are_taken_and_one_more_is_not() -> None:
    image = encoded(Image.new("RGB", (9, 9), RED), "PNG")
    largest = image.ljust(IMAGE_BYTES, b"\0")

    assert decoded(normalise(largest)).size == (9, 9)
    with pytest.raises(ImageTooLarge):
        normalise(largest + b"\0")


def test_a_bomb_in_a_text_chunk_is_refused() -> None:
    inflated = b"Comment\0\0" + zlib.compress(b"A" * 64 * 1024 * 1024)
    whole = encoded(Image.new("RGB", (9, 9), RED), "PNG")
    end_of_header = 8 + 25

    with pytest.raises(InvalidImage):
        normalise(whole[:end_of_header] + chunk(b"zTXt", inflated) + whole[end_of_header:])


damages = {
    "damage": st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8
    ),
    "cut": st.integers(0, 10**6),
    "whole": st.booleans(),
}


def damaged(format: str, damage: list[tuple[int, int]], cut: int, whole: bool) -> bytes:
    data = bytearray(SAMPLES[format])
    for place, byte in damage:
        data[place % len(data)] = byte
    return bytes(data) if whole else bytes(data[: cut % len(data)])


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(**damages)
def test_damage_is_refused_or_repaired_and_never_another_error(
    format: str, damage: list[tuple[int, int]], cut: int, whole: bool
) -> None:
    try:
        out = normalise(damaged(format, damage, cut, whole))
    except InvalidImage:
        return
    assert decoded(out).format == "WEBP"


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(**damages)
def test_no_damage_ends_the_process_that_decodes(
    format: str, damage: list[tuple[int, int]], cut: int, whole: bool
) -> None:
    # In this process, as 60 of their own take a minute: a fault in a codec would end it.
    with warnings.catch_warnings():
        try:
            out = reencode(damaged(format, damage, cut, whole))
        # The worker catches any exception, too.
        except Exception:
            return
    assert decoded(out).format == "WEBP"


# Keys


def test_keys_are_random_and_valid() -> None:
    keys = {new_key() for _ in range(1000)}

    assert len(keys) == 1000
    assert all(is_key(key) for key in keys)


KEY = "0123456789abcdef" * 2 + ".webp"
NOT_KEYS = [
    "",
    ".",
    "..",
    "/etc/passwd",
    "../" + KEY,
    "01/" + KEY,
    KEY + "/..",
    KEY + "\n",
    KEY + "\0",
    KEY[1:],
    "0" + KEY,
    KEY.upper(),
    KEY.replace(".webp", ".png"),
    KEY.replace(".", "x"),
    "٠" * 32 + ".webp",
    "..%2f" + KEY[5:],
]


@pytest.mark.parametrize("text", NOT_KEYS)
def test_whatever_is_not_exactly_a_key_is_none(text: str) -> None:
    assert is_key(KEY)
    assert not is_key(text)


# Stores


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with start_moto() as server:
        yield server


Place = Path | Bucket


@pytest.fixture(params=["file", "s3", "s3-Enabled", "s3-Suspended"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return tmp_path / "media"
    server: S3Server = request.getfixturevalue("s3")
    name = server.make_bucket(versions=request.param[3:])
    return Bucket(name, "media", client_factory=lambda: server.client)


@pytest.fixture
def store(place: Place) -> AvatarStore:
    made: AvatarStore = S3Store(place) if isinstance(place, Bucket) else FileStore(place)
    made.begin()
    made.check()
    return made


def test_what_was_put_is_opened_again(store: AvatarStore) -> None:
    key, data = new_key(), os.urandom(70_000)

    store.put(key, data)

    assert read(store, key) == data


def test_a_second_put_replaces_the_first(store: AvatarStore) -> None:
    key = new_key()
    store.put(key, b"old and longer")

    store.put(key, b"new")

    assert read(store, key) == b"new"


def test_a_missing_avatar_is_none(store: AvatarStore) -> None:
    assert store.open(new_key()) is None


def test_a_deleted_avatar_is_gone_with_every_trace_and_the_others_stay(
    store: AvatarStore, place: Place
) -> None:
    bystander, keys = new_key(), [new_key() for _ in range(3)]
    for key in (bystander, *keys):
        store.put(key, b"first")
        store.put(key, b"second")

    assert store.delete_many(keys) == {}

    assert [store.open(key) for key in keys] == [None] * 3
    assert set(traces(place)) == {bystander}
    assert read(store, bystander) == b"second"


def test_deleting_what_is_gone_or_never_was_is_a_success(store: AvatarStore, place: Place) -> None:
    bystander, gone = new_key(), new_key()
    store.put(bystander, b"stays")
    store.put(gone, b"goes")
    store.delete_many([gone])

    assert store.delete_many([gone, new_key(), gone]) == {}

    assert set(traces(place)) == {bystander}


def test_deleting_nothing_is_a_success(store: AvatarStore) -> None:
    assert store.delete_many([]) == {}


def test_what_is_no_key_is_neither_written_nor_opened_nor_deleted(
    store: AvatarStore, place: Place
) -> None:
    key = new_key()
    store.put(key, b"goes")

    for text in NOT_KEYS:
        with pytest.raises(ValueError, match="not an avatar key"):
            store.put(text, b"never")
        assert store.open(text) is None
    assert store.delete_many([*NOT_KEYS, key]) == dict.fromkeys(NOT_KEYS, "ValueError")

    assert traces(place) == []


def test_every_key_is_listed_with_the_time_of_its_writing(store: AvatarStore) -> None:
    keys = {new_key() for _ in range(5)}
    # S3 knows whole seconds only.
    before = datetime.now(UTC).replace(microsecond=0)
    for key in keys:
        store.put(key, b"x")
    after = datetime.now(UTC)

    listed = dict(store.listing())

    assert set(listed) == keys
    assert all(before <= at <= after for at in listed.values())


def test_of_what_is_deleted_nothing_remains(store: AvatarStore) -> None:
    gone, stays, never = new_key(), new_key(), new_key()
    for key in (gone, stays):
        store.put(key, b"x")

    store.delete_many([gone])

    assert store.remaining([gone, stays, never, "no key"]) == {stays: 1}


def test_a_version_remains_behind_a_file_that_other_hands_have_deleted(s3: S3Server) -> None:
    bucket = Bucket(s3.make_bucket(versions="Enabled"), "media", client_factory=lambda: s3.client)
    store, key, bystander = S3Store(bucket), new_key(), new_key()
    for one in (key, bystander):
        store.put(one, b"x")

    bucket.remove(key)

    assert (store.open(key), store.remaining([key])) == (None, {key: 1})
    store.delete_many([key])
    assert store.remaining([key, bystander]) == {bystander: 1}


def test_a_listing_is_sorted_and_goes_on_behind_any_key(store: AvatarStore) -> None:
    keys = sorted(new_key() for _ in range(5))
    for key in reversed(keys):
        store.put(key, b"x")

    listed = [[key for key, _ in store.listing(after=after)] for after in ["", *keys, "zz"]]

    assert listed == [keys, *(keys[number:] for number in range(1, 6)), []]
    # Where there is no such key, it goes on with the next.
    assert [key for key, _ in store.listing(after=keys[2][:-1])] == keys[2:]


def test_an_empty_store_lists_nothing(store: AvatarStore) -> None:
    assert list(store.listing()) == []


def test_a_url_names_the_store(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    bucket = s3.make_bucket()
    files, objects = tmp_path / "50%20 #1?", Bucket(bucket, "a/b", lambda: s3.client)

    store_from_url(f"file://{files}").begin()
    store_from_url(f"file://{files}").put(KEY, b"file")
    store_from_url(f"s3://{bucket}/a/b/").put(KEY, b"object")

    assert read(FileStore(files), KEY) == b"file"
    assert read(S3Store(objects), KEY) == b"object"
    answer = s3.client.get_object(Bucket=bucket, Key=f"a/b/{KEY}")
    assert answer["ContentType"] == "image/webp"
    answer["Body"].close()


@pytest.mark.parametrize(
    "url",
    ["", "/srv/media", "file://", "file:///", "file://host/x", "ftp://x/y", "s3://", "s3:///x"],
)
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="file:///folder or s3://bucket/prefix"):
        store_from_url(url)


# Files


def test_files_are_for_the_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    root, key = tmp_path / "media", new_key()
    before = os.umask(0)
    try:
        FileStore(root).begin()
        FileStore(root).put(key, b"x")
    finally:
        os.umask(before)

    file = root / key[:2] / key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (root, file.parent)} == {0o700}


def test_a_store_that_cannot_be_used_is_reported_without_its_path(tmp_path: Path) -> None:
    blocked = tmp_path / "media"
    blocked.write_text("not a folder")
    store = FileStore(blocked)

    for use in (
        store.check,
        lambda: store.put(KEY, b"x"),
        lambda: store.open(KEY),
        lambda: store.delete_many([KEY]),
        lambda: list(store.listing()),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            use()
        assert str(tmp_path) not in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
    assert blocked.read_text() == "not a folder"


def test_a_folder_that_vanished_does_not_count_as_deleted_files(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "unmounted")

    with pytest.raises(StoreUnavailable):
        store.delete_many([KEY])
    with pytest.raises(StoreUnavailable):
        list(store.listing())


def test_a_full_disk_leaves_the_old_avatar_and_no_part_of_the_new(tmp_path: Path) -> None:
    store, key, fresh = FileStore(tmp_path), new_key(), new_key()
    store.put(key, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Stands in for the full disk: the kernel refuses to let a file grow.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for one in (key, fresh):
            with pytest.raises(StoreUnavailable):
                store.put(one, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert read(store, key) == b"old"
    assert traces(tmp_path) == [key]


def test_what_a_killed_put_leaves_is_listed_and_deleted_by_its_key(tmp_path: Path) -> None:
    key, bystander = new_key(), new_key()
    store = FileStore(tmp_path)
    store.put(bystander, b"stays")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_PUT, str(tmp_path), key], timeout=150, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(traces(tmp_path)) == 2
    assert store.open(key) is None

    assert {listed for listed, _ in store.listing()} == {key, bystander}
    assert store.delete_many([key]) == {}

    assert traces(tmp_path) == [bystander]


KILLED_PUT = """
import os, signal, sys
from pathlib import Path
from accountsvc.adapters.avatarstore import FileStore
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
FileStore(Path(sys.argv[1])).put(sys.argv[2], b"half done")
"""


def test_a_file_that_cannot_be_deleted_is_named_and_the_others_go(tmp_path: Path) -> None:
    stuck, fine, bystander = new_key(), new_key(), new_key()
    store = FileStore(tmp_path)
    for key in (fine, bystander):
        store.put(key, b"x")
    # A folder in its place, which unlink refuses even to root.
    (tmp_path / stuck[:2] / stuck / "inside").mkdir(parents=True)

    failed = store.delete_many([stuck, fine])

    assert set(failed) == {stuck}
    assert failed[stuck] in {"IsADirectoryError", "PermissionError"}
    assert traces(tmp_path) == [bystander]


def test_other_files_in_the_folder_are_neither_listed_nor_touched(tmp_path: Path) -> None:
    store, key = FileStore(tmp_path), new_key()
    store.put(key, b"x")
    others = [tmp_path / "README", tmp_path / key[:2] / "notes.txt", tmp_path / "lost+found" / KEY]
    others[-1].parent.mkdir()
    for other in others:
        other.write_text("not ours")

    assert [listed for listed, _ in store.listing()] == [key]
    store.delete_many([key])

    assert all(other.read_text() == "not ours" for other in others)


# S3


@pytest.fixture
def bucket(s3: S3Server) -> Bucket:
    return Bucket(s3.make_bucket(), "media", client_factory=lambda: s3.client)


@pytest.fixture
def versioned(s3: S3Server) -> Bucket:
    return Bucket(s3.make_bucket(versions="Enabled"), "media", client_factory=lambda: s3.client)


@pytest.mark.parametrize(("keys", "sizes"), [(999, [999]), (1000, [1000]), (1001, [1000, 1])])
def test_at_most_1000_keys_are_deleted_in_one_request(
    bucket: Bucket, keys: int, sizes: list[int]
) -> None:
    sent: list[int] = []

    def count(request: AWSPreparedRequest, **_: object) -> None:
        assert isinstance(request.body, bytes)
        sent.append(request.body.count(b"<Key>"))

    bucket.client.meta.events.register("before-send.s3.DeleteObjects", count)

    assert S3Store(bucket).delete_many([new_key() for _ in range(keys)]) == {}

    bucket.client.meta.events.unregister("before-send.s3.DeleteObjects", count)
    assert sent == sizes


def test_what_a_bulk_request_did_not_delete_is_deleted_alone(bucket: Bucket) -> None:
    store, keys, bystander = S3Store(bucket), [new_key() for _ in range(3)], new_key()
    for key in (*keys, bystander):
        store.put(key, b"x")
    # One in its errors, one not named at all; the third is claimed to be gone.
    partial = f"""<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
        <Deleted><Key>media/{keys[2]}</Key></Deleted>
        <Error><Key>media/{keys[0]}</Key><Code>InternalError</Code><Message>Again</Message></Error>
        </DeleteResult>""".encode()

    with on_request(bucket.client, "DeleteObjects", lambda: (200, partial)):
        assert store.delete_many(keys) == {}

    assert {key for key, _ in store.listing()} == {keys[2], bystander}


@pytest.mark.parametrize("versions", ["", "Enabled"])
def test_a_key_that_s3_refuses_to_delete_is_named_and_the_others_go(
    s3: S3Server, versions: str
) -> None:
    bucket = Bucket(s3.make_bucket(versions=versions), "media", client_factory=lambda: s3.client)
    store, stuck, fine, bystander = S3Store(bucket), new_key(), new_key(), new_key()
    for key in (stuck, fine, bystander):
        store.put(key, b"x")
    s3.client.put_bucket_policy(
        Bucket=bucket.name,
        Policy=f"""{{"Version": "2012-10-17", "Statement": [{{
            "Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject",
            "Resource": "arn:aws:s3:::{bucket.name}/media/{stuck}"}}]}}""",
    )

    failed = store.delete_many([stuck, fine])

    assert set(failed) == {stuck}
    # moto answers a single refused deletion without a body, so without S3's code.
    assert failed[stuck] in {"AccessDenied", "403"}
    assert {key for key, _ in store.listing()} == {stuck, bystander}


def test_a_version_that_may_not_be_deleted_is_named_with_the_missing_permission(
    versioned: Bucket,
) -> None:
    store, key, bystander = S3Store(versioned), new_key(), new_key()
    for one in (key, bystander):
        store.put(one, b"x")
    marker = f"""<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Deleted>
        <Key>media/{key}</Key><DeleteMarker>true</DeleteMarker>
        <DeleteMarkerVersionId>1</DeleteMarkerVersionId></Deleted></DeleteResult>""".encode()
    answers = iter([(200, marker), (200, b"<DeleteResult/>")])

    with (
        on_request(versioned.client, "DeleteObjects", lambda: next(answers)),
        on_request(versioned.client, "DeleteObject", lambda: DENIED),
    ):
        failed = store.delete_many([key])

    assert failed == {key: "AccessDenied: needs s3:DeleteObjectVersion"}
    assert read(store, bystander) == b"x"


def test_a_version_that_is_said_to_be_deleted_and_is_there_is_named(versioned: Bucket) -> None:
    store, kept, gone = S3Store(versioned), new_key(), new_key()
    for key in (kept, gone):
        store.put(key, b"x")
    first = True

    def lie() -> tuple[int, bytes] | None:
        # The first request hides both behind markers; the second is to delete their versions.
        nonlocal first
        if first:
            first = False
            return None
        found = versioned.client.list_object_versions(Bucket=versioned.name)
        said = [
            f"<Deleted><Key>{one['Key']}</Key><VersionId>{one['VersionId']}</VersionId></Deleted>"
            for one in [*found["Versions"], *found["DeleteMarkers"]]
        ]
        for one in [*found["Versions"], *found["DeleteMarkers"]]:
            if one["Key"] == f"media/{gone}":
                versioned.client.delete_object(
                    Bucket=versioned.name, Key=one["Key"], VersionId=one["VersionId"]
                )
        return 200, f"<DeleteResult>{''.join(said)}</DeleteResult>".encode()

    with on_request(versioned.client, "DeleteObjects", lie):
        failed = store.delete_many([kept, gone])

    assert failed == {kept: "VersionsLeft"}
    assert store.delete_many([kept, gone]) == {}


def test_versions_that_may_not_be_listed_are_named_with_the_missing_permission(
    versioned: Bucket,
) -> None:
    store, key = S3Store(versioned), new_key()
    store.put(key, b"x")

    with on_request(versioned.client, "ListObjectVersions", lambda: DENIED):
        failed = store.delete_many([key])
        with pytest.raises(StoreUnavailable, match="s3:ListBucketVersions and s3:DeleteObjectV"):
            store.check()

    assert failed == {key: "AccessDenied: needs s3:ListBucketVersions"}


def test_versions_remain_behind_a_marker(versioned: Bucket) -> None:
    store, key, other = S3Store(versioned), new_key(), new_key()
    for data in (b"first", b"second"):
        store.put(key, data)
    store.put(other, b"bob's")

    versioned.client.delete_object(Bucket=versioned.name, Key=f"media/{key}")

    assert store.open(key) is None
    assert store.remaining([key]) == {key: 2}


def test_nothing_is_said_of_versions_that_may_not_be_listed(versioned: Bucket) -> None:
    store, key = S3Store(versioned), new_key()
    store.put(key, b"x")

    with (
        on_request(versioned.client, "ListObjectVersions", lambda: DENIED),
        pytest.raises(StoreUnavailable),
    ):
        store.remaining([key])


def test_without_versions_nothing_but_the_object_is_asked_for(bucket: Bucket) -> None:
    store, key = S3Store(bucket), new_key()
    store.put(key, b"x")

    with on_request(bucket.client, "ListObjectVersions", lambda: DENIED):
        assert store.remaining([key, new_key()]) == {key: 1}


def test_a_draft_of_an_upload_that_was_killed_remains(tmp_path: Path) -> None:
    store, key = FileStore(tmp_path), new_key()
    store.put(key, b"x")
    (tmp_path / key[:2] / f".{key}.part").write_bytes(b"half a picture")

    assert store.remaining([key]) == {key: 2}


@pytest.mark.parametrize(
    "name", ["{}.part", ".{}.part", "{}~", ".{}.swp", "copy of {}", "{}.1", "old-{}.gz"]
)
def test_a_copy_beside_a_file_that_is_gone_remains_whatever_its_name_adds(
    name: str, tmp_path: Path
) -> None:
    store, key = FileStore(tmp_path), new_key()
    neighbour = f"{key[:2]}{new_key()[2:]}"
    store.put(neighbour, b"bob's")
    (tmp_path / key[:2] / name.format(key)).write_bytes(b"a picture")
    (tmp_path / key[:2] / name.format(key[:30])).write_bytes(b"of nobody")

    assert store.remaining([key, neighbour]) == {key: 1, neighbour: 1}


def test_what_remains_of_many_keys_takes_one_listing_of_each_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, keys = FileStore(tmp_path), [f"{n % 2:02x}{new_key()[2:]}" for n in range(20)]
    store.put(keys[0], b"x")
    listed: list[str] = []
    listdir = avatarstore.os.listdir
    monkeypatch.setattr(
        avatarstore.os, "listdir", lambda path: [listed.append(path.name), *listdir(path)][1:]
    )

    assert store.remaining(keys) == {keys[0]: 1}
    assert [name for name in listed if name != tmp_path.name] == ["00", "01"]


def test_a_folder_that_is_not_there_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        FileStore(tmp_path / "not mounted").remaining([new_key()])


def test_a_bucket_whose_versioning_may_not_be_asked_for_passes_the_check(bucket: Bucket) -> None:
    asked: list[str] = []

    def refuse() -> tuple[int, bytes]:
        asked.append("versioning")
        return DENIED

    with on_request(bucket.client, "GetBucketVersioning", refuse):
        S3Store(bucket).check()

    assert asked == ["versioning"]


def test_all_versions_go_over_several_pages_and_requests(
    versioned: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    monkeypatch.setattr(S3Store, "BULK", 4)
    store, keys, bystander = S3Store(versioned), [new_key() for _ in range(2)], new_key()
    for _ in range(7):
        for key in (*keys, bystander):
            store.put(key, b"x")

    assert store.delete_many(keys) == {}

    monkeypatch.delenv("MOTO_S3_DEFAULT_MAX_KEYS")
    answer = versioned.client.list_object_versions(Bucket=versioned.name)
    assert [entry["Key"] for entry in answer["Versions"]] == [f"media/{bystander}"] * 7
    assert "DeleteMarkers" not in answer


def test_a_passing_fault_is_retried(bucket: Bucket) -> None:
    store, key = S3Store(bucket), new_key()
    faults = [SLOW_DOWN, error(500, "InternalError")]

    with on_request(bucket.client, "PutObject", lambda: faults.pop() if faults else None):
        store.put(key, b"x")
    assert read(store, key) == b"x"
    faults = [SLOW_DOWN, SLOW_DOWN]
    with on_request(bucket.client, "DeleteObjects", lambda: faults.pop() if faults else None):
        assert store.delete_many([key]) == {}

    assert not faults
    assert store.open(key) is None


def test_a_lasting_fault_is_reported_after_four_tries(bucket: Bucket) -> None:
    store = S3Store(bucket)
    tried: list[None] = []

    def fail() -> tuple[int, bytes]:
        tried.append(None)
        return SLOW_DOWN

    with on_request(bucket.client, "DeleteObjects", fail), pytest.raises(StoreUnavailable):
        store.delete_many([new_key()])
    assert len(tried) == 4


def test_a_dead_server_is_reported_without_its_address() -> None:
    with start_moto() as dead:
        pass
    client = boto3.client(
        "s3",
        endpoint_url=dead.url,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        # The tries are another test's; here they would only take time.
        config=Config(retries={"total_max_attempts": 1}),
    )
    store = S3Store(Bucket("bucket", "media", client_factory=lambda: client))

    for use in (
        store.check,
        lambda: store.put(KEY, b"x"),
        lambda: store.open(KEY),
        lambda: store.delete_many([KEY]),
        lambda: list(store.listing()),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            use()
        assert str(dead.port) not in str(caught.value)
    client.close()


def test_other_objects_of_the_bucket_are_neither_listed_nor_touched(bucket: Bucket) -> None:
    store, key = S3Store(bucket), new_key()
    store.put(key, b"x")
    bucket.put("README", b"not ours", content_type="text/plain")
    Bucket(bucket.name, "", lambda: bucket.client).put(key, b"outside", content_type="image/webp")

    assert [listed for listed, _ in store.listing()] == [key]
    store.delete_many([key])

    left = bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]
    assert {entry["Key"] for entry in left} == {key, "media/README"}


def test_a_client_is_made_late_and_anew_after_a_fork() -> None:
    # In a process of its own: this one has threads, which a fork does not survive.
    done = subprocess.run([sys.executable, "-c", FORK], timeout=150, check=False)

    assert done.returncode == 0


FORK = """
import os, sys
from accountsvc.adapters.objectstore import Bucket
from accountsvc.bounds import IMAGE_BYTES, IMAGE_PIXELS, IMAGE_SIDE
bucket = Bucket("b", client_factory=object)
assert bucket._client is None
inherited = bucket.client
assert bucket.client is inherited
child = os.fork()
if child == 0:
    made = bucket.client
    os._exit(0 if made is not inherited and bucket.client is made else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(status if bucket.client is inherited else 2)
"""


# Helpers

SLOW_DOWN = error(503, "SlowDown")
DENIED = error(403, "AccessDenied")


def decoded(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def noise(side: int) -> Image.Image:
    return Image.frombytes("RGB", (side, side), os.urandom(side * side * 3))


def near(found: object, expected: Colour) -> bool:
    assert isinstance(found, tuple)
    return len(found) == len(expected) and all(
        abs(one - other) <= 8 for one, other in zip(found, expected, strict=True)
    )


def webp_chunks(data: bytes) -> set[bytes]:
    found, place = set(), 12
    while place < len(data):
        found.add(data[place : place + 4])
        (size,) = struct.unpack("<I", data[place + 4 : place + 8])
        place += 8 + size + size % 2
    return found


def read(store: AvatarStore, key: str) -> bytes | None:
    file = store.open(key)
    if file is None:
        return None
    with file:
        return file.read()


def traces(place: Place) -> list[str]:
    """List whatever a store holds by name: files, objects, their versions and delete markers."""
    if isinstance(place, Path):
        return sorted(path.name for path in place.rglob("*") if path.is_file())
    answer = place.client.list_object_versions(Bucket=place.name)
    entries = [*answer.get("Versions", []), *answer.get("DeleteMarkers", [])]
    return sorted(entry["Key"].removeprefix("media/") for entry in entries)


SAMPLES = {format: encoded(noise(24), format) for format in FORMATS}
