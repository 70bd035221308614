"""Small versions of images that can be found: in the set, or where the set was compiled from.

A file is taken only if it has the digest that the set names, so no other file of this machine can be shown.
"""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from pathlib import Path

from compiler.inspect.tokens import ShownRow
from schemas.arrow import is_embedded
from schemas.disk import is_inside, read_regular
from schemas.reader import CompiledSet

SIDE, MOST, LARGEST, PIXELS = 320, 60, 20_000_000, 50_000_000
"""The longer side, the most images of a report, and the bytes and pixels of a file that is tried."""


class Thumbs:
    """Thumbnails of the images of rows, as data: URIs, at most MOST; `side` is the longer one of each."""

    def __init__(self, opened: CompiledSet, side: int = SIDE) -> None:
        self._opened, self._left, self._side = opened, MOST, side

    def of(self, row: ShownRow) -> dict[int, str]:
        """The thumbnails of a row's images by their positions, as far as the files are there."""
        found = {}
        for image in row.images:
            if self._left and (data := self._small(self._path(row.dataset, image["uri"], image["sha256"]), image)):
                found[image["position"]] = data
                self._left -= 1
        return found

    def _path(self, dataset: str, uri: str, sha256: str) -> Path | None:
        files, folder = self._opened.files, self._opened.folder
        if not isinstance(files, Path) or not isinstance(folder, Path) or not is_inside(uri):
            return None
        if is_embedded(uri, sha256):
            return files / uri
        recorded = self._opened.manifest.get("run", {}).get("media", {})
        return folder / recorded[dataset] / uri if dataset in recorded else None

    def _small(self, path: Path | None, image: dict[str, str]) -> str:
        """The image made small; "" if it is not there, another one, too large, or none that can be read."""
        from PIL import Image, ImageOps  # only sets with images need it

        try:
            if path is None or path.stat().st_size > LARGEST:
                return ""
            data = read_regular(path)
            if hashlib.sha256(data).hexdigest() != image["sha256"]:
                return ""
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data)) as picture:
                    if picture.width * picture.height > PIXELS:
                        return ""
                    picture.draft("RGB", (self._side, self._side))
                    picture.thumbnail((self._side, self._side))
                    small = io.BytesIO()
                    ImageOps.exif_transpose(picture).convert("RGB").save(small, "JPEG", quality=70)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return ""  # the placeholder says what was there
        return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode()
