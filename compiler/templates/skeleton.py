"""The shape of a conversation rendered once, with slots for the texts of every other row of that shape."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from compiler.conversation import Conversation, Message, Segment, to_json
from compiler.templates.guard import MAX_SLOTS, SLOT_PATTERN, slot, slot_number
from compiler.templates.jinja import Slot
from compiler.templates.rendering import Rendering, are_one, as_dict, merge
from schemas.errors import RowError

Fill = tuple[str, int, int]
"""What stands in a slot: (what of a message, which message, which call of it)."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.:/-]+")
_PROBES = (
    (r"", ("q\"uo'te\\ <&> {x} [y] é\n中 ABC",)),
    (r"\A\s|\s\Z", ("  x  ", "\nx\n", "\n\n x", "\tx\t", "\r\nx", "\u3000x")),
    (r"\t", ("a\tb",)),
    (r"\r", ("a\r\nb", "a\rb")),
    (r"\s\s", ("a  b", "a\n\nb")),
)
"""Texts a skeleton is tried with, by what they have in them: where a template treats such texts in its own way, rows
that have one are rendered. Whatever escapes or changes the first one makes a skeleton impossible."""

_REQUIRED = ("content", "call", "arguments", "tool")
"""The slots that must show up in a rendering; ids and names of results may go unused."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of a skeleton: a literal text, a control token, or a slot (`fill` is then not None, the text empty)."""

    segment: Segment
    fill: Fill | None

    def text_in(self, conversation: Conversation) -> str:
        """Return what stands there in a conversation of the shape."""
        return self.segment.text if self.fill is None else value_of(conversation, self.fill)


@dataclass(slots=True)
class Skeleton:
    """The pieces of a shape's rendering; `groups` make one segment each: neighbours of one kind."""

    rendering: Rendering
    groups: list[list[Piece]]
    avoid: re.Pattern[str] | None = None
    """Texts that the template may treat in a way of its own: rows with one are rendered."""
    outlines: dict[Any, Any] = field(default_factory=dict)
    """What `compiler/encode/shapes.py` worked out for it."""

    def fits(self, conversation: Conversation) -> bool:
        """Return whether a conversation of the shape may be filled in."""
        avoid = self.avoid
        for message in conversation.messages:
            if avoid is not None and avoid.search(message.content):
                return False
            if message.calls or message.name is not None or message.call_id is not None:
                names = [message.name, message.call_id]
                for call in message.calls:
                    names += (call.name, call.id)
                if not all(_PLAIN_NAME.fullmatch(name) for name in names if name is not None):
                    return False
        return True

    def fill(self, conversation: Conversation) -> list[Segment]:
        """Return the segments of a conversation that fits."""
        if self.rendering.special_text == "allow":
            return self._fill_with_controls(conversation)
        segments = []
        for group in self.groups:
            texts = [piece.text_in(conversation) for piece in group]
            segments.append(group[0].segment.piece("".join(texts)))
        return segments

    def _fill_with_controls(self, conversation: Conversation) -> list[Segment]:
        """Fill a skeleton where what the row spells becomes control tokens."""
        segments = []
        for piece in chain.from_iterable(self.groups):
            like, text = piece.segment, piece.text_in(conversation)
            parts = self.rendering.split_controls(text) if piece.fill else [Segment(text, like.control)]
            for n, part in enumerate(parts):
                part.message, part.generated = like.message, like.generated
                part.boundary, part.fresh = like.boundary and n == 0, like.fresh and n == 0
            segments += parts
        return merge(segments)


def make_skeleton(rendering: Rendering, conversation: Conversation) -> Skeleton | None:
    """Return the skeleton of the conversation's shape; None where the template cannot be cut that way."""
    slots: list[Fill] = []

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
        segments = rendering.cut(messages, tools, conversation)
    except RowError:
        return None
    if len(slots) > MAX_SLOTS:
        return None  # there are not enough marks for its texts, names and calls
    pieces = [piece for segment in segments for piece in _pieces(segment, slots)]
    filled = {piece.fill for piece in pieces}
    if any(what not in filled for what in slots if what[0] in _REQUIRED):
        return None
    return _probed(Skeleton(rendering, _groups(pieces)), conversation)


def _probed(skeleton: Skeleton, conversation: Conversation) -> Skeleton | None:
    avoid = list(map(re.escape, skeleton.rendering.sensitive_texts))
    for pattern, texts in _PROBES:
        if all(_holds(skeleton, _with_contents(conversation, text)) for text in texts):
            continue
        if not pattern:
            return None
        avoid.append(pattern)
    skeleton.avoid = re.compile("|".join(avoid)) if avoid else None
    return skeleton


def _holds(skeleton: Skeleton, conversation: Conversation) -> bool:
    try:
        return skeleton.fill(conversation) == skeleton.rendering.segments(conversation)
    except RowError:
        return False


def _groups(pieces: list[Piece]) -> list[list[Piece]]:
    """Return the pieces that `merge` would join, together: neighbouring texts of one message, generated or not."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        if groups and are_one(groups[-1][-1].segment, piece.segment):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _pieces(segment: Segment, slots: list[Fill]) -> list[Piece]:
    """Return a segment of a rendered shape as literals and slots."""
    pieces: list[Piece] = []
    boundary = segment.boundary
    for i, part in enumerate(SLOT_PATTERN.split(segment.text)):
        if not part:
            continue
        fill = slots[slot_number(part)] if i % 2 else None
        message = segment.message
        if fill and not segment.generated:
            message = fill[1] if fill[0] == "content" else -1
        fresh = boundary and segment.fresh
        one = Segment("" if fill else part, segment.control, message, segment.generated, boundary, fresh)
        pieces.append(Piece(one, fill))
        boundary = False
    return pieces


def value_of(conversation: Conversation, fill: Fill) -> str:
    """Return what stands in a slot in a conversation of the shape."""
    kind, i, j = fill
    if kind == "content":
        return conversation.messages[i].content
    if kind == "tool":
        assert conversation.tools is not None
        return to_json(conversation.tools[i])
    if kind in ("name", "tool_call_id"):
        message = conversation.messages[i]
        return (message.name if kind == "name" else message.call_id) or ""
    call = conversation.messages[i].calls[j]
    if kind == "arguments":
        return to_json(call.arguments)
    return call.name if kind == "call" else call.id or ""


def _with_contents(conversation: Conversation, text: str) -> Conversation:
    """Return the conversation with every content that is not empty replaced, each by another text."""
    messages = [
        Message(m.role, f"{text}{i}{text}" if m.content else "", m.calls, m.name, m.call_id)
        for i, m in enumerate(conversation.messages)
    ]
    return Conversation(messages, conversation.tools, context=conversation.context)
