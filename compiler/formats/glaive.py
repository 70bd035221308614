"""glaive: glaive-function-calling-v2 as published: `system` with functions, and `chat`, both as text.

The functions become the tools, and `<functioncall>` becomes a call. Of the system text, what is said before the list
of functions stays.
"""

from __future__ import annotations

import json
import re
from typing import Any

from compiler.conversation import Call, Conversation, Message, Role
from compiler.formats.common import parse_text, parse_tools
from compiler.formats.format import Format
from compiler.options import Names
from compiler.read.literal import parse_text as parse_literal_text
from schemas.errors import Reason, RowError

_TURN = re.compile(r"(?:\A\s*|\n\n\n+)(USER|ASSISTANT|FUNCTION RESPONSE):[ \n]?")
_ROLES = {"USER": Role.USER, "ASSISTANT": Role.ASSISTANT, "FUNCTION RESPONSE": Role.TOOL}
_LIST = re.compile(r" with access to the following functions\. Use them if required -\s*")
_END = "<|endoftext|>"
_CALL = "<functioncall>"
_QUOTED = re.compile(r"""\{\s*"name":\s*"([^"]+)",\s*"arguments":\s*'(.*)'\s*\}""", re.DOTALL)


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation:  # noqa: ARG001
    """The conversation."""
    system_at, chat_at = f"/{columns['system']}", f"/{columns['chat']}"
    text, tools = _system(row.get(system_at[1:]) or "", system_at)
    messages = [Message(Role.SYSTEM, text)] if text else []
    _, *pieces = _TURN.split(row[chat_at[1:]])
    for who, said in zip(pieces[::2], pieces[1::2], strict=True):
        said = said.strip()
        if who != "ASSISTANT":
            messages.append(Message(_ROLES[who], said))
            continue
        content, called, call = said.removesuffix(_END).rstrip().partition(_CALL)
        messages.append(Message(Role.ASSISTANT, content.rstrip(), [_call(call.strip(), chat_at)] if called else []))
    return Conversation(messages, tools)


def _system(text: str, pointer: str) -> tuple[str, list[Any] | None]:
    """What a system text says, and its functions: JSON objects one after another."""
    text = text.strip().removeprefix("SYSTEM:").strip()
    listed = _LIST.search(text)
    if listed is None:
        return text, None
    said, functions = text[: listed.start()], text[listed.end() :]
    tools, at, decoder = [], 0, json.JSONDecoder()
    while at < len(functions):
        try:
            _, end = decoder.raw_decode(functions, at)
        except ValueError:
            raise RowError(
                Reason.TOOLS, f"expected functions as JSON objects, found {functions[at : at + 40]!r}", pointer
            ) from None
        tools.append(parse_text(functions[at:end], "a function", Reason.TOOLS, pointer))
        at = end + len(functions[end:]) - len(functions[end:].lstrip())
    return f"{said}.", parse_tools(tools, pointer)


def _call(text: str, pointer: str) -> Call:
    """The call of {"name": ..., "arguments": '{...}'}: the arguments are JSON in single quotes, or an object."""
    quoted = _QUOTED.fullmatch(text)
    name: Any
    if quoted:
        name, arguments = quoted[1], parse_text(quoted[2], "arguments", Reason.TOOL_ARGUMENTS, pointer)
    else:
        try:
            value = parse_literal_text(text)
        except ValueError as error:
            what = f"expected a call after {_CALL}, found text that is {error}"
            raise RowError(Reason.TOOL_ARGUMENTS, what[:500], pointer) from None
        fields = value if isinstance(value, dict) else {}
        name, arguments = fields.get("name"), fields.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        what = f"expected a call with a name and arguments after {_CALL}, found {text[:60]!r}"
        raise RowError(Reason.TOOL_ARGUMENTS, what, pointer)
    return Call(name, arguments)


FORMAT = Format(
    name="glaive",
    lift=lift,
    columns={"chat": "chat", "system": "system"},
)
