"""sharegpt: a list of {from, value}, with tool calls as `function_call` and their results as `observation`.

With other `tags` it also reads lists of {role, content}, and any other names of keys and roles.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from compiler.conversation import SYSTEM, Conversation, Message, Role
from compiler.formats.common import (
    CALL_ROLE,
    REASONING_KEYS,
    SWIFT_ROLES,
    WEIGHT_KEYS,
    asked_weight,
    calls_of_text,
    complete,
    read_columns,
    reasoning_of,
)
from compiler.formats.format import CHAT_KINDS, Format
from compiler.formats.kinds import KIND_COLUMNS
from compiler.formats.marks import MEDIA_COLUMNS, OBJECTS_COLUMN
from compiler.options import Names
from schemas.errors import Reason, RowError

_ROLES = {
    "user_tag": Role.USER,
    "assistant_tag": Role.ASSISTANT,
    "observation_tag": Role.TOOL,
    "function_tag": Role.ASSISTANT,
    "system_tag": Role.SYSTEM,
}

_OTHER_ROLES = {"tool": Role.TOOL, "user": Role.USER, "assistant": Role.ASSISTANT}
"""Roles that are read beside those of the tags."""


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:
    """The conversation; a leading system message wins over the system column."""
    column = columns["messages"]
    assert column is not None
    role_tag, content_tag = str(tags["role_tag"]), str(tags["content_tag"])
    roles, calling = _roles(tuple(map(tags.get, _ROLES)))

    def message(source: dict[str, Any], pointer: str) -> Message:
        role = roles[source[role_tag]]
        weight = None if WEIGHT_KEYS.isdisjoint(source) else asked_weight(source, role, pointer)
        reasoning = None if REASONING_KEYS.isdisjoint(source) else reasoning_of(source, role, pointer)
        if source[role_tag] in calling:
            calls = calls_of_text(source[content_tag], f"{pointer}/{content_tag}")
            return Message(role, "", calls, weight=weight, reasoning=reasoning)
        return Message(role, source[content_tag], weight=weight, reasoning=reasoning)

    messages = [
        Message(roles[said], source[content_tag])
        if len(source) == 2 and (said := source[role_tag]) not in calling  # nothing but role and text, as in most
        else message(source, f"/{column}/{i}")
        for i, source in enumerate(row[column])
    ]
    for i, one in enumerate(messages):
        if one.role is SYSTEM and i > 0:
            raise RowError(Reason.TURN_ORDER, "expected the system message first, found one later", f"/{column}/{i}")
    return complete(read_columns(row, columns), columns, messages, message)


@lru_cache(maxsize=64)
def _roles(names: tuple[str | None, ...]) -> tuple[dict[str, Role], tuple[str | None, ...]]:
    """The role that each name in a message means, and the names of those whose text is a call (shared: do not change).

    `names` are those of `_ROLES`.
    """
    given = dict(zip(_ROLES, names, strict=True))
    own = {name: role for name, role in zip(names, _ROLES.values(), strict=True) if name is not None}
    return SWIFT_ROLES | _OTHER_ROLES | own, (CALL_ROLE, given["function_tag"])


FORMAT = Format(
    name="sharegpt",
    lift=lift,
    columns={
        "messages": "conversations",
        "system": "system",
        "tools": "tools",
        **MEDIA_COLUMNS,
        **OBJECTS_COLUMN,
        **KIND_COLUMNS,
    },
    tags={
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
        "system_tag": "system",
    },
    turns="messages",
    kinds=CHAT_KINDS,
)
