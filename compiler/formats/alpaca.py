"""alpaca: one instruction with optional input, history, system prompt and tools; images and videos; pairs and KTO."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.formats.common import column_of, parse_tools, with_kind
from compiler.formats.format import CHAT_KINDS, Format
from compiler.formats.kinds import KIND_COLUMNS
from compiler.formats.marks import MEDIA_COLUMNS, place_media
from compiler.options import Names


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """Return the conversation: system, history turns, then instruction and input joined by a newline."""
    system = column_of(row, columns, "system")
    messages = [Message(Role.SYSTEM, system)] if system else []
    for user, reply in column_of(row, columns, "history") or ():
        messages += [Message(Role.USER, user), Message(Role.ASSISTANT, reply)]
    asked = "\n".join(text for text in (column_of(row, columns, name) for name in ("prompt", "query")) if text)
    messages.append(Message(Role.USER, asked))
    paired = column_of(row, columns, "chosen") is not None and column_of(row, columns, "rejected") is not None
    if not paired and (reply := column_of(row, columns, "response")) is not None:
        messages.append(_reply(reply, ""))
    conversation = Conversation(messages, parse_tools(column_of(row, columns, "tools"), f"/{columns.get('tools')}"))
    return place_media(with_kind(conversation, row, columns, _reply), row, columns)


def _reply(text: Any, pointer: str) -> Message:  # noqa: ARG001  # texts have no places of their own
    return Message(Role.ASSISTANT, text)


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
