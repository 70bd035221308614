"""ms_agent: {from: system|user|assistant, value}, ReAct text inside the assistant's value (ms-bench has the same form).

The reply stays one text, exactly as it is: which part of it is trained is the weights policy's work (`react`).
"""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation
from compiler.formats import sharegpt

COLUMNS = {"messages": "conversations"}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def lift(row: dict[str, Any], columns: dict[str, str | None], tags: dict[str, str | None]) -> Conversation:
    """Return the conversation, read as sharegpt with other role names."""
    return sharegpt.lift(row, columns, tags)
