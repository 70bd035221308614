"""The facts of a video file, read with PyAV (FFmpeg) under limits."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from compiler.conversation import MediaFacts
from compiler.media.image import too_large
from schemas import install
from schemas.errors import Reason, RowError, UsageError

MAX_BYTES = 8 * 2**30
"""The largest video file that is read."""
FORMATS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif")
"""The formats that are read, by FFmpeg's names (mov is also mp4 and 3gp, matroska also webm, asf also wmv). Playlists
are excluded: FFmpeg would open the files and addresses that they name."""


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        what = "reading a video needs PyAV, which is not installed"
        hint = f"{install.extra('video')}, or give the video as a list of frame images."
        raise UsageError("videos", what, hint) from error
    return av


@lru_cache(maxsize=4096)
def read_video(path: Path, size: int, _mtime_ns: int) -> MediaFacts:
    """The facts of a video file; remembered for its path, size and time of change."""
    av = _pyav()
    if not 0 < size <= MAX_BYTES:
        raise RowError(Reason.MEDIA, f"{path.name}: expected 1 to {MAX_BYTES:,} bytes, found {size:,}")
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with av.open(str(path), options=options, metadata_errors="ignore") as container:
            return _facts(path, container, digest)
    except (av.FFmpegError, OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        known = ", ".join(FORMATS)
        raise RowError(Reason.MEDIA, f"{path.name}: expected a video ({known} by its content): {why}") from error


def _facts(path: Path, container: Any, digest: str) -> MediaFacts:
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        found = "no picture in it" if stream is None else "pictures that this FFmpeg cannot decode"
        raise RowError(Reason.MEDIA, f"{path.name}: expected a video, found {found}")
    if reject := too_large(path.name, stream.width, stream.height):
        raise reject
    stream.thread_type = "NONE"  # a frame is returned as soon as it is complete
    first, frames = None, 0
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise RowError(Reason.MEDIA, f"{path.name}: the file is cut off after {frames} of its frames")
        frames += packet.size > 0 and not packet.is_discard
        if first is None:
            first = next(iter(packet.decode()), None)
    if first is None:
        raise RowError(Reason.MEDIA, f"{path.name}: expected a video, found no frame in it")
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise RowError(Reason.MEDIA, f"{path.name}: its frame rate is unknown; give it as a list of frames")
    width, height = first.width, first.height
    if first.rotation % 180 == 90:
        width, height = height, width
    return MediaFacts(digest, width, height, frames, float(rate))
