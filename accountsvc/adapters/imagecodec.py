"""Decode an image and encode it anew, with Pillow. Only the image worker's process imports this."""

from __future__ import annotations

import copy  # noqa: F401
import warnings
from io import BytesIO

# What Pillow may need is imported here, also ``copy``, the plugin of EXIF and that of photos of two
# images: it would import them while it decodes, when the process can open no file any more.
from PIL import (
    GifImagePlugin,  # noqa: F401
    Image,
    ImageCms,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from ..bounds import IMAGE_PIXELS, IMAGE_SIDE
from .imagescan import TooManyParts, check_parts
from .imageworker import Refusal

SIDE = 512

_DRAWN_COLOURS = 256
_DRAWN_SHADES = 64
_ICON_SIDE = 64

# How Pillow names the depths of grey that it stretches to 8 bits.
_GREY_BITS = {"L;2": 2, "L;4": 4}

# Pillow would import a few more by itself, when the first image is opened.
Image.preinit()

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


class Refused(Exception):
    """The image is not taken, for the reason ``why``."""

    def __init__(self, why: Refusal) -> None:
        super().__init__(why.name)
        self.why = why


def reencode(image: bytes) -> bytes:
    """Return *image* as a WebP, as :func:`accountsvc.adapters.images.normalise` promises.

    Its parts are counted before any is parsed, its pixels before they are decoded. Sets the
    process's filters of warnings. Raises Refused, or whatever else Pillow's parsers run into.
    """
    # Pillow only warns of an image between one and two times its own limit, and would decode it.
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        check_parts(image)
        with Image.open(BytesIO(image), formats=_FORMATS) as opened:
            _check_pixels(opened)
            return _reencode(opened)
    except TooManyParts as exc:
        raise Refused(Refusal.TOO_MANY_PARTS) from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise Refused(Refusal.TOO_MANY_PIXELS) from exc
    except UnidentifiedImageError as exc:
        raise Refused(Refusal.NO_IMAGE) from exc


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > IMAGE_PIXELS or max(image.size) > IMAGE_SIDE:
        raise Refused(Refusal.TOO_MANY_PIXELS)


def _reencode(image: Image.Image) -> bytes:
    _scale_transparent_colour(image)
    # A draft decodes a big JPEG at a fraction of its size, three times as fast. At just the size
    # wanted instead of twice that, the picture would be visibly coarser.
    image.draft(None, (2 * SIDE, 2 * SIDE))
    image.load()
    small = _eight_bit(image)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small = _in_srgb(_upright(small))
    small.info.clear()
    encoded = BytesIO()
    small.save(encoded, "WEBP", quality=85, lossless=_is_drawn(small))
    return encoded.getvalue()


def _is_drawn(image: Image.Image) -> bool:
    """Say whether *image* is pixel art or a drawing, whose edges a lossy encoder would smear.

    It is if it has at most 256 colours, or is no larger than an icon. Every photo in black and
    white has so few: what is all grey is drawn if it has at most 64 shades.
    """
    if max(image.size) <= _ICON_SIDE:
        return True
    colours = image.getcolors(_DRAWN_COLOURS)
    if colours is None or len(colours) <= _DRAWN_SHADES:
        return colours is not None
    return any(len(set(colour[:3])) > 1 for _, colour in colours if isinstance(colour, tuple))


def _scale_transparent_colour(image: Image.Image) -> None:
    """Make the transparent colour of a PNG comparable with the samples that Pillow decodes.

    A tRNS chunk names it in the depth of the file (PNG, third edition, 11.3.2.1), and Pillow
    compares it with samples of 8 bits: in any other depth nothing would be transparent. Grey of
    16 bits keeps its depth. Call it before the image is loaded: then its depth is forgotten.
    """
    colour = image.info.get("transparency")
    tiles = image.tile if isinstance(image, PngImagePlugin.PngImageFile) else []
    depth = tiles[0].args if tiles else None
    if depth in _GREY_BITS and isinstance(colour, int):
        most = 2 ** _GREY_BITS[depth] - 1
        image.info["transparency"] = (colour & most) * 255 // most
    elif depth == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(sample >> 8 for sample in colour)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return *image* with 8 bits a channel, in a mode that can be resized smoothly."""
    if image.mode.startswith("I"):
        image = _grey_of_16_bits(image)
    # CMYK stays until its colour profile is applied: converted before, its colours would be off.
    opaque = "CMYK" if image.mode == "CMYK" else "RGB"
    wanted = "RGBA" if image.has_transparency_data else opaque
    # ``convert`` to the mode that it has would copy the image, 100 MB for nothing.
    return image if image.mode == wanted else image.convert(wanted)


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    # ``convert`` alone would make all above 255 white.
    grey = image.point(lambda value: value / 256).convert("L")
    clear = grey.info.pop("transparency", None)
    if isinstance(clear, int):
        opaque = [255] * 65_536
        opaque[clear & 0xFFFF] = 0
        grey.putalpha(image.convert("I").point(opaque, "L"))
    return grey


def _upright(image: Image.Image) -> Image.Image:
    # Broken EXIF of a camera loses the photo's orientation only; raised, it would refuse the photo.
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _in_srgb(image: Image.Image) -> Image.Image:
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    profile = image.info.get("icc_profile")
    if profile:
        # Phones save in Display P3. The profile is dropped with all metadata, and without it the
        # colours would look dull unless they are converted.
        try:
            converted = ImageCms.profileToProfile(
                image, BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode=mode
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
        else:
            if converted is not None:
                return converted
    return image.convert(mode)
