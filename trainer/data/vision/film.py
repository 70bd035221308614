"""Video files, read with PyAV (FFmpeg)."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from typing import Any

from schemas import install
from schemas.errors import InputError, UsageError
from trainer.data.vision.eyes import Clip


def read_film(data: bytes, where: str, chosen: Callable[[int, float], list[int]]) -> Clip:
    """The frames of a file that `chosen` names by (frames in it, frames in a second), upright; others are not kept."""
    try:
        av: Any = importlib.import_module("av")
    except ImportError as error:
        what = "reading a video needs PyAV, which is not installed"
        hint = f"{install.extra('video')}, or give the video as a list of frame images."
        raise UsageError("videos", what, hint) from error
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            total = sum(packet.size > 0 and not packet.is_discard for packet in container.demux(stream))
            rate = float(stream.average_rate or stream.guessed_rate)
        numbers = chosen(total, rate)
        with av.open(io.BytesIO(data)) as container:
            wanted, frames = set(numbers), dict[int, Any]()
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    picture = frame.to_image()
                    frames[number] = picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
        return Clip([frames[number] for number in numbers], rate * len(numbers) / total)
    except (av.FFmpegError, OSError, ValueError, IndexError, KeyError, ZeroDivisionError) as error:
        raise InputError(where, f"the video cannot be read: {error}", "Give a video file that opens.") from error
