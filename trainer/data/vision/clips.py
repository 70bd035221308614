"""The videos of Qwen2-VL's class: which frames the model sees, and their patches.

From transformers 5.24.0, models/qwen2_vl/video_processing_qwen2_vl.py, which needs torchvision. Here the model's image
processor cuts every frame into patches, and the patches of two frames are put together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import registry
from trainer.data.vision.eyes import Clip

FPS = 24.0
"""Frames in a second of a video that is a list of pictures, as Transformers takes them."""
_PIXELS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample")
"""Settings of the processor that say how pixels become numbers."""


@dataclass(frozen=True)
class Films:
    """How a model sees videos, by the numbers of its video processor."""

    processor: Any
    """The model's image processor."""
    numbers: dict[str, Any]
    timed: bool
    """Whether the model takes the seconds between frames."""

    @classmethod
    def of(cls, folder: Path, processor: Any, *, timed: bool) -> Films:
        """The films of the model in a folder."""
        said, card = _said(folder), registry.vision("qwen2_vl")
        numbers = dict(card["video"]["defaults"])
        numbers |= {key: said[key] for key in (*numbers, *_PIXELS) if said.get(key) is not None}
        size = said.get("size") or {}
        numbers |= {key: size[key] for key in ("shortest_edge", "longest_edge") if size.get(key)}
        numbers |= {edge: said[key] for key, edge in card["renamed"].items() if said.get(key) is not None}
        return cls(processor, numbers, timed)

    def chosen(self, total: int, fps: float) -> list[int]:
        """The numbers of the frames that are seen, of a video file with `total` of them."""
        s = self.numbers
        step = s["temporal_patch_size"]
        if not s["do_sample_frames"]:
            return list(range(total))
        if s["num_frames"] is not None:
            count = round(s["num_frames"] / step) * step
        else:
            most = math.floor(min(s["max_frames"], total) / step) * step
            count = math.floor(min(max(total / fps * s["fps"], s["min_frames"]), most) / step) * step
        found: list[int] = torch.arange(0, total, total / count).int().tolist()
        return [number for number in found if number < total]

    def inputs(self, clips: Sequence[Clip]) -> dict[str, torch.Tensor]:
        """What the model takes of videos."""
        step = self.numbers["temporal_patch_size"]
        patches, grids = zip(*(self._patches(clip.frames) for clip in clips), strict=True)
        made = {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids)}
        if self.timed:
            made["second_per_grid_ts"] = torch.tensor([step / (clip.fps or FPS) for clip in clips])
        return made

    def _patches(self, frames: list[Any]) -> tuple[torch.Tensor, list[int]]:
        """The patches of a video, float32[patches, values], and its grid in time, height and width."""
        s = self.numbers
        step, patch, merge = s["temporal_patch_size"], s["patch_size"], s["merge_size"]
        edges = {"shortest_edge": s["shortest_edge"], "longest_edge": self._most_pixels(len(frames))}
        made = self.processor(
            images=frames, size=edges, do_resize=s["do_resize"], patch_size=patch, merge_size=merge,
            temporal_patch_size=1, **{key: s[key] for key in _PIXELS if key in s}, return_tensors="np",
        )  # fmt: skip
        _, height, width = made["image_grid_thw"][0].tolist()
        cut = made["pixel_values"].reshape(len(frames), height * width, -1, patch * patch)
        cut = np.concatenate([cut, *[cut[-1:]] * (-len(frames) % step)])
        times = len(cut) // step
        cut = cut.reshape(times, step, height * width, -1, patch * patch).transpose(0, 2, 3, 1, 4)
        return torch.from_numpy(cut.reshape(times * height * width, -1)), [times, height, width]

    def _most_pixels(self, frames: int) -> int:
        """The most pixels of a frame: the longest edge, or its share of the pixels of a whole video."""
        s = self.numbers
        most: int = s["longest_edge"]
        if not s["cap_pixels_per_frame"]:
            return most
        whole = int(s["max_video_tokens"] * (s["patch_size"] * s["merge_size"]) ** 2 * 0.9)
        return max(min(most, whole * s["temporal_patch_size"] // frames), int(s["shortest_edge"] * 1.05))


def _said(folder: Path) -> dict[str, Any]:
    """What the processor's files say of videos: the part of the whole, else the file of videos, else that of images."""
    files = {name: folder / name for name in registry.PROCESSOR_FILES if (folder / name).is_file()}
    read = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}
    whole, image, video = (read.get(name) for name in registry.PROCESSOR_FILES)
    found: dict[str, Any] = (whole or {}).get("video_processor") or video or image or {}
    return found
