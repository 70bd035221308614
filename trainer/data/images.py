"""Images, loaded when their batch is made and checked against the set: shards do not store them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.arrow import is_embedded
from schemas.errors import InputError, IntegrityError, UsageError
from schemas.manifest import embedded_of
from schemas.reader import CompiledSet
from schemas.stores import AnyPath
from trainer.data.stream import Row, from_where


@dataclass(frozen=True)
class Images:
    """The model's image processor and the folder that image paths are relative to."""

    folder: Path | None
    own: AnyPath | None
    """The folder of the set, where it has images that rows held themselves; None = it has none."""
    processor: Any
    token: int
    """The id of the placeholder token: one for each embedding of the image."""
    opened: CompiledSet
    """The set, which knows the places of its rows."""

    def load(self, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], list[Row]]:
        """Load the images of rows: pixel_values float32[patches, values], image_grid_thw int64[images, 3].

        If no row has an image, the first one gets a small empty image after its last token, where it changes nothing:
        every process must run the vision tower in every pass, or the others would wait for it.
        """
        found = [(image, row) for row in rows for image in row["images"]]
        for row in rows:
            if row["videos"]:
                raise UsageError(
                    "videos",
                    f"{self._from(row)} is a row with a video; videos are compiled but cannot be trained",
                    "",
                )
        if not found:
            side = self.processor.patch_size * self.processor.merge_size
            made = self.processor(images=[np.zeros((2 * side, 2 * side, 3), np.uint8)], return_tensors="pt")
            tokens = int(made["image_grid_thw"].prod()) // self.processor.merge_size**2
            return _tensors(made), [self._with_placeholder(rows[0], tokens), *rows[1:]]
        made = self.processor(images=[self._open(image, row) for image, row in found], return_tensors="pt")
        for (image, row), grid in zip(found, made["image_grid_thw"], strict=True):
            tokens = int(grid.prod()) // self.processor.merge_size**2
            if tokens != image["num_tokens"]:
                raise IntegrityError(
                    f"{self._from(row)}: {image['uri']}",
                    f"expected {image['num_tokens']} tokens as in the set, the model's processor makes {tokens}",
                    "Compile the set with this model's folder as --tokenizer.",
                )
        return _tensors(made), list(rows)

    def _from(self, row: Row) -> str:
        return from_where(row, self.opened.places)

    def _open(self, image: dict[str, Any], row: Row) -> Any:
        from PIL import Image, ImageOps

        where = f"{self._from(row)}: {image['uri']}"
        data = self._read_own(image, where)
        if data is None:
            data = self._read(image, where)
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            raise IntegrityError(where, "not the image that was compiled", "Compile the set again.")
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")

    def _read_own(self, image: dict[str, Any], where: str) -> bytes | None:
        """The bytes of an image that its row held; None for one that is a file of the dataset."""
        if self.own is None or not is_embedded(image["uri"], image["sha256"]):
            return None
        try:
            return (self.own / image["uri"]).read_bytes()
        except FileNotFoundError as error:
            if self.folder is not None and (self.folder / image["uri"]).exists():
                return None  # a file of the dataset with such a name
            what = f"an image of the set is gone from {self.own}"
            raise InputError(where, what, "Copy the set again, or compile it.") from error
        except OSError as error:
            raise InputError(where, f"cannot be read in {self.own}: {error.strerror}", "") from error

    def _read(self, image: dict[str, Any], where: str) -> bytes:
        if self.folder is None:
            raise UsageError("media_dir", f"{where} is an image, and no folder of images is set", "Set media_dir.")
        path = (self.folder / image["uri"]).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise UsageError(where, f"it leads outside the media folder {self.folder}", "Use a path inside it.")
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(where, f"cannot be read in {self.folder}: {error.strerror}", "Set media_dir.") from error

    def _with_placeholder(self, row: Row, tokens: int) -> Row:
        longer = dict(row)
        for key, fill in (("input_ids", self.token), ("labels", -100), ("loss_weights", 0)):
            for name, value in row.items():
                if name.endswith(key) and value is not None:  # of each side of a pair
                    longer[name] = np.append(value, np.full(tokens, fill, value.dtype))
        return longer

    def types(self, ids: torch.Tensor) -> torch.Tensor:
        """int64[B, T] for the ids: 1 for image tokens, else 0."""
        return (ids == self.token).long()


def _tensors(made: Any) -> dict[str, torch.Tensor]:
    return {name: made[name] for name in ("pixel_values", "image_grid_thw")}


def load_images(opened: CompiledSet, model: Path, media_dir: str | None, token: int) -> Images:
    """Load a model's image processor, in the form that needs no torchvision.

    Pixels are then the same on every machine: torchvision's resize differs from Pillow's in the last bit.
    """
    import transformers

    path = model / "preprocessor_config.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["image_processor_type"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(str(path), f"has no image_processor_type: {error}", "Use the model's own folder.") from error
    kind = getattr(transformers, name.removesuffix("Fast").removesuffix("Pil") + "Pil", None)
    if kind is None:
        raise UsageError(f"{path}#/image_processor_type", f"{name} has no processor that works without torchvision", "")
    folder = Path(media_dir) if media_dir else None
    if folder and not folder.is_dir():
        raise UsageError(f"media_dir: {folder}", "no such folder", "Give the folder that image paths are relative to.")
    own = opened.files if embedded_of(opened.manifest) else None
    return Images(folder, own, kind.from_pretrained(model), token, opened)
