"""hermes: sharegpt as in NousResearch's function-calling data, with calls and results as blocks of text.

<tool_call> blocks (JSON, or a dict as Python prints it) at the end of a gpt message become its calls; the text before
them is its text. Every <tool_response> block of a tool message becomes one result, its text unchanged. A system message
stays unchanged. The `tools` column is given to the chat template unless the system message lists the same tools in
<tools>, because they would be in the prompt twice.
"""

from __future__ import annotations

import re
from typing import Any

from compiler.conversation import Call, Conversation, Message, Role
from compiler.formats.common import asked_weight, complete, parse_call, parse_tools, read_columns
from compiler.formats.format import Format
from compiler.options import Names
from compiler.read.literal import parse_text
from schemas.errors import Reason, RowError

_ROLES = {
    "user_tag": Role.USER,
    "assistant_tag": Role.ASSISTANT,
    "observation_tag": Role.TOOL,
    "system_tag": Role.SYSTEM,
}
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>\s*", re.DOTALL)
_RESPONSE = re.compile(r"\s*<tool_response>(.*?)</tool_response>\s*", re.DOTALL)


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:
    """The conversation; `places` tells which results came from one message."""
    column = columns["messages"]
    assert column is not None
    role_tag, content_tag = tags["role_tag"], tags["content_tag"]
    roles = {tags[tag]: role for tag, role in _ROLES.items() if tags.get(tag) is not None}
    messages: list[Message] = []
    places: list[int] = []
    for i, source in enumerate(row[column]):
        role, text = roles[source[role_tag]], source[content_tag]
        if role is Role.SYSTEM and i > 0:
            raise RowError(Reason.TURN_ORDER, "expected the system message first, found one later", f"/{column}/{i}")
        weight = asked_weight(source, role, f"/{column}/{i}")
        if role is Role.ASSISTANT:
            text, calls = calls_of(text, f"/{column}/{i}/{content_tag}")
            lifted = [Message(role, text, calls, weight=weight)]
        else:
            texts = results_of(text) if role is Role.TOOL else [text]
            lifted = [Message(role, text, weight=weight) for text in texts]
        messages += lifted
        places += [i] * len(lifted)
    conversation = complete(read_columns(row, columns), columns, messages)
    conversation.places = [-1] * (len(conversation.messages) - len(messages)) + places
    if messages[0].role is Role.SYSTEM and lists_tools(messages[0].content, conversation.tools):
        conversation.tools = None
    return conversation


def calls_of(value: str, pointer: str) -> tuple[str, list[Call]]:
    """The text before the first call, and the calls."""
    text, tag, _ = value.partition("<tool_call>")
    if not tag:
        return value, []
    calls, at = [], len(text)
    while at < len(value):
        block = _CALL.match(value, at)
        if block is None:
            opened = value.startswith("<tool_call>", at)
            expected = "</tool_call> after" if opened else "nothing but <tool_call> blocks after the first, found"
            raise RowError(Reason.TOOL_ARGUMENTS, f"expected {expected} {value[at : at + 40]!r}", pointer)
        try:
            call = parse_text(block[1])
        except ValueError as error:
            what = f"expected a tool call, found text that is {error}"
            raise RowError(Reason.TOOL_ARGUMENTS, what, pointer) from error
        calls.append(parse_call(call, pointer, pointer))
        at = block.end()
    return text.rstrip(" \t\r\n"), calls


def results_of(value: str) -> list[str]:
    """The contents of the response blocks; the whole text if it is not made of blocks."""
    found, at = [], 0
    while at < len(value):
        block = _RESPONSE.match(value, at)
        if block is None:
            return [value]
        found.append(block[1].strip("\r\n"))
        at = block.end()
    return found or [value]


def lists_tools(system: str, tools: list[Any] | None) -> bool:
    """Whether a <tools> block of the system text lists the same tools, as one list or one on each line."""
    for piece in system.split("<tools>")[1:] if tools else ():
        inner, closed, _ = piece.partition("</tools>")
        for text in (inner, f"[{','.join(inner.strip().splitlines())}]") if closed else ():
            try:
                if parse_tools(parse_text(text), "") == tools:
                    return True
            except (ValueError, RowError):
                continue
    return False


FORMAT = Format(
    name="hermes",
    lift=lift,
    columns={"messages": "conversations", "system": "system", "tools": "tools"},
    tags={
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "tool",
        "system_tag": "system",
    },
    turns="messages",
)
