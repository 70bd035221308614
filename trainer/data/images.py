"""Pictures and videos of rows, loaded when their batch is made and checked: shards do not store them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.arrow import is_embedded
from schemas.errors import InputError, IntegrityError, UsageError
from schemas.manifest import embedded_of, has_media
from schemas.reader import CompiledSet
from schemas.stores import AnyPath
from trainer.data.stream import Row, from_where
from trainer.data.vision.eyes import Clip, Eyes, Seen
from trainer.predict.generate import ReplyPrompt

KINDS = {"image": "images", "video": "videos"}
"""Kinds of media -> their columns."""


@dataclass(frozen=True)
class Images:
    """The eyes of a model and the folder that paths are relative to."""

    eyes: Eyes
    folder: Path | None
    own: AnyPath | None
    """The folder of the set, where it has images that rows held themselves; None = it has none."""
    opened: CompiledSet
    """The set, which knows the places of its rows."""

    def load(self, rows: Sequence[Row]) -> tuple[dict[str, torch.Tensor], list[Row]]:
        """Load the media of rows: what the model takes of them, and the rows with all placeholders.

        If no row has any of a kind that the set has, the first one gets a small one after its last token, where it
        changes nothing: every process must run the vision tower in every pass, or the others would wait for it.
        """
        inputs: dict[str, torch.Tensor] = {}
        made = [self._spread(row) for row in rows]
        for kind in self._kinds:
            found = [(one, row) for row in rows for one in row[KINDS[kind]]]
            if found:
                inputs |= self._seen(kind, found).inputs
            elif kind in self.eyes.kinds:
                more, ids = self.eyes.blank(kind)
                inputs |= more
                made[0] = _with_placeholders(made[0], ids)
        return inputs, made

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model takes beside ids [B, T]."""
        return self.eyes.types(ids)

    def see(self, prompts: Sequence[ReplyPrompt]) -> tuple[list[list[int]], list[list[int]], dict[str, torch.Tensor]]:
        """For prompts: placeholders of a blank before each, ids with all placeholders, and what the model takes.

        The blanks are to be masked, and are there for the processes whose prompts have no picture, as in `load`.
        """
        ids, before, inputs = [], [list[int]() for _ in prompts], dict[str, torch.Tensor]()
        found: dict[str, list[tuple[dict[str, Any], Mapping[str, Any]]]] = {kind: [] for kind in self._kinds}
        for prompt in prompts:
            row, said = prompt.source or {}, np.asarray(prompt.prompt_ids)
            shown = {kind: [o for o in row.get(KINDS[kind], ()) if o["position"] < len(said)] for kind in found}
            for kind, ones in shown.items():
                found[kind] += [(one, row) for one in ones]
            if not self._repeats:
                said = np.repeat(said, self.eyes.spread(said, [one["num_tokens"] for one in shown.get("image", ())]))
            ids.append(said.tolist())
        for kind, listed in found.items():
            if listed:
                inputs |= self._seen(kind, listed).inputs
            elif kind in self.eyes.kinds:
                more, blank = self.eyes.blank(kind)
                inputs |= more
                before[0] = [*before[0], *blank]
        return before, ids, inputs

    @property
    def _repeats(self) -> bool:
        """Whether the set has one placeholder for each token of a picture, or one for all of them."""
        media = self.opened.manifest["media"]
        return media is None or media["repeats_pad"]

    @property
    def _kinds(self) -> list[str]:
        return [kind for kind in KINDS if has_media(self.opened.manifest, kind)]

    def _seen(self, kind: str, found: Sequence[tuple[dict[str, Any], Mapping[str, Any]]]) -> Seen:
        if kind == "image":
            seen = self.eyes.pictures([self._open(image, self._where(image, row)) for image, row in found])
        else:
            seen = self.eyes.clips([self._clip(video, self._where(video, row)) for video, row in found])
        for (one, row), tokens in zip(found, seen.tokens, strict=True):
            if tokens != one["num_tokens"]:
                raise IntegrityError(
                    self._where(one, row),
                    f"expected {one['num_tokens']} tokens as in the set, the model's processor makes {tokens}",
                    "Compile the set with this model's folder as --tokenizer.",
                )
        return seen

    # -- placeholders --

    def _spread(self, row: Row) -> Row:
        """The row with as many placeholders as the model takes, where a set has one for each picture."""
        if self._repeats:
            return row
        longer = dict(row)
        for name in [name for name in row if name.endswith("input_ids") and row[name] is not None]:
            side, places = name.removesuffix("input_ids"), int(self.eyes.places(row[name]).sum())
            tokens = [image["num_tokens"] for image in row["images"]]
            if places != len(row["images"]):
                what = f"expected {len(row['images'])} placeholders of images, found {places}"
                raise IntegrityError(from_where(row, self.opened.places), what, "Compile the set again.")
            times = self.eyes.spread(row[name], tokens)
            for key in ("input_ids", "labels", "loss_weights"):
                if row[side + key] is not None:
                    longer[side + key] = np.repeat(row[side + key], times)
        return longer

    # -- files --

    def _open(self, image: dict[str, Any], where: str) -> Any:
        data = self._read_own(image, where)
        if data is None:
            data = self._read(image["uri"], where)
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            raise IntegrityError(where, "not the image that was compiled", "Compile the set again.")
        return upright(data, where)

    def _clip(self, video: dict[str, Any], where: str) -> Clip:
        """The frames of a video: those that the model sees of a file, or a list of pictures."""
        if video["uri"].startswith("["):
            files = [self._read(uri, where) for uri in json.loads(video["uri"])]
            digest = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in files)).hexdigest()
        else:
            data = self._read(video["uri"], where)
            digest = hashlib.sha256(data).hexdigest()
        if digest != video["sha256"]:
            raise IntegrityError(where, "not the video that was compiled", "Compile the set again.")
        if video["uri"].startswith("["):
            return Clip([upright(data, where) for data in files])
        from trainer.data.vision.film import read_film

        return read_film(data, where, self.eyes.chosen)

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

    def _read(self, uri: str, where: str) -> bytes:
        if self.folder is None:
            raise UsageError("media_dir", f"{where} is a file, and no folder of images is set", "Set media_dir.")
        path = (self.folder / uri).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise UsageError(where, f"it leads outside the media folder {self.folder}", "Use a path inside it.")
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(where, f"cannot be read in {self.folder}: {error.strerror}", "Set media_dir.") from error

    def _where(self, one: Mapping[str, Any], row: Mapping[str, Any]) -> str:
        return f"{from_where(dict(row), self.opened.places)}: {one['uri']}"


