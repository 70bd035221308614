"""The numbers of a model's image and video processor: from its own files, else the defaults of the library.

Files take precedence as in transformers 5: the nested part of `processor_config.json`, then the file of that kind,
then (videos) the image processor's file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from registry import PROCESSOR_FILES
from schemas.errors import InputError, UsageError

PROCESSOR, IMAGE, VIDEO = PROCESSOR_FILES

_FLAGS = frozenset({"do_resize", "do_sample_frames", "cap_pixels_per_frame"})
_EDGES = ("shortest_edge", "longest_edge")
"""Limits on the number of pixels, despite their names."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of one kind of media, and the source of each."""

    values: dict[str, Any]
    sources: dict[str, str]


@dataclass(frozen=True, slots=True)
class Processor:
    """What a model's folder says about its processor. `types` are class names, by the key that gives them."""

    types: dict[str, str] = field(default_factory=dict)
    parts: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    """By kind ("image", "video"): the file and what it says."""
    whole: dict[str, Any] = field(default_factory=dict)
    """What processor_config.json says."""


def read_processor(files: dict[str, bytes]) -> Processor:
    """What the processor files among `files` (of a model's folder, by name) say; empty where there are none."""
    whole, parts = _object(files, PROCESSOR), {}
    for kind, names in (("image", (IMAGE,)), ("video", (VIDEO, IMAGE))):
        nested = whole.get(f"{kind}_processor")
        if isinstance(nested, dict):
            parts[kind] = (f"{PROCESSOR}#/{kind}_processor", nested)
        elif name := next((name for name in names if name in files), None):
            parts[kind] = (name, _object(files, name))
    image, video = (parts[kind][1] if kind in parts else {} for kind in ("image", "video"))
    found = {
        "processor_class": whole.get("processor_class") or image.get("processor_class"),
        "image_processor_type": image.get("image_processor_type"),
        "video_processor_type": video.get("video_processor_type"),
    }
    return Processor({key: value for key, value in found.items() if isinstance(value, str)}, parts, whole)


def read_numbers(
    part: tuple[str, dict[str, Any]], defaults: dict[str, Any], renamed: dict[str, str], origin: str
) -> Numbers:
    """Every number in `defaults`, with the processor's own value where it has one.

    `size` replaces both edges; a key of `renamed` then overrides the edge it names. `origin` is the source of the
    defaults.
    """
    file, said = part
    given = {key: said[key] for key in defaults if said.get(key) is not None and key not in _EDGES}
    size = said.get("size")
    if size is not None:
        if not isinstance(size, dict):
            raise UsageError(f"{file}#/size", f"expected an object, found {size!r}", _BOTH)
        given |= dict.fromkeys(_EDGES) | {edge: size.get(edge) for edge in _EDGES}
    given |= {edge: said[key] for key, edge in renamed.items() if said.get(key) is not None}
    if missing := [edge for edge in _EDGES if given.get(edge, 0) is None]:
        raise UsageError(
            f"{file}#/size", f"expected {' and '.join(_EDGES)}, found no {' and no '.join(missing)}", _BOTH
        )
    for key, value in given.items():
        _check(file, key, value)
    return Numbers(defaults | given, {key: file if key in given else origin for key in defaults})


_BOTH = "The processor needs both edges (limits on the number of pixels)."


def _check(file: str, key: str, value: Any) -> None:
    if key in _FLAGS:
        right, expected = isinstance(value, bool), "true or false"
    elif key == "fps":
        right, expected = isinstance(value, int | float) and not isinstance(value, bool) and value > 0, "a number > 0"
    else:
        right, expected = isinstance(value, int) and not isinstance(value, bool) and value > 0, "a whole number > 0"
    if not right:
        raise UsageError(f"{file}#/{key}", f"expected {expected}, found {value!r}")


def _object(files: dict[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = orjson.loads(files.get(name, b"{}"))
    except orjson.JSONDecodeError as error:
        raise InputError(name, f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(name, "expected a JSON object")
    return value
