"""Images that rows hold themselves: their bytes, and the file that they become."""

from __future__ import annotations

import base64
import re

from compiler.conversation import MediaFacts
from compiler.media.image import check_size, look_at
from schemas.arrow import embedded_uri
from schemas.errors import Reason, RowError

_DATA_URL = re.compile(r"data:[^,]{0,200}?;base64,", re.IGNORECASE)
_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
_NAME = "the embedded image"
_LONG = 1024
"""The characters of base64 from which a row is shown without them."""
_BASE64 = re.compile(rf'(;base64,|data\\*"\s*:\s*\\*")([A-Za-z0-9+/=\\_-]{{{_LONG},}})')
"""Of a data URL, or under the key `data` as in Anthropic's blocks; both may stand in JSON that is text in the row."""


def is_data_url(uri: str) -> bool:
    """Whether a reference is the data themselves."""
    return uri[:5].lower() == "data:"


def data_of(uri: str) -> bytes:
    """The bytes of a data URL; a RowError where they are not base64. The media type that it names is not trusted."""
    head = _DATA_URL.match(uri)
    if head is None:
        what = f"expected a data URL in base64, data:image/png;base64,..., found {uri[:40]!r}"
        raise RowError(Reason.MEDIA, what)
    text = "".join(uri[head.end() :].split())  # base64 is often written in lines
    check_size(_NAME, len(text) * 3 // 4)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error, or a character that is not ASCII
        raise RowError(Reason.MEDIA, f"expected a data URL in base64, found text that is not: {error}") from error


def facts_of(data: bytes, sha256: str) -> tuple[MediaFacts, str]:
    """The facts of an image, as of a file, and the uri of the file that it becomes: its bytes decide the suffix."""
    check_size(_NAME, len(data))
    format_, width, height = look_at(_NAME, data)
    return MediaFacts(sha256, width, height), embedded_uri(sha256, _SUFFIXES[format_])


def without_base64(raw: str) -> str:
    """A row as text, with a number in place of the characters of its images."""
    return _BASE64.sub(lambda found: f"{found[1]}({len(found[2]):,} characters of base64 left out)", raw)
