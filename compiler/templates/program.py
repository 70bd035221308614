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

from dataclasses import dataclass, field
from typing import Any

import xxhash

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
class _Known:
    """A shape: how many rows of it were met, the first ones with their renderings, and its skeleton once it is made."""

    count: int = 0
    first: list[tuple[Conversation, list[Segment]]] = field(default_factory=list)
    is_made: bool = False
    skeleton: Skeleton | None = None


@dataclass
class Program:
    """The two derivations of one template; see the module's docstring."""

    rendering: Rendering
    skeletons: bool = True
    _shapes: dict[ShapeKey, _Known] = field(default_factory=dict)

    def segments(self, conversation: Conversation) -> list[Segment]:
        """The conversation's segments, by skeleton where that is proven to give the same."""
        found = self.proven(conversation)
        return found.fill(conversation) if isinstance(found, Skeleton) else found

    def proven(self, conversation: Conversation) -> Skeleton | list[Segment]:
        """The skeleton that the conversation may be filled into, or else its rendered segments."""
        known = self._known(conversation)
        if known is None:
            return self.rendering.segments(conversation)
        known.count += 1
        if known.count <= PROVE_FIRST:
            segments = self.rendering.segments(conversation)
            known.first.append((conversation, [segment.piece(segment.text) for segment in segments]))
            return segments
        skeleton = self._skeleton_of(known, conversation)
        if skeleton is None:
            return self.rendering.segments(conversation)
        if known.first:
            for row, rendered in known.first:
                if skeleton.fits(row) and skeleton.fill(row) != rendered:
                    raise SkeletonMismatch
            known.first.clear()
        if not skeleton.fits(conversation):
            return self.rendering.segments(conversation)
        if _is_sampled(conversation) and skeleton.fill(conversation) != self.rendering.segments(conversation):
            raise SkeletonMismatch
        return skeleton

    def joined(self, conversation: Conversation) -> list[Segment]:
        """The conversation's segments by its skeleton, unproven; by rendering where it can have none."""
        known = self._known(conversation)
        skeleton = None if known is None else self._skeleton_of(known, conversation)
        if skeleton is None or not skeleton.fits(conversation):
            return self.rendering.segments(conversation)
        return skeleton.fill(conversation)

    def _known(self, conversation: Conversation) -> _Known | None:
        """What is known of the conversation's shape; None where it has none."""
        shape = _shape(conversation) if self.skeletons else None
        if shape is None:
            return None
        if (known := self._shapes.get(shape)) is None:
            if len(self._shapes) >= MOST_SHAPES:
                self._shapes.clear()
            known = self._shapes[shape] = _Known()
        return known

    def _skeleton_of(self, known: _Known, conversation: Conversation) -> Skeleton | None:
        if not known.is_made:
            known.is_made, known.skeleton = True, make_skeleton(self.rendering, conversation)
        return known.skeleton


def _is_sampled(conversation: Conversation) -> bool:
    return xxhash.xxh3_64_intdigest(conversation.messages[-1].content.encode()) % PROVE_EVERY == 0


def _shape(conversation: Conversation) -> ShapeKey | None:
    """The key of a conversation's shape: roles, calls, which texts are empty or absent, how many tools.

    None where it holds something that a shape has no slot for: media, reasoning, tools that are no list.
    """
    tools = conversation.tools
    if tools is not None and not isinstance(tools, list):
        return None
    key: list[Any] = [-1 if tools is None else len(tools), conversation.context]
    for m in conversation.messages:
        if m.media or m.reasoning is not None:
            return None
        key.append(m.role if m.content else (m.role,))
        if m.calls or m.name is not None or m.call_id is not None:
            calls = tuple([(call.id is None, not call.arguments) for call in m.calls])
            key.append((m.name is None, m.call_id is None, calls))
    return tuple(key)
