"""A chat template lowered to segments, in two ways that must agree.

1. By rendering (`rendering.py`): exact by construction, 100-300 us a row on Qwen2.5's template.
2. By skeleton: render the *shape* of a conversation (roles, calls, number of tools) once with slots for its texts,
   cut that the same way, and fill the slots of every later row by a join, about 10 us. A template may treat some
   texts differently from others; a skeleton is probed for that when it is made, never used for texts the template
   looks into, and compared with the rendering on the first rows of a shape and on a sample of the rest. Making one
   takes about sixteen renderings, so the first rows of a shape are rendered before there is one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from compiler.conversation import Conversation, Message, Segment
from compiler.templates.guard import MAX_SLOTS, SLOT_PATTERN, slot, slot_number
from compiler.templates.jinja import Slot, to_json
from compiler.templates.rendering import Rendering, are_one, as_dict, merge
from schemas.errors import RowError

PROVE_FIRST, PROVE_EVERY = 2, 64
"""How often a join is compared with the rendering: on the first rows of a shape in a unit, then on every n-th."""

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

Shape = tuple[Any, ...]


class SkeletonMismatch(Exception):
    """A join did not equal the rendering: the run must do without skeletons."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """One part of a skeleton: a literal text, a control token, or a slot (`fill` is then not None, the text empty)."""

    segment: Segment
    fill: tuple[str, int, int] | None

    def text_in(self, conversation: Conversation) -> str:
        """Return what stands there in a conversation of the shape."""
        return self.segment.text if self.fill is None else _value(conversation, self.fill)


@dataclass(slots=True)
class _Skeleton:
    groups: list[list[_Piece]]
    """Pieces that make one segment together: neighbours of one kind."""
    avoid: re.Pattern[str] | None = None
    """Texts that the template may treat in a way of its own: rows with one are rendered."""


@dataclass(slots=True)
class _Seen:
    """The rows of one shape in a unit: how many, and the first ones with their renderings."""

    count: int = 0
    first: list[tuple[Conversation, list[Segment]]] = field(default_factory=list)


@dataclass
class Program:
    """The two derivations of one template; see the module's docstring."""

    rendering: Rendering
    skeletons: bool = True
    _shapes: dict[Shape, _Skeleton | None] = field(default_factory=dict)
    _seen: dict[Shape, _Seen] = field(default_factory=dict)

    def start_unit(self) -> None:
        """Begin the proofs anew, so that what is compared does not depend on which worker had which unit before."""
        self._seen.clear()

    def by_rendering(self, conversation: Conversation) -> list[Segment]:
        """Return the conversation's segments by the derivation that needs no proof."""
        return self.rendering.segments(conversation)

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Return the conversation's segments, by skeleton where that is proven to be the same."""
        if not self.skeletons or _has_no_shape(conversation):
            return self.by_rendering(conversation)
        shape = _shape(conversation)
        seen = self._seen.setdefault(shape, _Seen())
        seen.count += 1
        if seen.count <= PROVE_FIRST:
            segments = self.by_rendering(conversation)
            seen.first.append((conversation, [segment.piece(segment.text) for segment in segments]))
            return segments
        skeleton = self._skeleton_for(conversation, shape)
        if skeleton is None:
            return self.by_rendering(conversation)
        for row, rendered in seen.first:
            if self._fits(skeleton, row) and self._fill(skeleton, row) != rendered:
                raise SkeletonMismatch
        seen.first.clear()
        if not self._fits(skeleton, conversation):
            return self.by_rendering(conversation)
        segments = self._fill(skeleton, conversation)
        if seen.count % PROVE_EVERY == 0 and segments != self.by_rendering(conversation):
            raise SkeletonMismatch
        return segments

    def joined(self, conversation: Conversation) -> list[Segment]:
        """Return the conversation's segments by its skeleton, unproven; by rendering where there can be none."""
        if not self.skeletons or _has_no_shape(conversation):
            return self.by_rendering(conversation)
        skeleton = self._skeleton_for(conversation, _shape(conversation))
        if skeleton is None or not self._fits(skeleton, conversation):
            return self.by_rendering(conversation)
        return self._fill(skeleton, conversation)

    def _skeleton_for(self, conversation: Conversation, shape: Shape) -> _Skeleton | None:
        if shape not in self._shapes:
            self._shapes[shape] = self._make_skeleton(conversation)
        return self._shapes[shape]

    def _fits(self, skeleton: _Skeleton, conversation: Conversation) -> bool:
        for message in conversation.messages:
            if skeleton.avoid and skeleton.avoid.search(message.content):
                return False
            names = [
                message.name,
                message.call_id,
                *(name for call in message.calls for name in (call.name, call.id)),
            ]
            if not all(_PLAIN_NAME.fullmatch(name) for name in names if name is not None):
                return False
        return True

    def _make_skeleton(self, conversation: Conversation) -> _Skeleton | None:
        """Return the skeleton of the conversation's shape; None where the template cannot be cut that way."""
        slots: list[tuple[str, int, int]] = []

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
            segments = self.rendering.cut(messages, tools, conversation)
        except RowError:
            return None
        if len(slots) > MAX_SLOTS:
            return None  # there are not enough marks for its texts, names and calls
        pieces = [piece for segment in segments for piece in _pieces(segment, slots)]
        filled = {piece.fill for piece in pieces}
        if any(what not in filled for what in slots if what[0] in _REQUIRED):
            return None
        return self._probed(_Skeleton(_groups(pieces)), conversation)

    def _probed(self, skeleton: _Skeleton, conversation: Conversation) -> _Skeleton | None:
        avoid = list(map(re.escape, self.rendering.sensitive_texts))
        for pattern, texts in _PROBES:
            if all(self._holds(skeleton, _with_contents(conversation, text)) for text in texts):
                continue
            if not pattern:
                return None
            avoid.append(pattern)
        skeleton.avoid = re.compile("|".join(avoid)) if avoid else None
        return skeleton

    def _holds(self, skeleton: _Skeleton, conversation: Conversation) -> bool:
        try:
            return self._fill(skeleton, conversation) == self.by_rendering(conversation)
        except RowError:
            return False

    def _fill(self, skeleton: _Skeleton, conversation: Conversation) -> list[Segment]:
        if self.rendering.special_text == "allow":
            return self._fill_with_controls(skeleton, conversation)
        segments = []
        for group in skeleton.groups:
            texts = [piece.text_in(conversation) for piece in group]
            segments.append(group[0].segment.piece("".join(texts)))
        return segments

    def _fill_with_controls(self, skeleton: _Skeleton, conversation: Conversation) -> list[Segment]:
        """Fill a skeleton where what the row spells becomes control tokens."""
        segments = []
        for piece in chain.from_iterable(skeleton.groups):
            like, text = piece.segment, piece.text_in(conversation)
            parts = self.rendering.split_controls(text) if piece.fill else [Segment(text, like.control)]
            for n, part in enumerate(parts):
                part.message, part.generated = like.message, like.generated
                part.boundary, part.fresh = like.boundary and n == 0, like.fresh and n == 0
            segments += parts
        return merge(segments)


