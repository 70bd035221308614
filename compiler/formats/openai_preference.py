"""openai_preference: OpenAI's files for preference tuning: input, preferred_output and non_preferred_output."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Kind
from compiler.formats import openai
from compiler.formats.format import Format
from compiler.formats.joined import lift_joined, only_reply
from compiler.options import Names


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:
    """The conversation: the messages of the input, then the two replies."""
    column = str(columns["request"])
    source = row[column]
    messages = [(f"/{column}/messages/{i}", message) for i, message in enumerate(source["messages"])]
    beside = {name: only_reply(row[str(columns[name])], 0, columns[name]) for name in ("chosen", "rejected")}
    return lift_joined(messages, beside | {"tools": (f"/{column}/tools", source.get("tools"))}, tags)


FORMAT = Format(
    name="openai_preference",
    lift=lift,
    columns={"request": "input", "chosen": "preferred_output", "rejected": "non_preferred_output"},
    tags=openai.FORMAT.tags,
    kinds=(Kind.PREFERENCE,),
)
