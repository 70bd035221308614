"""prompt_response: one prompt and its response, as ChatGLM3's input-output form has them."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.formats.common import column_of
from compiler.formats.format import Format
from compiler.options import Names


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """Return the conversation of one turn."""
    asked, reply = column_of(row, columns, "prompt"), column_of(row, columns, "response")
    return Conversation([Message(Role.USER, asked), Message(Role.ASSISTANT, reply)])


FORMAT = Format(
    name="prompt_response",
    lift=lift,
    columns={"prompt": "prompt", "response": "response"},
)
