"""alpaca: one instruction with optional input, history, system prompt and tools."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.formats.common import column_of, parse_tools

COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "system": "system",
    "tools": "tools",
}
TAGS: dict[str, str] = {}


def lift(row: dict[str, Any], columns: dict[str, str | None], tags: dict[str, str | None]) -> Conversation:  # noqa: ARG001
    """Return the conversation: system, history turns, then instruction and input joined by a newline."""
    system = column_of(row, columns, "system")
    messages = [Message(Role.SYSTEM, system)] if system else []
    for user, reply in column_of(row, columns, "history") or ():
        messages += [Message(Role.USER, user), Message(Role.ASSISTANT, reply)]
    asked = "\n".join(text for text in (column_of(row, columns, name) for name in ("prompt", "query")) if text)
    messages += [Message(Role.USER, asked), Message(Role.ASSISTANT, column_of(row, columns, "response"))]
    return Conversation(messages, parse_tools(column_of(row, columns, "tools"), f"/{columns.get('tools')}"))