def upright(data: bytes, where: str) -> Any:
    """The picture in the bytes of a file, upright and RGB; InputError where there is none."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    except UnidentifiedImageError as error:
        raise InputError(where, "not an image", "Give an image file, whatever its name is.") from error
    except (OSError, SyntaxError, ValueError, TypeError, IndexError) as error:  # what Pillow raises for broken files
        raise InputError(where, f"the image is cut off or broken: {error}", "Give one that opens.") from error


def _with_placeholders(row: Row, ids: list[int]) -> Row:
    """The row with more tokens at its end, which are not trained."""
    longer = dict(row)
    for name in [name for name in row if name.endswith("input_ids") and row[name] is not None]:
        side = name.removesuffix("input_ids")
        for key, values in (("input_ids", ids), ("labels", [-100] * len(ids)), ("loss_weights", [0.0] * len(ids))):
            if (value := row[side + key]) is not None:
                longer[side + key] = np.append(value, np.array(values, value.dtype))
    return longer


def images_of(opened: CompiledSet, eyes: Eyes, media_dir: str | None) -> Images:
    """The media of a set as a model sees them, in a folder that `media.find_folder` found."""
    return Images(
        eyes, Path(media_dir) if media_dir else None, opened.files if embedded_of(opened.manifest) else None, opened
    )
