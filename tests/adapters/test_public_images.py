"""Files that other programs test their decoders with are taken, and look as they should."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from accountsvc.adapters.images import normalise

FOLDER = Path(__file__).parent / "public"
FILES = sorted(path for path in FOLDER.glob("*/*"))

# Pillow alone shows nothing of these as transparent: their transparent colour is not of 8 bits.
DEEP = {"i_trns", "ftbbn0g02", "ftbbn0g04", "ftbbn2c16", "ftbwn0g16"}


def as_pillow_shows(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        shown = image.point(lambda value: value / 256).convert("L") if "I" in image.mode else image
        return ImageOps.exif_transpose(shown).convert("RGBA")


def difference(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures, of 255, in the channel in which they differ most."""
    return max(ImageStat.Stat(ImageChops.difference(one, other)).mean)


def test_there_are_sixty_kinds() -> None:
    assert len(FILES) == 60
    assert sum(path.stat().st_size for path in FILES) < 400_000


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_public_test_file_is_taken_and_looks_as_pillow_shows_it(path: Path) -> None:
    expected = as_pillow_shows(path)

    with Image.open(BytesIO(normalise(path.read_bytes()))) as stored:
        found = stored.convert("RGBA")

    assert found.size == expected.size
    if path.stem in DEEP:
        assert found.getchannel("A").getextrema() == (0, 255)
        expected.putalpha(found.getchannel("A"))
    # Colours of what nobody sees may differ.
    backgrounds = (Image.new("RGBA", found.size, colour) for colour in ("black", "white"))
    for background in backgrounds:
        seen, wanted = (Image.alpha_composite(background, one) for one in (found, expected))
        assert difference(seen.convert("RGB"), wanted.convert("RGB")) < 6
    assert difference(found.getchannel("A"), expected.getchannel("A")) < 2
