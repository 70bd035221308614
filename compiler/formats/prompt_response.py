"""prompt_response: one prompt and its response, as in ChatGLM3's input-output form."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.formats.common import read_columns
from compiler.formats.format import Format
from compiler.options import Names


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation of one turn."""
    found = read_columns(row, columns)
    return Conversation([Message(Role.USER, found["prompt"]), Message(Role.ASSISTANT, found["response"])])


FORMAT = Format(
    name="prompt_response",
    lift=lift,
    columns={"prompt": "prompt", "response": "response"},
)
