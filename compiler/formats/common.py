"""What several source formats share: reading columns, tools and calls as JSON text, weights of messages."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from compiler.conversation import Call, Conversation, Message, Role, to_json
from compiler.formats.kinds import label_of
from compiler.formats.marks import place_media, read_objects
from compiler.options import Names
from compiler.read.value import json_type, parse
from schemas.errors import Reason, RowError

FLAGS = ("train", "trainable", "loss_mask", "loss", "loss_scale", "loss_weight", "weight")
"""The keys of a message that say whether it is trained, and how much."""
WEIGHT_KEYS = frozenset(FLAGS)
REASONING_KEYS = frozenset({"reasoning_content", "reasoning", "thinking"})
"""The keys of a message under which people keep what a reply thinks before it speaks."""

_SHARED = 1 << 16
"""The most characters of tools that are kept for the next row."""

UNREAD = "unread: "
"""What the note on a key begins with that a lift leaves out; its path follows."""
CALL_ROLE = "tool_call"
SWIFT_ROLES = {CALL_ROLE: Role.ASSISTANT, "tool_response": Role.TOOL}
"""ms-swift's roles: a message whose text is a call or a list of them, and a result."""


def read_columns(row: dict[str, Any], columns: Names) -> dict[str, Any]:
    """The columns that a row has, by the format's names for them."""
    return {name: row[column] for name, column in columns.items() if column in row}


def reply_of_text(text: Any, pointer: str) -> Message:  # noqa: ARG001  # a text has no places of its own
    """The reply that a text is."""
    return Message(Role.ASSISTANT, text)


def complete(
    found: dict[str, Any],
    columns: Names,
    messages: list[Message],
    to_message: Callable[[Any, str], Message] = reply_of_text,
) -> Conversation:
    """The conversation of a row's messages and of its columns for system, tools, a pair, KTO and media.

    `found` are the row's columns by name. A system message wins over the column. Of a pair, `chosen` is the reply to
    prefer; without it, the conversation's own last reply is. `to_message` reads a reply at a pointer. The schema for
    the kind decides which rows may be a pair.
    """
    tools = parse_tools(found["tools"], f"/{columns['tools']}") if "tools" in found else None
    conversation = Conversation(messages, tools)
    if (system := found.get("system")) and messages[0].role is not Role.SYSTEM:
        conversation.places = [-1, *range(len(messages))]
        conversation.messages = [Message(Role.SYSTEM, system), *messages]
    elif system and system != messages[0].content:
        conversation.notes = [f"{UNREAD}{columns['system']}"]
    if (label := found.get("kto_tag")) is not None:
        conversation.desirable = label_of(label)
    if (rejected := found.get("rejected")) is not None:
        conversation.rejected = to_message(rejected, f"/{columns['rejected']}")
        if (chosen := found.get("chosen")) is not None:
            places = conversation.places or list(range(len(conversation.messages)))
            conversation.messages.append(to_message(chosen, f"/{columns['chosen']}"))
            conversation.places = [*places, -1]  # it is not in the list of messages
    if "objects" in found:
        conversation.objects = read_objects(found["objects"], f"/{columns['objects']}")
    return place_media(conversation, found, columns) if "images" in found or "videos" in found else conversation


def parse_text(text: str, what: str, reason: Reason, pointer: str) -> Any:
    """The value of JSON text inside a row, parsed as strictly as the row itself; `what` is what was expected."""
    value, reject = parse(text.strip().encode(), "text")
    if reject is not None:
        raise RowError(reason, f"expected {what} as JSON, found text that is not: {reject.message}", pointer)
    return value


def parse_tools(value: Any, pointer: str) -> list[Any] | None:
    """The list of tools given as JSON text, a list, a list of JSON texts, or one tool; None for nothing, [] for [].

    Rows with the same text share the list: do not change it.
    """
    if isinstance(value, str):
        return _tools_of_text(value, pointer) if len(value) <= _SHARED else _tools_of_text.__wrapped__(value, pointer)
    return None if value is None else _tools(value, pointer, f"{pointer}/{{}}" if isinstance(value, list) else pointer)


@lru_cache(maxsize=256)
def _tools_of_text(text: str, pointer: str) -> list[Any] | None:
    if not text.strip():
        return None
    value = parse_text(text, "a list of tools", Reason.TOOLS, pointer)
    return None if value is None else _tools(value, pointer, pointer)


