"""alternating_texts: a list of texts, in which the user and the assistant take turns, as in UltraChat and LIMA."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.formats.common import complete, read_columns
from compiler.formats.format import Format
from compiler.options import Names


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation: the first text is the user's."""
    found = read_columns(row, columns)
    roles = cycle((Role.USER, Role.ASSISTANT))
    return complete(found, columns, [Message(role, text) for role, text in zip(roles, found["messages"], strict=False)])


FORMAT = Format(
    name="alternating_texts",
    lift=lift,
    columns={"messages": "data", "system": "system"},
    turns="messages",
)
