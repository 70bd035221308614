"""alpaca: one instruction with optional input, history, system prompt and tools."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.formats.common import parse_tools

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

    def get(name: str) -> Any:
        column = columns.get(name)
        return row.get(column) if column is not None else None

    messages = [Message(Role.SYSTEM, get("system"))] if get("system") else []
    for user, reply in get("history") or ():
        messages += [Message(Role.USER, user), Message(Role.ASSISTANT, reply)]
    asked = "\n".join(text for text in (get("prompt"), get("query")) if text)
    messages += [Message(Role.USER, asked), Message(Role.ASSISTANT, get("response"))]
    return Conversation(messages, parse_tools(get("tools"), f"/{columns.get('tools')}"))