def _has_no_shape(conversation: Conversation) -> bool:
    """Return whether a message holds what a shape does not say the place of: media, reasoning."""
    return any(message.media or message.reasoning is not None for message in conversation.messages)


def _groups(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Return the pieces that `merge` would join, together: neighbouring texts of one message, generated or not."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        if groups and are_one(groups[-1][-1].segment, piece.segment):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _pieces(segment: Segment, slots: list[tuple[str, int, int]]) -> list[_Piece]:
    """Return a segment of a rendered shape as literals and slots."""
    pieces: list[_Piece] = []
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
        pieces.append(_Piece(one, fill))
        boundary = False
    return pieces


def _value(conversation: Conversation, fill: tuple[str, int, int]) -> str:
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


def _shape(conversation: Conversation) -> Shape:
    """Return what a skeleton depends on: roles, calls, what is empty or absent, how many tools."""
    turns = tuple(
        (
            m.role,
            not m.content,
            m.name is None,
            m.call_id is None,
            tuple((call.id is None, not call.arguments) for call in m.calls),
        )
        for m in conversation.messages
    )
    return (-1 if conversation.tools is None else len(conversation.tools), conversation.context, turns)


def _with_contents(conversation: Conversation, text: str) -> Conversation:
    """Return the conversation with every content that is not empty replaced, each by another text."""
    messages = [
        Message(m.role, f"{text}{i}{text}" if m.content else "", m.calls, m.name, m.call_id)
        for i, m in enumerate(conversation.messages)
    ]
    return Conversation(messages, conversation.tools, context=conversation.context)
