"""Images, loaded when their batch is made and checked against the set: shards do not store them."""

from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
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
from trainer.models.folder import ModelFolder
from trainer.predict.generate import ReplyPrompt


@dataclass(frozen=True)
class Images(ABC):
    """The model's image processor and the folder that image paths are relative to."""

    folder: Path | None
    own: AnyPath | None
    """The folder of the set, where it has images that rows held themselves; None = it has none."""
    processor: Any
    token: int
    """The id of the placeholder token: one for each embedding of the image."""
    opened: CompiledSet
    """The set, which knows the places of its rows."""

    @abstractmethod
    def load(self, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], list[Row]]:
        """Load the images of rows: what the model takes of them, and the rows with all placeholders."""

    @abstractmethod
    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model takes beside ids [B, T]."""

    def _found(self, rows: Sequence[Row]) -> list[tuple[dict[str, Any], Row]]:
        for row in rows:
            if row["videos"]:
                what = f"{self._from(row)} is a row with a video; videos are compiled but cannot be trained"
                raise UsageError("videos", what, "")
        return [(image, row) for row in rows for image in row["images"]]

    def _check(self, image: dict[str, Any], row: Row, tokens: int) -> None:
        if tokens != image["num_tokens"]:
            raise IntegrityError(
                f"{self._from(row)}: {image['uri']}",
                f"expected {image['num_tokens']} tokens as in the set, the model's processor makes {tokens}",
                "Compile the set with this model's folder as --tokenizer.",
            )

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

    def _from(self, row: Row) -> str:
        return from_where(row, self.opened.places)


@dataclass(frozen=True)
class GridImages(Images):
    """Images of models that see them as a grid of patches of any size (Qwen2-VL, GLM-4.1V)."""

    def load(self, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], list[Row]]:
        """Load the images of rows: pixel_values float32[patches, values], image_grid_thw int64[images, 3].

        If no row has an image, the first one gets a small empty image after its last token, where it changes nothing:
        every process must run the vision tower in every pass, or the others would wait for it.
        """
        found = self._found(rows)
        if not found:
            side = self.processor.patch_size * self.processor.merge_size
            made = self.processor(images=[np.zeros((2 * side, 2 * side, 3), np.uint8)], return_tensors="pt")
            tokens = int(made["image_grid_thw"].prod()) // self.processor.merge_size**2
            return _tensors(made), [self._with_placeholder(rows[0], tokens), *rows[1:]]
        made = self.processor(images=[self._open(image, row) for image, row in found], return_tensors="pt")
        for (image, row), grid in zip(found, made["image_grid_thw"], strict=True):
            tokens = int(grid.prod()) // self.processor.merge_size**2
            self._check(image, row, tokens)
        return _tensors(made), list(rows)

    def _with_placeholder(self, row: Row, tokens: int) -> Row:
        longer = dict(row)
        for key, fill in (("input_ids", self.token), ("labels", -100), ("loss_weights", 0)):
            for name, value in row.items():
                if name.endswith(key) and value is not None:  # of each side of a pair
                    longer[name] = np.append(value, np.full(tokens, fill, value.dtype))
        return longer

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """mm_token_type_ids int64[B, T]: 1 for image tokens, else 0."""
        return {"mm_token_type_ids": (ids == self.token).long()}


@dataclass(frozen=True)
class FixedImages(Images):
    """Images of models that see all of them in one size (CogAgent, GLM-4V). A set has one placeholder for each."""

    begin: int
    """The id of the token before a placeholder."""
    tokens: int
    """Embeddings of an image."""
    side: int
    """Its width and height in pixels, as the model sees it."""

    def load(self, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], list[Row]]:
        """Load the images of rows: pixel_values float32[images, 3, side, side]. Without any, the tower sees none."""
        found = self._found(rows)
        for image, row in found:
            self._check(image, row, self.tokens)
        return self.pixels([self._open(image, row) for image, row in found]), [self._expanded(row) for row in rows]

    def pixels(self, opened: list[Any]) -> dict[str, torch.Tensor]:
        """What the model takes of opened images."""
        if not opened:
            return {"pixel_values": torch.zeros(0, 3, self.side, self.side)}
        return {"pixel_values": self.processor(images=opened, return_tensors="pt")["pixel_values"]}

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Nothing: the model finds images by the tokens around them."""
        return {}

    def see(self, prompts: Sequence[ReplyPrompt]) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
        """The ids of prompts with all placeholders, and the pixels of the images in them."""
        ids, opened = [], []
        for prompt in prompts:
            counts = self._counts(np.asarray(prompt.prompt_ids))
            ids.append(np.repeat(prompt.prompt_ids, counts).tolist())
            row: Any = prompt.source
            images = row["images"][: int((counts > 1).sum())] if row is not None else []
            opened += [self._open(image, row) for image in images]
        return ids, self.pixels(opened)

    def _expanded(self, row: Row) -> Row:
        longer = dict(row)
        for name in [name for name in row if name.endswith("input_ids") and row[name] is not None]:
            counts, side = self._counts(row[name]), name.removesuffix("input_ids")
            if int((counts > 1).sum()) != len(row["images"]):
                what = f"expected {len(row['images'])} placeholders of images, found {int((counts > 1).sum())}"
                raise IntegrityError(self._from(row), what, "Compile the set again.")
            for key in ("input_ids", "labels", "loss_weights"):
                if row[side + key] is not None:
                    longer[side + key] = np.repeat(row[side + key], counts)
        return longer

    def _counts(self, ids: Any) -> Any:
        """How often each token stands in what the model gets."""
        is_placeholder = (ids == self.token) & (np.concatenate(([-1], ids[:-1])) == self.begin)
        return np.where(is_placeholder, self.tokens, 1)


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
    return GridImages(*_places(opened, media_dir), kind.from_pretrained(model), token, opened)


def fixed_images(opened: CompiledSet, source: ModelFolder, media_dir: str | None) -> FixedImages:
    """The images of a model with eyes of one size, by its configuration; pixels are made as CogAgent makes them."""
    import transformers

    config, made = source.config, transformers.CLIPImageProcessorPil
    side = config.vision_config["image_size"]
    processor = made(size={"height": side, "width": side}, do_center_crop=False)
    token, tokens = int(config.pad_token_id), source.tokens_of_a_picture
    return FixedImages(*_places(opened, media_dir), processor, token, opened, config.boi_token_id, tokens, side)


def _places(opened: CompiledSet, media_dir: str | None) -> tuple[Path | None, AnyPath | None]:
    """(the folder of images, the set's own folder if rows held images themselves)."""
    folder = Path(media_dir) if media_dir else None
    if folder and not folder.is_dir():
        raise UsageError(f"media_dir: {folder}", "no such folder", "Give the folder that image paths are relative to.")
    return folder, opened.files if embedded_of(opened.manifest) else None
