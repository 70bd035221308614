"""conversation_pairs: {"conversation": [{"human", "assistant"}, ...]}, as in Firefly and older ms-swift data.

Each item is a question and its reply; the tags name the two keys. A system text may stand in the first item (XTuner).
"""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Message, Role
from compiler.formats.common import read_columns
from compiler.formats.format import Format
from compiler.options import Names
from schemas.errors import Reason, RowError


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:
    """The conversation; by `places`, two messages come from each pair."""
    found = read_columns(row, columns)
    messages = [Message(Role.SYSTEM, found["system"])] if found.get("system") else []
    places = [-1] * len(messages)
    system_tag = tags.get("system_tag") or ""
    for i, pair in enumerate(found["messages"]):
        if (system := pair.get(system_tag)) and not (messages and system == messages[0].content):
            if messages:
                what = "expected one system text, in the column or the first item; found another one"
                raise RowError(Reason.TURN_ORDER, what, f"/{columns['messages']}/{i}/{system_tag}")
            messages.append(Message(Role.SYSTEM, system))
            places.append(i)
        messages.append(Message(Role.USER, pair[tags["user_tag"]]))
        messages.append(Message(Role.ASSISTANT, pair[tags["assistant_tag"]]))
        places += [i, i]
    return Conversation(messages, places=places)


FORMAT = Format(
    name="conversation_pairs",
    lift=lift,
    columns={"messages": "conversation", "system": "system"},
    tags={"user_tag": "human", "assistant_tag": "assistant", "system_tag": "system"},
    turns="messages",
)
