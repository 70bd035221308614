"""ms_agent: {from: system|user|assistant, value}, ReAct text inside the assistant's value (ms-bench has the same form).

The reply stays one text, exactly as it is: which part of it is trained is the weights policy's work (`react`).
"""

from __future__ import annotations

from compiler.formats import sharegpt
from compiler.formats.format import Format

FORMAT = Format(
    name="ms_agent",
    lift=sharegpt.lift,
    columns={"messages": "conversations"},
    tags={
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
    turns="messages",
    weights="react",
    react=True,
)
