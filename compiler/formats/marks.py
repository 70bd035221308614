"""Images and videos that a row lists, put where its texts mark them with <image> and <video>.

Marks count in user and tool messages only. In a system text or a reply they are text: a model that describes a page may
well write "<image>". Messages whose parts already contain media are left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from compiler.conversation import Conversation, Embedded, Media, Message, Objects, Role
from compiler.options import Names
from schemas.errors import Reason, RowError

MEDIA_COLUMNS = {"images": "images", "videos": "videos"}
"""The columns with references, and their default names."""
OBJECTS_COLUMN = {"objects": "objects"}
"""The column of what ms-swift puts in place of <ref-object> and <bbox>."""
_KINDS = {"images": "image", "videos": "video"}


def place_media(conversation: Conversation, found: dict[str, Any], columns: Names) -> Conversation:
    """The conversation with the media of a row's columns (`found`, by name) in place of their marks.

    Media without any mark are kept as `loose`; other counts must match. Without the column a mark is text.
    """
    listed = [(found[name], kind, f"/{columns[name]}") for name, kind in _KINDS.items() if found.get(name) is not None]
    if not listed:
        return conversation
    parts = [media for message in conversation.messages for media in message.media if not media.uri]
    if parts:
        for value, kind, pointer in listed:
            _fill_parts([part for part in parts if part.kind == kind], _listed(value, kind, pointer), kind, pointer)
        return conversation
    takers = [m for m in conversation.messages if m.role in (Role.USER, Role.TOOL) and not m.media]
    waiting: dict[str, Iterator[Media]] = {}
    for value, kind, pointer in listed:
        media = _listed(value, kind, pointer)
        marks = sum(message.content.count(f"<{kind}>") for message in takers)
        if media and not marks:
            conversation.loose += media
        elif marks != len(media):
            counted = f"{_number(marks, 'mark')} and {_number(len(media), kind)}"
            expected = f"expected as many {kind}s as <{kind}> marks in user and tool messages"
            raise RowError(Reason.MEDIA, f"{expected}, found {counted}", pointer)
        else:
            waiting[kind] = iter(media)
    if waiting:
        pattern = re.compile(f"<({'|'.join(waiting)})>")
        for message in takers:
            _take_marks(message, pattern, waiting)
    return conversation


def read_objects(value: Any, pointer: str) -> Objects | None:
    """The objects of a row; None where it lists none."""
    if not isinstance(value, dict):
        return None
    refs, boxes = value.get("ref") or [], value.get("bbox") or []
    images = value.get("image_id") or [0] * len(boxes)
    if len(images) != len(boxes):
        what = f"expected as many image_id as boxes, found {len(images)} and {len(boxes)}"
        raise RowError(Reason.MEDIA, what, f"{pointer}/image_id")
    return Objects(refs, boxes, value.get("bbox_type") == "norm1", images, pointer)


def _fill_parts(parts: list[Media], media: list[Media], kind: str, pointer: str) -> None:
    """Give parts that name no file those of the row's column, in order."""
    if len(parts) != len(media):
        found = f"{_number(len(parts), 'part')} and {_number(len(media), kind)}"
        what = f"expected as many {kind}s as parts of this type that name none, found {found}"
        raise RowError(Reason.MEDIA, what, pointer)
    for part, one in zip(parts, media, strict=True):
        part.uri, part.frames, part.pointer, part.embedded = one.uri, one.frames, one.pointer, one.embedded


def _listed(value: Any, kind: str, pointer: str) -> list[Media]:
    """The media of a column: one of them, a list, or (videos) a list of lists of frames."""
    if isinstance(value, str | dict):
        return [_one(value, kind, pointer)] if value != "" else []
    return [_one(item, kind, f"{pointer}/{i}") for i, item in enumerate(value)]


def _one(item: Any, kind: str, pointer: str) -> Media:
    if isinstance(item, list):
        return Media(kind, json.dumps(item, ensure_ascii=False), frames=tuple(item), pointer=pointer)
    return Media(kind, item, pointer=pointer) if kind == "video" else image(item, pointer)


def image(found: str | dict[str, Any], pointer: str, at: int = 0) -> Media:
    """The image that a row has as a path, as a data URL, or as {bytes, path}."""
    if isinstance(found, Embedded):
        return Media("image", found["bytes"], at, pointer=pointer, embedded=found)
    if isinstance(found, dict):
        if found.get("bytes") is not None:
            what = "expected binary data, which a table may hold, found text; in text files give a path or a data URL"
            raise RowError(Reason.MEDIA, what, f"{pointer}/bytes")
        if found.get("path") is None:
            raise RowError(Reason.MEDIA, "expected an image as bytes or a path, found neither", pointer)
        found = str(found["path"])
    return Media("image", found, at, pointer=pointer)


def _take_marks(message: Message, pattern: re.Pattern[str], waiting: dict[str, Iterator[Media]]) -> None:
    """Remove the marks from a text; each image or video takes the place of its mark."""
    pieces = pattern.split(message.content)
    content = pieces[0]
    for kind, text in zip(pieces[1::2], pieces[2::2], strict=True):
        media = next(waiting[kind])
        media.at = len(content)
        message.media.append(media)
        content += text
    message.content = content


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
