"""A vision card with the numbers of a model's processor: facts of a file -> tokens and their layout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import orjson

import registry
from compiler.conversation import MediaFacts
from compiler.media.one_size import numbers_of_one_size
from compiler.media.paths import located
from compiler.media.resize import enlarge, pixel_limit, sample, smart_resize
from compiler.media.settings import IMAGE, Numbers, Processor, read_numbers, read_processor
from registry import PROCESSOR_FILES
from schemas.disk import digest_of
from schemas.errors import Reason, RowError, UsageError

Grid = tuple[int, int, int]
"""Patches of a picture or video in time, height and width: `grid_thw` in transformers."""


@dataclass(frozen=True, slots=True)
class Vision:
    """How a model lays out pictures and videos and counts their tokens."""

    card: dict[str, Any]
    digest: str
    """sha256 over the card and the processor's files; it is part of the name of an object."""
    controls: dict[str, dict[str, int]]
    """By kind: the ids of the opening token, the placeholder and the closing token, in order; some have no marks."""
    numbers: dict[str, Numbers]
    boxes: dict[str, Any]
    """How the model writes boxes, from the card; empty where that is not known."""

    @property
    def name(self) -> str:
        """The name of the card."""
        return str(self.card["name"])

    @property
    def repeats_pad(self) -> bool:
        """Whether the ids hold one placeholder for every token, or one for all."""
        return bool(self.card["repeats_pad"])

    def image_tokens(self, facts: MediaFacts, pointer: str = "") -> int:
        """The number of the model's tokens for a picture; a RowError where its processor would refuse it."""
        with located(pointer):
            return self._tokens("image", self.grid("image", facts))

    def video_tokens(self, facts: MediaFacts, pointer: str = "") -> int:
        """The number of the model's tokens for a video; a RowError where it cannot be laid out."""
        with located(pointer):
            return self._tokens("video", self.grid("video", facts))

    def frames(self, facts: MediaFacts) -> int:
        """The number of frames of a video that the model sees; a list of frames (no fps) is used in full."""
        numbers = self._numbers("video")
        if facts.fps is None or not numbers["do_sample_frames"]:
            return facts.num_frames
        return sample(facts.num_frames, facts.fps, numbers)

    def grid(self, kind: str, facts: MediaFacts) -> Grid:
        """The patches before merging, as the model's processor cuts them."""
        numbers = self._numbers(kind)
        if self.card["rule"] in _ONE_SIZE:
            return 1, numbers["grid_height"], numbers["grid_width"]
        patch, merge, step = numbers["patch_size"], numbers["merge_size"], numbers["temporal_patch_size"]
        frames = self.frames(facts) if kind == "video" else 1
        height, width, unit = facts.height, facts.width, patch * merge
        if not numbers["do_resize"]:
            if height % unit or width % unit:
                what = f"expected sides that are multiples of {unit} (do_resize is false), found {width}x{height}"
                raise RowError(Reason.MEDIA, what)
        elif self.card["rule"] == "smart_resize_frames":
            height, width = enlarge(height, width, unit)
            edges = numbers["shortest_edge"], numbers["longest_edge"]
            height, width = smart_resize(height, width, unit, *edges, frames=step)
        else:
            high = pixel_limit(frames, numbers) if kind == "video" else numbers["longest_edge"]
            height, width = smart_resize(height, width, unit, numbers["shortest_edge"], high)
        return math.ceil(frames / step), height // patch, width // patch

    def resized(self, facts: MediaFacts) -> tuple[int, int]:
        """The width and height of a picture as the model sees it."""
        _, height, width = self.grid("image", facts)
        patch: int = self._numbers("image")["patch_size"]
        return width * patch, height * patch

    def layout(self, kind: str, num_tokens: int) -> list[tuple[int, int]]:
        """(control id, count) pairs that represent a picture or video of `num_tokens` tokens."""
        pad, count = self.pad(kind), num_tokens if self.repeats_pad else 1
        return [(control, count if control == pad else 1) for control in self.controls[kind].values()]

    def pad(self, kind: str) -> int:
        """The id of the placeholder."""
        self._numbers(kind)
        return self.controls[kind]["pad"]

    def around(self, kind: str) -> str:
        """The text that the processor puts before and after a picture or video."""
        return str(self.card[kind].get("around", ""))

    @property
    def trims(self) -> bool:
        """Whether the model's chat template trims the texts beside a picture."""
        return bool(self.card["image"].get("trims"))

    def published(self, kind: str, text: str) -> str:
        """What a chat template wrote, with one of each token where it wrote a picture or video in short."""
        layout = self.card[kind]
        if "written" not in layout or kind not in self.controls:
            return text
        whole = "".join(_tokens_of(layout))
        return text.replace(layout["written"], f"{self.around(kind)}{whole}{self.around(kind)}")

    def _tokens(self, kind: str, grid: Grid) -> int:
        numbers = self._numbers(kind)
        return math.prod(grid) // numbers["merge_size"] ** 2 + int(numbers.get("more", 0))

    def _numbers(self, kind: str) -> dict[str, Any]:
        """The numbers of a kind of media; a RowError where the card or the tokenizer has no layout for it."""
        if kind in self.numbers:
            return self.numbers[kind].values
        why = self.card[kind].get("refused") or f"the tokenizer has no {', '.join(_tokens_of(self.card[kind]))}"
        raise RowError(Reason.MEDIA, f"{kind}s are not compiled for {self.name}: {why}")


