"""The shape of a conversation rendered once, with slots for the texts of every other row of that shape."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from compiler.conversation import Conversation, Message, Segment
from compiler.templates.cut import are_one, cut, merge
from compiler.templates.guard import MAX_SLOTS, SLOT_PATTERN, slot, slot_number
from compiler.templates.jinja import Slot
from compiler.templates.messages import as_dict
from compiler.templates.rendering import Rendering
from schemas.errors import RowError

Field = tuple[str, int, int]
"""What of a conversation stands in a slot: (what of a message, which message, which call of it)."""

Text = tuple[str | int, ...]
"""A text with slots: literals, and the numbers of the fields that stand between them."""

_is_plain_name = re.compile(r"[A-Za-z0-9_.:/-]+").fullmatch
_FIRST_PROBE = "q\"uo'te\\ <&> {x} [y] é\n中 ABC"
"""A template that changes or escapes this text has no skeletons."""
_PROBES = {
    re.compile(pattern): texts
    for pattern, texts in (
        (r"\A\s|\s\Z", ("  x  ", "\nx\n", "\n\n x", "\tx\t", "\r\nx", "\u3000x")),
        (r"\t", ("a\tb",)),
        (r"\r", ("a\r\nb", "a\rb")),
        (r"\s\s", ("a  b", "a\n\nb")),
    )
}
"""By a pattern, probe texts: where a template changes one of them, rows with a text of that pattern are rendered
instead. A probe takes a rendering, so a pattern is tried when the first row has it."""
_ALL_TRIED = 32
"""After so many rows of a shape all patterns are tried: looking for them takes longer by then."""

_REQUIRED = ("content", "call", "arguments", "tool")
"""The fields that must appear in a rendering; ids and names of results may be left out."""


@dataclass(eq=False, slots=True)
class Skeleton:
    """The segments of a shape's rendering, each with its text; `fields` are what the numbers in texts stand for."""

    rendering: Rendering
    segments: list[tuple[Segment, Text]]
    fields: tuple[Field, ...]
    like: Conversation
    """A conversation of the shape, which probes are made of; its contents are short."""
    avoid: re.Pattern[str] | None = None
    """Texts that the template may treat specially: rows that contain one are rendered."""
    untried: list[re.Pattern[str]] = field(default_factory=lambda: list(_PROBES))
    """The patterns whose probes were not tried yet."""
    rows: int = 0
    """The rows that were asked about while there were such patterns."""
    has_names: bool = True
    """Whether rows of the shape have calls, or names or ids of results."""

    def fits(self, conversation: Conversation) -> bool:
        """Whether a conversation of the shape may be filled in."""
        if self.untried:
            self._try(conversation)
        avoid = self.avoid
        if avoid is None and not self.has_names:
            return True
        for message in conversation.messages:
            if avoid is not None and avoid.search(message.content):
                return False
            if message.calls or message.name is not None or message.call_id is not None:
                names = [message.name, message.call_id]
                for call in message.calls:
                    names += (call.name, call.id)
                for name in names:
                    if name is not None and not _is_plain_name(name):
                        return False
        return True

    def _try(self, conversation: Conversation) -> None:
        """Try the probes of the patterns that a row has; those of all patterns after some rows."""
        self.rows += 1
        texts = [message.content for message in conversation.messages]
        for pattern in list(self.untried):
            if self.rows > _ALL_TRIED or any(map(pattern.search, texts)):
                self.untried.remove(pattern)
                if not all(_holds(self, text) for text in _PROBES[pattern]):
                    self.avoid = _any_of(self.avoid, pattern)

    def fill(self, conversation: Conversation) -> list[Segment]:
        """The segments of a conversation that fits."""
        values = [one for (one,) in values_of(self.fields, [conversation])]
        filled = [
            (like, "".join([part if isinstance(part, str) else values[part] for part in text]), text)
            for like, text in self.segments
        ]
        if self.rendering.special_text != "allow":
            return [like.piece(text) for like, text, _ in filled]
        segments = []
        for like, said, text in filled:  # what the row spells becomes control tokens
            is_slot = any(isinstance(part, int) for part in text)
            parts = self.rendering.split_controls(said) if is_slot else [Segment(said, like.control)]
            for n, part in enumerate(parts):
                part.message, part.generated = like.message, like.generated
                part.boundary, part.fresh = like.boundary and n == 0, like.fresh and n == 0
            segments += parts
        return merge(segments)


