"""llamafactory_v1: content as a list of {type, value}: text, reasoning, tool_call, image_url, video_url."""

from __future__ import annotations

from typing import Any

from compiler.conversation import Conversation, Media, Message, Role
from compiler.formats.common import WEIGHT_KEYS, asked_weight, complete, parse_call, parse_text, read_columns
from compiler.formats.format import Format
from compiler.options import Names
from schemas.errors import Reason, RowError


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation. Texts are joined as they are; reasoning comes before them."""
    found, column = read_columns(row, columns), columns["messages"]
    messages = [_message(source, f"/{column}/{i}") for i, source in enumerate(found["messages"])]
    return complete(found, columns, messages)


def _message(source: dict[str, Any], pointer: str) -> Message:
    role = Role(source["role"])
    message = Message(role, "", weight=None if WEIGHT_KEYS.isdisjoint(source) else asked_weight(source, role, pointer))
    for i, part in enumerate(source["content"]):
        kind, value, at = part["type"], part["value"], f"{pointer}/content/{i}"
        if kind == "text":
            message.content += value
        elif kind in ("reasoning", "tool_call"):
            if role is not Role.ASSISTANT or (kind == "reasoning" and (message.content or message.calls)):
                what = "in a reply, before its text and calls" if kind == "reasoning" else "in a reply"
                raise RowError(Reason.TURN_ORDER, f"expected {kind} {what}, found it in another place", at)
            if kind == "reasoning":
                message.reasoning = (message.reasoning or "") + value
            else:
                call = parse_text(value, "a tool call", Reason.TOOL_ARGUMENTS, f"{at}/value")
                message.calls.append(parse_call(call, f"{at}/value", f"{at}/value"))
        else:
            if role not in (Role.USER, Role.TOOL):
                raise RowError(Reason.MEDIA, f"expected text in a message of the {role}, found {kind!r}", at)
            message.media.append(Media(kind.removesuffix("_url"), value, at=len(message.content), pointer=at))
    return message


FORMAT = Format(
    name="llamafactory_v1",
    lift=lift,
    columns={"messages": "messages", "tools": "tools"},
    turns="messages",
)
