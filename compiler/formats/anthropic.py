"""anthropic: messages as Anthropic's API has them, with content blocks for text, thinking, calls and results."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Call, Conversation, Message, Role
from compiler.formats.common import WEIGHT_KEYS, asked_weight, parse_tools, read_columns
from compiler.formats.format import Format
from compiler.formats.thread import Thread, add_parts, text_of
from compiler.options import Names


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation. The results in a user message become tool messages; what it says beside them follows."""
    found, column = read_columns(row, columns), str(columns["messages"])
    thread = Thread()
    for i, source in enumerate(found["messages"]):
        role = Role(source["role"])
        weight = None if WEIGHT_KEYS.isdisjoint(source) else asked_weight(source, role, f"/{column}/{i}")
        add_message(thread, i, source, f"/{column}/{i}", weight)
    return thread.conversation(text_of(found.get("system")), tools_of(found.get("tools"), f"/{columns['tools']}"))


def add_message(thread: Thread, place: int, source: dict[str, Any], pointer: str, weight: float | None) -> None:
    """Add one message of the API, which may be several of ours; a reply is begun anew."""
    content, pointer = source["content"], f"{pointer}/content"
    if source["role"] == "assistant":
        thread.add(Message(Role.ASSISTANT, "", weight=weight), place)
        add_reply(thread, place, content, pointer)
        return
    role = Role(source["role"])
    if isinstance(content, str):
        thread.add(Message(role, content, weight=weight), place)
        return
    said: list[Any] = []
    for i, block in enumerate(content):
        if block["type"] == "tool_result":
            _add_said(thread, place, role, said, pointer, weight)
            result = Message(Role.TOOL, "", call_id=block["tool_use_id"], weight=weight)
            thread.add(add_parts(result, block.get("content"), f"{pointer}/{i}/content"), place)
        else:
            said.append((i, block))
    _add_said(thread, place, role, said, pointer, weight)


def add_reply(thread: Thread, place: int, content: Any, pointer: str) -> None:
    """Add the blocks of a reply to the one that is being made."""
    for i, block in enumerate(content if isinstance(content, list) else [{"type": "text", "text": content}]):
        at = f"{pointer}/{i}" if isinstance(content, list) else pointer
        if block["type"] == "text":
            thread.say(block["text"], place, at, more=True)
        elif block["type"] == "thinking":
            thread.reason(block["thinking"], place, at)
        elif block["type"] == "redacted_thinking":
            thread.hide()
        elif block["type"] == "tool_use":
            thread.call(Call(block["name"], block["input"], block["id"]), place)


def _add_said(thread: Thread, place: int, role: Role, said: list[Any], pointer: str, weight: float | None) -> None:
    """Add the blocks that a user says as one message, and forget them."""
    if not said:
        return
    message = Message(role, "", weight=weight)
    for i, block in said:
        before = len(message.media)
        add_parts(message, [block], pointer)
        for media in message.media[before:]:
            media.pointer = f"{pointer}/{i}"
    said.clear()
    thread.add(message, place)


def tools_of(value: Any, pointer: str) -> list[Any] | None:
    """The tools, as chat templates take them: what Anthropic calls `input_schema` are the parameters."""
    tools = parse_tools(value, pointer)
    for i, tool in enumerate(tools or ()):
        function = tool.get("function")
        if tools is not None and isinstance(function, dict) and "input_schema" in function:
            renamed = {"parameters" if key == "input_schema" else key: inner for key, inner in function.items()}
            tools[i] = tool | {"function": renamed}
    return tools


FORMAT = Format(
    name="anthropic",
    lift=lift,
    columns={"messages": "messages", "system": "system", "tools": "tools"},
    ignorable=("signature", "cache_control", "is_error", "stop_reason", "stop_sequence", "usage", "type"),
    turns="messages",
)
