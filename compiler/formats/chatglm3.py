"""ChatGLM3: conversations of {role, content}, with `tool` turns that hold a call and its result at once.

A `tool` turn is split: the call belongs to the assistant, the observation is a tool's result. Tools may be any JSON.
ChatGLM3's template makes a system text of them, which stands before the row's own.
"""

from __future__ import annotations

from typing import Any

from compiler.conversation import Call, Conversation, Message, Role, to_json
from compiler.formats.common import UNREAD, asked_weight, read_columns
from compiler.formats.format import Format
from compiler.formats.marks import MEDIA_COLUMNS, place_media
from compiler.options import Names
from schemas.errors import Reason, RowError

_ROLES = {
    "system": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "observation": Role.TOOL,
}


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation; `places` tells from which turn each message came."""
    found, column = read_columns(row, columns), columns["messages"]
    tools = found.get("tools")
    messages: list[Message] = []
    places: list[int] = []
    for i, turn in enumerate(found["messages"]):
        if turn["role"] == "tool":
            lifted = _tool_turn(turn, messages, f"/{column}/{i}")
        else:
            role = _ROLES[turn["role"]]
            if role is Role.SYSTEM and i > 0:
                what = "expected one system message, first; found one later"
                raise RowError(Reason.TURN_ORDER, what, f"/{column}/{i}")
            lifted = [Message(role, turn["content"], weight=asked_weight(turn, role, f"/{column}/{i}"))]
        messages += lifted
        places += [i] * len(lifted)
    notes: list[str] = []
    if system := found.get("system"):
        if messages[0].role is not Role.SYSTEM:
            messages, places = [Message(Role.SYSTEM, system), *messages], [-1, *places]
        elif system != messages[0].content:
            notes = [f"{UNREAD}{columns['system']}"]
    conversation = Conversation(messages, tools, places=places, notes=notes)
    return place_media(conversation, found, columns) if "images" in found or "videos" in found else conversation


def _tool_turn(turn: dict[str, Any], messages: list[Message], pointer: str) -> list[Message]:
    """The call and the result of a tool turn; the call joins the thought before it if both have the same weight."""
    call = Call(turn["name"], turn["parameters"])
    observation = turn["observation"]
    result = Message(Role.TOOL, observation if isinstance(observation, str) else to_json(observation), name=call.name)
    weight = asked_weight(turn, Role.ASSISTANT, pointer)
    last = messages[-1] if messages else None
    if last is not None and last.role is Role.ASSISTANT and not last.calls and last.weight == weight:
        last.calls.append(call)
        return [result]
    return [Message(Role.ASSISTANT, "", [call], weight=weight), result]


FORMAT = Format(
    name="chatglm3",
    lift=lift,
    columns={"messages": "conversations", "tools": "tools", "system": "system", **MEDIA_COLUMNS},
    turns="messages",
)