def load_vision(folder_files: dict[str, bytes], name: str | None, controls: dict[str, int]) -> Vision | None:
    """How the model of a folder lays out media; None for a folder without an image processor.

    1. The card is the one named, else the one for the processor's class, else the one for the classes of its parts. A
       class without a card is a UsageError.
    2. The numbers are the processor's own; those that its files leave out are the defaults of the library's class.
    3. The control tokens are placed by id and must be among `controls` (text -> id).
    """
    processor = read_processor(folder_files)
    card = registry.vision(name) if name else _choose(processor)
    if card is None:
        return None
    if missing := [text for text in _tokens_of(card["image"]) if text not in controls]:
        what = f"the tokenizer has no control token {', '.join(missing)}, which pictures need"
        raise UsageError(f"vision card {card['name']}", what, _NAME_ONE)
    kinds = [kind for kind in ("image", "video") if _has(card[kind], controls)]
    return Vision(
        card,
        _digest(card, folder_files),
        {kind: _ids(card[kind], controls) for kind in kinds},
        {kind: _numbers_of(card, kind, processor) for kind in kinds},
        _boxes_of(card, processor),
    )


_ONE_SIZE = ("fixed", "one_size", "stated")
"""The rules by which all pictures have the same number of tokens."""
_NAME_ONE = 'To choose a vision card by name, write "vision": NAME into a template card.'


def _choose(processor: Processor) -> dict[str, Any] | None:
    types = processor.types
    cards = [registry.vision(name) for name in registry.vision_names()]
    key = "processor_class" if "processor_class" in types else "image_processor_type"
    fitting = [card for card in cards if types.get(key) in card.get(key, ())]
    if not fitting and "image_processor_type" not in types:
        return None  # an audio processor, or none
    if len(fitting) > 1 and "video_processor_type" in types:
        fitting = [card for card in fitting if types["video_processor_type"] in card["video_processor_type"]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " and ".join(card["name"] for card in fitting)
        what = f"{types[key]} serves the cards {names}, and no processor_class says which"
        raise UsageError(f"{processor.parts['image'][0]}#/{key}", what, _NAME_ONE)
    known = ", ".join(sorted({value for card in cards for value in card.get(key, ())}))
    what = f"no vision card knows how {types[key]} counts tokens; known: {known}"
    raise UsageError(f"{processor.parts['image'][0]}#/{key}", what, _NAME_ONE)


def _numbers_of(card: dict[str, Any], kind: str, processor: Processor) -> Numbers:
    defaults, origin = card[kind]["defaults"], f"vision card {card['name']}: {card['provenance']}"
    if card["rule"] == "fixed":
        return Numbers(defaults, dict.fromkeys(defaults, origin))
    if card["rule"] in _ONE_SIZE:
        return numbers_of_one_size(card, processor)
    if not processor.parts:
        what = "it needs the processor's own numbers, and the tokenizer's folder has none"
        hint = f"Put the model's {IMAGE} there, and the others of {', '.join(PROCESSOR_FILES)} that it has."
        raise UsageError(f"vision card {card['name']}", what, hint)
    part = processor.parts.get(kind, ("", {}))
    numbers = read_numbers(part, defaults, card.get("renamed", {}), origin)
    asked = [key for key in ("fps", "num_frames") if numbers.values.get(key) is not None]
    if numbers.values.get("do_sample_frames") and len(asked) != 1:
        found = "both" if asked else "neither"
        raise UsageError(f"{part[0]}#/do_sample_frames", f"expected either fps or num_frames beside it, found {found}")
    return numbers


def _boxes_of(card: dict[str, Any], processor: Processor) -> dict[str, Any]:
    """How the models of a processor's class write boxes; models of one class, where the card names none."""
    given: dict[str, dict[str, Any]] = card.get("boxes", {})
    return given.get(processor.types.get("processor_class", ""), given.get("any", {}))


def _tokens_of(layout: dict[str, Any]) -> list[str]:
    return [layout[part] for part in ("open", "pad", "close") if part in layout]


def _has(layout: dict[str, Any], controls: dict[str, int]) -> bool:
    return "refused" not in layout and all(text in controls for text in _tokens_of(layout))


def _ids(layout: dict[str, Any], controls: dict[str, int]) -> dict[str, int]:
    return {part: controls[layout[part]] for part in ("open", "pad", "close") if part in layout}


def _digest(card: dict[str, Any], files: dict[str, bytes]) -> str:
    used = [(name, files[name]) for name in PROCESSOR_FILES if name in files]
    return digest_of([("card", orjson.dumps(card, option=orjson.OPT_SORT_KEYS)), *used])
