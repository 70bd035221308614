"""The size of an image as the model's processor will see it, and whether its bytes are complete."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.conversation import MediaFacts
from schemas.errors import Reason, RowError

if TYPE_CHECKING:
    from PIL import Image  # each function that needs it imports it: most rows have no images

MAX_BYTES = 128 * 2**20
"""The largest image file that is read."""
MAX_PIXELS = 2**30 // 12
"""The most pixels of an image or a frame: a quarter of a gigabyte at three bytes each, where Pillow itself warns."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The formats that are read, whatever the file is called. Pillow knows more, and some (EPS) start other programs."""

_BROKEN = (OSError, SyntaxError, ValueError, TypeError, IndexError, struct.error)
"""What Pillow raises for broken files. The first four occurred among 1.2 million of them, with Pillow 11 and 13."""
_CLIPPED = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""Modes with more than 8 bits of grey; their conversion to RGB clips every value at 255."""
_EXIF_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def too_large(name: str, width: int, height: int) -> RowError | None:
    """The error for a picture with no pixel or more than `MAX_PIXELS`; None for a usable size."""
    if 0 < width * height <= MAX_PIXELS:
        return None
    found = f"{name}: expected 1 to {MAX_PIXELS:,} pixels, found {width}x{height}"
    return RowError(Reason.MEDIA, f"{found}; scale it down")


@lru_cache(maxsize=16384)
def read_image(path: Path, size: int, _mtime_ns: int) -> MediaFacts:
    """The facts of an image file; remembered for its path, size and time of change."""
    check_size(path.name, size)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RowError(Reason.MEDIA, f"{path.name}: {error.strerror}") from error
    _, width, height = look_at(path.name, data)
    return MediaFacts(hashlib.sha256(data).hexdigest(), width, height)


def check_size(name: str, size: int) -> None:
    """Raise a RowError for an image of no bytes, or of more than are read."""
    if not 0 < size <= MAX_BYTES:
        raise RowError(Reason.MEDIA, f"{name}: expected 1 to {MAX_BYTES:,} bytes, found {size:,}")


def look_at(name: str, data: bytes) -> tuple[str, int, int]:
    """(format, width, height) of the upright image; a RowError if the bytes are not a whole image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the limits are checked here, whatever filters are set
        return _look(name, data)


def _look(name: str, data: bytes) -> tuple[str, int, int]:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (*_BROKEN, Image.DecompressionBombError) as error:
        if isinstance(error, Image.DecompressionBombError):
            raise RowError(Reason.MEDIA, f"{name}: expected at most {MAX_PIXELS:,} pixels: {error}") from error
        what = f"expected an image ({', '.join(FORMATS)} by its content), found none"
        raise RowError(Reason.MEDIA, f"{name}: {what}") from error
    if reject := too_large(name, *image.size):
        raise reject
    if image.mode in _CLIPPED:
        what = f"{name}: expected at most 8 bits of grey, found mode {image.mode}"
        raise RowError(Reason.MEDIA, f"{what}: the processor would clip it at white; convert it to 8 bits")
    try:
        return str(image.format), *_read(image, data)
    except _BROKEN as error:
        raise RowError(Reason.MEDIA, f"{name}: the {image.format} file is cut off or broken: {error}") from error


def _read(image: Image.Image, data: bytes) -> tuple[int, int]:
    """(width, height) of the upright image, read to its end as cheaply as its format allows."""
    from PIL import ExifTags, Image, JpegImagePlugin

    width, height = image.size
    if image.format == "PNG":
        image.verify()  # the file of a verified image is closed
        if any(mark in data for mark in _EXIF_MARKS):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        else:
            return width, height
    elif isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft("L", (max(1, width // 8), max(1, height // 8)))
    image.load()
    # Asked after loading: a TIFF's size is upright when it is opened, and its orientation is gone once it is loaded.
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)
