"""The row-level types: what every source format is lifted to and every template renders.

A row becomes one or more conversations; a conversation becomes segments; segments become token columns.
Nothing here knows a source format, a chat template or a tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson
import xxhash


class Role(StrEnum):
    """Who a message is from."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    """A tool's *result*; the call itself belongs to the assistant message that makes it."""


@dataclass(slots=True)
class Call:
    """One tool call. `arguments` is the parsed JSON object; `id` ties a result to it where a source has one."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(slots=True)
class Message:
    """One role's utterance.

    `weight` is None where the role decides (assistant 1, others 0), else what the source row asked for:
    0.0 = context, 1.0 = trained, other = emphasised.
    """

    role: Role
    content: str
    calls: list[Call] = field(default_factory=list)
    name: str | None = None
    call_id: str | None = None
    weight: float | None = None


@dataclass(slots=True)
class Conversation:
    """What one example is made from. `tools` is parsed JSON, key order kept, most often a list; None = none given."""

    messages: list[Message]
    tools: Any = None
    places: list[int] | None = None
    """Where each message stands in the row's own list, for pointers; None where they are one to one."""
    repairs: list[str] = field(default_factory=list)
    """Names of the repairs and merges applied to the row, for the counts and for `inspect`."""

    def fingerprint(self) -> bytes:
        """Return 16 bytes that are equal for equal conversations (text, roles, calls, tools; not weights)."""
        parts = [[m.role, m.content, [[c.name, c.arguments] for c in m.calls], m.name] for m in self.messages]
        try:
            text = orjson.dumps([parts, self.tools])
        except TypeError:  # integers beyond 64 bits, more than 254 levels: orjson cannot write what rows may hold
            text = json.dumps([parts, self.tools]).encode()
        return xxhash.xxh3_128_digest(text)


@dataclass(slots=True)
class Segment:
    """A piece of the rendered conversation: text, or one control token placed by its id.

    `message` is the index of the message whose text this is (-1 = the template's own text);
    `generated` is True for what the model must produce in a reply, its stop included;
    `boundary` is True where generation starts, so that nothing is merged across it; `fresh` makes what follows a
    boundary a text of its own to the tokenizer, leading space and all;
    `weight` and `key` are filled in by the weights policy.
    """

    text: str
    control: int = -1
    message: int = -1
    generated: bool = False
    boundary: bool = False
    fresh: bool = False
    weight: float = 0.0
    key: str = ""
