"""OpenAI messages: roles, list contents, tool_calls with their results, and the older function_call."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Call, Conversation, Message, Role
from compiler.formats.common import asked_weight, column_of, parse_call, with_columns

COLUMNS = {"messages": "messages", "system": "system", "tools": "tools"}
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function",
    "system_tag": "system",
}


def lift(row: dict[str, Any], columns: dict[str, str | None], tags: dict[str, str | None]) -> Conversation:
    """Return the conversation. `developer` is a system message, `function` a tool result."""
    column = columns["messages"]
    assert column is not None
    role_tag, content_tag = tags["role_tag"] or "role", tags["content_tag"] or "content"
    roles = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "function": Role.TOOL, "tool": Role.TOOL}
    roles |= {
        str(tags[tag]): role
        for tag, role in (
            ("user_tag", Role.USER),
            ("assistant_tag", Role.ASSISTANT),
            ("observation_tag", Role.TOOL),
        )
        if tags.get(tag) is not None
    }
    messages = []
    for i, source in enumerate(row[column]):
        role = roles[source[role_tag]]
        message = Message(role, _text(source.get(content_tag)), weight=asked_weight(source, role))
        if role is Role.ASSISTANT:
            message.calls = _calls(source, f"/{column}/{i}")
        elif role is Role.TOOL:
            message.name, message.call_id = source.get("name"), source.get("tool_call_id")
        messages.append(message)
    if row.get("functions") is not None and column_of(row, columns, "tools") is None:
        return with_columns(row, columns | {"tools": "functions"}, messages)
    return with_columns(row, columns, messages)


def _text(content: Any) -> str:
    """Return a content as one text: a string as it is, text parts joined without anything between them."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def _calls(source: dict[str, Any], pointer: str) -> list[Call]:
    calls = [
        parse_call(
            call["function"], at := f"{pointer}/tool_calls/{j}/function", f"{at}/arguments", call_id=call.get("id")
        )
        for j, call in enumerate(source.get("tool_calls") or ())
    ]
    if not calls and source.get("function_call"):
        at = f"{pointer}/function_call"
        calls = [parse_call(source["function_call"], at, f"{at}/arguments")]
    return calls
