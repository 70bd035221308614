"""Boxes that replies name, and the image that each is on.

A reply's box is on the last image before the reply. Boxes elsewhere are not taken: those in a history of steps are on
earlier screens, which are not in the row. Three ways of writing are known, all in thousandths of the image:

    [[31,450,106,570]]                                  CogAgent
    <|box_start|>(31,450),(106,570)<|box_end|>, <box>   Qwen-VL, Qwen2-VL
    "bbox_2d": [31, 450, 106, 570]                      Qwen3-VL alone: Qwen2.5-VL writes pixels in this way
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from compiler.inspect.tokens import Token

_NUMBER = r"\s*(\d{1,4})\s*"
_FOUR = ",".join([_NUMBER] * 4)
_PAIRS = rf"\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)"
_WRITTEN = [rf"\[\[{_FOUR}\]\]", rf"<\|box_start\|>\s*{_PAIRS}\s*<\|box_end\|>", rf"<box>\s*{_PAIRS}\s*</box>"]
_IN_JSON = rf'"bbox_2d"\s*:\s*\[{_FOUR}\]'
MOST = 50
"""Boxes on one image."""


@dataclass(frozen=True)
class Box:
    """A box in thousandths of its image. `style` is "box", or "box rejected" where the rejected reply names it."""

    x: int
    y: int
    width: int
    height: int
    style: str
    said: str


def boxes_of(
    tokens: Sequence[Token], images: Sequence[dict[str, Any]], media: str, style: str = "box"
) -> dict[int, list[Box]]:
    """The boxes that the replies of a sequence name, by the positions of the images; `media` names the model family."""
    places = sorted(image["position"] for image in images)
    written = "|".join([*_WRITTEN, *([_IN_JSON] if media == "qwen3_vl" else [])])
    found: dict[int, list[Box]] = {}
    start = 0
    for role, group in groupby(tokens, key=lambda token: token.role):
        inside = list(group)
        before = [place for place in places if place < start]
        start += len(inside)
        if role != "assistant" or not before:
            continue
        for match in re.finditer(written, "".join(token.text for token in inside)):
            left, top, right, bottom = (int(number) for number in match.groups() if number is not None)
            on = found.setdefault(before[-1], [])
            if left < right <= 1000 and top < bottom <= 1000 and len(on) < MOST:
                on.append(Box(left, top, right - left, bottom - top, style, match[0]))
    return found