def make_skeleton(rendering: Rendering, conversation: Conversation) -> Skeleton | None:
    """The skeleton of the conversation's shape; None where the template cannot be cut that way."""
    slots: list[Field] = []

    def new(kind: str, i: int, j: int = 0) -> str:
        slots.append((kind, i, j))
        return slot((len(slots) - 1) % MAX_SLOTS)

    messages: list[dict[str, Any]] = []
    for i, message in enumerate(conversation.messages):
        named = as_dict(message, lambda text: text)
        if message.content:
            named["content"] = new("content", i)
        for key in ("name", "tool_call_id"):
            if key in named:
                named[key] = new(key, i)
        for j, call in enumerate(named.get("tool_calls", ())):
            call["function"]["name"] = new("call", i, j)
            if call["function"]["arguments"]:
                call["function"]["arguments"] = Slot(new("arguments", i, j))
            if "id" in call:
                call["id"] = new("id", i, j)
        messages.append(named)
    tools = None if conversation.tools is None else [Slot(new("tool", j)) for j in range(len(conversation.tools))]
    try:
        segments = cut(rendering, messages, tools, conversation)
    except RowError:
        return None
    if len(slots) > MAX_SLOTS:
        return None  # there are not enough marks for its texts, names and calls
    fields: dict[Field, int] = {}
    pieces = [piece for segment in segments for piece in _pieces(segment, slots, fields)]
    if any(what not in fields for what in slots if what[0] in _REQUIRED):
        return None
    whole = pieces if rendering.special_text == "allow" else _joined(pieces)
    sensitive = "|".join(map(re.escape, rendering.sensitive_texts))
    avoid = re.compile(sensitive) if sensitive else None
    skeleton = Skeleton(
        rendering, whole, tuple(fields), _with_contents(conversation, "x"), avoid,
        has_names=any(m.calls or m.name is not None or m.call_id is not None for m in conversation.messages),
    )  # fmt: skip
    return skeleton if _holds(skeleton, _FIRST_PROBE) else None


def _any_of(first: re.Pattern[str] | None, second: re.Pattern[str]) -> re.Pattern[str]:
    return second if first is None else re.compile(f"{first.pattern}|{second.pattern}")


def _holds(skeleton: Skeleton, text: str) -> bool:
    """Whether the template keeps a probe text in every content as it is."""
    conversation = _with_contents(skeleton.like, text)
    try:
        return skeleton.fill(conversation) == skeleton.rendering.segments(conversation)
    except RowError:
        return False


def _joined(pieces: list[tuple[Segment, Text]]) -> list[tuple[Segment, Text]]:
    """Join what `merge` would join: neighbouring texts of one message, generated or not."""
    joined: list[tuple[Segment, Text]] = []
    for segment, text in pieces:
        if joined and are_one(joined[-1][0], segment):
            joined[-1] = (joined[-1][0], joined[-1][1] + text)
        else:
            joined.append((segment, text))
    return joined


def _pieces(segment: Segment, slots: list[Field], fields: dict[Field, int]) -> list[tuple[Segment, Text]]:
    """Cut a segment of a rendered shape into literals and slots; number the fields that are new."""
    pieces: list[tuple[Segment, Text]] = []
    boundary = segment.boundary
    for i, part in enumerate(SLOT_PATTERN.split(segment.text)):
        if not part:
            continue
        field = slots[slot_number(part)] if i % 2 else None
        message = segment.message
        if field and not segment.generated:
            message = field[1] if field[0] == "content" else -1
        fresh = boundary and segment.fresh
        text = part if field is None else fields.setdefault(field, len(fields))
        pieces.append((Segment("", segment.control, message, segment.generated, boundary, fresh), (text,)))
        boundary = False
    return pieces


def values_of(fields: Sequence[Field], conversations: list[Conversation]) -> list[list[str]]:
    """What stands in the slots of each field, in each of some conversations of the shape."""
    return [
        [c.messages[i].content for c in conversations]
        if what == "content"
        else [_value(c, what, i, j) for c in conversations]
        for what, i, j in fields
    ]


def _value(conversation: Conversation, what: str, i: int, j: int) -> str:
    if what == "tool":
        assert conversation.tools is not None
        return _tool_as_json(conversation.tools[i])
    message = conversation.messages[i]
    if what in ("name", "tool_call_id"):
        return (message.name if what == "name" else message.call_id) or ""
    call = message.calls[j]
    if what == "arguments":
        return _as_json(call.arguments)
    return call.name if what == "call" else call.id or ""


_as_json = json.JSONEncoder(ensure_ascii=False).encode
"""`to_json`, without making an encoder for each value."""

_TOOLS: dict[bytes, str] = {}
"""Tools as JSON by a form that is made ten times as fast: many rows have the same tools."""
_MOST_TOOLS = 1024
_STRICT = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS


def _tool_as_json(tool: Any) -> str:
    """`to_json`, remembered."""
    try:
        form = orjson.dumps(tool, option=_STRICT)
    except TypeError:
        return _as_json(tool)
    if (text := _TOOLS.get(form)) is None:
        text = _as_json(tool)
        if b"null" not in form:  # NaN and None have one form, and two texts
            if len(_TOOLS) >= _MOST_TOOLS:
                _TOOLS.clear()
            _TOOLS[form] = text
    return text


def _with_contents(conversation: Conversation, text: str) -> Conversation:
    """Replace every content that is not empty by a probe text, each by another one."""
    messages = [
        Message(m.role, f"{text}{i}{text}" if m.content else "", m.calls, m.name, m.call_id)
        for i, m in enumerate(conversation.messages)
    ]
    return Conversation(messages, conversation.tools, context=conversation.context)
