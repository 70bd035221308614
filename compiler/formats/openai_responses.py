"""openai_responses: items as OpenAI's Responses API has them: messages, reasoning, calls and their outputs."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Call, Conversation, Message, Role
from compiler.formats.common import parse_call, parse_tools, read_columns
from compiler.formats.format import Format
from compiler.formats.thread import Thread, add_parts, text_of
from compiler.options import Names

_ROLES = {"user": Role.USER, "assistant": Role.ASSISTANT, "system": Role.SYSTEM, "developer": Role.SYSTEM}


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation of the items of `input` and, after them, of `output`."""
    found = read_columns(row, columns)
    thread = Thread()
    given = found["items"]
    if isinstance(given, str):
        thread.add(Message(Role.USER, given), -1)
    else:
        for i, item in enumerate(given):
            add_item(thread, i, item, f"/{columns['items']}/{i}")
    for i, item in enumerate(found.get("output") or ()):
        add_item(thread, -1, item, f"/{columns['output']}/{i}")
    tools = parse_tools(found.get("tools"), f"/{columns['tools']}")
    return thread.conversation(found.get("system"), [_tool(tool) for tool in tools] if tools is not None else None)


def add_item(thread: Thread, place: int, item: dict[str, Any], pointer: str) -> None:
    """Add one item. An item without a type is a message."""
    match item.get("type") or "message":
        case "message":
            role = _ROLES[item["role"]]
            if role is Role.ASSISTANT:
                thread.say(text_of(item["content"]) or "", place, f"{pointer}/content")
            else:
                thread.add(add_parts(Message(role, ""), item["content"], f"{pointer}/content"), place)
        case "reasoning":
            said = item.get("content") or item.get("summary") or []
            thread.reason("\n\n".join(part["text"] for part in said), place, pointer)
            if not said and item.get("encrypted_content"):
                thread.hide()
        case "function_call":
            thread.call(parse_call(item, pointer, f"{pointer}/arguments", call_id=item["call_id"]), place)
        case "custom_tool_call":
            thread.call(Call(item["name"], {"input": item["input"]}, item["call_id"]), place)
        case "local_shell_call":
            thread.call(Call("local_shell", item["action"], item.get("call_id")), place)
        case _:
            result = Message(Role.TOOL, "", call_id=item.get("call_id"))
            thread.add(add_parts(result, item["output"], f"{pointer}/output"), place)


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as chat templates take it: its `type` beside the function, not in it."""
    function = tool.get("function")
    if not isinstance(function, dict) or "type" not in function:
        return tool
    return tool | {"function": {key: value for key, value in function.items() if key != "type"}}


FORMAT = Format(
    name="openai_responses",
    lift=lift,
    columns={"items": "input", "output": "output", "system": "instructions", "tools": "tools"},
    ignorable=("status", "encrypted_content", "annotations", "detail", "usage"),
    turns="items",
)
