"""message_lists: each row is a list of OpenAI messages, with no object around it."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation
from compiler.formats import openai
from compiler.formats.format import Format
from compiler.formats.joined import lift_joined
from compiler.options import Names


def lift(row: Any, columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation."""
    return lift_joined([(f"/{i}", message) for i, message in enumerate(row)], {}, tags)


FORMAT = Format(
    name="message_lists",
    lift=lift,
    columns={},
    tags=openai.FORMAT.tags,
    bare=True,
)
