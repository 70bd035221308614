"""ms_agent: {from: system|user|assistant, value} with ReAct text in the assistant's value; ms-bench looks the same.

It is read as sharegpt with other role names. The reply stays one text; the weights policy `react` decides which part of
it is trained.
"""

from __future__ import annotations

from compiler.formats import sharegpt
from compiler.formats.format import Format
from compiler.formats.marks import MEDIA_COLUMNS

FORMAT = Format(
    name="ms_agent",
    lift=sharegpt.lift,
    columns={"messages": "conversations", "system": "system", "tools": "tools", **MEDIA_COLUMNS},
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