def _tools(value: Any, pointer: str, within: str) -> list[Any]:
    """The tools of a value that is one, or a list of them; `within` points to each."""
    tools = [value] if isinstance(value, dict) else value
    if not isinstance(tools, list):
        raise RowError(Reason.TOOLS, f"expected a JSON list of tools, found {_kind(value)}", pointer)
    tools = [
        parse_text(tool, "a tool", Reason.TOOLS, within.format(i)) if isinstance(tool, str) else tool
        for i, tool in enumerate(tools)
    ]
    for i, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise RowError(Reason.TOOLS, f"expected a tool as a JSON object, found {_kind(tool)}", within.format(i))
    return [
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool} for tool in tools
    ]


def parse_call(call: Any, pointer: str, arguments_at: str, *, call_id: str | None = None) -> Call:
    """The tool call of {"name", "arguments"}; arguments may be an object or its JSON text (decision 6).

    `pointer` points to the call in the row, `arguments_at` to its arguments.
    """
    if not isinstance(call, dict):
        raise RowError(Reason.TOOL_ARGUMENTS, f"expected a tool call as an object, found {_kind(call)}", pointer)
    name = call.get("name")
    if not isinstance(name, str) or not name:
        found = "an empty name" if name == "" else f"the keys {', '.join(map(repr, call)) or 'none'}"
        raise RowError(Reason.TOOL_ARGUMENTS, f"expected a tool call with a name, found {found}", pointer)
    if "arguments" not in call:
        raise RowError(Reason.TOOL_ARGUMENTS, f"the call of {name!r} has no arguments", pointer)
    arguments = call["arguments"]
    if isinstance(arguments, str):
        arguments = parse_text(arguments, "arguments", Reason.TOOL_ARGUMENTS, arguments_at) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise RowError(
            Reason.TOOL_ARGUMENTS, f"expected arguments to be a JSON object, found {_kind(arguments)}", arguments_at
        )
    return Call(name, arguments, call_id)


def reasoning_of(message: dict[str, Any], role: Role, pointer: str) -> str | None:
    """What a reply thinks before it speaks, under whichever key; None where nothing is said of it."""
    found = {key: text for key in message.keys() & REASONING_KEYS if (text := message[key])}
    if not found:
        return None
    if role is not Role.ASSISTANT:
        key = min(found)
        raise RowError(
            Reason.UNREAD_KEY, f"expected {key!r} in a reply, found it in a message of {role}", f"{pointer}/{key}"
        )
    if len(set(found.values())) > 1:
        keys = " and ".join(map(repr, sorted(found)))
        raise RowError(Reason.SCHEMA, f"expected the reasoning once, found different texts under {keys}", pointer)
    return str(next(iter(found.values())))


def asked_weight(message: dict[str, Any], role: Role, pointer: str) -> float | None:
    """The weight that the flags of a message ask for (decision 14); None = by role.

    On a reply, true or 1 is the default and leaves it to the weights policy; false or 0 makes it context. On any other
    role, true trains the content, and OpenAI's `weight` says nothing. Any other number is the weight itself. Flags that
    contradict one another are a RowError.
    """
    asked = {key: value for key in FLAGS if (value := message.get(key)) is not None}
    if role is not Role.ASSISTANT:
        asked.pop("weight", None)
    weights = {float(value) for value in asked.values()}
    if len(weights) > 1 and (0.0 in weights or len(weights - {1.0}) > 1):
        found = " and ".join(f"{key!r}: {to_json(value)}" for key, value in asked.items())
        raise RowError(Reason.SCHEMA, f"expected flags that agree on what is trained, found {found}", pointer)
    default = 1.0 if weights and role is not Role.ASSISTANT else None
    return next(iter(weights - {1.0}), default)


def calls_of_text(text: str, pointer: str) -> list[Call]:
    """The calls of a message that is nothing else: one JSON object, or a list of them."""
    value = parse_text(text, "a tool call", Reason.TOOL_ARGUMENTS, pointer)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise RowError(Reason.TOOL_ARGUMENTS, "expected at least one tool call, found an empty list", pointer)
    return [parse_call(call, pointer, pointer) for call in calls]


def _kind(value: Any) -> str:
    """What a JSON value is, with its article."""
    name = json_type(value)
    return name if value is None else f"an {name}" if name[0] in "aio" else f"a {name}"
