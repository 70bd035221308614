"""alpaca: one instruction with optional input, history, system prompt and tools; images and videos; pairs and KTO."""

from __future__ import annotations

from typing import Any

from compiler.conversation import ASSISTANT, USER, Conversation, Message
from compiler.formats.common import complete, read_columns
from compiler.formats.format import CHAT_KINDS, Format
from compiler.formats.kinds import KIND_COLUMNS
from compiler.formats.marks import MEDIA_COLUMNS
from compiler.options import Names


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation: system, history turns, then instruction and input joined by a newline."""
    found = read_columns(row, columns)
    messages = []
    for user, reply in filter(None, found.get("history") or ()):  # [[]] is no turn
        messages += [Message(USER, user), Message(ASSISTANT, reply)]
    prompt, query = found.get("prompt"), found.get("query")
    messages.append(Message(USER, f"{prompt}\n{query}" if prompt and query else prompt or query or ""))
    paired = found.get("chosen") is not None and found.get("rejected") is not None
    if not paired and (reply := found.get("response")) is not None:
        messages.append(Message(ASSISTANT, reply))
    return complete(found, columns, messages)


FORMAT = Format(
    name="alpaca",
    lift=lift,
    columns={
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "history": "history",
        "system": "system",
        "tools": "tools",
        **MEDIA_COLUMNS,
        **KIND_COLUMNS,
    },
    kinds=CHAT_KINDS,
)
