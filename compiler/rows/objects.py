"""The objects of a row (ms-swift) in place of `<ref-object>` and `<bbox>`, as the model writes boxes.

A box is given in pixels of an image, or as shares of it. How a model writes one is in its vision card.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from compiler.conversation import Conversation, MediaFacts, Message, Objects
from compiler.media.rules import Vision
from compiler.rows.texts import PLACEHOLDER
from schemas.errors import Reason, RowError

_MARK = re.compile("<ref-object>|<bbox>")


def write_objects(conversation: Conversation, objects: Objects, vision: Vision | None, no_vision: str) -> None:
    """Put the objects into the texts; RowError where marks and objects differ in number, or a box cannot be written."""
    said = conversation.said
    for mark, name, given in (("<ref-object>", "ref", objects.refs), ("<bbox>", "bbox", objects.boxes)):
        marks = sum(message.content.count(mark) for message in said)
        if marks != len(given):
            what = f"expected as many {name} as {mark} marks in the texts, found {len(given)} and {marks}"
            raise RowError(Reason.MEDIA, what, f"{objects.pointer}/{name}")
    facts = [media.facts for media in conversation.media() if media.kind == "image" and media.facts is not None]
    boxes = (_written(objects, i, facts, vision, no_vision) for i in range(len(objects.boxes)))
    texts: dict[str, Iterator[str]] = {"<ref-object>": iter(objects.refs), "<bbox>": boxes}
    for message in said:
        if "<" in message.content:
            _fill(message, texts)
    conversation.notes = [note for note in conversation.notes if note != f"{PLACEHOLDER}<bbox>"]
    conversation.objects = None


def _fill(message: Message, texts: dict[str, Iterator[str]]) -> None:
    """Replace the marks of a message; its images stay between the texts where they were."""
    message.content, places = message.changed(lambda text: _MARK.sub(lambda found: next(texts[found[0]]), text))
    for media, at in zip(message.media, places, strict=True):
        media.at = at


def _written(objects: Objects, i: int, images: list[MediaFacts], vision: Vision | None, no_vision: str) -> str:
    """The text of a box, as the model writes it."""
    box, pointer = objects.boxes[i], f"{objects.pointer}/bbox/{i}"
    if vision is None:
        raise RowError(Reason.MEDIA, no_vision, pointer)
    rule = vision.boxes
    kind = {2: "point", 4: "box"}.get(len(box), "")
    if kind not in rule:
        why = rule.get("refused") or f"no card says how it writes a {kind or f'box of {len(box)} numbers'}"
        raise RowError(Reason.MEDIA, f"boxes are not compiled for {vision.name}: {why}", pointer)
    facts = images[objects.images[i]] if objects.images[i] < len(images) else None
    if facts is None and not (objects.relative and rule["unit"] == "thousandths"):
        what = f"expected the image that the box is in (number {objects.images[i]}), found {len(images)} images"
        raise RowError(Reason.MEDIA, what, pointer)
    width, height = (1, 1) if objects.relative or facts is None else (facts.width, facts.height)
    sides = [width, height] * (len(box) // 2)
    outside = any(not 0 <= value <= side for value, side in zip(box, sides, strict=True))
    if outside or (len(box) == 4 and (box[0] > box[2] or box[1] > box[3])):
        form = "[x1, y1, x2, y2]" if kind == "box" else "[x, y]"
        size = "from 0 to 1 (norm1)" if objects.relative else f"within an image of {width}x{height} pixels"
        raise RowError(Reason.MEDIA, f"expected {form} {size}, found {box}", pointer)
    if rule["unit"] == "thousandths":
        numbers = [min(int(value * 1000 / side), rule["most"]) for value, side in zip(box, sides, strict=True)]
        return str(rule[kind]).format(*numbers)
    assert facts is not None
    whole = [*vision.resized(facts)] * (len(box) // 2)
    numbers = [min(round(value * to / side), to - 1) for value, side, to in zip(box, sides, whole, strict=True)]
    return str(rule[kind]).format(*numbers)
