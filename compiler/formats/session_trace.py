"""session_trace: a session file of lines {"type": "message", "message": {...}} after a line of type session."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Call, Conversation, Message, Role
from compiler.formats.common import parse_call
from compiler.formats.format import Format
from compiler.formats.thread import Thread
from compiler.options import Names
from schemas.errors import Reason, RowError

_ROLES = {
    "system": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
    "toolResult": Role.TOOL,
}


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation of the messages, in the order of the file."""
    thread = Thread()
    thread.notes.append("session_tools")
    before = None
    for i, line in enumerate(row["lines"]):
        if line["type"] == "message":
            _check_follows(line, before, f"/lines/{i}/parentId")
            _add(thread, i, line["message"], f"/lines/{i}/message")
        before = line.get("id") or before
    return thread.conversation(None, None)


def _check_follows(line: dict[str, Any], before: str | None, pointer: str) -> None:
    """Raise unless a message that names its parent follows it: a file with branches is several conversations."""
    parent = line.get("parentId")
    if parent is not None and before is not None and parent != before:
        what = f"expected each message to follow the line before it ({before!r}), found the parent {parent!r}"
        raise RowError(Reason.TURN_ORDER, f"{what}: the session has branches", pointer)


def _add(thread: Thread, place: int, source: dict[str, Any], pointer: str) -> None:
    role = _ROLES[source["role"]]
    message = thread.add(Message(role, ""), place)
    if role is Role.TOOL:
        message.call_id, message.name = source.get("toolCallId"), source.get("toolName")
    content, at = source.get("content"), f"{pointer}/content"
    if role is Role.ASSISTANT:
        thread.reason(source.get("reasoningContent") or "", place, pointer)
    for i, part in enumerate(content if isinstance(content, list) else [{"type": "text", "text": content or ""}]):
        if part["type"] == "text" and role is Role.ASSISTANT:
            thread.say(part["text"], place, f"{at}/{i}", more=True)
        elif part["type"] == "text":
            message.content += part["text"]
        elif part["type"] == "thinking":
            thread.reason(part["thinking"], place, f"{at}/{i}")
        else:
            thread.call(_call(part, f"{at}/{i}"), place)
    for i, call in enumerate(source.get("toolCalls") or ()):
        thread.call(_call(call, f"{pointer}/toolCalls/{i}"), place)


def _call(call: dict[str, Any], pointer: str) -> Call:
    """A call of {id, name, arguments}, also where name and arguments are in `function`."""
    inner, at = (call["function"], f"{pointer}/function") if "function" in call else (call, pointer)
    return parse_call(inner, at, f"{at}/arguments", call_id=call.get("id"))


FORMAT = Format(
    name="session_trace",
    lift=lift,
    columns={"lines": "lines"},
    ignorable=(
        "cwd",
        "parentId",
        "parentSession",
        "provider",
        "api",
        "usage",
        "stopReason",
        "isError",
        "thinkingLevel",
        "modelId",
        "type",
    ),
    turns="lines",
    session=True,
)
