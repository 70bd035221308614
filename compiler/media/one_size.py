"""Processors that make one number of tokens of every picture: the numbers of their files as a grid.

From transformers 5.24.0: `replace_image_token` of models/llava/processing_llava.py and of models/gemma3. Tests compare
with those processors.
"""

from __future__ import annotations

from typing import Any

from compiler.media.settings import IMAGE, PROCESSOR, Numbers, Processor
from schemas.errors import UsageError


def numbers_of_one_size(card: dict[str, Any], processor: Processor) -> Numbers:
    """The grid of every picture, and in `more` the tokens that are no patches."""
    defaults: dict[str, Any] = card["image"]["defaults"]
    whole = {key: value for key, value in processor.whole.items() if key in defaults and value is not None}
    file, said = processor.parts.get("image", (IMAGE, {}))
    if card["rule"] == "stated":
        if said.get("do_pan_and_scan", defaults["do_pan_and_scan"]):
            what = "it cuts pictures into several, with words between them; such pictures are not compiled"
            raise UsageError(f"{file}#/do_pan_and_scan", what, "Set it to false.")
        height = _whole(f"{PROCESSOR}#/image_seq_length", whole.get("image_seq_length", defaults["image_seq_length"]))
        width, more, patch = 1, 0, 1
    else:
        patch = _whole(f"{PROCESSOR}#/patch_size", whole.get("patch_size"))
        strategy = whole.get("vision_feature_select_strategy")
        if strategy not in ("default", "full"):
            what = f"expected default or full, found {strategy!r}"
            raise UsageError(f"{PROCESSOR}#/vision_feature_select_strategy", what, _WRITE)
        extra = whole.get("num_additional_image_tokens", defaults["num_additional_image_tokens"])
        more = _whole(f"{PROCESSOR}#/num_additional_image_tokens", extra, least=0) - (strategy == "default")
        height, width = _size(file, said)
    values = {"grid_height": height // patch, "grid_width": width // patch or 1, "merge_size": 1, "more": more}
    return Numbers(values, dict.fromkeys(values, f"{PROCESSOR} and {file}"))


def _size(file: str, said: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of every picture: what is cut out of it, else what it is resized to."""
    key = "crop_size" if said.get("do_center_crop", "crop_size" in said) else "size"
    size = said.get(key)
    if isinstance(size, dict):
        height, width = size.get("height"), size.get("width")
    else:
        height = width = size
    if not (isinstance(height, int) and isinstance(width, int)) or (key == "size" and not said.get("do_resize", True)):
        what = f"expected a height and a width that all pictures get, found {size!r}"
        raise UsageError(f"{file}#/{key}", what, "Take the file from the model's own folder.")
    return height, width


_WRITE = "Take processor_config.json from the model's newest version, or write the value of its vision tower there."


def _whole(where: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(where, f"expected a whole number from {least}, found {value!r}", _WRITE)
    return value
