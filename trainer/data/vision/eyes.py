"""What all families have in common: placeholders in the ids, and tensors for the pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from schemas.errors import UsageError


@dataclass(frozen=True)
class Clip:
    """A video: its frames as pictures, in order, and how many there are in a second (None = a list of pictures)."""

    frames: list[Any]
    fps: float | None = None


@dataclass(frozen=True)
class Seen:
    """What a model takes of pictures or videos, and the number of tokens of each."""

    inputs: dict[str, torch.Tensor]
    tokens: list[int]


@dataclass(frozen=True)
class Eyes(ABC):
    """The eyes of a model. Pictures are upright RGB images of Pillow."""

    card: str
    """The vision card by which sets are compiled for it."""
    processor: Any
    """The model's image processor."""
    token: int
    """The id of a picture's placeholder."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the model sees: "image", "video"."""
        return ("image",)

    @abstractmethod
    def pictures(self, opened: Sequence[Any]) -> Seen:
        """What the model takes of pictures, at least one."""

    def clips(self, opened: Sequence[Clip]) -> Seen:  # noqa: ARG002
        """What the model takes of videos, at least one; UsageError where it sees none."""
        what = f"models of the class {self.card} are not trained on videos"
        raise UsageError("videos", what, "Leave rows with videos out, or use a model of the class of Qwen2-VL.")

    def chosen(self, total: int, fps: float) -> list[int]:  # noqa: ARG002
        """The numbers of the frames that are seen, of a video file with `total` of them, `fps` in a second."""
        return list(range(total))

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """What the model takes beside ids [B, T]."""
        return {}

    def blank(self, kind: str) -> tuple[dict[str, torch.Tensor], list[int]]:
        """What a batch gets that has no picture (or video): inputs, and the ids that stand for them.

        In every pass every process must run the tower, or the others would wait for it.
        """
        seen = self.pictures([_black(56)]) if kind == "image" else self.clips([Clip([_black(56)] * 2)])
        return seen.inputs, [self.pad(kind)] * seen.tokens[0]

    def pad(self, kind: str) -> int:
        """The id of the placeholder of pictures or videos."""
        assert kind == "image"
        return self.token

    def places(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Where placeholders of pictures are, bool[T]."""
        return np.asarray(ids == self.token)

    def spread(self, ids: npt.NDArray[Any], tokens: Sequence[int]) -> npt.NDArray[np.int64]:
        """How often each token stands in what the model gets, where `ids` have one placeholder for each picture.

        ValueError where `tokens` are of another number of pictures.
        """
        times = np.ones(len(ids), np.int64)
        times[self.places(ids)] = tokens
        return times

    def written(self, text: str) -> str:
        """What a chat template wrote, as the model's processor changes it before it is encoded."""
        return text


def _black(side: int) -> Any:
    from PIL import Image

    return Image.new("RGB", (side, side))
