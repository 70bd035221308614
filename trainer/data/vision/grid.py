"""A grid of patches of any size: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4.1V."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.data.vision.clips import Films
from trainer.data.vision.eyes import Clip, Eyes, Seen


@dataclass(frozen=True)
class GridEyes(Eyes):
    """Pictures are pixel_values float32[patches, values], and image_grid_thw int64[pictures, 3] says of which size."""

    films: Films | None = None
    """How videos are seen; None where they are not."""
    film_token: int = -1
    """The id of a video's placeholder."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the model sees: "image", "video"."""
        return ("image",) if self.films is None else ("image", "video")

    def pictures(self, opened: Sequence[Any]) -> Seen:
        """pixel_values and image_grid_thw."""
        made = self.processor(images=list(opened), return_tensors="pt")
        inputs = {name: made[name] for name in ("pixel_values", "image_grid_thw")}
        return Seen(inputs, _tokens(made["image_grid_thw"], self.processor.merge_size))

    def clips(self, opened: Sequence[Clip]) -> Seen:
        """pixel_values_videos and video_grid_thw, and for Qwen2.5-VL second_per_grid_ts float32[videos]."""
        if self.films is None:
            return super().clips(opened)
        inputs = self.films.inputs(opened)
        return Seen(inputs, _tokens(inputs["video_grid_thw"], self.films.numbers["merge_size"]))

    def chosen(self, total: int, fps: float) -> list[int]:
        """The numbers of the frames that are seen."""
        return super().chosen(total, fps) if self.films is None else self.films.chosen(total, fps)

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """mm_token_type_ids int64[B, T]: 1 for tokens of pictures, 2 for those of videos, else 0."""
        return {"mm_token_type_ids": (ids == self.token).long() + 2 * (ids == self.film_token).long()}

    def pad(self, kind: str) -> int:
        """The id of the placeholder of pictures or videos."""
        return self.token if kind == "image" else self.film_token


def _tokens(grids: torch.Tensor, merge: int) -> list[int]:
    found: list[int] = (grids.prod(-1) // merge**2).tolist()
    return found
