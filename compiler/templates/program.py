"""Conversations to segments, in two ways that must agree.

1. By rendering (`rendering.py`): exact by construction, 100 to 300 us a row with Qwen2.5's template.
2. By skeleton (`skeleton.py`): the *shape* of a conversation (roles, calls, number of tools) is rendered once with
   slots for its texts and cut into segments; later rows fill the slots, in about 10 us. A template may treat some
   texts differently from others. So a skeleton is probed when it is made, is not used for texts that the template
   looks for, and is compared with the rendering on the first rows of a shape and on a sample of the others. Making one
   takes about sixteen renderings, so the first rows of a shape are rendered.

This module decides which way a row takes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

from compiler.conversation import Conversation, Segment
from compiler.templates.rendering import Rendering
from compiler.templates.skeleton import Skeleton, make_skeleton

PROVE_FIRST, PROVE_EVERY = 2, 128
"""How often a skeleton is compared with the rendering: on the first rows of a shape in each process, then on one row in
so many. The row's text decides which, so the choice does not depend on the process."""

MOST_SHAPES = 1024
"""With more shapes than this all are forgotten, so that memory does not grow with the data."""

ShapeKey = tuple[Any, ...]
"""Identifies the shape of a conversation."""


class SkeletonMismatch(Exception):
    """A filled skeleton differs from the rendering: the run has to do without skeletons."""


@dataclass(slots=True)
class _Seen:
    """The rows of one shape so far: how many, and the first ones with their renderings."""

    count: int = 0
    first: list[tuple[Conversation, list[Segment]]] = field(default_factory=list)


@dataclass
class Program:
    """The two derivations of one template; see the module's docstring."""

    rendering: Rendering
    skeletons: bool = True
    _shapes: dict[ShapeKey, Skeleton | None] = field(default_factory=dict)
    _seen: dict[ShapeKey, _Seen] = field(default_factory=dict)

    def segments(self, conversation: Conversation) -> list[Segment]:
        """The conversation's segments, by skeleton where that is proven to give the same."""
        found = self.proven(conversation)
        return found.fill(conversation) if isinstance(found, Skeleton) else found

    def proven(self, conversation: Conversation) -> Skeleton | list[Segment]:
        """The skeleton that the conversation may be filled into, or else its rendered segments."""
        if not self.skeletons or _has_no_shape(conversation):
            return self.rendering.segments(conversation)
        shape = _shape(conversation)
        seen = self._seen.get(shape)
        if seen is None:
            if len(self._seen) >= MOST_SHAPES:
                self._seen.clear()
                self._shapes.clear()
            seen = self._seen[shape] = _Seen()
        seen.count += 1
        if seen.count <= PROVE_FIRST:
            segments = self.rendering.segments(conversation)
            seen.first.append((conversation, [segment.piece(segment.text) for segment in segments]))
            return segments
        skeleton = self._skeleton_for(conversation, shape)
        if skeleton is None:
            return self.rendering.segments(conversation)
        for row, rendered in seen.first:
            if skeleton.fits(row) and skeleton.fill(row) != rendered:
                raise SkeletonMismatch
        seen.first.clear()
        sampled = _is_sampled(conversation)
        if not skeleton.fits(conversation):
            return self.rendering.segments(conversation)
        if sampled and skeleton.fill(conversation) != self.rendering.segments(conversation):
            raise SkeletonMismatch
        return skeleton

    def joined(self, conversation: Conversation) -> list[Segment]:
        """The conversation's segments by its skeleton, unproven; by rendering where it can have none."""
        if not self.skeletons or _has_no_shape(conversation):
            return self.rendering.segments(conversation)
        skeleton = self._skeleton_for(conversation, _shape(conversation))
        if skeleton is None or not skeleton.fits(conversation):
            return self.rendering.segments(conversation)
        return skeleton.fill(conversation)

    def _skeleton_for(self, conversation: Conversation, shape: ShapeKey) -> Skeleton | None:
        if shape not in self._shapes:
            self._shapes[shape] = make_skeleton(self.rendering, conversation)
        return self._shapes[shape]


def _has_no_shape(conversation: Conversation) -> bool:
    """Whether it holds something that a shape has no slot for: media, reasoning, tools that are no list."""
    if conversation.tools is not None and not isinstance(conversation.tools, list):
        return True
    return any(message.media or message.reasoning is not None for message in conversation.messages)


def _is_sampled(conversation: Conversation) -> bool:
    return zlib.crc32(conversation.messages[-1].content.encode()) % PROVE_EVERY == 0


def _shape(conversation: Conversation) -> ShapeKey:
    """The key of a conversation's shape: roles, calls, which texts are empty or absent, how many tools."""
    turns = [
        (
            m.role,
            not m.content,
            m.name is None,
            m.call_id is None,
            tuple([(call.id is None, not call.arguments) for call in m.calls]) if m.calls else (),
        )
        for m in conversation.messages
    ]
    return (-1 if conversation.tools is None else len(conversation.tools), conversation.context, *turns)
