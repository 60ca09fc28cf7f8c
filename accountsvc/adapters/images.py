"""Check an uploaded image and encode it anew."""

from __future__ import annotations

import threading
import warnings
from io import BytesIO

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..errors import ImageTooLarge, InvalidImage

MAX_BYTES = 5 * 1024 * 1024

# Photos of the usual 24 megapixels have a few more than 24 million: a limit of exactly that would
# refuse them.
MAX_PIXELS = 25_000_000

# Pillow keeps a pointer for each row: an image of one pixel by 25 million would take ten times the
# memory and time of a square one.
MAX_SIDE = 16_384

SIDE = 512

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")

# Only one thread decodes at a time: several big images together would exhaust the memory of a small
# host.
_decoding = threading.Lock()

# Pillow only warns of an image between one and two times its own limit, and would decode it. The
# filter is set for the whole process: ``catch_warnings`` in one thread changes those of all others.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def normalise(data: bytes) -> bytes:
    """Return the image as a WebP that fits 512 by 512, upright, in sRGB, without any metadata.

    PNG, JPEG, WebP and GIF are taken, by content; of an animation the first frame. Smaller images
    keep their size. Nothing of what was uploaded is kept, so neither metadata nor anything hidden
    behind the pixels survives. The result is WebP because every browser shows it, it keeps
    transparency, and a photo takes a tenth of a PNG.

    Nothing in *data* is trusted: its size is checked before it is parsed, its pixels before they
    are decoded. The worst image within the limits takes seconds and half a gigabyte, so never call
    this in a transaction; a process decodes one image at a time.

    Raises ImageTooLarge above ``MAX_BYTES``, InvalidImage for everything else that is not such an
    image: damaged, truncated, more than ``MAX_PIXELS`` or ``MAX_SIDE``, another format.
    """
    if len(data) > MAX_BYTES:
        raise ImageTooLarge
    try:
        with _decoding, Image.open(BytesIO(data), formats=_FORMATS) as image:
            _check_pixels(image)
            return _reencode(image)
    except InvalidImage:
        raise
    except UnidentifiedImageError as exc:
        raise InvalidImage from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise _too_many_pixels() from exc
    # Catch any exception: Pillow's parsers answer hostile bytes with whatever they run into, such
    # as OSError, SyntaxError, struct.error or OverflowError, and each would be a 500.
    except Exception as exc:
        raise InvalidImage(
            "The image is damaged or incomplete. Open it, save it again and upload the new file."
        ) from exc


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise _too_many_pixels()


def _too_many_pixels() -> InvalidImage:
    return InvalidImage(
        f"The image has too many pixels: at most {MAX_PIXELS // 1_000_000} million, and "
        f"{MAX_SIDE:,} on a side. Make it smaller and upload it again."
    )


def _reencode(image: Image.Image) -> bytes:
    # A draft decodes a big JPEG at a fraction of its size, three times as fast. At just the size
    # wanted instead of twice that, the picture would be visibly coarser.
    image.draft(None, (2 * SIDE, 2 * SIDE))
    image.load()
    small = _eight_bit(image)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small = _in_srgb(_upright(small))
    small.info.clear()
    encoded = BytesIO()
    small.save(encoded, "WEBP", quality=85)
    return encoded.getvalue()


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return *image* with 8 bits a channel, in a mode that can be resized smoothly."""
    if image.mode.startswith("I"):
        # These modes have 16 or 32 bits a pixel; ``convert`` alone would make all above 255 white.
        image = image.point(lambda value: value / 256).convert("L")
        image.info.pop("transparency", None)
    # CMYK stays until its colour profile is applied: converted before, its colours would be off.
    opaque = "CMYK" if image.mode == "CMYK" else "RGB"
    wanted = "RGBA" if image.has_transparency_data else opaque
    # ``convert`` to the mode that it has would copy the image, 100 MB for nothing.
    return image if image.mode == wanted else image.convert(wanted)


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
