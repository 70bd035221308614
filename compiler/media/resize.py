"""How a processor resizes pictures and samples the frames of videos: arithmetic only, no pixels.

From transformers 5.24.0: `smart_resize` of models/qwen2_vl and models/glm4v, `sample_frames` and `resize` of
models/qwen2_vl/video_processing_qwen2_vl.py. Tests compare with those functions. The order of operations is theirs,
because a size next to a limit depends on the last bit.
"""

from __future__ import annotations

import math
from typing import Any

from schemas.errors import Reason, RowError

MAX_RATIO = 200
"""The largest aspect ratio that `smart_resize` accepts."""


def smart_resize(height: int, width: int, unit: int, low: int, high: int, frames: int = 1) -> tuple[int, int]:
    """(height, width) in multiples of `unit`, close to the given size, with `low` to `high` pixels.

    Pixels are counted over all `frames`. The aspect ratio is kept as well as multiples allow.
    """
    if max(height, width) / min(height, width) > MAX_RATIO:
        what = f"expected a picture at most {MAX_RATIO} times as long as it is wide, found {width}x{height} pixels"
        raise RowError(Reason.MEDIA, f"{what}; cut or scale it")
    rounded = (round(height / unit) * unit, round(width / unit) * unit)
    pixels = frames * rounded[0] * rounded[1]
    if pixels > high:
        by = math.sqrt((frames * height * width) / high)
        return max(unit, math.floor(height / by / unit) * unit), max(unit, math.floor(width / by / unit) * unit)
    if pixels < low:
        by = math.sqrt(low / (frames * height * width))
        return math.ceil(height * by / unit) * unit, math.ceil(width * by / unit) * unit
    return rounded


def enlarge(height: int, width: int, unit: int) -> tuple[int, int]:
    """(height, width) scaled up until neither side is shorter than `unit`."""
    if height >= unit and width >= unit:
        return height, width
    by = max(unit / height, unit / width)
    return int(height * by), int(width * by)


def sample(total: int, fps: float, numbers: dict[str, Any]) -> int:
    """The number of frames that the processor takes of a video with `total` frames, `fps` a second.

    `num_frames` asks for a number, `fps` for a rate, limited by `min_frames` and `max_frames`; both are rounded to
    whole temporal patches. Where rounding makes transformers ask for one frame more than the video has (an error in its
    decoders), that frame is not counted.
    """
    step = numbers["temporal_patch_size"]
    if numbers["num_frames"] is not None:
        taken = round(numbers["num_frames"] / step) * step
    else:
        most = math.floor(min(numbers["max_frames"], total) / step) * step
        wanted = min(max(total / fps * numbers["fps"], numbers["min_frames"]), most)
        taken = math.floor(wanted / step) * step
    if taken > total or taken == 0:
        what = f"the processor samples {taken} frames, the video has {total}"
        raise RowError(Reason.MEDIA, f"{what}; use a longer video, or lower num_frames or min_frames of the processor")
    return taken


def pixel_limit(frames: int, numbers: dict[str, Any]) -> int:
    """The most pixels that a frame may have: `longest_edge`, or its share of the video's budget if that is less."""
    high: int = numbers["longest_edge"]
    if not numbers["cap_pixels_per_frame"]:
        return high
    unit, step = numbers["patch_size"] * numbers["merge_size"], numbers["temporal_patch_size"]
    budget = int(numbers["max_video_tokens"] * unit * unit * 0.9)
    return max(min(high, budget * step // frames), int(numbers["shortest_edge"] * 1.05))
